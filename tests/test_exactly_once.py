"""Joins that are repeated, run twice at the same time, killed half-way and resumed: everything counts once."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash.faults import killed_at
from crash.joins import apart, guarding, lay, work, wrong

from agentguard.ledger import Ledger

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children"),
    pytest.mark.timeout(3600),
]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible: what is killed here are processes, not disks."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path.resolve()
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder).resolve()


def forked(body: Callable[[], object]) -> int:
    """The process id of a child that does `body`; it exits with 0 when that returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: no thread is left then
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def repeated(root: Path, run: str, rng: random.Random) -> None:
    for _ in range(3):
        guarding(root).join(run=run)


def in_two_threads(root: Path, run: str, rng: random.Random) -> None:
    meet, failed = threading.Barrier(2, timeout=20), []

    def join() -> None:
        guard = guarding(root)
        meet.wait()
        try:
            guard.join(run=run)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=join) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def in_two_processes(root: Path, run: str, rng: random.Random) -> None:
    ready, go = os.pipe(), os.pipe()

    def join() -> None:
        guard = guarding(root)
        os.write(ready[1], b".")
        os.read(go[0], 1)
        guard.join(run=run)

    children = [forked(join) for _ in range(2)]
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"..")
    assert [ended(child) for child in children] == [0, 0]
    for fd in (*ready, *go):
        os.close(fd)


def killed_at_a_call(root: Path, run: str, rng: random.Random) -> None:
    """Twice, at a call of its own each time; then two go on at once."""
    for _ in range(2):
        killed_at(rng.randint(1, 160), lambda: guarding(root).join(run=run))
    in_two_threads(root, run, rng)


def killed_at_random(root: Path, run: str, rng: random.Random) -> None:
    """Whenever the signal comes; another process may be joining the same run beside it."""
    victim, other = (forked(lambda: guarding(root).join(run=run)) for _ in range(2))
    time.sleep(rng.uniform(0, 0.06))
    os.kill(victim, signal.SIGKILL)
    ended(victim)
    assert ended(other) == 0
    guarding(root).join(run=run)


WAYS = (repeated, in_two_threads, in_two_processes, killed_at_a_call, killed_at_random)


def joined(root: Path, rounds: int, *, stop: bool = False) -> str | None:
    """What is wrong after that many runs of three agents, each joined in another way."""
    rng = random.Random(11)
    lay(root, database=False)
    runs: list[str] = []
    writer = guarding(root)
    for number in range(rounds):
        run = f"run{number}"
        runs.append(run)
        if number % 2:  # shards of this very process, which goes on with them after others have joined them
            work(writer, run, database=False)
        else:
            assert ended(forked(lambda: work(guarding(root), run, database=False))) == 0  # noqa: B023
        WAYS[number % len(WAYS)](root, run, rng)
        assert not writer.join(run=run), f"{run} was still open"
        if stop or number % 50 == 0:
            found = wrong(root, runs, database=False)
            if found is not None:
                return f"{found}, after {run}"
    writer.recover()
    status = writer.status()
    assert status.shards == status.pending == status.conflicts == status.damaged == ()
    assert not list(root.rglob(".agentguard-*"))
    return wrong(root, runs, database=False)


@pytest.mark.parametrize("rounds", [25, pytest.param(1000, marks=pytest.mark.soak)])
def test_every_shard_is_applied_exactly_once(root: Path, rounds: int) -> None:
    assert joined(root, rounds) is None


@pytest.mark.parametrize("mutant", [None, "content", "ledger"])
def test_a_join_that_dies_between_content_and_ledger(
    root: Path, mutant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is resumed as one; where the ledger was apart from the content, this notices."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if mutant is None:
        monkeypatch.setattr(Ledger, "add", die)
    else:
        apart(monkeypatch, mutant, die)
    lay(root, database=False)
    assert ended(forked(lambda: work(guarding(root), "run", database=False))) == 0
    assert ended(forked(lambda: guarding(root).join(run="run"))) == -signal.SIGKILL
    monkeypatch.undo()
    guarding(root).join(run="run")
    assert (wrong(root, ["run"], database=False) is None) == (mutant is None)
