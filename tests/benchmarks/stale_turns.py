"""Turns of a model in LangGraph: many calls at once, and one call after a long history."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agentguard_langgraph import GuardMiddleware, guard_tools, guarded_tool_node, tool
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from agentguard import Guard, atomic_write, path

__all__ = ["HISTORIES", "TURNS", "Ending", "reading", "sequential"]

CALLS, NAMES = 20, ("a", "b", "c", "d", "e")


@dataclass(frozen=True)
class Ending:
    """How a turn ended. `exact`: every file and every answer is what it would be after the same calls in sequence."""

    exact: bool
    seconds: float


class OneTurn(Protocol):
    def __call__(self, seed: int, *, jitter: bool) -> Ending: ...


def calls_of(seed: int) -> list[dict[str, Any]]:
    """Four calls on each of five files, shuffled: three append, one reads."""
    wanted = [(name, n) for name in NAMES for n in range(CALLS // len(NAMES))]
    random.Random(seed).shuffle(wanted)
    return [
        {
            "name": "look" if n == 0 else "append",
            "args": {"name": name} if n == 0 else {"name": name, "item": f"{name}{n}"},
            "id": f"call-{seed}-{place}",
            "type": "tool_call",
        }
        for place, (name, n) in enumerate(wanted)
    ]


def expected(calls: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """The files and the answers of a sequential run."""
    files: dict[str, list[str]] = {name: [] for name in NAMES}
    answers = []
    for call in calls:
        items = files[call["args"]["name"]]
        if call["name"] == "append":
            items.append(call["args"]["item"])
            answers.append("done")
        else:
            answers.append(json.dumps(items))
    return files, answers


def list_tools(root: Path, seconds: float, asynchronous: bool) -> list[BaseTool]:
    """Tools that take their time."""

    if asynchronous:

        @tool("append", updates="{name}.json")
        async def aappend(name: str, item: str) -> str:
            """Append an item to a list."""
            file = path(root / f"{name}.json")
            items = json.loads(file.read_text())
            await asyncio.sleep(seconds)
            atomic_write(file, json.dumps([*items, item]), durable=False)
            return "done"

        @tool("look", reads="{name}.json")
        async def alook(name: str) -> str:
            """Show a list."""
            await asyncio.sleep(seconds)
            return path(root / f"{name}.json").read_text()

        return [aappend, alook]

    @tool("append", updates="{name}.json")
    def append(name: str, item: str) -> str:
        """Append an item to a list."""
        file = path(root / f"{name}.json")
        items = json.loads(file.read_text())
        time.sleep(seconds)
        atomic_write(file, json.dumps([*items, item]), durable=False)
        return "done"

    @tool("look", reads="{name}.json")
    def look(name: str) -> str:
        """Show a list."""
        time.sleep(seconds)
        return path(root / f"{name}.json").read_text()

    return [append, look]


class Jitter(AgentMiddleware[Any, Any, Any]):
    """Lets calls come in another order than they were made in, as a check by another middleware does."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.seed = seed

    def _delay(self, request: Any) -> float:
        if self.seed is None:
            return 0.0
        return random.Random(f"{self.seed} {request.tool_call['id']}").random() * 0.003

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        time.sleep(self._delay(request))
        return handler(request)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        await asyncio.sleep(self._delay(request))
        return await handler(request)


class AtOnce(BaseChatModel):
    """Makes all its calls in one turn."""

    calls: list[Any]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> AtOnce:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        done = isinstance(messages[-1], ToolMessage)
        answer = AIMessage("done") if done else AIMessage("", tool_calls=self.calls)
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)


def guard_at(root: Path) -> Guard:
    return Guard(root=root, durable=False)


def seeded(root: Path) -> None:
    for name in NAMES:
        (root / f"{name}.json").write_text("[]")


def ended(root: Path, calls: Sequence[Mapping[str, Any]], answers: Sequence[Any], seconds: float) -> Ending:
    files, told = expected(calls)
    found = {name: json.loads((root / f"{name}.json").read_text()) for name in NAMES}
    by_call = {one.tool_call_id: one.content for one in answers}
    return Ending(found == files and [by_call[call["id"]] for call in calls] == told, seconds)


def _turns(root: Path, run: Callable[[list[dict[str, Any]], Jitter], Any]) -> OneTurn:
    """Every turn is the first one of a new graph and a new guard: nothing is known of the tools yet."""

    def one(seed: int, *, jitter: bool) -> Ending:
        seeded(root)
        calls = calls_of(seed)
        seconds, result = run(calls, Jitter(seed if jitter else None))
        return ended(root, calls, [one for one in result["messages"] if isinstance(one, ToolMessage)], seconds)

    return one


def _timed(graph: Any, state: Any, asynchronous: bool) -> tuple[float, Any]:
    started = time.perf_counter()
    result = asyncio.run(graph.ainvoke(state)) if asynchronous else graph.invoke(state)
    return time.perf_counter() - started, result


def in_tool_node(root: Path, seconds: float, asynchronous: bool, guarded: bool) -> OneTurn:
    tools = list_tools(root, seconds, asynchronous)

    def run(calls: list[dict[str, Any]], jitter: Jitter) -> Any:
        wrappers: Any = {"wrap_tool_call": jitter.wrap_tool_call, "awrap_tool_call": jitter.awrap_tool_call}
        node = guarded_tool_node(tools, guard_at(root), **wrappers) if guarded else ToolNode(tools, **wrappers)
        return _timed(_only(node), {"messages": [AIMessage("", tool_calls=calls)]}, asynchronous)

    return _turns(root, run)


def in_agent(root: Path, seconds: float, asynchronous: bool, guarded: bool) -> OneTurn:
    tools = list_tools(root, seconds, asynchronous)

    def run(calls: list[dict[str, Any]], jitter: Jitter) -> Any:
        middleware: list[Any] = [jitter, GuardMiddleware(guard_at(root))] if guarded else [jitter]
        agent = create_agent(AtOnce(calls=calls), tools, middleware=middleware)
        return _timed(agent, {"messages": [HumanMessage("go")]}, asynchronous)

    return _turns(root, run)


TURNS: dict[str, Callable[[Path, float, bool, bool], OneTurn]] = {
    "ToolNode": in_tool_node,
    "create_agent": in_agent,
}


def sequential(root: Path, seconds: float, seed: int, *, asynchronous: bool) -> Ending:
    """The same calls, one after another, by the guarded tools alone."""
    seeded(root)
    calls = calls_of(seed)
    tools = {one.name: one for one in guard_tools(list_tools(root, seconds, asynchronous), guard_at(root))}

    async def one_by_one() -> list[Any]:
        return [await tools[call["name"]].ainvoke(call) for call in calls]

    started = time.perf_counter()
    answers = asyncio.run(one_by_one()) if asynchronous else [tools[call["name"]].invoke(call) for call in calls]
    return ended(root, calls, answers, time.perf_counter() - started)


# -- one call after a history ----------------------------------------------------------------------------------------


def _only(node: ToolNode) -> Any:
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(MessagesState)
    builder.add_node("tools", node)
    builder.add_edge(START, "tools")
    return builder.compile()


def _call(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "args": {}, "id": f"call-{number}", "type": "tool_call"}


def talk(length: int) -> list[BaseMessage]:
    """No tool was called in it."""
    return [(HumanMessage if n % 2 else AIMessage)(f"message {n}", id=str(n)) for n in range(length)]


def answered(length: int, name: str, stamp: Mapping[str, Any]) -> list[BaseMessage]:
    """Half of it are answers of a tool, with this in their `additional_kwargs`."""
    found: list[BaseMessage] = []
    for n in range(length // 2):
        found.append(AIMessage("", tool_calls=[_call(name, n)], id=f"{n}-asked"))
        found.append(
            ToolMessage("x", name=name, tool_call_id=f"call-{n}", id=f"{n}-told", additional_kwargs=dict(stamp))
        )
    return found


History = Callable[[Mapping[str, Any]], list[BaseMessage]]
HISTORIES: dict[str, History] = {
    "10 messages": lambda stamp: answered(10, "look_at_it", stamp),
    "1,000 messages, no tools": lambda stamp: talk(1000),
    "1,000 messages, 500 answers with stamps": lambda stamp: answered(1000, "look_at_it", stamp),
    "1,000 messages, 500 answers of another tool": lambda stamp: answered(1000, "search", {}),
    "1,000 messages, 500 answers that lost their stamps": lambda stamp: answered(1000, "look_at_it", {}),
}


def reading(root: Path, guard: Guard | None, history: History, asynchronous: bool) -> tuple[Any, Any]:
    """A graph of one ToolNode, and a state with a call that reads after a history."""
    file = root / "a.txt"

    if asynchronous:

        @tool("look_at_it", reads="a.txt")
        async def look() -> str:
            """Show the file."""
            return path(file).read_text()

        found = look
    else:

        @tool("look_at_it", reads="a.txt")
        def look_() -> str:
            """Show the file."""
            return path(file).read_text()

        found = look_
    graph = _only(guarded_tool_node([found], guard) if guard is not None else ToolNode([found]))
    asked = {"messages": [AIMessage("", tool_calls=[_call("look_at_it", 10_000)], id="asked")]}
    stamped = guarded_tool_node([found], Guard(root=root))
    _, result = _timed(_only(stamped), asked, asynchronous)
    stamp = result["messages"][-1].additional_kwargs
    return graph, {"messages": [*history(stamp), *asked["messages"]]}
