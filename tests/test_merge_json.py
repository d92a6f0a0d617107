"""Merging JSON: the cases that libraries get wrong, strictness about input, the style of the output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentguard.exceptions import ConfigError, MergeConflict
from agentguard.merge import MISSING, Conflict, Merged, Options, merge, merge_values


def values(base: Any, *sides: Any, **options: Any) -> Merged:
    named = {f"agent{number}": side for number, side in enumerate(sides)}
    return merge_values(base, named, Options(resource="r.json", **options))


def files(base: bytes | None, *sides: bytes | None, **options: Any) -> Merged:
    return merge(
        "json",
        base,
        {f"agent{number}": side for number, side in enumerate(sides)},
        Options(resource="r.json", **options),
    )


def paths(outcome: Merged) -> list[str]:
    return [conflict.path for conflict in outcome.conflicts]


CLEAN: dict[str, tuple[Any, list[Any], Any]] = {
    "different keys": ({"a": 1, "b": 1}, [{"a": 2, "b": 1}, {"a": 1, "b": 2}], {"a": 2, "b": 2}),
    "new keys": ({}, [{"b": 1}, {"a": 2}], {"b": 1, "a": 2}),
    "nested": ({"x": {"a": 1}}, [{"x": {"a": 2}}, {"x": {"a": 1, "b": 3}}], {"x": {"a": 2, "b": 3}}),
    "the same change": ({"a": 1}, [{"a": 2}, {"a": 2}], {"a": 2}),
    "one deletes, others do not care": ({"a": 1, "b": 1}, [{"b": 1}, {"a": 1, "b": 2}], {"b": 2}),
    "both delete": ({"a": 1, "b": 1, "c": 1}, [{"b": 1, "c": 2}, {"b": 1, "c": 1}], {"b": 1, "c": 2}),
    "null is a value": ({"a": 1}, [{"a": None}, {"a": 1, "b": 1}], {"a": None, "b": 1}),
    "both add one mapping": ({}, [{"m": {"a": 1}}, {"m": {"b": 2}}], {"m": {"a": 1, "b": 2}}),
    "both append": ({"f": [1]}, [{"f": [1, 2]}, {"f": [1, 3]}], {"f": [1, 2, 3]}),
    "both append the same": ({"f": [1]}, [{"f": [1, 2]}, {"f": [1, 2]}, {"f": [1, 3]}], {"f": [1, 2, 3]}),
    "both append to a list at the top": ([], [[{"n": 1}], [{"n": 2}], [{"n": 3}]], [{"n": 1}, {"n": 2}, {"n": 3}]),
    "edit and append": ([1, 2, 3], [[1, 2, 3, 4], [0, 2, 3, 5]], [0, 2, 3, 4, 5]),
    "two deletions": ([1, 2, 3, 4], [[2, 3, 4], [1, 2, 3]], [2, 3]),
    "fields of one element": (
        [{"id": 1, "a": 0, "b": 0}, 9],
        [[{"id": 1, "a": 1, "b": 0}, 9], [{"id": 1, "a": 0, "b": 1}, 9]],
        [{"id": 1, "a": 1, "b": 1}, 9],
    ),
    "true over one": ({"a": 1}, [{"a": True}, {"a": 1, "b": 1}], {"a": True, "b": 1}),
    "one over 1.0": ({"a": 1.0}, [{"a": 1}, {"a": 1.0, "b": 1}], {"a": 1, "b": 1}),
    "deep true over one": (
        {"a": {"b": [1]}},
        [{"a": {"b": [True]}}, {"a": {"b": [1]}, "c": 0}],
        {"a": {"b": [True]}, "c": 0},
    ),
    "minus zero over zero": ({"a": 0.0}, [{"a": -0.0}, {"a": 0.0, "b": 1}], {"a": -0.0, "b": 1}),
    "added by all, no base": (MISSING, [{"a": 1}, {"b": 2}], {"a": 1, "b": 2}),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean(name: str) -> None:
    base, sides, result = CLEAN[name]
    outcome = values(base, *sides)
    assert not outcome.conflicts
    # Compared as texts: for Python, {"a": True} == {"a": 1}.
    assert json.dumps(outcome.value, sort_keys=True) == json.dumps(result, sort_keys=True)


CONFLICTS: dict[str, tuple[Any, list[Any], list[str], Any]] = {
    "one leaf": ({"a": 0, "b": 0}, [{"a": 1, "b": 1}, {"a": 2, "b": 0}], ["/a"], {"a": 0, "b": 1}),
    "true and one": ({"a": 0}, [{"a": 1}, {"a": True}], ["/a"], {"a": 0}),
    "one and 1.0": ({"a": 0}, [{"a": 1}, {"a": 1.0}], ["/a"], {"a": 0}),
    "delete and change": ({"a": {"b": 1}}, [{}, {"a": {"b": 2}}], ["/a"], {"a": {"b": 1}}),
    "null and delete": ({"a": 1}, [{"a": None}, {}], ["/a"], {"a": 1}),
    "types": ({"a": 0}, [{"a": {}}, {"a": []}], ["/a"], {"a": 0}),
    "new key, other values": ({}, [{"a": 1}, {"a": 2}], ["/a"], {}),
    "escaped": ({"a/b~": {"": 0}}, [{"a/b~": {"": 1}}, {"a/b~": {"": 2}}], ["/a~1b~0/"], {"a/b~": {"": 0}}),
    "insertions inside": ({"f": [1, 2]}, [{"f": [1, 8, 2]}, {"f": [1, 9, 2]}], ["/f"], {"f": [1, 2]}),
    "replaced element": (
        [{"id": 1, "a": 0}, 9],
        [[{"id": 2, "a": 0}, 9], [{"id": 1, "a": 1}, 9]],
        [""],
        [{"id": 1, "a": 0}, 9],
    ),
    "replaced element without an identity": (
        [{"x": 0, "y": 0, "z": 0}, 9],
        [[{"x": 1, "y": 1, "z": 0}, 9], [{"x": 0, "y": 0, "z": 2}, 9]],
        [""],
        [{"x": 0, "y": 0, "z": 0}, 9],
    ),
    "a list that is in conflict as a whole": (
        [{"id": 1, "a": 0}, 8, 9],
        [[{"id": 1, "a": 1}, 8, 7, 9], [{"id": 1, "a": 2}, 8, 6, 9]],
        [""],
        [{"id": 1, "a": 0}, 8, 9],
    ),
    "one field of an element": (
        [{"id": 1, "a": 0}, 9],
        [[{"id": 1, "a": 1}, 9], [{"id": 1, "a": 2}, 9]],
        ["/0/a"],
        [{"id": 1, "a": 0}, 9],
    ),
    "all in one pass": (
        {"a": 0, "b": {"c": 0}},
        [{"a": 1, "b": {"c": 1}}, {"a": 2, "b": {"c": 2}}],
        ["/a", "/b/c"],
        {"a": 0, "b": {"c": 0}},
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts(name: str) -> None:
    base, sides, where, result = CONFLICTS[name]
    for order in (sides, sides[::-1]):
        outcome = values(base, *order)
        assert paths(outcome) == where
        assert outcome.value == result


def test_a_conflict_says_all() -> None:
    outcome = values({"a": 0, "b": 0}, {"a": 1, "b": 0}, {"b": 0}, {"a": 0, "b": 1})
    assert outcome.conflicts == (
        Conflict("r.json", "/a", 0, {"agent0": 1, "agent1": MISSING}, "deleted by agent1 and changed by others"),
    )
    assert str(outcome.conflicts[0]) == (
        "r.json, /a: deleted by agent1 and changed by others (base: 0; agent0: 1; agent1: absent)"
    )
    assert outcome.changes == {"agent0": 1, "agent1": 1, "agent2": 1}


@pytest.mark.parametrize(
    ("strategy", "base", "sides", "result"),
    [
        ("counter", 10, [11, 11, 7], 9),
        ("counter", MISSING, [2, 2], 4),
        ("counter", 2**70, [2**70 + 1, 2**70 + 2], 2**70 + 3),
        ("counter", 0.5, [1.5, 2], 3.0),
        ("max", 5, [7, 3], 7),
        ("max", "a", ["c", "b"], "c"),
        ("min", 5, [7, 3.5], 3.5),
        ("first", 0, [2, 1], 2),
        ("last", 0, [2, MISSING], MISSING),
        ("append", [1], [[1, 2], [1, 2]], [1, 2, 2]),
        ("append", MISSING, [[2], [3]], [2, 3]),
        ("append", "log:", ["log:a", "log:b"], "log:ab"),
        ("set", [3, 1], [[3, 1, 9, 5], [1, 5]], [1, 5, 9]),
        ("set", [], [[1, True], [1.0]], [1, 1.0, True]),
        ("text", "a\nb\nc\n", ["A\nb\nc\n", "a\nb\nC\n"], "A\nb\nC\n"),
        ("binary", [1], [[2], [2]], [2]),
        ("json", [1], [[1, 2], [1, 3]], [1, 2, 3]),
        (
            "list:id",
            [{"id": 1, "a": 0}],
            [[{"id": 1, "a": 1}, {"id": 3}], [{"id": 2}, {"id": 1, "a": 0}]],
            [{"id": 1, "a": 1}, {"id": 2}, {"id": 3}],
        ),
        ("list:id", MISSING, [[{"id": "b"}], [{"id": "a"}]], [{"id": "a"}, {"id": "b"}]),
        ("list:id", [{"id": 1}], [[{"id": 1}, {"id": 1}], [{"id": 2}]], None),
        ("list:id", [{"id": 1}], [[{"x": 1}], []], None),
        ("counter", 1, ["x", 2], None),
        ("counter", 1, [True, 2], None),
        ("counter", 1, [MISSING, 2], None),
        ("counter", 1, [MISSING, MISSING], MISSING),
        ("counter", 0.0, [1.7e308, 1.7e308], None),
        ("max", 1, ["x", 2], None),
        ("append", [1, 2], [[1, 2, 3], [2]], None),
        ("set", [1], [[1, 2], "x"], None),
        ("text", "a\n", ["b\n", "c\n"], None),
        ("text", "a\n", ["b\n", 3], None),
        ("binary", [1], [[1, 2], [1, 3]], None),
    ],
)
def test_strategies_for_a_path(strategy: str, base: Any, sides: list[Any], result: Any) -> None:
    def document(value: Any) -> dict[str, Any]:
        return {"keep": 0, "x": {}} if value is MISSING else {"keep": 0, "x": {"y": value}}

    for glob in ("/x/y", "/*/y", "/**/y", "/x/**"):
        outcome = values(document(base), *map(document, sides), paths={glob: strategy})
        assert paths(outcome) == ([] if result is not None else ["/x/y"])
        # Compared as texts: for Python, {"a": True} == {"a": 1}.
        assert json.dumps(outcome.value) == json.dumps(document(base if result is None else result))


def test_a_conflict_in_a_keyed_list_is_about_the_field_of_the_record() -> None:
    base = {"l": [{"id": "a/1", "n": 0, "m": 0}, {"id": 2}]}
    sides = [
        {"l": [{"id": "a/1", "n": 1, "m": 1}]},
        {"l": [{"id": 2, "x": 1}, {"id": "a/1", "n": 2, "m": 0}]},
    ]
    outcome = values(base, *sides, paths={"/l": "list:id"})
    assert paths(outcome) == ["/l/a~11/n", "/l/2"]
    assert outcome.value == {"l": [{"id": "a/1", "n": 0, "m": 1}, {"id": 2}]}


def test_patterns() -> None:
    base = {"a": {"n": 0}, "b": {"n": 0}}
    both = {"a": {"n": 1}, "b": {"n": 1}}
    assert values(base, both, both, paths={"/*/n": "max", "/b/n": "counter"}).value == {"a": {"n": 1}, "b": {"n": 2}}
    assert values(base, both, both, paths={"/*": "binary"}).value == both
    assert values({"n": 0}, {"n": 1}, {"n": 1}, paths={"/n*": "counter"}).value == {"n": 2}
    assert values([1], [1, 2], [1, 2], paths={"/": "append"}).value == [1, 2, 2]
    with pytest.raises(ConfigError, match="has to begin with '/', as in '/n'"):
        values(base, both, both, paths={"n": "counter"})


def test_equal_sides_still_count_twice_under_a_counter() -> None:
    base = b'{"runs": {"total": 0, "log": []}, "list": [{"id": 1, "n": 0}]}'
    side = b'{"runs": {"total": 1, "log": ["x"]}, "list": [{"id": 1, "n": 1}]}'
    rules = {"/runs/total": "counter", "/runs/log": "append", "/list/*/n": "counter"}
    outcome = files(base, side, side, side, paths=rules)
    assert json.loads(outcome.value) == {"runs": {"total": 3, "log": ["x"] * 3}, "list": [{"id": 1, "n": 3}]}
    assert files(base, side, side).value == side


def test_a_resolver_settles_conflicts_and_only_those() -> None:
    asked: list[str] = []

    def resolve(conflict: Conflict) -> object:
        asked.append(conflict.path)
        if conflict.path == "/left":
            raise MergeConflict("a person has to look")
        return MISSING if conflict.path == "/gone" else max(conflict.sides.values())  # type: ignore[type-var]

    base = {"a": 0, "left": 0, "gone": 0, "c": 0}
    outcome = values(base, dict.fromkeys(base, 1), {**dict.fromkeys(base, 2), "c": 0}, resolve=resolve)
    assert outcome.value == {"a": 2, "left": 0, "c": 1}
    assert (asked, paths(outcome)) == (["/a", "/left", "/gone"], ["/left"])


@pytest.mark.parametrize("answer", [float("nan"), {1: 2}, {"x": {3}}, object(), (1,)])
def test_a_resolver_cannot_put_in_what_is_not_data(answer: object) -> None:
    with pytest.raises(ConfigError, match=r"for /a of r\.json"):
        files(b'{"a": 0}', b'{"a": 1}', b'{"a": 2}', resolve=lambda conflict: answer)


def test_inputs_are_not_changed() -> None:
    base, one, two = {"a": [1], "b": {}}, {"a": [1, 2], "b": {"x": 1}}, {"a": [1, 3], "b": {"y": 1}}
    before = json.dumps([base, one, two])
    values(base, one, two)
    assert json.dumps([base, one, two]) == before


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b'{"a": 1, "a": 2}', "line 1, column 10: the key 'a' is given twice"),
        (b'{"a": {"\\u0062": 1, "b": 2}}', "the key 'b' is given twice"),
        (b'{"s": "\\\\", "s": "\\""}', "the key 's' is given twice"),
        (b'{"a":\n  NaN}', "line 2, column 3: NaN is not JSON"),
        (b'{"NaN": "NaN", "a": -Infinity}', "line 1, column 21: -Infinity"),
        (b'{"a": 1e999}', "line 1, column 7: the number 1e999 is beyond a float"),
        (b'{"a": "\xff"}', "line 1, column 8: byte 7 (0xff) is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        (b'{"a": 1,\n', "line 2, column 1: it is cut off"),
        (b"", "it is empty"),
        (b"{'a': 1}", "line 1, column 2"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 300 + b"]" * 300, "nested too deeply"),
        (b"[" * 300 + b"1" * 25 + b"]" * 300, "nested too deeply"),
        (b"1" * 5000, "5000 digits"),
    ],
)
@pytest.mark.parametrize("others", [[], [b'{"a": 7}']])
def test_input_that_is_not_json_is_refused_with_agent_and_place(broken: bytes, why: str, others: list[bytes]) -> None:
    with pytest.raises(MergeConflict) as caught:
        files(b'{"a": 0}', broken, *others)
    assert why in str(caught.value)
    assert "r.json" in str(caught.value)
    assert (caught.value.agent, caught.value.resources) == ("agent0", ("r.json",))
    assert caught.value.conflicts[0].sides["agent0"] == broken


def test_every_unreadable_version_is_named_at_once() -> None:
    with pytest.raises(MergeConflict, match=r"agent0 has.*agent2 has"):
        files(b"{}", b"{", b'{"a": 1}', b"}")


def test_a_broken_base_can_be_repaired_by_one_agent_but_not_merged() -> None:
    assert files(b"{oops", b'{"a": 1}').value == b'{"a": 1}'
    with pytest.raises(MergeConflict, match="the base has"):
        files(b"{oops", b'{"a": 1}', b'{"a": 2}')


def test_big_integers_stay_exact() -> None:
    big = 2**64 + 1
    outcome = files(
        b'{"a": 0, "b": 0}', json.dumps({"a": big, "b": 0}).encode(), b'{"a": 0, "b": -9223372036854775809}'
    )
    assert json.loads(outcome.value) == {"a": big, "b": -9223372036854775809}
    outcome = files(b'{"a": 18446744073709551617}', b'{"a": 18446744073709551618}', b'{"a": 18446744073709551619}')
    assert paths(outcome) == ["/a"]
    indented = b'{\n    "a": 18446744073709551617,\n    "b": 0,\n    "c": 0\n}\n'
    outcome = files(indented, indented.replace(b'"b": 0', b'"b": 1'), indented.replace(b'"c": 0', b'"c": 1'))
    assert outcome.value == indented.replace(b'"b": 0', b'"b": 1').replace(b'"c": 0', b'"c": 1')


def test_keys_that_only_look_alike_are_different() -> None:
    # Composed and decomposed letters, and half a surrogate pair, which only an escape can write.
    base, one, two = b'{"z": 0}', b'{"z": 0, "\\u00e9": 1}', b'{"z": 0, "e\\u0301": "\\ud800"}'
    assert json.loads(files(base, one, two).value) == {"z": 0, "\u00e9": 1, "e\u0301": "\ud800"}


STYLES = {
    "compact": b'{"z":0,"a":[1,2],"t":"x"}',
    "python": b'{"z": 0, "a": [1, 2], "t": "x"}\n',
    "two": b'{\n  "z": 0,\n  "a": [\n    1,\n    2\n  ],\n  "t": "x"\n}\n',
    "four": b'{\n    "z": 0,\n    "a": [\n        1,\n        2\n    ],\n    "t": "x"\n}',
    "tab": b'{\n\t"z": 0,\n\t"a": [\n\t\t1,\n\t\t2\n\t],\n\t"t": "x"\n}\n',
    "crlf": b'{\r\n  "z": 0,\r\n  "a": [\r\n    1,\r\n    2\r\n  ],\r\n  "t": "x"\r\n}\r\n',
    "escaped": b'{\n  "z": 0,\n  "a": [\n    1,\n    2\n  ],\n  "t": "\\u00e9 \\ud83d\\ude00"\n}\n',
    "raw": '{\n  "z": 0,\n  "a": [\n    1,\n    2\n  ],\n  "t": "é 😀  \u2028"\n}\n'.encode(),
    "short lists": b'{\n  "z": 0,\n  "a": [1, 2],\n  "t": "x"\n}\n',
}


@pytest.mark.parametrize("style", STYLES)
def test_the_style_of_the_base_stays(style: str) -> None:
    base = STYLES[style]
    one, two = json.dumps({**json.loads(base), "z": 1}).encode(), json.dumps({**json.loads(base), "t": "y"}).encode()
    if style == "short lists":  # a layout of its own survives if the agents kept it
        one, two = base.replace(b'"z": 0', b'"z": 1'), base.replace(b'"x"', b'"y"')
    result = files(base, one, two).value
    expected = base.replace(b'"z": 0', b'"z": 1').replace(b'"z":0', b'"z":1')
    for text in (b'"x"', b'"\\u00e9 \\ud83d\\ude00"', '"é 😀  \u2028"'.encode()):
        expected = expected.replace(text, b'"y"')
    assert result == expected


def test_new_keys_come_after_the_old_ones_and_sorted() -> None:
    outcome = files(b'{"z": 0}', b'{"m": 1, "z": 0, "b": 1}', b'{"c": 1, "z": 0}')
    assert outcome.value == b'{"z": 0, "b": 1, "c": 1, "m": 1}'


def test_an_empty_base_has_no_value() -> None:
    assert json.loads(files(b"", b'{"a": 1}', b'{"b": 1}').value) == {"a": 1, "b": 1}
    assert json.loads(files(b"\n", b"[1]", b"[2]").value) == [1, 2]


def test_a_whole_file_may_be_a_counter_or_a_set() -> None:
    assert merge("counter", b"5\n", {"a": b"6\n", "b": b"6\n"}).value == b"7\n"
    assert merge("set", b"[1]", {"a": b"[1, 3]", "b": b"[1, 2]"}).value == b"[1, 2, 3]"
    assert merge("list:id", None, {"a": b'[{"id": 2}]', "b": b'[{"id": 1}]'}).value == b'[{"id": 1}, {"id": 2}]'


def test_changes_count_records_and_keys() -> None:
    base = {"list": [1, 2], "map": {"a": 1, "b": {"c": 1}}, "n": 0}
    one = {"list": [1, 2, 3, 4, 5], "map": {"a": 2, "b": {"c": 2}}, "n": 0}
    two = {"list": [1, 2, 6], "map": {"a": 1, "b": {"c": 1, "d": {"e": 1, "f": 2}}}, "n": 1}
    assert values(base, one, two).changes == {"agent0": 5, "agent1": 3}
    assert values(base, one).changes == {"agent0": 5}
    assert values(MISSING, {"a": 1, "b": 2}, {"c": [1, 2]}).changes == {"agent0": 2, "agent1": 1}
    assert values([], [1, 2], [3]).changes == {"agent0": 2, "agent1": 1}


def test_contested_at_every_level_up_to_the_limit() -> None:
    def nested(key: str, depth: int) -> bytes:
        return b'{"x":' * depth + json.dumps({key: 1}).encode() + b"}" * depth

    outcome = files(nested("a", 240), nested("b", 240), nested("c", 240))
    assert outcome.value == nested("b", 240).replace(b'{"b": 1}', b'{"b":1,"c":1}')
