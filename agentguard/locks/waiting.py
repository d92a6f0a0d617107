"""Waiting for a ticket, on a thread or in a coroutine. Neither changes the table: the caller releases the ticket."""

from __future__ import annotations

import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from .cycles import BLOCKED_LOOPS, forbid_own_loop
from .section import section
from .tickets import Bell, Ticket

if TYPE_CHECKING:
    import asyncio

__all__ = ["await_", "wait"]


def wait(ticket: Ticket, timeout: float | None = None) -> bool:
    """Block this thread until the ticket is granted: True; or for `timeout` seconds (None: without end): False.

    A ticket that was not granted still waits: the caller releases it. Raises Deadlock when this thread runs the event
    loop of a coroutine that would have to release first, and the error that kept the ticket from being granted.
    """
    future = ticket.future
    if ticket.granted or future is None:
        return ticket.granted
    loop = _running_loop()
    if loop is not None:
        with section():
            forbid_own_loop(ticket, loop)
            BLOCKED_LOOPS[loop] = ticket
    bell = ticket.bell = Bell()
    future.add_done_callback(bell.ring)
    end = None if timeout is None else time.monotonic() + timeout
    try:
        while not (ticket.granted or future.done()):
            if not bell.wait(None if end is None else end - time.monotonic()):
                break
    finally:
        ticket.bell = None
        if loop is not None:
            BLOCKED_LOOPS.pop(loop, None)
    if not ticket.granted and future.done():
        future.result()
    return ticket.granted


async def await_(ticket: Ticket, timeout: float | None = None) -> bool:
    """The same for a coroutine; blocks no loop and no thread.

    When cancelled it raises CancelledError and leaves the ticket as it is, granted or waiting: the caller releases it.
    """
    future = ticket.future
    if ticket.granted or future is None:
        return ticket.granted
    import asyncio

    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def arrive() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def wake(_: Future[None]) -> None:
        _ring(loop, arrive)

    # The concurrent future is only watched, never cancelled: the table alone decides what becomes of a ticket.
    future.add_done_callback(wake)
    timer = None if timeout is None else loop.call_later(timeout, arrive)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
    if not ticket.granted and future.done():
        future.result()
    return ticket.granted


# Callbacks for event loops that will be run in their threads: one wake-up of the loop serves all that came before it.
_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[Callable[[], None]]] = weakref.WeakKeyDictionary()


def _ring(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """`loop.call_soon_threadsafe`, but many at the price of one."""
    queue = _bells.get(loop)
    if queue is None:
        queue = _bells.setdefault(loop, deque())
    queue.append(callback)
    if len(queue) == 1:  # else whoever put the first one has rung, and it has not been heard yet
        with suppress(RuntimeError):  # the loop was closed while its task waited: nobody is left to wake
            loop.call_soon_threadsafe(_answer, queue)


def _answer(queue: deque[Callable[[], None]]) -> None:
    while queue:
        try:
            queue[0]()
        finally:
            queue.popleft()  # only now: what comes meanwhile need not ring


def _running_loop() -> int | None:
    asyncio = sys.modules.get("asyncio")  # where it was never imported no loop can run
    loop = None if asyncio is None else asyncio._get_running_loop()
    return None if loop is None else id(loop)
