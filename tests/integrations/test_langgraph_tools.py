"""Guarded tools: in ToolNodes, agents, nodes and by hand; what they declare, and how they refuse."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from agentguard_langgraph import GuardMiddleware, guard_graph, guard_tools, guarded_tool_node, tool
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool
from langchain_core.tools import tool as langchain_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt
from langgraph_support import Notes, Scripted, answers, call, run, says, turns
from pydantic import BaseModel, Field

import agentguard
from agentguard import ConfigError, Event, Guard, StaleWrite, declare

pytestmark = pytest.mark.langgraph

Args = dict[str, Any]
BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])


def graph_of(node: Any, **options: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node)
    builder.add_edge(START, "tools")
    return builder.compile(**options)


def acquired(guard: Guard) -> list[Event]:
    found: list[Event] = []
    guard.hooks.append(lambda event: found.append(event) if event.kind == "acquired" else None)
    return found


@contextlib.contextmanager
def held_by_another(guard: Guard, name: str) -> Iterator[None]:
    """Somebody else holds a resource: calls of this context are not calls inside of that hold."""
    elsewhere, hold = contextvars.Context(), guard.hold(writes=name)
    elsewhere.run(hold.__enter__)
    try:
        yield
    finally:
        elsewhere.run(hold.__exit__, None, None, None)


# -- nothing is lost ---

CALLS = 8


def in_tool_node(made: BaseTool, guard: Guard | None) -> Any:
    return graph_of(ToolNode([made] if guard is None else guard_tools([made], guard)))


def in_guarded_tool_node(made: BaseTool, guard: Guard | None) -> Any:
    return graph_of(ToolNode([made]) if guard is None else guarded_tool_node([made], guard))


def in_agent(made: BaseTool, guard: Guard | None) -> Any:
    middleware: list[Any] = [] if guard is None else [GuardMiddleware(guard)]
    model = turns(says(*(call("add", item=str(n)) for n in range(CALLS))))
    return create_agent(model, [made], middleware=middleware)


def in_graph(made: BaseTool, guard: Guard | None) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode([made]))
    builder.add_edge(START, "tools")
    return builder.compile() if guard is None else guard_graph(builder, guard)


@BOTH
@pytest.mark.parametrize("native", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize("place", [in_tool_node, in_guarded_tool_node, in_agent, in_graph])
def test_parallel_calls_lose_nothing(place: Any, native: bool, asynchronous: bool, tmp_path: Path) -> None:
    if native and not asynchronous:
        pytest.skip("LangChain cannot invoke an async tool synchronously")
    messages = [HumanMessage("go")]
    if place is not in_agent:
        messages.append(says(*(call("add", item=str(n)) for n in range(CALLS))))  # type: ignore[arg-type]
    for guard in (None, Guard(tmp_path)):
        notes = Notes(tmp_path, CALLS, "off" if guard is None else "serialize")
        made = tool("add", writes="notes.json")(notes.aadd if native else notes.add)
        result = run(place(made, guard), {"messages": messages}, {"max_concurrency": CALLS}, asynchronous=asynchronous)
        assert len(answers(result)) == CALLS
        if guard is None:
            assert len(notes.kept) < CALLS
        else:
            assert sorted(notes.kept) == [str(n) for n in range(CALLS)]


@pytest.mark.parametrize("direct", [False, True], ids=["invoke", "func"])
def test_calls_in_a_nodes_own_body_lose_nothing(direct: bool, tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    notes = Notes(tmp_path, 2, "serialize")
    (made,) = guard_tools([tool("add", updates="notes.json")(notes.add)], guard)
    seen = acquired(guard)

    def node(name: str) -> Any:
        def body(state: MessagesState) -> None:
            made.func(item=name) if direct else made.invoke({"item": name})  # type: ignore[attr-defined]

        return body

    builder = StateGraph(MessagesState)
    for name in "ab":
        builder.add_node(name, node(name))
        builder.add_edge(START, name)
    builder.compile().invoke({"messages": []})
    assert sorted(notes.kept) == ["a", "b"]
    assert sorted(event.agent for event in seen) == ["a", "b"]


# -- what a tool declares ---


class Topic(BaseModel):
    topic: str
    folder: str = "notes"


def test_every_form_of_the_decorator_declares() -> None:
    @tool
    def plain(x: str) -> str:
        """One."""
        return x

    @tool(writes="notes/{topic}.md", return_direct=True, extras={"mine": 1})
    def templated(topic: str) -> str:
        """Two."""
        return topic

    @tool("named", updates=["a.json", "b.json"], args_schema=Topic)
    def schematic(**arguments: Any) -> str:
        """Three."""
        return ""

    lambda_ = RunnableLambda(lambda given: str(given)).with_types(input_type=Topic)
    runnable = tool("run", lambda_, reads="{folder}/{topic}.md")
    assert (plain.name, templated.name, schematic.name, runnable.name) == ("plain", "templated", "named", "run")
    assert templated.return_direct
    assert templated.extras is not None
    assert templated.extras["mine"] == 1
    assert templated.extras["agentguard"]["writes"] == ("notes/{topic}.md",)
    assert templated.invoke({"topic": "x"}) == "x"
    guard = Guard(".")
    assert guard_tools([plain], guard) == [plain]  # it shares nothing
    assert [guard_tools([one], guard)[0] is not one for one in (templated, schematic, runnable)] == [True] * 3


def test_a_template_that_names_no_argument_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"did you mean \{topic\}"):

        @tool(writes="notes/{topik}.md")
        def add(topic: str) -> str:
            """Add."""
            return topic

    with pytest.raises(ConfigError, match="file_path"):
        guard_tools([StructuredTool.from_function(lambda x: x, name="write_file", description="-")], configured())


def configured() -> Guard:
    return Guard(".", tools={"write_file": {"writes": ["{file_path}"]}})


def test_defaults_of_the_function_and_of_the_schema_fill_templates(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    seen = acquired(guard)

    @tool(writes="db:{kind}/{topic}")
    def by_function(topic: str, kind: str = "a") -> str:
        """-"""
        return kind

    @tool(writes="db:{folder}/{topic}", args_schema=Topic)
    def by_schema(**arguments: Any) -> str:
        """-"""
        return ""

    schema = {"type": "object", "properties": {"topic": {"type": "string"}, "kind": {"type": "string", "default": "c"}}}

    @tool(writes="db:{kind}/{topic}", args_schema=schema, description="-")
    def by_json_schema(**arguments: Any) -> str:
        return ""

    for one in guard_tools([by_function, by_schema, by_json_schema], guard):
        one.invoke({"topic": "t"})
    assert [event.resource for event in seen] == ["db:a/t", "db:notes/t", "db:c/t"]


def test_injected_parameters_still_arrive(tmp_path: Path) -> None:
    got: list[Any] = []

    @tool(writes="db:{item}/{who}")
    def note(
        item: str,
        who: Annotated[str, InjectedState("who")],
        number: Annotated[str, InjectedToolCallId],
        runtime: ToolRuntime,
        config: RunnableConfig,
    ) -> str:
        """Note."""
        got.extend([item, who, number == runtime.tool_call_id, config["configurable"]["user"], runtime.state["who"]])
        return "ok"

    class State(MessagesState):
        who: str

    guard = Guard(tmp_path)
    seen = acquired(guard)
    for asynchronous in (False, True):
        builder = StateGraph(State)
        builder.add_node("tools", guarded_tool_node([note], guard))
        builder.add_edge(START, "tools")
        state = {"messages": [says(call("note", item="i"))], "who": "ada"}
        result = run(builder.compile(), state, {"configurable": {"user": "u"}}, asynchronous=asynchronous)
        assert [answer.content for answer in answers(result)] == ["ok"]
    assert got == ["i", "ada", True, "u", "ada"] * 2
    assert [event.resource for event in seen] == ["db:i/ada"] * 2


def test_plain_functions_and_the_originals(tmp_path: Path) -> None:
    @declare(writes="db:x")
    def plain(item: str) -> str:
        """Plain."""
        return item

    @langchain_tool
    def other(item: str) -> str:
        """Other."""
        return item

    guard = Guard(tmp_path, tools={"other": {"updates": ["db:y"]}})
    seen = acquired(guard)
    first, second = guard_tools([plain, other], guard)
    other.invoke({"item": "1"})
    assert seen == []
    assert (first.invoke({"item": "2"}), second.invoke({"item": "3"})) == ("2", "3")
    assert [event.resource for event in seen] == ["db:x", "db:y"]


@BOTH
def test_a_tool_that_nobody_can_change_is_guarded_by_its_name(asynchronous: bool, tmp_path: Path) -> None:
    community = pytest.importorskip("langchain_community.tools", reason="needs langchain-community")
    written = community.WriteFileTool(root_dir=str(tmp_path))
    guard = Guard(tmp_path, tools={"write_file": {"writes": ["{file_path}"]}})
    seen = acquired(guard)
    (tmp_path / "report.md").write_text("old")
    calls = [call("write_file", file_path="report.md", text="new"), call("write_file", file_path="b.md", text="b")]
    for middleware in (False, True):
        if middleware:
            agent: Any = create_agent(turns(says(*calls)), [written], middleware=[GuardMiddleware(guard)])
        else:
            agent = graph_of(guarded_tool_node([written], guard))
        messages = [HumanMessage("go")] if middleware else [says(*calls)]
        told = [
            str(answer.content) for answer in answers(run(agent, {"messages": messages}, asynchronous=asynchronous))
        ]
        assert told == [f"File written successfully to {name}." for name in ("report.md", "b.md")]
    assert (tmp_path / "report.md").read_text() == "new"
    assert len(seen) == 4


# -- refusals ---


def reading_and_writing(tmp_path: Path) -> list[BaseTool]:
    @tool(reads="doc.md")
    def read() -> str:
        """Read."""
        return agentguard.path("doc.md").read_text()

    @tool(writes="doc.md")
    def write(text: str) -> str:
        """Write."""
        agentguard.path("doc.md").write_text(text)
        return "written"

    (tmp_path / "doc.md").write_text("one\n")
    return [read, write]


@BOTH
@pytest.mark.parametrize("place", ["tool node", "agent", "graph"])
def test_a_stale_write_is_told_to_the_model(place: str, asynchronous: bool, tmp_path: Path) -> None:
    tools = reading_and_writing(tmp_path)
    guard = Guard(tmp_path)

    def model() -> Any:
        def script(messages: list[Any]) -> Any:
            said = [message for message in messages if isinstance(message, ToolMessage)]
            if not said or said[-1].status == "error":
                return says(call("read"))
            if said[-1].content == "written":
                return says(content="done")
            if len(said) == 1:  # between its read and its write
                with guard.agent("somebody"):
                    guard.write("doc.md", "two\n")
            return says(call("write", text=f"{said[-1].content}mine\n"))

        return script

    if place == "agent":
        graph: Any = create_agent(Scripted(script=model()), tools, middleware=[GuardMiddleware(guard)])
    else:
        builder = StateGraph(MessagesState)
        scripted = Scripted(script=model())
        builder.add_node("model", lambda state: {"messages": [scripted.invoke(state["messages"])]})
        builder.add_node("tools", ToolNode(tools) if place == "graph" else guarded_tool_node(tools, guard))
        builder.add_edge(START, "model")
        builder.add_conditional_edges(
            "model", lambda state: "tools" if state["messages"][-1].tool_calls else "__end__", ["tools", "__end__"]
        )
        builder.add_edge("tools", "model")
        graph = guard_graph(builder, guard) if place == "graph" else builder.compile()
    told = answers(run(graph, {"messages": [HumanMessage("go")]}, asynchronous=asynchronous))
    assert [answer.status for answer in told] == ["success", "error", "success", "success"]
    refused = told[1]
    assert "somebody" in str(refused.content)
    assert len(str(refused.content)) <= 1000
    assert refused.name == "write"
    assert refused.artifact["agentguard"]["code"] == "conflict"
    assert refused.artifact["agentguard"]["resource"] == "doc.md"
    assert (tmp_path / "doc.md").read_text() == "two\nmine\n"


@BOTH
def test_code_gets_the_exception_and_a_tool_call_the_message(asynchronous: bool, tmp_path: Path) -> None:
    ran: list[str] = []

    @tool(writes="db:x", response_format="content_and_artifact")
    def write(text: str) -> tuple[str, int]:
        """Write."""
        ran.append(text)
        return text, 1

    guard = Guard(tmp_path, timeout=0.0)
    (made,) = guard_tools([write], guard)

    def invoke(given: Any) -> Any:
        return asyncio.run(made.ainvoke(given)) if asynchronous else made.invoke(given)

    with held_by_another(guard, "db:x"):
        message = invoke(call("write", text="a"))
        assert isinstance(message, ToolMessage)
        assert (message.status, message.artifact["agentguard"]["code"]) == ("error", "timeout")
        with pytest.raises(agentguard.LockTimeout):
            invoke({"text": "a"})
    assert ran == []
    message = invoke(call("write", text="b"))
    assert (message.content, message.artifact, ran) == ("b", 1, ["b"])


def test_a_failing_tool_leaves_the_file_and_passes_its_error(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    (tmp_path / "doc.md").write_text("old")

    @tool(writes="doc.md")
    def fail() -> str:
        """Fail."""
        agentguard.path("doc.md").write_text("half")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        graph_of(guarded_tool_node([fail], guard)).invoke({"messages": [says(call("fail"))]})
    assert (tmp_path / "doc.md").read_text() == "old"


@BOTH
def test_an_interrupt_passes_and_the_tool_runs_again_on_resume(asynchronous: bool, tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    (tmp_path / "log.txt").write_text("")

    @tool(updates="log.txt")
    def ask(item: str) -> str:
        """Ask."""
        file = agentguard.path("log.txt")
        file.write_text(file.read_text() + item)
        return str(interrupt("sure?"))

    (made,) = guard_tools([ask], guard)
    graph = graph_of(ToolNode([made]), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    run(graph, {"messages": [says(call("ask", item="x"))]}, config, asynchronous=asynchronous)
    assert (tmp_path / "log.txt").read_text() == ""
    result = run(graph, Command(resume="yes"), config, asynchronous=asynchronous)
    assert [answer.content for answer in answers(result)] == ["yes"]
    assert (tmp_path / "log.txt").read_text() == "x"


# -- one call is guarded once ---


@BOTH
def test_one_call_is_guarded_once_whatever_guards_it(asynchronous: bool, tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    seen = acquired(guard)
    ran: list[str] = []

    @tool(writes="db:x")
    def add(item: str) -> str:
        """Add."""
        ran.append(item)
        return item

    (copy,) = guard_tools([add], guard)
    assert guard_tools([copy], guard) == [copy]
    agent = create_agent(turns(says(call("add", item="1"))), [copy], middleware=[GuardMiddleware(guard)])
    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_edge(START, "agent")
    graph = guard_graph(builder, guard)
    run(graph, {"messages": [HumanMessage("go")]}, asynchronous=asynchronous)
    assert ran == ["1"]
    assert [event.resource for event in seen] == ["db:x"]


def test_two_guards_for_one_tool_are_refused(tmp_path: Path) -> None:
    one, other = Guard(tmp_path), Guard(tmp_path)

    @tool(writes="db:x")
    def add(item: str) -> str:
        """Add."""
        return item

    copies = guard_tools([add], one)
    with pytest.raises(ConfigError, match="one guard for both"):
        guard_tools(copies, other)
    agent = create_agent(turns(says(call("add", item="1"))), copies, middleware=[GuardMiddleware(other)])
    with pytest.raises(ConfigError):
        agent.invoke({"messages": [HumanMessage("go")]})


class Supplies(AgentMiddleware[Any, Any, Any]):
    """A middleware nearer to the call than the guard, with a tool that nobody else knows."""

    def __init__(self, supplied: BaseTool) -> None:
        super().__init__()
        self.supplied = supplied

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tool=self.supplied))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(tool=self.supplied))


@BOTH
@pytest.mark.parametrize("copied", [False, True], ids=["plain", "guarded copy"])
@pytest.mark.parametrize("last", [False, True], ids=["before it", "behind it"])
def test_tools_that_only_a_middleware_knows(last: bool, copied: bool, asynchronous: bool, tmp_path: Path) -> None:
    @langchain_tool
    def save(file_path: str, text: str) -> str:
        """Save."""
        Path(file_path).write_text(text)
        return f"saved {file_path}"

    guard = Guard(tmp_path, tools={"save": {"writes": ["{file_path}"]}})
    seen = acquired(guard)
    supplies = Supplies(guard_tools([save], guard)[0] if copied else save)
    middleware = [supplies, GuardMiddleware(guard)] if last else [GuardMiddleware(guard), supplies]
    agent = create_agent(turns(says(call("save", file_path="a.txt", text="t"))), [], middleware=middleware)
    result = run(agent, {"messages": [HumanMessage("go")]}, asynchronous=asynchronous)
    assert [answer.content for answer in answers(result)] == ["saved a.txt"]
    assert (tmp_path / "a.txt").read_text() == "t"
    assert len(seen) == 1


@BOTH
def test_the_users_own_wrappers_run_outside_of_the_guard(asynchronous: bool, tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    seen = acquired(guard)
    held: list[int] = []

    @tool(writes="db:x")
    def add(item: str) -> str:
        """Add."""
        held.append(len(guard.status().holders))
        return item

    def wrap(request: Any, execute: Any) -> Any:
        assert guard.status().holders == ()
        execute(request)
        return execute(request)

    async def awrap(request: Any, execute: Any) -> Any:
        assert guard.status().holders == ()
        await execute(request)
        return await execute(request)

    node = guarded_tool_node([add], guard, wrap_tool_call=wrap, awrap_tool_call=awrap)
    run(graph_of(node), {"messages": [says(call("add", item="1"))]}, asynchronous=asynchronous)
    assert held == [1, 1]
    assert len(seen) == 2


# -- threads and loops ---


def test_waiting_async_calls_take_no_thread_of_the_loop(tmp_path: Path) -> None:
    guard = Guard(tmp_path, timeout=5.0)

    @tool(writes="db:x")
    def add(item: str) -> str:
        """Add."""
        return item

    (made,) = guard_tools([add], guard)

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        with held_by_another(guard, "db:x"):
            waiting = [asyncio.create_task(made.ainvoke({"item": str(n)})) for n in range(3)]
            for _ in range(100):  # each of them gets as far as it can
                await asyncio.sleep(0)
            assert await loop.run_in_executor(None, guard.status)  # the holder needs the only thread
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == ["0", "1", "2"]


def test_a_cancelled_call_releases_only_when_its_thread_has_ended(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    began, end = threading.Event(), threading.Event()
    order: list[str] = []

    @tool(writes="db:x")
    def slow() -> str:
        """Slow."""
        began.set()
        end.wait(10)
        order.append("body")
        return ""

    (made,) = guard_tools([slow], guard)

    async def main() -> None:
        task = asyncio.create_task(made.ainvoke({}))
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        other = asyncio.create_task(_hold(guard, order))
        await asyncio.sleep(0.02)
        assert order == []
        end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await other

    asyncio.run(main())
    assert order == ["body", "other"]


async def _hold(guard: Guard, order: list[str]) -> None:
    async with guard.hold(writes="db:x"):
        order.append("other")


class Own(BaseTool):
    """A tool class with an async method of its own, which calls the sync one."""

    name: str = "own"
    description: str = "Own."
    ran: list[str] = Field(default_factory=list)

    def _run(self, item: str) -> str:
        self.ran.append(item)
        return item

    async def _arun(self, item: str) -> str:
        return self._run(item)


@BOTH
def test_tools_with_methods_of_their_own(asynchronous: bool, tmp_path: Path) -> None:
    guard = Guard(tmp_path, tools={"own": {"updates": ["db:{item}"]}})
    seen = acquired(guard)
    own = Own()
    (made,) = guard_tools([own], guard)
    assert isinstance(made, Own)
    given = {"item": "1"}
    assert (asyncio.run(made.ainvoke(given)) if asynchronous else made.invoke(given)) == "1"
    assert [event.resource for event in seen] == ["db:1"]
    assert own.ran == ["1"]


def test_the_schema_that_the_model_sees_is_unchanged(tmp_path: Path) -> None:
    @tool(writes="db:{item}")
    def add(item: str, runtime: ToolRuntime) -> str:
        """Add."""
        return item

    (made,) = guard_tools([add], Guard(tmp_path))
    assert json.dumps(made.args, sort_keys=True) == json.dumps(add.args, sort_keys=True)
    assert (made.name, made.description, type(made).__name__) == (add.name, add.description, type(add).__name__)


def test_a_stale_write_without_a_model_is_raised(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    read, write = guard_tools(reading_and_writing(tmp_path), guard)
    with guard.agent("me"):
        read.invoke({})
        with guard.agent("you"):
            write.invoke({"text": "yours"})
        with pytest.raises(StaleWrite, match="you"):
            write.invoke({"text": "mine"})
    assert (tmp_path / "doc.md").read_text() == "yours"
