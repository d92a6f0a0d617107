"""What a model has read, kept where the model's own memory is: with the messages that it saw.

Every answer of a guarded tool carries the versions that its call has seen, in `additional_kwargs["agentguard"]`: it is
checkpointed, restored, forked and trimmed together with the content that the model knows, and no provider gets it. An
answer also carries along what its agent knew before, so that little is lost where old messages are cut off.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.types import Command

from agentguard.knowledge import UNKNOWN, Known, Memory

from .attempts import Attempt

__all__ = ["KEY", "Transcript", "asked_in", "stamped", "transcripts_in"]

KEY = "agentguard"
_CARRIED = 50  # resources that a message tells of besides its own

Unstamped = Callable[[Mapping[str, Any], str], bool]
"""Whether a model's tool call reads a resource."""


def transcripts_in(state: Any) -> list[Sequence[BaseMessage]]:
    """Every list of messages in a graph's state."""
    if isinstance(state, list):
        found: Any = [state]
    elif isinstance(state, Mapping):
        found = state.values()
    else:
        found = (getattr(state, name) for name in _fields(state))
    return [one for one in found if isinstance(one, list) and one and isinstance(one[-1], BaseMessage)]


def _fields(state: Any) -> Sequence[str]:
    if dataclasses.is_dataclass(state):
        return [field.name for field in dataclasses.fields(state)]
    return list(getattr(type(state), "model_fields", ()))


def asked_in(transcripts: Sequence[Sequence[BaseMessage]], call_id: str) -> tuple[Sequence[BaseMessage], int] | None:
    """The transcript with a tool call, and the place of the model's message that makes it; None when there is none."""
    for messages in transcripts:
        for place in range(len(messages) - 1, -1, -1):
            message = messages[place]
            if isinstance(message, AIMessage) and any(call["id"] == call_id for call in message.tool_calls):
                return messages, place
    return None


class Transcript:
    """A `Memory`: what a model knew when it made a call. What the call learns is for its answer to carry.

    `base` knows of what was read otherwise, by the code around the model. `reads` tells whether a call of the history
    reads a resource: if its answer does not say in which version, that is known to be unknown. `attempt`: what earlier
    attempts of this call have written is known as well.
    """

    def __init__(
        self,
        seen: Sequence[BaseMessage],
        *,
        lasting: bool,
        base: Memory | None = None,
        reads: Unstamped = lambda call, resource: False,
        attempt: Attempt | None = None,
    ) -> None:
        self._attempt = attempt
        self._again = attempt.known() if attempt is not None else {}
        self.lasting = lasting
        self._seen = seen
        self._base = base
        self._reads = reads
        self._known: dict[str, str] | None = None
        self._own: dict[str, int] = {}  # the place of the message that tells of a resource first-hand
        self._silent: list[tuple[int, Mapping[str, Any]]] = []  # calls whose answers tell nothing, and where those are
        self._learned: dict[str, Known] = {}
        self._mutex = threading.Lock()

    def get(self, resource: str) -> Known | None:
        """See `Memory`."""
        if resource in self._again:
            return self._again[resource]
        version = self._versions().get(resource)
        since = self._own.get(resource, -1)
        if any(place > since and self._reads(call, resource) for place, call in self._silent):
            version = UNKNOWN
        if version is not None:
            return Known(version, 0.0)
        return self._base.get(resource) if self._base is not None else None

    def learn(self, learned: Mapping[str, Known]) -> None:
        """See `Memory`."""
        with self._mutex:
            self._learned.update(learned)
        if self._attempt is not None:
            self._attempt.learn(learned)
        if self._base is not None:
            self._base.learn(learned)

    def named(self, agent: str) -> Memory:
        """See `Memory`: a name that is given inside of a tool's body is another agent's."""
        return self._base.named(agent) if self._base is not None else self

    def stamp(self) -> dict[str, dict[str, str]]:
        """What an answer carries."""
        own = {resource: known.version for resource, known in self._learned.items()}
        before = {resource: version for resource, version in self._versions().items() if resource not in own}
        carried = dict(list(before.items())[-_CARRIED:])
        return {name: told for name, told in (("read", own), ("carried", carried)) if told}

    def _versions(self) -> dict[str, str]:
        """By resource, what was told last comes last; first-hand counts before what was only carried along."""
        if self._known is not None:
            return self._known
        # Backwards: what was told last counts. By dictionaries' types and not by their abilities: histories are long.
        known: dict[str, str] = {}
        carried: dict[str, str] = {}
        silent: dict[str, int] = {}
        for place in range(len(self._seen) - 1, -1, -1):
            message = self._seen[place]
            if isinstance(message, ToolMessage):
                told = message.additional_kwargs.get(KEY)
                read = told.get("read") if type(told) is dict else None
                if type(read) is dict and read:
                    for resource, version in read.items():
                        if resource not in known:
                            known[resource] = version if type(version) is str else UNKNOWN
                            self._own[resource] = place
                elif message.status != "error":
                    silent[message.tool_call_id] = place
                if not carried and type(told) is dict:  # an answer carries along all that was known before it
                    carried = _told(told.get("carried"))
            elif silent and isinstance(message, AIMessage):
                for call in message.tool_calls:
                    at = silent.pop(call["id"] or "", None)
                    if at is not None:
                        self._silent.append((at, call))
        older = {resource: version for resource, version in carried.items() if resource not in known}
        self._known = {**older, **dict(reversed(known.items()))}
        return self._known


def _told(entries: Any) -> dict[str, str]:
    """What a message tells, as far as it can be read: it has been in other people's hands."""
    if type(entries) is not dict:
        return {}
    return {str(key): value if type(value) is str else UNKNOWN for key, value in entries.items()}


def stamped(result: Any, call_id: str, stamp: Mapping[str, Any]) -> Any:
    """A tool's result, with the stamp on the answer to this call."""
    if not stamp:
        return result
    if isinstance(result, ToolMessage):
        if result.tool_call_id != call_id:
            return result
        return result.model_copy(update={"additional_kwargs": {**result.additional_kwargs, KEY: dict(stamp)}})
    if isinstance(result, Command) and isinstance(result.update, dict):
        update = {key: _told_in(value, call_id, stamp) for key, value in result.update.items()}
        return dataclasses.replace(result, update=update)
    if isinstance(result, Command):
        return dataclasses.replace(result, update=_told_in(result.update, call_id, stamp))
    return [stamped(one, call_id, stamp) for one in result] if type(result) is list else result


def _told_in(messages: Any, call_id: str, stamp: Mapping[str, Any]) -> Any:
    """What a command does to a list of messages, which may also be written as mappings."""
    if not isinstance(messages, list):
        return messages
    found = []
    for one in messages:
        if isinstance(one, Mapping) and (one.get("role") or one.get("type"), one.get("tool_call_id")) == (
            "tool",
            call_id,
        ):
            one = {**one, "additional_kwargs": {**(one.get("additional_kwargs") or {}), KEY: dict(stamp)}}
        found.append(stamped(one, call_id, stamp))
    return found
