"""The short mutex of all lock tables, and what is done on the way out of it.

Releases, locks that have come from another process, and futures still to be set: whoever leaves the mutex sees to
them, so it is only ever entered by `section`, `LockTable.request` and `leave`. Thus a release never waits for the
mutex, not even in a finalizer or a signal handler that interrupted the thread which holds it; and where many locks come
at once, one thread grants them all while the others go back to sleep (flat combining: Hendler, Incze, Shavit, Tzafrir,
SPAA 2010).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from .forks import MUTEX

if TYPE_CHECKING:
    from .tickets import Ticket

__all__ = ["LATER", "TODO", "WAKING", "Item", "forget", "leave", "section", "wake", "work_off"]

TODO: deque[Item] = deque()
LATER: deque[Item] = deque()  # what has time until everybody who was granted something is awake
WAKING: deque[tuple[Ticket, BaseException | None]] = deque()
_main = threading.main_thread().ident
get_ident = threading.get_ident


class Item(Protocol):
    """What is to be done under the mutex; `mend` puts in order what an exception broke off."""

    def attend(self) -> None: ...

    def mend(self) -> None: ...


@contextmanager
def section() -> Iterator[None]:
    """The mutex, for everything but a request."""
    try:
        with MUTEX:
            work_off()
            yield
    finally:
        leave()


def wake(ticket: Ticket, error: BaseException | None = None) -> None:
    """Under the mutex: have a ticket's future set after it."""
    WAKING.append((ticket, error))


def work_off() -> None:
    """Under the mutex: what was left to whoever comes next."""
    while TODO:
        item = TODO[0]
        try:
            item.attend()
        except BaseException:
            item.mend()
            TODO.popleft()
            raise
        TODO.popleft()


def leave() -> None:
    """After the mutex: what others left to whoever comes out of it, and the futures of tickets granted meanwhile."""
    while True:
        while TODO and MUTEX.acquire(False):
            try:
                work_off()
            finally:
                MUTEX.release()
        while WAKING:
            # An interrupt may come between any two steps, but only in the main thread: what it takes out could be lost.
            if get_ident() == _main:
                item = _first()
                if item is not None:
                    _set(item)
                    with suppress(ValueError):
                        WAKING.remove(item)
            else:
                with suppress(IndexError):
                    _set(WAKING.popleft())
        try:
            later = LATER[0]
        except IndexError:
            return
        TODO.append(later)  # twice, where two threads come at once; never not at all
        with suppress(ValueError):
            LATER.remove(later)


def _first() -> tuple[Ticket, BaseException | None] | None:
    try:
        return WAKING[0]
    except IndexError:
        return None  # another thread was faster


def _set(item: tuple[Ticket, BaseException | None]) -> None:
    ticket, error = item
    bell, future = ticket.bell, ticket.future
    if bell is not None:
        bell.ring()  # first, as it takes a while until a thread wakes
    if future is None:
        return
    with suppress(InvalidStateError):  # another thread was faster
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def forget() -> None:
    """In the child of a fork: nobody waits here."""
    global _main
    _main = get_ident()
    TODO.clear()
    LATER.clear()
    WAKING.clear()
