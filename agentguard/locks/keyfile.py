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
from .native import BUSY, pread, pwrite

if TYPE_CHECKING:
    from .file import FileBackend

__all__ = ["FLAGS", "KeyFile"]

FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
IS, IX, S, X = Mode.INTENT_SHARED, Mode.INTENT_EXCLUSIVE, Mode.SHARED, Mode.EXCLUSIVE
_HEAD_SIZE = record.HEAD.size
_unpack_head = record.HEAD.unpack
_YES, _NO = b"\1", b"\0"
# Of the two files that keep INTENT_EXCLUSIVE and SHARED apart: the one to lock, and the one to find free meanwhile.
_GROUP = {IX: (".intent", ".shared"), S: (".shared", ".intent")}


class KeyFile:
    """The lock of one key between processes, held by this process for all its callers (`contract.Lock`)."""

    __slots__ = ("_attempt", "_backend", "_boot", "_extra", "_fd", "_id", "_path", "_soft", "directory", "key", "mode",
                 "token")  # fmt: skip

    def __init__(self, backend: FileBackend, key: str) -> None:
        self._backend = backend
        self._attempt = backend.native.attempt
        self.key = key
        self.directory = is_directory(key)
        self.mode: Mode | None = None
        self.token = 0
        self._boot = 0
        self._path = str(backend.folder / record.file_name(key))
        self._fd = -1
        self._id = (0, 0)
        self._extra: dict[str, int] = {}  # suffix -> descriptor of the turnstile and the group files
        self._soft = False  # an intention that is a shared lock only, and covers both intentions

    # -- contract.Lock ---------------------------------------------------------------------------------------------

    def try_acquire(self, mode: Mode) -> bool:
        if self.mode is not None:
            return not self._head()[2] and self._join_group(mode)
        try:
            return self._try(mode, True)
        except OSError as error:
            self._drop()
            raise self._backend.unusable(error) from error

    def prepare(self) -> None:
        """Nothing: descriptors are opened under a lock of their own that a fork waits for."""

    def acquire(self, mode: Mode, wanted: Callable[[], bool]) -> bool:
        held = self.mode
        while True:
            try:
                done = self._acquire(mode, wanted)
            except OSError as error:
                if held is None:
                    self._drop()
                if error.errno not in BUSY:
                    raise self._backend.unusable(error) from error
                if not wanted():
                    return False
                time.sleep(0.005)  # out of descriptors: some will be closed
                continue
            if done is not None:
                return done

    def extends(self, mode: Mode) -> bool:
        return self.mode is IS and (mode is IX or self._head()[1])

    def stamp(self, owner: Owner) -> int:
        token = record.next_token(self.token, self._boot)
        pwrite(self._fd, record.pack_grant(token, owner), record.GRANT)
        self._boot = record.BOOT
        self.token = token
        return token

    def describe(self, owner: Owner) -> None:
        pwrite(self._fd, record.pack_reader(owner), record.READER)

    def release(self, keep: Mode | None) -> None:
        if keep is None:
            self._drop()
        elif keep is not self.mode and not self._soft and self.mode in _GROUP:
            self._backend.native.unlock(self._extra[_GROUP[self.mode][0]])
            self.mode = IS

    def contended(self) -> bool:
        marked, _, queued = self._head()
        return queued or (self._soft and marked)

    def lost(self) -> bool:
        return not self._current()

    def close(self) -> None:
        with OPENING:
            for fd in (self._fd, *self._extra.values()):
                if fd >= 0:
                    with suppress(OSError):
                        self._backend.native.unlock(fd)
                    os.close(fd)
            self._fd = -1
            self._extra.clear()
        self.mode = None

    def abandon(self) -> None:
        for fd in (self._fd, *self._extra.values()):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)  # closing, not unlocking: the lock is the parent's
        self._fd = -1
        self._extra.clear()
        self.mode = None

    # -- at once ---------------------------------------------------------------------------------------------------

    def _try(self, mode: Mode, polite: bool) -> bool:
        """`polite`: stand back if somebody is queued."""
        exclusive = mode is X
        while True:
            fd = self._fd
            if fd < 0:
                fd = self._open()
            if not self._attempt(fd, exclusive):
                return False
            if self._current():
                break
            self.close()
        marked, drained, queued = self._head()
        if not self.directory:
            if queued and polite:
                return self._try_turnstile(mode)
            self.mode = mode
            return True
        if mode.intent and not marked:
            self._soft = True
            self.mode = IX
            return True
        if queued and polite:
            return self._try_turnstile(mode)
        if not marked:
            pwrite(fd, _YES, record.MARKED)
        if not drained and not mode.intent:
            if not exclusive and not self._attempt(fd, True):
                self._drop()
                return False
            pwrite(fd, _YES, record.DRAINED)
            if not exclusive and not self._attempt(fd, False):
                self._drop()
                return False
        self.mode = X if exclusive else IS
        if mode is X or mode is IS or self._join_group(mode):
            return True
        self._drop()
        return False

    def _try_turnstile(self, mode: Mode) -> bool:
        """Somebody is queued, or died while queued: then the turnstile is free."""
        self._drop()
        turnstile = self._file(".next")
        if not self._attempt(turnstile, True):
            return False
        try:
            pwrite(self._fd, _NO, record.QUEUED)
            return self._try(mode, False)
        finally:
            self._backend.native.unlock(turnstile)

    def _join_group(self, mode: Mode) -> bool:
        """From INTENT_SHARED to INTENT_EXCLUSIVE or SHARED, if nobody holds the other one."""
        own, other = (self._file(suffix) for suffix in _GROUP[mode])
        if not self._attempt(other, True):
            return False
        joined = self._attempt(own, False)
        self._backend.native.unlock(other)
        if joined:
            self.mode = mode
        return joined

    # -- waiting, on a thread of its own ---------------------------------------------------------------------------

    def _acquire(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        """True: held. False: no longer wanted. None: the file was replaced, begin again."""
        native = self._backend.native
        if self._fd < 0:
            self._open()
        turnstile = self._file(".next")
        if not native.wait(turnstile, True, wanted):
            return False
        try:
            if self.mode is None and not (self._current() and _same(turnstile, self._path + ".next")):
                self.close()
                return None
            pwrite(self._fd, _YES, record.QUEUED)
            try:
                return self._wait(mode, wanted)
            finally:
                if self._fd >= 0:
                    pwrite(self._fd, _NO, record.QUEUED)
        finally:
            if ".next" in self._extra:  # else it was closed, and given back by that
                native.unlock(turnstile)

    def _wait(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        """Inside the turnstile."""
        native = self._backend.native
        held = self.mode
        if held is None:
            fd = self._fd
            marked, drained, _ = self._head()
            whole = self.directory and not mode.intent
            if whole and not marked:
                pwrite(fd, _YES, record.MARKED)  # before waiting: from here on no unmarked intention is added
            drain = whole and not drained
            if not native.wait(fd, mode is X or drain, wanted):
                return False
            if not self._current():
                self.close()
                return None
            self._head()
            if drain:
                pwrite(fd, _YES, record.DRAINED)
                if mode is not X and not native.wait(fd, False, wanted):
                    self._drop()
                    return False
            self.mode = X if mode is X else IS if self.directory else S
        if self.directory and mode in _GROUP and self.mode is not mode:
            own, other = (self._file(suffix) for suffix in _GROUP[mode])
            joined = False
            if native.wait(other, True, wanted):
                try:
                    joined = native.wait(own, False, wanted)
                finally:
                    native.unlock(other)
            if not joined:
                if held is None:
                    self._drop()
                return False
            self.mode = mode
        return True

    # -- the files -------------------------------------------------------------------------------------------------

    def _head(self) -> tuple[bool, bool, bool]:
        """Marked, drained, queued; notes the token. A file that somebody emptied is as good as a new one."""
        data = pread(self._fd, _HEAD_SIZE, record.HEAD_AT)
        if len(data) < _HEAD_SIZE or not data.startswith(record.MAGIC):
            self._begin()
            data = pread(self._fd, _HEAD_SIZE, record.HEAD_AT).ljust(_HEAD_SIZE, b"\0")
        _, marked, drained, queued, _, self.token, self._boot = _unpack_head(data)
        return marked, drained, queued

    def _current(self) -> bool:
        """Whether the path still names the file that is open."""
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return False
        return (found.st_ino, found.st_dev) == self._id

    def _drop(self) -> None:
        """Give back whatever is held."""
        mode, self.mode = self.mode, None
        unlock = self._backend.native.unlock
        try:
            if self.directory and not self._soft and mode in _GROUP:
                unlock(self._extra[_GROUP[mode][0]])
            if self._fd >= 0:
                unlock(self._fd)
        except OSError:
            self.close()  # closing gives back as well
        self._soft = False

    def _open(self) -> int:
        fd, found = self._open_file(self._path)
        self._fd = fd
        self._id = (found.st_ino, found.st_dev)
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
            fd = self._extra[suffix] = self._open_file(self._path + suffix)[0]
        return fd

    def _open_file(self, path: str) -> tuple[int, os.stat_result]:
        with OPENING:
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


def _same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
