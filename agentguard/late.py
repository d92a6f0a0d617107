"""What is written to a shard after a join has merged it: refused where it can be, and never lost.

A call that ends too late is refused before it commits. But a thread that a tool left behind may still have a file of
the shard open, and nobody can take that from it: so a merged file is removed only if nothing was written to it since it
was read, and nobody has it open for writing. Otherwise it is moved: to `conflicts/` with what was written, or, while
there is only somebody who still could, to `late/`, through which every join looks again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from . import disk
from .budget import clip, fit
from .conflicts import keep_files
from .exceptions import StaleWrite
from .home import Home, make_private
from .versions import DATABASES, Signature, signature

if TYPE_CHECKING:
    from .entries import End

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Left", "Waiting", "files_of", "put_aside", "state_of", "sweep", "tidy", "too_late", "waiting"]

_NOTE = "late.json"
_DROPPED = "dropped-"
_OLD = 60.0  # seconds: what lies there for longer without a note was left by a killed process

State = tuple[Signature | None, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """The content of a merged entry. `read`: its state when it was read for the merge; None: nobody knows."""

    resource: str
    agent: str
    run: str
    end: End
    ours: Path
    read: State | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A merged file that somebody still has open for writing. Nothing was written to it yet."""

    resource: str
    agent: str
    run: str
    joined: str
    folder: str


def files_of(file: Path) -> list[Path]:
    """All files that one content consists of: of an SQLite database also its log."""
    if file.suffix.lower() not in DATABASES:
        return [file]
    return [file, *(file.with_name(file.name + end) for end in ("-wal", "-journal"))]


def state_of(file: Path) -> State:
    """What `stat` says of a content, for `Left.read`. Taken before it is read."""
    return tuple(_plain(signature(one)) for one in files_of(file))


def _plain(found: Signature | None) -> Signature | None:
    # Not the change time, which a rename sets; and an empty log is none.
    return (found[0], 0, found[2], found[3]) if found is not None and found[2] else None


def _written(file: Path) -> bool:
    """Whether somebody has a file open for writing: the kernel grants a read lease only if nobody has. Linux only."""
    if fcntl is None or sys.platform != "linux":
        return False
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | disk.NOFOLLOW | disk.FLAGS)
    except OSError:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # what a breaker of the lease would send; ignored by default
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # a file system without leases, or a file of another user
        return False
    finally:
        os.close(fd)
    return False


def too_late(resource: str, tool: str, agent: str, run: str, end: End, kept: Path | None) -> StaleWrite:
    """The error for a call that began before its shard was closed, and ends after it."""
    name = clip(resource)
    where = f"what it made is kept in {kept}" if kept is not None else "what it wrote into the shard went with it"
    return StaleWrite(
        fit(
            f"Conflict: {clip(tool, 16)} of agent {clip(agent, 16)!r} comes too late for {name}: that agent's shard in "
            f"run {clip(run, 48)!r} was {end}. Nothing was applied; {where}. Read {name} again, then retry."
        ),
        resource=resource,
        agent=agent,
        tool=tool,
        reason="its shard was closed",
        read_version=None,
        current_version=None,
        changed_by=None,
        changed_at=end.at,
        diff="",
        run=end.run or run,
        folder=str(kept) if kept is not None else None,
    )


def put_aside(home: Home, folder: Path, *, dropped: bool = False) -> Path | None:
    """Rename a shard's folder away, so that it is gone at once; returns where. None: it was not there."""
    late = home.folder / "late"
    aside = late / f"{_DROPPED if dropped else ''}{secrets.token_hex(8)}"
    for _ in range(2):
        try:
            os.rename(folder, aside)
        except FileNotFoundError:
            make_private(late)
        else:
            return aside
    return None


def tidy(home: Home, folder: Path, aside: Path | None, left: Sequence[Left], others: Iterable[Path]) -> None:
    """Remove merged contents, and `others`; keep what is not safe to remove.

    `folder`: where the shard was, `aside`: where all of it is now (None: there, since it has further entries)."""

    before = len(str(folder))

    def now(file: Path) -> Path:
        return Path(f"{aside}{str(file)[before:]}") if aside is not None else file

    for one in left:
        _settle(home, one, now(one.ours))
    for file in others:
        _remove(now(file))
    if aside is not None:
        try:
            for name in ("base", "ours", ""):
                os.rmdir(aside / name)
        except OSError:  # files in folders, or what nobody has put there
            shutil.rmtree(aside, ignore_errors=True)


def _settle(home: Home, one: Left, ours: Path) -> None:
    files = [file for file in files_of(ours) if os.path.lexists(file)]
    if one.read is not None and state_of(ours) != one.read:
        _keep(home, one.resource, one.agent, one.run, str(one.end), files)
    elif any(map(_written, files)):
        place = home.folder / "late" / secrets.token_hex(8)
        make_private(place)
        for file in files:
            os.replace(file, place / file.name)
        note = {
            "resource": one.resource,
            "agent": one.agent,
            "run": one.run,
            "joined": str(one.end),
            "file": ours.name,
            "state": state_of(place / ours.name),
        }
        (place / _NOTE).write_bytes(orjson.dumps(note))
    else:
        for file in files:
            _remove(file)


def _keep(home: Home, resource: str, agent: str, run: str, joined: str, files: Sequence[Path]) -> None:
    keep_files(
        home,
        files,
        f"{resource}: agent {agent!r} of run {run!r} went on writing after its shard was {joined}. What was merged is "
        "in the resource; what the agent wrote in the end is here.",
    )


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # it was merged: what cannot be removed (open, on Windows) does no harm
        file.unlink(missing_ok=True)


def waiting(home: Home) -> list[Waiting]:
    """Merged files that somebody still has open, or has changed since the last look. Changes nothing."""
    return [
        Waiting(note["resource"], note["agent"], note["run"], note["joined"], str(place))
        for place, note in _notes(home)
        if note is not None
    ]


def sweep(home: Home) -> None:
    """Look again through `late/`: remove what nobody has open any more, keep in `conflicts/` what was written to."""
    for place, note in _notes(home):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if note is None:
                _sweep_unfinished(home, place)
                continue
            file = place / note["file"]
            files = [one for one in files_of(file) if os.path.lexists(one)]
            if [*map(_listed, state_of(file))] != note["state"]:
                _keep(home, note["resource"], note["agent"], note["run"], note["joined"], files)
            elif any(map(_written, files)):
                continue
            shutil.rmtree(place, ignore_errors=True)


def _sweep_unfinished(home: Home, place: Path) -> None:
    """Of a process that was killed in `tidy`, if it is not at it right now."""
    moved = place.stat().st_ctime
    if time.time() - moved < _OLD:
        return
    if not place.name.startswith(_DROPPED):
        files = [file for file in (place / "ours").rglob("*") if stat.S_ISREG(file.lstat().st_mode)]
        if any(map(_written, files)):
            return
        newer = [file for file in files if file.stat().st_mtime > moved]
        if newer:
            _keep(home, ", ".join(file.name for file in newer), "?", "?", "joined", newer)
    shutil.rmtree(place, ignore_errors=True)


def _notes(home: Home) -> list[tuple[Path, dict[str, Any] | None]]:
    late = home.folder / "late"
    found: list[tuple[Path, dict[str, Any] | None]] = []
    try:
        names = sorted(os.listdir(late))
    except FileNotFoundError:
        return found
    for name in names:
        try:
            note = orjson.loads((late / name / _NOTE).read_bytes())
            whole = {"resource", "agent", "run", "joined", "file", "state"} <= note.keys()
            found.append((late / name, note if whole and Path(note["file"]).name == note["file"] else None))
        except (OSError, ValueError, AttributeError, TypeError):
            found.append((late / name, None))
    return found


def _listed(found: Signature | None) -> list[int] | None:
    return [*found] if found is not None else None
