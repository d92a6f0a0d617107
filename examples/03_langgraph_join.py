"""Three researchers in parallel branches write one file; an editor joins them: `compile()`, and `guard_graph` instead.

    python examples/03_langgraph_join.py

In shard mode each branch works on its own copy of the file. Nobody waits, nobody sees half of another's work, and when
the editor begins, the copies have been merged. Models and keys are not needed: the nodes are plain functions.
"""

import json
import operator
import tempfile
import threading
from pathlib import Path
from typing import Annotated, TypedDict

from agentguard_langgraph import guard_graph, guard_tools, tool
from langgraph.graph import END, START, StateGraph

from agentguard import Guard, atomic_write, path

NAMES = ["ann", "bob", "cleo"]


class State(TypedDict):
    seen: Annotated[list[str], operator.add]


@tool(updates="findings.json")
def add_finding(text: str) -> int:
    """Add a finding; returns how many there are."""
    file = path("findings.json")
    findings = json.loads(file.read_text())
    together.wait()  # all three have read before any of them writes: the worst case, each time
    findings["items"].append(text)
    findings["total"] += 1
    atomic_write(file, json.dumps(findings).encode())  # what gets lost is lost to the others, not to half a file
    together.wait()
    return findings["total"]


def build(add, read):
    def researcher(name):
        def node(state: State):
            counts = [add.invoke({"text": f"finding {number} of {name}"}) for number in range(2)]
            return {"seen": [f"{name} counted {counts}"]}

        return node

    def editor(state: State):
        return {"seen": [f"the editor finds {read()['total']} of {2 * len(NAMES)} findings"]}

    builder = StateGraph(State)
    for name in NAMES:
        builder.add_node(name, researcher(name))
        builder.add_edge(START, name)
    builder.add_node("editor", editor)
    builder.add_edge(NAMES, "editor")  # a join: it waits for all of them
    builder.add_edge("editor", END)
    return builder


def run(file, title, graph):
    file.write_text('{"items": [], "total": 0}')
    print(f"{title}:")
    for line in graph.invoke({"seen": []})["seen"]:
        print(f"  {line}")


if __name__ == "__main__":
    together = threading.Barrier(len(NAMES), timeout=10)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "findings.json"
        guard = Guard(root=folder, resources={file.name: {"mode": "shard", "paths": {"/total": "counter"}}})
        run(file, "without the guard", build(add_finding, lambda: json.loads(file.read_text())).compile())
        guard.hooks.append(
            lambda event: event.kind == "merged" and print(f"  merged: {dict(event.details['changes'])}")
        )
        (guarded,) = guard_tools([add_finding], guard)  # the nodes call the tool themselves
        run(file, "with the guard", guard_graph(build(guarded, lambda: guard.read(file.name)), guard))
