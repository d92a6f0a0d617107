"""The hooks in CrewAI's registry, and the way back into it when somebody has cleared it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from crewai.events import CrewKickoffStartedEvent, crewai_event_bus
from crewai.hooks import InterceptionPoint, register_hook, unregister_hook
from crewai.hooks.dispatch import get_global_hook_list

__all__ = ["HOOKS", "ensure", "in_place", "remove"]

HOOKS: dict[InterceptionPoint, Callable[[Any], Any]] = {}  # one for each point; filled by `hooks`

_mutex = threading.Lock()
_wanted = False


def ensure(*, want: bool = False) -> None:
    """Put back whichever hook is missing, if hooks are wanted (from now on: `want`). Cheap when all are there.

    `clear_all_hooks()` is process-wide, so any library or test may take ours out. It does not clear the event bus, and
    CrewAI waits for the handlers of a kickoff's first event before it starts a task: there they come back.
    """
    global _wanted
    if not (want or _wanted):
        return
    if want or any(hook not in get_global_hook_list(point) for point, hook in HOOKS.items()):
        with _mutex:
            if want and not _wanted:
                _wanted = True
                crewai_event_bus.register_handler(CrewKickoffStartedEvent, _on_kickoff)
            for point, hook in HOOKS.items():
                if _wanted and hook not in get_global_hook_list(point):
                    register_hook(point, hook)


def in_place() -> bool:
    """Whether the hooks will see the end of every tool call."""
    return _wanted and all(hook in get_global_hook_list(point) for point, hook in HOOKS.items())


def remove() -> None:
    """Take every hook and the handler out again."""
    global _wanted
    with _mutex:
        _wanted = False
        crewai_event_bus.off(CrewKickoffStartedEvent, _on_kickoff)
        for point, hook in HOOKS.items():
            while unregister_hook(point, hook):
                pass


def _on_kickoff(source: Any, event: Any) -> None:
    ensure()
