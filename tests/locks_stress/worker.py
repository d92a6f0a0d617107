"""One process of the stress: takes locks, notes what it sees, may be killed at any moment.

    python worker.py FOLDER SCENE SECONDS SEED [MUTANT]

Each holder writes a line to a shared journal when it comes in and before it goes; the test reads them.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from pathlib import Path

from agentguard.locks import Claim, FileBackend, LockTable, Mode, Owner, Ticket, await_, wait
from agentguard.locks import domain as domain_module

KEY = "file:d/"


def end_with_the_test() -> None:
    """Where the test is gone, its end of the pipe is closed: no worker goes on without it."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


class Journal:
    def __init__(self, folder: Path) -> None:
        self.fd = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, sign: str, ticket: Ticket) -> None:
        os.write(self.fd, f"{sign} {os.getpid()} {id(ticket)} {ticket.mode.index} {ticket.token}\n".encode())


def threads(table: LockTable, journal: Journal, seconds: float, seed: int, modes: list[Mode], patience: float) -> None:
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        while time.monotonic() < end:
            ticket = table.request(Claim(Owner("a", "r", "t")), KEY, chance.choice(modes))
            if wait(ticket, chance.random() * patience):
                journal.note("+", ticket)
                time.sleep(chance.random() * 0.001)
                journal.note("-", ticket)
            table.release(ticket)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


async def tasks(table: LockTable, journal: Journal, seconds: float, seed: int, mutant: str) -> int:
    """Half of the waits are cancelled at a random moment; the number of cancellations."""
    end = time.monotonic() + seconds
    cancelled = 0

    async def one(chance: random.Random) -> None:
        ticket = table.request(Claim(Owner("a", "r", "t")), KEY, chance.choice([Mode.EXCLUSIVE, Mode.SHARED]))
        done = False
        try:
            if await await_(ticket, chance.random() * 0.01):
                journal.note("+", ticket)
                try:
                    await asyncio.sleep(chance.random() * 0.0005)
                finally:
                    journal.note("-", ticket)
            done = True
        finally:
            if done or mutant != "no release on cancel":
                table.release(ticket)

    async def work(number: int) -> None:
        nonlocal cancelled
        chance = random.Random(seed * 100 + number)
        while time.monotonic() < end:
            task = asyncio.ensure_future(one(chance))
            if chance.random() < 0.5:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    await asyncio.sleep(chance.random() * 0.003)
                task.cancel()
                cancelled += 1
            await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(work(number) for number in range(12)))
    return cancelled


def turns(table: LockTable, journal: Journal, seconds: float) -> int:
    """As fast as possible, again and again: how often this process came in."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        ticket = table.request(Claim(Owner("a", "r", "t")), "db:a", Mode.EXCLUSIVE)
        wait(ticket)
        time.sleep(0.001)
        table.release(ticket)
        count += 1
    return count


def main() -> None:
    folder, scene, seconds, seed = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    mutant = sys.argv[5] if len(sys.argv) > 5 else ""
    domain_module.COHORT = 0.0 if scene == "turns" else domain_module.COHORT
    table = LockTable(FileBackend(folder / "locks"))
    journal = Journal(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    if scene not in ("hold", "wait"):  # which read on themselves
        end_with_the_test()
    result: object = None
    if scene == "threads":
        threads(table, journal, seconds, seed, [Mode.EXCLUSIVE, Mode.EXCLUSIVE, Mode.SHARED], 0.05)
    elif scene == "modes":
        threads(table, journal, seconds, seed, list(Mode), 0.05)
    elif scene == "tasks":
        result = asyncio.run(tasks(table, journal, seconds, seed, mutant))
    elif scene == "turns":
        result = turns(table, journal, seconds)
    elif scene == "hold":
        ticket = table.request(Claim(Owner("holder", "r", "t")), "db:a", Mode.EXCLUSIVE)
        assert wait(ticket, 20)
        journal.note("+", ticket)
        print("held", ticket.token, flush=True)
        sys.stdin.readline()
        table.release(ticket)
    elif scene == "wait":
        ticket = table.request(Claim(Owner("waiter", "r", "t")), "db:a", Mode.EXCLUSIVE)
        print("waiting", ticket.granted, flush=True)
        assert wait(ticket, 20)
        print("held", ticket.token, flush=True)
        sys.stdin.readline()
        table.release(ticket)
    print("done", result, flush=True)
    os._exit(0)  # a thread that reads would keep the interpreter from ending in order


if __name__ == "__main__":
    main()
