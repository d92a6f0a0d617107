"""Guarding whole crews: which guard looks after a crew, and the joins of its kickoffs."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

from crewai import Crew
from crewai.execution import get_execution_uuid
from crewai.tools import BaseTool
from crewai.tools.structured_tool import CrewStructuredTool

from agentguard import AgentGuardError, ConfigError, Guard, JoinReport

from . import registry
from .caching import blind
from .identity import Run
from .tools import (
    bind,
    binding_of,
    bound_alone,
    configured_name,
    declaration_of,
    guard_found,
    release_tool,
)

__all__ = ["adopt", "guard_crew", "guard_late", "install", "join", "join_reports", "run_of", "uninstall"]

log = logging.getLogger("agentguard")

C = TypeVar("C", bound=Crew)

_MARK = "__agentguard__"
_KEPT_REPORTS = 1000

_mutex = threading.RLock()
_installed: Guard | None = None
_by_install: list[weakref.ref[BaseTool | CrewStructuredTool]] = []  # MCP tools are made anew for each task
_crews: list[weakref.ref[Crew]] = []
_runs: weakref.WeakValueDictionary[tuple[str, str], Run] = weakref.WeakValueDictionary()
_reports: weakref.WeakKeyDictionary[Guard, deque[JoinReport]] = weakref.WeakKeyDictionary()


# -- which guard looks after a crew ---


def guard_crew(crew: C, guard: Guard) -> C:
    """Guard a crew in place; returns the same crew.

    Every tool of its agents and tasks is guarded as by `guard_tool`, also those that are added later or resolved only
    while it runs (MCP), and those of its copies (`kickoff_for_each`). Each call is made as its agent in its task of
    this kickoff. Resources in shard mode are isolated for each agent in each task, and merged when the next
    synchronous task starts and when the kickoff ends, completed or failed; there `kickoff()` raises `MergeConflict` or
    `LockTimeout` with nothing published. `join_reports` has what the joins did.

    Raises `ConfigError` when the object is no crew, or when a tool cannot be guarded (see `guard_tool`).
    """
    if not isinstance(crew, Crew):
        raise ConfigError(
            f"guard_crew guards a Crew, not {type(crew).__name__}; of a @CrewBase class give what `.crew()` returns",
            value=type(crew).__name__,
        )
    with _mutex:
        known = _marked(crew)
        if known is not None and known is not guard:
            raise ConfigError(f"this crew is guarded already, by {known!r}: use one guard for it")
        guard_found(_tools(crew), guard)
        _blind(crew)
        if known is None:
            object.__setattr__(crew, _MARK, guard)  # pydantic allows no such attribute, Python does
            _crews.append(weakref.ref(crew, _crews.remove))
    registry.ensure(want=True)
    return crew


def install(guard: Guard) -> None:
    """Guard every crew of this process, now and later, with no change to their code, until `uninstall()`.

    A tool that declares something, above all by the configuration under its name (`[tools.file_writer_tool]`), is
    guarded at its first call by any agent; a call that cannot be guarded is blocked, and the model is told why. Crews
    and tools that have a guard keep it. Raises `ConfigError` when another guard is installed.
    """
    global _installed
    with _mutex:
        if _installed is not None and _installed is not guard:
            raise ConfigError(f"{_installed!r} is installed already; uninstall() it first")
        _installed = guard
    registry.ensure(want=True)


def uninstall() -> None:
    """Undo `install`: its tools are as they were; without a guarded crew or tool no hook of ours is left in CrewAI
    either."""
    global _installed
    with _mutex:
        _installed = None
        while _by_install:
            tool = _by_install.pop()()
            if tool is not None:
                release_tool(tool)
        if not any(one() is not None for one in list(_crews)) and not bound_alone():
            registry.remove()


def adopt(crew: Any) -> Guard | None:
    """The guard that looks after a crew; its tools are guarded when this returns.

    A copy of a guarded crew is a new object, but its agents have the same tools: by those it is recognized.
    """
    if not isinstance(crew, Crew):
        return _installed
    guard = _marked(crew)
    if guard is None:
        bindings = (binding_of(tool) for tool in _tools(crew))
        guard = next((binding.guard for binding in bindings if binding is not None and binding.by_crew), None)
    if guard is None:
        return _installed
    guard_crew(crew, guard)
    return guard


def guard_late(tool: Any, name: str, crew: Any) -> None:
    """Guard a tool that is about to be called for the first time, where a crew's guard or the installed one wants it.

    `tool`: what the framework calls, None when it does not say; `name`: as the model knows it.
    """
    marked = _marked(crew)
    guard = marked or _installed
    if guard is None:
        return
    if not isinstance(tool, (BaseTool, CrewStructuredTool)):
        if configured_name(name, guard) is not None:
            raise ConfigError(f"{name} has a declaration, but CrewAI does not say which tool it is", tool=name)
        return
    original = getattr(tool, "_original_tool", None) or tool
    with _mutex:
        binding = binding_of(original)
        if binding is None:
            if declaration_of(original, guard) is None and _own(original):
                return
            if marked is not None:
                guard_found([original], guard)
            elif binding_of(bind(original, guard)) is not None:
                _by_install.append(weakref.ref(original, _by_install.remove))
        if isinstance(tool, CrewStructuredTool) and tool is not original and binding_of(original) is not None:
            tool.func = original._run  # the text path bound it before


def _own(tool: Any) -> bool:
    """CrewAI's own tools for delegation and memory: no policy for unknown tools is meant for them."""
    return type(tool).__module__.startswith(("crewai.tools.agent_tools", "crewai.tools.memory_tools"))


def _marked(crew: Any) -> Guard | None:
    found = crew.__dict__.get(_MARK) if isinstance(crew, Crew) else None
    return found if isinstance(found, Guard) else None


def _blind(crew: Crew) -> None:
    """Keep the results of guarded tools that are in a crew's cache, if any, from being served."""
    bindings = [binding_of(tool) for tool in _tools(crew) if isinstance(tool, (BaseTool, CrewStructuredTool))]
    handlers = [getattr(agent, "tools_handler", None) for agent in (*crew.agents, crew.manager_agent)]
    for cache in (getattr(crew, "_cache_handler", None), *(getattr(handler, "cache", None) for handler in handlers)):
        blind(cache, *bindings)


def _tools(crew: Crew) -> Iterator[Any]:
    for agent in (*crew.agents, crew.manager_agent, *(task.agent for task in crew.tasks)):
        yield from getattr(agent, "tools", None) or ()
    for task in crew.tasks:
        yield from task.tools or ()


# -- joins ---


def run_of(crew: Crew, guard: Guard) -> Run:
    """The kickoff that a crew is in. Its id outlives the process with a checkpoint, so that a resumed run joins too."""
    kickoff = getattr(crew, "_kickoff_event_id", None) or get_execution_uuid() or guard.run
    key = (str(crew.id), kickoff)
    with _mutex:
        run = _runs.get(key)
        if run is None or run.guard is not guard:
            run = _runs[key] = Run(f"crew-{kickoff}", guard)
        return run


def join(run: Run) -> None:
    """Merge every shard of a kickoff, each exactly once. Raises as `Guard.join` does."""
    guard = run.guard
    if not any(resource.mode == "shard" for resource in guard.config.resources.values()):
        return
    report = guard.join(run=run.id)
    if report:
        log.info("%s: %s", run.id, report)
        with _mutex:
            _reports.setdefault(guard, deque(maxlen=_KEPT_REPORTS)).append(report)


def join_reports(guard: Guard, crew: Crew | None = None) -> tuple[JoinReport, ...]:
    """What the joins of guarded crews merged, oldest first; `crew`: those of its last kickoff only.

    The last thousand of a guard are kept. Joins that found nothing to merge are not among them.
    """
    with _mutex:
        found = tuple(_reports.get(guard, ()))
    if crew is None:
        return found
    wanted = run_of(crew, guard).id
    return tuple(report for report in found if report.run == wanted)


def end(run: Run, error: BaseException | None) -> None:
    """The last join of a kickoff. After a failure nobody would hear an error of ours: it is logged, the shards stay."""
    try:
        if not isinstance(error, AgentGuardError):  # a join that was refused would be refused again
            join(run)
    except AgentGuardError as refused:
        if error is None:
            raise
        log.error("the failed kickoff %s could not be joined; its shards are kept: %s", run.id, refused)
    finally:
        run.ended = True
