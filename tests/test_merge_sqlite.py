"""SQLite by rows: what any client made of a database is merged cell by cell; nothing that anybody wrote is lost."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.exceptions import MergeConflict
from agentguard.merge import MISSING, Merged, Options, default_strategy, merge

SCHEMA = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, n INTEGER);"
    "CREATE TABLE u (a, b, x, PRIMARY KEY (a, b)) WITHOUT ROWID;"
)
ROWS = "INSERT INTO t VALUES (1, 'ann', 10), (2, 'bob', 20), (3, 'eve', 30); INSERT INTO u VALUES ('k', 1, 'x');"


def database(script: str, start: bytes | None = None) -> bytes:
    """A database file after a script, made by the standard library's client."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.db"
        if start is not None:
            file.write_bytes(start)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.executescript(script)
        return file.read_bytes()


def rows(data: bytes, query: str = "SELECT * FROM t ORDER BY id") -> list[tuple[Any, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.db"
        file.write_bytes(data)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return connection.execute(query).fetchall()


BASE = database(SCHEMA + ROWS)


def merged(*scripts: str, base: bytes = BASE, paths: dict[str, str] | None = None, **options: Any) -> Merged:
    sides = {f"a{number}": database(script, base) for number, script in enumerate(scripts)}
    return merge("sqlite", base, sides, Options("x.db", paths or {}, **options))


def test_the_default_goes_by_suffix() -> None:
    assert {default_strategy(f"x.{suffix}") for suffix in ("db", "sqlite", "sqlite3", "DB3")} == {"sqlite"}


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        (["UPDATE t SET n = 11 WHERE id = 1", "UPDATE t SET name = 'Ann' WHERE id = 1"],
         [(1, "Ann", 11), (2, "bob", 20), (3, "eve", 30)]),
        (["DELETE FROM t WHERE id = 2", "UPDATE t SET n = 31 WHERE id = 3"],
         [(1, "ann", 10), (3, "eve", 31)]),
        (["INSERT INTO t VALUES (4, 'x', 1)", "INSERT INTO t VALUES (5, 'y', 2)"],
         [(1, "ann", 10), (2, "bob", 20), (3, "eve", 30), (4, "x", 1), (5, "y", 2)]),
        (["INSERT INTO t VALUES (4, 'x', 1)", "INSERT INTO t VALUES (4, 'x', 1)"],
         [(1, "ann", 10), (2, "bob", 20), (3, "eve", 30), (4, "x", 1)]),
        (["UPDATE t SET id = 9 WHERE id = 1", "UPDATE t SET n = 21 WHERE id = 2"],
         [(2, "bob", 21), (3, "eve", 30), (9, "ann", 10)]),
        (["DELETE FROM t WHERE id = 2", "DELETE FROM t WHERE id = 2", "UPDATE t SET n = 0 WHERE id = 1"],
         [(1, "ann", 0), (3, "eve", 30)]),
    ],
)  # fmt: skip
def test_clean_merges(scripts: list[str], expected: list[Any]) -> None:
    for order in itertools.permutations(scripts):
        outcome = merged(*order)
        assert not outcome.conflicts
        assert rows(outcome.value) == expected
        assert rows(outcome.value, "SELECT * FROM u") == [("k", 1, "x")]


@pytest.mark.parametrize(
    ("one", "two", "path", "base", "sides"),
    [
        ("UPDATE t SET n = 11 WHERE id = 1", "UPDATE t SET n = 12 WHERE id = 1", "/t/1/n", 10, {"a0": 11, "a1": 12}),
        ("DELETE FROM t WHERE id = 2", "UPDATE t SET n = 21 WHERE id = 2", "/t/2", {"id": 2, "name": "bob", "n": 20},
         {"a0": MISSING, "a1": {"id": 2, "name": "bob", "n": 21}}),
        ("INSERT INTO t VALUES (4, 'x', 1)", "INSERT INTO t VALUES (4, 'y', 1)", "/t/4", MISSING,
         {"a0": {"id": 4, "name": "x", "n": 1}, "a1": {"id": 4, "name": "y", "n": 1}}),
        ("UPDATE u SET x = 'one'", "UPDATE u SET x = 'two'", "/u/k,1/x", "x", {"a0": "one", "a1": "two"}),
        ("UPDATE t SET n = 1 WHERE id = 1", "UPDATE t SET n = 1.0 WHERE id = 1", None, None, None),
        ("UPDATE u SET x = 1", "UPDATE u SET x = '1'", "/u/k,1/x", "x", {"a0": 1, "a1": "1"}),
    ],
)  # fmt: skip
def test_conflicts_are_values_and_the_base_stays(one: str, two: str, path: Any, base: Any, sides: Any) -> None:
    outcome = merged(one, two)
    if path is None:  # the column's affinity has made both the same
        assert not outcome.conflicts
        return
    (conflict,) = outcome.conflicts
    assert (conflict.resource, conflict.path, conflict.base, conflict.sides) == ("x.db", path, base, sides)
    assert rows(outcome.value) == rows(BASE)


def test_a_resolver_decides() -> None:
    outcome = merged(
        "UPDATE t SET n = 11 WHERE id = 1", "UPDATE t SET n = 12 WHERE id = 1", resolve=lambda conflict: 99
    )
    assert rows(outcome.value)[0] == (1, "ann", 99)
    delete = merged("DELETE FROM t WHERE id = 2", "UPDATE t SET n = 21 WHERE id = 2", resolve=lambda conflict: MISSING)
    assert [row[0] for row in rows(delete.value)] == [1, 3]


def test_cells_may_have_strategies_of_their_own() -> None:
    paths = {"/t/*/n": "counter", "/t/*/name": "last"}
    outcome = merged(
        "UPDATE t SET n = n + 1, name = 'x'",
        "UPDATE t SET n = n + 5, name = 'y'",
        "UPDATE t SET n = n - 2 WHERE id = 3",
        paths=paths,
    )  # fmt: skip
    assert not outcome.conflicts
    assert rows(outcome.value) == [(1, "y", 16), (2, "y", 26), (3, "y", 34)]


def test_rows_that_several_agents_added_under_one_key_may_get_new_ones() -> None:
    scripts = [
        "INSERT INTO t (name, n) VALUES ('x', 1), ('z', 1)",
        "INSERT INTO t (name, n) VALUES ('y', 2)",
        "INSERT INTO t (name, n) VALUES ('w', 3)",
    ]
    assert len(merged(*scripts).conflicts) == 1
    outcome = merged(*scripts, paths={"/t": "append"})
    assert not outcome.conflicts
    assert sorted(name for _, name, _ in rows(outcome.value)) == sorted(["ann", "bob", "eve", "x", "z", "y", "w"])


def test_one_agent_may_change_the_schema() -> None:
    outcome = merged(
        "ALTER TABLE u ADD COLUMN y; CREATE TABLE v (id INTEGER PRIMARY KEY); INSERT INTO v VALUES (7);"
        "UPDATE t SET n = 0 WHERE id = 3",
        "UPDATE t SET n = 11 WHERE id = 1; INSERT INTO t VALUES (4, 'x', 1)",
    )
    assert not outcome.conflicts
    assert rows(outcome.value) == [(1, "ann", 11), (2, "bob", 20), (3, "eve", 0), (4, "x", 1)]
    assert rows(outcome.value, "SELECT * FROM v") == [(7,)]
    assert rows(outcome.value, "SELECT * FROM u") == [("k", 1, "x", None)]
    for scripts in (
        ["ALTER TABLE t ADD COLUMN y", "UPDATE t SET n = 11 WHERE id = 1"],
        ["ALTER TABLE t ADD COLUMN y", "ALTER TABLE t ADD COLUMN z"],
    ):
        (conflict,) = merged(*scripts).conflicts
        assert "schema" in conflict.reason
        assert conflict.path == ""


def test_tables_without_a_primary_key() -> None:
    base = database("CREATE TABLE log (line)" + ";" + SCHEMA + "INSERT INTO log VALUES ('a'), ('a')")
    outcome = merged("INSERT INTO log VALUES ('b')", "INSERT INTO t VALUES (1, 'x', 1)", base=base)
    assert not outcome.conflicts
    assert rows(outcome.value, "SELECT * FROM log") == [("a",), ("a",), ("b",)]
    assert rows(outcome.value) == [(1, "x", 1)]
    (conflict,) = merged("INSERT INTO log VALUES ('b')", "DELETE FROM log WHERE rowid = 1", base=base).conflicts
    assert conflict.path == "/log"
    assert "without a primary key" in conflict.reason


def test_triggers_do_not_run_twice() -> None:
    base = database(SCHEMA + ROWS + "CREATE TRIGGER up AFTER UPDATE OF name ON t BEGIN UPDATE u SET x = x || '!'; END;")
    outcome = merged("UPDATE t SET name = 'x' WHERE id = 1", "UPDATE t SET n = 5 WHERE id = 2", base=base)
    assert rows(outcome.value, "SELECT x FROM u") == [("x!",)]


def test_constraints_between_agents_rows() -> None:
    base = database(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, n); INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)"
    )
    (conflict,) = merged("INSERT INTO t VALUES (3, 'x', 0)", "INSERT INTO t VALUES (4, 'x', 0)", base=base).conflicts
    assert "constraint" in conflict.reason
    swap = merged(
        "UPDATE t SET name = 'tmp' WHERE id = 1; UPDATE t SET name = 'a' WHERE id = 2;"
        "UPDATE t SET name = 'b' WHERE id = 1",
        "UPDATE t SET n = 1 WHERE id = 2", base=base,
    )  # fmt: skip
    assert not swap.conflicts
    assert rows(swap.value) == [(1, "b", 0), (2, "a", 1)]
    family = database(
        "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (id INTEGER PRIMARY KEY, p REFERENCES p);"
        "INSERT INTO p VALUES (1), (2)"
    )
    (conflict,) = merged("DELETE FROM p WHERE id = 1", "INSERT INTO c VALUES (1, 1)", base=family).conflicts
    assert "foreign key" in conflict.reason


def test_two_agents_who_make_the_database() -> None:
    one = database(SCHEMA + "INSERT INTO t VALUES (1, 'x', 1)")
    two = database(SCHEMA + "INSERT INTO t VALUES (2, 'y', 2)")
    for base in (None, b""):
        outcome = merge("sqlite", base, {"a": one, "b": two})
        assert not outcome.conflicts
        assert rows(outcome.value) == [(1, "x", 1), (2, "y", 2)]
    other = database("CREATE TABLE t (id INTEGER PRIMARY KEY, other)")
    assert merge("sqlite", None, {"a": one, "b": other}).conflicts


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"not a database", lambda data: data[:5000], lambda data: data[:100] + b"\xff" * 4000 + data[4100:]],
)
def test_what_is_no_database_is_refused_by_name(spoil: Callable[[bytes], bytes]) -> None:
    sides = {"ann": database("UPDATE t SET n = 0", BASE), "bob": spoil(BASE)}
    with pytest.raises(MergeConflict, match="what bob has"):
        merge("sqlite", BASE, sides, Options("x.db"))


def test_the_journal_mode_of_the_base_stays() -> None:
    base = database("PRAGMA journal_mode = WAL; " + SCHEMA + ROWS)
    outcome = merged("UPDATE t SET n = 11 WHERE id = 1", "UPDATE t SET n = 21 WHERE id = 2", base=base)
    assert rows(outcome.value)[:2] == [(1, "ann", 11), (2, "bob", 21)]
    assert rows(outcome.value, "PRAGMA journal_mode") == [("wal",)]


CELLS = st.sampled_from([None, 0, 1, "a", "b", b"\0"])
TABLES = st.dictionaries(st.integers(1, 5), st.tuples(CELLS, CELLS), max_size=4)
Table = dict[int, tuple[Any, Any]]


def made(table: Table) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.db"
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x, y)")
            connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(key, *cells) for key, cells in table.items()])
            connection.commit()
        return file.read_bytes()


def check_case(base: Table, sides: list[Table]) -> None:
    contents = {f"a{number}": made(side) for number, side in enumerate(sides)}
    outcome = merge("sqlite", made(base), contents, Options("x.db"))
    result = {row[0]: row[1:] for row in rows(outcome.value)}
    paths = {conflict.path for conflict in outcome.conflicts}
    for key in {*base, *(key for side in sides for key in side)}:
        before = base.get(key)
        new = [side.get(key) for side in sides if side.get(key) != before]
        if f"/t/{key}" in paths:
            assert result.get(key) == before
            assert len(set(new)) > 1
        elif not new or None in new or before is None:
            assert len(set(new)) <= 1
            assert result.get(key) == (new[0] if new else before)
        else:
            for column, name in enumerate("xy"):
                cells = {row[column] for row in new if row is not None and row[column] != before[column]}
                assert (f"/t/{key}/{name}" in paths) is (len(cells) > 1)
                assert result[key][column] == (cells.pop() if len(cells) == 1 else before[column])
    again = merge("sqlite", made(base), dict(reversed(contents.items())), Options("x.db"))
    assert {conflict.path for conflict in again.conflicts} == paths
    assert rows(again.value) == rows(outcome.value)


@given(TABLES, st.lists(TABLES, min_size=2, max_size=3))
@settings(max_examples=100, deadline=None)
def test_no_cell_is_lost_whatever_happens(base: Table, sides: list[Table]) -> None:
    check_case(base, sides)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(TABLES, st.lists(TABLES, min_size=2, max_size=4))
@settings(max_examples=20_000, deadline=None)
def test_no_cell_is_lost_in_twenty_thousand_cases(base: Table, sides: list[Table]) -> None:
    check_case(base, sides)
