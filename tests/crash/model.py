"""What POSIX allows a power loss to leave: a model in pure Python, without privileges.

`Recorder` writes down the calls that a piece of code makes; `images` enumerates the disks that a power loss after each
of them may leave. The model is weak, as in Pillai et al. (OSDI 2014): content reaches the disk by fsync of the file,
or else not at all, in part, as zeros, or whole; a name reaches it by fsync of its folder, or else any subset of the
names may. A rename within a folder is one step; one between two folders is two, in either order.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

Image = dict[str, bytes | None]  # None: a folder
Operation = tuple[Any, ...]
FOLDER = -1
FREE = 6  # so many of the latest unflushed names vary freely; older ones go together

_CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "close")


class Recorder:
    """Beneath `root`, starting from what is there."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.start = read(root)
        self.operations: list[Operation] = []
        self._inodes = {name: number for number, name in enumerate(self.start)}
        self._next = len(self._inodes)
        self._open: dict[int, tuple[str, int]] = {}
        self._real = {name: getattr(os, name) for name in _CALLS}

    def __enter__(self) -> Recorder:
        for name in _CALLS:
            setattr(os, name, getattr(self, f"_{name}_"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def _name(self, path: Any) -> str | None:
        absolute = os.path.abspath(os.fspath(path))
        return os.path.relpath(absolute, self.root) if absolute.startswith(self.root) else None

    def _open_(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        fd: int = self._real["open"](path, flags, mode, **options)
        name = self._name(path)
        if name is None:
            return fd
        if name not in self._inodes and not os.path.isdir(path):
            self._inodes[name] = self._next
            self.operations.append(("create", name, self._next))
            self._next += 1
        elif flags & os.O_TRUNC:
            self.operations.append(("truncate", self._inodes[name]))
        self._open[fd] = (name, self._inodes.get(name, FOLDER))
        return fd

    def _write_(self, fd: int, data: Any) -> int:
        count: int = self._real["write"](fd, data)
        if fd in self._open:
            self.operations.append(("write", self._open[fd][1], bytes(data[:count])))
        return count

    def _fsync_(self, fd: int) -> None:
        if fd in self._open:
            name, inode = self._open[fd]
            folder = inode == FOLDER or self.start.get(name, b"") is None
            self.operations.append(("flush folder", name) if folder else ("flush", inode))

    def _close_(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._real["close"](fd)

    def _replace_(self, source: Any, target: Any) -> None:
        self._real["replace"](source, target)
        old, new = self._name(source), self._name(target)
        assert old is not None
        assert new is not None
        self._inodes[new] = self._inodes.pop(old)
        self.operations.append(("rename", old, new))

    _rename_ = _replace_

    def _unlink_(self, path: Any) -> None:
        self._real["unlink"](path)
        name = self._name(path)
        assert name is not None
        del self._inodes[name]
        self.operations.append(("unlink", name))

    def _rmdir_(self, path: Any) -> None:
        self._real["rmdir"](path)
        self.operations.append(("unlink", self._name(path)))

    def _mkdir_(self, path: Any, mode: int = 0o777) -> None:
        self._real["mkdir"](path, mode)
        self.operations.append(("mkdir", self._name(path)))


def images(start: Image, operations: list[Operation]) -> Iterator[tuple[int, Image]]:
    """(calls made before the power loss, a disk that it may leave); the same disk may come several times."""
    disk = _Disk(start)
    for done in range(len(operations) + 1):
        if done:
            disk.do(operations[done - 1])
        for image in disk.images():
            yield done, image


class _Disk:
    def __init__(self, start: Image) -> None:
        self.names: dict[str, int] = {}
        self.now: dict[int, bytes] = {}
        self.flushed: dict[int, bytes] = {}
        for number, (name, data) in enumerate(start.items()):
            self.names[name] = FOLDER if data is None else number
            if data is not None:
                self.now[number] = self.flushed[number] = data
        self.durable = dict(self.names)
        self.waiting: list[tuple[str, dict[str, int | None]]] = []  # (folder, changes of its names)

    def do(self, operation: Operation) -> None:
        kind, *rest = operation
        if kind == "create":
            name, inode = rest
            self.now[inode] = self.flushed[inode] = b""
            self._change({name: inode})
        elif kind == "write":
            self.now[rest[0]] += rest[1]
        elif kind == "truncate":
            self.now[rest[0]] = b""
        elif kind == "flush":
            self.flushed[rest[0]] = self.now[rest[0]]
        elif kind == "flush folder":
            for folder, changes in self.waiting:
                if folder == rest[0]:
                    _apply(self.durable, changes)
            self.waiting = [entry for entry in self.waiting if entry[0] != rest[0]]
        elif kind == "rename":
            old, new = rest
            inode = self.names[old]
            if _folder(old) == _folder(new):
                self._change({old: None, new: inode})
            else:
                self._change({new: inode})
                self._change({old: None})
        elif kind == "mkdir":
            self._change({rest[0]: FOLDER})
        else:
            self._change({rest[0]: None})

    def _change(self, changes: dict[str, int | None]) -> None:
        _apply(self.names, changes)
        self.waiting.append((_folder(next(iter(changes))), changes))

    def images(self) -> Iterator[Image]:
        older, free = self.waiting[:-FREE], self.waiting[-FREE:]
        for early in [[], older] if older else [[]]:
            for count in range(len(free) + 1):
                for chosen in itertools.combinations(free, count):
                    names = dict(self.durable)
                    for _, changes in [*early, *chosen]:
                        _apply(names, changes)
                    yield from self._filled(names)

    def _filled(self, names: dict[str, int]) -> Iterator[Image]:
        kept = {name: inode for name, inode in names.items() if _reachable(name, names)}
        open_ends = any(inode != FOLDER and self.now[inode] != self.flushed[inode] for inode in kept.values())
        for how in ("flushed", "whole", "part", "zeros") if open_ends else ("flushed",):
            yield {name: None if inode == FOLDER else self._content(inode, how) for name, inode in kept.items()}

    def _content(self, inode: int, how: str) -> bytes:
        now, flushed = self.now[inode], self.flushed[inode]
        if how == "flushed" or now == flushed:
            return flushed
        return {"whole": now, "part": now[: len(now) // 2], "zeros": bytes(len(now))}[how]


def _apply(names: dict[str, int], changes: dict[str, int | None]) -> None:
    for name, inode in changes.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _folder(name: str) -> str:
    return os.path.dirname(name) or "."


def _reachable(name: str, names: dict[str, int]) -> bool:
    folder = os.path.dirname(name)
    return not folder or (names.get(folder) == FOLDER and _reachable(folder, names))


def read(root: Path) -> Image:
    found = sorted(root.rglob("*"))
    return {str(file.relative_to(root)): None if file.is_dir() else file.read_bytes() for file in found}


def lay(root: Path, image: Image) -> None:
    """Make `root` hold exactly the image."""
    for file in sorted(root.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    for name, data in sorted(image.items()):
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)
