"""Claims, tickets, and the queue that decides who is next. Nothing here blocks, waits or knows of other processes."""

from __future__ import annotations

import _thread
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from .contract import Holder, Lock, Mode, Owner, this_host, this_process

if TYPE_CHECKING:
    from .table import LockTable

__all__ = ["Bell", "Claim", "Queue", "Ticket"]


def _needed(mask: int) -> Mode | None:
    need: Mode | None = None
    for mode in Mode:
        if mask & mode.bit:
            need = mode if need is None else need.join(mode)
    return need


_NEEDED = [_needed(mask) for mask in range(16)]


class Claim:
    """One guarded call's set of tickets.

    `parent` is the claim of the call around it, whose tickets it may work inside. A parent that has released
    everything no longer counts: contexts are copied into background tasks that outlive the call.
    """

    __slots__ = ("changes", "held", "owner", "parent", "trust", "waits")

    def __init__(self, owner: Owner, parent: Claim | None = None) -> None:
        self.owner = owner
        self.parent = parent
        self.held: dict[str, Ticket] = {}
        self.changes = False  # whoever gets a key exclusively by this claim changes at once what it stands for
        # Locks of the directories that it holds with an intention on trust (`Lock.trusted`).
        self.trust: list[Lock] | None = None
        # Waiting tickets of this claim and of every claim inside it: a call waits for the calls inside it.
        self.waits: dict[Ticket, None] | None = None

    def family(self) -> Iterator[Claim]:
        """This claim and those around it."""
        claim: Claim | None = self
        while claim is not None:
            yield claim
            claim = claim.parent

    def ticket(self, key: str, table: LockTable) -> Ticket | None:
        """The granted ticket of a key of this table; None when there is none."""
        ticket = self.held.get(key)
        while ticket is not None and ticket.table is not table:
            ticket = ticket.earlier
        return ticket

    def tickets(self) -> list[Ticket]:
        """Every ticket that it has left, waiting ones first, then the newest."""
        found = [*self.held.values()]
        for ticket in found:  # grows while it is walked
            if ticket.earlier is not None:
                found.append(ticket.earlier)
        if self.waits:
            found += [ticket for ticket in [*self.waits] if ticket.claim is self]
        found.reverse()
        return found


class Bell:
    """What one thread sleeps on. Anybody may ring it, any number of times."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def ring(self, _: object = None) -> None:
        with suppress(RuntimeError):  # it was rung already, and not heard yet
            self._lock.release()

    def wait(self, seconds: float | None) -> bool:
        """Whether it was rung within this time (None: it will be)."""
        if seconds is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=min(max(0.0, seconds), _thread.TIMEOUT_MAX))


class Ticket:
    """One claim's place at one key: first waiting, then granted, in the end neither.

    `granted` and `token` (valid once granted) are set before `future` is done. `future` is None when the ticket was
    granted at once; its result is None, or the error that kept the ticket from being granted. `foreign`: another
    process may have held the key exclusively since `LockTable.known` was last told that this one knows what it left.
    """

    __slots__ = (
        "bell",
        "children",
        "claim",
        "earlier",
        "foreign",
        "future",
        "granted",
        "key",
        "lingers",
        "mode",
        "queue",
        "since",
        "table",
        "token",
    )

    def __init__(self, claim: Claim, key: str, mode: Mode, table: LockTable) -> None:
        self.claim = claim
        self.key = key
        self.mode = mode
        self.table = table
        self.token = 0
        self.foreign = False
        self.granted = False
        self.future: Future[None] | None = None
        self.bell: Bell | None = None  # of the thread that waits for this ticket, if one does
        self.queue: Queue | None = None  # None: released, or lost in a fork
        self.children: Queue | None = None
        self.earlier: Ticket | None = None  # what the claim held of the same key when this was granted
        self.lingers = False  # released by its owner, kept until the last child has gone
        self.since = 0.0  # seconds since the epoch of the grant; monotonic start of the wait before it

    def holder(self) -> Holder:
        """This granted ticket as others see it."""
        o = self.claim.owner
        return Holder(self.key, self.mode, o.agent, o.run, o.tool, this_process(), this_host(), self.since, self.token)

    def attend(self) -> None:
        """Release it: `section.Item`."""
        self.table.drop(self)

    def mend(self) -> None:
        self.table.withdraw(self)

    def alive(self) -> Iterator[Ticket]:
        """Whose release ends this ticket: its own, or when its owner has released it, its children's."""
        if not self.lingers:
            yield self
        elif self.children is not None:
            for child in (*self.children.granted, *(self.children.waiting or ())):
                yield from child.alive()

    def __repr__(self) -> str:
        state = "granted" if self.granted else "waiting" if self.queue is not None else "released"
        return f"<Ticket {self.key!r} {self.mode} {state}>"


class Queue:
    """Who holds and who waits at one place: a key, or the inside of one ticket of a call around.

    Strictly first in, first out: nobody passes a waiter, compatible neighbours in the line are granted together, so
    a waiting writer is reached after the readers that were there before it.
    """

    __slots__ = ("counts", "draining", "granted", "inside", "mask", "waiting")

    def __init__(self, inside: Ticket | None = None) -> None:
        self.inside = inside
        self.granted: dict[Ticket, None] = {}
        self.waiting: OrderedDict[Ticket, None] | None = None  # ordered dict: removal anywhere and the front in O(1)
        self.mask = 0  # bits of the granted modes
        self.counts = [0, 0, 0, 0]
        self.draining = False  # what is granted must end before anything else is granted, even if compatible

    def open_to(self, mode: Mode) -> bool:
        """Whether a newcomer need not wait for anybody in this queue."""
        return not (self.waiting or self.mask & mode.conflicts)

    def head(self) -> Ticket | None:
        """The first waiter, if nothing granted conflicts with it."""
        if not self.waiting:
            return None
        ticket = next(iter(self.waiting))
        return None if self.mask & ticket.mode.conflicts else ticket

    def enqueue(self, ticket: Ticket, first: bool = False) -> None:
        if self.waiting is None:
            self.waiting = OrderedDict()
        self.waiting[ticket] = None
        if first:
            self.waiting.move_to_end(ticket, last=False)

    def remove(self, ticket: Ticket) -> None:
        mode = ticket.mode
        del self.granted[ticket]
        counts = self.counts
        counts[mode.index] -= 1
        if not counts[mode.index]:
            self.mask &= ~mode.bit

    def expel(self, ticket: Ticket | None) -> None:
        """Remove a ticket, if any, and count anew: whatever state an interrupt left them in."""
        if ticket is not None:
            self.granted.pop(ticket, None)
            if self.waiting is not None:
                self.waiting.pop(ticket, None)
        self.counts = [0, 0, 0, 0]
        self.mask = 0
        for other in self.granted:
            self.counts[other.mode.index] += 1
            self.mask |= other.mode.bit

    def needs(self) -> Mode | None:
        """The weakest mode that covers everything granted."""
        return _NEEDED[self.mask]

    def empty(self) -> bool:
        return not self.granted and not self.waiting

    def blockers(self, ticket: Ticket) -> Iterator[Ticket]:
        """What a waiting ticket waits for: what conflicts with it, or with one ahead of it that it may not pass."""
        ahead: list[Ticket] = []
        for other in self.waiting or ():
            if other is ticket:
                break
            ahead.append(other)
        conflicts = ticket.mode.conflicts
        for other in reversed(ahead):
            if conflicts & other.mode.bit:
                yield other
            conflicts |= other.mode.conflicts
        for other in self.granted:
            if conflicts & other.mode.bit or self.draining:
                yield from other.alive()

    def holders(self) -> Iterator[Holder]:
        """Who holds here, and inside what is held here."""
        for ticket in self.granted:
            if not ticket.lingers:
                yield ticket.holder()
            if ticket.children is not None:
                yield from ticket.children.holders()
