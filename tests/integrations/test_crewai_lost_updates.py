"""The demo's crew, 8 agents that update each kind of state at the same time, without the guard and with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import demo
from crewai_support import MARKS

from agentguard.demo import KINDS, MODES, count, seed

pytestmark = MARKS

ROOT = Path(__file__).parents[2]
AGENTS = 8
MATRIX = [(kind, mode) for kind in KINDS for mode in MODES]


@pytest.mark.parametrize("rounds", [4, pytest.param(25, marks=pytest.mark.soak)])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["kickoff", "akickoff"])
@pytest.mark.parametrize(("kind", "mode"), MATRIX)
def test_updates_are_lost_without_the_guard_only(
    kind: str, mode: str, asynchronous: bool, rounds: int, tmp_path: Path
) -> None:
    seed(kind, tmp_path)
    made: list[None] = []
    demo.run(
        kind,
        mode,
        tmp_path,
        agents=AGENTS,
        rounds=rounds,
        asynchronous=asynchronous,
        progress=lambda: made.append(None),
    )
    left = count(kind, tmp_path, AGENTS, rounds)
    assert len(made) == AGENTS * rounds
    if mode == "off":
        assert left.lost
    else:
        assert (left.kept, left.lost, left.torn) == (AGENTS * rounds, 0, 0)


def test_the_example_runs_without_a_key() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", ROOT / "examples" / "04_crewai_tools.py"],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unguarded, serialized, sharded = [line for line in done.stdout.splitlines() if " of 20 findings" in line]
    assert "without the guard" in unguarded and " 20 of 20" not in unguarded
    assert "20 of 20" in serialized and "20 of 20" in sharded
