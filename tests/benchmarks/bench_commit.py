"""What a durable commit costs beside the same system calls done by hand: `python tests/benchmarks/bench_commit.py`.

The folder must be on a real disk (`BENCH_FOLDER`, else beside this repository): in memory a flush costs nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import publish, table

from agentguard import Guard, atomic_write
from agentguard.commit import Journal, Replace

COMMAND = "python tests/benchmarks/bench_commit.py"
DATA = b"x" * 2000
ROUNDS = 600


def by_hand(file: str, data: bytes) -> None:
    """Write, fsync, rename, fsync of the folder."""
    temp = file + ".tmp"
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(temp, file)
    folder = os.open(os.path.dirname(file), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def committing(folder: Path, count: int, *, marks: bool = False) -> Callable[[], None]:
    """Files that are already written become others by one commit, as at the end of a guarded call."""
    made: list[str] = []
    journal = Journal(folder / "journal", root=folder, marks=made.extend)
    stage = folder / "stage"
    stage.mkdir(parents=True)
    changes = [Replace(folder / f"{n}.json", stage / f"{n}.json") for n in range(count)]

    def commit() -> None:
        for change in changes:
            fd = os.open(change.source, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, DATA)
            os.close(fd)
        journal.commit(changes, marks=["a mark"] if marks else ())

    return commit


def hand(folder: Path, count: int) -> Callable[[], None]:
    folder.mkdir()
    files = [str(folder / f"{n}.json") for n in range(count)]
    return lambda: [by_hand(file, DATA) for file in files] and None


def updating(folder: Path) -> Callable[[], None]:
    folder.mkdir()
    guard = Guard(root=folder)
    guard.write("store.json", {"items": {str(n): "x" * 20 for n in range(55)}, "n": 0})  # about 2 kB

    def add(value: dict[str, int]) -> dict[str, int]:
        return {**value, "n": value["n"] + 1}

    return lambda: guard.update("store.json", add)


def writing(folder: Path) -> Callable[[], None]:
    folder.mkdir()
    return lambda: atomic_write(folder / "a.json", DATA)


def measured(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of every single call; all take turns, each round beginning with another one."""
    found: dict[str, list[float]] = {name: [] for name in work}
    order = list(work)
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            started = time.perf_counter()
            work[name]()
            found[name].append((time.perf_counter() - started) * 1e6)
    return found


def main() -> None:
    place = os.environ.get("BENCH_FOLDER") or Path(__file__).resolve().parents[2].parent
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory(dir=place) as made:
        folder = Path(made)
        work = {
            "by hand": hand(folder / "hand", 1),
            "atomic_write": writing(folder / "atomic"),
            "Journal.commit, 1 file": committing(folder / "one", 1),
            "Journal.commit, 1 file and a mark": committing(folder / "mark", 1, marks=True),
            "guard.update of a JSON store": updating(folder / "update"),
            "by hand, 3 files one by one": hand(folder / "hand3", 3),
            "Journal.commit, 3 files": committing(folder / "three", 3),
            "by hand, 10 files one by one": hand(folder / "hand10", 10),
            "Journal.commit, 10 files": committing(folder / "ten", 10),
        }
        for fn in work.values():
            fn()
        found = measured(work, rounds)
    rows, peer = [], 0.0
    for name, times in found.items():
        middle = statistics.median(times)
        if name.startswith("by hand"):
            peer = middle
        rows.append((name, f"{middle:.0f}", f"{statistics.quantiles(times, n=100)[98]:.0f}", f"{middle / peer:.2f}x"))
    publish(
        "A durable commit of files of 2 kB",
        COMMAND,
        table(("", f"us, median of {rounds}", "us, 99th percentile", "beside by hand"), rows),
    )


if __name__ == "__main__":
    main()
