"""Contents by their version: what a refusal compares with, and what a stale write is merged over.

Small texts are kept in memory. What must outlive the process, or is a base for merging, lies in `versions/` under the
guard's folder, one file for each version, named by it. Both are bounded, the oldest go first: without a content there
is no diff, and a write that would have been merged is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

from .versions import ABSENT, hash_bytes

__all__ = ["LARGEST", "SMALL", "Contents"]

SMALL = 32 * 1024  # bytes: up to here a content is kept for the sake of a diff
LARGEST = 32 * 1024 * 1024  # bytes: up to here it is kept for merging
_IN_MEMORY = 8 * 1024 * 1024
_ON_DISK = 256 * 1024 * 1024
_FILES = 2_000
_SWEEP = 100  # every so many new files the folder is looked through

_VERSION = re.compile(r"[0-9a-f]{32}")


class Contents:
    """See above. `folder` is made at the first use. Thread-safe, and shared by any number of processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._stored: OrderedDict[str, None] = OrderedDict()  # versions that were just seen on disk
        self._written = 0
        self._mutex = threading.Lock()

    def has(self, version: str, *, lasting: bool) -> bool:
        """Whether there is nothing left to `keep`."""
        return version == ABSENT or version in (self._stored if lasting else self._small)

    def keep(self, version: str, data: bytes, *, lasting: bool) -> None:
        """Remember a content, if it is that of the version. A disk that refuses is no error: see above."""
        if len(data) > LARGEST or hash_bytes(data) != version:
            return
        if len(data) <= SMALL:
            with self._mutex:
                if version not in self._small:
                    self._small[version] = data
                    self._bytes += len(data)
                    while self._bytes > _IN_MEMORY:
                        self._bytes -= len(self._small.popitem(last=False)[1])
        if lasting:
            with contextlib.suppress(OSError):
                self._store(version, data)

    def get(self, version: str) -> bytes | None:
        """The content of a version; None when it is not there. Versions are data: nothing else is opened."""
        found = self._small.get(version)
        if found is not None:
            return found
        if not _VERSION.fullmatch(version):
            return None
        try:
            data = (self._folder / version).read_bytes()
        except OSError:
            return None
        return data if hash_bytes(data) == version else None

    def text(self, version: str) -> str | None:
        """The content of a version if it is a small text."""
        data = b"" if version == ABSENT else self.get(version)
        try:
            return data.decode("utf-8") if data is not None and len(data) <= SMALL else None
        except UnicodeDecodeError:
            return None

    def _store(self, version: str, data: bytes) -> None:
        file = self._folder / version
        with contextlib.suppress(FileNotFoundError):
            os.utime(file)  # in use: not among the oldest
            self._seen(version)
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        draft = self._folder / f".{version}-{secrets.token_hex(4)}"
        try:
            with open(draft, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
                out.write(data)
            os.replace(draft, file)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        self._seen(version)
        if self._written % _SWEEP == 0:
            self._sweep()
        self._written += 1

    def _seen(self, version: str) -> None:
        with self._mutex:
            self._stored[version] = None
            while len(self._stored) > _FILES // 4:
                self._stored.popitem(last=False)

    def _sweep(self) -> None:
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                files.append((found.st_mtime, found.st_size, entry.path))
        room = _ON_DISK
        for place, (_, size, path) in enumerate(sorted(files, reverse=True)):
            room -= size
            if place >= _FILES or room < 0:
                with contextlib.suppress(OSError):
                    os.unlink(path)
