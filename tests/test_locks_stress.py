"""Processes that are killed, threads that give up, tasks that are cancelled: exclusion, rising tokens, progress.

The default run is short; `pytest -m soak` does hundreds of kills and tens of thousands of cancels and time-outs. Each
protection is taken away as well: the scene it is there for must then fail.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from locks_stress.journal import Journal, Watch
from locks_support import file_of, staged

from agentguard.locks import FileBackend, LockTable, Mode, wait
from agentguard.testing import caller

WORKER = Path(__file__).parent / "locks_stress" / "worker.py"
X = Mode.EXCLUSIVE
SOON = 3.0  # seconds: what is free is had much sooner

started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """However a test ends, its workers end with it."""
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            kill(process)


def start(folder: Path, scene: str, seed: int = 0, mutant: str = "") -> subprocess.Popen[str]:
    """A worker that says when it is ready; `go` makes it begin, and end."""
    arguments = [str(folder), scene, str(seed), mutant]
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


def leave(*processes: subprocess.Popen[str]) -> None:
    """What has done its scene still lives until its input ends."""
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


def free(folder: Path, keys: set[str]) -> bool:
    """Whether somebody else, who has seen nothing of what was, gets every key for itself."""
    table, claim = LockTable(FileBackend(folder)), caller()
    granted = all(wait(table.request(claim, key, X), SOON) for key in sorted(keys))
    table.release_all(claim)
    table.close()
    return granted


def stress(
    folder: Path, scene: str, *, seconds: float = 0.5, kills: int = 0, gave_up: int = 0, seed: int = 1, mutant: str = ""
) -> Watch:
    """Three processes at one scene, until there was enough of everything, or a violation.

    Killed ones are replaced by new ones. In the end the locks must be free: while the processes still live and hold
    nothing, and when they are gone.
    """
    chance = random.Random(seed)
    journal = Journal(folder)
    watch = Watch(folder)
    at_work = [start(folder, scene, seed + number, mutant) for number in range(3)]
    spare = [start(folder, scene, seed + 3, mutant)] if kills else []
    begin(*at_work)
    enough = time.monotonic() + seconds
    while not watch.found and (
        time.monotonic() < enough or watch.counts["k"] < kills or watch.counts["t"] + watch.counts["c"] < gave_up
    ):
        if watch.counts["k"] < kills:
            spare.append(start(folder, scene, seed + 4 + watch.counts["k"], mutant))
            begin(spare[0])
            at_work.append(spare.pop(0))
            victim = at_work.pop(chance.randrange(len(at_work)))
            journal.note("k", 0, "-", X, pid=victim.pid)
            kill(victim)
        else:
            time.sleep(0.02)
        watch.look()
    for process in at_work:
        go(process)
    for process in at_work:
        expect(process, "done")
    watch.look()
    if not watch.found:
        watch.free = all(free(folder / name, keys) for name, keys in watch.keys.items())
        leave(*at_work)
        watch.free = watch.free and all(free(folder / name, keys) for name, keys in watch.keys.items())
    for process in (*at_work, *spare):
        kill(process)
    watch.close()
    journal.close()
    return watch


SCENES = ["threads", "modes", "tasks", "files", "calls", "calls that follow"]


@pytest.mark.parametrize("scene", SCENES)
def test_stress(tmp_path: Path, scene: str) -> None:
    seen = stress(tmp_path, scene, kills=4, gave_up=50)
    assert seen.found == []
    assert seen.free


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_stress_for_long(tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    for scene in SCENES:
        folder = tmp_path / scene
        folder.mkdir()
        began = time.monotonic()
        seen = stress(folder, scene, seconds=30, kills=60, gave_up=5000, seed=7)
        assert seen.found == []
        assert seen.free
        counts = seen.counts + Counter(inside=seen.killed_inside, waiting=seen.killed_waiting, folders=len(seen.keys))
        print(f"{scene}: {dict(counts)} in {time.monotonic() - began:.0f} s")
        total += counts
        shutil.rmtree(folder)
    assert total["k"] >= 200
    assert total["inside"] > 20
    assert total["waiting"] > 20
    assert total["t"] + total["c"] >= 20_000
    assert total["t"] > 1000
    assert total["c"] > 1000


@pytest.mark.parametrize(
    ("mutant", "scene", "sign"),
    [
        ("no turnstile", "line", "was passed"),
        ("no inode check", "files", "is still in|token after"),
        ("no look at the mark", "calls", "is still in"),
        ("no waiting beneath", "calls", "is still in"),
    ],
)
def test_without_a_protection(tmp_path: Path, mutant: str, scene: str, sign: str) -> None:
    """The scene that a protection is there for shows when it is not there."""
    seen = stress(tmp_path, scene, seconds=60, mutant=mutant)
    assert re.search(sign, "\n".join(seen.found))


def test_without_release_on_cancel_the_lock_is_lost(tmp_path: Path) -> None:
    seen = stress(tmp_path, "tasks", seconds=0, gave_up=50, mutant="no release on cancel")
    assert seen.found == []
    assert not seen.free


def test_processes_take_turns(tmp_path: Path) -> None:
    """Nobody passes a process that stands in line."""
    seen = stress(tmp_path, "line")
    assert seen.found == []
    assert seen.counts["l"] > 20
    shares = seen.entries.values()
    assert sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares)) > 0.9, shares


def test_the_next_holds_when_the_holder_is_killed(tmp_path: Path) -> None:
    holder, first, second = (start(tmp_path, "db:a") for _ in range(3))
    begin(holder)
    expect(holder, "waiting False")
    token = int(expect(holder, "held").split()[1])
    begin(first)
    expect(first, "waiting True")
    begin(second)
    expect(second, "waiting True")
    kill(first)  # a waiter that dies is no obstacle either
    kill(holder)
    assert int(expect(second, "held").split()[1]) > token
    go(second)
    expect(second, "done")
    leave(second)


def test_one_that_waited_for_what_lies_beneath_is_killed(tmp_path: Path) -> None:
    """It has marked the directory, which stays so: the next one finishes what it began."""
    beneath, first, second = start(tmp_path, "file:d/a"), start(tmp_path, "file:d/"), start(tmp_path, "file:d/")
    begin(beneath)
    expect(beneath, "waiting False")
    expect(beneath, "held")
    begin(first)
    expect(first, "waiting True")
    staged(tmp_path / "locks", "file:d/a")
    mark = file_of(tmp_path / "locks", "file:d/").with_suffix(".dir")
    kill(first)
    assert mark.read_bytes() == b""
    begin(second)
    expect(second, "waiting True")
    go(beneath)
    expect(beneath, "done")
    expect(second, "held")
    assert mark.read_bytes() != b""
    go(second)
    expect(second, "done")
    leave(beneath, second)
