"""The command line: what it prints, what it exits with, and that it looks without touching."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo_support import run as run_threads

from agentguard import Guard, cli, commit, demo, demo_runs

MAIN = "from agentguard.cli import main; main()"


class Printed:
    """One finished command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def words(self) -> str:
        """Standard output with every run of white space as one space."""
        return " ".join(self.out.split())


@pytest.fixture
def agentguard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Printed]:
    for name in (*demo_runs._QUIET, "CREWAI_STORAGE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what the demo sets ends with the test

    def command(*arguments: object) -> Printed:
        monkeypatch.setattr(sys, "argv", ["agentguard", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Printed(code or 0, *capsys.readouterr())

    return command


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)], capture_output=True, text=True, timeout=110, check=False
    )


# -- the command itself ----------------------------------------------------------------------------------------------


def test_help_imports_no_framework_and_nothing_slow() -> None:
    program = (
        "import sys\nfrom agentguard.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("loaded:")
    assert {"demo", "merge", "status", "recover"} <= set(text.split())
    assert not {"langgraph", "langchain_core", "crewai", "pydantic", "rich", "tomlkit"} & set(loaded.split())


def test_version(agentguard: Callable[..., Printed]) -> None:
    shown = agentguard("--version")
    assert shown.code == 0
    assert re.match(r"agentguard \d+\.\d+\.\d+ \(Python 3", shown.out)
    assert "langgraph" in shown.out and "crewai" in shown.out


@pytest.mark.parametrize("command", ["demo", "merge", "status", "recover"])
def test_every_command_has_a_help(agentguard: Callable[..., Printed], command: str) -> None:
    shown = agentguard(command, "--help")
    assert shown.code == 0
    assert "Exits with" in shown.out


# -- demo ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def langgraph_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads instead of LangGraph, and no CrewAI."""

    def load(name: str) -> Any:
        if name == "agentguard_langgraph.demo":
            return types.SimpleNamespace(run=run_threads)
        raise ImportError("No module named 'crewai'", name="crewai")

    monkeypatch.setattr(demo_runs, "importlib", types.SimpleNamespace(import_module=load))


@pytest.mark.usefixtures("langgraph_only")
def test_demo_prints_one_table_and_what_is_missing(agentguard: Callable[..., Printed]) -> None:
    shown = agentguard("demo", "--agents", 3, "--rounds", 2)
    assert shown.code == 0, shown.out
    assert "framework state mode expected kept lost torn seconds" in shown.words
    assert shown.words.count("LangGraph JSON store no guard 6") == 1
    for text in ("JSONL log no guard 6", "Markdown report no guard 6", "SQLite row no guard 6"):
        assert text in shown.words
    assert shown.words.count("sharded 6 6 0 0") == 4
    assert shown.words.count("serialized 6 6 0 0") == 4
    assert re.search(r"Without the guard [1-9]\d* of 24 updates were lost.* With it: none of 48\.", shown.words)
    assert "CrewAI" in shown.out and "pip install 'agentguard[crewai]'" in shown.out
    assert shown.err == ""


@pytest.mark.usefixtures("langgraph_only")
def test_demo_as_json_is_nothing_but_json(agentguard: Callable[..., Printed], tmp_path: Path) -> None:
    shown = agentguard("demo", "--json", "--async", "--agents", 2, "--rounds", 2, "--keep", tmp_path / "kept")
    assert shown.code == 0
    report = json.loads(shown.out)
    assert report["ok"] is True
    assert report["unguarded_lost"] > 0
    assert (report["guarded_updates"], report["guarded_lost"], report["guarded_torn"]) == (32, 0, 0)
    assert len(report["runs"]) == 12
    assert {one["state"] for one in report["runs"]} == set(demo.KINDS)
    assert "agentguard[crewai]" in report["missing"][0]
    kept = Path(report["runs"][1]["folder"])
    assert kept == tmp_path / "kept" / "langgraph" / "json" / "serialize"
    assert demo.count("json", kept, 2, 2).intact


def test_demo_fails_when_a_guarded_run_loses(
    agentguard: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(kind: str, mode: str, folder: Path, **options: Any) -> None:
        run_threads(kind, "off", folder, **options)

    module = types.SimpleNamespace(run=run)
    monkeypatch.setattr(demo_runs, "importlib", types.SimpleNamespace(import_module=lambda _: module))
    shown = agentguard("demo", "--framework", "crewai", "--agents", 2, "--rounds", 1)
    assert shown.code == 1
    assert "With it: 8 of 16 lost, 0 torn. That is a bug in AgentGuard" in shown.words


def test_demo_fails_and_tells_when_a_guarded_run_raises(
    agentguard: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentguard import MergeConflict

    def run(kind: str, mode: str, folder: Path, **options: Any) -> None:
        if mode == "shard":
            raise MergeConflict("the sides of [bold]findings.json disagree")
        run_threads(kind, mode, folder, **options)

    module = types.SimpleNamespace(run=run)
    monkeypatch.setattr(demo_runs, "importlib", types.SimpleNamespace(import_module=lambda _: module))
    shown = agentguard("demo", "--framework", "langgraph", "--agents", 2, "--rounds", 1)
    assert shown.code == 1
    assert "LangGraph, JSON store, sharded: MergeConflict: the sides of [bold]findings.json disagree" in shown.words


@pytest.mark.usefixtures("langgraph_only")
def test_a_missing_framework_is_an_error_only_if_asked_for(agentguard: Callable[..., Printed]) -> None:
    shown = agentguard("demo", "--framework", "crewai")
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith("Error: CrewAI") and "pip install 'agentguard[crewai]'" in shown.err


def test_without_any_framework_the_demo_says_how_to_get_one(
    agentguard: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise ImportError(f"No module named {name!r}", name=name.partition("_")[2])

    monkeypatch.setattr(demo_runs, "importlib", types.SimpleNamespace(import_module=load))
    shown = agentguard("demo")
    assert shown.code == 0
    assert "agentguard[langgraph]" in shown.out and "agentguard[crewai]" in shown.out
    assert json.loads(agentguard("demo", "--json").out)["runs"] == []


def test_an_error_of_our_own_adapter_is_not_called_a_missing_framework(
    agentguard: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise ImportError("cannot import name 'x'", name=f"{name}.x")

    monkeypatch.setattr(demo_runs, "importlib", types.SimpleNamespace(import_module=load))
    monkeypatch.setattr(sys, "argv", ["agentguard", "demo"])
    with pytest.raises(ImportError):
        cli.main()


@pytest.mark.usefixtures("langgraph_only")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--framework", "autogen"], "'autogen'; choose langgraph, crewai or all"),
        (["--agents", "1"], "--agents"),
        (["--rounds", "0"], "--rounds"),
        (["--keep", "{full}"], "not empty"),
        (["--keep", "{file}"], "--keep"),
    ],
)
def test_demo_refuses_what_it_cannot_do(
    agentguard: Callable[..., Printed], arguments: list[str], text: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    shown = agentguard("demo", *(one.format(full=tmp_path, file=tmp_path / "file") for one in arguments))
    assert shown.code == 2
    assert text in shown.err
    assert sorted(os.listdir(tmp_path)) == ["file"]


@pytest.mark.parametrize(
    "framework",
    [pytest.param("langgraph", marks=pytest.mark.langgraph), pytest.param("crewai", marks=pytest.mark.crewai)],
)
def test_the_demo_of_a_real_framework(framework: str) -> None:
    pytest.importorskip(framework)
    done = shell("demo", "--framework", framework, "--json", "--agents", 3, "--rounds", 2)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["unguarded_lost"] > 0
    assert (report["guarded_lost"], report["guarded_torn"]) == (0, 0)
    assert len(report["runs"]) == 12


# -- status and recover ----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a configuration and a file in shard mode."""
    (tmp_path / "agentguard.toml").write_text('[resources."findings.json"]\nmode = "shard"\n')
    (tmp_path / "findings.json").write_text("[]")
    return tmp_path


def leave_shard(root: Path, agent: str = "researcher", run: str = "monday") -> None:
    guard = Guard.from_config(root / "agentguard.toml")
    with guard.agent(agent, run=run):
        guard.update("findings.json", lambda findings: [*findings, f"by {agent}"])


def test_looking_at_an_unused_folder_does_not_use_it(agentguard: Callable[..., Printed], tmp_path: Path) -> None:
    shown = agentguard("status", "--root", tmp_path)
    assert shown.code == 0
    assert f"No guard has worked in {tmp_path} yet" in shown.out
    assert agentguard("recover", "--root", tmp_path).code == 0
    assert agentguard("recover", "--root", tmp_path, "--join", "monday").code == 2
    assert json.loads(agentguard("status", "--root", tmp_path, "--json").out)["home"] is None
    assert os.listdir(tmp_path) == []


def test_status_names_who_holds_what(agentguard: Callable[..., Printed], tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    with guard.agent("researcher"), guard.hold(writes="report.md"):
        shown = agentguard("status", "--root", tmp_path)
        found = json.loads(agentguard("status", "--root", tmp_path, "--json").out)
    assert shown.code == 0
    assert "report.md" in shown.out and "researcher" in shown.out
    assert [one["agent"] for one in found["holders"]] == ["researcher"]
    assert "held now: none" in agentguard("status", "--root", tmp_path).out


def test_status_lists_open_shards_and_what_to_do(agentguard: Callable[..., Printed], root: Path) -> None:
    leave_shard(root)
    shown = agentguard("status", "--config", root / "agentguard.toml")
    assert shown.code == 0
    assert "researcher: findings.json (run monday" in shown.out
    assert "agentguard recover --join monday" in shown.out
    (one,) = json.loads(agentguard("status", "--root", root, "--json").out)["shards"]
    assert f"agentguard recover --drop {one['reference']}" in shown.out


def test_the_configuration_is_found_from_the_working_directory(
    agentguard: Callable[..., Printed], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_shard(root)
    (root / "deeper").mkdir()
    monkeypatch.chdir(root / "deeper")
    assert "researcher: findings.json" in agentguard("status").out


def test_recover_joins_a_run_by_the_rules_of_its_folder(agentguard: Callable[..., Printed], root: Path) -> None:
    with (root / "agentguard.toml").open("a") as file:
        file.write('merge = "last"\n')
    leave_shard(root, "a")
    leave_shard(root, "b")
    shown = agentguard("recover", "--root", root, "--join", "monday")
    assert shown.code == 0, shown.err
    assert "joined 2 shards" in shown.out
    assert json.loads((root / "findings.json").read_text()) == ["by b"]
    assert "open shards: none" in agentguard("status", "--root", root).out


def test_recover_names_the_runs_there_are(agentguard: Callable[..., Printed], root: Path) -> None:
    leave_shard(root)
    shown = agentguard("recover", "--root", root, "--join", "tuesday")
    assert shown.code == 2
    assert "'tuesday'" in shown.err and "Runs with open shards: monday" in shown.err


def test_a_conflict_is_told_and_everything_kept(agentguard: Callable[..., Printed], root: Path) -> None:
    (root / "findings.json").write_text('{"title": "none"}')
    for agent in ("a", "b"):
        guard = Guard.from_config(root / "agentguard.toml")
        with guard.agent(agent, run="monday"):
            guard.update("findings.json", lambda _, agent=agent: {"title": agent})
    shown = agentguard("recover", "--root", root, "--join", "monday")
    assert shown.code == 2
    assert "conflict" in shown.err and "Traceback" not in shown.err
    assert json.loads((root / "findings.json").read_text()) == {"title": "none"}
    assert agentguard("status", "--root", root).out.count("findings.json (run monday") == 2


def test_recover_drops_one_shard(agentguard: Callable[..., Printed], root: Path) -> None:
    leave_shard(root)
    (one,) = json.loads(agentguard("status", "--root", root, "--json").out)["shards"]
    shown = agentguard("recover", "--root", root, "--drop", one["reference"])
    assert shown.code == 0
    assert "dropped what researcher of run monday wrote: findings.json" in shown.out
    again = agentguard("recover", "--root", root, "--drop", one["reference"])
    assert again.code == 2 and "merged or dropped already" in again.err
    assert json.loads((root / "findings.json").read_text()) == []


@pytest.mark.parametrize("reference", ["../../../etc", "x", "", "a/../b", "/etc/passwd", "🦊/a/b"])
def test_a_reference_is_never_a_path(agentguard: Callable[..., Printed], root: Path, reference: str) -> None:
    leave_shard(root)
    shown = agentguard("recover", "--root", root, "--drop", reference)
    assert shown.code == 2
    assert "not the reference of a shard" in shown.err


def test_a_killed_call_leaves_no_ghost(agentguard: Callable[..., Printed], tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("old")
    program = (
        "import os, sys; from agentguard import Guard\n"
        "with Guard(sys.argv[1]).hold(writes='report.md') as hold:\n"
        "    hold.path('report.md').write_text('half'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == 9
    assert "held now: none" in agentguard("status", "--root", tmp_path).out
    shown = agentguard("recover", "--root", tmp_path)
    assert shown.code == 0
    assert "removed the copies of a call that died" in shown.out
    assert agentguard("recover", "--root", tmp_path).out == "nothing to recover\n"
    assert (tmp_path / "report.md").read_text() == "old"


def test_a_commit_in_doubt_is_two(
    agentguard: Callable[..., Printed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Guard(tmp_path)
    record, targets, why = tmp_path / "record", (tmp_path / "a.json",), "a.json was changed by somebody else"
    monkeypatch.setattr(
        commit.Journal, "inspect", lambda _: (commit.Pending(record, targets, 1.0, live=False, doubt=why),)
    )
    monkeypatch.setattr(commit.Journal, "recover", lambda _: (commit.Recovered(record, targets, (), doubt=why),))
    for command in ("status", "recover"):
        shown = agentguard(command, "--root", tmp_path)
        assert shown.code == 2
        assert "IN DOUBT" in shown.out and why in shown.out
    assert "remove the record" in agentguard("status", "--root", tmp_path).out


def test_a_folder_that_cannot_be_read_is_one_message(
    agentguard: Callable[..., Printed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Guard(tmp_path)

    def inspect(_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "journal"))

    monkeypatch.setattr(commit.Journal, "inspect", inspect)
    shown = agentguard("status", "--root", tmp_path)
    assert (shown.code, shown.out) == (2, "")
    assert "journal: Permission denied" in shown.err


@pytest.mark.parametrize("command", ["status", "recover"])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--root", "{tmp}/absent"], "there is no such folder"),
        (["--root", "{tmp}/bad.toml"], "there is no such folder"),
        (["--config", "{tmp}/absent.toml"], "absent.toml"),
        (["--config", "{tmp}/bad.toml"], "timeout"),
        (["--config", "{tmp}/broken.toml"], "broken.toml"),
        (["--config", "{tmp}/bad.toml", "--root", "{tmp}"], "not both"),
    ],
)
def test_a_mistake_is_one_message(
    agentguard: Callable[..., Printed], command: str, arguments: list[str], text: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text("tiemout = 3\n")
    (tmp_path / "broken.toml").write_text("root = [\n")
    shown = agentguard(command, *(one.format(tmp=tmp_path) for one in arguments))
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith("Error: ") and text in shown.err and "Traceback" not in shown.err
