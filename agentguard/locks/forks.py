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

_in_child_do: list[Callable[[], None]] = []
_in_parent_do: list[Callable[[], None]] = []


def after_fork(in_child: Callable[[], None], in_parent: Callable[[], None] | None = None) -> None:
    """Have `in_child` called in the child of every fork, under both mutexes, and `in_parent` outside of them."""
    _in_child_do.append(in_child)
    if in_parent is not None:
        _in_parent_do.append(in_parent)


def _before() -> None:
    # No descriptor is opened and no lock changes while the process is copied: the child knows all it has to close.
    MUTEX.acquire()
    OPENING.acquire()


def _in_parent() -> None:
    OPENING.release()
    MUTEX.release()
    for action in _in_parent_do:
        action()


def _in_child() -> None:
    for action in _in_child_do:
        action()
    OPENING.release()
    MUTEX.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
