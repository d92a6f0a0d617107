"""The right to work on one commit: a locked file beside its record.

| coordinates | the committer and whoever recovers the commit: threads and processes on one machine                  |
| owned by    | the process that opened it, from any of its threads                                                  |
| fork        | the child closes its copies and holds nothing; the parent's latches stay                             |
| death       | the system drops the lock, whatever the death; the file stays for the recovery                       |
| unlinked    | only under the lock and after the record: no two can hold the latch while there is a record          |

Before the commit point the file lists what to take back if its owner dies: one JSON line per temporary file, written
before that file is made, with its name and where it was moved from (null: it is a copy). The list is not flushed: a
power loss before the commit point may leave temporary files behind, never a wrong content.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from typing import Literal

from . import disk, records

RECORD, DRAFT, LOCK = ".commit", ".draft", ".lock"

_held: dict[str, int] = {}  # id -> descriptor, of the commits and recoveries at work in this process
_held_lock = threading.Lock()


def _after_fork_in_child() -> None:
    # As long as the child has the descriptors, the locks survive the parent: its death would not be seen.
    _held_lock.release()
    for fd in _held.values():
        disk.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_held_lock.acquire, after_in_parent=_held_lock.release, after_in_child=_after_fork_in_child
    )


class Latch:
    """See above. Made by `begin` or `take`; ended by `finish`, `take_back` (the file goes) or `release` (it stays)."""

    def __init__(self, folder: str, root: str, id: str, fd: int) -> None:
        self.id = id
        self.record = os.path.join(folder, id + RECORD)
        self.draft = os.path.join(folder, id + DRAFT)
        self._path = os.path.join(folder, id + LOCK)
        self._root = root
        self._fd: int | None = fd
        self._notes: list[tuple[str, str | None]] | None = None  # None: they are in the file

    @classmethod
    def begin(cls, folder: str, root: str) -> Latch:
        """A new commit's latch. Raises OSError when the folder or its file system does not allow it."""
        while True:
            latch = cls._try(folder, root, secrets.token_hex(8), new=True)
            if isinstance(latch, Latch):  # else a sweep took it for a dead one's, before it was locked
                latch._notes = []
                return latch

    @classmethod
    def take(cls, folder: str, root: str, id: str, *, wait: float) -> Latch | None:
        """The latch of an existing commit; None when somebody else has it still after `wait` seconds."""
        deadline = time.monotonic() + wait
        while True:
            latch = cls._try(folder, root, id, new=False)
            if isinstance(latch, Latch):
                return latch
            if latch == "taken":
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.005)

    @classmethod
    def _try(cls, folder: str, root: str, id: str, *, new: bool) -> Latch | Literal["taken", "gone"]:
        """ "gone" is a file that was unlinked between its opening and its locking."""
        from filelock import lock_descriptor  # importing it costs more than the rest of this module

        path = os.path.join(folder, id + LOCK)
        with _held_lock:
            if id in _held:  # where flock is made of per-process locks (NFS), a second one would be granted
                return "taken"
            flags = os.O_RDWR | os.O_CREAT | disk.NOFOLLOW | disk.FLAGS | (os.O_EXCL if new else 0)
            fd = os.open(path, flags, 0o600)
            _held[id] = fd
        latch = cls(folder, root, id, fd)
        try:
            outcome = "taken" if not lock_descriptor(fd, blocking=False) else "mine" if _names(path, fd) else "gone"
        except BaseException:
            if new:
                latch.finish()
            latch.release()
            raise
        if outcome == "mine":
            return latch
        latch.release()
        return "taken" if outcome == "taken" else "gone"

    @property
    def decided(self) -> bool:
        """Whether the record is there; where the disk does not say, yes: then nothing may be taken back."""
        try:
            os.lstat(self.record)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def temp(self, target: str) -> str:
        """A fresh temporary name beside the target: in one folder, one rename replaces it."""
        return os.path.join(os.path.dirname(target), disk.temp_name(self.id, len(self._notes or ())))

    def note(self, temp: str, source: str | None) -> None:
        """Say that `temp` is going to be made, by moving `source` or (None) by copying."""
        assert self._fd is not None and self._notes is not None
        line = json.dumps([records.to_name(temp, self._root), source and records.to_name(source, self._root)])
        disk.write_all(self._fd, line.encode("ascii") + b"\n")
        self._notes.append((temp, source))

    def take_back(self) -> None:
        """Undo what was noted, newest first, and end the latch. What cannot be undone now is left for a sweep."""
        try:
            for temp, source in reversed(self._read_notes() if self._notes is None else self._notes):
                _take_back(temp, source)
            disk.remove(self.draft)
        except OSError:
            self.release()
        else:
            self.finish()

    def _read_notes(self) -> list[tuple[str, str | None]]:
        """What a dead owner noted, as far as it came; a name that is not this commit's own is no note."""
        assert self._fd is not None
        found: list[tuple[str, str | None]] = []
        for line in disk.read_all(self._fd).splitlines():
            try:
                temp, source = json.loads(line)
                temp = records.to_path(temp, self._root)
                source = None if source is None else records.to_path(source, self._root)
            except (ValueError, TypeError):
                continue
            if records.is_temp(os.path.basename(temp), self.id):
                found.append((temp, source))
        return found

    def finish(self) -> None:
        """End the latch, its file too. If that stays, a sweep finds nothing to take back and removes it."""
        if not disk.POSIX:
            self.release()  # an open file cannot be unlinked there
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self.release()

    def release(self) -> None:
        """End the latch, keep its file. Idempotent; never blocks for long, never raises."""
        with _held_lock:
            fd, self._fd = self._fd, None
            if fd is None or _held.get(self.id) != fd:  # a fork's child, where it was closed already
                return
            del _held[self.id]
            disk.close(fd)


def _names(path: str, fd: int) -> bool:
    """Whether the path is a name of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _take_back(temp: str, source: str | None) -> None:
    if source is not None and not os.path.lexists(source):
        try:
            os.rename(temp, source)
            return
        except FileNotFoundError:  # it was never moved, or the folder that it came from is gone
            pass
    disk.remove(temp)
