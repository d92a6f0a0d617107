"""The operating system's lock on an open descriptor: `flock`, or what filelock has where there is no `fcntl`."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Protocol

from filelock import lock_descriptor, unlock_descriptor

__all__ = ["BUSY", "Flock", "Native", "Polled", "native", "pread", "pwrite"]

# What `flock` and filelock answer when the file system has no locks at all.
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
BUSY = {errno.EMFILE, errno.ENFILE}


class Native(Protocol):
    """Whole-file locks of one open file description; taking one anew converts it (not atomically)."""

    shares: bool
    """Whether shared locks exist; where not, they are exclusive."""

    def attempt(self, fd: int, exclusive: bool) -> bool: ...
    def wait(self, fd: int, exclusive: bool, wanted: Callable[[], bool]) -> bool: ...
    def unlock(self, fd: int) -> None: ...


class Flock:
    """`flock`: waits in the kernel, shared and exclusive, freed by the kernel when the process dies."""

    shares = True

    def __init__(self) -> None:
        import fcntl

        self._flock = fcntl.flock
        self._now = (fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._blocking = (fcntl.LOCK_SH, fcntl.LOCK_EX)
        self._unlock = fcntl.LOCK_UN

    def attempt(self, fd: int, exclusive: bool) -> bool:
        try:
            self._flock(fd, self._now[exclusive])
        except BlockingIOError:
            return False
        return True

    def wait(self, fd: int, exclusive: bool, wanted: Callable[[], bool]) -> bool:
        self._flock(fd, self._blocking[exclusive])
        return True

    def unlock(self, fd: int) -> None:
        self._flock(fd, self._unlock)


class Polled:
    """filelock's descriptor lock, tried again and again: where nothing better exists. It knows only exclusive locks."""

    shares = False

    def __init__(self) -> None:
        self._locked: set[int] = set()  # taking a lock twice is an error on Windows

    def attempt(self, fd: int, exclusive: bool) -> bool:
        if fd in self._locked:
            return True
        if not lock_descriptor(fd, blocking=False):
            return False
        self._locked.add(fd)
        return True

    def wait(self, fd: int, exclusive: bool, wanted: Callable[[], bool]) -> bool:
        started = time.monotonic()
        while not self.attempt(fd, exclusive):
            if not wanted():
                return False
            # A sixteenth of the time already waited: late by at most that share, and cheap in a long wait.
            time.sleep(min(0.005, max(50e-6, (time.monotonic() - started) / 16)))
        return True

    def unlock(self, fd: int) -> None:
        if fd in self._locked:
            self._locked.discard(fd)
            unlock_descriptor(fd)


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
