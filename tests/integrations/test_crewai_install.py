"""`install`: tools that nobody edits, guarded by the names in the configuration, in every crew of the process."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import crews as crews_module
from agentguard_crewai import guard_crew, guard_tool, install, join_reports, registry, tool, uninstall
from agentguard_crewai import tools as tools_module
from crewai.events import crewai_event_bus
from crewai.hooks import clear_all_hooks
from crewai_support import MARKS, BaseTool, Crew, agent, call, hooks_in_place, react, results, task

from agentguard import ConfigError, Event, Guard

pytestmark = MARKS


class FileWriterInput(BaseModel):
    filename: str
    directory: str | None = "./"
    overwrite: str | bool = False
    content: str


class FileWriterTool(BaseTool):
    """As crewai-tools has it: the same name, arguments and way of writing."""

    name: str = "File Writer Tool"
    description: str = "A tool to write content to a specified file."
    args_schema: type[BaseModel] = FileWriterInput

    def _run(self, **kwargs: Any) -> str:
        folder = Path(kwargs.get("directory") or "")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / kwargs["filename"]
        overwrite = str(kwargs["overwrite"]).lower() in ("true", "yes", "1")
        if file.exists() and not overwrite:
            return f"File {file} already exists and overwrite option was not passed."
        file.write_text(kwargs["content"])
        return f"Content successfully written to {file}"


WRITER = {"file_writer_tool": {"writes": ["{directory}/{filename}"]}}


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the crews and tools that other tests have guarded."""
    monkeypatch.setattr(crews_module, "_crews", [])
    monkeypatch.setattr(tools_module, "_alone", [])
    yield
    uninstall()


def crew_of(writer: BaseTool, *, native: bool = True, **arguments: Any) -> Crew:
    given = {"filename": "report.md", "content": "new", "overwrite": True, **arguments}
    ask: Any = [call("file_writer_tool", **given)] if native else react("file_writer_tool", **given)
    one = agent("one", ask, tools=[writer], native=native)
    return Crew(agents=[one], tasks=[task(one)])


def answer(crew: Crew) -> str:
    (one,) = crew.agents
    return results(one)[-1] if one.llm.native else str(one.llm._seen[-1])


@pytest.mark.parametrize("native", [True, False])
def test_a_third_party_tool_is_guarded_by_its_name(tmp_path: Path, native: bool) -> None:
    (tmp_path / "report.md").write_text("old")
    guard = Guard(root=tmp_path, tools=WRITER)
    found: list[Event] = []
    guard.hooks.append(lambda event: found.append(event) if event.kind == "committed" else None)
    install(guard)
    crew = crew_of(FileWriterTool(), native=native, directory=str(tmp_path))
    crew.kickoff()
    assert (tmp_path / "report.md").read_text() == "new"
    assert [(event.agent, event.tool, event.resource) for event in found] == [("one", "File Writer Tool", "report.md")]
    assert f"Content successfully written to {tmp_path}/report.md" in answer(crew)


def test_installed_crews_are_isolated_and_joined(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("start\n")
    guard = Guard(root=tmp_path, tools=WRITER, resources={"report.md": {"mode": "shard", "merge": "union"}})
    install(guard)
    seen: list[str] = []
    writer = FileWriterTool()

    def look(_: Any) -> str:
        seen.append((tmp_path / "report.md").read_text())
        return "done"

    write = [
        [call("file_writer_tool", filename="report.md", directory=str(tmp_path), content=text, overwrite=True)]
        for text in ("start\nann\n", "start\nbob\n")
    ]
    ann, bob = agent("ann", write[0], look, tools=[writer]), agent("bob", write[1], look, tools=[writer])
    eve = agent("eve", look)
    tasks = [task(ann, async_execution=True), task(bob, async_execution=True), task(eve)]
    asyncio.run(Crew(agents=[ann, bob, eve], tasks=tasks).akickoff())
    assert seen == ["start\n", "start\n", "start\nann\nbob\n"]
    assert len(join_reports(guard)) == 1


def test_a_call_that_cannot_be_guarded_is_blocked_and_the_model_is_told_why(tmp_path: Path) -> None:
    install(Guard(root=tmp_path, tools={"File Writer Tool": {"writes": ["{path}"]}}))
    for native in (True, False):
        crew = crew_of(FileWriterTool(), native=native, directory=str(tmp_path))
        crew.kickoff()
        assert not (tmp_path / "report.md").exists()
        assert "cannot be guarded" in answer(crew) and "which the tool does not have" in answer(crew)


def test_the_hook_fails_closed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Guard(root=tmp_path, tools=WRITER))

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(crews_module, "guard_late", broken)
    crew = crew_of(FileWriterTool(), directory=str(tmp_path))
    crew.kickoff()
    assert not (tmp_path / "report.md").exists() and "cannot be guarded" in answer(crew)
    monkeypatch.setattr(crews_module, "adopt", broken)
    with pytest.raises(Exception, match="cannot guard this"):
        crew_of(FileWriterTool(), directory=str(tmp_path)).kickoff()


def test_a_refused_argument_is_told_to_the_model(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    install(Guard(root=tmp_path / "inner", tools=WRITER))
    crew = crew_of(FileWriterTool(), directory=str(tmp_path))
    crew.kickoff()
    assert not (tmp_path / "report.md").exists() and "undeclared" in answer(crew)


def test_cleared_hooks_come_back_for_installed_crews_too(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("old")
    guard = Guard(root=tmp_path, tools=WRITER, timeout=0)
    install(guard)
    clear_all_hooks()
    crew = crew_of(FileWriterTool(), directory=str(tmp_path))
    with guard.hold(writes="report.md"):
        thread = threading.Thread(target=crew.kickoff)
        thread.start()
        thread.join()
    assert (tmp_path / "report.md").read_text() == "old" and "timeout" in answer(crew)


def test_uninstall_leaves_nothing_behind(tmp_path: Path) -> None:
    def inside() -> tuple[Any, Any]:
        handlers = {kind: len(found) for kind, found in crewai_event_bus._sync_handlers.items()}
        return hooks_in_place(), handlers

    registry.remove()
    before = inside()
    writer, unused = FileWriterTool(), FileWriterTool()
    cache, attributes = writer.cache_function, set(writer.__dict__)
    guard = Guard(root=tmp_path, tools=WRITER)
    install(guard)
    install(guard)
    assert inside() != before
    crew_of(writer, directory=str(tmp_path)).kickoff()
    assert "_run" in writer.__dict__ and "_run" not in unused.__dict__
    bound_early = writer.to_structured_tool()
    uninstall()
    assert inside() == before
    assert writer.cache_function is cache and set(writer.__dict__) == attributes
    guard.close()  # whatever would still come to the guard fails
    crew_of(writer, directory=str(tmp_path), content="plain").kickoff()
    bound_early.invoke({"filename": "b.md", "directory": str(tmp_path), "content": "plain"})
    assert (tmp_path / "report.md").read_text() == (tmp_path / "b.md").read_text() == "plain"


def test_uninstall_keeps_what_guard_crew_needs(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, tools=WRITER)
    crew = guard_crew(crew_of(FileWriterTool(), directory=str(tmp_path)), guard)
    install(guard)
    uninstall()
    assert hooks_in_place()
    assert "_run" in crew.agents[0].tools[0].__dict__


def test_uninstall_keeps_what_guard_tool_needs(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, tools=WRITER)
    writer = guard_tool(FileWriterTool(), guard)
    install(guard)
    uninstall()
    assert hooks_in_place()
    del writer
    gc.collect()
    install(guard)
    uninstall()
    assert not hooks_in_place()


def test_two_installed_guards_are_an_error(tmp_path: Path) -> None:
    install(Guard(root=tmp_path))
    with pytest.raises(ConfigError, match="installed already"):
        install(Guard(root=tmp_path))


def test_delegation_is_not_an_unknown_tool(tmp_path: Path) -> None:
    install(Guard(root=tmp_path, unknown_tools="deny"))

    @tool("look")
    def look() -> str:
        """Look."""
        return "seen"

    helper = agent("helper", "helped")
    boss = agent(
        "boss",
        [call("delegate_work_to_coworker", task="t", context="c", coworker="helper")],
        [call("look")],
        tools=[look],
        allow_delegation=True,
    )
    Crew(agents=[boss, helper], tasks=[task(boss)]).kickoff()
    first, second = results(boss)
    assert first == "helped"
    assert "declares nothing" in second
