"""Shards: what one agent wrote and no join has merged yet.

`shards/<run>/<step>/<agent>~<id>/` holds `base/` and `ours/` (each file at its place under the home) and a record,
`shard.json`. An entry is (shard, resource): forked at the agent's first write, merged exactly once, by its id. Names of
runs and agents are encoded; they never become paths.

A shard belongs to the process that began it; any process may join it. Who changes the record holds the shard's mutex
and a lock on its folder, and looks first whether it is still there: a folder that was merged or dropped is renamed away
as a whole before anything in it is removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from . import disk
from .commit import atomic_write, snapshot
from .entries import (
    RECORD,
    End,
    Entry,
    Identity,
    Shard,
    check_reference,
    damaged,
    decoded,
    encoded,
    fingerprint,
    misplaced,
    ordered,
)
from .exceptions import AgentGuardError
from .home import Home, make_private
from .late import Left, State, put_aside, tidy
from .locks import LockTable
from .resources import Resource
from .versions import DATABASES, signature

__all__ = ["Entry", "Identity", "Shard", "Shards", "encoded", "ordered"]


_ELSEWHERE = "joined or dropped by another process"


class _State:
    """What all guards of one home share in a process: the shards that it has begun, and who works in them."""

    def __init__(self) -> None:
        self.locks = LockTable()
        self.begin()

    def begin(self) -> None:
        self.open: dict[tuple[str, str], Shard] = {}  # by run and identity
        self.known: dict[str, Shard] = {}  # the same, by reference
        self.mutex = threading.Lock()


_states: weakref.WeakKeyDictionary[Home, _State] = weakref.WeakKeyDictionary()
_latches: set[int] = set()  # descriptors of folders that this process has locked


def _after_fork_in_child() -> None:
    # The shards are the parent's, and as long as the child has the descriptors it would keep the parent's locks.
    for fd in _latches:
        disk.close(fd)
    _latches.clear()
    for state in list(_states.values()):
        state.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Shards:
    """All shards under one home."""

    def __init__(self, home: Home, root: Path) -> None:
        self.home = home
        self.root = root
        self.folder = home.folder / "shards"
        self._state = _states.setdefault(home, _State())

    @property
    def locks(self) -> LockTable:
        """Of the resources inside of shards: calls of one agent exclude each other as they do outside."""
        return self._state.locks

    # -- finding ---

    def current(self, identity: Identity) -> Shard | None:
        """The open shard of this identity in this process, if it has written anything yet."""
        found = self._state.open.get((identity.run, identity.shard or "")) if self._state.open else None
        return found if found is not None and self._refresh(found) else None

    def of_run(self, run: str) -> list[Shard]:
        """Every shard of a run on disk, whichever process wrote it, in merge order."""
        inside = encoded(run)
        found = [
            self.load(f"{inside}/{step}/{shard}")
            for step in _folders(self.folder / inside)
            for shard in _folders(self.folder / inside / step)
        ]
        return ordered(shard for shard in found if shard is not None and shard.identity.run == run)

    def load(self, reference: str) -> Shard | None:
        """The shard with this reference; None when it is gone (merged). References are data: nothing else is opened.

        Raises `AgentGuardError` for a record that cannot be read.
        """
        check_reference(reference)
        known = self._state.known.get(reference)
        if known is not None:
            with known.mutex:
                return known if self._read(known) else None
        folder = self.folder / reference
        seen = signature(folder / RECORD)
        data = disk.content(folder / RECORD)
        if data is None:
            return None
        identity, created, entries = decoded(data, folder, reference)
        return Shard(identity, folder, reference, entries, None, created, seen)

    def runs(self) -> list[Shard]:
        """Every readable shard on disk, of every run."""
        return ordered(shard for shard in map(self._readable, self._references()) if shard is not None)

    def damaged(self) -> list[str]:
        """References of shards whose records cannot be read: for a person to look at."""
        return [
            reference
            for reference in self._references()
            if self._readable(reference) is None and (self.folder / reference / RECORD).exists()
        ]

    def _references(self) -> list[str]:
        return [
            f"{run}/{step}/{shard}"
            for run in _folders(self.folder)
            for step in _folders(self.folder / run)
            for shard in _folders(self.folder / run / step)
        ]

    def _readable(self, reference: str) -> Shard | None:
        try:
            return self.load(reference)
        except AgentGuardError:
            return None

    # -- forking ---

    def fork(self, identity: Identity, resource: Resource, *, durable: bool = True) -> tuple[Shard, Entry]:
        """The identity's entry for a resource, made at its first touch. Called with the resource's shared lock and its
        lock within the shard held. Raises `AgentGuardError` for an entry whose files are not what was put there."""
        shard, (entry,) = self.fork_all(identity, [resource], durable=durable)
        return shard, entry

    def fork_all(
        self,
        identity: Identity,
        resources: Sequence[Resource],
        *,
        durable: bool = True,
        gone: Mapping[str, str] | None = None,
    ) -> tuple[Shard, list[Entry]]:
        """`fork` for several resources, with one record for all. `gone`: by key, see `Entry.gone`."""
        while True:
            shard = self._shard(identity)
            try:
                entries = self._fork(shard, resources, durable, gone or {})
            except FileNotFoundError:
                if shard.folder.is_dir():
                    raise
                entries = None  # another process has joined the rest of it, and moved it away
            if entries is not None:
                return shard, entries
            self._forget(shard, End(_ELSEWHERE, time.time()))

    def _fork(
        self, shard: Shard, resources: Sequence[Resource], durable: bool, gone: Mapping[str, str]
    ) -> list[Entry] | None:
        if not self._refresh(shard):
            return None
        made: dict[str, Entry] = {}
        try:
            for resource in resources:
                entry = shard.entries.get(resource.id)
                if entry is None:
                    made[resource.id] = self._copy(shard, resource)
                else:
                    wrong = misplaced(entry, entry.ours)
                    if wrong is not None:
                        raise damaged(shard.folder, shard.reference, f"{entry.resource}: {wrong}", shard.identity.agent)
            if made or gone:
                with shard.mutex, _latched(shard.folder) as alive:
                    if not alive or shard.end is not None or not self._read(shard):
                        return None
                    shard.entries.update(made)
                    for key, folder in gone.items():
                        shard.entries[key].gone = folder
                    try:
                        self._write(shard, durable)
                    except BaseException:
                        for key in made:
                            del shard.entries[key]
                        raise
        except BaseException:
            for entry in made.values():
                _unlink(entry.ours, entry.base)
            raise
        return [shard.entries[resource.id] for resource in resources]

    def _copy(self, shard: Shard, resource: Resource) -> Entry:
        assert resource.path is not None
        relative = os.path.relpath(resource.path, self.home.base)
        source, inherited = resource.path, None
        earlier = self._earlier(shard.identity, resource.id)
        if earlier is not None:
            source, inherited = earlier.ours, earlier.id
        entry = Entry(
            secrets.token_hex(8),
            resource.name,
            relative,
            shard.folder / "base" / relative,
            shard.folder / "ours" / relative,
            time.time(),
            inherited,
        )
        assert entry.base is not None
        for file in (entry.base, entry.ours):
            _make(file.parent)
            file.unlink(missing_ok=True)  # of a process that was killed between copying and recording
            wrong = misplaced(entry, file)
            if wrong is not None:
                raise damaged(shard.folder, shard.reference, f"{file} {wrong}", shard.identity.agent)
        if _snapshot(source, entry.base):
            snapshot(entry.base, entry.ours)
            entry.print = fingerprint(entry.base)
        else:
            entry.base = None
        return entry

    def inherited(self, identity: Identity, key: str) -> Path | None:
        """What this identity sees of a resource that it has not written itself: its branch's, if there is one."""
        earlier = self._earlier(identity, key)
        return earlier.ours if earlier is not None else None

    def beneath(self, identity: Identity, directory: str) -> dict[str, Entry]:
        """The entries that this identity sees of files beneath a directory (its key): its own, else its branch's."""
        found: dict[str, Entry] = {}
        for shard in self._branch(identity):
            for key, entry in list(shard.entries.items()):
                if key.startswith(directory):
                    found.setdefault(key, entry)
        return found

    def _branch(self, identity: Identity) -> Iterator[Shard]:
        """This identity's open shard, and those of its branch before it, the nearest first."""
        own = self.current(identity)
        if own is not None:
            yield own
        reference, seen = identity.parent, 0
        while reference is not None and seen < 10_000:
            shard = self.load(reference)
            if shard is None:
                return
            yield shard
            reference, seen = shard.identity.parent, seen + 1

    def _earlier(self, identity: Identity, key: str) -> Entry | None:
        """The nearest entry for a resource in the branch before this identity."""
        if identity.parent is None:
            return None
        own = self._state.open.get((identity.run, identity.shard or ""))
        return next((s.entries[key] for s in self._branch(identity) if s is not own and key in s.entries), None)

    def _shard(self, identity: Identity) -> Shard:
        at = (identity.run, identity.shard or "")
        with self._state.mutex:
            shard = self._state.open.get(at)
            if shard is not None and not shard.closed:
                return shard
            reference = "/".join(
                [encoded(identity.run), encoded(identity.step), f"{encoded(identity.agent)}~{secrets.token_hex(4)}"]
            )
            folder = self.folder / reference
            _make(folder)
            shard = self._state.open[at] = Shard(identity, folder, reference, created=time.time())
            self._state.known[reference] = shard
            return shard

    # -- the record ---

    def _write(self, shard: Shard, durable: bool) -> None:
        """Put the record in order with `entries`. With the shard's mutex and latch."""
        who = shard.identity
        record: dict[str, Any] = {
            "agent": who.agent,
            "run": who.run,
            "step": who.step,
            "shard": who.shard,
            "order": list(who.order or (who.agent,)),
            "parent": who.parent,
            "pid": os.getpid(),
            "created": shard.created,
            "entries": [
                {
                    "id": entry.id,
                    "key": key,
                    "resource": entry.resource,
                    "relative": entry.relative,
                    "existed": entry.base is not None,
                    "forked": entry.forked,
                    "inherited": entry.inherited,
                    "print": entry.print,
                    "gone": entry.gone,
                }
                for key, entry in shard.entries.items()
            ],
        }
        atomic_write(shard.record, orjson.dumps(record), durable=durable)
        shard.seen = signature(shard.record)

    def _read(self, shard: Shard) -> bool:
        """Have `entries` say what the disk says; False when the shard is gone. With the shard's mutex."""
        now = signature(shard.record)
        if now != shard.seen:
            data = disk.content(shard.record)
            if data is None:
                return False
            found = decoded(data, shard.folder, shard.reference)[2]
            mine = {entry.id: entry for entry in shard.entries.values()}
            shard.entries = {key: mine.get(entry.id, entry) for key, entry in found.items()}
            shard.seen = now
        return True

    def _refresh(self, shard: Shard) -> bool:
        """The same before a call works in the shard: False when it must not."""
        with shard.mutex:
            if shard.end is None and not self._read(shard):
                self._forget(shard, End(_ELSEWHERE, time.time()))
            if shard.end is None and shard.doubtful:
                shard.doubtful = False
                merged = self.home.ledger.contains([entry.id for entry in shard.entries.values()])
                if merged:
                    self.finish(shard, [key for key, entry in shard.entries.items() if entry.id in merged])
            return shard.end is None

    def writable(self, shard: Shard, entry: Entry) -> bool:
        """Whether what a call has made of an entry may still be put there. With the shard's mutex held."""
        return self._refresh(shard) and any(one is entry for one in shard.entries.values())

    def ended(self, shard: Shard, entry: Entry) -> End:
        """Why `writable` says no."""
        if shard.end is not None and shard.end.how != _ELSEWHERE:
            return shard.end
        joined = self.home.ledger.contains([entry.id])
        return End("joined by another process" if joined else "dropped by another process", time.time())

    def doubt(self, identity: Identity) -> None:
        """Another process may have joined this identity's shard, and not come to tidying up."""
        found = self._state.open.get((identity.run, identity.shard or ""))
        if found is not None:
            found.doubtful = True

    def abandon(self, shards: Iterable[Shard], run: str) -> None:
        """Nobody can say whether a join of these has happened: nothing more is written to them here."""
        for shard in shards:
            with shard.mutex:
                self._forget(shard, End("about to be joined", time.time(), run))

    # -- ending ---

    def close(self, run: str, shard: str) -> Shard | None:
        """No more calls join this shard: the next one of the same identity begins a new one, and one that is still at
        work in it is refused. Returns what it held."""
        found = self._state.open.get((run, shard))
        if found is not None:
            with found.mutex:
                self._forget(found, End("closed", time.time()))
        return found

    def _forget(self, shard: Shard, end: End) -> None:
        shard.end = shard.end or end
        at = (shard.identity.run, shard.identity.shard or "")
        with self._state.mutex:
            self._state.known.pop(shard.reference, None)
            if self._state.open.get(at) is shard:
                del self._state.open[at]

    def drop(self, shard: Shard) -> None:
        """Forget a shard and its files (a branch that failed and will run again, or by a person's decision)."""
        with shard.mutex:
            self._forget(shard, End("dropped", time.time()))
            self.remove(shard.reference)

    def remove(self, reference: str) -> None:
        """`drop`, for one that cannot be read."""
        check_reference(reference)
        folder = self.folder / reference
        with _latched(folder) as alive:
            aside = put_aside(self.home, folder, dropped=True) if alive else None
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        self._prune(folder.parent)

    def finish(
        self,
        shard: Shard,
        keys: Iterable[str],
        read: Mapping[str, State] | None = None,
        run: str | None = None,
    ) -> None:
        """Remove merged entries from a shard, and the shard once it is empty.

        `read`: the state of each entry's content (`state_of`) when it was read for the merge; what was written there
        since is kept. `run`: whose join it was.
        """
        end = End("joined", time.time(), run)
        with shard.mutex, _latched(shard.folder) as alive:
            shard.doubtful = False
            if not alive or not self._read(shard):
                self._forget(shard, end)
                return
            done = {key: shard.entries.pop(key) for key in [*keys] if key in shard.entries}
            aside = None
            if not shard.entries:
                self._forget(shard, end)
                aside = put_aside(self.home, shard.folder)
            elif done:
                self._write(shard, True)
        left = [
            Left(entry.resource, shard.identity.agent, shard.identity.run, end, entry.ours, (read or {}).get(key))
            for key, entry in done.items()
        ]
        bases = [entry.base for entry in done.values() if entry.base is not None]
        tidy(self.home, shard.folder, aside, left, [*bases, shard.record] if aside is not None else bases)
        if aside is not None:
            self._prune(shard.folder.parent)

    def _prune(self, folder: Path) -> None:
        """Remove folders of steps and runs that have become empty."""
        for one in (folder, folder.parent):
            try:
                os.rmdir(one)
            except OSError:
                return


# -- the disk ---


@contextlib.contextmanager
def _latched(folder: Path) -> Iterator[bool]:
    """Alone among processes with a shard's record; whether it is still there. Where folders cannot be locked (Windows,
    some network file systems) nobody is alone."""
    if not disk.POSIX:
        yield folder.is_dir()
        return
    from filelock import lock_descriptor  # importing it costs more than the rest of this module

    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | disk.NOFOLLOW | disk.FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    _latches.add(fd)
    try:
        with contextlib.suppress(OSError):
            lock_descriptor(fd, poll_interval=0.002)
        try:
            there = os.path.samestat(os.fstat(fd), os.lstat(folder))
        except FileNotFoundError:
            there = False
        yield there
    finally:
        if fd in _latches:  # else a fork has closed it
            _latches.discard(fd)
            os.close(fd)


def _make(folder: Path) -> None:
    """`make_private`, from below: most of the way is there."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_private(folder)


def _unlink(*files: Path | None) -> None:
    for file in files:
        if file is not None:
            file.unlink(missing_ok=True)


def _snapshot(source: Path, target: Path) -> bool:
    if source.suffix.lower() in DATABASES:
        from .databases import copy  # it imports sqlite3

        return copy(source, target)
    return snapshot(source, target)


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder."""
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
