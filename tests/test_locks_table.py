"""The lock table against a simple reference, and at the moments that decide."""

from __future__ import annotations

import gc
import os
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from locks_support import interrupt

from agentguard import Guard
from agentguard.exceptions import Deadlock
from agentguard.locks import Claim, FileBackend, LockTable, Mode, Owner, Ticket, wait
from agentguard.locks import granting as granting_module
from agentguard.locks import table as table_module
from agentguard.testing import caller

KEYS = ("file:d/", "file:e/")


class Reference:
    """The same promises, written for reading: lists, no counters, everything recomputed each time.

    An entry is one request: [claim, mode, state, line]; a line is a key, or the entry whose inside it is.
    """

    def __init__(self) -> None:
        self.parents: dict[int, int | None] = {}
        self.entries: list[dict[str, Any]] = []

    def family(self, claim: int) -> list[int]:
        found = [claim]
        while (parent := self.parents[found[-1]]) is not None:
            found.append(parent)
        return found

    def line(self, line: object) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["line"] == line and entry["state"] != "released"]

    def around(self, claim: int, key: str) -> dict[str, Any] | None:
        for one in self.family(claim):
            for entry in reversed(self.entries):
                if entry["claim"] == one and entry["key"] == key and entry["state"] == "granted":
                    return entry
        return None

    def settle(self) -> None:
        changed = True
        while changed:
            changed = False
            for entry in self.entries:
                before = self.line(entry["line"])
                before = before[: before.index(entry)] if entry in before else []
                if entry["state"] == "waiting":
                    holding = [e for e in self.line(entry["line"]) if e["state"] in ("granted", "lingering")]
                    if all(e["state"] != "waiting" for e in before) and all(
                        e["mode"].compatible(entry["mode"]) for e in holding
                    ):
                        entry["state"] = "granted"
                        changed = True
                elif entry["state"] == "lingering" and not self.line(entry["id"]):
                    entry["state"] = "released"
                    changed = True

    def alive(self, entry: dict[str, Any]) -> list[int]:
        if entry["state"] != "lingering":
            return [entry["claim"]]
        return [claim for inner in self.line(entry["id"]) for claim in self.alive(inner)]

    def blocking(self, entry: dict[str, Any]) -> set[int]:
        line = self.line(entry["line"])
        holding = [e for e in line if e["state"] != "waiting"]
        waiting = [e for e in line if e["state"] == "waiting"]
        line = holding + waiting  # who holds came before who waits
        stuck, found = [entry], set()
        for other in reversed(line[: line.index(entry)]):
            if any(not other["mode"].compatible(e["mode"]) for e in stuck):
                found.update(self.alive(other))
            if other["state"] == "waiting":
                stuck.append(other)
        return found

    def cycle(self, entry: dict[str, Any]) -> bool:
        family = set(self.family(entry["claim"]))
        reached, todo = set(), [entry]
        while todo:
            for claim in self.blocking(todo.pop()):
                if claim in family:
                    return True
                if claim not in reached:
                    reached.add(claim)
                    todo += [e for e in self.entries if e["state"] == "waiting" and claim in self.family(e["claim"])]
        return False

    def request(self, claim: int, key: str, mode: Mode) -> dict[str, Any] | None:
        """None for a deadlock."""
        outer = self.around(claim, key)
        if outer is not None and not outer["mode"].covers(mode):
            return None
        entry = {"id": len(self.entries), "claim": claim, "key": key, "mode": mode, "state": "waiting"}
        entry["line"] = key if outer is None else outer["id"]
        self.entries.append(entry)
        self.settle()
        if entry["state"] == "waiting" and self.cycle(entry):
            entry["state"] = "released"
            return None
        return entry

    def release(self, entry: dict[str, Any]) -> None:
        if entry["state"] == "granted" and self.line(entry["id"]):
            entry["state"] = "lingering"
        elif entry["state"] != "lingering":
            entry["state"] = "released"
        self.settle()


class TableModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = LockTable()
        self.reference = Reference()
        self.claims: list[Claim] = []
        self.tickets: list[tuple[Ticket, dict[str, Any]]] = []
        self.tokens: dict[str, int] = {}

    @rule(parent=st.integers(-3, 5))
    def begin(self, parent: int) -> None:
        outer = parent if 0 <= parent < len(self.claims) else None
        self.reference.parents[len(self.claims)] = outer
        self.claims.append(caller(f"a{len(self.claims)}", None if outer is None else self.claims[outer]))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), key=st.sampled_from(KEYS), mode=st.sampled_from(list(Mode)))
    def request(self, data: st.DataObject, key: str, mode: Mode) -> None:
        number = data.draw(st.integers(0, len(self.claims) - 1))
        expected = self.reference.request(number, key, mode)
        try:
            ticket = self.table.request(self.claims[number], key, mode)
        except Deadlock:
            assert expected is None
        else:
            assert expected is not None
            self.tickets.append((ticket, expected))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ticket, entry = self.tickets[data.draw(st.integers(0, len(self.tickets) - 1))]
        self.table.release(ticket)
        self.reference.release(entry)

    @invariant()
    def same(self) -> None:
        for ticket, entry in self.tickets:
            assert ticket.granted == (entry["state"] == "granted"), f"{ticket} should be {entry['state']}"
            if ticket.granted and ticket.future is not None:
                assert ticket.future.done()

    def teardown(self) -> None:
        for ticket, _ in self.tickets:
            self.table.release(ticket)
        assert self.table.statistics().keys == ()
        assert all(not claim.held and not claim.waits for claim in self.claims)


TableModel.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestTableModel = TableModel.TestCase


class FilesModel(RuleBasedStateMachine):
    """Three tables on one folder, as three processes: never two at once that exclude each other, never stuck."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.temporary = tempfile.TemporaryDirectory()
        folder = Path(self.temporary.name) / "locks"
        self.tables = [LockTable(FileBackend(folder)) for _ in range(3)]
        self.tickets: list[tuple[LockTable, Ticket]] = []
        self.last = dict.fromkeys(KEYS, 0)

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), mode=st.sampled_from(list(Mode)))
    def request(self, number: int, key: str, mode: Mode) -> None:
        table = self.tables[number]
        self.tickets.append((table, table.request(caller(), key, mode)))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table, ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        table.release(ticket)

    @rule()
    def progress(self) -> None:
        """Whoever is first must come in once nothing conflicting is held by anybody."""
        for key in KEYS:
            of_key = [ticket for _, ticket in self.tickets if ticket.key == key]
            if of_key and not any(ticket.granted for ticket in of_key):
                done = threading.Event()
                for ticket in of_key:
                    assert ticket.future is not None
                    ticket.future.add_done_callback(lambda _, done=done: done.set())
                assert done.wait(20), f"nobody holds {key}, and nobody is let in: {of_key}"

    @invariant()
    def exclusive(self) -> None:
        held = [ticket for _, ticket in self.tickets if ticket.granted]
        for number, one in enumerate(held):
            for other in held[:number]:
                assert one.key != other.key or one.mode.compatible(other.mode), f"{one} and {other}"

    def teardown(self) -> None:
        while self.tickets:
            self.progress()
            for item in [item for item in self.tickets if item[1].granted]:
                self.tickets.remove(item)
                item[0].release(item[1])
        for table in self.tables:
            for key in KEYS:
                ticket = table.request(caller(), key, Mode.EXCLUSIVE)
                assert wait(ticket, 20)
                assert ticket.token > self.last[key]
                self.last[key] = ticket.token
                table.release(ticket)
            table.close()
        self.temporary.cleanup()


FilesModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestFilesModel = FilesModel.TestCase


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("model", "examples"), [(TableModel, 10_000), (FilesModel, 2_000)])
def test_models_for_long(model: type[RuleBasedStateMachine], examples: int) -> None:
    run_state_machine_as_test(model, settings=settings(max_examples=examples, stateful_step_count=50, deadline=None))


@contextmanager
def inside_the_mutex(table: LockTable) -> Iterator[None]:
    """Another thread stands in the middle of `holders` while the block runs."""
    entered, leave = threading.Event(), threading.Event()

    def holders(self: Any) -> Iterator[Any]:
        entered.set()
        assert leave.wait(20)
        return iter(())

    domain = table._domains["db:a"]
    kind = type("Slow", (type(domain),), {"holders": holders, "__slots__": ()})
    domain.__class__ = kind
    thread = threading.Thread(target=table.holders, args=("db:a",))
    thread.start()
    assert entered.wait(20)
    try:
        yield
    finally:
        leave.set()
        thread.join()


def test_release_waits_for_nobody_and_is_not_forgotten(tmp_path: Path) -> None:
    for table in (LockTable(), LockTable(FileBackend(tmp_path / "locks"))):
        held = table.request(caller(), "db:a", Mode.EXCLUSIVE)
        waiting = table.request(caller(), "db:a", Mode.EXCLUSIVE)
        with inside_the_mutex(table):
            table.release(held)
            assert not waiting.granted
        assert wait(waiting, 20), "the thread that left the mutex did not do the release"


def test_a_finalizer_inside_the_table_may_release(tmp_path: Path) -> None:
    """A generator that is collected while its thread changes the table releases from in there."""
    table = LockTable()
    held = table.request(caller(), "db:a", Mode.EXCLUSIVE)

    def holding() -> Iterator[None]:
        try:
            yield
        finally:
            table.release(held)

    generator = holding()
    next(generator)

    class Slow(table_module.Domain):
        __slots__ = ()

        def holders(self) -> Iterator[Any]:
            nonlocal generator
            del generator
            gc.collect()
            return iter(())

    table._domains["db:a"].__class__ = Slow
    table.holders("db:a")
    assert not held.granted
    assert table.request(caller(), "db:a", Mode.EXCLUSIVE).granted


@pytest.mark.parametrize("files", [False, True])
@pytest.mark.parametrize("scene", ["request", "hand over", "give up", "inside"])
def test_an_interrupt_at_any_line_leaves_nothing_behind(tmp_path: Path, scene: str, files: bool) -> None:
    line = 0
    happened = True
    while happened:
        line += 1
        table = LockTable(FileBackend(tmp_path / "locks")) if files else LockTable()
        claim, other = caller("one"), caller("other")
        if scene == "request":
            happened = interrupt(line, partial(table.request, claim, "db:a", Mode.EXCLUSIVE))
        else:
            held = table.request(claim, "db:a", Mode.EXCLUSIVE)
            inner = caller("inner", claim) if scene == "inside" else other
            next_one = table.request(inner, "db:a", Mode.SHARED)
            released = next_one if scene == "give up" else held
            happened = interrupt(line, partial(table.release, released))
            if scene == "hand over":
                if line == 1:
                    table.release(released)  # it had not begun
                table.holders("db:a")  # anybody's next step finishes what was broken off
                assert wait(next_one, 5), f"line {line}: never granted"
            table.release(next_one)
        for one in (claim, other):
            table.release_all(one)
        for mode in (Mode.SHARED, Mode.EXCLUSIVE):
            ticket = table.request(caller(), "db:a", mode)
            assert ticket.granted, f"line {line}: {table.holders('db:a')}"
            table.release(ticket)
        if files:
            with_other = LockTable(FileBackend(tmp_path / "locks"))
            ticket = with_other.request(caller(), "db:a", Mode.EXCLUSIVE)
            assert ticket.granted, f"line {line}: held between processes"
            with_other.release(ticket)
            with_other.close()
        table.close()
    assert line > 10


def test_a_hundred_thousand_keys_leave_nothing() -> None:
    table = LockTable()
    for number in range(100_000):
        table.release(table.request(caller(), f"db:{number}", Mode.EXCLUSIVE))
    assert len(table._domains) <= granting_module.IDLE


@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_many_resources_in_one_run_leave_no_memory_and_no_descriptors(tmp_path: Path, count: int) -> None:
    """Whole calls, each on another file or key: what is remembered of them is bounded."""
    guard = Guard(root=tmp_path, durable=False)
    kept = [guard.resources._known, guard.resources._plain, guard._batches, guard.outlines, guard._owners]
    half, sizes = count // 2, []
    tracemalloc.start()
    try:
        for number in range(count):
            with guard.hold(writes=f"db:{number}" if number % 2 else f"notes/{number}.md"):
                pass
            if number in (half - 1, count - 1):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    table = guard.home.locks
    assert len(table._domains) <= granting_module.IDLE
    assert all(len(cache) <= 2_001 for cache in kept)
    if half > 10_000:  # what is remembered on purpose (who wrote last) is full by then; caches are emptied when full
        assert sizes[1] - sizes[0] < 80 * half, "grew with the number of resources"
    assert table._backend.maps <= len(table._domains)  # type: ignore[union-attr]
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) < 4 * granting_module.IDLE + 60
    assert table.statistics().keys == ()


def test_many_held_keys_are_swept_rarely() -> None:
    table = LockTable()
    sweeps = 0

    class Counting(LockTable):
        def _sweep(self, leave: int, spare: Any = None) -> None:
            nonlocal sweeps
            sweeps += 1
            super()._sweep(leave, spare)

    table.__class__ = Counting
    tickets = [table.request(caller(), f"db:{number}", Mode.EXCLUSIVE) for number in range(5000)]
    assert all(ticket.granted for ticket in tickets)
    assert sweeps < 20


def test_an_intention_is_for_directories() -> None:
    with pytest.raises(ValueError, match="no directory"):
        LockTable().request(caller(), "db:a", Mode.INTENT_SHARED)


def test_a_blocked_loop_waits_for_what_its_thread_waits_for() -> None:
    """A coroutine's claim cannot end while its loop's thread is blocked; waiting for it then is seen as a cycle."""
    table = LockTable()
    coroutine = caller("coroutine", loop=7)
    table.request(coroutine, "db:a", Mode.EXCLUSIVE)
    thread = caller("thread")
    held = table.request(thread, "db:b", Mode.EXCLUSIVE)
    blocked = table.request(Claim(Owner("sync", "run", "tool")), "db:b", Mode.EXCLUSIVE)
    from agentguard.locks.cycles import BLOCKED_LOOPS

    BLOCKED_LOOPS[7] = blocked
    try:
        with pytest.raises(Deadlock, match="coroutine"):
            table.request(thread, "db:a", Mode.EXCLUSIVE)
    finally:
        del BLOCKED_LOOPS[7]
    table.release(held)


def test_modes() -> None:
    for one in Mode:
        for other in Mode:
            assert one.compatible(other) == other.compatible(one)
            joined = one.join(other)
            assert joined is other.join(one)
            assert joined.covers(one)
            assert joined.covers(other)
            for third in Mode:
                if one.covers(other) and one.compatible(third):
                    assert other.compatible(third), "what covers more excludes at least as much"
