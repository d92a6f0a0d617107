"""What the nodes of a graph know that no message tells: kept in a channel, so that it is checkpointed with the state.

A node knows what the nodes right before it knew, for the state that it gets is theirs. Where branches come together
that know one resource in different versions, its state is based on more than one of them: it has to read again before
it writes. Pure, but for `TaskMemory`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from agentguard.knowledge import UNKNOWN, Known, Memory

from .attempts import Attempt
from .plan import Sources

__all__ = ["KNOWN", "Line", "TaskMemory", "inherited", "line_of", "updated"]

KNOWN = "__agentguard_known__"
_LINES, _RESOURCES = 1000, 200  # what is kept at most: the latest of them
_NAMED = "@"  # stands for the node in the lines of agents that the user named

Lines = Mapping[str, Any]


class Line(NamedTuple):
    """What one node knew when it ended; a task that was sent has a line of its own."""

    node: str
    step: int
    known: dict[str, str]  # versions by resource


def line_of(node: str, index: int | None) -> str:
    """The name of a line. `index`: which of the step's tasks it was, if it was sent."""
    return node if index is None else f"{node}#{index}"


def inherited(sources: Sources, name: str, step: int, lines: Lines) -> dict[str, str]:
    """What the task of a line `name` knows when it begins in this step: what those before it agree in; else, of what
    none of them knows, what it knew itself when it ran last."""
    found = {key: Line(*fields) for key, fields in lines.items()}
    # Not always of the step before: a new turn and `update_state` take a step in which no node runs.
    last = max((line.step for line in found.values() if line.node != _NAMED and line.step < step), default=step)
    just = [line for line in found.values() if line.step == last and line.node != _NAMED]
    waiting: Collection[str] = frozenset().union(*sources.waiting)
    before = [line for line in just if line.node in sources.plain]
    before += [line for line in found.values() if line.node in waiting]
    if not before:
        before = just
    known: dict[str, str] = dict(found[name].known) if name in found else {}
    for resource in {resource for line in before for resource in line.known}:
        versions = {line.known[resource] for line in before if resource in line.known}
        known[resource] = versions.pop() if len(versions) == 1 else UNKNOWN
    return known


def updated(lines: Lines, update: Mapping[str, Any]) -> dict[str, Any]:
    """The channel's reducer."""
    found = {**lines, **update}
    if len(found) > _LINES:
        latest = sorted(found, key=lambda name: Line(*found[name]).step)[-_LINES:]
        found = {name: found[name] for name in latest}
    return found


class TaskMemory:
    """A `Memory`: what the code of one task knows and learns. `outer`: the task around its graph, whose state it got.

    `lines`: what the channel had when the task began; agents that the user names find what they knew there. `attempt`:
    what earlier attempts of the task have written is known as well.
    """

    def __init__(
        self,
        known: Mapping[str, str],
        *,
        lasting: bool,
        lines: Lines | None = None,
        outer: Memory | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        self.lasting = lasting
        self._known = {resource: Known(_version(version), 0.0) for resource, version in known.items()}
        self._attempt = attempt
        if attempt is not None:
            self._known.update(attempt.known())
        self._lines = lines or {}
        self._outer = outer
        self._named: dict[str, TaskMemory] = {}
        self._mutex = threading.Lock()

    def get(self, resource: str) -> Known | None:
        """See `Memory`."""
        found = self._known.get(resource)
        return found if found is not None or self._outer is None else self._outer.get(resource)

    def learn(self, learned: Mapping[str, Known]) -> None:
        """See `Memory`."""
        with self._mutex:
            for resource, known in learned.items():
                self._known.pop(resource, None)
                self._known[resource] = known
        if self._attempt is not None:
            self._attempt.learn(learned)
        if self._outer is not None:
            self._outer.learn(learned)

    def named(self, agent: str) -> Memory:
        """See `Memory`."""
        if self._outer is not None:
            return self._outer.named(agent)
        with self._mutex:
            memory = self._named.get(agent)
            if memory is None:
                line = self._lines.get(_NAMED + agent)
                known = Line(*line).known if line is not None else {}
                attempt = self._attempt.named(agent) if self._attempt is not None else None
                memory = self._named[agent] = TaskMemory(known, lasting=self.lasting, attempt=attempt)
            return memory

    def told(self, name: str, node: str, step: int) -> dict[str, list[Any]]:
        """The update of the channel by a task of this line that has succeeded; empty when there is nothing to tell."""
        lines = {name: Line(node, step, self._versions())}
        with self._mutex:
            named = [*self._named.items()]
        lines.update((_NAMED + agent, Line(_NAMED, step, memory._versions())) for agent, memory in named)
        return {key: list(line) for key, line in lines.items() if line.known}

    def _versions(self) -> dict[str, str]:
        with self._mutex:
            return {resource: known.version for resource, known in [*self._known.items()][-_RESOURCES:]}


def _version(version: Any) -> str:
    return version if isinstance(version, str) else UNKNOWN
