"""What version a resource has, and which one each agent last read.

A file's version is a hash of its content, so that a touched but equal file is equal; the stat signature only saves
hashing again. The idea is optimistic concurrency control (Kung, Robinson 1981), checked under the exclusive lock.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ABSENT", "Change", "Knowledge", "Known", "Signature", "Versions", "diff", "signature"]

ABSENT = "absent"
Signature = tuple[int, int, int, int]

_KEEP = 32 * 1024  # bytes of text kept at a read, so that a refusal can say what changed
_RACY = 20_000_000  # ns: a file changed this recently may change again without a new time stamp


def signature(path: Path) -> Signature | None:
    """What `stat` says of a file's identity and age; None when there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def hash_bytes(data: bytes) -> str:
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


@dataclass(frozen=True, slots=True)
class Known:
    """What one agent last read: the version, when, and the text if it was small."""

    version: str
    at: float  # seconds since the epoch
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Who last changed a resource, as far as this process knows."""

    agent: str
    tool: str
    at: float
    version: str | None = None


class Knowledge:
    """Per (run, agent, key) what was read; per key who wrote last. Thread-safe; bounded, the oldest goes first."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._read: OrderedDict[tuple[str, str, str], Known] = OrderedDict()
        self._written: OrderedDict[str, tuple[str, str, float, str | None]] = OrderedDict()
        self._mutex = threading.Lock()

    @property
    def anything(self) -> bool:
        """Whether anybody has read anything."""
        return bool(self._read)

    def get(self, run: str, agent: str, key: str) -> Known | None:
        return self._read.get((run, agent, key)) if self._read else None

    def read(self, run: str, agent: str, key: str, known: Known) -> None:
        with self._mutex:
            self._read[run, agent, key] = known
            self._read.move_to_end((run, agent, key))
            while len(self._read) > self._limit:
                self._read.popitem(last=False)

    def wrote(self, key: str, agent: str, tool: str, at: float, version: str | None = None) -> None:
        """Note who changed a resource; the fields of a `Change`."""
        with self._mutex:
            self._written[key] = agent, tool, at, version
            self._written.move_to_end(key)
            while len(self._written) > self._limit:
                self._written.popitem(last=False)

    def last_change(self, key: str) -> Change | None:
        found = self._written.get(key)
        return Change(*found) if found is not None else None


def small_text(path: Path) -> str | None:
    """The content of a small text file, for the diff of a later refusal."""
    try:
        if path.stat().st_size > _KEEP:
            return None
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def diff(old: str | None, new: str | None, *, limit: int = 500) -> str:
    """A short unified diff without headers, cut to `limit` characters; empty when either side is not known."""
    if old is None or new is None:
        return ""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))[2:]
    text = "\n".join(line[:160] for line in lines if not line.startswith("@@"))
    return text if len(text) <= limit else text[: limit - 2] + " …"
