"""One lock table for all threads and event loops of a process.

State changes under one short mutex; only waiting differs between threads and coroutines, and waiting is not done
here. Between processes the table holds each key once, through its backend's `Lock`, for whoever is next in line.
"""

from __future__ import annotations

import errno
import itertools
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

from ..exceptions import AgentGuardError, LockLost
from .contract import Backend, Holder, KeyStatistics, Lock, Mode, Statistics
from .cycles import BLOCKED_LOOPS, forbid_cycle, forbid_upgrade
from .forks import MUTEX, after_fork
from .pump import Pumps
from .tickets import Claim, Queue, Ticket

__all__ = ["LockTable"]

# Releases still to be done and futures still to be set: whoever leaves the mutex does them. So `release` never waits
# for the mutex, not even in a finalizer or a signal handler that interrupted the thread which holds it.
_released: deque[tuple[LockTable, Ticket]] = deque()
_wake: deque[tuple[Future[None], BaseException | None]] = deque()
_pumps = Pumps(MUTEX)
_tables: weakref.WeakSet[LockTable] = weakref.WeakSet()

# For so long (seconds) callers of this process may follow each other before a waiting process gets its turn.
COHORT = 0.005
# Idle keys that keep their state and descriptors.
IDLE = 256
_BUCKETS = 4096


class Domain(Queue):
    """A key: the queue of this process, and what the process holds of the key's lock between processes."""

    __slots__ = ("_draining", "grants", "have", "key", "lock", "longest", "pumping", "taken", "used")

    def __init__(self, key: str, lock: Lock | None) -> None:
        super().__init__()
        self.key = key
        self.lock = lock
        self.have: Mode | None = None
        self.taken = 0.0  # monotonic time at which `have` was taken, or last seen to be in nobody's way
        self.pumping = False  # a thread is in `lock.acquire`: nobody else may touch the lock
        self._draining = False
        self.grants = 0
        self.longest = 0.0
        self.used = False

    @property
    def draining(self) -> bool:
        return self._draining

    def give_back(self) -> None:
        """Give the lock between processes back whole; nothing is granted here any more."""
        self._draining = False
        if self.have is not None and self.lock is not None:
            self.have = None
            self.lock.release(None)


class LockTable:
    """Locks on keys in several modes, first in, first out, for every caller of this process.

    With a backend, callers in other processes are excluded as well. All methods may be called from any thread, in
    coroutines too: none of them waits for a lock. See `agentguard.locks` for what is promised.
    """

    def __init__(self, backend: Backend | None = None) -> None:
        self._backend = backend
        self._domains: dict[str, Domain] = {}
        self._closed = False
        self._grants = 0
        self._waits = 0
        self._longest = 0.0
        # Without lock files a token needs a memory of its own that does not grow with the number of keys: one counter
        # for all keys of a hash bucket, begun at the clock so that a restarted process goes on above the last one.
        self._tokens = [time.time_ns() // 1000] * _BUCKETS if backend is None else []
        with MUTEX:
            _tables.add(self)

    def request(self, claim: Claim, key: str, mode: Mode) -> Ticket:
        """Ask for a key; the ticket is granted at once, or waits in line. Never blocks.

        Whoever gets the ticket gives it to `release` once, granted or not. A claim inside another one that holds the
        key in a mode that covers `mode` works inside that hold: there it excludes only its siblings, and shares the
        token. Raises Deadlock if waiting would never end, ValueError for an intention on a key that is no directory,
        ConfigError or OSError when the place of the locks cannot be used; then there is no ticket.
        """
        if mode.intent and not key.endswith(("/", ":")):
            raise ValueError(f"{key!r} is no directory (it does not end in '/' or ':'): it cannot be held {mode}")
        ticket = Ticket(claim, key, mode)
        MUTEX.acquire()
        try:
            if _released:
                _work_off()
            if self._closed:
                raise AgentGuardError(f"the lock table is closed: {key!r} was not locked", resource=key)
            outer = _around(claim, key)
            if outer is not None:
                if not outer.mode.covered & mode.bit:
                    forbid_upgrade(ticket, outer)
                if outer.children is None:
                    outer.children = Queue(outer)
                queue: Queue = outer.children
                if queue.waiting or queue.mask & mode.conflicts:
                    self._line_up(ticket, queue)
                else:
                    self._grant(ticket, queue)
                return ticket
            domain = self._domains.get(key)
            if domain is None:
                domain = self._add(key)
            if domain.waiting or domain.mask & mode.conflicts:
                self._line_up(ticket, domain)
            elif domain.lock is None or self._obtain(domain, mode):
                self._grant(ticket, domain)
            else:
                self._line_up(ticket, domain)
                self._pump(domain)
            return ticket
        finally:
            MUTEX.release()
            if _released or _wake:
                _leave()

    def release(self, ticket: Ticket) -> None:
        """Give a ticket back, or stop waiting for it; the next in line is granted.

        Idempotent, from any thread, in finalizers and signal handlers too. Never blocks and never awaits: when another
        thread is just changing the table, that thread does it on its way out.
        """
        _released.append((self, ticket))
        _leave()

    def release_all(self, claim: Claim) -> None:
        """Release every ticket of a claim, in reverse: also one whose `request` was interrupted by an exception
        (KeyboardInterrupt) before the caller had it in hand."""
        tickets = [ticket for ticket in [*(claim.waits or ())] if ticket.claim is claim]
        for held in reversed([*claim.held.values()]):
            ticket: Ticket | None = held
            while ticket is not None and ticket.claim is claim:
                tickets.append(ticket)
                ticket = None if ticket.queue is None else ticket.queue.inside
        for ticket in tickets:
            self.release(ticket)

    def holders(self, key: str) -> tuple[Holder, ...]:
        """Who holds a key: in this process, else as other processes wrote it down; () when it is free."""
        with MUTEX:
            domain = self._domains.get(key)
            found = tuple(_describe(domain)) if domain is not None else ()
        _leave()
        return found or (self._backend.holders(key) if self._backend is not None else ())

    def blockers(self, ticket: Ticket) -> tuple[Holder, ...]:
        """Who is in the way of a waiting ticket now, for the text of an error; () when it does not wait."""
        with MUTEX:
            queue = ticket.queue
            if queue is None or ticket.granted:
                return ()
            found = tuple(other.holder() for other in queue.blockers(ticket) if other.granted)
        _leave()
        return found or self.holders(ticket.key)

    def verify(self, ticket: Ticket) -> None:
        """Raise LockLost if a ticket no longer excludes others: released, inherited by a fork, its lock file deleted.

        To be called right before what the lock protects is made visible.
        """
        with MUTEX:
            held = ticket.granted and ticket.queue is not None
            inner: Queue | None = ticket.queue
            while inner is not None and inner.inside is not None:
                inner = inner.inside.queue
            if held and isinstance(inner, Domain) and inner.lock is not None and not inner.pumping:
                held = not inner.lock.lost()
        _leave()
        if not held:
            raise LockLost(
                f"the lock on {ticket.key!r} (token {ticket.token}) is no longer held: it was released, its lock file "
                "was deleted or replaced, or this is a forked process. Nothing was committed; run the call again.",
                resource=ticket.key,
                token=ticket.token,
            )

    def statistics(self) -> Statistics:
        """The table now. Keys that are neither held nor waited for are left out."""
        with MUTEX:
            keys = []
            for key, domain in self._domains.items():
                if not domain.empty():
                    holders = tuple(_describe(domain))
                    since = min((holder.since for holder in holders), default=None)
                    waiters = len(domain.waiting or ())
                    keys.append(KeyStatistics(key, holders, waiters, since, domain.grants, domain.longest))
            found = Statistics(tuple(keys), self._grants, self._waits, self._longest)
        _leave()
        return found

    def scan(self) -> tuple[Holder, ...]:
        """Everything held SHARED or EXCLUSIVE now by any living process that uses the same place."""
        with MUTEX:
            mine = [holder for domain in self._domains.values() for holder in _describe(domain)]
            mine = [holder for holder in mine if not holder.mode.intent]
        _leave()
        if self._backend is None:
            return tuple(mine)
        return (*mine, *self._backend.scan({holder.key for holder in mine}))

    def close(self) -> None:
        """Refuse new requests and close what is idle. What is held or waited for stays so until it is released."""
        with MUTEX:
            self._closed = True
            self._sweep(0)
        _leave()

    # -- under the mutex -------------------------------------------------------------------------------------------

    def _add(self, key: str) -> Domain:
        if len(self._domains) >= IDLE:
            self._sweep(IDLE // 2)
        domain = Domain(key, self._backend.open(key) if self._backend is not None else None)
        self._domains[key] = domain
        return domain

    def _sweep(self, leave: int) -> None:
        """Drop idle keys, oldest first, until `leave` of them are left; one used since the last sweep is spared once."""
        idle = [domain for domain in self._domains.values() if domain.empty() and not domain.pumping]
        surplus = len(idle) - leave
        for domain in itertools.chain((d for d in idle if not d.used), (d for d in idle if d.used)):
            if surplus <= 0:
                break
            surplus -= 1
            del self._domains[domain.key]
            if domain.lock is not None:
                domain.lock.close()
        for domain in idle:
            domain.used = False

    def _obtain(self, domain: Domain, mode: Mode) -> bool:
        """Whether the first in line may be granted now, as far as other processes are concerned.

        Takes the lock between processes if that is possible at once. Otherwise either a thread must wait for it
        (`_pump` decides) or, when `domain.draining`, what is granted here must end first.
        """
        lock, have = domain.lock, domain.have
        if lock is None:
            return True
        if domain.pumping:
            return False
        if have is not None:
            if domain._draining:
                if domain.granted:
                    return False
                domain.give_back()
                return False
            # Readers do not stay under an exclusive lock between processes: other processes' readers could not join.
            if have.covered & mode.bit and (domain.granted or have is not Mode.EXCLUSIVE or mode is Mode.EXCLUSIVE):
                now = time.monotonic()
                if now - domain.taken < COHORT:
                    return True
                if not lock.contended():
                    domain.taken = now
                    return True
                if domain.granted:
                    domain._draining = True  # another process waits: it comes after those who are in, before this one
                else:
                    domain.give_back()
                return False
            if domain.granted:
                if not lock.extends(mode):
                    domain._draining = True
                elif self._try(lock, mode):
                    domain.have = lock.mode
                    return True
                return False
            domain.give_back()
        if self._try(lock, mode):
            domain.have = lock.mode
            domain.taken = time.monotonic()
            return True
        return False

    def _try(self, lock: Lock, mode: Mode) -> bool:
        try:
            return lock.try_acquire(mode)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._sweep(0)
        try:
            return lock.try_acquire(mode)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            return False  # the thread that waits for the lock waits for descriptors as well

    def _grant(self, ticket: Ticket, queue: Queue) -> None:
        outer = queue.inside
        if outer is not None:
            ticket.token = outer.token
        else:
            assert isinstance(queue, Domain)
            ticket.token = self._token(ticket, queue)
            queue.grants += 1
            queue.used = True
        if ticket.future is not None:
            self._leave_line(ticket, queue)
        self._grants += 1
        queue.admit(ticket)
        ticket.queue = queue
        ticket.since = time.time()
        ticket.granted = True
        ticket.claim.held[ticket.key] = ticket
        if ticket.future is not None:
            _wake.append((ticket.future, None))

    def _token(self, ticket: Ticket, domain: Domain) -> int:
        lock = domain.lock
        if lock is not None:
            if ticket.mode is Mode.EXCLUSIVE:
                return lock.stamp(ticket.claim.owner)
            if ticket.mode is Mode.SHARED and not domain.granted:
                lock.describe(ticket.claim.owner)
            return lock.token
        bucket = hash(ticket.key) % _BUCKETS
        if ticket.mode is Mode.EXCLUSIVE:
            self._tokens[bucket] += 1
        return self._tokens[bucket]

    def _line_up(self, ticket: Ticket, queue: Queue) -> None:
        forbid_cycle(ticket, queue)
        ticket.future = Future()
        ticket.queue = queue
        ticket.since = time.monotonic()
        queue.enqueue(ticket)
        for claim in ticket.claim.family():
            if claim.waits is None:
                claim.waits = {}
            claim.waits[ticket] = None
        self._waits += 1

    def _leave_line(self, ticket: Ticket, queue: Queue) -> None:
        if queue.waiting is not None:
            del queue.waiting[ticket]
        for claim in ticket.claim.family():
            if claim.waits is not None:
                claim.waits.pop(ticket, None)
        waited = time.monotonic() - ticket.since
        self._longest = max(self._longest, waited)
        if isinstance(queue, Domain):
            queue.longest = max(queue.longest, waited)

    def _fail(self, domain: Domain, error: BaseException) -> None:
        """Nobody can be granted this key now: every waiter gets the error."""
        for ticket in [*(domain.waiting or ())]:
            self._leave_line(ticket, domain)
            ticket.queue = None
            if ticket.future is not None:
                _wake.append((ticket.future, error))

    def _release(self, ticket: Ticket) -> None:
        queue = ticket.queue
        if queue is None or ticket.lingers:
            return
        if not ticket.granted:
            ticket.queue = None
            self._leave_line(ticket, queue)
            self._settle(queue)
            return
        ticket.granted = False
        held = ticket.claim.held
        if held.get(ticket.key) is ticket:
            outer = queue.inside
            while outer is not None and not (outer.granted and outer.claim is ticket.claim):
                outer = None if outer.queue is None else outer.queue.inside
            if outer is None:
                del held[ticket.key]
            else:
                held[ticket.key] = outer  # asked for twice by one claim: the first ticket is in force again
        if ticket.children is not None and not ticket.children.empty():
            ticket.lingers = True  # the calls inside go on: the key stays theirs until the last of them has ended
        else:
            self._remove(ticket, queue)

    def _remove(self, ticket: Ticket, queue: Queue) -> None:
        ticket.queue = None
        ticket.lingers = False
        queue.remove(ticket)
        self._settle(queue)

    def _settle(self, queue: Queue) -> None:
        """Grant whoever can be granted now, and fit the lock between processes to what is granted."""
        if isinstance(queue, Domain):
            if not queue.pumping:  # else the thread that waits for the lock settles when it has it
                try:
                    self._settle_domain(queue)
                except (OSError, AgentGuardError) as error:
                    queue.have = None if queue.lock is None else queue.lock.mode
                    self._fail(queue, error)
                    if not queue.granted:
                        queue.give_back()
            return
        while (head := queue.head()) is not None:
            self._grant(head, queue)
        outer = queue.inside
        if outer is not None and outer.lingers and queue.empty() and outer.queue is not None:
            self._remove(outer, outer.queue)

    def _settle_domain(self, domain: Domain) -> None:
        while (head := domain.head()) is not None:
            if domain.lock is not None and not self._obtain(domain, head.mode):
                self._pump(domain)
                return
            self._grant(head, domain)
        if domain.lock is None or domain.have is None:
            return
        need = domain.needs()
        if need is None:
            domain.give_back()
        elif not domain.draining and not need.covered & domain.have.bit:
            domain.lock.release(need)
            domain.have = domain.lock.mode

    # -- waiting for other processes -------------------------------------------------------------------------------

    def _pump(self, domain: Domain) -> None:
        """Have a thread wait for the lock, unless what is granted here must end first."""
        lock = domain.lock
        if lock is None or domain.pumping or (domain.draining and domain.granted):
            return
        lock.prepare()
        try:
            _pumps.submit(partial(self._wait_for, domain, lock), partial(self._poll, domain))
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from None
        domain.pumping = True

    def _wait_for(self, domain: Domain, lock: Lock) -> None:
        error: BaseException | None = None
        with MUTEX:
            head = domain.head()
        if head is not None:
            try:
                lock.acquire(head.mode, lambda: bool(domain.waiting))
            except (OSError, AgentGuardError) as reason:
                error = reason
        with MUTEX:
            if domain.lock is lock:  # else the process has forked meanwhile
                domain.pumping = False
                domain.have = lock.mode
                domain.taken = time.monotonic()
                if error is not None:
                    self._fail(domain, error)
                self._settle(domain)
        _leave()

    def _poll(self, domain: Domain) -> None:
        with MUTEX:
            domain.pumping = False
            self._settle(domain)
        _leave()

    def _after_fork(self) -> None:
        """In the child: it holds nothing and waits for nothing."""
        for domain in self._domains.values():
            _forget(domain)
            if domain.lock is not None:
                domain.lock.abandon()
        self._domains = {}


def _forget(queue: Queue) -> None:
    for ticket in (*queue.granted, *(queue.waiting or ())):
        if ticket.children is not None:
            _forget(ticket.children)
        ticket.queue = None
        ticket.granted = ticket.lingers = False
        ticket.claim.held.clear()
        for claim in ticket.claim.family():
            claim.waits = None


def _around(claim: Claim, key: str) -> Ticket | None:
    """The ticket of the claim itself, or of the nearest claim around it that holds the key."""
    inner: Claim | None = claim
    while inner is not None:
        ticket = inner.held.get(key)
        if ticket is not None:
            return ticket
        inner = inner.parent
    return None


def _describe(queue: Queue) -> Iterator[Holder]:
    for ticket in queue.granted:
        if not ticket.lingers:
            yield ticket.holder()
        if ticket.children is not None:
            yield from _describe(ticket.children)


def _work_off() -> None:
    """Under the mutex: the releases that found it taken."""
    while _released:
        table, ticket = _released.popleft()
        table._release(ticket)


def _leave() -> None:
    """After the mutex: what others left to whoever comes out of it, and the futures of tickets granted meanwhile."""
    while _released and MUTEX.acquire(blocking=False):
        try:
            _work_off()
        finally:
            MUTEX.release()
    while _wake:
        try:
            future, error = _wake.popleft()
        except IndexError:  # another thread was faster
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _after_fork() -> None:
    _released.clear()
    _wake.clear()
    BLOCKED_LOOPS.clear()
    _pumps.reset()
    for table in _tables:
        table._after_fork()


after_fork(_after_fork)
