"""One key's lock file. See `file.py` for the protocol, and why it excludes what it must."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..exceptions import ConfigError
from . import record
from .contract import Change, Lock, Mode, Owner, directories_above
from .forks import OPENING
from .mapped import Mapped
from .native import AT_ONCE, BUSY, EXCLUSIVE, SHARED, UNLOCK, pread, pwrite

if TYPE_CHECKING:
    from .file import FileBackend

__all__ = ["FLAGS", "KeyFile"]

FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
X = Mode.EXCLUSIVE
_SHARED_NOW, _EXCLUSIVE_NOW = SHARED | AT_ONCE, EXCLUSIVE | AT_ONCE
_HEAD_AT, _HEAD_SIZE, _MAGIC, _WHOLE = record.HEAD_AT, record.HEAD.size, record.MAGIC, record.KEY
_HOLDER_AT, _SINCE, _READER = record.HOLDER_AT, record.SINCE, record.READER
_CHANGE, _CHANGED, _CHANGED_AT, _ZEROS = record.CHANGE, record.CHANGED, record.CHANGED_AT, (0, 0, 0, 0)
_QUIET, _CALM, _TOKEN, _BOOTED = record.QUIET, record.CALM, record.TOKEN, record.BOOTED
_ALL_BUT_CLEAR = ~(0xFF << 8 * (record.CLEAR - 8 * record.QUIET))
_MAGIC_BITS, _QUEUED_BITS = 0xFFFFFFFF, 0xFF << 8 * (record.QUEUED - 8 * record.QUIET)
_unpack_head = record.HEAD.unpack
_lstat = os.lstat
_now = time.time


class KeyFile:
    """The lock of one key between processes, held by this process for all its callers (`contract.Lock`).

    This class is for keys that are no directories: SHARED and EXCLUSIVE are the file's shared and exclusive lock.
    """

    __slots__ = (
        "_backend",
        "_boot",
        "_changed",
        "_changer",
        "_dev",
        "_extra",
        "_fd",
        "_flock",
        "_in_line",
        "_ino",
        "_mapped",
        "_path",
        "_seen",
        "_stamped",
        "_standing",
        "_told",
        "_turn_ino",
        "_words",
        "key",
        "mode",
        "token",
        "trusted",
        "vouches",
    )

    def __init__(self, backend: FileBackend, key: str) -> None:
        self._backend = backend
        self._flock = backend.native.flock
        self.key = key
        self.mode: Mode | None = None
        self.token = 0
        self.trusted = self.vouches = False
        self._told: Owner | None = None  # whom the file names, as of `_stamped`
        self._changer: Owner | None = None  # whom the file names as the last to change it, as of the token `_changed`
        self._changed = 0
        self._stamped = 0  # the last token that this process issued
        self._boot = 0
        self._path = backend.path(key)
        self._fd = -1
        self._ino = self._dev = self._turn_ino = 0
        self._extra: dict[str, int] = {}  # suffix -> descriptor: the turnstile, and what keeps S and IX apart
        self._mapped: Mapped | None = None  # made at the second grant, where the file system allows it
        self._words: memoryview | None = None  # its words
        self._seen = False  # the file was just seen to be whole: its page may be touched
        self._in_line = False  # the turnstile is ours
        self._standing: Mode | None = None  # what was acquired and is to be completed

    # -- at once ---------------------------------------------------------------------------------------------------

    def try_acquire(self, mode: Mode) -> bool:
        words = self._words
        if words is None:
            if self._fd >= 0:
                self._map()
            return self._try_general(mode)
        try:  # the usual case of `_try`, in as few steps as can be
            self._flock(self._fd, _EXCLUSIVE_NOW if mode is X else _SHARED_NOW)
            found = _lstat(self._path)
        except BlockingIOError:
            return False
        except OSError:
            return self._try_general(mode)
        if found.st_ino == self._ino and found.st_size >= _WHOLE and found.st_dev == self._dev:
            word = words[_QUIET]
            if word & _ALL_BUT_CLEAR == _CALM:
                self.vouches = word != _CALM
                self.token = words[_TOKEN]
                self._boot = words[_BOOTED]
                self._seen = True
                self.mode = mode
                return True
        return self._try_general(mode)

    def _try_general(self, mode: Mode) -> bool:
        self.vouches = False
        try:
            return self._try(mode, True)
        except OSError as error:
            self._drop()
            raise self._backend.explain(error) from error

    def _try(self, mode: Mode, polite: bool) -> bool:
        """`polite`: stand back if somebody is queued."""
        while True:
            fd = self._fd
            if fd < 0:
                fd = self._open()
            if not self._attempt(fd, self._operation(mode)):
                return False
            if self._current():
                break
            self.close()
        if self._head() and polite:
            return self._try_turnstile(mode)
        if self._enter(mode, None):
            return True
        self._drop()
        return False

    def _try_turnstile(self, mode: Mode) -> bool:
        """Somebody is queued; or died while queued, then the turnstile is free."""
        self._drop()
        self.step_out()  # ourselves, it may be
        turnstile = self._file(".next")
        if not self._attempt(turnstile, EXCLUSIVE):
            return False
        try:
            self._set_queued(False)
            return self._try(mode, False)
        finally:
            self._unlock(".next")

    def _attempt(self, fd: int, operation: int) -> bool:
        try:
            self._flock(fd, operation | AT_ONCE)
        except BlockingIOError:
            return False
        return True

    # -- what differs for directories ------------------------------------------------------------------------------

    def _operation(self, mode: Mode) -> int:
        """How the main file is locked for a mode."""
        return EXCLUSIVE if mode is X else SHARED

    def _enter(self, mode: Mode, wanted: Callable[[], bool] | None) -> bool | None:
        """The main file is locked: what else the mode needs; at once, or `wanted`: waiting. None: begin again."""
        self.mode = mode
        return True

    def look(self) -> bool:
        return self.trusted

    def confirm(self, looked: Sequence[Lock]) -> None:
        if {directory.key for directory in looked}.issuperset(directories_above(self.key)):
            with suppress(OSError):  # the next holder looks again then
                pwrite(self._fd, b"\1", record.CLEAR)

    def unconfirm(self) -> None:
        """With the file locked exclusively: whoever locks it next must look at the directories above."""
        pwrite(self._fd, b"\0", record.CLEAR)

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
        """True: held, and still in the turnstile. False: no longer wanted. None: begin again."""
        if self._fd < 0:
            self._open()
        if not self._backend.native.wait(self._file(".next"), EXCLUSIVE, wanted):
            return False
        done: bool | None = False
        try:
            if not self._stand_in_line():
                return None
            self._seen = False
            done = self._wait(mode, wanted)
            if done:
                self._standing = mode
        finally:
            if not done:
                self._leave_line()
        return done

    def _wait(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        """Inside the turnstile."""
        return self._backend.native.wait(self._fd, self._operation(mode), wanted)

    def poll(self, mode: Mode, wanted: Callable[[], bool]) -> bool:
        try:
            if not wanted():
                self._leave_line()
                return False
            if self._fd < 0:
                self._open()
            if not self._in_line and not (self._attempt(self._file(".next"), EXCLUSIVE) and self._stand_in_line()):
                return False
            self._seen = False
            if not self._backend.native.look(self._fd, self._operation(mode)):
                return False
            if not self._enter(mode, None):
                self._drop()
                return False
        except OSError as error:
            self.close()
            if error.errno in BUSY:
                return False
            raise self._backend.explain(error) from error
        self._standing = mode
        return True

    def _stand_in_line(self) -> bool:
        """With the turnstile locked: say so. False, with nothing held, when somebody replaced the files."""
        if not (self._current() and self._turnstile_is_current()):
            self.close()
            return False
        if self._words is None:
            self._map()
        self._set_queued(True)
        self._in_line = True
        return True

    def _leave_line(self) -> None:
        in_line, self._in_line = self._in_line, False
        try:
            if in_line:
                self._set_queued(False)
        finally:
            self._unlock(".next")

    def complete(self) -> None:
        mode, self._standing = self._standing, None
        self.vouches = False
        if mode is None:
            return
        try:
            if self._current():
                self._head()
                self.mode = self.mode or mode
            else:
                self.close()  # the file was replaced while we waited for it
        except OSError as error:
            self.close()
            raise self._backend.explain(error) from error

    def step_out(self) -> None:
        if self._in_line:
            self._seen = False
            with suppress(OSError):  # the mark is only about order
                self._leave_line()

    # -- while held ------------------------------------------------------------------------------------------------

    def stamp(self, owner: Owner, changes: bool = False) -> int:
        last = self.token
        token = last + 1
        if not last or self._boot != record.BOOT:
            token = record.next_token(last, self._boot)
            self._boot = record.BOOT
        if self._seen and (mapped := self._mapped) is not None:
            self._seen = False
            if owner is self._told and last == self._stamped:  # the file says all of it already, but for the time
                mapped.doubles[_SINCE] = _now()
            else:
                text = record.pack_holder(owner)
                mapped.bytes[_HOLDER_AT : _HOLDER_AT + len(text)] = text
                self._told = owner
            # In this order: a token with the mark of an older boot is only taken for one that may be too low.
            mapped.words[_TOKEN] = token
            mapped.words[_BOOTED] = self._boot
            if changes:
                words = mapped.words
                if owner is self._changer and words[_CHANGED] == self._changed:
                    mapped.doubles[_CHANGED_AT] = _now()
                    words[_CHANGED] = token
                else:
                    text = record.pack_change(_ZEROS, token, owner)
                    mapped.bytes[_CHANGE : _CHANGE + len(text)] = text
                    self._changer = owner
                self._changed = token
        else:
            pwrite(self._fd, record.pack_grant(token, owner), record.GRANT)
            self._told = owner
            if changes:
                pwrite(self._fd, record.pack_change(_ZEROS, token, owner), _CHANGE)
        self.token = self._stamped = token
        return token

    def describe(self, owner: Owner) -> None:
        text = record.pack_holder(owner)
        if self._seen and (mapped := self._mapped) is not None:
            self._seen = False
            mapped.bytes[_READER : _READER + len(text)] = text
        else:
            pwrite(self._fd, text, _READER)

    def change(self, owner: Owner, numbers: tuple[int, int, int, int]) -> None:
        self._changer = None
        data = record.pack_change(numbers, self.token, owner)
        mapped = self._mapped
        if mapped is not None and self._current() and self._seen:
            mapped.bytes[_CHANGE : _CHANGE + len(data)] = data
        else:
            pwrite(self._fd, data, _CHANGE)
        self._seen = False

    def last_change(self) -> Change | None:
        return record.unpack_change(pread(self._fd, record.CHANGE_SIZE, _CHANGE))

    def contended(self) -> bool:
        self._seen = False
        return not self._in_line and self._head()

    def lost(self) -> bool:
        return self._fd < 0 or not self._current()

    def release(self, keep: Mode | None) -> None:
        if keep is None and self._fd >= 0:
            self.mode = None
            self._seen = False
            try:
                self._flock(self._fd, UNLOCK)
            except OSError:
                self.close()  # gives back as well

    def _drop(self) -> None:
        self.mode = None
        self.release(None)

    # -- the files -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        with OPENING:
            self._close(unlock=True)

    def abandon(self) -> None:
        self._close(unlock=False)  # the lock of a description that a fork shares is the parent's

    def _close(self, unlock: bool) -> None:
        fds = [fd for fd in (self._fd, *self._extra.values()) if fd >= 0]
        self._fd = -1
        mapped, self._mapped, self._words = self._mapped, None, None
        if mapped is not None:
            mapped.close()
            self._backend.maps -= 1
        self._extra.clear()
        self.mode = self._standing = None
        self._in_line = False
        for fd in fds:
            if unlock:  # a child between fork and exec may have the descriptor as well: closing would not be enough
                with suppress(OSError):
                    self._flock(fd, UNLOCK)
            self._backend.native.forget(fd)
            with suppress(OSError):
                os.close(fd)

    def _map(self) -> None:
        """Have the head in memory from now on. Only so many: each may cost a descriptor."""
        backend = self._backend
        if backend.maps < backend.most_maps:
            try:
                self._mapped = Mapped(self._fd)
            except (OSError, ValueError):
                return  # it goes without
            self._words = self._mapped.words
            backend.maps += 1

    def _current(self) -> bool:
        """Whether the path still names the file that is open; notes whether its head may be touched in memory."""
        try:
            found = _lstat(self._path)
        except FileNotFoundError:
            return False
        self._seen = found.st_size >= _WHOLE
        return found.st_ino == self._ino and found.st_dev == self._dev

    def _head(self) -> bool:
        """Whether somebody is queued; notes the token. A file that somebody emptied is begun anew."""
        words = self._words
        if words is not None and self._seen:
            word = words[_QUIET]
            if word & _MAGIC_BITS == _CALM:
                self.token = words[_TOKEN]
                self._boot = words[_BOOTED]
                return bool(word & _QUEUED_BITS)
        data = pread(self._fd, _HEAD_SIZE, _HEAD_AT)
        if len(data) < _HEAD_SIZE or not data.startswith(_MAGIC):
            self._begin()
            data = pread(self._fd, _HEAD_SIZE, _HEAD_AT).ljust(_HEAD_SIZE, b"\0")
        _, queued, self.token, self._boot = _unpack_head(data)
        return bool(queued)

    def _set_queued(self, queued: bool) -> None:
        if self._seen and (mapped := self._mapped) is not None:
            mapped.bytes[record.QUEUED] = queued
        else:
            pwrite(self._fd, b"\1" if queued else b"\0", record.QUEUED)

    def _turnstile_is_current(self) -> bool:
        try:
            return _lstat(self._path + ".next").st_ino == self._turn_ino
        except FileNotFoundError:
            return False

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
        pwrite(self._fd, _MAGIC, _HEAD_AT)

    def _file(self, suffix: str) -> int:
        fd = self._extra.get(suffix)
        if fd is None:
            with OPENING:
                fd, found = self._open_file(self._path + suffix)
                self._extra[suffix] = fd
            if suffix == ".next":
                self._turn_ino = found.st_ino
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
