"""Merges of structured files: read every version, merge the values, write the result in the style of the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentguard.codecs import jsontext, tomltext, yamltext
from agentguard.codecs.values import Problem, Refused, check, same
from agentguard.exceptions import MergeConflict
from agentguard.merge.comments import lacking, transplanted, wanted
from agentguard.merge.refusals import refusal
from agentguard.merge.text import text
from agentguard.merge.tree import merge_values
from agentguard.merge.values import MISSING, Conflict, Merged, Options, extent, settle

_DEPTH = 250
_READ_BY_PEOPLE = 1 << 20
_DEEP = f"it is nested too deeply (more than {_DEPTH} levels)"


@dataclass(frozen=True)
class Format:
    """One kind of structured file. `load` raises `Problem`; `write` gives a value in the style of a text that was
    there, and raises `Refused` where it cannot be said there. `comments`: whether there may be some."""

    name: str
    load: Callable[[bytes], Any]
    write: Callable[[Any, bytes], bytes]
    comments: bool

    def value(self, data: bytes) -> Any:
        """The value of a version, if it is one that can be compared and merged. Raises `Problem`."""
        try:
            value = self.load(data)
            if _depth(value) > _DEPTH:
                raise Problem(_DEEP)
        except RecursionError:
            raise Problem(_DEEP) from None
        return value


def _checked(load: Callable[[bytes], Any], leaves: tuple[type, ...], keys: tuple[type, ...]) -> Callable[[bytes], Any]:
    def loaded(data: bytes) -> Any:
        value = load(data)
        try:
            check(value, leaves, keys)
        except Refused as refused:
            raise Problem(f"{refused.place or 'the whole'} cannot be merged: {refused.problem}") from None
        return value

    return loaded


JSON = Format(
    "JSON",
    lambda data: jsontext.load(data, halves=True),
    lambda value, like: jsontext.Style.of(like).write(value),
    comments=False,
)
YAML = Format(
    "YAML",
    _checked(yamltext.load_yaml, yamltext.LEAVES, yamltext.KEYS),
    lambda value, like: yamltext.dump_yaml(value, like, keep=True),
    comments=True,
)
TOML = Format(
    "TOML",
    _checked(tomltext.load_toml, tomltext.LEAVES, (str,)),
    lambda value, like: tomltext.dump_toml(value, like, keep=True),
    comments=True,
)


def merge_document(form: Format, base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """Merge files by the values in them. Raises MergeConflict if one that is needed cannot be read, naming the agent
    and the place."""
    if base is not None and not base.strip():
        base = None  # an empty file has no value: tools create it first and fill it later
    values = _values(form, base, sides, options)
    if len(sides) == 1:
        ((agent, value),) = values.items()
        return Merged(sides[agent], (), {agent: _extent(form, base, value)})
    try:
        old = MISSING if base is None else form.value(base)
    except Problem as problem:
        raise _unreadable(form, base, sides, options, {"the base": problem}) from None
    try:
        merged = merge_values(old, values, options)
    except RecursionError:  # the limit counts the caller's frames too, so the formats' own limits cannot rule it out
        raise _unreadable(form, base, sides, options, {"every agent": Problem("it is nested too deeply")}) from None
    changes = {agent: merged.changes.get(agent, 1) for agent in sides}  # 1: only the layout changed
    if merged.value is MISSING:
        return Merged(None, merged.conflicts, changes)
    conflicts = list(merged.conflicts)
    try:
        data = _written(form, merged.value, base, sides, options, conflicts)
    except (Refused, Problem, RecursionError) as error:
        why = _DEEP if isinstance(error, RecursionError) else error.problem
        reason = f"the merged value cannot be written as {form.name}: {why}"
        raise refusal(reason, base, sides, options, advice="") from None
    return Merged(data, tuple(conflicts), changes)


def _extent(form: Format, base: bytes | None, value: Any) -> int:
    try:
        old = (type(value)() if type(value) in (dict, list) else MISSING) if base is None else form.value(base)
    except Problem:
        return 1  # the only writer may have repaired the file
    return max(1, extent(old, value))


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _DEPTH:
        depth += 1
        level = [
            item
            for parent in level
            if type(parent) is dict or type(parent) is list
            for item in (parent.values() if type(parent) is dict else parent)
            if type(item) is dict or type(item) is list
        ]
    return depth


# --- refusals ---------------------------------------------------------------------------------------------------------


def _values(form: Format, base: bytes | None, sides: Mapping[str, bytes], options: Options) -> dict[str, Any]:
    values: dict[str, Any] = {}
    problems: dict[str, Problem] = {}
    for agent, data in sides.items():
        try:
            values[agent] = form.value(data)
        except Problem as problem:
            problems[agent] = problem
    if problems:
        raise _unreadable(form, base, sides, options, problems)
    return values


def _unreadable(
    form: Format, base: bytes | None, sides: Mapping[str, bytes], options: Options, problems: dict[str, Problem]
) -> MergeConflict:
    reasons = []
    for who, why in problems.items():
        at = "" if why.line is None else f"line {why.line}: "
        if why.line is not None and why.column is not None:
            at = f"line {why.line}, column {why.column}: "
        reasons.append(f"what {who} has is not valid {form.name}: {at}{why.problem}")
    who, why = next(iter(problems.items()))
    return refusal("; ".join(reasons), base, sides, options, agent=who, line=why.line, column=why.column)


# --- writing ----------------------------------------------------------------------------------------------------------


def _written(
    form: Format,
    value: Any,
    base: bytes | None,
    sides: Mapping[str, bytes],
    options: Options,
    conflicts: list[Conflict],
) -> bytes:
    """The text for the merged value: by lines if that says exactly the value, since it keeps everybody's comments and
    layout; else the base's with the changes put in. What comments that loses are a conflict. Raises `Refused`."""
    like = next(iter(sides.values())) if base is None else base
    if form.comments or (len(like) < _READ_BY_PEOPLE and form.write(form.load(like), like) != like):
        by_lines = text(base, sides, Options())
        if not by_lines.conflicts and _says(form, by_lines.value, value):
            return bytes(by_lines.value)
    data = _in_style(form, value, like)
    return _with_comments(form, value, data, base or b"", sides, options, conflicts) if form.comments else data


def _with_comments(
    form: Format,
    value: Any,
    data: bytes,
    base: bytes,
    sides: Mapping[str, bytes],
    options: Options,
    conflicts: list[Conflict],
) -> bytes:
    """`data` with the comments that agents added, and those of the base that nobody removed. What cannot be put in is a
    conflict."""
    asked = wanted(base, sides)
    dressed = transplanted(data, base, sides, asked)
    if _says(form, dressed, value):
        data = dressed
    lost = lacking(data, asked)
    if lost:
        reason = "comments that cannot be kept beside what others changed"
        settle(Conflict(options.resource, "comments", "", lost, reason), options, conflicts)
    return data


def _in_style(form: Format, value: Any, like: bytes) -> bytes:
    """`value` written in the style of `like`; nothing that does not read back as what was meant. Raises `Refused`."""
    try:
        if same(form.load(like), value):
            return like
    except Problem:
        pass
    data = form.write(value, like)
    if not _says(form, data, value):
        raise Refused("it does not read back as the same value")
    return data


def _says(form: Format, data: bytes, value: Any) -> bool:
    try:
        return same(form.load(data), value)
    except (Problem, RecursionError):
        return False
