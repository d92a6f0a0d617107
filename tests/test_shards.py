"""Shards on disk: forks, late writers, damage. Joins themselves are in test_join.py, directories in test_trees.py."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentguard import Guard, Identity, MergeConflict, StaleWrite, disk, path
from agentguard.conflicts import keep_files
from agentguard.entries import Shard, fingerprint
from agentguard.exceptions import AgentGuardError
from agentguard.late import sweep, waiting
from agentguard.shards import Shards

SUFFIXES = ("json", "jsonl", "yaml", "toml", "log", "csv", "md", "txt", "db", "bin")
EVERY = {f"*.{suffix}": {"mode": "shard"} for suffix in SUFFIXES}


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    (tmp_path / "store.json").write_text('{"n": 0}')
    return Guard(root=tmp_path, resources=EVERY)


def put(guard: Guard, agent: str, **values: Any) -> None:
    with guard.agent(agent):
        guard.update("store.json", lambda value: {**value, **values})


def store(guard: Guard) -> Any:
    return json.loads((guard.root / "store.json").read_text())


def only_shard(guard: Guard) -> Shard:
    (shard,) = guard.shards.runs()
    return shard


def write(guard: Guard, agent: str, name: str, data: bytes | None) -> None:
    with guard.agent(agent), guard.hold(writes=name) as hold:
        file = hold.path(name)
        if data is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(data)


def table(*rows: tuple[int, str]) -> bytes:
    """A database with a table, as bytes."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
        database.executemany("INSERT INTO t VALUES (?, ?)", rows)
        database.commit()
        return database.serialize()


# -- forks ---


def test_a_fork_is_a_snapshot_where_the_file_system_shares_blocks_and_where_it_does_not(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(disk.SMALL + 1)
    (guard.root / "big.bin").write_bytes(data)
    cloned = []

    def clone(source: int, target: int) -> bool:
        cloned.append(source)
        return False

    monkeypatch.setattr(disk, "_clone", clone)
    write(guard, "a", "big.bin", b"mine")
    assert cloned  # asked for first
    entry = only_shard(guard).entries["file:big.bin"]
    assert entry.base is not None
    assert entry.base.read_bytes() == data  # and copied where that is refused
    assert entry.ours.read_bytes() == b"mine"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a tmpfs")
def test_on_a_tmpfs_files_are_copied_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path("/dev/shm") / f"agentguard-test-{os.getpid()}"
    root.mkdir()
    try:
        assert disk._on_tmpfs(os.stat(root).st_dev)
        monkeypatch.setattr(disk, "_copy_ranges", lambda *_: pytest.fail("slower than by hand here"))
        (root / "big.bin").write_bytes(b"x" * (disk.SMALL + 1))
        guard = Guard(root=root, resources=EVERY)
        write(guard, "a", "big.bin", b"y")
        guard.join()
        assert (root / "big.bin").read_bytes() == b"y"
    finally:
        shutil.rmtree(root)


ADDED = {
    "x.json": (b'{"a": 1}', b'{"b": 2}'),
    "x.jsonl": (b'{"a": 1}\n', b'{"b": 2}\n'),
    "x.yaml": (b"a: 1\n", b"b: 2\n"),
    "x.toml": (b"a = 1\n", b"b = 2\n"),
    "x.log": (b"a\n", b"b\n"),
    "x.csv": (b"id,n\n1,a\n", b"id,n\n2,b\n"),
    "x.md": (b"a\n", b"b\n"),
    "x.db": (table((1, "a")), table((2, "b"))),
}


def has_both(name: str, data: bytes, folder: Path) -> bool:
    if name.endswith(".db"):
        with contextlib.closing(sqlite3.connect(folder / name)) as database:
            return database.execute("SELECT * FROM t ORDER BY id").fetchall() == [(1, "a"), (2, "b")]
    return b"a" in data and b"b" in data


@pytest.mark.parametrize("name", ADDED)
def test_what_several_agents_add_is_merged(guard: Guard, name: str) -> None:
    for agent, data in zip("ab", ADDED[name], strict=True):
        write(guard, agent, name, data)
    assert not (guard.root / name).exists()
    guard.join()
    assert has_both(name, (guard.root / name).read_bytes(), guard.root)


def test_what_cannot_be_merged_is_a_conflict_when_two_add_it(guard: Guard) -> None:
    write(guard, "a", "x.bin", b"\x00a")
    write(guard, "b", "x.bin", b"\x00b")
    with pytest.raises(MergeConflict, match=r"x\.bin"):
        guard.join()
    assert not (guard.root / "x.bin").exists()
    write(guard, "b", "x.bin", b"\x00a")  # the same after all
    guard.join()
    assert (guard.root / "x.bin").read_bytes() == b"\x00a"


@pytest.mark.parametrize("name", [*ADDED, "x.bin"])
def test_a_deletion_is_seen(guard: Guard, name: str) -> None:
    first, second = ADDED.get(name, (b"\0a", b"\0b"))
    (guard.root / name).write_bytes(first)
    write(guard, "a", name, None)
    write(guard, "b", name, first)  # unchanged
    guard.join()
    assert not (guard.root / name).exists()

    (guard.root / name).write_bytes(first)
    write(guard, "a", name, None)
    write(guard, "b", name, second)
    with pytest.raises(MergeConflict, match="deleted by a and changed by others") as caught:
        guard.join()
    assert caught.value.conflicts[0].resource == name
    assert (guard.root / name).read_bytes() == first
    assert {one.agent for one in guard.status().shards} == {"a", "b"}


# -- late ---


def test_an_agent_whose_shard_was_joined_begins_a_new_one(guard: Guard) -> None:
    put(guard, "a", first=1)
    guard.join()
    put(guard, "a", second=2)
    assert store(guard) == {"n": 0, "first": 1}
    (shard,) = guard.status().shards
    assert shard.agent == "a"
    guard.join()
    assert store(guard) == {"n": 0, "first": 1, "second": 2}


def test_so_does_one_whose_shard_another_guard_has_joined(guard: Guard) -> None:
    put(guard, "a", first=1)
    Guard(root=guard.root, resources=EVERY).join(run=guard.run)
    put(guard, "a", second=2)
    assert {one.agent for one in guard.status().shards} == {"a"}
    guard.join()
    assert store(guard) == {"n": 0, "first": 1, "second": 2}


def _join_in_a_process(root: str, run: str, how: str) -> None:
    guard = Guard(root=root, resources=EVERY)
    if how == "killed":
        guard.shards.finish = lambda *_: os._exit(0)  # type: ignore[method-assign]
    guard.join(run=run)


def in_a_process(*arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_join_in_a_process, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("how", ["whole", "killed"])
def test_so_does_one_whose_shard_another_process_has_joined(guard: Guard, how: str) -> None:
    put(guard, "a", first=1)
    in_a_process(str(guard.root), guard.run, how)
    assert store(guard) == {"n": 0, "first": 1}
    put(guard, "a", second=2)
    assert store(guard) == {"n": 0, "first": 1}
    guard.join()
    assert store(guard) == {"n": 0, "first": 1, "second": 2}
    assert guard.status().shards == ()


def test_so_does_one_whose_shard_was_dropped_elsewhere(guard: Guard) -> None:
    put(guard, "a", first=1)
    shutil.rmtree(only_shard(guard).folder)  # as `agentguard recover --drop` does it, in its process
    put(guard, "a", second=2)
    guard.join()
    assert store(guard) == {"n": 0, "second": 2}


def _write_in_a_child(guard: Guard, queue: Any) -> None:
    put(guard, "a", child=1)
    queue.put("done")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_shards_of_its_own(guard: Guard) -> None:
    put(guard, "a", parent=1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_write_in_a_child, args=(guard, queue))
    child.start()
    assert queue.get(timeout=60) == "done"
    child.join(60)
    put(guard, "a", parent=2)
    assert len(guard.status().shards) == 2
    guard.join()
    assert store(guard) == {"n": 0, "parent": 2, "child": 1}


def drop(guard: Guard) -> None:
    shard = only_shard(guard)
    guard.shards.drop(shard)


def close(guard: Guard) -> None:
    assert guard.shards.close(guard.run, "a") is not None


@pytest.mark.parametrize(("end", "word"), [(drop, "dropped"), (close, "closed")])
def test_a_call_that_ends_after_its_shard_was_closed_is_refused_and_its_bytes_are_kept(
    guard: Guard, end: Callable[[Guard], None], word: str
) -> None:
    put(guard, "a", first=1)
    inside, go_on = threading.Event(), threading.Event()
    refused: list[BaseException] = []

    def body(value: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        return {**value, "late": "bytes"}

    def work() -> None:
        with guard.agent("a"):
            try:
                guard.update("store.json", body)
            except StaleWrite as error:
                refused.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    end(guard)
    go_on.set()
    thread.join(30)
    (error,) = refused
    assert isinstance(error, StaleWrite)
    for part in ("store.json", "'a'", guard.run[:20], word, "Nothing was applied", "Read store.json again"):
        assert part in str(error)
    assert (error.resource, error.agent) == ("store.json", "a")
    (kept,) = [Path(folder) for folder in guard.status().conflicts]
    assert str(kept) == error.folder
    assert json.loads((kept / "store.json").read_text()) == {"n": 0, "first": 1, "late": "bytes"}
    guard.join()
    assert store(guard) == ({"n": 0, "first": 1} if end is close else {"n": 0})  # and it is not merged by the back door


def test_the_refusal_says_when_and_by_which_run_it_was_joined(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The locks keep a join out while a call runs; here they do not, as after a lock file was deleted by hand."""
    from agentguard.locks import LockTable

    monkeypatch.setattr(LockTable, "verify", lambda *_: None)
    with guard.agent("a"), pytest.raises(StaleWrite, match=r"was joined at \d+.*by the join of run") as caught:
        guard.update("store.json", lambda value: (_finish(guard), {"n": "late"})[1])
    assert caught.value.run == guard.run
    assert caught.value.changed_at
    (kept,) = guard.status().conflicts
    assert json.loads((Path(kept) / "store.json").read_text()) == {"n": "late"}


def _finish(guard: Guard) -> None:
    shard = only_shard(guard)
    guard.shards.finish(shard, list(shard.entries), None, guard.run)


def test_a_thread_that_still_has_the_merged_file_open_loses_nothing(guard: Guard) -> None:
    """The file that a call commits is the one its tool has open, so a thread that it left behind writes on."""
    (guard.root / "run.log").write_text("start\n")

    def tool() -> Any:
        left_behind = path("run.log").open("a", buffering=1)
        left_behind.write("in time\n")
        return left_behind

    with guard.agent("a"):
        left_behind = guard.wrap(tool, updates="run.log")()
    guard.join()
    assert (guard.root / "run.log").read_text() == "start\nin time\n"
    (one,) = waiting(guard.home)
    assert (one.resource, one.agent, one.run) == ("run.log", "a", guard.run)
    left_behind.write("too late\n")
    left_behind.close()
    put(guard, "a", n=1)
    guard.join()  # looks through them again
    assert (guard.root / "run.log").read_text() == "start\nin time\n"
    (kept,) = [Path(folder) for folder in guard.status().conflicts]
    assert (kept / "run.log").read_text() == "start\nin time\ntoo late\n"
    assert "agent 'a'" in (kept / "NOTE.txt").read_text()
    assert waiting(guard.home) == []


def test_one_that_only_had_it_open_leaves_nothing(guard: Guard) -> None:
    with guard.agent("a"):
        left_behind = guard.wrap(lambda: path("new.log").open("a"), updates="new.log")()
    guard.join()
    assert len(waiting(guard.home)) == 1
    sweep(guard.home)
    assert len(waiting(guard.home)) == 1
    left_behind.close()
    sweep(guard.home)
    assert waiting(guard.home) == []
    assert not os.listdir(guard.home.folder / "late")
    assert guard.status().conflicts == ()


def test_what_is_written_between_reading_and_tidying_up_is_kept(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    put(guard, "a", first=1)
    real = Shards.finish

    def late(self: Shards, shard: Shard, *rest: Any) -> None:
        shard.entries["file:store.json"].ours.write_text("after it was merged")
        real(self, shard, *rest)

    monkeypatch.setattr(Shards, "finish", late)
    guard.join()
    assert store(guard) == {"n": 0, "first": 1}
    (kept,) = guard.status().conflicts
    assert (Path(kept) / "store.json").read_text() == "after it was merged"


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_connection_that_is_still_open_to_a_merged_database(guard: Guard, journal: str) -> None:
    (guard.root / "x.db").write_bytes(table((1, "a")))
    opened: list[sqlite3.Connection] = []

    def tool() -> None:
        database = sqlite3.connect(path("x.db"), isolation_level=None)
        database.execute(f"PRAGMA journal_mode = {journal}")
        database.execute("INSERT INTO t VALUES (2, 'b')")
        opened.append(database)

    with guard.agent("a"):
        guard.wrap(tool, updates="x.db")()
    guard.join()
    with contextlib.closing(opened[0]) as database:
        try:
            database.execute("INSERT INTO t VALUES (3, 'late')")
        except sqlite3.OperationalError:  # SQLite itself sees that the file was moved
            assert journal == "delete"
    with contextlib.closing(sqlite3.connect(guard.root / "x.db")) as database:
        assert database.execute("SELECT count(*) FROM t").fetchone() == (2,)
    sweep(guard.home)
    if journal == "wal":
        (kept,) = guard.status().conflicts
        with contextlib.closing(sqlite3.connect(Path(kept) / "x.db")) as database:
            assert database.execute("SELECT name FROM t WHERE id = 3").fetchone() == ("late",)


def test_a_join_beside_a_fork_of_another_resource_loses_neither(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The join has found one entry, and removes the shard when it is done; meanwhile its agent forks another file."""
    put(guard, "a", first=1)
    copied, finished = threading.Event(), threading.Event()
    real_copy, real_finish = Shards._copy, Shards.finish

    def copy(self: Shards, *arguments: Any) -> Any:
        entry = real_copy(self, *arguments)
        copied.set()
        assert finished.wait(30)  # before it is recorded
        return entry

    def finish(self: Shards, *arguments: Any) -> None:
        real_finish(self, *arguments)
        finished.set()

    monkeypatch.setattr(Shards, "_copy", copy)
    monkeypatch.setattr(Shards, "finish", finish)
    thread = threading.Thread(target=write, args=(guard, "a", "notes.md", b"mine\n"))
    thread.start()
    assert copied.wait(30)
    guard.join()
    thread.join(30)
    monkeypatch.undo()
    guard.join()
    assert store(guard) == {"n": 0, "first": 1}
    assert (guard.root / "notes.md").read_text() == "mine\n"


# -- damage ---


def refused(guard: Guard, *parts: str) -> MergeConflict:
    """The join is refused, with everything kept, and names what is wrong."""
    before = (guard.root / "store.json").read_bytes()
    with pytest.raises(MergeConflict) as caught:
        guard.join()
    for part in ("store.json", *parts):
        assert part in str(caught.value)
    assert (guard.root / "store.json").read_bytes() == before
    assert caught.value.resources == ("store.json",)
    assert "b" in {one.agent for one in guard.status().shards}
    assert len(guard.status().shards) == 2
    return caught.value


@pytest.fixture
def hurt(guard: Guard) -> Iterator[tuple[Guard, Path, Path]]:
    """Two agents' shards; the files of one of them."""
    put(guard, "a", a=1)
    put(guard, "b", b=1)
    entry = next(s for s in guard.shards.runs() if s.identity.agent == "a").entries["file:store.json"]
    assert entry.base is not None
    yield guard, entry.ours, entry.base


def test_a_truncated_shard_file(hurt: tuple[Guard, Path, Path]) -> None:
    guard, ours, _ = hurt
    whole = ours.read_bytes()
    ours.write_bytes(whole[:-3])
    error = refused(guard, "what a has", "line 1")
    assert (error.agent, error.line) == ("a", 1)
    ours.write_bytes(whole)
    guard.join()
    assert store(guard) == {"n": 0, "a": 1, "b": 1}


def test_a_truncated_shard_file_of_the_only_agent(guard: Guard) -> None:
    put(guard, "a", a=1)
    ours = only_shard(guard).entries["file:store.json"].ours
    ours.write_bytes(ours.read_bytes()[:-3])
    with pytest.raises(MergeConflict, match=r"store\.json.*what a has"):
        guard.join()
    assert store(guard) == {"n": 0}


def test_a_shard_file_replaced_by_a_directory(hurt: tuple[Guard, Path, Path]) -> None:
    guard, ours, _ = hurt
    ours.unlink()
    ours.mkdir()
    refused(guard, str(ours), "is a directory", "a: ")


@pytest.mark.parametrize("inside", [True, False])
def test_a_shard_file_replaced_by_a_link_is_never_followed(
    hurt: tuple[Guard, Path, Path], inside: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guard, ours, _ = hurt
    outside = (guard.root if inside else tmp_path_factory.mktemp("outside")) / "secret.json"
    outside.write_text('{"secret": 1}')
    ours.unlink()
    ours.symlink_to(outside)
    refused(guard, str(ours), "symbolic link", "a: ")
    with pytest.raises(AgentGuardError, match=r"'a' is damaged: store\.json: is a symbolic link"):
        put(guard, "a", more=1)
    assert outside.read_text() == '{"secret": 1}'


def test_a_folder_of_a_shard_replaced_by_a_link(
    hurt: tuple[Guard, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    guard, ours, _ = hurt
    outside = tmp_path_factory.mktemp("outside")
    shutil.move(ours, outside / "store.json")
    ours.parent.rmdir()
    ours.parent.symlink_to(outside)
    refused(guard, str(ours), "behind a symbolic link")
    with pytest.raises(AgentGuardError, match="damaged"):
        put(guard, "a", more=1)
    assert json.loads((outside / "store.json").read_text()) == {"n": 0, "a": 1}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda base: base.unlink(), "is missing"),
        (lambda base: base.write_bytes(b""), "was changed or damaged"),
        (lambda base: base.write_bytes(base.read_bytes().replace(b"0", b"7")), "was changed or damaged"),
        (lambda base: (base.unlink(), base.symlink_to("/etc/hostname")), "symbolic link"),
        (lambda base: (base.unlink(), base.mkdir()), "is a directory"),
    ],
    ids=["missing", "empty", "other", "link", "directory"],
)
def test_a_base_that_is_not_what_was_copied(
    hurt: tuple[Guard, Path, Path], damage: Callable[[Path], object], said: str
) -> None:
    guard, _, base = hurt
    damage(base)
    refused(guard, str(base), said, "a: ")


def test_a_damaged_base_of_a_big_log_does_not_double_it(guard: Guard) -> None:
    (guard.root / "run.log").write_bytes(b"line\n" * 2_000_000)
    with guard.agent("a"), guard.hold(updates="run.log") as hold, open(hold.path("run.log"), "ab") as log:
        log.write(b"mine\n")
    base = only_shard(guard).entries["file:run.log"].base
    assert base is not None
    base.unlink()
    with pytest.raises(MergeConflict, match="is missing"):
        guard.join()
    assert (guard.root / "run.log").stat().st_size == 10_000_000


def test_a_shard_whose_files_are_gone_is_no_deletion(hurt: tuple[Guard, Path, Path]) -> None:
    guard, ours, _ = hurt
    shutil.rmtree(ours.parent)
    refused(guard, str(ours), "is gone")


@pytest.mark.parametrize(
    "change",
    [
        {"relative": "../../../../../store.json"},
        {"relative": "/etc/passwd"},
        {"relative": ".agentguard/ledger.sqlite3"},
        {"relative": ""},
        {"relative": 7},
        {"id": None},
        {"existed": "yes"},
        {"key": ["x"]},
        {"forked": "now"},
    ],
    ids=repr,
)
def test_a_damaged_record_names_agent_and_place(guard: Guard, change: dict[str, Any]) -> None:
    put(guard, "a", a=1)
    run, shard = guard.run, only_shard(guard)
    record = orjson.loads(shard.record.read_bytes())
    record["entries"][0].update(change)
    shard.record.write_bytes(orjson.dumps(record))
    with pytest.raises(AgentGuardError, match="agent 'a' is damaged") as caught:
        guard.join(run=run)
    assert str(shard.folder) in str(caught.value)
    assert (caught.value.agent, caught.value.folder) == ("a", str(shard.folder))
    assert store(guard) == {"n": 0}
    with pytest.raises(AgentGuardError, match="agent 'a' is damaged"):  # and nothing is written on top of it
        put(guard, "a", more=1)
    assert guard.status().damaged == (shard.reference,)
    assert shard.folder.is_dir()


def test_a_target_that_became_a_link_or_a_directory(guard: Guard) -> None:
    put(guard, "a", a=1)
    (guard.root / "store.json").rename(guard.root / "other.json")
    (guard.root / "store.json").symlink_to("other.json")
    with pytest.raises(MergeConflict, match="no plain file any more"):
        guard.join()
    assert json.loads((guard.root / "other.json").read_text()) == {"n": 0}
    (guard.root / "store.json").unlink()
    (guard.root / "store.json").mkdir()
    with pytest.raises(MergeConflict, match="no plain file any more"):
        guard.join()
    (guard.root / "store.json").rmdir()
    (guard.root / "other.json").rename(guard.root / "store.json")
    guard.join()
    assert store(guard) == {"n": 0, "a": 1}


def test_a_run_joined_from_another_root_merges_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.json").write_text('{"which": "outer"}')
    (tmp_path / "sub" / "x.json").write_text('{"which": "inner"}')
    outer = Guard(root=tmp_path, resources=EVERY)
    inner = Guard(root=tmp_path / "sub", resources=EVERY)
    assert outer.home is inner.home
    with inner.agent("a"):
        inner.update("x.json", lambda value: {**value, "a": 1})
    report = outer.join(run=inner.run)
    assert [one.resource for one in report.resources] == ["sub/x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"which": "outer"}
    assert json.loads((tmp_path / "sub" / "x.json").read_text()) == {"which": "inner", "a": 1}


def test_two_shards_of_one_agent_in_one_run(guard: Guard) -> None:
    for step in "12":
        identity = Identity("a", guard.run, step, f"task {step}")
        with guard.identified(identity):
            guard.update("store.json", lambda value, step=step: {**value, f"k{step}": 1})
    report = guard.join()
    assert store(guard) == {"n": 0, "k1": 1, "k2": 1}
    (one,) = report.resources
    assert (one.shards, dict(one.changes)) == (2, {"a": 1, "a (2)": 1})


def test_two_shards_of_one_agent_that_disagree(guard: Guard) -> None:
    for step in "12":
        with guard.identified(Identity("a", guard.run, step, f"task {step}")):
            guard.update("store.json", lambda value, step=step: {**value, "n": step})
    with pytest.raises(MergeConflict, match=r"/n: .*a: '1'; a \(2\): '2'"):
        guard.join()


def test_a_drop_that_is_killed_half_way_is_no_deletion(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    put(guard, "a", a=1)
    run = guard.run

    class Killed(BaseException):
        pass

    def killed(folder: Path, **_: Any) -> None:
        for file in Path(folder).rglob("ours/*"):
            file.unlink()
        raise Killed

    monkeypatch.setattr("agentguard.shards.shutil.rmtree", killed)
    with pytest.raises(Killed):
        drop(guard)
    monkeypatch.undo()
    assert not Guard(root=guard.root, resources=EVERY).join(run=run)
    assert store(guard) == {"n": 0}


def test_fingerprints_see_either_end_and_the_length(tmp_path: Path) -> None:
    file = tmp_path / "x"
    seen = set()
    for data in (b"", b"a", b"b", b"a" * 200_000, b"a" * 199_999 + b"b", b"b" + b"a" * 199_999, b"a" * 200_001):
        file.write_bytes(data)
        seen.add(fingerprint(file))
    assert len(seen) == 7


def test_files_of_one_name_are_kept_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    files = [tmp_path / "one" / "a.md", tmp_path / "two" / "a.md"]
    for number, file in enumerate(files):
        file.write_text(str(number))
    kept = keep_files(Guard(root=tmp_path).home, files, "why")
    assert sorted(file.read_text() for file in kept.rglob("a.md")) == ["0", "1"]
