"""What has been merged already: a set of ids on disk, beside the content that they stand for.

| coordinates | threads and processes on one machine (sqlite3's own file locks)                                       |
| connections | one per operation, one operation at a time in a process; none is open across a fork                   |
| durability  | an id that `add` returned for survives kill -9 and power loss                                         |
| growth      | 34 bytes an id, for ever: a process may still hold its shard. Asking and adding go by the index        |

A rollback journal instead of WAL: WAL needs shared memory, which network file systems do not give.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from . import disk
from .exceptions import ConfigError

__all__ = ["Ledger"]

VERSION = 1
BUSY = 30.0  # seconds for other processes' operations, which take milliseconds
BATCH = 500  # below sqlite3's limit of variables in every build
CODES = {5: errno.EBUSY, 6: errno.EBUSY, 8: errno.EROFS, 13: errno.ENOSPC, 14: errno.EACCES}


class _Turns:
    """A lock that is handed on: who releases it does not get it again before somebody who waits (a fork, say)."""

    def __init__(self) -> None:
        self._next, self._taken = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:  # whoever waits for the other lock keeps this one meanwhile
            self._taken.acquire()

    def __exit__(self, *_: object) -> None:
        self._taken.release()

    def stop(self) -> None:
        self._next.acquire()
        self._taken.acquire()

    def go_on(self) -> None:
        self._taken.release()
        self._next.release()


# Closing any descriptor of a database drops the locks that other connections of the same process have on it (POSIX),
# and a fork in the middle of an operation would hand the child sqlite3's memory of locks that it does not have.
_one_at_a_time = _Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_one_at_a_time.stop,
        after_in_parent=_one_at_a_time.go_on,
        after_in_child=_one_at_a_time.go_on,
    )


class Ledger:
    """A durable set of strings in one sqlite3 file (0600), made when the first one is added."""

    def __init__(self, file: Path) -> None:
        """`file` is the database; its folder is made (0700) with it."""
        self._file = os.path.abspath(file)

    def add(self, ids: Collection[str]) -> None:
        """Remember the ids, all or none; known ones are left as they are. Returns when they are on the medium.

        Raises OSError when nothing was added: errno EBUSY after 30 seconds of other processes' work, ENOSPC, EROFS,
        EACCES, else EIO; ConfigError when a newer version of AgentGuard wrote the file. Blocks for the flushes.
        """
        if not ids:
            return
        now = time.time()
        with _one_at_a_time, self._connected(create=True) as database:
            if not _version(database, self._file):
                database.execute("CREATE TABLE merged (id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID")
                database.execute(f"PRAGMA user_version = {VERSION}")
            database.executemany("INSERT OR IGNORE INTO merged (id, at) VALUES (?, ?)", [(id, now) for id in ids])

    def contains(self, ids: Collection[str]) -> set[str]:
        """Those of the ids that were added. Raises like `add`."""
        wanted, known = list(ids), set[str]()
        if not wanted or not os.path.lexists(self._file):
            return known
        with _one_at_a_time, self._connected(create=False) as database:
            if not _version(database, self._file):
                return known
            for start in range(0, len(wanted), BATCH):
                part = wanted[start : start + BATCH]
                marks = ", ".join("?" * len(part))
                rows = database.execute(f"SELECT id FROM merged WHERE id IN ({marks})", part)  # noqa: S608
                known.update(id for (id,) in rows)
        return known

    @contextlib.contextmanager
    def _connected(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end, rolled back by an exception."""
        if create:
            self._create()
        if os.path.islink(self._file):
            raise OSError(errno.ELOOP, "the ledger is a symbolic link; remove it", self._file)
        try:
            database = sqlite3.connect(self._file, timeout=BUSY, isolation_level=None)
            try:
                database.execute("PRAGMA synchronous = EXTRA")  # flushes the folder too, after the journal is deleted
                database.execute("BEGIN IMMEDIATE" if create else "BEGIN")
                yield database
                database.execute("COMMIT")
            finally:
                database.close()  # without a COMMIT: a rollback
        except sqlite3.Error as error:
            code = CODES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, errno.EIO)  # no code before Python 3.11
            text = f"the ledger of merged shards cannot be used ({error}); without it a repeated join would merge twice"
            raise OSError(code, text, self._file) from error

    def _create(self) -> None:
        """An empty, private file: sqlite3 would make one that follows the umask."""
        if os.path.lexists(self._file):
            return
        folder = os.path.dirname(self._file)
        disk.make_folders(folder, 0o700, [], durable=True)
        with contextlib.suppress(FileExistsError):  # made by another process just now
            os.close(disk.create(self._file))
        disk.flush_folders([folder])


def _version(database: sqlite3.Connection, file: str) -> int:
    """0 for a file that nothing was ever added to."""
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise ConfigError(
            f"{file} has format {version}, written by a newer AgentGuard; this one knows {VERSION}: upgrade it",
            file=file,
        )
    return version
