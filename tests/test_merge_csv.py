"""CSV by rows: cells, rows and columns of several agents in one pass; nothing that anybody wrote is lost."""

from __future__ import annotations

import csv
import io
import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentguard.exceptions import ConfigError, MergeConflict
from agentguard.merge import MISSING, Merged, Options, check_strategy, csv_changes, default_strategy, merge
from agentguard.merge.csv_sheet import Sheet, Unreadable

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


# -- bad input ---

OTHER = BASE.replace(b"3,eve,30", b"3,eve,31")


@pytest.mark.parametrize(
    ("side", "words", "line"),
    [
        (BASE + b"2,again,1\n", "in what a has, lines 3 and 5 have the same id '2'", 5),
        (BASE + b"9,x,1\n9,y,1\n", "in what a has, lines 5 and 6 have the same id '9'", 6),
        (BASE + b"2,bob,20\n", "in what a has, lines 3 and 5 have the same id '2'", 5),
        (BASE + b'"2",bob,20\n', "in what a has, lines 3 and 5 have the same id '2'", 5),
        (BASE.replace(b"id", b"ID"), r"in what a has, line 1 has no column 'id' \(only 'ID', 'name', 'count'\)", 1),
        (BASE.replace(b"id,name,count", b"id;name;count"), "line 1 has no column 'id'", 1),
        (BASE.replace(b"3,eve,30", b"3,eve"), r"line 4 \('3,eve'\) has 2 cells, and the header has 3", 4),
        (BASE.replace(b"3,eve,30", b"3,eve,30,1"), "in what a has, line 4 .* has 4 cells", 4),
        (BASE.replace(b"1,ann,10\n", b"1,ann,11\n\n"), "in what a has, line 3 is empty", 3),
        (BASE.replace(b"name", b"id"), "in what a has, line 1 calls two columns 'id'", 1),
        (BASE.replace(b"bob", b'"b\no\nb"') + b"3,x,1\n", "lines 6 and 7 have the same id '3'", 7),
    ],
)
def test_a_key_that_was_asked_for_and_does_not_hold_is_refused_by_name(side: bytes, words: str, line: int) -> None:
    with pytest.raises(MergeConflict, match=words) as caught:
        merge("csv:id", BASE, {"b": OTHER, "a": side}, Options("t.csv"))
    error = caught.value
    assert (error.resources, error.agent, error.line) == (("t.csv",), "a", line)
    assert "t.csv was not merged" in str(error)
    assert error.conflicts[0].sides == {"b": OTHER, "a": side}
    assert error.conflicts[0].base == BASE


def test_a_key_that_does_not_hold_in_the_base() -> None:
    base = BASE + b"3,x,1\n"
    with pytest.raises(MergeConflict, match="in what the base has, lines 4 and 5 have the same id '3'"):
        merge("csv:id", base, {"a": base + b"4,a,1\n", "b": base + b"5,b,1\n"}, Options("t.csv"))
    with pytest.raises(MergeConflict, match="in what the base has, line 1 has no column 'sku'"):
        merge("csv:sku", BASE, {"a": BASE + b"4,a,1\n", "b": BASE + b"5,b,1\n"}, Options("t.csv"))


@pytest.mark.parametrize("strategy", ["csv", "csv:id"])
@pytest.mark.parametrize(
    ("side", "words", "line"),
    [
        (BASE.replace(b"2,bob", b'2,"bob'), "in what a has, line 3 opens a quote that is never closed", 3),
        (BASE + b'"', "in what a has, line 5 opens a quote", 5),
        (BASE.replace(b"bob", b"b\0b"), "in what a has, line 3 has a NUL byte", 3),
        (BASE.decode().encode("utf-16"), "in what a has, line 1 has a NUL byte", 1),
        (b"\n" + BASE, "in what a has, line 1 is empty, where the names of the columns", 1),
    ],
)
def test_what_is_no_table_is_refused_by_name(strategy: str, side: bytes, words: str, line: int) -> None:
    for base, sides in ((BASE, {"b": OTHER, "a": side}), (None, {"b": OTHER, "a": side})):
        with pytest.raises(MergeConflict, match=words) as caught:
            merge(strategy, base, sides, Options("t.csv"))
        assert (caught.value.resources, caught.value.agent, caught.value.line) == (("t.csv",), "a", line)
        assert caught.value.conflicts[0].sides == sides
    with pytest.raises(MergeConflict, match=words.replace("a has", "the base has")):
        merge(strategy, side, {"a": BASE, "b": OTHER}, Options("t.csv"))


def test_a_quote_within_a_cell_is_a_character() -> None:
    base = b'id,size,n\n1,5" pipe,1\n2,6" pipe,2\n3,a"b,3\n'
    one, two = base.replace(b'5" pipe,1', b'5" pipe,9'), base.replace(b'1,5"', b'1,7"').replace(b"3\n", b"4\n")
    merged = merge("csv", base, {"a": one, "b": two})
    assert not merged.conflicts
    assert rows(merged.value) == [["id", "size", "n"], ["1", '7" pipe', "9"], ["2", '6" pipe', "2"], ["3", 'a"b', "4"]]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_quoted_newlines_stay_and_belong_to_their_row(newline: bytes) -> None:
    base = b'id,text,n\n1,"one\n2,two, ""x""\n",1\n2,b,2\n3,"\n\n",3\n'.replace(b"\n", newline)
    one = base.replace(b",1" + newline, b",10" + newline)
    two = base.replace(b'"one', b'"ONE').replace(b'3,"', b'3,"!')
    merged = merge("csv", base, {"a": one, "b": two})
    assert merged.value == two.replace(b",1" + newline, b",10" + newline)
    assert not merged.conflicts
    gone = base.replace(b"2,b,2" + newline, b"")
    assert merge("csv", base, {"a": one, "b": gone}).value == one.replace(b"2,b,2" + newline, b"")


def test_line_ends_of_several_kinds() -> None:
    base = b'id,x,y\r\n1,a,"l\nl"\n2,b,"m\r\nm"\r\n3,c,-\n'
    one, two = base.replace(b"2,b", b"2,B"), base.replace(b'm"', b'M"')
    assert merge("csv", base, {"a": one, "b": two}).value == base.replace(b"2,b", b"2,B").replace(b'm"', b'M"')
    merged = merge("csv", base, {"a": one, "b": base.replace(b"3,c", b"3,C")})
    assert merged.value == one.replace(b"3,c", b"3,C")
    excel = b'id,x\r\n1,"l\nl"\r\n2,b\r\n'  # rows end in CR LF, lines within a cell in LF
    merged = merge("csv", excel, {"a": excel + b"3,c\r\n", "b": excel.replace(b"l\nl", b"l\nL")})
    assert merged.value == excel.replace(b"l\nl", b"l\nL") + b"3,c\r\n"
    # A tool that writes CR LF where the base has LF has changed nothing by that.
    crlf = OTHER.replace(b"\n", b"\r\n")
    assert merge("csv", BASE, {"a": crlf, "b": BASE.replace(b"ann", b"Ann")}).value == OTHER.replace(b"ann", b"Ann")


def test_a_tool_that_quotes_everything_has_changed_nothing_by_that() -> None:
    quoted = b"\n".join(b'"' + line.replace(b",", b'","') + b'"' for line in OTHER.splitlines()) + b"\n"
    merged = merge("csv", BASE, {"a": quoted, "b": BASE.replace(b"1,ann,10\n", b"").replace(b"20", b"21")})
    assert not merged.conflicts
    assert rows(merged.value) == [["id", "name", "count"], ["2", "bob", "21"], ["3", "eve", "31"]]
    added = {"a": BASE + b"4,x,1\n", "b": BASE + b'"4","x","1"\n'}
    assert merge("csv", BASE, added).value == BASE + b"4,x,1\n"


def test_a_row_that_two_agents_changed_keeps_its_style() -> None:
    base = b'id,"a",b,"c"\n1,"x", y ,"z"\n2,"x","y",z\n'
    one = base.replace(b'1,"x"', b'1,"X"').replace(b'2,"x"', b'2,"X"')
    two = base.replace(b'"z"', b'"Z, z"').replace(b",z\n", b",Z\n")
    assert merge("csv", base, {"a": one, "b": two}).value == b'id,"a",b,"c"\n1,"X", y ,"Z, z"\n2,"X","y",Z\n'


def test_a_mark_at_the_beginning() -> None:
    mark = b"\xef\xbb\xbf"
    assert merge("csv:id", mark + BASE, {"a": OTHER, "b": mark + BASE + b"4,x,1\n"}).value == mark + OTHER + b"4,x,1\n"
    assert merge("csv:id", BASE, {"a": mark + OTHER, "b": BASE + b"4,x,1\n"}).value == OTHER + b"4,x,1\n"


def test_other_encodings_come_through() -> None:
    base = BASE.replace(b"ann", b"Andr\xe9").replace(b"bob", b"\xff\xfe")
    one, two = base.replace(b"10", b"11"), base.replace(b"Andr\xe9", b"Ren\xe9")
    assert merge("csv", base, {"a": one, "b": two}).value == base.replace(b"Andr\xe9,10", b"Ren\xe9,11")
    (conflict,) = merge("csv", base, {"a": base.replace(b"\xff", b"\xfa"), "b": base.replace(b"\xff", b"")}).conflicts
    assert str(conflict).encode()


def test_empty_files_and_headers_alone() -> None:
    head = BASE.splitlines(keepends=True)[0]
    assert merge("csv", head, {"a": head + b"1,a,1\n", "b": head + b"2,b,2\n"}).value == head + b"1,a,1\n2,b,2\n"
    assert merge("csv", head.strip(), {"a": head + b"1,a,1", "b": head + b"2,b,2"}).value == head + b"1,a,1\n2,b,2"
    for empty in (b"", b"\n"):
        assert merge("csv", empty, {"a": head + b"1,a,1\n", "b": head}).value == head + b"1,a,1\n"
    merged = merge("csv", BASE, {"a": head, "b": BASE + b"4,x,1\n"})
    assert (merged.value, merged.conflicts) == (head + b"4,x,1\n", ())
    (conflict,) = merge("csv", BASE, {"a": head, "b": OTHER}).conflicts
    assert (conflict.path, conflict.reason) == ("/3", "deleted by a and changed by others")


def test_empty_lines_at_the_end_stay() -> None:
    base = BASE + b"\n\n"
    merged = merge("csv", base, {"a": OTHER, "b": BASE + b"4,x,1\n\n"})
    assert merged.value == OTHER + b"4,x,1\n\n\n"


def test_a_cell_of_any_length() -> None:
    limit = csv.field_size_limit()
    long, other = b"x" * (1 << 20), b'"' + b'y ""\n' * 200_000 + b'"'
    base = BASE.replace(b"ann", long).replace(b"eve", other)
    one, two = base.replace(b"10", b"11").replace(b"30", b"31"), base.replace(long, b"x" + long).replace(b"y", b"Y")
    merged = merge("csv", base, {"a": one, "b": two})
    assert not merged.conflicts
    assert merged.value == two.replace(b"10", b"11").replace(b"30", b"31")
    assert csv.field_size_limit() == limit


def test_rows_with_cells_missing_stay_as_they_are() -> None:
    base = BASE + b"4,short\n5,long,1,2,3\n"
    merged = merge("csv:id", base, {"a": base.replace(b"ann", b"Ann"), "b": base.replace(b"10", b"11")})
    assert merged.value == base.replace(b"ann,10", b"Ann,11")
    short = merge("csv:id", base, {"a": base.replace(b"short", b"shorter"), "b": base.replace(b"10", b"11")})
    assert short.value == base.replace(b"short", b"shorter").replace(b"10", b"11")
    with pytest.raises(MergeConflict, match=r"in what the base has, line 5 .* has 2 cells"):
        merge("csv:id", base, {"a": base.replace(b"short", b"a"), "b": base.replace(b"short", b"b")})
    (conflict,) = merge("csv", base, {"a": base.replace(b"short", b"a"), "b": base.replace(b"short", b"b")}).conflicts
    assert conflict.path == "line 5"
    keys = b"x,id\n1,a\n2\n"
    with pytest.raises(MergeConflict, match=r"in what the base has, line 3 \('2'\) has no 'id'"):
        merge("csv:id", keys, {"a": keys + b"3,c\n", "b": keys + b"4,d\n"})


def test_lines_are_not_merged_where_that_would_move_cells() -> None:
    base = b"level,text\ninfo,a\ninfo,b\n"
    turned = b"text,level\na,info\nb,info\n"
    (conflict,) = merge("csv", base, {"a": turned, "b": base + b"info,c\n"}).conflicts
    assert conflict.reason.startswith("a changed the columns, and in what")
    # Each line is somebody's, but together they are rows that nobody wrote.
    base = b'l,t\ni,a\ni,"x\n1\n2\n3\ny"\ni,b\n'
    one, two = base.replace(b'"x\n', b"x\n"), base.replace(b'y"', b"y")
    with pytest.raises(MergeConflict, match="opens a quote that is never closed"):
        merge("csv", base, {"a": one, "b": two})
    one = base.replace(b'"x\n1', b'x\ni,"1')
    two = base.replace(b'3\ny"', b'3"\ni,y')
    (conflict,) = merge("csv", base, {"a": one, "b": two}).conflicts
    assert "would cut rows in two" in conflict.reason


def test_a_row_that_only_moved_has_not_changed() -> None:
    head, one, two, three = BASE.splitlines(keepends=True)
    merged = merge("csv", BASE, {"a": head + one + three + two, "b": head + one + two})
    assert (merged.value, merged.conflicts) == (head + one + two, ())
    assert merged.changes == {"a": 1, "b": 1}


def test_many_rows_that_moved() -> None:
    head, *lines = [b"id,x\n", *(b"%d,x\n" % number for number in range(2000))]
    base = head + b"".join(lines)
    first = head + b"new,1\n" + b"".join(lines).replace(b"5,x\n", b"5,y\n")
    turned = head + b"".join(reversed(lines))
    merged = merge("csv", base, {"a": first, "b": turned})
    assert not merged.conflicts
    assert merged.value == head + b"new,1\n" + b"".join(reversed(lines)).replace(b"5,x\n", b"5,y\n")
    last = first + b"1999,x\n"
    with pytest.raises(MergeConflict, match="in what a has, lines 2002 and 2003 have the same id '1999'"):
        merge("csv:id", base, {"a": last, "b": turned})
    with pytest.raises(MergeConflict, match="in what a has, lines 3 and 2002 have the same id '0'"):
        merge("csv:id", base, {"a": first.replace(b"\n1999,x", b"\n0,x"), "b": turned})


# -- columns ---


def test_a_column_that_one_agent_removed_and_another_changed() -> None:
    gone = b"id,name\n1,ann\n2,bob\n3,eve\n"
    merged = merge("csv", BASE, {"a": gone.replace(b"bob", b"Bob"), "b": OTHER})
    (conflict,) = merged.conflicts
    assert (conflict.path, conflict.base, conflict.sides) == ("/3/count", "30", {"a": MISSING, "b": "31"})
    assert merged.value == BASE.replace(b"bob", b"Bob")
    (conflict,) = merge("csv", BASE, {"a": gone, "b": BASE + b"4,new,40\n"}).conflicts
    assert (conflict.path, conflict.base, conflict.sides) == ("/4/count", MISSING, {"a": MISSING, "b": "40"})
    for answer, result in (("99", BASE.replace(b"30", b"99")), (MISSING, gone)):
        resolved = merge("csv", BASE, {"a": gone, "b": OTHER}, Options("t.csv", resolve=lambda _, a=answer: a))  # type: ignore[misc]
        assert (resolved.value, resolved.conflicts) == (result, ())


def test_a_column_that_was_renamed() -> None:
    renamed = BASE.replace(b"count", b"total")
    merged = merge("csv", BASE, {"a": renamed, "b": BASE.replace(b"bob", b"Bob")})
    assert (merged.value, merged.conflicts) == (renamed.replace(b"bob", b"Bob"), ())
    (conflict,) = merge("csv", BASE, {"a": renamed, "b": OTHER}).conflicts
    assert (conflict.path, conflict.sides) == ("/3/count", {"a": MISSING, "b": "31"})
    both = merge("csv", BASE, {"a": renamed, "b": renamed.replace(b"31", b"30")})
    assert (both.value, both.conflicts) == (renamed, ())
    other = BASE.replace(b"count", b"sum")
    assert rows(merge("csv", BASE, {"a": renamed, "b": other}).value)[:2] == [
        ["id", "name", "total", "sum"], ["1", "ann", "10", "10"],
    ]  # fmt: skip


def test_columns_in_another_order() -> None:
    turned = b"id,count,name\n1,10,ann\n2,20,bob\n3,30,eve\n"
    merged = merge("csv", BASE, {"a": turned, "b": OTHER + b"4,x,1\n"})
    assert (merged.value, merged.conflicts) == (turned.replace(b"30", b"31") + b"4,1,x\n", ())
    same = merge("csv", BASE, {"a": turned, "b": turned.replace(b"10", b"11")})
    assert (same.value, same.conflicts) == (turned.replace(b"10", b"11"), ())
    other = b"name,id,count\nann,1,10\nbob,2,20\neve,3,31\n"
    merged = merge("csv:id", BASE, {"a": turned, "b": other})
    (conflict,) = merged.conflicts
    assert (conflict.path, conflict.reason) == ("", "put the columns in different orders")
    assert conflict.sides == {"a": ["id", "count", "name"], "b": ["name", "id", "count"]}
    assert merged.value == OTHER
    options = Options("t.csv", resolve=lambda conflict: conflict.sides["a"])
    assert merge("csv:id", BASE, {"a": turned, "b": other}, options).value == turned.replace(b"30", b"31")
    with pytest.raises(ConfigError, match="list of names"):
        merge("csv:id", BASE, {"a": turned, "b": other}, Options("t.csv", resolve=lambda conflict: "x"))


def test_a_column_that_both_add() -> None:
    one = b"id,name,count,note\n1,ann,10,x\n2,bob,20,\n3,eve,30,\n"
    merged = merge("csv", BASE, {"a": one, "b": one.replace(b"20,", b"20,y").replace(b"10,x", b"10,z")})
    (conflict,) = merged.conflicts
    assert (conflict.path, conflict.base, conflict.sides) == ("/1/note", MISSING, {"a": "x", "b": "z"})
    assert merged.value == one.replace(b"10,x", b"10,").replace(b"20,", b"20,y")


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
    sides = {"a": head + two + one + three, "b": head + three + two + one}
    options = Options("t.csv", resolve=lambda conflict: conflict.sides["b"])
    assert merge("csv", BASE, sides, options).value == sides["b"]


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
    check_algebra("csv", table(base), contents)


def check_algebra(strategy: str, base: bytes, contents: dict[str, bytes]) -> None:
    """What holds for any versions: the order of agents, a second copy of one, and an idle one do not count; merging two
    first and a third later is the same where nothing is in conflict."""

    def seen(merged: Merged) -> tuple[Any, ...]:
        found = sorted(
            (c.path, sorted((who.strip("'"), repr(v)) for who, v in c.sides.items())) for c in merged.conflicts
        )
        header, *rest = rows(merged.value) or [[]]
        places = sorted(range(len(header)), key=header.__getitem__)
        return sorted(header), sorted([row[at] for at in places] for row in rest), found

    merged = merge(strategy, base, contents, Options("t.csv"))
    agreed = not any(conflict.path == "" for conflict in merged.conflicts)  # about an order, whose sides are lists
    turned = merge(strategy, base, dict(reversed(contents.items())), Options("t.csv"))
    assert seen(turned) == seen(merged) or not agreed
    assert {conflict.path for conflict in turned.conflicts} == {conflict.path for conflict in merged.conflicts}
    twice = merge(strategy, base, {**contents, **{f"{who}'": data for who, data in contents.items()}, "idle": base})
    assert rows(twice.value) == rows(merged.value)
    assert [conflict.path for conflict in twice.conflicts] == [conflict.path for conflict in merged.conflicts]
    if not merged.conflicts:
        once_more = merge(strategy, base, {"m": merged.value, **contents}, Options("t.csv"))
        assert agreed and (not once_more.conflicts or [c.path for c in once_more.conflicts] == [""])
        assert seen(once_more)[:2] == seen(merged)[:2]
        for last, data in list(contents.items())[2:]:
            pair = merge(strategy, base, {who: side for who, side in contents.items() if who != last})
            folded = merge(strategy, base, {"pair": pair.value, last: data})
            assert not pair.conflicts
            assert seen(folded)[:2] == seen(merged)[:2]
            assert all(conflict.path == "" for conflict in folded.conflicts)


@given(TABLES, st.lists(TABLES, min_size=2, max_size=3))
@settings(max_examples=300, deadline=None)
def test_no_cell_is_lost_whatever_happens(base: dict[str, list[str]], sides: list[dict[str, list[str]]]) -> None:
    check_case(base, sides)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(TABLES, st.lists(TABLES, min_size=2, max_size=4))
@settings(max_examples=20_000, deadline=None)
def test_no_cell_is_lost_in_twenty_thousand_cases(base: Any, sides: Any) -> None:
    check_case(base, sides)


# Versions of any shape: columns removed, added and moved, in several styles, rows in any order, keys that repeat.

STYLES = st.sampled_from([(csv.QUOTE_MINIMAL, "\n"), (csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n")])
Table = dict[str, dict[str, str]]


@st.composite
def shaped(draw: st.DrawFn, base: Table | None, agent: str) -> tuple[Table, list[str], bytes]:
    """A version: its rows by key, what is odd about it, and its bytes. What an agent puts in bears its name."""
    if base is None:
        columns, cell = ["x", "id", "y"], CELLS
    else:
        columns = draw(st.permutations(["x", "id", "y"])) if draw(st.integers(0, 3)) == 0 else ["x", "id", "y"]
        columns = [name for name in columns if name == "id" or draw(st.integers(0, 5))]
        columns += ["z"] if draw(st.integers(0, 5)) == 0 else []
        cell = st.sampled_from([f"{agent}!", f"{agent},", f'{agent}\n"', "same"])
    table_: Table = {}
    for key, row in (base or {}).items():
        if draw(st.integers(0, 4)):
            table_[key] = {
                name: row[name] if name in row and draw(st.integers(0, 3)) else draw(cell) if name != "id" else key
                for name in columns
            }
    for key in draw(st.lists(st.sampled_from("123456789"), max_size=3, unique=True)):
        if key not in (base or {}):
            table_[key] = {name: key if name == "id" else draw(cell) for name in columns}
    listed = list(table_.values())
    if draw(st.integers(0, 9)) == 0:
        listed = draw(st.permutations(listed))
    odd = []
    if listed and draw(st.integers(0, 19)) == 0:
        listed.append({**draw(st.sampled_from(listed))})
        odd.append("key")
    quoting, newline = draw(STYLES)
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=quoting, lineterminator=newline)  # type: ignore[arg-type]
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in listed)
    return table_, odd, out.getvalue().encode()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, list[Any]]:
    base = draw(shaped(None, "base"))
    return base, [draw(shaped(base[0], f"a{number}")) for number in range(draw(st.integers(2, 4)))]


def check_shapes(case: tuple[Any, list[Any]]) -> None:
    (start, odd, base), versions = case
    contents = {f"a{number}": data for number, (_, _, data) in enumerate(versions)}
    changed = {who: data for who, data in contents.items() if data != base}
    keys = odd or any(strange for (_, strange, data) in versions if data != base)
    try:
        merged = merge("csv:id", base, contents, Options("t.csv"))
    except MergeConflict as refused:
        assert keys and len(changed) > 1
        assert "have the same id" in str(refused)
        assert refused.agent in ("the base", *changed)
        return
    assert not keys or len(changed) < 2
    if len(changed) < 2:
        assert merged.value == (next(iter(changed.values())) if changed else base)
        return
    header, *found = rows(merged.value)
    result = {row["id"]: row for row in (dict(zip(header, cells, strict=True)) for cells in found)}
    assert len(result) == len(found)
    told = {conflict.path: conflict for conflict in merged.conflicts}
    for who, (table_, _, data) in zip(contents, versions, strict=True):
        if data == base:
            continue
        mine = next(iter(rows(data)))
        for key in {*start, *table_}:
            if key not in table_:  # deleted: it is gone, or in conflict, or others' change keeps it
                assert key not in result or f"/{key}" in told
                continue
            for column in mine:
                cell = table_[key][column]
                if key in start and start[key].get(column, "") == cell:
                    continue
                place = f"/{key}/{column}"
                if place in told:
                    sides = told[place].sides
                    assert sides[who] == cell and len({repr(value) for value in sides.values()}) > 1
                elif f"/{key}" in told:
                    assert told[f"/{key}"].sides[who][column] == cell  # type: ignore[index]
                else:
                    assert result[key].get(column, "") == cell
    for key, row in start.items():  # what nobody touched is there, in every column that nobody removed
        sides = [table_ for table_, _, data in versions if data != base]
        if all(key in table_ for table_ in sides):
            for column, cell in row.items():
                if all(table_[key].get(column) == cell for table_ in sides):
                    assert result[key][column] == cell
    check_algebra("csv:id", base, contents)


# How many rows may have moved before all of them are looked up: with tables as small as these, never or always.
BOTH_WAYS = pytest.mark.parametrize("few", [100, -100])


@BOTH_WAYS
def test_versions_of_any_shape(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_changes, "_FEW", few)
    settings(max_examples=200, deadline=None)(given(shapes())(check_shapes))()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@BOTH_WAYS
def test_versions_of_any_shape_at_length(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_changes, "_FEW", few)
    settings(max_examples=20_000, deadline=None)(given(shapes())(check_shapes))()


PIECES = st.lists(st.sampled_from(['"', '""', ",", "\n", "\r\n", "a", " ", ";", "é"]), max_size=14).map("".join)


def check_reading(body: str) -> None:
    """Records and cells are those of Python's csv module."""
    data = ("h,h\n" + body).encode()
    try:
        sheet = Sheet.of(data, "a")
    except Unreadable:
        last = list(csv.reader(io.StringIO(data.decode() + "\nlast", newline="")))[-1]
        assert last != ["last"]  # for the csv module too, a quote is still open at the end
        return
    expected = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert [sheet.dialect.cells(record) for record in [sheet.raw_header, *sheet.records]] == (
        expected[: len(expected) - sheet.blank] if sheet.blank else expected
    )
    again = sheet.file(sheet.raw_header, sheet.records, closed=sheet.closed)
    assert Sheet.of(again, "a").records == sheet.records
    assert again == data or b"\r" in data  # rows that are alike, with different line ends, get those of one


@given(PIECES)
@example('"a\nb",c"d\n')
@example('"a\nb,""\n",c\n')
@settings(max_examples=500, deadline=None)
def test_records_and_cells_are_those_of_the_csv_module(body: str) -> None:
    check_reading(body)


@pytest.mark.soak
@pytest.mark.timeout(900)
@given(PIECES)
@settings(max_examples=20_000, deadline=None)
def test_records_and_cells_at_length(body: str) -> None:
    check_reading(body)
