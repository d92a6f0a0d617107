"""What a lock table decides, all of it under the mutex: who is granted, who waits, what is given back."""

from __future__ import annotations

import time
from concurrent.futures import Future

from ..exceptions import AgentGuardError
from .arrival import PUMPS, Arrival
from .contract import Backend, BeginAgain, Lock, Mode
from .cycles import forbid_cycle, forbid_upgrade
from .domain import Domain
from .native import BUSY
from .section import wake
from .tickets import Claim, Queue, Ticket

__all__ = ["IDLE", "PUMPS", "Granting"]

# So many idle keys keep their state and their descriptors (one each, more after contention).
IDLE = 128
_BUCKETS = 4096
_X, _S = Mode.EXCLUSIVE, Mode.SHARED
_now, _monotonic = time.time, time.monotonic


class Granting:
    """The state of one table, and its transitions."""

    def __init__(self, backend: Backend | None) -> None:
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

    # -- asking ----------------------------------------------------------------------------------------------------

    def ask(self, ticket: Ticket, trust: bool = False) -> None:
        """Grant a new ticket, or put it in line. `trust`: what the intention is for is asked for next."""
        claim, key, mode = ticket.claim, ticket.key, ticket.mode
        if claim.parent is not None or key in claim.held:
            outer = self._around(claim, key)
            if outer is not None:
                self._ask_inside(ticket, outer, trust)
                return
        domain = self._domains.get(key)
        if domain is None:
            domain = self._add(key)
        ticket.queue = domain
        if domain.waiting or domain.mask & mode.conflicts:
            self._line_up(ticket, domain)
        elif domain.lock is None or (trust and mode.intent and _on_trust(claim, domain)):
            self._grant(ticket, domain)
        else:
            try:
                obtained = domain.obtain(mode)
            except OSError as error:
                obtained = self._obtain_anew(domain, mode, error)
            if not obtained:
                self._line_up(ticket, domain)
                self._pump(domain)
            elif claim.trust is not None and _broken(claim.trust, domain.lock):
                raise BeginAgain
            else:
                self._grant(ticket, domain)

    def _around(self, claim: Claim, key: str) -> Ticket | None:
        """The ticket of the same key, of this claim or one around it, inside which a further one works."""
        for one in claim.family():
            outer = one.held.get(key)
            while outer is not None and outer.table is not self:
                outer = outer.earlier
            if outer is not None:
                return outer
        return None

    def _ask_inside(self, ticket: Ticket, outer: Ticket, trust: bool) -> None:
        if not outer.mode.covers(ticket.mode):
            forbid_upgrade(ticket, outer)
        if ticket.mode.intent:
            self._confirm(ticket, outer, trust)
        queue = outer.children
        if queue is None:
            queue = outer.children = Queue(outer)
        ticket.queue = queue
        if queue.open_to(ticket.mode):
            self._grant(ticket, queue)
        else:
            self._line_up(ticket, queue)

    def _confirm(self, ticket: Ticket, outer: Ticket, trust: bool) -> None:
        """An intention inside one that is held on trust: on trust as well, else there must be a lock from now on.

        What the call around has locked beneath keeps everybody from the directory itself, so its lock can be had, but
        for the moment in which somebody else takes the same.
        """
        domain = self._domains.get(ticket.key)
        if domain is None or domain.lock is None or domain.have is not None:
            return
        if not (trust and _on_trust(ticket.claim, domain)) and not self._obtain(domain, outer.mode):
            raise BeginAgain

    def _add(self, key: str) -> Domain:
        if self._closed:
            raise AgentGuardError(f"the lock table is closed: {key!r} was not locked", resource=key)
        if len(self._domains) >= self._limit:
            self._sweep(IDLE // 2)
            # Sweeping looks at every key: where many are held, do it again only after half as many more.
            self._limit = max(IDLE, len(self._domains) * 3 // 2)
        domain = Domain(key, None if self._backend is None else self._backend.open(key), self)
        self._domains[key] = domain
        return domain

    def _obtain(self, domain: Domain, mode: Mode) -> bool:
        try:
            return domain.obtain(mode)
        except OSError as error:
            return self._obtain_anew(domain, mode, error)

    def _obtain_anew(self, domain: Domain, mode: Mode, error: OSError) -> bool:
        """Out of descriptors: close idle ones."""
        if error.errno not in BUSY:
            raise error
        self._sweep(0, spare=domain)
        try:
            return domain.obtain(mode)
        except OSError as again:
            if again.errno not in BUSY:
                raise
            return False  # whoever waits for the lock waits for descriptors as well

    def _line_up(self, ticket: Ticket, queue: Queue) -> None:
        forbid_cycle(ticket, queue)
        ticket.future = Future()
        ticket.since = _monotonic()
        queue.enqueue(ticket)
        for claim in ticket.claim.family():
            if claim.waits is None:
                claim.waits = {}
            claim.waits[ticket] = None
        self._waits += 1

    def _leave_line(self, ticket: Ticket, queue: Queue) -> None:
        if queue.waiting is not None:
            queue.waiting.pop(ticket, None)
        claim: Claim | None = ticket.claim
        while claim is not None:
            if claim.waits is not None:
                claim.waits.pop(ticket, None)
            claim = claim.parent

    # -- granting --------------------------------------------------------------------------------------------------

    def _grant(self, ticket: Ticket, queue: Queue) -> None:
        future = ticket.future
        if future is not None:
            waited = _monotonic() - ticket.since
            self._longest = max(self._longest, waited)
            if isinstance(queue, Domain):
                queue.longest = max(queue.longest, waited)
        claim, key, mode = ticket.claim, ticket.key, ticket.mode
        if isinstance(queue, Domain):
            queue.grants += 1
            queue.used = True
            lock = queue.lock
            if lock is None:
                ticket.token = self._count(key, mode)
                if claim.changes and mode is _X:
                    queue.note(claim.owner, ticket.token, (0, 0, 0, 0))
            elif queue.have is not None:  # else an intention on trust
                last = token = lock.token
                if mode is _X:
                    token = lock.stamp(claim.owner, claim.changes)
                elif mode is _S and not queue.granted:
                    lock.describe(claim.owner)
                if last == queue.checked:
                    queue.checked = token
                else:
                    ticket.foreign = True
                ticket.token = token
        elif queue.inside is not None:
            ticket.token = queue.inside.token
        # In this order `withdraw` of another ticket can tell, after an interrupt, how far this one had come.
        queue.granted[ticket] = None
        queue.counts[mode.index] += 1
        queue.mask |= mode.bit
        ticket.since = _now()
        held = claim.held
        earlier = held.get(key)
        if earlier is not ticket:  # else an interrupt broke off the first attempt to grant it
            ticket.earlier = earlier
            held[key] = ticket
        ticket.granted = True
        self._grants += 1
        if future is not None:
            self._leave_line(ticket, queue)
            wake(ticket)

    def _count(self, key: str, mode: Mode) -> int:
        """The token where there is no backend."""
        bucket = hash(key) % _BUCKETS
        if mode is _X:
            self._tokens[bucket] += 1
        return self._tokens[bucket]

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
                if queue.lock is not None and not self._obtain(queue, head.mode):
                    self._pump(queue)
                    return
                if head.claim.trust is not None and queue.lock is not None and _broken(head.claim.trust, queue.lock):
                    self._refuse(head, queue, BeginAgain())
                else:
                    self._grant(head, queue)
        except (OSError, AgentGuardError) as error:
            self._fail(queue, error)
        queue.fit()
        if self._closed and queue.empty():
            self._discard(queue)

    def _refuse(self, ticket: Ticket, domain: Domain, error: BaseException) -> None:
        self._leave_line(ticket, domain)
        ticket.queue = None
        if ticket.future is not None:
            wake(ticket, error)

    def _fail(self, domain: Domain, error: BaseException) -> None:
        """Nobody can be granted this key now: every waiter gets the error."""
        for ticket in [*(domain.waiting or ())]:
            self._refuse(ticket, domain, error)
        if not domain.granted:
            domain.give_back()

    # -- giving back -----------------------------------------------------------------------------------------------

    def drop(self, ticket: Ticket) -> None:
        """Release a ticket, or take it out of its line."""
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
            queue.granted.clear()
            queue.counts[ticket.mode.index] = queue.mask = 0
            ticket.queue = None
            if queue.have is not None and not queue.pumping:
                queue.draining = False
                queue.have = None
                lock = queue.lock
                if lock is not None:
                    lock.release(None)

    def _remove(self, ticket: Ticket, queue: Queue) -> None:
        queue.remove(ticket)
        ticket.queue = None
        ticket.lingers = False
        self._settle(queue)

    def withdraw(self, ticket: Ticket) -> None:
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
            self.mend_queue(domain)

    def mend_queue(self, queue: Queue) -> None:
        """Bring a queue, and those inside, into order again: grants that were broken off begin anew or are finished."""
        for ticket in [*queue.granted]:
            if ticket.children is not None:
                self.mend_queue(ticket.children)
        queue.expel(None)
        for ticket in [*queue.granted]:
            if ticket.future is not None and not ticket.future.done():
                if ticket.granted:
                    self._leave_line(ticket, queue)
                    wake(ticket)
                elif not ticket.lingers:
                    queue.expel(ticket)
                    queue.enqueue(ticket, first=True)
        if isinstance(queue, Domain) and not queue.granted and not queue.pumping:
            queue.give_back()
        self._settle(queue)

    def _sweep(self, leave: int, spare: Domain | None = None) -> None:
        """Drop idle keys until `leave` are left: first those not used since the last sweep, oldest first."""
        idle = [d for d in self._domains.values() if d is not spare and not d.pumping and d.empty()]
        idle.sort(key=lambda domain: domain.used)
        for domain in idle[: max(0, len(idle) - leave)]:
            self._discard(domain)
        for domain in self._domains.values():
            domain.used = False

    def _discard(self, domain: Domain) -> None:
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
        head = domain.head()
        lock.step_out()
        domain.pumping = True
        try:
            arrival = Arrival(domain, lock, head.mode if head is not None else _X)
            if not arrival.poll():  # which takes the place in line, if it is free, sooner than a thread would
                PUMPS.submit(arrival)
        except BaseException:
            domain.pumping = False
            raise

    def arrived(self, domain: Domain, error: BaseException | None) -> None:
        """The thread has come back: with the lock, or with an error, or because nobody waits any more."""
        lock = domain.lock
        assert lock is not None
        if error is None:
            try:
                lock.complete()
            except (OSError, AgentGuardError) as trouble:
                error = trouble
        domain.pumping = False
        have = domain.have = lock.mode
        domain.taken = _monotonic()
        if error is not None:
            self._fail(domain, error)
        waiting = domain.waiting
        if have is not None and waiting and len(waiting) == 1 and not domain.granted:
            (head,) = waiting  # the usual case of `_settle`, shorter: somebody sleeps until this is done
            if head.mode is have and head.claim.trust is None:
                self._grant(head, domain)
                return
        self._settle(domain)

    def forget(self) -> None:
        """In the child of a fork: it holds nothing and waits for nothing."""
        for domain in self._domains.values():
            _forget(domain)
            if domain.lock is not None:
                domain.lock.abandon()
        self._domains = {}


def _on_trust(claim: Claim, domain: Domain) -> bool:
    """Whether the claim may hold an intention on this directory without a lock; notes what it must look at then."""
    lock = domain.lock
    if domain.have is not None or lock is None or not lock.trusted:
        return False
    if claim.trust is None:
        claim.trust = [lock]
    else:
        claim.trust.append(lock)
    return True


def _broken(trust: list[Lock], lock: Lock) -> bool:
    """Whether a directory that is held on trust is being locked as such. To ask with the last lock just taken."""
    if lock.vouches:
        return False
    for directory in trust:
        if not directory.look():
            return True
    lock.confirm(trust)
    return False


def _let_go(ticket: Ticket) -> None:
    """The claim does not hold this ticket any more; one that it has of the same key from before counts again."""
    claim, key = ticket.claim, ticket.key
    held = claim.held
    if held.get(key) is ticket:
        earlier = ticket.earlier
        while earlier is not None and not earlier.granted:
            earlier = earlier.earlier
        if earlier is not None:
            held[key] = earlier
        else:
            del held[key]
            if not held:
                claim.trust = None


def _forget(queue: Queue) -> None:
    for ticket in (*queue.granted, *(queue.waiting or ())):
        if ticket.children is not None:
            _forget(ticket.children)
        ticket.queue = None
        ticket.granted = ticket.lingers = False
        ticket.claim.held.clear()
        for claim in ticket.claim.family():
            claim.waits = None
