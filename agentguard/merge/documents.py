"""Merges of structured files: parse every version, merge the values, write the result in the style of the base."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from agentguard.exceptions import MergeConflict
from agentguard.merge.text import text
from agentguard.merge.tree import merge_values
from agentguard.merge.values import MISSING, Conflict, Merged, Options, extent, same


class Unreadable(Exception):
    """The bytes are not what the format says; `line` and `column` count from 1 and are None where unknown."""

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        place = "" if line is None else f"line {line}: " if column is None else f"line {line}, column {column}: "
        super().__init__(place + reason)
        self.line, self.column = line, column


class Format(Protocol):
    """One kind of structured file."""

    name: str

    @abstractmethod
    def parse(self, data: bytes) -> Any:
        """The plain value of `data`; raises `Unreadable`."""

    @abstractmethod
    def write(self, value: Any, like: bytes, old: Any) -> bytes:
        """`value` in the style of `like`, whose value is `old`; raises `Unreadable` if it cannot be said there."""

    @abstractmethod
    def loses(self, like: bytes, old: Any) -> bool:
        """Whether writing anew would lose something of `like`: comments, or a layout of its own."""


def merge_document(form: Format, base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """Merge files by the values in them. Raises MergeConflict if one that is needed cannot be read, naming the agent
    and the place."""
    if base is not None and not base.strip():
        base = None  # an empty file has no value: tools create it first and fill it later
    values = _parsed(form, base, sides, options)
    if len(sides) == 1:
        ((agent, value),) = values.items()
        return Merged(sides[agent], (), {agent: _extent(form, base, value)})
    try:
        old = MISSING if base is None else form.parse(base)
    except Unreadable as problem:
        raise _unreadable(form, base, sides, options, {"the base": problem}) from None
    try:
        merged = merge_values(old, values, options)
    except RecursionError:  # the limit counts the caller's frames too, so the formats' own limits cannot rule it out
        raise _unreadable(
            form, base, sides, options, {"every agent": Unreadable("nested too deeply to merge")}
        ) from None
    changes = {agent: merged.changes.get(agent, 1) for agent in sides}  # 1: only the layout changed
    if merged.value is MISSING:
        return Merged(None, merged.conflicts, changes)
    first = next(iter(sides))
    like, liked = (sides[first], values[first]) if base is None else (base, old)
    data = _by_lines(form, merged.value, base, sides) if form.loses(like, liked) else None
    if data is None:
        data = like if same(merged.value, liked) else _written(form, merged.value, like, liked, options)
    return Merged(data, merged.conflicts, changes)


def _extent(form: Format, base: bytes | None, value: Any) -> int:
    try:
        old = (type(value)() if type(value) in (dict, list) else MISSING) if base is None else form.parse(base)
    except Unreadable:
        return 1  # the only writer may have repaired the file
    return max(1, extent(old, value))


def _parsed(form: Format, base: bytes | None, sides: Mapping[str, bytes], options: Options) -> dict[str, Any]:
    values: dict[str, Any] = {}
    problems: dict[str, Unreadable] = {}
    for agent, data in sides.items():
        try:
            values[agent] = form.parse(data)
        except Unreadable as problem:
            problems[agent] = problem
    if problems:
        raise _unreadable(form, base, sides, options, problems)
    return values


def _unreadable(
    form: Format, base: bytes | None, sides: Mapping[str, bytes], options: Options, problems: dict[str, Unreadable]
) -> MergeConflict:
    resource = options.resource or "the resource"
    reason = "; ".join(f"what {who} has is not valid {form.name}: {why}" for who, why in problems.items())
    who, why = next(iter(problems.items()))
    return MergeConflict(
        f"{resource} was not merged: {reason}. Nothing was published; write that version again, or drop it",
        conflicts=(Conflict(options.resource, "", MISSING if base is None else base, dict(sides), reason),),
        resources=(options.resource,),
        agent=who,
        line=why.line,
        column=why.column,
    )


def _by_lines(form: Format, value: Any, base: bytes | None, sides: Mapping[str, bytes]) -> bytes | None:
    """The merge by lines if it is clean and says exactly `value`: it keeps everybody's comments and layout."""
    merged = text(base, sides, Options())
    try:
        if not merged.conflicts and same(form.parse(merged.value), value):
            return bytes(merged.value)
    except Unreadable:
        pass
    return None


def _written(form: Format, value: Any, like: bytes, liked: Any, options: Options) -> bytes:
    try:
        data = form.write(value, like, liked)
        if same(form.parse(data), value):  # nothing is published that does not read back as what was meant
            return data
        problem = "it does not read back as the same value"
    except Unreadable as unwritable:
        problem = str(unwritable)
    reason = f"the merged value cannot be written as {form.name}: {problem}"
    raise MergeConflict(
        f"{options.resource or 'the resource'} was not merged: {reason}. Nothing was published",
        conflicts=(Conflict(options.resource, "", like, {}, reason),),
        resources=(options.resource,),
    )
