"""Differences between sequences: they are right, small, and found without looking at everything twice over."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.merge.lines import Hunk, hunks


def applied(base: Sequence[Any], changes: list[Hunk[Any]]) -> list[Any]:
    """What the hunks make of the base; they are in order, none is empty, and none touches the next."""
    out: list[Any] = []
    at = 0
    for number, (lo, hi, new) in enumerate(changes):
        assert (at < lo or number == 0) and lo <= hi
        assert lo < hi or new
        out += [*base[at:lo], *new]
        at = hi
    return [*out, *base[at:]]


@given(st.lists(st.integers(0, 4), max_size=14), st.lists(st.integers(0, 4), max_size=14))
@settings(max_examples=500, deadline=None)
def test_hunks_turn_one_sequence_into_the_other(base: list[int], side: list[int]) -> None:
    found = hunks(base, side)
    assert applied(base, found) == side
    assert all(base[lo:hi] != new for lo, hi, new in found)
    if side[: len(base)] == base and side != base:
        assert found == [(len(base), len(base), side[len(base) :])]


class Item:
    """Counts how often two are compared. Equal ones are different objects, as lines of different files are."""

    compared = 0

    def __init__(self, name: object) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        Item.compared += 1
        return isinstance(other, Item) and self.name == other.name


def edited(dice: random.Random, names: list[str], edits: int) -> list[str]:
    """At most 20 items put in or taken out by each edit."""
    out = list(names)
    for number in range(edits):
        at, size = dice.randrange(len(out)), dice.randint(1, 10)
        match dice.randint(0, 2):
            case 0:
                out[at : at + size] = [f"new {number}.{item}" for item in range(size)]
            case 1:
                out[at:at] = names[:size]
            case _:
                del out[at : at + size]
    return out


LENGTH, EDITS = 20_000, 30


def shapes() -> Iterator[tuple[str, list[str], list[str], int]]:
    """(name, base, side, the most items put in and taken out)"""
    dice = random.Random(1)
    numbers = [f"{number}" for number in range(LENGTH)]
    shuffled = dice.sample(numbers, LENGTH)
    few = 20 * EDITS
    yield "unique", numbers, edited(dice, numbers, EDITS), few
    yield "one moved block", numbers, [*numbers[:50], *numbers[300:12_000], *numbers[50:300], *numbers[12_000:]], 500
    yield (
        "a longer block moved past",
        numbers,
        [*numbers[:50], *numbers[150:650], *numbers[50:150], *numbers[650:]],
        200,
    )
    yield "the same again and again", ["x"] * LENGTH, edited(dice, ["x"] * LENGTH, EDITS), few
    yield "in turns", ["a", "b"] * (LENGTH // 2), ["b", "a"] * (LENGTH // 2), 2
    yield "in turns, edited", ["a", "b"] * (LENGTH // 2), edited(dice, ["a", "b"] * (LENGTH // 2), EDITS), few
    for words in (2, 3, 10, 1000):
        chosen = dice.choices(numbers[:words], k=LENGTH)
        yield f"{words} words", chosen, edited(dice, chosen, EDITS), few
        yield f"{words} words, unrelated", chosen, dice.choices(numbers[:words], k=LENGTH), 2 * LENGTH
    yield "nothing in common", numbers, [f"other {number}" for number in range(LENGTH)], 2 * LENGTH
    yield "shuffled", numbers, shuffled, 2 * LENGTH
    yield "reversed", numbers, numbers[::-1], 2 * LENGTH
    yield "all twice, turned", numbers[:10_000] * 2, shuffled[:10_000] * 2, 2 * LENGTH
    yield "halves swapped", numbers, numbers[12_000:] + numbers[:12_000], 16_000
    yield "one item", ["x"], ["y"], 2
    yield "nothing before", [], numbers, LENGTH
    yield "nothing after", numbers, [], LENGTH


SHAPES = {name: rest for name, *rest in shapes()}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_is_compared_pair_by_pair(shape: str) -> None:
    base, side, most = SHAPES[shape]
    Item.compared = 0
    found = hunks(list(map(Item, base)), list(map(Item, side)))
    compared = Item.compared
    assert [item.name for item in applied(list(map(Item, base)), found)] == side
    assert compared < 4_000_000, "all pairs are 400,000,000"
    assert sum(hi - lo + len(new) for lo, hi, new in found) <= most


def test_a_short_edit_of_a_long_sequence_costs_what_it_changes() -> None:
    names = [f"{number}" for number in range(LENGTH)]
    base, side = list(map(Item, names)), list(map(Item, [*names[:9000], "new", *names[9001:], "end"]))
    Item.compared = 0
    assert [(lo, hi, [item.name for item in new]) for lo, hi, new in hunks(base, side)] == [
        (9000, 9001, ["new"]),
        (LENGTH, LENGTH, ["end"]),
    ]
    assert Item.compared < 12 * LENGTH


def test_a_line_that_was_put_in_is_not_taken_for_the_one_it_copies() -> None:
    names = [f"{number}" for number in range(LENGTH)]
    put_in = ["new", names[5000], "new", "new"]
    side = [*names[:5000], *put_in, *names[5000:15_000], "end", *names[15_000:]]
    assert hunks(names, side) == [(5000, 5000, put_in), (15_000, 15_000, ["end"])]


@pytest.mark.parametrize("make", [list, tuple, lambda names: list(map(str.encode, names))])
def test_any_sequence_of_anything_will_do(make: Callable[[list[str]], Sequence[Any]]) -> None:
    names = [f"{number % 1500}" for number in range(2000)]
    side = edited(random.Random(7), names, 5)
    assert applied(make(names), hunks(make(names), make(side))) == list(make(side))
