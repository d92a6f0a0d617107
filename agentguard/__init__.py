"""AgentGuard: parallel agents stop losing each other's work.

A tool declares what it writes; the guard serializes its calls on that resource, or leads them to the agent's own shard,
which a join merges. See the README for LangGraph and CrewAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .commit import atomic_write
from .declaration import Declaration, declare
from .events import Event, Hook
from .exceptions import (
    AgentGuardError,
    ConfigError,
    Deadlock,
    InDoubt,
    LockLost,
    LockTimeout,
    MergeConflict,
    StaleWrite,
    UndeclaredWrite,
)
from .guard import Guard, Hold
from .redirect import path
from .shards import Identity

__all__ = [
    "AgentGuardError",
    "ConfigError",
    "Deadlock",
    "Declaration",
    "Event",
    "Guard",
    "Hold",
    "Hook",
    "Identity",
    "InDoubt",
    "JoinReport",
    "LockLost",
    "LockTimeout",
    "MergeConflict",
    "StaleWrite",
    "UndeclaredWrite",
    "atomic_write",
    "declare",
    "path",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .join import JoinReport


def __getattr__(name: str) -> Any:
    # Only a join needs it, and only a type annotation asks for it by name.
    if name == "JoinReport":
        from .join import JoinReport

        return JoinReport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
