"""A directory's lock file, and the mark that says that the directory has been locked as such.

Whoever works beneath a directory holds it by intention, far more often than anybody locks the directory itself. So
until the first time somebody does, an intention is held on trust, with no lock at all: its holder locks what lies
beneath, *then* looks for the mark, the file `.dir` beside the lock file. Who locks the directory itself makes that
file, *then* waits for each lock that lies beneath to be free once. Either the look comes after the mark was made: the
claim gives everything back and takes the intention by a lock (`BeginAgain`); or it comes before: then what lies
beneath is locked, and waited for. A look is noted in the lock file beneath (`record.CLEAR`), so that the next holder
can do without; who waits for that lock wipes the note.

After that the mark says `DRAINED`, for good: no intention is or will be held on trust, and

    INTENT_SHARED     main shared
    INTENT_EXCLUSIVE  main shared, `.intent` shared, taken while `.shared` is locked exclusively: nobody holds SHARED
    SHARED            main shared, `.shared` shared, taken while `.intent` is locked exclusively: no writer beneath
    EXCLUSIVE         main exclusive

excludes exactly what it must: one of two that take INTENT_EXCLUSIVE and SHARED at the same time finds the other's
exclusive lock. Waiting for these steps is done inside the turnstile, so two processes never wait for each other here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .contract import Lock, Mode
from .forks import OPENING
from .keyfile import FLAGS, KeyFile
from .native import EXCLUSIVE, SHARED, UNLOCK, pread

if TYPE_CHECKING:
    from .file import FileBackend

__all__ = ["DirectoryFile"]

DRAINED = b"\1"
# So many lock files are looked at without waiting, under the mutex: some milliseconds, once in a directory's life.
AT_ONCE_FILES = 256
IS, IX, S, X = Mode
_access, _exists = os.access, os.F_OK


class DirectoryFile(KeyFile):
    """The lock of a directory between processes (`contract.Lock`)."""

    __slots__ = ("_beneath", "_mark")

    def __init__(self, backend: FileBackend, key: str) -> None:
        super().__init__(backend, key)
        self._mark = self._path + ".dir"
        self._beneath: KeyFile | None = None  # the one that is waited for now: a fork must find its descriptors
        # `access` asks for the real user: where that is another one, its "no" would not mean that there is no mark.
        self.trusted = not hasattr(os, "geteuid") or os.geteuid() == os.getuid()

    def confirm(self, looked: Sequence[Lock]) -> None:
        pass  # a directory is locked as such seldom enough: it never vouches

    def look(self) -> bool:
        if self.trusted and _access(self._mark, _exists):
            self.trusted = False
        return self.trusted

    def try_acquire(self, mode: Mode) -> bool:
        try:
            if self.mode is not None:
                # In addition to what is held.
                self._seen = False
                return self.mode is IS and not self._head() and self._join_group(mode)
            if not mode.intent and not self._drained(None):
                return False
        except OSError as error:
            raise self._backend.explain(error) from error
        return self._try_general(mode)

    def poll(self, mode: Mode, wanted: Callable[[], bool]) -> bool:
        try:
            if not mode.intent and wanted() and not self._drained(None):
                return False
        except OSError as error:
            raise self._backend.explain(error) from error
        return super().poll(mode, wanted)

    def _acquire(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        if not mode.intent and not self._drained(wanted):
            return False
        return super()._acquire(mode, wanted)

    def _wait(self, mode: Mode, wanted: Callable[[], bool]) -> bool | None:
        done = super()._wait(mode, wanted)
        if done:
            done = self._enter(mode, wanted)
            if not done:
                self._drop()
        return done

    def _enter(self, mode: Mode, wanted: Callable[[], bool] | None) -> bool | None:
        if not mode.intent and not self._says_drained():
            return None if wanted is not None else False  # somebody removed the mark meanwhile
        self.mode = X if mode is X else IS
        if mode is X or mode is IS:
            return True
        if wanted is None:
            return self._join_group(mode)
        wait = self._backend.native.wait
        own, other = _group(mode)
        if not wait(self._file(other), EXCLUSIVE, wanted):
            return False
        try:
            if not wait(self._file(own), SHARED, wanted):
                return False
        finally:
            self._unlock(other)
        self.mode = mode
        return True

    def _join_group(self, mode: Mode) -> bool:
        """From INTENT_SHARED to INTENT_EXCLUSIVE or SHARED, if nobody holds the other one."""
        if mode is X:
            return False
        own, other = _group(mode)
        if not self._attempt(self._file(other), EXCLUSIVE):
            return False
        try:
            joined = (mode.intent or self._says_drained()) and self._attempt(self._file(own), SHARED)
        finally:
            self._unlock(other)
        if joined:
            self.mode = mode
        return joined

    def lost(self) -> bool:
        return super().lost() or (self.mode in (S, X) and not self._says_drained())

    def release(self, keep: Mode | None) -> None:
        mode = self.mode
        if keep is None:
            super().release(None)
            try:
                for suffix in (".shared", ".intent"):
                    self._unlock(suffix)
            except OSError:
                self.close()  # gives back as well
        elif keep is IS and mode is not None and mode not in (IS, X):
            self._unlock(_group(mode)[0])
            self.mode = IS

    # -- the mark --------------------------------------------------------------------------------------------------

    def _says_drained(self) -> bool:
        with OPENING:
            try:
                fd = os.open(self._mark, FLAGS)
            except FileNotFoundError:
                return False
            try:
                return pread(fd, 1, 0) == DRAINED
            finally:
                os.close(fd)

    def _drained(self, wanted: Callable[[], bool] | None) -> bool:
        """Make the mark, and wait for every lock beneath to be free once: at once, or as long as it is `wanted`."""
        self.trusted = False
        if self._says_drained():
            return True
        with OPENING:
            os.close(self._open_file(self._mark)[0])
        files = self._backend.files()
        if wanted is None and len(files) > AT_ONCE_FILES:
            return False
        if not all(self._free_once(path, wanted) for path in files):
            return False
        with OPENING:
            fd = self._open_file(self._mark)[0]
            try:
                os.write(fd, DRAINED)
            finally:
                os.close(fd)
        return True

    def _free_once(self, path: Path, wanted: Callable[[], bool] | None) -> bool:
        key = self._backend.key_of(path)
        if key is None:
            return self._unlocked_once(path, wanted)
        if key == self.key or not key.startswith(self.key):
            return True
        file = self._beneath = KeyFile(self._backend, key)  # of a directory, too: its main file is all that counts
        try:
            while True:
                if not (file.try_acquire(X) if wanted is None else file.acquire(X, wanted)):
                    return False
                file.complete()
                if file.mode is X:  # else it was replaced meanwhile
                    file.unconfirm()
                    return True
        finally:
            file.close()
            self._beneath = None

    def abandon(self) -> None:
        super().abandon()
        if self._beneath is not None:
            self._beneath.abandon()

    def _unlocked_once(self, path: Path, wanted: Callable[[], bool] | None) -> bool:
        """A file that does not say its key yet: somebody is just making it, and may lock it in a moment."""
        try:
            with OPENING:
                fd = self._extra["?"] = os.open(path, FLAGS)
        except OSError:
            return True
        try:
            if wanted is None:
                return self._attempt(fd, EXCLUSIVE)
            return self._backend.native.wait(fd, EXCLUSIVE, wanted)
        finally:
            with OPENING, suppress(OSError):
                self._flock(fd, UNLOCK)
                self._backend.native.forget(fd)
                if self._extra.pop("?", None) is not None:
                    os.close(fd)


def _group(mode: Mode) -> tuple[str, str]:
    """The file to lock shared, and the one to find free meanwhile."""
    return (".shared", ".intent") if mode is S else (".intent", ".shared")
