"""One task of a guarded graph: its identity, its shard, and the record that it leaves when it succeeds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableSequence, ensure_config
from langgraph._internal._constants import (
    CONF,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_READ,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SEND,
)
from langgraph.errors import ParentCommand
from langgraph.pregel import Pregel

from agentguard import Guard, Identity
from agentguard.shards import Shard, encoded

from .attempts import Attempt
from .identity import Position, as_task, current_task, memory_around, position_of, run_of
from .lines import KNOWN, TaskMemory, inherited, line_of
from .nodes import GuardedNode
from .plan import Beginning, Record, Sources, begin

__all__ = ["JOIN", "MANIFEST", "TRIGGER", "JoinNode", "TaskNode"]

JOIN = "__agentguard_join__"
MANIFEST = "__agentguard_shards__"
TRIGGER = f"branch:to:{JOIN}"


class TaskNode(Runnable[Any, Any]):
    """A node's Runnable, with the identity of its task around it, and its shard if `sources` say where it joins.

    `before`: which nodes may come right before it, if its graph has the channel of what nodes know. `resumable`: it
    contains a graph that may go on in its middle when it is resumed.
    """

    def __init__(
        self,
        bound: Runnable[Any, Any],
        guard: Guard,
        sources: Sources | None = None,
        *,
        before: Sources | None = None,
        resumable: bool = False,
    ) -> None:
        self.bound = bound
        self.guard = guard
        self.sources = sources
        self.before = before
        self.resumable = resumable
        self.graph = _is_graph(bound)
        self.name = bound.get_name()

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        config = ensure_config(config)
        task = self._task(config)
        if task.beginning.join:
            self.guard.join(run=task.identity.run, shards=task.beginning.join)
        with task.running(self.graph):
            return self.bound.invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        config = ensure_config(config)
        task = self._task(config)
        if task.beginning.join:
            await self.guard.ajoin(run=task.identity.run, shards=task.beginning.join)
        with task.running(self.graph):
            return await self.bound.ainvoke(input, config, **kwargs)

    def _task(self, config: RunnableConfig) -> _Task | _ShardedTask:
        position = position_of(config)
        if position is None:  # called by hand, outside of its graph
            return _Task(self.guard, self.guard.identity())
        outer = current_task(self.guard)
        memory = self._memory(position, config)
        if outer is not None:  # calls of nested graphs go to the outer task's shard
            return _Task(
                self.guard, dataclasses.replace(outer, agent=position.agent(), memory=memory), position, config
            )
        run = run_of(self.guard, config)
        identity = Identity(position.agent(), run, step=str(position.step), memory=memory)
        if self.sources is None:
            return _Task(self.guard, identity, position, config)
        beginning = begin(self.sources, position.step, config.get(CONF, {})[CONFIG_KEY_READ](MANIFEST, False))
        identity = dataclasses.replace(
            identity,
            step=f"{position.step}-{position.task_id}",
            shard=position.task_id,
            order=position.order,
            parent=beginning.parent,
        )
        return _ShardedTask(self.guard, identity, beginning, position, config, self.resumable)

    def _memory(self, position: Position, config: RunnableConfig) -> TaskMemory | None:
        if self.before is None:
            return None
        configurable = config.get(CONF, {})
        lines = configurable[CONFIG_KEY_READ](KNOWN, False)
        return TaskMemory(
            inherited(self.before, _line(position), position.step, lines),
            lasting=bool(configurable.get(CONFIG_KEY_CHECKPOINTER)),
            lines=lines,
            outer=memory_around(self.guard),
            attempt=Attempt((id(self.guard), position.namespace)),
        )


def _is_graph(runnable: Any) -> bool:
    """Whether a node is a graph itself, and not code that may call one."""
    if isinstance(runnable, GuardedNode):
        return _is_graph(runnable.node)
    if isinstance(runnable, RunnableBinding):
        return _is_graph(runnable.bound)
    if isinstance(runnable, RunnableSequence):
        return any(map(_is_graph, runnable.steps))
    return isinstance(runnable, Pregel)


class JoinNode(Runnable[Any, Any]):
    """The hidden last node of a run that wrote shards: gets the manifest, merges all of them."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.name = JOIN

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> None:
        config = ensure_config(config)
        self.guard.join(run=run_of(self.guard, config), shards=self._references(input))
        self._done(input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> None:
        config = ensure_config(config)
        await self.guard.ajoin(run=run_of(self.guard, config), shards=self._references(input))
        self._done(input, config)

    @staticmethod
    def _references(manifest: dict[str, Any]) -> list[str]:
        return [reference for fields in manifest.values() for reference in Record(*fields).references]

    @staticmethod
    def _done(manifest: dict[str, Any], config: RunnableConfig) -> None:
        config.get(CONF, {})[CONFIG_KEY_SEND]([(MANIFEST, dict.fromkeys(manifest))])


class _Task:
    """A task that has no shard of its own."""

    beginning = Beginning()

    def __init__(
        self,
        guard: Guard,
        identity: Identity,
        position: Position | None = None,
        config: RunnableConfig | None = None,
    ) -> None:
        self.guard = guard
        self.identity = identity
        self._position = position
        self._configurable = (config or {}).get(CONF, {})

    @contextlib.contextmanager
    def running(self, graph: bool) -> Iterator[None]:
        namespace = self._position.namespace if self._position is not None else ()
        try:
            with as_task(self.guard, self.identity, namespace, graph=graph):
                yield
        except ParentCommand:  # how a nested graph hands over: the task has succeeded
            self._tell()
            raise
        self._tell()

    def _tell(self) -> None:
        """Leave to the next nodes what this task knows."""
        memory, position = self.identity.memory, self._position
        if isinstance(memory, TaskMemory) and position is not None:
            told = memory.told(_line(position), position.node, position.step)
            if told:
                self._configurable[CONFIG_KEY_SEND]([(KNOWN, told)])


def _line(position: Position) -> str:
    return line_of(position.node, position.index if position.pushed else None)


class _ShardedTask(_Task):
    """A task with a shard. What earlier attempts left of it is continued where they are, and dropped otherwise."""

    def __init__(
        self,
        guard: Guard,
        identity: Identity,
        beginning: Beginning,
        position: Position,
        config: RunnableConfig,
        resumable: bool,
    ) -> None:
        super().__init__(guard, identity, position, config)
        self.beginning = beginning
        self._at = position
        self._earlier: list[Shard] = []
        # Only a graph with a checkpoint of its own goes on in its middle; all else runs again from its top.
        self._resumable = resumable and bool(self._configurable.get(CONFIG_KEY_CHECKPOINTER))
        self._take_over()

    def _take_over(self) -> None:
        left = self._left()
        if not left:
            return
        information = getattr(self._configurable.get(CONFIG_KEY_RUNTIME), "execution_info", None)
        if not self._resumable or getattr(information, "node_attempt", 1) > 1:
            for shard in left:
                self.guard.shards.drop(shard)
            return
        current = self.guard.shards.current(self.identity)
        self._earlier = [shard for shard in left if shard is not current]
        parents = {shard.identity.parent for shard in left}
        last = [shard.reference for shard in self._earlier if shard.reference not in parents]
        if current is None and last:
            self.identity = dataclasses.replace(self.identity, parent=last[-1])

    def _left(self) -> list[Shard]:
        """Shards of earlier attempts of this very task, in any process."""
        inside = f"{encoded(self.identity.run)}/{encoded(self.identity.step)}"
        try:
            names = sorted(entry.name for entry in (self.guard.shards.folder / inside).iterdir())
        except FileNotFoundError:
            return []
        found = [self.guard.shards.load(f"{inside}/{name}") for name in names]
        return [shard for shard in found if shard is not None]

    @contextlib.contextmanager
    def running(self, graph: bool) -> Iterator[None]:
        try:
            with super().running(graph):
                yield
        except ParentCommand:
            self._publish()
            raise
        except BaseException:
            self._abandon()
            raise
        self._publish()

    def _publish(self) -> None:
        shard = self.guard.shards.close(self.identity.run, self.identity.shard or "")
        references = [one.reference for one in self._earlier if one is not shard]
        if shard is not None:
            references.append(shard.reference)
        record = Record(self._at.node, self._at.step, self._at.pushed, references, self.beginning.parent)
        update = {**dict.fromkeys(self.beginning.merged), self._at.task_id: list(record)}
        writes: list[tuple[str, Any]] = [(MANIFEST, update)]
        if references:
            writes.append((TRIGGER, None))
        self._configurable[CONFIG_KEY_SEND](writes)

    def _abandon(self) -> None:
        if self._resumable:
            return
        shard = self.guard.shards.current(self.identity)
        if shard is not None:
            self.guard.shards.drop(shard)
