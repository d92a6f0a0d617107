"""One process of a run that stops between its read and its write: `python stale_worker.py PHASE FOLDER`.

In phase "read" every scenario reads and stops; in phase "write" another process takes its checkpoints and goes on.
Prints what became of each, as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import operator
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

from agentguard_langgraph import GuardMiddleware, guard_graph, guard_tools, guarded_tool_node, tool
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt
from langgraph_support import Scripted, answers, call, says

import agentguard
from agentguard import Guard, StaleWrite

PLACES = ("tool node", "guarded graph", "agent", "agent with tools", "nodes", "tools in nodes")
STOPS = ("break", "turn", "interrupt")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """`stop`: by a break point, by the end of a human's turn, or by an interrupt. `changed`: by somebody in between."""

    place: str
    stop: str
    asynchronous: bool
    changed: bool

    def __str__(self) -> str:
        how = "ainvoke" if self.asynchronous else "invoke"
        return f"{self.place}, {self.stop}, {how}, {'changed' if self.changed else 'untouched'}"

    def root(self, folder: Path) -> Path:
        return folder / str(self).replace(", ", "-").replace(" ", "_")

    def prepare(self, folder: Path) -> Guard:
        self.root(folder).mkdir(exist_ok=True)
        file = self.root(folder) / "doc.md"
        if not file.exists():
            file.write_text("one\n")
        return Guard(self.root(folder), durable=False)  # a process ends here, not the power


def scenarios() -> Iterator[Scenario]:
    for place, stop, *flags in itertools.product(PLACES, STOPS, (False, True), (False, True)):
        if stop == "interrupt" and place in ("tool node", "guarded graph"):
            continue  # nothing of its own there interrupts; agents and nodes do
        yield Scenario(place, stop, *flags)


def document(name: str = "doc.md") -> list[BaseTool]:
    """Tools that read and replace a file."""

    @tool(reads=name)
    def read() -> str:
        """Read."""
        return agentguard.path(name).read_text()

    @tool(writes=name)
    def write(text: str) -> str:
        """Write."""
        agentguard.atomic_write(agentguard.path(name), text.encode())
        return "written"

    return [read, write]


def obey(messages: list[BaseMessage]) -> AIMessage:
    """What a careful model says: it reads, adds a line, and after a refusal reads again."""
    wishes = [place for place, one in enumerate(messages) if isinstance(one, HumanMessage)]
    wish = messages[wishes[-1]].content
    told = [one for one in messages[wishes[-1] :] if isinstance(one, ToolMessage)]
    if wish == "read":
        return says(content="I have read it.") if told else says(call("read"))
    if told and told[-1].name == "write" and told[-1].status != "error":
        return says(content="done")
    if (told and told[-1].name == "read") or (wish == "write" and not told):
        text = next(one.content for one in reversed(messages) if isinstance(one, ToolMessage) and one.name == "read")
        return says(call("write", text=f"{text}mine\n"))
    return says(call("read"))


def looping(tools: Any, model: Any) -> StateGraph[Any, Any, Any, Any]:
    """A model and a node with its tools, taking turns."""
    builder = StateGraph(MessagesState)

    def think(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    builder.add_node("model", think)
    builder.add_node("tools", tools)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    builder.add_edge("tools", "model")
    return builder


class Work(TypedDict, total=False):
    """The state of nodes that read, think and write without a model."""

    wish: str
    text: str
    log: Annotated[list[str], operator.add]


def reading_nodes(
    guard: Guard, hands: Any, asynchronous: bool = False, asks: bool = False
) -> StateGraph[Any, Any, Any, Any]:
    """Read node, think node, write node, and again after a refusal. `hands`: how to read and to write."""
    builder = StateGraph(Work)

    def think(state: Work) -> Any:
        if asks:
            interrupt("sure?")
        return {"text": f"{state['text']}mine\n"}

    if asynchronous:

        async def read(state: Work) -> Any:
            return {"text": await hands.aget()}

        async def write(state: Work) -> Any:
            try:
                await hands.aput(state["text"])
            except StaleWrite as error:
                return {"wish": "again", "log": [str(error)]}
            return {"wish": "done", "log": ["written"]}

    else:

        def read(state: Work) -> Any:  # type: ignore[misc]
            return {"text": hands.get()}

        def write(state: Work) -> Any:  # type: ignore[misc]
            try:
                hands.put(state["text"])
            except StaleWrite as error:
                return {"wish": "again", "log": [str(error)]}
            return {"wish": "done", "log": ["written"]}

    builder.add_node("read", read)
    builder.add_node("think", think)
    builder.add_node("write", write)
    builder.add_conditional_edges(START, lambda state: "think" if state["wish"] == "write" else "read")
    builder.add_conditional_edges("read", lambda state: END if state["wish"] == "read" else "think")
    builder.add_edge("think", "write")
    builder.add_conditional_edges("write", lambda state: "read" if state["wish"] == "again" else END)
    return builder


class Values:
    """Reads and writes by the guard's own functions."""

    def __init__(self, guard: Guard, name: str = "doc.md") -> None:
        self.guard, self.name = guard, name

    def get(self) -> str:
        return str(self.guard.read(self.name))

    def put(self, text: str) -> None:
        self.guard.write(self.name, text)

    async def aget(self) -> str:
        return str(await self.guard.aread(self.name))

    async def aput(self, text: str) -> None:
        await self.guard.awrite(self.name, text)


class Tools:
    """Reads and writes by tools that code calls."""

    def __init__(self, tools: list[BaseTool]) -> None:
        self.read, self.write = tools

    def get(self) -> str:
        return str(self.read.invoke({}))

    def put(self, text: str) -> None:
        self.write.invoke({"text": text})

    async def aget(self) -> str:
        return str(await self.read.ainvoke({}))

    async def aput(self, text: str) -> None:
        await self.write.ainvoke({"text": text})


def build(scenario: Scenario, guard: Guard, saver: Any) -> Any:
    model = Scripted(script=obey)
    if scenario.place == "tool node":
        return looping(guarded_tool_node(document(), guard), model).compile(checkpointer=saver)
    if scenario.place == "guarded graph":
        return guard_graph(looping(ToolNode(document()), model), guard, checkpointer=saver)
    asks: list[Any] = [HumanInTheLoopMiddleware({"write": True})] if scenario.stop == "interrupt" else []
    if scenario.place == "agent":
        return create_agent(model, document(), middleware=[*asks, GuardMiddleware(guard)], checkpointer=saver)
    if scenario.place == "agent with tools":
        return create_agent(model, guard_tools(document(), guard), middleware=asks, checkpointer=saver)
    hands = Values(guard) if scenario.place == "nodes" else Tools(guard_tools(document(), guard))
    builder = reading_nodes(guard, hands, scenario.asynchronous, asks=scenario.stop == "interrupt")
    return guard_graph(builder, guard, checkpointer=saver)


def given(scenario: Scenario, wish: str) -> Any:
    return {"wish": wish} if "nodes" in scenario.place else {"messages": [HumanMessage(wish)]}


async def go(scenario: Scenario, graph: Any, phase: str) -> Any:
    """The part of the run that belongs to a phase."""
    config = {"configurable": {"thread_id": "1"}}

    async def run(state: Any, **options: Any) -> Any:
        if scenario.asynchronous:
            return await graph.ainvoke(state, config, **options)
        return graph.invoke(state, config, **options)

    if scenario.stop == "turn":
        return await run(given(scenario, phase))
    if phase == "read":
        after = ["read" if "nodes" in scenario.place else "tools"] if scenario.stop == "break" else None
        return await run(given(scenario, "both"), interrupt_after=after)
    if scenario.stop == "break":
        return await run(None)
    yes: Any = "yes" if "nodes" in scenario.place else {"decisions": [{"type": "approve"}]}
    result = await run(Command(resume=yes))
    while result.get("__interrupt__"):
        result = await run(Command(resume=yes))
    return result


async def part(scenario: Scenario, folder: Path, phase: str) -> dict[str, Any]:
    """One phase of a scenario, with a guard and a checkpointer of its own."""
    guard = scenario.prepare(folder)
    where = str(scenario.root(folder) / "state.sqlite")
    if scenario.asynchronous:
        async with AsyncSqliteSaver.from_conn_string(where) as saver:
            await saver.conn.execute("PRAGMA synchronous=OFF")  # a process ends here, not the power
            result = await go(scenario, build(scenario, guard, saver), phase)
    else:
        with SqliteSaver.from_conn_string(where) as saver:
            saver.conn.execute("PRAGMA synchronous=OFF")
            result = await go(scenario, build(scenario, guard, saver), phase)
    if "nodes" in scenario.place:
        told = result.get("log", [])
    else:
        told = [str(one.content) for one in answers(result) if one.name == "write"]
        assert all((one.status == "error") is str(one.content).startswith("Conflict") for one in answers(result))
    return {"told": told, "doc": (scenario.root(folder) / "doc.md").read_text()}


async def main(phase: str, folder: Path) -> dict[str, Any]:
    return {str(one): await part(one, folder, phase) for one in scenarios()}


if __name__ == "__main__":
    json.dump(asyncio.run(main(sys.argv[1], Path(sys.argv[2]))), sys.stdout)
