"""Who makes a call: the run, the task and the agent, as the hooks saw them pass by.

Two context variables, since every thread and task that CrewAI starts copies the context: `STEP`, set when a task
starts and valid as long as CrewAI itself says that this task runs; `CALLER`, set right before a tool call and taken
back right after it.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crewai import Crew
from crewai.context import get_current_task_id
from crewai.execution import get_execution_uuid

from agentguard import Guard, Identity

__all__ = ["CALLER", "STEP", "Caller", "Run", "Step", "acting", "identity_of"]

log = logging.getLogger("agentguard")

_LONGEST = 80


@dataclass(eq=False)
class Run:
    """One kickoff of one crew: what a join belongs to."""

    id: str
    guard: Guard
    ended: bool = False
    warned: bool = False


@dataclass(frozen=True)
class Step:
    """One task while it runs. `index`: its place in the crew, which decides the order of merging."""

    run: Run
    crew: Crew
    task_id: str
    index: int
    agent: Any


@dataclass(frozen=True)
class Caller:
    """The agent of the tool call that is just being made. `blocked`: what the model is told instead of a result."""

    agent: Any
    blocked: str | None = None


STEP: contextvars.ContextVar[Step | None] = contextvars.ContextVar("agentguard_crewai_step", default=None)
CALLER: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("agentguard_crewai_caller", default=None)


@contextlib.contextmanager
def acting(guard: Guard) -> Iterator[None]:
    """Make the call inside as whoever makes it; without a trace of CrewAI, as the guard itself sees it."""
    identity = identity_of(guard)
    if identity is None:
        yield
        return
    with guard.identified(identity):
        yield


def identity_of(guard: Guard) -> Identity | None:
    """The identity of a tool call made here and now; None when no agent of CrewAI makes it.

    Inside a task of a crew that this guard looks after, the agent's own shard in that task. An agent without a crew
    has no shard: nothing would join it.
    """
    caller, step = CALLER.get(), STEP.get()
    if step is not None and step.run.guard is guard and get_current_task_id() == step.task_id:
        agent = caller.agent if caller is not None and caller.agent is not None else step.agent
        if step.run.ended:
            _warn_late(step.run, agent)
        place = _place(agent, step.crew)
        return Identity(
            _name(agent, step.crew),
            step.run.id,
            step=f"task-{step.index:04d}",
            shard=f"{step.task_id}/{getattr(agent, 'id', '')}",
            order=(f"{step.index:06d}", f"{place:06d}"),
        )
    if caller is None or caller.agent is None or guard.identity().shard is not None:
        return None  # who called `guard.agent(...)` has said who acts, and joins
    return Identity(_name(caller.agent, None), get_execution_uuid() or guard.run)


def _name(agent: Any, crew: Crew | None) -> str:
    """The agent's role, made short and unlike that of any other agent of the crew: reads are remembered by it."""
    given = str(getattr(agent, "role", ""))
    role = " ".join(given.split()) or "agent"
    if len(role) > _LONGEST:
        mark = hashlib.sha256(role.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        role = f"{role[:_LONGEST].rstrip()}…{mark}"
    same = [one for one in crew.agents if one.role == given] if crew is not None else []
    place = next((number for number, one in enumerate(same, 1) if one is agent), 1)
    return role if place == 1 else f"{role} ({place})"


def _place(agent: Any, crew: Crew) -> int:
    return next((number for number, one in enumerate(crew.agents) if one is agent), len(crew.agents))


def _warn_late(run: Run, agent: Any) -> None:
    if not run.warned:
        run.warned = True
        log.warning(
            "agent %r still calls tools after the kickoff %s of its crew has ended. What it writes to resources in "
            "shard mode is kept as a shard and not applied: see `agentguard status`; guard.join(run=%r) applies it.",
            str(getattr(agent, "role", ""))[:_LONGEST],
            run.id,
            run.id,
        )
