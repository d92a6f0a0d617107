"""One guarded call around an empty body, nobody else about: `python tests/benchmarks/bench_call.py`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from filelock import FileLock
from report import interleaved, median, publish, table

from agentguard import Guard, atomic_write, path


def calls(folder: Path) -> None:
    guard = Guard(root=folder)
    (folder / "store.json").write_text("{}")
    thread_lock, file_lock = threading.Lock(), FileLock(folder / "peer.lock")

    def bare() -> None:
        with thread_lock:
            pass

    def peer() -> None:
        with file_lock:
            pass

    def hold() -> None:
        with guard.hold(writes="store.json"):
            pass

    def key() -> None:
        with guard.hold(writes="db:orders/42"):
            pass

    wrapped = guard.wrap(lambda: None, writes="store.json", name="tool")
    template = guard.wrap(lambda name: None, writes="{name}.json", name="tool")
    work = {
        "threading.Lock": bare,
        "filelock.FileLock": peer,
        "guard.hold(writes=file)": hold,
        "guard.hold(writes=key)": key,
        "guard.wrap(fn, writes=file)": wrapped,
        "guard.wrap(fn, writes='{name}.json')": lambda: template("store"),
    }
    found = interleaved(work, rounds=9, calls=1000)
    against = median(found["filelock.FileLock"])
    rows = [
        (name, f"{median(values):.1f}", f"{max(values):.1f}", f"{against / median(values):.2f}x")
        for name, values in found.items()
    ]
    publish(
        "One guarded call, empty body, uncontended",
        "python tests/benchmarks/bench_call.py",
        table(("", "us, median of 9 rounds", "us, slowest round", "cheaper than FileLock"), rows),
        "filelock",
    )


def commits(folder: Path) -> None:
    guard = Guard(root=folder)
    data = "x" * 2048
    (folder / "a.txt").write_text(data)
    tool = guard.wrap(lambda: path("a.txt").write_text(data + "y"), updates="a.txt", name="tool")
    loose = Guard(root=folder, durable=False)
    fast = loose.wrap(lambda: path("a.txt").write_text(data + "z"), updates="a.txt", name="tool")
    work = {
        "atomic_write (flush and rename)": lambda: atomic_write(folder / "b.txt", data),
        "guarded call that writes through path()": tool,
        "the same, durable = false": fast,
        "plain write_text": lambda: (folder / "c.txt").write_text(data),
    }
    found = interleaved(work, rounds=7, calls=100)
    rows = [(name, f"{median(values):.0f}", f"{max(values):.0f}") for name, values in found.items()]
    publish(
        "One guarded call that replaces a 2 kB file",
        "python tests/benchmarks/bench_call.py",
        table(("", "us, median of 7 rounds", "us, slowest round"), rows),
    )


def starts() -> None:
    rows = []
    for name, command in {
        "import agentguard": [sys.executable, "-c", "import agentguard"],
        "import nothing": [sys.executable, "-c", "pass"],
        "agentguard --help": [sys.executable, "-m", "agentguard", "--help"],
    }.items():
        found = interleaved(
            {name: lambda command=command: subprocess.run(command, check=True, capture_output=True)}, rounds=9, calls=1
        )[name]
        rows.append((name, f"{median(found) / 1000:.0f}", f"{max(found) / 1000:.0f}"))
    publish(
        "Starting",
        "python tests/benchmarks/bench_call.py",
        table(("whole process", "ms, median of 9", "ms, slowest"), rows),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "calls").mkdir()
        calls(Path(name) / "calls")
        (Path(name) / "commits").mkdir()
        commits(Path(name) / "commits")
    starts()
