"""Both ends of a worker process: `Worker` for the benchmark, and below it what the process does.

A line of JSON each way: the command starts a scene, the worker says "ready" (or "held", "waiting"), gets the moment to
begin, and answers with times. All times are `time.monotonic_ns`, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from lock_peers import PATIENCE, PEERS, Peer, TaskLock

# One attempt to hold: asked, granted (or given up), released (0: not held).
Stamp = tuple[int, int, int]
now = time.monotonic_ns


class Hung(Exception):
    """A worker ended, or was ended by its alarm, without an answer."""


class Worker:
    """A process that plays one scene after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def play(self, scene: str, peer: str, folder: Path, limit: float = 30.0, **options: object) -> None:
        """Begin a scene; after `limit` seconds the process ends itself, whatever it waits for."""
        self.say({"scene": scene, "peer": peer, "folder": str(folder), "limit": limit, **options})

    def say(self, message: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Hung from error

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Hung(f"worker ended with status {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Crew:
    """Workers that are started once and used again, and a fresh lock folder for each run."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.hired: list[Worker] = []

    def __enter__(self) -> Crew:
        self._place = tempfile.TemporaryDirectory(prefix="bench-locks-", ignore_cleanup_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()
        self._place.cleanup()

    def get(self, count: int) -> list[Worker]:
        while len(self.workers) < count:
            self.workers.append(Worker())
        return self.workers[:count]

    def hire(self) -> Worker:
        """One that is killed by whoever uses it, else with the others."""
        self.hired.append(Worker())
        return self.hired[-1]

    def dismiss(self) -> None:
        for worker in (*self.workers, *self.hired):
            worker.end()
        self.workers, self.hired = [], []

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._place.name))

    def together(self, peer: str, count: int, scene: str, each: Callable[[int], dict[str, object]]) -> list[Any]:
        """All play the same scene from the same moment on, with options of their own: their answers."""
        workers, folder = self.get(count), self.folder()
        for number, worker in enumerate(workers):
            worker.play(scene, peer, folder, **each(number))
        for worker in workers:
            worker.hear()
        start = now() + 50_000_000
        for worker in workers:
            worker.say(start)
        return [worker.hear() for worker in workers]


# -- in the worker ---------------------------------------------------------------------------------------------------


def say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def hear() -> Any:
    line = sys.stdin.readline()
    if not line:
        sys.exit()  # the benchmark is gone
    return json.loads(line)


def go() -> int:
    """Ready; wait for the common start."""
    say("ready")
    start: int = hear()
    time.sleep(max(0, start - now()) / 1e9)
    return start


def left(end: int) -> float:
    return max(0, end - now()) / 1e9


def loop(peer: Peer, kind: str, seconds: float, hold: float, pause: float = 0.0) -> list[Stamp]:
    """Again and again: take the lock, hold it, give it back; pauses are random, so that nobody falls into step."""
    lock = getattr(peer, kind)("one")
    stamps: list[Stamp] = []
    end = go() + int(seconds * 1e9)
    while (asked := now()) < end:
        held, granted, released = lock.acquire(left(end)), now(), 0
        if held:
            time.sleep(hold)
            released = now()
            lock.release()
        stamps.append((asked, granted, released))
        if pause:
            time.sleep(random.random() * 2 * pause)
    return stamps


def tasks(peer: Peer, kind: str, count: int, seconds: float, hold: float) -> list[list[Stamp]]:
    """The same in `count` asyncio tasks: the stamps of each."""

    async def work(lock: TaskLock, end: int) -> list[Stamp]:
        stamps: list[Stamp] = []
        while (asked := now()) < end:
            held, granted, released = await lock.acquire(left(end)), now(), 0
            if held:
                await asyncio.sleep(hold)
                released = now()
                await lock.release()
            stamps.append((asked, granted, released))
        return stamps

    async def main() -> list[list[Stamp]]:
        locks = [getattr(peer, kind)("one") for _ in range(count)]
        end = go() + int(seconds * 1e9)
        return list(await asyncio.gather(*(work(lock, end) for lock in locks)))

    return asyncio.run(main())


def transactions(peer: Peer, seconds: float, hold: float, seed: int, locks: int = 8, take: int = 3) -> list[Stamp]:
    """Some locks at once, taken in sorted order; "granted" is when the last one was."""
    chance = random.Random(seed)
    every = {
        numbers: peer.several([f"r{number}" for number in numbers])
        for numbers in itertools.combinations(range(locks), take)
    }
    stamps: list[Stamp] = []
    end = go() + int(seconds * 1e9)
    while (asked := now()) < end:
        lock = every[tuple(sorted(chance.sample(range(locks), take)))]
        held, granted, released = lock.acquire(left(end)), now(), 0
        if held:
            time.sleep(hold)
            released = now()
            lock.release()
        stamps.append((asked, granted, released))
    return stamps


def holder(peer: Peer, names: list[str], seconds: float | None) -> tuple[int, int]:
    """Hold for some time, or until told: when the release began and ended."""
    locks = [peer.lock(name) for name in names]
    for lock in locks:
        assert lock.acquire(PATIENCE)
    say("held")
    if seconds is None:
        hear()
    else:
        time.sleep(seconds)
    released = now()
    for lock in locks:
        lock.release()
    ended = now()
    time.sleep(0.1)  # whoever reads the answer would want a core in the very moment that is measured
    return released, ended


def waiter(peer: Peer) -> dict[str, float]:
    """Wait for what a holder has: when it was granted, and CPU seconds per second (all threads) until then."""
    first, lock = peer.lock("another"), peer.lock("one")
    assert first.acquire(PATIENCE)  # what a library does at its first use only is no part of waiting
    first.release()
    say("waiting")
    asked, used = now(), time.process_time()
    assert lock.acquire(PATIENCE)
    granted, used = now(), time.process_time() - used
    lock.release()
    return {"granted": granted, "cpu": used / (granted - asked) * 1e9}


def waiters(peer: Peer, names: list[str], settle: float, seconds: float) -> dict[str, Any]:
    """A task waits for each lock that a holder has: CPU while all wait, and when each was granted."""

    async def one(name: str) -> int:
        lock = peer.task_lock(name)
        assert await lock.acquire(PATIENCE)
        granted = now()
        await lock.release()
        return granted

    async def main() -> dict[str, Any]:
        waiting = [asyncio.create_task(one(name)) for name in names]
        await asyncio.sleep(settle)  # until each has begun to wait
        started, used = now(), time.process_time()
        await asyncio.sleep(seconds)
        cpu = (time.process_time() - used) / (now() - started) * 1e9
        assert not any(task.done() for task in waiting)
        say("waiting")
        return {"cpu": cpu, "granted": await asyncio.gather(*waiting)}

    return asyncio.run(main())


SCENES: dict[str, Callable[..., object]] = {
    scene.__name__: scene for scene in (loop, tasks, transactions, holder, waiter, waiters)
}


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    while True:
        command = hear()
        signal.alarm(int(command.pop("limit")))  # ends the process even where it waits in the kernel
        scene = SCENES[command.pop("scene")]
        peer = PEERS[command.pop("peer")](Path(command.pop("folder")))
        found = scene(peer, **command)
        peer.close()
        signal.alarm(0)
        say(found)


if __name__ == "__main__":
    main()
