"""ToolNodes whose tools guard themselves."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.prebuilt.tool_node import ToolCallRequest

from agentguard import Guard

from .identity import caller
from .tools import Copies, guarded_tool
from .turns import Calling, executing

__all__ = ["guarded_copy", "guarded_tool_node", "with_guarded_tool"]

Wrapper = Callable[[ToolCallRequest, Callable[[ToolCallRequest], Any]], Any]


def guarded_tool_node(tools: Sequence[BaseTool | Callable[..., Any]], guard: Guard, **options: Any) -> ToolNode:
    """LangGraph's `ToolNode` with these tools, guarded as `guard_tools` does.

    `options`: those of `ToolNode`. Its `wrap_tool_call` and `awrap_tool_call` run outside of the guard, so that what
    they wait for (retries, a person) is waited for without locks; a tool that they put into a request is guarded too.
    Raises `ConfigError` as `guard_tools` does.
    """
    copies = Copies(guard)
    if (sync := options.get("wrap_tool_call")) is not None:
        options["wrap_tool_call"] = _around(sync, copies)
    if (asynchronous := options.get("awrap_tool_call")) is not None:
        options["awrap_tool_call"] = _aaround(asynchronous, copies)
    node = ToolNode([guarded_tool(one, guard, in_tool_node=True) for one in tools], **options)
    return _executing(node, guard)


def guarded_copy(node: ToolNode, guard: Guard) -> ToolNode:
    """A copy of a ToolNode (of any subclass) with guarded tools; the node and its tools are not changed."""
    copied = copy.copy(node)
    copies = Copies(guard)
    copied._tools_by_name = {name: copies(found) for name, found in node.tools_by_name.items()}
    for name in ("func", "afunc"):
        bound = getattr(node, name)
        if getattr(bound, "__self__", None) is node:  # else the copy would run the original's tools
            setattr(copied, name, types.MethodType(bound.__func__, copied))
    if node._wrap_tool_call is not None:
        copied._wrap_tool_call = _around(node._wrap_tool_call, copies)
    if node._awrap_tool_call is not None:
        copied._awrap_tool_call = _aaround(node._awrap_tool_call, copies)
    return _executing(copied, guard)


def _executing(node: ToolNode, guard: Guard) -> ToolNode:
    """Have a node of our own tell the beginning and the end of every call of a turn, whatever becomes of it."""
    run_one, arun_one = type(node)._run_one, type(node)._arun_one

    @functools.wraps(run_one)
    def _run_one(call: Any, *rest: Any, **named: Any) -> Any:
        with _call_of(guard, call, rest, named) as made:
            result = run_one(node, call, *rest, **named)
            return made.answer(result) if made is not None else result  # a wrapper may have written it anew

    @functools.wraps(arun_one)
    async def _arun_one(call: Any, *rest: Any, **named: Any) -> Any:
        with _call_of(guard, call, rest, named, asynchronous=True) as made:
            result = await arun_one(node, call, *rest, **named)
            return made.answer(result) if made is not None else result

    vars(node).update(_run_one=_run_one, _arun_one=_arun_one)
    return node


@contextlib.contextmanager
def _call_of(guard: Guard, call: Any, rest: Any, named: Any, *, asynchronous: bool = False) -> Iterator[Calling | None]:
    runtime = next((one for one in (*rest, *named.values()) if isinstance(one, ToolRuntime)), None)
    if runtime is None:  # another version, which hands it on in another way: the call is found when it comes
        yield None
        return
    identity = caller(guard, runtime.config, in_tool_node=True, asynchronous=asynchronous)
    exact = "tool_calls" not in (*rest, *named.values())  # else it was sent some of the turn's calls only
    with executing(guard, runtime.config, call, runtime.state, identity.memory, exact=exact) as made:
        yield made


def with_guarded_tool(request: ToolCallRequest, copies: Copies) -> ToolCallRequest:
    """The request with the guarded copy of its tool."""
    if request.tool is None:
        return request
    guarded = copies(request.tool)
    return request if guarded is request.tool else request.override(tool=guarded)


def _around(wrapper: Wrapper, copies: Copies) -> Wrapper:
    def wrap(request: ToolCallRequest, execute: Callable[[ToolCallRequest], Any]) -> Any:
        return wrapper(request, lambda inner: execute(with_guarded_tool(inner, copies)))

    return wrap


def _aaround(wrapper: Wrapper, copies: Copies) -> Wrapper:
    async def wrap(request: ToolCallRequest, execute: Callable[[ToolCallRequest], Awaitable[Any]]) -> Any:
        async def guarded(inner: ToolCallRequest) -> Any:
            return await execute(with_guarded_tool(inner, copies))

        return await wrapper(request, guarded)

    return wrap
