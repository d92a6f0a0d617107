"""Guarding one tool, whichever way CrewAI will run it.

A `@tool` function runs through `Tool.func`; a `BaseTool` subclass through `_run` and `_arun` of the instance, which the
text path binds early and native function calling looks up late. The guard sits exactly there, beneath every path,
hooks or no hooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import json
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from crewai.tools import BaseTool
from crewai.tools.base_tool import Tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.utilities.string_utils import sanitize_tool_name

from agentguard import ConfigError, Declaration, Guard
from agentguard.declaration import Signature
from agentguard.turns import Seat, Wants

from . import registry
from .caching import never_cache
from .executors import spot_here
from .identity import identity_of
from .refusals import REPORTED, failure

__all__ = [
    "Binding",
    "bind",
    "binding_of",
    "bound_alone",
    "configured_name",
    "declaration_of",
    "guard_found",
    "guard_tool",
    "release_tool",
    "wants_of",
]

log = logging.getLogger("agentguard")

T = TypeVar("T", bound="BaseTool | CrewStructuredTool")

_MARK = "__agentguard_binding__"
_mutex = threading.RLock()
_alone: list[weakref.ref[BaseTool | CrewStructuredTool]] = []  # guarded by `guard_tool`, whatever crew they work in


class Binding:
    """One tool under one guard.

    `by_crew`: its crew was guarded as a whole, and so are that crew's copies. `active`: False once it was released;
    whatever still holds one of the guarded functions then calls right through.
    """

    def __init__(self, guard: Guard, name: str, declaration: Declaration | None, schema: Any) -> None:
        self.guard = guard
        self.name = name
        self.declaration = declaration
        self.by_crew = False
        self.active = True
        self.cache_function: Any = None
        self._schema = schema
        self._fields: Mapping[str, Any] = getattr(schema, "model_fields", {})

    @property
    def uncached(self) -> bool:
        """Whether a result of this tool may be neither kept nor served: it touches something, or nobody knows."""
        return bool(self.declaration) or self.declaration is None

    def check(self, fn: Callable[..., Any]) -> None:
        """Raise `ConfigError` for a template that names neither a parameter nor a field of the arguments' schema."""
        if self.declaration is None or not self.declaration.fields:
            return
        signature = Signature(fn)
        if not signature.open or self._fields:
            self.declaration.check(signature.names() | set(self._fields), self.name)

    def guarded(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, which is one of the functions of this tool, guarded at each call; a coroutine function stays one."""
        found = Signature(fn) if self.declaration is not None and self.declaration.fields else None
        facet = object()

        def passes() -> bool:
            """Whether this call is already guarded: `_arun` that calls `_run` is one call, not one inside another."""
            inside = _INSIDE.get()
            return not self.active or (inside is not None and inside[0] is self and inside[1] is not facet)

        def prepare(
            args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Any]]:
            if found is None:
                return {}, lambda _: fn(*args, **kwargs)
            signature = found
            bound = signature.bind(args, kwargs)

            def invoke(replaced: Mapping[str, Any]) -> Any:
                signature.replace(bound, replaced)
                return fn(*bound.args, **bound.kwargs)

            return self._completed(signature.arguments(bound)), invoke

        if _is_async(fn):

            @functools.wraps(fn)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                if passes():
                    return await fn(*args, **kwargs)
                registry.ensure()
                arguments, invoke = prepare(args, kwargs)
                inside = _INSIDE.set((self, facet))
                try:
                    with self._acting() as seat:
                        return await self.guard.acall(self.declaration, self.name, arguments, invoke, seat=seat)
                except REPORTED as error:
                    return failure(error)
                finally:
                    _INSIDE.reset(inside)

            setattr(call_async, _MARK, self)
            return call_async

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            if passes():
                return fn(*args, **kwargs)
            registry.ensure()
            arguments, invoke = prepare(args, kwargs)
            inside = _INSIDE.set((self, facet))
            try:
                with self._acting() as seat:
                    return self.guard.call(
                        self.declaration,
                        self.name,
                        arguments,
                        lambda replaced: self._finished(invoke(replaced)),
                        seat=seat,
                    )
            except REPORTED as error:
                return failure(error)
            finally:
                _INSIDE.reset(inside)

        setattr(call, _MARK, self)
        return call

    @contextlib.contextmanager
    def _acting(self) -> Iterator[Seat | None]:
        """Make the call inside as whoever makes it, without a trace of CrewAI as the guard itself sees it; gives the
        call's place in the turn of a model that makes several at once."""
        spot = spot_here()
        identity = identity_of(self.guard, spot)
        seat: Seat | None = None
        if spot is not None and spot.turn is not None and binding_of(spot.turn.tools[spot.place]) is self:
            turn = spot.turn.seats(wants_of, exact=registry.in_place())
            for earlier in range(spot.place if spot.sequential else 0):
                turn.end(earlier)
            seat = turn.seat(spot.place)
        try:
            with self.guard.identified(identity) if identity is not None else contextlib.nullcontext():
                yield seat
        finally:
            if seat is not None:
                seat.turn.end(seat.place)

    def wants(self, arguments: Any) -> Wants:
        """What a call with these arguments, as a model gave them, will touch; empty when that cannot be told."""
        try:
            given = json.loads(arguments) if isinstance(arguments, str) else arguments
            given = given or {}
            declaration = self.declaration
            if declaration is None:
                return {f"tool:{self.name}": True} if self.guard.config.unknown_tools == "serialize" else {}
            if declaration.fields:
                if self._fields:
                    given = self._schema.model_validate(given).model_dump()
                given = self._completed(dict(given))
            wants: dict[str, bool] = {}
            for access in declaration.accesses(given, self.name):
                resource = self.guard.resources.resolve(access.name, self.name).id
                wants[resource] = wants.get(resource, False) or access.exclusive
            return wants
        except Exception:  # the user's validators, too: the call itself will meet whatever it is
            log.debug("what %s will touch cannot be told before it is called", self.name, exc_info=True)
            return {}

    def _completed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        for name, field in self._fields.items():
            if name not in arguments and not field.is_required():
                arguments[name] = field.get_default(call_default_factory=True)
        return arguments

    def _finished(self, result: Any) -> Any:
        """A plain function may hand back a coroutine, which CrewAI runs when the locks would be gone: run it here."""
        if not inspect.iscoroutine(result):
            return result
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(result)
        result.close()
        raise ConfigError(
            f"{self.name} is a plain function that returns a coroutine, and runs on an event loop: its body would run "
            "after the guard has let go. Make it `async def`.",
            tool=self.name,
        )


_INSIDE: contextvars.ContextVar[tuple[Binding, object] | None] = contextvars.ContextVar(
    "agentguard_crewai_inside", default=None
)


def guard_tool(tool: T, guard: Guard) -> T:
    """Guard a tool in place, wherever it will be called from; returns the same tool.

    `tool`: a `@tool` function, an instance of a `BaseTool` subclass, or a LangChain tool after `Tool.from_langchain`.
    Its declaration is the configuration's for its name (as written, or as CrewAI shows it to models: `File Writer Tool`
    is `file_writer_tool`), else that of `tool(writes=...)` or `@declare`; without one, `unknown_tools` decides.

    A call that the guard refuses returns a `ToolFailure`, with nothing applied. Results are no longer cached. Guarding
    again with the same guard changes nothing. Raises `ConfigError` for a tool that another guard has, for a template
    that names no argument, and for what is no tool of CrewAI.
    """
    bind(tool, guard)
    original = getattr(tool, "_original_tool", None) or tool
    if binding_of(original) is not None:
        with _mutex:
            _alone[:] = [one for one in _alone if one() not in (None, original)]
            _alone.append(weakref.ref(original))
        registry.ensure(want=True)
    return tool


def bound_alone() -> bool:
    """Whether a tool is still there that `guard_tool` has guarded."""
    return any(binding_of(tool) is not None for tool in (one() for one in list(_alone)) if tool is not None)


def bind(tool: T, guard: Guard) -> T:
    """`guard_tool`, for whoever sees to the hooks itself."""
    with _mutex:
        return _guard(tool, guard)


def _guard(tool: T, guard: Guard) -> T:
    original = getattr(tool, "_original_tool", None)
    if isinstance(tool, CrewStructuredTool) and isinstance(original, BaseTool):
        _guard(original, guard)
        tool.func, tool.cache_function = original._run, original.cache_function
        return tool
    if not isinstance(tool, (BaseTool, CrewStructuredTool)):
        raise ConfigError(
            f"guard_tool guards tools of CrewAI, not {type(tool).__name__}: decorate a function with @tool, convert a "
            "LangChain tool by Tool.from_langchain(...)",
            value=type(tool).__name__,
        )
    known = binding_of(tool)
    if known is not None:
        if known.guard is not guard:
            raise ConfigError(
                f"{tool.name} is guarded already, by {known.guard!r}; two guards would not know of each other. Use one "
                "guard for all crews of a process.",
                tool=tool.name,
            )
        return tool
    declaration = declaration_of(tool, guard)
    if declaration is None and guard.config.unknown_tools == "allow":
        return tool
    binding = Binding(guard, tool.name, declaration, tool.args_schema)
    if isinstance(tool, BaseTool) and not isinstance(tool, Tool):
        names = [name for name in ("_run", "_arun") if getattr(type(tool), name) is not getattr(BaseTool, name)]
        found = {name: getattr(tool, name) for name in names}
        for fn in found.values():
            binding.check(fn)
        for name, fn in found.items():
            object.__setattr__(tool, name, binding.guarded(fn))  # pydantic allows no such attribute, Python does
    else:
        binding.check(tool.func)
        tool.func = binding.guarded(tool.func)
    if binding.uncached:
        binding.cache_function = tool.cache_function
        tool.cache_function = never_cache
    return tool


def release_tool(tool: BaseTool | CrewStructuredTool) -> None:
    """Give a tool back as it was before it was guarded."""
    with _mutex:
        binding = binding_of(tool)
        if binding is None:
            return
        binding.active = False
        if binding.cache_function is not None:
            tool.cache_function = binding.cache_function
        if isinstance(tool, BaseTool) and not isinstance(tool, Tool):
            for name in ("_run", "_arun"):
                if getattr(tool.__dict__.get(name), _MARK, None) is binding:
                    object.__delattr__(tool, name)
        else:
            fn: Any = tool.func
            tool.func = fn.__wrapped__


def binding_of(tool: Any) -> Binding | None:
    """The binding that guards this tool now."""
    for fn in (tool.__dict__.get("func"), tool.__dict__.get("_run")):
        binding = getattr(fn, _MARK, None)
        if isinstance(binding, Binding) and binding.active:
            return binding
    return None


def wants_of(tool: Any, arguments: Any) -> Wants:
    """What a call of a tool will touch; empty when it is not guarded, or when that cannot be told."""
    binding = binding_of(tool) if tool is not None else None
    return binding.wants(arguments) if binding is not None else {}


def declaration_of(tool: Any, guard: Guard) -> Declaration | None:
    """What is declared for a tool: by the configuration, under either spelling of its name, else on its functions."""
    carriers = (getattr(tool, "func", None), getattr(type(tool), "_run", None), getattr(type(tool), "_arun", None))
    return guard.declaration_of(configured_name(tool.name, guard) or tool.name, *carriers)


def configured_name(name: str, guard: Guard) -> str | None:
    """How the configuration spells a tool's name: as it is written, else in a spelling that models see the same."""
    if name in guard.config.tools:
        return name
    shown = sanitize_tool_name(name)
    return next((one for one in guard.config.tools if sanitize_tool_name(one) == shown), None)


def guard_found(tools: Any, guard: Guard) -> None:
    """Guard every tool among these that is one of CrewAI's, as part of a crew that is guarded as a whole."""
    for tool in tools:
        if isinstance(tool, (BaseTool, CrewStructuredTool)):
            bind(tool, guard)
            binding = binding_of(tool)
            if binding is not None:
                binding.by_crew = True


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
