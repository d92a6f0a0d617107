"""The same agents in CrewAI: tasks beside each other, several native calls in a turn, and a flow of agents."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stale_agents import FILE, Kept, Meeting, arrived, counted, guard_of, names_of, noted, seeded

from agentguard import Guard, atomic_write, path

_scratch = tempfile.mkdtemp(prefix="agentguard-bench-")
atexit.register(shutil.rmtree, _scratch, ignore_errors=True)
os.environ.update(
    CREWAI_DISABLE_TELEMETRY="true",
    CREWAI_DISABLE_TRACKING="true",
    CREWAI_STORAGE_DIR=_scratch,
    CREWAI_TRACING_ENABLED="false",
    OTEL_SDK_DISABLED="true",
)

with warnings.catch_warnings():  # CrewAI reads what it sets when it is imported
    warnings.simplefilter("ignore")
    from agentguard_crewai import guard_crew, guard_tool, tool
    from crewai import Agent, Crew, Task
    from crewai.flow.flow import Flow, start
    from crewai.llms.base_llm import BaseLLM
    from crewai.tools.base_tool import Tool
    from pydantic import Field, PrivateAttr

__all__ = ["CREWS", "crew"]

Turns = Generator[list[tuple[str, dict[str, Any]]], list[str], None]


class Author(BaseLLM):
    """Makes the calls that a generator yields, which gets their answers."""

    turns: Any = Field(exclude=True)
    _begun: bool = PrivateAttr(default=False)
    _asked: int = PrivateAttr(default=0)
    _total: int = PrivateAttr(default=0)

    def supports_function_calling(self) -> bool:
        return True

    def get_input_tokens_count(self, *args: Any, **kwargs: Any) -> int:
        return 1

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        answers = [str(one["content"]) for one in messages if one["role"] == "tool"][-self._asked :]
        try:
            wanted = self.turns.send(answers if self._begun else None)
        except StopIteration:
            return "Done."
        self._begun, self._asked = True, len(wanted)
        self._total += len(wanted)
        return [
            {
                "id": f"call_{self._total - n}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for n, (name, arguments) in enumerate(wanted)
        ]

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(self.call, messages)


def apart(name: str, rounds: int, meeting: Meeting) -> Turns:
    """Every call in a turn of its own."""
    for n in range(rounds):
        (text,) = yield [("read_notes", {})]
        meeting()
        while (yield [("write_notes", {"content": noted(text, name, n)})]) != ["written"]:
            (text,) = yield [("read_notes", {})]


def together(name: str, rounds: int, meeting: Meeting) -> Turns:
    """A turn writes and reads again, in two calls."""
    (text,) = yield [("read_notes", {})]
    for n in range(rounds):
        meeting()
        answer = ""
        while answer != "written":
            answer, text = yield [("write_notes", {"content": noted(text, name, n)}), ("read_notes", {})]


def notes_tools(root: Path, guarded: bool) -> list[Tool[..., Any]]:
    file = root / FILE

    @tool("read_notes", reads=FILE)
    def read() -> str:
        """Read the notes."""
        return (path(file) if guarded else file).read_text()

    @tool("write_notes", writes=FILE)
    def write(content: str) -> str:
        """Replace the notes."""
        atomic_write(path(file) if guarded else file, content, durable=False)
        return "written"

    return [read, write]


def agent_of(name: str, turns: Turns | None, tools: list[Any]) -> Agent:
    model = Author(model="scripted", turns=turns if turns is not None else iter(()))
    return Agent(role=name, goal="g", backstory="b", llm=model, tools=tools, max_iter=100_000)


def in_tasks(agents: list[Agent], guard: Guard | None) -> None:
    _crew(agents, guard).kickoff()


def in_tasks_async(agents: list[Agent], guard: Guard | None) -> None:
    _in_loop(_crew(agents, guard).akickoff, len(agents))


def _crew(agents: list[Agent], guard: Guard | None) -> Crew:
    last = Agent(role="last", goal="g", backstory="b", llm=Author(model="scripted", turns=_nothing()))
    tasks = [Task(description="t", expected_output="x", agent=one, async_execution=True) for one in agents]
    made = Crew(agents=[*agents, last], tasks=[*tasks, Task(description="t", expected_output="x", agent=last)])
    return guard_crew(made, guard) if guard is not None else made


def in_flow(agents: list[Agent], guard: Guard | None) -> None:
    for one in agents:
        for made in one.tools or ():
            if guard is not None:
                guard_tool(made, guard)

    def starter(number: int) -> Any:
        def run(_: Any) -> Any:
            return agents[number].kickoff("go")

        run.__name__ = f"step_{number}"
        return start()(run)

    kind = type("Work", (Flow,), {f"step_{number}": starter(number) for number in range(len(agents))})
    flow: Any = kind(suppress_flow_events=True)
    _in_loop(flow.kickoff_async, len(agents))


def _nothing() -> Turns:
    yield from ()


def _in_loop(run: Callable[[], Any], agents: int) -> None:
    """With room for every agent to wait for the others: CrewAI runs all of it in the loop's pool of threads."""

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4 * agents))
        await run()

    asyncio.run(main())


Way = Callable[[list[Agent], "Guard | None"], None]
CREWS: dict[str, tuple[Way, Callable[[str, int, Meeting], Turns]]] = {
    "CrewAI, async tasks, kickoff": (in_tasks, apart),
    "CrewAI, async tasks, akickoff": (in_tasks_async, apart),
    "CrewAI, two native calls in a turn": (in_tasks, together),
    "CrewAI, flow, Agent.kickoff": (in_flow, apart),
}


def crew(way: str, folder: Path, mode: str, agents: int, rounds: int) -> Kept:
    """One run."""
    root = seeded(folder)
    guard = guard_of(root, mode)
    refused = counted(guard)
    run, script = CREWS[way]
    meeting = Meeting(agents)
    made = [
        agent_of(name, script(name, rounds, meeting), notes_tools(root, guard is not None)) for name in names_of(agents)
    ]
    started = time.perf_counter()
    run(made, guard)
    seconds = time.perf_counter() - started
    return Kept(arrived(root, agents, rounds), agents * rounds, len(refused), seconds)
