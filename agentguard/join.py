"""Collect the shards of a run, merge them, and commit: exactly once.

Merging is pure (`fold`): entries form a forest, since a later node of one branch starts from the earlier one's content;
each tree is folded into one side, and all sides of one base are merged with the current content in one N-way pass.
The ids of the merged entries are committed together with the content, so that a join which is repeated, resumed or run
twice at the same time applies each shard once.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import disk
from .commit import Delete, Replace
from .conflicts import park
from .exceptions import MergeConflict
from .flow import Do, Flow, locked
from .locks import Claim, LockTable, Owner
from .logfiles import LARGE, Concatenated, concatenate, size
from .redirect import CURRENT
from .resources import Resource
from .shards import Entry, Shard, ordered
from .versions import DATABASES, signature

if TYPE_CHECKING:
    from .guard import Guard
    from .merge import Conflict, Merged, Options

__all__ = ["JoinReport", "Side", "fold", "joining"]

CURRENT_SIDE = "(current)"


@dataclass(frozen=True, slots=True)
class ResourceReport:
    """What a join did to one resource. `changes`: records, keys or lines that each agent changed."""

    resource: str
    strategy: str
    shards: int
    changes: Mapping[str, int]
    conflicts: tuple[Conflict, ...]
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class JoinReport:
    """What a join did. False when there was nothing to merge; `print` it for people."""

    run: str
    resources: tuple[ResourceReport, ...]
    seconds: float

    def __bool__(self) -> bool:
        return bool(self.resources)

    @property
    def shards(self) -> int:
        return sum(one.shards for one in self.resources)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        return tuple(conflict for one in self.resources for conflict in one.conflicts)

    def __str__(self) -> str:
        if not self.resources:
            return "joined nothing: no agent of this run has an open shard"
        lines = [f"joined {self.shards} shard(s) of {len(self.resources)} resource(s) in {self.seconds:.3f} s"]
        for one in self.resources:
            who = ", ".join(f"{agent} {count}" for agent, count in one.changes.items()) or "nothing changed"
            parked = f", {len(one.conflicts)} conflict(s) parked" if one.conflicts else ""
            lines.append(f"  {one.resource}: {one.strategy}, {one.shards} shard(s): {who}{parked}, {one.bytes} bytes")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Side:
    """One entry's content, as the merge sees it. `parent`: the entry it was forked from, if that is a side too."""

    id: str
    agent: str
    base: bytes | None
    ours: bytes | None
    forked: float
    parent: str | None = None


Merge = Callable[["bytes | None", "Mapping[str, bytes | None]"], "Merged"]


def fold(
    sides: Sequence[Side], current: bytes | None, merge_: Merge
) -> tuple[bytes | None, list[Conflict], dict[str, int]]:
    """Merge sides (in merge order) into the current content: (content, conflicts, changes by agent). Pure.

    Sides with one base are merged with it in one pass, together with the current content where that has moved on;
    different bases one after another, in the order in which they were forked.
    """
    conflicts: list[Conflict] = []
    changes: dict[str, int] = {}
    ids = {side.id for side in sides}
    children: dict[str | None, list[Side]] = {}
    for side in sides:
        children.setdefault(side.parent if side.parent in ids else None, []).append(side)

    def combine(base: bytes | None, found: Sequence[Side], extra: Mapping[str, bytes | None]) -> bytes | None:
        values = dict(extra)
        for side in found:
            values[_label(side.agent, values)] = collapse(side)
        merged = merge_(base, values)
        conflicts.extend(merged.conflicts)
        for agent, count in merged.changes.items():
            if agent != CURRENT_SIDE:
                changes[agent] = changes.get(agent, 0) + count
        content: bytes | None = merged.value
        return content

    def collapse(side: Side) -> bytes | None:
        later = children.get(side.id, [])
        if not later:
            return side.ours
        return combine(side.ours, later, {})

    groups: dict[bytes | None, list[Side]] = {}
    for side in children.get(None, []):
        groups.setdefault(side.base, []).append(side)
    for base, found in sorted(groups.items(), key=lambda group: min(side.forked for side in group[1])):
        current = combine(base, found, {} if current == base else {CURRENT_SIDE: current})
    return current, conflicts, changes


def _label(agent: str, taken: Container[str]) -> str:
    """A name for one more side, since an agent may have several."""
    label, number = agent, 1
    while label in taken:
        number += 1
        label = f"{agent} ({number})"
    return label


def joining(guard: Guard, run: str, references: Sequence[str] | None, timeout: float) -> Flow[JoinReport]:
    """The flow of a join: lock every resource that has an entry, merge all, commit all or nothing, release."""
    started = time.monotonic()
    reports: list[ResourceReport] = []
    outer = CURRENT.get()
    parent = outer.claim if outer is not None and outer.active else None
    while True:
        keys = _keys((yield Do(lambda: _collect(guard, run, references))))
        if not keys:
            return JoinReport(run, tuple(reports), time.monotonic() - started)
        claim = Claim(Owner("join", run, "join"), parent)
        resources = [guard.resources.resolve(name, "join") for name in keys.values()]
        batches = guard.batches(tuple((resource, True) for resource in resources))
        try:
            yield from locked(claim, batches, lambda _: timeout)
            reports += yield Do(functools.partial(_merge, guard, run, references, resources, claim))
        finally:
            LockTable.release_all(claim)
        # Look again: a call may have begun a shard of a further resource before our locks were all there.


def _collect(guard: Guard, run: str, references: Sequence[str] | None) -> list[Shard]:
    if references is None:
        return guard.shards.of_run(run)
    return ordered(shard for shard in map(guard.shards.load, references) if shard is not None)


def _keys(shards: Sequence[Shard]) -> dict[str, str]:
    return {key: entry.resource for shard in shards for key, entry in list(shard.entries.items())}


def _merge(
    guard: Guard, run: str, references: Sequence[str] | None, resources: Sequence[Resource], claim: Claim
) -> list[ResourceReport]:
    """With every lock held: read, merge, check, commit, forget. Raises `MergeConflict` before anything is applied."""
    from .merge import Options, default_strategy  # parsers are imported by those who parse

    guard.recover_pending(resources)
    shards = _collect(guard, run, references)
    seen = guard.home.ledger.contains([entry.id for shard in shards for entry in shard.entries.values()])
    reports: list[ResourceReport] = []
    changes: list[Replace | Delete] = []
    marks: list[str] = []
    failed: list[Conflict] = []
    folder = guard.home.stage_folder()
    merged_keys: list[str] = []
    for number, resource in enumerate(resources):
        at = time.monotonic()
        found = [(shard, shard.entries[resource.id]) for shard in shards if resource.id in shard.entries]
        fresh = [(shard, entry) for shard, entry in found if entry.id not in seen]
        merged_keys.append(resource.id)
        if not fresh:
            continue
        options = guard.options(resource.name)
        strategy = options.merge or default_strategy(resource.name)
        resolve = guard.resolver(options.on_conflict)

        assert resource.path is not None
        staged = folder / str(number)
        log = _concatenate(strategy, resource.path, fresh, staged, durable=bool(options.durable))
        if log is not None:
            if log.size != size(resource.path):  # it begins with what is there
                changes.append(Replace(resource.path, staged))
            marks += [entry.id for _, entry in fresh]
            counts = {agent: count for agent, count in log.changes.items() if agent != CURRENT_SIDE}
            spent = time.monotonic() - at
            reports.append(ResourceReport(resource.name, strategy, len(fresh), counts, (), log.size, spent))
            continue
        made = Options(resource.name, options.paths, resolve)
        current = _read(resource.path)
        sides = [
            Side(entry.id, shard.identity.agent, _read(entry.base), _read(entry.ours), entry.forked, entry.inherited)
            for shard, entry in fresh
        ]
        content, conflicts, counts = fold(sides, current, functools.partial(_apply, strategy, made))
        if conflicts and options.on_conflict != "park":
            failed += conflicts
            continue
        if conflicts:
            kept = {"(base)": sides[0].base, CURRENT_SIDE: current, **{f"{s.agent} {s.id}": s.ours for s in sides}}
            park(guard.home, resource.name, strategy, kept, conflicts)
        if content is None and current is not None:
            changes.append(Delete(resource.path))
        elif content is not None and content != current:
            staged.write_bytes(content)
            changes.append(Replace(resource.path, staged))
        marks += [entry.id for _, entry in fresh]
        reports.append(
            ResourceReport(
                resource.name,
                strategy,
                len(fresh),
                counts,
                tuple(conflicts),
                len(content or b""),
                time.monotonic() - at,
            )
        )
    if failed:
        _remove(folder)
        raise _refused(failed, shards)
    if marks:
        durable = any(guard.options(resource.name).durable for resource in resources)
        guard.home.journal.commit(changes, durable=durable, marks=marks)
    _remove(folder)
    for shard in shards:
        guard.shards.finish(shard, merged_keys)
    published = {change.target for change in changes}
    for resource in resources:
        ticket = claim.ticket(resource.key, guard.table(resource.home))
        if ticket is not None and resource.path in published:
            ticket.table.change(ticket, signature(resource.path) or (0, 0, 0, 0))
    if guard.hooks:
        for report in reports:
            guard.emit_merged(run, report)
    return reports


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
        sides[_label(shard.identity.agent, sides)] = entry.ours
    total = 0
    for one in (*present, *sides.values()):
        length = size(one)
        if length is None:  # deleted, or no file any more
            return None
        total += length
    if total <= LARGE:
        return None
    return concatenate(present[0] if present else None, sides, staged, copies=present[1:], durable=durable)


def _apply(strategy: str, options: Options, base: bytes | None, sides: Mapping[str, bytes | None]) -> Merged:
    from .merge import merge

    return merge(strategy, base, sides, options)


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    if file.suffix.lower() in DATABASES:
        from .databases import content

        return content(file)
    return disk.content(file)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _refused(conflicts: Sequence[Conflict], shards: Sequence[Shard]) -> MergeConflict:
    resources = sorted({conflict.resource for conflict in conflicts})
    shown = "\n".join(f"  {conflict}" for conflict in conflicts[:5])
    more = f"\n  … and {len(conflicts) - 5} more" if len(conflicts) > 5 else ""
    where = "\n".join(f"  {shard.identity.agent}: {shard.folder}" for shard in shards)
    return MergeConflict(
        f"the join found {len(conflicts)} conflict(s) in {', '.join(resources)}; nothing was published.\n"
        f"{shown}{more}\n"
        f"Every shard is kept, its base beside it (folders `ours` and `base`):\n{where}\n"
        "Make the sides agree there and join again, give the place a merge strategy (`paths`), set on_conflict, or "
        "drop a shard with `agentguard recover --drop`.",
        conflicts=tuple(conflicts),
        resources=tuple(resources),
        folder=str(shards[0].folder.parent) if shards else None,
    )
