"""One key's lock file. See `file.py` for the protocol, and why it excludes what it must."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..exceptions import ConfigError
from . import record
from .contract import Mode, Owner, is_directory
from .forks import OPENING
from .native import AT_ONCE, BUSY, EXCLUSIVE, SHARED, UNLOCK, pread, pwrite

if TYPE_CHECKING:
    from .file import FileBackend

__all__ = ["FLAGS", "KeyFile"]

FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
IS, IX, S, X = Mode.INTENT_SHARED, Mode.INTENT_EXCLUSIVE, Mode.SHARED, Mode.EXCLUSIVE
_SHARED_NOW, _EXCLUSIVE_NOW = SHARED | AT_ONCE, EXCLUSIVE | AT_ONCE
_HEAD_SIZE = record.HEAD.size
_unpack_head = record.HEAD.unpack
_lstat = os.lstat
_YES, _NO = b"\1", b"\0"


class KeyFile:
    """The lock of one key between processes, held by this process for all its callers (`contract.Lock`)."""

    __slots__ = (
        "_backend",
        "_boot",
        "_dev",
        "_extra",
        "_fd",
        "_flock",
        "_ino",
        "_path",
        "_soft",
        "directory",
        "key",
        "mode",
        "token",
    )

    def __init__(self, backend: FileBackend, key: str) -> None:
        self._backend = backend
        self._flock = backend.native.flock
        self.key = key
        self.directory = is_directory(key)
        self.mode: Mode | None = None
        self.token = 0
        self._boot = 0
        self._path = backend.path(key)
        self._fd = -1
        self._ino = self._dev = 0
        self._extra: dict[str, int] = {}  # suffix -> descriptor: the turnstile, and what keeps S and IX apart
        self._soft = False  # an intention that is no more than a shared lock, and covers both intentions

    # -- at once ---------------------------------------------------------------------------------------------------

    def try_acquire(self, mode: Mode) -> bool:
        try:
            if self.mode is None:
                return self._try(mode, True)
            return self._add(mode)
        except OSError as error:
            if self.mode is None:
                self._drop()
            raise self._backend.explain(error) from error

    def _try(self, mode: Mode, polite: bool) -> bool:
        """`polite`: stand back if somebody is queued."""
        while True:
            fd = self._fd
            if fd < 0:
                fd = self._open()
            try:
                self._flock(fd, _EXCLUSIVE_NOW if mode is X else _SHARED_NOW)
            except BlockingIOError:
                return False
            if self._current():
                break
            self.close()
        marked, drained, queued = self._head()
        if not marked and mode.intent:
            self._soft = True
            self.mode = IX
            return True
        if queued and polite:
            return self._try_turnstile(mode)
        if not self.directory:
            self.mode = mode
            return True
        if self._claim_directory(fd, mode, marked, drained):
            return True
        self._drop()
        return False

    def _claim_directory(self, fd: int, mode: Mode, marked: int, drained: int) -> bool:
        if not marked:
            pwrite(fd, _YES, record.MARKED)
        if not drained and not mode.intent:
            if mode is S and not self._attempt(fd, EXCLUSIVE):
                return False
            pwrite(fd, _YES, record.DRAINED)
            if mode is S and not self._attempt(fd, SHARED):
                return False
        self.mode = X if mode is X else IS
        return mode is X or mode is IS or self._join_group(mode)

    def _try_turnstile(self, mode: Mode) -> bool:
        """Somebody is queued; or died while queued, then the turnstile is free."""
        self._drop()
        turnstile = self._file(".next")
        if not self._attempt(turnstile, EXCLUSIVE):
            return False
        try:
            pwrite(self._fd, _NO, record.QUEUED)
            return self._try(mode, False)
        finally:
            self._unlock(".next")

    def _join_group(self, mode: Mode) -> bool:
        """From INTENT_SHARED to INTENT_EXCLUSIVE or SHARED, if nobody holds the other one."""
        own, other = _group(mode)
        if not self._attempt(self._file(other), EXCLUSIVE):
            return False
        joined = self._attempt(self._file(own), SHARED)
        self._unlock(other)
        if joined:
            self.mode = mode
        return joined

    def _add(self, mode: Mode) -> bool:
        """Take a directory's mode in addition to INTENT_SHARED."""
        _, drained, queued = self._head()
        return self.mode is IS and not queued and (mode is IX or bool(drained)) and self._join_group(mode)

    def _attempt(self, fd: int, operation: int) -> bool:
        try:
            self._flock(fd, operation | AT_ONCE)
        except BlockingIOError:
            return False
        return True

    # -- waiting, on a thread kept for it --------------------------------------------------------------------------

    def acquire(self, mode: Mode, wanted: Callable[[], bool]) -> bool:
        while True:
            try:
                done = self._acquire(mode, wanted)
            except OSError as error:
                self._drop()
                if error.errno not in BUSY:
                    raise self._backend.explain(error) from error
                if not wanted():
                    return False
                time.sleep(0.005)  # out of descriptors: some will be closed
            else:
                if done is not None:
                    return done

    def _acquire(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        """True: held. False: no longer wanted. None: the file was replaced, begin again."""
        if self._fd < 0:
            self._open()
        turnstile = self._file(".next")
        if not self._backend.native.wait(turnstile, EXCLUSIVE, wanted):
            return False
        try:
            if not (self._current() and _same(turnstile, self._path + ".next")):
                self.close()
                return None
            pwrite(self._fd, _YES, record.QUEUED)
            try:
                return self._wait(mode, wanted)
            finally:
                if self._fd >= 0:
                    pwrite(self._fd, _NO, record.QUEUED)
        finally:
            self._unlock(".next")

    def _wait(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        """Inside the turnstile."""
        done = self._wait_main(mode, wanted)
        if done and self.directory and (mode is IX or mode is S):
            own, other = _group(mode)
            joined = False
            if self._backend.native.wait(self._file(other), EXCLUSIVE, wanted):
                try:
                    joined = self._backend.native.wait(self._file(own), SHARED, wanted)
                finally:
                    self._unlock(other)
            if not joined:
                self._drop()
                return False
            self.mode = mode
        return done

    def _wait_main(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        fd, wait = self._fd, self._backend.native.wait
        marked, drained, _ = self._head()
        whole = self.directory and not mode.intent
        if whole and not marked:
            pwrite(fd, _YES, record.MARKED)  # before waiting: from here on no unmarked intention is added
        drain = whole and not drained
        if not wait(fd, EXCLUSIVE if mode is X or drain else SHARED, wanted):
            return False
        if not self._current():
            self.close()
            return None
        self._head()
        if drain:
            pwrite(fd, _YES, record.DRAINED)
            if mode is S and not wait(fd, SHARED, wanted):
                self._drop()
                return False
        self.mode = X if mode is X else IS if self.directory else S
        return True

    # -- while held ------------------------------------------------------------------------------------------------

    def stamp(self, owner: Owner) -> int:
        token = record.next_token(self.token, self._boot)
        pwrite(self._fd, record.pack_grant(token, owner), record.GRANT)
        self._boot = record.BOOT
        self.token = token
        return token

    def describe(self, owner: Owner) -> None:
        pwrite(self._fd, record.pack_reader(owner), record.READER)

    def contended(self) -> bool:
        marked, _, queued = self._head()
        return bool(queued or (self._soft and marked))

    def lost(self) -> bool:
        return self._fd < 0 or not self._current()

    def release(self, keep: Mode | None) -> None:
        if keep is None:
            self._drop()
        elif keep is IS and self.directory and not self._soft and (self.mode is IX or self.mode is S):
            self._unlock(_group(self.mode)[0])
            self.mode = IS

    def _drop(self) -> None:
        self.mode = None
        self._soft = False
        try:
            if self._fd >= 0:
                self._flock(self._fd, UNLOCK)
            if self._extra and self.directory:
                self._unlock(".shared")
                self._unlock(".intent")
        except OSError:
            self.close()  # gives back as well

    # -- the files -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        with OPENING:
            self._close(unlock=True)

    def abandon(self) -> None:
        self._close(unlock=False)  # the lock of a description that a fork shares is the parent's

    def _close(self, unlock: bool) -> None:
        fds = [fd for fd in (self._fd, *self._extra.values()) if fd >= 0]
        self._fd = -1
        self._extra.clear()
        self.mode = None
        self._soft = False
        for fd in fds:
            if unlock:  # a child between fork and exec may have the descriptor as well: closing would not be enough
                with suppress(OSError):
                    self._flock(fd, UNLOCK)
            self._backend.native.forget(fd)
            with suppress(OSError):
                os.close(fd)

    def _current(self) -> bool:
        """Whether the path still names the file that is open."""
        try:
            found = _lstat(self._path)
        except FileNotFoundError:
            return False
        return found.st_ino == self._ino and found.st_dev == self._dev

    def _head(self) -> tuple[int, int, int]:
        """Marked, drained, queued; notes the token. A file that somebody emptied is begun anew."""
        data = pread(self._fd, _HEAD_SIZE, record.HEAD_AT)
        if len(data) < _HEAD_SIZE or not data.startswith(record.MAGIC):
            self._begin()
            data = pread(self._fd, _HEAD_SIZE, record.HEAD_AT).ljust(_HEAD_SIZE, b"\0")
        _, marked, drained, queued, _, self.token, self._boot = _unpack_head(data)
        return marked, drained, queued

    def _open(self) -> int:
        with OPENING:  # so that a fork finds every descriptor that it has to close
            fd, found = self._open_file(self._path)
            self._fd = fd
        self._ino, self._dev = found.st_ino, found.st_dev
        if found.st_size < record.KEY:
            self._begin()
        return fd

    def _begin(self) -> None:
        """Write what every lock file says. Two processes that begin one file at once write the same bytes."""
        pwrite(self._fd, record.key_block(self.key), record.KEY)
        pwrite(self._fd, record.MAGIC, record.HEAD_AT)

    def _file(self, suffix: str) -> int:
        fd = self._extra.get(suffix)
        if fd is None:
            with OPENING:
                fd = self._extra[suffix] = self._open_file(self._path + suffix)[0]
        return fd

    def _unlock(self, suffix: str) -> None:
        fd = self._extra.get(suffix)
        if fd is not None:  # else it was closed, and given back by that
            self._flock(fd, UNLOCK)

    def _open_file(self, path: str) -> tuple[int, os.stat_result]:
        try:
            fd = os.open(path, FLAGS | os.O_CREAT, 0o600)
        except FileNotFoundError:
            self._backend.check()  # somebody removed the folder
            fd = os.open(path, FLAGS | os.O_CREAT, 0o600)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise ConfigError(f"{path} is not a regular file, so it cannot be a lock file: remove it", file=path)
        return fd, found


def _group(mode: Mode) -> tuple[str, str]:
    """The file to lock shared, and the one to find free meanwhile."""
    return (".shared", ".intent") if mode is S else (".intent", ".shared")


def _same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
