"""Tools that guard themselves: copies whose `_run` and `_arun` are guarded calls."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool
from langchain_core.tools import tool as langchain_tool
from pydantic import PrivateAttr

from agentguard import AgentGuardError, ConfigError, Declaration, Guard, Identity

from .declaring import Parameters, declaration_of
from .identity import caller
from .refusals import REFUSALS, refusal, shown
from .turns import CALLING, Calling, acting, calling, know, scope_of

__all__ = ["HANDLED", "Copies", "Gate", "GuardedTool", "Known", "guard_tools"]

# The tool call (guard, id, task) that is guarded already by its name, around whatever executes it.
HANDLED: contextvars.ContextVar[tuple[Guard, str, object] | None] = contextvars.ContextVar(
    "agentguard_langgraph_handled", default=None
)


@dataclass(frozen=True, eq=False)
class Gate:
    """What a guarded copy knows. `in_tool_node`: it is used only where a model's calls are executed."""

    guard: Guard
    declaration: Declaration | None
    parameters: Parameters
    in_tool_node: bool

    def __deepcopy__(self, memo: Any) -> Gate:
        return self  # a guard is a thing of the process, not data

    def call(self, tool: BaseTool, args: tuple[Any, ...], kwargs: Mapping[str, Any], body: Callable[..., Any]) -> Any:
        """One guarded call of `body(*args, **kwargs)`; a refusal is returned when a model made the call."""
        invocation = self._own()
        identity = self._caller()
        made = self._made_by_model(invocation, identity)
        try:
            return self.guard.call(
                self.declaration,
                tool.name,
                self.parameters.arguments(args, kwargs),
                self._entering(invocation, args, kwargs, body),
                **acting(identity, made),
            )
        except REFUSALS as error:
            return _refused(tool, error, invocation)

    async def acall(
        self,
        tool: BaseTool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        body: Callable[..., Any],
        *,
        threaded: bool,
    ) -> Any:
        """The async twin. `threaded`: the body is sync, and runs in a thread that is always waited for."""
        invocation = self._own()
        identity = self._caller(asynchronous=True)
        made = self._made_by_model(invocation, identity)
        try:
            return await self.guard.acall(
                self.declaration,
                tool.name,
                self.parameters.arguments(args, kwargs),
                self._entering(invocation, args, kwargs, body),
                threaded=threaded,
                **acting(identity, made),
            )
        except REFUSALS as error:
            return _refused(tool, error, invocation)

    def _own(self) -> _Invocation | None:
        invocation = _INVOCATION.get()
        # Copies of one copy share their parameters, and their functions.
        return invocation if invocation is not None and invocation.gate.parameters is self.parameters else None

    def _caller(self, *, asynchronous: bool = False) -> Identity:
        invocation = _INVOCATION.get()
        config = invocation.config if invocation is not None else None
        return caller(self.guard, config, in_tool_node=self.in_tool_node, asynchronous=asynchronous)

    def _made_by_model(self, invocation: _Invocation | None, identity: Identity) -> Calling | None:
        """The call of a model that this is, if it is one; its answer then carries what it learns."""
        call_id = invocation.tool_call_id if invocation is not None else None
        if invocation is None or call_id is None:
            return None
        known = CALLING.get()
        if known is not None and known[0] is self.guard and known[1].is_of(invocation.config, call_id):
            invocation.calling = known[1]
        else:
            invocation.calling = calling(self.guard, invocation.config, call_id, base=identity.memory)
            invocation.ends = True
        return invocation.calling

    def _entering(
        self,
        invocation: _Invocation | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        body: Callable[..., Any],
    ) -> Callable[[Mapping[str, Any]], Any]:
        def enter(changes: Mapping[str, Any]) -> Any:
            if invocation is not None:
                invocation.inside = True
            args_, kwargs_ = self.parameters.replaced(args, kwargs, changes)
            result = body(*args_, **kwargs_)
            return _when_done(result) if inspect.isawaitable(result) else shown(result)

        return enter

    def passes(self) -> bool:
        """Whether this call is guarded already: it is inside its own body, or somebody guards it by its name."""
        own, around, handled = self._own(), _INVOCATION.get(), HANDLED.get()
        if own is not None and own.inside:
            return True
        if handled is None or around is None:
            return False
        return handled == (self.guard, around.tool_call_id, scope_of(around.config))


@dataclass(eq=False)
class _Invocation:
    """One `run` of a guarded copy: what LangChain tells `run` but not `_run`."""

    gate: Gate
    config: RunnableConfig | None
    tool_call_id: str | None
    inside: bool = False  # the body has begun
    calling: Calling | None = None
    ends: bool = False  # nobody else tells the end of the call to its turn

    def answer(self, result: Any) -> Any:
        """The result, with what the call has learned."""
        return self.calling.answer(result) if self.calling is not None else result

    def end(self) -> None:
        if self.ends and self.calling is not None:
            self.calling.end()


_INVOCATION: contextvars.ContextVar[_Invocation | None] = contextvars.ContextVar(
    "agentguard_langgraph_invocation", default=None
)


async def _when_done(result: Awaitable[Any]) -> Any:
    return shown(await result)


def _refused(tool: BaseTool, error: AgentGuardError, invocation: _Invocation | None) -> Any:
    if invocation is None or invocation.tool_call_id is None:
        raise error  # code called, no model: an answer that looks like a result would hide it
    message = refusal(error, tool.name, invocation.tool_call_id)
    return (message, None) if tool.response_format == "content_and_artifact" else message


class GuardedTool(BaseTool):
    """What the classes of guarded copies have in common; each also has the class of its tool as a base."""

    _gate: Gate = PrivateAttr()

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        # LangChain runs a sync tool's whole `invoke` in the loop's small pool of threads. There it would wait for
        # locks, and starve the very calls that hold them.
        if super().ainvoke.__func__ in _IN_EXECUTOR:  # type: ignore[attr-defined]
            return await BaseTool.ainvoke(self, input, config, **kwargs)
        return await super().ainvoke(input, config, **kwargs)

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        invocation = _Invocation(self._gate, kwargs.get("config"), kwargs.get("tool_call_id"))
        token = _INVOCATION.set(invocation)
        try:
            return invocation.answer(super().run(tool_input, *args, **kwargs))
        finally:
            _INVOCATION.reset(token)
            invocation.end()

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        invocation = _Invocation(self._gate, kwargs.get("config"), kwargs.get("tool_call_id"))
        token = _INVOCATION.set(invocation)
        try:
            return invocation.answer(await super().arun(tool_input, *args, **kwargs))
        finally:
            _INVOCATION.reset(token)
            invocation.end()


_IN_EXECUTOR = (StructuredTool.ainvoke, Tool.ainvoke)


@functools.cache
def _guarded_class(kind: type[BaseTool]) -> type[GuardedTool]:
    """The class of guarded copies of tools of this class; LangChain reads the signatures of both methods."""
    shared = "coroutine" in kind.model_fields  # one class for sync and async functions: each tool has either
    own_async = kind._arun is not BaseTool._arun

    @functools.wraps(kind._run)
    def _run(self: GuardedTool, *args: Any, **kwargs: Any) -> Any:
        body = functools.partial(kind._run, self)
        gate = self._gate
        return body(*args, **kwargs) if gate.passes() else gate.call(self, args, kwargs, body)

    @functools.wraps(kind._arun if own_async else kind._run)
    async def _arun(self: GuardedTool, *args: Any, **kwargs: Any) -> Any:
        gate = self._gate
        threaded = cast(Any, self).coroutine is None if shared else not own_async
        if gate.passes():
            if own_async:
                return await kind._arun(self, *args, **kwargs)
            return await BaseTool._arun(self, *args, **kwargs)
        if threaded and kwargs.get("run_manager") is not None:
            kwargs["run_manager"] = kwargs["run_manager"].get_sync()
        body = functools.partial(kind._run if threaded else kind._arun, self)
        return await gate.acall(self, args, kwargs, body, threaded=threaded)

    namespace = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "_run": _run, "_arun": _arun}
    return cast("type[GuardedTool]", type(kind.__name__, (GuardedTool, kind), namespace))


def guard_tools(tools: Iterable[BaseTool | Callable[..., Any]], guard: Guard) -> list[BaseTool]:
    """Copies of tools that guard themselves, wherever they are called: by a ToolNode, an agent, or in a node's body.

    `tools`: LangChain tools of any class, or plain functions. What each touches is said by the configuration under its
    name, else by `tool` or `declare`; a tool of which nothing is known is returned as it is, unless `unknown_tools` of
    the configuration says otherwise. The given tools are not changed.

    A call that a model made is refused by a `ToolMessage` with status "error", and nothing of it is applied; code that
    calls a tool without a tool call gets the exception. An async call of a sync tool waits for its locks without a
    thread, and runs in one that is waited for even when the call is cancelled.

    Raises `ConfigError` for a template that names no argument, and for copies that another guard has made.
    """
    return [guarded_tool(one, guard) for one in tools]


def guarded_tool(given: BaseTool | Callable[..., Any], guard: Guard, *, in_tool_node: bool = False) -> BaseTool:
    """See `guard_tools`."""
    found: BaseTool = given if isinstance(given, BaseTool) else langchain_tool(given)
    if isinstance(found, GuardedTool):
        gate = found._gate
        if gate.guard is not guard:
            raise ConfigError(
                f"{found.name} is guarded by {gate.guard!r} already, and {guard!r} cannot guard it as well: give the "
                "plain tool, or use one guard for both.",
                tool=found.name,
            )
        if in_tool_node and not gate.in_tool_node:
            found = found.model_copy()
            found._gate = Gate(gate.guard, gate.declaration, gate.parameters, True)
        return found
    declaration = declaration_of(guard, found)
    if not declaration and (declaration is not None or guard.config.unknown_tools == "allow"):
        return found
    parameters = Parameters(found)
    if declaration is not None:
        parameters.check(declaration, found.name)
        know(guard, found.name, declaration, parameters)
    gate = Gate(guard, declaration, parameters, in_tool_node)
    copy = found.model_copy()
    copy.__class__ = _guarded_class(type(found))
    guarded = cast(GuardedTool, copy)
    guarded._gate = gate
    for field in ("func", "coroutine"):
        function = getattr(found, field, None)
        if function is not None:
            vars(copy)[field] = _direct(guarded, gate, function)
    return copy


def _direct(tool: BaseTool, gate: Gate, function: Callable[..., Any]) -> Callable[..., Any]:
    """The tool's own function, guarded also for those who call `tool.func(...)`."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            if gate.passes():
                return await function(*args, **kwargs)
            return await gate.acall(tool, args, kwargs, function, threaded=False)

        return guarded_async

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if gate.passes() else gate.call(tool, args, kwargs, function)

    return guarded


class Known:
    """Tools that were looked at, each once: a turn's calls are put in order by what all of their tools declare."""

    def __init__(self, guard: Guard, limit: int = 1024) -> None:
        self.guard = guard
        self._limit = limit
        self._seen: dict[int, BaseTool] = {}

    def __call__(self, tools: Iterable[Any]) -> None:
        for one in tools:
            if self._seen.get(id(one)) is one or not isinstance(one, BaseTool):
                continue
            declaration = declaration_of(self.guard, one)
            if declaration and not isinstance(one, GuardedTool):
                know(self.guard, one.name, declaration, Parameters(one))
            if len(self._seen) >= self._limit:
                self._seen.clear()
            self._seen[id(one)] = one


class Copies:
    """The guarded copies of tools that are met only when they are called, each made once."""

    def __init__(self, guard: Guard, limit: int = 256) -> None:
        self.guard = guard
        self._limit = limit
        self._made: dict[int, tuple[BaseTool, BaseTool]] = {}

    def __call__(self, found: BaseTool) -> BaseTool:
        entry = self._made.get(id(found))
        if entry is None or entry[0] is not found:
            entry = found, guarded_tool(found, self.guard, in_tool_node=True)
            if len(self._made) >= self._limit:
                self._made.clear()  # tools that are made anew for each call must not pile up
            self._made[id(found)] = entry
        return entry[1]
