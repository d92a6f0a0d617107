"""Collect the shards of a run, merge them, and commit: exactly once.

Merging is pure (`folding`). The ids of the merged entries are committed together with the content, so that a join which
is repeated, resumed or run twice at the same time applies each shard once.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import disk
from .commit import Delete, Replace
from .conflicts import park
from .entries import unsound
from .exceptions import InDoubt, MergeConflict
from .flow import Do, Flow, locked
from .folding import CURRENT_SIDE, Side, fold, label, moves
from .late import State, state_of, sweep
from .locks import Claim, LockTable, Owner
from .logfiles import LARGE, Concatenated, concatenate, size
from .redirect import CURRENT
from .reports import JoinReport, ResourceReport
from .resources import Resource
from .shards import Entry, Shard, ordered
from .versions import DATABASES, signature

if TYPE_CHECKING:
    from .config import ResourceConfig
    from .guard import Guard
    from .merge import Conflict, Merged, Options

__all__ = ["CURRENT_SIDE", "JoinReport", "ResourceReport", "Side", "fold", "joining"]

_SHOWN = 5  # conflicts, and shards, in the text of a refusal


def joining(guard: Guard, run: str, references: Sequence[str] | None, timeout: float) -> Flow[JoinReport]:
    """The flow of a join: lock every resource that has an entry, merge all, commit all or nothing, release."""
    started = time.monotonic()
    reports: list[ResourceReport] = []
    merged: set[str] = set()
    outer = CURRENT.get()
    parent = outer.claim if outer is not None and outer.active else None
    while True:
        shards = yield Do(lambda: _collect(guard, run, references))
        resources = _resources(guard, shards)
        if not resources:
            reports.sort(key=lambda one: one.resource)
            return JoinReport(run, tuple(reports), time.monotonic() - started, len(merged))
        claim = Claim(Owner("join", run, "join"), parent)
        batches = guard.batches(tuple((resource, True) for resource in resources))
        try:
            yield from locked(claim, batches, lambda _: timeout)
            one = _Join(guard, run, references, resources, claim)
            yield Do(one.merge)
            reports += one.reports
            merged |= one.merged
        finally:
            LockTable.release_all(claim)
        # Look again: a call may have begun a shard of a further resource before our locks were all there.


def _collect(guard: Guard, run: str, references: Sequence[str] | None) -> list[Shard]:
    if references is None:
        return guard.shards.of_run(run)
    return ordered(shard for shard in map(guard.shards.load, dict.fromkeys(references)) if shard is not None)


def _resources(guard: Guard, shards: Sequence[Shard]) -> list[Resource]:
    """What the entries stand for. By place, not by name: names are relative to the root of whoever forked it.

    Raises `MergeConflict` for a place that was a file when it was forked and is a link or a directory now."""
    found: dict[str, Resource] = {}
    for shard in shards:
        for key, entry in list(shard.entries.items()):
            if key in found:
                continue
            place = guard.home.base / entry.relative
            resource = guard.resources.resolve(place, "join")
            if resource.id != key or resource.path != place:
                raise _refused([_unreadable(resource.name, shard, f"{place} is no plain file any more")], [shard], {})
            found[key] = resource
    return list(found.values())


def _unreadable(resource: str, shard: Shard, why: str) -> Conflict:
    from .merge import MISSING, Conflict

    return Conflict(resource, "", MISSING, {shard.identity.agent: MISSING}, why)


@dataclass(slots=True)
class _Work:
    """One resource and the entries that are to be merged into it."""

    number: int
    resource: Resource
    options: ResourceConfig
    strategy: str
    fresh: list[tuple[Shard, Entry]]


class _Join:
    """One pass with every lock held. `merge` leaves what was done in `reports` and `merged` (references of shards)."""

    def __init__(
        self,
        guard: Guard,
        run: str,
        references: Sequence[str] | None,
        resources: Sequence[Resource],
        claim: Claim,
    ) -> None:
        self.guard, self.run, self.references = guard, run, references
        self.resources, self.claim = resources, claim
        self.reports: list[ResourceReport] = []
        self.merged: set[str] = set()
        self._changes: list[Replace | Delete] = []
        self._failed: list[Conflict] = []
        self._parked: list[Callable[[], Path]] = []  # what keeps the sides of parked conflicts
        self._facts: dict[str, object] = {}  # of a version that could not be read: line and column
        self._read: dict[str, State] = {}  # by the entry's id
        self._folder = Path()

    def merge(self) -> None:
        """Read, merge, check, commit, forget. Raises `MergeConflict` before anything is applied."""
        guard = self.guard
        guard.recover_pending(self.resources)
        sweep(guard.home)
        shards = _collect(guard, self.run, self.references)
        seen = guard.home.ledger.contains([entry.id for shard in shards for entry in shard.entries.values()])
        works = self._works(shards, seen)
        self._folder = guard.home.stage_folder()
        try:
            self._merge_all(works)
            if self._failed:
                raise _refused(self._failed, shards, self._facts)
            for keep in self._parked:
                keep()
            self._commit(works, shards)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        try:
            for shard in shards:
                keys = [resource.id for resource in self.resources if resource.id in shard.entries]
                read = {key: self._read[shard.entries[key].id] for key in keys if shard.entries[key].id in self._read}
                guard.shards.finish(shard, keys, read, self.run)
        except BaseException:
            guard.shards.abandon(shards, self.run)
            raise
        published = {change.target for change in self._changes}
        for resource in self.resources:
            ticket = self.claim.ticket(resource.key, guard.table(resource.home))
            if ticket is not None and resource.path in published:
                ticket.table.change(ticket, signature(resource.path) or (0, 0, 0, 0))
        if guard.hooks:
            for report in self.reports:
                guard.emit_merged(self.run, report)

    def _works(self, shards: Sequence[Shard], seen: set[str]) -> list[_Work]:
        from .merge import default_strategy  # parsers are imported by those who parse

        found: dict[str, list[tuple[Shard, Entry]]] = {}
        for shard in shards:
            for key, entry in shard.entries.items():
                if entry.id not in seen:
                    found.setdefault(key, []).append((shard, entry))
        works = []
        for number, resource in enumerate(self.resources):
            if resource.id in found:
                options = self.guard.options(resource.name)
                strategy = options.merge or default_strategy(resource.name)
                works.append(_Work(number, resource, options, strategy, found[resource.id]))
        return works

    def _merge_all(self, works: Sequence[_Work]) -> None:
        for work in works:
            for shard, entry in work.fresh:
                self._read[entry.id] = state_of(entry.ours)
                try:
                    wrong = unsound(entry)
                except OSError as error:
                    wrong = f"the shard file {entry.ours} cannot be read: {error.strerror or error}"
                if wrong is not None:
                    self._failed.append(_unreadable(work.resource.name, shard, wrong))
        if self._failed:
            return
        by_key = {work.resource.id: work for work in works}
        followed = _renamed(works)
        for work in works:
            if work.resource.id in followed.values():
                continue  # with what it was before
            target = by_key[followed[work.resource.id]] if work.resource.id in followed else work
            try:
                self._merge_one(work, target)
            except MergeConflict as error:  # a version that cannot be read in its format
                self._failed += error.conflicts
                self._facts = {key: error.fields[key] for key in ("agent", "line", "column") if key in error.fields}

    def _merge_one(self, work: _Work, target: _Work) -> None:
        """Merge one resource, into another one if it was renamed."""
        from .merge import Options

        at = time.monotonic()
        name, path, options, moved = work.resource.name, work.resource.path, work.options, target is not work
        assert path is not None
        assert target.resource.path is not None
        staged = self._folder / str(work.number)
        if not moved:
            log = _concatenate(work.strategy, path, work.fresh, staged, durable=bool(options.durable))
            if log is not None:
                if log.size != size(path):  # it begins with what is there
                    self._changes.append(Replace(path, staged))
                counts = {agent: count for agent, count in log.changes.items() if agent != CURRENT_SIDE}
                self._report(work, counts, (), log.size, at)
                return
        current = _content(path)
        sides = _sides(work.fresh, dict(target.fresh) if moved else {})
        shown = f"{name} (renamed {target.resource.name})" if moved else name
        won: list[Conflict] = []
        resolve = (
            self.guard.resolver(options) if options.winner is None else functools.partial(_won, options.winner, won)
        )
        made = Options(shown, options.paths, resolve)
        try:
            content, conflicts, counts = fold(sides, current, functools.partial(_apply, work.strategy, made))
        except MergeConflict as error:  # a version that cannot be read in its format
            if not options.parks:
                raise
            content, conflicts, counts = current, list(error.conflicts), {}
        conflicts = won + conflicts
        if conflicts and not options.parks:
            self._failed += conflicts
            return
        if conflicts:
            kept = {"(base)": sides[0].base, CURRENT_SIDE: current, **{f"{s.agent} {s.id}": s.ours for s in sides}}
            self._parked.append(functools.partial(park, self.guard.home, name, work.strategy, kept, conflicts))
        if current is not None and (content is None or moved):
            self._changes.append(Delete(path))
        if content is not None and (moved or content != current):
            staged.write_bytes(content)
            self._changes.append(Replace(target.resource.path, staged))
        if moved:
            for shard, _ in target.fresh:
                counts[shard.identity.agent] = counts.get(shard.identity.agent, 0) + 1
        self._report(target, counts, tuple(conflicts), len(content or b""), at, work if moved else None)

    def _report(
        self,
        work: _Work,
        counts: Mapping[str, int],
        conflicts: tuple[Conflict, ...],
        length: int,
        at: float,
        before: _Work | None = None,
    ) -> None:
        shards = {shard.reference for one in (work, before) if one is not None for shard, _ in one.fresh}
        self.merged |= shards
        self.reports.append(
            ResourceReport(
                work.resource.name,
                work.strategy if before is None else before.strategy,
                len(shards),
                counts,
                conflicts,
                length,
                time.monotonic() - at,
                before.resource.name if before is not None else None,
            )
        )

    def _commit(self, works: Sequence[_Work], shards: Sequence[Shard]) -> None:
        marks = [entry.id for work in works for _, entry in work.fresh]
        if not marks:
            return
        durable = any(work.options.durable for work in works)
        try:
            self.guard.home.journal.commit(self._changes, durable=durable, marks=marks)
        except BaseException as error:
            if isinstance(error, InDoubt) or not isinstance(error, OSError):  # else nothing was changed
                self.guard.shards.abandon(shards, self.run)
            raise
        deleted = {change.target for change in self._changes if isinstance(change, Delete)}
        for work in works:
            if work.resource.path in deleted:
                for gone in {entry.gone for _, entry in work.fresh if entry.gone is not None}:
                    _remove_empty(work.resource.path.parent, self.guard.home.base / gone)


def _remove_empty(folder: Path, outermost: Path) -> None:
    """Remove folders that an agent removed, from the innermost on, as far as nobody has anything in them."""
    with contextlib.suppress(OSError):
        while folder == outermost or outermost in folder.parents:
            folder.rmdir()
            folder = folder.parent


def _sides(fresh: Sequence[tuple[Shard, Entry]], renamed: Mapping[Shard, Entry]) -> list[Side]:
    """What the entries come to; of a shard that renamed the file, under its new name."""
    return [
        Side(
            entry.id,
            shard.identity.agent,
            _content(entry.base),
            _content(renamed[shard].ours if shard in renamed else entry.ours),
            entry.forked,
            entry.inherited,
        )
        for shard, entry in fresh
    ]


def _renamed(works: Sequence[_Work]) -> dict[str, str]:
    """What was renamed, untouched, by some agents, while others worked on it under its old name: see `moves`."""
    gone: dict[Shard, list[tuple[str, Path]]] = {}
    new: dict[Shard, list[tuple[str, Path]]] = {}
    for work in works:
        for shard, entry in work.fresh:
            if entry.inherited is not None:
                continue
            if entry.base is not None and size(entry.base) and not os.path.lexists(entry.ours):
                gone.setdefault(shard, []).append((work.resource.id, entry.base))
            elif entry.base is None and size(entry.ours):
                new.setdefault(shard, []).append((work.resource.id, entry.ours))
    found = []
    for shard in gone.keys() & new.keys():
        pairs = [
            (old, added)
            for old, base in gone[shard]
            for added, ours in new[shard]
            if size(base) == size(ours) and filecmp.cmp(base, ours, shallow=False)
        ]
        olds, news = [old for old, _ in pairs], [added for _, added in pairs]
        found.append({old: added for old, added in pairs if olds.count(old) == news.count(added) == 1})
    if not any(found):
        return {}
    missing = {
        work.resource.id for work in works if work.resource.path is not None and not os.path.lexists(work.resource.path)
    }
    inherits = {work.resource.id for work in works if any(entry.inherited is not None for _, entry in work.fresh)}
    followed = moves(found, {work.resource.id: len(work.fresh) for work in works}, missing)
    return {old: added for old, added in followed.items() if old not in inherits}


def _concatenate(
    strategy: str, file: Path, fresh: Sequence[tuple[Shard, Entry]], staged: Path, *, durable: bool
) -> Concatenated | None:
    """`fold` for a big log, in constant memory, into a staged file; None where only `fold` can tell what comes out."""
    bases = [entry.base for _, entry in fresh]
    present = [base for base in bases if base is not None]
    if strategy != "append" or file.suffix.lower() in DATABASES or len(present) not in (0, len(fresh)):
        return None
    if any(entry.inherited is not None for _, entry in fresh):
        return None
    sides: dict[str, Path] = {}
    if present or os.path.lexists(file):
        sides[CURRENT_SIDE] = file
    for shard, entry in fresh:
        sides[label(shard.identity.agent, sides)] = entry.ours
    total = 0
    for one in (*present, *sides.values()):
        length = size(one)
        if length is None:  # deleted, or no file any more
            return None
        total += length
    if total <= LARGE:
        return None
    return concatenate(present[0] if present else None, sides, staged, copies=present[1:], durable=durable)


def _won(agent: str, won: list[Conflict], conflict: Conflict) -> object:
    """Settles a conflict by the side of one agent, if that is among them, and keeps what was in conflict."""
    if agent not in conflict.sides:
        raise MergeConflict("the base stays")
    won.append(conflict)
    return conflict.sides[agent]


def _apply(strategy: str, options: Options, base: bytes | None, sides: Mapping[str, bytes | None]) -> Merged:
    from .merge import merge

    return merge(strategy, base, sides, options)


def _content(file: Path | None) -> bytes | None:
    if file is None:
        return None
    if file.suffix.lower() in DATABASES:
        from .databases import content

        return content(file)
    return disk.content(file)


def _refused(conflicts: Sequence[Conflict], shards: Sequence[Shard], facts: Mapping[str, object]) -> MergeConflict:
    resources = sorted({conflict.resource for conflict in conflicts})
    shown = "\n".join(f"  {conflict}" for conflict in conflicts[:_SHOWN])
    more = f"\n  … and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
    where = "\n".join(f"  {shard.identity.agent}: {shard.folder}" for shard in shards)
    return MergeConflict(
        f"the join found {len(conflicts)} conflict{'' if len(conflicts) == 1 else 's'} in {', '.join(resources)}; "
        f"nothing was published.\n{shown}{more}\n"
        f"Every shard is kept, its base beside it (folders `ours` and `base`):\n{where}\n"
        "Make the sides agree there and join again, give the place a merge strategy (`paths`), set on_conflict, or "
        "drop a shard with `agentguard recover --drop`.",
        conflicts=tuple(conflicts),
        resources=tuple(resources),
        folder=str(shards[0].folder.parent) if shards else None,
        **facts,
    )
