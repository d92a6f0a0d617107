"""What each agent has read of what is shared, and where that is remembered.

A `Memory` belongs to one agent. Without anything better it is this process's, by run and agent name (`Knowledge`);
an adapter may keep it where the agent's own memory is, as in the messages that its model sees.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["UNKNOWN", "Knowledge", "Known", "Memory", "TurnMemory", "without_turn"]

UNKNOWN = "?"  # the version of something that was read, but nobody can say any more in which version


@dataclass(frozen=True, slots=True)
class Known:
    """The version in which an agent has last seen a resource, and since when (seconds since the epoch)."""

    version: str
    at: float


class Memory(Protocol):
    """What one agent knows. Thread-safe; no method waits for anything."""

    @property
    def lasting(self) -> bool:
        """Whether it outlives this process, so that the contents behind its versions should as well."""
        ...

    def get(self, resource: str) -> Known | None:
        """What the agent knows of a resource (`Resource.id`); None when it never read it."""
        ...

    def learn(self, learned: Mapping[str, Known]) -> None:
        """Remember what a call of the agent has read or made; the call has succeeded."""
        ...

    def named(self, agent: str) -> Memory:
        """The memory of another agent at the same place: `with guard.agent(name)` inside of this one."""
        ...


class Knowledge:
    """The memory of this process, for any number of agents. Bounded: what was learned longest ago goes first."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[str, str, str], Known] = OrderedDict()
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, run: str, agent: str, resource: str) -> Known | None:
        return self._known.get((run, agent, resource)) if self._known else None

    def learn(self, run: str, agent: str, learned: Mapping[str, Known]) -> None:
        with self._mutex:
            for resource, known in learned.items():
                self._known[run, agent, resource] = known
                self._known.move_to_end((run, agent, resource))
            while len(self._known) > self._limit:
                self._known.popitem(last=False)

    def of(self, run: str, agent: str) -> Memory:
        return _Own(self, run, agent)


class _Own:
    """One agent's part of a `Knowledge`."""

    lasting = False

    def __init__(self, knowledge: Knowledge, run: str, agent: str) -> None:
        self._knowledge, self._run, self._agent = knowledge, run, agent

    def get(self, resource: str) -> Known | None:
        return self._knowledge.get(self._run, self._agent, resource)

    def learn(self, learned: Mapping[str, Known]) -> None:
        self._knowledge.learn(self._run, self._agent, learned)

    def named(self, agent: str) -> Memory:
        return _Own(self._knowledge, self._run, agent)


class TurnMemory:
    """An agent's memory while its model makes several calls at once: each knows what the agent knew before them, and
    what it has learned itself; not what another one of them learns. The next turn knows all of it."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._before: dict[str, Known | None] = {}  # kept aside of what was learned since
        self._own: dict[tuple[int, str], Known] = {}
        self._mutex = threading.Lock()

    def at(self, place: int) -> Memory:
        """The memory for the call at this place in the turn."""
        return _Placed(self, place)

    def get(self, place: int, resource: str) -> Known | None:
        with self._mutex:
            own = self._own.get((place, resource))
            if own is not None:
                return own
            return self._before[resource] if resource in self._before else self.memory.get(resource)

    def learn(self, place: int, learned: Mapping[str, Known]) -> None:
        with self._mutex:
            for resource, known in learned.items():
                if resource not in self._before:
                    self._before[resource] = self.memory.get(resource)
                self._own[place, resource] = known
            self.memory.learn(learned)


class _Placed:
    __slots__ = ("place", "turn")

    def __init__(self, turn: TurnMemory, place: int) -> None:
        self.turn = turn
        self.place = place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Placed) and (self.turn, self.place) == (other.turn, other.place)

    def __hash__(self) -> int:
        return hash((self.turn, self.place))

    @property
    def lasting(self) -> bool:
        return self.turn.memory.lasting

    def get(self, resource: str) -> Known | None:
        return self.turn.get(self.place, resource)

    def learn(self, learned: Mapping[str, Known]) -> None:
        self.turn.learn(self.place, learned)

    def named(self, agent: str) -> Memory:
        return self.turn.memory.named(agent)


def without_turn(memory: Memory | None) -> Memory | None:
    """A memory without the turn that it is in."""
    return without_turn(memory.turn.memory) if isinstance(memory, _Placed) else memory
