"""SQLite by rows: what any client made of a database is merged cell by cell; nothing that anybody wrote is lost."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard import Guard
from agentguard.exceptions import ConfigError, MergeConflict
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
    [
        lambda data: b"not a database",
        lambda data: bytes(byte ^ 0x5A for byte in data),  # as an encrypted one looks
        lambda data: data[:50],
        lambda data: data[:5000],
        lambda data: data[:4096],
        lambda data: data[:-1],
        lambda data: data[:100] + b"\xff" * 4000 + data[4100:],
        lambda data: data[:8192] + b"\xff" * 4096 + data[12288:],
    ],
)
def test_what_is_no_database_is_refused_by_name(spoil: Callable[[bytes], bytes]) -> None:
    sides = {"ann": database("UPDATE t SET n = 0", BASE), "bob": spoil(BASE)}
    with pytest.raises(MergeConflict, match=r"x\.db was not merged: what bob has") as caught:
        merge("sqlite", BASE, sides, Options("x.db"))
    assert (caught.value.resources, caught.value.agent) == (("x.db",), "bob")
    assert caught.value.conflicts[0].sides == sides


def test_the_journal_mode_of_the_base_stays() -> None:
    base = database("PRAGMA journal_mode = WAL; " + SCHEMA + ROWS)
    outcome = merged("UPDATE t SET n = 11 WHERE id = 1", "UPDATE t SET n = 21 WHERE id = 2", base=base)
    assert rows(outcome.value)[:2] == [(1, "ann", 11), (2, "bob", 21)]
    assert rows(outcome.value, "PRAGMA journal_mode") == [("wal",)]


# -- bad input ---


def test_a_change_that_only_types_or_a_collation_tell() -> None:
    base = database(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, n); INSERT INTO t VALUES (1, 'ann', 1);"
        "CREATE TABLE k (name TEXT COLLATE NOCASE PRIMARY KEY, n); INSERT INTO k VALUES ('a', 1), ('b', 1);"
        "CREATE TABLE log (x COLLATE NOCASE); INSERT INTO log VALUES ('a'), (1)"
    )
    outcome = merged(
        "UPDATE t SET name = 'Ann'; UPDATE k SET name = 'A' WHERE name = 'a'; UPDATE log SET x = upper(x)",
        "UPDATE t SET n = 1.0; UPDATE k SET n = 1.0 WHERE name = 'b'",
        base=base,
    )
    assert not outcome.conflicts
    assert rows(outcome.value, "SELECT name, n, typeof(n) FROM t") == [("Ann", 1.0, "real")]
    assert rows(outcome.value, "SELECT name, typeof(n) FROM k ORDER BY name") == [("A", "integer"), ("b", "real")]
    assert rows(outcome.value, "SELECT x, typeof(x) FROM log") == [("A", "text"), ("1", "text")]
    real = merged("UPDATE log SET x = 1.0 WHERE x = 1", "UPDATE t SET n = 5", base=base)
    assert rows(real.value, "SELECT typeof(x) FROM log") == [("text",), ("real",)]
    outcome = merged("UPDATE t SET n = 1.0", "UPDATE t SET n = '1'", base=base)
    assert outcome.conflicts[0].sides == {"a0": 1.0, "a1": "1"}
    blob = merged("UPDATE t SET n = 'x'", "UPDATE t SET n = x'78'", base=base)
    assert blob.conflicts[0].sides == {"a0": "x", "a1": b"x"}


def test_keys_that_are_null_huge_or_blobs() -> None:
    base = database(
        "CREATE TABLE t (a TEXT, b, x, PRIMARY KEY (a, b));"
        f"INSERT INTO t VALUES (NULL, 1, 'n'), ('k', x'00ff', 'b'), ('k', {2**63 - 1}, 'h'), ('k', 1.5, 'r')"
    )
    clean = merged(
        "UPDATE t SET x = 'N' WHERE a IS NULL; UPDATE t SET x = 'B' WHERE typeof(b) = 'blob'",
        f"UPDATE t SET x = 'H' WHERE b = {2**63 - 1}; INSERT INTO t VALUES ('k', {-(2**63)}, 'l')", base=base,
    )  # fmt: skip
    assert not clean.conflicts
    assert sorted(rows(clean.value, "SELECT x FROM t")) == [("B",), ("H",), ("N",), ("l",), ("r",)]
    one = "INSERT INTO t VALUES (NULL, 1, 'one')"
    (conflict,) = merged(one, "UPDATE t SET x = 'two' WHERE a IS NULL", base=base).conflicts
    assert conflict.path == "/t"
    assert "without a primary key" in conflict.reason
    assert conflict.sides["a1"] == [{"a": None, "b": 1, "x": "two"}]
    (conflict,) = merged("UPDATE t SET x = 1 WHERE typeof(b) = 'blob'", "DELETE FROM t", base=base).conflicts
    assert conflict.path == "/t/k,00ff"


def test_rows_without_a_key_that_several_agents_added() -> None:
    base = database("CREATE TABLE log (line); INSERT INTO log VALUES ('a'), ('a')")
    scripts = ["INSERT INTO log VALUES ('x')", "INSERT INTO log VALUES ('y'), ('y')"]
    (conflict,) = merged(*scripts, base=base).conflicts
    assert conflict.path == "/log"
    assert conflict.sides["a1"] == [{"line": one} for one in ("a", "a", "y", "y")]
    outcome = merged(*scripts, base=base, paths={"/log": "append"})
    assert not outcome.conflicts
    assert rows(outcome.value, "SELECT * FROM log") == [("a",), ("a",), ("x",), ("y",), ("y",)]
    rewritten = [*scripts, "DELETE FROM log WHERE rowid = 1"]
    (conflict,) = merged(*rewritten, base=base, paths={"/log": "append"}).conflicts
    assert set(conflict.sides) == {"a0", "a1", "a2"}
    assert not merged(scripts[0], scripts[0], base=base).conflicts
    chosen = merged(*scripts, base=base, resolve=lambda conflict: conflict.sides["a0"])
    assert rows(chosen.value, "SELECT * FROM log") == [("a",), ("a",), ("x",)]


def test_numbers_of_rows_without_a_key_stay() -> None:
    base = database("CREATE TABLE log (line); INSERT INTO log VALUES ('a'), ('b'), ('c')" + ";" + SCHEMA + ROWS)
    outcome = merged("UPDATE t SET n = 1", "DELETE FROM log WHERE line = 'b'", base=base)
    assert rows(outcome.value, "SELECT rowid, line FROM log") == [(1, "a"), (3, "c")]


def test_a_rule_of_the_table_does_not_drop_what_another_agent_wrote() -> None:
    for rule in ("REPLACE", "IGNORE", "ROLLBACK", "FAIL"):
        base = database(f"CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE ON CONFLICT {rule}, n)")
        outcome = merged("INSERT INTO t VALUES (3, 'x', 'one')", "INSERT INTO t VALUES (4, 'x', 'two')", base=base)
        (conflict,) = outcome.conflicts
        assert (conflict.path, conflict.base) == ("/t/4", MISSING)
        assert conflict.sides == {"a1": {"id": 4, "name": "x", "n": "two"}}
        assert "UNIQUE constraint failed: t.name" in conflict.reason
        assert rows(outcome.value) == [(3, "x", "one")]


def test_a_resolver_is_asked_about_what_a_constraint_forbids() -> None:
    base = database("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, n CHECK (n < 9))")
    scripts = ["INSERT INTO t VALUES (3, 'x', 1)", "INSERT INTO t VALUES (4, 'x', 2)"]
    other = merged(*scripts, base=base, resolve=lambda conflict: {"id": 4, "name": "y", "n": 2})
    assert (rows(other.value), other.conflicts) == ([(3, "x", 1), (4, "y", 2)], ())
    left = merged(*scripts, base=base, resolve=lambda conflict: MISSING)
    assert (rows(left.value), left.conflicts) == ([(3, "x", 1)], ())
    with pytest.raises(ConfigError, match=r"/t/4 of x\.db is forbidden as well: UNIQUE"):
        merged(*scripts, base=base, resolve=lambda conflict: conflict.sides["a1"])


def test_checks_that_only_both_changes_break() -> None:
    base = database(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, lo INTEGER, hi INTEGER, CHECK (lo <= hi));"
        "INSERT INTO t VALUES (1, 1, 9)"
    )
    outcome = merged("UPDATE t SET lo = 8", "UPDATE t SET hi = 2", base=base)
    (conflict,) = outcome.conflicts
    assert conflict.path == "/t/1"
    assert conflict.sides == {"a0": {"id": 1, "lo": 8, "hi": 9}, "a1": {"id": 1, "lo": 1, "hi": 2}}
    assert rows(outcome.value) == [(1, 1, 9)]


def test_a_broken_foreign_key_names_rows_and_agents() -> None:
    family = database(
        "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (id INTEGER PRIMARY KEY, p REFERENCES p);"
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x); INSERT INTO p VALUES (1), (2); INSERT INTO t VALUES (1, 0)"
    )
    scripts = ["DELETE FROM p WHERE id = 1; UPDATE t SET x = 1", "INSERT INTO c VALUES (7, 1); UPDATE t SET x = 2"]
    outcome = merged(*scripts, base=family)
    cell, key = outcome.conflicts
    assert cell.path == "/t/1/x"
    assert key.path == ""
    assert "/c/7 (changed by a1) refers to a row that is not in p (changed by a0)" in key.reason
    assert outcome.value == family
    broken = database("PRAGMA foreign_keys = OFF; INSERT INTO c VALUES (5, 99)", family)  # it was so before
    assert not merged("INSERT INTO p VALUES (3)", "INSERT INTO c VALUES (7, 2)", base=broken).conflicts


def test_computed_columns() -> None:
    base = database(
        "CREATE TABLE t (twice AS (n * 2), id INTEGER PRIMARY KEY, stored AS (n + 1) STORED, n, x);"
        "INSERT INTO t (id, n, x) VALUES (1, 10, 'a'), (2, 20, 'b')"
    )
    outcome = merged("UPDATE t SET n = 11 WHERE id = 1", "UPDATE t SET x = 'A' WHERE id = 1", base=base)
    assert not outcome.conflicts
    assert rows(outcome.value) == [(22, 1, 12, 11, "A"), (40, 2, 21, 20, "b")]
    (conflict,) = merged("UPDATE t SET n = 11", "DELETE FROM t WHERE id = 1", base=base).conflicts
    assert conflict.base == {"id": 1, "n": 10, "x": "a"}
    free = database("CREATE TABLE log (n, twice AS (n * 2)); INSERT INTO log (n) VALUES (1)")
    assert rows(
        merged("INSERT INTO log (n) VALUES (2)", "PRAGMA user_version = 3", base=free).value, "SELECT * FROM log"
    ) == [(1, 2), (2, 4)]


def test_views_indexes_and_triggers() -> None:
    base = database(SCHEMA + ROWS + "CREATE VIEW v AS SELECT name FROM t; CREATE INDEX i ON t (n)")
    outcome = merged(
        "DROP VIEW v; CREATE VIEW v AS SELECT name, n FROM t; UPDATE t SET n = 11 WHERE id = 1",
        "DROP INDEX i; CREATE TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM t; END; UPDATE t SET n = 21 WHERE id = 2",
        "CREATE UNIQUE INDEX j ON t (name); INSERT INTO t VALUES (4, 'x', 1)",
        base=base,
    )
    assert not outcome.conflicts
    assert rows(outcome.value, "SELECT * FROM v") == [("ann", 11), ("bob", 21), ("eve", 30), ("x", 1)]
    names = rows(outcome.value, "SELECT name FROM sqlite_schema WHERE type <> 'table' AND sql NOT NULL ORDER BY name")
    assert names == [("j",), ("tr",), ("v",)]
    (conflict,) = merged("DROP VIEW v", "DROP VIEW v; CREATE VIEW v AS SELECT 1", base=base).conflicts
    assert conflict.reason == "its schema was changed differently by a0, a1: the view v"
    unique = ["CREATE UNIQUE INDEX j ON t (name)", "INSERT INTO t VALUES (4, 'ann', 1)"]
    for scripts in (unique, unique[::-1]):
        outcome = merged(*scripts, base=base)
        assert [conflict.path for conflict in outcome.conflicts] == ["/t/4"]
        assert rows(outcome.value) == rows(base)
    (conflict,) = merged(
        "CREATE TABLE z (id INTEGER PRIMARY KEY)", unique[0], "INSERT INTO t VALUES (4, 'ann', 1)", base=base
    ).conflicts
    assert conflict.path == "/t/4"


def test_tables_that_several_agents_add() -> None:
    both = "CREATE TABLE v (id INTEGER PRIMARY KEY, x); CREATE TABLE w (x);"
    outcome = merged(
        both + "INSERT INTO v VALUES (1, 'a'), (2, 'same')",
        both + "INSERT INTO v VALUES (2, 'same'), (3, 'b'); INSERT INTO w VALUES ('w')",
        "CREATE TABLE y (id INTEGER PRIMARY KEY); INSERT INTO y VALUES (9); UPDATE t SET n = 0 WHERE id = 1",
    )
    assert not outcome.conflicts
    assert rows(outcome.value, "SELECT * FROM v ORDER BY id") == [(1, "a"), (2, "same"), (3, "b")]
    assert rows(outcome.value, "SELECT * FROM w") == [("w",)]
    assert rows(outcome.value, "SELECT * FROM y") == [(9,)]
    assert rows(outcome.value)[0] == (1, "ann", 0)
    outcome = merged(both + "INSERT INTO v VALUES (1, 'a')", both + "INSERT INTO v VALUES (1, 'b'), (2, 'c')")
    (conflict,) = outcome.conflicts
    assert (conflict.path, conflict.base) == ("/v/1", MISSING)
    assert rows(outcome.value, "SELECT * FROM v") == [(2, "c")]
    (conflict,) = merged("CREATE TABLE v (a)", "CREATE TABLE v (b)").conflicts
    assert "the table v" in conflict.reason


def test_tables_that_agents_alter_or_drop() -> None:
    alter = "ALTER TABLE t ADD COLUMN y DEFAULT 7;"
    same = merged(alter + "UPDATE u SET x = 'one'", alter, "INSERT INTO u VALUES ('k', 2, 'three')")
    assert not same.conflicts
    assert rows(same.value)[0] == (1, "ann", 10, 7)
    assert rows(same.value, "SELECT x FROM u ORDER BY b") == [("one",), ("three",)]
    for scripts, words in (
        ([alter + "UPDATE t SET y = 1", alter + "UPDATE t SET y = 2"], "alike, and rows in t differently"),
        (["DROP TABLE u", "UPDATE u SET x = 'y'"], "a0 changed the schema of u, and a1 rows in it"),
        ([alter, "ALTER TABLE u ADD COLUMN y"], "altered or dropped by a0, a1, each another one: t, u"),
        (["ALTER TABLE u RENAME TO w", "INSERT INTO u VALUES ('k', 2, 'x')"], "a0 changed the schema of u"),
        (["DROP TABLE u", "ALTER TABLE u ADD COLUMN y"], "changed differently by a0, a1: the table u"),
    ):
        outcome = merged(*scripts)
        (conflict,) = outcome.conflicts
        assert words in conflict.reason
        assert outcome.value == BASE
        assert set(conflict.sides) == {"a0", "a1"}
    gone = merged("INSERT INTO t VALUES (4, 'x', 1)", "DROP TABLE u", "DROP TABLE u; CREATE INDEX i ON t (n)")
    assert not gone.conflicts
    assert len(rows(gone.value)) == 4
    assert rows(gone.value, "SELECT name FROM sqlite_schema ORDER BY name") == [("i",), ("t",)]
    # Not only a clean merge keeps what the others did.
    part = merged(alter + "UPDATE u SET x = 'one'", "UPDATE u SET x = 'two'; INSERT INTO u VALUES ('k', 2, 'new')")
    assert [conflict.path for conflict in part.conflicts] == ["/u/k,1/x"]
    assert rows(part.value, "SELECT x FROM u ORDER BY b") == [("x",), ("new",)]


FULL_TEXT = (
    "CREATE TABLE doc (id INTEGER PRIMARY KEY, body TEXT); CREATE VIRTUAL TABLE f USING fts5(body, content='doc',"
    "content_rowid='id'); CREATE TRIGGER ins AFTER INSERT ON doc BEGIN INSERT INTO f(rowid, body) VALUES (new.id, "
    "new.body); END; CREATE TRIGGER del AFTER DELETE ON doc BEGIN INSERT INTO f(f, rowid, body) VALUES ('delete', "
    "old.id, old.body); END; INSERT INTO doc VALUES (1, 'first words'), (2, 'second words');"
)


def test_full_text_indexes() -> None:
    base = database(FULL_TEXT)
    outcome = merged("INSERT INTO doc VALUES (3, 'third')", "DELETE FROM doc WHERE id = 1", base=base)
    assert not outcome.conflicts
    for word, found in (("third", [(3,)]), ("first", []), ("words", [(2,)])):
        assert rows(outcome.value, f"SELECT rowid FROM f WHERE f MATCH '{word}'") == found
    rows(outcome.value, "SELECT 1")  # the integrity check reads the index as well
    own = database("CREATE VIRTUAL TABLE f USING fts5(body); INSERT INTO f VALUES ('first words');" + SCHEMA + ROWS)
    one = "INSERT INTO f VALUES ('third')"
    for scripts in ([one, "UPDATE t SET n = 1"], ["UPDATE t SET n = 1", one], [one, one]):
        outcome = merged(*scripts, base=own)
        assert not outcome.conflicts
        assert rows(outcome.value, "SELECT rowid FROM f WHERE f MATCH 'third'") == [(2,)]
    outcome = merged(one, "UPDATE t SET n = 1; DELETE FROM f", base=own, resolve=lambda conflict: None)
    (conflict,) = outcome.conflicts
    assert conflict.path == "/f"
    assert "virtual table" in conflict.reason
    assert rows(outcome.value, "SELECT rowid FROM f WHERE f MATCH 'first'") == [(1,)]
    assert rows(outcome.value)[0] == (1, "ann", 1)
    added = merged("CREATE TABLE z (id INTEGER PRIMARY KEY)", FULL_TEXT + "UPDATE t SET n = 2 WHERE id = 1")
    assert not added.conflicts
    assert rows(added.value, "SELECT rowid FROM f WHERE f MATCH 'second'") == [(2,)]
    assert rows(added.value, "SELECT count(*) FROM z") == [(0,)]


def test_a_virtual_table_of_a_module_that_is_not_here() -> None:
    script = SCHEMA + ROWS + "CREATE TABLE vec_data (id INTEGER PRIMARY KEY, x); INSERT INTO vec_data VALUES (1, 'a');"
    script += (
        "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('table', 'vec', 'vec', 0, "
        "'CREATE VIRTUAL TABLE vec USING nowhere(x)');"
    )
    base = database(script)
    change = "UPDATE vec_data SET x = 'b'"
    outcome = merged("UPDATE t SET n = 1", change, base=base)
    assert not outcome.conflicts
    assert rows(outcome.value, "SELECT x FROM vec_data") == [("b",)]
    outcome = merged("INSERT INTO vec_data VALUES (2, 'c')", change, base=base)
    assert [conflict.path for conflict in outcome.conflicts] == ["/vec"]
    assert rows(outcome.value, "SELECT x FROM vec_data") == [("a",)]


def test_numbers_are_not_given_twice() -> None:
    base = database("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, name, n); INSERT INTO t VALUES (3, 'a', 0)")
    outcome = merged(
        "INSERT INTO t (name) VALUES ('x'); DELETE FROM t WHERE name = 'x'",
        "INSERT INTO t VALUES (20, 'y', 0); DELETE FROM t WHERE id = 20; UPDATE t SET n = 1", base=base,
    )  # fmt: skip
    assert not outcome.conflicts
    assert rows(outcome.value, "SELECT seq FROM sqlite_sequence") == [(20,)]
    scripts = ["INSERT INTO t VALUES (9, 'd', 0); DELETE FROM t WHERE id = 9; INSERT INTO t VALUES (4, 'x', 0)"]
    scripts.append("INSERT INTO t (name, n) VALUES ('y', 0)")
    outcome = merged(*scripts, base=base, paths={"/t": "append"})
    assert rows(outcome.value) == [(3, "a", 0), (4, "x", 0), (10, "y", 0)]
    fresh = merged("CREATE TABLE z (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO z VALUES (5)", "SELECT 1")
    assert rows(fresh.value, "SELECT seq FROM sqlite_sequence") == [(5,)]


def test_settings_of_the_file() -> None:
    outcome = merged("PRAGMA user_version = 7", "PRAGMA application_id = 9; UPDATE t SET n = 1 WHERE id = 1")
    assert not outcome.conflicts
    assert rows(outcome.value, "PRAGMA user_version") == [(7,)]
    assert rows(outcome.value, "PRAGMA application_id") == [(9,)]
    scripts = ["PRAGMA user_version = 7", "PRAGMA user_version = 8; UPDATE t SET n = 1 WHERE id = 1"]
    outcome = merged(*scripts)
    (conflict,) = outcome.conflicts
    assert (conflict.path, conflict.base, conflict.sides) == ("/PRAGMA/user_version", 0, {"a0": 7, "a1": 8})
    assert rows(outcome.value, "PRAGMA user_version") == [(0,)]
    assert rows(outcome.value)[0] == (1, "ann", 1)
    highest = merged(*scripts, paths={"/PRAGMA/user_version": "max"})
    assert rows(highest.value, "PRAGMA user_version") == [(8,)]
    altered = merged("ALTER TABLE u ADD COLUMN y; PRAGMA user_version = 1", "PRAGMA user_version = 2")
    assert rows(altered.value, "PRAGMA user_version") == [(0,)]


def test_texts_in_sixteen_bits() -> None:
    base = database("PRAGMA encoding = 'UTF-16le';" + SCHEMA + ROWS)
    outcome = merged("UPDATE t SET name = 'Änn' WHERE id = 1", "UPDATE t SET n = 11 WHERE id = 1", base=base)
    assert rows(outcome.value)[0] == (1, "Änn", 11)
    sides = {"a": database("UPDATE t SET n = 1", base), "b": database(SCHEMA + ROWS)}
    with pytest.raises(MergeConflict, match=r"what b has cannot be read .* text encoding"):
        merge("sqlite", base, sides, Options("x.db"))


def test_names_of_tables_and_columns_are_data() -> None:
    script = """CREATE TABLE "a ""b/~'; DROP" ("x y" INTEGER PRIMARY KEY, "rowid" TEXT, "sel'ect q");
        CREATE TABLE "free" ("rowid", "_rowid_", "oid"); INSERT INTO "free" VALUES (1, 2, 3);
        INSERT INTO "a ""b/~'; DROP" VALUES (1, 'r', 's')"""
    base = database(script)
    outcome = merged(
        """UPDATE "a ""b/~'; DROP" SET "rowid" = 'R'; INSERT INTO "free" VALUES (4, 5, 6)""",
        """UPDATE "a ""b/~'; DROP" SET "sel'ect q" = 'S'""",
        base=base,
    )
    assert not outcome.conflicts
    assert rows(outcome.value, """SELECT * FROM "a ""b/~'; DROP" """) == [(1, "R", "S")]
    assert rows(outcome.value, "SELECT * FROM free") == [(1, 2, 3), (4, 5, 6)]


def test_a_broken_base_is_not_blamed_on_an_agent() -> None:
    broken = BASE[:100] + b"\xff" * 4000 + BASE[4100:]
    sides = {"ann": database("UPDATE t SET n = 0", BASE), "bob": BASE}
    with pytest.raises(MergeConflict, match="what the base has cannot be read") as caught:
        merge("sqlite", broken, sides, Options("x.db"))
    assert caught.value.agent == "the base"


def test_a_log_beside_a_shard_is_read_and_one_within_is_told(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, resources={"*.db": {"mode": "shard"}})
    (tmp_path / "x.db").write_bytes(database("PRAGMA journal_mode = WAL;" + SCHEMA + ROWS))
    left = []
    for number, agent in enumerate(("ann", "bob"), 1):
        with guard.agent(agent), guard.hold(updates="x.db") as hold:
            connection = sqlite3.connect(hold.path("x.db"))
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("UPDATE t SET n = n + 1 WHERE id = ?", (number,))
            connection.commit()
            assert Path(f"{hold.path('x.db')}-wal").stat().st_size
            left.append(connection)  # still open when the shards are joined
    guard.join()
    for connection in left:
        connection.close()
    assert rows((tmp_path / "x.db").read_bytes())[:2] == [(1, "ann", 11), (2, "bob", 21)]


# -- properties ---

CELLS = st.sampled_from([None, 0, 1, 1.0, "a", "b", "A", b"\0", b"a"])
KEYS = st.sampled_from(["p", "q", "P", 1, b"p"])
# By table and key: `t` counts its rows, `k` has keys of any kind, `log` has none (its only key is 0, and all its rows).
Tables = dict[str, dict[Any, tuple[Any, ...]]]
COLUMNS = {"t": ("x", "y"), "k": ("x",)}


@st.composite
def tables(draw: st.DrawFn, base: Tables | None = None) -> Tables:
    """Random tables; with a base, some of its rows changed, removed and added to."""
    found: Tables = {}
    for name, keys in (("t", st.integers(1, 5)), ("k", KEYS)):
        cells = st.tuples(*[CELLS] * len(COLUMNS[name]))
        found[name] = {}
        for key, row in (base or {}).get(name, {}).items():
            what = draw(st.sampled_from(["same", "same", "gone", "new"]))
            if what != "gone":
                other = draw(cells) if what == "new" else row
                found[name][key] = tuple(o if draw(st.booleans()) else r for o, r in zip(other, row, strict=True))
        for key, row in draw(st.dictionaries(keys, cells, max_size=2 if base else 4)).items():
            if base is None or key not in base[name]:
                found[name][key] = row
    lines = (base or {"log": {0: ()}})["log"][0]
    found["log"] = {0: lines if base and draw(st.integers(0, 3)) else (*lines, *draw(st.lists(CELLS, max_size=2)))}
    return found


SCRIPT = "CREATE TABLE t (id INTEGER PRIMARY KEY, x, y); CREATE TABLE k (id PRIMARY KEY, x); CREATE TABLE log (x)"


def made(content: Tables) -> bytes:
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        connection.execute("BEGIN;" + SCRIPT)
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(key, *row) for key, row in content["t"].items()])
        connection.executemany("INSERT INTO k VALUES (?, ?)", [(key, *row) for key, row in content["k"].items()])
        connection.executemany("INSERT INTO log VALUES (?)", [(cell,) for cell in content["log"][0]])
        connection.execute("COMMIT")
        return bytes(connection.serialize("main"))


def content_of(data: bytes) -> Tables:
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        connection.deserialize("main", data)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found: Tables = {
            name: {row[0]: row[1:] for row in connection.execute(f"SELECT * FROM {name}")} for name in COLUMNS
        }
        found["log"] = {0: tuple(cell for (cell,) in connection.execute("SELECT x FROM log ORDER BY rowid"))}
        return found


def strict(value: Any) -> Any:
    """1 and 1.0 are two values, and so are a text and its bytes."""
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    return tuple(map(strict, value)) if isinstance(value, (tuple, list)) else repr(value)


def check_case(base: Tables, sides: list[Tables]) -> None:
    contents = {f"a{number}": made(side) for number, side in enumerate(sides)}
    start = made(base)
    outcome = merge("sqlite", start, contents, Options("x.db"))
    result = content_of(outcome.value)
    told = {conflict.path: conflict for conflict in outcome.conflicts}
    expected = set()
    for name in base:
        for key in {*base[name], *(key for side in sides for key in side[name])}:
            before = base[name].get(key)
            new = {who: side[name].get(key) for who, side in zip(contents, sides, strict=True)}
            new = {who: row for who, row in new.items() if strict(row) != strict(before)}
            path = "/log" if name == "log" else f"/{name}/{key.hex() if isinstance(key, bytes) else key}"
            rows_ = set(map(strict, new.values()))
            after = result[name].get(key)
            if name == "log" or before is None or None in new.values():
                if len(rows_) > 1:
                    expected.add(path)
                    assert set(told[path].sides) == set(new)
                    assert strict(after) == strict(before)
                else:
                    assert strict(after) == (next(iter(rows_)) if new else strict(before))
                continue
            for number, column in enumerate(COLUMNS[name]):
                cells = {who: row[number] for who, row in new.items() if strict(row[number]) != strict(before[number])}
                values = set(map(strict, cells.values()))
                if len(values) > 1:
                    expected.add(f"{path}/{column}")
                    assert strict(dict(told[f"{path}/{column}"].sides)) == strict(cells)
                assert strict(after[number]) == (values.pop() if len(values) == 1 else strict(before[number]))
    assert set(told) == expected
    check_algebra(start, contents, outcome)


def check_algebra(base: bytes, contents: dict[str, bytes], outcome: Merged) -> None:
    result = strict(content_of(outcome.value))
    paths = sorted(conflict.path for conflict in outcome.conflicts)
    twice = {**contents, **{f"{who}'": data for who, data in contents.items()}, "idle": base}
    for versions in (dict(reversed(contents.items())), twice):
        again = merge("sqlite", base, versions)
        assert strict(content_of(again.value)) == result
        assert sorted(conflict.path for conflict in again.conflicts) == paths
    if not outcome.conflicts:
        *others, last = contents
        pair = merge("sqlite", base, {who: contents[who] for who in others})
        for versions in ({"pair": pair.value, last: contents[last]}, {"all": outcome.value, **contents}):
            folded = merge("sqlite", base, versions)
            assert not folded.conflicts
            assert strict(content_of(folded.value)) == result


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tables, list[Tables]]:
    base = draw(tables())
    return base, [draw(tables(base)) for _ in range(draw(st.integers(2, 4)))]


@given(cases())
@settings(max_examples=100, deadline=None)
def test_no_cell_is_lost_whatever_happens(case: tuple[Tables, list[Tables]]) -> None:
    check_case(*case)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(cases())
@settings(max_examples=20_000, deadline=None)
def test_no_cell_is_lost_in_twenty_thousand_cases(case: tuple[Tables, list[Tables]]) -> None:
    check_case(*case)
