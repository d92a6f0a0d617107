"""SQLite files: read, copied and replaced as what their readers see, a write-ahead log included.

A database is more than its file: what was committed last may lie in the log beside it, and programs that have it open
would go on writing to a file that was renamed away. So contents are read and put back through SQLite itself, each in
one transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from . import disk

__all__ = ["content", "copy", "fingerprint", "is_database", "restore"]

_MAGIC = b"SQLite format 3\0"
# In the header, what changes without a change of the content: journal mode, counters, version of the library.
_COUNTERS = ((18, 20), (24, 28), (40, 44), (92, 100))
_LOCKED = (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED
_BUSY = 30.0  # seconds to wait for somebody who has it open, without the guard


def is_database(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as every database does."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
    except OSError:
        return False
    return head == _MAGIC


def _logged(path: str | os.PathLike[str]) -> bool:
    """Whether part of a database may be in the files beside it: a log, or the journal of a transaction that broke."""
    for suffix in ("-wal", "-journal"):
        with contextlib.suppress(OSError):
            if os.stat(f"{os.fspath(path)}{suffix}").st_size:
                return True
    return False


def _open(path: str | os.PathLike[str], mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY)


def content(path: Path) -> bytes | None:
    """What a reader of the file sees, as the bytes of a database in one file; of any other file, its bytes. None when
    there is none. Raises OSError."""
    if not (_logged(path) and is_database(path)):
        return disk.content(path)
    try:
        with contextlib.closing(_open(path, "ro")) as database:
            if sys.version_info >= (3, 11):
                return database.serialize()
            with tempfile.TemporaryDirectory() as folder:
                other = Path(folder) / "copy"
                with contextlib.closing(sqlite3.connect(other)) as target:
                    database.backup(target)
                return other.read_bytes()
    except sqlite3.Error as error:
        raise OSError(f"it cannot be read as a database: {error}") from error


def copy(source: Path, target: Path) -> bool:
    """`disk.snapshot`, of what a reader of the file sees."""
    if not (_logged(source) and is_database(source)):
        return disk.snapshot(source, target)
    data = content(source)
    assert data is not None
    fd = disk.create(os.fspath(target))
    try:
        disk.write_all(fd, data)
        if disk.POSIX:
            os.fchmod(fd, os.stat(source).st_mode & 0o777)
    finally:
        os.close(fd)
    return True


def restore(source: str, target: str) -> None:
    """Give `target`, which is there, the content of `source` (a database in one file that nobody uses), in one
    transaction of SQLite: those who have it open see it before or after. May be done any number of times. Raises
    OSError."""
    deadline = time.monotonic() + _BUSY

    def patience(status: int, remaining: int, total: int) -> None:
        if status in _LOCKED and time.monotonic() > deadline:  # Python itself would try for ever
            raise sqlite3.OperationalError("somebody has had it locked for too long")

    try:
        # Nobody else has the source, and it is one file: so no log is made for it.
        with (
            contextlib.closing(_open(source, "ro&immutable=1")) as origin,
            contextlib.closing(_open(target, "rw")) as database,
        ):
            database.execute("PRAGMA synchronous = FULL")
            origin.backup(database, progress=patience, sleep=0.01)
    except sqlite3.Error as error:
        raise OSError(f"the database {target} cannot be replaced: {error}") from error


def fingerprint(path: str | os.PathLike[str], algorithm: str = "sha256") -> str | None:
    """A hash of what a reader of the file sees: the same before and after a log was written back; None when there is
    no such file. Raises OSError."""
    data = content(Path(path))
    if data is None:
        return None
    if data.startswith(_MAGIC):
        changed = bytearray(data)
        for start, end in _COUNTERS:
            changed[start:end] = bytes(end - start)
        data = bytes(changed)
    if algorithm == "sha256":
        return hashlib.sha256(data).hexdigest()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
