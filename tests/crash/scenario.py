"""One commit of every kind of change, and how to tell what became of it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from agentguard.commit import Delete, Journal, Replace
from agentguard.databases import copy
from agentguard.ledger import Ledger

OLD: dict[str, bytes | None] = {"a.json": b"v1" * 50, "b.md": b"v1" * 60, "gone.txt": b"v1", "sub/new.txt": None}
NEW: dict[str, bytes | None] = {"a.json": b"v2" * 55, "b.md": b"v2" * 40, "gone.txt": None, "sub/new.txt": b"v2" * 30}
MARKS = ["shard-1", "shard-2"]


def put(file: Path, data: bytes) -> None:
    """As a tool writes: no flush, call by call."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.close(fd)


class Scene:
    def __init__(self, root: Path, marks: Callable[[Sequence[str]], None] | None = None) -> None:
        self.root = root
        self.home = root / ".agentguard"
        self.stage = self.home / "stage"
        self.ledger = Ledger(self.home / "ledger.sqlite3")
        self.journal = Journal(self.home / "journal", root=root, marks=marks or self.ledger.add)

    def lay(self) -> Scene:
        self.stage.mkdir(parents=True)
        for name, data in OLD.items():
            if data is not None:
                put(self.root / name, data)
        (self.root / "a.json").chmod(0o640)
        return self

    def write_sources(self) -> Scene:
        for name, data in NEW.items():
            if data is not None:
                put(self.source(name), data)
        return self

    def source(self, name: str) -> Path:
        return self.stage / name.replace("/", "_")

    def changes(self) -> list[Replace | Delete]:
        return [
            Delete(self.root / name) if data is None else Replace(self.root / name, self.source(name))
            for name, data in NEW.items()
        ]

    def commit(self, *, durable: bool = True, marks: Sequence[str] = tuple(MARKS)) -> None:
        self.journal.commit(self.changes(), durable=durable, marks=marks)

    def contents(self) -> dict[str, bytes | None]:
        return {name: file.read_bytes() if (file := self.root / name).exists() else None for name in OLD}

    def state(self) -> str:
        return told(self.contents())

    def sources_in_place(self) -> bool:
        return all(self.source(name).read_bytes() == data for name, data in NEW.items() if data is not None)

    def leftovers(self) -> list[str]:
        """What only a running commit may have."""
        found = [str(file) for file in self.root.rglob(".agentguard-*")]
        journal = self.home / "journal"
        return found + ([str(file) for file in journal.iterdir()] if journal.exists() else [])

    def check(self) -> str:
        """After a recovery: all old or all new, nothing left over, marks as the content. Returns which."""
        state = self.state()
        assert state in ("old", "new"), self.contents()
        assert self.leftovers() == []
        assert self.ledger.contains(MARKS) == (set(MARKS) if state == "new" else set())
        if state == "old":
            assert self.sources_in_place()
            assert not (self.root / "sub").exists() or not any((self.root / "sub").iterdir())
        assert (self.root / "a.json").stat().st_mode & 0o777 == 0o640
        return state


class DatabaseScene(Scene):
    """The same with a database among the files, which the test's process may have open."""

    mode = "wal"

    @property
    def database(self) -> Path:
        return self.root / "store.db"

    def lay(self) -> DatabaseScene:
        super().lay()
        with contextlib.closing(sqlite3.connect(self.database, isolation_level=None)) as database:
            database.execute(f"PRAGMA journal_mode = {self.mode}")
            database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text)")
            database.executemany("INSERT INTO t VALUES (?, ?)", [(n, "old" * 300) for n in range(12)])
        return self

    def write_sources(self) -> DatabaseScene:
        super().write_sources()
        copy(self.database, self.stage / "store.db")
        with contextlib.closing(sqlite3.connect(self.stage / "store.db", isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("UPDATE t SET text = ?", ["new" * 400])
        return self

    def changes(self) -> list[Replace | Delete]:
        first, *others = super().changes()
        return [first, Replace(self.database, self.stage / "store.db"), *others]

    def rows(self, database: sqlite3.Connection | None = None) -> str:
        """What a reader sees in the database, of its own connection or of one that was open all the time."""
        if database is None:
            with contextlib.closing(sqlite3.connect(self.database)) as own:
                return self.rows(own)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = database.execute("SELECT DISTINCT text FROM t").fetchall()
        assert database.execute("SELECT count(*) FROM t").fetchone() == (12,)
        return {"old" * 300: "old", "new" * 400: "new"}[found[0][0]] if len(found) == 1 else "torn"

    def state(self) -> str:
        files, rows = super().state(), self.rows()
        return files if files == rows or files == "torn" else rows if rows == "torn" else "mixed"

    def sources_in_place(self) -> bool:
        return super().sources_in_place() and (self.stage / "store.db").exists()


class RollbackScene(DatabaseScene):
    mode = "delete"


SCENES: dict[str, type[Scene]] = {"files": Scene, "wal": DatabaseScene, "rollback": RollbackScene}


def told(contents: dict[str, bytes | None]) -> str:
    if contents == OLD:
        return "old"
    if contents == NEW:
        return "new"
    return "mixed" if all(data in (OLD[name], NEW[name]) for name, data in contents.items()) else "torn"
