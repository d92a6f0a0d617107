"""One guarded call: a generator that decides, and two short drivers, sync and async, that do.

acquire in key order -> stale check -> redirect -> the tool's body -> commit, or discard on error -> remember versions
-> release. The generator yields what must wait or touch the disk; everything else is decided in it, once for both.
"""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .call import Call
from .exceptions import AgentGuardError, LockTimeout
from .locks import BeginAgain, Claim, LockTable, Ticket, await_, wait
from .outline import Batch
from .redirect import CURRENT, unmap, unmap_error
from .turns import PATIENCE, Seat

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Body", "Do", "Flow", "Wait", "apump", "arun", "locked", "pump", "run", "steps", "threaded"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a ticket: True when it was granted, False when `timeout` seconds have passed."""

    ticket: Ticket
    timeout: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Wait until all of these are done, or `timeout` seconds have passed; the result says which of the two."""

    futures: Sequence[Future[None]]
    timeout: float


@dataclass(frozen=True, slots=True)
class Do:
    """Disk work of milliseconds: the sync driver does it here, the async one in a thread of our own, to its end."""

    fn: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Body:
    """Run the tool with these arguments."""

    payload: Any


Flow = Generator[Wait | Ended | Do | Body, Any, T]


def locked(claim: Claim, batches: Sequence[Batch], limit_of: Callable[[str], float]) -> Flow[float]:
    """Acquire everything in order; returns the seconds waited. The caller releases the claim, whatever happens.

    `limit_of` gives for each key the seconds that all the waiting up to it may take."""
    started = 0.0  # monotonic, of the first wait
    again = 0
    while True:
        try:
            for table, keys in batches:
                at = 0
                while at < len(keys):
                    tickets = table.request_all(claim, keys[at:] if at else keys)
                    at += len(tickets)
                    ticket = tickets[-1]
                    if ticket.granted:
                        continue
                    started = started or time.monotonic()
                    limit = limit_of(ticket.key)
                    if not (yield Wait(ticket, max(0.0, limit - (time.monotonic() - started)))):
                        raise _timed_out(ticket.table, ticket.key, claim, limit)
            return time.monotonic() - started if started else 0.0
        except BeginAgain:
            LockTable.release_all(claim)
            again += 1
            if again > 8:  # only ever for a moment: another process is taking the same directory's lock
                started = started or time.monotonic()
                table, ((key, _), *_) = batches[0]
                limit = limit_of(key)
                if time.monotonic() - started > limit:
                    raise _timed_out(table, key, claim, limit) from None
                yield Do(lambda: time.sleep(0.001))


def _timed_out(table: LockTable, key: str, claim: Claim, limit: float) -> LockTimeout:
    holders = table.holders(key)
    held = "; ".join(str(holder) for holder in holders) or "another waiter ahead of it"
    name = key.removeprefix("file:") or "./"
    agent, tool = claim.owner.agent, claim.owner.tool
    return LockTimeout(
        f"{tool} of agent {agent!r} waited {limit:g} s for {name}, held by {held}. Nothing was applied; retry, or "
        "raise `timeout`.",
        resource=name,
        timeout=limit,
        holders=holders,
        tool=tool,
        agent=agent,
    )


def steps(
    call: Call,
    opening: Callable[[], Any] | None = None,
    closing: Callable[[Any], Any] | None = None,
    *,
    body: bool = True,
) -> Flow[Any]:
    """The way of one call. `opening` gives the body's payload (default: the rewritten arguments), `closing` takes the
    body's result before the commit and gives the call's; both run with the locks held. Without a `body`, the opening's
    value is the result."""
    guard = call.guard
    begun = done = False
    try:
        if call.seat is not None:
            yield from _in_turn(call, call.seat)
        waited = yield from locked(call.claim, call.locks(), call.limit)
        call.active = True
        call.began = time.time_ns()
        if guard.hooks:
            call.tokens = {place.resource.id: call.token(place.resource) for place in call.places.values()}
            guard.emit("acquired", call, waited=waited)
        context = CURRENT.set(call)
        try:
            payload: Any = {}
            if opening is not None or call.has_beginning():
                payload = yield Do(partial(_begin, call, opening))
            if call.outline.announces and not call.claim.changes:
                call.announce()
            begun = True
            result = (yield Body(payload)) if body else payload
            if call.names:
                result = unmap(result, call.names)
            if closing is not None or call.has_end():
                result = yield Do(partial(_end, call, closing, result))
            call.end()
        except BaseException as error:
            unmap_error(error, call.names)
            if guard.hooks:
                if isinstance(error, AgentGuardError) and (not begun or call.refuses(error)):
                    guard.emit_refused(call, error)
                else:
                    guard.emit("discarded", call, error=repr(error))
            raise
        finally:
            call.active = False
            call.discard()
            try:  # noqa: SIM105 - a context manager costs more than the reset
                CURRENT.reset(context)
            except ValueError:
                pass  # a hold that is left in another context than it was entered in
        if guard.hooks:
            guard.emit("committed", call)
        done = True
        return result
    except AgentGuardError as error:
        if guard.hooks and not call.began:
            guard.emit_refused(call, error)
        raise
    finally:
        LockTable.release_all(call.claim)
        if call.seat is not None and done:  # one that failed may be tried again: whoever executes it tells its end
            call.seat.turn.end(call.seat.place)
        if guard.hooks:
            guard.emit("released", call)


def _in_turn(call: Call, seat: Seat) -> Flow[None]:
    """Wait for the earlier calls of the same turn that must take effect first."""
    seat.turn.come(seat.place)
    coming = seat.coming()
    if coming:
        yield Ended(coming, PATIENCE)
    before = seat.ending()
    if before:
        limit = max(map(call.limit, [place.resource.key for place in call.places.values()]))
        if not (yield Ended(before, limit)):
            raise LockTimeout(
                f"{call.tool} of agent {call.identity.agent!r} waited {limit:g} s for an earlier call of its turn on "
                "the same resource, which has not ended. Nothing was applied; retry, or raise `timeout`.",
                resource=", ".join(place.resource.name for place in call.places.values()),
                timeout=limit,
                holders=(),
                tool=call.tool,
                agent=call.identity.agent,
            )


def _begin(call: Call, opening: Callable[[], Any] | None) -> Any:
    call.begin()
    return opening() if opening is not None else call.rewritten_arguments()


def _end(call: Call, closing: Callable[[Any], Any] | None, result: Any) -> Any:
    if closing is not None:
        result = closing(result)
    if call.fresh is not None:
        call.fresh.check_seen()
    call.check_isolation()
    call.commit()
    if call.fresh is not None:
        call.fresh.end()
    call.discard()  # here, since removing the copies takes a while
    return result


# -- the drivers ---


def _perform(op: Wait | Ended | Do | Body) -> Any:
    if type(op) is Wait:
        return wait(op.ticket, op.timeout)
    if type(op) is Ended:
        from concurrent.futures import wait as wait_for

        return not wait_for(op.futures, op.timeout).not_done
    assert type(op) is Do
    return op.fn()


async def _aperform(op: Wait | Ended | Do | Body) -> Any:
    if type(op) is Wait:
        return await await_(op.ticket, op.timeout)
    if type(op) is Ended:
        import asyncio

        return not (await asyncio.wait([*map(asyncio.wrap_future, op.futures)], timeout=op.timeout))[1]
    assert type(op) is Do
    return await threaded(op.fn, _io)


def pump(flow: Flow[Any], value: Any = None, error: BaseException | None = None) -> tuple[bool, Any]:
    """Drive a flow up to its body, or to its end: (at the body, payload) or (finished, result)."""
    try:
        op = flow.send(value) if error is None else flow.throw(error)
        while type(op) is not Body:
            try:
                value = _perform(op)
            except BaseException as raised:
                op = flow.throw(raised)
            else:
                op = flow.send(value)
        return True, op.payload
    except StopIteration as stop:
        return False, stop.value


async def apump(flow: Flow[Any], value: Any = None, error: BaseException | None = None) -> tuple[bool, Any]:
    """The async twin of `pump`."""
    try:
        op = flow.send(value) if error is None else flow.throw(error)
        while type(op) is not Body:
            try:
                value = await _aperform(op)
            except BaseException as raised:
                op = flow.throw(raised)
            else:
                op = flow.send(value)
        return True, op.payload
    except StopIteration as stop:
        return False, stop.value


def run(flow: Flow[Any], body: Callable[[Any], Any] | None = None) -> Any:
    """Drive a whole flow in this thread."""
    at_body, value = pump(flow)
    if at_body:
        assert body is not None
        try:
            result = body(value)
        except BaseException as error:
            _, value = pump(flow, error=error)
        else:
            _, value = pump(flow, result)
    return value


async def arun(flow: Flow[Any], body: Callable[[Any], Awaitable[Any]] | None = None) -> Any:
    """Drive a whole flow in this task. Cancellation ends waiting or reaches the body; disk work is finished first."""
    at_body, value = await apump(flow)
    if at_body:
        assert body is not None
        try:
            result = await body(value)
        except BaseException as error:
            _, value = await apump(flow, error=error)
        else:
            _, value = await apump(flow, result)
    return value


class _Pool:
    """Threads of our own: the loop's default executor may be full of tools that wait for the very lock we hold."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0

    def get(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        if self._pool is None or self._pid != os.getpid():
            self._pool = ThreadPoolExecutor(self._size, thread_name_prefix=self._name)
            self._pid = os.getpid()
        return self._pool


_io = _Pool("agentguard-io", 4)
_bodies = _Pool("agentguard-tool", 256)


async def threaded(fn: Callable[[], T], pool: _Pool = _bodies) -> T:
    """Run `fn` in a thread, with this context, to its end: a cancellation is raised only after it has finished."""
    import asyncio

    context = contextvars.copy_context()
    return await settle(asyncio.get_running_loop().run_in_executor(pool.get(), context.run, fn))


async def settle(future: asyncio.Future[T]) -> T:
    """Wait for a future to its end, whatever cancellations arrive; then raise the last of them, or give its result."""
    import asyncio

    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # seen: nobody else will ask for it
        raise cancelled
    return future.result()
