"""The words every merge speaks: a value that is not there, a conflict, a result, and strict equality.

Python holds `True == 1 == 1.0`; a merge must not, or an agent's change from `1` to `true` would count as no change.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson

from agentguard.codecs.values import same
from agentguard.exceptions import MergeConflict


class Missing(enum.Enum):
    """The type of `MISSING`. An enumeration, so that pickling and copying give back the very same object."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final[Literal[Missing.MISSING]] = Missing.MISSING
"""A value that is not there: an absent file, key or element. It is not null and not empty."""


@dataclass(frozen=True)
class Conflict:
    """One place that several agents changed and no rule could settle.

    `path` is "" for the whole resource, a JSON pointer ("/items/3/title") inside structured data, and "line 12" or
    "lines 12-14" (of the base) in text. `base` and each of `sides` are the values of that place, `MISSING` where it is
    not there; `sides` has only the agents that changed it.
    """

    resource: str
    path: str
    base: object
    sides: Mapping[str, object]
    reason: str

    def __str__(self) -> str:
        place = f"{self.resource or 'the resource'}" + (f", {self.path}" if self.path else "")
        wrote = "; ".join(f"{agent}: {_shown(value)}" for agent, value in self.sides.items())
        return f"{place}: {self.reason} (base: {_shown(self.base)}; {wrote})"


@dataclass(frozen=True)
class Merged:
    """The outcome of one merge: `value`, every conflict, and how much each agent changed.

    At a conflicting place `value` holds what the base had. `changes` counts, per agent that changed something, lines
    (text), records (logs, lists), or keys and leaves (structured data).
    """

    value: Any
    conflicts: tuple[Conflict, ...] = ()
    changes: Mapping[str, int] = field(default_factory=dict)


Resolver = Callable[[Conflict], object]
"""Asked about conflicts only. Returns the value for that place (`MISSING` deletes it) or raises `MergeConflict` to
leave the conflict as it is."""


@dataclass(frozen=True)
class Options:
    """How to merge: the name of the resource (for texts), strategies by place, and who settles conflicts.

    `paths` maps JSON-pointer globs to strategy names, as in `{"/total": "counter", "/items": "list:id"}`: `*` stands
    for one segment or a part of one, `**` for any number of segments (at the end: at least one), "" (or "/") for the
    whole document. A pattern without wildcards wins over the others; among those the first one wins.
    """

    resource: str = ""
    paths: Mapping[str, str] = field(default_factory=dict)
    resolve: Resolver | None = None


class Clash(Exception):
    """What a strategy raises when it cannot settle a place; the text is the reason of the conflict."""


def settle(conflict: Conflict, options: Options, conflicts: list[Conflict]) -> object:
    """The value for a conflicting place: what the resolver says, else the base, and then `conflicts` grows by one."""
    if options.resolve is not None:
        try:
            return options.resolve(conflict)
        except MergeConflict:
            pass  # the resolver's way to say: leave it
    conflicts.append(conflict)
    return conflict.base


_CANON = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


def canon(value: object) -> bytes:
    """A name for a value: two values have the same one exactly if they are the `same`."""
    try:
        return orjson.dumps(value, option=_CANON)
    except TypeError:  # an integer over 64 bits, a date, a key that is not a text
        return b"\0" + _spelled(value).encode("utf-8", "surrogatepass")


def _spelled(value: object) -> str:
    if type(value) is dict:
        items = sorted((_spelled(key), _spelled(item)) for key, item in value.items())
        return "{" + ",".join(f"{key}:{item}" for key, item in items) + "}"
    if type(value) is list:
        return "[" + ",".join(map(_spelled, value)) + "]"
    return f"{type(value).__name__} {value!r}"


def order(value: object) -> tuple[int, Any, bytes]:
    """A sort key for new keys and elements, so that the order of agents does not show: numbers, then texts, then the
    rest."""
    if type(value) is int or type(value) is float:
        return 0, value, canon(value)
    if type(value) is str:
        return 1, value, b""
    return 2, canon(value), b""


def extent(base: object, side: object) -> int:
    """How many keys, leaves or list elements `side` changed against `base`."""
    if same(base, side):
        return 0
    if type(base) is dict and type(side) is dict:
        gone = len(base.keys() - side.keys())
        return gone + sum(
            1 if (old := base.get(key, MISSING)) is MISSING else extent(old, value) for key, value in side.items()
        )
    if type(base) is list and type(side) is list:
        start, stop = 0, min(len(base), len(side))
        while start < stop and same(base[start], side[start]):
            start += 1
        end = 0
        while end < stop - start and same(base[-1 - end], side[-1 - end]):
            end += 1
        return max(len(base), len(side)) - start - end
    return 1


def _shown(value: object, limit: int = 48) -> str:
    if value is MISSING:
        return "absent"
    text = repr(value[: limit + 1]) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
