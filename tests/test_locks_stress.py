"""Processes that are killed, threads that give up, tasks that are cancelled: exclusion, rising tokens, progress.

The default run is short; `pytest -m soak` runs it for minutes. Each scene is run with a protection taken away as
well, and must then fail.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentguard.locks import FileBackend, LockTable, Mode, wait
from agentguard.testing import caller

WORKER = Path(__file__).parent / "locks_stress" / "worker.py"
MODES = list(Mode)


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """However a test ends, its workers end with it."""
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            kill(process)


def start(folder: Path, scene: str, seconds: float, seed: int, mutant: str = "") -> subprocess.Popen[str]:
    """A worker that says when it is ready; `go` makes it begin."""
    arguments = [str(folder), scene, str(seconds), str(seed), mutant]
    process = subprocess.Popen(
        [sys.executable, str(WORKER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    return process


def expect(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(word), f"{line!r} instead of {word!r}"
    return line


def begin(*processes: subprocess.Popen[str]) -> None:
    """Have workers begin, once all of them are ready."""
    for process in processes:
        expect(process, "ready")
    for process in processes:
        go(process)


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def stop(process: subprocess.Popen[str]) -> str:
    """Its last words; its input stays open until then, as its end would end it."""
    assert process.stdout is not None
    out = process.stdout.read()
    process.communicate(timeout=60)
    assert process.returncode == 0
    return out


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


def violations(folder: Path, killed: set[int]) -> list[str]:
    """What the journal shows of two that were in at once, or of a token that did not rise."""
    inside: dict[tuple[int, int], Mode] = {}
    found, last = [], 0
    for line in (folder / "journal").read_text().splitlines():
        sign, *numbers = line.split()
        pid, number, mode, token = map(int, numbers)
        if sign == "-":
            inside.pop((pid, number), None)
            continue
        mine = MODES[mode]
        for (other, _), theirs in [*inside.items()]:
            if not mine.compatible(theirs):
                if other in killed:  # it was killed before it could write that it went
                    inside = {key: value for key, value in inside.items() if key[0] != other}
                else:
                    found.append(f"{line}: {theirs} of {other} is still in")
        inside[pid, number] = mine
        if mine is Mode.EXCLUSIVE:
            if token <= last:
                found.append(f"{line}: token after {last}")
            last = token
    return found


def free(folder: Path) -> bool:
    table = LockTable(FileBackend(folder / "locks"))
    ticket = table.request(caller(), "file:d/", Mode.EXCLUSIVE)
    granted = wait(ticket, 5)
    table.release(ticket)
    table.close()
    return granted


def killing(folder: Path, scene: str, kills: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    killed: set[int] = set()
    at_work = [start(folder, scene, 600, seed + number) for number in range(3)]
    spare = [start(folder, scene, 600, seed + 3)]
    begin(*at_work)
    for number in range(kills):
        spare.append(start(folder, scene, 600, seed + 4 + number))
        begin(spare[0])
        at_work.append(spare.pop(0))
        victim = at_work.pop(chance.randrange(len(at_work)))
        killed.add(victim.pid)
        kill(victim)
    for process in (*at_work, *spare):
        killed.add(process.pid)
        kill(process)
    return violations(folder, killed)


@pytest.mark.parametrize("scene", ["threads", "modes"])
def test_killing(tmp_path: Path, scene: str) -> None:
    assert killing(tmp_path, scene, 5, 1) == []
    assert free(tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scene", ["threads", "modes"])
def test_killing_for_long(tmp_path: Path, scene: str) -> None:
    assert killing(tmp_path, scene, 250, 7) == []
    assert free(tmp_path)


def cancelling(folder: Path, seconds: float, mutant: str = "") -> tuple[int, list[str]]:
    processes = [start(folder, "tasks", seconds, seed, mutant) for seed in range(2)]
    begin(*processes)
    cancelled = sum(int(stop(process).split()[-1]) for process in processes)
    return cancelled, violations(folder, set())


def test_cancelling(tmp_path: Path) -> None:
    cancelled, found = cancelling(tmp_path, 1.0)
    assert found == []
    assert cancelled > 50
    assert free(tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_cancelling_for_long(tmp_path: Path) -> None:
    cancelled, found = cancelling(tmp_path, 60.0)
    assert found == []
    assert cancelled > 10_000
    assert free(tmp_path)


@pytest.mark.parametrize("mutant", ["", "no release on cancel"])
def test_without_release_on_cancel_the_lock_is_lost(tmp_path: Path, mutant: str) -> None:
    process = start(tmp_path, "tasks", 600, 1, mutant)
    begin(process)
    table = LockTable(FileBackend(tmp_path / "locks"))
    lost = False
    end = time.monotonic() + (20 if mutant else 0.5)
    while not lost and time.monotonic() < end:
        ticket = table.request(caller(), "file:d/", Mode.EXCLUSIVE)
        lost = not wait(ticket, 2.0)
        table.release(ticket)
    kill(process)
    assert lost == bool(mutant)
    table.close()


def shares(folder: Path) -> list[int]:
    processes = [start(folder, "turns", 0.7, seed) for seed in range(3)]
    begin(*processes)
    return [int(stop(process).split()[-1]) for process in processes]


def jain(counts: list[int]) -> float:
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


def test_processes_take_turns(tmp_path: Path) -> None:
    counts = shares(tmp_path)
    assert jain(counts) > 0.9, counts


def test_the_next_holds_when_the_holder_is_killed(tmp_path: Path) -> None:
    holder, first, second = (start(tmp_path, scene, 0, 0) for scene in ("hold", "wait", "wait"))
    begin(holder)
    token = int(expect(holder, "held").split()[1])
    begin(first)
    expect(first, "waiting False")
    begin(second)
    expect(second, "waiting False")
    kill(first)  # a waiter that dies is no obstacle either
    kill(holder)
    assert int(expect(second, "held").split()[1]) > token
    go(second)
    stop(second)
