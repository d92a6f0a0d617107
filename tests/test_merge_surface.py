"""What holds for every strategy: names, absent files, the one writer, third parties."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from agentguard import merge as module
from agentguard.exceptions import ConfigError
from agentguard.merge import (
    MISSING,
    Conflict,
    Merged,
    Options,
    check_path,
    check_path_strategy,
    check_strategy,
    default_strategy,
    merge,
    register,
    strategies,
)


def _database(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.db"
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
            connection.execute("INSERT INTO t VALUES (1, ?)", (name,))
            connection.commit()
        return file.read_bytes()


DATABASES = (_database("a"), _database("b"), _database("c"))
CONTENTS = {
    "append": (b"a\n", b"a\nb\n", b"a\nc\n"),
    "append:id": (b'{"id": 1}\n', b'{"id": 1}\n{"id": 2}\n', b'{"id": 1}\n{"id": 3}\n'),
    "binary": (b"\0", b"\1", b"\2"),
    "csv": (b"id,x\n1,a\n", b"id,x\n1,b\n", b"id,x\n1,c\n"),
    "csv:id": (b"id,x\n1,a\n", b"id,x\n1,b\n", b"id,x\n1,c\n"),
    "counter": (b"1", b"2", b"3"),
    "json": (b'{"a": 1}', b'{"a": 2}', b'{"a": 3}'),
    "list:id": (b"[]", b'[{"id": 1}]', b'[{"id": 2}]'),
    "max": (b"1", b"2", b"3"),
    "min": (b"1", b"2", b"3"),
    "set": (b"[]", b"[1]", b"[2]"),
    "sqlite": DATABASES,
    "text": (b"a\n", b"b\n", b"c\n"),
    "toml": (b"a = 1\n", b"a = 2\n", b"a = 3\n"),
    "union": (b"a\n", b"b\n", b"c\n"),
    "yaml": (b"a: 1\n", b"a: 2\n", b"a: 3\n"),
}


def test_the_cases_here_cover_every_strategy() -> None:
    assert {name.replace(":id", ":KEY") for name in CONTENTS} | {"first", "last"} == set(strategies())


@pytest.mark.parametrize("strategy", [*CONTENTS, "first", "last"])
def test_rules_for_whole_files(strategy: str) -> None:
    base, one, _ = CONTENTS.get(strategy, (b"a", b"b", b"c"))
    assert merge(strategy, base, {}) == Merged(base)
    assert merge(strategy, None, {"x": None}) == Merged(None)
    assert merge(strategy, base, {"x": base, "y": base}) == Merged(base)
    assert merge(strategy, base, {"x": base, "y": one}) == Merged(one, (), {"y": 1})
    assert merge(strategy, None, {"x": None, "y": one}).value == one
    assert merge(strategy, base, {"x": None, "y": base}) == Merged(None, (), {"x": 1})
    assert merge(strategy, base, {"x": None, "y": None}).value is None


@pytest.mark.parametrize("strategy", CONTENTS)
def test_deleting_against_changing_is_a_conflict(strategy: str) -> None:
    base, one, two = CONTENTS[strategy]
    outcome = merge(strategy, base, {"x": one, "y": None, "z": base, "w": two}, Options(resource="r"))
    assert outcome.value == base
    (conflict,) = outcome.conflicts
    assert conflict == Conflict("r", "", base, {"x": one, "y": MISSING, "w": two}, "deleted by y and changed by others")
    for answer, result in ((MISSING, None), (b"new", b"new")):
        options = Options(resolve=lambda conflict, answer=answer: answer)
        assert merge(strategy, base, {"x": one, "y": None}, options).value == result


@pytest.mark.parametrize("strategy", CONTENTS)
def test_results_pickle(strategy: str) -> None:
    base, one, two = CONTENTS[strategy]
    outcome = merge(strategy, base, {"x": one, "y": two, "z": None})
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_missing_is_one_object() -> None:
    assert pickle.loads(pickle.dumps(MISSING)) is copy.deepcopy(MISSING) is MISSING
    assert repr(MISSING) == "MISSING"


def test_first_and_last() -> None:
    sides = {"x": b"1", "y": b"0", "z": None}
    assert merge("first", b"0", sides).value == b"1"
    assert merge("last", b"0", sides).value is None


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("findings.json", "json"),
        ("runs/LOG.JSONL", "append"),
        ("a.ndjson", "append"),
        ("a.log", "append"),
        ("notes/report.md", "text"),
        ("a.py", "text"),
        ("a.yml", "yaml"),
        ("a.yaml", "yaml"),
        ("pyproject.toml", "toml"),
        ("a.png", "binary"),
        ("a.csv", "csv"),
        ("db:orders", "binary"),
        ("a.json/b", "binary"),
        (".json", "binary"),
        ("", "binary"),
    ],
)
def test_the_default_goes_by_suffix(name: str, strategy: str) -> None:
    assert default_strategy(name) == strategy


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("jsn", "json"),
        ("JSON", "json"),
        ("apend", "append"),
        ("lst", "list:KEY"),
        ("list:", "list:id"),
        ("list", "list:id"),
        ("???", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, nearest: str | None) -> None:
    for check in (check_strategy, check_path_strategy):
        with pytest.raises(ConfigError) as caught:
            check(name)
        assert caught.value.nearest == nearest
        assert name in str(caught.value)
    with pytest.raises(ConfigError):
        merge(name, b"", {})
    with pytest.raises(ConfigError):
        merge("json", b"", {}, Options(paths={"/a": name}))


def test_a_key_is_needed_where_the_name_ends_in_a_colon() -> None:
    with pytest.raises(ConfigError) as caught:
        check_strategy("append:")
    assert caught.value.nearest == "append:id"


def test_what_is_known_is_accepted() -> None:
    for name in (*CONTENTS, "first", "last"):
        check_strategy(name)
    for name in ("counter", "list:id", "json", "text", "append"):
        check_path_strategy(name)
    with pytest.raises(ConfigError):
        check_path_strategy("union")
    check_path("/a/*")
    check_path("")


def test_third_parties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_strategies", dict(module._strategies))
    calls: list[object] = []

    def longest(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
        calls.append((base, dict(sides), options.resource))
        return Merged(max(sides.values(), key=len), (), {})

    register("longest", longest)
    assert "longest" in strategies()
    check_strategy("longest")
    assert merge("longest", b"0", {"x": b"1", "y": b"0"}).value == b"1"
    assert merge("longest", b"0", {"x": b"1", "y": None}).conflicts
    assert calls == []
    assert merge("longest", b"0", {"x": b"1", "y": b"0", "z": b"22"}, Options(resource="r")).value == b"22"
    assert calls == [(b"0", {"x": b"1", "z": b"22"}, "r")]
    for taken in ("longest", "json", "list:KEY", "list:x", "", "a b"):
        with pytest.raises(ConfigError):
            register(taken, longest)
    register("wrong", lambda base, sides, options: b"")  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="has to return a Merged"):
        merge("wrong", b"0", {"x": b"1", "y": b"2"})
