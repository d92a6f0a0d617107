"""The demo's graph: agents in parallel branches that all record findings, then a closing node.

A real graph of real agents with real tools on real files; only the models are scripted, so that no key is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, MessagesState, StateGraph

from agentguard import Guard
from agentguard.demo import Gate, aapply, agent_names, apply, kind_of, settings

from .declaring import tool
from .graphs import guard_graph

__all__ = ["ScriptedModel", "run"]


class ScriptedModel(BaseChatModel):
    """A model that makes the given tool calls, one in each turn, and then ends its task."""

    calls: list[dict[str, Any]]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedModel:
        """It knows its one tool."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        turn = sum(isinstance(message, ToolMessage) for message in messages)
        calls: list[Any] = []
        if turn < len(self.calls):
            arguments = self.calls[turn]
            name = f"{arguments['agent']}-{turn}"
            calls = [{"name": "record", "args": arguments, "id": name, "type": "tool_call"}]
        answer = AIMessage(content="" if calls else "Done.", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=answer)])


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
    """Let `agents` agents in parallel branches make `rounds` updates each of the state `kind` in `folder`.

    `mode`: "off" (no guard), "serialize" or "shard"; `asynchronous`: by `ainvoke` and async tools instead of `invoke`
    and threads; `progress` is called after each update, from any thread.
    """
    record = _recorder(kind, folder, Gate(mode, agents * rounds), asynchronous, progress)
    builder = StateGraph(MessagesState)
    names = agent_names(agents)
    for name in names:
        model = ScriptedModel(calls=[{"agent": name, "n": n} for n in range(rounds)])
        builder.add_node(name, create_agent(model, [record], name=name))
        builder.add_edge(START, name)
    builder.add_node("editor", lambda state: {"messages": [AIMessage("The report is closed.")]})
    builder.add_edge(list(names), "editor")
    builder.add_edge("editor", END)
    graph = builder.compile() if mode == "off" else guard_graph(builder, Guard(root=folder, **settings(mode)))
    start: Any = {"messages": [HumanMessage("Record what you find.")]}
    # Each agent has a model's turn and a tool's turn for every update.
    config: Any = {"recursion_limit": 2 * rounds + 10, "max_concurrency": None if asynchronous else agents}
    if asynchronous:
        asyncio.run(graph.ainvoke(start, config))
    else:
        graph.invoke(start, config)


def _recorder(kind: str, folder: Path, gate: Gate, asynchronous: bool, progress: Callable[[], None]) -> BaseTool:
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
