"""One lock table for all threads and event loops of a process.

State changes under one short mutex; only waiting differs between threads and coroutines, and waiting is not done
here. Between processes the table holds each key once, through its backend's `Lock`, for whoever is next in line.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import partial

from ..exceptions import AgentGuardError, LockLost
from .contract import Backend, Holder, KeyStatistics, Lock, Mode, Statistics
from .cycles import BLOCKED_LOOPS, forbid_cycle, forbid_upgrade
from .domain import Domain
from .forks import MUTEX, after_fork
from .native import BUSY
from .pump import Pumps
from .tickets import Claim, Queue, Ticket

__all__ = ["LockTable", "section"]

# Releases still to be done and futures still to be set: whoever leaves the mutex does them, so it is only ever entered
# by `section`, `request` and `_leave`. Thus `release` never waits for the mutex, not even in a finalizer or a signal
# handler that interrupted the thread which holds it.
_released: deque[tuple[LockTable, Ticket]] = deque()
_wake: deque[tuple[Future[None], BaseException | None]] = deque()
_pumps = Pumps()
_tables: weakref.WeakSet[LockTable] = weakref.WeakSet()

# So many idle keys keep their state and their descriptors (one each, more after contention).
IDLE = 128
_BUCKETS = 4096


class LockTable:
    """Locks on keys in several modes, first in, first out, for every caller of this process.

    With a backend, callers in other processes are excluded as well. All methods may be called from any thread, in
    coroutines too: none of them waits for a lock. See `agentguard.locks` for what is promised.
    """

    def __init__(self, backend: Backend | None = None) -> None:
        self._backend = backend
        self._domains: dict[str, Domain] = {}
        self._limit = IDLE
        self._closed = False
        self._grants = 0
        self._waits = 0
        self._longest = 0.0
        # Without a backend the tokens need a memory that does not grow with the number of keys: one counter for all
        # keys of a hash bucket, begun at the clock so that a restarted process goes on above the last one.
        self._tokens = [time.time_ns() // 1000] * _BUCKETS if backend is None else []
        with section():
            _tables.add(self)

    def request(self, claim: Claim, key: str, mode: Mode) -> Ticket:
        """Ask for a key; the ticket is granted at once, or waits in line. Never blocks.

        Whoever gets the ticket gives it to `release` once, granted or not. A claim inside another one that holds the
        key in a mode that covers `mode` works inside that hold: there it excludes only its siblings, and it shares
        the token. Raises Deadlock if waiting would never end, ValueError for an intention on a key that is no
        directory, ConfigError or OSError when the place of the locks cannot be used; then there is no ticket.
        """
        if mode.intent and not key.endswith(("/", ":")):
            raise ValueError(f"{key!r} is no directory (it does not end in '/' or ':'): it cannot be held {mode}")
        ticket = Ticket(claim, key, mode)
        try:
            with MUTEX:
                if _released:
                    _work_off()
                try:
                    self._request(ticket)
                except BaseException:
                    self._withdraw(ticket)
                    raise
        finally:
            if _released or _wake:
                _leave()
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Give a ticket back, or stop waiting for it; the next in line is granted.

        Idempotent, from any thread, in finalizers and signal handlers too. Never blocks and never awaits: when another
        thread is just changing the table, that thread does it on its way out.
        """
        _released.append((self, ticket))
        _leave()

    def release_all(self, claim: Claim) -> None:
        """Release every ticket that a claim has left: also one that an exception kept from reaching the caller."""
        tickets = [ticket for ticket in [*(claim.waits or ())] if ticket.claim is claim]
        for held in reversed([*claim.held.values()]):
            ticket: Ticket | None = held
            while ticket is not None:
                tickets.append(ticket)
                ticket = ticket.earlier
        for ticket in tickets:
            self.release(ticket)

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
            queue = ticket.queue
            held = ticket.granted
            while queue is not None and queue.inside is not None:
                queue = queue.inside.queue
            if held and isinstance(queue, Domain) and queue.lock is not None and not queue.pumping:
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

    # -- under the mutex: asking -----------------------------------------------------------------------------------

    def _request(self, ticket: Ticket) -> None:
        key, mode = ticket.key, ticket.mode
        claim: Claim | None = ticket.claim
        while claim is not None:
            outer = claim.held.get(key)
            if outer is not None:
                self._request_inside(ticket, outer)
                return
            claim = claim.parent
        domain = self._domains.get(key)
        if domain is None:
            domain = self._add(key)
        ticket.queue = domain
        if domain.waiting or domain.mask & mode.conflicts:
            self._line_up(ticket, domain)
        elif domain.lock is None or self._obtain(domain, mode):
            self._grant(ticket, domain)
        else:
            self._line_up(ticket, domain)
            self._pump(domain)

    def _request_inside(self, ticket: Ticket, outer: Ticket) -> None:
        if not outer.mode.covers(ticket.mode):
            forbid_upgrade(ticket, outer)
        queue = outer.children
        if queue is None:
            queue = outer.children = Queue(outer)
        ticket.queue = queue
        if queue.open_to(ticket.mode):
            self._grant(ticket, queue)
        else:
            self._line_up(ticket, queue)

    def _add(self, key: str) -> Domain:
        if self._closed:
            raise AgentGuardError(f"the lock table is closed: {key!r} was not locked", resource=key)
        if len(self._domains) >= self._limit:
            self._sweep(IDLE // 2)
            # Sweeping looks at every key: where many are held, do it again only after half as many more.
            self._limit = max(IDLE, len(self._domains) * 3 // 2)
        domain = Domain(key, None if self._backend is None else self._backend.open(key))
        self._domains[key] = domain
        return domain

    def _obtain(self, domain: Domain, mode: Mode) -> bool:
        try:
            return domain.obtain(mode)
        except OSError as error:
            if error.errno not in BUSY:
                raise
        self._sweep(0, spare=domain)
        try:
            return domain.obtain(mode)
        except OSError as error:
            if error.errno not in BUSY:
                raise
            return False  # whoever waits for the lock waits for descriptors as well

    def _line_up(self, ticket: Ticket, queue: Queue) -> None:
        forbid_cycle(ticket, queue)
        ticket.future = Future()
        ticket.since = time.monotonic()
        queue.enqueue(ticket)
        for claim in ticket.claim.family():
            if claim.waits is None:
                claim.waits = {}
            claim.waits[ticket] = None
        self._waits += 1

    def _leave_line(self, ticket: Ticket, queue: Queue) -> None:
        if queue.waiting is not None:
            queue.waiting.pop(ticket, None)
        for claim in ticket.claim.family():
            if claim.waits is not None:
                claim.waits.pop(ticket, None)

    def _grant(self, ticket: Ticket, queue: Queue) -> None:
        future = ticket.future
        if future is not None:
            waited = time.monotonic() - ticket.since
            self._longest = max(self._longest, waited)
            if isinstance(queue, Domain):
                queue.longest = max(queue.longest, waited)
        if isinstance(queue, Domain):
            ticket.token = self._token(ticket, queue)
            queue.grants += 1
            queue.used = True
        elif queue.inside is not None:
            ticket.token = queue.inside.token
        # In this order `_withdraw` of another ticket can tell, after an interrupt, how far this one had come.
        queue.admit(ticket)
        ticket.since = time.time()
        held = ticket.claim.held
        earlier = held.get(ticket.key)
        if earlier is not ticket:  # else an interrupt broke off the first attempt to grant it
            ticket.earlier = earlier
            held[ticket.key] = ticket
        ticket.granted = True
        self._grants += 1
        if future is not None:
            self._leave_line(ticket, queue)
            _wake.append((future, None))

    def _token(self, ticket: Ticket, domain: Domain) -> int:
        lock, mode = domain.lock, ticket.mode
        if lock is None:
            bucket = hash(ticket.key) % _BUCKETS
            if mode is Mode.EXCLUSIVE:
                self._tokens[bucket] += 1
            return self._tokens[bucket]
        if mode is Mode.EXCLUSIVE:
            return lock.stamp(ticket.claim.owner)
        if mode is Mode.SHARED and not domain.granted:
            lock.describe(ticket.claim.owner)
        return lock.token

    # -- under the mutex: giving back ------------------------------------------------------------------------------

    def _release(self, ticket: Ticket) -> None:
        queue = ticket.queue
        if queue is None or ticket.lingers:
            return
        if not ticket.granted:
            self._leave_line(ticket, queue)
            ticket.queue = None
            self._settle(queue)
            return
        _let_go(ticket)
        ticket.granted = False
        if ticket.children is not None and not ticket.children.empty():
            ticket.lingers = True  # the calls inside go on: the key stays theirs until the last of them has ended
        elif queue.waiting or len(queue.granted) > 1 or self._closed or not isinstance(queue, Domain):
            self._remove(ticket, queue)
        else:  # the usual case of `_remove`, shorter: nobody else is there
            queue.remove(ticket)
            ticket.queue = None
            if queue.have is not None and not queue.pumping:
                queue.give_back()

    def _remove(self, ticket: Ticket, queue: Queue) -> None:
        queue.remove(ticket)
        ticket.queue = None
        ticket.lingers = False
        self._settle(queue)

    def _withdraw(self, ticket: Ticket) -> None:
        """Undo a request, or finish a release, that an exception broke off: an interrupt can come at any line."""
        queue = ticket.queue
        if queue is not None:
            _let_go(ticket)
            ticket.granted = False
            self._leave_line(ticket, queue)
            if ticket in queue.granted and ticket.children is not None and not ticket.children.empty():
                ticket.lingers = True
            else:
                ticket.queue = None
                ticket.lingers = False
                queue.expel(ticket)
        domain = self._domains.get(ticket.key)
        if domain is not None:
            self._mend(domain)

    def _mend(self, queue: Queue) -> None:
        """Bring a queue, and those inside, into order again: grants that were broken off begin anew or are finished."""
        for ticket in [*queue.granted]:
            if ticket.children is not None:
                self._mend(ticket.children)
        queue.expel(None)
        for ticket in [*queue.granted]:
            if ticket.future is not None and not ticket.future.done():
                if ticket.granted:
                    self._leave_line(ticket, queue)
                    _wake.append((ticket.future, None))
                elif not ticket.lingers:
                    queue.expel(ticket)
                    queue.enqueue(ticket, first=True)
        if isinstance(queue, Domain) and not queue.granted and not queue.pumping:
            queue.give_back()
        self._settle(queue)

    def _settle(self, queue: Queue) -> None:
        """Grant whoever can be granted now, and fit the lock between processes to what is granted."""
        if not isinstance(queue, Domain):
            while (head := queue.head()) is not None:
                self._grant(head, queue)
            outer = queue.inside
            if outer is not None and outer.lingers and queue.empty() and outer.queue is not None:
                self._remove(outer, outer.queue)
            return
        if queue.pumping:
            return  # the thread that waits for the lock settles once it has it
        try:
            while (head := queue.head()) is not None:
                if not self._obtain(queue, head.mode):
                    self._pump(queue)
                    return
                self._grant(head, queue)
        except (OSError, AgentGuardError) as error:
            self._fail(queue, error)
        queue.fit()
        if self._closed and queue.empty():
            self._drop(queue)

    def _fail(self, domain: Domain, error: BaseException) -> None:
        """Nobody can be granted this key now: every waiter gets the error."""
        for ticket in [*(domain.waiting or ())]:
            self._leave_line(ticket, domain)
            ticket.queue = None
            if ticket.future is not None:
                _wake.append((ticket.future, error))
        if not domain.granted:
            domain.give_back()

    def _sweep(self, leave: int, spare: Domain | None = None) -> None:
        """Drop idle keys until `leave` are left: first those not used since the last sweep, oldest first."""
        idle = [d for d in self._domains.values() if d is not spare and not d.pumping and d.empty()]
        idle.sort(key=lambda domain: domain.used)
        for domain in idle[: max(0, len(idle) - leave)]:
            self._drop(domain)
        for domain in self._domains.values():
            domain.used = False

    def _drop(self, domain: Domain) -> None:
        if self._domains.get(domain.key) is domain:
            del self._domains[domain.key]
        if domain.lock is not None:
            domain.lock.close()

    # -- waiting for other processes -------------------------------------------------------------------------------

    def _pump(self, domain: Domain) -> None:
        """Have a thread wait for the lock, unless what is granted here must end first."""
        lock = domain.lock
        if lock is None or domain.pumping or (domain.draining and domain.granted):
            return
        domain.pumping = True
        try:
            _pumps.submit(partial(self._wait_for, domain, lock), partial(self._poll, domain))
        except BaseException:
            domain.pumping = False
            raise

    def _wait_for(self, domain: Domain, lock: Lock) -> None:
        error: BaseException | None = None
        with section():
            head = domain.head()
        if head is not None:
            try:
                lock.acquire(head.mode, lambda: bool(domain.waiting))
            except (OSError, AgentGuardError) as reason:
                error = reason
        with section():
            domain.pumping = False
            domain.have = lock.mode
            domain.taken = time.monotonic()
            if error is not None:
                self._fail(domain, error)
            self._settle(domain)

    def _poll(self, domain: Domain) -> None:
        with section():
            domain.pumping = False
            self._settle(domain)

    def _after_fork(self) -> None:
        """In the child: it holds nothing and waits for nothing."""
        for domain in self._domains.values():
            _forget(domain)
            if domain.lock is not None:
                domain.lock.abandon()
        self._domains = {}


@contextmanager
def section() -> Iterator[None]:
    """The mutex, for everything but a request."""
    try:
        with MUTEX:
            _work_off()
            yield
    finally:
        _leave()


def _let_go(ticket: Ticket) -> None:
    """The claim does not hold this ticket any more; one that it has of the same key from before counts again."""
    held = ticket.claim.held
    if held.get(ticket.key) is ticket:
        earlier = ticket.earlier
        while earlier is not None and not earlier.granted:
            earlier = earlier.earlier
        if earlier is None:
            del held[ticket.key]
        else:
            held[ticket.key] = earlier


def _forget(queue: Queue) -> None:
    for ticket in (*queue.granted, *(queue.waiting or ())):
        if ticket.children is not None:
            _forget(ticket.children)
        ticket.queue = None
        ticket.granted = ticket.lingers = False
        ticket.claim.held.clear()
        for claim in ticket.claim.family():
            claim.waits = None


def _work_off() -> None:
    """Under the mutex: the releases that found it taken."""
    while _released:
        table, ticket = _released[0]
        try:
            table._release(ticket)
        except BaseException:
            table._withdraw(ticket)
            _released.popleft()
            raise
        _released.popleft()


def _leave() -> None:
    """After the mutex: what others left to whoever comes out of it, and the futures of tickets granted meanwhile."""
    while _released and MUTEX.acquire(blocking=False):
        try:
            _work_off()
        finally:
            MUTEX.release()
    while _wake:
        try:
            item = _wake[0]
        except IndexError:
            return  # another thread was faster
        future, error = item
        with suppress(InvalidStateError):  # the same
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        with suppress(ValueError):
            _wake.remove(item)


def _after_fork() -> None:
    _released.clear()
    _wake.clear()
    BLOCKED_LOOPS.clear()
    _pumps.reset()
    for table in _tables:
        table._after_fork()


after_fork(_after_fork, in_parent=_leave)
