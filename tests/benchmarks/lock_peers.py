"""The locks that are compared, behind one tiny interface: one class a library, one object a lock folder.

Everything is used as its documentation says, with its defaults. Libraries are imported at first use, so that a worker
loads only the one that it measures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

PATIENCE = 60.0  # seconds, where a lock is waited for until it is there


class Lock(Protocol):
    """`acquire` says whether the lock was had in time; raw `flock` knows no time."""

    def acquire(self, timeout: float) -> bool: ...

    def release(self) -> None: ...


class TaskLock(Protocol):
    async def acquire(self, timeout: float) -> bool: ...

    async def release(self) -> None: ...


class Several:
    def __init__(self, locks: Sequence[Lock]) -> None:
        self._locks, self._held = locks, list[Lock]()

    def acquire(self, timeout: float) -> bool:
        end = time.monotonic() + timeout
        for lock in self._locks:
            if not lock.acquire(max(0.0, end - time.monotonic())):
                self.release()
                return False
            self._held.append(lock)
        return True

    def release(self) -> None:
        while self._held:
            self._held.pop().release()


class Peer:
    """What a library has for the locks of one folder. A method that it does not override is a job that it cannot do."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lock(self, name: str) -> Lock:
        """Exclusive, between processes."""
        raise NotImplementedError

    def several(self, names: Sequence[str]) -> Lock:
        """Several of `lock` at once, asked for in this order."""
        return Several([self.lock(name) for name in names])

    def reader(self, name: str) -> Lock:
        """Shared, between processes."""
        raise NotImplementedError

    def writer(self, name: str) -> Lock:
        """What excludes `reader`."""
        raise NotImplementedError

    def task_lock(self, name: str) -> TaskLock:
        """Exclusive, between processes, for one asyncio task."""
        raise NotImplementedError

    def shared_task_lock(self, name: str) -> TaskLock:
        """Exclusive, between the tasks of one process, which all get the same."""
        raise NotImplementedError

    def close(self) -> None:
        pass

    @classmethod
    def can(cls, job: str) -> bool:
        return getattr(cls, job) is not getattr(Peer, job)


class Adapted:
    """A lock whose `take(timeout)` returns False, or raises `late`, when the time is over."""

    def __init__(
        self, take: Callable[[float], Any], give: Callable[[], object], late: type[Exception] | tuple[()] = ()
    ) -> None:
        self._take, self._give, self._late = take, give, late

    def acquire(self, timeout: float) -> bool:
        try:
            return self._take(timeout) is not False
        except self._late:
            return False

    def release(self) -> None:
        self._give()


class AdaptedTask:
    def __init__(
        self, take: Callable[[float], Any], give: Callable[[], Any], late: type[Exception] | tuple[()] = ()
    ) -> None:
        self._take, self._give, self._late = take, give, late

    async def acquire(self, timeout: float) -> bool:
        try:
            return await self._take(timeout) is not False
        except self._late:
            return False

    async def release(self) -> None:
        given = self._give()
        if given is not None:
            await given


class AgentGuard(Peer):
    """The lock table as a guarded call uses it: a claim for each acquisition, through the public names only."""

    name = "agentguard"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from agentguard import locks

        self.locks = locks
        self.table = locks.table_for(folder / "agentguard")
        self.owner = locks.Owner("agent", "run", "tool")

    def _hold(self, name: str, mode: Any) -> tuple[Callable[[], Any], Callable[[Any], None]]:
        key, table, claim, owner = f"db:{name}", self.table, self.locks.Claim, self.owner
        return lambda: table.request(claim(owner), key, mode), table.release

    def several(self, names: Sequence[str]) -> Lock:
        locks, table = self.locks, self.table
        wanted = [(f"db:{name}", locks.Mode.EXCLUSIVE) for name in names]
        claims: list[Any] = []

        def take(timeout: float) -> bool:
            end = time.monotonic() + timeout
            claims.append(locks.Claim(self.owner))
            at = 0
            while at < len(wanted):
                tickets = table.request_all(claims[-1], wanted[at:])
                if not locks.wait(tickets[-1], end - time.monotonic()):
                    give()
                    return False
                at += len(tickets)
            return True

        def give() -> None:
            table.release_all(claims.pop())

        return Adapted(take, give)

    def _lock(self, name: str, mode: Any) -> Lock:
        request, release = self._hold(name, mode)
        wait, held = self.locks.wait, []

        def take(timeout: float) -> bool:
            ticket = request()
            if wait(ticket, timeout):
                held.append(ticket)
                return True
            release(ticket)
            return False

        return Adapted(take, lambda: release(held.pop()))

    def lock(self, name: str) -> Lock:
        return self._lock(name, self.locks.Mode.EXCLUSIVE)

    writer = lock

    def reader(self, name: str) -> Lock:
        return self._lock(name, self.locks.Mode.SHARED)

    def task_lock(self, name: str) -> TaskLock:
        request, release = self._hold(name, self.locks.Mode.EXCLUSIVE)
        await_, held = self.locks.await_, []

        async def take(timeout: float) -> bool:
            ticket = request()
            if await await_(ticket, timeout):
                held.append(ticket)
                return True
            release(ticket)
            return False

        return AdaptedTask(take, lambda: release(held.pop()))

    shared_task_lock = task_lock

    def close(self) -> None:
        self.table.close()


class Flock(Peer):
    """Blocking `flock` on a kept descriptor: the floor. It waits in the kernel, and cannot stop waiting."""

    name = "flock (floor)"

    def _lock(self, name: str, operation: str) -> Lock:
        import fcntl

        fd = os.open(self.folder / f"{name}.flock", os.O_RDWR | os.O_CREAT, 0o600)
        flock, how = fcntl.flock, getattr(fcntl, operation)
        return Adapted(lambda _: flock(fd, how), lambda: flock(fd, fcntl.LOCK_UN))

    def lock(self, name: str) -> Lock:
        return self._lock(name, "LOCK_EX")

    writer = lock

    def reader(self, name: str) -> Lock:
        return self._lock(name, "LOCK_SH")


class FileLock(Peer):
    """filelock: `FileLock`, `ReadWriteLock` and `AsyncFileLock`, the last one instance a task: it is re-entrant."""

    name = "filelock"

    def lock(self, name: str) -> Lock:
        import filelock

        lock = filelock.FileLock(self.folder / f"{name}.filelock")
        return Adapted(lambda timeout: lock.acquire(timeout=timeout), lock.release, filelock.Timeout)

    def reader(self, name: str) -> Lock:
        import filelock

        lock = filelock.ReadWriteLock(self.folder / f"{name}.sqlite")
        return Adapted(lock.acquire_read, lock.release, filelock.Timeout)

    def writer(self, name: str) -> Lock:
        import filelock

        lock = filelock.ReadWriteLock(self.folder / f"{name}.sqlite")
        return Adapted(lock.acquire_write, lock.release, filelock.Timeout)

    def task_lock(self, name: str) -> TaskLock:
        import filelock

        lock = filelock.AsyncFileLock(self.folder / f"{name}.filelock", thread_local=False, is_singleton=False)
        return AdaptedTask(lambda timeout: lock.acquire(timeout=timeout), lock.release, filelock.Timeout)

    shared_task_lock = task_lock


class Portalocker(Peer):
    name = "portalocker"

    def lock(self, name: str) -> Lock:
        import portalocker

        lock = portalocker.Lock(self.folder / f"{name}.portalocker", timeout=PATIENCE)
        return Adapted(lambda timeout: lock.acquire(timeout=timeout), lock.release, portalocker.LockException)


class Fasteners(Peer):
    name = "fasteners"

    def lock(self, name: str) -> Lock:
        import fasteners

        lock = fasteners.InterProcessLock(self.folder / f"{name}.fasteners")
        return Adapted(lambda timeout: lock.acquire(timeout=timeout), lock.release)

    def reader(self, name: str) -> Lock:
        import fasteners

        lock = fasteners.InterProcessReaderWriterLock(self.folder / f"{name}.fasteners-rw")
        return Adapted(lambda timeout: lock.acquire_read_lock(timeout=timeout), lock.release_read_lock)

    def writer(self, name: str) -> Lock:
        import fasteners

        lock = fasteners.InterProcessReaderWriterLock(self.folder / f"{name}.fasteners-rw")
        return Adapted(lambda timeout: lock.acquire_write_lock(timeout=timeout), lock.release_write_lock)


class Aiologic(Peer):
    """In one process only."""

    name = "aiologic"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import aiologic

        self._lock = aiologic.Lock()

    def shared_task_lock(self, name: str) -> TaskLock:
        lock = self._lock
        return AdaptedTask(lambda timeout: lock.async_acquire(timeout=timeout), lock.async_release)


class ThreadingLock(Peer):
    """In one process only, and not for tasks."""

    name = "threading.Lock"


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (AgentGuard, Flock, FileLock, Portalocker, Fasteners, Aiologic, ThreadingLock)
}
