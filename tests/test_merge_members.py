"""Big JSON objects, member by member: the same as a whole reading, and every byte kept that nobody changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.codecs.jsontext import Style
from agentguard.codecs.values import same
from agentguard.exceptions import MergeConflict
from agentguard.merge import Conflict, Merged, Options, members, merge, segments
from agentguard.merge.documents import JSON, merge_document
from agentguard.merge.members import merge_members
from agentguard.merge.segments import Layout, Whole, cut

KEYS = st.sampled_from(["a", "b", "c/d", "é", "two words", "~"])
SCALARS = st.sampled_from([None, True, 1, 1.0, -0.0, 2**65, "", "x", "é\n"])
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=2) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)
LAYOUTS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{"indent": 2}, {"indent": "\t"}, {}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"sort_keys": True}]
)
PATHS = st.sampled_from([{}, {}, {"/a": "counter"}, {"/a/b": "last"}, {"/*": "binary"}, {"": "first"}])


@pytest.fixture(autouse=True)
def _every_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(members, "LARGE", 0)
    monkeypatch.setattr(members, "_PART", 0)
    yield


@st.composite
def cases(draw: st.DrawFn) -> tuple[bytes, dict[str, bytes], bool]:
    base = draw(OBJECTS)
    layout = draw(LAYOUTS)

    def edited(value: dict[str, Any]) -> dict[str, Any]:
        out = {key: item for key, item in value.items() if draw(st.integers(0, 4))}
        for key in draw(st.lists(KEYS, max_size=2)):
            inside = out.get(key)
            out[key] = edited(inside) if isinstance(inside, dict) and draw(st.booleans()) else draw(VALUES)
        return out

    own = draw(st.booleans())
    sides = {
        f"agent{number}": json.dumps(edited(base), **(draw(LAYOUTS) if own else layout)).encode()
        for number in range(draw(st.integers(1, 3)))
    }
    data = json.dumps(base, **layout).encode() + draw(st.sampled_from([b"", b"\n"]))
    return data, {agent: side for agent, side in sides.items() if side != data}, own


def check(case: tuple[bytes, dict[str, bytes], bool], paths: dict[str, str]) -> bool:
    base, sides, own = case
    if not sides:
        return False
    options = Options("r.json", paths)
    taken, whole = merge_members(base, sides, options), merge_document(JSON, base, sides, options)
    if taken is None:
        assert paths == {"": "first"}
        return False
    assert same(JSON.value(taken.value), JSON.value(whole.value))
    assert list(JSON.value(taken.value)) == list(JSON.value(whole.value)) or len(sides) > 1
    assert [_named(c) for c in taken.conflicts] == [_named(c) for c in whole.conflicts]
    assert taken.changes == whole.changes
    if not own:
        assert taken.value.endswith(b"\n") == base.endswith(b"\n") or len(sides) == 1
    return True


def _named(conflict: Conflict) -> tuple[str, str, dict[str, str], str]:
    return conflict.path, repr(conflict.base), {k: repr(v) for k, v in conflict.sides.items()}, conflict.reason


@given(cases(), PATHS)
@settings(max_examples=300, deadline=None)
def test_the_same_as_a_whole_reading(case: tuple[bytes, dict[str, bytes], bool], paths: dict[str, str]) -> None:
    check(case, paths)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@given(cases(), PATHS)
@settings(max_examples=20_000, deadline=None)
def test_the_same_as_a_whole_reading_at_length(
    case: tuple[bytes, dict[str, bytes], bool], paths: dict[str, str]
) -> None:
    check(case, paths)


def merged(base: bytes, *sides: bytes, **options: Any) -> Merged:
    found = merge_members(base, {f"agent{n}": side for n, side in enumerate(sides)}, Options("r.json", **options))
    assert found is not None
    return found


def test_what_nobody_changed_keeps_its_bytes() -> None:
    base = b'{\n  "a": {"x":  1.50, "y": [1,2 , 3]},\n  "b": {"n": 1e2, "m": 2},\n  "gone": 0\n}\n'
    one = base.replace(b'"n": 1e2', b'"n": 7.0')
    two = base.replace(b'"m": 2', b'"m": 3').replace(b',\n  "gone": 0', b',\n  "new": {"k": 1}')
    assert merged(base, one, two).value == (
        b'{\n  "a": {"x":  1.50, "y": [1,2 , 3]},\n  "b": {"n": 7.0, "m": 3},\n  "new": {"k": 1}\n}\n'
    )


def test_a_conflict_leaves_the_very_bytes_of_the_base() -> None:
    base = b'{"a":  [1, 2.0], "b": 1}'
    outcome = merged(base, b'{"a": 3, "b": 1}', b'{"a": 4, "b": 1}')
    assert [(c.path, c.base, dict(c.sides)) for c in outcome.conflicts] == [
        ("/a", [1, 2.0], {"agent0": 3, "agent1": 4})
    ]
    assert outcome.value == base


def test_an_answer_of_a_resolver_is_written_in_the_style_that_is_there() -> None:
    base = b'{\n    "a": {\n        "x": 1\n    },\n    "b": 1\n}'
    sides = [base.replace(b"1\n    }", b"%d\n    }" % n) for n in (2, 3)]
    outcome = merged(base, *sides, resolve=lambda conflict: {"both": sorted(conflict.sides.values())})
    assert outcome.value.decode() == (
        '{\n    "a": {\n        "x": {\n            "both": [\n                2,\n                3\n            ]\n'
        '        }\n    },\n    "b": 1\n}'
    )


BROKEN = [
    b'{"a": 1, "a": 2}',
    b'{"a": 1, "\\u0061": 2}',
    b'{"a\\"": 1, "b": 2}',
    b'{"a": NaN}',
    b'{"a": "\xff"}',
    b'{"a": 1,}',
    b'{"a": {"x": 1, "x": 2}}',
    b'\xef\xbb\xbf{"a": 1}',
    b'{"a": "\\ud800"}',
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"[1]",
    b"{",
]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("place", ["base", "agent"])
def test_what_it_cannot_judge_is_left_to_the_whole_reading(broken: bytes, place: str) -> None:
    base, one = (broken, b'{"a": 0}') if place == "base" else (b'{"a": 0}', broken)
    sides = {"one": one, "two": b'{"a": 0, "c": 1}'}
    assert merge_members(base, sides, Options("r.json")) is None
    try:
        merge("json", base, sides, Options("r.json"))
    except MergeConflict as refused:
        assert refused.agent == ("the base" if place == "base" else "one")
    else:  # valid, though not for this shortcut
        assert broken in (b'{"a\\"": 1, "b": 2}', b"[1]", b'{"a": "\\ud800"}')


def test_no_base_and_other_strategies_are_left_to_the_whole_reading() -> None:
    assert merge_members(None, {"a": b"{}", "b": b'{"x": 1}'}, Options()) is None
    assert merge_members(b'{"x": 0}', {"a": b"{}", "b": b'{"x": 1}'}, Options(paths={"": "last"})) is None


def test_only_big_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert merge_members(b'{"x": 0}', {"a": b"{}", "b": b'{"x": 1}'}, Options()) is None
    big = json.dumps({f"key {n}": n for n in range(50_000)}, indent=2).encode()
    sides = {"a": big.replace(b": 7,", b": -7,"), "b": big.replace(b": 8,", b": -8,")}
    assert merge("json", big, sides).value == big.replace(b": 7,", b": -7,").replace(b": 8,", b": -8,")


LINES = b'{\n  "a": 1,\n  "b": {"x": [1, 2]},\n  "c": "cc",\n  "d": 4\n}\n'


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (b"", b"", {}),
        (b'"b": {"x": [1, 2]}', b'"b": {"x": [1]}', {"b": b'{"x": [1]}'}),
        (b'"a": 1', b'"a": 11', {"a": b"11"}),
        (b'"d": 4', b'"d": 44', {"d": b"44"}),
        (b'  "a": 1,\n', b"", {"a": None}),
        (b'  "b": {"x": [1, 2]},\n  "c": "cc",\n', b"", {"b": None, "c": None}),
        (b',\n  "d": 4', b"", {"d": None}),
        (b'  "a": 1', b'  "n": 0,\n  "a": 1', {"n": b"0"}),
        (b'  "c"', b'  "n": {"c": 1},\n  "c"', {"n": b'{"c": 1}'}),
        (b'"d": 4', b'"d": 4,\n  "n": []', {"n": b"[]"}),
        (b'"cc"', b'"c, \\"d\\": 4"', {"c": b'"c, \\"d\\": 4"'}),
        (b'"b": {', b'"b":  {', {}),  # another layout, and the same bytes of a value
        (b'"a": 1,\n  "b": {"x": [1, 2]}', b'"b": {"x": [1, 2]},\n  "a": 1', {}),
        (b'  "c": "cc",\n  "d": 4', b'  "d": 4,\n  "c": "cc"', None),  # moved further than one looks
        (b'"d": 4', b'"d": 4,\n  "a": 1', None),  # twice
        (b'"c": "cc"', b'"c": "cc",\n  "c": 1', None),
        (b'"d": 4\n}', b'"d": 4}', None),
        (b"{\n", b"[\n", None),
        (b"{\n", b" {\n", None),
        (b'"b": {"x": [1, 2]}', b'"b": {"x": [1, 2]', None),
        (b'"b": {"x": [1, 2]}', b'"b": {"x": [1, 2]}}', None),
        (b'"b": {"x": [1, 2]}', b'"b": 1}, {"x": 2', None),
    ],
)
def test_what_a_version_changed_is_told_from_its_bytes(old: bytes, new: bytes, changes: dict[str, Any] | None) -> None:
    assert old in LINES
    _, cut_up = cut(LINES, Layout.of(Style.of(LINES), 1))
    assert cut_up is not None
    found = cut_up.changes(LINES.replace(old, new, 1))
    assert (found and {key: raw and bytes(raw) for key, raw in found.items()}) == changes


def test_a_text_of_another_layout_is_not_cut() -> None:
    for text in (LINES.replace(b'"a": 1', b'"a":1'), LINES.replace(b"}\n", b"} \n"), b"{}", b'{"a": 1, "a": 2}'):
        try:
            _, cut_up = cut(text, Layout.of(Style.of(text), 1))
        except Whole:
            assert text == b'{"a": 1, "a": 2}'
        else:
            assert cut_up is None


def test_a_difference_is_found_wherever_it_is() -> None:
    text = bytes(range(256)) * 40
    for length in (0, 1, 511, 512, 513, 1535, 1536, 5000, len(text) - 1, len(text)):
        other = text[:length] + b"\n\n" + text[length:]
        shared = length + (text[length : length + 1] == b"\n")
        assert segments._common(text, 0, other, 0) == shared
        assert segments._common(b"xy" + text, 2, other, 0) == shared
    assert segments._common(text, 7, text, 7) == len(text) - 7
