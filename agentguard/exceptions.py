"""Every error AgentGuard raises.

    AgentGuardError
    ├── ConfigError (ValueError)             a declaration, option or file that cannot be meant
    ├── LockTimeout (TimeoutError)           somebody else held the resource for too long
    ├── Deadlock (RuntimeError)              waiting would never end
    ├── LockLost (RuntimeError)              the lock went away while it was held
    ├── StaleWrite (RuntimeError)            the resource changed since this agent read it
    ├── MergeConflict (ValueError)           shards changed the same place differently
    ├── UndeclaredWrite (PermissionError)    a write that no declaration covers
    └── InDoubt (OSError)                    a commit was decided but could not be finished yet

Each carries its facts as attributes (`fields` lists them), pickles, and says in its text what happened, to which
resource, who holds or changed it, since when, and what to do next. Except for `InDoubt`, an error means that nothing
of the refused call was applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "AgentGuardError",
    "ConfigError",
    "Deadlock",
    "InDoubt",
    "LockLost",
    "LockTimeout",
    "MergeConflict",
    "StaleWrite",
    "UndeclaredWrite",
]


class AgentGuardError(Exception):
    """The base of all errors of this package.

    `message` is the text; every further fact is passed by name, becomes an attribute and is listed in `fields`.
    """

    code = "error"

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def for_model(self, limit: int = 1000) -> str:
        """The text for a model: at most `limit` characters, and some 280 tokens."""
        from .budget import fit  # imported by those who have something to tell

        text = self.message if len(self.message) <= limit else self.message[: limit - 2].rstrip() + " …"
        return fit(text)

    def facts(self) -> dict[str, Any]:
        """The fields as plain values (None, bool, numbers, texts, lists, mappings), for checkpoints and JSON."""
        plain: dict[str, Any] = _plain(self.fields)
        return plain

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.fields, getattr(self, "__notes__", None))

    def __str__(self) -> str:
        return self.message


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)


def _rebuild(kind: type[AgentGuardError], message: str, fields: dict[str, Any], notes: list[str] | None) -> Any:
    error = kind(message, **fields)
    if notes:
        error.__notes__ = list(notes)  # `add_note` is missing before Python 3.11
    return error


class ConfigError(AgentGuardError, ValueError):
    """A declaration, option or configuration file that cannot be meant.

    Fields where known: `file`, `key`, `value`, `nearest` (the nearest valid word), `resource`, `tool`.
    """

    code = "config"


class LockTimeout(AgentGuardError, TimeoutError):
    """A lock was not granted in time; nothing was applied.

    Fields: `resource`, `timeout` (seconds), `holders` (tuple of `agentguard.locks.Holder`).
    """

    code = "timeout"


class Deadlock(AgentGuardError, RuntimeError):
    """Waiting for this lock would never end; raised at once instead.

    Fields: `resource`, `cycle` (tuple of the resources and holders on the cycle, as texts).
    """

    code = "deadlock"


class LockLost(AgentGuardError, RuntimeError):
    """A lock that was granted is no longer held; the commit was refused. Fields: `resource`, `token`."""

    code = "lost"


class StaleWrite(AgentGuardError, RuntimeError):
    """The resource changed since this agent last read it; the write was refused and nothing was applied.

    Fields: `resource`, `agent`, `tool`, `reason` (a short text), `read_version`, `current_version`, `changed_by` (text,
    or None when it was changed from outside), `changed_at` (seconds since the epoch, or None), `diff` (short text);
    after an attempt to merge also `conflicts` (texts) and `folder` (where what the call made is kept).
    """

    code = "conflict"


class MergeConflict(AgentGuardError, ValueError):
    """Shards changed the same place differently; nothing was published and every shard is kept.

    Fields: `conflicts` (tuple of `agentguard.merge.Conflict`), `resources`, `folder` (where base and sides are kept).
    """

    code = "conflict"


class UndeclaredWrite(AgentGuardError, PermissionError):
    """A write, or the wish for a path, that no declaration covers. Fields: `resource`, `tool`, `agent`, `declared`."""

    code = "undeclared"


class InDoubt(AgentGuardError, OSError):
    """A commit was decided but could not be finished; `agentguard recover` or the next call finishes it.

    Fields: `record` (path of the commit record), `resources`.
    """

    code = "in_doubt"
