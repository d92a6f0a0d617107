"""Power loss at every point of a commit, in the model; and that the model notices what would break it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agentguard import disk
from agentguard.commit import Journal, Replace, atomic_write

from .model import Image, Recorder, images, lay
from .scenario import MARKS, NEW, OLD, Scene


def marker(root: Path) -> Callable[[Sequence[str]], None]:
    """A ledger whose system calls the model sees: one file, replaced as a whole."""
    file = root / ".agentguard" / "marks"

    def mark(ids: Sequence[str]) -> None:
        atomic_write(file, "\n".join(sorted({*marked(root), *ids})))

    return mark


def marked(root: Path) -> set[str]:
    file = root / ".agentguard" / "marks"
    return set(file.read_text().split()) if file.exists() else set()


def outcomes(root: Path, run: Callable[[Scene], None], *, stop: bool = False) -> tuple[Counter[str], set[str]]:
    """How often recovery led to which state, over all disks; and the states after `run` had returned.

    With `stop`, only as far as the first disk that is neither all old nor all new.
    """
    scene = Scene(root, marker(root)).lay()
    (scene.home / "journal").mkdir(mode=0o700)
    with Recorder(root) as recorder:
        scene.write_sources()
        run(scene)
    total = len(recorder.operations)
    seen: dict[tuple[tuple[str, bytes | None], ...], str] = {}
    counted: Counter[str] = Counter()
    after: set[str] = set()
    for done, image in images(recorder.start, recorder.operations):
        key = tuple(sorted(image.items()))
        if key not in seen:
            seen[key] = recovered(root, image)
            counted[seen[key]] += 1
            if stop and seen[key] not in ("old", "new"):
                break
        if done == total:
            after.add(seen[key])
    return counted, after


def recovered(root: Path, image: Image) -> str:
    lay(root, image)
    (root / ".agentguard/journal").mkdir(parents=True, exist_ok=True)
    scene = Scene(root, marker(root))
    found = scene.journal.recover()
    if any(one.doubt is not None for one in found):
        return "doubt"
    state = scene.state()
    if state in ("old", "new") and marked(root) != (set(MARKS) if state == "new" else set()):
        return "mixed"
    assert scene.journal.recover() == ()
    assert not scene.journal.pending()
    return state


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def test_a_commit_of_several_files_survives_power_loss_at_every_point(root: Path) -> None:
    counted, after = outcomes(root, Scene.commit)
    assert set(counted) == {"old", "new"}, counted
    assert after == {"new"}
    assert sum(counted.values()) > 200


def test_the_model_notices_content_that_is_not_flushed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "flush", lambda fd: None)
    counted, _ = outcomes(root, Scene.commit, stop=True)
    assert counted.keys() - {"old", "new"}, counted


def test_the_model_notices_folders_that_are_not_flushed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "flush_folder", lambda fd: None)
    counted, _ = outcomes(root, Scene.commit, stop=True)
    assert counted.keys() - {"old", "new"}, counted


def test_the_model_notices_targets_whose_folder_is_not_flushed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = disk.flush_folders

    def only_journal(folders: Sequence[str], **options: bool) -> None:
        real([folder for folder in folders if folder.endswith("journal")], **options)

    monkeypatch.setattr(disk, "flush_folders", only_journal)
    counted, _ = outcomes(root, Scene.commit, stop=True)
    assert counted.keys() - {"old", "new"}, counted


@pytest.mark.parametrize("first", ["content", "ledger"])
def test_the_model_notices_a_ledger_apart_from_the_content(root: Path, first: str) -> None:
    def apart(scene: Scene) -> None:
        if first == "ledger":
            marker(scene.root)(MARKS)
        scene.commit(marks=())
        if first == "content":
            marker(scene.root)(MARKS)

    counted, _ = outcomes(root, apart, stop=True)
    assert counted["mixed"], counted


def test_the_model_notices_a_record_that_is_removed_too_early(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def early(self: Journal, record, steps, durable):  # type: ignore[no-untyped-def]
        os.unlink(os.path.join(self._folder, record.id + ".commit"))
        disk.flush_folders([self._folder])
        real(self, record, steps, durable)

    real = Journal._apply
    monkeypatch.setattr(Journal, "_apply", early)
    monkeypatch.setattr(Journal, "_forget", lambda self, latch, names, durable: latch.finish())
    counted, _ = outcomes(root, Scene.commit, stop=True)
    assert counted["mixed"], counted


def one_file(root: Path, how: str) -> tuple[set[bytes | None], set[bytes | None]]:
    """What may be in one file after a power loss: anywhere, and after the commit had returned."""
    scene = Scene(root).lay()
    new, target = NEW["a.json"], root / "a.json"
    assert new is not None
    with Recorder(root) as recorder:
        if how == "atomic_write":
            atomic_write(target, new)
        else:
            scene.write_sources()
            scene.journal.commit([Replace(target, scene.source("a.json"))])
    found = [(done, image.get("a.json")) for done, image in images(recorder.start, recorder.operations)]
    after = {content for done, content in found if done == len(recorder.operations)}
    return {content for _, content in found}, after


@pytest.mark.parametrize("how", ["atomic_write", "commit"])
def test_one_file_survives_power_loss_at_every_point(root: Path, how: str) -> None:
    anywhere, after = one_file(root, how)
    assert anywhere == {OLD["a.json"], NEW["a.json"]}
    assert after == {NEW["a.json"]}


@pytest.mark.parametrize("how", ["atomic_write", "commit"])
@pytest.mark.parametrize("mutant", ["flush", "flush_folder"])
def test_the_model_notices_what_is_not_flushed_of_one_file(
    root: Path, how: str, mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, mutant, lambda fd: None)
    anywhere, after = one_file(root, how)
    if mutant == "flush":
        assert anywhere - {OLD["a.json"], NEW["a.json"]}
    assert after != {NEW["a.json"]}


@pytest.mark.soak
def test_power_loss_during_the_recovery_from_a_power_loss(root: Path) -> None:
    scene = Scene(root, marker(root)).lay()
    (scene.home / "journal").mkdir(mode=0o700)
    with Recorder(root) as recorder:
        scene.write_sources()
        scene.commit()
    first = {tuple(sorted(image.items())) for _, image in images(recorder.start, recorder.operations)}
    counted: Counter[str] = Counter()
    for key in sorted(first, key=str)[::7]:
        lay(root, dict(key))
        (root / ".agentguard/journal").mkdir(parents=True, exist_ok=True)
        with Recorder(root) as again:
            Scene(root, marker(root)).journal.recover()
        seen = set()
        for _, image in images(again.start, again.operations):
            second = tuple(sorted(image.items()))
            if second not in seen:
                seen.add(second)
                counted[recovered(root, image)] += 1
    assert set(counted) == {"old", "new"}, counted
