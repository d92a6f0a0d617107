"""The LangGraph examples run without a key, and show what they claim."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from agentguard_langgraph._version import require

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


def test_a_missing_or_old_framework_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"langgraph": "1.1.9", "langchain": "1.4.7"}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        ImportError, match=r"needs langgraph >= 1\.2, not 1\.1\.9: pip install 'agentguard\[langgraph\]'"
    ):
        require()
    found["langgraph"] = "1.2.0rc1"
    require()
    del found["langchain"]
    with pytest.raises(ImportError, match="needs langchain"):
        require()
