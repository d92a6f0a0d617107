"""Merges of CSV files by rows: `csv` finds a row by its key column and merges it cell by cell.

Records are compared as bytes, so that what nobody changed is neither parsed nor written anew: quotes, spaces and line
ends of such rows stay as they are. Only rows that several agents changed are taken apart.
"""

from __future__ import annotations

import csv as stdlib_csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentguard.exceptions import ConfigError, MergeConflict
from agentguard.merge.leaves import LEAVES
from agentguard.merge.rules import Rules, pointer
from agentguard.merge.text import text, whole
from agentguard.merge.values import MISSING, Clash, Conflict, Merged, Options, settle

_BOM = b"\xef\xbb\xbf"
_IDENTITY = ("id", "_id", "uuid", "key", "name")
_LONGEST = 1 << 28  # bytes of a field; the csv module's own limit is far below

Row = dict[str, Any]  # by column; MISSING where the version has no such column


class _NoKey(Exception):
    """Rows cannot be told apart by a column; the text says why."""


@dataclass(eq=False)
class _Sheet:
    """One version of the file. `records` are its rows as bytes, without their line ends."""

    records: list[bytes]
    header: list[str]
    delimiter: str
    newline: bytes
    closed: bool
    mark: bytes
    raw_header: bytes
    keys: dict[bytes, str] = field(default_factory=dict)  # of the records that are not the base's; of the base, of all

    @classmethod
    def of(cls, data: bytes, delimiter: str | None) -> _Sheet:
        mark = _BOM if data.startswith(_BOM) else b""
        body = data[len(mark) :]
        at = body.find(b"\n")
        newline = b"\r\n" if at > 0 and body[at - 1 : at] == b"\r" else b"\n"
        records = _records(body, newline)
        raw = records.pop(0) if records else b""
        delimiter = delimiter or _delimiter(raw)
        header = _cells(raw, delimiter) if raw else []
        return cls(records, header, delimiter, newline, body.endswith(b"\n"), mark, raw)

    def key(self, record: bytes, column: int) -> str:
        """The cell of the key column."""
        if column == 0 and b'"' not in record:
            found, delimiter, _ = record.partition(self.delimiter.encode())
            if found or delimiter:
                return found.decode("utf-8", "surrogateescape")
        if b'"' in record:
            cells = _cells(record, self.delimiter)
        else:
            cells = record.decode("utf-8", "surrogateescape").split(self.delimiter, column + 1)
        if column >= len(cells) or not (cells[column] or len(cells) > 1):
            raise _NoKey(f"the row {_shown(record)} has no {self.header[column]!r}")
        return cells[column]

    def row(self, record: bytes) -> Row:
        cells = _cells(record, self.delimiter)
        if len(cells) != len(self.header):
            raise _NoKey(f"the row {_shown(record)} has {len(cells)} cells, and the header has {len(self.header)}")
        return dict(zip(self.header, cells, strict=True))


def _records(body: bytes, newline: bytes) -> list[bytes]:
    lines = body.split(newline)
    if not lines[-1]:
        lines.pop()
    if b'"' not in body:
        return lines
    found: list[bytes] = []
    open_: list[bytes] = []
    for line in lines:  # a record goes on while a quote is open
        if line.count(b'"') % 2:
            open_.append(line)
            if len(open_) > 1:
                found.append(newline.join(open_))
                open_ = []
        elif open_:
            open_.append(line)
        else:
            found.append(line)
    if open_:
        found.append(newline.join(open_))
    return found


def _delimiter(header: bytes) -> str:
    plain = b"".join(header.split(b'"')[::2])
    return max((",", ";", "\t", "|"), key=lambda sign: plain.count(sign.encode()))


def _cells(record: bytes, delimiter: str) -> list[str]:
    if len(record) >= stdlib_csv.field_size_limit():
        stdlib_csv.field_size_limit(_LONGEST)
    source = io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")
    return next(stdlib_csv.reader(source, delimiter=delimiter), [])


def _shown(record: bytes) -> str:
    return repr(record[:60].decode("utf-8", "replace"))


def csv(base: bytes | None, sides: Mapping[str, bytes], options: Options, key: str | None = None) -> Merged:
    """Rows are found by the column `key` (default: the first one, or one that is called id, uuid, key or name, in which
    no two rows are alike), and merged cell by cell. Rows that an agent added stay behind the row that it put them
    behind. Columns that agents add or remove are merged as well.

    A conflict: one cell changed differently, a row (or column) deleted and changed, one row added differently, rows put
    in different orders. Without a column that tells rows apart, a file is merged by lines; if `key` was asked for that
    is a MergeConflict, which names the agent and the row.
    """
    origin = base if base is not None and base.strip() else None
    if len(sides) == 1:
        ((agent, data),) = sides.items()
        return Merged(data, (), {agent: _extent(origin or b"", data)})
    delimiter = "\t" if options.resource.lower().endswith(".tsv") else None
    versions: dict[str, _Sheet] = {}
    old = _Sheet.of(origin, delimiter) if origin is not None else None
    if old is not None:
        delimiter = old.delimiter
    for agent, data in sides.items():
        versions[agent] = _Sheet.of(data, delimiter)
        delimiter = versions[agent].delimiter
    empty = [agent for agent, sheet in versions.items() if not sheet.header]
    if empty:
        return whole(base, sides, options, f"emptied by {', '.join(empty)} and changed by others")
    if old is None:
        first = next(iter(versions.values()))
        if any(sheet.header != first.header for sheet in versions.values()):
            return whole(base, sides, options, "created with different headers")
        old = _Sheet([], first.header, first.delimiter, first.newline, first.closed, first.mark, first.raw_header)
    try:
        column = _key_column(old, versions, key)
        return _Merge(old, versions, column, options).run()
    except _NoKey as problem:
        if key is None:
            return text(base, sides, options)
        raise MergeConflict(
            f"{options.resource or 'the resource'} was not merged by its column {key!r}: {problem}. Nothing was "
            "published; correct that version, or choose another key",
            conflicts=(Conflict(options.resource, "", MISSING if base is None else base, dict(sides), str(problem)),),
            resources=(options.resource,),
        ) from None


def _extent(base: bytes, data: bytes) -> int:
    one, two = (set(_records(content, b"\n")) for content in (base, data))
    return max(1, len(one - two), len(two - one))


def _key_column(old: _Sheet, versions: Mapping[str, _Sheet], key: str | None) -> str:
    everyone = {"the base": old, **versions}
    for who, sheet in everyone.items():
        if len(set(sheet.header)) < len(sheet.header):
            raise _NoKey(f"in what {who} has, two columns have one name")
    shared = [name for name in old.header if all(name in sheet.header for sheet in versions.values())]
    if key is not None:
        if key not in shared:
            who = next(name for name, sheet in everyone.items() if key not in sheet.header)
            raise _NoKey(f"what {who} has is without that column (it has: {', '.join(everyone[who].header)})")
        _index(old, everyone, key)
        return key
    for name in [*shared[:1], *(name for name in shared[1:] if name.lower() in _IDENTITY)]:
        try:
            _index(old, everyone, name)
        except _NoKey:
            continue
        return name
    raise _NoKey("no column tells the rows apart")


def _index(old: _Sheet, everyone: Mapping[str, _Sheet], name: str) -> None:
    """Fill `keys` of every version. Raises `_NoKey` where two rows have one key."""

    def twice(who: str, key: str) -> _NoKey:
        return _NoKey(f"in what {who} has, two rows have the {name} {key!r}")

    column = old.header.index(name)
    old.keys = {record: old.key(record, column) for record in old.records}
    by_key = {key: record for record, key in old.keys.items()}
    for who, sheet in everyone.items():
        present = set(sheet.records)
        if len(present) < len(sheet.records):
            seen: set[bytes] = set()
            again = next(one for one in sheet.records if one in seen or seen.add(one))  # type: ignore[func-returns-value]
            raise twice(who, sheet.key(again, sheet.header.index(name)))
        if sheet is old:
            if len(by_key) < len(old.records):
                keys: set[str] = set()
                raise twice(who, next(key for key in old.keys.values() if key in keys or keys.add(key)))  # type: ignore[func-returns-value]
            continue
        same = sheet.header == old.header
        at = sheet.header.index(name)
        sheet.keys = {}
        known: set[str] = set()
        for record in sheet.records if not same else present.difference(old.keys):
            key = sheet.key(record, at)
            if key in known or (same and by_key.get(key) in present):
                raise twice(who, key)
            known.add(key)
            sheet.keys[record] = key


class _Merge:
    def __init__(self, old: _Sheet, versions: Mapping[str, _Sheet], key: str, options: Options) -> None:
        self.old, self.versions, self.key, self.options = old, versions, key, options
        self.rules = Rules(options.paths)
        self.conflicts: list[Conflict] = []
        self.header, self.raw_header = self._columns()
        self.same = all(sheet.header == old.header for sheet in versions.values())

    def _columns(self) -> tuple[list[str], bytes]:
        changed = {tuple(s.header): s for s in self.versions.values() if s.header != self.old.header}
        if not changed:
            return self.old.header, self.old.raw_header
        if len(changed) == 1:
            (sheet,) = changed.values()
            return sheet.header, sheet.raw_header
        gone = {name for header in changed for name in self.old.header if name not in header}
        new = dict.fromkeys(name for header in changed for name in header if name not in self.old.header)
        header = [name for name in self.old.header if name not in gone] + list(new)
        return header, self._written(header, b"")

    def run(self) -> Merged:
        before = {key: record for record, key in self.old.keys.items()}
        edits: dict[str, dict[str, bytes | None]] = {}  # by key: what each agent made of the row
        changes = dict.fromkeys(self.versions, 0)
        for agent, sheet in self.versions.items():
            if sheet.header == self.old.header:
                gone = self.old.keys.keys() - set(sheet.records)
                mine: dict[str, bytes | None] = dict.fromkeys(self.old.keys[record] for record in gone)
                mine.update((key, record) for record, key in sheet.keys.items())
            else:
                mine = self._edits_under_another_header(sheet, before)
            changes[agent] = max(1, len(mine))
            for key, record in mine.items():
                edits.setdefault(key, {})[agent] = record
        place = {record: number for number, record in enumerate(self.old.records)}
        ordered = self._order(before, place)
        rows: dict[str, bytes | None] = {key: self._row(key, before.get(key), made) for key, made in edits.items()}
        if ordered is None:  # every row is where it was, and none is new
            out: list[bytes] = list(self.old.records)
            for key, row in rows.items():
                if row is not None:
                    out[place[before[key]]] = row
            if None in rows.values():
                gone_keys = {before[key] for key, row in rows.items() if row is None and key in before}
                out = [record for record in out if record not in gone_keys]
            if not self.same:
                out = [self._recut(self.old, r) if r in place and self.old.keys[r] not in rows else r for r in out]
        else:
            out = []
            for key in ordered:
                record = rows[key] if key in rows else before[key]
                if record is not None:
                    out.append(record if self.same or key in rows else self._recut(self.old, record))
        return Merged(self._file(out), tuple(self.conflicts), changes)

    def _edits_under_another_header(self, sheet: _Sheet, before: Mapping[str, bytes]) -> dict[str, bytes | None]:
        there = set(sheet.keys.values())
        mine: dict[str, bytes | None] = {key: None for key in before if key not in there}
        for record, key in sheet.keys.items():
            old = self.old.row(before[key]) if key in before else None
            new = sheet.row(record)
            shared = [name for name in sheet.header if name in self.old.header]
            added = any(new[name] for name in sheet.header if name not in self.old.header)
            if old is None or added or any(old[name] != new[name] for name in shared):
                mine[key] = record
        return mine

    def _row(self, key: str, before: bytes | None, made: Mapping[str, bytes | None]) -> bytes | None:
        """The merged row as bytes; None: it goes."""
        sheets = {self.versions[agent].header == self.header for agent in made}
        alike = len(set(made.values())) == 1 and not (
            self.rules.repeating and len(made) > 1 and None not in made.values()
        )
        if alike and (sheets == {True} or None in made.values()):
            return next(iter(made.values()))
        gone = [agent for agent, record in made.items() if record is None]
        base: Any = MISSING if before is None else self.old.row(before)
        rows: dict[str, Any] = {
            agent: MISSING if record is None else self.versions[agent].row(record) for agent, record in made.items()
        }
        if gone or (before is None and len(made) > 1):
            reason = f"deleted by {', '.join(gone)} and changed by others" if gone else "added differently"
            settled = self._settle((key,), base, rows, reason)
        else:
            settled = {name: self._cell(key, name, base, rows) for name in self.header}
        if settled is MISSING:
            return None
        if not isinstance(settled, Mapping):
            raise ConfigError(
                f"the resolver returned {type(settled).__name__} for the row {key!r}; it has to return a dict of "
                "cells by column, or MISSING",
                resource=self.options.resource,
            )
        return self._written([_text(settled.get(name, "")) for name in self.header], before or b"")

    def _cell(self, key: str, name: str, base: Any, rows: Mapping[str, Row]) -> Any:
        start = base.get(name, MISSING) if base is not MISSING else MISSING
        made = {}
        for agent, row in rows.items():
            there = name in self.versions[agent].header
            value = row[name] if there else (start if name not in self.old.header else MISSING)
            if value != start and not (start is MISSING and value == ""):
                made[agent] = value
        if not made:
            return "" if start is MISSING else start
        if len(set(made.values())) == 1 and not self.rules.repeating:
            return next(iter(made.values()))
        strategy = self.rules.of((key, name))
        if strategy != "json":
            try:
                numbers = {agent: _number(value) for agent, value in made.items()}
                return LEAVES[strategy](_number(start), numbers)
            except (Clash, KeyError) as clash:
                reason = str(clash) if isinstance(clash, Clash) else f"{strategy!r} is no strategy for a cell"
                return self._settle((key, name), start, made, reason)
        if len(set(made.values())) == 1:
            return next(iter(made.values()))
        return self._settle((key, name), start, made, "changed to different values")

    def _settle(self, path: tuple[str, ...], base: Any, sides: Mapping[str, Any], reason: str) -> Any:
        return settle(
            Conflict(self.options.resource, pointer(path), base, dict(sides), reason), self.options, self.conflicts
        )

    def _order(self, before: Mapping[str, bytes], place: Mapping[bytes, int]) -> Sequence[str] | None:
        """Every key of any version, in the order of the result; None for the base's, with no other key."""
        spines: dict[tuple[int, ...], str] = {}
        inserted: dict[int, dict[str, None]] = {}  # by the place in the base that they follow; -1: the beginning
        for agent, sheet in self.versions.items():
            # Numbers for rows of the base, whether or not they were changed; keys for rows that are new.
            found: list[Any] = [place.get(record, record) for record in sheet.records]
            for at, one in enumerate(found) if sheet.keys else ():
                if type(one) is bytes or sheet.header != self.old.header:
                    key = sheet.keys[sheet.records[at]]
                    found[at] = place[before[key]] if key in before else key
            places = [one for one in found if type(one) is int]
            if places != sorted(places):
                spines.setdefault(tuple(places), agent)
            if len(places) < len(found):
                anchor = -1
                for one in found:
                    if type(one) is int:
                        anchor = one
                    else:
                        inserted.setdefault(anchor, {}).setdefault(one)
        if not spines and not inserted:
            return None
        keys = list(before)
        spine: Sequence[int] = range(len(keys))
        if len(spines) == 1:
            (moved,) = spines
            spine = [*moved, *sorted(set(spine) - set(moved))]
        elif spines:
            sides = {agent: [keys[one] for one in moved] for moved, agent in spines.items()}
            settle(
                Conflict(self.options.resource, "", keys, sides, "put the rows in different orders"),
                self.options, self.conflicts,
            )  # fmt: skip
        out = list(inserted.get(-1, ()))
        for one in spine:
            out.append(keys[one])
            if one in inserted:
                out += inserted[one]
        return list(dict.fromkeys(out))  # one row that two agents put in different places comes once

    def _recut(self, sheet: _Sheet, record: bytes) -> bytes:
        row = sheet.row(record)
        return self._written([row.get(name, "") for name in self.header], record)

    def _written(self, cells: Iterable[str], like: bytes) -> bytes:
        out = io.StringIO(newline="")
        quoted = like.startswith(b'"') and like.endswith(b'"') and b'"' + self.old.delimiter.encode() + b'"' in like
        style: Any = stdlib_csv.QUOTE_ALL if quoted else stdlib_csv.QUOTE_MINIMAL
        stdlib_csv.writer(out, delimiter=self.old.delimiter, lineterminator="\r\n", quoting=style).writerow(cells)
        return out.getvalue()[:-2].encode("utf-8", "surrogateescape")

    def _file(self, records: Sequence[bytes]) -> bytes:
        old = self.old
        closed = old.closed or any(sheet.closed and sheet.records for sheet in self.versions.values())
        data = old.mark + old.newline.join([self.raw_header, *records]) + (old.newline if closed else b"")
        again = _Sheet.of(data, old.delimiter)  # nothing is published that does not read back as what was meant
        if again.header != self.header or len(again.records) != len(records):
            raise _NoKey("what comes of it does not read back as the same rows")
        return data


def _text(value: Any) -> str:
    if value is MISSING or value is None:
        return ""
    if type(value) in (str, int, float):
        return str(value)
    raise ConfigError(f"the resolver returned {value!r:.80} for a cell; it has to return a text or a number")


def _number(value: Any) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except (TypeError, ValueError):
            continue
    return value
