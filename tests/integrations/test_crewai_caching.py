"""CrewAI's cache and its brake for repeated calls: no guarded write is skipped, no old read is served."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import crews as crews_module
from agentguard_crewai import guard_crew, guard_tool, install, tool, uninstall
from agentguard_crewai.tools import binding_of
from crewai.agents.cache.cache_handler import CacheHandler
from crewai_support import MARKS, Crew, Tool, agent, call, react, results, task

import agentguard
from agentguard import Guard, declare

pytestmark = MARKS

NATIVE = pytest.mark.parametrize("native", [True, False], ids=["native", "text"])


def ask(native: bool, name: str, **arguments: Any) -> Any:
    return [call(name, **arguments)] if native else react(name, **arguments)


def made(name: str, body: Any, **declared: Any) -> Tool[..., Any]:
    body.__doc__ = "Do it."
    return tool(name, **declared)(body)


class Log:
    """A tool that appends to a file, and one that reads it; `ran` counts the bodies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, 0

    def append(self, text: str) -> str:
        """Append a line."""
        self.ran += 1
        file = agentguard.path("log.txt")
        file.write_text((file.read_text() if file.exists() else "") + text)
        return "appended"

    def look(self) -> str:
        """Look at the file."""
        self.ran += 1
        return (self.folder / "log.txt").read_text()

    def appending(self) -> Tool[..., Any]:
        return made("append", lambda text: self.append(text), updates="log.txt")

    def looking(self, *, declared: bool = True) -> Tool[..., Any]:
        return made("look", lambda: self.look(), reads="log.txt" if declared else None)


@NATIVE
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("cache", [False, True])
def test_equal_writes_one_after_the_other(tmp_path: Path, native: bool, guarded: bool, cache: bool) -> None:
    log, guard = Log(tmp_path), Guard(root=tmp_path)
    append = log.appending() if guarded else made("append", lambda text: _plain(log, text))
    one = agent("one", *[ask(native, "append", text="x")] * 3, tools=[append], native=native)
    crew = Crew(agents=[one], tasks=[task(one)], cache=cache)
    (guard_crew(crew, guard) if guarded else crew).kickoff()
    skipped = not guarded and (cache or not native)
    assert (tmp_path / "log.txt").read_text() == ("x" if skipped else "xxx")


def _plain(log: Log, text: str) -> str:
    file = log.folder / "log.txt"
    file.write_text((file.read_text() if file.exists() else "") + text)
    return "appended"


@NATIVE
@pytest.mark.parametrize("guarded", [False, True])
def test_a_second_look_sees_what_another_agent_has_written(tmp_path: Path, native: bool, guarded: bool) -> None:
    (tmp_path / "log.txt").write_text("old")
    log, guard = Log(tmp_path), Guard(root=tmp_path)

    def change(_: Any) -> Any:
        (tmp_path / "log.txt").write_text("theirs")
        return ask(native, "look")

    look = log.looking(declared=guarded)
    one = agent("one", ask(native, "look"), change, tools=[look], native=native)
    crew = Crew(agents=[one], tasks=[task(one)], cache=True)
    (guard_crew(crew, guard) if guarded else crew).kickoff()
    assert log.ran == (2 if guarded else 1)
    assert ("theirs" in json.dumps(one.llm._seen[-1])) == guarded


@NATIVE
def test_what_was_refused_may_be_tried_again_at_once(tmp_path: Path, native: bool) -> None:
    log, guard = Log(tmp_path), Guard(root=tmp_path, timeout=0)
    held = guard.hold(updates="log.txt")
    held.__enter__()

    def again(_: Any) -> Any:
        held.__exit__(None, None, None)
        return ask(native, "append", text="x")

    one = agent("one", ask(native, "append", text="x"), again, tools=[log.appending()], native=native)
    crew = guard_crew(Crew(agents=[one], tasks=[task(one)]), guard)
    thread = threading.Thread(target=crew.kickoff)  # in a context of its own: no part of the hold
    thread.start()
    thread.join(20)
    assert "held by" in json.dumps(one.llm._seen[1])
    assert (tmp_path / "log.txt").read_text() == "x" and log.ran == 1


@NATIVE
@pytest.mark.parametrize("how", ["crew", "tool", "install"])
def test_a_result_from_before_the_guard_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, how: str
) -> None:
    (tmp_path / "log.txt").write_text("new")
    log = Log(tmp_path)
    guard = Guard(root=tmp_path, tools={"look": {"reads": "log.txt"}} if how == "install" else {})
    cache = CacheHandler()
    cache.add(tool="look", input="", output="STALE")
    cache.add(tool="look", input="{}", output="STALE")
    cache.add(tool="other", input="", output="kept")
    look = log.looking(declared=how != "install")
    one = agent("one", ask(native, "look"), tools=[look], native=native, cache_handler=cache)
    monkeypatch.setattr(crews_module, "_crews", [])
    try:
        if how == "crew":
            crew = Crew(agents=[one], tasks=[task(one)], cache=True)
            crew._cache_handler.add(tool="look", input="", output="STALE")
            guard_crew(crew, guard).kickoff()
        elif how == "tool":
            guard_tool(look, guard)
            one.kickoff("go")
        else:
            install(guard)
            one.kickoff("go")
            held = look.func  # whoever still has the guarded function, the tool is released
            assert binding_of(look) is not None
    finally:
        uninstall()
    assert log.ran == 1 and "STALE" not in json.dumps(one.llm._seen[-1])
    assert cache.read(tool="other", input="") == "kept"
    if how == "install":
        assert held is not look.func
        assert cache.read(tool="look", input="") == "STALE"  # as it was, now that nothing is guarded any more


@NATIVE
@pytest.mark.parametrize("guarded", [False, True])
def test_a_tool_of_the_same_name_that_is_not_guarded_does_not_answer(
    tmp_path: Path, native: bool, guarded: bool
) -> None:
    (tmp_path / "log.txt").write_text("first")
    log, guard = Log(tmp_path), Guard(root=tmp_path)
    other = made("look", lambda: "of another tool")
    ann = agent("ann", ask(native, "look"), tools=[other], native=native)
    bob = agent("bob", ask(native, "look"), tools=[log.looking(declared=guarded)], native=native)
    crew = Crew(agents=[ann, bob], tasks=[task(ann), task(bob)], cache=True)
    (guard_crew(crew, guard) if guarded else crew).kickoff()
    assert results(bob) == ["first" if guarded else "of another tool"] or not native
    assert log.ran == guarded


def test_what_is_not_guarded_is_cached_as_before(tmp_path: Path) -> None:
    log, guard = Log(tmp_path), Guard(root=tmp_path)
    ran: list[int] = []
    harmless = made("harmless", lambda: ran.append(1) or "done")
    declared = made("declared", declare()(lambda: ran.append(2) or "done"))
    asked = [call("harmless")], [call("harmless")], [call("declared")], [call("declared")], [call("append", text="x")]
    one = agent("one", *asked, tools=[harmless, declared, log.appending()])
    guard_crew(Crew(agents=[one], tasks=[task(one)], cache=True), guard).kickoff()
    assert ran == [1, 2] and results(one) == ["done"] * 4 + ["appended"]


def test_a_cache_is_saved_without_a_trace(tmp_path: Path) -> None:
    one = agent("one", [call("append", text="x")], tools=[Log(tmp_path).appending()])
    before = one.tools_handler.model_dump_json()
    crew = Crew(agents=[one], tasks=[task(one)], cache=True)
    plain = crew._cache_handler.model_dump()
    guard_crew(crew, Guard(root=tmp_path)).kickoff()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert crew._cache_handler.model_dump() == plain
        assert json.loads(one.tools_handler.model_dump_json()).keys() == json.loads(before).keys()
