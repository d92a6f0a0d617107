"""kill -9 before every system call of a commit and of its recovery."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

from agentguard.commit import Journal, Replace, atomic_write
from agentguard.home import Home, home_at

from .faults import killed_at
from .scenario import MARKS, NEW, OLD, Scene

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


def fresh(folder: Path) -> Scene:
    folder.mkdir()
    return Scene(folder).lay().write_sources()


@pytest.mark.parametrize("durable", [True, False])
def test_a_commit_that_is_killed_anywhere_is_all_or_nothing(root: Path, durable: bool) -> None:
    states: Counter[str] = Counter()
    for at in range(1, 500):
        scene = fresh(root / str(at))
        killed = killed_at(at, functools.partial(scene.commit, durable=durable))
        decided = bool(scene.journal.pending())
        found = scene.journal.recover()
        assert len(found) == decided
        assert all(one.doubt is None for one in found)
        state = scene.check()
        assert state == "new" if decided or not killed else True
        states[state] += 1
        assert scene.journal.recover() == ()
        if not killed:
            break
    else:
        raise AssertionError("the commit did not end")
    assert states["old"] > 10
    assert states["new"] > 5


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_a_recovery_that_is_killed_anywhere_is_finished_by_the_next(root: Path, stride: int) -> None:
    kills = 0
    for at in range(1, 500, stride):
        origin = fresh(root / str(at))
        if not killed_at(at, origin.commit):
            break
        for again in range(1, 500):
            folder = root / f"{at}-{again}"
            shutil.copytree(origin.root, folder, symlinks=True)
            scene = Scene(folder)
            expected = "new" if scene.journal.pending() else scene.state()
            killed = killed_at(again, scene.journal.recover)
            assert all(one.doubt is None for one in scene.journal.recover())
            assert scene.check() == expected
            shutil.rmtree(folder)
            if not killed:
                break
            kills += 1
    assert kills > 30


@pytest.mark.parametrize("how", ["atomic_write", "commit"])
def test_one_file_that_is_killed_anywhere_is_old_or_new(root: Path, how: str) -> None:
    seen = set()
    for at in range(1, 100):
        scene = fresh(root / str(at))
        target, new = scene.root / "a.json", NEW["a.json"]
        assert new is not None
        if how == "atomic_write":
            work = functools.partial(atomic_write, target, new)
        else:
            work = functools.partial(scene.journal.commit, [Replace(target, scene.source("a.json"))])
        killed = killed_at(at, work)
        seen.add(target.read_bytes())
        assert target.read_bytes() in (OLD["a.json"], new)
        assert target.stat().st_mode & 0o777 == 0o640
        assert not scene.journal.pending()
        if not killed:
            break
    assert target.read_bytes() == new
    assert seen == {OLD["a.json"], new}


def test_a_volume_that_is_mounted_elsewhere_recovers(root: Path) -> None:
    moves = 0
    for at in range(1, 500):
        here, there = root / f"here-{at}", root / f"there-{at}"
        scene = fresh(here)
        killed = killed_at(at, scene.commit)
        decided = bool(scene.journal.pending())
        here.rename(there)
        moved = Scene(there)
        assert len(moved.journal.recover()) == decided
        moved.check()
        moves += decided
        if not killed:
            break
    assert moves > 5


def test_a_live_commit_is_left_alone_by_a_recovery_without_locks(root: Path) -> None:
    """The committer stands in its marks, between the commit point and the end; then it is killed."""
    scene = fresh(root / "w")
    program = (
        "import sys\nfrom pathlib import Path\nfrom agentguard.commit import *\n"
        "root, stage = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "def mark(ids):\n    print('decided', flush=True)\n    sys.stdin.read()\n"
        "journal = Journal(root / '.agentguard/journal', root=root, marks=mark)\n"
        "journal.commit([Replace(root / 'a.json', stage / 'a.json'), Replace(root / 'b.md', stage / 'b.md')], "
        "marks=['shard-1'])\n"
    )
    command = [sys.executable, "-c", program, str(scene.root), str(scene.stage)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decided\n"
        assert scene.journal.recover() == ()
        (pending,) = scene.journal.inspect()
        assert pending.live
        assert set(pending.targets) == {scene.root / "a.json", scene.root / "b.md"}
        process.kill()
        process.wait()
    assert [one.live for one in scene.journal.inspect()] == [False]
    (found,) = scene.journal.recover(only=[scene.root / "b.md"])
    assert found.marks == ("shard-1",)
    assert scene.ledger.contains(MARKS) == {"shard-1"}
    assert (scene.root / "a.json").read_bytes() == NEW["a.json"]


def test_a_fork_does_not_keep_its_dead_parents_commit_alive(root: Path) -> None:
    """The child of a committer lives on; the committer's death must be seen all the same."""
    scene = fresh(root / "w")
    read, write = os.pipe()
    ready, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
        committer = os.fork()
    if committer == 0:
        try:
            os.close(write)

            def mark(ids: object) -> None:
                if os.fork() == 0:
                    os.write(tell, b".")
                    os.read(read, 1)  # until the test is over
                    os._exit(0)
                os.read(ready, 1)
                os._exit(0)  # the committer dies between the commit point and the end

            Journal(scene.home / "journal", root=scene.root, marks=mark).commit(
                [Replace(scene.root / "a.json", scene.source("a.json"))], marks=["shard-1"]
            )
        finally:
            os._exit(1)
    for fd in (read, ready, tell):
        os.close(fd)
    try:
        assert os.waitpid(committer, 0)[1] == 0
        assert len(scene.journal.recover()) == 1
        assert scene.ledger.contains(["shard-1"]) == {"shard-1"}
    finally:
        os.close(write)


def test_the_next_start_finishes_or_takes_back_what_a_kill_left(root: Path) -> None:
    seen: Counter[str] = Counter()
    for at in range(1, 500):
        place = root / str(at)
        place.mkdir()
        (place / ".agentguard").mkdir(mode=0o700)
        (place / "a.json").write_text("1")

        def commit(place: Path = place) -> None:
            home = Home(place)
            stage = home.stage_folder()
            changes = []
            for name in ("a.json", "b.json"):
                (stage / name).write_text("2")
                changes.append(Replace(place / name, stage / name))
            home.journal.commit(changes)

        killed = killed_at(at, commit)
        home_at(place)
        content = {file.name: file.read_text() for file in place.iterdir() if file.is_file()}
        assert content in ({"a.json": "1"}, {"a.json": "2", "b.json": "2"}), at  # nothing half, and no temporary file
        seen["new" if "b.json" in content else "old"] += 1
        if not killed:
            break
    assert min(seen["old"], seen["new"]) > 5
