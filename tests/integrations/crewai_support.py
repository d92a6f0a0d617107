"""Crews without a model key: scripted models, native and by text, and short ways to agents and tasks."""

from __future__ import annotations

import itertools
import json
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # CrewAI's and its dependencies' own, while they are imported
    from crewai import Agent, Crew, Task
    from crewai.hooks import InterceptionPoint, get_hooks
    from crewai.llms.base_llm import BaseLLM
    from crewai.tools.base_tool import BaseTool, Tool

import pytest
from pydantic import Field, PrivateAttr

__all__ = [
    "MARKS",
    "Agent",
    "BaseTool",
    "Crew",
    "Script",
    "Task",
    "Tool",
    "agent",
    "call",
    "hooks_in_place",
    "meeting",
    "played",
    "react",
    "results",
    "task",
    "told",
]

# CrewAI reads fields that it has deprecated itself.
MARKS = [pytest.mark.crewai, pytest.mark.filterwarnings("ignore::DeprecationWarning:crewai")]

_numbers = itertools.count()

Item = str | list[dict[str, Any]] | Callable[[list[dict[str, Any]]], Any]


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    """One native tool call."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{next(_numbers)}", "type": "function", "function": function}


def react(name: str, /, **arguments: Any) -> str:
    """One tool call by text."""
    return f"Thought: I need the tool\nAction: {name}\nAction Input: {json.dumps(arguments)}"


class Script(BaseLLM):
    """Answers with the next item: a text, a list of native calls, or what a function of the messages gives."""

    items: list[Any] = Field(default_factory=list, exclude=True)
    native: bool = True
    _turn: int = PrivateAttr(default=0)
    _mutex: Any = PrivateAttr(default_factory=threading.Lock)
    _seen: list[Any] = PrivateAttr(default_factory=list)

    def supports_function_calling(self) -> bool:
        return self.native

    def supports_stop_words(self) -> bool:
        return False

    def get_input_tokens_count(self, *args: Any, **kwargs: Any) -> int:
        return 1

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        with self._mutex:
            turn, self._turn = self._turn, self._turn + 1
            self._seen.append(json.loads(json.dumps(messages, default=str)))
        item = self.items[turn] if turn < len(self.items) else "done"
        if callable(item):
            item = item(messages)
        if isinstance(item, str) and not self.native and "Action:" not in item:
            return f"Thought: I know now\nFinal Answer: {item}"
        return item

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        import asyncio

        return await asyncio.to_thread(self.call, messages)


def agent(role: str, *items: Item, tools: Any = (), native: bool = True, **options: Any) -> Agent:
    """An agent that does what the items say, one in each turn."""
    model = Script(model="scripted", items=list(items), native=native)
    return Agent(role=role, goal="g", backstory="b", llm=model, tools=list(tools), max_iter=len(items) + 5, **options)


def played(script: Generator[Any, list[dict[str, Any]], None], turns: int = 60) -> list[Item]:
    """The items of an agent whose script is told, at each `yield` of an answer, the messages that follow."""
    begun = False

    def turn(messages: list[dict[str, Any]]) -> Any:
        nonlocal begun
        try:
            if begun:
                return script.send(messages)
            begun = True
            return next(script)
        except StopIteration:
            return "done"

    return [turn] * turns


def told(messages: list[dict[str, Any]], last: int = 1) -> list[str]:
    """What the last tool calls have answered."""
    return [str(one["content"]) for one in messages if one["role"] == "tool"][-last:]


def task(who: Agent, description: str = "t", **options: Any) -> Task:
    return Task(description=description, expected_output="x", agent=who, **options)


def results(who: Agent) -> list[str]:
    """What the agent's model was told by its tools, as it saw it last."""
    assert isinstance(who.llm, Script)
    return [str(one["content"]) for one in who.llm._seen[-1] if one["role"] == "tool"]


@contextmanager
def meeting(parties: int, patience: float = 5.0) -> Iterator[Callable[[], None]]:
    """A place in a tool's body where calls wait for each other, so that their updates surely overlap.

    Calls that cannot meet, because the guard lets in one at a time, go on after `patience` seconds."""
    barrier = threading.Barrier(parties)

    def meet() -> None:
        with suppress(threading.BrokenBarrierError):
            barrier.wait(patience)

    yield meet


def hooks_in_place() -> list[Any]:
    """Every hook in CrewAI's registry."""
    return [hook for point in InterceptionPoint for hook in get_hooks(point)]
