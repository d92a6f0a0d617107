"""Several calls in one answer of a model: their order, what they know of each other, and calls that never come."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import guard_crew, guard_tool, hooks, install, registry, tool, tools, uninstall
from crewai.hooks import (
    register_before_tool_call_hook,
    unregister_before_tool_call_hook,
)
from crewai_support import MARKS, Agent, BaseTool, Crew, agent, call, results, task

import agentguard
from agentguard import Event, Guard, declare, flow

pytestmark = MARKS

LONG = 20.0


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(root=tmp_path, timeout=LONG)


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Locks and versions alone."""

    def patch() -> None:
        for module in (tools, hooks):
            monkeypatch.setattr(module, "spot_here", lambda: None)

    return patch


def without_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if somebody kept taking ours out."""
    registry.remove()
    monkeypatch.setattr(registry, "ensure", lambda **_: None)


@contextmanager
def before_each_call(hook: Callable[[Any], Any]) -> Iterator[None]:
    register_before_tool_call_hook(hook)
    try:
        yield
    finally:
        unregister_before_tool_call_hook(hook)


def run(one: Agent, guard: Guard) -> list[str]:
    """What the agent's only turn was answered, in its order."""
    guard_crew(Crew(agents=[one], tasks=[task(one)]), guard).kickoff()
    return results(one)


def append(name: str, text: str) -> str:
    file = agentguard.path(name)
    file.write_text((file.read_text() if file.exists() else "") + text)
    return file.read_text()


def adder(body: Callable[[str, str], str] = append) -> Any:
    @tool("add", updates="{name}")
    def add(name: str, text: str) -> str:
        """Append to a file."""
        return body(name, text)

    return add


def writer() -> Any:
    @tool("write", writes="{name}")
    def write(name: str, text: str) -> str:
        """Replace a file."""
        agentguard.path(name).write_text(text)
        return "written"

    return write


def reader() -> Any:
    @tool("read", reads="{name}")
    def read(name: str) -> str:
        """Read a file."""
        file = agentguard.path(name)
        return file.read_text() if file.exists() else "(nothing)"

    return read


# -- order ---


@pytest.mark.parametrize("repeat", [1, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
@pytest.mark.parametrize("way", ["no turns", "hooks", "no hooks"])
def test_twenty_calls_on_five_resources(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, no_turns: Any, way: str, repeat: int
) -> None:
    """The first call on each resource is held back, until a later one is done or has had the time for it."""
    done: dict[str, threading.Event] = {}
    late: set[str] = set()
    mutex = threading.Lock()

    def add(name: str, text: str) -> str:
        result = append(name, text)
        done[Path(name).name].set()  # it is led to its copy
        return result

    def hold_back(ctx: Any) -> None:
        name = ctx.tool_input["name"]
        with mutex:
            first = name not in late
            late.add(name)
        if first and ctx.tool_input["text"] == "0,":
            done[name].wait(0.3)

    names = [f"{number}.txt" for number in range(5)]
    turn = [(name, f"{step},") for step in range(4) for name in names]
    if way == "no turns":
        no_turns()
    elif way == "no hooks":
        without_hooks(monkeypatch)
        monkeypatch.setattr(flow, "PATIENCE", LONG)
    for _ in range(repeat):
        late.clear()
        done.update({name: threading.Event() for name in names})
        for name in names:
            (guard.root / name).unlink(missing_ok=True)
        one = agent("one", [call("add", name=name, text=text) for name, text in turn], tools=[adder(add)])
        with before_each_call(hold_back):
            run(one, guard)
        found = {name: (guard.root / name).read_text() for name in names}
        if way == "no turns":
            assert any(text != "0,1,2,3," for text in found.values())
            assert all(sorted(text) == sorted("0,1,2,3,") for text in found.values())
        else:
            assert found == dict.fromkeys(names, "0,1,2,3,")
            assert results(one) == [("0,1,2,3,")[: 2 * (step + 1)] for step in range(4) for _ in names]


def test_calls_without_a_common_resource_run_in_parallel(guard: Guard) -> None:
    together = threading.Barrier(5)

    def add(name: str, text: str) -> str:
        together.wait(LONG)  # all five resources at the same time, or never
        return append(name, text)

    turn = [call("add", name=f"{n}.txt", text=f"{step},") for step in range(4) for n in range(5)]
    run(agent("one", turn, tools=[adder(add)]), guard)
    assert {(guard.root / f"{n}.txt").read_text() for n in range(5)} == {"0,1,2,3,"}


def test_calls_that_only_read_run_in_parallel_and_one_after_a_write_sees_it(guard: Guard) -> None:
    (guard.root / "a.txt").write_text("old")
    before, behind = threading.Barrier(2), threading.Barrier(2)

    @tool("read", reads="{name}")
    def read(name: str) -> str:
        """Read."""
        found = agentguard.path(name).read_text()
        (before if found == "old" else behind).wait(LONG)
        return found

    look, write = call("read", name="a.txt"), call("write", name="a.txt", text="new")
    turn = [{**one, "id": f"id_{number}"} for number, one in enumerate((look, look, write, look, look))]
    one = agent("one", turn, tools=[read, writer()])
    assert run(one, guard) == ["old", "old", "written", "new", "new"]


def test_equal_calls_with_equal_ids_each_have_their_turn(guard: Guard) -> None:
    turn = [call("add", name="a.txt", text="x")] * 3  # one and the same, three times over
    answers = run(agent("one", turn, tools=[adder()]), guard)
    assert sorted(answers) == ["x", "xx", "xxx"]  # which of them is which, nobody can tell


def test_a_directory_comes_before_what_is_beneath_it(guard: Guard) -> None:
    (guard.root / "reports").mkdir()
    seen: list[list[str]] = []
    late = threading.Event()

    @tool("list", reads="reports/")
    def names() -> str:
        """List."""
        seen.append(sorted(file.name for file in (guard.root / "reports").iterdir()))
        return str(seen[-1])

    def hold_back(ctx: Any) -> None:
        if ctx.tool_name == "list":
            late.wait(0.2)

    turn = [call("add", name="reports/a.md", text="x"), call("list"), call("add", name="reports/b.md", text="y")]
    with before_each_call(hold_back):
        run(agent("one", turn, tools=[adder(), names]), guard)
    assert seen == [["a.md"]]


def test_tools_of_an_installed_guard_are_in_order_from_the_first_turn_on(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, tools={"late": {"updates": "{name}"}, "early": {"updates": "{name}"}})
    order: list[str] = []
    done = threading.Event()

    def note(kind: str) -> Any:
        @tool(kind)
        def made(name: str) -> str:
            """Note."""
            order.append(kind)
            done.set()
            return kind

        return made

    def hold_back(ctx: Any) -> None:
        if ctx.tool_name == "early":
            done.wait(0.3)

    registry.remove()
    with before_each_call(hold_back):  # before ours: `late` comes while nobody has guarded `early` yet
        install(guard)
        try:
            one = agent("one", [call("early", name="a"), call("late", name="a")], tools=[note("early"), note("late")])
            Crew(agents=[one], tasks=[task(one)]).kickoff()
        finally:
            uninstall()
    assert order == ["early", "late"]


def test_one_policy_for_unknown_tools_is_one_resource_of_a_turn(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, unknown_tools="serialize")
    order: list[int] = []
    done = threading.Event()

    @tool("note")
    def note(number: int) -> str:
        """Note."""
        order.append(number)
        done.set()
        return "noted"

    def hold_back(ctx: Any) -> None:
        if ctx.tool_input.get("number") == 0:
            done.wait(0.3)

    one = agent("one", [call("note", number=number) for number in range(3)], tools=[note])
    with before_each_call(hold_back):
        run(one, guard)
    assert order == [0, 1, 2]


# -- what the calls of a turn know of each other ---


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_the_second_of_two_whole_writes_is_refused(guard: Guard, no_turns: Any, known: bool, turns: bool) -> None:
    (guard.root / "a.txt").write_text("old")
    if not turns:
        no_turns()
    both = [call("write", name="a.txt", text=text) for text in ("first", "second")]
    again = [call("read", name="a.txt")], [call("write", name="a.txt", text="second, after a look")]
    one = agent("one", *([[call("read", name="a.txt")]] if known else []), both, *again, tools=[reader(), writer()])
    answers = run(one, guard)[known:]
    if turns:
        assert answers[0] == "written"
        assert "changed by an earlier call of the same turn" in answers[1] and "Nothing was applied" in answers[1]
        assert answers[2:] == ["first", "written"]
        assert (guard.root / "a.txt").read_text() == "second, after a look"
    else:
        assert answers[:2] == ["written", "written"]  # one of the two is gone, and nobody has ever seen it
        assert answers[2] in ("first", "second")


def test_a_read_of_the_same_turn_does_not_make_a_write_informed(guard: Guard) -> None:
    """Another agent wrote since; the model has not seen the answer of `read` when it asks for `write`."""
    (guard.root / "a.txt").write_text("old")

    def change(_: Any) -> Any:
        (guard.root / "a.txt").write_text("theirs")
        return [call("read", name="a.txt"), call("write", name="a.txt", text="mine")]

    one = agent("one", [call("read", name="a.txt")], change, tools=[reader(), writer()])
    answers = run(one, guard)
    assert answers[1] == "theirs" and "changed by somebody outside" in answers[2]
    assert (guard.root / "a.txt").read_text() == "theirs"


def test_updates_of_one_turn_all_count_and_the_next_turn_knows_them(guard: Guard) -> None:
    turn = [call("add", name="a.txt", text=text) for text in "abc"]
    then = [call("write", name="a.txt", text="all")]
    one = agent("one", [call("read", name="a.txt")], turn, then, tools=[reader(), adder(), writer()])
    assert run(one, guard)[1:] == ["a", "ab", "abc", "written"]


def test_a_turn_may_be_merged(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, resources={"a.json": {"stale": "merge"}})
    (tmp_path / "a.json").write_text('{"a": 0, "b": 0}')
    both = [call("write", name="a.json", text=text) for text in ('{"a": 1, "b": 0}', '{"a": 0, "b": 1}')]
    one = agent("one", [call("read", name="a.json")], both, tools=[reader(), writer()])
    assert run(one, guard)[1:] == ["written", "written"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1, "b": 1}


def test_what_a_tool_reads_and_writes_inside_is_one_call_of_the_turn(guard: Guard) -> None:
    (guard.root / "a.txt").write_text("old")
    read, write = guard_tool(reader(), guard), guard_tool(writer(), guard)

    @tool("rework")
    def rework() -> str:
        """Read and write, in one call."""
        found = read.run(name="a.txt")
        return str(write.run(name="a.txt", text=f"{found}!"))

    def change(_: Any) -> Any:
        (guard.root / "a.txt").write_text("theirs")
        return [call("rework"), call("read", name="b.txt")]

    one = agent("one", [call("read", name="a.txt")], change, tools=[read, rework])
    assert run(one, guard)[1] == "written"
    assert (guard.root / "a.txt").read_text() == "theirs!"


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("crew", [False, True])
def test_a_guarded_call_within_one_is_the_same_agents(guard: Guard, crew: bool, named: bool) -> None:
    (guard.root / "a.txt").write_text("old")
    write = guard_tool(writer(), guard)

    @tool("rework", updates="a.txt")
    def rework() -> str:
        """Append, and replace what came out of it."""
        return str(write.run(name="a.txt", text=append("a.txt", "+") + "!"))

    turn = [call("rework"), call("read", name="b.txt")]
    one = agent("one", [call("read", name="a.txt")], turn, tools=[reader(), rework])
    for made in one.tools or ():
        guard_tool(made, guard)
    work = Crew(agents=[one], tasks=[task(one)]).kickoff if crew else lambda: one.kickoff("go")
    with guard.agent("boss") if named else nullcontext():
        work()
    assert results(one)[1] == "written"
    assert (guard.root / "a.txt").read_text() == "old+!"


# -- calls that never come ---


def blocking(ctx: Any) -> bool | None:
    return False if ctx.tool_input.get("text") == "blocked" else None


class Line(BaseModel):
    name: str
    text: str

    @field_validator("text")
    @classmethod
    def is_short(cls, text: str) -> str:
        if text == "invalid":
            raise ValueError("no such text")
        return text


class Add(BaseTool):
    name: str = "add"
    description: str = "Append to a file."
    args_schema: type[BaseModel] = Line

    @declare(updates="{name}")
    def _run(self, name: str, text: str) -> str:
        return append(name, text)


def broken(name: str) -> dict[str, Any]:
    return {"id": "broken", "type": "function", "function": {"name": name, "arguments": '{"name": "a.txt", '}}


NEVER: dict[str, Any] = {
    "arguments that are no JSON": broken("add"),
    "arguments that are no object": {
        "id": "list",
        "type": "function",
        "function": {"name": "add", "arguments": '["a.txt"]'},
    },
    "arguments that are refused": call("add", name="a.txt", text="invalid"),
    "blocked by a hook": call("add", name="a.txt", text="blocked"),
    "no such tool": call("unheard_of", name="a.txt", text="x"),
    "no such name": call("add", name="../a.txt", text="x"),
}


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("never", NEVER)
def test_a_call_that_never_comes_holds_up_nobody(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, never: str, hooked: bool
) -> None:
    if hooked or never != "blocked by a hook":
        monkeypatch.setattr(flow, "PATIENCE", LONG)  # nothing is waited for on chance
    made = guard_tool(Add(), guard)
    turn = [NEVER[never], call("add", name="a.txt", text="b"), call("add", name="a.txt", text="c")]
    one = agent("one", turn, tools=[made])

    if not hooked:
        without_hooks(monkeypatch)
    began = time.monotonic()
    with before_each_call(blocking):
        one.kickoff("go")
    assert time.monotonic() - began < LONG / 2
    assert results(one)[-2:] == ["b", "bc"]
    assert (guard.root / "a.txt").read_text() == "bc"


def test_a_call_that_somebody_has_to_allow_is_waited_for(guard: Guard) -> None:
    """However long that takes, later calls on the same resource come after it, or not before it was rejected."""
    arrived, answers = threading.Event(), []

    def ask(ctx: Any) -> bool | None:
        if ctx.tool_input["text"] in ("yes", "no"):
            assert arrived.wait(LONG)
            return ctx.tool_input["text"] == "yes"
        arrived.set()
        return None

    for text in ("yes", "no"):
        arrived.clear()
        (guard.root / "a.txt").unlink(missing_ok=True)
        turn = [call("add", name="a.txt", text=text), call("add", name="a.txt", text=", and then")]
        with before_each_call(ask):
            answers.append(run(agent("one", turn, tools=[adder()]), guard)[-1])
    assert answers == ["yes, and then", ", and then"]


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("limit", ["result_as_answer", "max_usage_count"])
def test_calls_one_after_the_other_wait_for_nothing(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, limit: str, hooked: bool
) -> None:
    monkeypatch.setattr(flow, "PATIENCE", LONG)
    options: dict[str, Any] = {"result_as_answer": True} if limit == "result_as_answer" else {"max_usage_count": 1}

    @tool("last", updates="a.txt", **options)
    def last() -> str:
        """Append a last line."""
        return append("a.txt", "last")

    turn = [call("add", name="a.txt", text="x"), call("last"), call("last"), call("add", name="a.txt", text="y")]
    began = time.monotonic()
    one = agent("one", turn, tools=[adder(), last])
    crew = guard_crew(Crew(agents=[one], tasks=[task(one), task(one, "again")]), guard)
    if not hooked:
        without_hooks(monkeypatch)
    crew.kickoff()
    assert time.monotonic() - began < LONG / 2
    assert (guard.root / "a.txt").read_text() == ("xlast" if limit == "result_as_answer" else "xlasty")


def test_what_a_turn_that_was_cut_off_has_read_is_known(guard: Guard) -> None:
    (guard.root / "a.txt").write_text("old")

    @tool("finish", result_as_answer=True)
    def finish() -> str:
        """Finish."""
        return "finished"

    cut = [call("read", name="a.txt"), call("finish"), call("read", name="a.txt")]

    def change(_: Any) -> Any:
        (guard.root / "a.txt").write_text("theirs")
        return [call("write", name="a.txt", text="mine")]

    one = agent("one", cut, change, tools=[reader(), finish, writer()])
    guard_crew(Crew(agents=[one], tasks=[task(one), task(one)]), guard).kickoff()
    assert (guard.root / "a.txt").read_text() == "theirs"


@pytest.mark.parametrize("hooked", [True, False])
def test_a_refused_call_lets_the_next_one_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hooked: bool) -> None:
    guard = Guard(root=tmp_path, timeout=LONG, resources={"b.txt": {"timeout": 0.05}})
    events: list[Event] = []
    guard.hooks.append(events.append)

    @tool("both", updates=["a.txt", "b.txt"])
    def both(text: str) -> str:
        """Append to one of two files."""
        return append("a.txt", text)

    with guard.hold(updates="b.txt"):
        turn = [call("both", text="x"), call("add", name="a.txt", text="y")]
        one = agent("one", turn, tools=[both, adder()])
        crew = guard_crew(Crew(agents=[one], tasks=[task(one)]), guard)
        if not hooked:
            without_hooks(monkeypatch)
        thread = threading.Thread(target=crew.kickoff)
        thread.start()
        thread.join(LONG / 2)
        assert not thread.is_alive()
    assert (guard.root / "a.txt").read_text() == "y"
    assert [event.details["code"] for event in events if event.kind == "refused"] == ["timeout"]


# -- the stack is read, and nothing depends on finding it ---


def test_a_stack_that_looks_unlike_crewai_gives_no_turn(guard: Guard) -> None:
    def _execute_single_native_tool_call(self: Any) -> Any:
        return guard_tool(adder(), guard).run(name="a.txt", text="x")

    assert _execute_single_native_tool_call(object()) == "x"
    pretending = {"__name__": "crewai.later", "tool": guard_tool(adder(), guard)}
    exec(  # a future CrewAI whose frames have nothing of what is looked for
        "def _execute_single_native_tool_call():\n    return tool.run(name='a.txt', text='y')", pretending
    )
    assert pretending["_execute_single_native_tool_call"]() == "xy"  # type: ignore[operator]
