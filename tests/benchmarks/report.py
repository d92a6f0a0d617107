"""Interleaved rounds, and a section of RESULTS.md for each benchmark. Nothing is asserted: tables are for people."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def interleaved(work: Mapping[str, Callable[[], object]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds for one call of each, one figure a round; all take turns, so that a slow moment hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, fn in work.items():
            started = time.perf_counter()
            for _ in range(calls):
                fn()
            found[name].append((time.perf_counter() - started) / calls * 1e6)
    return found


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def machine(*packages: str) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"Python {platform.python_version()}", f"{platform.system()} {platform.release()}", f"{cores} cores"]
    parts += [f"{package} {version(package)}" for package in packages]
    return ", ".join(parts)


def publish(title: str, command: str, text: str, *packages: str) -> None:
    """Print a section, and put it into RESULTS.md in place of the older one of that title."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    section = f"## {title}\n\n`{command}`, {when}: {machine(*packages)}\n\n{text}\n"
    sys.stdout.write(section)
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Measured\n"
    pattern = re.compile(rf"## {re.escape(title)}\n.*?(?=\n## |\Z)", re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}"
    RESULTS.write_text(new, encoding="utf-8")
