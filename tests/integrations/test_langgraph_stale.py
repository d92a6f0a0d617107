"""Read, think, write in graphs: what an agent knows travels with its messages and nodes; a stale write is refused."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypedDict

import pytest
import stale_worker
from agentguard_langgraph import GuardMiddleware, guard_graph, guard_tools, guarded_tool_node, tool
from agentguard_langgraph.lines import TaskMemory
from agentguard_langgraph.transcripts import Transcript
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.outputs import ChatResult
from langchain_core.tools import BaseTool, InjectedToolCallId, ToolException
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, Send, interrupt
from langgraph_support import Scripted, answers, call, run, says
from stale_worker import Scenario, Tools, Values, document, looping, obey, reading_nodes, scenarios

import agentguard
from agentguard import Event, Guard, StaleWrite
from agentguard.budget import tokens
from agentguard.contents import Contents
from agentguard.knowledge import Knowledge

pytestmark = pytest.mark.langgraph

LONG = 30.0
BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])
THREAD: Any = {"configurable": {"thread_id": "1"}}


def one_document(root: Path, text: str = "one\n", **settings: Any) -> Guard:
    (root / "doc.md").write_text(text)
    return Guard(root, durable=False, **settings)


def by_somebody(guard: Guard, text: str = "one\ntwo\n") -> None:
    with guard.agent("somebody"):
        guard.read("doc.md")
        guard.write("doc.md", text)


def refusals(guard: Guard) -> list[Event]:
    found: list[Event] = []
    guard.hooks.append(lambda event: found.append(event) if event.kind == "refused" else None)
    return found


def writes(result: Any) -> list[str]:
    """What became of the writes that a model asked for."""
    return [one.status for one in answers(result) if one.name == "write"]


# -- many agents, many rounds ---


class Meeting:
    """Everybody goes on when all have come, threads and tasks alike; once for each round."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._came: dict[int, int] = defaultdict(int)
        self._all: dict[int, concurrent.futures.Future[None]] = defaultdict(concurrent.futures.Future)
        self._mutex = threading.Lock()

    def at(self, number: int) -> concurrent.futures.Future[None]:
        with self._mutex:
            self._came[number] += 1
            if self._came[number] == self._size:
                self._all[number].set_result(None)
            return self._all[number]


FILE: list[Path] = []  # the document, for what knows of no guard


def unguarded() -> list[BaseTool]:
    return document(str(FILE[0]))


class Waiting(Scripted):
    """A scripted model that waits for something before it speaks."""

    before: Callable[[list[BaseMessage]], Any]

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        ready = self.before(messages)
        if ready is not None:
            ready.result(LONG)
        return super()._generate(messages)

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        ready = self.before(messages)
        if ready is not None:
            await asyncio.wait_for(asyncio.wrap_future(ready), LONG)
        return super()._generate(messages)


def written(messages: list[BaseMessage]) -> int:
    return sum(isinstance(one, ToolMessage) and one.content == "written" for one in messages)


def adding(meeting: Meeting, rounds: int) -> Waiting:
    """A model that reads, meets the others, adds a line of its own, and reads again when it is refused."""

    def looks(messages: list[BaseMessage]) -> int:
        """How often it has looked in this round, if it has looked just now."""
        told = [one for one in messages if isinstance(one, ToolMessage)]
        last = max((place for place, one in enumerate(told) if one.content == "written"), default=-1)
        seen = [one.name for one in told[last + 1 :]]
        return seen.count("read") if seen and seen[-1] == "read" else 0

    def before(messages: list[BaseMessage]) -> Any:
        return meeting.at(written(messages)) if looks(messages) == 1 else None

    def script(messages: list[BaseMessage]) -> AIMessage:
        if written(messages) == rounds:
            return says(content="done")
        if looks(messages):
            return says(call("write", text=f"{messages[-1].content}{messages[0].content} {written(messages)}\n"))
        return says(call("read"))

    return Waiting(script=script, before=before)


def with_tool_node(guard: Guard | None, meeting: Meeting, rounds: int, asynchronous: bool) -> Any:
    node = ToolNode(unguarded()) if guard is None else guarded_tool_node(document(), guard)
    return awaited(looping(node, adding(meeting, rounds)), asynchronous).compile()


def with_guard_graph(guard: Guard | None, meeting: Meeting, rounds: int, asynchronous: bool) -> Any:
    tools = unguarded() if guard is None else document()
    builder = awaited(looping(ToolNode(tools), adding(meeting, rounds)), asynchronous)
    return builder.compile() if guard is None else guard_graph(builder, guard)


def with_middleware(guard: Guard | None, meeting: Meeting, rounds: int, asynchronous: bool) -> Any:
    if guard is None:
        return create_agent(adding(meeting, rounds), unguarded(), name="writer")
    return create_agent(adding(meeting, rounds), document(), middleware=[GuardMiddleware(guard)], name="writer")


def with_guarded_tools(guard: Guard | None, meeting: Meeting, rounds: int, asynchronous: bool) -> Any:
    tools = unguarded() if guard is None else guard_tools(document(), guard)
    return create_agent(adding(meeting, rounds), tools, name="writer")


def awaited(builder: StateGraph[Any, Any, Any, Any], asynchronous: bool) -> StateGraph[Any, Any, Any, Any]:
    """The same graph, with an async model node: a sync one would wait in the loop's few threads."""
    if asynchronous:
        think: Any = builder.nodes["model"].runnable
        model = next(cell.cell_contents for cell in think.func.__closure__ if isinstance(cell.cell_contents, Waiting))

        async def athink(state: MessagesState) -> Any:
            return {"messages": [await model.ainvoke(state["messages"])]}

        think.func, think.afunc = None, athink
    return builder


class Plain:
    """Reads and writes without any guard."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def get(self) -> str:
        return self.file.read_text()

    def put(self, text: str) -> None:
        agentguard.atomic_write(self.file, text.encode())

    async def aget(self) -> str:
        return self.get()

    async def aput(self, text: str) -> None:
        self.put(text)


class Rounds(TypedDict, total=False):
    name: str
    text: str
    done: int
    met: int


def nodes_of(hands: Any, meeting: Meeting, rounds: int, asynchronous: bool, who: Any) -> StateGraph[Any, Any, Any, Any]:
    """A read node, a node that thinks and meets the others, a write node; again until every line is there."""

    def thought(state: Rounds) -> Any:
        return {"text": f"{state['text']}{state['name']} {state.get('done', 0)}\n", "met": state.get("done", 0)}

    def ready(state: Rounds) -> Any:
        done = state.get("done", 0)
        return meeting.at(done) if state.get("met", -1) < done else None

    def read(state: Rounds) -> Any:
        with who(state["name"]):
            return {"text": hands.get()}

    async def aread(state: Rounds) -> Any:
        with who(state["name"]):
            return {"text": await hands.aget()}

    def think(state: Rounds) -> Any:
        if (future := ready(state)) is not None:
            future.result(LONG)
        return thought(state)

    async def athink(state: Rounds) -> Any:
        if (future := ready(state)) is not None:
            await asyncio.wait_for(asyncio.wrap_future(future), LONG)
        return thought(state)

    def write(state: Rounds) -> Any:
        try:
            with who(state["name"]):
                hands.put(state["text"])
        except StaleWrite:
            return {}
        return {"done": state.get("done", 0) + 1}

    async def awrite(state: Rounds) -> Any:
        try:
            with who(state["name"]):
                await hands.aput(state["text"])
        except StaleWrite:
            return {}
        return {"done": state.get("done", 0) + 1}

    builder = StateGraph(Rounds)
    for name, sync, asynchronous_ in (("read", read, aread), ("think", think, athink), ("write", write, awrite)):
        builder.add_node(name, asynchronous_ if asynchronous else sync)
    builder.add_edge(START, "read")
    builder.add_edge("read", "think")
    builder.add_edge("think", "write")
    builder.add_conditional_edges("write", lambda state: END if state.get("done") == rounds else "read")
    return builder


class nobody:
    """Who calls is not said."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def with_nodes(tools: bool, guarded: bool, named: bool, label: str) -> Any:
    def build(guard: Guard | None, meeting: Meeting, rounds: int, asynchronous: bool) -> Any:
        if guard is None:
            return nodes_of(Plain(FILE[0]), meeting, rounds, asynchronous, nobody).compile()
        hands = Tools(guard_tools(document(), guard)) if tools else Values(guard)
        builder = nodes_of(hands, meeting, rounds, asynchronous, guard.agent if named else nobody)
        return guard_graph(builder, guard) if guarded else builder.compile()

    build.__name__ = label
    return build


MODELS = [with_tool_node, with_guard_graph, with_middleware, with_guarded_tools]
NODES = [
    with_nodes(False, True, False, "nodes in a guarded graph"),
    with_nodes(True, True, False, "nodes with tools in a guarded graph"),
    with_nodes(False, True, True, "named nodes in a guarded graph"),
    with_nodes(False, False, True, "named nodes"),
    with_nodes(True, False, True, "named nodes with tools"),
]
PLACES = pytest.mark.parametrize("place", [*MODELS, *NODES], ids=lambda place: place.__name__.replace("_", " "))
PARALLEL = pytest.mark.parametrize("sends", [False, True], ids=["runs", "Sends"])


def together(graph: Any, names: list[str], asynchronous: bool, sends: bool) -> None:
    """One agent for each name, all at once: as runs of their own, or as tasks of one step."""

    def given(name: str) -> Any:
        return {"name": name} if "read" in graph.nodes else {"messages": [HumanMessage(name)]}

    config: Any = {"max_concurrency": len(names), "recursion_limit": 10_000}
    if sends:
        builder = StateGraph(MessagesState)
        builder.add_node("agent", graph)
        builder.add_conditional_edges(START, lambda state: [Send("agent", given(name)) for name in names], ["agent"])
        run(builder.compile(), {"messages": []}, config, asynchronous=asynchronous)
    elif asynchronous:

        async def main() -> None:
            await asyncio.gather(*(graph.ainvoke(given(name), config) for name in names))

        asyncio.run(main())
    else:
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: graph.invoke(given(name), config), names))


def lines_after(place: Any, guard: Guard | None, root: Path, size: Any, asynchronous: bool, sends: bool) -> list[str]:
    agents, rounds = size
    FILE[:] = [root / "doc.md"]
    names = [f"agent-{n}" for n in range(agents)]
    together(place(guard, Meeting(agents), rounds, asynchronous), names, asynchronous, sends)
    return sorted((root / "doc.md").read_text().splitlines())


def all_lines(agents: int, rounds: int) -> list[str]:
    return sorted(f"agent-{n} {r}" for n in range(agents) for r in range(rounds))


@BOTH
@PARALLEL
@PLACES
@pytest.mark.parametrize(
    "size", [(4, 3), pytest.param((8, 25), marks=[pytest.mark.soak, pytest.mark.timeout(600)])], ids=["4x3", "8x25"]
)
def test_what_several_agents_add_at_once_all_arrives(
    size: tuple[int, int], place: Any, sends: bool, asynchronous: bool, tmp_path: Path
) -> None:
    guard = one_document(tmp_path, "")
    refused = refusals(guard)
    assert lines_after(place, guard, tmp_path, size, asynchronous, sends) == all_lines(*size)
    agents, rounds = size
    assert len(refused) >= (agents - 1) * rounds  # all had read before the first of them wrote


@BOTH
@pytest.mark.parametrize("locked", [False, True], ids=["without the guard", "with locks alone"])
@PLACES
def test_without_versions_only_one_of_them_survives_each_round(
    place: Any, locked: bool, asynchronous: bool, tmp_path: Path
) -> None:
    guard = one_document(tmp_path, "", resources={"doc.md": {"stale": "ignore"}})
    found = lines_after(place, guard if locked else None, tmp_path, (3, 2), asynchronous, False)
    assert len(found) == 2
    assert set(found) < set(all_lines(3, 2))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the mechanism off: nobody knows what it has read."""
    monkeypatch.setattr(Transcript, "get", lambda self, resource: None)
    monkeypatch.setattr(TaskMemory, "get", lambda self, resource: None)
    monkeypatch.setattr(Knowledge, "get", lambda self, run, agent, resource: None)


@PLACES
def test_it_is_the_knowledge_that_saves_them(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    assert len(lines_after(place, one_document(tmp_path, ""), tmp_path, (3, 2), False, False)) == 2


# -- on in a new process ---

STOPPED = [*scenarios()]


def in_another_process(phase: str, folder: Path) -> Any:
    command = [sys.executable, "-W", "error", stale_worker.__file__, phase, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def change_in_between(scenario: Scenario, folder: Path) -> None:
    if scenario.changed:
        by_somebody(scenario.prepare(folder))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What every scenario has come to: its read in one process, its write in another, a change by us in between."""
    folder = tmp_path_factory.mktemp("resumed")
    in_another_process("read", folder)
    for scenario in STOPPED:
        change_in_between(scenario, folder)
    return in_another_process("write", folder)


@pytest.mark.parametrize("scenario", STOPPED, ids=str)
def test_a_run_that_goes_on_in_a_new_process_knows_what_it_has_read(scenario: Scenario, resumed: Any) -> None:
    found = resumed[str(scenario)]
    if not scenario.changed:
        assert found == {"told": ["written"], "doc": "one\nmine\n"}
        return
    refused, last = found["told"]
    assert (last, found["doc"]) == ("written", "one\ntwo\nmine\n")
    assert refused.startswith("Conflict: doc.md was changed by agent 'somebody' in write at ")
    assert "What changed:\n+two" in refused  # the content that it had read was kept on disk


@pytest.mark.parametrize("place", stale_worker.PLACES)
def test_a_resumed_run_without_its_knowledge_would_lose_the_change(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scenario(place, "break", False, True)
    asyncio.run(stale_worker.part(scenario, tmp_path, "read"))
    change_in_between(scenario, tmp_path)
    forget(monkeypatch)
    found = asyncio.run(stale_worker.part(scenario, tmp_path, "write"))
    assert found == {"told": ["written"], "doc": "one\nmine\n"}


def test_contents_are_kept_on_disk_only_where_checkpoints_are(tmp_path: Path) -> None:
    guard = one_document(tmp_path)
    for saver, kept in ((None, False), (InMemorySaver(), True)):
        graph = looping(guarded_tool_node(document(), guard), Scripted(script=obey)).compile(checkpointer=saver)
        graph.invoke({"messages": [HumanMessage("read")]}, THREAD)
        assert (tmp_path / ".agentguard" / "versions").exists() is kept


# -- time travel and forks ---


def messages_graph(place: str, guard: Guard, script: Any = obey, more: Sequence[BaseTool] = ()) -> Any:
    model, saver, tools = Scripted(script=script), InMemorySaver(), [*document(), *more]
    if place == "agent":
        return create_agent(model, tools, middleware=[GuardMiddleware(guard)], checkpointer=saver)
    if place == "guarded graph":
        return guard_graph(looping(ToolNode(tools), model), guard, checkpointer=saver)
    return looping(guarded_tool_node(tools, guard), model).compile(checkpointer=saver)


MESSAGES = pytest.mark.parametrize("place", ["tool node", "guarded graph", "agent"])


def checkpoint(graph: Any, known: int) -> Any:
    """The configuration of the first checkpoint with so many answers, where the model is to speak."""
    return next(
        one.config
        for one in reversed([*graph.get_state_history(THREAD)])
        if one.next == ("model",) and len(answers(one.values)) == known
    )


def fork(graph: Any, config: Any) -> list[str]:
    """What becomes of a write that the model asks for at a checkpoint."""
    given = {"messages": [says(call("write", text="forked\n"))]}
    return writes(graph.invoke(None, graph.update_state(config, given, as_node="model")))


@MESSAGES
@pytest.mark.parametrize("must_read", [False, True], ids=["", "require_read"])
def test_at_each_checkpoint_the_model_knows_what_it_knew_there(place: str, must_read: bool, tmp_path: Path) -> None:
    guard = one_document(tmp_path, resources={"doc.md": {"require_read": must_read}})
    graph = messages_graph(place, guard)
    assert writes(graph.invoke({"messages": [HumanMessage("both")]}, THREAD)) == ["success"]
    before, after, last = (checkpoint(graph, known) for known in (0, 1, 2))
    by_somebody(guard, "theirs\n")
    assert fork(graph, after)[:1] == ["error"]
    assert fork(graph, last)[:2] == ["success", "error"]  # it has read and written, and they have changed that
    (tmp_path / "doc.md").write_text("one\n")  # as it was when it read
    assert fork(graph, after) == ["success"]
    (tmp_path / "doc.md").write_text("one\nmine\n")  # as it was when it had written
    assert fork(graph, last) == ["success", "success"]
    assert fork(graph, before)[:1] == (["error"] if must_read else ["success"])


@MESSAGES
def test_a_run_repeated_from_its_middle_is_stale_by_its_own_earlier_end(place: str, tmp_path: Path) -> None:
    guard = one_document(tmp_path)
    graph = messages_graph(place, guard)
    graph.invoke({"messages": [HumanMessage("both")]}, THREAD)
    result = graph.invoke(None, checkpoint(graph, 1))
    assert writes(result) == ["error", "success"]
    assert (tmp_path / "doc.md").read_text() == "one\nmine\nmine\n"


def test_at_each_checkpoint_a_node_knows_what_it_knew_there(tmp_path: Path) -> None:
    guard = one_document(tmp_path)
    graph = guard_graph(reading_nodes(guard, Values(guard)), guard, checkpointer=InMemorySaver())
    graph.invoke({"wish": "both"}, THREAD)
    history = {one.next: one.config for one in graph.get_state_history(THREAD) if one.next}
    by_somebody(guard, "theirs\n")

    def log(config: Any) -> Any:
        return [line[:8] for line in graph.invoke(None, config, interrupt_after="write")["log"]]

    for node in ("think", "write"):  # the read node has run
        assert log(history[node,]) == ["Conflict"]
    edited = graph.update_state(history["think",], {"text": "forked\n"}, as_node="read")
    assert log(edited) == ["Conflict"]
    edited = graph.update_state(history["think",], {"text": "forked\n"}, as_node="think")
    assert log(edited) == ["Conflict"]
    edited = graph.update_state(graph.update_state(history["write",], {"text": "1"}), {"text": "2"})
    assert log(edited) == ["Conflict"]
    (tmp_path / "doc.md").write_text("one\n")
    assert log(history["write",]) == ["written"]
    by_somebody(guard, "theirs again\n")
    edited = graph.update_state(history["read",], {"text": "forked\n"}, as_node="think")
    assert log(edited) == ["written"]  # it never read


@BOTH
@pytest.mark.parametrize("reads", ["outside", "inside"])
def test_a_subgraph_and_the_graph_around_it_know_the_same(reads: str, asynchronous: bool, tmp_path: Path) -> None:
    """One of them reads, the other one writes, and somebody changes the file in between."""
    guard = one_document(tmp_path)

    def read(state: stale_worker.Work) -> Any:
        return {"text": guard.read("doc.md")}

    def write(state: stale_worker.Work) -> Any:
        try:
            guard.write("doc.md", f"{state['text']}mine\n")
        except StaleWrite:
            return {"log": ["refused"]}
        return {"log": ["written"]}

    inner, outer = StateGraph(stale_worker.Work), StateGraph(stale_worker.Work)
    inner.add_node("inner", read if reads == "inside" else write)
    inner.add_edge(START, "inner")
    outer.add_node("sub", inner.compile())
    outer.add_node("own", write if reads == "inside" else read)
    first, second = ("sub", "own") if reads == "inside" else ("own", "sub")
    outer.add_edge(START, first)
    outer.add_edge(first, second)
    graph = guard_graph(outer, guard, checkpointer=InMemorySaver())

    def log(state: Any, config: Any, **options: Any) -> Any:
        if asynchronous:
            return asyncio.run(graph.ainvoke(state, config, **options)).get("log")
        return graph.invoke(state, config, **options).get("log")

    assert not log({}, THREAD, interrupt_after=[first])
    middle = graph.get_state(THREAD).config
    assert log(None, middle) == ["written"]
    by_somebody(guard)
    assert log(None, middle) == ["refused"]
    start = next(one.config for one in graph.get_state_history(THREAD) if one.next == (first,))
    assert log(None, start) == ["written"]  # it has read again
    assert (tmp_path / "doc.md").read_text() == "one\ntwo\nmine\n"


@pytest.mark.parametrize("place", ["nodes", "tool node", "agent"])
def test_a_graph_that_is_called_in_a_node_knows_for_itself(place: str, tmp_path: Path) -> None:
    """It is not refused for what the node has read, and the node is refused for what it has written."""
    guard = one_document(tmp_path)

    def inner() -> None:
        if place == "nodes":
            found = guard_graph(reading_nodes(guard, Values(guard)), guard).invoke({"wish": "both"})
            assert found["log"] == ["written"]
        else:
            found = messages_graph(place, guard).invoke({"messages": [HumanMessage("both")]}, THREAD)
            assert writes(found) == ["success"]

    def node(state: stale_worker.Work) -> Any:
        guard.read("doc.md")
        by_somebody(guard)
        inner()
        try:
            guard.write("doc.md", "lost")
        except StaleWrite:
            return {"log": ["refused"]}
        return {"log": ["written"]}

    outer = StateGraph(stale_worker.Work)
    outer.add_node("node", node)
    outer.add_edge(START, "node")
    assert guard_graph(outer, guard).invoke({})["log"] == ["refused"]
    assert (tmp_path / "doc.md").read_text() == "one\ntwo\nmine\n"


def test_graphs_that_a_node_calls_at_once_know_nothing_of_each_other(tmp_path: Path) -> None:
    guard, scene = one_document(tmp_path), Scene()
    builder = StateGraph(MessagesState)
    builder.add_node("agent", one_name("guarded graph", guard, scene.model()))
    builder.add_edge(START, "agent")
    inner = guard_graph(builder, guard)

    async def node(state: MessagesState) -> Any:
        await asyncio.gather(*(inner.ainvoke({"messages": [HumanMessage(who)]}) for who in scene.ORDER))
        return {}

    outer = StateGraph(MessagesState)
    outer.add_node("node", node)
    outer.add_edge(START, "node")
    run(guard_graph(outer, guard), {"messages": []}, asynchronous=True)
    assert scene.told == scene.TOLD
    assert (tmp_path / "doc.md").read_text() == "blind\nreader\n"


def test_an_agent_as_a_node_knows_what_the_messages_tell_that_it_gets(tmp_path: Path) -> None:
    guard = one_document(tmp_path)
    agent = create_agent(Scripted(script=obey), document(), name="second")
    builder = looping(ToolNode(document()), Scripted(script=lambda seen: obey([HumanMessage("read"), *seen[1:]])))
    builder.add_node("agent", agent)
    builder.branches["model"].clear()
    builder.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else "agent")
    graph = guard_graph(builder, guard, checkpointer=InMemorySaver())
    graph.invoke({"messages": [HumanMessage("write")]}, THREAD, interrupt_before=["agent"])
    by_somebody(guard)
    assert writes(graph.invoke(None, THREAD)) == ["error", "success"]
    assert (tmp_path / "doc.md").read_text() == "one\ntwo\nmine\n"


def test_time_travel_without_knowledge_would_lose_the_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = one_document(tmp_path)
    graph = messages_graph("tool node", guard)
    graph.invoke({"messages": [HumanMessage("both")]}, THREAD)
    by_somebody(guard)
    forget(monkeypatch)
    assert fork(graph, checkpoint(graph, 1)) == ["success"]
    assert (tmp_path / "doc.md").read_text() == "forked\n"


# -- what runs again ---


@BOTH
@pytest.mark.parametrize("how", ["interrupt", "retry"])
@pytest.mark.parametrize("overtaken", [False, True], ids=["", "overtaken"])
@pytest.mark.parametrize("named", [False, True], ids=["", "named"])
def test_a_node_that_runs_again_is_not_stale_against_itself(
    named: bool, overtaken: bool, how: str, asynchronous: bool, tmp_path: Path
) -> None:
    guard = one_document(tmp_path)
    broken = [True]
    who = guard.agent if named else nobody

    def read(state: stale_worker.Work) -> Any:
        with who("me"):
            return {"text": guard.read("doc.md")}

    def write(state: stale_worker.Work) -> Any:
        try:
            with who("me"):
                guard.write("doc.md", f"{state['text']}mine\n")
        except StaleWrite:
            return {"log": ["refused"]}
        if broken and overtaken:
            by_somebody(guard)
        if how == "interrupt":
            broken.clear()
            interrupt("sure?")
        elif broken:
            broken.clear()
            raise ConnectionError
        return {"log": ["written"]}

    builder = StateGraph(stale_worker.Work)
    builder.add_node("read", read)
    builder.add_node("write", write, retry_policy=RetryPolicy(initial_interval=0.001, jitter=False))
    builder.add_edge(START, "read")
    builder.add_edge("read", "write")
    graph = guard_graph(builder, guard, checkpointer=InMemorySaver())
    result = run(graph, {}, THREAD, asynchronous=asynchronous)
    if how == "interrupt":
        result = run(graph, Command(resume="yes"), THREAD, asynchronous=asynchronous)
    assert result["log"] == ["refused" if overtaken else "written"]
    assert (tmp_path / "doc.md").read_text() == ("one\ntwo\n" if overtaken else "one\nmine\n")


@BOTH
@MESSAGES
@pytest.mark.parametrize("change", ["", "overtaken", "deleted"])
def test_a_turn_that_runs_again_is_not_stale_against_itself(
    change: str, place: str, asynchronous: bool, tmp_path: Path
) -> None:
    """A node with the tools repeats all calls of a turn when one of them was interrupted."""
    guard = one_document(tmp_path)
    file = tmp_path / "doc.md"

    @tool
    def ask() -> str:
        """Ask."""
        return str(interrupt("sure?"))

    def script(messages: list[BaseMessage]) -> AIMessage:
        told = [one for one in messages if isinstance(one, ToolMessage)]
        if not told:
            return says(call("read"))
        if len(told) == 1 and change == "deleted":
            file.unlink()
        return says(call("write", text="mine\n"), call("ask")) if len(told) == 1 else says(content="done")

    graph = messages_graph(place, guard, script, [ask])
    run(graph, {"messages": [HumanMessage("go")]}, THREAD, asynchronous=asynchronous)
    assert file.exists() is (change != "deleted")
    if change == "overtaken":
        by_somebody(guard)
    result = run(graph, Command(resume="yes"), THREAD, asynchronous=asynchronous)
    again = place != "agent"  # there every call is a task of its own, and one that has ended is not repeated
    assert writes(result) == ["error" if change == "deleted" or (change and again) else "success"]
    assert file.exists() is (change != "deleted")
    if change != "deleted":
        assert file.read_text() == ("one\ntwo\n" if change else "mine\n")


# -- lost and edited knowledge ---


def two_documents(place: str, guard: Guard, script: Any) -> Any:
    """A graph with the document's tools, and one that reads something else."""

    @tool(reads="other.md")
    def look() -> str:
        """Look."""
        return agentguard.path("other.md").read_text()

    (guard.root / "other.md").write_text("other\n")
    tools, model = [*document(), look], Scripted(script=script)
    if place == "agent":
        return create_agent(model, tools, middleware=[GuardMiddleware(guard)], checkpointer=InMemorySaver())
    node = guarded_tool_node(tools, guard)
    return looping(node, model).compile(checkpointer=InMemorySaver())


def reads_then(messages: list[BaseMessage]) -> AIMessage:
    """Reads the document, looks at the other one, and says so; what it does next depends on the human."""
    told = [one.name for one in messages if isinstance(one, ToolMessage)]
    if messages[-1].content == "write":
        return says(call("write", text="mine\n"))
    if isinstance(messages[-1], ToolMessage) and told[-1] == "write":
        return says(content="done")
    return says(*[call("read")] * (not told) + [call("look")] * (told == ["read"]), content="yes")


TRIMMED = pytest.mark.parametrize("place", ["tool node", "agent"])


@TRIMMED
@pytest.mark.parametrize(
    ("gone", "must_read", "told"),
    [
        ({"read"}, False, "was changed by agent 'somebody'"),
        ({"read", "look"}, False, "written"),
        ({"read", "look"}, True, "was never read"),
        (set(), False, "was changed by agent 'somebody'"),
    ],
    ids=["the answer", "everything", "everything, require_read", "nothing"],
)
def test_trimmed_messages(place: str, gone: set[str], must_read: bool, told: str, tmp_path: Path) -> None:
    guard = one_document(tmp_path, resources={"doc.md": {"require_read": must_read}})
    graph = two_documents(place, guard, reads_then)
    result = graph.invoke({"messages": [HumanMessage("go")]}, THREAD)
    assert [one.name for one in answers(result)] == ["read", "look"]
    removed = [
        RemoveMessage(id=one.id)
        for one in result["messages"]
        if getattr(one, "name", None) in gone or {call["name"] for call in getattr(one, "tool_calls", ())} & gone
    ]
    assert len(removed) == 2 * len(gone)
    graph.update_state(THREAD, {"messages": removed})
    by_somebody(guard)
    result = graph.invoke({"messages": [HumanMessage("write")]}, THREAD)
    assert told in str(answers(result)[-1].content)


MALFORMED: list[Any] = [
    None,
    7,
    [],
    {},
    {"read": 5},
    {"read": {}},
    {"read": ["file:doc.md"]},
    {"read": {"file:doc.md": 3}},
    {"read": {"file:doc.md": None}},
    {"carried": {"file:doc.md": 3}},
    {"read": {}, "carried": 5},
]


@TRIMMED
@pytest.mark.parametrize("stamp", MALFORMED, ids=json.dumps)
def test_a_read_whose_version_cannot_be_told_makes_its_write_refused(place: str, stamp: Any, tmp_path: Path) -> None:
    guard = one_document(tmp_path)
    graph = two_documents(place, guard, obey)
    result = graph.invoke({"messages": [HumanMessage("read")]}, THREAD)
    (answer,) = answers(result)
    assert isinstance(answer.additional_kwargs["agentguard"]["read"]["file:doc.md"], str)
    edited = ToolMessage(
        answer.content,
        id=answer.id,
        name="read",
        tool_call_id=answer.tool_call_id,
        additional_kwargs={} if stamp is None else {"agentguard": stamp},
    )
    graph.update_state(THREAD, {"messages": [edited]})
    by_somebody(guard)
    result = graph.invoke({"messages": [HumanMessage("write")]}, THREAD)
    assert writes(result) == ["error", "success"]
    assert "in which version is not known any more" in str(answers(result)[1].content)
    assert (tmp_path / "doc.md").read_text() == "one\ntwo\nmine\n"


@pytest.mark.parametrize(
    "version", ["../../secret", "/etc/passwd", "../doc.md", "x" * 10_000, "\0", "é" * 32, "0" * 32]
)
def test_a_version_is_never_a_path(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = one_document(tmp_path)
    (tmp_path / "secret").write_text("the secret\n")
    (tmp_path / ".agentguard" / "versions").mkdir(parents=True)
    graph = two_documents("tool node", guard, obey)
    (answer,) = answers(graph.invoke({"messages": [HumanMessage("read")]}, THREAD))
    stamp = {"read": {"file:doc.md": version}, "carried": {"file:other.md": version}}
    edited = answer.model_copy(update={"additional_kwargs": {"agentguard": stamp}})
    graph.update_state(THREAD, {"messages": [edited]})
    opened: list[str] = []
    plain = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(str(self)) or plain(self))
    result = graph.invoke({"messages": [HumanMessage("write")]}, THREAD)
    assert writes(result) == ["error", "success"]
    assert "secret\n" not in str(answers(result)[1].content)
    folder = str(tmp_path / ".agentguard" / "versions")
    assert not [name for name in opened if "secret" in name or "passwd" in name or ".." in name]
    assert {name for name in opened if name.startswith(folder)} <= {f"{folder}/{'0' * 32}"}


# -- what the model and its provider get ---


def models() -> Iterator[Any]:
    openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    anthropic = pytest.importorskip("langchain_anthropic", reason="needs langchain-anthropic")
    yield openai.ChatOpenAI(model="gpt-4o", api_key="x")
    yield openai.ChatOpenAI(model="gpt-4o", api_key="x", use_responses_api=True)
    yield anthropic.ChatAnthropic(model="claude-sonnet-4-5", api_key="x")


def test_no_provider_gets_the_stamp(tmp_path: Path) -> None:
    guard = one_document(tmp_path)
    result = messages_graph("tool node", guard).invoke({"messages": [HumanMessage("both")]}, THREAD)
    by_somebody(guard)
    answered = [one for one in answers(result) if one.additional_kwargs["agentguard"]]
    assert len(answered) == 2
    stamps = {version for one in answered for version in one.additional_kwargs["agentguard"]["read"].values()}
    for model in models():
        payload = json.dumps(model._get_request_payload(result["messages"]), default=repr)
        assert "one\\n" in payload
        assert "agentguard" not in payload
        assert not [version for version in stamps if version in payload]


@BOTH
@MESSAGES
def test_the_model_sees_what_it_would_see_without_the_guard(place: str, asynchronous: bool, tmp_path: Path) -> None:
    seen: list[Any] = []

    def watched(messages: list[BaseMessage]) -> AIMessage:
        seen.append([(one.type, one.content) for one in messages])
        return obey(messages)

    guard = one_document(tmp_path)
    run(messages_graph(place, guard, watched), {"messages": [HumanMessage("both")]}, THREAD, asynchronous=asynchronous)
    guarded = list(seen)
    seen.clear()
    (tmp_path / "doc.md").write_text("one\n")
    FILE[:] = [tmp_path / "doc.md"]
    plain = looping(ToolNode(unguarded()), Scripted(script=watched)).compile()
    run(plain, {"messages": [HumanMessage("both")]}, asynchronous=asynchronous)
    assert guarded == seen
    assert len(seen) == 3


# -- agents of one name ---


class Scene:
    """Three agents: one reads early and writes last, one reads and writes in between, one writes without a look."""

    ORDER = ("reader", "writer", "bystander")
    TOLD: ClassVar[dict[str, list[str]]] = {
        "reader": ["read success", "write error", "read success", "write success"],
        "writer": ["read success", "write success"],
        "bystander": ["write success"],
    }

    def __init__(self) -> None:
        self.cues: dict[str, concurrent.futures.Future[None]] = {
            cue: concurrent.futures.Future() for cue in ("looked", "written", "overwritten")
        }
        self.told: dict[str, list[str]] = {}

    def _place(self, messages: list[BaseMessage]) -> tuple[str, list[ToolMessage]]:
        wish = next(str(one.content) for one in messages if isinstance(one, HumanMessage))
        told = [one for one in messages if isinstance(one, ToolMessage)]
        return next(name for name in self.ORDER if name in wish), told

    def before(self, messages: list[BaseMessage]) -> Any:
        who, told = self._place(messages)
        if who == "reader" and len(told) == 1:
            self.cues["looked"].set_result(None)
            return self.cues["overwritten"]
        if not told and who != "reader":
            return self.cues["looked" if who == "writer" else "written"]
        return None

    def script(self, messages: list[BaseMessage]) -> AIMessage:
        who, told = self._place(messages)
        if told and told[-1].content == "written":
            self.told[who] = [f"{one.name} {one.status}" for one in told]
            if who != "reader":
                self.cues["written" if who == "writer" else "overwritten"].set_result(None)
            return says(content=f"{who} is done")
        if who == "bystander":
            return says(call("write", text="blind\n"))
        if told and told[-1].name == "read":
            return says(call("write", text=f"{told[-1].content}{who}\n"))
        return says(call("read"))

    def model(self) -> Waiting:
        return Waiting(script=self.script, before=self.before)


def one_name(how: str, guard: Guard, model: Any) -> Any:
    if how == "middleware":
        return create_agent(model, document(), middleware=[GuardMiddleware(guard)], name="same")
    return create_agent(model, document() if how == "guarded graph" else guard_tools(document(), guard), name="same")


HOW = pytest.mark.parametrize("how", ["middleware", "guarded tools", "guarded graph"])


@BOTH
@HOW
def test_parallel_agents_of_one_name_know_nothing_of_each_other(how: str, asynchronous: bool, tmp_path: Path) -> None:
    guard, scene = one_document(tmp_path), Scene()
    builder = StateGraph(MessagesState)
    builder.add_node("agent", one_name(how, guard, scene.model()))
    builder.add_conditional_edges(
        START, lambda _: [Send("agent", {"messages": [HumanMessage(who)]}) for who in scene.ORDER], ["agent"]
    )
    graph = guard_graph(builder, guard) if how == "guarded graph" else builder.compile()
    run(graph, {"messages": []}, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert scene.told == scene.TOLD
    assert (tmp_path / "doc.md").read_text() == "blind\nreader\n"


@BOTH
@HOW
@pytest.mark.parametrize("numbered", [False, True], ids=["", "ids that repeat"])
def test_agents_that_are_called_in_a_tool_know_nothing_of_each_other(
    numbered: bool, how: str, asynchronous: bool, tmp_path: Path
) -> None:
    """`numbered`: models that number their calls anew in each conversation, so that ids are not unique."""
    guard, scene = one_document(tmp_path), Scene()
    model = scene.model()
    if numbered:
        script = model.script

        def renumbered(messages: list[BaseMessage]) -> AIMessage:
            said = script(messages)
            calls = [{**one, "id": f"call_{place}"} for place, one in enumerate(said.tool_calls)]
            return AIMessage(content=said.content, tool_calls=calls)

        model.script = renumbered

    def agent() -> Any:
        if how == "guarded graph":
            builder = StateGraph(MessagesState)
            builder.add_node("agent", one_name(how, guard, model))
            builder.add_edge(START, "agent")
            return guard_graph(builder, guard)
        return one_name(how, guard, model)

    @tool
    def delegate(who: str) -> str:
        """Delegate."""
        return str(agent().invoke({"messages": [HumanMessage(who)]})["messages"][-1].content)

    @tool("delegate")
    async def adelegate(who: str) -> str:
        """Delegate."""
        return str((await agent().ainvoke({"messages": [HumanMessage(who)]}))["messages"][-1].content)

    calls = [call("delegate", who=who) for who in scene.ORDER]
    if numbered:
        calls = [{**one, "id": f"call_{place}"} for place, one in enumerate(calls)]

    def main(messages: list[BaseMessage]) -> AIMessage:
        return says(content="done") if isinstance(messages[-1], ToolMessage) else says(*calls)

    tools = [adelegate if asynchronous else delegate]
    graph = create_agent(Scripted(script=main), tools, middleware=[GuardMiddleware(guard)], name="same")
    result = run(graph, {"messages": [HumanMessage("go")]}, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert [one.content for one in answers(result)] == [f"{who} is done" for who in scene.ORDER]
    assert scene.told == scene.TOLD
    assert (tmp_path / "doc.md").read_text() == "blind\nreader\n"


@BOTH
@pytest.mark.parametrize("how", ["middleware", "guarded tools"])
def test_parallel_subagents_of_deepagents_know_nothing_of_each_other(
    how: str, asynchronous: bool, tmp_path: Path
) -> None:
    deepagents = pytest.importorskip("deepagents", reason="needs deepagents")
    guard, scene = one_document(tmp_path), Scene()

    def main(messages: list[BaseMessage]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return says(content="done")
        return says(*(call("task", description=who, subagent_type="same") for who in scene.ORDER))

    same: Any = {"name": "same", "description": "One.", "system_prompt": "Go.", "model": scene.model()}
    if how == "middleware":
        same |= {"tools": document(), "middleware": [GuardMiddleware(guard)]}
    else:
        same |= {"tools": guard_tools(document(), guard)}
    graph = deepagents.create_deep_agent(Scripted(script=main), [], subagents=[same])
    result = run(graph, {"messages": [HumanMessage("go")]}, {"max_concurrency": 3}, asynchronous=asynchronous)
    assert [one.content for one in answers(result)] == [f"{who} is done" for who in scene.ORDER]
    assert scene.told == scene.TOLD
    assert (tmp_path / "doc.md").read_text() == "blind\nreader\n"


# -- every way to answer ---


def answering(form: str) -> BaseTool:
    """A tool that reads the document, and answers in one of LangChain's forms."""

    @tool("read", reads="doc.md")
    def command(number: Annotated[str, InjectedToolCallId]) -> Any:
        """Read."""
        text = agentguard.path("doc.md").read_text()
        message = ToolMessage(text, tool_call_id=number, name="read")
        if form == "command":
            return Command(update={"messages": [message]})
        if form == "commands":
            return [Command(update={"messages": [message]})]
        if form == "mapping":
            told = {"role": "tool", "name": "read", "content": text, "tool_call_id": number}
            return Command(update={"messages": [told]})
        return message

    @tool("read", reads="doc.md", response_format="content_and_artifact")
    def artifact() -> tuple[str, Any]:
        """Read."""
        return agentguard.path("doc.md").read_text(), {"mine": 1}

    return artifact if form == "artifact" else command


def somebody_changes(guard: Guard, script: Any) -> Any:
    """The script, and somebody who changes the document once, after the model's first read."""
    done: list[bool] = []

    def changing(messages: list[BaseMessage]) -> AIMessage:
        if not done and isinstance(messages[-1], ToolMessage) and messages[-1].name == "read":
            done.append(True)
            by_somebody(guard)
        return script(messages)

    return changing


@BOTH
@pytest.mark.parametrize("place", ["tool node", "agent"])
@pytest.mark.parametrize("form", ["message", "command", "commands", "mapping", "artifact"])
def test_whatever_form_an_answer_has_it_tells_what_was_read(
    form: str, place: str, asynchronous: bool, tmp_path: Path
) -> None:
    guard = one_document(tmp_path)
    tools, model = [answering(form), document()[1]], Scripted(script=somebody_changes(guard, obey))
    if place == "agent":
        graph: Any = create_agent(model, tools, middleware=[GuardMiddleware(guard)])
    else:
        graph = looping(guarded_tool_node(tools, guard), model).compile()
    result = run(graph, {"messages": [HumanMessage("both")]}, {"recursion_limit": 30}, asynchronous=asynchronous)
    assert [f"{one.name} {one.status}" for one in answers(result)] == Scene.TOLD["reader"]
    assert (tmp_path / "doc.md").read_text() == "one\ntwo\nmine\n"
    if form == "artifact":
        assert answers(result)[0].artifact == {"mine": 1}


@BOTH
@pytest.mark.parametrize("guarded", [False, True], ids=["plain graph", "guarded graph"])
def test_calls_of_a_model_that_a_node_makes_by_hand(guarded: bool, asynchronous: bool, tmp_path: Path) -> None:
    guard = one_document(tmp_path)
    tools = {one.name: one for one in guard_tools(document(), guard)}

    def by_hand(state: MessagesState) -> Any:
        asked: Any = state["messages"][-1]
        return {"messages": [tools[one["name"]].invoke(one) for one in asked.tool_calls]}

    async def aby_hand(state: MessagesState) -> Any:
        asked: Any = state["messages"][-1]
        return {"messages": [await tools[one["name"]].ainvoke(one) for one in asked.tool_calls]}

    builder = looping(aby_hand if asynchronous else by_hand, Scripted(script=somebody_changes(guard, obey)))
    graph = guard_graph(builder, guard) if guarded else builder.compile()
    result = run(graph, {"messages": [HumanMessage("both")]}, {"recursion_limit": 30}, asynchronous=asynchronous)
    assert [f"{one.name} {one.status}" for one in answers(result)] == Scene.TOLD["reader"]
    assert (tmp_path / "doc.md").read_text() == "one\ntwo\nmine\n"


@BOTH
@pytest.mark.parametrize("where", ["tool", "node"])
def test_a_read_that_failed_tells_nothing_and_a_write_that_failed_is_no_write(
    where: str, asynchronous: bool, tmp_path: Path
) -> None:
    guard = one_document(tmp_path)
    broken = [True, True]

    def breaks() -> None:
        if broken and broken.pop():
            raise ToolException("not now") if where == "tool" else KeyError("not now")

    @tool(reads="doc.md")
    def read() -> str:
        """Read."""
        breaks()
        return agentguard.path("doc.md").read_text()

    @tool(writes="doc.md")
    def write(text: str) -> str:
        """Write."""
        agentguard.path("doc.md").write_text(text)
        breaks()
        return "written"

    for one in (read, write):
        one.handle_tool_error = where == "tool"
    node = guarded_tool_node([read, write], guard, handle_tool_errors=True)
    seen: list[str] = []

    def script(messages: list[BaseMessage]) -> AIMessage:
        told = [f"{one.name} {one.status}" for one in messages if isinstance(one, ToolMessage)]
        if told[-1:] == ["read success"] and not broken:
            broken.append(True)  # its first write fails behind its change
            seen.append((tmp_path / "doc.md").read_text())
        if told[-1:] == ["write error"]:
            seen.append((tmp_path / "doc.md").read_text())
            return says(call("write", text="two\n"))  # what it has read is still so
        if told[-1:] == ["write success"]:
            return says(content="done")
        return says(call("write", text="two\n") if told[-1:] == ["read success"] else call("read"))

    graph = looping(node, Scripted(script=script)).compile()
    result = run(graph, {"messages": [HumanMessage("go")]}, {"recursion_limit": 40}, asynchronous=asynchronous)
    told = [f"{one.name} {one.status}" for one in answers(result)]
    assert told == ["read error", "read error", "read success", "write error", "write success"]
    assert seen == ["one\n", "one\n"]
    stamps = ["read" in one.additional_kwargs.get("agentguard", {}) for one in answers(result)]
    assert stamps == [False, False, True, False, True]
    assert (tmp_path / "doc.md").read_text() == "two\n"


# -- the refusal ---


@BOTH
@MESSAGES
def test_a_refusal_tells_the_model_and_code_and_the_hooks(place: str, asynchronous: bool, tmp_path: Path) -> None:
    guard = one_document(tmp_path, "".join(f"line {n} of a rather long document\n" for n in range(200)))
    events = refusals(guard)

    def stubborn(messages: list[BaseMessage]) -> AIMessage:
        told = [one for one in messages if isinstance(one, ToolMessage)]
        if len(told) == 1:
            by_somebody(guard, "".join(f"other {n}\n" for n in range(500)))
        if len(told) == 4:
            return says(content="given up")
        return says(call("write", text="mine\n") if told else call("read"))

    graph = messages_graph(place, guard, stubborn)
    result = run(graph, {"messages": [HumanMessage("go")]}, THREAD, asynchronous=asynchronous)
    told = answers(result)[1:]
    assert [one.status for one in told] == ["error"] * 3
    assert len({str(one.content) for one in told}) == 3  # of one and the same conflict
    for message, event in zip(told, events, strict=True):
        text = str(message.content)
        assert tokens(text) <= 300
        assert "What changed:\n-line 0 of" in text
        facts = message.artifact["agentguard"]
        assert (facts["error"], facts["code"], facts["resource"]) == ("StaleWrite", "conflict", "doc.md")
        assert facts["changed_by"] == "somebody in write"
        assert facts["reason"] == "changed"
        assert facts["read_version"] != facts["current_version"]
        assert facts["diff"]
        json.dumps(facts)
        assert (event.resource, event.tool, event.kind) == ("doc.md", "write", "refused")
    assert (tmp_path / "doc.md").read_text().startswith("other 0\n")


def test_the_contents_behind_a_refusal_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = one_document(tmp_path)
    monkeypatch.setattr(Contents, "get", lambda self, version: None)
    graph = messages_graph("agent", guard, somebody_changes(guard, obey))
    result = graph.invoke({"messages": [HumanMessage("both")]}, THREAD)
    assert writes(result) == ["error", "success"]
    assert "What changed" not in str(answers(result)[1].content)
