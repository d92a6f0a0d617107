"""Agents that read one file, think, and write it as a whole: in each framework's own loop, with a scripted model.

The file is a JSON list; an agent puts one note in at each round. All agents have read before any of them writes, in
every round: the interleaving that locks around single calls cannot mend. Who is refused reads again and retries, as the
refusal says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from agentguard_langgraph import GuardMiddleware, guard_graph, guard_tools, guarded_tool_node, tool
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from agentguard import Event, Guard, StaleWrite, atomic_write, path

__all__ = ["FILE", "MODES", "WAYS", "Kept", "Meeting", "arrived", "guard_of", "names_of", "noted", "resumed", "seeded"]

FILE = "notes.json"
MODES = {"no guard": None, "locks alone": "ignore", "reject": "reject", "merge": "merge"}  # `stale` of the file

_PACKAGES = ["agentguard_langgraph", "langchain.agents", "langgraph.checkpoint.sqlite.aio", "langgraph.prebuilt"]
_PATIENCE = 60.0  # seconds that an agent waits for the others; longer: the run has failed


@dataclass(frozen=True)
class Kept:
    """What a run left. `refused`: how often an agent was told to read again."""

    arrived: int
    expected: int
    refused: int
    seconds: float


def names_of(agents: int) -> list[str]:
    return [f"agent-{number:02d}" for number in range(1, agents + 1)]


def guard_of(root: Path, mode: str) -> Guard | None:
    stale = MODES[mode]
    return None if stale is None else Guard(root=root, timeout=_PATIENCE, resources={FILE: {"stale": stale}})


def seeded(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / FILE).write_text("[]")
    return folder


def noted(text: str, agent: str, n: int) -> str:
    """The file's content with one note more."""
    return json.dumps([*json.loads(text), f"{agent}/{n}"])


def arrived(root: Path, agents: int, rounds: int) -> int:
    """How many of the notes are in the file."""
    found = set(json.loads((root / FILE).read_text()))
    return len(found & {f"{agent}/{n}" for agent in names_of(agents) for n in range(rounds)})


class Meeting:
    """A place where agents wait until all of them have come; again and again."""

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._waiting: list[Future[None]] = []
        self._mutex = threading.Lock()

    def __call__(self) -> None:
        self._arrive().result(_PATIENCE)

    async def wait(self) -> None:
        await asyncio.wait_for(asyncio.wrap_future(self._arrive()), _PATIENCE)

    def _arrive(self) -> Future[None]:
        mine: Future[None] = Future()
        with self._mutex:
            self._waiting.append(mine)
            here = self._waiting
            if len(here) == self._parties:
                self._waiting = []
        if len(here) == self._parties:
            for one in here:
                one.set_result(None)
        return mine


def counted(guard: Guard | None) -> list[Event]:
    """A list that every refusal of a guard is put into."""
    found: list[Event] = []
    if guard is not None:
        guard.hooks.append(lambda event: found.append(event) if event.kind == "refused" else None)
    return found


# -- the model and its tools -----------------------------------------------------------------------------------------


class Author(BaseChatModel):
    """Reads, thinks, writes, `rounds` times; by what its messages say, and nothing else."""

    agent: str
    rounds: int
    meeting: Any = None  # the others; it thinks until they have read as well

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Author:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answer, first = self._decided(messages)
        if first and self.meeting is not None:
            self.meeting()
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answer, first = self._decided(messages)
        if first and self.meeting is not None:
            await self.meeting.wait()
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _decided(self, messages: Sequence[BaseMessage]) -> tuple[AIMessage, bool]:
        """What it says next, and whether that is its first attempt at a note."""
        answers = [one for one in messages if isinstance(one, ToolMessage)]
        done = sum(one.name == "write_notes" and one.status == "success" for one in answers)
        last = answers[-1] if answers else None
        if last is not None and last.name == "read_notes":
            before = answers[-2] if len(answers) > 1 else None
            content = noted(str(last.content), self.agent, done)
            return self._says(len(answers), "write_notes", content=content), before is None or before.status != "error"
        if done < self.rounds:
            return self._says(len(answers), "read_notes"), False
        return AIMessage("done"), False

    def _says(self, turn: int, name: str, **arguments: Any) -> AIMessage:
        call = {"name": name, "args": arguments, "id": f"{self.agent}-{turn}", "type": "tool_call"}
        return AIMessage("", tool_calls=[call])


def notes_tools(root: Path, asynchronous: bool) -> list[BaseTool]:
    """`read_notes` and `write_notes`, as anybody would write them; they declare what they touch."""
    file = root / FILE

    if asynchronous:

        @tool("read_notes", reads=FILE)
        async def aread() -> str:
            """Read the notes."""
            return path(file).read_text()

        @tool("write_notes", writes=FILE)
        async def awrite(content: str) -> str:
            """Replace the notes."""
            atomic_write(path(file), content, durable=False)
            return "written"

        return [aread, awrite]

    @tool("read_notes", reads=FILE)
    def read() -> str:
        """Read the notes."""
        return path(file).read_text()

    @tool("write_notes", writes=FILE)
    def write(content: str) -> str:
        """Replace the notes."""
        atomic_write(path(file), content, durable=False)  # in one piece: nothing is lost to half a file
        return "written"

    return [read, write]


# -- ways to run them ------------------------------------------------------------------------------------------------

Run = Callable[[Path, "Guard | None", int, int, bool], None]


def loop_of(model: Author, tools: Sequence[BaseTool], guard: Guard | None) -> StateGraph[Any, Any, Any, Any]:
    """The usual loop of a model and a ToolNode."""

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def athink(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def asks(state: MessagesState) -> str:
        said = state["messages"][-1]
        return "tools" if isinstance(said, AIMessage) and said.tool_calls else END

    builder: StateGraph[Any, Any, Any, Any] = StateGraph(MessagesState)
    asynchronous = getattr(tools[0], "coroutine", None) is not None
    builder.add_node("model", athink if asynchronous else think)
    builder.add_node("tools", guarded_tool_node(tools, guard) if guard is not None else ToolNode(tools))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", asks, ["tools", END])
    builder.add_edge("tools", "model")
    return builder


def tool_nodes(root: Path, guard: Guard | None, agents: int, rounds: int, asynchronous: bool) -> None:
    tools, meeting = notes_tools(root, asynchronous), Meeting(agents)
    _beside(
        {
            name: loop_of(Author(agent=name, rounds=rounds, meeting=meeting), tools, guard).compile()
            for name in names_of(agents)
        },
        asynchronous,
    )


def ready_made(root: Path, guard: Guard | None, agents: int, rounds: int, asynchronous: bool) -> None:
    tools, meeting = notes_tools(root, asynchronous), Meeting(agents)
    middleware = [GuardMiddleware(guard)] if guard is not None else []
    _beside(
        {
            name: create_agent(
                Author(agent=name, rounds=rounds, meeting=meeting), tools, middleware=middleware, name=name
            )
            for name in names_of(agents)
        },
        asynchronous,
    )


def _beside(graphs: Mapping[str, Any], asynchronous: bool) -> None:
    """Run these graphs as the branches of one."""
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(MessagesState)
    for name, graph in graphs.items():
        builder.add_node(name, graph)
        builder.add_edge(START, name)
    _run(builder.compile(), {"messages": [HumanMessage("Take notes.")]}, len(graphs), asynchronous)


def _run(graph: Any, start: Any, agents: int, asynchronous: bool) -> None:
    config = {"recursion_limit": 100_000, "max_concurrency": None if asynchronous else agents}
    if asynchronous:
        asyncio.run(graph.ainvoke(start, config))
    else:
        graph.invoke(start, config)


def _either(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **other}


class Desk(TypedDict):
    """What plain nodes hand on, by agent."""

    seen: Annotated[dict[str, str], _either]
    done: Annotated[dict[str, int], _either]


def plain_nodes(root: Path, guard: Guard | None, agents: int, rounds: int, asynchronous: bool) -> None:
    """A node that reads and one that writes for each agent; all that runs in one superstep runs at the same time."""
    tools = notes_tools(root, asynchronous)
    read, write = guard_tools(tools, guard) if guard is not None else tools
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(Desk)
    for name in names_of(agents):
        look, put = _nodes(name, read, write, asynchronous)

        def more(state: Desk, name: str = name) -> str:
            return f"{name}-look" if state["done"].get(name, 0) < rounds else END

        builder.add_node(f"{name}-look", look)
        builder.add_node(f"{name}-put", put)
        builder.add_edge(START, f"{name}-look")
        builder.add_edge(f"{name}-look", f"{name}-put")
        builder.add_conditional_edges(f"{name}-put", more, [f"{name}-look", END])
    graph = guard_graph(builder, guard) if guard is not None else builder.compile()
    _run(graph, {"seen": {}, "done": {}}, agents, asynchronous)


def _nodes(name: str, read: BaseTool, write: BaseTool, asynchronous: bool) -> tuple[Any, Any]:
    def content(state: Desk) -> dict[str, Any]:
        return {"content": noted(state["seen"][name], name, state["done"].get(name, 0))}

    def written(state: Desk) -> dict[str, Any]:
        return {"done": {name: state["done"].get(name, 0) + 1}}

    if asynchronous:

        async def alook(state: Desk) -> dict[str, Any]:
            return {"seen": {name: await read.ainvoke({})}}

        async def aput(state: Desk) -> dict[str, Any]:
            with contextlib.suppress(StaleWrite):
                await write.ainvoke(content(state))
                return written(state)
            return {}

        return alook, aput

    def look(state: Desk) -> dict[str, Any]:
        return {"seen": {name: read.invoke({})}}

    def put(state: Desk) -> dict[str, Any]:
        with contextlib.suppress(StaleWrite):
            write.invoke(content(state))
            return written(state)
        return {}

    return look, put


def core(root: Path, guard: Guard | None, agents: int, rounds: int, asynchronous: bool) -> None:
    """No framework: threads (or tasks) that say who they are."""
    meeting = Meeting(agents)
    file = root / FILE
    identity: Callable[[str], Any] = guard.agent if guard is not None else lambda name: contextlib.nullcontext()

    def work(name: str) -> None:
        with identity(name):
            for n in range(rounds):
                text, first = json.dumps(guard.read(FILE)) if guard is not None else file.read_text(), True
                while True:
                    if first:
                        meeting()
                    try:
                        if guard is None:
                            atomic_write(file, noted(text, name, n), durable=False)
                        else:
                            guard.write(FILE, json.loads(noted(text, name, n)))
                        break
                    except StaleWrite:
                        assert guard is not None
                        text, first = json.dumps(guard.read(FILE)), False

    async def awork(name: str) -> None:
        with identity(name):
            for n in range(rounds):
                text, first = json.dumps(await guard.aread(FILE)) if guard is not None else file.read_text(), True
                while True:
                    if first:
                        await meeting.wait()
                    try:
                        if guard is None:
                            atomic_write(file, noted(text, name, n), durable=False)
                        else:
                            await guard.awrite(FILE, json.loads(noted(text, name, n)))
                        break
                    except StaleWrite:
                        assert guard is not None
                        text, first = json.dumps(await guard.aread(FILE)), False

    if asynchronous:
        asyncio.run(_all(awork, names_of(agents)))
    else:
        _threads(work, names_of(agents))


async def _all(work: Callable[[str], Awaitable[None]], names: Sequence[str]) -> None:
    await asyncio.gather(*(work(name) for name in names))


def _threads(work: Callable[[str], None], names: Sequence[str]) -> None:
    failed: list[BaseException] = []

    def run(name: str) -> None:
        try:
            work(name)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


WAYS: dict[str, Run] = {
    "LangGraph, ToolNode": tool_nodes,
    "LangGraph, create_agent": ready_made,
    "LangGraph, plain nodes": plain_nodes,
    "core": core,
}


def kept(way: Run, folder: Path, mode: str, agents: int, rounds: int, asynchronous: bool) -> Kept:
    """One run."""
    root = seeded(folder)
    guard = guard_of(root, mode)
    refused = counted(guard)
    started = time.perf_counter()
    way(root, guard, agents, rounds, asynchronous)
    seconds = time.perf_counter() - started
    return Kept(arrived(root, agents, rounds), agents * rounds, len(refused), seconds)


# -- a new process between reading and writing -----------------------------------------------------------------------


def resumed(folder: Path, mode: str, agents: int, rounds: int, asynchronous: bool, processes: int = 2) -> Kept:
    """Graphs with checkpoints in SQLite. A process writes what the one before has read, and reads for the next one.

    `processes` at a time, each with its part of the agents. A process is forked from a server that has only imported
    the packages: it has nothing of the earlier ones but their files.
    """
    root = seeded(folder)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PACKAGES)
    names = names_of(agents)
    parts = [names[number::processes] for number in range(processes)]
    results: Any = context.SimpleQueue()
    refused = 0
    started = time.perf_counter()
    for n in range(rounds + 1):
        meeting = context.Barrier(agents)
        crew = [context.Process(target=_visit, args=(root, mode, part, n, rounds, asynchronous, meeting, results))
                for part in parts]  # fmt: skip
        for one in crew:
            one.start()
        for one in crew:
            one.join(2 * _PATIENCE)
            if one.exitcode != 0:
                for other in crew:
                    other.kill()
                raise RuntimeError(f"a process of round {n} has failed: {one.exitcode}")
        refused += sum(results.get() for _ in crew)
    seconds = time.perf_counter() - started
    return Kept(arrived(root, agents, rounds), agents * rounds, refused, seconds)


def _visit(
    root: Path, mode: str, names: list[str], n: int, rounds: int, asynchronous: bool, meeting: Any, results: Any
) -> None:
    guard = guard_of(root, mode)
    refused = counted(guard)
    tools = notes_tools(root, asynchronous)

    def graph_of(name: str, saver: Any) -> Any:
        loop = loop_of(Author(agent=name, rounds=rounds), tools, guard)
        return loop.compile(checkpointer=saver, interrupt_after=["tools"])  # it goes on by `invoke(None)`

    def settled(result: Any) -> bool:
        last = result["messages"][-1]
        return bool(last.name == "write_notes" and last.status == "success")

    start = {"messages": [HumanMessage("Take notes.")]}

    def work(name: str) -> None:
        config: Any = {"configurable": {"thread_id": name}}
        with SqliteSaver.from_conn_string(str(root / f"{name}.sqlite3")) as saver:
            graph = graph_of(name, saver)
            while n > 0 and not settled(graph.invoke(None, config)):
                pass
            meeting.wait(_PATIENCE)  # all have written
            if n < rounds:
                graph.invoke(start if n == 0 else None, config)

    async def awork(name: str) -> None:
        config: Any = {"configurable": {"thread_id": name}}
        async with AsyncSqliteSaver.from_conn_string(str(root / f"{name}.sqlite3")) as saver:
            graph = graph_of(name, saver)
            while n > 0 and not settled(await graph.ainvoke(None, config)):
                pass
            await asyncio.to_thread(meeting.wait, _PATIENCE)
            if n < rounds:
                await graph.ainvoke(start if n == 0 else None, config)

    if asynchronous:
        asyncio.run(_all(awork, names))
    else:
        _threads(work, names)
    results.put(len(refused))
