"""Differences between sequences, and N of them laid over one base.

The items are lines, or numbers that stand for the elements of a list: anything that can be compared and hashed, so
text and lists share this code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from agentguard.merge.matching import matches
from agentguard.merge.myers import T, equal_ahead, equal_behind

Hunk = tuple[int, int, list[T]]
"""(lo, hi, new): `base[lo:hi]` became `new`; an insertion has lo == hi."""

_Group = tuple[int, int]
"""(before, size): so many items in a row that only this side has, after so many that both have."""


@dataclass(frozen=True)
class Region(Generic[T]):
    """A stretch `base[lo:hi]` that somebody changed: `versions` has what each agent who did made of it."""

    lo: int
    hi: int
    versions: dict[str, list[T]]

    def distinct(self) -> list[list[T]]:
        """The different versions, in the order of the agents."""
        found: list[list[T]] = []
        for version in self.versions.values():
            if version not in found:
                found.append(version)
        return found


def regions(base: Sequence[T], hunks: Mapping[str, list[Hunk[T]]], *, touching: bool) -> Iterator[Region[T]]:
    """Group the hunks of all agents into the regions where they meet, in the order of the base.

    `touching`: changes with no unchanged item between them share a region, as in git and diff3. Otherwise only changes
    of the same items, or starting at the same point, do.
    """
    queue = sorted((lo, hi, rank, agent, new) for rank, agent in enumerate(hunks) for lo, hi, new in hunks[agent])
    at = 0
    while at < len(queue):
        start, (lo, hi) = at, queue[at][:2]
        at += 1
        while at < len(queue) and ((queue[at][0] <= hi) if touching else (queue[at][0] < hi or queue[at][0] == lo)):
            hi = max(hi, queue[at][1])
            at += 1
        mine: dict[str, list[Hunk[T]]] = {}
        for first, last, _, agent, new in sorted(queue[start:at], key=lambda entry: entry[2]):
            mine.setdefault(agent, []).append((first, last, new))
        yield Region(lo, hi, {agent: _applied(base, lo, hi, changes) for agent, changes in mine.items()})


def _applied(base: Sequence[T], lo: int, hi: int, changes: list[Hunk[T]]) -> list[T]:
    out: list[T] = []
    for first, last, new in changes:
        out += base[lo:first]
        out += new
        lo = last
    out += base[lo:hi]
    return out


def hunks(base: Sequence[T], side: Sequence[T], times: Counter[T] | None = None) -> list[Hunk[T]]:
    """What turns `base` into `side`. If `base` is a prefix of `side`, this is one insertion at the end.

    Where an insertion or deletion could as well stand elsewhere (a repeated line), it stands where git puts it: as a
    change together with a deletion or insertion if it can, else as far down as it can. So the same edit has the same
    hunk whoever made it. `times` as in `matches`.
    """
    gone: list[_Group] = []
    new: list[_Group] = []
    i = j = both = 0
    for x, y, length in [*matches(base, side, times), (len(base), len(side), 0)]:
        if x > i:
            gone.append((both, x - i))
        if y > j:
            new.append((both, y - j))
        both += length
        i, j = x + length, y + length
    gone = _settled(base, gone, new)
    new = _settled(side, new, gone)
    out: list[Hunk[T]] = []
    removed, added = dict(gone), dict(new)
    i = j = 0  # of the items met so far, how many only this side has
    for at in sorted({*removed, *added}):
        lo, start = at + i, at + j
        i, j = i + removed.get(at, 0), j + added.get(at, 0)
        out.append((lo, at + i, list(side[start : at + j])))
    return out


def _settled(items: Sequence[T], groups: list[_Group], others: list[_Group]) -> list[_Group]:
    """The groups of one side moved to where they are to stand; those that meet on the way become one."""
    partners = [before for before, _ in others]
    common = len(items) - sum(size for _, size in groups)
    out: list[_Group] = []
    passed = 0  # the sizes of all in `out`
    number = 0
    while number < len(groups):
        at, size = groups[number]
        number += 1
        known, top = 0, at
        while known != size:  # until it meets no other any more
            known = size
            while True:
                floor = out[-1][0] if out else 0
                at -= equal_behind(items, at + passed, items, at + passed + size, at - floor)
                if not out or at > floor:
                    break
                joined = out.pop()[1]
                size, passed = size + joined, passed - joined
            top = at
            while True:
                ceiling = groups[number][0] if number < len(groups) else common
                at += equal_ahead(items, at + passed, items, at + passed + size, ceiling - at)
                if number == len(groups) or at < ceiling:
                    break
                size += groups[number][1]
                number += 1
        last = bisect_right(partners, at) - 1
        if top < at and last >= 0 and partners[last] >= top:
            at = partners[last]
        out.append((at, size))
        passed += size
    return out
