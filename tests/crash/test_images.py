"""Power loss on real file systems: a loop image is cut off in the middle of a commit, and mounted again.

Killing the committer and shutting the file system down before it writes anything back is a power loss at that system
call. With its log flushed, names are kept and unflushed content is lost; without, everything is that was not flushed.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentguard import atomic_write, disk
from agentguard.exceptions import InDoubt

from .faults import killed_at, raising
from .scenario import MARKS, NEW, OLD, SCENES, Scene
from .test_strace import injected, points, works

SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN of linux/fs.h
CUTS = {"names are kept": 1, "all is lost": 2}  # EXT4_/XFS_FSOP_GOING_FLAGS_LOGFLUSH, _NOLOGFLUSH
SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts images"),
]


class Volume:
    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.image, self.place = folder / "image", folder / "mounted"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(SIZES[kind])
        subprocess.run([f"mkfs.{kind}", "-q", str(self.image)], check=True, capture_output=True)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.place)], check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.place)], check=True, capture_output=True)

    def settle(self) -> None:
        """What was written until now survives."""
        subprocess.run(["sync", "-f", str(self.place)], check=True)

    def cut(self, how: str) -> None:
        import fcntl

        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", CUTS[how]))
        finally:
            os.close(fd)
        self.unmount()
        self.mount()


@pytest.fixture(params=SIZES)
def volume(request: pytest.FixtureRequest, root: Path) -> Iterator[Volume]:
    if shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"needs mkfs.{request.param}")
    try:
        made = Volume(root, request.param)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop images here: {error.stderr!r}")
    try:
        yield made
    finally:
        made.unmount()


def laid(volume: Volume, kind: str) -> Scene:
    place = volume.place / "w"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    scene = SCENES[kind](place).lay()
    scene.ledger.add(["an older shard"])
    (scene.home / "journal").mkdir(mode=0o700)
    volume.settle()
    return scene


def judged(scene: Scene) -> str:
    """What is there after a power loss and a recovery. Unflushed temporary files may be left, a wrong content not."""
    try:
        if any(one.doubt is not None for one in scene.journal.recover()):
            return "in doubt"
        state = scene.state()
    except (OSError, AssertionError) as error:
        return f"broken: {error!r}"
    if (scene.root / "a.json").stat().st_mode & 0o777 != 0o640:
        return "mode lost"
    if scene.ledger.contains([*MARKS, "an older shard"]) != ({*MARKS} if state == "new" else set()) | {
        "an older shard"
    }:
        return "mixed"
    return "mixed" if scene.journal.pending() else state


def everywhere(volume: Volume, cut: str, work: Callable[[Scene], object], *, stop: bool = False) -> Counter[str]:
    """Power loss before each of the calls that change something, and after the last one."""
    states: Counter[str] = Counter()
    for at in range(1, 1000):
        scene = laid(volume, "files")
        killed = killed_at(at, lambda: work(scene))  # noqa: B023
        volume.cut(cut)
        state = judged(scene)
        if not killed and state != "new":
            state = f"{state} after it had returned"
        states[state] += 1
        if not killed or (stop and state not in ("old", "new")):
            return states
    raise AssertionError("the commit did not end")


def commit(scene: Scene) -> None:
    scene.write_sources().commit()


@pytest.mark.parametrize("cut", CUTS)
def test_a_commit_survives_power_loss_at_every_call(volume: Volume, cut: str) -> None:
    states = everywhere(volume, cut, commit)
    sys.stdout.write(f"\n{cut}: {dict(states)}\n")
    assert set(states) == {"old", "new"}
    assert min(states.values()) > 5


@pytest.mark.parametrize("cut", CUTS)
def test_a_recovery_survives_power_loss_at_every_call(volume: Volume, cut: str) -> None:
    def decided() -> Scene:
        """Committed, but nothing of it done."""
        scene = laid(volume, "files").write_sources()
        scene.journal._apply = lambda *_: raising(errno.EIO)("apply")  # type: ignore[method-assign]
        with pytest.raises(InDoubt):
            scene.commit()
        return Scene(scene.root)

    states: Counter[str] = Counter()
    for at in range(1, 1000):
        scene = decided()
        killed = killed_at(at, scene.journal.recover)
        volume.cut(cut)
        states[judged(scene)] += 1
        if not killed:
            break
    sys.stdout.write(f"\n{cut}: {dict(states)}\n")
    assert set(states) == {"new"}


@pytest.mark.skipif(not works(), reason="needs strace: SQLite makes its calls itself")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["wal", "rollback"])
def test_a_commit_with_a_database_survives_power_loss(volume: Volume, kind: str, cut: str, root: Path) -> None:
    states: Counter[str] = Counter()
    found = points(laid(volume, kind).write_sources(), "commit")
    for name, at in found[::3]:
        scene = laid(volume, kind).write_sources()
        volume.settle()
        injected(scene, "commit", name, at, "signal=KILL")
        volume.cut(cut)
        states[judged(scene)] += 1
    sys.stdout.write(f"\n{kind}, {cut}: {dict(states)}\n")
    assert set(states) == {"old", "new"}


def test_the_images_notice_content_that_is_not_flushed(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    if volume.kind == "ext4":
        pytest.skip("ext4 flushes the content of a file that is renamed over another by itself")
    monkeypatch.setattr(disk, "flush", lambda fd: None)
    states = everywhere(volume, "names are kept", commit, stop=True)
    assert states.keys() - {"old", "new"}


@pytest.mark.parametrize("flushed", [True, False])
def test_the_images_notice_a_folder_that_is_not_flushed(
    volume: Volume, flushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file: of several, flushing the next one would flush the names of those before on these file systems."""
    scene = laid(volume, "files")
    if not flushed:
        monkeypatch.setattr(disk, "flush_folder", lambda fd: None)
    assert not killed_at(0, lambda: atomic_write(scene.root / "a.json", NEW["a.json"] or b""))
    volume.cut("all is lost")
    assert (scene.root / "a.json").read_bytes() == (NEW if flushed else OLD)["a.json"]
