"""Suites that prove a part of AgentGuard keeps its promise, for our own parts and for those of others.

A lock backend is proved by a subclass of `LockContract`, which pytest (or anything that calls its `test_` methods)
runs. None of the tests sleeps and hopes: every interleaving is forced.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .exceptions import AgentGuardError, Deadlock, LockLost
from .locks import BeginAgain, Claim, LockTable, Mode, Owner, Ticket, await_, wait

__all__ = ["LockContract", "caller"]

LONG = 20.0  # seconds after which something that must come is missing
INTENT_SHARED, INTENT_EXCLUSIVE, SHARED, EXCLUSIVE = Mode


def caller(agent: str = "agent", inside: Claim | None = None, loop: int | None = None) -> Claim:
    """The claim of one guarded call."""
    return Claim(Owner(agent, "run", "tool", loop), inside)


@contextmanager
def _raises(kind: type[AgentGuardError]) -> Iterator[list[AgentGuardError]]:
    caught: list[AgentGuardError] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


class LockContract:
    """What `agentguard.locks` promises of any `LockTable`. Subclass it and define `open`.

    A backend whose shared locks and intentions are exclusive between processes says so with `shares = False`.
    """

    shares = True

    def open(self) -> LockTable:
        """A table for the place under test: each call another one, which stands for another process.

        Tables that are not meant to exclude each other (in one process only) are the same table at each call.
        """
        raise NotImplementedError

    def setup_method(self) -> None:
        """Called before each test."""
        self.one = self.open()
        self.two = self.open()

    def teardown_method(self) -> None:
        """Called after each test."""
        self.one.close()
        if self.two is not self.one:
            self.two.close()

    def hold(self, table: LockTable, key: str, mode: Mode = EXCLUSIVE, claim: Claim | None = None) -> Ticket:
        """A ticket that must be granted, now or soon."""
        ticket = table.request(claim or caller(), key, mode)
        assert wait(ticket, LONG), f"{ticket} was not granted: {table.holders(key)}"
        return ticket

    # -- exclusion -------------------------------------------------------------------------------------------------

    def test_modes_exclude_what_they_must_and_nothing_else(self) -> None:
        for other in (self.one, self.two):
            self.one.release(self.hold(self.one, "file:d/", SHARED))  # the first SHARED of a directory may wait longer
            for held in Mode:
                for wanted in Mode:
                    first = self.hold(self.one, "file:d/", held)
                    second = other.request(caller(), "file:d/", wanted)
                    if held.compatible(wanted) and (self.shares or other is self.one):
                        assert wait(second, LONG), f"{wanted} waits for {held}"
                    else:
                        assert not second.granted, f"{wanted} beside {held}"
                        self.one.release(first)
                        assert wait(second, LONG), f"{wanted} was not granted after {held}"
                    other.release(second)
                    self.one.release(first)

    def test_modes_exclude_on_a_directory_seen_for_the_first_time(self) -> None:
        for number, other in enumerate((self.one, self.two)):
            for held in Mode:
                for wanted in Mode:
                    key = f"file:d{number}/{held.index}{wanted.index}/"
                    first = self.hold(self.one, key, held)
                    second = other.request(caller(), key, wanted)
                    if not held.compatible(wanted):
                        assert not second.granted, f"{wanted} beside {held}"
                    self.one.release(first)
                    assert wait(second, LONG)
                    other.release(second)

    def test_a_directory_excludes_everything_beneath_it(self) -> None:
        for other in (self.one, self.two) if self.shares else (self.one,):
            claim = caller()
            first = self.hold(self.one, "file:", INTENT_EXCLUSIVE, claim)
            second = self.hold(self.one, "file:d/", EXCLUSIVE, claim)
            root = self.hold(other, "file:", INTENT_EXCLUSIVE)
            inside = other.request(caller(), "file:d/", INTENT_SHARED)
            elsewhere = self.hold(other, "file:e/", INTENT_EXCLUSIVE)
            assert not inside.granted
            self.one.release(second)
            assert wait(inside, LONG)
            for ticket in (inside, root, elsewhere):
                other.release(ticket)
            self.one.release(first)

    # -- whole calls -----------------------------------------------------------------------------------------------

    def take(self, table: LockTable, wanted: Sequence[tuple[str, Mode]], claim: Claim) -> list[Ticket]:
        """Everything that a call wants, now or soon."""
        while True:
            tickets: list[Ticket] = []
            try:
                while len(tickets) < len(wanted):
                    tickets += table.request_all(claim, wanted[len(tickets) :])
                    assert wait(tickets[-1], LONG), f"{tickets[-1]}: {table.holders(tickets[-1].key)}"
            except BeginAgain:
                table.release_all(claim)
            else:
                return tickets

    def test_several_keys_are_taken_in_order_up_to_one_that_is_held(self) -> None:
        held = self.hold(self.two, "db:b")
        claim = caller()
        wanted = [("db:a", EXCLUSIVE), ("db:b", EXCLUSIVE), ("db:c", EXCLUSIVE)]
        first, second = self.one.request_all(claim, wanted)
        assert first.granted
        assert not second.granted
        later, earlier = (self.two.request(caller(), key, EXCLUSIVE) for key in ("db:c", "db:a"))
        assert later.granted, "what comes later is not taken yet"
        assert not earlier.granted
        for ticket in (later, earlier, held):
            self.two.release(ticket)
        assert wait(second, LONG)
        self.one.release_all(claim)
        for key in ("db:a", "db:b"):
            self.two.release(self.hold(self.two, key))
        assert not claim.held

    def test_files_beneath_a_directory_do_not_exclude_each_other(self) -> None:
        for number, mode in enumerate((EXCLUSIVE, SHARED)):
            intent = INTENT_EXCLUSIVE if mode is EXCLUSIVE else INTENT_SHARED
            for other in (self.one, self.two):
                claims = [caller(), caller()]
                for claim, table, name in zip(claims, (self.one, other), "ab", strict=True):
                    above = [("file:", intent), (f"file:{number}/", intent)]
                    tickets = table.request_all(claim, [*above, (f"file:{number}/{name}", mode)])
                    assert len(tickets) == 3
                    assert all(ticket.granted for ticket in tickets)
                for claim in claims:
                    LockTable.release_all(claim)

    def test_a_directory_excludes_calls_beneath_from_the_first_time_on(self) -> None:
        """Whoever comes first, and whether or not the directory was ever locked as such before."""
        beneath = [("file:", INTENT_EXCLUSIVE), ("file:d/", INTENT_EXCLUSIVE), ("file:d/a", EXCLUSIVE)]
        for whole_mode in (EXCLUSIVE, SHARED):
            whole = [("file:", INTENT_EXCLUSIVE), ("file:d/", whole_mode)]
            for first, second in ((beneath, whole), (whole, beneath)) * 2:
                early, late = caller("early"), caller("late")
                self.take(self.one, first, early)
                with ThreadPoolExecutor(1) as pool:
                    coming = pool.submit(self.take, self.two, second, late)
                    try:
                        for _ in range(50):
                            assert not coming.done()
                            time.sleep(0)
                    finally:
                        LockTable.release_all(early)
                    assert all(ticket.granted for ticket in coming.result(LONG))
                LockTable.release_all(late)

    # -- single keys -----------------------------------------------------------------------------------------------

    def test_other_keys_are_not_touched(self) -> None:
        held = self.hold(self.one, "db:a")
        assert self.two.request(caller(), "db:b", EXCLUSIVE).granted
        assert not self.two.request(caller(), "db:a", SHARED).granted
        self.one.release(held)

    def test_threads_of_two_tables_never_meet(self) -> None:
        inside: list[int] = []
        tokens: list[int] = []
        barrier = threading.Barrier(4)

        def work(table: LockTable) -> None:
            barrier.wait(LONG)
            for _ in range(25):
                ticket = self.hold(table, "db:a")
                inside.append(1)
                assert len(inside) == 1
                tokens.append(ticket.token)
                inside.pop()
                table.release(ticket)

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, table) for table in (self.one, self.two) * 2]:
                done.result()
        assert len(tokens) == 100
        assert tokens == sorted(set(tokens))

    # -- changes ---------------------------------------------------------------------------------------------------

    def test_a_change_is_told_to_later_holders(self) -> None:
        reader = self.hold(self.one, "db:a", SHARED)
        assert self.one.last_change(reader) is None
        self.one.release(reader)
        for table, agent in ((self.one, "ann"), (self.two, "bob"), (self.one, "ann")):
            writer = self.hold(table, "db:a", EXCLUSIVE, caller(agent))
            table.change(writer, (1, 2, 3, 2**64 - 1))
            table.release(writer)
            idle = self.hold(self.one, "db:a", EXCLUSIVE, caller("changes nothing"))
            seen = [self.one.last_change(idle)]
            self.one.release(idle)
            for other in (self.one, self.two):
                later = self.hold(other, "db:a", SHARED)
                seen.append(other.last_change(later))
                other.release(later)
            for change in seen:
                assert change is not None
                assert (change.agent, change.run, change.tool) == (agent, "run", "tool")
                assert change.numbers == (1, 2, 3, 2**64 - 1)
                assert 0 < change.token < self._token("db:a")
                assert abs(time.time() - change.at) < LONG

    def test_a_claim_may_say_at_once_that_it_changes_what_it_gets(self) -> None:
        for number, table in enumerate((self.one, self.two, self.two, self.one)):
            claim = caller(str(number // 2))
            claim.changes = True
            writer = self.hold(table, "db:a", EXCLUSIVE, claim)
            change = table.last_change(writer)
            assert change is not None
            assert (change.token, change.agent, change.numbers) == (writer.token, str(number // 2), (0, 0, 0, 0))
            table.release(writer)
            reader = self.hold(self.two, "db:a", SHARED)
            assert self.two.last_change(reader) == change
            self.two.release(reader)

    def _token(self, key: str) -> int:
        ticket = self.hold(self.one, key)
        self.one.release(ticket)
        return ticket.token

    # -- order -----------------------------------------------------------------------------------------------------

    def test_first_in_first_out(self) -> None:
        held = self.hold(self.one, "db:a")
        line = [self.one.request(caller(str(n)), "db:a", EXCLUSIVE) for n in range(5)]
        for number, ticket in enumerate(line):
            self.one.release(held)
            assert wait(ticket, LONG)
            assert not any(later.granted for later in line[number + 1 :])
            held = ticket
        self.one.release(held)

    def test_a_waiting_writer_is_not_passed_by_readers(self) -> None:
        reader = self.hold(self.one, "db:a", SHARED)
        writer = self.one.request(caller(), "db:a", EXCLUSIVE)
        late = [self.one.request(caller(), "db:a", SHARED) for _ in range(3)]
        assert not writer.granted
        assert not any(ticket.granted for ticket in late)
        self.one.release(reader)
        assert wait(writer, LONG)
        assert not any(ticket.granted for ticket in late)
        self.one.release(writer)
        assert all(wait(ticket, LONG) for ticket in late), "readers are granted together"
        for ticket in late:
            self.one.release(ticket)

    def test_the_next_table_is_served(self) -> None:
        held = self.hold(self.one, "db:a")
        waiting = self.two.request(caller(), "db:a", EXCLUSIVE)
        assert not waiting.granted
        self.one.release(held)
        assert wait(waiting, LONG)
        self.two.release(waiting)

    # -- giving up, giving back ------------------------------------------------------------------------------------

    def test_a_wait_that_times_out_leaves_nothing(self) -> None:
        for table in (self.one, self.two):
            held = self.hold(self.one, "db:a")
            ticket = table.request(caller(), "db:a", EXCLUSIVE)
            assert not wait(ticket, 0)
            assert not wait(ticket, 0.001)
            table.release(ticket)
            self.one.release(held)
            self.one.release(self.hold(self.one, "db:a"))
            table.release(self.hold(table, "db:a"))

    def test_giving_up_lets_those_behind_pass(self) -> None:
        reader = self.hold(self.one, "db:a", SHARED)
        writer = self.one.request(caller(), "db:a", EXCLUSIVE)
        late = self.one.request(caller(), "db:a", SHARED)
        self.one.release(writer)
        assert wait(late, LONG)
        self.one.release(late)
        self.one.release(reader)

    def test_release_is_idempotent(self) -> None:
        first = self.hold(self.one, "db:a")
        self.one.release(first)
        second = self.hold(self.one, "db:a")
        self.one.release(first)
        assert second.granted
        assert not self.two.request(caller(), "db:a", EXCLUSIVE).granted
        self.one.release(second)
        self.one.release(second)

    def test_a_grant_that_nobody_waits_for_any_more_is_passed_on(self) -> None:
        held = self.hold(self.two, "db:a")
        gone = self.one.request(caller(), "db:a", EXCLUSIVE)
        self.one.release(gone)
        self.two.release(held)
        self.two.release(self.hold(self.two, "db:a"))
        assert not gone.granted

    def test_release_from_another_thread(self) -> None:
        held = self.hold(self.one, "db:a")
        waiting = self.one.request(caller(), "db:a", EXCLUSIVE)
        thread = threading.Thread(target=self.one.release, args=(held,))
        thread.start()
        assert wait(waiting, LONG)
        thread.join()
        self.one.release(waiting)

    # -- coroutines ------------------------------------------------------------------------------------------------

    def test_cancellation_at_every_moment(self) -> None:
        """Before the wait, during it, and after the grant but before the task runs again."""

        async def attempt(ticket: Ticket, table: LockTable) -> None:
            try:
                await await_(ticket, LONG)
                await asyncio.sleep(LONG)
            finally:
                table.release(ticket)

        async def main() -> None:
            for table in (self.one, self.two):
                for moment in ("before", "during", "granted", "holding"):
                    held = self.hold(self.one, "db:a")
                    ticket = table.request(caller(), "db:a", EXCLUSIVE)
                    task = asyncio.create_task(attempt(ticket, table))
                    await asyncio.sleep(0)
                    if moment == "before":
                        task = asyncio.create_task(attempt(ticket, table))
                    elif moment == "granted":
                        self.one.release(held)
                        assert ticket.future is not None
                        ticket.future.result(LONG)  # this blocks the loop: the task cannot have noticed
                    elif moment == "holding":
                        self.one.release(held)
                        assert await await_(ticket, LONG)
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    table.release(ticket)
                    self.one.release(held)
                    self.one.release(self.hold(self.one, "db:a"))

        asyncio.run(main())

    def test_waiting_blocks_no_loop(self) -> None:
        async def main() -> None:
            held = self.hold(self.one, "db:a")
            waiting = self.two.request(caller(), "db:a", EXCLUSIVE)
            task = asyncio.create_task(await_(waiting, LONG))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not task.done()
            self.one.release(held)
            assert await task
            self.two.release(waiting)
            again = self.hold(self.one, "db:a")
            late = self.two.request(caller(), "db:a", EXCLUSIVE)
            assert not await await_(late, 0.001)
            self.two.release(late)
            self.one.release(again)

        asyncio.run(main())

    def test_blocking_a_loop_for_its_own_coroutine_is_a_deadlock(self) -> None:
        async def main() -> None:
            held = self.hold(self.one, "db:a", claim=caller("coroutine", loop=id(asyncio.get_running_loop())))
            ticket = self.one.request(caller("sync"), "db:a", EXCLUSIVE)
            with _raises(Deadlock) as caught:
                wait(ticket, LONG)
            assert "coroutine" in str(caught[0])
            self.one.release(ticket)
            self.one.release(held)

        asyncio.run(main())

    # -- calls inside calls ----------------------------------------------------------------------------------------

    def test_a_call_inside_works_inside_the_hold(self) -> None:
        outer = caller("outer")
        held = self.hold(self.one, "db:a", EXCLUSIVE, outer)
        first, second = caller("first", outer), caller("second", outer)
        one = self.one.request(first, "db:a", EXCLUSIVE)
        two = self.one.request(second, "db:a", SHARED)
        assert one.granted
        assert one.token == held.token
        assert not two.granted, "siblings exclude each other"
        self.one.release(one)
        assert wait(two, LONG)
        assert self.one.request(caller("inner", second), "db:a", SHARED).granted
        assert not self.two.request(caller(), "db:a", SHARED).granted

    def test_a_hold_lasts_until_the_last_call_inside_has_ended(self) -> None:
        outer = caller("outer")
        held = self.hold(self.one, "db:a", EXCLUSIVE, outer)
        inner = self.one.request(caller("inner", outer), "db:a", EXCLUSIVE)
        outside = self.two.request(caller("outside"), "db:a", EXCLUSIVE)
        self.one.release(held)
        assert inner.granted
        assert not wait(outside, 0)
        assert "inner" in str(self.one.holders("db:a"))
        later = self.one.request(caller("later", outer), "db:a", EXCLUSIVE)
        assert not later.granted, "a call that has ended is no call around"
        self.one.release(later)
        self.one.release(inner)
        assert wait(outside, LONG)
        self.two.release(outside)

    def test_wanting_more_than_the_call_around_holds_is_a_deadlock(self) -> None:
        outer = caller("outer")
        self.hold(self.one, "db:a", SHARED, outer)
        assert self.one.request(caller("reader", outer), "db:a", SHARED).granted
        with _raises(Deadlock) as caught:
            self.one.request(caller("writer", outer), "db:a", EXCLUSIVE)
        assert all(name in str(caught[0]) for name in ("outer", "writer", "db:a"))

    def test_a_cycle_is_a_deadlock_at_once(self) -> None:
        outer, other = caller("outer"), caller("other")
        self.hold(self.one, "db:a", EXCLUSIVE, outer)
        held = self.hold(self.one, "db:b", EXCLUSIVE, other)
        waiting = self.one.request(other, "db:a", EXCLUSIVE)
        with _raises(Deadlock) as caught:
            self.one.request(caller("inner", outer), "db:b", EXCLUSIVE)
        assert all(name in str(caught[0]) for name in ("outer", "other", "inner", "db:a", "db:b"))
        assert len(caught[0].cycle) == 2
        self.one.release(waiting)
        ticket = self.one.request(caller("inner", outer), "db:b", EXCLUSIVE)
        self.one.release(held)
        assert wait(ticket, LONG)

    # -- facts -----------------------------------------------------------------------------------------------------

    def test_tokens_rise_with_every_exclusive_grant(self) -> None:
        last = 0
        for table in (self.one, self.two, self.one, self.one):
            ticket = self.hold(table, "db:a")
            assert ticket.token > last
            last = ticket.token
            table.release(ticket)
            for reading in (self.one, self.two):
                reader = self.hold(reading, "db:a", SHARED)
                assert reader.token == last
                reading.release(reader)

    def test_who_holds(self) -> None:
        assert self.one.holders("db:a") == ()
        held = self.hold(self.one, "db:a", claim=caller("somebody"))
        for table in (self.one, self.two):
            (holder,) = table.holders("db:a")
            assert (holder.key, holder.mode, holder.agent, holder.tool) == ("db:a", EXCLUSIVE, "somebody", "tool")
            assert (holder.pid, holder.token) == (os.getpid(), held.token)
            assert f"agent 'somebody' in tool (process {os.getpid()}, since " in str(holder)
            assert [found.key for found in table.scan()] == ["db:a"]
        waiting = self.two.request(caller("next"), "db:a", SHARED)
        assert [holder.agent for holder in self.two.blockers(waiting)] == ["somebody"]
        self.one.release(held)
        assert wait(waiting, LONG)
        assert [holder.agent for holder in self.two.holders("db:a")] == ["next"]
        self.two.release(waiting)
        assert self.two.scan() == ()

    def test_statistics(self) -> None:
        held = self.hold(self.one, "db:a")
        waiting = self.one.request(caller(), "db:a", EXCLUSIVE)
        (key,) = self.one.statistics().keys
        assert (key.key, len(key.holders), key.waiters, key.grants) == ("db:a", 1, 1, 1)
        assert key.since == held.since
        self.one.release(held)
        assert wait(waiting, LONG)
        statistics = self.one.statistics()
        assert (statistics.grants, statistics.waits) == (2, 1)
        assert statistics.longest_wait > 0
        self.one.release(waiting)
        assert self.one.statistics().keys == ()

    def test_a_released_ticket_protects_nothing(self) -> None:
        held = self.hold(self.one, "db:a")
        self.one.verify(held)
        self.one.release(held)
        with _raises(LockLost):
            self.one.verify(held)

    def test_a_closed_table_takes_no_new_keys_and_keeps_what_is_held(self) -> None:
        table = self.open()
        if table is self.one:
            return
        held = self.hold(table, "db:a")
        table.close()
        with _raises(AgentGuardError):
            table.request(caller(), "db:b", EXCLUSIVE)
        waiting = self.one.request(caller(), "db:a", EXCLUSIVE)
        assert not waiting.granted
        table.release(held)
        assert wait(waiting, LONG)
        self.one.release(waiting)

    def test_a_forked_child_holds_nothing(self) -> None:
        if not hasattr(os, "fork"):
            return
        claim = caller()
        held = self.hold(self.one, "db:a", claim=claim)

        def child() -> None:
            assert not held.granted
            assert not claim.held
            self.one.release(held)
            assert self.one.holders("db:b") == ()
            mine = self.one.request(caller(), "db:b", EXCLUSIVE)
            assert mine.granted
            self.one.release(mine)
            if self.two is not self.one:
                assert not self.one.request(caller(), "db:a", EXCLUSIVE).granted

        assert in_fork(child) == 0
        self.one.verify(held)
        if self.two is not self.one:
            assert not self.two.request(caller(), "db:a", EXCLUSIVE).granted
        self.one.release(held)


def in_fork(body: Callable[[], None]) -> int:
    """Run `body` in a forked child; its exit status, 0 when nothing was raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
