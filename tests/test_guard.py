"""The guard without a framework: exclusion, all or nothing, redirection, identity; threads and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import agentguard
from agentguard import (
    AgentGuardError,
    ConfigError,
    Deadlock,
    Event,
    Guard,
    LockLost,
    LockTimeout,
    StaleWrite,
    UndeclaredWrite,
    atomic_write,
    commit,
    declare,
    path,
)
from agentguard.codecs import BadContent
from agentguard.locks import BeginAgain, LockTable


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    (tmp_path / "store.json").write_text('{"items": []}')
    return Guard(root=tmp_path)


def both(fn: Callable[[], Any], rounds: int = 2) -> None:
    """Run `fn` in threads, at the same time."""
    threads = [threading.Thread(target=fn, name=f"t{n}") for n in range(rounds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- exclusion ---


def overlapping(meet: threading.Barrier) -> Callable[[], None]:
    """A read-modify-write whose two callers are certain to overlap, unless somebody keeps them apart."""

    def add() -> None:
        file = path("store.json")
        data = json.loads(file.read_text())
        with contextlib.suppress(threading.BrokenBarrierError):
            meet.wait(timeout=0.3)  # both have read; a guarded second caller never comes
        data["items"].append(threading.current_thread().name)
        file.write_text(json.dumps(data))

    return add


def test_unguarded_threads_lose_and_guarded_ones_do_not(guard: Guard) -> None:
    add = overlapping(threading.Barrier(2))
    both(add)
    assert len(json.loads((guard.root / "store.json").read_text())["items"]) == 1  # the loss, forced

    (guard.root / "store.json").write_text('{"items": []}')
    both(guard.wrap(overlapping(threading.Barrier(2)), writes="store.json"))
    assert sorted(json.loads((guard.root / "store.json").read_text())["items"]) == ["t0", "t1"]


def test_tasks_of_two_loops_and_threads_exclude_each_other(guard: Guard) -> None:
    inside = 0
    worst = 0

    def enter() -> None:
        nonlocal inside, worst
        inside += 1
        worst = max(worst, inside)

    def leave() -> None:
        nonlocal inside
        inside -= 1

    async def coroutine() -> None:
        enter()
        await asyncio.sleep(0)
        leave()

    guarded_coroutine = guard.wrap(coroutine, writes="store.json")

    def function() -> None:
        enter()
        leave()

    guarded_function = guard.wrap(function, writes="store.json")

    async def many() -> None:
        await asyncio.gather(*(guarded_coroutine() for _ in range(25)))

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(2)]
    threads += [threading.Thread(target=lambda: [guarded_function() for _ in range(25)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1


def test_readers_share_and_a_writer_waits(guard: Guard) -> None:
    meet = threading.Barrier(2)
    met: list[bool] = []

    def reader() -> None:
        meet.wait(timeout=10)
        met.append(True)

    both(guard.wrap(reader, reads="store.json"))
    assert met == [True, True]
    with guard.hold(reads="store.json"), pytest.raises(LockTimeout):
        run_elsewhere(lambda: guard.hold(writes="store.json", timeout=0).__enter__())


def run_elsewhere(fn: Callable[[], Any]) -> Any:
    """Run in another thread, without this one's context; raises what it raises."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((fn(), None))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            outcome.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def test_calls_without_a_common_resource_run_in_parallel(guard: Guard) -> None:
    meet = threading.Barrier(2)

    def work(name: str) -> None:
        meet.wait(timeout=10)

    guarded = guard.wrap(work, writes="{name}.json")
    threads = [threading.Thread(target=guarded, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not meet.broken


def test_a_directory_excludes_what_lies_beneath(guard: Guard) -> None:
    (guard.root / "reports").mkdir()
    with guard.hold(writes="reports/"):
        with pytest.raises(LockTimeout) as caught:
            run_elsewhere(lambda: guard.hold(writes="reports/a.md", timeout=0).__enter__())
        assert "reports/" in str(caught.value)
        run_elsewhere(lambda: guard.hold(writes="other.md", timeout=0).__enter__().__exit__(None, None, None))
    with guard.hold(writes="reports/a.md"):
        run_elsewhere(lambda: guard.hold(writes="reports/b.md", timeout=0).__enter__().__exit__(None, None, None))
        with pytest.raises(LockTimeout):
            run_elsewhere(lambda: guard.hold(writes="reports/", timeout=0).__enter__())


def test_the_time_out_names_the_holder(guard: Guard) -> None:
    with (
        guard.agent("researcher"),
        guard.hold(writes="store.json", name="add_finding"),
        pytest.raises(LockTimeout, match=r"store\.json.*researcher.*add_finding") as caught,
    ):
        run_elsewhere(lambda: guard.hold(writes="store.json", timeout=0).__enter__())
    assert caught.value.resource == "store.json"
    assert caught.value.holders[0].agent == "researcher"
    assert caught.value.timeout == 0


def test_opaque_keys_exclude(guard: Guard) -> None:
    with guard.hold(writes="db:orders/42"):
        with pytest.raises(LockTimeout):
            run_elsewhere(lambda: guard.hold(writes="db:orders/42", timeout=0).__enter__())
        run_elsewhere(lambda: guard.hold(writes="db:orders/43", timeout=0).__enter__().__exit__(None, None, None))


def test_tokens_rise(guard: Guard) -> None:
    tokens = []
    for _ in range(3):
        with guard.hold(writes="store.json") as hold:
            tokens.append(hold.token("store.json"))
    assert tokens == sorted(set(tokens))


def test_two_guards_of_nested_roots_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    outer, inner = Guard(root=tmp_path), Guard(root=tmp_path / "sub")
    with outer.hold(writes="sub/x.json"), pytest.raises(LockTimeout):
        run_elsewhere(lambda: inner.hold(writes="x.json", timeout=0).__enter__())


def test_two_files_of_one_name_in_two_homes_are_two_files(tmp_path: Path) -> None:
    """Beneath a nested `.agentguard/` a file has the key that its namesake above has."""
    (tmp_path / "sub" / ".agentguard").mkdir(parents=True)
    guard = Guard(root=tmp_path, resources={"shards/*": {"mode": "shard"}, "sub/*": {"mode": "shard"}})
    with guard.hold(writes=["a.json", "sub/a.json"]) as hold:
        hold.path("a.json").write_text("1")
        hold.path("sub/a.json").write_text("2")
        assert hold.token("a.json") != hold.token("sub/a.json")
        for name in ("a.json", "sub/a.json"):
            with pytest.raises(LockTimeout):
                run_elsewhere(lambda name=name: guard.hold(writes=name, timeout=0).__enter__())
    assert ((tmp_path / "a.json").read_text(), (tmp_path / "sub" / "a.json").read_text()) == ("1", "2")
    with guard.agent("someone"):
        guard.write("sub/a.json", 3)
        assert guard.read("a.json") == 1
    guard.join()
    assert ((tmp_path / "a.json").read_text(), guard.read("sub/a.json")) == ("1", 3)


def test_what_another_process_locks_between_two_calls_is_noticed(guard: Guard, tmp_path: Path) -> None:
    """A commit that a killed process left is looked for only where another process held the file: it must be then."""
    looked: list[list[Path]] = []
    recover = guard.home.recover_pending
    guard.home.recover_pending = lambda files: (looked.append([*files]), recover(files))[1]  # type: ignore[method-assign]

    def use() -> int:
        looked.clear()
        with guard.hold(updates="store.json"):
            pass
        return len(looked)

    assert use() == 1, "nobody knows what was before the first time"
    assert use() == 0
    commit.UNFINISHED.add(str(tmp_path.parent / "elsewhere" / "x.commit"))
    assert use() == 0, "what broke off elsewhere is no matter of this guard"
    commit.UNFINISHED.add(str(guard.root / ".agentguard" / "journal" / "x.commit"))
    assert use() == 1, "what broke off in this very process is"
    assert use() == 0, "it is there no more"
    code = "import sys; from agentguard import Guard\nwith Guard(root=sys.argv[1]).hold(updates='store.json'): pass"
    subprocess.run([sys.executable, "-c", code, str(guard.root)], check=True)
    blocker = guard.hold(updates="zzz.json")
    run_elsewhere(blocker.__enter__)
    with pytest.raises(LockTimeout), guard.hold(updates=["store.json", "zzz.json"], timeout=0):
        pass  # it had the lock of store.json for a moment, and did not look
    run_elsewhere(lambda: blocker.__exit__(None, None, None))
    assert use() == 1
    assert use() == 0


@pytest.mark.parametrize("own", [None, 0.02])
def test_the_time_out_of_a_resource_counts_and_that_of_a_call_before_it(tmp_path: Path, own: float | None) -> None:
    guard = Guard(root=tmp_path, timeout=0.01, resources={"slow.json": {"timeout": 0.03}})
    with guard.hold(writes=["slow.json", "quick.json"]):
        for name, expected in (("slow.json", own or 0.03), ("quick.json", own or 0.01)):
            with pytest.raises(LockTimeout) as caught:
                run_elsewhere(lambda name=name: guard.hold(writes=name, timeout=own).__enter__())
            assert caught.value.timeout == expected


def test_a_call_that_has_to_begin_again_and_again_times_out(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: LockTable, ticket: Any, trust: bool = False) -> None:
        raise BeginAgain

    monkeypatch.setattr(LockTable, "ask", never)
    with pytest.raises(LockTimeout), guard.hold(writes="store.json", timeout=0.01):
        pass


def test_a_call_whose_lock_was_lost_commits_nothing(guard: Guard) -> None:
    with pytest.raises(LockLost, match=r"store\.json") as caught, guard.hold(writes="store.json") as hold:
        hold.path("store.json").write_text("mine")
        for file in (guard.root / ".agentguard" / "locks").iterdir():
            file.unlink()
        code = (
            "import sys; from agentguard import Guard\nGuard(root=sys.argv[1]).write('store.json', 'theirs', timeout=5)"
        )
        subprocess.run([sys.executable, "-c", code, str(guard.root)], check=True)  # nobody can know of us any more
    assert json.loads((guard.root / "store.json").read_text()) == "theirs"
    kept = [file for file in Path(caught.value.folder).rglob("store.json") if file.is_file()]
    assert [file.read_text() for file in kept] == ["mine"], "nothing is dropped"


# -- nesting ---


def test_a_call_inside_a_call_is_its_child(guard: Guard) -> None:
    inner = guard.wrap(lambda: path("store.json").write_text('{"items": ["inner"]}'), writes="store.json", name="inner")

    def outer() -> str:
        inner()
        return path("store.json").read_text()

    assert guard.wrap(outer, writes="store.json")() == '{"items": ["inner"]}'
    assert (guard.root / "store.json").read_text() == '{"items": ["inner"]}'


def test_an_outer_call_that_fails_takes_the_inner_one_back(guard: Guard) -> None:
    inner = guard.wrap(lambda: path("store.json").write_text('{"items": ["inner"]}'), writes="store.json", name="inner")

    def outer() -> None:
        inner()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        guard.wrap(outer, writes="store.json")()
    assert (guard.root / "store.json").read_text() == '{"items": []}'


def test_writing_inside_a_read_is_a_deadlock_at_once(guard: Guard) -> None:
    with guard.hold(reads="store.json"), pytest.raises(Deadlock), guard.hold(writes="store.json"):
        pass


def test_a_sync_call_on_the_loop_does_not_wait_for_its_own_loop(guard: Guard) -> None:
    async def main() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def holder() -> None:
            async with guard.hold(writes="store.json"):
                entered.set()
                await leave.wait()

        task = asyncio.create_task(holder())
        await entered.wait()
        with pytest.raises(Deadlock), guard.hold(writes="store.json"):
            pass
        leave.set()
        await task

    asyncio.run(main())


# -- all or nothing ---


def test_an_exception_discards_every_copy(guard: Guard) -> None:
    def tool() -> None:
        path("store.json").write_text("broken")
        path("new.txt").write_text("new")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        guard.wrap(tool, writes=["store.json", "new.txt"])()
    assert (guard.root / "store.json").read_text() == '{"items": []}'
    assert not (guard.root / "new.txt").exists()
    assert copies(guard) == []


def copies(guard: Guard) -> list[Path]:
    return [
        file for file in (guard.root / ".agentguard" / "stage").rglob("*") if file.is_file() and file.name != ".alive"
    ]


def test_success_replaces_all_and_keeps_names_and_modes(guard: Guard) -> None:
    (guard.root / "store.json").chmod(0o640)
    seen: list[Path] = []

    def tool() -> str:
        seen.append(path("deep/er/new.txt"))
        path("store.json").write_text("1")
        seen[0].write_text("new")
        return f"wrote {seen[0]} and {path('store.json')}"

    text = guard.wrap(tool, writes=["store.json", "deep/er/new.txt"])()
    assert text == "wrote deep/er/new.txt and store.json"  # never a copy's path
    assert seen[0].parts[-3:] == ("deep", "er", "new.txt")
    assert seen[0].is_relative_to(guard.root)
    assert (guard.root / "deep/er/new.txt").read_text() == "new"
    assert (guard.root / "store.json").stat().st_mode & 0o777 == 0o640
    assert copies(guard) == []


def test_deleting_the_copy_deletes_the_file(guard: Guard) -> None:
    guard.wrap(lambda: path("store.json").unlink(), writes="store.json", name="t")()
    assert not (guard.root / "store.json").exists()


def test_an_untouched_copy_leaves_the_file_alone(guard: Guard) -> None:
    before = (guard.root / "store.json").stat()
    guard.wrap(lambda: path("store.json").read_text(), writes="store.json", name="t")()
    after = (guard.root / "store.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_change_of_equal_size_right_after_the_copy_is_seen(guard: Guard) -> None:
    for number in range(10, 40):
        guard.wrap(lambda n=number: path("store.json").write_text(f"{n:08d}"), writes="store.json", name="t")()
        assert (guard.root / "store.json").read_text() == f"{number:08d}"


def test_the_error_of_a_tool_never_shows_a_copy(guard: Guard) -> None:
    def tool() -> None:
        path("missing.txt").read_text()

    with pytest.raises(FileNotFoundError) as caught:
        guard.wrap(tool, writes="missing.txt")()
    assert ".agentguard" not in str(caught.value)


def test_what_a_tool_leaves_beside_its_copy_is_not_lost_silently(guard: Guard) -> None:
    def tool() -> None:
        path("store.json").write_text("1")
        path("store.json").with_suffix(".bak").write_text("backup")

    with pytest.raises(UndeclaredWrite, match=r"store\.bak") as caught:
        guard.wrap(tool, writes="store.json")()
    assert (guard.root / "store.json").read_text() == '{"items": []}'
    assert (Path(caught.value.folder) / "store.bak").read_text() == "backup"


def test_a_write_past_the_guard_is_not_overwritten(guard: Guard) -> None:
    def tool() -> None:
        path("store.json").write_text("mine")
        (guard.root / "store.json").write_text("an editor's")

    with pytest.raises(StaleWrite, match="outside the guard") as caught:
        guard.wrap(tool, writes="store.json")()
    assert (guard.root / "store.json").read_text() == "an editor's"
    assert (Path(caught.value.folder) / "store.json").read_text() == "mine"


def test_a_full_disk_leaves_the_file_and_says_so(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "fdatasync", full, raising=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        guard.wrap(lambda: path("store.json").write_text("x"), writes="store.json", name="t")()
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "fsync", real)
    assert (guard.root / "store.json").read_text() == '{"items": []}'
    assert copies(guard) == []
    guard.update("store.json", lambda value: value)


# -- redirection ---


def test_a_path_argument_is_led_to_the_copy(guard: Guard) -> None:
    seen: list[Any] = []

    def write(file_path: str, text: str = "hello") -> str:
        seen.append(file_path)
        Path(file_path).parent.mkdir(parents=True, exist_ok=True)
        Path(file_path).write_text(text)
        return f"written to {file_path}"

    guarded = guard.wrap(write, writes="{file_path}")
    assert guarded("notes/a.md") == "written to notes/a.md"
    assert guarded(file_path=str(guard.root / "b.md"), text="b") == f"written to {guard.root / 'b.md'}"
    assert (guard.root / "notes/a.md").read_text() == "hello"
    assert (guard.root / "b.md").read_text() == "b"
    assert all(isinstance(one, str) and ".agentguard" in one for one in seen)


def test_the_kind_of_the_argument_is_kept_and_joined_arguments_work(guard: Guard) -> None:
    seen: list[Any] = []

    def write(folder: Path, name: str) -> str:
        seen.append(folder)
        (folder / name).write_text("x")
        return f"wrote {name} into {folder}"

    assert guard.wrap(write, writes="{folder}/{name}")(Path("."), "x.txt") == "wrote x.txt into ."
    assert isinstance(seen[0], Path)
    assert (guard.root / "x.txt").read_text() == "x"

    def several(paths: list[str]) -> None:
        for one in paths:
            Path(one).write_text("many")

    guard.wrap(several, writes="{paths}")(["m1.txt", "m2.txt"])
    assert (guard.root / "m2.txt").read_text() == "many"


def test_a_tool_may_ask_path_for_the_argument_that_led_it(guard: Guard) -> None:
    def save(file: str, text: str) -> str:
        path(file).write_text(text)
        return f"saved {file}"

    guarded = guard.wrap(save, writes="{file}")
    assert guarded("a.md", "1") == "saved a.md"
    assert guarded("deep/b.md", "2") == "saved deep/b.md"
    assert (guard.root / "a.md").read_text() + (guard.root / "deep/b.md").read_text() == "12"


def test_an_argument_that_is_only_part_of_a_name_is_left_alone(guard: Guard) -> None:
    def note(project: str) -> str:
        path(f"{project}/notes.md").write_text("x")
        return project

    assert guard.wrap(note, writes="{project}/notes.md")("p") == "p"
    assert (guard.root / "p/notes.md").read_text() == "x"


def test_path_is_what_was_declared(guard: Guard) -> None:
    with guard.hold(writes="store.json", reads="read.txt") as hold:
        assert hold.path("store.json") == path("store.json") != guard.root / "store.json"
        assert path("read.txt") == guard.root / "read.txt"
        with pytest.raises(UndeclaredWrite, match=r"other\.txt.*declares: read\.txt, store\.json"):
            path("other.txt")
    assert path("store.json") == guard.root / "store.json"


def test_sqlite_is_locked_but_stays_in_place(guard: Guard) -> None:
    with guard.hold(writes="board.sqlite3") as hold:
        assert hold.path("board.sqlite3") == guard.root / "board.sqlite3"


# -- declarations ---


def test_declared_on_the_function(guard: Guard) -> None:
    @declare(updates="log.txt")
    def add(line: str) -> None:
        """Add a line."""
        with path("log.txt").open("a") as file:
            file.write(line + "\n")

    guarded = guard.wrap(add)
    assert guarded.__doc__ == "Add a line."
    guarded("a")
    guarded(line="b")
    assert (guard.root / "log.txt").read_text() == "a\nb\n"


def test_unknown_tools(tmp_path: Path) -> None:
    def tool() -> str:
        return "ran"

    assert Guard(root=tmp_path).wrap(tool)() == "ran"
    with pytest.raises(UndeclaredWrite, match=r"tool declares nothing"):
        Guard(root=tmp_path, unknown_tools="deny").wrap(tool)()
    assert Guard(root=tmp_path, unknown_tools="deny").wrap(declare()(tool))() == "ran"
    serialized = Guard(root=tmp_path, unknown_tools="serialize")
    with serialized.hold(updates="tool:work"), pytest.raises(LockTimeout):
        run_elsewhere(serialized.wrap(lambda: None, name="work", timeout=0))


def test_the_configuration_declares_by_name(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, tools={"save": {"writes": "{file_path}"}})

    def save(file_path: str) -> None:
        Path(file_path).write_text("x")

    guard.wrap(save)("a.txt")
    assert (tmp_path / "a.txt").read_text() == "x"
    with pytest.raises(ConfigError, match="file_path"):
        guard.wrap(lambda other: None, name="save")


def test_generators_are_refused(guard: Guard) -> None:
    def stream() -> Any:
        yield 1

    with pytest.raises(ConfigError, match="generator"):
        guard.wrap(stream, writes="x")


# -- bad input ---


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_a_path_that_leaves_the_root_runs_nothing(guard: Guard, name: str) -> None:
    ran: list[int] = []
    with pytest.raises(UndeclaredWrite, match="leaves the root"):
        guard.wrap(lambda p: ran.append(1), writes="{p}", name="t")(name)
    assert not ran


def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere"):
        Guard(root=tmp_path / "nowhere")


def test_a_declared_directory_that_is_missing(guard: Guard) -> None:
    with pytest.raises(UndeclaredWrite, match="does not exist"), guard.hold(writes="nothing/"):
        pass


@pytest.mark.parametrize("name", ["../../etc/x", "x" * 10_000, "🤖/🧨", "a\nb", "..", "CON"])
def test_any_agent_name_is_data(tmp_path: Path, name: str) -> None:
    guard = Guard(root=tmp_path, resources={"s.json": {"mode": "shard"}})
    with guard.agent(name):
        guard.update("s.json", lambda value: {"by": name[:20]})
    assert not (tmp_path / "s.json").exists()
    assert guard.join()
    assert json.loads((tmp_path / "s.json").read_text()) == {"by": name[:20]}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".agentguard", "s.json"]


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_an_agent_needs_a_name(guard: Guard, name: Any) -> None:
    with pytest.raises(ConfigError, match="needs a name"), guard.agent(name):
        pass


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        if ".agentguard" in str(self):
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="cannot keep its locks"):
        Guard(root=tmp_path)


# -- values ---


def test_values(guard: Guard) -> None:
    assert guard.read("store.json") == {"items": []}
    assert guard.read("missing.json") is None
    assert guard.update("store.json", lambda value: {**value, "n": 1}) == {"items": [], "n": 1}
    guard.write("new.txt", "text")
    assert guard.read("new.txt") == "text"
    assert guard.update("log.jsonl", lambda value: [*(value or []), {"a": 1}]) == [{"a": 1}]
    assert (guard.root / "log.jsonl").read_text() == '{"a":1}\n'
    with pytest.raises(UndeclaredWrite, match="a key, not a file"):
        guard.read("db:x")
    guard.write("{odd}.txt", "braces are part of a name")
    assert (guard.root / "{odd}.txt").exists()


def test_async_values(guard: Guard) -> None:
    async def main() -> None:
        async def later(value: Any) -> Any:
            await asyncio.sleep(0)
            return {"items": [*value["items"], 1]}

        assert await guard.aupdate("store.json", later) == {"items": [1]}
        assert await guard.aupdate("store.json", lambda v: {"items": [*v["items"], 2]}) == {"items": [1, 2]}
        assert await guard.aread("store.json") == {"items": [1, 2]}
        await guard.awrite("store.json", {"items": []})

    asyncio.run(main())
    assert guard.read("store.json") == {"items": []}


def test_a_store_that_is_not_json_is_untouched_and_named(guard: Guard) -> None:
    (guard.root / "store.json").write_text('{"items": [}')
    with pytest.raises(BadContent, match=r"store\.json.*line 1"):
        guard.update("store.json", lambda value: value)
    assert (guard.root / "store.json").read_text() == '{"items": [}'


def test_an_update_that_fails_changes_nothing(guard: Guard) -> None:
    def fail(value: Any) -> Any:
        value["items"].append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        guard.update("store.json", fail)
    with pytest.raises(TypeError):
        guard.update("store.json", lambda value: {"bad": {1, 2}})
    assert guard.read("store.json") == {"items": []}


# -- cancellation ---


def test_cancelling_a_waiter_leaves_nothing_behind(guard: Guard) -> None:
    async def main() -> None:
        async with guard.hold(writes="store.json"):
            other = asyncio.create_task(elsewhere(guard.hold(writes="store.json")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            other.cancel()
            with pytest.raises(asyncio.CancelledError):
                await other
        async with guard.hold(writes="store.json", timeout=0):
            pass

    async def elsewhere(hold: Any) -> None:
        async with hold:
            raise AssertionError("it was granted")

    asyncio.run(main_without_context(main))


async def main_without_context(main: Callable[[], Awaitable[None]]) -> None:
    await main()


def test_a_cancelled_call_holds_until_its_thread_has_stopped_writing(guard: Guard) -> None:
    started, go_on = threading.Event(), threading.Event()

    def tool(_: Any) -> None:
        started.set()
        assert go_on.wait(10)
        path("store.json").write_text("written after the cancellation")

    async def main() -> None:
        declaration = agentguard.Declaration.of(writes="store.json")
        task = asyncio.create_task(guard.acall(declaration, "tool", {}, tool, threaded=True))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(LockTimeout):
            await asyncio.to_thread(lambda: guard.hold(writes="store.json", timeout=0).__enter__())
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with guard.hold(writes="store.json", timeout=0):
            pass

    asyncio.run(main())
    assert (guard.root / "store.json").read_text() == '{"items": []}'  # cancelled: discarded


# -- the rest of the surface ---


def test_a_hold_is_used_once_and_only_inside(guard: Guard) -> None:
    hold = guard.hold(writes="store.json")
    with pytest.raises(AgentGuardError, match="not entered"):
        hold.path("store.json")
    with hold:
        pass
    with pytest.raises(AgentGuardError, match="used once"), hold:
        pass


def test_events_tell_what_happened_and_a_broken_hook_harms_nothing(
    guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("hook")

    guard.hooks += [seen.append, broken]
    with caplog.at_level(logging.CRITICAL):
        guard.update("store.json", lambda value: value | {"n": 1})
    assert [event.kind for event in seen] == ["acquired", "committed", "released"]
    assert {event.resource for event in seen} == {"store.json"}


def test_a_closed_guard_refuses(guard: Guard) -> None:
    guard.close()
    with pytest.raises(AgentGuardError, match="closed"):
        guard.read("store.json")


def test_atomic_write_is_public(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x.txt", "text")
    assert (tmp_path / "x.txt").read_text() == "text"


def test_status_of_an_idle_guard_is_empty(guard: Guard) -> None:
    with guard.agent("ann"), guard.hold(writes="store.json", name="add"):
        held = guard.status()
        assert [(one.key, one.agent, one.tool) for one in held.holders if one.key == "file:store.json"] == [
            ("file:store.json", "ann", "add")
        ]
        assert "store.json" in str(held)
    status = guard.status()
    assert (status.holders, status.shards, status.pending, status.conflicts) == ((), (), (), ())
    assert not guard.recover()


def test_the_folder_is_private_and_ignored_by_git(guard: Guard) -> None:
    folder = guard.root / ".agentguard"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_guards_that_are_gone_leave_no_descriptors(tmp_path: Path) -> None:
    def use(number: int) -> None:
        (tmp_path / str(number)).mkdir()
        Guard(root=tmp_path / str(number)).update("a.json", lambda value: 1)
        gc.collect()

    use(0)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 20):
        use(number)
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # those of the last one
