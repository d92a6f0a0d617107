"""Reading and writing by suffix: exact, in the old style, and with errors that say where."""

from __future__ import annotations

import datetime
import json
import math
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.codecs import BadContent, BadValue, codec_for
from agentguard.codecs.values import same
from agentguard.exceptions import AgentGuardError, ConfigError

JSON, LINES, YAML, TOML = (codec_for(f"data.{suffix}") for suffix in ("json", "jsonl", "yaml", "toml"))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
json_values = st.recursive(
    plain, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v, max_size=4), max_leaves=12
)
names = st.text("abcxyz_ .#:'\"é", max_size=6)
words = st.text("abc xyz\n#:'\"é-[]{}!&*?|>%@`0123456789.~", max_size=10)
dates = st.dates(datetime.date(1900, 1, 1))
tree_leaves = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | words | dates
trees = st.recursive(
    tree_leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=3), max_leaves=8
)
tables = st.dictionaries(names, trees, max_size=4)
layouts = st.sampled_from(
    [{"indent": 2}, {"indent": 4}, {"indent": "\t"}, {}, {"separators": (",", ":")}, {"ensure_ascii": False}]
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", "json"),
        ("dir.json/a", "bytes"),
        ("A.JSON", "json"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.yaml", "yaml"),
        ("a.yml", "yaml"),
        ("a.toml", "toml"),
        ("notes/a.md", "text"),
        ("a.txt", "text"),
        ("a.log", "text"),
        ("a.csv", "text"),
        ("a.py", "text"),
        ("a.json.gz", "bytes"),
        ("a.png", "bytes"),
        ("Makefile", "bytes"),
        (".json", "bytes"),
        ("db:orders/42", "bytes"),
        (r"dir\a.json", "json"),
    ],
)
def test_the_suffix_decides(name: str, kind: str) -> None:
    assert codec_for(name).name == kind


# JSON


@settings(deadline=None)
@given(json_values)
def test_json_gives_back_what_was_written(value: Any) -> None:
    data = JSON.dump(value)
    assert data.endswith(b"\n")
    assert same(JSON.load(data), value)
    assert same(json.loads(data), value)


@settings(deadline=None)
@given(json_values, layouts, st.booleans())
def test_an_unchanged_json_value_keeps_its_bytes(value: Any, layout: dict[str, Any], end: bool) -> None:
    data = (json.dumps(value, **layout) + "\n" * end).encode()
    assert JSON.dump(JSON.load(data), data) == data


@settings(deadline=None)
@given(json_values, json_values, layouts, st.booleans())
def test_json_keeps_the_layout_of_what_was_there(old: Any, new: Any, layout: dict[str, Any], end: bool) -> None:
    old, new = {"k": "é", "v": old}, {"k": "è", "v": new}
    before, after = ((json.dumps(v, **layout) + "\n" * end).encode() for v in (old, new))
    written = JSON.dump(new, before)
    assert same(JSON.load(written), new)
    assert _layout(written) == _layout(after)


def _layout(data: bytes) -> tuple[Any, ...]:
    first = data.splitlines()[1] if data.count(b"\n") > 1 else b""
    return data.count(b"\n"), first[:6], data[:6], data.isascii(), data[-1:]


@settings(deadline=None)
@given(st.integers(min_value=2**63) | st.integers(max_value=-(2**63) - 1))
def test_json_integers_have_no_limit(number: int) -> None:
    assert JSON.load(b'{"n": %d}' % number) == {"n": number}
    assert str(number).encode() in JSON.dump({"n": number})
    assert same(JSON.load(JSON.dump([number])), [number])


def test_json_numbers_stay_what_they_are() -> None:
    value = JSON.load(b"[1, 1.0, true, 18446744073709551616, -0.0, 0.1]")
    assert same(value, [1, 1.0, True, 2**64, -0.0, 0.1])
    assert type(value[3]) is int


def test_json_keeps_windows_line_ends() -> None:
    assert JSON.dump({"a": 2}, b'{\r\n  "a": 1\r\n}\r\n') == b'{\r\n  "a": 2\r\n}\r\n'


def test_an_empty_json_container_says_nothing_about_layout() -> None:
    assert JSON.dump({"a": 1}, b"{}") == b'{\n  "a": 1\n}'
    assert JSON.dump([1], b"[]\n") == b"[\n  1\n]\n"


def test_subclasses_that_only_the_standard_library_writes() -> None:
    class Half(float):
        pass

    assert JSON.load(JSON.dump([Half(0.5), (1, 2)])) == [0.5, [1, 2]]


@settings(deadline=None)
@given(json_values, texts)
def test_a_key_given_twice_is_found(value: Any, key: str) -> None:
    for shown in (json.dumps(key), json.dumps(key, ensure_ascii=False)):
        inner = json.dumps(value)
        data = f'{{"deep": [{inner}, {{{shown}: {inner}, {shown} : 1}}]}}'.encode()
        with pytest.raises(BadContent, match="given twice"):
            JSON.load(data)


def test_texts_that_look_like_keys_do_not_hide_a_key_given_twice() -> None:
    # One that appears only after decoding would make up for the one that is lost.
    for text in (rb'"\u0022:"', rb'"\"\u003a"', rb'"\"\u0020:"', rb'"\"\u003A"'):
        with pytest.raises(BadContent, match="'a' is given twice"):
            JSON.load(b'{"a": 1,\n"a": ' + text + b"}")
        assert JSON.load(b'{"a": ' + text + b"}") == {"a": json.loads(text)}


BAD_JSON = [
    (b"", None, "it is empty"),
    (b" \n", None, "it is empty"),
    (b'{"a": 1,\n "b": x}', 2, "Expecting value"),
    (b'{"a":\n 1', 2, "unexpected end"),
    (b'{"a": 1,\n"a": 2}', 2, "'a' is given twice"),
    (b"[NaN]", 1, "NaN is not JSON"),
    (b"[1e400]", 1, "beyond a float"),
    (b"[\n\xff]", 2, "0xff"),
    (b"\xef\xbb\xbf{}", 1, "byte order mark"),
    (b'["\\ud800"]', 1, "surrogate"),
    (b"[" * 100_000 + b"]" * 100_000, None, "nested too deeply"),
    (b"9" * 5000, None, "limit"),
]


@pytest.mark.parametrize(("data", "line", "problem"), BAD_JSON, ids=[problem for *_, problem in BAD_JSON])
def test_what_is_not_json(data: bytes, line: int | None, problem: str) -> None:
    if problem == "limit" and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads integers of any length")
    codec = codec_for("team/findings.json")
    with pytest.raises(BadContent) as caught:
        codec.load(data)
    error = caught.value
    assert problem in str(error)
    assert isinstance(error, AgentGuardError)
    assert isinstance(error, ValueError)
    assert (error.resource, error.line) == ("team/findings.json", line)
    assert "team/findings.json" in str(error)
    assert "The file is untouched" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.fields) == (BadContent, str(error), error.fields)


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_are_a_value_or_bad_content(data: bytes) -> None:
    for codec in (JSON, LINES, YAML, TOML, codec_for("a.txt")):
        try:
            value = codec.load(data)
        except BadContent as error:
            assert error.resource == codec.resource
        else:
            assert codec.dump(value, data) == data or codec is LINES


# What cannot be written

LOOP: list[Any] = []
LOOP.append(LOOP)
BAD_VALUES = [
    ("a.json", {"a": [0, {1, 2}]}, "/a/1", "set"),
    ("a.json", {"x/y~": [math.nan]}, "/x~1y~0/0", "nan"),
    ("a.json", [math.inf], "/0", "inf"),
    ("a.json", {"a": {1: 2}}, "/a", "key 1 (int)"),
    ("a.json", ["\ud800"], "/0", "surrogate"),
    ("a.json", {"\ud800": 1}, "/\ud800", "surrogate"),
    ("a.json", {"d": datetime.date(2020, 1, 1)}, "/d", "date"),
    ("a.json", [b"x"], "/0", "bytes"),
    ("a.json", LOOP, "", "contains itself"),
    ("a.jsonl", {"a": 1}, "", "list of records"),
    ("a.jsonl", [1, {"a": math.nan}], "/1/a", "nan"),
    ("a.yaml", {"a": [object()]}, "/a/0", "object"),
    ("a.yaml", LOOP, "", "contains itself"),
    ("a.toml", [1], "", "a table"),
    ("a.toml", {"a": {"b": None}}, "/a/b", "no null"),
    ("a.toml", {"a": [1, {2}]}, "/a/1", "set"),
    ("a.txt", 5, "", "holds a str"),
    ("a.txt", "\ud800", "", "surrogate"),
    ("a.bin", "text", "", "holds bytes"),
]


@pytest.mark.parametrize(("name", "value", "place", "problem"), BAD_VALUES)
@pytest.mark.parametrize("previous", [None, b"1\n"])
def test_what_cannot_be_written(name: str, value: Any, place: str, problem: str, previous: bytes | None) -> None:
    with pytest.raises(BadValue) as caught:
        codec_for(name).dump(value, previous)
    error = caught.value
    assert isinstance(error, TypeError)
    assert isinstance(error, ValueError)
    assert (error.resource, error.place) == (name, place)
    assert name in str(error)
    assert problem in str(error)
    assert "Nothing was written" in str(error)
    assert pickle.loads(pickle.dumps(error)).fields == error.fields


# JSON lines


@settings(deadline=None)
@given(st.lists(json_values, max_size=4))
def test_jsonl_gives_back_what_was_written(records: list[Any]) -> None:
    data = LINES.dump(records)
    assert data.count(b"\n") == len(records)
    assert same(LINES.load(data), records)


def test_jsonl_keeps_the_bytes_of_records_that_did_not_change() -> None:
    before = b'{"a":  1}\n\n{"b": "\\u00e9"}'
    assert LINES.load(before) == [{"a": 1}, {"b": "é"}]
    assert LINES.dump(LINES.load(before), before) == before
    assert LINES.dump([{"a": 1}, {"b": 2}, {"c": "é"}], before) == b'{"a":  1}\n{"b": 2}\n{"c": "\\u00e9"}\n'
    assert LINES.dump([1, 2], b"1\r\n") == b"1\r\n2\r\n"
    assert LINES.dump([{"a": 1, "b": 2}]) == b'{"a":1,"b":2}\n'
    assert LINES.load(b"") == []
    assert LINES.dump([], b"1\n") == b""


def test_jsonl_lines_end_at_newlines_only() -> None:
    records = [{"a": "one\u2028two\x85three"}]
    assert LINES.load(LINES.dump(records)) == records


def test_jsonl_says_which_line() -> None:
    with pytest.raises(BadContent, match="line 3") as caught:
        LINES.load(b'{"a": 1}\n\n{"b": x}\n')
    assert caught.value.line == 3


# YAML and TOML

YAML_TEXT = b"""\
# the team
agents:           # by name
    - name: ann   # first
      tags: [a, 'b']
    - name: bob

# how long
limits:
    hours: 3      # not more
    free: "yes"
"""

TOML_TEXT = b"""\
# the team
name = 'x'   # short
list = [
  1,  # one
  2,
]

[limits] # how long
hours = 3      # not more

[[agents]]
name = "ann" # first

[[agents]]
name = "bob"
"""


def test_yaml_comments_of_what_did_not_change_stay() -> None:
    value = YAML.load(YAML_TEXT)
    assert type(value) is dict
    assert type(value["agents"]) is list
    value["agents"][0]["name"] = "eve"
    value["limits"]["hours"] = 4
    del value["limits"]["free"]
    written = YAML.dump(value, YAML_TEXT)
    expected = YAML_TEXT.replace(b"ann ", b"eve ").replace(b"hours: 3", b"hours: 4").replace(b'    free: "yes"\n', b"")
    assert written == expected


def test_toml_comments_of_what_did_not_change_stay() -> None:
    value = TOML.load(TOML_TEXT)
    assert type(value) is dict
    assert type(value["list"]) is list
    value["limits"]["hours"] = 4
    value["agents"][1]["name"] = "eve"
    value["agents"].append({"name": "joe"})
    value["list"].append(3)
    written = TOML.dump(value, TOML_TEXT)
    assert TOML.load(written) == value
    for kept in (b"# the team", b"name = 'x'   # short", b"1,  # one", b"# how long", b"# not more", b'"ann" # first'):
        assert kept in written


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize(("codec", "text"), [(YAML, YAML_TEXT), (TOML, TOML_TEXT)], ids=["yaml", "toml"])
def test_trees_keep_their_line_ends_and_unchanged_bytes(codec: Any, text: bytes, newline: bytes) -> None:
    text = text.replace(b"\n", newline)
    value = codec.load(text)
    assert codec.dump(value, text) == text
    value["limits"]["hours"] = 5
    assert codec.dump(value, text) == text.replace(b" 3 ", b" 5 ")


@settings(deadline=None)
@given(tables, tables)
def test_toml_gives_back_what_was_written(old: dict[str, Any], new: dict[str, Any]) -> None:
    _writes(TOML, old, new)


@settings(deadline=None)
@given(trees, trees)
def test_yaml_gives_back_what_was_written(old: Any, new: Any) -> None:
    _writes(YAML, old, new)


def _writes(codec: Any, old: Any, new: Any) -> None:
    """A value is given back exactly, or refused: never written as something else."""
    try:
        before = codec.dump(old)
        assert same(codec.load(before), old)
        after = codec.dump(new, before)
        assert same(codec.load(after), new)
    except BadValue as error:
        assert "read back" in error.problem or "character" in error.problem, error


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=6), st.lists(st.integers(0, 5), max_size=6))
def test_lists_of_a_tree_may_change_in_any_way(old: list[int], new: list[int]) -> None:
    for codec in (YAML, TOML):
        before = codec.dump({"before": 1, "list": old, "after": 2})
        value = {"before": 1, "list": new, "after": 2}
        assert codec.load(codec.dump(value, before)) == value


@pytest.mark.parametrize("codec", [YAML, TOML], ids=["yaml", "toml"])
def test_lists_that_grow_or_shrink_keep_the_other_comments(codec: Any) -> None:
    text = b"# top\na: [1, 2, 3]  # list\n" if codec is YAML else b"# top\na = [1, 2, 3]  # list\n"
    for items in ([1], [1, 2, 3, 4], [1, 3], [0, 1, 2, 3], [1, 5, 6, 3]):
        written = codec.dump({"a": items}, text)
        expected = text.replace(b"1, 2, 3", str(items)[1:-1].encode())
        assert written.replace(b" ", b"") == expected.replace(b" ", b"")  # the libraries move spaces


def test_comments_of_a_file_without_values_stay() -> None:
    for codec in (YAML, TOML):
        written = codec.dump({"a": {"b": 1}}, b"# fill me in\n")
        assert written.startswith(b"# fill me in\n")
        assert codec.load(written) == {"a": {"b": 1}}
    assert YAML.load(YAML.dump({"a": 1}, b"{}\n")) == {"a": 1}


def test_empty_documents() -> None:
    assert YAML.load(b"") is None
    assert YAML.load(b"# nothing\n") is None
    assert TOML.load(b"") == {}
    assert codec_for("a.txt").load(b"") == ""
    assert YAML.load(YAML.dump(None)) is None


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9)
)
BAD_TREES = [
    ("a.yaml", b"a: 1\nb: [1", 2, "expected"),
    ("a.yaml", b"a: 1\na: 2\n", 2, "a is given twice"),
    ("a.yaml", b"a: 1\n---\nb: 2\n", 2, "another document"),
    ("a.yaml", b"\na: !!python/object/apply:os.system [x]\n", 2, "tag"),
    ("a.yaml", b"a: !!int x\n", None, "invalid literal"),
    ("a.yaml", b"a: 2020-99-99\n", None, "month"),
    ("a.yaml", b"b: 1\na: \x01\n", 2, "special characters"),
    ("a.yaml", b"a: &x [*x]\n", 1, "the alias *x stands inside itself"),
    ("a.yaml", BOMB, None, "aliases unfold"),
    ("a.yaml", b"a: \xff\n", 1, "0xff"),
    ("a.yaml", b"[" * 600, 1, "nested too deeply"),
    ("a.toml", b"a = 1\nb = ?\n", 2, "character"),
    ("a.toml", b"a = 1\nb = ", 2, "end of the file"),
    ("a.toml", b'x = 1\na = "', 2, "end of the file"),
    ("a.toml", b"a = 1\na = 2\n", 2, "a is given twice"),
    ("a.toml", b"[x]\n[y]\n[x]\n", 3, "x is given twice"),
    ("a.toml", b"[[x]]\na=1\n[[x]]\na=1\nb=1\nb=2", 6, "x.b is given twice"),
    ("a.toml", b"a = { b = 1, b = 2 }", None, "already exists"),
    ("a.toml", b"a = \xff", 1, "0xff"),
    ("a.txt", b"one\ntwo \xff", 2, "0xff"),
]


@pytest.mark.parametrize(("name", "data", "line", "problem"), BAD_TREES, ids=[f"{n}-{p}" for n, _, _, p in BAD_TREES])
def test_content_that_cannot_be_read(name: str, data: bytes, line: int | None, problem: str) -> None:
    with pytest.raises(BadContent) as caught:
        codec_for(name).load(data)
    assert problem in str(caught.value)
    assert (caught.value.resource, caught.value.line) == (name, line)


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.toml"])
def test_content_that_cannot_be_read_can_be_replaced(name: str) -> None:
    codec = codec_for(name)
    assert codec.load(codec.dump({"a": [1]}, b"{ \xff broken")) == {"a": [1]}


@pytest.mark.parametrize("act", ["load", "dump"])
def test_yaml_without_its_library_says_what_to_install(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(ConfigError, match=r"pip install 'agentguard\[yaml\]'"):
        YAML.load(b"a: 1") if act == "load" else YAML.dump({"a": 1})


def test_equal_for_a_reader_is_strict() -> None:
    for one, other in [(1, True), (1, 1.0), (0.0, -0.0), ({1: 0}, {True: 0}), ("1", 1), (None, False), ([1], [1, 2])]:
        assert not same(one, other)
    for one, other in [(math.nan, math.nan), ((1, 2), [1, 2]), ({"a": 1, "b": 2}, {"b": 2, "a": 1})]:
        assert same(one, other)
    zone = datetime.timezone(datetime.timedelta(hours=1))
    noon = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.timezone.utc)
    assert not same(noon, noon.astimezone(zone))


# Text and bytes


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_untouched(text: str) -> None:
    codec = codec_for("a.md")
    assert codec.load(codec.dump(text)) == text
    assert codec.dump(text) == text.encode()


def test_newlines_and_marks_of_text_are_untouched() -> None:
    data = b"\xef\xbb\xbfone\r\ntwo\rthree\n"
    assert codec_for("a.csv").dump(codec_for("a.csv").load(data), data) == data


@settings(deadline=None)
@given(st.binary())
def test_bytes_are_untouched(data: bytes) -> None:
    codec = codec_for("a.png")
    assert codec.dump(codec.load(data)) == codec.dump(bytearray(data)) == codec.dump(memoryview(data)) == data
