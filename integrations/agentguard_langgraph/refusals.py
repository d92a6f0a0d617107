"""How a refused call is told to the model: a ToolMessage with status "error", with the facts in its artifact."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import ToolMessage
from langgraph.types import Command

from agentguard import AgentGuardError, Deadlock, LockLost, LockTimeout, StaleWrite, UndeclaredWrite
from agentguard.redirect import CURRENT, unmap

__all__ = ["REFUSALS", "refusal", "shown"]

REFUSALS = (StaleWrite, LockTimeout, Deadlock, UndeclaredWrite, LockLost)


def refusal(error: AgentGuardError, name: str, tool_call_id: str) -> ToolMessage:
    """The answer to a tool call of which nothing was applied.

    Code finds the same facts in `message.artifact["agentguard"]`: `code`, `error` (the class), and the error's fields.
    """
    facts = {"error": type(error).__name__, "code": error.code, **error.facts()}
    return ToolMessage(
        content=error.for_model(), name=name, tool_call_id=tool_call_id, status="error", artifact={"agentguard": facts}
    )


def shown(result: Any) -> Any:
    """What a tool's body returned, without the paths of its copies; the core does it for plain texts and containers."""
    call = CURRENT.get()
    if call is None or not call.names:
        return result
    if isinstance(result, ToolMessage):
        result.content = unmap(result.content, call.names)
    elif isinstance(result, Command) and isinstance(result.update, dict):
        for value in result.update.values():
            for message in value if isinstance(value, list) else ():
                if isinstance(message, ToolMessage):
                    shown(message)
    return result
