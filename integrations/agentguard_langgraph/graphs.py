"""`guard_graph`: a whole graph, with guarded tools, an identity for every task, and shards that are merged at joins."""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.runnables import RunnableBinding, RunnableSequence
from langchain_core.runnables.graph import Graph
from langgraph.channels import BinaryOperatorAggregate
from langgraph.channels.base import BaseChannel
from langgraph.channels.last_value import LastValueAfterFinish
from langgraph.constants import TAG_HIDDEN
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode

from agentguard import ConfigError, Guard

from .lines import KNOWN, updated
from .nodes import GuardedNode
from .plan import Layout, layout, merged
from .tasks import JOIN, MANIFEST, TRIGGER, JoinNode, TaskNode
from .toolnodes import guarded_copy

__all__ = ["GuardedStateGraph", "guard_graph"]


def guard_graph(
    builder: StateGraph[Any, Any, Any, Any], guard: Guard, *, checkpointer: Any = None, **options: Any
) -> GuardedStateGraph:
    """Compile a graph whose tasks are guarded.

    `builder`: the StateGraph, not compiled; neither it nor its nodes and tools are changed. `checkpointer` and
    `options`: those of `builder.compile`.

    Every task has an identity, which messages and events show. The tools of ToolNodes and of agents that are nodes are
    guarded as by `guard_tools`; for tools that a node's own code calls, use that or `guard.wrap`.

    Resources in shard mode: each task of this graph, with all that it calls, works on a shard. A node with one
    predecessor continues the shard of its branch. Shards are merged when a join begins (a waiting edge, a deferred
    node, a node after a Send fan-out, any node with several possible predecessors) and at the end of the run. Tasks
    that fail, are interrupted or are tried again leave nothing behind; a subgraph with checkpoints goes on where it
    stopped.
    A `MergeConflict` of a join is raised by the run, with every shard kept: resolve it, and resume the run.

    Nothing of it shows in the state, in outputs, streams and drawn graphs. A run that wrote shards has one superstep
    more, which the history and the stream of checkpoints tell.

    Raises `ConfigError` for a compiled graph, a node or state key named like ours, and tools of another guard.
    """
    if isinstance(builder, Pregel):
        raise ConfigError(
            "guard_graph compiles the graph itself: give it the builder (StateGraph), not a compiled graph"
        )
    if not isinstance(builder, StateGraph):
        raise ConfigError(f"guard_graph guards a StateGraph, not {type(builder).__name__}")
    for name in (JOIN, MANIFEST, KNOWN):
        if name in builder.nodes or name in builder.channels:
            raise ConfigError(
                f"{name!r} is AgentGuard's own name: call your node or state key something else", value=name
            )
    compiled = builder.compile(checkpointer=checkpointer, **options)
    sharded = any(one.mode == "shard" for one in guard.config.resources.values())
    graph = GuardedStateGraph.of(compiled)
    places = layout(builder)
    graph.nodes = _guarded_nodes(compiled, guard, places, sharded)
    graph.channels = _with_known(compiled)
    if sharded:
        manifest: BaseChannel[Any, Any, Any] = BinaryOperatorAggregate(dict, merged)
        trigger: BaseChannel[Any, Any, Any] = LastValueAfterFinish(Any)
        manifest.key, trigger.key = MANIFEST, TRIGGER
        graph.channels = {**graph.channels, MANIFEST: manifest, TRIGGER: trigger}
        # It runs once nothing else can: at the end, and again should later nodes write.
        graph.nodes[JOIN] = PregelNode(channels=MANIFEST, triggers=[TRIGGER], tags=[TAG_HIDDEN], bound=JoinNode(guard))
    graph.validate()
    return graph


class GuardedStateGraph(CompiledStateGraph[Any, Any, Any, Any]):
    """A compiled graph that draws itself as its builder made it."""

    @classmethod
    def of(cls, compiled: CompiledStateGraph[Any, Any, Any, Any]) -> GuardedStateGraph:
        """The same graph; nodes and channels may be replaced without changing `compiled`."""
        made = cls.__new__(cls)
        vars(made).update(vars(compiled))
        return made

    def guarded_by(self) -> Guard | None:
        """The guard of its tasks."""
        return next((node.bound.guard for node in self.nodes.values() if isinstance(node.bound, TaskNode)), None)

    def get_graph(self, config: Any = None, *, xray: int | bool = False) -> Graph:
        """As `CompiledStateGraph.get_graph`."""
        return super(GuardedStateGraph, self._drawn()).get_graph(config, xray=xray)

    async def aget_graph(self, config: Any = None, *, xray: int | bool = False) -> Graph:
        """As `CompiledStateGraph.aget_graph`."""
        return await super(GuardedStateGraph, self._drawn()).aget_graph(config, xray=xray)

    def _drawn(self) -> GuardedStateGraph:
        plain = GuardedStateGraph.of(self)
        plain.nodes = {
            name: node.copy({"bound": node.bound.bound}) if isinstance(node.bound, TaskNode) else node
            for name, node in self.nodes.items()
            if name != JOIN
        }
        return plain


def _with_known(graph: Pregel[Any, Any, Any, Any]) -> dict[str, Any]:
    """A graph's channels, and that of what its nodes know."""
    known: BaseChannel[Any, Any, Any] = BinaryOperatorAggregate(dict, updated)
    known.key = KNOWN
    return {**graph.channels, KNOWN: known}


def _guarded_nodes(
    compiled: Pregel[Any, Any, Any, Any], guard: Guard, places: Layout | None, sharded: bool
) -> dict[str, PregelNode]:
    nodes: dict[str, PregelNode] = {}
    for name, node in compiled.nodes.items():
        if node.bound is DEFAULT_BOUND:
            nodes[name] = node
            continue
        bound = _guarded(node.bound, guard)
        subgraphs = [_guarded(one, guard) if isinstance(one, Pregel) else one for one in node.subgraphs]
        if bound is not node.bound and len(subgraphs) == 1 and isinstance(bound, Pregel):
            subgraphs = [bound]
        before = places.get(name) if places is not None else None
        task = TaskNode(bound, guard, before if sharded else None, before=before, resumable=bool(subgraphs))
        nodes[name] = node.copy({"bound": task, "subgraphs": subgraphs})
    return nodes


def _guarded(runnable: Any, guard: Guard) -> Any:
    """The same Runnable with guarded tools inside, as far as it can be looked into; never changed in place."""
    if isinstance(runnable, GuardedNode):
        if runnable.guard is not guard:
            raise ConfigError(f"the node {runnable.name!r} is guarded by {runnable.guard!r}, the graph by {guard!r}")
        inner = _guarded(runnable.node, guard)
        return runnable if inner is runnable.node else runnable.rebound(inner)
    if isinstance(runnable, ToolNode):
        return guarded_copy(runnable, guard)
    if isinstance(runnable, GuardedStateGraph):
        own = runnable.guarded_by()
        if own is not None and own is not guard:
            raise ConfigError(f"the subgraph {runnable.name!r} is guarded by {own!r}, the graph by {guard!r}")
        return runnable
    if isinstance(runnable, Pregel):
        copied = copy.copy(runnable)
        places = layout(runnable.builder) if isinstance(runnable, CompiledStateGraph) else None
        copied.nodes = _guarded_nodes(runnable, guard, places, False)
        if places is not None:
            copied.channels = _with_known(runnable)
        return copied
    if isinstance(runnable, RunnableBinding):
        return runnable.model_copy(update={"bound": _guarded(runnable.bound, guard)})
    if isinstance(runnable, RunnableSequence):
        return RunnableSequence(*(_guarded(step, guard) for step in runnable.steps), name=runnable.name)
    return runnable
