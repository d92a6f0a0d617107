"""One shard and its entries, and what is checked of them before they are used: everything on disk is data."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson

from .exceptions import AgentGuardError
from .knowledge import Memory
from .late import files_of
from .resources import FOLDER
from .versions import Signature

__all__ = [
    "RECORD",
    "End",
    "Entry",
    "Identity",
    "Shard",
    "check_reference",
    "damaged",
    "decoded",
    "encoded",
    "fingerprint",
    "misplaced",
    "ordered",
    "unsound",
]

RECORD = "shard.json"
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")
_REFERENCE = re.compile(r"[A-Za-z0-9._~-]+/[A-Za-z0-9._~-]+/[A-Za-z0-9._~-]+")
_EDGE = 1 << 16  # bytes at either end of a base that its fingerprint covers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a call.

    `agent`: shown in every message, and whose reads are remembered. `run`: what a join belongs to. `shard`: the unit of
    isolation in shard mode (None: nobody will join, so calls are serialized). `order`: decides the order of merging.
    `parent`: the reference of a shard whose content this one starts from (a later node of the same branch). `memory`:
    where the agent's reads are remembered (None: in this process, by `run` and `agent`).
    """

    agent: str
    run: str
    step: str = "0"
    shard: str | None = None
    order: tuple[str, ...] = ()
    parent: str | None = None
    memory: Memory | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True, eq=False)
class Entry:
    """One resource in one shard."""

    id: str
    resource: str  # the name, relative to the root
    relative: str  # the file's place, relative to the home
    base: Path | None  # None: it did not exist
    ours: Path
    forked: float  # seconds since the epoch
    inherited: str | None = None  # the entry id that this one was forked from, instead of from the file
    print: str | None = None  # of the base as it was copied; see `fingerprint`
    gone: str | None = None  # the outermost folder that its agent removed with it, relative to the home


@dataclass(frozen=True, slots=True)
class End:
    """Why nobody may write to a shard any more: it was "closed", "joined" or "dropped". `run`: whose join it was."""

    how: str
    at: float  # seconds since the epoch
    run: str | None = None

    def __str__(self) -> str:
        by = f" by the join of run {self.run!r}" if self.run else ""
        return f"{self.how} at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.at))}{by}"


@dataclass(eq=False)
class Shard:
    """One agent's isolated writes. Made at the first one."""

    identity: Identity
    folder: Path
    reference: str  # `<run>/<step>/<agent>~<id>`, as kept in checkpoints
    entries: dict[str, Entry] = field(default_factory=dict)  # by key
    end: End | None = None
    created: float = 0.0
    seen: Signature | None = None  # of the record that `entries` are
    doubtful: bool = False  # a join of it broke off: the ledger may have entries of it
    mutex: Any = field(default_factory=threading.RLock, repr=False)
    record: Path = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.record = self.folder / RECORD

    @property
    def closed(self) -> bool:
        return self.end is not None


def encoded(name: str) -> str:
    """A directory name for any text: readable start, and a hash that keeps different names apart."""
    plain = _SAFE.sub("-", name).strip(".-")[:40] or "x"
    if plain == name:
        return plain
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def ordered(shards: Iterable[Shard]) -> list[Shard]:
    """Merge order: by the identity's `order`, else by agent; the reference decides between equals."""
    return sorted(shards, key=lambda s: (s.identity.order or (s.identity.agent,), s.identity.agent, s.reference))


def fingerprint(file: Path) -> str:
    """Of a base, to see that it is what was copied: its size and a hash of its ends. Raises OSError."""
    with open(file, "rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        digest = hashlib.blake2b(opened.read(_EDGE), digest_size=16)
        if size > _EDGE:
            opened.seek(max(_EDGE, size - _EDGE))
            digest.update(opened.read(_EDGE))
    return f"{size}:{digest.hexdigest()}"


def unsound(entry: Entry) -> str | None:
    """What is wrong with an entry's files, so that they must not be merged; None when they are as they should be."""
    wrong = misplaced(entry, entry.ours)
    if wrong is not None:
        return f"the shard file {entry.ours} {wrong}"
    if entry.base is None:
        return None
    wrong = misplaced(entry, entry.base)
    if wrong is None and not os.path.lexists(entry.base):
        wrong = "is missing"
    if wrong is None and entry.print is not None and fingerprint(entry.base) != entry.print:
        wrong = "was changed or damaged since it was copied"
    return f"the base of the shard, {entry.base}, {wrong}" if wrong is not None else None


def misplaced(entry: Entry, file: Path) -> str | None:
    """Why a file of an entry must not be used: links are never followed, from the shard's folder on."""
    for one in files_of(file):
        try:
            mode = os.lstat(one).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISLNK(mode):
            return "is a symbolic link, which is never followed"
        if not stat.S_ISREG(mode):
            return "is a directory" if stat.S_ISDIR(mode) else "is a device, pipe or socket"
    folder = os.fspath(file)
    for _ in range(entry.relative.count(os.sep) + 2):
        folder = os.path.dirname(folder)
        try:
            mode = os.lstat(folder).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return f"is gone, with its folder {folder}"
        if not stat.S_ISDIR(mode):
            return "lies behind a symbolic link, which is never followed"
    return None


def check_reference(reference: str) -> None:
    if not _REFERENCE.fullmatch(reference) or any(part.strip(".") == "" for part in reference.split("/")):
        raise AgentGuardError(f"{reference[:80]!r} is not the reference of a shard", reference=reference)


def damaged(folder: Path, reference: str, why: str, agent: str | None = None) -> AgentGuardError:
    whose = f" of agent {agent!r}" if agent is not None else ""
    return AgentGuardError(
        f"the shard {folder}{whose} is damaged: {why}. Nothing was applied, all is kept: look at its files, then "
        f"`agentguard recover --drop {reference}`",
        reference=reference,
        agent=agent,
        folder=str(folder),
    )


def decoded(data: bytes, folder: Path, reference: str) -> tuple[Identity, float, dict[str, Entry]]:
    """A record. Raises `AgentGuardError` for what is none: it is data, and names no file outside of its folder."""
    agent = None
    try:
        record = orjson.loads(data)
        agent = _as(str, record["agent"])
        identity = Identity(
            agent,
            _as(str, record["run"]),
            _as(str, record["step"]),
            None if record["shard"] is None else _as(str, record["shard"]),
            tuple(_as(str, one) for one in record["order"]),
            None if record["parent"] is None else _as(str, record["parent"]),
        )
        entries = {_as(str, one["key"]): _entry(one, folder) for one in record["entries"]}
        if len(entries) < len(record["entries"]):
            raise ValueError("two entries for one resource")
        return identity, float(record["created"]), entries
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{RECORD} lacks {error}" if isinstance(error, KeyError) else f"{RECORD}: {error}"
        raise damaged(folder, reference, why, agent) from error


def _entry(one: Any, folder: Path) -> Entry:
    relative = _as(str, one["relative"])
    gone = None if one["gone"] is None else _as(str, one["gone"])
    steps = Path(relative).parts
    inside = gone is None or (gone and Path(gone) in Path(relative).parents)
    if not steps or not inside or os.path.isabs(relative) or ".." in steps or FOLDER in steps or "\0" in relative:
        raise ValueError(f"{relative[:80]!r} is no place for a shard's file")
    return Entry(
        _as(str, one["id"]),
        _as(str, one["resource"]),
        relative,
        folder / "base" / relative if _as(bool, one["existed"]) else None,
        folder / "ours" / relative,
        float(one["forked"]),
        None if one["inherited"] is None else _as(str, one["inherited"]),
        None if one["print"] is None else _as(str, one["print"]),
        gone,
    )


def _as(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise ValueError(f"{str(value)[:80]!r} is not of the type {kind.__name__}")
    return value
