"""One process of the stress: takes locks, notes what it sees, may be killed at any moment.

    python worker.py FOLDER SCENE SEED [MUTANT]

It says "ready", begins at the first line of its input, ends its scene at the second, says "done", and stays until its
input ends.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

from journal import IS, IX, MODES, Journal, S, X
from mutants import MUTANTS

from agentguard.exceptions import LockTimeout
from agentguard.flow import arun, locked, run
from agentguard.locks import Claim, FileBackend, LockTable, Mode, Owner, await_, table_for, wait
from agentguard.locks.keyfile import KeyFile

OWNER = Owner("a", "r", "t")
KEY = "file:d/"
TREES = (("file:d/a", "file:d/b", "file:d/e/c", "file:d/", "file:d/e/"), ("file:e/c", "file:e/"))  # directories last
ROUND = 0.01  # seconds
FOLDER, SCENE, SEED, MUTANT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), "".join(sys.argv[4:])

numbers = itertools.count(1)
stop = threading.Event()
keeping, kept = threading.Lock(), dict[str, LockTable]()


def listen() -> None:
    """The second line, and the end of the input: where the test is gone, no worker goes on without it."""
    if not sys.stdin.readline():
        os._exit(3)
    stop.set()
    sys.stdin.read()
    os._exit(0)


def fail(args: object) -> None:
    """No error of a thread may go unnoticed."""
    traceback.print_exception(getattr(args, "exc_value", None))
    os._exit(4)


def side_by_side(bodies: Iterable[Callable[[random.Random], object]]) -> None:
    """Each on a thread, with chances of its own."""
    threads = [
        threading.Thread(target=body, args=(random.Random(SEED * 100 + number),)) for number, body in enumerate(bodies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def disturb(call: Awaitable[None], chance: random.Random) -> None:
    """Half of the calls are cancelled, at a random moment."""
    task = asyncio.ensure_future(call)
    if chance.random() < 0.5:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if chance.random() < 0.5:
            await asyncio.sleep(chance.random() * 0.003)
        task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


# -- the scenes --------------------------------------------------------------------------------------------------------


def threads(journal: Journal, modes: list[Mode]) -> None:
    table = LockTable(FileBackend(FOLDER / "locks"))

    def work(chance: random.Random) -> None:
        while not stop.is_set():
            number, mode = next(numbers), chance.choice(modes)
            ticket = table.request(Claim(OWNER), KEY, mode)
            if not ticket.granted:
                journal.note("?", number, KEY, mode)
            if wait(ticket, chance.random() * 0.02):
                journal.note("+", number, KEY, mode, ticket.token)
                time.sleep(chance.random() * 0.001)
                journal.note("-", number, KEY, mode)
            else:
                journal.note("t", number, KEY, mode)
            table.release(ticket)

    side_by_side([work] * 3)


async def tasks(journal: Journal) -> None:
    table = LockTable(FileBackend(FOLDER / "locks"))

    async def one(chance: random.Random) -> None:
        number, mode = next(numbers), chance.choice([X, S])
        ticket = table.request(Claim(OWNER), KEY, mode)
        cancelled = False
        if not ticket.granted:
            journal.note("?", number, KEY, mode)
        try:
            if await await_(ticket, chance.random() * 0.01):
                journal.note("+", number, KEY, mode, ticket.token)
                try:
                    await asyncio.sleep(chance.random() * 0.0005)
                finally:
                    journal.note("-", number, KEY, mode)
            else:
                journal.note("t", number, KEY, mode)
        except asyncio.CancelledError:
            cancelled = True
            journal.note("c", number, KEY, mode)
            raise
        finally:
            if not (cancelled and MUTANT == "no release on cancel"):
                table.release(ticket)

    async def work(number: int) -> None:
        chance = random.Random(SEED * 100 + number)
        while not stop.is_set():
            await disturb(one(chance), chance)

    await asyncio.gather(*(work(number) for number in range(12)))


def line(journal: Journal) -> None:
    """As fast as possible, again and again, one after the other."""
    stand = KeyFile._stand_in_line
    key = "db:a"

    def stand_in_line(self: KeyFile) -> bool:
        stands = stand(self)
        if stands:
            journal.note("l", 0, key, X)
        return stands

    KeyFile._stand_in_line = stand_in_line
    table = LockTable(FileBackend(FOLDER / "locks"))
    while not stop.is_set():
        number = next(numbers)
        journal.note("r", number, key, X)
        ticket = table.request(Claim(OWNER), key, X)
        wait(ticket)
        journal.note("+", number, key, X, ticket.token)
        time.sleep(0.001)
        journal.note("-", number, key, X)
        table.release(ticket)


def files(journal: Journal) -> None:
    """The lock file is deleted or replaced, by its holder as the last act: so nobody else loses what it holds.

    Half of the processes open the file anew now and then (else all would keep the first one). In the others two threads
    follow each other in what the process holds.
    """
    folder, key = FOLDER / "locks", "db:a"
    path = FileBackend(folder).path(key)
    table = LockTable(FileBackend(folder))
    alone = SEED % 2 == 0

    def work(chance: random.Random) -> None:
        nonlocal table
        while not stop.is_set():
            if alone and chance.random() < 0.1:
                table.close()
                table = LockTable(FileBackend(folder))
            number = next(numbers)
            ticket = table.request(Claim(OWNER), key, X)
            if not ticket.granted:
                journal.note("?", number, key, X)
            if wait(ticket, chance.random() * 0.003):
                journal.note("+", number, key, X, ticket.token)
                time.sleep(chance.random() * 0.0005)
                journal.note("-", number, key, X)
                if chance.random() < 0.3:
                    with suppress(FileNotFoundError):
                        spoil(path, chance)
            else:
                journal.note("t", number, key, X)
            table.release(ticket)

    side_by_side([work] if alone else [work, work])


def spoil(path: str, chance: random.Random) -> None:
    act = chance.randrange(4)
    if act < 2:
        os.unlink(path)
        if act:
            os.unlink(path + ".next")
        return
    new = f"{path}.{os.getpid()}"
    if act == 2:
        open(new, "w").close()
    else:
        shutil.copy(path, new)
    os.replace(new, path)


def next_round() -> int:
    """Wait for the next round: all processes begin it at the same moment, whichever of them was killed."""
    now = time.monotonic()
    number = int(now / ROUND) + 1
    time.sleep(number * ROUND - now)
    return number


class Call:
    """What a guarded call locks: one thing or two, and by intention all directories above, in their order.

    Each lock folder serves for `span` rounds. In the first half of them nobody locks a directory as such.
    """

    def __init__(self, journal: Journal, chance: random.Random, round_: int, span: int) -> None:
        mode = chance.choice([X, X, S])
        whole = round_ % span >= span // 2
        self.targets = {
            chance.choice([key for key in tree if whole or not key.endswith("/")]): next(numbers)
            for tree in chance.choice([TREES, TREES[:1], TREES[1:]])
        }
        self.modes = dict.fromkeys(self.targets, mode)
        for key in self.targets:
            for at in range(1, len(key)):
                if key[at - 1] in ":/":
                    self.modes[key[:at]] = IX if mode is X else IS
        self.late, self.pause, self.patience = (chance.random() * most for most in (0.0015, 0.001, 0.01))
        self.journal, self.folder = journal, str(round_ // span)
        self.claim = Claim(OWNER)
        self.table = table_for(FOLDER / self.folder)
        keep(self.folder)
        self.acquire = locked(self.claim, [(self.table, sorted(self.modes.items(), key=first))], self.limit)

    def limit(self, key: str) -> float:
        """Asked before each wait."""
        self.journal.note("?", min(self.targets.values()), key, self.modes[key], 0, self.folder)
        return self.patience

    def enter(self) -> None:
        for key, number in self.targets.items():
            self.journal.note("+", number, key, self.modes[key], self.claim.held[key].token, self.folder)

    def go(self) -> None:
        for key, number in self.targets.items():
            self.journal.note("-", number, key, self.modes[key], 0, self.folder)

    def give_up(self, sign: str) -> None:
        self.journal.note(sign, min(self.targets.values()), "-", X)

    def end(self) -> None:
        LockTable.release_all(self.claim)
        self.table.close()


def first(pair: tuple[str, Mode]) -> str:
    return pair[0]


def keep(folder: str) -> None:
    """The table of the newest lock folder stays open between calls: it knows the files that it had."""
    with keeping:
        if folder not in kept:
            kept[folder] = table_for(FOLDER / folder)
            for old in sorted(kept, key=int)[:-1]:
                kept.pop(old).close()


def calls(journal: Journal, span: int) -> None:
    """In a fresh lock folder every few milliseconds: what is special is the first lock of a directory."""

    def work(chance: random.Random) -> None:
        while not stop.is_set():
            call = Call(journal, chance, next_round(), span)
            try:
                time.sleep(call.late)
                run(call.acquire)
                call.enter()
                time.sleep(call.pause)
                call.go()
            except LockTimeout:
                call.give_up("t")
            finally:
                call.end()

    async def one(chance: random.Random, round_: int) -> None:
        call = Call(journal, chance, round_, span)
        try:
            await asyncio.sleep(call.late)
            await arun(call.acquire)
            call.enter()
            try:
                await asyncio.sleep(call.pause)
            finally:
                call.go()
        except LockTimeout:
            call.give_up("t")
        except asyncio.CancelledError:
            call.give_up("c")
            raise
        finally:
            call.end()

    async def both(chance: random.Random) -> None:
        while not stop.is_set():
            round_ = next_round()
            await asyncio.gather(*(disturb(one(chance, round_), chance) for _ in range(2)))

    side_by_side([work, work, lambda chance: asyncio.run(both(chance))])


def take(key: str) -> None:
    """Said step by step: for what must be killed in a certain state."""
    table, claim = LockTable(FileBackend(FOLDER / "locks")), Claim(OWNER)
    wanted = [("file:", IX), ("file:d/", IX), (key, X)] if key == "file:d/a" else [(key, X)]
    ticket = table.request_all(claim, wanted)[-1]
    print("waiting", not ticket.granted, flush=True)
    assert wait(ticket, 20)
    print("held", ticket.token, flush=True)
    stop.wait()
    table.release_all(claim)


def main() -> None:
    threading.excepthook = fail
    MUTANTS[MUTANT]()
    journal = Journal(FOLDER)
    print("ready", flush=True)
    sys.stdin.readline()
    listener = threading.Thread(target=listen)
    listener.start()
    try:
        if SCENE == "threads":
            threads(journal, [X, X, S])
        elif SCENE == "modes":
            threads(journal, MODES)
        elif SCENE == "tasks":
            asyncio.run(tasks(journal))
        elif SCENE == "line":
            line(journal)
        elif SCENE == "files":
            files(journal)
        elif SCENE == "calls":
            calls(journal, 1)
        elif SCENE == "calls that follow":
            calls(journal, 10)
        else:
            take(SCENE)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
            os._exit(4)  # the listener would keep it alive
    print("done", flush=True)
    listener.join()


if __name__ == "__main__":
    main()
