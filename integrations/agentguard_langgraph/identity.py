"""Who makes a call in a graph: run, agent, superstep and shard, read from the configuration LangGraph passes on."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import CONF, CONFIG_KEY_RUNTIME, NS_END, NS_SEP, PUSH

from agentguard import Guard, Identity
from agentguard.guard import IDENTITY
from agentguard.knowledge import Memory

__all__ = ["Position", "as_task", "caller", "current_task", "memory_around", "position_of", "run_of"]

# The identity that a guarded graph gave to the task in force, where that task is, and whether it is a graph itself.
# Other identities are the user's own and win.
_TASK: contextvars.ContextVar[tuple[Guard, Identity, tuple[str, ...], bool] | None] = contextvars.ContextVar(
    "agentguard_langgraph_task", default=None
)


@dataclass(frozen=True)
class Position:
    """Where in a graph a task is. `namespace`: the segments `node:task` from the outermost graph to this task."""

    namespace: tuple[str, ...]
    node: str
    step: int
    pushed: bool  # started by a Send, not by an edge
    index: int  # which of the step's Sends
    name: str | None  # of the `create_agent` that it belongs to
    own_tools: bool  # the tools node of a ready-made agent, where every call is a Send of its own

    @property
    def task_id(self) -> str:
        return self.namespace[-1].partition(NS_END)[2]

    @property
    def order(self) -> tuple[str, ...]:
        """Merge order: supersteps first, then nodes by name, then Sends by their number."""
        at = ("1", f"{self.index:08d}") if self.pushed else ("0",)
        return (f"{self.step:08d}", *at, self.node)

    def agent(self, *, in_tool_node: bool = False) -> str:
        """The agent's name: the unit whose reads are remembered.

        A node that an edge starts runs once at a time, so its name and its enclosing task tell it from every other one,
        from step to step. Sends run beside each other: each is an agent, except for tool calls, which their model made.
        """
        outer = [_label(segment) for segment in self.namespace[:-1]]
        if self.own_tools:
            return "/".join([*outer, self.name or self.node])
        return "/".join([*outer, _label(self.namespace[-1]) if self.pushed and not in_tool_node else self.node])


def _label(segment: str) -> str:
    name, _, task = segment.partition(NS_END)
    return f"{name}:{task.replace('-', '')[:12]}" if task else name


def position_of(config: Mapping[str, Any] | None) -> Position | None:
    """The position that a configuration tells; None outside of a graph."""
    found = config if config is not None else var_child_runnable_config.get()
    metadata = (found or {}).get("metadata") or {}
    node, namespace = metadata.get("langgraph_node"), metadata.get("langgraph_checkpoint_ns")
    if not node or not namespace:
        return None
    path: Sequence[Any] = metadata.get("langgraph_path") or ()
    pushed = bool(path) and path[0] == PUSH
    return Position(
        tuple(namespace.split(NS_SEP)),
        node,
        int(metadata.get("langgraph_step") or 0),
        pushed,
        path[1] if pushed and len(path) > 1 and isinstance(path[1], int) else 0,
        metadata.get("lc_agent_name"),
        pushed and node == "tools",
    )


def run_of(guard: Guard, config: Mapping[str, Any] | None) -> str:
    """The run that a task belongs to: the thread, else the root invocation, else the guard's own run."""
    found = config if config is not None else var_child_runnable_config.get()
    configurable = (found or {}).get(CONF) or {}
    thread = configurable.get("thread_id")
    if thread is not None:
        return str(thread)
    control = getattr(configurable.get(CONFIG_KEY_RUNTIME), "control", None)
    return _RUNS.name(control) if control is not None else guard.run


class _Runs:
    """Names for root invocations without a thread, by the one object that all their tasks share."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._names: OrderedDict[int, tuple[object, str]] = OrderedDict()
        self._mutex = threading.Lock()

    def name(self, control: object) -> str:
        # It cannot be referenced weakly. The entry keeps it alive, so that its id is not given to another one.
        with self._mutex:
            entry = self._names.get(id(control))
            if entry is None:
                entry = self._names[id(control)] = control, f"run-{secrets.token_hex(6)}"
                while len(self._names) > self._limit:
                    self._names.popitem(last=False)
            else:
                self._names.move_to_end(id(control))
            return entry[1]


_RUNS = _Runs()


def current_task(guard: Guard) -> Identity | None:
    """The identity of the enclosing task of a graph that this guard guards; None outside of one."""
    found = _TASK.get()
    return found[1] if found is not None and found[0] is guard else None


def memory_around(guard: Guard) -> Memory | None:
    """What the enclosing task shares with the tasks inside of it: its memory, if it is a graph itself."""
    found = _TASK.get()
    return found[1].memory if found is not None and found[0] is guard and found[3] else None


@contextlib.contextmanager
def as_task(
    guard: Guard, identity: Identity, namespace: tuple[str, ...] = (), *, graph: bool = False
) -> Iterator[None]:
    """Calls in this block belong to this task, for the adapter and for everything that asks the guard itself.

    `graph`: the task is a graph itself. One that a node's own code calls gets nothing of what the node knows."""
    token = _TASK.set((guard, identity, namespace, graph))
    try:
        with guard.identified(identity):
            yield
    finally:
        _TASK.reset(token)


def caller(
    guard: Guard, config: RunnableConfig | None, *, in_tool_node: bool = False, asynchronous: bool = False
) -> Identity:
    """Who makes a call: what the user said by `guard.agent(...)`, else the position in the graph."""
    given, found = IDENTITY.get(), _TASK.get()
    task = current_task(guard)
    if given is not None and given[0] is guard and given[1] is not task:
        return given[1]
    position = position_of(config)
    if position is None:
        return guard.identity(asynchronous=asynchronous)
    agent = position.agent(in_tool_node=in_tool_node)
    if task is not None and found is not None:
        # A graph that is called from inside of a task gets nothing of what that task knows, and tells it nothing.
        memory = task.memory if found[2] == position.namespace else None
        return dataclasses.replace(task, agent=agent, memory=memory)
    return Identity(agent, run_of(guard, config), step=str(position.step))
