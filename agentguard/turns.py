"""One turn of a model: calls that it makes together take effect, on each resource, in the order in which it made them.

A call waits for the earlier calls of its turn that have a resource in common with it, unless both only read; all others
run in parallel. Nothing is waited for that will not come: an earlier call ends when it has ended, whether or not it
ever reached the guard, and whoever executes the turn says so (the guard itself for one that has succeeded).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

__all__ = ["PATIENCE", "Seat", "Turn", "Wants", "overlaps", "predecessors"]

PATIENCE = 0.1  # seconds that a call waits for an earlier one of which nobody knows whether it will come

Wants = Mapping[str, bool]
"""The resources of one call, by `Resource.id`: whether it changes them."""


def overlaps(one: Wants, other: Wants) -> bool:
    """Whether the order of two calls matters: a resource (or a directory and what lies beneath) that one changes."""
    for here, changes in one.items():
        for there, also in other.items():
            if (changes or also) and (here == there or _within(here, there) or _within(there, here)):
                return True
    return False


def _within(inner: str, outer: str) -> bool:
    return outer.startswith("file:") and (outer.endswith("/") or outer == "file:") and inner.startswith(outer)


def predecessors(wants: Sequence[Wants]) -> list[tuple[int, ...]]:
    """For each call of a turn the earlier ones that must have taken effect before it."""
    return [
        tuple(earlier for earlier in range(later) if overlaps(wants[earlier], wants[later]))
        for later in range(len(wants))
    ]


class Turn:
    """The calls of one turn, by their place in it. Thread-safe.

    `wants`: what each will touch, as far as can be told before it comes. `exact`: whoever executes the calls tells the
    end of every one of them by `end`, also of those that never come; otherwise they are waited for with `PATIENCE`.
    `over` is called once, when all have ended.
    """

    def __init__(self, wants: Sequence[Wants], *, exact: bool, over: Callable[[], object] | None = None) -> None:
        self.exact = exact
        self._before = predecessors(wants)
        self._after = [any(place in before for before in self._before) for place in range(len(wants))]
        self._came: list[Future[None]] = [Future() for _ in wants]
        self._ended: list[Future[None]] = [Future() for _ in wants]
        self._open = len(wants)
        self._over = over
        self._mutex = threading.Lock()
        self.found: dict[str, str] = {}  # by resource: the version that the turn's first write of it has found
        self.made: dict[str, str] = {}  # by resource: what the turn's last call has made of a version that it knew

    def __len__(self) -> int:
        return len(self._ended)

    def seat(self, place: int) -> Seat:
        return Seat(self, place)

    def waits_for(self, place: int) -> list[int]:
        """Earlier calls that have to end before this one, and have not ended yet."""
        return [earlier for earlier in self._before[place] if not self._ended[earlier].done()]

    def matters(self, place: int) -> bool:
        """Whether the call has a resource in common with another one of its turn."""
        return bool(self._before[place]) or self._after[place]

    def come(self, place: int) -> None:
        """The call has reached the guard."""
        with self._mutex:
            if not self._came[place].done():
                self._came[place].set_result(None)

    def end(self, place: int) -> None:
        """The call has ended, or will not come. Any number of times; never blocks."""
        with self._mutex:  # who waits for a future is woken by it, and takes this mutex in no case
            if self._ended[place].done():
                return
            for future in (self._came[place], self._ended[place]):
                if not future.done():
                    future.set_result(None)
            self._open -= 1
            last = self._open == 0
        if last and self._over is not None:
            self._over()


class Seat:
    """One call's place in its turn."""

    __slots__ = ("place", "turn")

    def __init__(self, turn: Turn, place: int) -> None:
        self.turn = turn
        self.place = place

    def coming(self) -> list[Future[None]]:
        """What to wait for with `PATIENCE`: earlier calls that may come yet."""
        if self.turn.exact:
            return []
        return [self.turn._came[earlier] for earlier in self.turn.waits_for(self.place)]

    def ending(self) -> list[Future[None]]:
        """What to wait for to its end: earlier calls that have come, or that surely end."""
        turn = self.turn
        return [turn._ended[one] for one in turn.waits_for(self.place) if turn.exact or turn._came[one].done()]
