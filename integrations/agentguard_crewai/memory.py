"""What an agent of CrewAI knows of what is shared: by run and agent, and by conversation.

An agent may talk to its model in several conversations at once (`Agent.kickoff` twice, parallel steps of a plan): what
one of them has read, the model has not seen in another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentguard.knowledge import Knowledge, Known, Memory

__all__ = ["Recall"]


@dataclass(frozen=True)
class Recall:
    """What an agent knows in one conversation: what was learned in it, else what the agent has learned before.

    `agent` tells agents of one run apart, whatever they are called."""

    knowledge: Knowledge
    run: str
    agent: str
    conversation: int | None = None

    @property
    def lasting(self) -> bool:
        return False

    @property
    def _own(self) -> str:
        return f"{self.agent}\0{self.conversation}"

    def get(self, resource: str) -> Known | None:
        found = self.knowledge.get(self.run, self._own, resource) if self.conversation is not None else None
        return found or self.knowledge.get(self.run, self.agent, resource)

    def learn(self, learned: Mapping[str, Known]) -> None:
        self.knowledge.learn(self.run, self.agent, learned)
        if self.conversation is not None:
            self.knowledge.learn(self.run, self._own, learned)

    def named(self, agent: str) -> Memory:
        return self.knowledge.of(self.run, agent)
