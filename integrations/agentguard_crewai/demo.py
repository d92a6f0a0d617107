"""The demo's crew: agents in parallel tasks that all record findings, then a closing task.

A real crew with real tools on real files; only the models are scripted, so that no key is needed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools.base_tool import Tool
from pydantic import Field, PrivateAttr

from agentguard import Guard
from agentguard.demo import Gate, aapply, agent_names, apply, kind_of, settings

from .crews import guard_crew
from .declaring import tool

__all__ = ["ScriptedModel", "run"]


class ScriptedModel(BaseLLM):
    """A model that makes the given tool calls, one in each turn, and then ends its task."""

    calls: list[dict[str, Any]] = Field(default_factory=list)
    answer: str = "Done."
    _turn: int = PrivateAttr(default=0)

    def supports_function_calling(self) -> bool:
        return True

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The next turn, in the shape of OpenAI's tool calls."""
        turn, self._turn = self._turn, self._turn + 1
        if turn >= len(self.calls):
            return self.answer
        function = {"name": "record", "arguments": json.dumps(self.calls[turn])}
        return [{"id": f"call_{turn}", "type": "function", "function": function}]

    def get_input_tokens_count(self, *args: Any, **kwargs: Any) -> int:
        """Nothing is ever too long for it."""
        return 1

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """The same; CrewAI's async path asks here."""
        return self.call()


def run(
    kind: str,
    mode: str,
    folder: Path,
    *,
    agents: int,
    rounds: int,
    asynchronous: bool,
    progress: Callable[[], None],
) -> None:
    """Let a crew of `agents` agents make `rounds` updates each of the state `kind` in `folder`, all at the same time.

    `mode`: "off" (no guard), "serialize" or "shard"; `asynchronous`: by `akickoff` and async tools instead of `kickoff`
    and threads; `progress` is called after each update, from any thread.
    """
    gate = Gate(mode, agents * rounds)
    record = _recorder(kind, folder, gate, asynchronous, progress)
    workers = [_agent(name, [{"agent": name, "n": n} for n in range(rounds)], record) for name in agent_names(agents)]
    editor = _agent("editor", [], None)
    tasks = [
        Task(
            description=f"Record what {worker.role} finds.", expected_output="Done.", agent=worker, async_execution=True
        )
        for worker in workers
    ]
    tasks.append(Task(description="Close the investigation.", expected_output="Done.", agent=editor))
    crew = Crew(agents=[*workers, editor], tasks=tasks)
    if mode != "off":
        guard_crew(crew, Guard(root=folder, **settings(mode)))
    if asynchronous:
        asyncio.run(crew.akickoff())
    else:
        crew.kickoff()


def _agent(name: str, calls: list[dict[str, Any]], record: Tool[..., Any] | None) -> Agent:
    return Agent(
        role=name,
        goal="Leave nothing out.",
        backstory="One of several who write into the same file.",
        llm=ScriptedModel(model="scripted", calls=calls),
        tools=[record] if record is not None else [],
        max_iter=len(calls) + 2,
    )


def _recorder(kind: str, folder: Path, gate: Gate, asynchronous: bool, progress: Callable[[], None]) -> Tool[..., Any]:
    resource = kind_of(kind).resource
    if asynchronous:

        @tool("record", updates=resource)
        async def record_async(agent: str, n: int) -> str:
            """Record the n-th finding of an agent."""
            answer = await aapply(kind, agent, n, folder, gate.wait)
            progress()
            return answer

        return record_async

    @tool("record", updates=resource)
    def record(agent: str, n: int) -> str:
        """Record the n-th finding of an agent."""
        answer = apply(kind, agent, n, folder, gate)
        progress()
        return answer

    return record
