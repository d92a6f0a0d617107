"""The LangGraph examples run without a key, and show what they claim."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.langgraph

EXAMPLES = Path(__file__).parents[2] / "examples"


def output(name: str) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert ".agentguard" not in done.stdout
    return done.stdout


def test_tools() -> None:
    out = output("02_langgraph_tools.py")
    counts = [tuple(map(int, found)) for found in re.findall(r"(\d) of 6 findings, (\d) of 2 edits", out)]
    assert counts[0][0] < 6
    assert counts[0][1] == 1
    assert counts[1] == (6, 2)
    assert re.search(r"Ann is told: Conflict: report\.md was changed by agent '[^']*Bob'", out)


def test_join() -> None:
    before, after = output("03_langgraph_join.py").split("with the guard:")
    assert "6 of 6" not in before
    assert "the editor finds 6 of 6 findings" in after
    assert after.count("counted [1, 2]") == 3  # each saw its own work only
    assert "merged: {'ann': " in after
