"""What a version of a CSV file makes of the rows of the base, which are found by a key.

Nearly all rows of a version stand where they stood, byte for byte: those are only compared, one after the other. Keys
are looked up for the others, and for the rows of the base, whose keys must tell them apart.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from agentguard.merge.csv_sheet import NoKey, Sheet, decoded

_FEW = 100  # rows, and an eighth of all: more that are not where they were have moved up or down

Name = int | bytes
"""Of a row: its number in the base, or the key of one that the base has not."""
Row = dict[str, Any]  # by column; MISSING where the version has no such column


class Base:
    """The base, its rows found by key and by their bytes. Raises `NoKey`."""

    def __init__(self, sheet: Sheet, key: str) -> None:
        self.sheet, self.key = sheet, key
        self.keys = sheet.keys(sheet.header.index(key))
        self.numbers = dict(zip(self.keys, range(len(self.keys)), strict=True))
        if len(self.numbers) < len(self.keys):
            raise self.twice(sheet, self.keys)

    @functools.cached_property
    def places(self) -> dict[bytes, int]:
        return dict(zip(self.sheet.records, range(len(self.sheet.records)), strict=True))

    def key_of(self, name: Name) -> str:
        return decoded(name if isinstance(name, bytes) else self.keys[name])

    def record(self, name: Name) -> bytes | None:
        return self.sheet.records[name] if isinstance(name, int) else None

    def twice(self, sheet: Sheet, names: Sequence[Name]) -> NoKey:
        """What is wrong where one of `names`, those of the rows of a sheet, comes twice."""
        seen: dict[Name, int] = {}
        for number, name in enumerate(names):
            if name in seen:
                line, same = sheet.line(number), f"have the same {self.key} {self.key_of(name)!r}"
                return NoKey(f"lines {sheet.line(seen[name])} and {line} {same}", sheet.who, line)
            seen[name] = number
        raise AssertionError("no name comes twice")


@dataclass(eq=False)
class Side:
    """What an agent made of the rows: their names in its order, and what it changed, added or (None) deleted."""

    sheet: Sheet
    names: list[Name]
    edits: dict[Name, bytes | None]

    @classmethod
    def of(cls, sheet: Sheet, base: Base) -> Side:
        return cls(sheet, *(_changes if sheet.header == base.sheet.header else _changes_of_cells)(sheet, base))


def _changes(sheet: Sheet, base: Base) -> tuple[list[Name], dict[Name, bytes | None]]:
    old, new = base.sheet.records, sheet.records
    both = min(len(old), len(new))
    names: list[Any] = [*range(both), *[None] * (len(new) - both)]
    changed = [*compress(range(both), map(operator.ne, new, old)), *range(both, len(new))]
    gone = {*changed, *range(both, len(old))}.difference(range(len(old), len(new)))
    if len(changed) > _FEW + len(new) // 8:
        names = list(map(base.places.get, new))
        changed = [number for number, name in enumerate(names) if name is None]
        gone = set(range(len(old))).difference(names)
        once = len(old) - len(gone) == len(new) - len(changed)
    else:
        once = True
    edits: dict[Name, bytes | None] = {}
    for number, key in zip(changed, sheet.keys(sheet.header.index(base.key), changed), strict=True):
        name = names[number] = base.numbers.get(key, key)
        once = once and name not in edits and (type(name) is bytes or name in gone)
        edits[name] = new[number]
    if not once:
        raise base.twice(sheet, names)
    edits = {name: record for name, record in edits.items() if base.record(name) != record}  # some have only moved
    gone.difference_update(names[number] for number in changed)
    return names, {**edits, **dict.fromkeys(sorted(gone))}


def _changes_of_cells(sheet: Sheet, base: Base) -> tuple[list[Name], dict[Name, bytes | None]]:
    """The same under another header: what only that changed is no change of a row."""
    names = [base.numbers.get(key, key) for key in sheet.keys(sheet.header.index(base.key))]
    if len(set(names)) < len(names):
        raise base.twice(sheet, names)
    edits: dict[Name, bytes | None] = {}
    for name, record in zip(names, sheet.records, strict=True):
        before = base.record(name)
        if before is None or differs(base.sheet.row(before), sheet.row(record)):
            edits[name] = record
    return names, {**edits, **dict.fromkeys(sorted(set(range(len(base.keys))).difference(names)))}


def differs(old: Row, new: Row) -> bool:
    """Whether a row says something else, as far as both have a column; an empty cell in a new one says nothing."""
    return any(value != old.get(name, "") for name, value in new.items())
