"""Locks on named resources, for all threads, event loops and processes of one machine.

What every backend promises, and `agentguard.testing` checks:

| | |
|---|---|
| scope | callers of one `LockTable` exclude each other; so do all processes that use the same place of the backend |
| modes | `Mode`: shared and exclusive, and intentions for the directories above; what `Mode.compatible` says |
| fairness | first in, first out among the callers of a process, nobody passes a waiter; between processes a waiter is passed for at most some milliseconds |
| calls inside calls | a claim inside a claim works inside its hold, siblings exclude each other; a hold ends with the last call inside it |
| waiting | costs no CPU, blocks no event loop; what would never end raises `Deadlock` at once |
| cancellation | `release` after a cancelled or timed-out wait leaves nothing behind, whatever happened meanwhile |
| release | never blocks, never awaits, from any thread; idempotent |
| crash | what a dead process held is free; nothing needs to be cleaned up |
| fork | the child holds nothing and waits for nothing; it can lock anew |
| token | rises with every exclusive grant of a key, over crash and restart; shared holders see the last one |
"""

from __future__ import annotations

from .contract import Backend, Holder, KeyStatistics, Lock, Mode, Owner, Statistics, is_directory
from .file import FileBackend, FileTable, table_for
from .table import LockTable
from .tickets import Claim, Ticket
from .waiting import await_, wait

__all__ = [
    "Backend",
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
