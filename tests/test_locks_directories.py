"""Directories: intentions that are held on trust until the first time somebody locks the directory itself."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from locks_support import file_of, interrupt, staged, use

from agentguard.exceptions import LockLost
from agentguard.locks import BeginAgain, Claim, FileBackend, LockTable, Mode, Ticket, wait
from agentguard.locks import directory as directory_module
from agentguard.locks.directory import DirectoryFile
from agentguard.locks.keyfile import KeyFile
from agentguard.testing import caller

IS, IX, S, X = Mode
WRITE = (("file:", IX), ("file:d/", IX), ("file:d/a", X))
READ = (("file:", IS), ("file:d/", IS), ("file:d/a", S))
WHOLE = (("file:", IX), ("file:d/", X))


def mark(folder: Path, key: str = "file:d/") -> Path:
    return file_of(folder, key).with_suffix(".dir")


def take(table: LockTable, wanted: Sequence[tuple[str, Mode]], claim: Claim | None = None) -> list[Ticket]:
    """Acquire everything as a call does; begins again where it has to."""
    claim = claim or caller()
    while True:
        tickets: list[Ticket] = []
        try:
            while len(tickets) < len(wanted):
                tickets += table.request_all(claim, wanted[len(tickets) :])
                assert wait(tickets[-1], 20), tickets[-1]
        except BeginAgain:
            table.release_all(claim)
        else:
            return tickets


@contextmanager
def in_thread(body: Callable[[], object]) -> Iterator[threading.Event]:
    """Run `body` beside the block; the event is set when it has ended."""
    done = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failed.append(error)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        thread.join(30)
        assert not failed, failed


def test_an_intention_costs_no_lock_until_the_directory_is_locked(
    folder: Path, open_table: Callable[[], LockTable]
) -> None:
    one, two = open_table(), open_table()
    claim = caller()
    take(one, WRITE, claim)
    assert {path.name for path in folder.iterdir()} == {file_of(folder, "file:d/a").name}
    assert take(two, (("file:", IX), ("file:d/", IX), ("file:d/b", X))), "files beneath exclude each other only"
    assert not mark(folder).exists()
    one.release_all(claim)
    assert claim.trust is None


@pytest.mark.parametrize("beneath", [WRITE, READ])
def test_who_locks_a_directory_waits_for_what_is_locked_beneath_on_trust(
    folder: Path, open_table: Callable[[], LockTable], beneath: Sequence[tuple[str, Mode]]
) -> None:
    one, two = open_table(), open_table()
    claim, whole = caller(), caller()
    take(one, beneath, claim)
    with in_thread(lambda: take(two, WHOLE, whole)) as done:
        staged(folder, "file:d/a")  # it stands in line for what lies beneath
        assert mark(folder).read_bytes() == b""
        assert not done.is_set()
        one.release_all(claim)
        assert done.wait(20)
    assert mark(folder).read_bytes() == directory_module.DRAINED
    with pytest.raises(BeginAgain):
        one.request_all(claim, beneath)
    one.release_all(claim)
    late = one.request_all(claim, beneath)
    assert not late[-1].granted
    assert late[-1].key == "file:d/", "from now on the intention is a lock"
    two.release_all(whole)
    assert wait(late[-1], 20)


CALLS = (
    WRITE,
    READ,
    (("file:", IX), ("file:d/", IX), ("file:d/b", X)),
    (("file:", IX), ("file:d/", IX), ("file:d/e/", IX), ("file:d/e/c", X)),
    (("file:", IX), ("file:d/", IX), ("file:d/e/", X)),
    WHOLE,
    (("file:", IS), ("file:d/", S)),
    (("file:", X),),
    (("file:", IX), ("file:f", X)),
)


def excludes(one: Sequence[tuple[str, Mode]], other: Sequence[tuple[str, Mode]]) -> bool:
    """Whether two calls must not run at the same time, told without intentions."""
    for key, mode in one:
        for its_key, its_mode in other:
            related = key.startswith(its_key) or its_key.startswith(key)
            if related and not mode.intent and not its_mode.intent and X in (mode, its_mode):
                return True
    return False


class Calling:
    """One call of one process: what it wants, how far it has come."""

    def __init__(self, table: LockTable, wanted: Sequence[tuple[str, Mode]]) -> None:
        self.table, self.wanted, self.claim = table, wanted, caller()
        self.tickets: list[Ticket] = []
        self.go_on()

    @property
    def runs(self) -> bool:
        return len(self.tickets) == len(self.wanted) and self.tickets[-1].granted

    def go_on(self) -> None:
        """Ask for what is missing, up to the first wait."""
        while not self.runs:
            try:
                if self.tickets and not wait(self.tickets[-1], 0):
                    return
                self.tickets += self.table.request_all(self.claim, self.wanted[len(self.tickets) :])
            except BeginAgain:
                self.end()

    def end(self) -> None:
        self.table.release_all(self.claim)
        self.tickets = []


class CallsModel(RuleBasedStateMachine):
    """Calls of three processes on a fresh folder: never two at once that exclude each other, and never stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.tables = [LockTable(FileBackend(self.folder / "locks")) for _ in range(3)]
        self.calls: list[Calling] = []

    @rule(number=st.integers(0, 2), wanted=st.sampled_from(CALLS))
    def begin(self, number: int, wanted: Sequence[tuple[str, Mode]]) -> None:
        self.calls.append(Calling(self.tables[number], wanted))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1))).end()

    @rule()
    def go_on(self) -> None:
        for call in self.calls:
            call.go_on()

    def progress(self) -> None:
        """Where nobody runs somebody must come to run."""
        end = time.monotonic() + 20
        while not any(call.runs for call in self.calls):
            assert time.monotonic() < end, [call.tickets[-1] for call in self.calls]
            self.go_on()

    @invariant()
    def exclusive(self) -> None:
        running = [call.wanted for call in self.calls if call.runs]
        for number, one in enumerate(running):
            for other in running[:number]:
                assert not excludes(one, other), f"{one} and {other}"

    def teardown(self) -> None:
        try:
            while self.calls:
                self.progress()
                self.exclusive()
                for call in [call for call in self.calls if call.runs]:
                    self.calls.remove(call)
                    call.end()
        finally:
            for call in self.calls:
                call.end()
            for table in self.tables:
                table.close()
            shutil.rmtree(self.folder, ignore_errors=True)  # a thread may just be giving up there


CallsModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCallsModel = CallsModel.TestCase


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_calls_for_long() -> None:
    run_state_machine_as_test(CallsModel, settings=settings(max_examples=3_000, stateful_step_count=50, deadline=None))


@pytest.mark.parametrize("name", ["look", "_free_once"])
def test_the_model_sees_what_protects_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(DirectoryFile, name, lambda *_: True)
    with pytest.raises((AssertionError, Flaky)):  # it was seen, and may not show a second time: threads are at work
        run_state_machine_as_test(
            CallsModel,
            settings=settings(
                max_examples=2_000, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate]
            ),
        )


def race(monkeypatch: pytest.MonkeyPatch, at: str, then: Callable[[], object]) -> None:
    """Do `then` once, between the lock of what lies beneath and the look at the mark, or right after the look."""
    look = DirectoryFile.look
    todo = [then]

    def in_between(self: DirectoryFile) -> bool:
        if at == "before the look" and todo:
            todo.pop()()
        trusted = look(self)
        if at == "after the look" and todo and self.key == "file:d/":
            todo.pop()()
        return trusted

    monkeypatch.setattr(DirectoryFile, "look", in_between)


@pytest.mark.parametrize("at", ["before the look", "after the look"])
def test_the_first_directory_lock_races_a_lock_beneath(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """One of the two sees the other, wherever they meet."""
    two = FileBackend(folder).open("file:d/")
    got = threading.Event()

    def whole() -> None:
        assert two.acquire(X, lambda: True)
        two.complete()
        two.step_out()
        got.set()

    thread = threading.Thread(target=whole)

    def meet() -> None:
        thread.start()
        staged(folder, "file:d/a")

    race(monkeypatch, at, meet)
    one, claim = open_table(), caller()
    if at == "before the look":
        with pytest.raises(BeginAgain):
            one.request_all(claim, WRITE)
        one.release_all(claim)
        assert got.wait(20), "what saw the mark has given way"
        again = one.request_all(claim, WRITE)
        assert not again[-1].granted
        two.release(None)
        assert wait(again[-1], 20)
    else:
        assert one.request_all(claim, WRITE)[-1].granted
        assert not got.wait(0.05), "it waits for what did not see the mark"
        one.release_all(claim)
        assert got.wait(20)
        two.release(None)
    thread.join()
    two.close()


def test_a_look_serves_all_that_follow_until_somebody_wants_the_directory(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    look = DirectoryFile.look
    monkeypatch.setattr(DirectoryFile, "look", lambda self: (looks.append(self.key), look(self))[1])

    def work(table: LockTable) -> list[str]:
        looks.clear()
        claim = caller()
        take(table, WRITE, claim)
        table.release_all(claim)
        return [*looks]

    one, two, three = open_table(), open_table(), open_table()
    assert work(one) == ["file:", "file:d/"]
    use(one, "file:d/a")
    assert work(one) == []
    work(two)
    use(two, "file:d/a")
    assert work(two) == [], "whoever looked"
    use(three, "file:d/", X)
    assert "file:d/" in work(one), "the note is wiped"
    assert one.request_all(caller(), WRITE)[1].table._domains["file:d/"].have is IX


def test_a_look_that_left_a_directory_out_serves_nobody(open_table: Callable[[], LockTable]) -> None:
    one = open_table()
    for wanted in ((WRITE[0], WRITE[2]), (WRITE[1], WRITE[2])):
        for _ in range(3):
            claim = caller()
            take(one, wanted, claim)
            assert not one._domains["file:d/a"].lock.vouches  # type: ignore[union-attr]
            one.release_all(claim)


def test_a_look_at_other_directories_is_none(folder: Path, open_table: Callable[[], LockTable]) -> None:
    """One call beneath two directories, one of them on trust and one by a lock: as many looks as there are above."""
    one, two = open_table(), open_table()
    beneath = (("file:", IX), ("file:e/", IX), ("file:e/c", X))
    for _ in range(3):
        claim = caller()
        take(two, beneath, claim)
        two.release_all(claim)
    use(one, "file:e/", X)
    claim = caller()
    take(one, (*WRITE, *beneath[1:]), claim)
    one.release_all(claim)
    whole = take(one, (("file:", IX), ("file:e/", X)))
    with pytest.raises(BeginAgain):
        two.request_all(caller(), beneath)
    assert whole[-1].granted


def test_a_note_that_is_lost_with_the_file_is_not_believed(folder: Path, open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    for _ in range(3):
        claim = caller()
        take(one, WRITE, claim)
        one.release_all(claim)
    assert one._domains["file:d/a"].lock.vouches  # type: ignore[union-attr]
    file_of(folder, "file:d/a").write_bytes(b"")
    use(two, "file:d/", X)
    file_of(folder, "file:d/a").write_bytes(b"")
    held = take(two, WHOLE)
    with pytest.raises(BeginAgain):
        one.request_all(caller(), WRITE)
    assert held[-1].granted


def test_without_the_look_two_are_in(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryFile, "look", lambda self: True)
    one, two = open_table(), open_table()
    use(two, "file:d/", X)
    held = take(two, WHOLE)
    assert one.request_all(caller(), WRITE)[-1].granted, "the look is what forbids this"
    assert held[-1].granted


def test_without_waiting_for_what_lies_beneath_two_are_in(
    open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = open_table(), open_table()
    held = take(one, WRITE)
    monkeypatch.setattr(DirectoryFile, "_free_once", lambda *_: True)
    assert two.request(caller(), "file:d/", X).granted, "waiting once for each lock beneath is what forbids this"
    assert held[-1].granted


def test_a_waiter_that_was_granted_too_late_begins_again(folder: Path, open_table: Callable[[], LockTable]) -> None:
    """It stood in line for a file, its intention on trust, when somebody began to lock the directory."""
    one, two, three = open_table(), open_table(), open_table()
    first, second, whole = caller(), caller(), caller()
    take(one, WRITE, first)
    waiting = two.request_all(second, WRITE)
    staged(folder, "file:d/a")
    assert [ticket.granted for ticket in waiting] == [True, True, False]
    with in_thread(lambda: take(three, WHOLE, whole)) as done:
        while not mark(folder).exists():
            pass
        one.release_all(first)
        with pytest.raises(BeginAgain):
            wait(waiting[-1], 20)
        two.release_all(second)
        assert done.wait(20)
        again = two.request_all(second, WRITE)
        assert again[-1].key == "file:d/"
        three.release_all(whole)
        assert wait(again[-1], 20)


def test_a_call_inside_one_that_is_on_trust_takes_the_lock(folder: Path, open_table: Callable[[], LockTable]) -> None:
    """The call around it may end first: its file protects the directory no longer then."""
    one, two = open_table(), open_table()
    outer, whole = caller("outer"), caller()
    take(one, WRITE, outer)
    inner = caller("inner", outer)
    with in_thread(lambda: take(two, WHOLE, whole)) as done:
        staged(folder, "file:d/a")
        take(one, (("file:", IX), ("file:d/", IX), ("file:d/b", X)), inner)
        one.release_all(outer)
        assert not done.wait(0.05), "the inner call still writes beneath"
        one.release_all(inner)
        assert done.wait(20)
    two.release_all(whole)


def test_the_first_directory_lock_of_a_killed_process_is_finished_by_the_next(
    folder: Path, open_table: Callable[[], LockTable]
) -> None:
    use(open_table(), "file:d/a")
    mark(folder).touch()  # it had made the mark, and was killed while it waited
    one, claim = open_table(), caller()
    take(one, WRITE, claim)
    two = open_table()
    waiting = two.request(caller(), "file:d/", X)
    assert not waiting.granted
    one.release_all(claim)
    assert wait(waiting, 20)
    assert mark(folder).read_bytes() == directory_module.DRAINED


def test_a_mark_that_somebody_removed_is_made_again(folder: Path, open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    held = take(one, WHOLE)
    mark(folder).unlink()
    with pytest.raises(LockLost):
        one.verify(held[-1])
    one.release_all(held[-1].claim)
    use(two, "file:d/", X)
    assert mark(folder).read_bytes() == directory_module.DRAINED


def test_a_file_that_is_just_being_made_is_waited_for(folder: Path, open_table: Callable[[], LockTable]) -> None:
    """It does not say its key yet: it may be beneath."""
    import fcntl

    table = open_table()
    with (folder / ("0" * 32)).open("w") as new:
        fcntl.flock(new, fcntl.LOCK_EX)
        waiting = table.request(caller(), "file:d/", X)
        assert not wait(waiting, 0.02)
    assert wait(waiting, 20)
    table.release(waiting)


def test_many_lock_files_are_waited_for_on_a_thread(
    open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "AT_ONCE_FILES", 3)
    table = open_table()
    for number in range(5):
        use(table, f"file:d/{number}")
    first = table.request(caller(), "file:d/", X)
    assert not first.granted
    assert wait(first, 20)
    table.release(first)
    assert table.request(caller(), "file:d/", X).granted, "only once"


def test_an_interrupt_at_any_line_of_a_call_leaves_nothing_behind(
    folder: Path, open_table: Callable[[], LockTable]
) -> None:
    other = open_table()
    line, happened = 0, True
    while happened:
        line += 1
        table, claim = LockTable(FileBackend(folder)), caller()
        if line % 2:  # the second call of a process takes the short way
            take(table, WRITE, first := caller())
            table.release_all(first)
        happened = interrupt(line, lambda table=table, claim=claim: table.request_all(claim, WRITE))
        table.release_all(claim)
        for key in ("file:d/a", "file:d/", "file:"):
            for one in (table, other):
                ticket = one.request(caller(), key, X if key[-1] != "/" else IX)
                assert ticket.granted, f"line {line}: {one.holders(key)}"
                one.release(ticket)
        table.close()
    assert line > 30


def test_what_is_not_beneath_is_not_waited_for(open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    take(one, (("file:", IX), ("file:e/", IX), ("file:e/a", X), ("file:f", X)))
    use(one, "db:a", X)
    assert two.request(caller(), "file:d/", X).granted


def test_two_that_lock_their_own_directories_do_not_wait_for_each_other(open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    take(one, (("file:", IX), ("file:d/", X), ("file:x", X)))
    take(two, (("file:", IX), ("file:e/", X), ("file:y", X)))


@pytest.mark.parametrize(("first", "second"), [(IX, S), (S, IX)])
@pytest.mark.parametrize("moment", [1, 2])
def test_a_writer_beneath_and_a_reader_of_the_whole_race(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: Mode, second: Mode, moment: int
) -> None:
    """Each looks for the other while the other is in the middle of looking: at most one comes in."""
    one, two = (FileBackend(folder).open("file:d/") for _ in range(2))
    assert one.try_acquire(S)
    one.release(None)
    attempt = KeyFile._attempt
    steps = 0
    came: list[bool] = []

    def in_between(self: KeyFile, fd: int, operation: int) -> bool:
        nonlocal steps
        done = attempt(self, fd, operation)
        if self is one:
            steps += 1
            if steps == moment:
                came.append(two.try_acquire(second))
        return done

    monkeypatch.setattr(KeyFile, "_attempt", in_between)
    assert not (one.try_acquire(first) and came[0])
    one.release(None)
    two.release(None)
    for file, mode in ((one, first), (two, second)):
        assert file.try_acquire(mode), "nothing is left of the race"
        file.close()


def test_a_directory_that_is_held_and_wanted_in_more_ways(open_table: Callable[[], LockTable]) -> None:
    """What one process holds follows what its callers need, up and down, without keeping others out for longer."""
    one, two = open_table(), open_table()
    use(one, "file:d/", S)
    reader = one.request(caller(), "file:d/", IS)
    whole = one.request(caller(), "file:d/", S)
    assert whole.granted
    writer = two.request(caller(), "file:d/", IX)
    assert not writer.granted
    one.release(whole)
    assert wait(writer, 20), "only an intention to read is left, which excludes no writer beneath"
    assert reader.granted
    again = one.request(caller(), "file:d/", S)
    assert not again.granted
    one.release(reader)
    two.release(writer)
    assert wait(again, 20)
    one.release(again)


def test_waiting_for_more_of_a_directory_holds_nothing(folder: Path, open_table: Callable[[], LockTable]) -> None:
    """A process that holds an intention and wants more must not stand in line behind one that waits for it."""
    one, two, three = open_table(), open_table(), open_table()
    use(one, "file:d/", S)
    reader = one.request(caller(), "file:d/", IS)
    blocker = three.request(caller(), "file:d/", S)
    assert blocker.granted
    more = one.request(caller(), "file:d/", IX)
    whole = two.request(caller(), "file:d/", X)
    staged(folder, "file:d/")
    assert not more.granted
    three.release(blocker)
    one.release(reader)
    for table, ticket in ((two, whole), (one, more)):
        assert wait(ticket, 20)
        table.release(ticket)


def test_who_is_beneath_a_directory(open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    claim = caller("below")
    for key, mode in (("file:", IX), ("file:d/", IX), ("file:d/a", X)):
        assert one.request(claim, key, mode).granted
    waiting = two.request(caller(), "file:d/", X)
    assert [(holder.key, holder.agent) for holder in two.blockers(waiting)] == [("file:d/a", "below")]
    two.release(waiting)
    one.release_all(claim)
