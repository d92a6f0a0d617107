"""`append` for files too big to read: what `agentguard.merge` does with bytes, in constant memory.

Every side is compared with the base block by block, and the result is put together by the kernel: the first side as a
whole, then what the others have after the base. Where the result is no such concatenation nothing is done, and the
caller merges in memory, which knows about conflicts.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import disk

__all__ = ["LARGE", "Concatenated", "concatenate", "size"]

LARGE = 4 << 20  # bytes of all files together: below it, reading them costs less than opening them again
_BLOCK = 1 << 20
_MOST = 64  # files open at a time


@dataclass(frozen=True, slots=True)
class Concatenated:
    """A merged log: its size in bytes, and how many records each agent added."""

    size: int
    changes: Mapping[str, int]


def size(file: Path) -> int | None:
    """The size of a regular file; None for anything else."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def concatenate(
    base: Path | None, sides: Mapping[str, Path], target: Path, *, copies: Sequence[Path] = (), durable: bool = False
) -> Concatenated | None:
    """Write what the strategy `append` makes of these files (base None: there was none) to `target`, a new file.

    None, with no target, when a side does not begin with the base, or one of `copies` is not equal to it. `durable`
    flushes the content (not the name): here, while files are still being compared, it costs next to nothing. Raises
    OSError.
    """
    length = os.stat(base).st_size if base is not None else 0
    sizes = {agent: os.stat(file).st_size for agent, file in sides.items()}
    if min(sizes.values(), default=length) < length or any(os.stat(copy).st_size != length for copy in copies):
        return None
    compared = [*copies, *sides.values()] if base is not None else []
    if base is not None:  # as long as the base: then it is equal to it, and its agent changed nothing
        sides = {agent: file for agent, file in sides.items() if sizes[agent] > length}
    out = disk.create(os.fspath(target), 0o666)
    try:
        try:
            # At the same time: a copy made for nothing, where somebody rewrote the log, is the rare case.
            with ThreadPoolExecutor(1, "agentguard-logs") as pool:
                equal = pool.submit(_begin_with, base, compared)
                additions = {agent: _Addition.of(file, length) for agent, file in sides.items()}
                expected = _write(out, base, length, [addition for addition in additions.values() if addition.size])
                if durable:
                    disk.flush(out)
            # Another size: a file has changed under our hands.
            done = equal.result() and os.fstat(out).st_size == expected
        finally:
            os.close(out)
    except BaseException:
        _discard(target)
        raise
    if not done:
        _discard(target)
        return None
    return Concatenated(expected, {agent: addition.records for agent, addition in additions.items()})


def _discard(target: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(target)


# --- reading ---------------------------------------------------------------------------------------------------------


def _begin_with(base: Path | None, files: Sequence[Path]) -> bool:
    return base is None or all(
        _all_begin_with(base, files[start : start + _MOST]) for start in range(0, len(files), _MOST)
    )


def _all_begin_with(base: Path, files: Sequence[Path]) -> bool:
    ours, theirs = bytearray(_BLOCK), bytearray(_BLOCK)
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(open(base, "rb", buffering=0))
        others = [stack.enter_context(open(file, "rb", buffering=0)) for file in files]
        while count := _fill(origin, ours):
            if count < _BLOCK:
                ours, theirs = ours[:count], bytearray(count)
            for other in others:
                if _fill(other, theirs) < count or ours != theirs:
                    return False
    return True


def _fill(file: io.FileIO, buffer: bytearray) -> int:
    """How many bytes of the buffer could be filled: all, but at the end of the file."""
    count = file.readinto(buffer) or 0
    while 0 < count < len(buffer):
        with memoryview(buffer) as view:
            more = file.readinto(view[count:]) or 0
        if not more:
            break
        count += more
    return count


@dataclass(frozen=True, slots=True)
class _Addition:
    """What a file has after the base: its first two bytes, its last one, and `merge.text.records_in`."""

    file: Path
    start: int
    size: int
    head: bytes
    last: bytes
    records: int

    @classmethod
    def of(cls, file: Path, start: int) -> _Addition:
        size = newlines = blank = 0  # `blank`: newlines behind the last text so far
        head = last = b""
        begun = False
        with open(file, "rb", buffering=0) as opened:
            opened.seek(start)
            while block := opened.read(_BLOCK):
                if len(head) < 2:
                    head = (head + block)[:2]
                last = block[-1:]
                size += len(block)
                lead = block.lstrip(b"\r\n") if begun is False else block
                begun = begun or bool(lead)
                text = lead.rstrip(b"\r\n")
                if text:
                    newlines += blank + text.count(b"\n")
                    blank = 0
                if begun:
                    blank += lead.count(b"\n", len(text))
        return cls(file, start, size, head, last, newlines + 1)


def _crlf(file: Path) -> bool:
    """Whether the first line ends in CR LF."""
    last = b""
    with open(file, "rb", buffering=0) as opened:
        while block := opened.read(_BLOCK):
            at = block.find(b"\n")
            if at >= 0:
                return (last + block[:at]).endswith(b"\r")
            last = block[-1:]
    return False


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(out: int, base: Path | None, length: int, additions: Sequence[_Addition]) -> int:
    """Write base and additions; returns the size that the result must have."""
    from .merge.text import seam

    first = additions[0].file if additions else base
    if first is not None:
        with _reading(first) as source:
            disk.copy_content(source, out)  # a clone, where the file system has such
    if not additions:
        return length
    total = length + additions[0].size
    os.lseek(out, total, os.SEEK_SET)
    origin = _last_byte(base, length)
    before = additions[0].last
    for addition in additions[1:]:
        missing, surplus = seam(origin, before, addition.head)
        if missing:
            newline = b"\r\n" if any(map(_crlf, _all(base, additions))) else b"\n"
            disk.write_all(out, newline)
            total += len(newline)
        rest = addition.size - surplus
        if not rest:
            continue
        with _reading(addition.file) as source:
            os.lseek(source, addition.start + surplus, os.SEEK_SET)
            disk.copy_rest(source, out, rest)
        total += rest
        before = addition.last
    return total


def _all(base: Path | None, additions: Iterable[_Addition]) -> list[Path]:
    return [*([base] if base is not None else []), *(addition.file for addition in additions)]


def _last_byte(file: Path | None, length: int) -> bytes:
    if file is None or not length:
        return b""
    with open(file, "rb", buffering=0) as opened:
        opened.seek(length - 1)
        return opened.read(1)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[int]:
    fd = os.open(file, os.O_RDONLY | disk.FLAGS)
    try:
        yield fd
    finally:
        disk.close(fd)
