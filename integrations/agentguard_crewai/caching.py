"""What CrewAI answers without running the tool, and how guarded tools are kept out of that.

A `cache_function` only keeps results from being stored; no reader asks it. So an older result, of a tool of the same
name or of the same tool before it was guarded, would still be served: the cache itself has to have nothing for guarded
tools. And on the text path a call that repeats the last one is not run at all, not even after it was refused.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from crewai.agents.cache.cache_handler import CacheHandler
from crewai.utilities.string_utils import sanitize_tool_name

if TYPE_CHECKING:
    from .tools import Binding

__all__ = ["blind", "forget_last", "never_cache"]


def never_cache(_arguments: Any = None, _result: Any = None) -> bool:
    """What guarded tools have as `cache_function`: a cached write is a lost one, and a cached read is an old one.

    A function of the module, since CrewAI's checkpoints keep it by its dotted name.
    """
    return False


class _Blind:
    """A cache's `read` that finds nothing for guarded tools, for as long as they are guarded."""

    def __init__(self, handler: CacheHandler) -> None:
        self._handler = weakref.ref(handler)
        self._tools: dict[str, weakref.WeakSet[Binding]] = {}

    def add(self, binding: Binding) -> None:
        self._tools.setdefault(sanitize_tool_name(binding.name), weakref.WeakSet()).add(binding)

    def __call__(self, tool: str, input: str) -> Any:
        handler = self._handler()
        bindings = self._tools.get(sanitize_tool_name(tool), ())
        if handler is None or any(binding.active for binding in list(bindings)):
            return None
        return type(handler).read(handler, tool=tool, input=input)


def blind(handler: Any, *bindings: Binding | None) -> None:
    """Have a cache find nothing for these tools. Any number of times."""
    if not isinstance(handler, CacheHandler):
        return
    for binding in bindings:
        if binding is None or not binding.uncached:
            continue
        found = handler.__dict__.get("read")
        if not isinstance(found, _Blind):
            found = _Blind(handler)
            object.__setattr__(handler, "read", found)  # pydantic allows no such attribute, Python does
        found.add(binding)


def forget_last(agent: Any) -> None:
    """Have the text path take the call that an agent is about to make for no repetition of its last one.

    Without this it would skip, with "I tried reusing the same input", a write that is meant to be made twice, a second
    look at what others change, and what is tried again after a refusal."""
    handler = getattr(agent, "tools_handler", None)
    if handler is not None and getattr(handler, "last_used_tool", None) is not None:
        handler.last_used_tool = None
