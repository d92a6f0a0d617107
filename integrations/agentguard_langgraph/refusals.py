"""How a refused call is told to the model: a ToolMessage with status "error", with the facts in its artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import ToolMessage
from langgraph.types import Command

from agentguard import AgentGuardError, Deadlock, LockLost, LockTimeout, StaleWrite, UndeclaredWrite
from agentguard.redirect import CURRENT, unmap

__all__ = ["REFUSALS", "refusal", "shown"]

REFUSALS = (StaleWrite, LockTimeout, Deadlock, UndeclaredWrite, LockLost)
LIMIT = 1_000  # characters: about 250 tokens


def refusal(error: AgentGuardError, name: str, tool_call_id: str) -> ToolMessage:
    """The answer to a tool call of which nothing was applied.

    Code finds the same facts in `message.artifact["agentguard"]`: `code`, `error` (the class), and the error's fields.
    """
    text = str(error)
    if len(text) > LIMIT:
        text = text[: LIMIT - 2] + " …"
    facts = {"error": type(error).__name__, "code": error.code, **_plain(error.fields)}
    return ToolMessage(
        content=text, name=name, tool_call_id=tool_call_id, status="error", artifact={"agentguard": facts}
    )


def _plain(value: Any) -> Any:
    # It goes into checkpoints: only what every serializer knows.
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)


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
