"""Waiting that would never end: the wait-for graph of the claims of this process, searched when a wait begins.

An edge leads from a waiting claim to each claim whose ticket is in its way. A claim also waits for the claims inside
it (a call ends after the calls it made), so the search ends at the asking claim or at any claim around it. Waits
begin one at a time and nothing else adds an edge, so searching then finds every cycle.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..exceptions import Deadlock
from .tickets import Claim, Queue, Ticket

__all__ = ["BLOCKED_LOOPS", "forbid_cycle", "forbid_own_loop", "forbid_upgrade"]

# Event loops whose thread sits in a synchronous wait, and for what: their coroutines cannot go on before it ends.
BLOCKED_LOOPS: dict[int, Ticket] = {}


def forbid_upgrade(ticket: Ticket, outer: Ticket) -> None:
    """Raise the Deadlock of a call that wants more of a key than the call around it holds."""
    held = f"{_who(outer.claim)} holds {outer.key!r} {outer.mode}"
    raise Deadlock(
        f"{held} and ends only after the call inside it; but {_wants(ticket)}: neither could go on. Nothing was "
        f"applied. Declare on {outer.claim.owner.tool} everything that the calls inside it need.",
        resource=ticket.key,
        cycle=(_wants(ticket), held),
    )


def forbid_cycle(ticket: Ticket, queue: Queue) -> None:
    """Raise Deadlock if waiting for this ticket, next in the line of `queue`, would close a cycle."""
    family = set(ticket.claim.family())
    if not BLOCKED_LOOPS and not any(_in_the_way(claim) for claim in family):
        return  # nobody waits for this claim or those around it: no cycle can come back to them
    path = _search(ticket, queue, family, None)
    if path is not None:
        raise _deadlock(path, "")


def forbid_own_loop(ticket: Ticket, loop: int) -> None:
    """Raise Deadlock if a wait on the thread of this event loop would be for a coroutine of the same loop."""
    if ticket.queue is not None:
        path = _search(ticket, ticket.queue, set(), loop)
        if path is not None:
            raise _deadlock(path, "a synchronous call on the event loop's own thread waits for a coroutine of it: ")


def _search(ticket: Ticket, queue: Queue, family: set[Claim], loop: int | None) -> list[tuple[Ticket, Ticket]] | None:
    """A path of (waiting, in its way) from `ticket` to the family, or to a claim of the loop; each claim once."""
    seen: set[Claim] = set()
    came: dict[Ticket, tuple[Ticket, Ticket] | None] = {ticket: None}  # waiting ticket -> the step that led to it
    stack = [(ticket, queue)]
    while stack:
        waiting, line = stack.pop()
        for blocker in line.blockers(waiting):
            claim = blocker.claim
            if claim in family or (loop is not None and claim.owner.loop == loop):
                step: tuple[Ticket, Ticket] | None = (waiting, blocker)
                path = []
                while step is not None:
                    path.append(step)
                    step = came[step[0]]
                return path[::-1]
            if claim not in seen:
                seen.add(claim)
                for further in _waits(claim):
                    if further not in came and further.queue is not None:
                        came[further] = (waiting, blocker)
                        stack.append((further, further.queue))
    return None


def _waits(claim: Claim) -> Iterator[Ticket]:
    """What must be granted before this claim can end."""
    yield from claim.waits or ()
    if claim.owner.loop in BLOCKED_LOOPS:
        yield BLOCKED_LOOPS[claim.owner.loop]


def _in_the_way(claim: Claim) -> bool:
    if claim.waits:
        return True
    for held in claim.held.values():
        ticket: Ticket | None = held
        while ticket is not None:
            if _waited_for(ticket):
                return True
            ticket = ticket.earlier
    return False


def _waited_for(ticket: Ticket) -> bool:
    """Whether anybody waits where this ticket lies, or where one lies that lasts until it ends."""
    queue = ticket.queue
    while queue is not None:
        if queue.waiting:
            return True
        outer = queue.inside
        queue = outer.queue if outer is not None and outer.lingers else None
    return False


def _deadlock(path: list[tuple[Ticket, Ticket]], why: str) -> Deadlock:
    ticket = path[0][0]
    steps = tuple(f"{_wants(waiting)}, {_has(blocker)}" for waiting, blocker in path)
    return Deadlock(
        f"waiting for {ticket.key!r} would never end: {why}{'; '.join(steps)}. Nothing was applied. Let one of these "
        "calls end first, or declare all it needs on the outermost call, so that it is taken at once and in one order.",
        resource=ticket.key,
        cycle=steps,
    )


def _who(claim: Claim) -> str:
    return f"agent {claim.owner.agent!r} in {claim.owner.tool}"


def _wants(ticket: Ticket) -> str:
    return f"{_who(ticket.claim)} waits for {ticket.key!r} ({ticket.mode})"


def _has(ticket: Ticket) -> str:
    return f"{'held by' if ticket.granted else 'queued for earlier by'} {_who(ticket.claim)} ({ticket.mode})"
