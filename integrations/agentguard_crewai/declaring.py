"""CrewAI's `tool` decorator, with a declaration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from crewai.tools import tool as crewai_tool
from crewai.tools.base_tool import Tool

from agentguard import ConfigError, declare

__all__ = ["tool"]


@overload
def tool(fn: Callable[..., Any], /) -> Tool[..., Any]: ...


@overload
def tool(
    name: str = ...,
    /,
    *,
    writes: Any = None,
    reads: Any = None,
    updates: Any = None,
    version: Callable[..., Any] | None = None,
    **options: Any,
) -> Callable[[Callable[..., Any]], Tool[..., Any]]: ...


def tool(
    name: str | Callable[..., Any] | None = None,
    /,
    *,
    writes: Any = None,
    reads: Any = None,
    updates: Any = None,
    version: Callable[..., Any] | None = None,
    **options: Any,
) -> Tool[..., Any] | Callable[[Callable[..., Any]], Tool[..., Any]]:
    """CrewAI's `@tool`, in all its forms, plus what the tool `writes`, `reads` and `updates`.

    Each is a resource name or a list of names, filled from the call's arguments: `"notes/{topic}.md"`. Without any of
    the three it is CrewAI's decorator, and a `@declare` beneath it counts. `version` as in `declare`: how to tell the
    version of keys and directories among them. `options` are CrewAI's own (`result_schema`, `result_as_answer`,
    `max_usage_count`).

    The tool guards nothing by itself: `guard_tool`, `guard_crew` or `install` does. Raises `ConfigError` at once for a
    template that names no argument of the function, and for a `version` of nothing.
    """
    declared = any(given is not None for given in (writes, reads, updates))
    if version is not None and not declared:
        raise ConfigError("version= tells the version of what writes=, reads= or updates= names", key="version")
    names = (name,) if isinstance(name, str) else ()

    def make(fn: Callable[..., Any]) -> Tool[..., Any]:
        if declared:
            fn = declare(writes=writes, reads=reads, updates=updates, version=version)(fn)
        decorate: Any = crewai_tool(*names, **options)
        made: Tool[..., Any] = decorate(fn)
        return made

    return make(name) if callable(name) else make
