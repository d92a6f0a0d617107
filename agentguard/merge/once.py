"""`append:KEY`: additions to a file of JSON Lines, each record once, by the field that identifies it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from agentguard.codecs.values import Problem, Refused
from agentguard.exceptions import ConfigError
from agentguard.merge.documents import JSON
from agentguard.merge.rules import pointer
from agentguard.merge.text import append, concatenated, newline_of, records_in
from agentguard.merge.values import MISSING, Conflict, Merged, Options, canon, settle

_BOM = b"\xef\xbb\xbf"

_Id = str | int


@dataclass(eq=False)
class _Record:
    """What one id stands for: the records, by the name of their value."""

    base: dict[bytes, Any] = field(default_factory=dict)
    sides: dict[str, dict[bytes, Any]] = field(default_factory=dict)  # what each agent added and the base has not
    lines: list[bytes] = field(default_factory=list)  # of what was added


def append_once(base: bytes | None, sides: Mapping[str, bytes], options: Options, key: str) -> Merged:
    """As `append`, but a record (a line that is a JSON object whose field `key` is a text or an integer) is added once.

    One that the base has, or an earlier agent added, is left out: so whoever does his work a second time adds nothing,
    even if he is the only one. A conflict if two different records have one id: none of them is added, and what the
    base has stays. Lines that are no such records are kept as `append` keeps them.
    """
    origin = base or b""
    if not all(data.startswith(origin) for data in sides.values()):
        return append(base, sides, options)
    glued = bool(origin) and not origin.endswith(b"\n")
    additions = {agent: list(_lines(data[len(origin) :], key, glued=glued)) for agent, data in sides.items()}
    found = _found(origin, additions, key)

    conflicts: list[Conflict] = []
    settled: dict[_Id, bytes | None] = {}  # the line to put in, where the agents' are not to be
    for name, record in found.items():
        values = {value for side in record.sides.values() for value in side}
        if len(values) > 1 or (values and record.base):
            settled[name] = _settled(name, record, options, conflicts)

    seen: set[_Id] = set()
    kept: list[bytes] = []
    for lines in additions.values():
        out: list[bytes] = []
        for line, new in lines:
            if new is None:
                out.append(line)
                continue
            name = new[key]
            if name not in seen and (name in settled or not found[name].base):
                put = settled.get(name, line)
                if put is not None:
                    out.append(put)
            seen.add(name)
        rest = b"".join(out)
        # What is left of an addition without its records may be the newline that ended the base's last line.
        kept.append(rest if len(out) == len(lines) or rest.strip(b"\r\n") else b"")
    changes = {agent: records_in(data[len(origin) :]) for agent, data in sides.items()}
    return Merged(concatenated(origin, kept, newline_of(origin, *sides.values())), tuple(conflicts), changes)


def _lines(data: bytes, key: str, *, glued: bool) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of an addition; `glued`: the first one is the rest of the base's last line, and so no record."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        line = data[start:end]
        yield line, None if glued and not start else _record(line, key)
        start = end


def _record(line: bytes, key: str) -> dict[str, Any] | None:
    if b"{" not in line:
        return None
    try:
        value = JSON.value(line)
    except Problem:
        return None
    return value if type(value) is dict and type(value.get(key)) in (str, int) else None


def _found(
    origin: bytes, additions: Mapping[str, list[tuple[bytes, dict[str, Any] | None]]], key: str
) -> dict[_Id, _Record]:
    """Every id that was added, in the order of the first addition, with all that it stands for."""
    found: dict[_Id, _Record] = {}
    for lines in additions.values():
        for _, new in lines:
            if new is not None:
                found.setdefault(new[key], _Record())
    if found:
        for line in origin.removeprefix(_BOM).split(b"\n"):
            try:  # most lines are about other ids: the careful look is for the rest
                quick = orjson.loads(line)
            except orjson.JSONDecodeError:
                quick = None
            name = quick.get(key) if type(quick) is dict else None
            # A float may be an integer of more than 64 bits.
            if quick is None or type(name) is float or (type(name) in (str, int) and name in found):
                old = _record(line, key)
                if old is not None and old[key] in found:
                    found[old[key]].base[canon(old)] = old
    for agent, lines in additions.items():
        for line, new in lines:
            if new is not None:
                value, record = canon(new), found[new[key]]
                record.lines.append(line)
                if value not in record.base:
                    record.sides.setdefault(agent, {})[value] = new
    return found


def _settled(name: _Id, record: _Record, options: Options, conflicts: list[Conflict]) -> bytes | None:
    """The line to add for an id that stands for different records; None: none."""
    had = list(record.base.values())
    wrote = {agent: list(values.values()) for agent, values in record.sides.items()}
    conflict = Conflict(
        options.resource,
        pointer((str(name),)),
        had[-1] if had else MISSING,
        {agent: values[0] if len(values) == 1 else values for agent, values in wrote.items()},
        "added again with other content" if had else "added with different contents",
    )
    answer = settle(conflict, options, conflicts)
    if answer is MISSING or (had and canon(answer) in record.base):
        return None
    try:
        if type(answer) is not dict:
            raise Problem("no record")
        like = record.lines[0]
        written = next((line for line in record.lines if canon(JSON.value(line)) == canon(answer)), None)
        newline = b"\r\n" if like.endswith(b"\r\n") else b"\n"
        return (written or JSON.write(answer, like.strip())).rstrip(b"\r\n") + newline
    except (Problem, Refused):
        raise ConfigError(
            f"the resolver returned {answer!r:.80} for {conflict.path} of {options.resource or 'the resource'}; it has "
            "to return a record (a dict of plain data) or MISSING, which adds none",
            resource=options.resource,
            value=answer,
        ) from None
