from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import disk, records
from agentguard.commit import Delete, Journal, Replace, atomic_write, snapshot
from agentguard.exceptions import ConfigError, InDoubt
from agentguard.latch import Latch
from agentguard.records import Content, Doubt, Entry, Record, Step

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and attributes of POSIX")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir()
    return tmp_path.resolve()


@pytest.fixture
def journal(root: Path) -> Journal:
    return Journal(root / ".agentguard/journal", root=root)


def staged(root: Path, name: str, text: str) -> Path:
    file = root / "stage" / name
    file.write_text(text)
    return file


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


# --- atomic_write -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_atomic_write_replaces_the_whole_content(root: Path, durable: bool) -> None:
    atomic_write(root / "a", "grün\r\n", durable=durable)
    assert (root / "a").read_bytes() == "grün\r\n".encode()
    atomic_write(str(root / "a"), b"", durable=durable)
    assert (root / "a").read_bytes() == b""
    assert [file.name for file in root.iterdir() if file.is_file()] == ["a"]


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(root: Path, umask: int) -> None:
    program = (
        f"import os; os.umask({umask})\nfrom agentguard.commit import atomic_write\n"
        "atomic_write('new', 'x'); atomic_write('old', 'x')"
    )
    (root / "old").write_text("before")
    (root / "old").chmod(0o604)
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
    assert mode(root / "new") == 0o666 & ~umask
    assert mode(root / "old") == 0o604


@posix
def test_content_is_private_until_it_has_the_targets_mode(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "secret").write_text("before")
    (root / "secret").chmod(0o600)
    seen: list[int] = []
    write = os.write

    def watched(fd: int, data: bytes) -> int:
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return write(fd, data)

    monkeypatch.setattr(os, "write", watched)
    atomic_write(root / "secret", b"after")
    assert seen == [0o600]


@posix
def test_owner_and_attributes_are_kept(root: Path) -> None:
    file = root / "a"
    file.write_text("before")
    if os.geteuid() == 0:
        os.chown(file, 12345, 23456)
    try:
        os.setxattr(file, "user.note", b"kept")
    except (OSError, AttributeError):
        pytest.skip("no extended attributes here")
    before = file.stat()
    atomic_write(file, "after")
    assert os.getxattr(file, "user.note") == b"kept"
    assert (file.stat().st_uid, file.stat().st_gid, mode(file)) == (
        before.st_uid,
        before.st_gid,
        stat.S_IMODE(before.st_mode),
    )


@posix
def test_a_group_that_cannot_be_kept_loses_its_permissions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "a"
    file.write_text("before")
    file.chmod(0o664)
    foreign = os.stat_result([*file.stat()[:5], 23456, *file.stat()[6:]])

    def refused(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "not the owner")

    monkeypatch.setattr(os, "fchown", refused)
    fd = os.open(file, os.O_RDWR)
    try:
        disk.adopt(fd, str(file), foreign)
    finally:
        os.close(fd)
    assert mode(file) == 0o644


@posix
def test_a_symbolic_link_stays_and_what_it_points_at_is_replaced(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real/a").write_text("before")
    (root / "link").symlink_to("real/a")
    (root / "dangling").symlink_to("real/b")
    atomic_write(root / "link", "after")
    atomic_write(root / "dangling", "new")
    assert (root / "link").is_symlink()
    assert (root / "real/a").read_text() == "after"
    assert (root / "dangling").is_symlink()
    assert (root / "real/b").read_text() == "new"


@posix
def test_a_hard_linked_target_is_refused_with_the_way_out(root: Path, journal: Journal) -> None:
    (root / "a").write_text("before")
    os.link(root / "a", root / "b")
    with pytest.raises(OSError, match=r"2 hard links.*symbolic link instead") as caught:
        atomic_write(root / "a", "after")
    assert caught.value.errno == errno.EMLINK
    source = staged(root, "a", "after")
    with pytest.raises(OSError, match=r"2 hard links.*nothing was written: a is unchanged"):
        journal.commit([Replace(root / "a", source)])
    assert (root / "b").read_text() == "before"
    assert source.exists()
    journal.commit([Delete(root / "a")])  # takes one name away, as rm does
    assert (root / "b").read_text() == "before"


@posix
def test_what_is_no_regular_file_is_refused(root: Path) -> None:
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    with pytest.raises(IsADirectoryError, match="name the files inside it"):
        atomic_write(root / "folder", "x")
    with pytest.raises(OSError, match="only regular files"):
        atomic_write(root / "pipe", "x")
    with pytest.raises(OSError, match="symbolic link") as caught:
        atomic_write(root / "loop", "x")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError, match="is unchanged"):
        atomic_write(root / "missing/a", "x")
    assert not (root / "missing").exists()


def test_the_longest_name_can_be_written(root: Path, journal: Journal) -> None:
    name = "n" * 255
    atomic_write(root / name, "before")
    journal.commit([Replace(root / name, staged(root, "a", "after")), Replace(root / "b", staged(root, "b", "after"))])
    assert (root / name).read_text() == "after"


def test_readers_beside_a_writer_see_old_or_new(root: Path) -> None:
    file, stop, seen = root / "a", threading.Event(), set[bytes]()
    versions = {bytes([65 + i]) * 100_000 for i in range(5)}
    atomic_write(file, min(versions))

    def read() -> None:
        while not stop.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(10):
            for version in versions:
                atomic_write(file, version, durable=False)
    finally:
        stop.set()
        reader.join()
    assert seen <= versions


def test_errors_pickle_with_their_text() -> None:
    error = disk.unchanged(OSError(errno.ENOSPC, "No space left on device", "/x/a"), ["a"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.errno == errno.ENOSPC
    assert type(disk.unchanged(PermissionError(errno.EACCES, "no"), ["a"])) is PermissionError
    assert "unchanged" in str(disk.unchanged(OSError("odd"), ["a", "b"]))


# --- snapshot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, disk.SMALL - 1, disk.SMALL, 3 * disk.CHUNK + 5])
@pytest.mark.parametrize("fallback", [False, True])
def test_snapshot_copies_content_and_mode(
    root: Path, size: int, fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(size)
    (root / "a").write_bytes(data)
    (root / "a").chmod(0o640)
    if fallback and hasattr(os, "copy_file_range"):

        def refused(*args: object) -> int:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "copy_file_range", refused)
    assert snapshot(root / "a", root / "stage/a") is True
    assert (root / "stage/a").read_bytes() == data
    if os.name == "posix":
        assert mode(root / "stage/a") == 0o640


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux")
def test_snapshot_goes_on_by_hand_where_the_kernel_stops(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3 * disk.CHUNK)
    (root / "a").write_bytes(data)
    real, calls = os.copy_file_range, []

    def once(source: int, target: int, count: int) -> int:
        calls.append(count)
        if len(calls) > 1:
            raise OSError(errno.EINVAL, "no more")
        return real(source, target, 1000)

    monkeypatch.setattr(os, "copy_file_range", once)
    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    monkeypatch.setattr(disk, "_on_tmpfs", lambda device: False)
    assert snapshot(root / "a", root / "stage/a")
    assert (root / "stage/a").read_bytes() == data
    assert len(calls) == 2


@posix
def test_snapshot_refuses_and_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert snapshot(root / "missing", root / "stage/a") is False
    with pytest.raises(IsADirectoryError):
        snapshot(root, root / "stage/a")
    os.mkfifo(root / "pipe")
    with pytest.raises(OSError, match="only regular files"):
        snapshot(root / "pipe", root / "stage/a")
    (root / "a").write_text("content")
    (root / "stage/taken").write_text("kept")
    with pytest.raises(FileExistsError):
        snapshot(root / "a", root / "stage/taken")
    assert (root / "stage/taken").read_text() == "kept"

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        snapshot(root / "a", root / "stage/a")
    assert not (root / "stage/a").exists()


@posix
def test_snapshot_follows_a_link(root: Path) -> None:
    (root / "a").write_text("content")
    (root / "link").symlink_to("a")
    assert snapshot(root / "link", root / "stage/a")
    assert not (root / "stage/a").is_symlink()


# --- commit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("names", [["a"], ["a", "b", "sub/deep/c"]])
def test_commit_replaces_creates_and_consumes(root: Path, journal: Journal, names: list[str], durable: bool) -> None:
    (root / "a").write_text("before")
    sources = [staged(root, name.replace("/", "_"), f"after {name}") for name in names]
    journal.commit([Replace(root / name, source) for name, source in zip(names, sources, strict=True)], durable=durable)
    for name, source in zip(names, sources, strict=True):
        assert (root / name).read_text() == f"after {name}"
        assert not source.exists()
    assert not journal.pending()
    assert not list(root.rglob(".agentguard-*"))


@posix
def test_commit_keeps_metadata_links_and_the_mode_of_what_is_new(root: Path, journal: Journal) -> None:
    for name in "ab":
        (root / name).write_text("before")
        (root / name).chmod(0o604)
    (root / "link").symlink_to("a")
    new = staged(root, "new", "new")
    new.chmod(0o755)
    journal.commit([Replace(root / "link", staged(root, "a", "after"))])
    journal.commit([Replace(root / "b", staged(root, "b", "after")), Replace(root / "new", new)])
    assert (root / "link").is_symlink()
    assert (root / "a").read_text() == "after"
    assert [mode(root / name) for name in ("a", "b", "new")] == [0o604, 0o604, 0o755]
    assert mode(root / ".agentguard") == mode(root / ".agentguard/journal") == 0o700


@posix
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("crossing", [False, True])
def test_commit_keeps_owner_and_attributes(
    root: Path, journal: Journal, count: int, crossing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a rename and by a copy, with a record and without."""
    names = ["a", "b"][:count]
    sources = [staged(root, name, "after") for name in names]
    before: dict[str, tuple[int, int, int]] = {}
    for name, source in zip(names, sources, strict=True):
        file = root / name
        file.write_text("before")
        file.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(file, 12345, 23456)
        try:
            os.setxattr(file, "user.note", b"kept")
            os.setxattr(source, "user.other", b"not the target's")
        except (OSError, AttributeError):
            pytest.skip("no extended attributes here")
        before[name] = (file.stat().st_uid, file.stat().st_gid, mode(file))
    if crossing:
        for source in sources:
            os.link(source, f"{source} too")  # cannot be moved
    journal.commit([Replace(root / name, source) for name, source in zip(names, sources, strict=True)])
    for name in names:
        file = root / name
        assert file.read_text() == "after"
        assert (file.stat().st_uid, file.stat().st_gid, mode(file)) == before[name]
        assert {key: os.getxattr(file, key) for key in os.listxattr(file)} == {"user.note": b"kept"}


@posix
@pytest.mark.parametrize("count", [1, 2])
def test_a_source_on_another_file_system_is_copied(
    root: Path, journal: Journal, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, rename = os.replace, os.rename

    def crossing(real):  # type: ignore[no-untyped-def]
        def call(source: str, target: str) -> None:
            if os.path.dirname(source) == str(root / "stage"):
                raise OSError(errno.EXDEV, "Invalid cross-device link", source)
            real(source, target)

        return call

    monkeypatch.setattr(os, "replace", crossing(replace))
    monkeypatch.setattr(os, "rename", crossing(rename))
    names = ["a", "b"][:count]
    journal.commit([Replace(root / name, staged(root, name, "after")) for name in names])
    for name in names:
        assert (root / name).read_text() == "after"
        assert not (root / "stage" / name).exists()
    assert not list(root.rglob(".agentguard-*"))


@posix
def test_a_source_with_a_second_name_does_not_stay_connected(root: Path, journal: Journal) -> None:
    source = staged(root, "a", "after")
    os.link(source, root / "second")
    journal.commit([Replace(root / "a", source)])
    (root / "second").write_text("written later")
    assert (root / "a").read_text() == "after"


def test_delete_is_alone_together_and_of_nothing(root: Path, journal: Journal) -> None:
    for name in "abc":
        (root / name).write_text("before")
    journal.commit([Delete(root / "a")])
    journal.commit([Delete(root / "b"), Delete(root / "c"), Delete(root / "missing")])
    journal.commit([Delete(root / "missing")])
    journal.commit([])
    assert not any((root / name).exists() for name in "abc")


@posix
def test_bad_changes_are_refused_and_nothing_moves(root: Path, journal: Journal) -> None:
    source = staged(root, "a", "after")
    (root / "folder").mkdir()
    (root / "link").symlink_to("stage/a")
    good = Replace(root / "good", source)
    for change, kind, text in [
        (Replace(root / "x", root / "missing"), FileNotFoundError, "prepared file is missing.*x.*unchanged"),
        (Replace(root / "x", root / "folder"), IsADirectoryError, "is a directory.*x.*unchanged"),
        (Replace(root / "x", root / "link"), OSError, "symbolic link.*x.*unchanged"),
        (Replace(root / "folder", source), IsADirectoryError, "is a directory"),
        (Delete(root / "folder"), IsADirectoryError, "is a directory"),
        (Replace(source, source), ValueError, "file of its own"),
        (Delete(root / "good"), ValueError, "twice"),
        (Replace(root / "stage/a/b", source), OSError, "unchanged"),
    ]:
        with pytest.raises(kind, match=text):  # type: ignore[arg-type]
            journal.commit([good, change])
        if change.target != root / "good":
            with pytest.raises(kind, match=text):  # type: ignore[arg-type]
                journal.commit([change])
        assert source.read_text() == "after"
        assert not (root / "good").exists()
        assert not list(root.rglob(".agentguard-*"))
    with pytest.raises(ValueError, match="place for marks"):
        journal.commit([good], marks=["m"])


@posix
def test_a_journal_that_others_could_write_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [Replace(root / name, staged(root, name, "after")) for name in "ab"]
    (root / "elsewhere").mkdir()
    (root / "link").symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        Journal(root / "link", root=root).commit(changes)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    os.chown(root / "elsewhere", 4712, -1) if os.getuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="belongs to user"):
        Journal(root / "elsewhere", root=root).commit(changes)
    assert not (root / "a").exists()


def test_an_interrupt_before_the_commit_point_takes_everything_back(
    root: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").write_text("before")
    changes = [Replace(root / name, staged(root, name, "after")) for name in "ab"]

    def interrupted(record: Record, root: str) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.commit(changes)
    assert (root / "a").read_text() == "before"
    assert not (root / "b").exists()
    assert all(change.source.read_text() == "after" for change in changes)
    assert not list(root.rglob(".agentguard-*"))
    assert not list((root / ".agentguard/journal").iterdir())


class Marks:
    def __init__(self) -> None:
        self.known: set[str] = set()
        self.error: BaseException | None = None
        self.calls = 0

    def __call__(self, ids: Sequence[str]) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        self.known.update(ids)


@pytest.fixture
def marks() -> Marks:
    return Marks()


@pytest.fixture
def marking(root: Path, marks: Marks) -> Journal:
    return Journal(root / ".agentguard/journal", root=root, marks=marks)


@pytest.fixture
def broken(root: Path, marking: Journal, marks: Marks) -> Iterator[Journal]:
    """A commit of a and b that was decided, replaced both, and could not mark."""
    for name in "ab":
        (root / name).write_text("before")
    marks.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(InDoubt, match=r"a, b was decided but is not finished: .*recover.*delete") as caught:
        marking.commit([Replace(root / name, staged(root, name, "after")) for name in "ab"], marks=["m"])
    assert caught.value.resources == ("a", "b")
    assert Path(caught.value.record).exists()
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), InDoubt)
    marks.error = None
    return marking


def test_marks_without_changes_need_no_record(root: Path, marking: Journal, marks: Marks) -> None:
    marking.commit([], marks=["m"])
    marking.commit([Delete(root / "missing")], marks=["n"])
    assert marks.known == {"m", "n"}
    marks.error = OSError(errno.EIO, "x")
    with pytest.raises(OSError, match="x") as caught:
        marking.commit([], marks=["o"])
    assert not isinstance(caught.value, InDoubt)


def test_one_file_with_marks_has_a_record(root: Path, marking: Journal, marks: Marks) -> None:
    marks.error = OSError(errno.EIO, "x")
    with pytest.raises(InDoubt):
        marking.commit([Replace(root / "a", staged(root, "a", "after"))], marks=["m"])
    marks.error = None
    (found,) = marking.recover()
    assert found.marks == ("m",)
    assert marks.known == {"m"}


def test_what_is_in_doubt_is_listed_and_finished_once(root: Path, broken: Journal, marks: Marks) -> None:
    (pending,) = broken.pending()
    assert set(pending.targets) == {root / "a", root / "b"}
    assert pending.since > 1_600_000_000
    assert [(one.live, one.doubt) for one in broken.inspect()] == [(False, None)]
    (found,) = broken.recover(only=[root / "b"])
    assert (found.targets, found.marks, found.doubt) == (pending.targets, ("m",), None)
    assert marks.known == {"m"}
    assert broken.pending() == broken.inspect() == broken.recover() == ()
    assert not list((root / ".agentguard/journal").iterdir())


def test_recover_of_some_files_leaves_the_records_of_others(root: Path, broken: Journal) -> None:
    assert broken.recover(only=[root / "c", root / "stage"]) == ()
    assert broken.recover(only=[]) == ()
    assert len(broken.pending()) == 1
    assert len(broken.recover(only=[root])) == 1  # a folder: everything beneath it


def test_content_that_nobody_can_explain_is_kept_for_a_person(root: Path, broken: Journal, marks: Marks) -> None:
    (root / "b").write_text("written by hand after the crash")
    (found,) = broken.recover()
    assert found.doubt is not None
    assert "other content" in found.doubt
    assert str(root / "b") in found.doubt
    assert [one.doubt for one in broken.inspect()] == [found.doubt]
    with pytest.raises(InDoubt, match=r"other content.*To give it up") as caught:
        broken.recover(only=[root / "a"])
    assert (root / "b").read_text() == "written by hand after the crash"
    assert not marks.known
    Path(caught.value.record).unlink()
    assert broken.recover() == ()


@pytest.fixture
def decided(root: Path, marking: Journal, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """A commit of a (new content) and b (a deletion) of which nothing was done after the decision."""
    for name in "ab":
        (root / name).write_text("before")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_apply", broken)
        with pytest.raises(InDoubt):
            marking.commit([Replace(root / "a", staged(root, "a", "after")), Delete(root / "b")], marks=["m"])
    return marking


def test_what_was_decided_is_done(root: Path, decided: Journal, marks: Marks) -> None:
    assert [one.doubt for one in decided.recover()] == [None]
    assert (root / "a").read_text() == "after"
    assert not (root / "b").exists()
    assert marks.known == {"m"}


@pytest.mark.parametrize("what", ["a target", "a deleted file", "the prepared file", "no prepared file"])
def test_recovery_never_guesses(root: Path, decided: Journal, marks: Marks, what: str) -> None:
    """Nothing at all is done then, not even where it would be clear; and everything is there for a person."""
    (prepared,) = root.glob(".agentguard-*")
    file, text = {
        "a target": (root / "a", "changed from outside"),
        "a deleted file": (root / "b", "changed from outside"),
        "the prepared file": (prepared, "damaged"),
        "no prepared file": (prepared, "is gone"),
    }[what]
    if what == "no prepared file":
        file.unlink()
    else:
        file.write_text("by somebody")
        os.utime(file, ns=(2**62, 2**62))
    there = {one: one.read_text() for one in root.rglob("*") if one.is_file() and one.suffix != ".lock"}
    for _ in range(2):
        (found,) = decided.recover()
        assert found.doubt is not None
        assert text in found.doubt
        assert str(file) in found.doubt
        assert {one: one.read_text() for one in root.rglob("*") if one.is_file() and one.suffix != ".lock"} == there
    assert not marks.known


def test_a_commit_in_doubt_is_shown_by_status_until_a_person_decides(root: Path, decided: Journal) -> None:
    def agentguard(command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "agentguard", command, "--root", str(root)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "COLUMNS": "400"},
        )
        return done.returncode, done.stdout + done.stderr

    (root / "b").write_text("by somebody")
    os.utime(root / "b", ns=(2**62, 2**62))
    (pending,) = decided.pending()
    for command in ("status", "recover", "status"):
        code, shown = agentguard(command)
        assert code == 2
        assert "IN DOUBT" in shown
        assert "changed from outside" in shown
        assert pending.record.exists()
        assert (root / "b").read_text() == "by somebody"
    (root / "b").unlink()  # the person's decision: it may go
    code, shown = agentguard("recover")
    assert code == 0, shown
    assert "finished" in shown
    code, shown = agentguard("status")
    assert code == 0
    assert "unfinished commits: none" in shown
    assert (root / "a").read_text() == "after"


def test_a_damaged_record_is_said_and_kept(root: Path, broken: Journal) -> None:
    (pending,) = broken.pending()
    data = pending.record.read_bytes()
    pending.record.write_bytes(data[:-1])
    for found in (broken.pending(), broken.inspect(), broken.recover()):
        assert [(one.targets, "damaged" in (one.doubt or "")) for one in found] == [((), True)]
    pending.record.write_bytes(data)
    assert [one.doubt for one in broken.recover()] == [None]


def test_a_record_with_marks_needs_a_place_for_them(root: Path, broken: Journal, marks: Marks) -> None:
    plain = Journal(root / ".agentguard/journal", root=root)
    assert "marks" in (plain.recover()[0].doubt or "")
    assert [one.doubt for one in broken.recover()] == [None]


def test_recovery_waits_for_another_one_of_the_same_record(root: Path, broken: Journal, marks: Marks) -> None:
    """Without a locked file to go by, it leaves a live one alone."""
    (pending,) = broken.pending()
    latch = Latch.take(str(root / ".agentguard/journal"), str(root), pending.record.stem, wait=0)
    assert latch is not None
    assert broken.recover() == ()
    assert [one.live for one in broken.inspect()] == [True]
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.extend(broken.recover(only=[root / "a"])))
    waiting.start()
    assert not found
    latch.release()
    waiting.join()
    assert len(found) == 1
    assert marks.known == {"m"}


def test_a_recovery_that_never_ends_is_said(root: Path, broken: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentguard.recovery.PATIENCE", 0.02)
    (pending,) = broken.pending()
    latch = Latch.take(str(root / ".agentguard/journal"), str(root), pending.record.stem, wait=0)
    assert latch is not None
    with pytest.raises(InDoubt, match="somebody else has been working"):
        broken.recover(only=[root / "a"])
    latch.release()


def test_recoveries_at_the_same_time_redo_once(root: Path, broken: Journal, marks: Marks) -> None:
    marks.calls = 0
    barrier = threading.Barrier(6)
    found: list[object] = []

    def recover() -> None:
        barrier.wait()
        found.extend(broken.recover(only=[root / "a"]))

    threads = [threading.Thread(target=recover) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert marks.calls == 1
    assert not list((root / ".agentguard/journal").iterdir())


def test_commits_of_different_files_do_not_wait_for_each_other(root: Path, marking: Journal) -> None:
    """Each one stands in its marks until the other has come there too."""
    barrier = threading.Barrier(2, timeout=20)
    journal = Journal(root / ".agentguard/journal", root=root, marks=lambda ids: (barrier.wait(), None)[1])
    errors: list[BaseException] = []

    def commit(name: str) -> None:
        try:
            journal.commit([Replace(root / name, staged(root, name, "after"))], marks=[name])
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (root / "a").read_text() == (root / "b").read_text() == "after"


def test_a_sweep_never_disturbs_live_commits(root: Path, journal: Journal) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def sweep() -> None:
        try:
            while not stop.is_set():
                journal.recover()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        for i in range(60):
            pair = [Replace(root / name, staged(root, name, f"{i}")) for name in "ab"]
            journal.commit(pair, durable=False)
            assert (root / "a").read_text() == (root / "b").read_text() == f"{i}"
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert not list((root / ".agentguard/journal").iterdir())


def test_a_folder_that_a_failed_commit_takes_back_is_made_again(
    root: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = disk.make_folders, []

    def vanishing(folder: str, mode: int, made: list[str], *, durable: bool) -> None:
        real(folder, mode, made, durable=durable)
        calls.append(folder)
        if len(calls) == 1:
            os.rmdir(folder)

    monkeypatch.setattr(disk, "make_folders", vanishing)
    journal.commit([Replace(root / "sub/a", staged(root, "a", "after"))])
    assert (root / "sub/a").read_text() == "after"
    assert len(calls) == 2


def test_pending_of_an_idle_journal_is_one_listing(
    root: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal.pending() == ()
    journal.commit([Replace(root / name, staged(root, name, "x")) for name in "ab"])
    for name in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, name, None)
    assert journal.pending() == ()


# --- records ----------------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
hashes = st.sampled_from(["h1", "h2", "h3"])
contents = st.none() | st.builds(Content, hashes, st.integers(0, 3))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    folder = draw(st.sampled_from(["/home/w", "/home/w/sub", "/else/where", "/home/wide"]))
    target = f"{folder}/{draw(names)}"
    if draw(st.booleans()):
        return Entry(target, None, None, draw(contents))
    return Entry(target, f"{folder}/{disk.temp_name('00ab', draw(st.integers(0, 99)))}", draw(hashes), draw(contents))


@posix
@given(st.lists(entries(), max_size=4), st.lists(st.text(), max_size=3))
def test_records_are_read_as_they_were_written(found: list[Entry], marks: list[str]) -> None:
    record = Record("00ab", 12.5, tuple(found), tuple(marks))
    data = records.encode(record, "/home/w")
    assert records.decode(data, "/home/w") == record
    moved = records.decode(data, "/mnt/volume").targets
    assert moved == tuple(t.replace("/home/w/", "/mnt/volume/", 1) for t in record.targets)
    for end in (0, 10, len(data) - 1):
        with pytest.raises(ValueError, match="damaged"):
            records.decode(data[:end], "/home/w")


@posix
def test_records_of_other_makers_are_refused() -> None:
    import hashlib

    def sealed(body: bytes) -> bytes:
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    for body, text in [
        (b'{"version": 2}', "another version"),
        (b"[]", "another version"),
        (b'{"version": 1, "id": "00ab"}', "lacks"),
        (
            b'{"version": 1, "id": "00ab", "since": 1, "marks": [], "entries": '
            b'[{"target": "a", "temp": "../../etc/passwd", "sha256": "x", "before": null}]}',
            "not its own",
        ),
    ]:
        with pytest.raises(ValueError, match=text):
            records.decode(sealed(body), "/home/w")


@given(entries(), st.none() | hashes, contents)
def test_recovery_decides_the_same_again_and_never_guesses(
    entry: Entry, prepared: str | None, found: Content | None
) -> None:
    step = records.decide(entry, prepared, found)
    explained = {entry.sha256} | ({entry.before.sha256} if entry.before else set())
    newer = found is not None and (entry.before is None or found.mtime_ns > entry.before.mtime_ns)
    if step in (Step.REPLACE, Step.DELETE):
        assert found is None or found.sha256 in explained or not newer
    if step is Step.REPLACE:
        assert prepared == entry.sha256
        done = Content(prepared or "", 9)
        assert records.decide(entry, None, done) is Step.NOTHING
        assert records.decide(entry, prepared, done) is Step.REPLACE
    if step is Step.DELETE:
        assert records.decide(entry, None, None) is Step.NOTHING
    if step is Step.NOTHING:
        assert (found.sha256 if found else None) == entry.sha256
    if isinstance(step, Doubt):
        assert entry.target in step.text
