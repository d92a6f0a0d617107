"""Where shards begin, continue and join in a graph: decided from its edges and from what ran. Pure.

The manifest is a channel of the graph, so that it holds exactly what LangGraph has committed: one record for each task
that succeeded, `{task id: [node, step, pushed, references, parent]}`, in plain values that every checkpointer stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from langgraph.constants import START
from langgraph.graph import StateGraph

__all__ = ["Beginning", "Layout", "Record", "Sources", "begin", "layout", "merged"]

Manifest = dict[str, Any]


class Record(NamedTuple):
    """One task that succeeded."""

    node: str
    step: int
    pushed: bool  # started by a Send
    references: list[str]  # of the shards that it wrote; none when it wrote nothing
    parent: str | None  # of the shard that it continued

    @property
    def line(self) -> str | None:
        """The shard that a later node of the same branch continues."""
        return self.references[-1] if self.references else self.parent


@dataclass(frozen=True)
class Sources:
    """The nodes that may come right before a node. `waiting`: those of a waiting edge, which all have run."""

    plain: frozenset[str]
    waiting: tuple[frozenset[str], ...]
    deferred: bool


_STEP, _REFERENCES = Record._fields.index("step"), Record._fields.index("references")

Layout = Mapping[str, Sources]


@dataclass(frozen=True)
class Beginning:
    """How a task begins: which shards are merged first, and which one it continues. `merged`: their tasks."""

    join: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    parent: str | None = None


def layout(builder: StateGraph[Any, Any, Any, Any]) -> Layout:
    """The static facts of a graph. A branch whose targets are unknown may lead to every node."""
    plain: dict[str, set[str]] = {name: set() for name in builder.nodes}
    waiting: dict[str, list[frozenset[str]]] = {name: [] for name in builder.nodes}

    def leads(source: str, targets: Iterable[Any]) -> None:
        for target in targets:
            if target in plain:
                plain[target].add(source)

    for source, target in builder.edges:
        leads(source, [target])
    for sources, target in builder.waiting_edges:
        if target in waiting:
            waiting[target].append(frozenset(sources))
    for source, branches in builder.branches.items():
        for branch in branches.values():
            leads(source, builder.nodes if branch.ends is None else branch.ends.values())
    for name, spec in builder.nodes.items():
        leads(name, spec.ends or ())
    return {
        name: Sources(frozenset(plain[name]), tuple(waiting[name]), bool(spec.defer))
        for name, spec in builder.nodes.items()
    }


def begin(sources: Sources, step: int, manifest: Mapping[str, Any]) -> Beginning:
    """How a task of a node with these sources begins in this step.

    A waiting edge joins its sources and what those continued. A node with one source, which ran once in the step
    before, continues its shard. Everything else may come after several branches: it joins all that is committed.
    """
    records = {task: Record(*fields) for task, fields in manifest.items()}
    if sources.deferred or len(sources.plain) + len(sources.waiting) != 1:
        return _joining(records, records)
    if sources.waiting:
        return _joining(records, [task for task, one in records.items() if one.node in sources.waiting[0]])
    (source,) = sources.plain
    before = [task for task, one in records.items() if one.node == source and one.step == step - 1]
    if source == START or not before:  # a new turn, or a jump that no edge tells
        return _joining(records, records)
    if len(before) == 1 and not records[before[0]].pushed:
        return Beginning(parent=records[before[0]].line)
    return _joining(records, before)  # after a map: however many of it there were


def _joining(records: Mapping[str, Record], chosen: Iterable[str]) -> Beginning:
    """Join the shards of the chosen tasks, and those that they continued."""
    owner = {reference: task for task, one in records.items() for reference in one.references}
    tasks: dict[str, None] = {}
    todo = list(chosen)
    while todo:
        task = todo.pop()
        if task not in tasks:
            tasks[task] = None
            parent = owner.get(records[task].parent or "")
            if parent is not None:
                todo.append(parent)
    found = sorted(task for task in tasks if records[task].references)
    return Beginning(tuple(reference for task in found for reference in records[task].references), tuple(found))


def merged(manifest: Manifest, update: Mapping[str, Any]) -> Manifest:
    """The channel's reducer: an update adds records, and removes those it maps to None.

    A record without a shard tells only the next step that its node has run; later it goes.
    """
    found = {**manifest, **update}
    # By position: this runs once for each task, over all that are open.
    latest = max((fields[_STEP] for fields in found.values() if fields is not None), default=0)
    return {
        task: fields
        for task, fields in found.items()
        if fields is not None and (fields[_REFERENCES] or fields[_STEP] >= latest)
    }
