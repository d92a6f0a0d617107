"""A lock file's head in memory: reading and writing a word of it takes no system call.

Words are the machine's own stores, so a process that is killed leaves an old token or a new one, never half of one.
Whoever uses it has just seen that the file still has its page: one that somebody emptied must not be touched.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from types import ModuleType

__all__ = ["Mapped"]

SIZE = 1024

mmap: ModuleType | None
try:
    import mmap
except ImportError:
    mmap = None

# From Python 3.13 on a mapping can do without a second descriptor.
_OPTIONS = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Mapped:
    """The first `SIZE` bytes of an open file. Raises OSError or ValueError where they cannot be had."""

    __slots__ = ("_map", "bytes", "doubles", "words")

    def __init__(self, fd: int) -> None:
        if mmap is None or sys.byteorder != "little":
            raise OSError("no mapping")
        self._map = mmap.mmap(fd, SIZE, **_OPTIONS)
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")
        self.doubles = self.bytes.cast("d")

    def close(self) -> None:
        with suppress(BufferError):
            self.words.release()
            self.doubles.release()
            self.bytes.release()
            self._map.close()
