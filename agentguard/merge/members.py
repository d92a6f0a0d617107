"""Big JSON objects, merged member by member: what nobody changed is neither decoded nor written anew.

A member whose bytes are the same in the base and in a version has not changed there. The others are decoded and merged
like any value, and put between the base's own bytes. Members that are big objects themselves are taken apart in turn.
msgspec finds the members and checks the syntax of all of them; what it does not look for (invalid UTF-8, a key given
twice in one of the objects that are taken apart) is looked for here. Inside a member that nobody changed, a key given
twice or a number beyond a float stays as it is.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from typing import Any

from agentguard.codecs.jsontext import Style, quotes
from agentguard.codecs.values import Problem, Refused, same
from agentguard.merge.documents import JSON
from agentguard.merge.rules import Rules
from agentguard.merge.tree import merge_values
from agentguard.merge.values import MISSING, Merged, Options, extent

LARGE = 1 << 20
"""Bytes of all versions together from which it is worth it."""

_PART = 1 << 16
"""The same for an object inside."""

_Members = Mapping[str, Any]  # of msgspec.Raw


class _Whole(Exception):
    """Only reading the whole can tell."""


@dataclass(frozen=True)
class _Taken:
    """An object that was taken apart: the base's members, each version's, and for those that somebody changed their
    values, big objects among them taken apart again."""

    base: _Members
    sides: Mapping[str, _Members]
    new: dict[str, dict[str, Any]]  # in the order of the agents, which decides
    old: dict[str, Any] = field(default_factory=dict)
    inner: dict[str, _Taken] = field(default_factory=dict)


def merge_members(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged | None:
    """The merge of big JSON objects; None where it does not apply, and where a whole reading has to say what is wrong.

    The same result as `merge_document`, but that what nobody changed keeps its bytes.
    """
    if base is None or len(base) + sum(map(len, sides.values())) < LARGE:
        return None
    if not all(data.isascii() or _is_utf8(data) for data in (base, *sides.values())):
        return None
    rules = Rules(options.paths)
    try:
        taken = _take_apart((), base, sides, rules)
        if len(sides) == 1:
            ((agent, data),) = sides.items()
            return Merged(data, (), {agent: max(1, extent(taken.old, taken.new[agent]))})
        merged = merge_values(taken.old, taken.new, options)
        data = _put_together(taken, merged.value, Style.of(base), base)
        _check_syntax(data)  # nothing is published that cannot be read again
    except (_Whole, Problem, Refused, RecursionError):
        return None
    return Merged(data, merged.conflicts, {agent: merged.changes.get(agent, 1) for agent in sides})


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _members(data: Any) -> _Members:
    """The members of an object as the bytes that they have there."""
    import msgspec  # here, since only big stores need it

    try:
        found: _Members = _decoder().decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise _Whole from error
    # Every member leaves its key's two quotation marks; none of a key that has one inside can be told apart.
    if '"' in "".join(found) or quotes(bytes(data)) != quotes(msgspec.json.encode(found)):
        raise _Whole
    return found


def _check_syntax(data: bytes) -> None:
    import msgspec

    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        raise _Whole from error


def _decoder() -> Any:
    import msgspec

    return msgspec.json.Decoder(dict[str, msgspec.Raw])


def _take_apart(path: tuple[str, ...], base: Any, sides: Mapping[str, Any], rules: Rules) -> _Taken:
    if rules.of(path) != "json":
        raise _Whole
    taken = _Taken(
        _members(base), {agent: _members(data) for agent, data in sides.items()}, {agent: {} for agent in sides}
    )
    values: dict[bytes, Any] = {}

    def value(raw: Any) -> Any:
        data = bytes(raw)
        if data not in values:  # equal bytes are one value, which `same` sees at a glance
            values[data] = JSON.value(data)
        return values[data]

    for key in _changed(taken.base, taken.sides.values()):
        old = taken.base.get(key)
        new = {agent: side[key] for agent, side in taken.sides.items() if key in side}
        below = _below((*path, key), old, new, rules) if len(new) == len(sides) else None
        if below is not None:
            taken.inner[key] = below
            taken.old[key] = below.old
            for agent in sides:
                taken.new[agent][key] = below.new[agent]
            continue
        if old is not None:
            taken.old[key] = value(old)
        for agent, raw in new.items():
            taken.new[agent][key] = value(raw)
    return taken


def _changed(base: _Members, sides: Iterable[_Members]) -> Iterator[str]:
    """The keys whose bytes somebody changed, those of the base first."""
    found: set[str] = set()
    keys = list(base)
    for side in sides:
        if list(side) == keys:  # the usual case, at the speed of C
            found.update(compress(keys, map(operator.ne, base.values(), side.values())))
        else:
            found.update(key for key, raw in side.items() if base.get(key) != raw)
            found.update(base.keys() - side.keys())
    yield from compress(keys, map(found.__contains__, keys))
    yield from sorted(found - base.keys())


def _below(path: tuple[str, ...], old: Any, new: Mapping[str, Any], rules: Rules) -> _Taken | None:
    if old is None or len(memoryview(old)) + sum(len(memoryview(raw)) for raw in new.values()) < _PART:
        return None
    try:
        return _take_apart(path, old, new, rules)
    except _Whole:  # a list, or an object that somebody made something else of
        return None


def _put_together(taken: _Taken, value: Mapping[str, Any], style: Style, like: Any, level: int = 1) -> bytes:
    """The text of the merged object: `value` where somebody changed something, the base's bytes everywhere else."""
    import msgspec

    inside = replace(style, end=False)
    members = dict(taken.base)
    for key in taken.old.keys() - value.keys():
        del members[key]
    for key, item in value.items():
        if key in taken.inner:
            own = Style.of(bytes(taken.base[key]))
            below = replace(inside, indent=None, spaced=own.spaced) if own.indent is None else inside
            members[key] = msgspec.Raw(_put_together(taken.inner[key], item, below, taken.base[key], level + 1))
        elif key not in taken.old or not same(item, taken.old[key]):
            members[key] = _piece(taken, key, item, inside, level)
    if members == taken.base:
        return bytes(like)
    newline = "" if style.indent is None else style.newline
    comma, colon = style.separators
    between = f"{comma}{newline}{(style.indent or '') * level}"
    body = b"".join(chain.from_iterable(zip(_heads(members, style, between, colon), members.values(), strict=True)))
    end = (newline + (style.indent or "") * (level - 1) if members else "") + "}" + (style.newline if style.end else "")
    return b"{" + body[len(comma) :] + end.encode()


def _piece(taken: _Taken, key: str, item: Any, style: Style, level: int) -> Any:
    """The text of one member: an agent's own where the value is one of theirs."""
    for agent, values in taken.new.items():
        if values.get(key, MISSING) is item:
            return taken.sides[agent][key]
    import msgspec

    data = style.write(item)
    if not same(JSON.load(data), item):
        raise _Whole
    indent = (style.newline + (style.indent or "") * level).encode()
    return msgspec.Raw(data.replace(style.newline.encode(), indent) if style.indent is not None else data)


def _heads(members: Mapping[str, Any], style: Style, between: str, colon: str) -> list[bytes]:
    """What stands before each value: the key, between what separates it from the value before it and from its own.
    Done for all keys at once, which is many times faster: no key has a quotation mark inside, no JSON a NUL."""
    import orjson

    if not members:
        return []
    keys = list(members)
    data = json.dumps(keys, separators=(",", ":")).encode() if style.escaped else orjson.dumps(keys)
    text = data[1:-1].replace(b'","', f'"{colon}\0{between}"'.encode())
    return (between.encode() + text + colon.encode()).split(b"\0")
