"""What the LangGraph tests share: scripted models, and naive updates that surely overlap."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

import agentguard
from agentguard.demo import Gate

_ids = itertools.count()


class Scripted(BaseChatModel):
    """A model that answers by a function of the messages."""

    script: Callable[[list[BaseMessage]], AIMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Scripted:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.script(messages))])


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    """A model's tool call."""
    return {"name": tool, "args": arguments, "id": f"call-{next(_ids)}", "type": "tool_call"}


def says(*calls: dict[str, Any], content: str = "") -> AIMessage:
    """A model's message."""
    return AIMessage(content=content, tool_calls=list(calls))


def turns(*messages: AIMessage) -> Scripted:
    """A model that says these one after another: a turn has passed when its calls are answered."""

    def script(seen: list[BaseMessage]) -> AIMessage:
        said = sum(isinstance(message, AIMessage) for message in seen)
        return messages[said] if said < len(messages) else says(content="done")

    return Scripted(script=script)


def answers(result: Any) -> list[ToolMessage]:
    """The tools' answers in a graph's result."""
    return [message for message in result["messages"] if isinstance(message, ToolMessage)]


def run(graph: Any, state: Any, config: Any = None, *, asynchronous: bool = False) -> Any:
    """Run a graph by `invoke`, or by `ainvoke` in a loop of its own."""
    return asyncio.run(graph.ainvoke(state, config)) if asynchronous else graph.invoke(state, config)


class Notes:
    """A JSON list in a file, and tools that update it naively; unguarded ones surely overlap."""

    def __init__(self, root: Path, calls: int, mode: str = "off") -> None:
        self.file = root / "notes.json"
        self.file.write_text("[]")
        self.gate = Gate(mode, calls)

    @property
    def kept(self) -> list[str]:
        return list(json.loads(self.file.read_text()))

    def _read(self) -> tuple[Path, list[str]]:
        file = agentguard.path(self.file)  # this call's file; of an absolute path, outside of a call, itself
        return file, json.loads(file.read_text())

    @staticmethod
    def _write(file: Path, items: Sequence[str]) -> None:
        # In one piece: what is lost is lost to the interleaving, and not to half a file.
        agentguard.atomic_write(file, json.dumps(items).encode())

    def add(self, item: str) -> str:
        """Add a note."""
        file, items = self._read()
        self.gate()
        self._write(file, [*items, item])
        return f"noted {item}"

    async def aadd(self, item: str) -> str:
        """Add a note."""
        file, items = self._read()
        await self.gate.wait()
        self._write(file, [*items, item])
        return f"noted {item}"
