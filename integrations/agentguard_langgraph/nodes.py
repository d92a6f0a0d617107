"""`guard_node`: one node's whole body as one guarded call."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph._internal._runnable import RunnableCallable

from agentguard import ConfigError, Declaration, Guard
from agentguard.redirect import CURRENT, unmap

from .declaring import declares
from .identity import caller

__all__ = ["GuardedNode", "guard_node"]


def guard_node(
    node: Callable[..., Any] | Runnable[Any, Any],
    guard: Guard,
    *,
    writes: Any = None,
    reads: Any = None,
    updates: Any = None,
) -> GuardedNode:
    """A node whose whole body is one guarded call: give it to `add_node`.

    `node`: a function, a coroutine function, or a Runnable such as a compiled subgraph; it gets the same injected
    parameters (`config`, `runtime`, `writer`, `store`) as before. `writes`, `reads`, `updates`: resources as in
    `agentguard.declare`; none of them: what `declare` or the configuration says of it. `{field}` is filled from the
    state: the key of a mapping, or the field of a pydantic model or dataclass.

    The locks are held until the node returns, also while it thinks: guard its tools instead where they do the writing.
    Refusals (`StaleWrite`, `LockTimeout`, ...) are raised, since a node has no model to tell. Raises `ConfigError` for
    a node that is guarded already, and for generators, whose bodies run after the call.
    """
    name = _name(node)
    if isinstance(node, GuardedNode):
        if node.guard is guard and writes is reads is updates is None:
            return node
        raise ConfigError(f"the node {name!r} is guarded already, by {node.guard!r}: give the plain node", tool=name)
    if not callable(node) and not isinstance(node, Runnable):
        raise ConfigError(f"a node is a function or a Runnable, not {type(node).__name__}", tool=name)
    target = getattr(node, "__call__", node) if not inspect.isroutine(node) else node  # noqa: B004 - not a test
    if any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in (node, target)):
        raise ConfigError(f"the node {name!r} is a generator: its body runs after the call has returned", tool=name)
    if writes is reads is updates is None:
        declaration = declares(guard, name, node)
    else:
        declaration = Declaration.of(writes, reads, updates)
    return GuardedNode(node, guard, declaration, name)


class GuardedNode(RunnableCallable):
    """A guarded node. Calling it calls the node's function, guarded."""

    def __init__(
        self, node: Callable[..., Any] | Runnable[Any, Any], guard: Guard, declaration: Declaration | None, name: str
    ) -> None:
        self.node, self.guard, self.declaration = node, guard, declaration
        sync, asynchronous = _bodies(node)
        super().__init__(
            self._guarded(name, sync) if sync is not None else None,
            self._aguarded(name, asynchronous or sync, threaded=asynchronous is None),
            name=name,
            trace=False,
        )
        self.__name__ = name
        self.__wrapped__ = node
        self.__signature__ = inspect.signature(sync or asynchronous)  # type: ignore[arg-type]
        if not isinstance(node, Runnable):
            # LangGraph reads the schema of the input and the destinations of commands off a callable's hints.
            @functools.wraps(node)
            def called(_: GuardedNode, *args: Any, **kwargs: Any) -> Any:
                return self(*args, **kwargs)

            vars(self)["__call__"] = types.MethodType(called, self)

    def rebound(self, node: Runnable[Any, Any]) -> GuardedNode:
        """The same guarding around another Runnable."""
        return GuardedNode(node, self.guard, self.declaration, self.name or "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the node's function, guarded; of a coroutine function, the coroutine."""
        return (self.func or self.afunc)(*args, **kwargs)  # type: ignore[misc]

    def _guarded(self, name: str, body: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(body)
        def guarded(state: Any, *args: Any, **kwargs: Any) -> Any:
            return self.guard.call(
                self.declaration,
                name,
                fields_of(state),
                lambda changes: _told(body(changed(state, changes), *args, **kwargs)),
                identity=caller(self.guard, kwargs.get("config")),
            )

        return guarded

    def _aguarded(self, name: str, body: Any, *, threaded: bool) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(body)
        async def guarded(state: Any, *args: Any, **kwargs: Any) -> Any:
            def sync(changes: Mapping[str, Any]) -> Any:
                return _told(body(changed(state, changes), *args, **kwargs))

            async def asynchronous(changes: Mapping[str, Any]) -> Any:
                return _told(await body(changed(state, changes), *args, **kwargs))

            return await self.guard.acall(
                self.declaration,
                name,
                fields_of(state),
                sync if threaded else asynchronous,
                identity=caller(self.guard, kwargs.get("config"), asynchronous=True),
                threaded=threaded,
            )

        return guarded


def _name(node: Any) -> str:
    if isinstance(node, Runnable):
        return node.get_name()
    return getattr(node, "__name__", None) or type(node).__name__


def _bodies(node: Any) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """(sync, async) functions that run a node; a sync function alone is run in a thread by async graphs."""
    if isinstance(node, Runnable):
        return _runnable_bodies(node)
    if inspect.iscoroutinefunction(node) or inspect.iscoroutinefunction(getattr(node, "__call__", None)):  # noqa: B004
        return None, node
    return node, None


def _runnable_bodies(node: Runnable[Any, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def invoke(state: Any, config: RunnableConfig) -> Any:
        return node.invoke(state, config)

    async def ainvoke(state: Any, config: RunnableConfig) -> Any:
        return await node.ainvoke(state, config)

    for one in (invoke, ainvoke):  # LangGraph compares the annotation itself, which is a text in this module
        one.__annotations__["config"] = RunnableConfig
    return invoke, ainvoke


def fields_of(state: Any) -> dict[str, Any]:
    """What templates are filled from."""
    if isinstance(state, Mapping):
        return {str(key): value for key, value in state.items()}
    fields = getattr(type(state), "model_fields", None)
    if fields is None and dataclasses.is_dataclass(state):
        fields = [field.name for field in dataclasses.fields(state)]
    return {name: getattr(state, name) for name in fields or ()}


def changed(state: Any, changes: Mapping[str, Any]) -> Any:
    """The state with the paths of copies in place of the ones it names; the state itself is not touched."""
    if not changes:
        return state
    if isinstance(state, Mapping):
        return {**state, **changes}
    if hasattr(state, "model_copy"):
        return state.model_copy(update=dict(changes))
    return dataclasses.replace(state, **changes)


def _told(result: Any) -> Any:
    call = CURRENT.get()
    return unmap(result, call.names) if call is not None and call.names else result
