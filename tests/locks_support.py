"""What the tests of lock files share: where the files are, and when somebody stands in line."""

from __future__ import annotations

import os
from pathlib import Path

from agentguard.locks import LockTable, Mode, record, wait
from agentguard.testing import caller


def file_of(folder: Path, key: str) -> Path:
    return folder / record.file_name(key)


def use(table: LockTable, key: str = "db:a", mode: Mode = Mode.EXCLUSIVE) -> int:
    """Hold and give back; the token."""
    ticket = table.request(caller(), key, mode)
    assert wait(ticket, 20)
    table.release(ticket)
    return ticket.token


def staged(folder: Path, key: str = "db:a") -> None:
    """Wait until somebody waits in line for the key: its mark is in the file."""
    path = file_of(folder, key)
    for _ in range(100_000):
        if path.read_bytes()[record.QUEUED] == 1:
            return
        os.sched_yield()
    raise AssertionError("nobody came")
