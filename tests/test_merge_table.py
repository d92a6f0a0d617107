"""The table of what every merge of whole files promises, for lines and bytes, and random cases that hold it to that.

The same table stands in the facts page. Conflicts are foretold from the edits that were made, not from differences.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pytest
from texts_support import Hunk, Planned, Wild, each, touching

from agentguard.merge import Merged, merge

Sides = Mapping[str, bytes]


def changed(base: bytes, sides: Sides) -> dict[str, bytes]:
    return {agent: side for agent, side in sides.items() if side != base}


def rewritten(case: Planned) -> bool:
    base = case.applied([])
    written = changed(base, case.sides)
    return len(written) > 1 and not all(side.startswith(base) for side in written.values())


def different(case: Planned) -> bool:
    return len(set(changed(case.applied([]), case.sides).values())) > 1


def never(case: Planned) -> bool:
    return False


def touching_and_different(case: Planned, *, kept: Callable[[int], bool]) -> bool:
    """Two agents changed lines that touch, not to the same; `kept`: where two insertions go together."""
    return any(
        touching(one, other) and one != other and not (inserted(one) and inserted(other) and kept(one[0]))
        for mine, theirs in itertools.combinations(case.hunks.values(), 2)
        for one in mine
        for other in theirs
    )


def inserted(hunk: Hunk) -> bool:
    return hunk[0] == hunk[1]


def text_conflicts(case: Planned) -> bool:
    return touching_and_different(case, kept=lambda at: at == len(case.base))


def union_conflicts(case: Planned) -> bool:
    return touching_and_different(case, kept=lambda at: True)


@dataclass(frozen=True)
class Row:
    conflict: Callable[[Planned], bool]
    commutative: str
    """yes; order: but for the order of what several agents added at one point; no."""
    idempotent: bool
    lossless: bool = True
    """Every line that an agent added is in the result or in the conflicts."""


TABLE = {
    "text": Row(text_conflicts, "order", True),
    "union": Row(union_conflicts, "order", True),
    "append": Row(rewritten, "order", False),
    "binary": Row(different, "yes", True),
    "first": Row(never, "no", True, lossless=False),
    "last": Row(never, "no", True, lossless=False),
}
"""All of them are associative: three agents at once are two, and then the third (if he repeats nothing)."""

BY_STRATEGY = pytest.mark.parametrize("strategy", TABLE)


def lines(data: object) -> list[bytes]:
    """The lines, whatever they end with: who wrote the last one decides that, and CR is added to a last line."""
    text = data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else b""
    return text.replace(b"\r\n", b"\n").removesuffix(b"\n").removesuffix(b"\r").split(b"\n")


def added(strategy: str, base: bytes, side: bytes) -> Counter[bytes]:
    if strategy == "append" and side.startswith(base):
        # What completes the last line of the base stands in the result with it, or on its own behind other additions.
        first, *more = lines(side[len(base) :])
        return Counter(more if base and not base.endswith(b"\n") else [first, *more] if side != base else [])
    return Counter(lines(side)) - Counter(lines(base))


def said(outcome: Merged) -> list[tuple[str, object, list[tuple[str, object]]]]:
    return [(conflict.path, conflict.base, sorted(conflict.sides.items())) for conflict in outcome.conflicts]


def points(case: Planned) -> list[Counter[tuple[str, ...]]]:
    """For every place where somebody inserted lines without changing any: what was inserted, and by how many."""
    found: dict[int, Counter[tuple[str, ...]]] = {}
    for lo, hi, new in itertools.chain(*case.hunks.values()):
        if lo == hi:
            found.setdefault(lo, Counter()).update([tuple(new)])
    return list(found.values())


def planned(strategy: str, dice: random.Random) -> Planned:
    case = Planned.of(dice, dice.choice([2, 3, 3, 4]))
    if strategy == "append" and dice.random() < 0.7:
        end = len(case.base)
        case.hunks = {agent: [hunk for hunk in mine if hunk[0] == end] for agent, mine in case.hunks.items()}
    return case


def check_row(strategy: str, seen: Counter[str], dice: random.Random) -> None:
    row, case = TABLE[strategy], planned(strategy, dice)
    base, sides = case.applied([]), case.sides
    outcome = merge(strategy, base, sides)
    assert bool(outcome.conflicts) == row.conflict(case)
    seen["conflict" if outcome.conflicts else "clean"] += 1

    turned = dict(dice.sample(list(sides.items()), len(sides)))
    other = merge(strategy, base, turned)
    if row.commutative == "no":
        seen["order tells"] += other.value != outcome.value
    else:
        assert said(other) == said(outcome)
        if row.commutative == "yes" or not (strategy == "append" or any(len(point) > 1 for point in points(case))):
            assert other.value == outcome.value
        else:
            assert sorted(lines(other.value)) == sorted(lines(outcome.value))
            seen["order tells"] += other.value != outcome.value

    doubled = merge(strategy, base, {**sides, **{agent + " again": side for agent, side in sides.items()}})
    if row.idempotent:
        assert bool(doubled.conflicts) == bool(outcome.conflicts)
        assert doubled.value == outcome.value
    else:
        seen["twice tells"] += doubled.value != outcome.value

    if not outcome.conflicts:
        (first, one), (second, two), *rest = sides.items()
        pair = merge(strategy, base, {first: one, second: two})
        assert not pair.conflicts
        folded = merge(strategy, base, {first: pair.value, **dict(rest)})
        assert not folded.conflicts
        if row.idempotent and any(len(point) > 1 and max(point.values()) > 1 for point in points(case)):
            # Why all agents are merged in one pass: a pair's additions are one addition to whoever comes third.
            assert set(lines(folded.value)) == set(lines(outcome.value))
        else:
            assert folded.value == outcome.value
            seen["folded"] += len(rest) > 0

    check_everywhere(strategy, base, sides, outcome)


def check_everywhere(strategy: str, base: bytes, sides: Sides, outcome: Merged) -> None:
    """What holds for any texts, whatever the edits were."""
    if TABLE[strategy].lossless:
        for agent, side in sides.items():
            kept = Counter(lines(outcome.value))
            for conflict in outcome.conflicts:
                kept.update(lines(conflict.sides.get(agent, b"")))
            lost = added(strategy, base, side) - kept
            assert not lost, f"{strategy} lost {lost} of {agent}"
    with_idle = merge(strategy, base, {"idle": base, **sides})
    assert (with_idle.value, said(with_idle)) == (outcome.value, said(outcome))
    assert outcome.changes.keys() == changed(base, sides).keys()
    assert all(count > 0 for count in outcome.changes.values())
    for agent, side in sides.items():
        assert merge(strategy, base, {agent: side}).value == side
    if outcome.conflicts and strategy in ("append", "binary"):
        assert outcome.value == base


def run_row(strategy: str, seeds: range) -> None:
    seen: Counter[str] = Counter()
    each(seeds, partial(check_row, strategy, seen))
    row = TABLE[strategy]
    # The cases show what they are to show; also that "no" in the table is no understatement.
    assert seen["clean"] > len(seeds) / 20
    assert (seen["conflict"] > len(seeds) / 20) == (row.conflict is not never)
    assert (seen["order tells"] > 0) == (row.commutative != "yes")
    assert (seen["twice tells"] > 0) == (not row.idempotent)
    assert seen["folded"] > len(seeds) / 50


@BY_STRATEGY
def test_the_table(strategy: str) -> None:
    run_row(strategy, range(400))


@pytest.mark.soak
@pytest.mark.timeout(900)
@BY_STRATEGY
def test_the_table_at_length(strategy: str) -> None:
    run_row(strategy, range(1000, 21_000))


def check_wild(strategy: str, dice: random.Random) -> None:
    case = Wild.of(dice, dice.choice([1, 2, 3, 3]), most=dice.choice([1, 3, 8]))
    sides = {f"agent{number}": side for number, side in enumerate(case.sides)}
    if strategy == "append" and dice.random() < 0.7:
        sides = {agent: case.base + side for agent, side in sides.items()}
    outcome = merge(strategy, case.base, sides)
    check_everywhere(strategy, case.base, sides, outcome)
    row = TABLE[strategy]
    if row.commutative != "no":
        other = merge(strategy, case.base, dict(reversed(sides.items())))
        assert said(other) == said(outcome)
        if strategy == "append":  # the first one may complete a last line without a newline
            assert sorted(other.value.translate(None, b"\r\n")) == sorted(outcome.value.translate(None, b"\r\n"))
        else:
            assert sorted(lines(other.value)) == sorted(lines(outcome.value))
    if row.idempotent:
        doubled = merge(strategy, case.base, {**sides, **{agent + " again": side for agent, side in sides.items()}})
        assert doubled.value == outcome.value
        assert [conflict.path for conflict in doubled.conflicts] == [conflict.path for conflict in outcome.conflicts]


@BY_STRATEGY
def test_any_text(strategy: str) -> None:
    each(range(300), partial(check_wild, strategy))


@pytest.mark.soak
@pytest.mark.timeout(900)
@BY_STRATEGY
def test_any_text_at_length(strategy: str) -> None:
    each(range(1000, 21_000), partial(check_wild, strategy))
