"""What version a resource has.

A file's version is a hash of its content, so that a touched but equal file is equal; the stat signature only saves
hashing again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from pathlib import Path

__all__ = ["ABSENT", "Signature", "Versions", "hash_bytes", "signature"]

ABSENT = "absent"
Signature = tuple[int, int, int, int]

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
        self._cache: OrderedDict[str, tuple[Signature, str]] = OrderedDict()
        self._mutex = threading.Lock()

    def of(self, path: Path) -> str:
        """The version of a file: a hash, or `ABSENT`. Raises OSError when it cannot be read."""
        before = signature(path)
        if before is None:
            return ABSENT
        at = str(path)
        with self._mutex:
            cached = self._cache.get(at)
        if cached is not None and cached[0] == before:
            return cached[1]
        started = time.time_ns()
        digest = hashlib.blake2b(digest_size=16)
        try:
            with open(path, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise IsADirectoryError(f"{path} is not a regular file")
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except FileNotFoundError:
            return ABSENT
        version = digest.hexdigest()
        if signature(path) == before and started - max(before[0], before[1]) > _RACY:
            with self._mutex:
                self._cache[at] = before, version
                self._cache.move_to_end(at)
                while len(self._cache) > self._limit:
                    self._cache.popitem(last=False)
        return version
