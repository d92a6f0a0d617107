"""One key in one process: its queue, and when to take and give back the lock between processes for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .contract import Change, Lock, Mode, Owner, this_host
from .tickets import Queue

if TYPE_CHECKING:
    from .granting import Granting

__all__ = ["COHORT", "Domain"]

# For so long (seconds) callers of this process may follow each other while another process waits for the key.
COHORT = 0.005

_monotonic = time.monotonic


class Domain(Queue):
    """A key's queue, and what this process holds of the key's lock between processes (`lock` None: there is none)."""

    __slots__ = ("changed", "checked", "grants", "have", "key", "lock", "longest", "pumping", "table", "taken", "used")

    def __init__(self, key: str, lock: Lock | None, table: Granting) -> None:
        super().__init__()
        self.key = key
        self.table = table
        self.lock = lock
        self.have: Mode | None = None  # None while intentions are granted: they are held on trust
        self.checked = -1  # the token up to which this process knows what the key's holders left: see `Ticket.foreign`
        self.changed: Change | None = None  # where there is no lock that would keep it
        self.taken = 0.0  # monotonic time at which `have` was taken, or last seen to be in nobody's way
        self.pumping = False  # a thread is in `lock.acquire`: nobody else may touch the lock
        self.grants = 0
        self.longest = 0.0
        self.used = True

    def obtain(self, mode: Mode) -> bool:
        """Whether a mode that nothing granted here conflicts with may be granted now, other processes considered.

        Takes the lock between processes if that is possible at once. If not, what is granted here must end first
        (`draining`), or somebody must wait for the lock.
        """
        lock = self.lock
        if lock is None:
            return True
        if self.pumping:
            return False
        have = self.have
        if have is not None:
            if self.draining:
                if not self.granted:
                    self.give_back()
                return False
            # Readers do not stay under what was an exclusive lock: readers of other processes could not join them.
            if have.covered & mode.bit and (self.granted or have is not Mode.EXCLUSIVE or mode is Mode.EXCLUSIVE):
                return self._may_stay(lock)
            if self.granted:
                # Only at once: who holds a key and waits in line for more of it would wait for whoever waits for it.
                if lock.try_acquire(mode):
                    self.have = lock.mode
                    return True
                self.draining = True
                return False
            self.give_back()
        if lock.try_acquire(mode):
            self.have = lock.mode
            self.taken = _monotonic()
            return True
        return False

    def _may_stay(self, lock: Lock) -> bool:
        """Whether one more of this process may use what it has, or another process's turn has come."""
        if not lock.lost():
            now = _monotonic()
            if now - self.taken < COHORT:
                return True
            if not lock.contended():
                self.taken = now
                return True
        if self.granted:
            self.draining = True
        else:
            self.give_back()
        return False

    def note(self, owner: Owner, token: int, numbers: tuple[int, int, int, int]) -> None:
        """Remember a change, where there is no lock that would."""
        self.changed = Change(token, numbers, time.time(), owner.agent, owner.run, owner.tool, this_host())

    def give_back(self) -> None:
        """Give the lock between processes back whole; nothing is granted here any more."""
        self.draining = False
        self.have = None
        lock = self.lock
        if lock is not None:
            lock.release(None)

    def fit(self) -> None:
        """Give back what is no longer needed."""
        have = self.have
        if have is None or self.lock is None:
            return
        if not self.granted:
            self.give_back()
        elif not self.draining:
            need = self.needs()
            if need is not None and not need.covered & have.bit:
                self.lock.release(need)
                self.have = self.lock.mode
