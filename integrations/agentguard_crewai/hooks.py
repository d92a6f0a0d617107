"""What CrewAI calls. Hooks fail open there, since it swallows what they raise: these fail closed, by `HookAborted`."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

from crewai import Crew
from crewai.hooks import HookAborted, InterceptionPoint

from agentguard import AgentGuardError

from . import crews, registry
from .caching import blind, forget_last
from .executors import Spot, spot_here
from .identity import CALLER, STEP, Caller, Step
from .refusals import aborting
from .tools import binding_of, wants_of

log = logging.getLogger("agentguard")


def _closed(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """Let every error of a hook stop what it was called for."""

    @functools.wraps(hook)
    def closed(ctx: Any) -> None:
        try:
            hook(ctx)
        except HookAborted:
            raise
        except AgentGuardError as error:
            raise aborting(error) from error
        except Exception as error:  # our own code, and CrewAI would go on without the guard
            log.exception("a hook of agentguard failed")
            raise HookAborted(f"agentguard cannot guard this: {error!r}", "agentguard") from error

    return closed


@_closed
def execution_start(ctx: Any) -> None:
    """Before anything runs: find tools that came since, or a copy of a guarded crew."""
    if ctx.crew is not None:
        crews.adopt(ctx.crew)


@_closed
def pre_step(ctx: Any) -> None:
    """A task starts, in its own context. Before a synchronous one CrewAI has waited for all others: join them."""
    if ctx.kind != "task" or ctx.task is None:
        return
    STEP.set(None)
    crew = getattr(ctx.agent, "crew", None)
    guard = crews.adopt(crew)
    if guard is None or not isinstance(crew, Crew):
        return
    run = crews.run_of(crew, guard)
    if not ctx.task.async_execution:
        crews.join(run)
    index = next((number for number, task in enumerate(crew.tasks) if task is ctx.task), len(crew.tasks))
    STEP.set(Step(run, crew, str(ctx.task.id), index, ctx.agent))


@_closed
def execution_end(ctx: Any) -> None:
    """The kickoff is over, completed or failed."""
    if not isinstance(ctx.crew, Crew):
        return
    STEP.set(None)
    guard = crews.adopt(ctx.crew)
    if guard is not None:
        crews.end(crews.run_of(ctx.crew, guard), ctx.error)


def pre_tool_call(ctx: Any) -> None:
    """Right before a tool call: see that the tool is guarded and will be run, and remember whose call it is."""
    CALLER.set(None)
    try:
        crews.guard_late(ctx.tool, ctx.tool_name, ctx.crew)
        spot = spot_here()
        if spot is not None and spot.turn is not None:
            _guard_turn(spot, ctx)
        binding = binding_of(getattr(ctx.tool, "_original_tool", None) or ctx.tool) if ctx.tool is not None else None
        if binding is not None and binding.uncached:
            forget_last(ctx.agent)
            blind(getattr(getattr(ctx.agent, "tools_handler", None), "cache", None), binding)
    except Exception as error:  # our own code; the call must not go through unguarded
        if not isinstance(error, AgentGuardError):
            log.exception("a hook of agentguard failed")
        reason = f"{ctx.tool_name} was not called, because it cannot be guarded: {error}"
        CALLER.set(Caller(ctx.agent, blocked=reason))
        raise HookAborted(reason, "agentguard") from error
    CALLER.set(Caller(ctx.agent, spot))


def _guard_turn(spot: Spot, ctx: Any) -> None:
    """Guard what the other calls of the turn call: what they touch must be known before the first of them runs."""
    assert spot.turn is not None
    for tool in spot.turn.tools:
        if tool is not None:
            with contextlib.suppress(AgentGuardError):  # its own call will say so
                crews.guard_late(tool, tool.name, ctx.crew)


def post_tool_call(ctx: Any) -> str | None:
    """Right after it, also when somebody has blocked it: later calls of its turn need not wait for it, and whoever
    calls a tool next in this context is somebody else."""
    caller = CALLER.get()
    CALLER.set(None)
    spot = spot_here()
    if spot is not None and spot.turn is not None:
        spot.turn.seats(wants_of, exact=True).end(spot.place)
    return caller.blocked if caller is not None else None


registry.HOOKS.update(
    {
        InterceptionPoint.EXECUTION_START: execution_start,
        InterceptionPoint.PRE_STEP: pre_step,
        InterceptionPoint.PRE_TOOL_CALL: pre_tool_call,
        InterceptionPoint.POST_TOOL_CALL: post_tool_call,
        InterceptionPoint.EXECUTION_END: execution_end,
    }
)
