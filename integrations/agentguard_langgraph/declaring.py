"""What a LangChain tool declares: `tool`, where a declaration is kept, and what the arguments of a call are."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from agentguard import Declaration, Guard
from agentguard.declaration import MARK, Signature, declared_on

__all__ = ["Parameters", "declaration_of", "tool"]

EXTRA = "agentguard"  # the key in a tool's `extras`; chat models pass on only the keys that they know


@overload
def tool(name_or_callable: Callable[..., Any], /) -> BaseTool: ...


@overload
def tool(
    name_or_callable: str,
    runnable: Runnable[Any, Any],
    *,
    writes: Any = None,
    reads: Any = None,
    updates: Any = None,
    version: Any = None,
    extras: dict[str, Any] | None = None,
    **options: Any,
) -> BaseTool: ...


@overload
def tool(
    name_or_callable: str | None = None,
    *,
    writes: Any = None,
    reads: Any = None,
    updates: Any = None,
    version: Any = None,
    extras: dict[str, Any] | None = None,
    **options: Any,
) -> Callable[[Callable[..., Any]], BaseTool]: ...


def tool(
    name_or_callable: str | Callable[..., Any] | None = None,
    runnable: Runnable[Any, Any] | None = None,
    *,
    writes: Any = None,
    reads: Any = None,
    updates: Any = None,
    version: Any = None,
    extras: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """LangChain's `@tool`, in all its forms and with all its options, and a declaration.

    `writes`, `reads`, `updates`, `version`: as in `agentguard.declare`, with `{argument}` filled from the call;
    none of them: the tool shares nothing (which `@tool()` of LangChain leaves unsaid). The tool alone guards nothing:
    give it to `guard_tools`, `guarded_tool_node`, `GuardMiddleware` or `guard_graph`.

    Raises `ConfigError` at once for a template that names no argument of the tool.
    """
    declaration = Declaration.of(writes, reads, updates, version=version)
    kept = {EXTRA: {"writes": declaration.writes, "reads": declaration.reads, "updates": declaration.updates}}

    def declared(made: BaseTool) -> BaseTool:
        Parameters(made).check(declaration, made.name)
        for function in (getattr(made, "func", None), getattr(made, "coroutine", None)):
            with contextlib.suppress(AttributeError, TypeError):  # bound methods and the like; the extras have it
                setattr(function, MARK, declaration)
        return made

    first = () if name_or_callable is None else (name_or_callable,)
    second = () if runnable is None else (runnable,)
    made = langchain_tool(*first, *second, extras={**(extras or {}), **kept}, **options)
    if isinstance(made, BaseTool):
        return declared(made)
    return lambda function: declared(made(function))


def declaration_of(guard: Guard, found: BaseTool) -> Declaration | None:
    """What is known of a tool: by the configuration, on its functions or class, in its extras; None when nothing is."""
    carriers = (getattr(found, "func", None), getattr(found, "coroutine", None), found._run, found._arun, type(found))
    declaration = guard.declaration_of(found.name, *carriers)
    if declaration is None:
        kept = (found.extras or {}).get(EXTRA)
        if isinstance(kept, Mapping):
            declaration = Declaration.of(kept.get("writes"), kept.get("reads"), kept.get("updates"))
    return declaration


def declares(guard: Guard, name: str, carrier: Any) -> Declaration | None:
    """The same for a function or Runnable that is no tool."""
    return guard.declaration_of(name, carrier) or declared_on(getattr(carrier, "afunc", None))


class Parameters:
    """A tool's parameters: what its templates may name, and what one call gives, defaults included."""

    def __init__(self, found: BaseTool) -> None:
        function = getattr(found, "func", None) or getattr(found, "coroutine", None)
        if function is None:
            own = type(found)._run is not BaseTool._run
            function = found._run if own else found._arun
        self._signature = Signature(function)
        self._parameters = self._signature.signature.parameters
        schema = found.args_schema
        self._closed = isinstance(schema, type) and issubclass(schema, BaseModel)
        self._fields: set[str] = set()
        self._defaults: dict[str, Any] = {}
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            self._fields = set(schema.model_fields)
            self._defaults = {
                name: field.default
                for name, field in schema.model_fields.items()
                if field.default is not PydanticUndefined
            }
        elif isinstance(schema, dict):
            properties = schema.get("properties", {})
            self._fields = set(properties)
            self._defaults = {name: one["default"] for name, one in properties.items() if "default" in one}

    def check(self, declaration: Declaration, name: str) -> None:
        """Raise `ConfigError` for a template that names no argument; with `**kwargs` only the schema can tell."""
        if self._closed or not self._signature.open:
            declaration.check(self._fields | self._signature.names(), name)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """One flat mapping of what a call gives, with the defaults of the function and of the schema."""
        known = {
            key: value for key, value in kwargs.items() if self._signature.open or key in self._parameters
        }  # LangChain adds `config` and `run_manager`, which the function itself may not take
        try:
            bound = self._signature.signature.bind_partial(*args, **known)
        except TypeError:
            return {**self._defaults, **kwargs}  # the call itself will say what does not fit
        bound.apply_defaults()
        return {**self._defaults, **self._signature.arguments(bound)}

    def replaced(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with the changes put where they belong."""
        if not changes:
            return tuple(args), dict(kwargs)
        positional, named = list(args), dict(kwargs)
        order = [n for n, p in self._parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        for name, value in changes.items():
            if name not in named and name in order[: len(positional)]:
                positional[order.index(name)] = value
            else:
                named[name] = value
        return tuple(positional), named
