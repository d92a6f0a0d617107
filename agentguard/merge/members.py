"""Big JSON objects, merged member by member: what nobody changed is neither decoded nor written anew.

A member whose bytes are the same in the base and in a version has not changed there. The others are decoded and merged
like any value, and put between the base's own bytes. Members that are big objects themselves are taken apart in turn.
msgspec finds the members and checks the syntax of all of them; what it does not look for (invalid UTF-8, a key given
twice in one of the objects that are taken apart) is looked for here. Inside a member that nobody changed, a key given
twice or a number beyond a float stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

from agentguard.codecs.jsontext import Style
from agentguard.codecs.values import Problem, Refused, same
from agentguard.merge.documents import JSON
from agentguard.merge.rules import Rules
from agentguard.merge.segments import Layout, Members, Segments, Whole, check_syntax, cut, members_of
from agentguard.merge.tree import merge_values
from agentguard.merge.values import MISSING, Merged, Options, extent

LARGE = 1 << 20
"""Bytes of all versions together from which it is worth it."""

_PART = 1 << 16
"""The same for an object inside."""


@dataclass(frozen=True)
class _Taken:
    """An object that was taken apart: the base's members; what each version made of those that somebody changed, as
    bytes (`raw`) and as values, big objects among them taken apart again."""

    data: bytes
    style: Style
    layout: Layout
    base: Members
    segments: Segments | None
    raw: Mapping[str, Mapping[str, Any]]
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
        taken = _take_apart((), base, sides, rules, Style.of(base), 1)
        if len(sides) == 1:
            ((agent, data),) = sides.items()
            return Merged(data, (), {agent: max(1, extent(taken.old, taken.new[agent]))})
        merged = merge_values(taken.old, taken.new, options)
        data = _put_together(taken, merged.value)
        check_syntax(data)  # nothing is published that cannot be read again
    except (Whole, Problem, Refused, RecursionError):
        return None
    return Merged(data, merged.conflicts, {agent: merged.changes.get(agent, 1) for agent in sides})


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _take_apart(
    path: tuple[str, ...], base: bytes, sides: Mapping[str, bytes], rules: Rules, style: Style, level: int
) -> _Taken:
    if rules.of(path) != "json":
        raise Whole
    layout = Layout.of(style, level)
    members, segments = cut(base, layout)
    raw = {agent: _changes(members, segments, data) for agent, data in sides.items()}
    taken = _Taken(base, style, layout, members, segments, raw, {agent: {} for agent in sides})
    values: dict[bytes, Any] = {}

    def value(raw: Any) -> Any:
        data = bytes(raw)
        if data not in values:  # equal bytes are one value, which `same` sees at a glance
            values[data] = JSON.value(data)
        return values[data]

    touched = set().union(*raw.values())
    for key in [*compress(members, map(touched.__contains__, members)), *sorted(touched - members.keys())]:
        old = members.get(key)
        new = {agent: changed.get(key, old) for agent, changed in raw.items()}
        below = _below((*path, key), old, new, rules, style, level)
        if below is not None:
            taken.inner[key], taken.old[key] = below, below.old
            for agent in sides:
                taken.new[agent][key] = below.new[agent]
            continue
        if old is not None:
            taken.old[key] = value(old)
        for agent, mine in new.items():
            if mine is not None:
                taken.new[agent][key] = value(mine)
    return taken


def _changes(base: Members, segments: Segments | None, side: bytes) -> dict[str, Any]:
    """The new bytes of the members that a version changed; None for one that it removed."""
    found = segments.changes(side) if segments is not None else None
    if found is not None:
        return found
    members = members_of(side)
    keys = list(base)
    if list(members) == keys:  # the usual case, at the speed of C
        different = compress(keys, map(operator.ne, base.values(), members.values()))
        return {key: members[key] for key in different}
    found = {key: raw for key, raw in members.items() if base.get(key) != raw}
    found.update((key, None) for key in base.keys() - members.keys())
    return found


def _below(
    path: tuple[str, ...], old: Any, new: Mapping[str, Any], rules: Rules, style: Style, level: int
) -> _Taken | None:
    if old is None or None in new.values():
        return None
    sides = {agent: bytes(raw) for agent, raw in new.items()}
    data = bytes(old)
    if len(data) + sum(map(len, sides.values())) < _PART:
        return None
    own = Style.of(data)
    inside = replace(style, end=False)
    if own.indent is None:  # on one line in a text of many
        inside = replace(inside, indent=None, spaced=own.spaced)
    try:
        return _take_apart(path, data, sides, rules, inside, level + 1)
    except Whole:  # a list, or an object that somebody made something else of
        return None


def _put_together(taken: _Taken, value: Mapping[str, Any]) -> bytes:
    """The text of the merged object: `value` where somebody changed something, the base's bytes everywhere else."""
    pieces: dict[str, Any] = {}
    for key, item in value.items():
        if key in taken.inner:
            piece: Any = _put_together(taken.inner[key], item)
            if piece != taken.inner[key].data:
                pieces[key] = piece
        elif key not in taken.old or not same(item, taken.old[key]):
            pieces[key] = _piece(taken, key, item)
    pieces.update((key, None) for key in taken.old if key not in value)
    if not pieces:
        return taken.data
    segments = taken.segments
    first = next(iter(taken.base), "")
    if segments is not None and taken.old.keys() <= segments.at.keys() and pieces.get(first, b"") is not None:
        return segments.with_changes(pieces, taken.layout)
    members = {**taken.base, **pieces}
    return taken.layout.text({key: piece for key, piece in members.items() if piece is not None})


def _piece(taken: _Taken, key: str, item: Any) -> Any:
    """The text of one member: an agent's own where the value is one of theirs."""
    for agent, values in taken.new.items():
        if values.get(key, MISSING) is item:
            return taken.raw[agent][key]
    style = replace(taken.style, end=False)
    data = style.write(item)
    if not same(JSON.load(data), item):
        raise Whole
    return data if style.indent is None else data.replace(style.newline.encode(), taken.layout.between[1:].encode())
