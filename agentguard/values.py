"""Values of whole files, as flows: what `Guard.read`, `write` and `update` drive, sync or async."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import disk
from .call import Call
from .declaration import Declaration
from .exceptions import UndeclaredWrite
from .flow import Flow, steps
from .redirect import Place

if TYPE_CHECKING:
    from .guard import Guard

__all__ = ["reading", "updating", "writing"]


def reading(guard: Guard, name: str, timeout: float | None, asynchronous: bool) -> Flow[Any]:
    """Load under the shared lock; the result is the value."""
    call, place = _begin(guard, "reads", name, "read", timeout, asynchronous)
    return steps(call, lambda: _load(place)[0], body=False)


def writing(guard: Guard, name: str, value: Any, timeout: float | None, asynchronous: bool) -> Flow[Any]:
    """Replace under the exclusive lock, in the style of what was there."""
    call, place = _begin(guard, "writes", name, "write", timeout, asynchronous)

    def store(_: object) -> None:
        _store(call, place, value, disk.content(place.target))

    return steps(call, closing=store, body=False)


def updating(guard: Guard, name: str, timeout: float | None, asynchronous: bool) -> Flow[Any]:
    """Load, let the body make the new value of it, store; the result is the new value."""
    call, place = _begin(guard, "updates", name, "update", timeout, asynchronous)
    before: list[bytes | None] = []

    def load() -> Any:
        value, data = _load(place)
        before.append(data)
        return value

    def store(value: Any) -> Any:
        _store(call, place, value, before[0])
        return value

    return steps(call, load, store)


def _begin(
    guard: Guard, kind: str, name: str, tool: str, timeout: float | None, asynchronous: bool
) -> tuple[Call, Place]:
    literal = os.fspath(name).replace("{", "{{").replace("}", "}}")  # a name, not a template
    declaration = Declaration.of(**{kind: literal})
    call = guard.begin(declaration, tool, {}, timeout=timeout, asynchronous=asynchronous)
    place = next(iter(call.places.values()))
    if place.resource.path is None or place.resource.directory:
        what = "a directory" if place.resource.directory else "a key, not a file"
        raise UndeclaredWrite(f"{name!r} is {what}: it has no value to {tool}", resource=name, tool=tool)
    return call, place


def _load(place: Place) -> tuple[Any, bytes | None]:
    from .codecs import codec_for  # parsers are imported by those who parse

    data = disk.content(place.target)
    return (None, None) if data is None else (codec_for(place.resource.name).load(data), data)


def _store(call: Call, place: Place, value: Any, previous: bytes | None) -> None:
    from .codecs import codec_for

    data = codec_for(place.resource.name).dump(value, previous)
    call.stage(place, copy=False).write_bytes(data)
