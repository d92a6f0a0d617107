"""Locks between the processes of one machine: one small file per key, locked by the kernel, freed by it on death.

A key's lock is the `flock` of its file: shared or exclusive. Waiters stand in a second file, the turnstile: whoever
wants to wait locks it, marks the first file as queued, waits for that one, clears the mark and lets the next one into
the turnstile. A newcomer that finds the mark goes to the turnstile as well, so nobody passes a waiter. The mark is only
about order; it never decides who holds. Directories have more modes: see `directory.py`.

Lock files are never removed. One that somebody else removes or replaces is noticed before a grant counts: the path
must still name the file that was locked.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

from ..exceptions import ConfigError
from . import record
from .contract import Holder, Mode, is_directory
from .directory import DirectoryFile
from .filesystem import MAPPABLE, NETWORK, kind_of
from .forks import OPENING
from .keyfile import FLAGS, KeyFile
from .native import AT_ONCE, BUSY, EXCLUSIVE, SHARED, UNLOCK, UNSUPPORTED, Native, native, pread
from .table import LockTable

__all__ = ["FileBackend", "FileTable", "table_for"]


class FileTable(LockTable):
    """The one table of this process for a lock folder; closed when its last user closes it."""

    def __init__(self, folder: str, backend: FileBackend) -> None:
        super().__init__(backend)
        self._folder = folder
        self._users = 1

    def close(self) -> None:
        with _sharing:
            self._users -= 1
            if self._users > 0:
                return
            if _tables.get(self._folder) is self:
                del _tables[self._folder]
        super().close()


_sharing = threading.Lock()
_tables: dict[str, FileTable] = {}


def table_for(folder: Path, *, use: Native | None = None) -> FileTable:
    """The lock table of this process for the lock folder `folder`, made (0700) when it is missing.

    The same object for every spelling of the same folder; each caller closes it once. `use` replaces the platform's
    native lock when the table is made. Raises ConfigError when the locks of the folder could not be trusted.
    """
    backend = FileBackend(folder, use)
    name = os.path.realpath(folder)
    with _sharing:
        table = _tables.get(name)
        if table is None:
            table = _tables[name] = FileTable(name, backend)
        else:
            table._users += 1
        return table


class FileBackend:
    """Lock files in `folder`, which is made (0700) when it is missing. `use` replaces the platform's native lock."""

    def __init__(self, folder: Path, use: Native | None = None) -> None:
        self.folder = folder
        self.native = native() if use is None else use
        self.maps = 0  # lock files that are mapped into memory now
        self.check()
        kind = kind_of(folder)
        if kind in NETWORK:
            raise ConfigError(
                f"{folder} is on a network file system ({kind}), whose file locks cannot be relied on: they may be one "
                "machine's only, or be lost with the connection. Put the root on a disk of this machine.",
                file=str(folder),
            )
        self.most_maps = _descriptors() // 8 if kind in MAPPABLE else 0

    def check(self) -> None:
        """Make the folder; raise ConfigError when its locks could not be trusted."""
        folder = self.folder
        try:
            _make(folder)
            found = folder.lstat()
        except OSError as error:
            raise self.explain(error) from error
        if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no directory"
            raise ConfigError(f"the lock folder {folder} is {kind}: remove it, it is made anew", file=str(folder))
        if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"the lock folder {folder} belongs to user {found.st_uid}, this process is user {os.geteuid()}: "
                "remove it, or run as its owner",
                file=str(folder),
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"the lock folder {folder} is not writable: give this user access", file=str(folder))

    def explain(self, error: OSError) -> ConfigError | OSError:
        """What to raise for an error of the file system: a ConfigError unless it may pass by itself."""
        if error.errno in BUSY or error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            return error
        place = error.filename or str(self.folder)
        if error.errno == errno.ELOOP:
            text = f"{place} is a symbolic link, which a lock file must not be: remove it"
        elif error.errno in UNSUPPORTED:
            text = (
                f"the file system of {self.folder} has no file locks ({error.strerror}): put the root on a local disk, "
                "or configure locks that work across machines"
            )
        else:
            text = f"lock files cannot be used in {self.folder}: {error.strerror} ({place})"
        return ConfigError(text, file=str(place))

    def open(self, key: str) -> KeyFile:
        """The lock of a key; its file is opened at first use."""
        return DirectoryFile(self, key) if is_directory(key) else KeyFile(self, key)

    def path(self, key: str) -> str:
        """Where the lock file of a key lies."""
        return str(self.folder / record.file_name(key))

    def holders(self, key: str) -> tuple[Holder, ...]:
        """Who holds a key: what its file says, if somebody has it locked. For a directory, what is held beneath it."""
        found = self._probe(Path(self.path(key)))
        if found is not None:
            return (found,)
        if not is_directory(key):
            return ()
        return tuple(holder for holder in self.scan(()) if holder.key.startswith(key))

    def scan(self, skip: Iterable[str]) -> tuple[Holder, ...]:
        """Everything that some process holds SHARED or EXCLUSIVE."""
        names = {record.file_name(key) for key in skip}
        paths = sorted(path for path in self.files() if path.name not in names)
        return tuple(found for path in paths if (found := self._probe(path)) is not None)

    def files(self) -> list[Path]:
        """The lock files that there are: one for each key that was ever locked."""
        try:
            return [path for path in self.folder.iterdir() if not path.suffix]
        except FileNotFoundError:
            return []

    def key_of(self, path: Path) -> str | None:
        """Whose lock file this is; None when it does not say so (yet)."""
        with OPENING:
            try:
                fd = os.open(path, FLAGS)
            except OSError:
                return None
            try:
                return record.read_key(pread(fd, 1 << 16, 0))
            finally:
                os.close(fd)

    def _probe(self, path: Path) -> Holder | None:
        """Ask the kernel, on a descriptor of our own, whether a file is locked: the dead hold nothing."""
        held: Mode | None = None
        with OPENING:
            try:
                fd = os.open(path, FLAGS)
            except OSError:
                return None
            try:
                data = pread(fd, 1 << 16, 0)
                key = record.read_key(data)
                if key is None:
                    return None
                if not self._free(fd, SHARED):
                    held = Mode.EXCLUSIVE
                elif is_directory(key):
                    held = None if self._unlocked(path.with_name(path.name + ".shared")) else Mode.SHARED
                elif not self._free(fd, EXCLUSIVE):
                    held = Mode.SHARED
            finally:
                os.close(fd)
        return None if held is None else record.unpack(data, key, held)

    def _unlocked(self, path: Path) -> bool:
        try:
            fd = os.open(path, FLAGS)
        except OSError:
            return True
        try:
            return self._free(fd, EXCLUSIVE)
        finally:
            os.close(fd)

    def _free(self, fd: int, operation: int) -> bool:
        """Whether a lock could be had; given back at once."""
        try:
            self.native.flock(fd, operation | AT_ONCE)
        except BlockingIOError:
            return False
        self.native.flock(fd, UNLOCK)
        return True


def _descriptors() -> int:
    """How many this process may have; a guess where there is no telling."""
    try:
        import resource
    except ImportError:
        return 1024
    return max(0, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16))


def _make(folder: Path) -> None:
    """`mkdir -p` where every directory made is 0700."""
    missing = []
    place = folder
    while not os.path.lexists(place):
        missing.append(place)
        place = place.parent
    for place in reversed(missing):
        place.mkdir(0o700, exist_ok=True)
