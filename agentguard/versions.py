"""What version a resource has.

A file's version is a hash of its content, so that a touched but equal file is equal; the stat signature only saves
hashing again. Of an SQLite database it is what a reader of it would see: the main file together with its write-ahead
log, whether or not the one has been written back into the other.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from pathlib import Path

__all__ = ["ABSENT", "DATABASES", "Signature", "Versions", "hash_bytes", "signature"]

ABSENT = "absent"
Signature = tuple[int, int, int, int]

DATABASES = (".sqlite", ".sqlite3", ".db", ".db3")  # suffixes

_RACY = 20_000_000  # ns: a file changed this recently may change again without a new time stamp


def signature(path: Path) -> Signature | None:
    """What `stat` says of a file's identity and age; None when there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def hash_bytes(data: bytes) -> str:
    """The version of a file with this content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Versions:
    """Content versions of files, cached by stat signature. Thread-safe; bounded."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._cache: OrderedDict[str, tuple[tuple[Signature | None, Signature | None], str]] = OrderedDict()
        self._mutex = threading.Lock()

    def of(self, path: Path) -> str:
        """The version of a file: a hash, or `ABSENT`. Raises OSError when it cannot be read."""
        log = f"{path}-wal" if path.suffix.lower() in DATABASES else None
        before = _signatures(path, log)
        if before[0] is None:
            return ABSENT
        at = str(path)
        with self._mutex:
            cached = self._cache.get(at)
        if cached is not None and cached[0] == before:
            return cached[1]
        started = time.time_ns()
        try:
            version = _hash_file(path, sqlite=log is not None)
        except FileNotFoundError:
            return ABSENT
        latest = max(time for found in before if found is not None for time in found[:2])
        if _signatures(path, log) == before and started - latest > _RACY:
            with self._mutex:
                self._cache[at] = before, version
                self._cache.move_to_end(at)
                while len(self._cache) > self._limit:
                    self._cache.popitem(last=False)
        return version


def _signatures(path: Path, log: str | None) -> tuple[Signature | None, Signature | None]:
    return signature(path), signature(Path(log)) if log is not None else None


def _hash_file(path: Path, *, sqlite: bool) -> str:
    if sqlite:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IsADirectoryError(f"{path} is not a regular file")
        from .databases import fingerprint  # it imports sqlite3

        found = fingerprint(path, "blake2b")  # not opened here: to close it again would drop SQLite's locks
        if found is None:
            raise FileNotFoundError(path)
        return found
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise IsADirectoryError(f"{path} is not a regular file")
        digest = hashlib.blake2b(digest_size=16)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
