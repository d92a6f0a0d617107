"""SQLite files in shards, joins and commits: what readers see, whoever has them open, whatever is in the log."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard import ConfigError, Guard, MergeConflict, disk, path
from agentguard.commit import Delete, Journal, Replace
from agentguard.databases import content, copy, fingerprint, is_database, restore
from agentguard.exceptions import InDoubt


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        yield database


def run(file: Path, *statements: str) -> None:
    with opened(file) as database:
        for statement in statements:
            database.execute(statement)


def rows(file: Path) -> list[Any]:
    with opened(file) as database:
        return database.execute("SELECT * FROM t ORDER BY 1").fetchall()


@pytest.fixture(params=["delete", "wal"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tmp_path / "x.db"
    run(made, f"PRAGMA journal_mode = {request.param}", "CREATE TABLE t (id INTEGER PRIMARY KEY, name)",
        "INSERT INTO t VALUES (1, 'one'), (2, 'two')")  # fmt: skip
    return made


def test_a_copy_has_what_is_in_the_log(file: Path, tmp_path: Path) -> None:
    before = fingerprint(file)
    with opened(file) as keeper:
        keeper.execute("INSERT INTO t VALUES (3, 'three')")
        while_open = fingerprint(file)
        assert copy(file, tmp_path / "copy.db")
        assert rows(tmp_path / "copy.db")[-1] == (3, "three")
    assert fingerprint(file) == while_open != before
    assert not copy(tmp_path / "nothing.db", tmp_path / "other.db")
    assert content(tmp_path / "nothing.db") is None


def test_whoever_has_it_open_sees_what_was_put_there(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "new.db"
    copy(file, other)
    run(other, "UPDATE t SET name = 'new' WHERE id = 1")
    wanted = fingerprint(other)
    with opened(file) as keeper:
        keeper.execute("SELECT * FROM t").fetchall()
        Journal(tmp_path / "journal", root=tmp_path).commit([Replace(file, other)])
        assert keeper.execute("SELECT name FROM t").fetchall() == [("new",), ("two",)]
        keeper.execute("INSERT INTO t VALUES (9, 'into the very file')")
    assert rows(file)[-1] == (9, "into the very file")
    assert not other.exists()
    assert wanted is not None
    assert not [one for one in tmp_path.iterdir() if ".agentguard-" in one.name]


def test_a_database_that_somebody_is_writing_is_in_doubt_and_then_finished(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentguard.databases._BUSY", 0.05)
    other = tmp_path / "new.db"
    copy(file, other)
    run(other, "UPDATE t SET name = 'new' WHERE id = 1")
    journal = Journal(tmp_path / "journal", root=tmp_path)
    with opened(file) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(InDoubt, match="locked"):
            journal.commit([Replace(file, other)])
        writer.execute("ROLLBACK")
    (done,) = journal.recover()
    assert done.doubt is None
    assert rows(file)[0] == (1, "new")
    assert journal.pending() == ()


PROGRAM = """
import os, signal, sys
from pathlib import Path
from agentguard import commit, databases
at, root = sys.argv[1], Path(sys.argv[2])
real = databases.restore
def restore(source, target):
    if at == "before": os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if at == "after": os.kill(os.getpid(), signal.SIGKILL)
databases.restore = restore
journal = commit.Journal(root / "journal", root=root)
journal.commit([commit.Replace(root / "x.db", root / "new.db"), commit.Replace(root / "a.txt", root / "new.txt")])
"""


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_commit_that_was_killed_is_finished_with_its_other_files(file: Path, tmp_path: Path, at: str) -> None:
    copy(file, tmp_path / "new.db")
    run(tmp_path / "new.db", "UPDATE t SET name = 'new' WHERE id = 1")
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "new.txt").write_text("new")
    done = subprocess.run([sys.executable, "-c", PROGRAM, at, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (recovered,) = Journal(tmp_path / "journal", root=tmp_path).recover()
    assert recovered.doubt is None
    assert rows(file)[0] == (1, "new")
    assert (tmp_path / "a.txt").read_text() == "new"


BROKEN = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 2")
database.execute("BEGIN")
database.execute("UPDATE t SET name = name || ?", ["x" * 9000])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_transaction_that_was_killed_is_rolled_back_by_whoever_reads(file: Path, tmp_path: Path) -> None:
    run(file, "WITH RECURSIVE n(i) AS (SELECT 3 UNION ALL SELECT i + 1 FROM n WHERE i < 200) "
        "INSERT INTO t SELECT i, 'more' FROM n")  # fmt: skip
    before = fingerprint(file)
    assert subprocess.run([sys.executable, "-c", BROKEN, str(file)], timeout=60, check=False).returncode == -9
    assert any((tmp_path / f"x.db-{suffix}").exists() for suffix in ("journal", "wal"))
    assert fingerprint(file) == before
    assert copy(file, tmp_path / "copy.db")
    assert len(rows(tmp_path / "copy.db")) == 200


def test_what_somebody_commits_after_the_decision_is_never_overwritten(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log too, which leaves the main file as it was."""
    copy(file, tmp_path / "new.db")
    run(tmp_path / "new.db", "DELETE FROM t")
    journal = Journal(tmp_path / "journal", root=tmp_path)
    with opened(file) as keeper:
        keeper.execute("INSERT INTO t VALUES (3, 'three')")

        def interrupted(source: str, target: str) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr("agentguard.databases.restore", interrupted)
        with pytest.raises(InDoubt, match="the disk is gone"):
            journal.commit([Replace(file, tmp_path / "new.db")])
        monkeypatch.undo()
        keeper.execute("INSERT INTO t VALUES (4, 'somebody')")
        (kept,) = journal.recover()
        assert kept.doubt is not None
        assert "changed from outside" in kept.doubt
        assert keeper.execute("SELECT count(*) FROM t").fetchone() == (4,)
    assert journal.pending()


@pytest.mark.parametrize("gone", ["by a commit", "by hand"])
def test_nothing_of_an_older_database_gets_into_a_new_one(file: Path, tmp_path: Path, gone: str) -> None:
    """What SQLite left beside a database that was deleted is not the next one's log."""
    journal = Journal(tmp_path / "journal", root=tmp_path)
    (tmp_path / "new.db").write_bytes(content(file) or b"")
    run(tmp_path / "new.db", "PRAGMA journal_mode = DELETE", "UPDATE t SET name = 'new' WHERE id = 1")
    run(file, "PRAGMA journal_mode = WAL")
    with opened(file) as keeper:
        keeper.execute("INSERT INTO t VALUES (3, 'of the older one')")
        if gone == "by hand":
            file.unlink()
        else:
            journal.commit([Delete(file)])
            assert not list(tmp_path.glob("x.db*"))
        journal.commit([Replace(file, tmp_path / "new.db")])
        assert rows(file) == [(1, "new"), (2, "two")]


def test_a_database_without_a_table_is_kept_open_too(tmp_path: Path) -> None:
    file, new = tmp_path / "x.db", tmp_path / "new.db"
    run(new, "CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
    file.touch()
    with opened(file) as keeper:
        assert keeper.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        Journal(tmp_path / "journal", root=tmp_path).commit([Replace(file, new)])
        keeper.execute("INSERT INTO t VALUES (1, 'of the keeper')")
    assert rows(file) == [(1, "of the keeper")]


def test_what_sqlite_could_not_put_there_is_refused_before_anything_is_decided(file: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    run(new, "PRAGMA page_size = 1024", "CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
    (tmp_path / "a.txt").write_text("new")
    journal = Journal(tmp_path / "journal", root=tmp_path)
    run(file, "PRAGMA journal_mode = WAL")
    changes = [Replace(tmp_path / "b.txt", tmp_path / "a.txt"), Replace(file, new)]
    with pytest.raises(OSError, match=r"page size \(4096\).*\(1024\).*nothing was written: b.txt, x.db are") as caught:
        journal.commit(changes)
    assert not isinstance(caught.value, InDoubt)
    assert journal.pending() == ()
    assert len(rows(file)) == 2
    assert (tmp_path / "a.txt").exists()
    run(file, "PRAGMA journal_mode = DELETE")
    journal.commit(changes)
    assert rows(file) == []


WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
database.execute("INSERT INTO t VALUES (?, 'of another process')", [int(sys.argv[2])])
database.close()
"""


def written_elsewhere(file: Path, number: int) -> bool:
    command = [sys.executable, "-c", WRITER, str(file), str(number)]
    return subprocess.run(command, timeout=60, check=False, capture_output=True).returncode == 0


def test_looking_into_a_database_takes_nobodys_locks_away(file: Path, tmp_path: Path) -> None:
    """Where this very process has it open, closing another descriptor of it would (POSIX)."""
    (tmp_path / "plain.db").write_text("no database")
    with opened(file) as keeper, (tmp_path / "plain.db").open() as _:
        keeper.execute("BEGIN IMMEDIATE")
        assert is_database(file)
        assert not is_database(tmp_path / "plain.db")
        assert content(tmp_path / "plain.db") == b"no database"
        assert fingerprint(file)
        assert copy(file, tmp_path / "copy.db")
        assert not written_elsewhere(file, 7)
        keeper.execute("INSERT INTO t VALUES (3, 'three')")
        keeper.execute("COMMIT")
        assert written_elsewhere(file, 8)  # in a log: is it taken for the last one, and the log away from the keeper?
        keeper.execute("INSERT INTO t VALUES (4, 'four')")
    assert [number for number, _ in rows(file)] == [1, 2, 3, 4, 8]
    assert len(rows(tmp_path / "copy.db")) == 2


def test_a_disk_that_does_not_say_what_a_file_is_does_not_cut_off_its_readers(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that cannot be told for one is not renamed away from those who have it open."""
    copy(file, tmp_path / "new.db")
    run(tmp_path / "new.db", "UPDATE t SET name = 'new' WHERE id = 1")
    journal = Journal(tmp_path / "journal", root=tmp_path)
    real = open

    def failing(name: Any, *args: Any) -> Any:
        if "agentguard-" in str(name) and journal.pending():
            raise OSError(5, "Input/output error", str(name))
        return real(name, *args)

    with opened(file) as keeper:
        assert len(keeper.execute("SELECT * FROM t").fetchall()) == 2
        monkeypatch.setattr("builtins.open", failing)
        with pytest.raises(InDoubt, match="Input/output error"):
            journal.commit([Replace(file, tmp_path / "new.db")])
        monkeypatch.undo()
        assert [one.doubt for one in journal.recover()] == [None]
        assert keeper.execute("SELECT name FROM t WHERE id = 1").fetchone() == ("new",)


def test_a_copy_that_somebody_wrote_into_is_made_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole transaction between the first byte that is read and the last one."""
    run(file, "PRAGMA journal_mode = DELETE")
    real = disk.content

    def torn(path: Path) -> bytes | None:
        data = real(path)
        run(file, "UPDATE t SET name = name || ' changed'")
        return data[:4096] + bytes(len(data) - 4096) if data is not None else None

    monkeypatch.setattr(disk, "content", torn)
    read = content(file)
    monkeypatch.undo()
    assert read == content(file)


def test_shards_of_a_database_are_isolated_and_joined_by_rows(file: Path) -> None:
    root = file.parent
    guard = Guard(root=root, resources={"x.db": {"mode": "shard"}})

    def add(number: int, mode: str) -> None:
        with opened(path("x.db")) as mine:
            mine.execute(f"PRAGMA journal_mode = {mode}")
            mine.execute("INSERT INTO t VALUES (?, ?)", (number, f"from {number}"))
            mine.execute("UPDATE t SET name = ? WHERE id = ?", (f"changed by {number}", number - 9))

    with opened(file) as keeper:
        for number, mode in ((10, "wal"), (11, "delete")):
            with guard.agent(f"agent {number}"):
                guard.wrap(add, updates="x.db")(number, mode)
        assert len(rows(file)) == 2  # nobody sees it before the join
        report = guard.join()
        assert keeper.execute("SELECT count(*) FROM t").fetchone() == (4,)
    assert rows(file) == [(1, "changed by 10"), (2, "changed by 11"), (10, "from 10"), (11, "from 11")]
    (one,) = report.resources
    assert (one.strategy, one.shards, dict(one.changes)) == ("sqlite", 2, {"agent 10": 2, "agent 11": 2})
    assert guard.join().resources == ()
    assert not list((root / ".agentguard" / "shards").glob("*/*"))


def test_a_conflict_keeps_every_shard(file: Path) -> None:
    guard = Guard(root=file.parent, resources={"x.db": {"mode": "shard"}})
    for name in ("ann", "bob"):
        with guard.agent(name):
            guard.wrap(
                lambda name=name: run(path("x.db"), f"UPDATE t SET name = '{name}' WHERE id = 1"), updates="x.db"
            )()
    with pytest.raises(MergeConflict, match="/t/1/name") as caught:
        guard.join()
    assert rows(file)[0] == (1, "one")
    assert caught.value.conflicts[0].sides == {"ann": "ann", "bob": "bob"}


def test_agents_that_make_the_database(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, resources={"new.db": {"mode": "shard"}})
    for number in (1, 2):
        with guard.agent(str(number)):
            guard.wrap(
                lambda number=number: run(
                    path("new.db"),
                    "CREATE TABLE t (id INTEGER PRIMARY KEY, name)",
                    f"INSERT INTO t VALUES ({number}, 'x')",
                ),
                updates="new.db",
            )()
    guard.join()
    assert rows(tmp_path / "new.db") == [(1, "x"), (2, "x")]
    assert os.stat(tmp_path / "new.db").st_size


def test_restoring_twice_is_restoring_once(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "new.db"
    copy(file, other)
    run(other, "DELETE FROM t")
    for _ in range(2):
        restore(str(other), str(file))
        assert rows(file) == []
        assert fingerprint(file) == fingerprint(other)


def test_a_missing_library_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentguard.merge.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'agentguard\[sqlite\]'"):
        Guard(root=tmp_path, resources={"x.db": {"mode": "shard"}})
    Guard(root=tmp_path, resources={"x.db": {"mode": "serialize"}, "x.json": {"mode": "shard"}})
