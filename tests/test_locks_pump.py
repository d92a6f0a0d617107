"""Threads that wait for other processes, and what is done when there are too few of them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from locks_support import file_of, staged, use

from agentguard.exceptions import ConfigError
from agentguard.locks import LockTable, Mode, record, wait
from agentguard.locks import granting as granting_module
from agentguard.locks import pump as pump_module
from agentguard.locks import section as section_module
from agentguard.locks.pump import Pumps
from agentguard.locks.section import leave
from agentguard.testing import caller

X, S = Mode.EXCLUSIVE, Mode.SHARED


@pytest.fixture(params=[0, 1, 64], ids=["all polled", "one thread", "a thread for each"])
def pumps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pumps:
    made = Pumps(leave, limit=request.param)
    monkeypatch.setattr(granting_module, "PUMPS", made)
    return made


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> Pumps:
    made = Pumps(leave, limit=0)
    monkeypatch.setattr(granting_module, "PUMPS", made)
    return made


def until(condition: Callable[[], object]) -> None:
    for _ in range(1_000_000):
        if condition():
            return
        os.sched_yield()
    raise AssertionError("it never came")


def test_with_too_few_threads_everybody_is_served(open_table: Callable[[], LockTable], pumps: Pumps) -> None:
    one, two = open_table(), open_table()
    held = [one.request(caller(), f"db:{number}", X) for number in range(20)]
    waiting = [two.request(caller(), f"db:{number}", X) for number in range(20)]
    assert not any(wait(ticket, 0.002) for ticket in waiting)
    assert pumps.threads <= pumps.limit
    for ticket in held:
        one.release(ticket)
    for ticket in waiting:
        assert wait(ticket, 20)
        two.release(ticket)
    for number in range(20):
        use(one, f"db:{number}")


def test_who_is_polled_keeps_the_place_in_line(
    folder: Path, open_table: Callable[[], LockTable], polled: Pumps
) -> None:
    one, two, three = open_table(), open_table(), open_table()
    reader = one.request(caller(), "db:a", S)
    writer = two.request(caller(), "db:a", X)
    staged(folder)
    late = three.request(caller(), "db:a", S)
    assert not late.granted, "a reader that came later would keep the writer waiting"
    one.release(reader)
    assert wait(writer, 20)
    assert not late.granted
    two.release(writer)
    assert wait(late, 20)
    three.release(late)


def test_who_is_polled_and_gives_up_leaves_the_line(
    folder: Path, open_table: Callable[[], LockTable], polled: Pumps
) -> None:
    one, two, three = open_table(), open_table(), open_table()
    reader = one.request(caller(), "db:a", S)
    writer = two.request(caller(), "db:a", X)
    staged(folder)
    two.release(writer)
    until(lambda: file_of(folder, "db:a").read_bytes()[record.QUEUED] == 0)
    assert three.request(caller(), "db:a", S).granted
    one.release(reader)


def test_who_is_polled_is_told_of_trouble(
    folder: Path, tmp_path: Path, open_table: Callable[[], LockTable], polled: Pumps
) -> None:
    one, two = open_table(), open_table()
    held = one.request(caller(), "db:a", X)
    (folder / (record.file_name("db:a") + ".next")).symlink_to(tmp_path / "victim")
    waiting = two.request(caller(), "db:a", X)
    with pytest.raises(ConfigError, match="symbolic link"):
        wait(waiting, 20)
    one.release(held)


def test_who_is_polled_notices_that_the_file_was_replaced(
    folder: Path, open_table: Callable[[], LockTable], polled: Pumps
) -> None:
    one, two, three = open_table(), open_table(), open_table()
    held = one.request(caller(), "db:a", X)
    waiting = two.request(caller(), "db:a", X)
    staged(folder)
    file_of(folder, "db:a").unlink()
    new = three.request(caller(), "db:a", X)
    one.release(held)
    assert not wait(waiting, 0.02), "it got the old file's lock, which excludes nobody"
    three.release(new)
    assert wait(waiting, 20)
    two.verify(waiting)


def test_without_any_thread_the_caller_is_told(
    open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = open_table(), open_table()
    pumps = Pumps(leave)
    monkeypatch.setattr(pumps, "_start", lambda *_: False)
    monkeypatch.setattr(granting_module, "PUMPS", pumps)
    held = one.request(caller(), "db:a", X)
    with pytest.raises(OSError, match="no thread"):
        two.request(caller(), "db:a", X)
    assert two.statistics().keys == ()
    one.release(held)
    use(two)


class Item:
    """Something to be done under the mutex."""

    def __init__(self) -> None:
        self.attended = 0

    def attend(self) -> None:
        self.attended += 1

    mend = attend


def test_what_comes_while_late_work_is_taken_up_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may add to it at any moment: letting the next one into the line must not be lost."""
    first, second = Item(), Item()

    class Interrupted(deque[Item]):
        def _meanwhile(self) -> None:
            if not second.attended and second not in self:
                self.append(second)

        def remove(self, item: Item) -> None:
            self._meanwhile()
            super().remove(item)

        def popleft(self) -> Item:
            self._meanwhile()
            return super().popleft()

        def clear(self) -> None:
            self._meanwhile()
            super().clear()

    monkeypatch.setattr(section_module, "LATER", Interrupted([first]))
    leave()
    assert first.attended
    assert second.attended


class Waiting:
    """A job whose end the test decides."""

    def __init__(self) -> None:
        self.came, self.go, self.polls = threading.Event(), threading.Event(), 0

    def wait(self) -> None:
        self.came.set()
        assert self.go.wait(20)

    def poll(self) -> bool:
        self.polls += 1
        return self.go.is_set()


def test_an_idle_thread_takes_the_next_job_and_ends_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "IDLE_SECONDS", 0.05)
    pumps = Pumps(leave)
    first, second = Waiting(), Waiting()
    pumps.submit(first)
    assert first.came.wait(20)
    first.go.set()
    until(lambda: pumps.idle)
    pumps.submit(second)
    assert second.came.wait(20)
    assert pumps.threads == 1
    second.go.set()
    until(lambda: pumps.threads == 0)
    assert not pumps.idle


def test_a_thread_that_has_become_free_takes_over_what_is_polled() -> None:
    pumps = Pumps(leave, limit=1)
    first, second = Waiting(), Waiting()
    pumps.submit(first)
    pumps.submit(second)
    assert first.came.wait(20)
    until(lambda: second.polls > 2)
    first.go.set()
    assert second.came.wait(20), "now it waits in the kernel"
    second.go.set()


def test_polling_ends_with_what_was_polled() -> None:
    flushed = threading.Event()
    pumps = Pumps(flushed.set, limit=0)
    job = Waiting()
    pumps.submit(job)
    until(lambda: job.polls > 2)
    assert not flushed.is_set()
    job.go.set()
    assert flushed.wait(20)
    until(lambda: not pumps._polling)
