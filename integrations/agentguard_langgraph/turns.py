"""The turn that a tool call belongs to: which calls its model made with it, what it knew, and which of them still run.

LangGraph executes the calls of a turn in two ways: a ToolNode runs all of them in one task; agents send each to a task
of its own (`Send`), beside its siblings. Who comes when, and who never comes, is told by the node (`executing`) in the
one case, and by the futures of the superstep's tasks in the other. Where neither can be had, an earlier call is waited
for just a moment.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langgraph._internal._constants import (
    CONF,
    CONFIG_KEY_CALL,
    CONFIG_KEY_CHECKPOINT_NS,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_READ,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SCRATCHPAD,
)
from langgraph.channels.base import BaseChannel
from langgraph.errors import EmptyChannelError

from agentguard import AgentGuardError, Declaration, Guard, Identity
from agentguard.knowledge import Memory, TurnMemory
from agentguard.turns import Seat, Turn, Wants

from .attempts import Attempt
from .declaring import Parameters
from .transcripts import Transcript, asked_in, stamped, transcripts_in

__all__ = ["CALLING", "Calling", "acting", "calling", "executing", "know", "scope_of"]

_KEPT = 1000  # turns of which no end was told
_EDITED = "hitl_edited_tool_calls"  # where HumanInTheLoopMiddleware keeps what is made instead of the model's calls

# The declarations of guarded tools, by guard and name: to tell what a call touches before it comes.
_known: weakref.WeakKeyDictionary[Guard, dict[str, list[tuple[Declaration, Parameters]]]] = weakref.WeakKeyDictionary()
_turns: OrderedDict[tuple[Any, ...], tuple[Turn, TurnMemory | None, object]] = OrderedDict()
# What the first writes of a turn have found. Tasks that were interrupted are resumed without those beside them.
_found: OrderedDict[tuple[Any, ...], dict[str, str]] = OrderedDict()
_mutex = threading.Lock()


def know(guard: Guard, name: str, declaration: Declaration, parameters: Parameters) -> None:
    """Remember what the guarded tool of this name declares."""
    with _mutex:
        found = _known.setdefault(guard, {}).setdefault(name, [])
        if all(declaration != one for one, _ in found):
            found.append((declaration, parameters))


@dataclass(frozen=True)
class Calling:
    """One call that a model made. `end` it when it is over.

    `own_task`: it has a task of its own, which tells its end. In there it may be tried again, and keeps its place.
    """

    call_id: str
    memory: Transcript
    seat: Seat | None
    own_task: bool = False
    scope: object = None  # the task that it runs in: a model inside of it may give its own calls the same ids

    def is_of(self, config: Mapping[str, Any] | None, call_id: str | None) -> bool:
        """Whether a call with this id, made with this configuration, is the very same."""
        return self.call_id == call_id and self.scope == scope_of(config)

    def answer(self, result: Any) -> Any:
        """The call's result, with what it has learned."""
        return stamped(result, self.call_id, self.memory.stamp())

    def end(self) -> None:
        if self.seat is not None and not self.own_task:
            self.seat.turn.end(self.seat.place)


def acting(identity: Identity, made: Calling | None) -> dict[str, Any]:
    """As whom a call is made, and with which place in its turn: arguments of `Guard.call` and `acall`."""
    if made is None:
        return {"identity": identity}
    return {"identity": dataclasses.replace(identity, memory=made.memory), "seat": made.seat}


CALLING: contextvars.ContextVar[tuple[Guard, Calling] | None] = contextvars.ContextVar(
    "agentguard_langgraph_calling", default=None
)


@contextlib.contextmanager
def executing(
    guard: Guard,
    config: Mapping[str, Any] | None,
    call: Mapping[str, Any],
    state: Any,
    base: Memory | None,
    *,
    exact: bool = False,
) -> Iterator[Calling | None]:
    """Around what becomes of one call of a turn: of everything in it that is guarded, this is the call.

    `exact`: around whatever becomes of it, and of every other call of the turn, each in the same task."""
    outer = CALLING.get()
    if outer is not None and outer[0] is guard and outer[1].is_of(config, call["id"]):
        yield outer[1]
        return
    found = calling(guard, config, call["id"] or "", state=state, base=base, exact=exact)
    if found is None:
        yield None
        return
    token = CALLING.set((guard, found))
    try:
        yield found
    finally:
        CALLING.reset(token)
        found.end()


def calling(
    guard: Guard,
    config: Mapping[str, Any] | None,
    call_id: str,
    *,
    state: Any = None,
    base: Memory | None = None,
    exact: bool = False,
) -> Calling | None:
    """The turn of a call, found in the state of its graph; None when no message there makes this call.

    `exact`: the end of every call of the turn is told, for it runs in the caller's own task.
    """
    configurable = (config or {}).get(CONF) or {}
    found = asked_in(transcripts_in(state) if state else [], call_id) or asked_in(
        transcripts_in({name: _channel(configurable, name) for name in _channels(configurable)}), call_id
    )
    if found is None:
        return None
    messages, place = found
    asked = messages[place]
    assert isinstance(asked, AIMessage)
    answered = {one.tool_call_id for one in messages[place + 1 :] if isinstance(one, ToolMessage)}
    pending = [call for call in asked.tool_calls if call["id"] not in answered or call["id"] == call_id]
    edited = _channel(configurable, _EDITED)
    calls = [
        {**call, **edited.get(call["id"], {})} if isinstance(edited, Mapping) else call
        for call in {call["id"]: call for call in pending if call["id"] is not None}.values()  # an id is all there is
    ]
    seat, memory, scope = None, base, scope_of(config)
    siblings = _Siblings.of(configurable, call_id)
    if len(calls) > 1:
        seat, memory = _seat(guard, configurable, siblings, calls, call_id, base, exact)
    transcript = Transcript(
        messages[:place],
        lasting=bool(configurable.get(CONFIG_KEY_CHECKPOINTER)),
        base=memory,
        reads=lambda call, resource: _reads(guard, call, resource),
        attempt=Attempt((id(guard), scope, call_id)) if scope is not None else None,
    )
    return Calling(call_id, transcript, seat, own_task=siblings is not None, scope=scope)


def scope_of(config: Mapping[str, Any] | None) -> object:
    """The task that a configuration belongs to."""
    return ((config or {}).get(CONF) or {}).get(CONFIG_KEY_CHECKPOINT_NS)


def _channels(configurable: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of the innermost graph, as its current superstep sees it."""
    read: Any = configurable.get(CONFIG_KEY_READ)
    channels = read.args[1] if len(getattr(read, "args", ())) > 1 else {}  # as ToolNode itself finds them
    return channels if isinstance(channels, Mapping) else {}


def _channel(configurable: Mapping[str, Any], name: str) -> Any:
    channel = _channels(configurable).get(name)
    if isinstance(channel, BaseChannel):
        with contextlib.suppress(EmptyChannelError):
            return channel.get()
    return None


def _seat(
    guard: Guard,
    configurable: Mapping[str, Any],
    siblings: _Siblings | None,
    calls: Sequence[Mapping[str, Any]],
    call_id: str,
    base: Memory | None,
    exact: bool,
) -> tuple[Seat | None, Memory | None]:
    place = next(number for number, call in enumerate(calls) if call["id"] == call_id)
    scope, attempt = (siblings.tasks, 0) if siblings is not None else _task(configurable)
    key = (id(guard), id(scope), attempt, tuple(call["id"] for call in calls))
    with _mutex:
        entry = _turns.get(key)
        if entry is None:
            memory = TurnMemory(base) if base is not None and siblings is None else None

            wants = [_wants(guard, call) for call in calls]
            turn = Turn(wants, exact=exact or siblings is not None, over=lambda: _turns.pop(key, None))
            if siblings is not None:
                turn.found = _found_by(guard, configurable, calls)
            entry = _turns[key] = turn, memory, _kept(scope, key)
            while len(_turns) > _KEPT:
                _turns.popitem(last=False)
    turn, memory, _ = entry
    if siblings is not None:
        for earlier in turn.waits_for(place):
            siblings.follow(calls[earlier]["id"], turn, earlier)
    return turn.seat(place), memory.at(place) if memory is not None else base


def _task(configurable: Mapping[str, Any]) -> tuple[object, int]:
    """The task that runs with this configuration, and which attempt at it this is: each makes all its calls anew."""
    # What the configuration itself holds is kept by whoever waits for a call that never comes, and so never goes away.
    scope = _own(configurable) or configurable.get(CONFIG_KEY_CALL) or configurable.get(CONFIG_KEY_SCRATCHPAD)
    return scope, getattr(_execution(configurable), "node_attempt", 1)


def _execution(configurable: Mapping[str, Any]) -> Any:
    return getattr(configurable.get(CONFIG_KEY_RUNTIME), "execution_info", None)


def _found_by(guard: Guard, configurable: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The versions that writes of this turn have found, the same ones when its superstep is resumed."""
    checkpoint = getattr(_execution(configurable), "checkpoint_id", None)
    if not checkpoint:
        return {}
    found = _found.setdefault((id(guard), checkpoint, *(call["id"] for call in calls)), {})
    while len(_found) > _KEPT:
        _found.popitem(last=False)
    return found


def _own(configurable: Mapping[str, Any]) -> Any:
    """The task that runs with this configuration; None where it cannot be told."""
    call: Any = configurable.get(CONFIG_KEY_CALL)
    return call.args[0]() if getattr(call, "args", None) and isinstance(call.args[0], weakref.ref) else None


def _kept(scope: Any, key: tuple[Any, ...]) -> object:
    """What keeps the id of `scope` from standing for another object."""
    try:
        return weakref.ref(scope, lambda _: _turns.pop(key, None))
    except TypeError:
        return scope


class _Siblings:
    """The tasks of a superstep, each with one tool call."""

    def __init__(self, tasks: Mapping[Any, Any]) -> None:
        self.tasks = tasks

    @classmethod
    def of(cls, configurable: Mapping[str, Any], call_id: str) -> _Siblings | None:
        """Those beside the task that runs with this configuration; None unless that is a task for this call alone."""
        own = _own(configurable)
        futures = getattr(configurable.get(CONFIG_KEY_CALL), "keywords", {}).get("futures")
        tasks = futures() if isinstance(futures, weakref.ref) else None
        if own is None or tasks is None or _call_of(own) != call_id:
            return None
        return cls(tasks)

    def follow(self, call_id: str | None, turn: Turn, place: int) -> None:
        """Have the turn told when the task of an earlier call has ended. All of those were started before the later
        ones, and are listed until they are done: what is not listed has ended, or never was."""
        for future, task in list(self.tasks.items()):
            if task is not None and _call_of(task) == call_id and not future.done():
                try:
                    future.add_done_callback(lambda _: turn.end(place))
                except RuntimeError:  # a loop that is closed: nothing of it runs any more
                    break
                return
        turn.end(place)


def _call_of(task: Any) -> str | None:
    """The id of the tool call that a task was sent, if it was sent one."""
    given = getattr(task, "input", None)
    if isinstance(given, Mapping) and given.get("__type") == "tool_call_with_context":
        given = [given.get("tool_call")]
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], Mapping):
        found = given[0].get("id") if given[0].get("type") == "tool_call" else None
        return found if isinstance(found, str) else None
    return None


def _declared(guard: Guard, call: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, id) of the resources of a call, as far as they can be told from what the model said."""
    name, arguments = call["name"], call["args"]
    by_name = guard.declaration_of(name)
    found = [(by_name, None)] if by_name is not None else _known.get(guard, {}).get(name, [])
    for declaration, parameters in found:
        given = parameters.arguments((), arguments) if parameters is not None else arguments
        try:
            for access in declaration.accesses(given, name):
                yield access.kind, guard.resources.resolve(access.name, name).id
        except AgentGuardError:
            continue  # the call itself will say what is wrong with it


def _wants(guard: Guard, call: Mapping[str, Any]) -> Wants:
    wants: dict[str, bool] = {}
    for kind, resource in _declared(guard, call):
        wants[resource] = wants.get(resource, False) or kind != "reads"
    return wants


def _reads(guard: Guard, call: Mapping[str, Any], resource: str) -> bool:
    return any(kind == "reads" and one == resource for kind, one in _declared(guard, call))
