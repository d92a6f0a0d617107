"""What happened, as frozen records, for any number of hooks.

    guard.hooks.append(print)

A hook is called in the thread or task that made the call, after the fact, and only while there is one: without hooks
nothing is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Event", "Hook"]


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a guarded call.

    `kind`: "acquired", "committed", "discarded", "refused", "released" or "merged"; `at`: seconds since the epoch;
    `resource`: the name; `details`: what else is known (seconds waited, token, error, ...).
    """

    kind: str
    at: float
    resource: str
    agent: str
    run: str
    tool: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Hook(Protocol):
    """Anything that can be called with an `Event`."""

    def __call__(self, event: Event, /) -> object: ...
