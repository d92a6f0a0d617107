"""Whole graphs: what each node sees, when shards are merged, and that it happens exactly once."""

from __future__ import annotations

import asyncio
import operator
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from agentguard_langgraph import guard_graph, guard_tools, tool
from agentguard_langgraph.tasks import MANIFEST
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, RetryPolicy, Send, interrupt
from langgraph_support import call, run, says, turns
from typing_extensions import TypedDict

import agentguard
from agentguard import ConfigError, Guard, MergeConflict

pytestmark = pytest.mark.langgraph

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])
THREAD = {"configurable": {"thread_id": "thread"}}
LOG = "log.jsonl"


class State(TypedDict, total=False):
    n: Annotated[int, lambda left, right: max(left, right)]
    saw: Annotated[dict[str, Any], operator.or_]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(tmp_path, durable=False, resources={LOG: {"mode": "shard"}, "plan.txt": {"mode": "shard"}})


def add(guard: Guard, item: str) -> None:
    guard.update(LOG, lambda rows: [*(rows or []), item])


def writes(guard: Guard, name: str, *, then: Callable[[], object] = lambda: None) -> Callable[[State], Any]:
    """A node that tells what it sees, writes, and tells what it sees then."""

    def node(state: State) -> dict[str, Any]:
        before = guard.read(LOG) or []
        add(guard, name)
        then()
        return {"saw": {name: [before, guard.read(LOG)]}}

    return node


def reads(guard: Guard, name: str) -> Callable[[State], Any]:
    return lambda state: {"saw": {name: guard.read(LOG) or []}}


def rows(tmp_path: Path) -> list[str]:
    return list(Guard(tmp_path).read(LOG) or [])


def branches(guard: Guard, *, together: Callable[[], object] = lambda: None) -> StateGraph[Any, Any, Any, Any]:
    """Two branches of two nodes, and a join."""
    builder = StateGraph(State)
    for name in ("a1", "a2", "b1", "b2"):
        builder.add_node(name, writes(guard, name, then=together))
    builder.add_node("join", reads(guard, "join"))
    for name in "ab":
        builder.add_edge(START, f"{name}1")
        builder.add_edge(f"{name}1", f"{name}2")
    builder.add_edge(["a2", "b2"], "join")
    return builder


def settled(guard: Guard) -> bool:
    return not guard.status().shards and not guard.status().pending


# -- isolation and joins ---


@BOTH
def test_a_branch_sees_itself_and_a_join_sees_all(asynchronous: bool, guard: Guard, tmp_path: Path) -> None:
    # Both branches write before either reads again: what leaks is seen.
    builder = branches(guard, together=threading.Barrier(2, timeout=10).wait)
    saw = run(guard_graph(builder, guard), {"n": 1}, asynchronous=asynchronous)["saw"]
    assert saw["a1"] == [[], ["a1"]]
    assert saw["a2"] == [["a1"], ["a1", "a2"]]
    assert saw["b2"] == [["b1"], ["b1", "b2"]]
    assert saw["join"] == rows(tmp_path) == ["a1", "a2", "b1", "b2"]
    assert settled(guard)


def test_a_branch_goes_on_over_nodes_that_write_nothing_or_something_else(guard: Guard, tmp_path: Path) -> None:
    builder = StateGraph(State)

    def other(state: State) -> None:
        guard.write("plan.txt", "p")

    for name, node in {"a": writes(guard, "a"), "b": lambda s: None, "c": other, "d": writes(guard, "d")}.items():
        builder.add_node(name, node)
    builder.add_node("x", writes(guard, "x"))
    for source, target in ((START, "a"), ("a", "b"), ("b", "c"), ("c", "d"), (START, "x")):
        builder.add_edge(source, target)
    saw = guard_graph(builder, guard).invoke({"n": 1})["saw"]
    assert saw["d"] == [["a"], ["a", "d"]]
    assert sorted(rows(tmp_path)) == ["a", "d", "x"]
    assert settled(guard)


@BOTH
@pytest.mark.parametrize("width", [1, 5])
def test_a_node_after_a_fan_out_sees_all_of_it(width: int, asynchronous: bool, guard: Guard, tmp_path: Path) -> None:
    builder = StateGraph(State)
    builder.add_node("plan", writes(guard, "plan"))
    builder.add_node("work", lambda state: writes(guard, f"w{state['n']}")(state))
    builder.add_node("reduce", lambda state: {"saw": {"reduce": rows(tmp_path)}})  # not through this guard
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", lambda _: [Send("work", {"n": n}) for n in range(width)], ["work"])
    builder.add_edge("work", "reduce")
    saw = run(guard_graph(builder, guard), {"n": 0}, asynchronous=asynchronous)["saw"]
    for n in range(width):
        assert saw[f"w{n}"] == [["plan"], ["plan", f"w{n}"]]
    assert saw["reduce"] == ["plan", *(f"w{n}" for n in range(width))]


@BOTH
def test_deferred_nodes_and_the_end_of_a_run_join_what_is_left(
    asynchronous: bool, guard: Guard, tmp_path: Path
) -> None:
    builder = StateGraph(State)
    for name in ("a", "b", "c"):
        builder.add_node(name, writes(guard, name))
    builder.add_node("late", writes(guard, "late"), defer=True)
    for source, target in ((START, "a"), (START, "b"), ("b", "c"), ("a", "late")):
        builder.add_edge(source, target)
    saw = run(guard_graph(builder, guard), {"n": 0}, asynchronous=asynchronous)["saw"]
    assert saw["late"] == [["a", "b", "c"], ["a", "b", "c", "late"]]
    assert rows(tmp_path) == ["a", "b", "c", "late"]
    assert settled(guard)


def test_loops_and_jumps_lose_nothing(guard: Guard, tmp_path: Path) -> None:
    builder = StateGraph(State)

    def loop(state: State) -> Command[Any]:
        add(guard, f"loop{state['n']}")
        return Command(update={"n": state["n"] + 1}, goto="loop" if state["n"] < 3 else "end")

    builder.add_node("loop", loop)
    builder.add_node("end", reads(guard, "end"))
    builder.add_edge(START, "loop")
    result = guard_graph(builder, guard).invoke({"n": 0})
    assert result["saw"]["end"] == rows(tmp_path) == [f"loop{n}" for n in range(4)]


def test_a_run_without_declared_writes_is_left_alone(guard: Guard) -> None:
    def build() -> Any:
        builder = StateGraph(State)
        for name in "ab":
            builder.add_node(name, lambda state: {"saw": {}})
            builder.add_edge(START, name)
        return builder

    plain, guarded = (
        build().compile(checkpointer=InMemorySaver()),
        guard_graph(build(), guard, checkpointer=InMemorySaver()),
    )
    for mode in ("values", "updates", "tasks", "custom", "messages"):
        streams = [list(graph.stream({"n": 1}, THREAD, stream_mode=mode)) for graph in (plain, guarded)]
        assert _comparable(streams[0]) == _comparable(streams[1])
    assert len(list(plain.get_state_history(THREAD))) == len(list(guarded.get_state_history(THREAD)))


def _comparable(chunks: Any) -> Any:
    def without_ids(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_ids(item) for key, item in value.items() if key not in ("id", "checkpoint_id")}
        return [without_ids(item) for item in value] if isinstance(value, (list, tuple)) else value

    return sorted((without_ids(chunk) for chunk in chunks), key=str)


def test_nothing_of_ours_shows(guard: Guard) -> None:
    plain = branches(guard).compile(checkpointer=InMemorySaver())
    graph = guard_graph(branches(guard), guard, checkpointer=InMemorySaver())
    outputs = graph.invoke({"n": 1}, THREAD)
    assert set(outputs) == {"n", "saw"}
    state = graph.get_state(THREAD)
    assert set(state.values) == {"n", "saw"}
    assert state.next == ()
    for mode in ("values", "updates", "tasks", "messages", "custom"):
        chunks = list(graph.stream({"n": 1}, {"configurable": {"thread_id": mode}}, stream_mode=mode))
        assert "agentguard" not in str(chunks)
    for xray in (False, True):
        assert graph.get_graph(xray=xray).draw_mermaid() == plain.get_graph(xray=xray).draw_mermaid()
        assert asyncio.run(graph.aget_graph(xray=xray)).draw_mermaid() == plain.get_graph(xray=xray).draw_mermaid()
    assert graph.get_output_jsonschema() == plain.get_output_jsonschema()
    assert graph.with_config(tags=["x"]).invoke({"n": 1}, THREAD)["n"] == 1


# -- exactly once ---


class Failing:
    """A node that writes, then fails the first `times` times."""

    def __init__(self, guard: Guard, name: str, times: int = 1) -> None:
        self.guard, self.name, self.left = guard, name, times

    def __call__(self, state: State) -> Any:
        add(self.guard, self.name)
        if self.left:
            self.left -= 1
            raise ConnectionError("a try that fails")
        return {"saw": {self.name: self.guard.read(LOG)}}


def failing(guard: Guard, retry: RetryPolicy | None = None) -> StateGraph[Any, Any, Any, Any]:
    builder = StateGraph(State)
    builder.add_node("a", writes(guard, "a"))
    builder.add_node("b", Failing(guard, "b"), retry_policy=retry)
    builder.add_node("join", reads(guard, "join"))
    builder.add_edge(START, "a")
    builder.add_edge(START, "b")
    builder.add_edge(["a", "b"], "join")
    return builder


@BOTH
def test_a_retried_node_counts_once(asynchronous: bool, guard: Guard, tmp_path: Path) -> None:
    retry = RetryPolicy(initial_interval=0.001, jitter=False)
    result = run(guard_graph(failing(guard, retry), guard), {"n": 1}, asynchronous=asynchronous)
    assert result["saw"]["join"] == rows(tmp_path) == ["a", "b"]
    assert settled(guard)


@BOTH
def test_a_failed_run_publishes_nothing_and_its_resumption_all(
    asynchronous: bool, guard: Guard, tmp_path: Path
) -> None:
    graph = guard_graph(failing(guard), guard, checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        run(graph, {"n": 1}, THREAD, asynchronous=asynchronous)
    assert rows(tmp_path) == []
    assert run(graph, None, THREAD, asynchronous=asynchronous)["saw"]["join"] == ["a", "b"]
    assert rows(tmp_path) == ["a", "b"]
    assert settled(guard)


def test_a_resumption_in_another_process_counts_once(guard: Guard, tmp_path: Path) -> None:
    saver = InMemorySaver()
    with pytest.raises(ConnectionError):
        guard_graph(failing(guard), guard, checkpointer=saver).invoke({"n": 1}, THREAD)
    other = Guard(tmp_path, resources={LOG: {"mode": "shard"}})  # knows nothing of what the first one has open
    builder = failing(other)
    builder.nodes["b"].runnable.func.left = 0  # type: ignore[attr-defined]
    assert guard_graph(builder, other, checkpointer=saver).invoke(None, THREAD)["saw"]["join"] == ["a", "b"]
    assert rows(tmp_path) == ["a", "b"]


@BOTH
def test_an_interrupted_node_runs_again_and_counts_once(asynchronous: bool, guard: Guard, tmp_path: Path) -> None:
    if asynchronous and sys.version_info < (3, 11):
        pytest.skip("LangGraph's own interrupt() needs Python 3.11 in async graphs")
    builder = StateGraph(State)

    def asks(state: State) -> Any:
        add(guard, "b")
        return {"saw": {"answer": interrupt("sure?")}}

    builder.add_node("a", writes(guard, "a"))
    builder.add_node("b", asks)
    builder.add_node("join", reads(guard, "join"))
    for name in "ab":
        builder.add_edge(START, name)
    builder.add_edge(["a", "b"], "join")
    graph = guard_graph(builder, guard, checkpointer=InMemorySaver())
    run(graph, {"n": 1}, THREAD, asynchronous=asynchronous)
    assert rows(tmp_path) == []
    result = run(graph, Command(resume="yes"), THREAD, asynchronous=asynchronous)
    assert result["saw"] == {"a": [[], ["a"]], "answer": "yes", "join": ["a", "b"]}
    assert rows(tmp_path) == ["a", "b"]
    assert settled(guard)


@BOTH
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "another process"])
def test_an_agent_that_is_interrupted_keeps_what_it_did_before(
    elsewhere: bool, asynchronous: bool, guard: Guard, tmp_path: Path
) -> None:
    def build(guard: Guard) -> Any:
        @tool(updates=LOG)
        def note(item: str) -> str:
            """Note."""
            file = agentguard.path(LOG)
            text = file.read_text() if file.exists() else ""
            file.write_text(f'{text}"{item}"\n')
            return item

        @tool(updates=LOG)
        def ask(item: str) -> str:
            """Ask."""
            answer = note.func(f"{item}?")  # type: ignore[attr-defined]
            return str(interrupt(answer))

        model = turns(says(call("note", item="one")), says(call("ask", item="two")), says(call("note", item="three")))
        builder = StateGraph(MessagesState)
        builder.add_node("agent", create_agent(model, [note, ask]))
        builder.add_node("other", lambda state: add(guard, "other"))
        builder.add_edge(START, "agent")
        builder.add_edge(START, "other")
        return builder

    saver = InMemorySaver()
    graph = guard_graph(build(guard), guard, checkpointer=saver)
    run(graph, {"messages": [HumanMessage("go")]}, THREAD, asynchronous=asynchronous)
    assert rows(tmp_path) == []
    if elsewhere:
        guard = Guard(tmp_path, resources={LOG: {"mode": "shard"}})
        graph = guard_graph(build(guard), guard, checkpointer=saver)
    run(graph, Command(resume="yes"), THREAD, asynchronous=asynchronous)
    assert sorted(rows(tmp_path)) == sorted(["one", "two?", "three", "other"])
    assert settled(guard)


def test_an_abandoned_superstep_counts_for_nothing(guard: Guard, tmp_path: Path) -> None:
    graph = guard_graph(failing(guard), guard, checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        graph.invoke({"n": 1}, THREAD)
    graph.invoke({"n": 2}, THREAD)
    assert rows(tmp_path) == ["a", "b"]


def test_a_node_that_fails_for_good_leaves_no_shard(guard: Guard, tmp_path: Path) -> None:
    builder = StateGraph(State)
    builder.add_node("b", Failing(guard, "b"))
    builder.add_edge(START, "b")
    with pytest.raises(ConnectionError):
        guard_graph(builder, guard).invoke({"n": 1})
    assert rows(tmp_path) == []
    assert settled(guard)


def test_what_is_merged_leaves_the_checkpoints(guard: Guard) -> None:
    builder = StateGraph(State)
    builder.add_node("think", lambda state: add(guard, "think"))
    builder.add_node("act", lambda state: add(guard, "act") or {"n": state["n"] + 1})
    builder.add_edge(START, "think")
    builder.add_edge("think", "act")
    builder.add_conditional_edges("act", lambda state: "think" if state["n"] < 6 else END, ["think", END])
    saver = InMemorySaver()
    guard_graph(builder, guard, checkpointer=saver).invoke({"n": 0}, THREAD)
    sizes = [len(one.checkpoint["channel_values"].get(MANIFEST, {})) for one in saver.list(THREAD)]
    assert len(sizes) > 12
    assert max(sizes) <= 2
    assert sizes[0] == 0  # the newest


def test_every_turn_of_a_thread_counts_once(guard: Guard, tmp_path: Path) -> None:
    graph = guard_graph(branches(guard), guard, checkpointer=InMemorySaver())
    for turn in range(3):
        assert len(graph.invoke({"n": turn}, THREAD)["saw"]["join"]) == 4 * (turn + 1)
    assert len(rows(tmp_path)) == 12
    assert settled(guard)


def test_an_agent_that_hands_over_to_its_parent_keeps_its_writes(guard: Guard, tmp_path: Path) -> None:
    inner = StateGraph(State)
    inner.add_node("work", writes(guard, "work"))
    inner.add_node("hand", lambda state: Command(goto="next", graph=Command.PARENT, update={"n": 7}))
    inner.add_edge(START, "work")
    inner.add_edge("work", "hand")
    builder = StateGraph(State)
    builder.add_node("first", inner.compile(), destinations=("next",))
    builder.add_node("next", reads(guard, "next"))
    builder.add_edge(START, "first")
    result = guard_graph(builder, guard).invoke({"n": 1})
    assert (result["n"], result["saw"]["next"]) == (7, ["work"])
    assert rows(tmp_path) == ["work"]


def test_a_conflict_is_raised_with_every_shard_kept_and_the_run_can_go_on(tmp_path: Path) -> None:
    guard = Guard(tmp_path, resources={"plan.txt": {"mode": "shard"}})
    (tmp_path / "plan.txt").write_text("start\n")
    builder = StateGraph(State)
    for name in "ab":

        def node(state: State, name: str = name) -> None:
            guard.write("plan.txt", f"by {name}\n")

        builder.add_node(name, node)
        builder.add_edge(START, name)
    graph = guard_graph(builder, guard, checkpointer=InMemorySaver())
    with pytest.raises(MergeConflict, match=r"plan\.txt"):
        graph.invoke({"n": 1}, THREAD)
    assert (tmp_path / "plan.txt").read_text() == "start\n"
    assert len(guard.status().shards) == 2
    for file in tmp_path.glob(".agentguard/shards/**/ours/plan.txt"):
        file.write_text("agreed\n")
    graph.invoke(None, THREAD)
    assert (tmp_path / "plan.txt").read_text() == "agreed\n"
    assert settled(guard)


# -- nesting and identity ---


@BOTH
def test_nested_graphs_write_to_the_shard_of_the_outer_task(asynchronous: bool, guard: Guard, tmp_path: Path) -> None:
    inner = StateGraph(State)
    for name in ("i1", "i2", "i3"):
        inner.add_node(name, lambda state, name=name: add(guard, name))
    for source, target in ((START, "i1"), (START, "i2"), ("i1", "i3"), ("i2", "i3")):
        inner.add_edge(source, target)
    compiled = inner.compile()
    builder = StateGraph(State)
    builder.add_node("declared", compiled)
    builder.add_node("guarded", guard_graph(inner, guard))
    builder.add_node("called", lambda state: compiled.invoke(state) and None)
    builder.add_node("join", lambda state: {"saw": {"join": rows(tmp_path)}})
    builder.add_node("between", lambda state: {"saw": {"between": rows(tmp_path)}})
    for name in ("declared", "guarded", "called"):
        builder.add_edge(START, name)
    builder.add_edge("called", "between")
    builder.add_edge(["declared", "guarded", "called"], "join")
    saw = run(guard_graph(builder, guard), {"n": 1}, asynchronous=asynchronous)["saw"]
    assert saw["between"] == [] or saw["between"] == saw["join"]  # beside the join
    assert sorted(saw["join"]) == sorted(["i1", "i2", "i3"] * 3)
    assert sorted(rows(tmp_path)) == sorted(["i1", "i2", "i3"] * 3)


@BOTH
def test_who_calls_is_told(asynchronous: bool, tmp_path: Path) -> None:
    guard = Guard(tmp_path)

    @tool(updates="db:{item}")
    def note(item: str) -> str:
        """Note."""
        return item

    (made,) = guard_tools([note], guard)

    def by_hand(state: Any) -> None:
        made.invoke({"item": "node"})
        with guard.agent("ada"):
            made.invoke({"item": "given"})

    builder = StateGraph(MessagesState)
    builder.add_node("agent", create_agent(turns(says(call("note", item="tool"))), [note], name="ben"))
    builder.add_node("node", by_hand)
    builder.add_node("work", by_hand)
    builder.add_edge(START, "agent")
    builder.add_edge(START, "node")
    builder.add_conditional_edges(START, lambda _: [Send("work", {"messages": []})] * 2, ["work"])
    seen: dict[str, set[str]] = {}
    runs: set[str] = set()

    def hook(event: agentguard.Event) -> None:
        seen.setdefault(event.resource, set()).add(event.agent)
        runs.add(event.run)

    guard.hooks.append(hook)
    run(guard_graph(builder, guard), {"messages": [HumanMessage("x")]}, THREAD, asynchronous=asynchronous)
    (agent,) = seen["db:tool"]
    assert agent.startswith("agent:")
    assert agent.endswith(("/ben", "/tools"))  # LangChain 1.3.0 does not tell the name
    names = seen["db:node"]
    assert "node" in names
    assert len(names) == 3  # each Send is an agent
    assert seen["db:given"] == {"ada"}
    assert runs == {"thread", guard.run}


def test_runs_without_a_thread_are_told_apart(guard: Guard) -> None:
    runs: list[str] = []
    guard.hooks.append(lambda event: runs.append(event.run) if event.kind == "acquired" else None)
    graph = guard_graph(branches(guard), guard)
    graph.invoke({"n": 1})
    assert len(set(runs)) == 1
    graph.invoke({"n": 1})
    assert len(set(runs)) == 2


def test_a_recursion_limit_still_ends_a_run(guard: Guard) -> None:
    builder = StateGraph(State)
    builder.add_node("loop", writes(guard, "loop"))
    builder.add_edge(START, "loop")
    builder.add_edge("loop", "loop")
    with pytest.raises(GraphRecursionError):
        guard_graph(builder, guard).invoke({"n": 1}, {"recursion_limit": 5})


# -- bad input ---


def test_bad_input(guard: Guard, tmp_path: Path) -> None:
    builder = branches(guard)
    with pytest.raises(ConfigError, match="not a compiled"):
        guard_graph(builder.compile(), guard)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="StateGraph, not str"):
        guard_graph("graph", guard)  # type: ignore[arg-type]
    builder.add_node("__agentguard_join__", lambda state: None)
    with pytest.raises(ConfigError, match="own name"):
        guard_graph(builder, guard)
    other = Guard(tmp_path)

    @tool(writes="db:x")
    def note(item: str) -> str:
        """Note."""
        return item

    mixed = StateGraph(MessagesState)
    mixed.add_node("agent", create_agent(turns(), guard_tools([note], other)))
    mixed.add_edge(START, "agent")
    mixed.add_edge("agent", END)
    with pytest.raises(ConfigError, match="one guard for both"):
        guard_graph(mixed, guard)
    nested = StateGraph(State)
    nested.add_node("inner", guard_graph(branches(other), other))
    nested.add_edge(START, "inner")
    with pytest.raises(ConfigError, match="guarded by"):
        guard_graph(nested, guard)
