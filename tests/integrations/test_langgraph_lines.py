"""What plain nodes know, handed on along the edges of a guarded graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import pytest
from agentguard_langgraph import guard_graph, guarded_tool_node, tool
from agentguard_langgraph.lines import Line, inherited, line_of, updated
from agentguard_langgraph.plan import Sources
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph_support import answers, call, run, says

from agentguard import Guard, StaleWrite, path
from agentguard.knowledge import UNKNOWN

pytestmark = pytest.mark.langgraph

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])


def after(*plain: str, waiting: tuple[str, ...] = ()) -> Sources:
    return Sources(frozenset(plain), (frozenset(waiting),) if waiting else (), False)


def lines(*found: tuple[str, int, dict[str, str]]) -> dict[str, Any]:
    return {node: list(Line(node, step, known)) for node, step, known in found}


def test_a_node_knows_what_the_node_before_it_knew() -> None:
    before = lines(("read", 1, {"f": "v1"}), ("other", 1, {"f": "v0", "g": "v1"}))
    assert inherited(after("read"), "write", 2, before) == {"f": "v1"}


def test_it_knows_what_it_knew_itself_only_where_nobody_before_it_does() -> None:
    before = lines(("write", 1, {"f": "v1", "g": "v1"}), ("read", 4, {"f": "v2"}))
    assert inherited(after("read"), "write", 5, before) == {"f": "v2", "g": "v1"}


def test_branches_that_agree_are_one_and_others_make_it_read_again() -> None:
    before = lines(("a", 1, {"f": "v1", "g": "v1"}), ("b", 3, {"f": "v1", "g": "v2"}), ("c", 3, {"h": "v3"}))
    assert inherited(after(waiting=("a", "b")), "w", 4, before) == {"f": "v1", "g": UNKNOWN}


VERSIONS = st.dictionaries(st.sampled_from("fgh"), st.sampled_from(["v1", "v2"]), max_size=3)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 3), VERSIONS)), st.sets(st.sampled_from("abcd"))
)
def test_nobody_knows_what_nobody_knew(found: dict[str, tuple[int, dict[str, str]]], sources: set[str]) -> None:
    before = lines(*((node, step, known) for node, (step, known) in found.items()))
    known = inherited(after(*sources), "w", 4, before)
    for resource, version in known.items():
        told = {versions[resource] for _, versions in found.values() if resource in versions}
        assert version in told or (version == UNKNOWN and len(told) > 1)


def test_the_channel_keeps_the_latest_lines() -> None:
    many = {line_of("n", index): list(Line("n", index, {"f": "v"})) for index in range(1500)}
    kept = updated({}, many)
    assert len(kept) == 1000
    assert "n#1499" in kept
    assert "n#0" not in kept


class State(TypedDict, total=False):
    text: str


@BOTH
def test_a_join_of_branches_that_read_different_versions_reads_again(asynchronous: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("v1")
    guard = Guard(tmp_path)

    def one(state: State) -> State:
        return {"text": guard.read("a.txt")}

    def between(state: State) -> None:
        file.write_text("v2")

    def two(state: State) -> None:
        guard.read("a.txt")

    refused = []

    def last(state: State) -> None:
        try:
            guard.write("a.txt", state["text"] + " changed")
        except StaleWrite as error:
            refused.append(error)
            guard.write("a.txt", guard.read("a.txt") + " changed")

    builder = StateGraph(State)
    for node in (one, between, two, last):
        builder.add_node(node)
    builder.add_edge(START, "one")
    builder.add_edge("one", "between")
    builder.add_edge("between", "two")
    builder.add_edge(["one", "two"], "last")

    run(guard_graph(builder, guard), {}, asynchronous=asynchronous)
    assert file.read_text() == "v2 changed"
    assert [error.reason for error in refused] == ["read in a version that is not known any more"]


@BOTH
@pytest.mark.parametrize("whole", [False, True], ids=["node", "graph"])
def test_an_answer_that_a_wrapper_writes_anew_still_tells(whole: bool, asynchronous: bool, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("v1")
    guard = Guard(tmp_path)

    @tool(reads="a.txt")
    def read() -> str:
        """Read."""
        return path("a.txt").read_text()

    @tool(writes="a.txt")
    def write(text: str) -> str:
        """Write."""
        path("a.txt").write_text(text)
        return "written"

    def anew(message: Any) -> ToolMessage:
        return ToolMessage(message.content, tool_call_id=message.tool_call_id, name=message.name, status=message.status)

    async def around(request: Any, execute: Any) -> ToolMessage:
        return anew(await execute(request))

    wrappers: dict[str, Any] = {
        "wrap_tool_call": lambda request, execute: anew(execute(request)),
        "awrap_tool_call": around,
    }
    builder = StateGraph(MessagesState)
    builder.add_node(
        "tools", (ToolNode if whole else guarded_tool_node)([read, write], *([] if whole else [guard]), **wrappers)
    )
    builder.add_edge(START, "tools")
    graph = guard_graph(builder, guard) if whole else builder.compile()
    first = run(graph, {"messages": [says(call("read"))]}, asynchronous=asynchronous)
    (tmp_path / "a.txt").write_text("v2")
    later = run(graph, {"messages": [*first["messages"], says(call("write", text="mine"))]}, asynchronous=asynchronous)
    assert answers(later)[-1].status == "error"
    again = run(graph, {"messages": [*later["messages"], says(call("read"))]}, asynchronous=asynchronous)
    done = run(graph, {"messages": [*again["messages"], says(call("write", text="mine"))]}, asynchronous=asynchronous)
    assert answers(done)[-1].content == "written"
