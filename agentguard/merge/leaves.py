"""The strategies for one place inside structured data, as pure functions of (base, {agent: value}).

They are asked only about places that several agents changed, and never when all of them deleted the place. Each
returns the value or raises `Clash` with the reason why it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from agentguard.merge import text as lines
from agentguard.merge.values import MISSING, Clash, Options, canon, order

Sides = Mapping[str, Any]


def _deleted(sides: Sides) -> None:
    gone = [agent for agent, value in sides.items() if value is MISSING]
    if gone:
        raise Clash(f"deleted by {', '.join(gone)} and changed by others")


def _expect(values: list[Any], kinds: tuple[type, ...], what: str) -> None:
    for value in values:
        if type(value) not in kinds:  # not isinstance: True is no number here
            raise Clash(f"{what}, and {type(value).__name__} is not")


def counter(base: Any, sides: Sides) -> Any:
    """The base plus what each agent added to it or took from it; exact for integers."""
    _deleted(sides)
    start = 0 if base is MISSING else base
    values = list(sides.values())
    if type(values[0]) not in (int, float) and len(set(map(canon, values))) == 1:
        return values[0]  # no longer a counter, and all agree what it is
    _expect([start, *values], (int, float), "a counter has to be a number")
    if all(type(value) is int for value in [start, *values]):
        return start + sum(value - start for value in values)
    try:
        total = math.fsum([start, *(value - start for value in values)])
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise Clash("the sum is not a finite number")
    return total


def _extreme(pick: Callable[..., Any]) -> Callable[[Any, Sides], Any]:
    def extreme(base: Any, sides: Sides) -> Any:
        """The greatest or least of the changed values; the base does not take part."""
        _deleted(sides)
        values = list(sides.values())
        _expect(values, (int, float, str), "only numbers and texts can be compared")
        if len({type(value) is str for value in values}) == 2:
            raise Clash("numbers and texts cannot be compared")
        return pick(values, key=order)

    return extreme


def append(base: Any, sides: Sides) -> Any:
    """What each agent added to the end of the list or text, one after the other; equal additions are all kept."""
    _deleted(sides)
    kind = str if type(base) is str or (base is MISSING and type(next(iter(sides.values()))) is str) else list
    start: Any = kind() if base is MISSING else base
    _expect([start, *sides.values()], (kind,), f"appending needs a {'text' if kind is str else 'list'}")
    known = canon(start)
    out = start
    for agent, value in sides.items():
        if canon(value[: len(start)]) != known:
            raise Clash(f"only additions at the end can be merged, and {agent} changed what was there")
        out = out + value[len(start) :]
    return out


def members(base: Any, sides: Sides) -> list[Any]:
    """A list as a set: an element that anybody removed is gone, one that anybody added is there once. What stays keeps
    its order; new elements follow, sorted."""
    _deleted(sides)
    start = [] if base is MISSING else base
    _expect([start, *sides.values()], (list,), "a set has to be a list")
    old = {canon(item): item for item in start}
    removed: set[bytes] = set()
    added: dict[bytes, Any] = {}
    for value in sides.values():
        new = {canon(item): item for item in value}
        removed |= old.keys() - new.keys()
        added.update((name, item) for name, item in new.items() if name not in old)
    return [item for name, item in old.items() if name not in removed] + sorted(added.values(), key=order)


def text(base: Any, sides: Sides) -> str:
    """A text inside the data, merged by lines."""
    _deleted(sides)
    start = "" if base is MISSING else base
    _expect([start, *sides.values()], (str,), "merging by lines needs a text")
    merged = lines.text(_bytes(start), {agent: _bytes(value) for agent, value in sides.items()}, Options())
    if merged.conflicts:
        conflict = merged.conflicts[0]
        raise Clash(f"{conflict.reason} ({conflict.path} of the text)" if conflict.path else conflict.reason)
    return str(merged.value.decode("utf-8", "surrogatepass"))


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def binary(base: Any, sides: Sides) -> Any:
    """The value as one piece: agents who wrote different values clash."""
    values = list(sides.values())
    if len({canon(value) if value is not MISSING else None for value in values}) > 1:
        _deleted(sides)
        raise Clash("replaced with different values")
    return values[0]


def first(base: Any, sides: Sides) -> Any:
    """The first agent's value, silently."""
    return next(iter(sides.values()))


def last(base: Any, sides: Sides) -> Any:
    """The last agent's value, silently."""
    return list(sides.values())[-1]


LEAVES: Mapping[str, Callable[[Any, Sides], Any]] = {
    "append": append,
    "binary": binary,
    "counter": counter,
    "first": first,
    "last": last,
    "max": _extreme(max),
    "min": _extreme(min),
    "set": members,
    "text": text,
}
