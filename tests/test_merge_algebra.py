"""The algebra of merging values: what must hold for any base and any sides."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.merge import MISSING, Merged, Options, merge, merge_values
from agentguard.merge.documents import JSON
from agentguard.merge.values import canon, extent, order, same

SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, -0.0, 2**65, "", "x", "é", "a\nb\n"])
KEYS = st.sampled_from(["a", "b", "c", "id"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


class Edits:
    """Random edits; every text that an agent puts in is its own, so that it can be looked for afterwards."""

    def __init__(self, draw: st.DrawFn, agent: str) -> None:
        self.draw, self.agent, self.numbers = draw, agent, itertools.count()

    def fresh(self) -> Any:
        mark = f"{self.agent}-{next(self.numbers)}"
        return self.draw(st.sampled_from([mark, {"id": mark}, [mark], {"a": {"b": mark}}]))

    def edited(self, value: Any) -> Any:
        action = self.draw(st.sampled_from(["keep", "keep", "deeper", "deeper", "deeper", "replace"]))
        if action == "keep":
            return value
        if action == "replace" or type(value) not in (dict, list):
            return self.fresh()
        if type(value) is list:
            out = [self.edited(item) for item in value if self.draw(st.integers(0, 5))]
            if self.draw(st.booleans()):
                out.insert(self.draw(st.sampled_from([0, len(out), len(out)])), self.fresh())
            return out
        out = {key: self.edited(item) for key, item in value.items() if self.draw(st.integers(0, 5))}
        if self.draw(st.booleans()):
            out[self.draw(KEYS | st.just("new"))] = self.fresh()
        return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, dict[str, Any]]:
    base = draw(st.dictionaries(KEYS, VALUES, max_size=4) | st.lists(VALUES, max_size=4))
    agents = [f"<{number}>" for number in range(draw(st.integers(2, 3)))]
    return base, {agent: Edits(draw, agent).edited(base) for agent in agents}


def unordered(value: Any) -> bytes:
    """A name for a value in which the order of list elements does not count."""
    if type(value) is dict:
        return canon({key: unordered(item).hex() for key, item in value.items()})
    return b"".join(sorted(map(unordered, value))) + b"]" if type(value) is list else canon(value)


def conflict_set(outcome: Merged) -> set[tuple[str, bytes, tuple[tuple[str, bytes], ...]]]:
    def name(value: object) -> bytes:
        return b"gone" if value is MISSING else canon(value)

    return {
        (c.path, name(c.base), tuple(sorted((agent, name(value)) for agent, value in c.sides.items())))
        for c in outcome.conflicts
    }


def texts(value: Any) -> set[str]:
    if type(value) is dict:
        return set().union(*map(texts, value.values()))
    if type(value) is list:
        return set().union(*map(texts, value))
    return {value} if type(value) is str else set()


def repeats(value: Any) -> bool:
    if type(value) is dict:
        return any(map(repeats, value.values()))
    return type(value) is list and (len(set(map(canon, value))) < len(value) or any(map(repeats, value)))


def check_algebra(base: Any, sides: dict[str, Any], paths: dict[str, str]) -> None:
    options = Options(paths=paths)
    outcome = merge_values(base, sides, options)

    # Commutative: another order of agents can only reorder what several of them added at the end of a list.
    for turned in itertools.permutations(sides.items()):
        other = merge_values(base, dict(turned), options)
        assert unordered(other.value) == unordered(outcome.value)
        assert conflict_set(other) == conflict_set(outcome)

    # Idempotent: whoever did the same thing as another adds nothing.
    doubled = merge_values(base, {**sides, **{agent + "'": side for agent, side in sides.items()}}, options)
    if "append" not in paths.values():
        assert same(doubled.value, outcome.value)
        assert [c.path for c in doubled.conflicts] == [c.path for c in outcome.conflicts]

    # Merging with the base, or with nobody, changes nothing.
    assert same(merge_values(base, {**sides, "idle": base}, options).value, outcome.value)
    for agent, side in sides.items():
        assert same(merge_values(base, {agent: side}, options).value, side)

    # Nothing that anybody wrote is missing from the result and the conflicts together.
    kept = texts(outcome.value).union(*(texts(side) for c in outcome.conflicts for side in c.sides.values()))
    for side in sides.values():
        assert texts(side) - texts(base) <= kept

    # Associative: merging two first and the third later is the same, where nothing is in conflict. Elements that repeat
    # are left out: which one of them was removed has several readings, and the merge of two may suggest another.
    if len(sides) == 3 and not outcome.conflicts and not repeats(base):
        (a, av), (b, bv), (c, cv) = sides.items()
        pair = merge_values(base, {a: av, b: bv}, options)
        assert not pair.conflicts
        folded = merge_values(base, {a: pair.value, c: cv}, options)
        assert not folded.conflicts
        assert unordered(folded.value) == unordered(outcome.value)

    assert all(count > 0 for count in outcome.changes.values())
    assert outcome.changes.keys() == {agent for agent, side in sides.items() if not same(side, base)}


PATHS = st.sampled_from(
    [{}, {}, {"/a": "set"}, {"/**": "json"}, {"/a": "append", "/b": "append"}, {"/*": "binary"}, {"/a": "list:id"}]
)


@given(cases(), PATHS)
@settings(max_examples=300, deadline=None)
def test_the_algebra_of_values(case: tuple[Any, dict[str, Any]], paths: dict[str, str]) -> None:
    check_algebra(*case, paths)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@given(cases(), PATHS)
@settings(max_examples=20_000, deadline=None)
def test_the_algebra_of_values_at_length(case: tuple[Any, dict[str, Any]], paths: dict[str, str]) -> None:
    check_algebra(*case, paths)


NUMBERS = st.integers(-(10**25), 10**25)
NUMBER_CASES = st.tuples(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=5))


def check_numbers(strategy: str, base: int, sides: list[int]) -> None:
    named = {f"a{number}": json.dumps(side).encode() for number, side in enumerate(sides)}
    outcome = merge(strategy, json.dumps(base).encode(), named)
    changed = [side for side in sides if side != base]
    expected = {
        "counter": base + sum(side - base for side in sides),
        "max": max(changed, default=base),
        "min": min(changed, default=base),
    }
    assert not outcome.conflicts
    assert json.loads(outcome.value) == expected[strategy]
    # In any order, and, as it is one sum or one extreme, in any grouping.
    turned = merge(strategy, json.dumps(base).encode(), dict(reversed(named.items())))
    assert json.loads(turned.value) == expected[strategy]
    if len(changed) > 2:
        pair = merge(strategy, json.dumps(base).encode(), dict(list(named.items())[:-1])).value
        if json.loads(pair) != base and sides[-1] != base:
            folded = merge(strategy, json.dumps(base).encode(), {"pair": pair, "last": named[f"a{len(sides) - 1}"]})
            assert json.loads(folded.value) == expected[strategy]


SET_CASES = st.tuples(st.lists(SCALARS, max_size=6), st.lists(st.lists(SCALARS, max_size=6), min_size=2, max_size=4))


def check_sets(base: list[Any], sides: list[list[Any]]) -> None:
    named = {f"a{number}": side for number, side in enumerate(sides)}
    options = Options(paths={"": "set"})
    outcome = merge_values(base, named, options)
    if len({canon(side) for side in sides if not same(side, base)}) < 2:
        return  # one version wins as it is, repeated elements included
    old, new = set(map(canon, base)), [set(map(canon, side)) for side in sides]
    result = list(map(canon, outcome.value))
    assert len(result) == len(set(result))
    assert set(result) == (old - set().union(*(old - side for side in new))) | set().union(
        *(side - old for side in new)
    )
    turned = merge_values(base, dict(reversed(named.items())), options)
    assert same(turned.value, outcome.value)


RECORDS = st.dictionaries(
    st.sampled_from("abcd"), st.dictionaries(st.sampled_from("xyz"), SCALARS, max_size=3), max_size=4
)
RECORD_CASES = st.tuples(RECORDS, st.lists(RECORDS, min_size=2, max_size=4))


def check_records(base: dict[str, Any], sides: list[dict[str, Any]]) -> None:
    """A list by key is a mapping of its records: the same result and the same conflicts, wherever a record stands."""

    def listed(value: dict[str, Any]) -> list[Any]:
        return [{"id": name, **record} for name, record in value.items()]

    named = {f"a{number}": side for number, side in enumerate(sides)}
    outcome = merge_values(listed(base), {a: listed(side) for a, side in named.items()}, Options(paths={"": "list:id"}))
    whole = merge_values(
        {record["id"]: record for record in listed(base)},
        {a: {record["id"]: record for record in listed(side)} for a, side in named.items()},
    )
    if len({canon(side) for side in sides if not same(side, base)}) > 1:
        assert same({record["id"]: record for record in outcome.value}, whole.value)
        assert conflict_set(outcome) == conflict_set(whole)
    # A key that is missing or stands twice is a conflict about the list.
    broken = merge_values(
        listed(base),
        {"a": [*listed(base), {"x": 1}], "b": [*listed(base), {"id": "new"}]},
        Options(paths={"": "list:id"}),
    )
    assert [conflict.path for conflict in broken.conflicts] == [""]


def check_places(case: tuple[Any, dict[str, Any]]) -> None:
    """`first` and `last` never conflict and take what they say; `binary` agrees or conflicts as a whole."""
    base, sides = case
    changed = [side for side in sides.values() if not same(side, base)]
    for strategy, at in (("first", 0), ("last", -1)):
        outcome = merge_values(base, sides, Options(paths={"": strategy}))
        assert not outcome.conflicts
        assert same(outcome.value, changed[at] if changed else base)
    outcome = merge_values(base, sides, Options(paths={"": "binary"}))
    versions = {canon(side) for side in changed}
    assert len(outcome.conflicts) == (len(versions) > 1)
    assert same(outcome.value, changed[0] if len(versions) == 1 else base)


CHECKS = {
    "counter": (NUMBER_CASES, lambda case: check_numbers("counter", *case)),
    "max": (NUMBER_CASES, lambda case: check_numbers("max", *case)),
    "min": (NUMBER_CASES, lambda case: check_numbers("min", *case)),
    "set": (SET_CASES, lambda case: check_sets(*case)),
    "list:KEY": (RECORD_CASES, lambda case: check_records(*case)),
    "first, last, binary": (cases(), check_places),
}


@pytest.mark.parametrize("strategy", CHECKS)
def test_the_algebra_of_a_place(strategy: str) -> None:
    checked(strategy, 300)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", CHECKS)
def test_the_algebra_of_a_place_at_length(strategy: str) -> None:
    checked(strategy, 20_000)


def checked(strategy: str, examples: int) -> None:
    made, check = CHECKS[strategy]
    given(made)(settings(max_examples=examples, deadline=None)(check))()


@given(VALUES, VALUES)
@settings(max_examples=500, deadline=None)
def test_equality_is_strict(a: Any, b: Any) -> None:
    texts = [json.dumps(value, sort_keys=True) for value in (a, b)]
    assert same(a, b) == (texts[0] == texts[1]) == (canon(a) == canon(b)) == (extent(a, b) == 0)
    assert same(a, json.loads(texts[0]))
    assert sorted([a, b], key=order) == sorted([b, a], key=order)


@given(VALUES, st.sampled_from([None, 2, 4, "\t"]), st.booleans(), st.sampled_from([b"", b"\n"]))
@settings(max_examples=300, deadline=None)
def test_json_reads_back_in_any_style(value: Any, indent: Any, ascii_only: bool, end: bytes) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode() + end
    assert same(JSON.value(data), value)
    again = JSON.write(value, data)
    assert same(JSON.value(again), value)
    if type(value) in (dict, list) and value and indent is not None and (ascii_only == data.isascii()):
        assert again == data or b"\\u" not in data
