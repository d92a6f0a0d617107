"""The same from outside: strace kills, or fails, each system call of a commit and of its recovery, SQLite's own too.

The scenes with a database have it open in this process, as another program has. The default run takes samples.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .scenario import SCENES, DatabaseScene, Scene


def works() -> bool:
    """Whether there is a strace, and it may trace."""
    command = ["strace", "-f", "-qq", "-e", "trace=exit_group", "true"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


pytestmark = [pytest.mark.timeout(3600), pytest.mark.skipif(not works(), reason="needs strace, allowed to trace")]

CALLS = "openat,write,fsync,rename,unlink,mkdir,fchmod,close,ftruncate,pwrite64,fdatasync"
READS = "read,pread64,fcntl,flock"  # these fail as well; a kill there finds what a kill at the next change finds
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
CASES = [  # (scene, fault, every so manyth system call)
    ("wal", "signal=KILL", 29),
    ("rollback", "signal=KILL", 29),
    *(pytest.param(kind, fault, 1, marks=pytest.mark.soak) for kind in SCENES for fault in FAULTS),
]
PROGRAM = """
import os, sys
from pathlib import Path
from agentguard.exceptions import InDoubt
from crash.scenario import SCENES
import filelock, sqlite3
scene = SCENES[sys.argv[3]](Path(sys.argv[1]))
os.getppid()  # the mark in the trace: what comes before is Python starting
outcome = "done"
try:
    getattr(scene if sys.argv[2] == "commit" else scene.journal, sys.argv[2])()
except InDoubt:
    outcome = "in doubt"
except OSError:
    outcome = "refused"
os.getppid()
print(outcome)
"""


def traced(scene: Scene, what: str, *options: str) -> subprocess.CompletedProcess[str]:
    trace = str(scene.root) + ".trace"
    kind = next(name for name, one in SCENES.items() if type(scene) is one)
    command = ["strace", "-f", "-qq", "-o", trace, *options, sys.executable, "-B", "-c", PROGRAM]
    environment = {"PYTHONPATH": ":".join([str(Path(__file__).parents[1]), *sys.path]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [*command, str(scene.root), what, kind], env=environment, capture_output=True, text=True, check=False
    )


def points(scene: Scene, what: str, calls: str = CALLS) -> list[tuple[str, int]]:
    """(system call, its number in the process) of all calls between the two marks."""
    with opened(scene):
        done = traced(scene, what, "-e", f"trace={calls},getppid")
    assert done.stdout == "done\n", done
    counted: Counter[str] = Counter()
    inside, found = False, []
    for line in Path(str(scene.root) + ".trace").read_text().splitlines():
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


def injected(scene: Scene, what: str, name: str, at: int, fault: str) -> str:
    """What the program said of itself; nothing when it was killed."""
    return traced(scene, what, "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={at}").stdout.strip()


@contextlib.contextmanager
def opened(scene: Scene) -> Iterator[sqlite3.Connection | None]:
    """A program that has had the scene's database open since before, and has read it."""
    if not isinstance(scene, DatabaseScene):
        yield None
        return
    with contextlib.closing(sqlite3.connect(scene.database, isolation_level=None)) as keeper:
        assert scene.rows(keeper) in ("old", "new")
        yield keeper


def fresh(place: Path, kind: str) -> Scene:
    place.mkdir()
    return SCENES[kind](place).lay().write_sources()


def seen(scene: Scene, keeper: sqlite3.Connection | None) -> None:
    """It is the very database that the other program has open, and that program sees all or nothing."""
    if keeper is not None and isinstance(scene, DatabaseScene):
        assert scene.rows(keeper) == scene.rows() in ("old", "new")
        keeper.execute("CREATE TABLE IF NOT EXISTS more (x)")
        with contextlib.closing(sqlite3.connect(scene.database)) as other:
            assert other.execute("SELECT count(*) FROM more").fetchone() == (0,)


@pytest.mark.parametrize(("kind", "fault", "stride"), CASES)
def test_every_system_call_of_a_commit(root: Path, kind: str, fault: str, stride: int) -> None:
    states: Counter[tuple[str, str]] = Counter()
    found = points(fresh(root / "first", kind), "commit", CALLS if "KILL" in fault else f"{CALLS},{READS}")
    for number, (name, at) in enumerate(found[::stride]):
        scene = fresh(root / str(number), kind)
        with opened(scene) as keeper:
            said = injected(scene, "commit", name, at, fault)
            if keeper is not None and number % 2:  # who reads first: the other program, or the recovery
                assert scene.rows(keeper) in ("old", "new")  # type: ignore[attr-defined]
            assert all(one.doubt is None for one in scene.journal.recover()), (name, at)
            state = scene.check()
            assert said in {"old": ("", "refused"), "new": ("", "in doubt", "done")}[state], (name, at)
            seen(scene, keeper)
        states[state, said] += 1
        shutil.rmtree(scene.root)
    print(f"\n{kind}, {fault}: {len(found)} system calls, {sum(states.values())} taken: {dict(states)}")
    assert {state for state, _ in states} == {"old", "new"}


@pytest.mark.parametrize(("kind", "fault", "stride"), CASES)
def test_every_system_call_of_a_recovery(root: Path, kind: str, fault: str, stride: int) -> None:
    decided = fresh(root / "decided", kind)
    renames = [point for point in points(fresh(root / "first", kind), "commit") if point[0] == "rename"]
    injected(decided, "commit", *renames[-3], "signal=KILL")
    assert decided.journal.pending()
    calls = CALLS if "KILL" in fault else f"{CALLS},{READS}"
    found = points(type(decided)(shutil.copytree(decided.root, root / "second")), "recover", calls)
    for number, (name, at) in enumerate(found[::stride]):
        scene = type(decided)(shutil.copytree(decided.root, root / str(number)))
        with opened(scene) as keeper:
            injected(scene, "recover", name, at, fault)
            if keeper is not None and number % 2:
                assert scene.rows(keeper) in ("old", "new")  # type: ignore[attr-defined]
            assert all(one.doubt is None for one in scene.journal.recover()), (name, at)
            assert scene.check() == "new"
            seen(scene, keeper)
        shutil.rmtree(scene.root)
    print(f"\n{kind}, {fault}: {len(found)} system calls of a recovery")
    assert len(found) > 20
