"""`agentguard merge`, by itself and as git's merge driver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "agentguard", "merge"]


def merged(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("base", '{"a": 1, "n": 1}'), ("x", '{"a": 2, "n": 3}'), ("y", '{"a": 1, "b": 1, "n": 2}')):
        (tmp_path / f"{name}.json").write_text(text)
    return tmp_path


def test_versions_are_merged_into_a_file(folder: Path) -> None:
    done = merged(folder, "--base", "base.json", "--out", "o.json", "--path", "/n=counter", "x.json", "y.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((folder / "o.json").read_text()) == {"a": 2, "b": 1, "n": 4}


def test_conflicts_are_listed_and_the_base_stays(folder: Path) -> None:
    done = merged(folder, "--base", "base.json", "--out", "o.json", "x.json", "y.json")
    assert done.returncode == 1
    assert "o.json, /n: changed to different values" in done.stderr
    assert json.loads((folder / "o.json").read_text()) == {"a": 2, "b": 1, "n": 1}


def test_what_cannot_be_merged_touches_nothing(folder: Path) -> None:
    (folder / "x.json").write_text("{")
    (folder / "o.json").write_text("kept")
    for arguments, words in (
        (["--base", "base.json", "--out", "o.json", "x.json", "y.json"], "x.json has is not valid JSON"),
        (["--base", "base.json", "--out", "o.json", "y.json"], "at least two"),
        (["--base", "base.json", "--out", "o.json", "gone.json", "y.json"], "there is no file gone.json"),
        (["--base", "base.json", "--out", "o.json", "--strategy", "jsn", "y.json", "y.json"], "did you mean 'json'"),
        (["--base", "base.json", "--out", "o.json", "--path", "n", "y.json", "y.json"], "/total=counter"),
    ):
        done = merged(folder, *arguments)
        assert done.returncode == 2
        assert words in " ".join(done.stderr.split())
        assert (folder / "o.json").read_text() == "kept"


def test_a_base_that_does_not_exist(folder: Path) -> None:
    (folder / "x.json").write_text('{"x": 1}')
    (folder / "y.json").write_text('{"y": 1}')
    assert merged(folder, "--base", "none.json", "--out", "o.json", "x.json", "y.json").returncode == 0
    assert json.loads((folder / "o.json").read_text()) == {"x": 1, "y": 1}


def test_the_configuration_has_rules_for_the_name(folder: Path) -> None:
    (folder / "agentguard.toml").write_text('[resources."data/o.json"]\npaths = { "/n" = "max" }\n')
    done = merged(folder, "--base", "base.json", "--out", "o.json", "--name", "data/o.json", "x.json", "y.json")
    assert done.returncode == 0
    assert json.loads((folder / "o.json").read_text())["n"] == 3


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_uses_it_as_a_driver(tmp_path: Path) -> None:
    def git(*arguments: str, fails: bool = False) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        done = subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, env=environment,
        )  # fmt: skip
        assert (done.returncode != 0) is fails, done.stderr + done.stdout
        return done.stdout + done.stderr

    def commit(store: dict[str, int], message: str) -> None:
        (tmp_path / "store.json").write_text(json.dumps(store))
        git("add", ".")
        git("commit", "-q", "-m", message)

    git("init", "-q", "-b", "main")
    command = " ".join([sys.executable, "-m", "agentguard", "merge", "--base %O --out %A --name %P %A %B"])
    git("config", "merge.agentguard.driver", command)
    (tmp_path / ".gitattributes").write_text("*.json merge=agentguard\n")
    commit({"a": 1, "b": 1}, "base")
    git("checkout", "-q", "-b", "side")
    commit({"a": 1, "b": 2, "c": 3}, "side")
    git("checkout", "-q", "main")
    commit({"a": 5, "b": 1}, "ours")
    git("merge", "-q", "side")  # git's own merge of these one-line files would conflict
    assert json.loads((tmp_path / "store.json").read_text()) == {"a": 5, "b": 2, "c": 3}

    git("checkout", "-q", "-b", "other")
    commit({"a": 6, "b": 2, "c": 3}, "other")
    git("checkout", "-q", "main")
    commit({"a": 7, "b": 2, "c": 4}, "ours again")
    told = git("merge", "-q", "other", fails=True)
    assert "/a: changed to different values" in told
    assert json.loads((tmp_path / "store.json").read_text()) == {"a": 5, "b": 2, "c": 4}
    assert "UU store.json" in git("status", "--short")
