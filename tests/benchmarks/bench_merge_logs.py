"""Big logs merged from files: `python tests/benchmarks/bench_merge_logs.py [MB] [FOLDER]`. Needs 12 times MB.

Two shards of one log, each with a hundredth of it added, against a copy of as many bytes as the result has, made with
`shutil.copyfile` and flushed. Then the whole join, and what of it goes where. And the memory of a join, in a process of
its own (`memory FOLDER MB`).
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from report import median, publish, table

from agentguard import Guard, commit, disk, join
from agentguard.logfiles import concatenate
from agentguard.shards import Shards

MB = 1 << 20
ROUNDS = 3
LINE = b'{"ts": "2025-01-01T00:00:00Z", "agent": "researcher", "event": "step", "n": 123456}\n'


def grow(file: Path, size: int) -> None:
    block = LINE * (MB // len(LINE))
    with open(file, "ab") as opened:
        for _ in range(size // len(block)):
            opened.write(block)
        opened.write(LINE)


def flush(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def shards(guard: Guard, name: str, size: int) -> None:
    for agent in ("a", "b"):
        with guard.agent(agent), guard.hold(updates=name) as hold:
            grow(hold.path(name), size // 100)


def memory(folder: Path, size: int) -> None:
    """MB that a join makes the process grow by, and MB of the log."""
    guard = Guard(root=folder, resources={"*.log": {"mode": "shard"}})
    for name in ("small.log", "big.log"):  # the small one imports everything that a join imports
        grow(folder / name, size if name == "big.log" else 8 * MB)
        shards(guard, name, size)
        tracemalloc.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        guard.join()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    print(max(grown, traced) / MB, (folder / "big.log").stat().st_size / MB)


class Parts:
    """The seconds that functions take, by name, while they are watched."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []
        self.inside = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        spent: dict[str, float] = {}
        places: list[tuple[Any, str, str]] = [
            (join, "concatenate", "merge: written, compared and flushed"),
            (commit, "_content", "a hash of what was there"),
            (disk, "digest", "a hash of the result"),
            (disk, "flush", "flushes"),
            (disk, "flush_folders", "flushes"),
            (Shards, "finish", "shards removed"),
        ]
        with ExitStack() as stack:
            for module, name, title in places:
                stack.enter_context(mock.patch.object(module, name, self._timed(getattr(module, name), spent, title)))
            started = time.perf_counter()
            yield
            whole = time.perf_counter() - started
        self.rounds.append({**spent, "the rest": whole - sum(spent.values())})

    def _timed(self, function: Callable[..., Any], spent: dict[str, float], title: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if self.inside:  # its time is that of the one that called it
                return function(*arguments, **named)
            self.inside, started = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.inside = False
                spent[title] = spent.get(title, 0.0) + time.perf_counter() - started

        return timed

    def lines(self) -> list[str]:
        return [f"{title} {median([one.get(title, 0.0) for one in self.rounds]):.2f} s" for title in self.rounds[0]]


def speed(folder: Path, size: int) -> str:
    base, out = folder / "base", folder / "out"
    grow(base, size)
    sides = {agent: folder / agent for agent in ("(current)", "a", "b")}
    for agent, file in sides.items():
        shutil.copyfile(base, file)
        if agent != "(current)":
            grow(file, size // 100)
    assert concatenate(base, sides, out) is not None
    second = folder / "second"  # each shard has its own copy of the base
    shutil.copyfile(base, second)
    whole = folder / "whole"
    out.rename(whole)
    os.sync()

    guard = Guard(root=folder, resources={"*.log": {"mode": "shard"}})
    log = folder / "run.log"

    def copy() -> None:
        shutil.copyfile(whole, out)
        flush(out)

    def plain() -> None:
        with open(out, "wb") as target:
            for number, file in enumerate((sides["a"], sides["b"])):
                with open(file, "rb") as source:
                    source.seek(base.stat().st_size if number else 0)
                    shutil.copyfileobj(source, target, MB)
        flush(out)

    def merge() -> None:
        assert concatenate(base, sides, out, copies=[second], durable=True) is not None

    parts = Parts()
    found: dict[str, list[float]] = {name: [] for name in ("copy", "plain", "merge", "join")}
    for _ in range(ROUNDS):
        for name, work in (("copy", copy), ("plain", plain), ("merge", merge)):
            found[name].append(timed(work))
            out.unlink()
            os.sync()
        shutil.copyfile(base, log)
        shards(guard, "run.log", size)
        os.sync()
        with parts.watched():
            found["join"].append(timed(guard.join))
        log.unlink()
        os.sync()
    total = whole.stat().st_size / MB
    against = median(found["copy"])
    titles = {
        "copy": "shutil.copyfile and fsync",
        "plain": "concatenation by hand and fsync, nothing compared",
        "merge": "concatenate, all sides compared with the base, and fsync",
        "join": "guard.join: the same, two hashes and the commit",
    }
    rows = [
        (
            titles[name],
            f"{median(times):.2f}",
            f"{max(times):.2f}",
            f"{total / median(times):.0f}",
            f"{against / median(times) * 100:.0f} %",
        )
        for name, times in found.items()
    ]
    head = (f"a log of {total:.0f} MB, two shards", f"s, median of {ROUNDS}", "s, slowest", "MB/s", "of a plain copy")
    return f"{table(head, rows)}\n\nOf the join: {', '.join(parts.lines())}."


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        memory(Path(sys.argv[2]), int(sys.argv[3]) * MB)
        return
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    where = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        text = speed(Path(folder), size * MB)
    with tempfile.TemporaryDirectory(dir=where) as folder:
        command = [sys.executable, __file__, "memory", folder, str(size)]
        grown, _ = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    text += f"\n\nMemory of a join of {size} MB: {float(grown):.1f} MB more than before it."
    publish("Merging big logs", f"python tests/benchmarks/bench_merge_logs.py {size}", text)


if __name__ == "__main__":
    main()
