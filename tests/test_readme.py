"""Every block of the README runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentguard import Guard
from agentguard.config import load_config

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
PYTHON = [body for language, options, body in BLOCKS if language == "python" and "no-run" not in options]


@pytest.mark.parametrize("code", PYTHON, ids=[re.sub(r"\W+", "-", body)[-40:] for body in PYTHON])
def test_a_python_block_runs(code: str, tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "block.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_blocks_that_do_not_run_here_compile() -> None:
    skipped = [body for language, options, body in BLOCKS if language == "python" and "no-run" in options]
    assert len(skipped) <= 1  # the crew, which the examples run
    for body in skipped:
        compile(body, "README", "exec")


def test_the_configuration_block_loads(tmp_path: Path) -> None:
    (block,) = [body for language, _, body in BLOCKS if language == "toml"]
    (tmp_path / "agentguard.toml").write_text(block)
    (tmp_path / "workspace").mkdir()
    config = load_config(tmp_path / "agentguard.toml")
    assert config.resource("findings.json").mode == "shard"
    assert Guard(config=config).declaration_of("write_file") is not None


def test_the_commands_exist() -> None:
    text = "\n".join(body for language, _, body in BLOCKS if language == "console") + README.read_text()
    for command in sorted(set(re.findall(r"agentguard (demo|merge|status|recover)\b", text))):
        subprocess.run([sys.executable, "-m", "agentguard", command, "--help"], check=True, capture_output=True)


def test_the_output_that_is_shown_is_the_demo_s() -> None:
    (shown,) = [body for language, _, body in BLOCKS if language == "text"]
    command = [sys.executable, "-m", "agentguard", "demo", "--framework", "langgraph"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=True, env={**os.environ, "COLUMNS": "110"}
    )
    assert shown.split()[:30] == done.stdout.split()[:30]
    for words in ("no guard", "serialized", "sharded", "SQLite row"):
        assert words in shown
        assert words in done.stdout
    assert "With it: none of 160." in done.stdout
