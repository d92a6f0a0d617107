"""A disk that is full or fails, at every system call of a commit: nothing torn or mixed, and the error says so."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from agentguard.commit import atomic_write
from agentguard.exceptions import InDoubt

from .faults import FAILING, Faults, raising
from .scenario import NEW, OLD, SCENES, Scene

# Every call with plain files; with a database among them, which takes longer, every fourth and at length all.
KINDS = [
    *((kind, 1 if kind == "files" else 4) for kind in SCENES),
    *(pytest.param(kind, 1, marks=pytest.mark.soak) for kind in SCENES if kind != "files"),
]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("kind", "stride"), KINDS)
def test_an_error_at_any_step_is_all_or_nothing_and_says_so(root: Path, kind: str, stride: int, code: int) -> None:
    seen: Counter[str] = Counter()
    for at in range(1 + code % stride, 1000, stride):
        place = root / str(at)
        place.mkdir()
        scene = SCENES[kind](place).lay().write_sources()
        names = [str(change.target.relative_to(place)) for change in scene.changes()]
        with Faults(FAILING, at, raising(code)) as faults:
            try:
                scene.commit()
                outcome = "done"
            except InDoubt as error:
                outcome = "in doubt"
                assert "a.json" in str(error)
                assert list(error.resources) == names
            except OSError as error:
                outcome = "refused"
                assert error.errno == code, (at, error)
                assert f"nothing was written: {', '.join(names)} are unchanged" in str(error)
        seen[outcome] += 1
        if outcome == "refused":
            assert scene.check() == "old", at
            assert not (place / "sub").exists()
        elif outcome == "in doubt":
            assert all(one.doubt is None for one in scene.journal.recover())
            assert scene.check() == "new", at
        else:
            scene.journal.recover()
            assert scene.check() == "new", at
        if faults.count < at:
            break
    assert seen["refused"] * stride > 20
    assert seen["in doubt"] * stride > 5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("kind", "stride"), KINDS)
def test_a_disk_that_stays_broken_leaves_what_recovery_can_finish(
    root: Path, kind: str, stride: int, code: int
) -> None:
    states = set()
    for at in range(1 + code % stride, 1000, stride):
        place = root / str(at)
        place.mkdir()
        scene = SCENES[kind](place).lay().write_sources()
        with Faults(FAILING, at, raising(code), lasting=True) as faults, contextlib.suppress(OSError):
            scene.commit()
        assert all(one.doubt is None for one in scene.journal.recover())
        states.add(scene.check())
        if faults.count < at:
            break
    assert states == {"old", "new"}


def test_an_error_during_recovery_keeps_the_record(root: Path) -> None:
    kept = 0
    for at in range(1, 1000):
        place = root / str(at)
        place.mkdir()
        scene = Scene(place).lay().write_sources()
        undo = scene.journal._marks
        scene.journal._marks = lambda ids: raising(errno.EIO)("marks")
        with pytest.raises(InDoubt):
            scene.commit()
        scene.journal._marks = undo
        with Faults(FAILING, at, raising(errno.EIO)) as faults:
            try:
                kept += sum(one.doubt is not None for one in scene.journal.recover())
            except OSError as error:
                assert error.errno == errno.EIO  # the journal itself cannot be listed or read
        assert all(one.doubt is None for one in scene.journal.recover())
        assert scene.check() == "new"
        if faults.count < at:
            break
    assert kept > 5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_step_of_an_atomic_write(root: Path, code: int) -> None:
    refused = 0
    new = NEW["a.json"]
    assert new is not None
    for at in range(1, 200):
        place = root / str(at)
        place.mkdir()
        target = Scene(place).lay().root / "a.json"
        with Faults(FAILING, at, raising(code)) as faults:
            try:
                atomic_write(target, new)
                expected = new
            except InDoubt as error:
                assert "may be undone by a power loss" in str(error)
                expected = new
            except OSError as error:
                assert error.errno == code
                assert "is unchanged" in str(error) or error.filename is None
                refused += 1
                expected = OLD["a.json"] or b""
        assert target.read_bytes() == expected
        assert target.stat().st_mode & 0o777 == 0o640
        assert not list(place.glob(".agentguard-*"))
        if faults.count < at:
            break
    assert refused > 5


def test_no_descriptor_is_left_open_by_errors(root: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts descriptors in /proc")
    before = set(os.listdir("/proc/self/fd"))
    for at in range(1, 120, 3):
        place = root / str(at)
        place.mkdir()
        scene = Scene(place).lay().write_sources()
        with Faults(FAILING, at, raising(errno.EIO)), contextlib.suppress(OSError):
            scene.commit()
        scene.journal.recover()
    assert len(os.listdir("/proc/self/fd")) <= len(before)
