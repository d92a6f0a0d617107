"""Shards: what one agent wrote and no join has merged yet.

`shards/<run>/<step>/<agent>~<id>/` holds `base/` and `ours/` (each file at its place under the root) and one small
record for each entry. An entry is (shard, resource): forked at the agent's first write, merged exactly once, by its id.
Names of runs and agents are encoded; they never become paths.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from .commit import atomic_write, snapshot
from .exceptions import AgentGuardError
from .home import Home, make_private
from .knowledge import Memory
from .resources import Resource
from .versions import DATABASES

__all__ = ["Entry", "Identity", "Shard", "Shards"]

_SAFE = re.compile(r"[^A-Za-z0-9._-]+")
_REFERENCE = re.compile(r"[A-Za-z0-9._~-]+/[A-Za-z0-9._~-]+/[A-Za-z0-9._~-]+")


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


def encoded(name: str) -> str:
    """A directory name for any text: readable start, and a hash that keeps different names apart."""
    plain = _SAFE.sub("-", name).strip(".-")[:40] or "x"
    if plain == name:
        return plain
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


@dataclass(slots=True, eq=False)
class Entry:
    """One resource in one shard."""

    id: str
    resource: str  # the name, relative to the root
    relative: str  # the file's place, relative to the home
    base: Path | None  # None: it did not exist
    ours: Path
    forked: float  # seconds since the epoch
    record: Path
    inherited: str | None = None  # the entry id that this one was forked from, instead of from the file


@dataclass(eq=False)
class Shard:
    """One agent's isolated writes. Made at the first one."""

    identity: Identity
    folder: Path
    reference: str  # `<run>/<step>/<agent>~<id>`, as kept in checkpoints
    entries: dict[str, Entry] = field(default_factory=dict)  # by key
    closed: bool = False


class Shards:
    """All shards under one home."""

    def __init__(self, home: Home, root: Path) -> None:
        self.home = home
        self.root = root
        self.folder = home.folder / "shards"
        self._open: dict[tuple[str, str], Shard] = {}
        self._mutex = threading.Lock()

    def current(self, identity: Identity) -> Shard | None:
        """The open shard of this identity in this process, if it has written anything yet."""
        return self._open.get((identity.run, identity.shard or "")) if self._open else None

    def of_run(self, run: str) -> list[Shard]:
        """Every shard of a run on disk, whichever process wrote it, in merge order."""
        found = [
            self.load(f"{encoded(run)}/{step.name}/{shard.name}")
            for step in _folders(self.folder / encoded(run))
            for shard in _folders(step)
        ]
        return ordered(shard for shard in found if shard is not None and shard.identity.run == run)

    def load(self, reference: str) -> Shard | None:
        """The shard with this reference; None when it is gone (merged). References are data: nothing else is opened."""
        self._check(reference)
        with self._mutex:
            for shard in self._open.values():
                if shard.reference == reference:
                    return shard
        folder = self.folder / reference
        try:
            return self._read(folder, reference)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AgentGuardError(
                f"the shard {folder} is damaged ({error}): look at its files, then "
                f"`agentguard recover --drop {reference}`",
                reference=reference,
            ) from error

    @staticmethod
    def _check(reference: str) -> None:
        if not _REFERENCE.fullmatch(reference) or any(part.strip(".") == "" for part in reference.split("/")):
            raise AgentGuardError(f"{reference[:80]!r} is not the reference of a shard", reference=reference)

    @staticmethod
    def _read(folder: Path, reference: str) -> Shard:
        head = orjson.loads((folder / "shard.json").read_bytes())
        identity = Identity(
            head["agent"], head["run"], head["step"], head["shard"], tuple(head["order"]), head.get("parent")
        )
        shard = Shard(identity, folder, reference)
        for record in sorted((folder / "entries").glob("*.json")):
            body = orjson.loads(record.read_bytes())
            shard.entries[body["key"]] = Entry(
                body["id"],
                body["resource"],
                body["relative"],
                folder / "base" / body["relative"] if body["existed"] else None,
                folder / "ours" / body["relative"],
                body["forked"],
                record,
                body.get("inherited"),
            )
        return shard

    def fork(self, identity: Identity, resource: Resource) -> tuple[Shard, Entry]:
        """The identity's entry for a resource, made at its first touch. Called with the resource's shared lock held."""
        assert resource.path is not None
        shard = self._shard(identity)
        entry = shard.entries.get(resource.id)
        if entry is not None:
            return shard, entry
        relative = os.path.relpath(resource.path, self.home.base)
        source, inherited = resource.path, None
        earlier = self._earlier(identity, resource.id)
        if earlier is not None:
            source, inherited = earlier.ours, earlier.id
        base, ours = shard.folder / "base" / relative, shard.folder / "ours" / relative
        for file in (base, ours):
            make_private(file.parent)
        for left in (base, ours):  # of a process that was killed between copying and recording
            left.unlink(missing_ok=True)
        existed = _snapshot(source, base)
        if existed:
            snapshot(base, ours)
        entry_id = secrets.token_hex(8)
        record = shard.folder / "entries" / f"{entry_id}.json"
        forked = time.time()
        body = {
            "id": entry_id,
            "key": resource.id,
            "resource": resource.name,
            "relative": relative,
            "existed": existed,
            "forked": forked,
            "inherited": inherited,
        }
        make_private(record.parent)
        atomic_write(record, orjson.dumps(body))
        entry = Entry(entry_id, resource.name, relative, base if existed else None, ours, forked, record, inherited)
        shard.entries[resource.id] = entry
        return shard, entry

    def inherited(self, identity: Identity, key: str) -> Path | None:
        """What this identity sees of a resource that it has not written itself: its branch's, if there is one."""
        earlier = self._earlier(identity, key)
        return earlier.ours if earlier is not None else None

    def _earlier(self, identity: Identity, key: str) -> Entry | None:
        """The nearest entry for a resource in the branch before this identity."""
        seen = 0
        reference = identity.parent
        while reference is not None and seen < 10_000:
            shard = self.load(reference)
            if shard is None:
                return None
            if key in shard.entries:
                return shard.entries[key]
            reference, seen = shard.identity.parent, seen + 1
        return None

    def _shard(self, identity: Identity) -> Shard:
        at = (identity.run, identity.shard or "")
        with self._mutex:
            shard = self._open.get(at)
            if shard is not None and not shard.closed:
                return shard
            reference = "/".join(
                [encoded(identity.run), encoded(identity.step), f"{encoded(identity.agent)}~{secrets.token_hex(4)}"]
            )
            folder = self.folder / reference
            make_private(folder)
            head: dict[str, Any] = {
                "agent": identity.agent,
                "run": identity.run,
                "step": identity.step,
                "shard": identity.shard,
                "order": list(identity.order or (identity.agent,)),
                "parent": identity.parent,
                "pid": os.getpid(),
                "created": time.time(),
            }
            atomic_write(folder / "shard.json", orjson.dumps(head))
            shard = self._open[at] = Shard(identity, folder, reference)
            return shard

    def close(self, run: str, shard: str) -> Shard | None:
        """No more calls join this shard: the next one of the same identity begins a new one. Returns what it held."""
        with self._mutex:
            found = self._open.pop((run, shard), None)
        if found is not None:
            found.closed = True
        return found

    def drop(self, shard: Shard) -> None:
        """Forget a shard and its files (a branch that failed and will run again, or by a person's decision)."""
        shard.closed = True
        with self._mutex:
            for at in [at for at, one in self._open.items() if one is shard]:
                del self._open[at]
        shutil.rmtree(shard.folder, ignore_errors=True)
        self._prune(shard.folder.parent)

    def finish(self, shard: Shard, keys: Iterable[str]) -> None:
        """Remove merged entries from a shard, and the shard once it is empty."""
        for key in keys:
            entry = shard.entries.pop(key, None)
            if entry is not None:
                entry.record.unlink(missing_ok=True)  # first: without its record an entry is not there
                entry.ours.unlink(missing_ok=True)
                if entry.base is not None:
                    entry.base.unlink(missing_ok=True)
        if not shard.entries:
            self.drop(shard)

    def _prune(self, folder: Path) -> None:
        while folder != self.folder and self.folder in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def runs(self) -> list[Shard]:
        """Every readable shard on disk, of every run."""
        return ordered(shard for shard in map(self._readable, self._references()) if shard is not None)

    def damaged(self) -> list[str]:
        """References of shards whose records cannot be read: for a person to look at."""
        return [
            reference
            for reference in self._references()
            if self._readable(reference) is None and (self.folder / reference / "shard.json").exists()
        ]

    def remove(self, reference: str) -> None:
        """`drop`, for one that cannot be read."""
        self._check(reference)
        shutil.rmtree(self.folder / reference, ignore_errors=True)
        self._prune((self.folder / reference).parent)

    def _references(self) -> list[str]:
        return [
            f"{run.name}/{step.name}/{shard.name}"
            for run in _folders(self.folder)
            for step in _folders(run)
            for shard in _folders(step)
        ]

    def _readable(self, reference: str) -> Shard | None:
        try:
            return self.load(reference)
        except AgentGuardError:
            return None


def _snapshot(source: Path, target: Path) -> bool:
    if source.suffix.lower() in DATABASES:
        from .databases import copy  # it imports sqlite3

        return copy(source, target)
    return snapshot(source, target)


def ordered(shards: Iterable[Shard]) -> list[Shard]:
    """Merge order: by the identity's `order`, else by agent; the reference decides between equals."""
    return sorted(shards, key=lambda s: (s.identity.order or (s.identity.agent,), s.identity.agent, s.reference))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []
