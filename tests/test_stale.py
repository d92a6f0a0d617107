"""Stale writes: versions, the check, merging, refusals, and who has changed what; threads, loops and processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import ConfigError, Event, Guard, LockTimeout, StaleWrite, declare, path
from agentguard.budget import LIMIT, clip, fit, tokens
from agentguard.contents import Contents
from agentguard.knowledge import UNKNOWN, Knowledge, Known, TurnMemory, without_turn
from agentguard.locks import Change
from agentguard.shards import Identity
from agentguard.stale import Case, Reason, diff, judge, refusal
from agentguard.versions import ABSENT, Versions, hash_bytes

KEY = "db:orders/42"


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    (tmp_path / "store.json").write_text('{"items": []}')
    return Guard(root=tmp_path)


@contextlib.contextmanager
def reader_and_writer(guard: Guard, name: str) -> Any:
    """ann has read, bob changes it inside the block; then it is ann's turn to write."""
    with guard.agent("ann"), guard.hold(reads=name):
        pass
    with guard.agent("bob"):
        yield


# -- the decision ---


@given(
    known=st.none() | st.sampled_from([ABSENT, UNKNOWN, "v1", "v2"]),
    found=st.none() | st.sampled_from([ABSENT, "v1", "v2"]),
    current=st.sampled_from([ABSENT, "v1", "v2"]),
    must_read=st.booleans(),
)
def test_a_write_passes_exactly_if_it_is_based_on_the_current_version(
    known: str | None, found: str | None, current: str, must_read: bool
) -> None:
    reason = judge(Known(known, 1.0) if known is not None else None, found, current, must_read)
    if known is not None:
        assert (reason is None) is (known == current)
    elif found is not None:
        assert (reason is None) is (found == current)
    else:
        assert (reason is None) is (not must_read or current == ABSENT)


# -- versions of files ---


def test_read_think_write_loses_half_under_locks_alone_and_nothing_with_versions(tmp_path: Path) -> None:
    """Both have read before either writes, in every round: the interleaving that locks alone cannot mend."""

    def work(stale: str, rounds: int = 5) -> tuple[int, int]:
        (tmp_path / "store.json").write_text("[]")
        guard = Guard(root=tmp_path, resources={"store.json": {"stale": stale}})
        met = threading.Barrier(2)
        refused = []

        def agent(name: str) -> None:
            with guard.agent(name):
                for number in range(rounds):
                    value = guard.read("store.json")
                    met.wait(10)
                    while True:
                        try:
                            guard.write("store.json", [*value, f"{name} {number}"])
                            break
                        except StaleWrite as error:
                            refused.append(error)
                            value = guard.read("store.json")
                    met.wait(10)

        threads = [threading.Thread(target=agent, args=(name,)) for name in ("ann", "bob")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(json.loads((tmp_path / "store.json").read_text())), len(refused)

    assert work("ignore") == (5, 0)
    assert work("reject") == (10, 5)
    assert work("merge") == (10, 0)


def test_an_agent_alone_is_never_refused(guard: Guard) -> None:
    with guard.agent("ann"):
        for number in range(300):
            guard.read("store.json")
            guard.write("store.json", {"items": [number]})
            guard.write("store.json", {"items": [number, number]})  # its own write moved its version along
            guard.update("store.json", lambda value: {**value, "n": 1})
            guard.write("store.json", {"items": []})  # an update of what it knew did, too


def test_a_file_that_was_touched_or_written_alike_is_the_same(guard: Guard) -> None:
    file = guard.root / "store.json"
    with guard.agent("ann"):
        guard.read("store.json")
        for change in (
            lambda: os.utime(file, ns=(1, 1)),
            lambda: file.write_bytes(file.read_bytes()),
            lambda: os.replace(_copy(file), file),
        ):
            change()
            guard.write("store.json", json.loads(file.read_text()))


def _copy(file: Path) -> Path:
    other = file.with_suffix(".copy")
    other.write_bytes(file.read_bytes())
    return other


def test_other_resources_are_none_of_its_business(guard: Guard) -> None:
    with reader_and_writer(guard, "store.json"):
        guard.write("other.json", 1)
    with guard.agent("ann"):
        guard.write("store.json", {"items": [1]})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_edit_from_outside_counts(guard: Guard, asynchronous: bool) -> None:
    with guard.agent("ann"):
        guard.read("store.json")
        (guard.root / "store.json").write_text('{"items": ["an editor"]}')
        with pytest.raises(StaleWrite, match=r"(?s)somebody outside the guard.*an editor") as caught:
            if asynchronous:
                asyncio.run(guard.awrite("store.json", {}))
            else:
                guard.write("store.json", {})
        assert caught.value.changed_by is None
        assert caught.value.reason == "changed"


def test_an_edit_of_equal_length_in_the_same_tick_is_seen(guard: Guard) -> None:
    """A stat signature alone would not tell it: equal size, and the time put back."""
    file = guard.root / "a.txt"
    file.write_text("one")
    old = time.time_ns() - 10**10
    os.utime(file, ns=(old, old))
    with guard.agent("ann"):
        guard.read("a.txt")
        with open(file, "r+") as same:
            same.write("two")
        os.utime(file, ns=(old, old))
        with pytest.raises(StaleWrite):
            guard.write("a.txt", "ann's")


def test_a_failed_or_refused_write_makes_nobody_stale(guard: Guard) -> None:
    def fails() -> None:
        path("store.json").write_text("half")
        raise KeyError("bug")

    with reader_and_writer(guard, "store.json"), pytest.raises(KeyError):
        guard.wrap(fails, writes="store.json")()
    with guard.agent("ann"):
        guard.write("store.json", {"items": [1]})


def test_a_read_that_failed_is_no_read(guard: Guard) -> None:
    def fails() -> None:
        raise KeyError("bug")

    with guard.agent("ann"):
        with pytest.raises(KeyError):
            guard.wrap(fails, reads="store.json")()
        (guard.root / "store.json").write_text("changed")
        guard.write("store.json", {})


def test_what_a_tool_reads_and_writes_at_once_it_knows_afterwards(guard: Guard) -> None:
    @declare(reads="store.json", writes="store.json")
    def edit() -> str:
        file = path("store.json")
        file.write_text(file.read_text().replace("[]", "[1]"))
        return file.read_text()

    with guard.agent("ann"):
        guard.wrap(edit)()
        guard.write("store.json", {"items": [2]})
    with guard.agent("bob"):
        guard.write("store.json", {"items": [3]})
    with guard.agent("ann"), pytest.raises(StaleWrite):
        guard.wrap(edit)()


def test_a_write_that_was_never_preceded_by_a_read_passes_unless_it_must(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, resources={"strict.txt": {"require_read": True}})
    for name in ("loose.txt", "strict.txt"):
        with guard.agent("ann"):
            guard.write(name, "made by ann")  # there was nothing to read
            guard.write(name, "and again")
    with guard.agent("bob"):
        guard.write("loose.txt", "bob's")
        with pytest.raises(StaleWrite, match="never read") as caught:
            guard.write("strict.txt", "bob's")
        assert (caught.value.reason, caught.value.read_version) == ("never read", None)
        guard.read("strict.txt")
        guard.write("strict.txt", "bob's")
    assert (tmp_path / "strict.txt").read_text() == "bob's"


def test_agents_of_one_name_in_two_runs_know_nothing_of_each_other(guard: Guard) -> None:
    with guard.agent("ann", run="one"):
        guard.read("store.json")
    with guard.agent("ann", run="two"):
        guard.write("store.json", {"items": [2]})
    with guard.agent("ann", run="one"), pytest.raises(StaleWrite):
        guard.write("store.json", {"items": [1]})


# -- kinds of things that go wrong ---


def test_a_file_that_is_gone_is_told_once_and_can_be_made_anew(guard: Guard) -> None:
    with reader_and_writer(guard, "store.json"), guard.hold(writes="store.json"):
        path("store.json").unlink()
    with guard.agent("ann"):
        with pytest.raises(StaleWrite, match=r"deleted or renamed by agent 'bob' in hold.*create it anew") as caught:
            guard.write("store.json", {})
        assert caught.value.current_version == ABSENT
        guard.write("store.json", {"new": True})


def test_knowledge_of_a_file_that_was_renamed(guard: Guard) -> None:
    with guard.agent("ann"):
        guard.read("store.json")
        os.rename(guard.root / "store.json", guard.root / "moved.json")
        with pytest.raises(StaleWrite, match="renamed by somebody outside"):
            guard.write("store.json", {})


def test_a_file_that_did_not_exist_when_it_was_looked_for(guard: Guard) -> None:
    with reader_and_writer(guard, "new.txt"):
        guard.write("new.txt", "bob's")
    with guard.agent("ann"), pytest.raises(StaleWrite, match=r"(?s)did not exist.*agent 'bob' in write.*\+bob's"):
        guard.write("new.txt", "ann's")


def test_a_file_that_became_a_directory(guard: Guard) -> None:
    ran = []
    save = guard.wrap(lambda: ran.append(1), writes="store.json", name="save")
    with guard.agent("ann"):
        guard.read("store.json")
        (guard.root / "store.json").unlink()
        (guard.root / "store.json").mkdir()
        with pytest.raises(StaleWrite, match="is a directory now"):
            save()
    assert not ran


def test_a_file_that_cannot_be_compared_is_not_written(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    with guard.agent("ann"):
        guard.read("store.json")

        def refuse(self: Versions, file: Path) -> str:
            raise PermissionError(13, "not yours")

        monkeypatch.setattr(Versions, "of", refuse)
        with pytest.raises(StaleWrite, match=r"cannot be told: PermissionError.*not yours"):
            guard.write("store.json", {})
    assert (guard.root / "store.json").read_text() == '{"items": []}'


def test_files_beneath_a_declared_directory_have_versions_of_their_own(guard: Guard) -> None:
    (guard.root / "notes").mkdir()
    for name in ("a", "b"):
        (guard.root / f"notes/{name}.md").write_text(name)
    see = guard.wrap(lambda: path("notes/a.md").read_text(), reads="notes/", name="see")
    save = guard.wrap(lambda name: path(f"notes/{name}.md").write_text("ann's"), writes="notes/", name="save")
    with guard.agent("ann"):
        see()
    with guard.agent("bob"):
        guard.write("notes/a.md", "bob's")
        guard.write("notes/b.md", "bob's")
    with guard.agent("ann"):
        save("b")
        with pytest.raises(StaleWrite):
            save("a")
        assert (guard.root / "notes/a.md").read_text() == "bob's"


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_is_what_its_readers_see(guard: Guard, mode: str) -> None:
    """Written back from its log or not, by whoever closes it last."""
    file = guard.root / "orders.db"

    def statement(text: str) -> None:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute(text)

    statement(f"PRAGMA journal_mode={mode}")
    statement("CREATE TABLE t (x)")
    save = guard.wrap(statement, writes="orders.db", name="save")
    look = guard.wrap(lambda: statement("SELECT * FROM t"), reads="orders.db", name="look")
    keeper = sqlite3.connect(file, isolation_level=None)  # while it is open, a log is not written back
    keeper.execute("INSERT INTO t VALUES (1)")
    with guard.agent("ann"):
        look()
        keeper.close()
        for number in range(3):
            save(f"INSERT INTO t VALUES ({number})")
        look()
        statement("UPDATE t SET x = 7 WHERE x = 1")  # another program
        with pytest.raises(StaleWrite):
            save("DELETE FROM t")
        keeper = sqlite3.connect(file, isolation_level=None)
        look()
        keeper.execute("UPDATE t SET x = 8 WHERE x = 7")  # in WAL mode the main file has nothing of it
        with pytest.raises(StaleWrite):
            save("DELETE FROM t")
        keeper.close()


def test_a_log_that_cannot_be_read_is_no_reason_to_write(guard: Guard) -> None:
    file = guard.root / "orders.db"
    file.write_bytes(b"SQLite format 3\0" + bytes(100))
    save = guard.wrap(lambda: None, writes="orders.db", name="save")
    with guard.agent("ann"):
        guard.wrap(lambda: None, reads="orders.db")()
        save()
        (guard.root / "orders.db-wal").write_bytes(b"not a log")
        with pytest.raises(StaleWrite, match="cannot be read as a database"):
            save()


def test_calls_inside_a_call_are_not_stale_against_it(guard: Guard) -> None:
    with guard.agent("ann"):
        guard.read("store.json")
        with guard.hold(writes=["store.json", KEY]):
            path("store.json").write_text("{}")
            guard.write("store.json", {"inner": 1})
            with guard.hold(writes=KEY):
                pass
        guard.write("store.json", {"n": 2})
    assert json.loads((guard.root / "store.json").read_text()) == {"n": 2}


# -- keys ---


def test_a_key_is_as_old_as_its_last_change(guard: Guard) -> None:
    with reader_and_writer(guard, KEY), guard.hold(writes=KEY):
        pass
    with guard.agent("ann"):
        with pytest.raises(StaleWrite, match=r"db:orders/42 was changed by agent 'bob' in hold at ") as caught:
            guard.hold(writes=KEY).__enter__()
        assert caught.value.changed_by == "bob in hold"
        guard.hold(updates=KEY).__enter__().token(KEY)


def test_whoever_was_refused_or_only_read_has_not_changed_a_key(guard: Guard) -> None:
    with guard.agent("ann"), guard.hold(reads=KEY):
        pass
    with guard.agent("bob"):
        with guard.hold(reads=KEY):
            pass
        with guard.hold(writes=KEY):
            pass
    with guard.agent("bob"), guard.hold(reads=KEY):
        pass
    with guard.agent("ann"), pytest.raises(StaleWrite):  # an exclusive grant, whose body does not run
        guard.hold(writes=KEY).__enter__()
    with guard.agent("bob"):
        for _ in range(3):
            with guard.hold(writes=KEY):  # his own changes move his version along
                pass


def test_a_key_whose_writer_failed_may_have_changed(guard: Guard) -> None:
    def fails() -> None:
        raise KeyError("after the UPDATE, or before it: who knows")

    with reader_and_writer(guard, KEY), pytest.raises(KeyError):
        guard.wrap(fails, writes=KEY)()
    with guard.agent("ann"), pytest.raises(StaleWrite):
        guard.hold(writes=KEY).__enter__()


def test_an_update_of_a_key_that_was_known_moves_it_along_and_no_other(guard: Guard) -> None:
    with guard.agent("ann"):
        with guard.hold(reads=KEY):
            pass
        with guard.hold(updates=KEY):
            pass
        with guard.hold(writes=KEY):
            pass
    with guard.agent("bob"), guard.hold(updates=KEY):
        pass
    with guard.agent("ann"):
        with guard.hold(updates=KEY):
            pass
        with pytest.raises(StaleWrite):
            guard.hold(writes=KEY).__enter__()


@pytest.mark.parametrize("where", ["declare", "wrap", "configuration"])
def test_a_version_function_of_the_user(tmp_path: Path, where: str) -> None:
    row = {"version": 1}

    def version(name: str) -> int:
        assert name == KEY
        return row["version"]

    options: dict[str, Any] = {} if where == "configuration" else {"version": version}
    settings: dict[str, Any] = {"resources": {"db:orders/*": {"version": version}}} if not options else {}
    guard = Guard(root=tmp_path, **settings)
    if where == "declare":
        read = guard.wrap(declare(reads=KEY, **options)(lambda: None))
        save = guard.wrap(declare(writes=KEY, **options)(lambda: row.update(version=row["version"] + 1)))
    else:
        read = guard.wrap(lambda: None, reads=KEY, **options)
        save = guard.wrap(lambda: row.update(version=row["version"] + 1), writes=KEY, **options)
    with guard.agent("ann"):
        read()
        for _ in range(3):
            save()
        row["version"] += 1  # another program
        with pytest.raises(StaleWrite, match="somebody outside the guard"):
            save()
        read()
        save()
    assert row == {"version": 6}


def test_a_version_function_that_raises_refuses_the_write_and_lets_read(guard: Guard, caplog: Any) -> None:
    broken = True

    def version() -> int:
        if broken:
            raise ConnectionError("no database")
        return 1

    ran: list[str] = []
    read = guard.wrap(lambda: ran.append("read"), reads=KEY, version=version, name="look")
    save = guard.wrap(lambda: ran.append("save"), writes=KEY, version=version, name="save")
    with guard.agent("ann"):
        read()
        assert "in which version cannot be told" in caplog.text
        with pytest.raises(StaleWrite, match="its version function raised ConnectionError: no database"):
            save()
        broken = False
        with pytest.raises(StaleWrite, match="in which version is not known any more"):
            save()
        read()
        save()
        broken = True
        with pytest.raises(StaleWrite):
            save()
    assert ran == ["read", "read", "save"]


def test_a_version_that_cannot_be_meant_is_refused_at_once(tmp_path: Path) -> None:
    async def later(name: str) -> int:
        return 1

    for bad in (later, lambda a, b: 1, 7):
        with pytest.raises(ConfigError, match="version"):
            declare(writes=KEY, version=bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="version"):
            Guard(root=tmp_path, resources={KEY: {"version": bad}})
    with pytest.raises(ConfigError, match=r"version: expected \"package\.module:function\""):
        Guard(root=tmp_path, resources={KEY: {"version": "nothing"}})


# -- merging ---


@pytest.fixture
def merging(tmp_path: Path) -> Guard:
    (tmp_path / "store.json").write_text('{"a": 1, "b": 1}')
    return Guard(root=tmp_path, resources={"**": {"stale": "merge"}})


def test_a_stale_write_is_merged_with_what_others_made(merging: Guard) -> None:
    seen: list[Event] = []
    with reader_and_writer(merging, "store.json"):
        merging.write("store.json", {"a": 1, "b": "bob's"})
    merging.hooks.append(seen.append)
    with merging.agent("ann"):
        merging.write("store.json", {"a": "ann's", "b": 1})
        assert merging.read("store.json") == {"a": "ann's", "b": "bob's"}
    assert [event.kind for event in seen][:3] == ["acquired", "merged", "committed"]


def test_the_body_works_on_the_version_that_its_agent_knows(merging: Guard) -> None:
    with reader_and_writer(merging, "store.json"):
        merging.write("store.json", {"a": 1, "b": "bob's", "c": [1, 2]})
    seen = []

    def edit() -> None:
        file = path("store.json")
        seen.append(file.read_text())
        file.write_text(seen[0].replace('"a": 1', '"a": "ann\'s"'))

    with merging.agent("ann"):
        merging.wrap(edit, writes="store.json")()
    assert seen == ['{"a": 1, "b": 1}']
    assert json.loads((merging.root / "store.json").read_text()) == {"a": "ann's", "b": "bob's", "c": [1, 2]}


def test_after_a_merge_the_agent_knows_its_own_side_only(merging: Guard) -> None:
    """Else its next write, which knows nothing of bob's, would take bob's back."""
    with reader_and_writer(merging, "store.json"):
        merging.write("store.json", {"a": 1, "b": "bob's"})
    with merging.agent("ann"):
        for number in range(3):
            merging.write("store.json", {"a": number, "b": 1})
    assert json.loads((merging.root / "store.json").read_text()) == {"a": 2, "b": "bob's"}


def test_a_true_conflict_is_refused_and_both_sides_stay(merging: Guard) -> None:
    with reader_and_writer(merging, "store.json"):
        merging.write("store.json", {"a": "bob's", "b": 1})
    before = (merging.root / "store.json").read_bytes()
    with merging.agent("ann"), pytest.raises(StaleWrite, match=r"Both changed the same place: /a") as caught:
        merging.write("store.json", {"a": "ann's", "b": 1})
    assert (merging.root / "store.json").read_bytes() == before
    assert "/a" in caught.value.conflicts[0]
    assert b"ann's" in (Path(caught.value.folder) / "store.json").read_bytes()
    assert caught.value.changed_by == "bob in write"


@pytest.mark.parametrize("conflict", [False, True])
def test_a_tool_that_writes_in_place_is_merged_all_the_same(merging: Guard, conflict: bool) -> None:
    """It knows neither path() nor our copy: it writes over what bob made. That is put back, and merged."""
    file = merging.root / "store.json"
    with reader_and_writer(merging, "store.json"):
        merging.write("store.json", {"a": "bob's" if conflict else 1, "b": "bob's"})
    save = merging.wrap(lambda: file.write_text('{"a": "ann\'s", "b": 1}'), writes="store.json", name="save")
    with merging.agent("ann"):
        if conflict:
            with pytest.raises(StaleWrite, match=r"by agent 'bob' in write.*Both changed"):
                save()
            assert json.loads(file.read_text()) == {"a": "bob's", "b": "bob's"}
            (kept,) = (merging.root / ".agentguard" / "conflicts").glob("*/store.json")
            assert "ann's" in kept.read_text()
        else:
            save()
            assert json.loads(file.read_text()) == {"a": "ann's", "b": "bob's"}


@pytest.mark.parametrize(
    ("mine", "theirs", "outcome"),
    [(None, "changed", StaleWrite), ("changed", None, StaleWrite), (None, None, None), ("same", "changed", "changed")],
)
def test_deletions_are_merged_like_shards(tmp_path: Path, mine: Any, theirs: Any, outcome: Any) -> None:
    file = tmp_path / "a.txt"
    file.write_text("same")
    guard = Guard(root=tmp_path, resources={"a.txt": {"stale": "merge"}})

    def put(text: str | None) -> None:
        with guard.hold(writes="a.txt") as hold:
            if text is None:
                hold.path("a.txt").unlink()
            else:
                hold.path("a.txt").write_text(text)

    with reader_and_writer(guard, "a.txt"):
        put(theirs)
    with guard.agent("ann"):
        if outcome is StaleWrite:
            with pytest.raises(StaleWrite):
                put(mine)
            outcome = theirs
        elif mine is None:
            guard.hold(writes="a.txt").__enter__()  # it is gone already: there is nothing to unlink
        else:
            put(mine)
    assert (file.read_text() if file.exists() else None) == outcome


def test_a_merge_needs_its_base_and_two_readable_sides(merging: Guard) -> None:
    with reader_and_writer(merging, "store.json"):
        merging.write("store.json", {"a": 1, "b": "bob's"})
    merging.contents = Contents(merging.root / "nowhere")
    with merging.agent("ann"), pytest.raises(StaleWrite, match="is not kept any more"):
        merging.write("store.json", {"a": "ann's", "b": 1})
    with reader_and_writer(merging, "store.json"):
        (merging.root / "store.json").write_text("{broken")
    with merging.agent("ann"), pytest.raises(StaleWrite, match="Nothing was applied"):
        merging.wrap(lambda: path("store.json").write_text('{"a": 2}'), writes="store.json")()
    assert (merging.root / "store.json").read_text() == "{broken"


def test_merging_is_no_way_around_having_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    guard = Guard(root=tmp_path, resources={"a.txt": {"stale": "merge", "require_read": True}})
    with guard.agent("ann"), pytest.raises(StaleWrite, match="never read"):
        guard.write("a.txt", "2")


def test_what_has_no_content_cannot_be_merged(merging: Guard) -> None:
    with reader_and_writer(merging, KEY), merging.hold(writes=KEY):
        pass
    with merging.agent("ann"), pytest.raises(StaleWrite, match="cannot be merged"):
        merging.hold(writes=KEY).__enter__()


def test_mode_and_owner_survive_a_merge(merging: Guard) -> None:
    file = merging.root / "store.json"
    file.chmod(0o640)
    with reader_and_writer(merging, "store.json"):
        merging.write("store.json", {"a": 1, "b": "bob's"})
    with merging.agent("ann"):
        merging.write("store.json", {"a": "ann's", "b": 1})
    assert file.stat().st_mode & 0o777 == 0o640


# -- what is told ---


def test_the_refusal_is_an_event_and_carries_its_fields(guard: Guard) -> None:
    with reader_and_writer(guard, "store.json"):
        guard.write("store.json", {"items": ["bob's"]})
    seen: list[Event] = []
    guard.hooks.append(seen.append)
    with guard.agent("ann"), pytest.raises(StaleWrite) as caught:
        guard.write("store.json", {})
    assert [event.kind for event in seen] == ["acquired", "refused", "released"]
    refused = seen[1]
    assert (refused.resource, refused.agent, refused.tool) == ("store.json", "ann", "write")
    assert refused.details["changed_by"] == "bob in write"
    assert refused.details["error"] == "StaleWrite"
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.resource, error.agent, error.tool, error.reason) == ("store.json", "ann", "write", "changed")
    assert error.read_version != error.current_version
    assert abs(error.changed_at - time.time()) < 60
    assert "bob's" in error.diff
    json.dumps(error.facts())


def test_who_changed_it_is_known_across_processes(guard: Guard) -> None:
    """Whoever wrote through a copy; and nobody is accused of what an editor did afterwards."""
    program = (
        "import sys; from agentguard import Guard\n"
        "guard = Guard(root=sys.argv[1])\n"
        "with guard.agent('bob from another process'):\n"
        "    guard.write('store.json', {'items': [1]})\n"
        "    guard.hold(writes='db:orders/42').__enter__()\n"
    )
    with guard.agent("ann"), guard.hold(reads=["store.json", KEY]):
        pass
    subprocess.run([sys.executable, "-c", program, str(guard.root)], check=True, timeout=60)
    with guard.agent("ann"):
        for name in ("store.json", KEY):
            with pytest.raises(StaleWrite, match="agent 'bob from another process' in"):
                guard.hold(writes=name).__enter__()
        (guard.root / "store.json").write_text("an editor's")
        with pytest.raises(StaleWrite, match="somebody outside the guard"):
            guard.write("store.json", {})


def test_who_wrote_in_place_is_known_in_this_process(guard: Guard) -> None:
    file = guard.root / "store.json"
    with reader_and_writer(guard, "store.json"):
        guard.wrap(lambda: file.write_text("bob's"), writes="store.json", name="scribble")()
    with guard.agent("ann"):
        with pytest.raises(StaleWrite, match="agent 'bob' in scribble"):
            guard.write("store.json", {})
        later = time.time_ns() + 10**9
        file.write_text("an editor's")
        os.utime(file, ns=(later, later))
        with pytest.raises(StaleWrite, match="somebody outside the guard"):
            guard.write("store.json", {})


def test_a_join_is_told_as_a_join(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{}")
    guard = Guard(root=tmp_path, resources={"store.json": {"mode": "shard"}})
    outside = Identity("ann", "elsewhere")
    with guard.identified(outside):
        guard.read("store.json")
    with guard.agent("bob"):
        guard.update("store.json", lambda value: {**value, "bob": 1})
    guard.join()
    with guard.identified(outside), pytest.raises(StaleWrite, match="agent 'join' in join"):
        guard.write("store.json", {})


BOB = Change(7, (0, 0, 0, 0), 2.0, "bob", "run", "write", "host")
CASE = Case(Reason.CHANGED, "a.txt", "ann", "write", Known("a" * 32, 1.0), "b" * 32, BOB, "old", "new")


def test_no_two_refusals_read_the_same() -> None:
    texts = {refusal(CASE).for_model() for _ in range(50)}
    assert len(texts) == 50


WORDS = st.text(min_size=1, max_size=400)


@given(
    reason=st.sampled_from(Reason),
    resource=WORDS,
    agent=WORDS,
    tool=WORDS,
    old=st.none() | st.text(max_size=3000),
    new=st.none() | st.text(max_size=3000),
    known=st.none() | st.just(Known("c" * 32, 5.0)),
    by=st.none() | WORDS,
    why=st.text(max_size=300),
)
def test_a_refusal_is_short_whatever_it_is_made_of(
    reason: Reason, resource: str, agent: str, tool: str, old: Any, new: Any, known: Any, by: Any, why: str
) -> None:
    change = Change(1, (0, 0, 0, 0), 1e9, by, "run", tool, "host") if by else None
    error = refusal(Case(reason, resource, agent, tool, known, "d" * 32, change, old, new, why))
    text = error.for_model()
    assert tokens(text) <= LIMIT
    assert "othing was applied" in text
    assert "(conflict " in text
    assert ("retry" in text) or ("name a file" in text)
    assert error.resource == resource


@given(st.text(max_size=300), st.integers(2, 40))
def test_clip_keeps_both_ends_of_a_name(name: str, most: int) -> None:
    cut = clip(name, most)
    assert tokens(cut) <= most
    assert len(cut) <= most * 4
    if cut != name:
        start, _, end = cut.partition("…") if "…" not in name else ("", "", "")
        assert name.startswith(start)
        assert name.endswith(end)


@given(st.text(max_size=2000), st.integers(5, 300))
def test_fit_cuts_to_the_budget_and_no_more_than_it_must(text: str, limit: int) -> None:
    cut = fit(text, limit)
    assert tokens(cut) <= limit
    assert cut == text or (tokens(text) > limit and text.startswith(cut.removesuffix("…").rstrip()))


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.lists(st.sampled_from("abcd"), max_size=30))
def test_a_diff_has_what_was_added_and_what_went(old: list[str], new: list[str]) -> None:
    shown = diff("\n".join(old), "\n".join(new)).splitlines()
    added = [line[1:] for line in shown if line.startswith("+")]
    gone = [line[1:] for line in shown if line.startswith("-")]
    assert sorted([*old, *added]) == sorted([*new, *gone])
    assert not (set(added) and set(added) <= set(gone) and len(added) == len(gone) and old == new)


def test_a_diff_of_one_long_line_shows_where_it_differs() -> None:
    old = json.dumps(list(range(2000)))
    shown = diff(old, old.replace(" 1000,", ' "here",'))
    assert "1000" in shown
    assert '"here"' in shown
    assert len(shown) < 300
    assert diff(None, "x") == diff("x", "x") == ""
    huge = diff("\n".join(map(str, range(20_000))), "\n".join(map(str, range(20_000, 40_000))))
    assert len(huge) <= 600


# -- what is remembered ---


def test_the_memory_is_bounded_and_the_oldest_goes() -> None:
    knowledge = Knowledge(limit=3)
    for number in range(5):
        knowledge.of("run", "ann").learn({str(number): Known("v", 1.0)})
    assert len(knowledge) == 3
    assert knowledge.get("run", "ann", "1") is None
    assert knowledge.of("run", "ann").get("4") == Known("v", 1.0)
    assert knowledge.of("run", "ann").named("bob").get("4") is None


def test_in_a_turn_nobody_knows_what_another_call_learns() -> None:
    memory = Knowledge().of("run", "ann")
    memory.learn({"a": Known("v1", 1.0)})
    turn = TurnMemory(memory)
    turn.at(0).learn({"a": Known("v2", 1.0), "b": Known("v2", 1.0)})
    assert (turn.at(0).get("a"), turn.at(1).get("a")) == (Known("v2", 1.0), Known("v1", 1.0))
    assert (turn.at(0).get("b"), turn.at(1).get("b")) == (Known("v2", 1.0), None)
    turn.at(1).learn({"a": Known("v3", 1.0)})
    assert turn.at(2).get("a") == Known("v1", 1.0)
    assert (memory.get("a"), memory.get("b")) == (Known("v3", 1.0), Known("v2", 1.0))
    assert without_turn(turn.at(2)) is memory


def test_contents_are_kept_by_version_and_nothing_else_is_read(tmp_path: Path) -> None:
    contents = Contents(tmp_path / "versions")
    data = b"x" * 100
    version = hash_bytes(data)
    contents.keep(version, data, lasting=False)
    assert not (tmp_path / "versions").exists()
    assert contents.text(version) == "x" * 100
    contents.keep(version, data, lasting=True)
    assert contents.has(version, lasting=True)
    again = Contents(tmp_path / "versions")
    assert again.get(version) == data
    assert (tmp_path / "versions").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "versions" / version).stat().st_mode & 0o777 == 0o600
    contents.keep(version, b"something else", lasting=True)  # not what the version is of
    assert again.get(version) == data
    (tmp_path / "versions" / version).write_bytes(b"tampered with")
    assert Contents(tmp_path / "versions").get(version) is None
    secret = tmp_path / "secret"
    secret.write_text("s")
    for bad in ("../secret", str(secret), UNKNOWN, ABSENT, "", "a" * 31):
        assert again.get(bad) is None
    assert again.text(ABSENT) == ""


def test_contents_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import agentguard.contents as module

    monkeypatch.setattr(module, "_FILES", 10)
    monkeypatch.setattr(module, "_SWEEP", 1)
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    contents = Contents(tmp_path / "versions")
    kept = []
    for number in range(30):
        data = str(number).encode() * 10
        contents.keep(hash_bytes(data), data, lasting=True)
        os.utime(tmp_path / "versions" / hash_bytes(data), ns=(number, number))
        kept.append(hash_bytes(data))
    assert len(list((tmp_path / "versions").iterdir())) <= 11
    assert contents.get(kept[-1]) is not None
    assert contents.get(kept[0]) is None


def test_a_disk_that_refuses_costs_the_diff_and_no_call(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    guard = Guard(root=tmp_path, resources={"a.txt": {"stale": "merge"}})
    (guard.home.folder / "versions").write_text("not a directory")
    with guard.agent("ann"):
        assert guard.read("a.txt") == "1"
        guard.write("a.txt", "2")


def test_who_waited_in_vain_for_several_locks_has_changed_nothing(guard: Guard) -> None:
    """A key whose grant is taken back because another lock did not come is as it was."""
    with guard.agent("ann"), guard.hold(reads=KEY):
        pass
    with guard.hold(writes="zzz:held"):
        elsewhere = threading.Thread(target=_fails_to_lock, args=(guard,))
        elsewhere.start()
        elsewhere.join()
    with guard.agent("ann"), guard.hold(writes=KEY):
        pass


def _fails_to_lock(guard: Guard) -> None:
    with guard.agent("bob"), pytest.raises(LockTimeout):
        guard.hold(writes=[KEY, "zzz:held"], timeout=0).__enter__()
