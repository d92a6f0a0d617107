"""Read, think, write in real crews and flows: what is based on an older version is refused, told, and tried again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import guard_crew, guard_tool, tool
from agentguard_crewai.refusals import REPORTED, failure
from crewai.agent.planning_config import PlanningConfig
from crewai.flow.flow import Flow, start
from crewai.lite_agent import LiteAgent
from crewai.tools.tool_failure import ToolFailure
from crewai_support import MARKS, Agent, Crew, Script, Tool, agent, call, meeting, played, react, task, told

import agentguard
from agentguard import ConfigError, Guard, StaleWrite, atomic_write
from agentguard.budget import tokens
from agentguard.knowledge import Known
from agentguard.locks import Change
from agentguard.stale import Case, Reason, refusal

pytestmark = MARKS

LONG = 20.0


def notes(folder: Path, *, guarded: bool = True) -> list[Tool[..., Any]]:
    """A tool that reads a list, and one that replaces it."""

    def file() -> Path:
        return agentguard.path("notes.json") if guarded else folder / "notes.json"

    @tool("read", reads="notes.json")
    def read() -> str:
        """Read the notes."""
        return file().read_text()

    @tool("write", writes="notes.json")
    def write(text: str) -> str:
        """Replace the notes."""
        if guarded:
            file().write_text(text)
        else:
            atomic_write(file(), text.encode())  # what is lost is lost between the calls, not within one
        return "written"

    (folder / "notes.json").write_text("[]")
    return [read, write]


def kept(folder: Path) -> list[str]:
    return list(json.loads((folder / "notes.json").read_text()))


# -- several agents, several rounds ---


def calls_apart(name: str, rounds: int, meet: Callable[[], None]) -> Generator[Any, list[dict[str, Any]], None]:
    """Read, think, write, each in a turn of its own; after a refusal again."""
    for number in range(rounds):
        answer, first = "", True
        while answer != "written":
            messages = yield [call("read")]
            found = json.loads(told(messages)[0])
            if first:
                meet()  # every agent has read, and none has written
            first = False
            messages = yield [call("write", text=json.dumps([*found, f"{name}-{number}"]))]
            (answer,) = told(messages)


def calls_together(name: str, rounds: int, meet: Callable[[], None]) -> Generator[Any, list[dict[str, Any]], None]:
    """Each turn writes and reads again, so that every answer is based on the turn before."""
    messages = yield [call("read")]
    found = json.loads(told(messages)[0])
    for number in range(rounds):
        answer, first = "", True
        while answer != "written":
            if first:
                meet()
            first = False
            turn = [call("write", text=json.dumps([*found, f"{name}-{number}"])), call("read")]
            messages = yield turn
            answer, seen = told(messages, 2)
            found = json.loads(seen)


def in_tasks(agents: list[Agent], guard: Guard | None, *, asynchronous: bool) -> None:
    last = agent("last")
    tasks = [*(task(one, async_execution=True) for one in agents), task(last)]
    crew = Crew(agents=[*agents, last], tasks=tasks)
    if guard is not None:
        guard_crew(crew, guard)
    if asynchronous:
        asyncio.run(crew.akickoff())
    else:
        crew.kickoff()


def flow_of(*steps: Callable[[], Any]) -> Flow[Any]:
    """A flow that starts with all of these at once."""

    def starter(number: int) -> Any:
        def run(_: Any) -> Any:
            return steps[number]()

        run.__name__ = f"step_{number}"
        return start()(run)

    kind = type("Work", (Flow,), {f"step_{number}": starter(number) for number in range(len(steps))})
    made: Flow[Any] = kind()
    return made


def in_flow(agents: list[Agent], guard: Guard | None) -> None:
    if guard is not None:
        for one in agents:
            for made in one.tools or ():
                guard_tool(made, guard)
    flow_of(*(lambda one=one: one.kickoff("go") for one in agents)).kickoff()


WAYS: dict[str, Callable[[list[Agent], Guard | None], None]] = {
    "kickoff": lambda agents, guard: in_tasks(agents, guard, asynchronous=False),
    "akickoff": lambda agents, guard: in_tasks(agents, guard, asynchronous=True),
    "flow": in_flow,
}


@pytest.mark.parametrize(
    ("agents", "rounds"), [(4, 2), pytest.param(8, 25, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]
)
@pytest.mark.parametrize("script", [calls_apart, calls_together])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["off", "locks", "guard"])
def test_what_several_agents_read_think_and_write(
    tmp_path: Path, mode: str, way: str, script: Any, agents: int, rounds: int
) -> None:
    tools = notes(tmp_path, guarded=mode != "off")
    guard = None
    if mode != "off":
        guard = Guard(root=tmp_path, resources={"notes.json": {"stale": "ignore" if mode == "locks" else "reject"}})
    names = [f"agent-{number}" for number in range(agents)]
    with meeting(agents, LONG) as meet:
        workers = [
            agent(name, *played(script(name, rounds, meet), 4 * agents * rounds + 9), tools=tools) for name in names
        ]
        WAYS[way](workers, guard)
    found = sorted(kept(tmp_path))
    wanted = sorted(f"{name}-{number}" for name in names for number in range(rounds))
    if mode == "guard":
        assert found == wanted
    else:
        assert len(found) <= agents * (rounds - 1) + 1 < len(wanted)  # of the first round, at most one is left


# -- each agent knows what it has read itself ---


class Pair:
    """One that reads, and writes only after the other has read and written: what it knows is old by then."""

    def __init__(self, folder: Path) -> None:
        self.read, self.wrote = threading.Event(), threading.Event()
        self.answer = ""
        self.native = True
        self.tools = notes(folder)

    def ask(self, name: str, **arguments: Any) -> Any:
        return [call(name, **arguments)] if self.native else react(name, **arguments)

    def told(self, messages: list[dict[str, Any]]) -> str:
        if self.native:
            return told(messages)[0]
        text = next(str(one["content"]) for one in reversed(messages) if "Observation: " in str(one["content"]))
        return text.rpartition("Observation: ")[2].strip()

    def first(self) -> Generator[Any, list[dict[str, Any]], None]:
        yield self.ask("read")
        self.read.set()
        assert self.wrote.wait(LONG)
        messages = yield self.ask("write", text='["first"]')
        self.answer = self.told(messages)

    def second(self) -> Generator[Any, list[dict[str, Any]], None]:
        assert self.read.wait(LONG)
        yield self.ask("read")
        messages = yield self.ask("write", text='["second"]')
        assert self.told(messages) == "written"
        self.wrote.set()

    def agents(self, **options: Any) -> tuple[Agent, Agent]:
        one, two = (
            agent("twin", *played(script), tools=self.tools, **options) for script in (self.first(), self.second())
        )
        return one, two


def at_once(*steps: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(len(steps)) as pool:
        for done in [pool.submit(step) for step in steps]:
            done.result(2 * LONG)


def twins_in_a_flow(pair: Pair, guard: Guard) -> None:
    one, two = pair.agents()
    flow_of(lambda: one.kickoff("go"), lambda: two.kickoff("go")).kickoff()


def twins_outside_of_everything(pair: Pair, guard: Guard) -> None:
    one, two = pair.agents()
    at_once(lambda: one.kickoff("go"), lambda: two.kickoff("go"))


def twins_asynchronous(pair: Pair, guard: Guard) -> None:
    one, two = pair.agents()

    async def both() -> None:
        await asyncio.gather(one.kickoff_async("go"), two.kickoff_async("go"))

    asyncio.run(both())


def twins_in_a_crew(pair: Pair, guard: Guard) -> None:
    in_tasks([*pair.agents()], guard, asynchronous=False)


def one_agent_twice(pair: Pair, guard: Guard) -> None:
    """The same agent in two conversations at a time."""
    one = agent("twin", *either(pair), tools=pair.tools, native=pair.native)
    flow_of(lambda: one.kickoff("early bird"), lambda: one.kickoff("other")).kickoff()


def one_agent_twice_by_text(pair: Pair, guard: Guard) -> None:
    pair.native = False
    one_agent_twice(pair, guard)


def either(pair: Pair) -> list[Any]:
    """The script that the task asks for."""
    first, second = played(pair.first()), played(pair.second())

    def turn(messages: Any) -> Any:
        mine = first if "early bird" in json.dumps(messages, default=str) else second
        return mine[0](messages)  # type: ignore[operator]

    return [turn] * 20


def crews_at_once(pair: Pair, guard: Guard) -> None:
    made = [guard_crew(Crew(agents=[one], tasks=[task(one)]), guard) for one in pair.agents()]
    at_once(*(crew.kickoff for crew in made))


def copies_of_a_crew(pair: Pair, guard: Guard) -> None:
    one = agent("twin", *either(pair), tools=pair.tools)
    crew = guard_crew(Crew(agents=[one], tasks=[task(one, "{which}")]), guard)
    asyncio.run(crew.kickoff_for_each_async([{"which": "early bird"}, {"which": "other"}]))


def coworkers(pair: Pair, guard: Guard) -> None:
    """Both work for a third one, who delegates to them in one turn."""
    one, two = pair.agents()
    two.role = "other"
    asks = [call("delegate_work_to_coworker", task="t", context="c", coworker=name) for name in ("twin", "other")]
    boss = agent("boss", asks, allow_delegation=True)
    guard_crew(Crew(agents=[boss, one, two], tasks=[task(boss)]), guard).kickoff()


def steps_of_a_plan(pair: Pair, guard: Guard) -> None:
    """Two steps of one agent's plan, which CrewAI runs in parallel."""
    turn = either(pair)[0]

    class Planner(Script):
        def call(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
            names = [(one.get("function") or one).get("name") for one in tools or []]
            if "create_reasoning_plan" in names:
                steps = [
                    {"step_number": n, "description": text, "tool_to_use": "write", "depends_on": []}
                    for n, text in enumerate(("early bird", "second one"), 1)
                ]
                return json.dumps({"plan": "p", "steps": steps, "ready": True})
            if "write" not in names:
                return "done"
            return turn(messages)

    planner = Planner(model="scripted")
    plan = PlanningConfig(reasoning_effort="low")
    Agent(
        role="twin", goal="g", backstory="b", llm=planner, tools=pair.tools, planning_config=plan, max_iter=9
    ).kickoff("do")


@pytest.mark.parametrize(
    "way",
    [
        twins_in_a_flow,
        twins_outside_of_everything,
        twins_asynchronous,
        twins_in_a_crew,
        one_agent_twice,
        one_agent_twice_by_text,
        crews_at_once,
        copies_of_a_crew,
        coworkers,
        steps_of_a_plan,
    ],
)
@pytest.mark.parametrize("stale", ["ignore", "reject"])
def test_nobody_knows_what_another_one_has_read(tmp_path: Path, stale: str, way: Any) -> None:
    pair = Pair(tmp_path)
    guard = Guard(root=tmp_path, resources={"notes.json": {"stale": stale}})
    for made in pair.tools:
        guard_tool(made, guard)
    way(pair, guard)
    if stale == "ignore":
        assert (pair.answer, kept(tmp_path)) == ("written", ["first"])  # the other one's work is gone
    else:
        assert "notes.json was changed by" in pair.answer and '+["second"]' in pair.answer
        assert kept(tmp_path) == ["second"]


def test_by_text_it_is_the_same(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    tools = [guard_tool(one, guard) for one in notes(tmp_path)]

    def change(_: Any) -> str:
        (tmp_path / "notes.json").write_text('["theirs"]')
        return react("write", text='["mine"]')

    asked = [react("read"), change, react("read"), react("write", text='["theirs", "mine"]')]
    one = agent("one", *asked, tools=tools, native=False)
    one.kickoff("go")
    assert kept(tmp_path) == ["theirs", "mine"]
    assert "changed by somebody outside the guard" in json.dumps(one.llm._seen[2])

    lite = Script(model="scripted", items=[react("read"), change, "done"], native=False)
    with pytest.warns(FutureWarning, match="LiteAgent"):
        LiteAgent(role="lite", goal="g", backstory="b", llm=lite, tools=tools).kickoff("go")
    assert kept(tmp_path) == ["theirs"]


def test_what_an_agent_knows_goes_with_it_from_task_to_task(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    tools = notes(tmp_path)

    def change(_: Any) -> Any:
        (tmp_path / "notes.json").write_text('["theirs"]')
        return [call("write", text='["mine"]')]

    one = agent("one", [call("read")], "read", change, "done", tools=tools)
    guard_crew(Crew(agents=[one], tasks=[task(one), task(one)]), guard).kickoff()
    assert kept(tmp_path) == ["theirs"]

    two = agent("two", [call("read")], "read", change, "done", tools=tools)
    (tmp_path / "notes.json").write_text("[]")

    class Work(Flow):  # type: ignore[type-arg]
        @start()
        def work(self) -> None:
            two.kickoff("read")
            two.kickoff("write")

    Work().kickoff()
    assert kept(tmp_path) == ["theirs"]


def test_agents_of_one_name_know_nothing_of_each_other_later_either(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    tools = [guard_tool(one, guard) for one in notes(tmp_path)]
    one = agent("twin", [call("read")], [call("write", text='["one"]')], tools=tools)
    two = agent("twin", [call("read")], "read", [call("write", text='["two"]')], tools=tools)

    class Work(Flow):  # type: ignore[type-arg]
        @start()
        def work(self) -> None:
            two.kickoff("read")
            one.kickoff("write")
            two.kickoff("write")

    Work().kickoff()
    assert kept(tmp_path) == ["one"]


def test_who_says_who_acts_remembers_by_that_name(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    tools = [guard_tool(one, guard) for one in notes(tmp_path)]
    turn = [call("write", text='["mine"]'), call("write", text='["mine too"]')]

    def change(_: Any) -> Any:
        (tmp_path / "notes.json").write_text('["theirs"]')
        return [call("write", text="[]")]

    one = agent("one", [call("read")], turn, [call("read")], change, tools=tools)
    with guard.agent("boss"):
        one.kickoff("go")
    _, first, second, _, third = told(one.llm._seen[-1], 5)
    assert first == "written"
    assert "earlier call of the same turn (agent 'boss' in write" in second
    assert "after agent 'boss' read it" in third
    assert kept(tmp_path) == ["theirs"]


def test_one_agent_alone_is_never_refused(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    tools = notes(tmp_path)

    def work() -> Generator[Any, list[dict[str, Any]], None]:
        for number in range(20):
            yield [call("read")]
            messages = yield [call("write", text=json.dumps(["x"] * number))]
            assert told(messages) == ["written"]
            (tmp_path / "notes.json").touch()

    one = agent("one", *played(work()), tools=tools)
    guard_crew(Crew(agents=[one], tasks=[task(one)]), guard).kickoff()
    assert len(kept(tmp_path)) == 19


# -- versions that the user tells ---


def test_the_version_of_a_key_is_what_the_user_says(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    row = {"revision": 1}

    @tool("look", reads="db:rows/{key}", version=lambda: row["revision"])
    def look(key: str) -> str:
        """Look."""
        return str(row)

    @tool("put", writes="db:rows/{key}", version=lambda: row["revision"])
    def put(key: str) -> str:
        """Put."""
        return "put"

    def change(_: Any) -> Any:
        row["revision"] = 2
        return [call("put", key="7")]

    one = agent(
        "one", [call("look", key="7")], change, [call("look", key="7")], [call("put", key="7")], tools=[look, put]
    )
    guard_crew(Crew(agents=[one], tasks=[task(one)]), guard).kickoff()
    answers = told(one.llm._seen[-1], 4)
    assert "db:rows/7 was changed by somebody outside" in answers[1] and answers[3] == "put"


def test_a_version_of_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="version="):
        tool("look", version=lambda: 1)(lambda: "x")
    with pytest.raises(ConfigError, match="plain function"):

        async def later() -> int:
            return 1

        tool("look", reads="db:x", version=later)(lambda: "x")


# -- what the model is told ---


def test_a_hundred_refusals_are_short_and_no_two_the_same() -> None:
    texts = []
    for number in range(100):
        long, wide = "lorem ipsum " * (number * 9), "名前" * number
        case = Case(
            [*Reason][number % len(Reason)],
            f"folder-{'x' * number}/{wide}.json",
            f"agent {wide}",
            f"tool {'y' * number}",
            Known("a" * 64, 1e9 * (number % 3)),
            "b" * 64,
            Change(number, (1, 2, 3, 4), 1e9, f"other {wide}", "run", "write", "") if number % 2 else None,
            f"{long}\n{wide}\n" * (number % 7),
            f"{wide}\n{long}\n" * (number % 5),
            "It could not be merged." * (number % 4),
        )
        texts.append(failure(refusal(case)).as_agent_message())
        texts.append(failure(REPORTED[number % len(REPORTED)](f"{wide}: {long}", resource=wide)).as_agent_message())
    assert len(set(texts)) == 200 and all("[refusal " in text for text in texts)
    assert max(map(tokens, texts)) <= 300


def test_a_refusal_says_what_to_do_and_carries_its_facts(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    read, write = (guard_tool(one, guard) for one in notes(tmp_path))
    with guard.agent("ann"):
        read.run()
        with guard.agent("bob"):
            write.run(text='["bob"]')
        answer = write.run(text='["ann"]')
    assert isinstance(answer, ToolFailure)
    assert answer.code == StaleWrite.code and answer.retryable
    assert answer.details["resource"] == "notes.json" and answer.details["changed_by"] == "bob in write"
    assert "Read notes.json again, then retry write" in answer.message and '+["bob"]' in answer.message
    json.dumps(answer.model_dump(mode="json"))
