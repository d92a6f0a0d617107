from __future__ import annotations

import errno
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from agentguard import ledger as module
from agentguard.exceptions import ConfigError
from agentguard.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / ".agentguard" / "ledger.sqlite3")


def test_what_was_added_is_contained_and_adding_again_changes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.contains(["a"]) == set()
    assert not (tmp_path / ".agentguard").exists()  # asking makes nothing
    ledger.add([])
    assert not (tmp_path / ".agentguard").exists()
    ledger.add(["a", "b", "a"])
    ledger.add(["b", "c'; DROP TABLE merged; --", "é\n\0"])
    assert ledger.contains(["a", "b", "x", "c'; DROP TABLE merged; --", "é\n\0"]) == {
        "a",
        "b",
        "c'; DROP TABLE merged; --",
        "é\n\0",
    }
    assert ledger.contains([]) == set()


def test_more_ids_than_sqlite_has_variables(ledger: Ledger) -> None:
    ids = [str(i) for i in range(40_000)]
    ledger.add(ids[::2])
    assert ledger.contains(ids) == set(ids[::2])


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_file_is_private_and_no_link(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(["a"])
    file = tmp_path / ".agentguard" / "ledger.sqlite3"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(OSError, match="symbolic link"):
        Ledger(tmp_path / "link").add(["b"])
    with pytest.raises(OSError, match="symbolic link"):
        Ledger(tmp_path / "link").contains(["a"])


def test_adding_is_all_or_nothing(ledger: Ledger) -> None:
    ledger.add(["a"])
    with pytest.raises(OSError, match="ledger"):
        ledger.add(["b", object()])  # type: ignore[list-item]
    assert ledger.contains(["b"]) == set()


def test_a_file_that_nothing_was_added_to(ledger: Ledger, tmp_path: Path) -> None:
    """As a crash between its making and its first transaction leaves it."""
    file = tmp_path / ".agentguard" / "ledger.sqlite3"
    file.parent.mkdir()
    file.touch()
    assert ledger.contains(["a"]) == set()
    ledger.add(["a"])
    assert ledger.contains(["a"]) == {"a"}


def test_a_newer_format_and_a_damaged_file_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(["a"])
    file = tmp_path / ".agentguard" / "ledger.sqlite3"
    database = sqlite3.connect(file)
    database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(ConfigError, match="newer AgentGuard"):
        ledger.contains(["a"])
    with pytest.raises(ConfigError, match="upgrade"):
        ledger.add(["b"])
    file.write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(OSError, match="merge twice") as caught:
        ledger.contains(["a"])
    assert caught.value.filename == str(file)
    assert caught.value.errno == errno.EIO


def test_a_writer_elsewhere_is_waited_for_and_then_said(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add(["a"])
    monkeypatch.setattr(module, "BUSY", 0.01)
    other = sqlite3.connect(tmp_path / ".agentguard" / "ledger.sqlite3", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match="locked"):
            ledger.add(["b"])
        other.execute("ROLLBACK")
    finally:
        other.close()
    ledger.add(["b"])
    assert ledger.contains(["b"]) == {"b"}


def test_threads_and_processes_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "home" / "ledger.sqlite3"
    program = (
        "import sys\nfrom pathlib import Path\nfrom agentguard.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for i in range(15): ledger.add([f'{sys.argv[2]}-{i}', 'same'])\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(file), name]) for name in ("p", "q")]

    def add(name: str) -> None:
        own = Ledger(file)
        for i in range(15):
            own.add([f"{name}-{i}", "same"])

    threads = [threading.Thread(target=add, args=(name,)) for name in ("t", "u")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    everything = {f"{name}-{i}" for name in "pqtu" for i in range(15)} | {"same"}
    assert Ledger(file).contains(everything) == everything


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_during_an_operation_can_use_the_ledger(ledger: Ledger) -> None:
    """A fork waits until no operation is under way: the child inherits no half of one."""
    ledger.add(["before"])
    stop = threading.Event()

    def work() -> None:
        i = 0
        while not stop.is_set():
            ledger.add([str(i := i + 1)])

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for i in range(4):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = multiprocessing.get_context("fork").Process(target=ledger.add, args=([f"child-{i}"],))
                child.start()
            child.join(30)
            assert child.exitcode == 0
    finally:
        stop.set()
        worker.join()
    children = {f"child-{i}" for i in range(4)}
    assert ledger.contains(children) == children
