"""Locks on named resources, for all threads, event loops and processes of one machine.

What every backend promises, and `agentguard.testing` checks:

scope         callers of one `LockTable` exclude each other, and so do all processes that use the same place of the
              backend: for `table_for` the processes of one machine that see the same lock folder
modes         `Mode`: shared, exclusive, and intentions for the directories above; what `Mode.compatible` says
fairness      among the callers of a process first in, first out: nobody passes a waiter. Between processes likewise,
              but callers of one process may follow each other for some milliseconds before the next one's turn
nesting       a claim inside a claim works inside its hold, where siblings exclude each other; the hold lasts until the
              last claim inside it has ended
waiting       costs no CPU and blocks no event loop; waiting that would never end raises `Deadlock` at once
cancellation  `release` after a cancelled or timed-out wait leaves nothing behind, whatever happened meanwhile
release       never blocks, never awaits, from any thread, any number of times
crash         what a dead process held or waited for is free; nothing needs to be cleaned up
fork          the child holds nothing and waits for nothing, and can lock anew
token         rises with every exclusive grant of a key, over crash and restart; shared holders see the last one
"""

from __future__ import annotations

from .contract import Backend, BeginAgain, Holder, KeyStatistics, Lock, Mode, Owner, Statistics, is_directory
from .file import FileBackend, FileTable, table_for
from .table import LockTable
from .tickets import Claim, Ticket
from .waiting import await_, wait

__all__ = [
    "Backend",
    "BeginAgain",
    "Claim",
    "FileBackend",
    "FileTable",
    "Holder",
    "KeyStatistics",
    "Lock",
    "LockTable",
    "Mode",
    "Owner",
    "Statistics",
    "Ticket",
    "await_",
    "is_directory",
    "table_for",
    "wait",
]
