"""The operating system's lock on an open descriptor: `flock`, or what filelock has where there is no `fcntl`."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Protocol

__all__ = [
    "AT_ONCE",
    "BUSY",
    "EXCLUSIVE",
    "SHARED",
    "UNLOCK",
    "UNSUPPORTED",
    "Flock",
    "Native",
    "Polled",
    "hurry",
    "native",
    "pread",
    "pwrite",
]

# What `flock` and filelock answer when the file system has no locks at all.
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
BUSY = {errno.EMFILE, errno.ENFILE}


# The operations of `flock`, spelt out because `fcntl` is missing on Windows.
SHARED, EXCLUSIVE, AT_ONCE, UNLOCK = 1, 2, 4, 8


class Native(Protocol):
    """Whole-file locks of one open file description; taking one anew converts it (not atomically)."""

    shares: bool
    """Whether shared locks exist; where not, they are exclusive."""

    flock: Callable[[int, int], None]
    """`fcntl.flock`: raises BlockingIOError when AT_ONCE is not possible."""

    def look(self, fd: int, operation: int) -> bool:
        """Take a lock if that is possible at once; for those who try many, one after the other."""
        ...

    def wait(self, fd: int, operation: int, wanted: Callable[[], bool]) -> bool:
        """Block until the lock is there; False when `wanted()` turned False meanwhile (where it can be asked)."""
        ...

    def forget(self, fd: int) -> None:
        """The descriptor is closed, and its lock with it."""
        ...


class Flock:
    """`flock`: waits in the kernel, shared and exclusive, freed by the kernel when the process dies."""

    shares = True

    def __init__(self) -> None:
        import fcntl

        self.flock: Callable[[int, int], None] = fcntl.flock

    def look(self, fd: int, operation: int) -> bool:
        if _quick is not None:
            # Without giving up the interpreter's lock: this waits for nothing, and taking turns costs far more.
            return _quick(fd, operation | AT_ONCE) == 0
        try:
            self.flock(fd, operation | AT_ONCE)
        except BlockingIOError:
            return False
        return True

    def wait(self, fd: int, operation: int, wanted: Callable[[], bool]) -> bool:
        self.flock(fd, operation)
        return True

    def forget(self, fd: int) -> None:
        pass


_quick: Callable[[int, int], int] | None = None


def hurry() -> None:
    """Make `look` as quick as can be, for one that looks at many files. Loads what it takes, some milliseconds long."""
    global _quick
    try:
        import ctypes

        found = ctypes.PyDLL(None).flock
    except (ImportError, OSError, AttributeError, TypeError):
        return
    found.argtypes = [ctypes.c_int, ctypes.c_int]
    _quick = found


class Polled:
    """filelock's descriptor lock, tried again and again: where nothing better exists. It knows only exclusive locks."""

    shares = False

    def __init__(self) -> None:
        from filelock import lock_descriptor, unlock_descriptor  # importing it costs more than all of this package

        self._lock, self._unlock = lock_descriptor, unlock_descriptor
        self._locked: set[int] = set()  # taking a lock twice is an error on Windows
        self.flock: Callable[[int, int], None] = self._flock

    def _flock(self, fd: int, operation: int) -> None:
        if operation == UNLOCK:
            if fd in self._locked:
                self._locked.discard(fd)
                self._unlock(fd)
        elif fd not in self._locked:
            if not self._lock(fd, blocking=False):
                raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process")
            self._locked.add(fd)

    def look(self, fd: int, operation: int) -> bool:
        try:
            self._flock(fd, operation)
        except BlockingIOError:
            return False
        return True

    def wait(self, fd: int, operation: int, wanted: Callable[[], bool]) -> bool:
        started = time.monotonic()
        while True:
            try:
                self._flock(fd, operation)
            except BlockingIOError:
                if not wanted():
                    return False
                # A sixteenth of the time already waited: late by at most that share, and cheap in a long wait.
                time.sleep(min(0.005, max(50e-6, (time.monotonic() - started) / 16)))
            else:
                return True

    def forget(self, fd: int) -> None:
        self._locked.discard(fd)


def native() -> Native:
    """The best that this platform has."""
    try:
        return Flock()
    except ImportError:
        return Polled()


def _seek_read(fd: int, length: int, offset: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, length)


def _seek_write(fd: int, data: bytes, offset: int) -> int:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.write(fd, data)


# A lock file's descriptor is used by one thread at a time, so seeking is as good where these do not exist (Windows).
pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_read)
pwrite: Callable[[int, bytes, int], int] = getattr(os, "pwrite", _seek_write)
