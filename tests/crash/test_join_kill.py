"""kill -9 before every system call of a whole join: merge, stage, commit, ledger, removal of the shards."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from .faults import killed_at
from .joins import apart, guarding, lay, work, wrong

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children"),
    pytest.mark.timeout(1800),
]
RUN = "monday"


def prepared(root: Path, *, database: bool) -> Path:
    """Everything is written, by a process that is gone: its shards are on disk."""
    place = root / "prepared"
    place.mkdir()
    lay(place, database=database)
    assert not killed_at(0, lambda: work(guarding(place), RUN, database=database))
    return place


def join(place: Path) -> None:
    guarding(place).join(run=RUN)


def resumed(place: Path, *, database: bool, recover: bool = False) -> str | None:
    """Join again, twice; what is wrong then."""
    guard = guarding(place)
    if recover:
        guard.recover()
    guard.join(run=RUN)
    found = wrong(place, [RUN], database=database)
    assert not guard.join(run=RUN)
    guard.recover()
    status = guard.status()
    assert status.shards == status.pending == status.damaged == status.conflicts == ()
    assert not list(place.rglob(".agentguard-*"))
    assert not list((place / ".agentguard/journal").iterdir())
    return found or wrong(place, [RUN], database=database)


@pytest.mark.parametrize(
    ("stride", "database"),
    [(5, False), (7, True), *(pytest.param(1, one, marks=pytest.mark.soak) for one in (False, True))],
)
def test_a_join_that_is_killed_anywhere_applies_each_shard_once(root: Path, stride: int, database: bool) -> None:
    origin = prepared(root, database=database)
    kills = 0
    for at in range(1, 2000, stride):
        place = shutil.copytree(origin, root / str(at), symlinks=True)
        killed = killed_at(at, lambda: join(place))  # noqa: B023
        assert resumed(place, database=database, recover=bool(at % 2)) is None, at
        shutil.rmtree(place)
        if not killed:
            break
        kills += 1
    assert kills * stride > 80
    print(f"\n{kills} kills of a join")


@pytest.mark.parametrize("pairs", [10, pytest.param(500, marks=pytest.mark.soak)])
def test_a_join_that_is_killed_again_and_again(root: Path, pairs: int) -> None:
    origin = prepared(root, database=False)
    rng = random.Random(7)
    for number in range(pairs):
        place = shutil.copytree(origin, root / str(number), symlinks=True)
        points = [rng.randint(1, 130) for _ in range(3)]
        for at in points:
            killed_at(at, lambda: join(place))  # noqa: B023
        assert resumed(place, database=False) is None, points
        shutil.rmtree(place)


@pytest.mark.soak
@pytest.mark.parametrize("first", ["content", "ledger"])
def test_a_ledger_apart_from_the_content_is_noticed(root: Path, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apart(monkeypatch, first)
    origin = prepared(root, database=False)
    for at in range(150, 0, -1):  # from the end, where the ledger is written
        place = shutil.copytree(origin, root / str(at), symlinks=True)
        killed_at(at, lambda: join(place))  # noqa: B023
        if resumed(place, database=False) is not None:
            return
    raise AssertionError("the mutant was not noticed")
