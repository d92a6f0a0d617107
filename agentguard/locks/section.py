"""The short mutex of all lock tables, and what is done on the way out of it.

Releases still to be done and futures still to be set: whoever leaves the mutex does them, so it is only ever entered
by `section`, `LockTable.request` and `leave`. Thus a release never waits for the mutex, not even in a finalizer or a
signal handler that interrupted the thread which holds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress

from .forks import MUTEX
from .tickets import Ticket

__all__ = ["RELEASED", "WAKING", "forget", "leave", "section", "wake", "work_off"]

RELEASED: deque[Ticket] = deque()
WAKING: deque[tuple[Future[None], BaseException | None]] = deque()


@contextmanager
def section() -> Iterator[None]:
    """The mutex, for everything but a request."""
    try:
        with MUTEX:
            work_off()
            yield
    finally:
        leave()


def wake(future: Future[None], error: BaseException | None = None) -> None:
    """Under the mutex: have a future set after it."""
    WAKING.append((future, error))


def work_off() -> None:
    """Under the mutex: the releases that found it taken."""
    while RELEASED:
        ticket = RELEASED[0]
        try:
            ticket.table.drop(ticket)
        except BaseException:
            ticket.table.withdraw(ticket)
            RELEASED.popleft()
            raise
        RELEASED.popleft()


def leave() -> None:
    """After the mutex: what others left to whoever comes out of it, and the futures of tickets granted meanwhile."""
    while RELEASED and MUTEX.acquire(False):
        try:
            work_off()
        finally:
            MUTEX.release()
    while WAKING:
        try:
            item = WAKING[0]
        except IndexError:
            return  # another thread was faster
        future, error = item
        with suppress(InvalidStateError):  # the same
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        with suppress(ValueError):
            WAKING.remove(item)


def forget() -> None:
    """In the child of a fork: nobody waits here."""
    RELEASED.clear()
    WAKING.clear()
