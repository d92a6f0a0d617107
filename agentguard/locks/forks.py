"""The two mutexes of the lock layer, and what a fork does with them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["MUTEX", "OPENING", "after_fork"]

# The state of all tables: claims, and cycles of waiting, reach across tables. Held for microseconds.
MUTEX = threading.Lock()
# Taken to open or close a descriptor, alone or inside MUTEX, never the other way round.
OPENING = threading.Lock()

_resets: list[Callable[[], None]] = []


def after_fork(reset: Callable[[], None]) -> None:
    """Have `reset` called in the child of every fork, under both mutexes."""
    _resets.append(reset)


def _before() -> None:
    # No descriptor is opened and no lock changes while the process is copied: the child knows all it has to close.
    MUTEX.acquire()
    OPENING.acquire()


def _in_parent() -> None:
    OPENING.release()
    MUTEX.release()


def _in_child() -> None:
    for reset in _resets:
        reset()
    OPENING.release()
    MUTEX.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
