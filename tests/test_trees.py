"""Directories in shard mode: what a tool is given, what is copied, and what the join makes of it, file by file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentguard import Guard, MergeConflict, StaleWrite, UndeclaredWrite, path, trees

SHARDED = {"notes/": {"mode": "shard"}, "notes/totals.json": {"paths": {"/n": "counter"}}}


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    notes = tmp_path / "notes"
    (notes / "deep").mkdir(parents=True)
    (notes / "a.md").write_text("# A\n\none\n\ntwo\n")
    (notes / "b.md").write_text("# B\n")
    (notes / "totals.json").write_text('{"n": 0}')
    (notes / "deep" / "c.md").write_text("# C\n")
    return Guard(root=tmp_path, resources=SHARDED)


def work(guard: Guard, agent: str, body: Callable[[Path], Any]) -> Any:
    """A tool that takes the directory as an argument."""

    def tool(folder: str) -> Any:
        return body(Path(folder))

    with guard.agent(agent):
        return guard.wrap(tool, writes="{folder}")("notes")


def files(folder: Path) -> dict[str, str]:
    found = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: file.read_text() for name, file in found.items() if not name.startswith(".agentguard")}


def change(name: str, old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


# -- what a tool is given ---


def test_a_directory_of_its_own_whose_changes_are_merged_file_by_file(guard: Guard) -> None:
    before = files(guard.root / "notes")

    def one(folder: Path) -> None:
        assert folder.name == "notes"
        assert files(folder) == before
        change("a.md", "one", "ONE")(folder)
        (folder / "totals.json").write_text('{"n": 2}')
        (folder / "new.md").write_text("from ann\n")
        (folder / "b.md").unlink()

    def two(folder: Path) -> None:
        assert files(folder) == before  # isolated
        change("a.md", "two", "TWO")(folder)
        (folder / "totals.json").write_text('{"n": 3}')
        (folder / "further").mkdir()
        (folder / "further" / "new.md").write_text("from bob\n")

    work(guard, "ann", one)
    work(guard, "bob", two)
    assert files(guard.root / "notes") == before
    with guard.agent("ann"):
        seen: dict[str, str] = guard.wrap(lambda: files(path("notes/")), reads="notes/")()
    assert (seen["new.md"], seen["totals.json"], "b.md" in seen) == ("from ann\n", '{"n": 2}', False)
    report = guard.join()
    assert {one.resource: one.strategy for one in report.resources} == {
        "notes/a.md": "text",
        "notes/b.md": "text",
        "notes/further/new.md": "text",
        "notes/new.md": "text",
        "notes/totals.json": "json",
    }
    after = files(guard.root / "notes")
    assert json.loads(after.pop("totals.json")) == {"n": 5}
    assert after == {
        "a.md": "# A\n\nONE\n\nTWO\n",
        "deep/c.md": "# C\n",
        "further/new.md": "from bob\n",
        "new.md": "from ann\n",
    }
    assert guard.status().shards == ()
    assert not list((guard.home.folder / "stage").glob("*/[0-9]*"))


def test_only_what_changed_is_an_entry(guard: Guard) -> None:
    def body(folder: Path) -> None:
        (folder / "a.md").write_text((folder / "a.md").read_text())  # the same again
        change("b.md", "B", "b")(folder)

    work(guard, "ann", body)
    (shard,) = guard.status().shards
    assert shard.resources == ("notes/b.md",)
    assert {f.name for f in Path(shard.folder).rglob("*") if f.is_file()} == {"shard.json", "b.md"}


def test_one_file_of_it_is_forked_alone(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "fill", lambda *_: pytest.fail("everything was copied"))

    def tool() -> None:
        path("notes/a.md").write_text("only this one\n")

    with guard.agent("ann"):
        guard.wrap(tool, writes="notes/")()
    (shard,) = guard.status().shards
    assert shard.resources == ("notes/a.md",)
    guard.join()
    assert (guard.root / "notes" / "a.md").read_text() == "only this one\n"


def test_both_ways_in_one_call_are_one_file(guard: Guard) -> None:
    def tool() -> None:
        path("notes/a.md").write_text("first\n")
        folder = path("notes/")
        assert (folder / "a.md").read_text() == "first\n"
        (folder / "a.md").write_text("second\n")
        (folder / "b.md").write_text("b in the tree\n")
        assert path("notes/b.md").read_text() == "b in the tree\n"
        assert path("notes/b.md") == folder / "b.md"
        path("notes/deep/c.md").write_text("c\n")
        assert (folder / "deep" / "c.md").read_text() == "c\n"

    with guard.agent("ann"):
        guard.wrap(tool, writes="notes/")()
    guard.join()
    after = files(guard.root / "notes")
    assert (after["a.md"], after["b.md"], after["deep/c.md"]) == ("second\n", "b in the tree\n", "c\n")


def test_a_failed_call_leaves_nothing(guard: Guard) -> None:
    def body(folder: Path) -> None:
        (folder / "a.md").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        work(guard, "ann", body)
    assert guard.status().shards == ()
    assert not guard.join()


def test_what_the_tool_says_shows_no_copy(guard: Guard) -> None:
    assert work(guard, "ann", lambda folder: f"wrote {folder / 'a.md'} in {folder}") == "wrote notes/a.md in notes"


def test_a_slash_at_the_end_stays(guard: Guard) -> None:
    def tool(folder: str) -> str:
        Path(folder + "new.md").write_text("x")
        return f"wrote {folder}new.md"

    with guard.agent("ann"):
        assert guard.wrap(tool, writes="{folder}")("notes/") == "wrote notes/new.md"
    assert not (guard.root / "notes" / "new.md").exists()
    guard.join()
    assert (guard.root / "notes" / "new.md").read_text() == "x"


def test_agents_work_on_it_at_the_same_time_and_one_agent_does_not(guard: Guard) -> None:
    meet = threading.Barrier(2)
    errors: list[BaseException] = []

    def body(folder: Path) -> None:
        meet.wait(timeout=30)
        (folder / f"{threading.current_thread().name}.md").write_text("x")

    def run(agent: str) -> None:
        try:
            work(guard, agent, body)
        except Exception as error:  # noqa: BLE001 - whatever it is
            errors.append(error)

    threads = [threading.Thread(target=run, args=(agent,), name=agent) for agent in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors

    inside, go_on = threading.Event(), threading.Event()

    def long(folder: Path) -> None:
        inside.set()
        assert go_on.wait(30)

    thread = threading.Thread(target=work, args=(guard, "ann", long))
    thread.start()
    assert inside.wait(30)
    with guard.agent("ann"), pytest.raises(TimeoutError), guard.hold(writes="notes/a.md", timeout=0):
        pass  # the directory has it
    with guard.agent("bob"), guard.hold(writes="notes/a.md", timeout=0):
        pass
    with pytest.raises(TimeoutError):
        guard.join(timeout=0)  # and no join comes between
    go_on.set()
    thread.join()


def test_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, resources={"out/": {"mode": "shard"}})
    for agent in ("ann", "bob"):
        with guard.agent(agent):
            guard.wrap(
                lambda agent=agent: (
                    (path("out/") / f"{agent}.md").write_text(agent),
                    (path("out/") / "both.md").write_text(f"{agent}\n"),
                ),
                writes="out/",
            )()
    assert not (tmp_path / "out").exists()
    guard.join()
    assert files(tmp_path / "out") == {"ann.md": "ann", "bob.md": "bob", "both.md": "ann\nbob\n"}
    with pytest.raises(UndeclaredWrite, match="does not exist"):  # nobody would join it
        Guard(root=tmp_path, resources={"gone/": {"mode": "shard"}}).wrap(lambda: None, writes="gone/")()


def test_the_root_itself(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("a\n")
    guard = Guard(root=tmp_path, resources={".": {"mode": "shard"}})

    def body(folder: str) -> None:
        assert sorted(os.listdir(folder)) == ["a.md"]  # and not .agentguard/
        Path(folder, "a.md").write_text("A\n")
        Path(folder, "ab:c.md").write_text("named like a key\n")

    with guard.agent("ann"):
        guard.wrap(body, writes="{folder}")(".")
        guard.update("a.md", lambda text: text + "more\n")
    assert files(tmp_path)["a.md"] == "a\n"
    guard.join()
    assert (tmp_path / "a.md").read_text() == "A\nmore\n"
    assert (tmp_path / "ab:c.md").read_text() == "named like a key\n"


# -- with declarations of single files ---


def test_a_file_beneath_it_that_another_tool_declares_meets_it_in_one_merge(guard: Guard) -> None:
    work(guard, "ann", change("a.md", "one", "ONE"))
    with guard.agent("bob"):
        guard.update("notes/a.md", lambda text: text.replace("# A", "# AA"))  # in shard mode as the directory is
    with guard.agent("ann"):
        assert "ONE" in guard.read("notes/a.md")  # the agent's own, whichever way it wrote it
        guard.update("notes/a.md", lambda text: text + "three\n")
    work(guard, "ann", change("a.md", "three", "THREE"))
    assert (guard.root / "notes" / "a.md").read_text() == "# A\n\none\n\ntwo\n"
    report = guard.join()
    assert [one.shards for one in report.resources] == [2]
    assert (guard.root / "notes" / "a.md").read_text() == "# AA\n\nONE\n\ntwo\nTHREE\n"


def test_a_file_whose_own_entry_says_otherwise_is_serialized_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "index.json").write_text("{}")
    resources = {"notes/": {"mode": "shard"}, "notes/index.json": {"mode": "serialize"}}
    guard = Guard(root=tmp_path, resources=resources)
    work(guard, "ann", lambda folder: (folder / "index.json").write_text('{"ann": 1}'))
    with guard.agent("bob"):
        guard.update("notes/index.json", lambda value: {**value, "bob": 1})
    assert json.loads((tmp_path / "notes" / "index.json").read_text()) == {"bob": 1}
    guard.join()
    assert json.loads((tmp_path / "notes" / "index.json").read_text()) == {"ann": 1, "bob": 1}


def test_a_call_inside_works_on_the_outer_calls_copy(guard: Guard) -> None:
    def outer() -> None:
        folder = path("notes/")
        guard.update("notes/a.md", lambda text: text + "inner\n")
        assert (folder / "a.md").read_text().endswith("inner\n")
        guard.wrap(lambda: (path("notes/") / "b.md").write_text("inner b\n"), writes="notes/")()
        assert (folder / "b.md").read_text() == "inner b\n"

    with guard.agent("ann"):
        guard.wrap(outer, writes="notes/")()
    guard.join()
    after = files(guard.root / "notes")
    assert after["a.md"].endswith("two\ninner\n")
    assert after["b.md"] == "inner b\n"


# -- renames ---


def rename(old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / old).rename(folder / new)


def test_what_another_agent_changes_goes_to_where_the_file_was_moved(guard: Guard) -> None:
    work(guard, "ann", rename("a.md", "z.md"))
    work(guard, "bob", change("a.md", "one", "ONE"))
    work(guard, "cat", change("a.md", "two", "TWO"))
    report = guard.join()
    after = files(guard.root / "notes")
    assert "a.md" not in after
    assert after["z.md"] == "# A\n\nONE\n\nTWO\n"
    (one,) = report.resources
    assert (one.resource, one.renamed, one.shards) == ("notes/z.md", "notes/a.md", 3)
    assert dict(one.changes) == {"ann": 1, "bob": 1, "cat": 1}
    assert "notes/a.md -> notes/z.md" in str(report)


def test_renaming_alone_and_twice_the_same(guard: Guard) -> None:
    for agent in ("ann", "bob"):
        work(guard, agent, rename("a.md", "z.md"))
    guard.join()
    after = files(guard.root / "notes")
    assert "a.md" not in after
    assert after["z.md"] == "# A\n\none\n\ntwo\n"


def test_a_change_that_conflicts_after_a_rename_names_both(guard: Guard) -> None:
    work(guard, "ann", rename("a.md", "z.md"))
    work(guard, "bob", change("a.md", "one", "ONE"))
    work(guard, "cat", change("a.md", "one", "one!"))
    before = files(guard.root / "notes")
    with pytest.raises(MergeConflict, match=r"notes/a\.md \(renamed notes/z\.md\)"):
        guard.join()
    assert files(guard.root / "notes") == before


@pytest.mark.parametrize(
    "other",
    [rename("a.md", "y.md"), lambda folder: (folder / "z.md").write_text("mine\n")],
    ids=["renamed differently", "new name taken"],
)
def test_a_rename_that_can_be_meant_in_two_ways_is_not_followed(guard: Guard, other: Callable[[Path], Any]) -> None:
    work(guard, "ann", rename("a.md", "z.md"))
    work(guard, "bob", other)
    work(guard, "cat", change("a.md", "one", "ONE"))
    with pytest.raises(MergeConflict, match=r"notes/a\.md: deleted by"):
        guard.join()
    assert {one.agent for one in guard.status().shards} == {"ann", "bob", "cat"}


def test_a_file_that_is_renamed_and_changed_at_once_is_a_conflict_for_who_changed_the_old_one(guard: Guard) -> None:
    def body(folder: Path) -> None:
        rename("a.md", "z.md")(folder)
        change("z.md", "one", "1")(folder)

    work(guard, "ann", body)
    work(guard, "bob", change("a.md", "two", "TWO"))
    with pytest.raises(MergeConflict, match=r"notes/a\.md: deleted by ann"):
        guard.join()


def test_a_folder_that_is_renamed(guard: Guard) -> None:
    work(guard, "ann", rename("deep", "deeper"))
    work(guard, "bob", change("deep/c.md", "# C", "# CC"))
    guard.join()
    after = files(guard.root / "notes")
    assert "deep/c.md" not in after
    assert after["deeper/c.md"] == "# CC\n"
    assert not (guard.root / "notes" / "deep").exists()  # nothing is left in it


def test_deleting_everything(guard: Guard) -> None:
    work(
        guard, "ann", lambda folder: [shutil.rmtree(one) if one.is_dir() else one.unlink() for one in folder.iterdir()]
    )
    guard.join()
    assert files(guard.root / "notes") == {}
    assert (guard.root / "notes").is_dir()  # it was declared: it stays
    assert not (guard.root / "notes" / "deep").exists()


# -- what is not plain ---


def test_empty_folders_are_seen_but_not_kept(guard: Guard) -> None:
    (guard.root / "notes" / "empty").mkdir()

    def body(folder: Path) -> None:
        assert (folder / "empty").is_dir()
        (folder / "made").mkdir()

    work(guard, "ann", body)
    assert not guard.join()
    assert (guard.root / "notes" / "empty").is_dir()
    assert not (guard.root / "notes" / "made").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_are_left_out(guard: Guard) -> None:
    os.mkfifo(guard.root / "notes" / "pipe")
    work(guard, "ann", lambda folder: (folder / "a.md").write_text(str((folder / "pipe").exists())))
    guard.join()
    assert (guard.root / "notes" / "a.md").read_text() == "False"
    assert (guard.root / "notes" / "pipe").is_fifo()


def test_links_that_stay_inside_lead_to_the_copy(guard: Guard) -> None:
    notes = guard.root / "notes"
    (notes / "latest.md").symlink_to("a.md")
    (notes / "deep" / "up.md").symlink_to(notes / "b.md")  # absolute
    work(guard, "ann", lambda folder: [(folder / f).write_text(f) for f in ("latest.md", "deep/up.md")])
    assert (notes / "a.md").read_text().startswith("# A")
    guard.join()
    assert (notes / "a.md").read_text() == "latest.md"
    assert (notes / "b.md").read_text() == "deep/up.md"
    assert (notes / "latest.md").is_symlink()


@pytest.mark.parametrize("kind", ["file", "directory", "elsewhere in the root"])
def test_a_link_that_leads_out_is_refused(guard: Guard, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") if kind != "elsewhere in the root" else guard.root
    (outside / "x.md").write_text("x")
    (guard.root / "notes" / "link").symlink_to(outside if kind == "directory" else outside / "x.md")
    with pytest.raises(UndeclaredWrite, match="symbolic link link leads out of it"):
        work(guard, "ann", lambda folder: (folder / "link").write_text("through"))
    assert (outside / "x.md").read_text() == "x"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda folder: (folder / "link").symlink_to("a.md"), "the symbolic link link"),
        (lambda folder: (folder / "latest.md").unlink(), "the symbolic link latest.md"),
        (lambda folder: ((folder / "b.md").unlink(), (folder / "b.md").symlink_to("/etc/passwd")), "link b.md"),
        (lambda folder: os.mkfifo(folder / "pipe"), "made pipe, which is no plain file"),
        (lambda folder: ((folder / "b.md").unlink(), (folder / "b.md").mkdir(), (folder / "b.md/x").touch()), "b.md"),
        (lambda folder: (shutil.rmtree(folder / "deep"), (folder / "deep").write_text("x")), "deep"),
        (lambda folder: ((folder / ".agentguard").mkdir(), (folder / ".agentguard/x").touch()), ".agentguard"),
    ],
    ids=["link", "unlinked", "file to link", "pipe", "file to folder", "folder to file", "own folder"],
)
def test_what_a_shard_cannot_keep_is_refused_and_kept(guard: Guard, body: Callable[[Path], Any], said: str) -> None:
    (guard.root / "notes" / "latest.md").symlink_to("a.md")
    before = files(guard.root / "notes")

    def tool(folder: Path) -> None:
        change("a.md", "one", "ONE")(folder)
        body(folder)

    with pytest.raises(UndeclaredWrite, match="shards keep plain files") as caught:
        work(guard, "ann", tool)
    assert said in str(caught.value)
    assert "ONE" in (Path(caught.value.folder) / "notes" / "a.md").read_text()
    assert not guard.join()
    assert files(guard.root / "notes") == before


def test_too_many_files_are_refused_before_anything_runs(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "LARGEST", 5)
    for number in range(10):
        (guard.root / "notes" / f"{number}.md").touch()
    with pytest.raises(UndeclaredWrite, match="more than 5 files"):
        work(guard, "ann", lambda folder: pytest.fail("ran"))
    with guard.agent("ann"):  # single files still work
        guard.wrap(lambda: path("notes/3.md").write_text("three\n"), writes="notes/")()
    guard.join()
    assert (guard.root / "notes" / "3.md").read_text() == "three\n"


def test_a_database_in_it(guard: Guard) -> None:
    file = guard.root / "notes" / "x.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as keeper:
        keeper.execute("PRAGMA journal_mode = wal")
        keeper.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
        keeper.execute("INSERT INTO t VALUES (0, 'in the log')")

        def add(number: int, mode: str) -> Callable[[Path], None]:
            def body(folder: Path) -> None:
                with contextlib.closing(sqlite3.connect(folder / "x.db", isolation_level=None)) as mine:
                    assert mine.execute("SELECT name FROM t").fetchall() == [("in the log",)]
                    mine.execute(f"PRAGMA journal_mode = {mode}")
                    mine.execute("INSERT INTO t VALUES (?, 'new')", (number,))
                    if mode == "wal":
                        opened.append(sqlite3.connect(folder / "x.db"))  # so that the log stays
                        opened[0].execute("SELECT * FROM t").fetchall()

            return body

        opened: list[sqlite3.Connection] = []
        work(guard, "ann", add(1, "wal"))
        work(guard, "bob", add(2, "delete"))
        guard.join()
        assert [row[0] for row in keeper.execute("SELECT id FROM t ORDER BY id")] == [0, 1, 2]
        opened[0].close()


# -- others ---


def test_writing_to_the_directory_itself_is_refused(guard: Guard) -> None:
    def tool() -> None:
        (guard.root / "notes" / "a.md").write_text("past the guard\n")

    with guard.agent("ann"), pytest.raises(UndeclaredWrite, match=r"wrote to notes/ itself"):
        guard.wrap(tool, writes="notes/")()


def test_a_file_that_changed_outside_meanwhile_is_not_overwritten(guard: Guard) -> None:
    def body(folder: Path) -> None:
        change("a.md", "one", "ONE")(folder)
        (guard.root / "notes" / "a.md").write_text("from outside\n")

    with pytest.raises(StaleWrite, match="changed outside the guard") as caught:
        work(guard, "ann", body)
    assert "ONE" in (Path(caught.value.folder) / "notes" / "a.md").read_text()
    guard.join()
    assert (guard.root / "notes" / "a.md").read_text() == "from outside\n"


def test_a_file_that_appeared_outside_meanwhile_is_not_overwritten(guard: Guard) -> None:
    def body(folder: Path) -> None:
        (folder / "new.md").write_text("mine\n")
        (guard.root / "notes" / "new.md").write_text("from outside\n")

    with pytest.raises(StaleWrite, match="changed outside the guard"):
        work(guard, "ann", body)
    guard.join()
    assert (guard.root / "notes" / "new.md").read_text() == "from outside\n"


def test_a_write_based_on_an_older_version_is_refused(guard: Guard) -> None:
    with guard.agent("ann"):
        guard.read("notes/a.md")
    work(guard, "bob", change("a.md", "one", "ONE"))
    guard.join()
    with pytest.raises(StaleWrite, match=r"notes/a\.md was changed"):
        work(guard, "ann", change("a.md", "two", "TWO"))
    work(guard, "ann", change("b.md", "B", "BB"))  # of this one it knows nothing old
    guard.join()
    assert "ONE" in (guard.root / "notes" / "a.md").read_text()


def test_a_conflict_in_one_file_publishes_none(guard: Guard) -> None:
    for agent in ("ann", "bob"):
        work(guard, agent, lambda folder, agent=agent: (change("a.md", "one", agent)(folder),
                                                        (folder / f"{agent}.md").write_text(agent)))  # fmt: skip
    before = files(guard.root / "notes")
    with pytest.raises(MergeConflict, match=r"notes/a\.md"):
        guard.join()
    assert files(guard.root / "notes") == before


NAMES = ("a", "b", "c", "d/a", "d/b")
Actions = st.lists(
    st.tuples(st.sampled_from(["write", "delete", "rename"]), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=Actions, second=Actions, there=st.sets(st.sampled_from(NAMES)))
def test_no_line_is_lost_and_all_or_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, str, str]],
    second: list[tuple[str, str, str]],
    there: set[str],
) -> None:
    """Whatever two agents do in a directory: after a clean join every line that one of them wrote, and that was in its
    copy in the end, is there; after a conflict nothing has changed."""
    root = tmp_path_factory.mktemp("root")
    (root / "notes").mkdir()
    for name in there:
        (root / "notes" / f"{name}.md").parent.mkdir(exist_ok=True)
        (root / "notes" / f"{name}.md").write_text(f"top of {name}\nmiddle\nend of {name}\n")
    guard = Guard(root=root, resources=SHARDED)
    written: set[str] = set()

    def act(agent: str, actions: list[tuple[str, str, str]]) -> Callable[[Path], None]:
        def body(folder: Path) -> None:
            for number, (what, name, other) in enumerate(actions):
                file = folder / f"{name}.md"
                file.parent.mkdir(exist_ok=True)
                if what == "write":
                    old = file.read_text().splitlines(keepends=True) if file.exists() else []
                    at = 0 if agent == "ann" else len(old)
                    file.write_text("".join([*old[:at], f"{agent} {number}\n", *old[at:]]))
                elif file.exists() and what == "delete":
                    file.unlink()
                elif file.exists() and name != other:
                    (folder / f"{other}.md").parent.mkdir(exist_ok=True)
                    file.rename(folder / f"{other}.md")
            written.update(line for text in files(folder).values() for line in text.splitlines() if agent in line)

        return body

    work(guard, "ann", act("ann", first))
    work(guard, "bob", act("bob", second))
    before = files(root / "notes")
    try:
        guard.join()
    except MergeConflict:
        assert files(root / "notes") == before
    else:
        lines = {line for text in files(root / "notes").values() for line in text.splitlines()}
        assert written <= lines
        assert guard.status().shards == ()
