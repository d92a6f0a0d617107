"""Shards and joins: isolation until the join, everything afterwards, each entry exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import Guard, Identity, MergeConflict, UndeclaredWrite, path
from agentguard.exceptions import AgentGuardError
from agentguard.folding import CURRENT_SIDE, Side, fold, moves
from agentguard.merge import Conflict, Merged
from agentguard.reports import JoinReport, ResourceReport

SHARDED = {"*.json": {"mode": "shard"}, "*.log": {"mode": "shard"}, "*.md": {"mode": "shard"}}


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    (tmp_path / "store.json").write_text('{"items": [], "n": 0}')
    return Guard(root=tmp_path, resources=SHARDED)


def add(guard: Guard, agent: str, item: str) -> None:
    with guard.agent(agent):
        guard.update("store.json", lambda value: {**value, "items": [*value["items"], item]})


def items(guard: Guard) -> list[str]:
    found: list[str] = json.loads((guard.root / "store.json").read_text())["items"]
    return found


def test_no_agent_sees_another_before_the_join_and_all_is_there_after(guard: Guard) -> None:
    add(guard, "b", "b1")
    add(guard, "a", "a1")
    add(guard, "b", "b2")
    assert items(guard) == []
    with guard.agent("a"):
        assert guard.read("store.json")["items"] == ["a1"]  # its own
    with guard.agent("b"):
        assert guard.read("store.json")["items"] == ["b1", "b2"]
    with guard.agent("c"):
        assert guard.read("store.json")["items"] == []
    report = guard.join()
    assert items(guard) == ["a1", "b1", "b2"]  # in agent order, whoever came first
    assert report.shards == 2
    assert "store.json" in str(report)
    assert not guard.join()
    assert items(guard) == ["a1", "b1", "b2"]
    assert guard.status().shards == ()
    assert not any((guard.root / ".agentguard" / "shards").iterdir())


def test_agents_work_at_the_same_time(guard: Guard) -> None:
    meet = threading.Barrier(3)

    def work(agent: str) -> None:
        def change(value: dict[str, list[str]]) -> dict[str, list[str]]:
            meet.wait(timeout=10)  # all three are inside: nobody waits for anybody
            return {**value, "items": [*value["items"], agent]}

        with guard.agent(agent):
            guard.update("store.json", change)

    threads = [threading.Thread(target=work, args=(agent,)) for agent in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard.join()
    assert items(guard) == ["a", "b", "c"]


def test_logs_in_agent_order_and_text_three_way(guard: Guard) -> None:
    (guard.root / "report.md").write_text("# Title\n\none\n\ntwo\n")
    (guard.root / "run.log").write_text("start\n")
    for agent, old, new in (("b", "two", "TWO"), ("a", "one", "ONE")):
        with guard.agent(agent):
            guard.update("report.md", lambda text, old=old, new=new: text.replace(old, new))
            guard.update("run.log", lambda text, agent=agent: text + f"{agent}\n")
    guard.join()
    assert (guard.root / "report.md").read_text() == "# Title\n\nONE\n\nTWO\n"
    assert (guard.root / "run.log").read_text() == "start\na\nb\n"


def test_a_conflict_publishes_nothing_and_keeps_everything(guard: Guard) -> None:
    for agent, number in (("a", 1), ("b", 2)):
        with guard.agent(agent):
            guard.update("store.json", lambda value, number=number: {**value, "n": number})
            guard.update("clean.json", lambda _, agent=agent: {agent: 1})
    with pytest.raises(MergeConflict, match=r"(?s)nothing was published.*store\.json, /n") as caught:
        guard.join()
    assert json.loads((guard.root / "store.json").read_text())["n"] == 0
    assert not (guard.root / "clean.json").exists()
    (conflict,) = caught.value.conflicts
    assert (conflict.resource, conflict.path, conflict.base, dict(conflict.sides)) == (
        "store.json",
        "/n",
        0,
        {"a": 1, "b": 2},
    )
    shards = guard.status().shards
    assert {one.agent for one in shards} == {"a", "b"}
    for one in shards:
        assert one.folder in str(caught.value)
        assert json.loads((Path(one.folder) / "base" / "store.json").read_text())["n"] == 0
    # a person makes the sides agree, and joins again
    for one in shards:
        (Path(one.folder) / "ours" / "store.json").write_text('{"items": [], "n": 3}')
    guard.join()
    assert json.loads((guard.root / "store.json").read_text())["n"] == 3
    assert json.loads((guard.root / "clean.json").read_text()) == {"a": 1, "b": 1}


def test_parked_conflicts_publish_what_is_clean(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"n": 0, "m": 0}')
    guard = Guard(root=tmp_path, resources={"s.json": {"mode": "shard", "on_conflict": "park"}})
    for agent, change in (("a", {"n": 1, "x": 1}), ("b", {"n": 2, "y": 1})):
        with guard.agent(agent):
            guard.update("s.json", lambda value, change=change: {**value, **change})
    report = guard.join()
    assert json.loads((tmp_path / "s.json").read_text()) == {"n": 0, "m": 0, "x": 1, "y": 1}
    assert len(report.conflicts) == 1
    (kept,) = guard.status().conflicts
    assert "/n" in (Path(kept) / "NOTE.txt").read_text()
    assert len(list(Path(kept).rglob("s.json"))) == 4  # base, current, and both sides


@pytest.mark.parametrize(("winner", "published"), [("a", 1), ("b", 2), ("nobody", 0)])
def test_the_named_winner_is_published_and_all_sides_are_kept(tmp_path: Path, winner: str, published: int) -> None:
    (tmp_path / "s.json").write_text('{"n": 0, "m": 0}')
    guard = Guard(root=tmp_path, resources={"s.json": {"mode": "shard", "on_conflict": f"park:{winner}"}})
    for agent, change in (("a", {"n": 1, "x": 1}), ("b", {"n": 2, "y": 1})):
        with guard.agent(agent):
            guard.update("s.json", lambda value, change=change: {**value, **change})
    report = guard.join()
    assert json.loads((tmp_path / "s.json").read_text()) == {"n": published, "m": 0, "x": 1, "y": 1}
    assert [(conflict.path, dict(conflict.sides)) for conflict in report.conflicts] == [("/n", {"a": 1, "b": 2})]
    (kept,) = guard.status().conflicts
    assert {json.loads(file.read_text())["n"] for file in Path(kept).rglob("s.json")} == {0, 1, 2}


@pytest.mark.parametrize("on_conflict", ["fail", "park"])
def test_a_version_that_cannot_be_read_is_a_conflict_about_the_whole(tmp_path: Path, on_conflict: str) -> None:
    (tmp_path / "s.json").write_text('{"n": 0}')
    (tmp_path / "t.json").write_text('{"n": 0}')
    options = {"mode": "shard", "on_conflict": on_conflict}
    guard = Guard(root=tmp_path, resources={"*.json": options})
    for agent, text in (("a", '{"n": 1, "n": 2}'), ("b", '{"n": 1}')):
        with guard.agent(agent):
            for name in ("s.json", "t.json"):
                guard.write(name, {"n": 0, agent: 1})
        if agent == "a":
            (shard,) = guard.status().shards
            (Path(shard.folder) / "ours" / "s.json").write_text(text)
    if on_conflict == "fail":
        with pytest.raises(MergeConflict, match="what a has is not valid JSON: line 1, column 10") as caught:
            guard.join()
        assert (caught.value.agent, caught.value.resources) == ("a", ("s.json",))
        assert len(guard.status().shards) == 2  # kept, and nothing of t.json published
        assert json.loads((tmp_path / "t.json").read_text()) == {"n": 0}
        return
    report = guard.join()
    assert [(conflict.resource, conflict.path) for conflict in report.conflicts] == [("s.json", "")]
    assert (tmp_path / "s.json").read_text() == '{"n": 0}'
    assert json.loads((tmp_path / "t.json").read_text()) == {"n": 0, "a": 1, "b": 1}
    (kept,) = guard.status().conflicts
    assert '{"n": 1, "n": 2}' in {file.read_text() for file in Path(kept).rglob("s.json")}


def resolve(conflict: object) -> object:
    return max(conflict.sides.values())  # type: ignore[attr-defined]


def test_a_callable_decides(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"n": 0}')
    spec = f"{resolve.__module__}:resolve"
    guard = Guard(root=tmp_path, resources={"s.json": {"mode": "shard", "on_conflict": spec}})
    for agent, number in (("a", 5), ("b", 2)):
        with guard.agent(agent):
            guard.update("s.json", lambda value, number=number: {"n": number})
    guard.join()
    assert json.loads((tmp_path / "s.json").read_text()) == {"n": 5}


def test_per_path_strategies(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"total": 10, "tags": ["x"], "rows": [{"id": 1, "v": 1}]}')
    paths = {"/total": "counter", "/tags": "set", "/rows": "list:id"}
    guard = Guard(root=tmp_path, resources={"s.json": {"mode": "shard", "paths": paths}})
    for agent in "ab":
        with guard.agent(agent):
            guard.update(
                "s.json",
                lambda value, agent=agent: {
                    "total": value["total"] + 3,
                    "tags": [*value["tags"], "both", agent],
                    "rows": [*value["rows"], {"id": agent}],
                },
            )
    guard.join()
    merged = json.loads((tmp_path / "s.json").read_text())
    assert merged["total"] == 16
    assert sorted(merged["tags"]) == ["a", "b", "both", "x"]
    assert merged["rows"] == [{"id": 1, "v": 1}, {"id": "a"}, {"id": "b"}]


def test_a_change_from_outside_is_one_more_side(guard: Guard) -> None:
    add(guard, "a", "a1")
    (guard.root / "store.json").write_text('{"items": [], "n": 0, "editor": true}')
    guard.join()
    assert json.loads((guard.root / "store.json").read_text()) == {"items": ["a1"], "n": 0, "editor": True}


def test_files_that_appear_and_disappear(guard: Guard) -> None:
    (guard.root / "old.json").write_text("{}")
    with guard.agent("a"), guard.hold(writes=["old.json", "new.json"]) as hold:
        hold.path("old.json").unlink()
        hold.path("new.json").write_text('{"a": 1}')
    with guard.agent("b"):
        guard.update("new.json", lambda value: {**(value or {}), "b": 2})
    assert (guard.root / "old.json").exists()
    guard.join()
    assert not (guard.root / "old.json").exists()
    assert json.loads((guard.root / "new.json").read_text()) == {"a": 1, "b": 2}


def test_a_failed_call_leaves_the_shard_as_it_was(guard: Guard) -> None:
    add(guard, "a", "a1")
    with guard.agent("a"):
        with pytest.raises(ValueError), guard.hold(writes="store.json") as hold:
            hold.path("store.json").write_text("broken")
            raise ValueError
        assert guard.read("store.json")["items"] == ["a1"]


def test_writing_the_target_itself_breaks_isolation_and_is_refused(guard: Guard) -> None:
    def tool() -> None:
        (guard.root / "store.json").write_text("{}")

    with guard.agent("a"), pytest.raises(UndeclaredWrite, match=r"wrote to store\.json itself"):
        guard.wrap(tool, writes="store.json")()


def test_a_path_argument_is_led_to_the_shard(guard: Guard) -> None:
    def write(file_path: str, text: str) -> str:
        Path(file_path).write_text(text)
        return file_path

    guarded = guard.wrap(write, writes="{file_path}")
    with guard.agent("a"):
        assert guarded("notes.md", "hello\n") == "notes.md"
    assert not (guard.root / "notes.md").exists()
    guard.join()
    assert (guard.root / "notes.md").read_text() == "hello\n"


def test_without_a_join_to_come_calls_are_serialized_and_the_log_says_so_once(
    guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            guard.update("store.json", lambda value: {**value, "items": [*value["items"], "x"]})
    assert items(guard) == ["x", "x", "x"]
    assert len([record for record in caplog.records if "nothing will join" in record.message]) == 1


def test_a_later_node_of_a_branch_starts_from_the_earlier_one(guard: Guard) -> None:
    def step(name: str, order: tuple[str, ...], parent: str | None, item: str) -> str:
        identity = Identity(name, "run", name, name, order, parent)
        with guard.identified(identity):
            guard.update("store.json", lambda value: {**value, "items": [*value["items"], item]})
            shard = guard.shards.close("run", name)
        assert shard is not None
        return shard.reference

    first = step("a1", ("1", "a"), None, "a1")
    other = step("b1", ("1", "b"), None, "b1")
    second = step("a2", ("2", "a"), first, "a2")
    with guard.identified(Identity("a3", "run", "a3", "a3", parent=second)):
        assert guard.read("store.json")["items"] == ["a1", "a2"]  # its branch, and nobody else's
    guard.join(run="run", shards=[first, other, second])
    assert sorted(items(guard)) == ["a1", "a2", "b1"]
    assert guard.status().shards == ()


def test_joining_the_earlier_node_first_does_not_double(guard: Guard) -> None:
    with guard.identified(Identity("a1", "run", "1", "a1")):
        guard.update("store.json", lambda value: {**value, "items": ["a1"]})
    first = guard.shards.close("run", "a1")
    assert first is not None
    with guard.identified(Identity("a2", "run", "2", "a2", parent=first.reference)):
        guard.update("store.json", lambda value: {**value, "items": [*value["items"], "a2"]})
    second = guard.shards.close("run", "a2")
    assert second is not None
    guard.join(run="run", shards=[first.reference])
    assert items(guard) == ["a1"]
    guard.join(run="run", shards=[first.reference, second.reference])
    assert items(guard) == ["a1", "a2"]


@pytest.mark.parametrize("reference", ["../../x", "/etc", "a/b", "a/../c", "a/b/c/d", "", "a/b/.."])
def test_references_are_data(guard: Guard, reference: str) -> None:
    with pytest.raises(AgentGuardError, match="not the reference of a shard"):
        guard.join(shards=[reference])


def test_a_damaged_shard_is_listed_and_stops_the_join_of_its_run(guard: Guard) -> None:
    add(guard, "a", "a1")
    (orphan,) = guard.status().shards
    (Path(orphan.folder) / "shard.json").write_text("{")
    later = Guard(root=guard.root, resources=SHARDED)
    status = later.status()
    assert (status.shards, status.damaged) == ((), (orphan.reference,))
    assert orphan.reference in str(status)
    with pytest.raises(AgentGuardError, match="damaged"):
        later.join(run=guard.run)
    later.shards.remove(orphan.reference)
    assert not later.join(run=guard.run)


def test_an_orphan_is_listed_and_joined_by_a_person(guard: Guard) -> None:
    add(guard, "a", "a1")
    run = guard.run
    later = Guard(root=guard.root, resources=SHARDED)  # another process, as far as the disk can tell
    (orphan,) = later.status().shards
    assert (orphan.agent, orphan.run, orphan.resources) == ("a", run, ("store.json",))
    assert not later.join()  # not of its run
    later.join(run=run)
    assert items(guard) == ["a1"]


def test_async_agents_and_join(guard: Guard) -> None:
    async def work(agent: str) -> None:
        with guard.agent(agent):
            for number in range(3):
                await guard.aupdate(
                    "store.json", lambda value, n=number: {**value, "items": [*value["items"], f"{agent}{n}"]}
                )

    async def main() -> None:
        await asyncio.gather(*(work(agent) for agent in "abc"))
        assert items(guard) == []
        await guard.ajoin()

    asyncio.run(main())
    assert items(guard) == [f"{agent}{n}" for agent in "abc" for n in range(3)]


def test_two_joins_at_once_apply_each_shard_once(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"n": 0}')
    resources = {"s.json": {"mode": "shard", "paths": {"/n": "counter"}}}
    for number in range(1, 21):
        guards = [Guard(root=tmp_path, resources=resources) for _ in range(2)]
        for agent in "abcd":
            with guards[0].agent(agent):
                guards[0].update("s.json", lambda value: {"n": value["n"] + 1})
        meet = threading.Barrier(2)

        def join(guard: Guard, run: str, meet: threading.Barrier = meet) -> None:
            meet.wait(timeout=10)
            guard.join(run=run)

        threads = [threading.Thread(target=join, args=(guard, guards[0].run)) for guard in guards]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert json.loads((tmp_path / "s.json").read_text()) == {"n": 4 * number}


def test_a_join_that_died_before_it_tidied_up_is_not_repeated(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    add(guard, "a", "a1")

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(guard.shards), "finish", die)
        with pytest.raises(Killed):
            guard.join()
    assert items(guard) == ["a1"]
    assert not guard.join()
    assert items(guard) == ["a1"]
    assert guard.status().shards == ()


# -- the report ---


def database(*rows: tuple[int, str]) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as made:
        made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
        made.executemany("INSERT INTO t VALUES (?, ?)", rows)
        made.commit()
        return made.serialize()


# What was there, what ann and bob make of it, and how many records, cells, keys or lines each of them changed.
REPORTED = {
    "x.json": (b'{"a": 1, "l": [1]}', b'{"a": 2, "l": [1, 5, 6]}', b'{"a": 1, "l": [1], "b": {"c": 1}}', 3, 1),
    "x.yaml": (b"a: 1\n", b"a: 2\n", b"a: 1\nb: 1\nc: 2\n", 1, 2),
    "x.toml": (b"a = 1\n", b"a = 2\n", b"a = 1\nb = 1\n", 1, 1),
    "x.log": (b"0\n", b"0\n1\n2\n3\n", b"0\n4\n", 3, 1),
    "x.jsonl": (b'{"n": 0}\n', b'{"n": 0}\n{"n": 1}\n', b'{"n": 0}\n{"n": 2}\n{"n": 3}\n', 1, 2),
    "x.csv": (b"id,n,m\n1,a,x\n2,b,y\n", b"id,n,m\n1,A,x\n2,b,y\n3,c,z\n", b"id,n,m\n1,a,X\n2,b,y\n", 2, 1),
    "x.md": (b"1\n2\n3\n4\n5\n", b"one\ntwo\n3\n4\n5\n", b"1\n2\n3\n4\n5\nsix\n", 2, 1),
    "x.db": (
        database((1, "a"), (2, "b")),
        database((1, "A"), (2, "b"), (3, "c")),
        database((1, "a"), (2, "B")),
        2,
        1,
    ),
    "x.bin": (b"\0", b"\1", b"\0", 1, 0),
}


@pytest.mark.parametrize("name", REPORTED)
def test_the_report_counts_what_each_agent_changed(tmp_path: Path, name: str) -> None:
    base, *contents, ann, bob = REPORTED[name]
    (tmp_path / name).write_bytes(base)
    guard = Guard(root=tmp_path, resources={name: {"mode": "shard"}})
    for agent, content in zip(("ann", "bob"), contents, strict=True):
        with guard.agent(agent), guard.hold(writes=name) as hold:
            hold.path(name).write_bytes(content)
    started = time.monotonic()
    report = guard.join()
    (one,) = report.resources
    assert (one.resource, one.shards, report.shards) == (name, 2, 2)
    assert dict(one.changes) == {agent: count for agent, count in (("ann", ann), ("bob", bob)) if count}
    assert one.conflicts == ()
    if not name.endswith(".db"):  # what SQLite puts into its file is not what it was given
        assert one.bytes == (tmp_path / name).stat().st_size
    assert 0 < one.seconds <= report.seconds <= time.monotonic() - started


def test_the_report_of_a_directory_is_one_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "b.md").write_text("b\n")
    guard = Guard(root=tmp_path, resources={"notes/": {"mode": "shard"}})
    for agent in ("ann", "bob"):
        with guard.agent(agent):

            def tool(agent: str = agent) -> None:
                (path("notes/") / "a.md").write_text(f"{agent}\n")
                (path("notes/") / "b.md").unlink()

            guard.wrap(tool, writes="notes/")()
    report = guard.join()
    assert report.shards == 2  # each once, although both are in both
    told = [(one.resource, one.shards, dict(one.changes), one.bytes) for one in report.resources]
    assert told == [("notes/a.md", 2, {"ann": 1, "bob": 1}, 8), ("notes/b.md", 2, {"ann": 1, "bob": 1}, 0)]


def test_the_report_reads_well() -> None:
    conflict = Conflict("store.json", "/n", 0, {"ann": 1, "bob": 2}, "changed differently")
    many = {f"agent {number}": 1 for number in range(9)}
    report = JoinReport(
        "run",
        (
            ResourceReport("run.log", "append", 1, {"ann": 1234}, (), 1234567, 0.25),
            ResourceReport("store.json", "json", 9, many, (conflict,), 8, 0.0014),
            ResourceReport("z.md", "text", 2, {}, (), 0, 0.0, "a.md"),
        ),
        1.5,
        9,
    )
    assert str(report) == (
        "joined 9 shards into 3 resources in 1.500 s, 1 conflict parked\n"
        "  resource      strategy  shards  conflicts      bytes  seconds  changed by each agent\n"
        "  run.log       append         1          0  1,234,567    0.250  ann 1,234\n"
        "  store.json    json           9          1          8    0.001  agent 0 1, agent 1 1, agent 2 1, agent 3 1, "
        "agent 4 1 and 4 more agents\n"
        "  a.md -> z.md  text           2          0          0    0.000  nothing"
    )
    one = JoinReport("run", report.resources[:1], 0.1, 1)
    assert str(one).startswith("joined 1 shard into 1 resource in 0.100 s\n")
    assert str(JoinReport("run", (), 0.1)) == "joined nothing: no agent of this run has an open shard"


def test_nothing_is_parked_by_a_join_that_is_refused(tmp_path: Path) -> None:
    resources = {"p.json": {"mode": "shard", "on_conflict": "park"}, "q.json": {"mode": "shard"}}
    guard = Guard(root=tmp_path, resources=resources)
    for agent in ("ann", "bob"):
        with guard.agent(agent):
            for name in resources:
                guard.update(name, lambda _, agent=agent: {"who": agent})
    for _ in range(2):
        with pytest.raises(MergeConflict, match="1 conflict in q"):
            guard.join()
    assert guard.status().conflicts == ()


def test_all_that_is_wrong_is_found_in_one_pass(guard: Guard) -> None:
    (guard.root / "other.json").write_text("{}")
    for agent in ("ann", "bob"):
        with guard.agent(agent):
            guard.update("store.json", lambda value, agent=agent: {**value, "n": agent})
            with guard.hold(writes=["other.json", "third.json"]) as hold:
                hold.path("other.json").write_text("{" if agent == "ann" else '{"x": 1}')
                hold.path("third.json").write_text(f'"{agent}"')
    with pytest.raises(MergeConflict, match="found 3 conflicts") as caught:
        guard.join()
    assert caught.value.resources == ("other.json", "store.json", "third.json")


# -- the pure part ---


def concatenate(base: bytes | None, sides: Mapping[str, bytes | None]) -> Merged:
    """A strategy for the tests: the base, then what each side added."""
    start = base or b""
    added = [(side or b"").removeprefix(start) for side in sides.values()]
    assert all((side or b"").startswith(start) for side in sides.values())
    return Merged(start + b"".join(added), (), {label: len(text) for label, text in zip(sides, added, strict=True)})


@given(
    st.lists(st.tuples(st.sampled_from(["root", "child"]), st.binary(min_size=1, max_size=3)), min_size=1, max_size=8)
)
def test_folding_a_forest_applies_every_change_once(plan: list[tuple[str, bytes]]) -> None:
    base = b"base:"
    sides: list[Side] = []
    for number, (kind, text) in enumerate(plan):
        mark = b"<%d>" % number + text
        parent = sides[number % len(sides)] if kind == "child" and sides else None
        start = parent.ours or b"" if parent else base
        sides.append(
            Side(str(number), f"agent{number}", start, start + mark, float(number), parent.id if parent else None)
        )
    content, conflicts, _ = fold(sides, base, concatenate)
    assert not conflicts
    assert content is not None
    for number in range(len(plan)):
        assert content.count(b"<%d>" % number) == 1


def test_fold_takes_the_current_content_as_a_side_and_different_bases_in_turn() -> None:
    sides = [Side("1", "a", b"0", b"0a", 1.0), Side("2", "b", b"0x", b"0xb", 2.0)]
    seen: list[tuple[bytes | None, dict[str, bytes | None]]] = []

    def record(base: bytes | None, values: Mapping[str, bytes | None]) -> Merged:
        seen.append((base, dict(values)))
        return Merged(b"merged%d" % len(seen), (), {})

    assert fold(sides, b"0x", record)[0] == b"merged2"
    assert seen == [(b"0", {CURRENT_SIDE: b"0x", "a": b"0a"}), (b"0x", {CURRENT_SIDE: b"merged1", "b": b"0xb"})]


def test_a_child_counts_for_itself_and_its_parent_without_it() -> None:
    sides = [Side("1", "a", b"", b"1", 1.0), Side("2", "b", b"1", b"123", 2.0, "1"), Side("3", "c", b"", b"4", 1.0)]
    content, _, changes = fold(sides, b"", concatenate)
    assert content == b"1234"
    assert changes == {"a": 1, "b": 2, "c": 1}


def test_what_a_parent_has_got_after_its_child_was_forked_is_no_deletion_by_the_child() -> None:
    sides = [Side("1", "a", b"", b"12", 1.0), Side("2", "b", b"1", b"1x", 2.0, "1")]
    assert fold(sides, b"", concatenate)[0] == b"12x"


def test_two_shards_of_one_agent_are_two_sides() -> None:
    sides = [Side("1", "a", b"0", b"0x", 1.0), Side("2", "a", b"0", b"0y", 1.0)]
    assert fold(sides, b"0", concatenate)[0] == b"0xy"


def test_tools_may_use_path_in_a_shard(guard: Guard) -> None:
    def tool() -> str:
        path("run.log").write_text("line\n")
        return str(path("run.log"))

    with guard.agent("a"):
        assert guard.wrap(tool, updates="run.log")() == "run.log"
    guard.join()
    assert (guard.root / "run.log").read_text() == "line\n"


@pytest.mark.parametrize(
    ("renamed", "touched", "missing", "expected"),
    [
        ([{"a": "z"}], {"a": 2, "z": 1}, "z", {"a": "z"}),
        ([{"a": "z"}, {"a": "z"}], {"a": 2, "z": 2}, "z", {"a": "z"}),
        ([{"a": "z"}, {"a": "y"}], {"a": 2, "z": 1, "y": 1}, "zy", {}),
        ([{"a": "z"}], {"a": 1, "z": 2}, "z", {}),  # another agent adds z
        ([{"a": "z"}], {"a": 1, "z": 1}, "", {}),  # it is there by now
        ([{"a": "z"}, {"b": "z"}], {"a": 1, "b": 1, "z": 2}, "z", {}),
        ([{"a": "b", "b": "c"}], {"a": 1, "b": 1, "c": 1}, "c", {"b": "c"}),  # b is there
    ],
)
def test_which_renames_are_followed(
    renamed: list[dict[str, str]], touched: dict[str, int], missing: str, expected: dict[str, str]
) -> None:
    assert moves(renamed, touched, missing) == expected
