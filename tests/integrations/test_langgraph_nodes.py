"""Nodes whose whole body is one guarded call."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal

import pytest
from agentguard_langgraph import guard_graph, guard_node
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, StreamWriter
from langgraph_support import Notes, run
from pydantic import BaseModel
from typing_extensions import TypedDict

import agentguard
from agentguard import ConfigError, Guard, declare

pytestmark = pytest.mark.langgraph

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])


class State(TypedDict, total=False):
    topic: str
    seen: str


class Input(TypedDict):
    topic: str


def jump(state: Input) -> Command[Literal["other"]]:
    return Command(goto="other")


@dataclasses.dataclass
class Record:
    topic: str = ""


class Model(BaseModel):
    topic: str = ""


def graph_of(schema: Any = State, *, compile: Any = None, **nodes: Any) -> Any:
    builder = StateGraph(schema)
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(START, name)
    return builder.compile() if compile is None else compile(builder)


@BOTH
@pytest.mark.parametrize("native", [False, True], ids=["def", "async def"])
def test_parallel_nodes_lose_nothing(native: bool, asynchronous: bool, tmp_path: Path) -> None:
    if native and not asynchronous:
        pytest.skip("LangGraph cannot run an async node synchronously")
    for guard in (None, Guard(tmp_path)):
        notes = Notes(tmp_path, 4, "off" if guard is None else "serialize")

        def node(name: str, notes: Notes = notes, guard: Guard | None = guard) -> Any:
            async def abody(state: State) -> None:
                await notes.aadd(name)

            def body(state: State) -> None:
                notes.add(name)

            chosen = abody if native else body
            return chosen if guard is None else guard_node(chosen, guard, writes="notes.json")

        run(graph_of(**{name: node(name) for name in "abcd"}), {"topic": "t"}, asynchronous=asynchronous)
        assert sorted(notes.kept) == list("abcd") if guard else len(notes.kept) < 4


@BOTH
def test_a_node_gets_what_it_got_before(asynchronous: bool, tmp_path: Path) -> None:
    got: list[Any] = []

    def node(
        state: State, config: RunnableConfig, *, runtime: Runtime[Any], writer: StreamWriter, store: BaseStore
    ) -> dict[str, str]:
        """What it does."""
        got.extend([state["topic"], config["configurable"]["user"], runtime.store is store])
        writer("hello")
        return {"seen": "yes"}

    guarded = guard_node(node, Guard(tmp_path), writes="db:{topic}")
    assert inspect.signature(guarded) == inspect.signature(node)
    assert (guarded.__name__, guarded.__wrapped__) == ("node", node)
    graph = graph_of(node=guarded, compile=lambda builder: builder.compile(store=InMemoryStore()))
    result = run(graph, {"topic": "t"}, {"configurable": {"user": "u"}}, asynchronous=asynchronous)
    assert result == {"topic": "t", "seen": "yes"}
    assert got == ["t", "u", True]


def test_its_schema_and_its_destinations_are_still_read_off_its_hints(tmp_path: Path) -> None:
    builder = StateGraph(State)
    builder.add_node(guard_node(jump, Guard(tmp_path), writes="db:x"))
    assert builder.nodes["jump"].input_schema is Input
    assert builder.nodes["jump"].ends == ("other",)


@pytest.mark.parametrize(
    ("schema", "state"), [(State, {"topic": "a"}), (Record, Record("a")), (Model, Model(topic="a"))]
)
def test_templates_are_filled_from_the_state(schema: Any, state: Any, tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    names: list[str] = []
    guard.hooks.append(lambda event: names.append(event.resource) if event.kind == "acquired" else None)
    graph_of(schema, node=guard_node(lambda state: None, guard, updates="db:{topic}")).invoke(state)
    assert names == ["db:a"]


def test_a_path_in_the_state_leads_to_the_copy(tmp_path: Path) -> None:
    class Filed(TypedDict):
        file: str

    def node(state: Filed) -> dict[str, str]:
        Path(state["file"]).write_text("whole")
        return {"file": state["file"]}

    result = graph_of(Filed, node=guard_node(node, Guard(tmp_path), writes="{file}")).invoke({"file": "a.txt"})
    assert result == {"file": "a.txt"}
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_node_that_fails_leaves_the_file_and_its_refusals_are_raised(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def node(state: State) -> None:
        agentguard.path("a.txt").write_text("half")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        graph_of(node=guard_node(node, Guard(tmp_path), writes="a.txt")).invoke({"topic": ""})
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(agentguard.UndeclaredWrite, match="topic"):
        graph_of(node=guard_node(node, Guard(tmp_path), writes="{topic}.txt")).invoke({"seen": ""})


@BOTH
def test_a_subgraph_as_a_guarded_node_stays_a_subgraph(asynchronous: bool, tmp_path: Path) -> None:
    guard = Guard(tmp_path)

    def inner(state: State) -> dict[str, str]:
        return {"seen": str(len(guard.status().holders))}

    subgraph = graph_of(inner=inner)
    guarded = guard_node(subgraph, guard, writes="db:x")
    graph = graph_of(sub=guarded, compile=lambda builder: builder.compile(checkpointer=InMemorySaver()))
    config = {"configurable": {"thread_id": "1"}}
    assert run(graph, {"topic": "t"}, config, asynchronous=asynchronous)["seen"] == "1"
    assert [name for name, _ in graph.get_subgraphs()] == ["sub"]
    again = guard_graph(graph.builder, guard)
    assert run(again, {"topic": "t"}, asynchronous=asynchronous)["seen"] == "1"


def test_what_it_declares_by_other_means(tmp_path: Path) -> None:
    @declare(writes="db:declared")
    def declared(state: State) -> None: ...

    def configured(state: State) -> None: ...

    guard = Guard(tmp_path, tools={"configured": {"writes": ["db:configured"]}})
    names: list[str] = []
    guard.hooks.append(lambda event: names.append(event.resource) if event.kind == "acquired" else None)
    graph_of(a=guard_node(declared, guard), b=guard_node(configured, guard)).invoke({"topic": ""})
    assert sorted(names) == ["db:configured", "db:declared"]


def test_it_can_be_called_by_hand(tmp_path: Path) -> None:
    async def node(state: State) -> dict[str, str]:
        return {"seen": state["topic"]}

    guard = Guard(tmp_path)
    assert guard_node(lambda state: state["topic"], guard, writes="db:x")({"topic": "t"}) == "t"
    assert asyncio.run(guard_node(node, guard, writes="db:x")({"topic": "t"})) == {"seen": "t"}


def test_bad_input(tmp_path: Path) -> None:
    guard = Guard(tmp_path)

    def node(state: State) -> None: ...

    def generator(state: State) -> Any:
        yield state

    guarded = guard_node(node, guard, writes="db:x")
    assert guard_node(guarded, guard) is guarded
    with pytest.raises(ConfigError, match="guarded already"):
        guard_node(guarded, guard, writes="db:y")
    with pytest.raises(ConfigError, match="guarded already"):
        guard_node(guarded, Guard(tmp_path))
    with pytest.raises(ConfigError, match="generator"):
        guard_node(generator, guard, writes="db:x")
    with pytest.raises(ConfigError, match="not int"):
        guard_node(7, guard)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="guarded by"):
        graph_of(node=guarded, compile=lambda builder: guard_graph(builder, Guard(tmp_path)))
    assert guard_node(RunnableLambda(lambda state: None), guard, writes="db:x").invoke({"topic": ""}) is None
