"""One guarded tool of CrewAI: the decorator, the guard on each kind of tool, and what refusals look like."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import _version, guard_tool, tool
from agentguard_crewai.caching import never_cache
from agentguard_crewai.refusals import failure
from crewai.tools.tool_failure import ToolFailure
from crewai_support import MARKS, BaseTool, Tool, meeting

import agentguard
from agentguard import ConfigError, Declaration, Event, Guard, InDoubt, declare

pytestmark = MARKS


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    (tmp_path / "notes").mkdir()
    return Guard(root=tmp_path, timeout=5)


def append(text: str, name: str = "log.txt") -> str:
    """Append a line."""
    file = agentguard.path(name)
    old = file.read_text() if file.exists() else ""
    file.write_text(old + text + "\n")
    return f"wrote {file}"


class Append(BaseTool):
    name: str = "Append line"
    description: str = "Append a line."

    @declare(updates="log.txt")
    def _run(self, text: str) -> str:
        return append(text)


class Both(BaseTool):
    name: str = "both"
    description: str = "Append a line, either way."

    @declare(updates="log.txt")
    def _run(self, text: str) -> str:
        return append(text)

    @declare(updates="log.txt")
    async def _arun(self, text: str) -> str:
        return self._run(text)


def events(guard: Guard, kind: str) -> list[Event]:
    found: list[Event] = []
    guard.hooks.append(lambda event: found.append(event) if event.kind == kind else None)
    return found


# -- the decorator ---


def test_tool_has_all_forms_of_crewais_own() -> None:
    bare = tool(append)
    named = tool("Append line")(append)
    options = tool(result_as_answer=True, max_usage_count=3)(append)
    declared = tool("Append line", updates="{name}", max_usage_count=2)(append)
    only = tool(writes=["log.txt", "notes/{text}.md"])(append)
    assert all(isinstance(one, Tool) for one in (bare, named, options, declared, only))
    assert (bare.name, named.name, only.name) == ("append", "Append line", "append")
    assert options.result_as_answer and options.max_usage_count == 3 and declared.max_usage_count == 2
    assert set(declared.args_schema.model_fields) == {"text", "name"}


def test_tool_refuses_a_template_that_names_no_argument_at_once() -> None:
    with pytest.raises(ConfigError, match=r"'tex'.*did you mean \{text\}"):
        tool("Append", writes="{tex}.md")(append)


def test_an_unguarded_tool_works_as_before(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(guard.root)
    made = tool(updates="{name}")(append)
    made.run(text="a")
    assert (guard.root / "log.txt").read_text() == "a\n"


# -- guarding ---


def test_guarding_twice_changes_nothing_and_two_guards_are_an_error(guard: Guard, tmp_path: Path) -> None:
    made = tool(updates="{name}")(append)
    assert guard_tool(made, guard) is made
    first = made.func
    assert guard_tool(made, guard).func is first
    sub = guard_tool(Append(), guard)
    run = sub._run
    assert guard_tool(sub, guard)._run is run
    other = Guard(root=tmp_path / "notes")
    for one in (made, sub):
        with pytest.raises(ConfigError, match="guarded already"):
            guard_tool(one, other)


def test_what_is_no_tool_is_refused(guard: Guard) -> None:
    with pytest.raises(ConfigError, match="from_langchain"):
        guard_tool(append, guard)  # type: ignore[type-var]


def test_a_template_is_checked_against_the_arguments_of_a_subclass(guard: Guard) -> None:
    class Wrong(BaseTool):
        name: str = "wrong"
        description: str = "d"

        def _run(self, **kwargs: Any) -> str:
            return ""

    Wrong._run.__agentguard__ = Declaration.of(updates="{topic}.md")  # as of a decorator that sees no fields
    with pytest.raises(ConfigError, match="topic"):
        guard_tool(Wrong(args_schema=create_model("Arguments", text=(str, ...))), guard)
    guard_tool(Wrong(args_schema=create_model("Arguments", topic=(str, ...))), guard)


def test_every_kind_of_tool_is_guarded_on_every_way_to_run(guard: Guard) -> None:
    from langchain_core.tools import StructuredTool

    async def append_async(text: str) -> str:
        """Append a line."""
        await asyncio.sleep(0)
        return append(text)

    def hands_out(text: str) -> Any:
        """Append a line, later."""
        return append_async(text)

    committed = events(guard, "committed")
    plain = guard_tool(tool(updates="{name}")(append), guard)
    slow = guard_tool(tool(updates="log.txt")(append_async), guard)
    later = guard_tool(tool(updates="log.txt")(hands_out), guard)
    sub, both = guard_tool(Append(), guard), guard_tool(Both(), guard)
    chain = StructuredTool.from_function(declare(updates="log.txt")(append), name="chain")
    langchain = guard_tool(Tool.from_langchain(chain), guard)

    assert plain.run(text="1") == "wrote log.txt"  # no copy's path is shown
    plain.run("2")
    plain.to_structured_tool().invoke({"text": "3"})
    slow.run(text="4")
    asyncio.run(slow.arun(text="5"))
    slow.to_structured_tool().invoke({"text": "6"})
    later.run(text="7")
    sub.run(text="8")
    sub.to_structured_tool().invoke({"text": "9"})
    both.run(text="10")
    asyncio.run(both.arun(text="11"))
    langchain.run(text="12")
    guard_tool(Append().to_structured_tool(), guard).invoke({"text": "13"})
    assert (guard.root / "log.txt").read_text().split() == [str(number) for number in range(1, 14)]
    assert len(committed) == 13  # `_arun` that calls `_run` is one call


def test_a_plain_function_that_returns_a_coroutine_on_a_loop_is_refused_before_it_escapes(guard: Guard) -> None:
    async def later() -> str:
        return "late"

    @tool(updates="log.txt")
    def hands_out() -> Any:
        """Return a coroutine."""
        return later()

    guard_tool(hands_out, guard)
    with pytest.raises(ConfigError, match="async def"):
        asyncio.run(hands_out.arun())


def test_defaults_of_the_signature_and_of_the_schema_fill_templates(guard: Guard) -> None:
    class Open(BaseTool):
        name: str = "open"
        description: str = "d"

        @declare(updates="notes/{topic}.md")
        def _run(self, **kwargs: Any) -> str:
            agentguard.path("notes/general.md").write_text("x")
            return ""

    acquired = events(guard, "acquired")
    guard_tool(tool(updates="notes/{name}")(append), guard)
    guard_tool(Open(args_schema=create_model("A", topic=(str, "general"))), guard)._run()
    assert [event.resource for event in acquired] == ["notes/general.md"]
    made = guard_tool(tool(updates="{name}")(append), guard)
    made.run("by position")
    assert acquired[-1].resource == "log.txt"


def test_a_path_argument_is_led_to_a_copy_that_is_applied_as_a_whole(guard: Guard) -> None:
    target = guard.root / "report.md"
    target.write_text("old")

    @tool(writes="{file}")
    def write(file: str, text: str) -> str:
        """Write a file."""
        Path(file).write_text(text)
        assert target.read_text() == "old"
        if not text:
            raise RuntimeError(f"cannot write {file}")
        return f"written to {file}"

    guard_tool(write, guard)
    with pytest.raises(RuntimeError, match=r"^cannot write report.md$"):
        write.run(file="report.md", text="")
    assert target.read_text() == "old"
    assert write.run(file="report.md", text="new") == "written to report.md"
    assert target.read_text() == "new"


def test_a_tool_that_declares_nothing_follows_the_policy(tmp_path: Path) -> None:
    def plain() -> str:
        """Do it."""
        return "done"

    fn = plain
    assert guard_tool(tool(plain), Guard(root=tmp_path)).func is fn
    serialized = guard_tool(tool(plain), Guard(root=tmp_path, unknown_tools="serialize"))
    assert serialized.run() == "done" and serialized.cache_function is never_cache
    denied = guard_tool(tool(plain), Guard(root=tmp_path, unknown_tools="deny")).run()
    assert isinstance(denied, ToolFailure) and denied.code == "undeclared"
    harmless = tool()(declare()(plain))
    kept = harmless.cache_function
    assert guard_tool(harmless, Guard(root=tmp_path, unknown_tools="deny")).run() == "done"
    assert harmless.cache_function is kept


def test_the_configuration_names_tools_in_either_spelling(tmp_path: Path) -> None:
    for spelling in ("Append line", "append_line"):
        guard = Guard(root=tmp_path, tools={spelling: {"writes": ["other.txt"]}})
        acquired = events(guard, "acquired")
        made = guard_tool(tool("Append line")(append), guard)
        result = made.run(text="x")
        assert isinstance(result, ToolFailure) and "log.txt" in result.message  # it writes what it does not declare
        assert [event.resource for event in acquired] == ["other.txt"]


# -- exclusion ---


@pytest.mark.parametrize("guarded", [False, True])
def test_overlapping_updates_are_lost_without_the_guard_only(guard: Guard, guarded: bool) -> None:
    target = guard.root / "n.json"
    target.write_text("0")
    with meeting(4, patience=5.0 if not guarded else 0.05) as meet:

        @tool(updates="n.json")
        def add() -> str:
            """Add one."""
            file = agentguard.path("n.json") if guarded else target
            value = json.loads(file.read_text())
            meet()
            file.write_text(json.dumps(value + 1))
            return "added"

        if guarded:
            guard_tool(add, guard)
        threads = [threading.Thread(target=add.run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert json.loads(target.read_text()) == (4 if guarded else 1)


# -- refusals ---


def test_a_refusal_is_returned_varies_and_runs_nothing(tmp_path: Path) -> None:
    guard, ran = Guard(root=tmp_path, timeout=0), list[str]()

    @tool(writes="log.txt")
    def write(text: str) -> str:
        """Write."""
        ran.append(text)
        return "ok"

    guard_tool(write, guard)
    with guard.hold(updates="log.txt"):
        answers: list[Any] = []
        for _ in range(2):
            thread = threading.Thread(target=lambda: answers.append(write.run(text="x")))
            thread.start()
            thread.join()
    first, second = answers
    assert isinstance(first, ToolFailure) and isinstance(second, ToolFailure)
    assert (first.code, first.retryable, first.details["resource"]) == ("timeout", True, "log.txt")
    assert "log.txt" in first.message and "retry" in first.message
    assert first.message != second.message
    assert not ran
    json.dumps(first.model_dump(mode="json"))
    assert write.run(text="y") == "ok"


def test_one_and_the_same_refusal_never_reads_the_same(guard: Guard) -> None:
    error = agentguard.StaleWrite("changed", resource="log.txt")
    assert len({failure(error).message for _ in range(5)}) == 5


def test_a_long_refusal_is_cut(guard: Guard) -> None:
    answer = failure(agentguard.StaleWrite("changed: " + "x" * 5000, resource="log.txt"))
    assert len(answer.message) < 1100 and answer.message.startswith("changed: ")


def test_a_name_outside_the_root_is_refused_for_good(guard: Guard) -> None:
    answer = guard_tool(tool(updates="{name}")(append), guard).run(text="x", name="../log.txt")
    assert isinstance(answer, ToolFailure) and answer.code == "undeclared" and not answer.retryable


def test_what_is_in_doubt_is_told_and_not_raised(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: Any, **__: Any) -> Any:
        raise InDoubt("the commit of log.txt could not be finished", record="r", resources=("log.txt",))

    monkeypatch.setattr(guard, "call", call)
    answer = guard_tool(tool(updates="{name}")(append), guard).run(text="x")
    assert isinstance(answer, ToolFailure) and answer.code == "in_doubt" and not answer.retryable
    assert answer.details == {"record": "r", "resources": ["log.txt"]}


def test_a_sync_call_on_the_loop_of_the_holder_is_refused_at_once(guard: Guard) -> None:
    made = guard_tool(tool(updates="{name}")(append), guard)

    async def main() -> Any:
        async with guard.hold(updates="log.txt"):
            # In a context of its own, so that the call is not one inside the hold.
            return contextvars.Context().run(lambda: made.run(text="x"))

    answer = asyncio.run(asyncio.wait_for(main(), 3))
    assert isinstance(answer, ToolFailure) and answer.code == "deadlock"
    assert not (guard.root / "log.txt").exists()


# -- the package ---


def test_an_old_or_missing_crewai_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.15.9")
    with pytest.raises(ImportError, match=r"not 1\.15\.9.*agentguard\[crewai\]"):
        _version.require()

    def missing(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"agentguard\[crewai\]"):
        _version.require()
    assert _version.parsed("1.16.0rc1") > _version.OLDEST > _version.parsed("1.15.16.post1")


def test_every_public_name_says_what_it_does() -> None:
    import agentguard_crewai

    for name in agentguard_crewai.__all__:
        assert inspect.getdoc(getattr(agentguard_crewai, name)), name
