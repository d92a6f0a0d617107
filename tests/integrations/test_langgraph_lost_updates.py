"""Agents in parallel branches four kinds of state: what is lost without the guard, and what with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentguard_langgraph.demo import run

from agentguard.demo import KINDS, count, seed

pytestmark = pytest.mark.langgraph

AGENTS = 8
GUARDED = [(kind, mode) for kind in KINDS for mode in ("serialize", "shard")]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_the_guard_updates_are_lost(kind: str, asynchronous: bool, tmp_path: Path) -> None:
    seed(kind, tmp_path)
    done: list[int] = []
    run(kind, "off", tmp_path, agents=4, rounds=5, asynchronous=asynchronous, progress=lambda: done.append(1))
    assert len(done) == 20
    assert count(kind, tmp_path, 4, 5).lost > 0


@pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])
@pytest.mark.parametrize(("kind", "mode"), GUARDED)
@pytest.mark.parametrize("rounds", [4, pytest.param(25, marks=pytest.mark.soak)])
def test_with_the_guard_none_is(kind: str, mode: str, asynchronous: bool, rounds: int, tmp_path: Path) -> None:
    seed(kind, tmp_path)
    run(kind, mode, tmp_path, agents=AGENTS, rounds=rounds, asynchronous=asynchronous, progress=lambda: None)
    outcome = count(kind, tmp_path, AGENTS, rounds)
    assert (outcome.kept, outcome.lost, outcome.torn) == (AGENTS * rounds, 0, 0)
