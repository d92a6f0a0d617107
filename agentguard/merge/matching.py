"""Which items of two sequences belong together: the longest common subsequence or, in large sequences, one near it.

A small pair is left to `myers`, and so is what git makes of it. A large one is first cut at runs of items that begin
with one unique on both sides (Bram Cohen's patience diff, by runs), and Myers gets what lies between. Equal stretches
are compared as slices, in C. A budget bounds the whole: what is left when it is used up matches nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import accumulate, chain, count

from agentguard.merge.myers import Match, Myers, T, equal_ahead, equal_behind

_SMALL = 600
"""The most items, of both sides together, for which Myers is asked at once."""

_NEAR = ((16, 64), (128, 512), (4096, 4096))
"""How many items of either side to search for the place where they agree again: at first, then, and at last."""

_WIDEST = 64
"""How many items in a row to take together, at most, where no single one is unique."""


def matches(a: Sequence[T], b: Sequence[T], times: Counter[T] | None = None) -> list[Match]:
    """What stays when `a` becomes `b`, in order; stretches may touch.

    `times`: how often each item stands in `a`, or an empty counter, which is filled if this is needed: for a caller who
    compares one `a` with several others.
    """
    times = Counter() if times is None else times
    found: list[Match] = []
    start = budget = 1_000_000 + len(a) + len(b)
    todo = [(0, len(a), 0, len(b))]
    while todo:
        i, a_end, j, b_end = todo.pop()
        head = equal_ahead(a, i, b, j, min(a_end - i, b_end - j))
        if head:
            found.append((i, j, head))
            i, j = i + head, j + head
        tail = equal_behind(a, a_end, b, b_end, min(a_end - i, b_end - j))
        if tail:
            a_end, b_end = a_end - tail, b_end - tail
            found.append((a_end, b_end, tail))
        if i == a_end or j == b_end or budget < 0:
            continue
        if (a_end - i) + (b_end - j) > _SMALL:
            first = budget == start
            budget -= (a_end - i) + (b_end - j)
            runs = (first and _in_order(a, i, a_end, b, j, b_end, times)) or _chain(_runs(a, i, a_end, b, j, b_end))
            if runs:
                for x, y, length in runs:
                    over = max(0, j - y)  # runs that were found by several items may overlap
                    if over < length:
                        todo.append((i, x + over, j, y + over))
                        i, j = x + length, y + length
                        found.append((x + over, y + over, length - over))
                todo.append((i, a_end, j, b_end))
                continue
        myers = Myers(a, (i, a_end), b, (j, b_end), budget)
        found += myers.matches()
        budget -= myers.steps
    found.sort()
    return found


def _in_order(a: Sequence[T], lo: int, hi: int, b: Sequence[T], b_lo: int, b_hi: int, times: Counter[T]) -> list[Match]:
    """Runs that would be in the chain of all `_runs`, found without counting `b`: after every difference, the next
    place near by where an item that is unique in `a` stands in both."""
    if not times:
        times.update(a)
    runs: list[Match] = []
    gone: list[tuple[T, int]] = []  # unique in `a` and in no run, with the number of runs before it
    new: dict[T, int] = {}  # of `b`, and in no run
    while True:
        place = _next(a, lo, hi, b, b_lo, b_hi, times)
        x, y = place or (hi, b_hi)
        gone += [(item, len(runs)) for item in a[lo:x] if times[item] == 1]
        new.update(dict.fromkeys(b[b_lo:y], len(runs)))
        if place is None:
            break
        length = equal_ahead(a, x, b, y, min(hi - x, b_hi - y))
        runs.append((x, y, length))
        lo, b_lo = x + length, y + length
    # An item that is unique in both sides is in a run, or it moved. A run that none moved across goes with every other
    # one, so it is in the heaviest chain; whether it begins with an item that is unique in `b` too, `new` tells.
    across = [0] * (len(runs) + 1)
    for item, number in gone:
        first, last = sorted((number, new.get(item, number)))
        across[first] += 1
        across[last] -= 1
    return [run for run, moved in zip(runs, accumulate(across), strict=False) if not moved and a[run[0]] not in new]


def _next(
    a: Sequence[T], lo: int, hi: int, b: Sequence[T], b_lo: int, b_hi: int, times: Counter[T]
) -> tuple[int, int] | None:
    for far, b_far in _NEAR:
        there = b[b_lo : min(b_hi, b_lo + b_far)]
        place = dict(zip(reversed(there), range(b_lo + len(there) - 1, b_lo - 1, -1), strict=True))
        for at in range(lo, min(hi, lo + far)):
            item = a[at]
            if item in place and times[item] == 1:
                return at, place[item]
    return None


def _runs(a: Sequence[T], lo: int, hi: int, b: Sequence[T], b_lo: int, b_hi: int) -> list[Match]:
    """The equal runs that begin with an item unique in both stretches, in the order of `a`; if there is none, with two
    items that follow each other only once on either side, or 4, or up to 64."""
    here: Sequence[Hashable] = a[lo:hi]
    there: Sequence[Hashable] = b[b_lo:b_hi]
    width, kinds = 1, 0
    while True:
        in_a, in_b = Counter(here), Counter(there)
        alone = {item for item, times in in_a.items() if times == 1 and in_b.get(item) == 1}
        if alone:
            place = dict(zip(there, range(b_lo, b_hi), strict=False))
            out = []
            at = 0
            while at < len(here):
                if here[at] in alone:
                    x, y = lo + at, place[here[at]]
                    out.append((x, y, equal_ahead(a, x, b, y, min(hi - x, b_hi - y))))
                    at += out[-1][2]
                else:
                    at += 1
            return out
        # Where the same few items come again and again, taking more of them together will not help.
        if width == _WIDEST or in_a.keys().isdisjoint(in_b) or 4 * len(in_a) < 5 * kinds:
            return []
        kinds = len(in_a)
        pairs, b_pairs = (list(zip(items, items[width:], strict=False)) for items in (here, there))
        numbers = dict(zip(chain(pairs, b_pairs), count(), strict=False))
        here, there = list(map(numbers.__getitem__, pairs)), list(map(numbers.__getitem__, b_pairs))
        width *= 2


def _chain(runs: list[Match]) -> list[Match]:
    """Of runs in the order of `a`, those that stand in the same order in `b` and have the most items together."""
    order = [at for _, at, _ in runs]
    if order == sorted(order):
        return runs  # nothing moved, which is the usual case
    # The best chain so far for every last place in `b`: both lists rise, for a chain that ends later has to be heavier.
    ends: list[int] = []
    chains: list[tuple[int, int]] = []  # (weight, the last run)
    back = [-1] * len(runs)
    for number, (_, at, length) in enumerate(runs):
        slot = bisect_left(ends, at)
        weight = length
        if slot:
            before, back[number] = chains[slot - 1]
            weight += before
        beaten = slot
        while beaten < len(chains) and chains[beaten][0] <= weight:
            beaten += 1
        ends[slot:beaten] = [at]
        chains[slot:beaten] = [(weight, number)]
    out = []
    number = chains[-1][1]
    while number >= 0:
        out.append(runs[number])
        number = back[number]
    out.reverse()
    return out
