"""The calls of one model turn: their order on what they share, whatever becomes of them, in every kind of graph."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import agentguard_langgraph.turns
import pytest
from agentguard_langgraph import GuardMiddleware, guard_graph, guard_tools, guarded_tool_node, tool
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, Send, TimeoutPolicy, interrupt
from langgraph_support import Notes, Scripted, answers, call, run, says, turns

import agentguard
from agentguard import Event, Guard
from agentguard.turns import Turn

pytestmark = pytest.mark.langgraph

LONG = 30.0  # nobody waits for so long, unless a test fails
CALLS, LOGS = 20, 5
BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])
# Every pair of a way to run a graph and a kind of tool that LangChain can bring together.
KINDS = pytest.mark.parametrize(
    ("asynchronous", "native"),
    [(False, False), (True, False), (True, True)],
    ids=["invoke-def", "ainvoke-def", "ainvoke-async def"],
)

SOME_KINDS = pytest.mark.parametrize(
    ("asynchronous", "native"), [(False, False), (True, True)], ids=["invoke-def", "ainvoke-async def"]
)

ToolCall = dict[str, Any]
Decide = Callable[[ToolCall], "Future[None] | ToolMessage | None"]


# -- graphs ---


class Outside(AgentMiddleware[Any, Any, Any]):
    """What stands around the guard: it lets a call wait for something, or answers it without making it."""

    def __init__(self, decide: Decide = lambda call: None) -> None:
        super().__init__()
        self.decide = decide

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        found = self.decide(request.tool_call)
        if isinstance(found, Future):
            found.result(LONG)
        return found if isinstance(found, ToolMessage) else handler(request)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        found = self.decide(request.tool_call)
        if isinstance(found, Future):
            await until(found)
        return found if isinstance(found, ToolMessage) else await handler(request)


async def until(future: Future[None]) -> None:
    done, _ = await asyncio.wait([asyncio.wrap_future(future)], timeout=LONG)
    assert done, "nobody came"


Place = Callable[..., Any]
"""(model, tools, guard, middleware=[...], **options of compile) -> a graph"""


def loop_of(model: Scripted, node: Any, guard: Guard | None = None, **options: Any) -> Any:
    """model -> tools -> model, as everybody builds it by hand."""

    def answer(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    def goes_on(state: MessagesState) -> str:
        last = state["messages"][-1]
        return "tools" if isinstance(last, AIMessage) and last.tool_calls else "__end__"

    builder = StateGraph(MessagesState)
    builder.add_node("model", answer)
    builder.add_node("tools", node)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", goes_on, ["tools", "__end__"])
    builder.add_edge("tools", "model")
    return builder.compile(**options) if guard is None else guard_graph(builder, guard, **options)


def wrapping(middleware: Sequence[AgentMiddleware[Any, Any, Any]]) -> dict[str, Any]:
    if not middleware:
        return {}
    (one,) = middleware
    return {"wrap_tool_call": one.wrap_tool_call, "awrap_tool_call": one.awrap_tool_call}


def in_guarded_tool_node(model: Scripted, tools: Any, guard: Guard, middleware: Any = (), **options: Any) -> Any:
    return loop_of(model, guarded_tool_node(tools, guard, **wrapping(middleware)), **options)


def in_guarded_graph(model: Scripted, tools: Any, guard: Guard, middleware: Any = (), **options: Any) -> Any:
    return loop_of(model, ToolNode(tools, **wrapping(middleware)), guard, **options)


def in_tool_node(model: Scripted, tools: Any, guard: Guard, middleware: Any = (), **options: Any) -> Any:
    return loop_of(model, ToolNode(guard_tools(tools, guard), **wrapping(middleware)), **options)


def in_agent(model: Scripted, tools: Any, guard: Guard, middleware: Any = (), **options: Any) -> Any:
    return create_agent(model, tools, middleware=[*middleware, GuardMiddleware(guard)], **options)


def in_agent_of_guarded_tools(model: Scripted, tools: Any, guard: Guard, middleware: Any = (), **options: Any) -> Any:
    return create_agent(model, guard_tools(tools, guard), middleware=middleware, **options)


def in_agent_of_a_guarded_graph(model: Scripted, tools: Any, guard: Guard, middleware: Any = (), **options: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("agent", create_agent(model, tools, middleware=middleware))
    builder.add_edge(START, "agent")
    return guard_graph(builder, guard, **options)


TOOL_NODES: list[Place] = [in_guarded_tool_node, in_guarded_graph, in_tool_node]
AGENTS: list[Place] = [in_agent, in_agent_of_guarded_tools, in_agent_of_a_guarded_graph]
PLACES = pytest.mark.parametrize("place", [*TOOL_NODES, *AGENTS], ids=lambda place: place.__name__[3:])
# Where it is known of every call when it ends, also of those that never come.
EXACT = pytest.mark.parametrize(
    "place", [one for one in [*TOOL_NODES, *AGENTS] if one is not in_tool_node], ids=lambda place: place.__name__[3:]
)
GO: dict[str, Any] = {"messages": [HumanMessage("go")]}


# -- tools ---


class Logs:
    """Logs in files, and tools that append to them and read them. `ran`: the numbers of the bodies, as they began."""

    def __init__(self, root: Path, *, native: bool = False, seconds: float = 0.0) -> None:
        self.root, self.native, self.seconds = root, native, seconds
        self.ran: list[int] = []
        self.inside = self.peak = 0
        self.bodies: dict[int, Callable[[], Future[None] | None]] = {}  # what else happens in the body of a call
        self.left: Callable[[int], object] = lambda n: None
        self._mutex = threading.Lock()

    def __getitem__(self, log: str) -> list[str]:
        file = self.root / f"{log}.txt"
        return file.read_text().split() if file.exists() else []

    def tools(self) -> list[BaseTool]:
        def append(n: int, log: str) -> str:
            """Append to a log."""
            with self._in(n) as future:
                if future is not None:
                    future.result(LONG)
                time.sleep(self.seconds)
                return self._append(n, log)

        async def aappend(n: int, log: str) -> str:
            """Append to a log."""
            with self._in(n) as future:
                if future is not None:
                    await until(future)
                await asyncio.sleep(self.seconds)
                return self._append(n, log)

        def look(n: int, log: str) -> str:
            """Read a log."""
            with self._in(n) as future:
                if future is not None:
                    future.result(LONG)
                time.sleep(self.seconds)
                return self._look(log)

        async def alook(n: int, log: str) -> str:
            """Read a log."""
            with self._in(n) as future:
                if future is not None:
                    await until(future)
                await asyncio.sleep(self.seconds)
                return self._look(log)

        return [
            tool("append", updates="{log}.txt")(aappend if self.native else append),
            tool("look", reads="{log}.txt")(alook if self.native else look),
        ]

    @contextlib.contextmanager
    def _in(self, n: int) -> Iterator[Future[None] | None]:
        with self._mutex:
            self.ran.append(n)
            self.inside += 1
            self.peak = max(self.peak, self.inside)
        try:
            yield self.bodies.get(n, lambda: None)()
        finally:
            with self._mutex:
                self.inside -= 1
            self.left(n)

    def _append(self, n: int, log: str) -> str:
        with agentguard.path(self.root / f"{log}.txt").open("a") as file:
            file.write(f"{n}\n")
        return f"appended {n}"

    def _look(self, log: str) -> str:
        file = agentguard.path(self.root / f"{log}.txt")
        return "read " + " ".join(file.read_text().split() if file.exists() else [])


def append(n: int, log: str = "a") -> ToolCall:
    return call("append", n=n, log=log)


def look(n: int, log: str = "a") -> ToolCall:
    return call("look", n=n, log=log)


class Meeting:
    """Calls that all must be inside before any of them goes on."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._met: Future[None] = Future()
        self._mutex = threading.Lock()

    def __call__(self) -> Future[None]:
        with self._mutex:
            self._left -= 1
            if self._left == 0:
                self._met.set_result(None)
        return self._met


class Arrivals:
    """Who has come to the guard, or has even run. By `hold` a call is kept outside until the next one has come: the
    last one comes first, also where only `width` calls can be under way at once."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch, *, width: int | None = None) -> None:
        self.width = width or size
        self.came: list[Future[None]] = [Future() for _ in range(size)]
        self._mutex = threading.Lock()
        come = Turn.come

        def came(turn: Turn, place: int) -> None:
            come(turn, place)
            self.tell(place)

        monkeypatch.setattr(Turn, "come", came)

    def tell(self, n: int) -> None:
        with self._mutex:
            if not self.came[n].done():
                self.came[n].set_result(None)

    def hold(self, call: ToolCall) -> Future[None] | None:
        following = call["args"]["n"] + 1
        return self.came[following] if following < len(self.came) and following % self.width else None


# -- what every test begins and ends with ---


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(tmp_path, timeout=LONG, durable=False)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a while in the hope that somebody comes, waits for ever."""
    monkeypatch.setattr(agentguard.flow, "PATIENCE", 1e6)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    agentguard_langgraph.turns._turns.clear()  # one test that fails is enough
    yield
    if agentguard_langgraph.turns._turns:  # only after something has failed
        gc.collect()
    assert not agentguard_langgraph.turns._turns
    assert Guard(tmp_path).status().holders == ()


def contents(result: Any) -> list[str]:
    return [str(answer.content) for answer in answers(result)]


def errors(result: Any) -> list[bool]:
    return [answer.status == "error" for answer in answers(result)]


# -- order ---


def many_calls(width: int = CALLS) -> list[ToolCall]:
    """Four calls on each of five logs, the third of them a read. In a small pool those of one log must be neighbours to
    meet each other."""
    rounds = [(n % LOGS, n // LOGS) if width >= CALLS else (n // 4, n % 4) for n in range(CALLS)]
    return [(look if turn == 2 else append)(n, str(log)) for n, (log, turn) in enumerate(rounds)]


def sequentially(calls: Sequence[ToolCall]) -> tuple[list[str], dict[str, list[str]]]:
    """The answers and the logs, had one call been made after the other."""
    logs: dict[str, list[str]] = {}
    told: list[str] = []
    for one in calls:
        log, n = logs.setdefault(one["args"]["log"], []), one["args"]["n"]
        if one["name"] == "look":
            told.append(f"read {' '.join(log)}".strip())
        else:
            log.append(str(n))
            told.append(f"appended {n}")
    return told, logs


def told_and_logs(result: Any, logs: Logs) -> tuple[list[str], dict[str, list[str]]]:
    return [told.strip() for told in contents(result)], {str(log): logs[str(log)] for log in range(LOGS)}


def width_of(place: Place, concurrency: int, asynchronous: bool) -> int:
    return CALLS if asynchronous and place in TOOL_NODES else concurrency  # there LangGraph starts all of them


@pytest.mark.parametrize(
    ("concurrency", "asynchronous", "native"),
    [
        (CALLS, False, False),
        (CALLS, True, False),
        (CALLS, True, True),
        (2, False, False),
        (2, True, True),
        (1, False, False),
        (1, True, False),
    ],
)
@PLACES
def test_calls_take_effect_in_the_models_order(
    place: Place,
    concurrency: int,
    asynchronous: bool,
    native: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    width = width_of(place, concurrency, asynchronous)
    arrivals, logs = Arrivals(CALLS, monkeypatch, width=width), Logs(tmp_path, native=native)
    calls = many_calls(width)
    graph = place(turns(says(*calls)), logs.tools(), guard, [Outside(arrivals.hold)])
    result = run(graph, GO, {"max_concurrency": concurrency}, asynchronous=asynchronous)
    assert told_and_logs(result, logs) == sequentially(calls)
    assert all(came.done() for came in arrivals.came)
    assert not agentguard_langgraph.turns._turns  # no need to collect garbage


@pytest.mark.parametrize(
    ("concurrency", "asynchronous", "native"), [(CALLS, False, False), (CALLS, True, True), (2, False, False)]
)
@PLACES
def test_without_the_turns_the_same_calls_end_in_another_order(
    place: Place,
    concurrency: int,
    asynchronous: bool,
    native: bool,
    tmp_path: Path,
    guard: Guard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That the test above is one: locks alone leave the order of arrival."""
    monkeypatch.setattr(agentguard_langgraph.turns, "_seat", lambda *_: (None, None))
    width = width_of(place, concurrency, asynchronous)
    arrivals, logs = Arrivals(CALLS, monkeypatch, width=width), Logs(tmp_path, native=native)
    logs.left = arrivals.tell
    calls = many_calls(width)
    graph = place(turns(says(*calls)), logs.tools(), guard, [Outside(arrivals.hold)])
    result = run(graph, GO, {"max_concurrency": concurrency}, asynchronous=asynchronous)
    told, kept = told_and_logs(result, logs)
    _, right = sequentially(calls)
    for log, lines in kept.items():
        assert sorted(lines) == sorted(right[log])
        assert lines != right[log]
        if width == CALLS:
            assert lines == right[log][::-1]
    assert told != sequentially(calls)[0]


@BOTH
@pytest.mark.parametrize("agent", [False, True], ids=["ToolNode", "create_agent"])
def test_without_the_guard_as_well(
    agent: bool, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals, logs = Arrivals(CALLS, monkeypatch), Logs(tmp_path)
    logs.left = arrivals.tell
    calls, outside = many_calls(), Outside(arrivals.hold)
    model = turns(says(*calls))
    graph: Any = (
        create_agent(model, logs.tools(), middleware=[outside])
        if agent
        else loop_of(model, ToolNode(logs.tools(), **wrapping([outside])))
    )
    if asynchronous:  # the loop's own pool is too small for all of them
        with ThreadPoolExecutor(CALLS) as pool:

            async def main() -> Any:
                asyncio.get_running_loop().set_default_executor(pool)
                return await graph.ainvoke(GO)

            asyncio.run(main())
    else:
        graph.invoke(GO, {"max_concurrency": CALLS})
    assert {log: logs[log] for log in "01234"} == {log: right[::-1] for log, right in sequentially(calls)[1].items()}


@KINDS
@PLACES
def test_calls_that_share_nothing_are_all_inside_at_once(
    place: Place, asynchronous: bool, native: bool, tmp_path: Path, guard: Guard, exact: None
) -> None:
    """Four logs that are written, and four reads of one."""
    logs, meeting = Logs(tmp_path, native=native), Meeting(8)
    logs.bodies = dict.fromkeys(range(8), meeting)
    calls = [append(n, str(n)) if n % 2 else look(n) for n in range(8)]
    graph = place(turns(says(*calls)), logs.tools(), guard)
    result = run(graph, GO, {"max_concurrency": 8}, asynchronous=asynchronous)
    assert errors(result) == [False] * 8
    assert logs.peak == 8


@SOME_KINDS
@PLACES
def test_a_read_after_a_write_sees_it_and_one_before_does_not(
    place: Place,
    asynchronous: bool,
    native: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrivals, logs = Arrivals(5, monkeypatch), Logs(tmp_path, native=native)
    (tmp_path / "a.txt").write_text("old\n")
    calls = [look(0), append(1), look(2), append(3), look(4)]
    graph = place(turns(says(*calls)), logs.tools(), guard, [Outside(arrivals.hold)])
    result = run(graph, GO, {"max_concurrency": 5}, asynchronous=asynchronous)
    assert contents(result) == ["read old", "appended 1", "read old 1", "appended 3", "read old 1 3"]


@BOTH
@pytest.mark.parametrize("place", [in_guarded_tool_node, in_tool_node, in_agent], ids=lambda place: place.__name__[3:])
def test_whoever_touches_a_directory_comes_after_those_in_it(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    arrivals = Arrivals(3, monkeypatch)

    @tool(updates="notes/{name}.md")
    def note(n: int, name: str) -> str:
        """Note."""
        agentguard.path(f"notes/{name}.md").write_text(name)
        return "noted"

    @tool(reads="notes/")
    def index(n: int) -> str:
        """List."""
        return " ".join(sorted(file.name for file in agentguard.path("notes/").iterdir()))

    calls = [call("note", n=0, name="x"), call("index", n=1), call("note", n=2, name="y")]
    graph = place(turns(says(*calls)), [note, index], guard, [Outside(arrivals.hold)])
    assert contents(run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)) == ["noted", "x.md", "noted"]


# -- two whole writes ---


class Doc:
    """A JSON document, and tools that read it and replace it."""

    def __init__(self, root: Path) -> None:
        self.file = root / "doc.json"
        self.file.write_text('{"n": 0}')

    def tools(self) -> list[BaseTool]:
        @tool(reads="doc.json")
        def read() -> str:
            """Read."""
            return agentguard.path("doc.json").read_text()

        @tool(writes="doc.json")
        def write(n: int, text: str) -> str:
            """Write."""
            agentguard.path("doc.json").write_text(text)
            return "written"

        return [read, write]


@BOTH
@pytest.mark.parametrize("known", [False, True], ids=["never read", "read before"])
@PLACES
def test_the_second_whole_write_of_a_turn_is_refused(
    place: Place,
    known: bool,
    asynchronous: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doc, arrivals = Doc(tmp_path), Arrivals(3, monkeypatch)
    both = says(*(call("write", n=n, text=f'{{"n": {n + 1}}}') for n in range(3)))
    script = [both, says(call("read")), says(call("write", n=2, text='{"n": 9}'))]
    model = turns(*([says(call("read"))] if known else []), *script)

    def hold(call: ToolCall) -> Future[None] | None:
        first = call["name"] == "write" and call["args"]["text"] != '{"n": 9}'
        return arrivals.hold(call) if first else None

    graph = place(model, doc.tools(), guard, [Outside(hold)])
    seen: list[Event] = []
    guard.hooks.append(lambda event: seen.append(event) if event.kind == "committed" else None)
    result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert errors(result) == [False] * known + [False, True, True, False, False]
    refused = answers(result)[known + 1]
    assert "an earlier call of the same turn" in str(refused.content)
    assert refused.artifact["agentguard"]["code"] == "conflict"
    assert len(str(refused.content)) <= 1000
    assert contents(result)[known + 3] == '{"n": 1}'  # the first stays
    assert doc.file.read_text() == '{"n": 9}'  # and whoever has seen it may replace it
    assert len(seen) == known + 3


@BOTH
@pytest.mark.parametrize("known", [False, True], ids=["never read", "read before"])
@pytest.mark.parametrize("place", [in_guarded_tool_node, in_tool_node, in_agent], ids=lambda place: place.__name__[3:])
def test_two_whole_writes_of_a_turn_are_merged_where_that_is_wanted(
    place: Place,
    known: bool,
    asynchronous: bool,
    tmp_path: Path,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = Guard(tmp_path, timeout=LONG, durable=False, resources={"doc.json": {"stale": "merge"}})
    doc, arrivals = Doc(tmp_path), Arrivals(3, monkeypatch)
    both = says(*(call("write", n=n, text=json.dumps({"n": 0, key: n})) for n, key in enumerate("xyz")))
    hold = Outside(lambda call: arrivals.hold(call) if call["name"] == "write" else None)
    graph = place(turns(*([says(call("read"))] if known else []), both), doc.tools(), guard, [hold])
    result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert errors(result) == [False] * (known + 3)
    assert json.loads(doc.file.read_text()) == {"n": 0, "x": 0, "y": 1, "z": 2}


@SOME_KINDS
@PLACES
def test_calls_that_look_before_they_write_all_take_effect_in_order(
    place: Place,
    asynchronous: bool,
    native: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tools of agents that never read the file: each reads it itself, and puts something in."""
    notes, arrivals = Notes(tmp_path, 8, "serialize"), Arrivals(8, monkeypatch)
    made = tool("add", writes="notes.json")(notes.aadd if native else notes.add)
    calls = [call("add", item=str(n)) for n in range(8)]
    outside = Outside(lambda call: arrivals.hold({"args": {"n": int(call["args"]["item"])}}))
    graph = place(turns(says(*calls)), [made], guard, [outside])
    result = run(graph, GO, {"max_concurrency": 8}, asynchronous=asynchronous)
    assert errors(result) == [False] * 8
    assert notes.kept == [str(n) for n in range(8)]


# -- calls that never come ---


class Hurry:
    """Nothing in this block waits for a call that does not come; `exact` has taken all patience."""

    def __init__(self, limit: float = LONG / 2) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self.started < self.limit


def cut_off(*numbers: int) -> Outside:
    """Another middleware that answers these calls itself."""

    def decide(call: ToolCall) -> ToolMessage | None:
        return (
            ToolMessage("no", tool_call_id=call["id"], name=call["name"], status="error")
            if call["args"].get("n") in numbers
            else None
        )

    return Outside(decide)


@BOTH
@EXACT
def test_a_call_that_somebody_else_answers_holds_up_nobody(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None
) -> None:
    logs = Logs(tmp_path)
    graph = place(turns(says(*map(append, range(4)))), logs.tools(), guard, [cut_off(0, 2)])
    with Hurry():
        result = run(graph, GO, {"max_concurrency": 4}, asynchronous=asynchronous)
    assert errors(result) == [True, False, True, False]
    assert logs["a"] == ["1", "3"]


@BOTH
@EXACT
@pytest.mark.parametrize("wrong", ["name", "arguments", "template"])
def test_a_call_that_cannot_be_made_holds_up_nobody(
    wrong: str, place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None
) -> None:
    """A tool that does not exist, arguments that do not fit, and one that the declaration cannot do without."""
    logs = Logs(tmp_path)
    bad = {
        "name": call("appendix", n=0, log="a"),
        "arguments": call("append", n="many", log="a"),
        "template": call("append", n=0),
    }[wrong]
    graph = place(turns(says(bad, append(1), append(2))), logs.tools(), guard)
    with Hurry():
        result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert errors(result) == [True, False, False]
    assert logs["a"] == ["1", "2"]


@BOTH
@PLACES
def test_calls_with_one_id_hold_up_nobody(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None
) -> None:
    """Some providers give every call the same one."""
    logs = Logs(tmp_path)
    calls = [{**append(n), "id": "same" if n < 2 else "other"} for n in range(3)]
    graph = place(turns(says(*calls)), logs.tools(), guard)
    with Hurry():
        result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert not any(errors(result))
    assert sorted(logs["a"]) == ["0", "1", "2"]


@BOTH
@pytest.mark.parametrize("never", ["name", "arguments", "answered"])
def test_a_plain_tool_node_waits_for_such_a_call_for_just_a_moment(
    never: str, asynchronous: bool, tmp_path: Path, guard: Guard
) -> None:
    """Nobody tells its tools what becomes of the others."""
    logs = Logs(tmp_path)
    first = {"name": call("appendix", n=0, log="a"), "arguments": call("append", n="many", log="a")}
    calls = [first.get(never, append(0)), append(1), append(2)]
    graph = in_tool_node(turns(says(*calls)), logs.tools(), guard, [cut_off(0)] if never == "answered" else [])
    with Hurry():
        result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert errors(result) == [True, False, False]
    assert logs["a"] == ["1", "2"]


class Failing(Logs):
    """Its first call fails, once the later ones have come."""

    def __init__(self, root: Path, arrivals: Arrivals, *, times: int = 100, native: bool = False) -> None:
        super().__init__(root, native=native)
        self.tries = 0

        def fail() -> Future[None] | None:
            self.tries += 1
            if self.tries > times:
                return None
            arrivals.came[-1].result(LONG)
            raise KeyError("bug")

        self.bodies[0] = fail


@BOTH
@PLACES
def test_a_tool_that_fails_ends_the_run_and_nothing_is_left(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = Failing(tmp_path, Arrivals(3, monkeypatch))
    graph = place(turns(says(*map(append, range(3)))), logs.tools(), guard)
    with Hurry(), pytest.raises(KeyError, match="bug"):
        run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert "0" not in logs["a"]
    assert logs["a"] == sorted(logs["a"])
    # A new turn of the same graph is a new one.
    logs.bodies.clear()
    (tmp_path / "a.txt").unlink(missing_ok=True)
    run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert logs["a"] == ["0", "1", "2"]


@pytest.mark.parametrize("concurrency", [1, 2])
@PLACES
def test_calls_that_are_given_up_before_they_began_leave_nothing(
    place: Place, concurrency: int, tmp_path: Path, guard: Guard, exact: None
) -> None:
    """One fails in a small pool: LangGraph takes back those that have not begun."""
    logs = Logs(tmp_path)

    def fail() -> None:
        raise KeyError("bug")

    logs.bodies[0] = fail
    graph = place(turns(says(*map(append, range(8)))), logs.tools(), guard)
    with Hurry(), pytest.raises(KeyError, match="bug"):
        graph.invoke(GO, {"max_concurrency": concurrency})


@BOTH
@EXACT
def test_a_tool_whose_failure_is_told_to_the_model_holds_up_nobody(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = Failing(tmp_path, Arrivals(3, monkeypatch))

    class Telling(Outside):
        def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
            try:
                return handler(request)
            except KeyError:
                return ToolMessage("failed", tool_call_id=request.tool_call["id"], status="error")

        async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
            try:
                return await handler(request)
            except KeyError:
                return ToolMessage("failed", tool_call_id=request.tool_call["id"], status="error")

    graph = place(turns(says(*map(append, range(3)))), logs.tools(), guard, [Telling()])
    with Hurry():
        result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert errors(result) == [True, False, False]
    assert logs["a"] == ["1", "2"]


THREAD: dict[str, Any] = {"configurable": {"thread_id": "t"}, "max_concurrency": 4}


@BOTH
@pytest.mark.parametrize("place", AGENTS[:2], ids=lambda place: place.__name__[3:])
@pytest.mark.parametrize("decision", ["reject", "approve", "edit"])
def test_what_a_person_decides_about_the_first_call_holds_up_nobody(
    decision: str,
    place: Place,
    asynchronous: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs = Logs(tmp_path)
    person = HumanInTheLoopMiddleware(interrupt_on={"append": True})
    graph = place(turns(says(*map(append, range(3)))), logs.tools(), guard, [person], checkpointer=InMemorySaver())
    asked = run(graph, GO, THREAD, asynchronous=asynchronous)
    assert "__interrupt__" in asked
    edited = {"name": "append", "args": {"n": 7, "log": "a"}}
    first = {"type": "edit", "edited_action": edited} if decision == "edit" else {"type": decision}
    resume: Any = Command(resume={"decisions": [first, {"type": "approve"}, {"type": "approve"}]})
    with Hurry():
        result = run(graph, resume, THREAD, asynchronous=asynchronous)
    assert sorted(errors(result)) == sorted([decision == "reject", False, False])
    assert logs["a"] == {"reject": ["1", "2"], "approve": ["0", "1", "2"], "edit": ["7", "1", "2"]}[decision]


@BOTH
@pytest.mark.parametrize("place", AGENTS[:2], ids=lambda place: place.__name__[3:])
def test_a_person_who_is_asked_about_one_call_holds_up_no_other(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None
) -> None:
    """Each call asks on its own: the others take effect at once, the first one when it is approved."""
    logs = Logs(tmp_path)
    person = HumanInTheLoopMiddleware(
        interrupt_on={"append": {"allowed_decisions": ["approve", "reject"], "when": lambda r: first(r.tool_call)}},
        interrupt_mode="per_call",
    )

    def first(call: Any) -> bool:
        return bool(call["args"]["n"] == 0)

    graph = place(turns(says(*map(append, range(3)))), logs.tools(), guard, [person], checkpointer=InMemorySaver())
    with Hurry():
        asked = run(graph, GO, THREAD, asynchronous=asynchronous)
    assert "__interrupt__" in asked
    assert logs["a"] == ["1", "2"]
    with Hurry():
        result = run(graph, Command(resume={"type": "approve"}), THREAD, asynchronous=asynchronous)
    assert errors(result) == [False] * 3
    assert logs["a"] == ["1", "2", "0"]


@BOTH
@pytest.mark.parametrize("place", AGENTS[:2], ids=lambda place: place.__name__[3:])
def test_a_call_that_a_person_has_edited_has_its_place_on_what_it_touches_now(
    place: Place,
    asynchronous: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrivals = Arrivals(2, monkeypatch)

    @tool(writes="{name}")
    def put(n: int, name: str) -> str:
        """Put."""
        agentguard.path(name).write_text(str(n))
        return "put"

    class Person(HumanInTheLoopMiddleware):  # that of the first call comes last
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            if (found := arrivals.hold(request.tool_call)) is not None:
                found.result(LONG)
            return super().wrap_tool_call(request, handler)

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            if (found := arrivals.hold(request.tool_call)) is not None:
                await until(found)
            return await super().awrap_tool_call(request, handler)

    calls = [call("put", n=0, name="x.txt"), call("put", n=1, name="y.txt")]
    person = Person(interrupt_on={"put": True})
    graph = place(turns(says(*calls)), [put], guard, [person], checkpointer=InMemorySaver())
    run(graph, GO, THREAD, asynchronous=asynchronous)
    edited = {"type": "edit", "edited_action": {"name": "put", "args": {"n": 0, "name": "y.txt"}}}
    resume: Any = Command(resume={"decisions": [edited, {"type": "approve"}]})
    result = run(graph, resume, THREAD, asynchronous=asynchronous)
    assert errors(result) == [False, True]  # two whole writes of one file
    assert (tmp_path / "y.txt").read_text() == "0"
    assert not (tmp_path / "x.txt").exists()


@BOTH
@pytest.mark.parametrize("place", AGENTS, ids=lambda place: place.__name__[3:])
def test_a_whole_write_that_waited_for_a_person_does_not_replace_one_of_its_turn(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call has written meanwhile; the first one was computed without seeing that."""
    doc, arrivals = Doc(tmp_path), Arrivals(2, monkeypatch)

    @tool(writes="doc.json")
    def ask(n: int) -> str:
        """Ask."""
        arrivals.came[1].result(LONG)
        interrupt("sure?")
        agentguard.path("doc.json").write_text("0")
        return "written"

    calls = says(call("ask", n=0), call("write", n=1, text="1"))
    graph = place(turns(calls), [*doc.tools(), ask], guard, checkpointer=InMemorySaver())
    run(graph, GO, THREAD, asynchronous=asynchronous)
    assert doc.file.read_text() == "1"
    result = run(graph, Command(resume="yes"), THREAD, asynchronous=asynchronous)
    assert errors(result) == [True, False]
    assert "call of the same turn" in contents(result)[0]
    assert doc.file.read_text() == "1"


@BOTH
@PLACES
def test_a_tool_that_asks_a_person_holds_up_nobody(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals, logs = Arrivals(3, monkeypatch), Logs(tmp_path)

    @tool(updates="a.txt")
    def ask(n: int) -> str:
        """Ask."""
        arrivals.came[2].result(LONG)
        said = interrupt("sure?")
        with agentguard.path("a.txt").open("a") as file:
            file.write(f"{said}\n")
        return str(said)

    calls = [call("ask", n=0), append(1), append(2)]
    graph = place(turns(says(*calls)), [*logs.tools(), ask], guard, checkpointer=InMemorySaver())
    with Hurry():
        asked = run(graph, GO, THREAD, asynchronous=asynchronous)
    assert "__interrupt__" in asked
    if asynchronous and place in TOOL_NODES:  # the node has ended, but not those it has started
        assert logs["a"] in ([], ["1"], ["1", "2"])
    else:
        assert logs["a"] == ["1", "2"]
    before = logs["a"]
    gc.collect()
    assert not agentguard_langgraph.turns._turns  # nor is anything kept while nobody answers
    with Hurry():
        result = run(graph, Command(resume="yes"), THREAD, asynchronous=asynchronous)
    assert contents(result) == ["yes", "appended 1", "appended 2"]
    # A ToolNode makes all its calls anew, an agent only the one that asked.
    assert logs["a"] == [*before, "yes", *(["1", "2"] if place in TOOL_NODES else [])]


@BOTH
@pytest.mark.parametrize("place", AGENTS[:2], ids=lambda place: place.__name__[3:])
def test_calls_above_a_limit_hold_up_nobody(
    place: Place, asynchronous: bool, tmp_path: Path, guard: Guard, exact: None
) -> None:
    logs = Logs(tmp_path)
    limit = ToolCallLimitMiddleware(tool_name="look", run_limit=1, exit_behavior="continue")
    calls = [look(0), look(1), append(2), append(3)]
    graph = place(turns(says(*calls)), logs.tools(), guard, [limit])
    with Hurry():
        result = run(graph, GO, {"max_concurrency": 4}, asynchronous=asynchronous)
    assert sorted(errors(result)) == [False, False, False, True]
    assert logs["a"] == ["2", "3"]


@BOTH
@PLACES
def test_a_refused_call_holds_up_nobody(place: Place, asynchronous: bool, tmp_path: Path, exact: None) -> None:
    """Somebody else holds the log: each call is refused when its time is up, and the next turn finds nothing left."""
    guard, logs = Guard(tmp_path, timeout=0.05, durable=False), Logs(tmp_path)
    graph = place(turns(says(*map(append, range(3))), says(append(3))), logs.tools(), guard)
    elsewhere, hold = contextvars.Context(), guard.hold(writes="a.txt")
    elsewhere.run(hold.__enter__)
    refused: list[Event] = []

    def release(event: Event) -> None:
        if event.kind == "refused":
            refused.append(event)
            if len(refused) == 3:
                elsewhere.run(hold.__exit__, None, None, None)

    guard.hooks.append(release)
    with Hurry():
        result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert errors(result) == [True, True, True, False]
    assert logs["a"] == ["3"]


@SOME_KINDS
@PLACES
def test_the_wait_for_ones_turn_ends_with_the_time_out(
    place: Place, asynchronous: bool, native: bool, tmp_path: Path, exact: None
) -> None:
    """The first call works on until the others have given up."""
    guard, logs = Guard(tmp_path, timeout=0.05, durable=False), Logs(tmp_path, native=native)
    gone: Future[None] = Future()
    logs.bodies[0] = lambda: gone
    refused: list[Event] = []

    def count(event: Event) -> None:
        if event.kind == "refused":
            refused.append(event)
            if len(refused) == 2:
                gone.set_result(None)

    guard.hooks.append(count)
    graph = place(turns(says(*map(append, range(3)), append(4, "b")), says(append(5))), logs.tools(), guard)
    result = run(graph, GO, {"max_concurrency": 4}, asynchronous=asynchronous)
    assert errors(result) == [False, True, True, False, False]
    assert "an earlier call of its turn" in contents(result)[1]
    assert answers(result)[1].artifact["agentguard"]["code"] == "timeout"
    assert logs["a"] == ["0", "5"]


@pytest.mark.parametrize("native", [False, True], ids=["def", "async def"])
@PLACES
def test_a_cancelled_run_leaves_nothing_held(
    place: Place, native: bool, tmp_path: Path, guard: Guard, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals, logs = Arrivals(3, monkeypatch), Logs(tmp_path, native=native)
    go: Future[None] = Future()
    logs.bodies[0] = lambda: go
    graph = place(turns(says(*map(append, range(3)))), logs.tools(), guard)

    async def main() -> None:
        task = asyncio.create_task(graph.ainvoke(GO))
        await asyncio.gather(*map(until, arrivals.came))
        task.cancel()
        asyncio.get_running_loop().call_later(0.01, go.set_result, None)  # a thread is waited for
        with pytest.raises(asyncio.CancelledError):
            await task

    with Hurry():
        asyncio.run(main())
    gc.collect()
    assert not agentguard_langgraph.turns._turns
    assert guard.status().holders == ()
    before = logs["a"]
    assert before in ([], ["0"])
    logs.bodies.clear()
    asyncio.run(graph.ainvoke(GO))
    assert logs["a"] == [*before, "0", "1", "2"]


# -- several agents at once ---


@KINDS
@pytest.mark.parametrize("place", [in_guarded_tool_node, *AGENTS], ids=lambda place: place.__name__[3:])
def test_agents_of_one_superstep_do_not_wait_for_each_others_turns(
    place: Place, asynchronous: bool, native: bool, tmp_path: Path, guard: Guard, exact: None
) -> None:
    """Three agents, whose calls have the same ids and write to one log. The first call of one is held back until the
    others have made all of theirs."""
    logs = Logs(tmp_path, native=native)
    left: Future[None] = Future()
    ended: list[int] = []
    mutex = threading.Lock()

    def ends(n: int) -> None:
        with mutex:
            ended.append(n)
            if sorted(ended) == [*range(20, 24), *range(30, 34)]:
                left.set_result(None)

    logs.left = ends

    def script(seen: list[BaseMessage]) -> AIMessage:
        first = int(str(seen[0].content))
        made = [{**append(first + n), "id": f"same-{n}"} for n in range(4)]
        return says(content="done") if len(seen) > 1 else says(*made)

    outside = Outside(lambda call: left if call["args"]["n"] == 10 else None)
    builder = StateGraph(MessagesState)
    builder.add_node("agent", place(Scripted(script=script), logs.tools(), guard, [outside]))
    builder.add_conditional_edges(
        START, lambda _: [Send("agent", {"messages": [HumanMessage(str(n))]}) for n in (10, 20, 30)], ["agent"]
    )
    result = run(builder.compile(), GO, {"max_concurrency": 12}, asynchronous=asynchronous)
    assert errors(result) == [False] * 12
    for agent in "123":
        assert [line for line in logs["a"] if line[0] == agent] == [f"{agent}{n}" for n in range(4)]
    assert logs["a"][-4:] == ["10", "11", "12", "13"]


@PLACES
def test_two_graphs_with_the_same_call_ids_do_not_mix(place: Place, tmp_path: Path, guard: Guard, exact: None) -> None:
    over: Future[None] = Future()
    logs = Logs(tmp_path)

    def graph(first: int) -> Any:
        made = [{**append(first + n), "id": f"same-{n}"} for n in range(3)]
        outside = Outside(lambda call: over if call["args"]["n"] == 10 else None)
        return place(turns(says(*made)), logs.tools(), guard, [outside])

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(graph(10).invoke, GO, {"max_concurrency": 1})
        graph(20).invoke(GO, {"max_concurrency": 1})
        over.set_result(None)
        other.result(LONG)
    assert logs["a"] == ["20", "21", "22", "10", "11", "12"]


# -- retries ---


@KINDS
@EXACT
def test_a_call_that_is_tried_again_keeps_its_place(
    place: Place,
    asynchronous: bool,
    native: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrivals = Arrivals(3, monkeypatch)
    logs = Logs(tmp_path, native=native)
    tries: list[int] = []

    def fail_twice() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise KeyError("for now")

    logs.bodies[0] = fail_twice
    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False, on_failure="error")

    class Outer(Outside):  # a ToolNode takes one wrapper
        def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
            if request.tool_call["args"]["n"] == 0:
                arrivals.came[2].result(LONG)
            return retry.wrap_tool_call(request, handler)

        async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
            if request.tool_call["args"]["n"] == 0:
                await until(arrivals.came[2])
            return await retry.awrap_tool_call(request, handler)

    graph = place(turns(says(*map(append, range(3)))), logs.tools(), guard, [Outer()])
    result = run(graph, GO, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert errors(result) == [False] * 3
    assert len(tries) == 3
    assert logs["a"] == ["0", "1", "2"]


@BOTH
@pytest.mark.parametrize("sent", [False, True], ids=["one task", "a task for each call"])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_node_that_is_tried_again_begins_a_new_turn(
    concurrency: int,
    sent: bool,
    asynchronous: bool,
    tmp_path: Path,
    guard: Guard,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By LangGraph itself: a ToolNode makes all of its calls again, a task of one call only this one."""
    arrivals = Arrivals(3, monkeypatch)
    logs = Logs(tmp_path, native=asynchronous)
    tries: list[int] = []

    def fail_once() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("for now")

    logs.bodies[0] = fail_once
    again: list[int] = []

    def hold(call: ToolCall) -> Future[None] | None:
        again.append(call["args"]["n"])
        return arrivals.hold(call) if again.count(0) < 2 and concurrency == 3 else None

    outside = Outside(hold)
    node = guarded_tool_node(logs.tools(), guard, handle_tool_errors=False, **wrapping([outside]))
    builder = StateGraph(MessagesState)
    policy = RetryPolicy(initial_interval=0.0, jitter=False, retry_on=KeyError, max_attempts=2)
    builder.add_node("tools", node, retry_policy=policy)
    message = says(*map(append, range(3)))
    if sent:
        builder.add_conditional_edges(START, lambda _: [Send("tools", [one]) for one in message.tool_calls], ["tools"])
    else:
        builder.add_edge(START, "tools")
    with Hurry():
        run(builder.compile(), {"messages": [message]}, {"max_concurrency": concurrency}, asynchronous=asynchronous)
    assert len(tries) == 2
    if sent:
        assert logs["a"] == ["0", "1", "2"]
    elif asynchronous:  # the first attempt's calls go on beside the second one's: LangGraph waits for neither
        assert sorted({*logs["a"]}) == ["0", "1", "2"]
        assert _last(logs["a"], "1") < _last(logs["a"], "2")
        assert logs["a"].index("0") < _last(logs["a"], "1")
    else:
        assert logs["a"][-3:] == ["0", "1", "2"]


def _last(lines: Sequence[str], line: str) -> int:
    return len(lines) - 1 - lines[::-1].index(line)


# -- calls that are not all in one hand ---


@BOTH
@pytest.mark.parametrize("timed", [False, True], ids=["", "with a time-out"])
def test_calls_that_a_graph_deals_out_in_parts_hold_up_nobody(
    timed: bool, asynchronous: bool, tmp_path: Path, guard: Guard
) -> None:
    """A graph of one's own that sends a ToolNode some of the calls, and drops others."""
    if timed and not asynchronous:
        pytest.skip("LangGraph has time-outs for async nodes only")
    logs = Logs(tmp_path)
    message = says(*map(append, range(5)))
    builder = StateGraph(MessagesState)
    options: dict[str, Any] = {"timeout": TimeoutPolicy(run_timeout=LONG)} if timed else {}
    builder.add_node("tools", guarded_tool_node(logs.tools(), guard), **options)
    _, one, two, three, four = message.tool_calls
    builder.add_conditional_edges(START, lambda _: [Send("tools", [one, two]), Send("tools", [three, four])], ["tools"])
    with Hurry():
        result = run(builder.compile(), {"messages": [message]}, {"max_concurrency": 4}, asynchronous=asynchronous)
    assert errors(result) == [False] * 4
    assert sorted(logs["a"]) == ["1", "2", "3", "4"]
    if timed:  # no task to be found that it could go away with; others push it out
        agentguard_langgraph.turns._turns.clear()


# -- figures ---


@pytest.mark.soak
@pytest.mark.timeout(1200)
@KINDS
@pytest.mark.parametrize("place", [in_guarded_tool_node, in_agent], ids=["ToolNode", "create_agent"])
def test_two_hundred_turns_end_as_the_sequential_run_would(
    place: Place, asynchronous: bool, native: bool, tmp_path: Path, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every turn arrives backwards; then the time of tools that take 2 ms against one call after the other."""
    calls = many_calls()
    for turn in range(200):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with monkeypatch.context() as patch:
            arrivals, logs = Arrivals(CALLS, patch), Logs(folder, native=native)
            graph = place(
                turns(says(*many_calls())), logs.tools(), Guard(folder, durable=False), [Outside(arrivals.hold)]
            )
            result = run(graph, GO, {"max_concurrency": CALLS}, asynchronous=asynchronous)
        assert told_and_logs(result, logs) == sequentially(calls)

    seconds: dict[str, float] = {}
    kinds = {
        "twenty turns": ([says(one) for one in calls], CALLS),
        "one turn, one thread": ([says(*calls)], 1),
        "one turn": ([says(*calls)], CALLS),
    }
    for name, (script, concurrency) in kinds.items():
        times = []
        for turn in range(30):
            folder = tmp_path / f"{name} {turn}"
            folder.mkdir()
            logs = Logs(folder, native=native, seconds=0.002)
            graph = place(turns(*script), logs.tools(), Guard(folder, durable=False))
            started = time.perf_counter()
            config = {"max_concurrency": concurrency, "recursion_limit": 100}
            result = run(graph, GO, config, asynchronous=asynchronous)
            times.append(time.perf_counter() - started)
            assert told_and_logs(result, logs) == sequentially(calls)
        seconds[name] = sorted(times)[len(times) // 2]
    kind = f"{'ainvoke' if asynchronous else 'invoke'} {'async def' if native else 'def'}"
    print(f"\n{place.__name__[3:]} {kind}: " + ", ".join(f"{k} {v * 1000:.1f} ms" for k, v in seconds.items()))
    assert seconds["one turn"] < seconds["twenty turns"]
