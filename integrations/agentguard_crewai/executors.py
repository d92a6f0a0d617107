"""Which conversation, and which turn of it, a tool call belongs to.

CrewAI hands neither to its hooks nor to its tools, but whoever executes the calls of a model stands on the same
thread's stack: its frames are read, as they are in crewai 1.15.17 to 1.15.30. All of that is private there; where
nothing is found, a call is made without a place in a turn.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import FrameType
from typing import Any

from crewai.utilities.agent_utils import extract_tool_call_info
from crewai.utilities.string_utils import sanitize_tool_name

from agentguard.knowledge import Memory, TurnMemory
from agentguard.turns import Turn, Wants

__all__ = ["Conversation", "Spot", "ToolTurn", "spot_here"]

_MARK = "__agentguard_conversations__"
_TEXT = ("execute_tool_and_check_finality", "aexecute_tool_and_check_finality")

_mutex = threading.Lock()
_numbers = count(1)

Called = tuple[Any, str, Any]  # a call's id, the tool's name and the arguments, as the model gave them


class Conversation:
    """What one executor and a model tell each other: this the model has seen."""

    def __init__(self, key: object) -> None:
        self.number = next(_numbers)
        self.key = key  # held, so that nothing else is taken for it
        self._turns: deque[ToolTurn] = deque(maxlen=4)  # one after the other: no call of an older one comes any more

    def turn(self, key: object, calls: Callable[[], Sequence[Called]], owner: Any) -> ToolTurn:
        """The turn that the executor `owner` keeps in `key`."""
        with _mutex:
            found = next((one for one in self._turns if one.key is key), None)
            if found is None:
                made = calls()
                found = ToolTurn(key, made, [_tool(owner, name) for _, name, _ in made])
                self._turns.append(found)
            return found


class ToolTurn:
    """Several calls that a model made in one answer. `tools`: what they call, by their place."""

    def __init__(self, key: object, calls: Sequence[Called], tools: Sequence[Any]) -> None:
        self.key = key
        self.calls = calls
        self.tools = tools
        self._turn: Turn | None = None
        self._claimed: list[tuple[object, int]] = []
        self._memories: list[TurnMemory] = []

    def place(self, call: Called, claimant: object) -> int | None:
        """The place of a call. Of several that are equal, ids included, each claimant gets one of its own."""
        places = [place for place, one in enumerate(self.calls) if one == call]
        if len(places) < 2:
            return places[0] if places else None
        with _mutex:
            for known, place in self._claimed:
                if known is claimant:
                    return place
            taken = {place for _, place in self._claimed}
            free = next((place for place in places if place not in taken), None)
            if free is not None:
                self._claimed.append((claimant, free))
            return free

    def seats(self, wants: Callable[[Any, Any], Wants], *, exact: bool) -> Turn:
        """The turn as the guard sees it: `wants(tool, arguments)` predicts what a call touches, `exact` as there."""
        if self._turn is None:
            # Not under the lock: it resolves paths, and asks the tool's schema.
            made = Turn([wants(tool, call[2]) for tool, call in zip(self.tools, self.calls, strict=True)], exact=exact)
            with _mutex:
                self._turn = self._turn or made
        return self._turn

    def memory(self, memory: Memory, place: int) -> Memory:
        """What an agent with this memory knows in the call at this place; see `TurnMemory`."""
        with _mutex:
            found = next((one for one in self._memories if one.memory == memory), None)
            if found is None:
                found = TurnMemory(memory)
                self._memories.append(found)
        return found.at(place)


@dataclass(frozen=True)
class Spot:
    """Where a call is made: by whom, in which conversation, and, if its model made several at once, in which turn.

    `sequential`: the executor runs the calls of the turn one after the other."""

    agent: Any
    conversation: Conversation
    turn: ToolTurn | None = None
    place: int = 0
    sequential: bool = False


def spot_here() -> Spot | None:
    """Where the innermost tool call on this thread's stack is made; None when no executor of CrewAI makes one."""
    frame: FrameType | None = sys._getframe(1)
    step: tuple[Any, Any] | None = None
    text: tuple[Any] | None = None
    while frame is not None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__") or ""
        if module.startswith("crewai."):
            if name == "_execute_single_native_tool_call":
                return _of_executor(frame)
            if name == "execute_single_native_tool_call":
                step = frame.f_locals.get("tool_call"), frame.f_locals.get("agent")
            elif name == "_execute_native_tool_calls" and step is not None:
                return _of_step(frame.f_locals, *step)
            elif name in _TEXT:
                text = (frame.f_locals.get("agent"),)
            elif text is not None and name != "_execute_text_tool_with_events" and "self" in frame.f_locals:
                found = frame.f_locals
                key = found.get("messages") if name == "_execute_text_parsed" else None
                return Spot(text[0], _conversation(found["self"], key))
        frame = frame.f_back
    return None


def _of_executor(frame: FrameType) -> Spot | None:
    """A native call of an AgentExecutor, or of a CrewAgentExecutor of the past."""
    found = frame.f_locals
    owner = found.get("self")
    messages = getattr(owner, "messages", None)
    if not isinstance(messages, list):
        return None
    agent, conversation = getattr(owner, "agent", None), _conversation(owner)
    message = next((one for one in reversed(messages) if isinstance(one, dict) and one.get("tool_calls")), None)
    if message is None or len(message["tool_calls"]) < 2:
        return Spot(agent, conversation)
    turn = conversation.turn(message, lambda: [_reported(one) for one in message["tool_calls"]], owner)
    arguments = found.get("func_args")
    call = found.get("call_id"), found.get("func_name", ""), _text(arguments)
    place = turn.place(call, found.get("args_dict"))
    if place is None:
        return Spot(agent, conversation)
    around = frame.f_back  # in a pool, that is not CrewAI's
    sequential = around is not None and str(around.f_globals.get("__name__")).startswith("crewai.")
    return Spot(agent, conversation, turn, place, sequential)


def _of_step(found: Mapping[str, Any], call: Any, agent: Any) -> Spot | None:
    """A native call in a step of a plan. Steps run in parallel on one executor, each with messages of its own."""
    owner, calls = found.get("self"), found.get("tool_calls")
    if owner is None:
        return None
    conversation = _conversation(owner, found.get("messages"))
    if not isinstance(calls, list) or len(calls) < 2:
        return Spot(agent, conversation)
    turn = conversation.turn(calls, lambda: [extract_tool_call_info(one) or (None, "", None) for one in calls], owner)
    place = next((place for place, one in enumerate(calls) if one is call), None)
    return Spot(agent, conversation) if place is None else Spot(agent, conversation, turn, place, True)


def _reported(call: Mapping[str, Any]) -> Called:
    function = call.get("function") or {}
    return call.get("id"), function.get("name", ""), function.get("arguments")


def _text(arguments: Any) -> Any:
    """Arguments as the executor puts them into the assistant's message."""
    return json.dumps(arguments) if isinstance(arguments, dict) else arguments


def _conversation(owner: Any, key: object | None = None) -> Conversation:
    """The conversation of an executor; `key`: which one, if it has several at a time."""
    key = owner if key is None else key
    with _mutex:
        known: deque[Conversation] | None = owner.__dict__.get(_MARK)
        if known is None:
            known = deque(maxlen=64)
            object.__setattr__(owner, _MARK, known)  # pydantic allows no such attribute, Python does
        found = next((one for one in known if one.key is key), None)
        if found is None:
            found = Conversation(key)
            known.append(found)
        return found


def _tool(owner: Any, name: str) -> Any:
    """The tool that an executor calls by a name; None when it has none."""
    found = (getattr(owner, "_tool_name_mapping", None) or {}).get(name)
    if found is None:
        candidates = (*(getattr(owner, "original_tools", None) or ()), *(getattr(owner, "tools", None) or ()))
        found = next((one for one in candidates if sanitize_tool_name(one.name) == name), None)
    return getattr(found, "_original_tool", None) or found
