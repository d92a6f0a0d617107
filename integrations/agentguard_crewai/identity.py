"""Who makes a call: the run, the task and the agent, as the hooks saw them pass by.

Two context variables, since every thread and task that CrewAI starts copies the context: `STEP`, set when a task
starts and valid as long as CrewAI itself says that this task runs; `CALLER`, set right before a tool call and taken
back right after it.
"""

from __future__ import annotations

import contextvars
import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from crewai import Crew
from crewai.context import get_current_task_id
from crewai.execution import get_execution_uuid

from agentguard import Guard, Identity
from agentguard.knowledge import without_turn

from .executors import Spot
from .memory import Recall

__all__ = ["CALLER", "STEP", "Caller", "Run", "Step", "identity_of"]

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
    """The agent of the tool call that is just being made, and where it makes it. `blocked`: what the model is told
    instead of a result."""

    agent: Any
    spot: Spot | None = None
    blocked: str | None = None


STEP: contextvars.ContextVar[Step | None] = contextvars.ContextVar("agentguard_crewai_step", default=None)
CALLER: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("agentguard_crewai_caller", default=None)


def identity_of(guard: Guard, spot: Spot | None) -> Identity | None:
    """The identity of a tool call made here and now; None when no agent of CrewAI makes it.

    `spot`: where the stack says it is made. Inside a task of a crew that this guard looks after, the identity has the
    agent's own shard in that task. An agent without a crew has no shard: nothing would join it.
    """
    caller, step = CALLER.get(), STEP.get()
    where = spot or (caller.spot if caller is not None else None)  # in another thread only the hook has seen it
    agent = where.agent if where is not None else None
    if agent is None and caller is not None:
        agent = caller.agent
    if step is not None and step.run.guard is guard and get_current_task_id() == step.task_id:
        agent = agent if agent is not None else step.agent
        if step.run.ended:
            _warn_late(step.run, agent)
        place = _place(agent, step.crew)
        identity = Identity(
            _name(agent, step.crew),
            step.run.id,
            step=f"task-{step.index:04d}",
            shard=f"{step.task_id}/{getattr(agent, 'id', '')}",
            order=(f"{step.index:06d}", f"{place:06d}"),
        )
    elif agent is not None and guard.identity().shard is None:
        identity = Identity(_name(agent, None), get_execution_uuid() or guard.run)
    elif spot is not None:  # who called `guard.agent(...)` has said who acts, and joins
        identity, agent = guard.identity(), None
    else:
        return None
    return _remembering(guard, identity, agent, where)


def _remembering(guard: Guard, identity: Identity, agent: Any, where: Spot | None) -> Identity:
    """The identity with what its agent knows: this very agent, whatever others of the same name do, in its
    conversation, and without what other calls of the same turn learn."""
    memory = without_turn(identity.memory)
    conversation = where.conversation.number if where is not None else None
    if memory is None:
        name = f"{identity.agent}\0{getattr(agent, 'id', '')}" if agent is not None else identity.agent
        memory = Recall(guard.knowledge, identity.run, name, conversation)
    elif isinstance(memory, Recall):  # of a call around this one
        memory = dataclasses.replace(memory, conversation=conversation)
    if where is not None and where.turn is not None:
        memory = where.turn.memory(memory, where.place)
    return dataclasses.replace(identity, memory=memory)


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
