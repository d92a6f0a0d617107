"""Commit records: what they say, how they are written down, and what recovery decides from what it finds.

Pure: nothing here touches the disk. A record is one line with the sha256 of the rest, then JSON. It names files
relative to the home folder where they lie beneath it, so that a volume that was mounted elsewhere recovers as well.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

from .disk import temp_name

VERSION = 1


@dataclass(frozen=True, slots=True)
class Content:
    """What was found in a file: sha256 as hex, and its modification time (nanoseconds, the file system's clock)."""

    sha256: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a commit. `temp` and `sha256` are the new content, None for a deletion; `before` the old one."""

    target: str
    temp: str | None
    sha256: str | None
    before: Content | None


@dataclass(frozen=True, slots=True)
class Record:
    """A decided commit. `since` is seconds since the epoch; `marks` become durable together with the content."""

    id: str
    since: float
    entries: tuple[Entry, ...]
    marks: tuple[str, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(entry.target for entry in self.entries)


def to_name(path: str, root: str) -> str:
    """`path` relative to `root` where it lies beneath it, else as it is."""
    inside = path.startswith(root.rstrip(os.sep) + os.sep)
    return os.path.relpath(path, root).replace(os.sep, "/") if inside else path


def to_path(name: str, root: str) -> str:
    return os.path.normpath(os.path.join(root, name))


def encode(record: Record, root: str) -> bytes:
    body = json.dumps(
        {
            "version": VERSION,
            "id": record.id,
            "since": record.since,
            "entries": [_entry_out(entry, root) for entry in record.entries],
            "marks": record.marks,
        }
    ).encode("ascii")
    return hashlib.sha256(body).hexdigest().encode("ascii") + b"\n" + body


def _entry_out(entry: Entry, root: str) -> dict[str, Any]:
    before = entry.before
    return {
        "target": to_name(entry.target, root),
        # A bare name: whatever stands in a record, the prepared file lies beside its target.
        "temp": os.path.basename(entry.temp) if entry.temp else None,
        "sha256": entry.sha256,
        "before": [before.sha256, before.mtime_ns] if before else None,
    }


def decode(data: bytes, root: str) -> Record:
    """The record; ValueError when it is damaged or from a version that this one does not understand."""
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode("ascii") != checksum:
        raise ValueError("the record is damaged (its checksum does not match)")
    raw = json.loads(body)
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        raise ValueError(f"the record is of another version of AgentGuard than this one, which reads format {VERSION}")
    try:
        entries = tuple(_entry_in(entry, raw["id"], root) for entry in raw["entries"])
        return Record(raw["id"], float(raw["since"]), entries, tuple(raw["marks"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"the record lacks what format {VERSION} has: {error}") from error


def _entry_in(raw: dict[str, Any], id: str, root: str) -> Entry:
    target = to_path(raw["target"], root)
    temp = raw["temp"]
    if temp is not None:
        if not is_temp(temp, id):
            raise ValueError(f"the record names a prepared file that is not its own: {temp!r}")
        temp = os.path.join(os.path.dirname(target), temp)
    before = Content(*raw["before"]) if raw["before"] else None
    return Entry(target, temp, raw["sha256"], before)


def is_temp(name: str, id: str) -> bool:
    """Whether a bare file name is one that transaction `id` gives to its temporary files."""
    index = name.rpartition("-")[2].partition(".")[0]
    return index.isdecimal() and name == temp_name(id, int(index))


class Step(enum.Enum):
    """What recovery does with one file."""

    REPLACE = "replace"
    DELETE = "delete"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why recovery must not touch a record, as a text for people."""

    text: str


def decide(entry: Entry, prepared: str | None, found: Content | None) -> Step | Doubt:
    """What is still to be done for one file; the same answer however often it was already done.

    `prepared` is the sha256 of the prepared file, None when it is gone; `found` is what the target holds now, None
    when it does not exist. Never guesses: content that neither the commit nor its predecessor explains is a Doubt.
    """
    if entry.temp is None:
        if found is None:
            return Step.NOTHING
        return Doubt(_foreign(entry)) if _is_foreign(entry, found) else Step.DELETE
    if prepared is None:
        if found is not None and found.sha256 == entry.sha256:
            return Step.NOTHING
        state = "is missing" if found is None else "holds other content than was committed"
        return Doubt(f"{entry.target} {state}, and the prepared file {entry.temp} is gone")
    if prepared != entry.sha256:
        return Doubt(f"the prepared file {entry.temp} is damaged: it is not what was committed to {entry.target}")
    if found is not None and found.sha256 != entry.sha256 and _is_foreign(entry, found):
        return Doubt(_foreign(entry))
    return Step.REPLACE


def _is_foreign(entry: Entry, found: Content) -> bool:
    """Whether somebody else wrote the target after the commit was decided.

    Content that differs from the recorded one but is not newer is what a power loss left of an earlier write that
    nobody had flushed; a newer time without a difference is a copy or a touch. Neither is somebody's work.
    """
    before = entry.before
    if before is None:
        return True
    return found.sha256 != before.sha256 and found.mtime_ns > before.mtime_ns


def _foreign(entry: Entry) -> str:
    wish = f"replacement by {entry.temp}" if entry.temp else "deletion"
    return f"{entry.target} was changed from outside after its {wish} had been decided"
