"""The demo's crew, in full: 8 agents x 25 updates of each kind of state, without the guard and with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("crewai_support")  # first: it imports crewai without its warnings
from agentguard_crewai import demo
from crewai_support import MARKS

from agentguard.demo import KINDS, count, kind_of, seed

pytestmark = MARKS

ROOT = Path(__file__).parents[2]
AGENTS, ROUNDS = 8, 25


@pytest.mark.parametrize("asynchronous", [False, True], ids=["kickoff", "akickoff"])
@pytest.mark.parametrize("mode", ["off", "serialize", "shard"])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_lost_without_the_guard_only(kind: str, mode: str, asynchronous: bool, tmp_path: Path) -> None:
    if mode == "shard" and not kind_of(kind).shardable:
        pytest.skip("rows are serialized in every mode")
    seed(kind, tmp_path)
    made: list[None] = []
    demo.run(
        kind,
        mode,
        tmp_path,
        agents=AGENTS,
        rounds=ROUNDS,
        asynchronous=asynchronous,
        progress=lambda: made.append(None),
    )
    left = count(kind, tmp_path, AGENTS, ROUNDS)
    assert len(made) == AGENTS * ROUNDS
    if mode == "off":
        assert left.lost
    else:
        assert (left.kept, left.lost, left.torn) == (AGENTS * ROUNDS, 0, 0)


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
