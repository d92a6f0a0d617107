"""One guarded call: a generator that decides, and two short drivers, sync and async, that do.

acquire in key order -> stale check -> redirect -> the tool's body -> commit, or discard on error -> remember versions
-> release. The generator yields what must wait or touch the disk; everything else is decided in it, once for both.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .call import Call, Wanted
from .exceptions import LockTimeout
from .locks import Claim, Ticket, await_, wait
from .redirect import CURRENT, unmap, unmap_error

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Body", "Do", "Flow", "Wait", "apump", "arun", "locked", "pump", "release", "run", "steps", "threaded"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a ticket: True when it was granted, False when `timeout` seconds have passed."""

    ticket: Ticket
    timeout: float


@dataclass(frozen=True, slots=True)
class Do:
    """Disk work of milliseconds: the sync driver does it here, the async one in a thread of our own, to its end."""

    fn: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Body:
    """Run the tool with these arguments."""

    payload: Any


Flow = Generator[Wait | Do | Body, Any, T]


def locked(
    claim: Claim,
    wanted: Sequence[Wanted],
    tickets: dict[tuple[Path | None, str], Ticket],
    timeout: float,
    limits: Mapping[str, float],
    tool: str,
) -> Flow[float]:
    """Acquire everything in order; returns the seconds waited. The caller releases, whatever happens."""
    started = time.monotonic()
    waited = False
    for home, table, key, mode in wanted:
        ticket = table.request(claim, key, mode)
        tickets[home, key] = ticket
        if ticket.granted:
            continue
        waited = True
        limit = min(timeout, limits.get(key, timeout))
        left = limit - (time.monotonic() - started)
        if not (yield Wait(ticket, max(0.0, left))):
            holders = table.holders(key)
            held = "; ".join(str(holder) for holder in holders) or "another waiter ahead of it"
            name = key.removeprefix("file:") or "./"
            raise LockTimeout(
                f"{tool} of agent {claim.owner.agent!r} waited {limit:g} s for {name}, held by {held}. Nothing was "
                "applied; retry, or raise `timeout`.",
                resource=name,
                timeout=limit,
                holders=holders,
                tool=tool,
                agent=claim.owner.agent,
            )
    return time.monotonic() - started if waited else 0.0


def release(wanted: Sequence[Wanted], tickets: dict[tuple[Path | None, str], Ticket]) -> None:
    for home, table, key, _ in reversed(wanted):
        ticket = tickets.get((home, key))
        if ticket is not None:
            table.release(ticket)


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
    wanted = call.locks()
    try:
        waited = yield from locked(call.claim, wanted, call.tickets, call.timeout, guard.limits(call.places), call.tool)
        call.active = True
        if guard.hooks:
            guard.emit("acquired", call, waited=waited)
        context = CURRENT.set(call)
        try:
            begin = Do(lambda: _begin(call, opening))
            payload = (yield begin) if opening is not None or call.has_beginning() else begin.fn()
            result = (yield Body(payload)) if body else payload
            if call.names:
                result = unmap(result, call.names)
            if closing is not None or call.has_end():
                result = yield Do(lambda: _end(call, closing, result))
            call.remember()
        except BaseException as error:
            unmap_error(error, call.names)
            if guard.hooks:
                guard.emit("discarded", call, error=repr(error))
            raise
        finally:
            call.active = False
            call.discard()
            with contextlib.suppress(ValueError):  # a hold that is left in another context than it was entered in
                CURRENT.reset(context)
        if guard.hooks:
            guard.emit("committed", call)
        return result
    finally:
        release(wanted, call.tickets)
        if guard.hooks:
            guard.emit("released", call)


def _begin(call: Call, opening: Callable[[], Any] | None) -> Any:
    call.guard.recover_pending([place.resource for place in call.places.values()])
    call.settle_places()
    call.check_stale()
    call.note_reads()
    return opening() if opening is not None else call.rewritten_arguments()


def _end(call: Call, closing: Callable[[Any], Any] | None, result: Any) -> Any:
    if closing is not None:
        result = closing(result)
    call._check_isolation()
    call.commit()
    return result


# -- the drivers ---


def _perform(op: Wait | Do | Body) -> Any:
    if type(op) is Wait:
        return wait(op.ticket, op.timeout)
    assert type(op) is Do
    return op.fn()


async def _aperform(op: Wait | Do | Body) -> Any:
    if type(op) is Wait:
        return await await_(op.ticket, op.timeout)
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
