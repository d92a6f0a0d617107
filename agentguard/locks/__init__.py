"""Locks on named resources, for all threads, event loops and processes of one machine.

What every backend promises, and `agentguard.testing.LockContract` checks:

scope         callers of one `LockTable` exclude each other, and so do all processes that use the same place of the
              backend: for `table_for` the processes of one machine that see the same lock folder
modes         `Mode`: shared, exclusive, and intentions for the directories above; what `Mode.compatible` says
fairness      among the callers of a process first in, first out: nobody passes a waiter. Between processes nobody
              passes one that stands in line, but callers of one process may follow each other for some milliseconds
              (`domain.COHORT`) before the next one's turn
several keys  `request_all` in the order of the keys, which everybody keeps: no deadlock. A directory is asked for with
              an intention before what lies beneath it; such intentions may be held on trust (`Lock.trusted`)
nesting       a claim inside a claim works inside its hold, where siblings exclude each other; the hold lasts until the
              last claim inside it has ended
waiting       costs no CPU (beyond `pump.LIMIT` keys that others hold: a thirtieth of a core) and blocks no event loop;
              waiting that would never end within this process raises `Deadlock` at once
cancellation  `release` after a cancelled or timed-out wait leaves nothing behind, whatever happened meanwhile
release       never blocks, never awaits, from any thread, any number of times
crash         what a dead process held or waited for is free; nothing needs to be cleaned up
fork          the child holds nothing and waits for nothing, and can lock anew
token         rises with every exclusive grant of a key, over crash and restart; shared holders see the last one
change        what a holder noted by `change` (who, when, under which token) is told to later holders by `last_change`,
              whatever became of its process
loss          `verify` raises `LockLost` for a lock that somebody took away (its file was deleted or replaced)

How the parts fit: a `Claim` is one call; `LockTable` (`granting`, `table`) gives it a `Ticket` for each key, in one
`Queue` a key (`tickets`, `domain`); `section` is the mutex around all of it; `cycles` finds waits without end;
`waiting` waits, on a thread or in a coroutine. A backend's `Lock` (`contract`) takes the key between processes, once
for all callers of this one; `pump` has the threads that wait for it. The backend here is `file`: `keyfile` for one key,
`directory` for one with something beneath it, `record` and `mapped` for what stands in a lock file, `native` for the
system call, `filesystem` for where it can be trusted.
"""

from __future__ import annotations

from .contract import (
    Backend,
    BeginAgain,
    Change,
    Holder,
    KeyStatistics,
    Lock,
    Mode,
    Owner,
    Statistics,
    directories_above,
    is_directory,
    this_host,
)
from .file import FileBackend, FileTable, table_for
from .table import LockTable
from .tickets import Claim, Ticket
from .waiting import await_, wait

__all__ = [
    "Backend",
    "BeginAgain",
    "Change",
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
    "directories_above",
    "is_directory",
    "table_for",
    "this_host",
    "wait",
]
