"""The examples without a framework of their own run as they stand, and show what they claim."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(file: Path) -> str:
    quiet = {"CREWAI_STORAGE_DIR": str(file.parent / "crewai"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=100, env=os.environ | quiet, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lost_update() -> None:
    out = run(EXAMPLES / "01_lost_update.py")
    lost = [int(number) for number in re.findall(r"(\d+) are lost", out)]
    assert len(lost) == 2
    assert lost[0] > 0
    assert lost[1] == 0


def test_stale_writes() -> None:
    out = run(EXAMPLES / "06_stale_writes.py")
    assert 'ignore: {"title": "Plan", "ann": null, "bob": "done"}' in out  # ann's work is gone
    for stale in ("reject", "merge"):
        assert f'{stale}: {{"title": "Plan", "ann": "done", "bob": "done"}}' in out
    assert out.count("Conflict: plan.json was changed by agent 'ann' in write at ") == 1
    assert '+{"title": "Plan", "ann": "done", "bob": null}' in out


@pytest.mark.langgraph
@pytest.mark.crewai
def test_config_only(tmp_path: Path) -> None:
    folder = tmp_path / "05_config_only"
    shutil.copytree(EXAMPLES / "05_config_only", folder, ignore=shutil.ignore_patterns("workspace", "__pycache__"))
    out = run(folder / "run.py")
    shown = ["functions"]
    shown += ["LangChain"] if find_spec("langgraph") and find_spec("langchain") else []
    shown += ["CrewAI"] if find_spec("crewai") else []
    for title in shown:
        assert f"{title}, no guard: 1 of 2 edits are in notes.md" in out
        assert f"{title}, guarded: 2 of 2 edits are in notes.md" in out
    assert out.count("the writer is told: ") == len(shown)
    assert "notes.md was changed by agent 'researcher'" in out
    assert ".agentguard" not in out  # no path of a copy is shown
