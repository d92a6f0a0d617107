"""What is computed from the times of a run, and the rows of a table; `bench_locks` says how rounds are put together."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise

from lock_worker import Stamp
from report import median

Figures = dict[str, float]
Found = dict[str, list[Figures]]
Row = tuple[str, str, str, str]

NAN = float("nan")


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else NAN


def middle(values: Sequence[float]) -> float:
    return median(values) if values else NAN


def jain(counts: Sequence[int]) -> float:
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else NAN


def spread(what: str, unit: str, values: Sequence[float]) -> Figures:
    return {
        f"{what} median, {unit}": middle(values),
        f"{what} p99, {unit}": percentile(values, 0.99),
        f"longest {what}, {unit}": max(values, default=NAN),
    }


def contended(runs: Sequence[Sequence[Stamp]], seconds: float) -> Figures:
    """Of all that wanted locks at once: turns, waiting, fairness."""
    counts = [sum(released > 0 for *_, released in run) for run in runs]
    waits = [(granted - asked) / 1e6 for run in runs for asked, granted, _ in run]
    return {"a second": sum(counts) / seconds, **spread("wait", "ms", waits), "Jain": jain(counts)}


def beyond(waits: Sequence[Stamp], holds: Sequence[Stamp]) -> list[float]:
    """Of each wait the ms after everybody who held the lock had released it: what the lock adds by itself."""
    ends = sorted(released for _, _, released in holds if released)
    found = []
    for asked, granted, _ in waits:
        before = bisect.bisect_right(ends, granted)
        last = ends[before - 1] if before else 0
        found.append((granted - max(asked, last)) / 1e6)
    return found


def hand_overs(peer: str, runs: Sequence[Sequence[Stamp]]) -> Figures:
    """From a release, or the moment the next one asked if that was later, to the grant of that next one, another one.

    The stamps are taken just before the release and just after the grant, so where these overlap two held the lock.
    """
    holds = sorted(
        (granted, released, asked, n) for n, run in enumerate(runs) for asked, granted, released in run if released
    )
    found = []
    for (_, released, _, one), (granted, _, asked, other) in pairwise(holds):
        if granted < released:
            print(f"{peer}: TWO HOLDERS at once", file=sys.stderr)
        elif one != other:
            found.append((granted - max(released, asked)) / 1e3)
    return {"hand-over median, us": middle(found), "hand-over p99, us": percentile(found, 0.99)}


def figure(found: Found, peer: str, key: str) -> float:
    values = [figures[key] for figures in found[peer] if figures[key] == figures[key]]
    if not values:
        return NAN
    return max(values) if key.startswith("longest") else min(values) if key == "Jain" else middle(values)


def ratio(found: Found, key: str, one: str, other: str) -> float:
    below = figure(found, other, key)
    return figure(found, one, key) / below if below else NAN


def digits(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def met(holds: bool) -> str:
    return "yes" if holds else "NO"


def at_least(what: str, limit: float, value: float, unit: str = "x") -> Row:
    return what, f"at least {limit:g}{unit}", f"{digits(value)}{unit}", met(value >= limit)


def at_most(what: str, limit: float, value: float, unit: str = "x") -> Row:
    return what, f"at most {limit:g}{unit}", f"{digits(value)}{unit}", met(value <= limit)


def at_most_one_of(what: str, parts: int, value: float) -> Row:
    """A share of what the peer has: at most 1/parts."""
    return what, f"at most 1/{parts}", f"1/{digits(1 / value)}" if value else "0", met(value <= 1 / parts)
