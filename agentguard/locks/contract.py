"""The words of the lock layer, and what a lock between processes must promise."""

from __future__ import annotations

import enum
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .forks import after_fork

__all__ = [
    "Backend",
    "BeginAgain",
    "Change",
    "Holder",
    "KeyStatistics",
    "Lock",
    "Mode",
    "Owner",
    "Statistics",
    "directories_above",
    "is_directory",
    "this_host",
    "this_process",
]


class Mode(enum.Enum):
    """How a key is held: multi-granularity locking (Gray, Lorie, Putzolu, Traiger: Granularity of Locks, 1976).

    A directory is held with an intention while something beneath it is read (INTENT_SHARED) or written
    (INTENT_EXCLUSIVE); SHARED and EXCLUSIVE hold a key with everything beneath it.
    """

    #                    bit  conflicts covers   (masks over bits)
    INTENT_SHARED = (0, 0b0001, 0b1000, 0b0001)
    INTENT_EXCLUSIVE = (1, 0b0010, 0b1100, 0b0011)
    SHARED = (2, 0b0100, 0b1010, 0b0101)
    EXCLUSIVE = (3, 0b1000, 0b1111, 0b1111)

    def __init__(self, index: int, bit: int, conflicts: int, covered: int) -> None:
        self.index = index
        self.bit = bit
        self.conflicts = conflicts
        self.covered = covered
        self.intent = index < 2

    def compatible(self, other: Mode) -> bool:
        """Whether both may be held on one key by different claims at the same time."""
        return not self.conflicts & other.bit

    def covers(self, other: Mode) -> bool:
        """Whether holding this permits everything that holding `other` permits."""
        return bool(self.covered & other.bit)

    def join(self, other: Mode) -> Mode:
        """The weakest mode that covers both (SHARED with INTENT_EXCLUSIVE is EXCLUSIVE: there is no fifth mode)."""
        if self.covers(other):
            return self
        return other if other.covers(self) else Mode.EXCLUSIVE

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


def is_directory(key: str) -> bool:
    """Whether keys can lie beneath this one: "file:reports/", or the root of a kind, "file:"."""
    return key.endswith(("/", ":"))


def directories_above(key: str) -> list[str]:
    """The directories above a key, outermost first: `file:a/b.md` -> `file:`, `file:a/`."""
    kind, _, path = key.partition(":")
    parts = path.rstrip("/").split("/")[:-1]
    return [f"{kind}:"] * bool(path) + [f"{kind}:{'/'.join(parts[: n + 1])}/" for n in range(len(parts))]


_host = ""


def this_host() -> str:
    """The name of this machine, asked once."""
    global _host
    if not _host:
        _host = platform.node()
    return _host


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks: for error texts, `status`, and to see that a blocked event loop would wait for itself.

    `loop` is the `id()` of the running event loop when the caller is a coroutine, else None.
    """

    agent: str
    run: str
    tool: str
    loop: int | None = None
    packed: bytes = field(default=b"", init=False, repr=False, compare=False)  # see `record.text_of`


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a key, in this process or another one; `since` in seconds since the epoch."""

    key: str
    mode: Mode
    agent: str
    run: str
    tool: str
    pid: int
    host: str
    since: float
    token: int

    def __str__(self) -> str:
        recent = time.time() - self.since < 86_400
        since = time.strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        where = "" if self.host == this_host() else f" on {self.host}"
        return f"agent {self.agent!r} in {self.tool} (process {self.pid}{where}, since {since})"


@dataclass(frozen=True, slots=True)
class Change:
    """The last change of a resource that a holder of its key told: under which token, when, and who it was.

    `numbers` are the caller's own: four, up to 64 bits each.
    """

    token: int
    numbers: tuple[int, int, int, int]
    at: float  # seconds since the epoch
    agent: str
    run: str
    tool: str
    host: str


@dataclass(frozen=True, slots=True)
class KeyStatistics:
    """One key of this process now; `grants` and `longest_wait` (seconds) since the table last began to track it."""

    key: str
    holders: tuple[Holder, ...]
    waiters: int
    since: float | None
    grants: int
    longest_wait: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """A table now: keys held or waited for, and totals over its life (`longest_wait` in seconds)."""

    keys: tuple[KeyStatistics, ...]
    grants: int
    waits: int
    longest_wait: float


class BeginAgain(Exception):
    """Somebody is about to lock a directory as such, whose intention the claim held on trust.

    Nothing is wrong: release all that the claim holds and ask for it again, in the same order. Raised for one directory
    at most once while its lock stays open.
    """


class Lock(Protocol):
    """One key's lock between processes, as one process uses it.

    The process holds it once for all its callers: `LockTable` decides who of them is next. The table makes one call
    at a time, `acquire` on a thread kept for it, everything else under its mutex: those calls answer in microseconds
    and never wait. (A backend behind a network answers False from `try_acquire`, and hands `release` to a thread.)
    """

    key: str
    mode: Mode | None
    """What this process holds; at least what was asked for."""
    token: int
    """The token of the key's last exclusive grant, known while `mode` is not None; 0 before the first."""
    trusted: bool
    """Whether intentions on this directory need no lock, as far as this process knows.

    A holder of one that has locked something beneath the directory then asks `look`; whoever locks the directory itself
    makes `look` answer False, then waits until everything that was locked beneath it before has been released. So one
    of the two sees the other. A backend that does not offer this says False.
    """
    vouches: bool
    """After a lock was taken: somebody has looked at all directories above this key, and nobody has begun to lock one
    of them since; so there is no need to `look`."""

    def try_acquire(self, mode: Mode) -> bool:
        """Take `mode`, in addition to what is held, if that is possible at once without passing another waiter."""
        ...

    def acquire(self, mode: Mode, wanted: Callable[[], bool]) -> bool:
        """Wait in line for `mode`, nothing being held; `complete` is called next.

        False when `wanted()`, asked now and then or never, turned False meanwhile.
        """
        ...

    def poll(self, mode: Mode, wanted: Callable[[], bool]) -> bool:
        """One look of `acquire`, which waits for nothing; more of them, or an `acquire`, may follow.

        A place in line that was won is kept from one to the next. False: not held (yet); `complete` is called next when
        it is held, or no longer `wanted()`. Raises as `acquire` does.
        """
        ...

    def complete(self) -> None:
        """Do what `acquire` left to do, if anything: `mode` then says what is held, None when it was for nothing.

        Threads that wait are many, and this is called by one for all whose wait has ended at the same time.
        """
        ...

    def step_out(self) -> None:
        """After `complete`: let the next one into the line, if that was not done. Any number of times."""
        ...

    def look(self) -> bool:
        """`trusted`, as it is now: once False, always False."""
        ...

    def confirm(self, looked: Sequence[Lock]) -> None:
        """While held: these directories were looked at, and each is `trusted`. See `vouches`."""
        ...

    def stamp(self, owner: Owner, changes: bool = False) -> int:
        """Issue the token of an exclusive grant: higher than every earlier one, whoever died since.

        `changes`: and note a `change` under it, with four zeros."""
        ...

    def describe(self, owner: Owner) -> None:
        """Note a shared holder for others to see; the first of several is enough."""
        ...

    def change(self, owner: Owner, numbers: tuple[int, int, int, int]) -> None:
        """While held exclusively: note a change under the last token. It outlives this process."""
        ...

    def last_change(self) -> Change | None:
        """While held: the last change that any process noted; None when there was none yet."""
        ...

    def release(self, keep: Mode | None) -> None:
        """Give back everything beyond `keep`, which is covered by what is held."""
        ...

    def contended(self) -> bool:
        """Whether another process waits in line for this key."""
        ...

    def lost(self) -> bool:
        """Whether what is held no longer excludes others (its session or its lock file has gone)."""
        ...

    def close(self) -> None:
        """Give back the descriptors or connections of an idle lock."""
        ...

    def abandon(self) -> None:
        """In the child of a fork: forget everything without touching what the parent holds."""
        ...


class Backend(Protocol):
    """Where a `LockTable` takes its locks between processes."""

    def open(self, key: str) -> Lock:
        """The lock of a key. Raises ConfigError when the place of the locks cannot be used."""
        ...

    def holders(self, key: str) -> tuple[Holder, ...]:
        """Who in other processes holds the key now, as far as they wrote it down; () when it is free."""
        ...

    def scan(self, skip: Iterable[str]) -> tuple[Holder, ...]:
        """Everything held now by any process, without the keys in `skip`."""
        ...


_pid = os.getpid()


def this_process() -> int:
    """The number of this process, without a system call."""
    return _pid


def _after_fork() -> None:
    global _pid
    _pid = os.getpid()


after_fork(_after_fork)
