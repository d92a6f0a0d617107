"""Where shards begin, continue and join: the pure decisions."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from agentguard_langgraph.plan import Beginning, Record, Sources, begin, layout, merged
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

pytestmark = pytest.mark.langgraph


class State(TypedDict, total=False):
    n: int


def passing(state: State) -> None: ...


def jumping(state: State) -> Command[Literal["c", "__end__"]]:
    return Command(goto="c")


def build() -> StateGraph[Any, Any, Any, Any]:
    builder = StateGraph(State)
    for name in "abcd":
        builder.add_node(name, passing)
    builder.add_node("jump", jumping)
    builder.add_node("last", passing, defer=True)
    return builder


def test_the_layout_of_a_graph() -> None:
    builder = build()
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.add_edge(["a", "b"], "c")
    builder.add_conditional_edges("b", lambda _: "d", ["d", END])
    found = layout(builder)
    assert found["a"] == Sources(frozenset({START}), (), False)
    assert found["b"] == Sources(frozenset({"a"}), (), False)
    assert found["c"] == Sources(frozenset({"jump"}), (frozenset("ab"),), False)
    assert found["d"] == Sources(frozenset("b"), (), False)
    assert found["last"].deferred


def test_a_branch_with_unknown_targets_may_lead_everywhere() -> None:
    builder = build()
    builder.add_conditional_edges("a", lambda _: "d")
    assert all("a" in sources.plain for sources in layout(builder).values())


def record(node: str, step: int, *references: str, parent: str | None = None, pushed: bool = False) -> list[Any]:
    return list(Record(node, step, pushed, list(references), parent))


ONE = Sources(frozenset({"a"}), (), False)


def test_a_node_after_one_task_continues_its_shard() -> None:
    assert begin(ONE, 2, {"t1": record("a", 1, "A"), "t2": record("b", 1, "B")}) == Beginning(parent="A")


def test_a_task_that_wrote_nothing_hands_on_what_it_continued() -> None:
    assert begin(ONE, 3, {"t0": record("z", 1, "Z"), "t1": record("a", 2, parent="Z")}).parent == "Z"
    assert begin(ONE, 3, {"t1": record("a", 2)}) == Beginning()


def test_a_node_after_a_map_joins_its_tasks_and_nothing_else() -> None:
    manifest = {
        "t0": record("plan", 1, "P"),
        "t1": record("a", 2, "A1", parent="P", pushed=True),
        "t2": record("a", 2, "A2", parent="P", pushed=True),
        "t3": record("other", 2, "O"),
    }
    found = begin(ONE, 3, manifest)
    assert set(found.join) == {"P", "A1", "A2"}
    assert set(found.merged) == {"t0", "t1", "t2"}
    assert begin(ONE, 3, {"t1": manifest["t1"]}).join == ("A1",)


def test_a_waiting_edge_joins_its_sources_and_their_branches() -> None:
    manifest = {
        "t1": record("a", 1, "A1"),
        "t2": record("a2", 2, "A2", parent="A1"),
        "t3": record("b", 1, "B"),
        "t4": record("c", 1, "C"),
    }
    found = begin(Sources(frozenset(), (frozenset({"a2", "b"}),), False), 3, manifest)
    assert set(found.join) == {"A1", "A2", "B"}


@pytest.mark.parametrize(
    "sources",
    [
        Sources(frozenset({"a", "b"}), (), False),
        Sources(frozenset({"a"}), (), True),
        Sources(frozenset({"a"}), (frozenset({"a", "b"}),), False),
        Sources(frozenset(), (), False),
        Sources(frozenset({START}), (), False),
        Sources(frozenset({"not run"}), (), False),
    ],
)
def test_everything_else_joins_all_that_is_committed(sources: Sources) -> None:
    assert set(begin(sources, 2, {"t1": record("a", 1, "A"), "t2": record("c", 1, "C")}).join) == {"A", "C"}


records = st.builds(
    record,
    st.sampled_from("abc"),
    st.integers(0, 5),
    pushed=st.booleans(),
    parent=st.one_of(st.none(), st.sampled_from(["s0", "s1", "s2"])),
)
manifests = st.dictionaries(st.sampled_from([f"t{n}" for n in range(9)]), records, max_size=9).map(
    lambda found: {
        task: [*fields[:3], [f"s{task[1:]}"] if int(task[1:]) % 2 == 0 else [], fields[4]]
        for task, fields in found.items()
    }
)


@settings(max_examples=150)
@given(manifests, st.integers(1, 6), st.sampled_from([ONE, Sources(frozenset(), (frozenset("ab"),), False)]))
def test_a_beginning_joins_each_shard_once_and_removes_only_what_it_joined(
    manifest: dict[str, Any], step: int, sources: Sources
) -> None:
    found = begin(sources, step, manifest)
    assert len(set(found.join)) == len(found.join)
    assert [r for task in found.merged for r in Record(*manifest[task]).references] == list(found.join)
    assert found.parent is None or not found.join


@settings(max_examples=150)
@given(st.lists(manifests, max_size=4), st.randoms())
def test_the_manifest_does_not_depend_on_the_order_of_a_steps_updates(updates: list[Any], random: Any) -> None:
    step = {task: fields for update in updates for task, fields in update.items()}
    singles = [{task: fields} for task, fields in step.items()]
    one: dict[str, Any] = {}
    for update in singles:
        one = merged(one, update)
    random.shuffle(singles)
    other: dict[str, Any] = {}
    for update in singles:
        other = merged(other, update)
    latest = max((fields[1] for fields in step.values()), default=0)
    assert one == other == {t: f for t, f in step.items() if f[3] or f[1] >= latest}
    assert merged(one, dict.fromkeys(one)) == {}
