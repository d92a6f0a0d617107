"""CSV by rows: cells, rows and columns of several agents in one pass; nothing that anybody wrote is lost."""

from __future__ import annotations

import csv
import io
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.exceptions import ConfigError, MergeConflict
from agentguard.merge import MISSING, Options, check_strategy, default_strategy, merge

BASE = b"id,name,count\n1,ann,10\n2,bob,20\n3,eve,30\n"


def rows(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))


@pytest.mark.parametrize(
    ("sides", "result"),
    [
        ([b"1,ann,11", None], b"1,ann,11\n2,bob,20\n3,eve,30\n"),
        ([(b"1,ann,10", b"1,ann,11"), (b"1,ann,10", b"1,Ann,10")], b"1,Ann,11\n2,bob,20\n3,eve,30\n"),
        ([(b"2,bob,20\n", b""), (b"3,eve,30", b"3,eve,31")], b"1,ann,10\n3,eve,31\n"),
        ([(b"2,bob,20\n", b""), (b"2,bob,20\n", b"")], b"1,ann,10\n3,eve,30\n"),
        ([(b"3,eve,30\n", b"3,eve,30\n4,x,1\n"), (b"3,eve,30\n", b"3,eve,30\n5,y,2\n")],
         b"1,ann,10\n2,bob,20\n3,eve,30\n4,x,1\n5,y,2\n"),
        ([(b"1,ann", b"0,top,1\n1,ann"), (b"2,bob", b"9,in between,1\n2,bob")],
         b"0,top,1\n1,ann,10\n9,in between,1\n2,bob,20\n3,eve,30\n"),
        ([(b"3,eve,30\n", b"3,eve,30\n4,x,1\n"), (b"3,eve,30\n", b"3,eve,30\n4,x,1\n")],
         b"1,ann,10\n2,bob,20\n3,eve,30\n4,x,1\n"),
        ([(b"1,ann,10\n2,bob,20", b"2,bob,20\n1,ann,10"), (b"2,bob,20", b"2,bob,21")],
         b"2,bob,21\n1,ann,10\n3,eve,30\n"),
    ],
)  # fmt: skip
def test_clean_merges(sides: list[Any], result: bytes) -> None:
    made = [
        BASE if side is None else BASE.replace(*side) if isinstance(side, tuple) else BASE.replace(b"1,ann,10", side)
        for side in sides
    ]
    for order in itertools.permutations(range(len(made))):
        merged = merge("csv", BASE, {f"a{n}": made[n] for n in order}, Options("t.csv"))
        assert not merged.conflicts
        if order == tuple(range(len(made))):
            assert merged.value == b"id,name,count\n" + result


@pytest.mark.parametrize(
    ("one", "two", "path", "base", "sides"),
    [
        ((b"1,ann,10", b"1,ann,11"), (b"1,ann,10", b"1,ann,12"), "/1/count", "10", {"a": "11", "b": "12"}),
        ((b"2,bob,20\n", b""), (b"2,bob,20", b"2,bob,21"), "/2", {"id": "2", "name": "bob", "count": "20"},
         {"a": MISSING, "b": {"id": "2", "name": "bob", "count": "21"}}),
        ((b"3,eve,30\n", b"3,eve,30\n4,x,1\n"), (b"3,eve,30\n", b"3,eve,30\n4,y,1\n"), "/4", MISSING,
         {"a": {"id": "4", "name": "x", "count": "1"}, "b": {"id": "4", "name": "y", "count": "1"}}),
    ],
)  # fmt: skip
def test_conflicts_are_values_and_the_base_stays(one: Any, two: Any, path: str, base: Any, sides: Any) -> None:
    versions = {"a": BASE.replace(*one), "b": BASE.replace(*two)}
    merged = merge("csv", BASE, versions, Options("t.csv"))
    (conflict,) = merged.conflicts
    assert (conflict.resource, conflict.path, conflict.base, conflict.sides) == ("t.csv", path, base, sides)
    assert merged.value == BASE
    answer: Any = "99" if path.count("/") == 2 else {"id": path[1:], "name": "new", "count": 9}
    settled = merge("csv", BASE, versions, Options("t.csv", resolve=lambda conflict: answer))
    assert not settled.conflicts
    assert (["1", "ann", "99"] if path.count("/") == 2 else [path[1:], "new", "9"]) in rows(settled.value)


def test_all_conflicts_are_found_in_one_pass_and_the_rest_is_merged() -> None:
    one = b"id,name,count\n1,A,11\n2,bob,21\n3,eve,31\n"
    two = b"id,name,count\n1,B,12\n2,bob,20\n3,Eve,30\n"
    merged = merge("csv", BASE, {"a": one, "b": two})
    assert [conflict.path for conflict in merged.conflicts] == ["/1/name", "/1/count"]
    assert merged.value == b"id,name,count\n1,ann,10\n2,bob,21\n3,Eve,31\n"


def test_cells_may_have_strategies_of_their_own() -> None:
    versions = {"a": BASE.replace(b"1,ann,10", b"1,ann,11"), "b": BASE.replace(b"1,ann,10", b"1,ann,15")}
    for strategy, expected in (("counter", "16"), ("max", "15"), ("min", "11"), ("first", "11"), ("last", "15")):
        merged = merge("csv", BASE, versions, Options("t.csv", {"/*/count": strategy}))
        assert not merged.conflicts
        assert ["1", "ann", expected] in rows(merged.value)
    same = {"a": versions["a"], "b": versions["a"]}
    assert ["1", "ann", "12"] in rows(merge("csv", BASE, same, Options("t.csv", {"/*/count": "counter"})).value)
    bad = {"a": BASE.replace(b"ann", b"x"), "b": BASE.replace(b"ann", b"y")}
    (conflict,) = merge("csv", BASE, bad, Options("t.csv", {"/*/name": "counter"})).conflicts
    assert "has to be a number" in conflict.reason


def test_columns_that_agents_add_or_remove() -> None:
    added = b"id,name,count,note\n1,ann,10,hi\n2,bob,20,\n3,eve,30,\n"
    cells = BASE.replace(b"2,bob,20", b"2,bob,21")
    merged = merge("csv", BASE, {"a": added, "b": cells})
    assert not merged.conflicts
    assert merged.value == b"id,name,count,note\n1,ann,10,hi\n2,bob,21,\n3,eve,30,\n"
    other = b"id,name,count,more\n1,ann,10,x\n2,bob,20,y\n3,eve,30,z\n"
    merged = merge("csv", BASE, {"a": added, "b": other})
    assert not merged.conflicts
    assert rows(merged.value) == [
        ["id", "name", "count", "note", "more"], ["1", "ann", "10", "hi", "x"],
        ["2", "bob", "20", "", "y"], ["3", "eve", "30", "", "z"],
    ]  # fmt: skip
    gone = b"id,name\n1,ann\n2,bob\n3,eve\n"
    merged = merge("csv", BASE, {"a": gone, "b": BASE.replace(b"ann", b"Ann")})
    assert not merged.conflicts
    assert merged.value == b"id,name\n1,Ann\n2,bob\n3,eve\n"


def test_what_nobody_changed_is_not_written_anew() -> None:
    base = b'\xef\xbb\xbf"id";"name"\r\n"1";"a ""quoted"" one"\r\n2; spaced \r\n"3";"two\r\nlines"\r\n'
    one = base.replace(b"2; spaced ", b"2;x")
    two = base.replace(b'"3";"two', b'"3";"three')
    assert merge("csv", base, {"a": one, "b": two}).value == one.replace(b'"3";"two', b'"3";"three')


def test_a_file_without_a_final_newline() -> None:
    base = BASE.rstrip(b"\n")
    merged = merge("csv", base, {"a": base + b"\n4,x,1", "b": base + b"\n5,y,1"})
    assert merged.value == base + b"\n4,x,1\n5,y,1"


def test_two_agents_who_make_the_file() -> None:
    merged = merge("csv", None, {"a": b"id,x\n1,a\n", "b": b"id,x\n2,b\n"})
    assert (merged.value, merged.conflicts) == (b"id,x\n1,a\n2,b\n", ())
    (conflict,) = merge("csv", None, {"a": b"id,x\n1,a\n", "b": b"id,y\n2,b\n"}).conflicts
    assert conflict.reason == "created with different headers"
    (conflict,) = merge("csv", BASE, {"a": b"", "b": BASE + b"4,x,1\n"}).conflicts
    assert conflict.reason == "emptied by a and changed by others"


def test_rows_that_no_column_tells_apart_are_merged_by_lines() -> None:
    base = b"level,text\ninfo,a\ninfo,b\n"
    merged = merge("csv", base, {"a": base + b"info,c\n", "b": base + b"info,d\n"})
    assert (merged.value, merged.conflicts) == (base + b"info,c\ninfo,d\n", ())


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (BASE + b"2,again,1\n", "in what a has, two rows have the id '2'"),
        (BASE.replace(b"id", b"ID"), "what a has is without that column"),
        (BASE.replace(b"1,ann,10", b"1,ann"), "has 2 cells, and the header has 3"),
        (BASE.replace(b"name", b"id"), "two columns have one name"),
    ],
)
def test_a_key_that_was_asked_for_and_does_not_hold_is_refused_by_name(side: bytes, words: str) -> None:
    other = BASE.replace(b"1,ann,10", b"1,ann,11")
    with pytest.raises(MergeConflict, match=words) as caught:
        merge("csv:id", BASE, {"a": side, "b": other}, Options("t.csv"))
    assert caught.value.resources == ("t.csv",)


def test_another_column_may_be_the_key() -> None:
    base = b"n,sku\n1,a\n1,b\n"
    versions = {"a": base.replace(b"1,a", b"2,a"), "b": base.replace(b"1,b", b"3,b")}
    for strategy in ("csv:sku",):
        assert merge(strategy, base, versions).value == b"n,sku\n2,a\n3,b\n"
    check_strategy("csv:sku")
    with pytest.raises(ConfigError, match="csv:id"):
        check_strategy("csv:")


def test_orders_that_contradict_each_other_are_a_conflict() -> None:
    head, one, two, three = BASE.splitlines(keepends=True)
    merged = merge("csv", BASE, {"a": head + two + one + three, "b": head + three + two + one})
    assert merged.value == BASE
    assert merged.conflicts[0].reason == "put the rows in different orders"


def test_tabs_and_other_delimiters() -> None:
    assert default_strategy("a.CSV") == default_strategy("a.tsv") == "csv"
    base = b"id\tx,y\n1\ta,b\n2\tc,d\n"
    merged = merge(
        "csv", base, {"a": base.replace(b"a,b", b"A,b"), "b": base.replace(b"c,d", b"c,D")}, Options("t.tsv")
    )
    assert merged.value == b"id\tx,y\n1\tA,b\n2\tc,D\n"


CELLS = st.sampled_from(["", "a", "b", "x,y", 'q"q', "l\nl", " s ", "7"])


def table(rows_: dict[str, list[str]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "x", "y"])
    writer.writerows([key, *cells] for key, cells in rows_.items())
    return out.getvalue().encode()


TABLES = st.dictionaries(st.sampled_from("123456"), st.lists(CELLS, min_size=2, max_size=2), max_size=5)


def check_case(base: dict[str, list[str]], sides: list[dict[str, list[str]]]) -> None:
    contents = {f"a{number}": table(side) for number, side in enumerate(sides)}
    merged = merge("csv", table(base), contents, Options("t.csv"))
    result = {row[0]: row[1:] for row in rows(merged.value)[1:]}
    conflicting = {conflict.path for conflict in merged.conflicts}
    shape = any(conflict.path == "" for conflict in merged.conflicts)
    for key in {*base, *(key for side in sides for key in side)}:
        before = base.get(key)
        made = [side.get(key) for side in sides if side.get(key) != before]
        if f"/{key}" in conflicting:
            assert result.get(key) == before
            assert len({tuple(row) if row is not None else None for row in made}) > 1
        elif not made or None in made or before is None:
            assert all(one == made[0] for one in made)  # else it is a conflict
            assert result.get(key) == (made[0] if made else before)
        else:
            for column, name in enumerate("xy"):
                new = {row[column] for row in made if row is not None and row[column] != before[column]}
                assert (f"/{key}/{name}" in conflicting) is (len(new) > 1)
                assert result[key][column] == (new.pop() if len(new) == 1 else before[column])
    # Whoever comes first decides about the order of additions, and about nothing else.
    again = merge("csv", table(base), dict(reversed(contents.items())), Options("t.csv"))
    assert sorted(map(tuple, rows(again.value))) == sorted(map(tuple, rows(merged.value)))
    assert {conflict.path for conflict in again.conflicts} == conflicting
    if not merged.conflicts:
        once_more = merge("csv", table(base), {"m": merged.value, **contents}, Options("t.csv"))
        assert not once_more.conflicts or shape
        assert sorted(map(tuple, rows(once_more.value))) == sorted(map(tuple, rows(merged.value)))


@given(TABLES, st.lists(TABLES, min_size=2, max_size=3))
@settings(max_examples=500, deadline=None)
def test_no_cell_is_lost_whatever_happens(base: dict[str, list[str]], sides: list[dict[str, list[str]]]) -> None:
    check_case(base, sides)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(TABLES, st.lists(TABLES, min_size=2, max_size=4))
@settings(max_examples=20_000, deadline=None)
def test_no_cell_is_lost_in_twenty_thousand_cases(base: Any, sides: Any) -> None:
    check_case(base, sides)
