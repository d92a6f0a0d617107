"""Read, think, write: two agents read one version, and both write. Locks cannot mend that; versions do.

python examples/06_stale_writes.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from agentguard import Guard, StaleWrite

PLAN = {"title": "Plan", "ann": None, "bob": None}


def two_agents(stale: str) -> tuple[dict[str, Any], list[str]]:
    """Ann and Bob read the plan, think, and each writes the whole of it: the plan in the end, and what was told."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "plan.json").write_text(json.dumps(PLAN))
        guard = Guard(root=folder, resources={"plan.json": {"stale": stale}})
        read = {}
        for name in ("ann", "bob"):
            with guard.agent(name):
                read[name] = guard.read("plan.json")
        told = []
        for name in ("ann", "bob"):
            plan = {**read[name], name: "done"}  # what it has come to, from what it read
            with guard.agent(name):
                try:
                    guard.write("plan.json", plan)
                except StaleWrite as error:  # what a model is told, and does
                    told.append(str(error))
                    guard.write("plan.json", {**guard.read("plan.json"), name: "done"})
        return guard.read("plan.json"), told


for stale in ("ignore", "reject", "merge"):
    plan, told = two_agents(stale)
    print(f"{stale}: {json.dumps(plan)}")
    for text in told:
        print("   " + text.replace("\n", "\n   "))
