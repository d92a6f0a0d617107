"""Whole crews: parallel calls, shards and their joins, identity, and what survives copies and cleared hooks."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import guard_crew, guard_tool, hooks, join_reports, tool
from agentguard_crewai.identity import CALLER
from crewai.hooks import HookAborted, ToolCallHookContext, clear_all_hooks
from crewai.tasks.conditional_task import ConditionalTask
from crewai_support import MARKS, BaseTool, Crew, Tool, agent, call, meeting, react, results, task

import agentguard
from agentguard import ConfigError, Event, Guard, MergeConflict, declare

pytestmark = MARKS

WAYS = ["kickoff", "akickoff"]


def run(crew: Crew, way: str = "kickoff", **options: Any) -> Any:
    return crew.kickoff(**options) if way == "kickoff" else asyncio.run(crew.akickoff(**options))


def make_guard(folder: Path, mode: str = "serialize", **settings: Any) -> Guard:
    (folder / "items.json").write_text("[]")
    return Guard(root=folder, resources={"items.json": {"mode": mode, "paths": {"": "append"}}}, **settings)


def adder(think: Callable[[], Any] = lambda: None) -> Tool[..., Any]:
    @tool("add item", updates="items.json")
    def add(item: str) -> str:
        """Add an item."""
        file = agentguard.path("items.json")
        items = json.loads(file.read_text())
        think()
        file.write_text(json.dumps([*items, item]))
        return f"{len(items) + 1} items in {file}"

    return add


def items(guard: Guard) -> list[str]:
    return list(json.loads((guard.root / "items.json").read_text()))


def pair(add: Tool[..., Any], *, closing: bool = True) -> Crew:
    """Two agents that add an item each at the same time, and one that adds a third when they have."""
    ann, bob = (agent(name, [call("add_item", item=name)], tools=[add]) for name in ("ann", "bob"))
    eve = agent("eve", [call("add_item", item="eve")], tools=[add])
    tasks = [task(ann, async_execution=True), task(bob, async_execution=True)]
    return Crew(agents=[ann, bob, eve], tasks=[*tasks, task(eve)] if closing else [task(eve), *tasks[:1]])


# -- in parallel ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["off", "serialize", "shard"])
def test_eight_native_calls_of_one_turn(tmp_path: Path, mode: str, way: str) -> None:
    guard = make_guard(tmp_path, "serialize" if mode == "off" else mode)
    with meeting(8, patience=5.0 if mode == "off" else 0.02) as meet:
        add = adder(meet) if mode != "off" else _plain(tmp_path, meet)
        one = agent("one", [call("add_item", item=str(n)) for n in range(8)], tools=[add])
        crew = Crew(agents=[one], tasks=[task(one)])
        run(crew if mode == "off" else guard_crew(crew, guard), way)
    assert sorted(items(guard)) == (sorted(items(guard))[:1] if mode == "off" else [str(n) for n in range(8)])


def _plain(folder: Path, think: Callable[[], Any]) -> Tool[..., Any]:
    @tool("add item")
    def add(item: str) -> str:
        """Add an item."""
        file = folder / "items.json"
        found = json.loads(file.read_text())
        think()
        file.write_text(json.dumps([*found, item]))
        return "added"

    return add


@pytest.mark.parametrize("way", WAYS)
def test_shards_are_isolated_until_the_next_synchronous_task(tmp_path: Path, way: str) -> None:
    guard = make_guard(tmp_path, "shard")
    seen: list[list[str]] = []
    with meeting(2) as meet:

        def think() -> None:
            if len(seen) < 2:
                meet()  # both have read, and neither waits for the other's lock
            seen.append(items(guard))

        crew = guard_crew(pair(adder(think)), guard)
        run(crew, way)
    assert seen == [[], [], ["ann", "bob"]]
    assert items(guard) == ["ann", "bob", "eve"]
    assert results(crew.agents[2]) == ["3 items in items.json"]
    assert results(crew.agents[0]) == ["1 items in items.json"]
    assert [report.shards for report in join_reports(guard, crew)] == [2, 1]
    assert not list((tmp_path / ".agentguard" / "shards").rglob("items.json"))


@pytest.mark.parametrize("way", WAYS)
def test_what_async_tasks_wrote_last_is_joined_when_the_kickoff_ends(tmp_path: Path, way: str) -> None:
    guard = make_guard(tmp_path, "shard")
    run(guard_crew(pair(adder(), closing=False), guard), way)
    assert items(guard) == ["eve", "ann"]


@pytest.mark.parametrize("way", WAYS)
def test_a_failed_kickoff_joins_the_calls_that_were_made(tmp_path: Path, way: str) -> None:
    guard = make_guard(tmp_path, "shard")

    def fail(_: Any) -> Any:
        raise RuntimeError("the model is gone")

    one = agent("one", [call("add_item", item="first")], fail, tools=[adder()], max_retry_limit=0)
    with pytest.raises(RuntimeError, match="the model is gone"):
        run(guard_crew(Crew(agents=[one], tasks=[task(one)]), guard), way)
    assert items(guard) == ["first"]


@pytest.mark.parametrize("way", WAYS)
def test_a_conflict_stops_the_kickoff_and_keeps_every_side(tmp_path: Path, way: str) -> None:
    (tmp_path / "title.json").write_text('{"title": "old"}')
    guard = Guard(root=tmp_path, resources={"title.json": {"mode": "shard"}})

    @tool(updates="title.json")
    def name(title: str) -> str:
        """Name it."""
        agentguard.path("title.json").write_text(json.dumps({"title": title}))
        return "named"

    ann, bob = (agent(who, [call("name", title=who)], tools=[name]) for who in ("ann", "bob"))
    eve = agent("eve", "never asked")
    tasks = [task(ann, async_execution=True), task(bob, async_execution=True), task(eve)]
    with pytest.raises(MergeConflict) as caught:
        run(guard_crew(Crew(agents=[ann, bob, eve], tasks=tasks), guard), way)
    assert isinstance(caught.value, HookAborted)
    assert "title.json" in str(caught.value) and caught.value.resources == ("title.json",)
    assert type(pickle.loads(pickle.dumps(caught.value))) is MergeConflict
    assert json.loads((tmp_path / "title.json").read_text()) == {"title": "old"}
    kept = sorted(file.read_text() for file in tmp_path.rglob("ours/title.json"))
    assert kept == ['{"title": "ann"}', '{"title": "bob"}']
    assert not eve.llm._seen


def test_a_conflict_at_the_end_of_the_kickoff_is_raised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make_guard(tmp_path, "shard")

    def join(**_: Any) -> Any:
        raise MergeConflict("sides disagree", resources=("items.json",))

    crew = guard_crew(pair(adder(), closing=False), guard)
    crew.tasks = crew.tasks[1:]
    monkeypatch.setattr(guard, "join", join)
    with pytest.raises(MergeConflict, match="sides disagree"):
        crew.kickoff()


def test_late_writers_are_kept_and_reported_never_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = make_guard(tmp_path, "shard")
    wrote, over, finished = threading.Event(), threading.Event(), threading.Event()

    def fail(_: Any) -> Any:
        assert wrote.wait(20)
        raise RuntimeError("the model is gone")

    def late(_: Any) -> Any:
        wrote.set()
        assert over.wait(20)
        return [call("add_item", item="late")]

    def finish(_: Any) -> str:
        finished.set()
        return "done"

    one = agent("one", fail, max_retry_limit=0)
    two = agent("two", [call("add_item", item="early")], late, finish, tools=[adder()])
    crew = Crew(agents=[one, two], tasks=[task(one, async_execution=True), task(two, async_execution=True), task(one)])
    guard_crew(crew, guard)
    with caplog.at_level(logging.WARNING, "agentguard"), pytest.raises(RuntimeError):
        crew.kickoff()
    assert items(guard) == ["early"]
    over.set()
    assert finished.wait(20)
    assert items(guard) == ["early"]
    assert "still calls tools after the kickoff" in caplog.text
    (shard,) = guard.shards.runs()
    guard.join(run=shard.identity.run)
    assert items(guard) == ["early", "late"]


# -- identity ---


def test_calls_are_made_as_the_agent_in_the_task_of_the_kickoff(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    found: list[Event] = []
    guard.hooks.append(lambda event: found.append(event) if event.kind == "committed" else None)
    add = adder()
    twins = [agent("twin", [call("add_item", item=str(n))], tools=[add]) for n in range(2)]
    wordy = agent("word " * 60, [call("add_item", item="x")], tools=[add])
    crew = guard_crew(Crew(agents=[*twins, wordy], tasks=[task(one) for one in (*twins, wordy)]), guard)
    crew.kickoff()
    first, second, third = found
    assert (first.agent, second.agent) == ("twin", "twin (2)")
    assert third.agent.startswith("word word") and len(third.agent) < 100
    assert first.run == second.run == f"crew-{crew._kickoff_event_id}"
    add.run(item="outside")
    assert found[-1].run == guard.run and found[-1].agent == "MainThread"


def test_what_the_application_calls_between_tasks_is_no_agents_call(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    found: list[Event] = []
    guard.hooks.append(lambda event: found.append(event) if event.kind == "committed" else None)
    add = adder()
    ann = agent("ann", [call("add_item", item="ann")], tools=[add])

    def condition(_: Any) -> bool:
        add.run(item="between")
        return False

    last = ConditionalTask(description="t", expected_output="x", agent=ann, condition=condition)
    guard_crew(Crew(agents=[ann], tasks=[task(ann), last]), guard).kickoff()
    assert [(event.agent, event.run == guard.run) for event in found] == [("ann", False), ("MainThread", True)]


def test_whose_call_it_was_is_forgotten_after_it() -> None:
    ctx = ToolCallHookContext("look", {}, tool=adder().to_structured_tool(), agent=agent("ann"))
    hooks.pre_tool_call(ctx)
    assert CALLER.get() is not None
    assert hooks.post_tool_call(ctx) is None and CALLER.get() is None


def test_an_agent_without_a_crew_is_named_and_serialized(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    found: list[Event] = []
    guard.hooks.append(lambda event: found.append(event) if event.kind == "committed" else None)
    guard_crew(pair(adder()), guard)  # somebody has the hooks in place
    one = agent("loner", [call("add_item", item="x")], tools=[guard_tool(adder(), guard)])
    one.kickoff("go")
    with guard.agent("boss"):
        agent("loner", [call("add_item", item="y")], tools=one.tools).kickoff("go")
    assert [event.agent for event in found] == ["loner", "boss"]


def test_a_write_that_is_based_on_an_older_version_is_refused(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path)
    (tmp_path / "plan.md").write_text("a plan")
    turns = {"ann": threading.Event(), "bob": threading.Event()}

    @tool(reads="plan.md")
    def read() -> str:
        """Read the plan."""
        return agentguard.path("plan.md").read_text()

    @tool(writes="plan.md")
    def write(text: str) -> str:
        """Write the plan."""
        agentguard.path("plan.md").write_text(text)
        return "written"

    def after_bob(_: Any) -> Any:
        turns["ann"].set()
        assert turns["bob"].wait(20)
        return [call("write", text="ann's")]

    def after_ann(_: Any) -> Any:
        assert turns["ann"].wait(20)
        return [call("write", text="bob's")]

    def done(_: Any) -> str:
        turns["bob"].set()
        return "done"

    ann = agent("ann", [call("read")], after_bob, tools=[read, write])
    bob = agent("bob", after_ann, done, tools=[read, write])
    eve = agent("eve")
    tasks = [task(ann, async_execution=True), task(bob, async_execution=True), task(eve)]
    crew = guard_crew(Crew(agents=[ann, bob, eve], tasks=tasks), guard)
    crew.kickoff()
    assert (tmp_path / "plan.md").read_text() == "bob's"
    text = results(ann)[-1]
    assert "plan.md was changed by agent 'bob' in write" in text and "Read plan.md again" in text and "+bob's" in text
    (failed,) = tasks[0].output.tool_failures
    assert failed.failure.code == "conflict" and failed.failure.details["changed_by"] == "bob in write"


# -- every path of the framework ---


@pytest.mark.parametrize("native", [True, False])
def test_a_refused_call_runs_once_and_its_body_never(tmp_path: Path, native: bool) -> None:
    guard = make_guard(tmp_path, timeout=0)
    tried: list[Event] = []
    ran: list[int] = []
    add = adder(lambda: ran.append(1))
    ask: Any = [call("add_item", item="x")] if native else react("add_item", item="x")
    one = agent("one", ask, tools=[add], native=native)
    crew = guard_crew(Crew(agents=[one], tasks=[task(one)]), guard)
    inner = guard.call

    def counting(*args: Any, **kwargs: Any) -> Any:
        tried.append(args[1])
        return inner(*args, **kwargs)

    guard.call = counting  # type: ignore[method-assign]
    with guard.hold(updates="items.json"):
        thread = threading.Thread(target=crew.kickoff)
        thread.start()
        thread.join()
    assert not ran and len(tried) == 1
    assert "held by" in json.dumps(one.llm._seen[-1])


def test_by_text_a_guarded_call_works_like_any_other(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    one = agent("one", react("add_item", item="x"), react("add_item", item="y"), tools=[adder()], native=False)
    guard_crew(Crew(agents=[one], tasks=[task(one)]), guard).kickoff()
    assert items(guard) == ["x", "y"]


def test_no_result_comes_from_the_cache(tmp_path: Path) -> None:
    def added(crew: Crew) -> int:
        (tmp_path / "items.json").write_text("[]")
        crew.kickoff()
        return len(json.loads((tmp_path / "items.json").read_text()))

    def crew_of(add: Tool[..., Any]) -> Crew:
        one = agent("one", *[[call("add_item", item="same")]] * 3, tools=[add])
        return Crew(agents=[one], tasks=[task(one)], cache=True)

    guard = make_guard(tmp_path)
    assert added(crew_of(_plain(tmp_path, lambda: None))) == 1
    assert added(guard_crew(crew_of(adder()), guard)) == 3


def test_tools_of_tasks_and_tools_that_come_later_are_guarded(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, "shard")
    ann = agent("ann", [call("add_item", item="ann")])
    bob = agent("bob", [call("add_item", item="bob")])
    tasks = [task(ann, async_execution=True, tools=[adder()]), task(bob)]
    crew = guard_crew(Crew(agents=[ann, bob], tasks=tasks), guard)
    bob.tools = [adder()]
    crew.kickoff()
    assert items(guard) == ["ann", "bob"]
    assert len(join_reports(guard)) == 2


@pytest.mark.parametrize("cleared", [False, True])
def test_copies_of_a_crew_are_guarded(tmp_path: Path, cleared: bool) -> None:
    guard = make_guard(tmp_path, "shard")
    crew = guard_crew(pair(adder()), guard)
    if cleared:
        clear_all_hooks()
    asyncio.run(crew.kickoff_for_each_async([{"n": n} for n in range(3)]))
    assert sorted(items(guard)) == sorted(["ann", "bob", "eve"] * 3)
    assert len(join_reports(guard)) == 6
    assert len({report.run for report in join_reports(guard)}) == 3


def test_a_guarded_crew_is_saved_like_any_other(tmp_path: Path) -> None:
    class Save(BaseTool):
        name: str = "save"
        description: str = "d"

        @declare(updates="items.json")
        def _run(self, item: str) -> str:
            return item

    one = agent("one", tools=[Save()])
    crew = Crew(agents=[one], tasks=[task(one)])
    before = json.loads(crew.model_dump_json())
    after = json.loads(guard_crew(crew, make_guard(tmp_path)).copy().model_dump_json())
    assert after.keys() == before.keys() and after["agents"][0].keys() == before["agents"][0].keys()
    assert after["agents"][0]["tools"][0]["cache_function"] == "agentguard_crewai.caching.never_cache"


@pytest.mark.parametrize("way", WAYS)
def test_cleared_hooks_come_back_with_the_next_kickoff(tmp_path: Path, way: str) -> None:
    guard = make_guard(tmp_path, "shard")
    crew = guard_crew(pair(adder()), guard)
    clear_all_hooks()
    run(crew, way)
    assert items(guard) == ["ann", "bob", "eve"]
    assert [report.shards for report in join_reports(guard, crew)] == [2, 1]


def test_a_second_kickoff_of_the_same_crew_is_a_run_of_its_own(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, "shard")
    crew = guard_crew(pair(adder()), guard)
    crew.kickoff()
    for one in crew.agents:
        one.llm._turn = 0
    crew.kickoff()
    assert items(guard) == ["ann", "bob", "eve"] * 2
    assert len(join_reports(guard)) == 4 and len(join_reports(guard, crew)) == 2


# -- bad input ---


def test_what_is_no_crew_and_what_has_another_guard_is_refused(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    with pytest.raises(ConfigError, match=r"\.crew\(\)"):
        guard_crew(object(), guard)  # type: ignore[type-var]
    crew = pair(adder())
    assert guard_crew(guard_crew(crew, guard), guard) is crew
    other = Guard(root=tmp_path)
    with pytest.raises(ConfigError, match="guarded already"):
        guard_crew(crew, other)
    with pytest.raises(ConfigError, match="guarded already"):
        guard_crew(pair(crew.agents[0].tools[0]), other)


def test_a_tool_that_comes_later_with_another_guard_stops_the_kickoff(tmp_path: Path) -> None:
    crew = guard_crew(pair(adder()), make_guard(tmp_path))
    crew.agents[0].tools = [guard_tool(adder(), Guard(root=tmp_path))]
    with pytest.raises(ConfigError, match="guarded already"):
        crew.kickoff()
