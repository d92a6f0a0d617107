"""Runs of agents that write to shards, joins of them, and what must be there in the end."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, path
from agentguard.commit import Delete, Journal, Replace

RESOURCES: dict[str, Any] = {
    "store.json": {"mode": "shard", "paths": {"/n": "counter"}},
    "run.jsonl": {"mode": "shard"},
    "rows.db": {"mode": "shard"},
    "seen/*.txt": {"mode": "shard"},
}
AGENTS = "abc"


def guarding(root: Path) -> Guard:
    return Guard(root=root, resources=RESOURCES)


def lay(root: Path, *, database: bool) -> None:
    (root / "store.json").write_text('{"n": 0, "by": {}}')
    (root / "run.jsonl").write_text('"start"\n')
    if database:
        with contextlib.closing(sqlite3.connect(root / "rows.db")) as made, made:
            made.execute("CREATE TABLE t (name TEXT PRIMARY KEY)")


def amount(run: str, agent: str) -> int:
    return 1 + (hash_of(run) + ord(agent)) % 7


def hash_of(text: str) -> int:
    return sum(ord(letter) * (at + 1) for at, letter in enumerate(text))


def work(guard: Guard, run: str, *, database: bool) -> None:
    """Every agent counts, appends a record, makes a file, and adds a row."""
    for agent in AGENTS:
        with guard.agent(agent, run=run):
            more = amount(run, agent)
            guard.update(
                "store.json",
                lambda store: {"n": store["n"] + more, "by": {**store["by"], f"{run} {agent}": more}},  # noqa: B023
            )
            guard.update("run.jsonl", lambda lines: [*lines, f"{run} {agent}"])  # noqa: B023
            guard.write(f"seen/{run}-{agent}.txt", run)
            if database:

                def insert() -> None:
                    with contextlib.closing(sqlite3.connect(path("rows.db"))) as mine, mine:
                        mine.execute("INSERT INTO t VALUES (?)", [f"{run} {agent}"])  # noqa: B023

                guard.wrap(insert, updates="rows.db")()


def wrong(root: Path, runs: Sequence[str], *, database: bool) -> str | None:
    """What is not exactly what all runs one after another would have left."""
    names = [f"{run} {agent}" for run in runs for agent in AGENTS]
    store = json.loads((root / "store.json").read_text())
    expected = sum(amount(run, agent) for run in runs for agent in AGENTS)
    if store["n"] != expected:
        return f"the counter is {store['n']}, not {expected}"
    if sorted(store["by"]) != sorted(names):
        return f"keys: {sorted({*store['by']} ^ {*names})}"
    lines = [json.loads(line) for line in (root / "run.jsonl").read_text().splitlines()]
    if sorted(lines) != sorted(["start", *names]):
        return f"records: {len(lines)} instead of {len(names) + 1}"
    files = {file.stem: file.read_text() for file in (root / "seen").glob("*.txt")}
    if files != {f"{run}-{agent}": run for run in runs for agent in AGENTS}:
        return f"files: {sorted(files)}"
    if database:
        with contextlib.closing(sqlite3.connect(root / "rows.db")) as made:
            rows = [name for (name,) in made.execute("SELECT name FROM t")]
        if sorted(rows) != sorted(names):
            return f"rows: {len(rows)} instead of {len(names)}"
    return None


def apart(monkeypatch: pytest.MonkeyPatch, first: str, between: Callable[[], object] = lambda: None) -> None:
    """A mutant: the ledger is written before or after the content, not with it; `between` runs between the two."""
    real = Journal.commit

    def commit(
        self: Journal, changes: Sequence[Replace | Delete], *, durable: bool = True, marks: Sequence[str] = ()
    ) -> None:
        if not marks:
            real(self, changes, durable=durable)
            return
        if first == "ledger":
            real(self, [], marks=marks)
            between()
        real(self, changes, durable=durable)
        if first == "content":
            between()
            real(self, [], marks=marks)

    monkeypatch.setattr(Journal, "commit", commit)
