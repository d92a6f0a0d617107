"""Several calls of one model turn: their order on what they share, in threads and in one event loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentguard
from agentguard import Declaration, Guard, LockTimeout, StaleWrite, path
from agentguard.knowledge import TurnMemory
from agentguard.shards import Identity
from agentguard.turns import Turn, overlaps, predecessors

LONG = 10.0


# -- the decision ---

IDS = st.sampled_from(["file:a", "file:d/", "file:d/b", "file:d/e/c", "file:", "db:x", "db:x/y"])
WANTS = st.dictionaries(IDS, st.booleans(), max_size=3)


@given(st.lists(WANTS, max_size=8))
def test_a_call_comes_after_those_before_it_that_it_shares_something_with(wants: list[dict[str, bool]]) -> None:
    before = predecessors(wants)
    for later, earlier in itertools.product(range(len(wants)), repeat=2):
        assert (earlier in before[later]) is (earlier < later and overlaps(wants[earlier], wants[later]))


@given(WANTS, WANTS)
def test_what_overlaps(one: dict[str, bool], other: dict[str, bool]) -> None:
    assert overlaps(one, other) is overlaps(other, one)
    assert not overlaps(dict.fromkeys(one, False), dict.fromkeys(other, False))
    if one:
        assert overlaps(one, one) is any(one.values())


def test_directories_cover_what_lies_beneath_and_keys_do_not() -> None:
    assert overlaps({"file:d/": True}, {"file:d/e/c": False})
    assert overlaps({"file:": False}, {"file:a": True})
    assert not overlaps({"file:d/": True}, {"file:da": True})
    assert not overlaps({"db:x": True}, {"db:x/y": True})


# -- calls ---


class Model:
    """One turn of calls, each an (access, resource) and what it does; run as a framework would."""

    def __init__(self, guard: Guard, calls: list[tuple[str, str]], *, exact: bool = True, memory: Any = None) -> None:
        self.guard = guard
        self.declarations = [Declaration.of(**{kind: name}) for kind, name in calls]
        wants = [{guard.resources.resolve(name).id: kind != "reads"} for kind, name in calls]
        self.memory = TurnMemory(memory or guard.knowledge.of("run", "ann"))
        self.turn = Turn(wants, exact=exact)
        self.done: list[int] = []

    def one(self, place: int, body: Callable[[], Any] | None = None) -> Any:
        def inside(_: object) -> Any:
            self.done.append(place)
            return body() if body is not None else None

        identity = Identity("ann", "run", memory=self.memory.at(place))
        try:
            return self.guard.call(
                self.declarations[place], f"call {place}", {}, inside, identity=identity, seat=self.turn.seat(place)
            )
        finally:
            self.turn.end(place)

    async def aone(self, place: int, body: Callable[[], Any] | None = None, gate: asyncio.Event | None = None) -> Any:
        async def inside(_: object) -> Any:
            if gate is not None:
                await gate.wait()
            self.done.append(place)
            return body() if body is not None else None

        identity = Identity("ann", "run", memory=self.memory.at(place))
        try:
            return await self.guard.acall(
                self.declarations[place], f"call {place}", {}, inside, identity=identity, seat=self.turn.seat(place)
            )
        finally:
            self.turn.end(place)


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(root=tmp_path)


UPDATES = [("updates", "a.txt")] * 4


def test_without_seats_a_call_that_comes_first_goes_first(guard: Guard) -> None:
    """What the order is good for: the same calls in the same forced order of arrival."""
    done: list[int] = []
    for place in (3, 1, 2, 0):
        guard.call(Declaration.of(updates="a.txt"), "t", {}, lambda _, place=place: done.append(place))
    assert done == [3, 1, 2, 0]


def test_threads_take_effect_in_the_models_order_whatever_the_order_of_arrival(guard: Guard) -> None:
    model = Model(guard, UPDATES)
    with ThreadPoolExecutor(4) as pool:
        found = []
        for place in (3, 1, 2):
            found.append(pool.submit(model.one, place))
        _until(lambda: all(model.turn._came[place].done() for place in (1, 2, 3)))
        assert model.done == []
        found.append(pool.submit(model.one, 0))
        for future in found:
            future.result(LONG)
    assert model.done == [0, 1, 2, 3]


def test_tasks_take_effect_in_the_models_order_whatever_the_order_of_arrival(guard: Guard) -> None:
    async def main() -> list[int]:
        model = Model(guard, UPDATES)
        tasks = [asyncio.create_task(model.aone(place)) for place in (3, 1, 2)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert model.done == []
        await asyncio.wait_for(asyncio.gather(model.aone(0), *tasks), LONG)
        return model.done

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_calls_that_share_nothing_are_all_inside_at_once(guard: Guard) -> None:
    calls = [("writes", "a.txt"), ("writes", "b.txt"), ("reads", "c.txt"), ("reads", "c.txt")]
    model = Model(guard, calls)
    met = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(model.one, place, lambda: met.wait(LONG)) for place in (3, 2, 1, 0)]:
            future.result(LONG)


def test_a_read_after_a_write_sees_it_and_one_before_does_not(guard: Guard) -> None:
    file = guard.root / "a.txt"
    file.write_text("old")
    model = Model(guard, [("reads", "a.txt"), ("writes", "a.txt"), ("reads", "a.txt")])
    with ThreadPoolExecutor(3) as pool:
        later = pool.submit(model.one, 2, lambda: path("a.txt").read_text())
        write = pool.submit(model.one, 1, lambda: path("a.txt").write_text("new"))
        _until(lambda: model.turn._came[1].done() and model.turn._came[2].done())
        first = pool.submit(model.one, 0, lambda: path("a.txt").read_text())
        write.result(LONG)
        assert (first.result(LONG), later.result(LONG)) == ("old", "new")


def test_a_pool_of_one_thread_is_enough(guard: Guard) -> None:
    model = Model(guard, UPDATES)
    with ThreadPoolExecutor(1) as pool:
        for future in [pool.submit(model.one, place) for place in range(4)]:
            future.result(LONG)
    assert model.done == [0, 1, 2, 3]


@pytest.mark.parametrize("known", [False, True])
def test_the_second_whole_write_of_a_turn_is_refused(guard: Guard, known: bool) -> None:
    (guard.root / "a.txt").write_text("old")
    if known:
        with guard.identified(Identity("ann", "run")):
            guard.read("a.txt")
    model = Model(guard, [("writes", "a.txt")] * 3)
    model.one(0, lambda: path("a.txt").write_text("first"))
    for place in (1, 2):
        with pytest.raises(StaleWrite, match=r"an earlier call of the same turn \(agent 'ann' in call 0"):
            model.one(place, lambda: path("a.txt").write_text("second"))
    assert (guard.root / "a.txt").read_text() == "first"
    nextly = Model(guard, [("writes", "a.txt")])  # the model has seen what became of the first
    if known:
        nextly.one(0, lambda: path("a.txt").write_text("later"))


@pytest.mark.parametrize("how", ["path", "in place", "replaced"])
def test_whoever_looks_at_what_was_there_may_write_again(guard: Guard, how: str) -> None:
    """An agent that never read the file, and two calls of one turn that put something in: each sees the one before."""
    file = guard.root / "a.txt"
    file.write_text("")

    def add(text: str) -> None:
        at = path("a.txt") if how != "in place" else file
        old = at.read_text()
        if how == "replaced":
            agentguard.atomic_write(at, (old + text).encode())
        else:
            at.write_text(old + text)

    model = Model(guard, [("writes", "a.txt")] * 3)
    for place, text in enumerate("abc"):
        model.one(place, lambda text=text: add(text))
    assert file.read_text() == "abc"


def test_a_tool_that_wrote_in_place_without_a_look_is_taken_back(guard: Guard) -> None:
    file = guard.root / "a.txt"
    file.write_text("old")
    model = Model(guard, [("writes", "a.txt")] * 2)
    model.one(0, lambda: file.write_text("first"))
    with pytest.raises(StaleWrite, match="an earlier call of the same turn"):
        model.one(1, lambda: file.write_text("second"))
    assert file.read_text() == "first"


def test_without_the_turn_the_second_write_of_an_agent_passes(guard: Guard) -> None:
    """The loss that the turn prevents: the agent's own first write has moved its version along."""
    (guard.root / "a.txt").write_text("old")
    with guard.agent("ann"):
        guard.read("a.txt")
        guard.write("a.txt", "first")
        guard.write("a.txt", "second")
    assert (guard.root / "a.txt").read_text() == "second"


def test_an_earlier_call_that_failed_or_changed_nothing_is_no_conflict(guard: Guard) -> None:
    (guard.root / "a.txt").write_text("old")
    model = Model(guard, [("writes", "a.txt"), ("writes", "a.txt"), ("writes", "a.txt")])

    def fails() -> None:
        path("a.txt").write_text("half")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        model.one(0, fails)
    model.one(1, lambda: path("a.txt").write_text("old"))
    model.one(2, lambda: path("a.txt").write_text("new"))
    assert (guard.root / "a.txt").read_text() == "new"


def test_two_whole_writes_of_a_turn_are_merged_where_that_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"n": 0}')
    guard = Guard(root=tmp_path, resources={"a.json": {"stale": "merge"}})
    model = Model(guard, [("writes", "a.json")] * 2)
    for place, key in enumerate("xy"):
        model.one(place, lambda key=key: path("a.json").write_text(json.dumps({"n": 0, key: 1})))
    assert json.loads(file.read_text()) == {"n": 0, "x": 1, "y": 1}


def test_a_read_of_the_same_turn_does_not_make_a_write_current(guard: Guard) -> None:
    """The model wrote before it saw the answer of the read."""
    (guard.root / "a.txt").write_text("v1")
    with guard.identified(Identity("ann", "run")):
        guard.read("a.txt")
    (guard.root / "a.txt").write_text("v2")
    model = Model(guard, [("reads", "a.txt"), ("writes", "a.txt")])
    model.one(0)
    with pytest.raises(StaleWrite):
        model.one(1)
    Model(guard, [("writes", "a.txt")]).one(0)  # by now it has seen it


def test_updates_of_one_turn_move_what_was_known_along_one_after_the_other(guard: Guard) -> None:
    file = guard.root / "a.txt"
    file.write_text("v1")
    with guard.identified(Identity("ann", "run")):
        guard.read("a.txt")
    model = Model(guard, UPDATES)

    def add() -> None:
        with path("a.txt").open("a") as out:
            out.write("+")

    for place in range(4):
        model.one(place, add)
    Model(guard, [("writes", "a.txt")]).one(0, lambda: path("a.txt").write_text("hers"))
    model = Model(guard, UPDATES)
    model.one(0, add)
    file.write_text("somebody else's")
    for place in range(1, 4):
        model.one(place, add)
    with pytest.raises(StaleWrite):
        Model(guard, [("writes", "a.txt")]).one(0)


def test_a_call_knows_what_calls_inside_of_it_have_read(guard: Guard) -> None:
    (guard.root / "a.txt").write_text("v1")
    with guard.identified(Identity("ann", "run")):
        guard.read("a.txt")
    (guard.root / "a.txt").write_text("v2")
    model = Model(guard, [("updates", "db:x"), ("updates", "db:x")])

    def inside() -> None:
        guard.read("a.txt")
        guard.write("a.txt", "v3")

    with guard.identified(Identity("ann", "run", memory=model.memory.at(0))):
        model.one(0, inside)
    assert (guard.root / "a.txt").read_text() == "v3"


# -- calls that never come ---


def test_a_call_that_is_said_not_to_come_holds_up_nobody(guard: Guard) -> None:
    model = Model(guard, UPDATES)
    with ThreadPoolExecutor(4) as pool:
        waiting = pool.submit(model.one, 3)
        _until(lambda: model.turn._came[3].done())
        for place in (0, 1, 2):
            assert not waiting.done()
            model.turn.end(place)
        waiting.result(LONG)
    assert model.done == [3]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_where_nobody_can_tell_it_is_waited_for_a_moment_only(guard: Guard, asynchronous: bool) -> None:
    model = Model(guard, UPDATES, exact=False)
    started = time.monotonic()
    if asynchronous:
        asyncio.run(model.aone(3))
    else:
        model.one(3)
    assert time.monotonic() - started < LONG
    model.one(0)  # late after all: an update is never stale
    assert model.done == [3, 0]


def test_one_that_has_come_is_waited_for_to_its_end_even_so(guard: Guard) -> None:
    model = Model(guard, UPDATES[:2], exact=False)
    inside, leave = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        leave.wait(LONG)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(model.one, 0, slow)
        assert inside.wait(LONG)
        second = pool.submit(model.one, 1)
        _until(lambda: model.turn._came[1].done())
        assert not second.done()
        leave.set()
        first.result(LONG)
        second.result(LONG)


def test_waiting_for_ones_turn_times_out(guard: Guard) -> None:
    model = Model(guard, UPDATES[:2])
    identity = Identity("ann", "run")
    with pytest.raises(LockTimeout, match="an earlier call of its turn"):
        guard.call(
            Declaration.of(updates="a.txt"), "late", {}, print, identity=identity, seat=model.turn.seat(1), timeout=0.01
        )
    assert model.done == []


def test_a_cancelled_call_lets_those_behind_it_go(guard: Guard) -> None:
    async def main() -> list[int]:
        model = Model(guard, UPDATES[:3])
        gate = asyncio.Event()
        first = asyncio.create_task(model.aone(0, gate=gate))
        waiting = asyncio.create_task(model.aone(1))
        last = asyncio.create_task(model.aone(2))
        for _ in range(20):
            await asyncio.sleep(0)
        waiting.cancel()  # while it waits for the first
        await asyncio.sleep(0)
        gate.set()
        await asyncio.wait_for(asyncio.gather(first, last), LONG)
        assert waiting.cancelled()
        return model.done

    assert asyncio.run(main()) == [0, 2]


def test_a_call_that_failed_keeps_its_place_until_it_is_given_up(guard: Guard) -> None:
    """Somebody around it may try it again: the next one comes after that."""
    model = Model(guard, UPDATES[:2])
    tries: list[int] = []

    def body(_: object) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("for now")
        model.done.append(0)

    def attempt() -> None:
        identity = Identity("ann", "run", memory=model.memory.at(0))
        guard.call(model.declarations[0], "call 0", {}, body, identity=identity, seat=model.turn.seat(0))

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(model.one, 1)
        _until(lambda: model.turn._came[1].done())
        with pytest.raises(KeyError):
            attempt()
        assert not second.done()
        attempt()
        second.result(LONG)
    assert model.done == [0, 1]


def test_the_end_of_a_turn_is_told_once() -> None:
    ends: list[int] = []
    turn = Turn([{}, {}], exact=True, over=lambda: ends.append(1))
    for place in (1, 1, 0, 0, 1):
        turn.end(place)
    assert ends == [1]


def test_the_end_that_two_tell_at_once_is_one_end() -> None:
    """Forced: the second comes while the first is just being told."""
    ends: list[int] = []
    telling, go_on = threading.Event(), threading.Event()
    turn = Turn([{}, {}], exact=True, over=lambda: ends.append(1))

    class Slow(Future[None]):
        def set_result(self, result: None) -> None:
            telling.set()
            go_on.wait(LONG)
            super().set_result(result)

    turn._ended[0] = Slow()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(turn.end, 0)
        assert telling.wait(LONG)
        second = pool.submit(turn.end, 0)
        wait([second], timeout=0.2)  # it may have to wait for the first: then it is one by that
        go_on.set()
        first.result(LONG)
        second.result(LONG)
    assert ends == []
    turn.end(1)
    assert ends == [1]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_many_calls_end_as_if_one_had_come_after_the_other(tmp_path: Path, asynchronous: bool) -> None:
    """Twenty calls on five logs, arriving backwards: each log has its lines in the model's order."""
    guard = Guard(root=tmp_path)
    names = [f"{place % 5}.txt" for place in range(20)]

    def append(place: int) -> None:
        with path(names[place]).open("a") as file:
            file.write(f"{place}\n")

    model = Model(guard, [("updates", name) for name in names])
    if asynchronous:

        async def main() -> None:
            await asyncio.gather(*(model.aone(place, lambda place=place: append(place)) for place in range(19, -1, -1)))

        asyncio.run(main())
    else:
        with ThreadPoolExecutor(20) as pool:
            for future in [pool.submit(model.one, p, lambda p=p: append(p)) for p in range(19, -1, -1)]:
                future.result(LONG)
    for number in range(5):
        assert (tmp_path / f"{number}.txt").read_text().split() == [str(n) for n in range(number, 20, 5)]


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0)
