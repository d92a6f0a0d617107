"""SQLite files: read, copied and replaced as what their readers see, a write-ahead log included.

A database is more than its file: what was committed last may lie in the log beside it, and programs that have it open
would go on writing to a file that was renamed away. So contents are read and put back through SQLite itself, each in
one transaction.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from . import disk

__all__ = ["check", "content", "copy", "fingerprint", "is_database", "restore"]

_MAGIC = b"SQLite format 3\0"
# In the header, what changes without a change of the content: journal mode, counters, version of the library.
_COUNTERS = ((18, 20), (24, 28), (40, 44), (92, 100))
_LOCKED = (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED
_BUSY = 30.0  # seconds to wait for somebody who has it open, without the guard


def is_database(path: str | os.PathLike[str], *, empty: bool = False) -> bool:
    """Whether a file begins as every database does. `empty`: one of no bytes, as of a database without a table, is one
    too. Raises OSError where the disk does not say."""
    try:
        if not os.stat(path).st_size:
            return empty
        if _open_here(path):
            return _is_database_to_sqlite(path)
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except FileNotFoundError:
        return False


def _is_database_to_sqlite(path: str | os.PathLike[str]) -> bool:
    try:
        with contextlib.closing(_open_to_read(path)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:  # locked, say
        raise OSError(f"{os.fspath(path)} cannot be read as a database: {error}") from error
    except sqlite3.DatabaseError:
        return False
    return True


def _open_here(path: str | os.PathLike[str]) -> bool:
    """Whether this process may have the file open: then closing it once more would drop the locks that SQLite has on
    it (POSIX), and only SQLite itself, which knows of them, may look inside."""
    if not disk.POSIX:
        return False
    wanted = os.stat(path)
    try:
        descriptors = os.listdir("/dev/fd")
    except OSError:
        return True
    for name in descriptors:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.path.samestat(os.fstat(int(name)), wanted):
                return True
    return False


def _size(path: str | os.PathLike[str], suffix: str) -> int:
    try:
        return os.stat(f"{os.fspath(path)}{suffix}").st_size
    except FileNotFoundError:
        return 0


def _logged(path: str | os.PathLike[str]) -> bool:
    """Whether part of a database may be in the files beside it: a log, or the journal of a transaction that broke."""
    return bool(_size(path, "-wal") or _size(path, "-journal"))


def _is_plain(path: Path) -> bool:
    """Whether the file may be read as any other, and is the whole of what its readers see."""
    try:
        return not is_database(path) or not (_logged(path) or _open_here(path))
    except FileNotFoundError:
        return True


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _settled(path: Path, before: tuple[int, int] | None) -> bool:
    """Whether what was read since `before` is a whole database: nobody wrote to it, and no part of it is elsewhere."""
    return _stamp(path) == before and not _logged(path)


def _open(path: str | os.PathLike[str], mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY)


def _open_to_read(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """A connection that leaves no trace: a log that is there is not written back, one that is not there does not stay.

    The journal of a transaction that broke is rolled back by the next reader, who has to be allowed to."""
    log = os.path.lexists(f"{os.fspath(path)}-wal")
    return _open(path, "ro" if log and not _size(path, "-journal") else "rw")


def content(path: Path) -> bytes | None:
    """What a reader of the file sees, as the bytes of a database in one file; of any other file, its bytes. None when
    there is none. Raises OSError."""
    if _is_plain(path):
        before = _stamp(path)
        data = disk.content(path)
        if data is None or not data.startswith(_MAGIC) or _settled(path, before):
            return data
    try:
        with contextlib.closing(_open_to_read(path)) as database:
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
    if _is_plain(source):
        before = _stamp(source)
        made = disk.snapshot(source, target)
        if not made or not is_database(source) or _settled(source, before):
            return made
        os.unlink(target)
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


def check(source: str, target: str) -> None:
    """Refuse what `restore` could not do: SQLite changes no page size of a database with a log. Raises OSError."""
    if not (is_database(source) and is_database(target)):
        return
    try:
        with (
            contextlib.closing(_open(source, "ro&immutable=1")) as origin,
            contextlib.closing(_open(target, "rw")) as database,
        ):
            (new,), (old,) = (one.execute("PRAGMA page_size").fetchone() for one in (origin, database))
            (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    except sqlite3.Error as error:
        raise OSError(f"the database {target} cannot be replaced: {error}") from error
    if mode == "wal" and new != old:
        raise OSError(
            errno.EINVAL,
            f"is a database in WAL mode with another page size ({old}) than its new content ({new}), which SQLite "
            "cannot put there. Make them equal (PRAGMA page_size, then VACUUM), or leave WAL mode (PRAGMA "
            "journal_mode = DELETE)",
            target,
        )


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
            database.execute("PRAGMA synchronous = EXTRA")  # or its journal may come back after the source has gone
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
