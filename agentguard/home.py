"""`<home>/.agentguard/`: the folder on disk that all guards of one tree share, and what lies in it.

locks/       lock files (never unlinked)           journal/        commit records
stage/       copies that running calls work on     shards/         what agents wrote and no join has merged yet
conflicts/   kept sides of refused work            ledger.sqlite3  which shards were merged
versions/    contents behind versions that agents have read: for diffs, and bases of merges
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from .commit import UNFINISHED, Journal
from .exceptions import ConfigError
from .ledger import Ledger
from .locks import LockTable, table_for
from .resources import FOLDER, home_of, homes_above

__all__ = ["Home", "home_at", "make_private"]


def make_private(folder: Path) -> None:
    """Make a directory (and missing parents of it) for this user alone. Raises OSError."""
    for part in reversed([folder, *folder.parents]):
        try:
            part.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError:
            if not part.is_dir():
                raise


class Home:
    """One `.agentguard/` folder. One object for each folder in a process; use `home_at`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder = base / FOLDER
        self._open()
        self.locks: LockTable = table_for(self.folder / "locks")
        self.ledger = Ledger(self.folder / "ledger.sqlite3")
        self.journal = Journal(self.folder / "journal", root=base, marks=self.ledger.add)
        self.above = [
            Journal(upper / FOLDER / "journal", root=upper, marks=Ledger(upper / FOLDER / "ledger.sqlite3").add)
            for upper in homes_above(base)
        ]
        self._stage: tuple[int, Path, int] | None = None  # (pid, folder, descriptor that keeps it alive)
        self._owned = _Owned(self.locks)
        _owned.append((weakref.ref(self), self._owned))
        self._mutex = threading.Lock()
        self._calls = 0

    def _open(self) -> None:
        try:
            if self.folder.is_symlink():
                raise ConfigError(f"{self.folder} is a symbolic link; the guard's folder must be a real one")
            made = not self.folder.exists()
            make_private(self.folder)
            if made:
                (self.folder / ".gitignore").write_text("*\n")
            found = self.folder.stat()
            if hasattr(os, "geteuid") and os.geteuid() not in (0, found.st_uid):
                raise ConfigError(
                    f"{self.folder} belongs to user {found.st_uid}, not to you ({os.geteuid()}): choose a root of your "
                    "own, or let its owner remove it"
                )
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable", str(self.folder))
        except OSError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the guard cannot keep its locks under {self.base}: {error.strerror or error}. "
                f"Make the folder writable for this user, or choose another root.",
                file=str(self.folder),
            ) from error

    @property
    def suspect(self) -> bool:
        """Whether a commit of this very process broke off here. Those of others show by `Ticket.foreign`."""
        folders = {journal.folder for journal in (self.journal, *self.above)}
        return any(os.path.dirname(record) in folders for record in [*UNFINISHED])

    def recover_pending(self, files: Sequence[Path]) -> None:
        """Finish a commit that was killed and names one of these files, whose locks the caller was just granted.

        Raises `InDoubt` when it cannot be finished: the files must not be used then."""
        for journal in (self.journal, *self.above):
            if journal.pending():
                journal.recover(only=files)
        for record in [*UNFINISHED]:
            if not os.path.lexists(record):
                UNFINISHED.discard(record)

    def stage_folder(self) -> Path:
        """A new private folder for the copies of one call."""
        with self._mutex:
            if self._stage is None or self._stage[0] != os.getpid():
                self._stage = self._new_stage()
            self._calls += 1
            folder = self._stage[1] / str(self._calls)
        try:
            folder.mkdir(mode=0o700)
        except FileNotFoundError:  # somebody emptied the folder by hand
            make_private(folder)
        return folder

    def _new_stage(self) -> tuple[int, Path, int]:
        folder = self.folder / "stage" / f"{os.getpid()}-{secrets.token_hex(4)}"
        make_private(folder)
        # The lock on this file dies with the process: whoever gets it may remove the folder.
        descriptor = os.open(folder / ".alive", os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        _try_lock(descriptor)
        _descriptors.add(descriptor)
        self._owned.stage = folder, descriptor
        return os.getpid(), folder, descriptor

    def sweep(self) -> list[Path]:
        """Remove the copies of calls whose process is gone; returns their folders. Never touches a live one."""
        removed: list[Path] = []
        try:
            folders = [entry for entry in (self.folder / "stage").iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return removed
        for folder in folders:
            if self._stage is not None and folder == self._stage[1]:
                continue
            if self._abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        return removed

    @staticmethod
    def _abandoned(folder: Path) -> bool:
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(folder / ".alive", flags)
        except OSError:
            # Killed between making the folder and its lock file, or just being made: only an old one is abandoned.
            try:
                return time.time() - folder.stat().st_mtime > 60
            except OSError:
                return False
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return False
            return _try_lock(descriptor)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    from filelock import lock_descriptor  # importing it costs more than the rest of this module

    return lock_descriptor(descriptor, blocking=False)


class _Owned:
    """What a home must give back when nobody uses it any more."""

    def __init__(self, locks: LockTable) -> None:
        self.locks = locks
        self.stage: tuple[Path, int] | None = None

    def give_back(self) -> None:
        self.locks.close()
        if self.stage is not None and self.stage[1] in _descriptors:  # else a fork closed it already
            _descriptors.discard(self.stage[1])
            os.close(self.stage[1])
            shutil.rmtree(self.stage[0], ignore_errors=True)


def _give_back() -> None:
    # Not in a finalizer: that may run anywhere, in the middle of the lock table too.
    for entry in [entry for entry in _owned if entry[0]() is None]:
        _owned.remove(entry)
        entry[1].give_back()


_owned: list[tuple[weakref.ref[Home], _Owned]] = []
_homes: weakref.WeakValueDictionary[str, Home] = weakref.WeakValueDictionary()
_descriptors: set[int] = set()
_mutex = threading.Lock()


def home_at(folder: Path) -> Home:
    """The home of a folder: the nearest `.agentguard/` at or above it, made here when there is none.

    Raises `ConfigError` when it cannot be made or used.
    """
    with _mutex:
        _give_back()
        base = home_of(folder)
        home = _homes.get(str(base))
        new = home is None or not home.folder.is_dir()
        if home is None or new:
            home = _homes[str(base)] = Home(base)
            home.sweep()
    if new:
        with contextlib.suppress(OSError):  # what it meets again, the next call on these files will say
            home.journal.recover()  # what a killed process left; it waits for nobody
    return home


def _after_fork() -> None:
    global _mutex
    _mutex = threading.Lock()
    for home in list(_homes.values()):
        home._mutex = threading.Lock()
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
