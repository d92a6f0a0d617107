"""Lost updates in real graphs and crews: `python tests/benchmarks/bench_lost.py [agents rounds]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from report import publish, table

from agentguard.demo_runs import FRAMEWORKS, execute, load, plans


def main(agents: int, rounds: int) -> None:
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        found, missing = load(FRAMEWORKS, base / "scratch", loading=lambda title: print(f"loading {title} ..."))
        for line in missing:
            print(line)
        for asynchronous in (False, True):
            where = base / ("async" if asynchronous else "sync")
            for done in execute(plans(found), where, agents, rounds, asynchronous=asynchronous, progress=lambda: None):
                outcome = done.outcome
                print(f"{done.plan.framework.title} {done.plan.kind.title} {done.plan.mode_title}: {outcome.lost} lost")
                rows.append(
                    (
                        done.plan.framework.title,
                        "async" if asynchronous else "sync",
                        done.plan.kind.title,
                        done.plan.mode_title,
                        outcome.expected,
                        outcome.lost,
                        outcome.torn,
                        f"{done.seconds:.1f}",
                    )
                )
    head = ("framework", "run", "state", "mode", "updates", "lost", "torn", "seconds")
    command = f"python tests/benchmarks/bench_lost.py {agents} {rounds}"
    publish("Lost updates", command, table(head, rows), "langgraph", "crewai")


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:3] or (8, 25)))
