"""The same from outside: strace kills, or fails, each system call of a commit and of its recovery, Python's own too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .scenario import Scene

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

CALLS = "openat,write,fsync,rename,unlink,mkdir,fchmod,close,ftruncate,pwrite64,fdatasync"
PROGRAM = """
import os, sys
from pathlib import Path
from crash.scenario import Scene
import filelock, sqlite3
scene = Scene(Path(sys.argv[1]))
os.getppid()  # the mark in the trace: what comes before is Python starting
getattr(scene if sys.argv[2] == "commit" else scene.journal, sys.argv[2])()
os.getppid()
"""


def traced(place: Path, what: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-qq", "-o", str(place) + ".trace", *options, sys.executable, "-B", "-c", PROGRAM]
    tests = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": ":".join([tests, *sys.path]), "PATH": "/usr/bin:/bin"}
    return subprocess.run([*command, str(place), what], env=environment, capture_output=True, text=True, check=False)


def points(place: Path, what: str) -> list[tuple[str, int]]:
    """(system call, its number in the process) of all calls between the two marks."""
    assert traced(place, what, "-e", f"trace={CALLS},getppid").returncode == 0
    counted: Counter[str] = Counter()
    inside, found = False, []
    for line in Path(str(place) + ".trace").read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match is None:
            continue
        name = match[1]
        if name == "getppid":
            inside = not inside
            continue
        counted[name] += 1
        if inside:
            found.append((name, counted[name]))
    return found


def fresh(place: Path) -> Scene:
    place.mkdir()
    return Scene(place).lay().write_sources()


@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_every_system_call_of_a_commit(root: Path, fault: str) -> None:
    fresh(root / "first")
    states: Counter[str] = Counter()
    for number, (name, at) in enumerate(points(root / "first", "commit")):
        scene = fresh(root / str(number))
        traced(scene.root, "commit", "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={at}")
        assert all(one.doubt is None for one in scene.journal.recover()), (name, at)
        states[scene.check()] += 1
    assert states["old"] > 10
    assert states["new"] > 10


@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO"])
def test_every_system_call_of_a_recovery(root: Path, fault: str) -> None:
    decided = root / "decided"
    fresh(decided)
    (rename, at) = [point for point in points(root / "decided", "commit") if point[0] == "rename"][-3]
    shutil.rmtree(decided)
    fresh(decided)
    traced(decided, "commit", "-e", f"trace={rename}", "-e", f"inject={rename}:signal=KILL:when={at}")
    assert Scene(decided).journal.pending()
    shutil.copytree(decided, root / "first")
    for number, (name, at) in enumerate(points(root / "first", "recover")):
        place = root / str(number)
        shutil.copytree(decided, place)
        traced(place, "recover", "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={at}")
        scene = Scene(place)
        assert all(one.doubt is None for one in scene.journal.recover()), (name, at)
        assert scene.check() == "new"
