"""One lock table for all threads and event loops of a process.

State changes under one short mutex; only waiting differs between threads and coroutines, and waiting is not done
here. Between processes the table holds each key once, through its backend's `Lock`, for whoever is next in line.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from ..exceptions import LockLost
from .arrival import PUMPS
from .contract import Backend, Change, Holder, KeyStatistics, Mode, Statistics
from .cycles import BLOCKED_LOOPS
from .domain import Domain
from .forks import MUTEX, after_fork
from .granting import Granting
from .section import TODO, WAKING, forget, leave, section, work_off
from .tickets import Claim, Queue, Ticket

__all__ = ["LockTable"]

_tables: weakref.WeakSet[LockTable] = weakref.WeakSet()


class LockTable(Granting):
    """Locks on keys in several modes, first in, first out, for every caller of this process.

    With a backend, callers in other processes are excluded as well. All methods may be called from any thread, in
    coroutines too: none of them waits for a lock. See `agentguard.locks` for what is promised.
    """

    def __init__(self, backend: Backend | None = None) -> None:
        super().__init__(backend)
        with section():
            _tables.add(self)

    def request(self, claim: Claim, key: str, mode: Mode) -> Ticket:
        """Ask for a key; the ticket is granted at once, or waits in line. Never blocks.

        Whoever gets the ticket gives it to `release` once, granted or not. A claim inside another one that holds the
        key in a mode that covers `mode` works inside that hold: there it excludes only its siblings, and it shares
        the token. Raises Deadlock if waiting would never end, ValueError for an intention on a key that is no
        directory, ConfigError or OSError when the place of the locks cannot be used; then there is no ticket.
        """
        ticket = Ticket(claim, key, mode, self)
        try:
            with MUTEX:
                if TODO:
                    work_off()
                self._ask(ticket, False)
        finally:
            if TODO or WAKING:
                leave()
        return ticket

    def request_all(self, claim: Claim, wanted: Sequence[tuple[str, Mode]]) -> list[Ticket]:
        """Ask for keys in their order, up to the first that is not granted at once: the tickets up to there.

        As `request` for each; the caller waits for the last ticket and asks for the rest. Everybody asks in one order
        (of the keys), each directory with an intention before what lies beneath it. That is what allows to hold
        intentions on trust (`Lock.trusted`), so this is cheaper than as many requests. Raises `BeginAgain`, as may the
        last ticket's `future`. After any error `release_all` gives back what was granted before it.
        """
        tickets: list[Ticket] = []
        try:
            with MUTEX:
                if TODO:
                    work_off()
                for key, mode in wanted:
                    ticket = Ticket(claim, key, mode, self)
                    self._ask(ticket, True)
                    tickets.append(ticket)
                    if not ticket.granted:
                        break
        finally:
            if TODO or WAKING:
                leave()
        return tickets

    def _ask(self, ticket: Ticket, trust: bool) -> None:
        key, mode = ticket.key, ticket.mode
        if mode.intent and not key.endswith(("/", ":")):
            raise ValueError(f"{key!r} is no directory (it ends in neither '/' nor ':'): not held {mode}")
        try:
            self.ask(ticket, trust)
        except BaseException:
            self.withdraw(ticket)
            raise

    def release(self, ticket: Ticket) -> None:
        """Give a ticket back, or stop waiting for it; the next in line is granted.

        Idempotent, from any thread, in finalizers and signal handlers too. Never blocks and never awaits: when another
        thread is just changing the table, that thread does it on its way out.
        """
        TODO.append(ticket)
        leave()

    @staticmethod
    def release_all(claim: Claim) -> None:
        """Release every ticket that a claim has left, of any table: also one that an exception kept from its caller."""
        TODO.extend(claim.tickets())
        leave()

    def known(self, ticket: Ticket) -> None:
        """Say that the caller has seen what earlier holders left: see `Ticket.foreign`. With the ticket granted."""
        queue = ticket.queue
        if ticket.granted and isinstance(queue, Domain):
            ticket.foreign = False
            queue.checked = ticket.token

    def change(self, ticket: Ticket, numbers: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        """Note that the holder of this exclusive ticket changes what the key stands for; see `last_change`."""
        owner = ticket.claim.owner
        try:
            with MUTEX:  # not `section()`, which costs more than the rest of this
                if TODO:
                    work_off()
                domain = _place(ticket)
                if not (ticket.granted and isinstance(domain, Domain)):
                    return
                if domain.lock is not None:
                    domain.lock.change(owner, numbers)
                else:
                    domain.note(owner, ticket.token, numbers)
        finally:
            if TODO or WAKING:
                leave()

    def last_change(self, ticket: Ticket) -> Change | None:
        """The last change that a holder of the ticket's key noted, in any process. With the ticket granted."""
        with section():
            domain = _place(ticket)
            if not (ticket.granted and isinstance(domain, Domain)):
                return None
            return domain.lock.last_change() if domain.lock is not None else domain.changed

    def holders(self, key: str) -> tuple[Holder, ...]:
        """Who holds a key: in this process, else as other processes wrote it down; () when it is free."""
        with section():
            domain = self._domains.get(key)
            found = () if domain is None else tuple(domain.holders())
        return found or (self._backend.holders(key) if self._backend is not None else ())

    def blockers(self, ticket: Ticket) -> tuple[Holder, ...]:
        """Who holds what a waiting ticket waits for now, for the text of an error; () when it does not wait."""
        with section():
            queue = ticket.queue
            waits = queue is not None and not ticket.granted
            found = (
                tuple(other.holder() for other in queue.blockers(ticket) if other.granted) if queue and waits else ()
            )
        return found or (self.holders(ticket.key) if waits else ())

    def verify(self, ticket: Ticket) -> None:
        """Raise LockLost if a ticket no longer excludes others: released, inherited by a fork, its lock file deleted.

        To be called right before what the lock protects is made visible.
        """
        with section():
            queue = _place(ticket)
            held = ticket.granted
            # An intention on trust has no lock that could be lost: what lies beneath is verified for itself.
            if held and isinstance(queue, Domain) and queue.lock is not None and not queue.pumping and queue.have:
                held = not queue.lock.lost()
        if not held:
            raise LockLost(
                f"the lock on {ticket.key!r} (token {ticket.token}) is no longer held: it was released, its lock file "
                "was deleted or replaced, or this is a forked process. Nothing was committed; run the call again.",
                resource=ticket.key,
                token=ticket.token,
            )

    def statistics(self) -> Statistics:
        """The table now. Keys that are neither held nor waited for are left out."""
        with section():
            keys = []
            for key, domain in self._domains.items():
                if not domain.empty():
                    holders = tuple(domain.holders())
                    since = min((holder.since for holder in holders), default=None)
                    waiters = len(domain.waiting or ())
                    keys.append(KeyStatistics(key, holders, waiters, since, domain.grants, domain.longest))
            return Statistics(tuple(keys), self._grants, self._waits, self._longest)

    def scan(self) -> tuple[Holder, ...]:
        """Everything held SHARED or EXCLUSIVE now by any living process that uses the same place."""
        with section():
            mine = [h for domain in self._domains.values() for h in domain.holders() if not h.mode.intent]
        others = () if self._backend is None else self._backend.scan({holder.key for holder in mine})
        return (*mine, *others)

    def close(self) -> None:
        """Refuse further keys and close idle ones; what is held or waited for goes on until it is released."""
        with section():
            self._closed = True
            self._sweep(0)


def _place(ticket: Ticket) -> Queue | None:
    """The queue of the key itself, also for a ticket inside that of a call around."""
    queue = ticket.queue
    while queue is not None and queue.inside is not None:
        queue = queue.inside.queue
    return queue


def _after_fork() -> None:
    forget()
    BLOCKED_LOOPS.clear()
    PUMPS.reset()
    for table in _tables:
        table.forget()


after_fork(_after_fork, in_parent=leave)
