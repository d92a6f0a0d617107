"""What the tests of lock files share: where the files are, and when somebody stands in line."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from agentguard.locks import LockTable, Mode, record, wait
from agentguard.locks import table as table_module
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


class Interrupted(BaseException):
    pass


def interrupt(line: int, body: Callable[[], object]) -> bool:
    """Run `body`; raise in front of the `line`th line of the lock package. Whether it had so many."""
    seen = 0
    package = str(Path(table_module.__file__).parent)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(package) or frame.f_code.co_name in ("leave", "section"):
            return trace
        # Signals are handled after calls: never between a mutex and the block it protects, where a tracer could raise.
        if linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith(("with ", "try:")):
            return trace
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        body()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
    return False
