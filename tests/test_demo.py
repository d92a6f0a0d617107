"""The demo's state: naive updates lose work where they overlap, none with the guard, and the count is right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_support import run

from agentguard import Guard, demo
from agentguard.demo import KINDS, MODES, Gate, agent_names, count, kind_of, seed, settings

RUNS = [(kind, mode) for kind in KINDS for mode in MODES]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
@pytest.mark.parametrize(("kind", "mode"), RUNS)
def test_only_unguarded_runs_lose(kind: str, mode: str, asynchronous: bool, tmp_path: Path) -> None:
    seed(kind, tmp_path)
    run(kind, mode, tmp_path, agents=4, rounds=10, asynchronous=asynchronous)
    outcome = count(kind, tmp_path, 4, 10)
    assert outcome.expected == 40
    assert outcome.kept + outcome.lost == 40
    if mode == "off":
        assert outcome.lost > 0
    else:
        assert outcome.intact and outcome.kept == 40


@pytest.mark.parametrize("kind", KINDS)
def test_two_overlapping_updates_leave_one(kind: str, tmp_path: Path) -> None:
    seed(kind, tmp_path)
    run(kind, "off", tmp_path, agents=2, rounds=1, asynchronous=True)
    assert count(kind, tmp_path, 2, 1) == demo.Outcome(expected=2, kept=1, lost=1, torn=0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_after_another_loses_nothing(kind: str, tmp_path: Path) -> None:
    seed(kind, tmp_path)
    assert count(kind, tmp_path, 2, 3) == demo.Outcome(expected=6, kept=0, lost=6, torn=0)
    for agent in agent_names(2):
        for n in range(3):
            assert demo.apply(kind, agent, n, tmp_path, lambda: None)
    assert count(kind, tmp_path, 2, 3) == demo.Outcome(expected=6, kept=6, lost=0, torn=0)


def test_another_guard_of_the_process_does_not_lead_an_unguarded_run_astray(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = Guard(tmp_path / "elsewhere")
    seed("json", tmp_path)
    demo.apply("json", "a", 1, tmp_path, lambda: None)
    assert count("json", tmp_path, 1, 1).kept == 1
    assert not (other.root / "findings.json").exists()


# -- the count -------------------------------------------------------------------------------------------------------


def _full(kind: str, folder: Path) -> Path:
    seed(kind, folder)
    for n in range(3):
        demo.apply(kind, "a", n, folder, lambda: None)
    return folder / kind_of(kind).file


def test_half_a_json_file_is_torn(tmp_path: Path) -> None:
    file = _full("json", tmp_path)
    file.write_text(file.read_text()[:-20])
    assert count("json", tmp_path, 1, 3) == demo.Outcome(expected=3, kept=0, lost=3, torn=1)


def test_a_counter_that_contradicts_its_list_is_torn(tmp_path: Path) -> None:
    file = _full("json", tmp_path)
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"total": 2}))
    assert count("json", tmp_path, 1, 3) == demo.Outcome(expected=3, kept=2, lost=1, torn=1)
    with contextlib.closing(sqlite3.connect(_full("rows", tmp_path))) as board, board:
        board.execute("UPDATE counters SET value = 9")
    assert count("rows", tmp_path, 1, 3) == demo.Outcome(expected=3, kept=3, lost=0, torn=1)


def test_a_cut_line_of_a_log_is_torn(tmp_path: Path) -> None:
    file = _full("log", tmp_path)
    file.write_text(file.read_text()[:-10])
    assert count("log", tmp_path, 1, 3) == demo.Outcome(expected=3, kept=2, lost=1, torn=1)


def test_a_line_that_is_there_twice_is_torn(tmp_path: Path) -> None:
    file = _full("log", tmp_path)
    file.write_text(file.read_text() + file.read_text().splitlines()[-1] + "\n")
    assert count("log", tmp_path, 1, 3) == demo.Outcome(expected=3, kept=3, lost=0, torn=1)


@pytest.mark.parametrize(
    "damage",
    [lambda text: text.replace("a: something", "a: some"), lambda text: text + "- the", lambda text: text[3:]],
    ids=["a cut line", "a tail", "a lost head"],
)
def test_a_damaged_report_is_torn(tmp_path: Path, damage: Callable[[str], str]) -> None:
    file = _full("report", tmp_path)
    file.write_text(damage(file.read_text()))
    assert count("report", tmp_path, 1, 3).torn > 0


def test_a_database_that_is_none_is_torn(tmp_path: Path) -> None:
    _full("rows", tmp_path).write_bytes(b"no database at all" * 100)
    assert count("rows", tmp_path, 1, 3) == demo.Outcome(expected=3, kept=0, lost=3, torn=1)


def test_unknown_words_are_named() -> None:
    with pytest.raises(ValueError, match=r"'jsn'.*json, log, report, rows"):
        kind_of("jsn")
    with pytest.raises(ValueError, match=r"'off'.*serialize, shard"):
        settings("off")


# -- the gate --------------------------------------------------------------------------------------------------------


def test_a_thread_and_a_coroutine_meet() -> None:
    gate = Gate("off", 10, patience=60)
    thread = threading.Thread(target=gate)
    thread.start()

    async def main() -> None:
        await asyncio.wait_for(gate.wait(), 30)

    asyncio.run(main())
    thread.join(30)
    assert not thread.is_alive()


def test_whoever_comes_alone_goes_on() -> None:
    gate = Gate("serialize", 10)
    for _ in range(3):
        gate()
    asyncio.run(gate.wait())
    assert gate._waiting is None


def test_the_last_call_does_not_wait() -> None:
    Gate("off", 1, patience=3600)()


def test_a_cancelled_wait_leaves_nobody_waiting() -> None:
    async def main() -> Gate:
        gate = Gate("off", 10, patience=3600)
        task = asyncio.create_task(gate.wait())
        await asyncio.sleep(0)
        assert gate._waiting is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return gate

    assert asyncio.run(main())._waiting is None
