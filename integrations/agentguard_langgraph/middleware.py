"""`GuardMiddleware`: the guard as a middleware of `create_agent`."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolCall
from langgraph.prebuilt.tool_node import ToolCallRequest

from agentguard import Declaration, Guard

from .identity import caller
from .refusals import REFUSALS, refusal, shown
from .toolnodes import with_guarded_tool
from .tools import HANDLED, Copies, Known
from .turns import acting, executing, scope_of

__all__ = ["GuardMiddleware"]


class GuardMiddleware(AgentMiddleware[Any, Any, Any]):
    """Guards every tool call of an agent, by `invoke` and by `ainvoke`.

        create_agent(model, tools, middleware=[..., GuardMiddleware(guard)])

    Put it last: then retries and human-in-the-loop pauses of the others are waited for without locks. Tools that
    another middleware supplies are guarded as well, even one that is not known here but by its name in the
    configuration. It may stand beside guarded copies of the same guard: a call is guarded once.

    A tool that another guard has guarded raises `ConfigError` when it is called; other errors as in `guard_tools`.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.guard = guard
        self._copies = Copies(guard)
        self._know = Known(guard)

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """Run one call guarded."""
        call, config = request.tool_call, request.runtime.config
        self._know(request.runtime.tools or ())
        identity = caller(self.guard, config, in_tool_node=True)
        with executing(self.guard, config, call, request.state, identity.memory) as made:
            if not self._by_name(request):
                return handler(with_guarded_tool(request, self._copies))

            def body(changes: Mapping[str, Any]) -> Any:
                with self._handled(request):
                    return shown(handler(_changed(request, changes)))

            try:
                result = self.guard.call(*self._named(call), body, **acting(identity, made))
            except REFUSALS as error:
                result = refusal(error, call["name"], call["id"] or "")
            return made.answer(result) if made is not None else result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """The async twin."""
        call, config = request.tool_call, request.runtime.config
        self._know(request.runtime.tools or ())
        identity = caller(self.guard, config, in_tool_node=True, asynchronous=True)
        with executing(self.guard, config, call, request.state, identity.memory) as made:
            if not self._by_name(request):
                return await handler(with_guarded_tool(request, self._copies))

            async def body(changes: Mapping[str, Any]) -> Any:
                with self._handled(request):
                    return shown(await handler(_changed(request, changes)))

            try:
                result = await self.guard.acall(*self._named(call), body, **acting(identity, made))
            except REFUSALS as error:
                result = refusal(error, call["name"], call["id"] or "")
            return made.answer(result) if made is not None else result

    def _named(self, call: ToolCall) -> tuple[Declaration | None, str, Mapping[str, Any]]:
        """What a call declares that only its name tells of, its name, and its arguments."""
        return self.guard.declaration_of(call["name"]), call["name"], call["args"]

    def _by_name(self, request: ToolCallRequest) -> bool:
        """Whether the name must do: a tool that a middleware nearer to the call will supply."""
        if request.tool is not None:
            return False
        known = self.guard.declaration_of(request.tool_call["name"]) is not None
        return known or self.guard.config.unknown_tools != "allow"

    @contextlib.contextmanager
    def _handled(self, request: ToolCallRequest) -> Iterator[None]:
        token = HANDLED.set((self.guard, request.tool_call["id"] or "", scope_of(request.runtime.config)))
        try:
            yield
        finally:
            HANDLED.reset(token)


def _changed(request: ToolCallRequest, changes: Mapping[str, Any]) -> ToolCallRequest:
    if not changes:
        return request
    call = request.tool_call
    return request.override(tool_call={**call, "args": {**call["args"], **changes}})
