"""Differences between sequences, and N of them laid over one base.

The sequences are lists of small integers that stand for lines or elements (equal numbers, equal items), so text and
lists share this code. Anchors are the items that are unique on both sides, as in Bram Cohen's patience diff; what lies
between anchors is left to `difflib`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

Hunk = tuple[int, int, list[int]]
"""(lo, hi, new): `base[lo:hi]` became `new`; an insertion has lo == hi."""

_SMALL = 200 * 200
"""The most cells that the quadratic matcher may look at. Above it a stretch becomes one coarse, still correct, hunk."""

_STEP = 64


@dataclass(frozen=True)
class Region:
    """A stretch `base[lo:hi]` that somebody changed: `versions` has what each agent who did made of it."""

    lo: int
    hi: int
    versions: dict[str, list[int]]

    def distinct(self) -> list[list[int]]:
        """The different versions, in the order of the agents."""
        found: list[list[int]] = []
        for version in self.versions.values():
            if version not in found:
                found.append(version)
        return found


def regions(base: Sequence[int], hunks: Mapping[str, list[Hunk]], *, touching: bool) -> Iterator[Region]:
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
        mine: dict[str, list[Hunk]] = {}
        for first, last, _, agent, new in sorted(queue[start:at], key=lambda entry: entry[2]):
            mine.setdefault(agent, []).append((first, last, new))
        yield Region(lo, hi, {agent: _applied(base, lo, hi, changes) for agent, changes in mine.items()})


def _applied(base: Sequence[int], lo: int, hi: int, changes: list[Hunk]) -> list[int]:
    out: list[int] = []
    for first, last, new in changes:
        out += base[lo:first]
        out += new
        lo = last
    out += base[lo:hi]
    return out


def hunks(base: Sequence[int], side: Sequence[int]) -> list[Hunk]:
    """What turns `base` into `side`. If `base` is a prefix of `side`, this is one insertion at the end.

    Where an insertion or deletion could as well stand further down (a repeated line), it does, as in git: so the same
    edit has the same hunk whoever made it.
    """
    out: list[Hunk] = []
    pb = ps = 0
    for b, s, length in _matches(base, side):
        if b > pb or s > ps:
            out.append((pb, b, list(side[ps:s])))
        pb, ps = b + length, s + length
    if pb < len(base) or ps < len(side):
        out.append((pb, len(base), list(side[ps:])))
    return _slid(base, out)


def _slid(base: Sequence[int], found: list[Hunk]) -> list[Hunk]:
    out: list[Hunk] = []
    end = len(base)
    for lo, hi, new in reversed(found):
        if lo == hi:
            while hi < end and new[0] == base[hi]:
                new = [*new[1:], new[0]]
                lo = hi = hi + 1
        elif not new:
            while hi < end and base[lo] == base[hi]:
                lo, hi = lo + 1, hi + 1
        if out and hi == end:  # it has come to the next hunk: the two are one
            _, last, more = out.pop()
            hi, new = last, new + more
        out.append((lo, hi, new))
        end = lo
    out.reverse()
    return out


def _matches(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    todo = [(0, len(a), 0, len(b))]
    while todo:
        alo, ahi, blo, bhi = todo.pop()
        most = min(ahi - alo, bhi - blo)
        head = 0
        while head + _STEP <= most and a[alo + head : alo + head + _STEP] == b[blo + head : blo + head + _STEP]:
            head += _STEP
        while head < most and a[alo + head] == b[blo + head]:
            head += 1
        if head:
            found.append((alo, blo, head))
            alo, blo, most = alo + head, blo + head, most - head
        tail = 0
        while tail < most and a[ahi - 1 - tail] == b[bhi - 1 - tail]:
            tail += 1
        if tail:
            ahi, bhi = ahi - tail, bhi - tail
            found.append((ahi, bhi, tail))
        if alo >= ahi or blo >= bhi:
            continue
        anchors = _anchors(a, alo, ahi, b, blo, bhi)
        if anchors:
            # Each stretch but the first begins with an anchor, which its head loop consumes: every round shrinks.
            last = (alo, blo)
            for ia, ib in anchors:
                if a[last[0] : ia] != b[last[1] : ib] or last == (alo, blo):
                    todo.append((alo, ia, blo, ib))
                    alo, blo = ia, ib
                last = (ia, ib)  # an anchor that only continues a run is left to the head loop
            todo.append((alo, ahi, blo, bhi))
        elif (ahi - alo) * (bhi - blo) <= _SMALL:
            matcher = SequenceMatcher(None, a[alo:ahi], b[blo:bhi], autojunk=False)
            found += [(alo + x, blo + y, length) for x, y, length in matcher.get_matching_blocks() if length]
    found.sort()
    return found


def _anchors(a: Sequence[int], alo: int, ahi: int, b: Sequence[int], blo: int, bhi: int) -> list[tuple[int, int]]:
    """The longest run of items that are unique in both stretches and stand in the same order."""
    in_a: dict[int, int] = {}
    in_b: dict[int, int] = {}
    for seen, items, lo, hi in ((in_a, a, alo, ahi), (in_b, b, blo, bhi)):
        for at in range(lo, hi):
            item = items[at]
            seen[item] = -1 if item in seen else at
    pairs = [(ia, ib) for item, ia in in_a.items() if ia >= 0 and (ib := in_b.get(item, -1)) >= 0]
    pairs.sort()
    order = [ib for _, ib in pairs]
    if order == sorted(order):
        return pairs  # nothing moved, which is the usual case
    tops: list[int] = []
    piles: list[int] = []
    back = [-1] * len(pairs)
    for k, ib in enumerate(order):
        pile = bisect_left(tops, ib)
        back[k] = piles[pile - 1] if pile else -1
        tops[pile : pile + 1] = [ib]
        piles[pile : pile + 1] = [k]
    out: list[tuple[int, int]] = []
    k = piles[-1] if piles else -1
    while k >= 0:
        out.append(pairs[k])
        k = back[k]
    out.reverse()
    return out
