"""Merges of CSV files by rows: `csv` finds a row by its key column and merges it cell by cell.

Records are compared as bytes, so that what nobody changed is neither parsed nor written anew: quotes, spaces and line
ends of such rows stay as they are. Only rows that agents changed are looked up, and only those of several taken apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentguard.exceptions import ConfigError
from agentguard.merge.csv_changes import Base, Name, Row, Side, differs
from agentguard.merge.csv_sheet import Dialect, NoKey, Problem, Sheet, Unreadable
from agentguard.merge.leaves import LEAVES
from agentguard.merge.refusals import AGAIN, refusal
from agentguard.merge.rules import Rules, pointer
from agentguard.merge.text import text, whole
from agentguard.merge.values import MISSING, Clash, Conflict, Merged, Options, settle

_IDENTITY = ("id", "_id", "uuid", "key", "name")
_BASE = "the base"


def csv(base: bytes | None, sides: Mapping[str, bytes], options: Options, key: str | None = None) -> Merged:
    """Rows are found by the column `key` (default: the first one, or one that is called id, _id, uuid, key or name, in
    which no two rows are alike), and merged cell by cell. Rows that an agent added stay behind the row that it put them
    behind. Columns that agents add, remove or move are merged as well.

    A conflict: one cell changed differently, a row (or column) deleted and changed, one row added differently, rows or
    columns put in different orders. Without a column that tells rows apart, versions with the same columns are merged
    by lines. Raises MergeConflict for a version that is no table (a quote never closed, NUL bytes) and, if `key` was
    asked for, for one whose rows it does not tell apart: naming the agent and the line.
    """
    origin = base if base is not None and base.strip() else None
    if len(sides) == 1:
        ((agent, data),) = sides.items()
        return Merged(data, (), {agent: _extent(origin or b"", data)})
    versions: dict[str, Sheet] = {}
    try:
        dialect = Dialect(b"\t") if options.resource.lower().endswith(".tsv") else None
        old = Sheet.of(origin, _BASE, dialect) if origin is not None else None
        known = frozenset(old.records) if old is not None and b'"' in (origin or b"") else ()
        for agent, data in sides.items():
            dialect = dialect or (old.dialect if old is not None else None)
            versions[agent] = Sheet.of(data, agent, dialect, known)
            dialect = versions[agent].dialect
        empty = [agent for agent, sheet in versions.items() if not sheet.header]
        if empty:
            return whole(base, sides, options, f"emptied by {', '.join(empty)} and changed by others")
        if old is None:
            first = next(iter(versions.values()))
            if any(sheet.header != first.header for sheet in versions.values()):
                return whole(base, sides, options, "created with different headers")
            old = Sheet(_BASE, first.dialect, first.mark, first.newline, first.closed, first.raw_header, first.header,
                        [], 0, {}, False)  # fmt: skip
        try:
            return _merged(old, versions, key, options)
        except NoKey as problem:
            if key is not None:
                raise
            return _by_lines(base, sides, options, old, versions, problem)
    except Problem as problem:
        by_key = isinstance(problem, NoKey)
        raise refusal(
            f"its rows are found by the column {key!r}, and {problem}" if by_key else str(problem),
            base, sides, options, advice="correct that version, or choose another key" if by_key else AGAIN,
            agent=problem.who, line=problem.line,
        ) from None  # fmt: skip


def _extent(base: bytes, data: bytes) -> int:
    one, two = (set(content.split(b"\n")) for content in (base, data))
    return max(1, len(one - two), len(two - one))


def _by_lines(
    base: bytes | None, sides: Mapping[str, bytes], options: Options, old: Sheet, versions: Mapping[str, Sheet],
    problem: NoKey,
) -> Merged:  # fmt: skip
    """The merge of lines, unless it could put cells under another column or cut a row in two."""
    changed = [agent for agent, sheet in versions.items() if sheet.header != old.header]
    if changed:
        return whole(base, sides, options, f"{', '.join(changed)} changed the columns, and {problem}")
    merged = text(base, sides, options)
    known = {record for sheet in (old, *versions.values()) for record in sheet.records}
    try:
        again = Sheet.of(merged.value or b"", "the result", old.dialect, known)
        fits = again.header in ([], old.header) and known.issuperset(again.records)
    except Unreadable:
        fits = False
    if options.resolve is None and not fits:
        return whole(base, sides, options, f"a merge by lines would cut rows in two, and {problem}")
    return merged


def _merged(old: Sheet, versions: Mapping[str, Sheet], key: str | None, options: Options) -> Merged:
    everyone = [old, *versions.values()]
    for sheet in everyone:
        if len(set(sheet.header)) < len(sheet.header):
            twice = next(name for number, name in enumerate(sheet.header) if name in sheet.header[:number])
            raise NoKey(f"line 1 calls two columns {twice!r}", sheet.who, 1)
    shared = [name for name in old.header if all(name in sheet.header for sheet in versions.values())]
    tried = [*shared[:1], *(name for name in shared[1:] if name.lower() in _IDENTITY)] if key is None else [key]
    problem = NoKey("no column of the base is in every version")
    for name in tried:
        for sheet in everyone:
            if name not in sheet.header:
                reason = f"line 1 has no column {name!r} (only {', '.join(map(repr, sheet.header))})"
                raise NoKey(reason, sheet.who, 1)
        try:
            base = Base(old, name)
            sides = {agent: Side.of(sheet, base) for agent, sheet in versions.items()}
        except NoKey as found:
            problem = found
            continue
        return _Merge(base, sides, options).run()
    raise problem


# --- merging them ----------------------------------------------------------------------------------------------------


class _Merge:
    def __init__(self, base: Base, sides: Mapping[str, Side], options: Options) -> None:
        self.base, self.old, self.sides, self.options = base, base.sheet, sides, options
        self.rules = Rules(options.paths)
        self.conflicts: list[Conflict] = []
        self.edits: dict[Name, dict[str, bytes | None]] = {}
        for agent, side in sides.items():
            for name, record in side.edits.items():
                self.edits.setdefault(name, {})[agent] = record
        headers = {tuple(side.sheet.header): side.sheet for side in sides.values()}
        self.same = list(headers) == [tuple(self.old.header)]
        self.kept: dict[tuple[Name, str], Any] = {}  # cells of columns that one agent removed and another changed
        if self.same:
            self.header, self.raw_header = self.old.header, self.old.raw_header
        else:
            changed = [sheet for header, sheet in headers.items() if list(header) != self.old.header]
            self.header, self.raw_header = self._columns(changed)

    def run(self) -> Merged:
        rows = {name: self._row(name, made) for name, made in self.edits.items()}
        order = self._order()
        out: list[bytes | None]
        if order is None:  # every row is where it was, and none is new
            out = list(self.old.records)
            if not self.same:
                out = [r if n in rows else self._recut(self.old, r) for n, r in enumerate(self.old.records)]
            for name, row in rows.items():
                out[int(name)] = row
        elif self.same:
            out = [rows[name] if name in rows else self.base.record(name) for name in order]
        else:
            out = [rows[n] if n in rows else self._recut(self.old, self.base.record(n) or b"") for n in order]
        records = [record for record in out if record is not None]
        changes = {agent: max(1, len(side.edits)) for agent, side in self.sides.items()}
        return Merged(self._file(records), tuple(self.conflicts), changes)

    def _file(self, records: list[bytes]) -> bytes:
        sheets = [side.sheet for side in self.sides.values()]
        closed = self.old.closed or any(sheet.closed and sheet.records for sheet in sheets)
        for sheet in sheets if self.old.ends else ():
            self.old.ends = {**sheet.ends, **self.old.ends}
        data = self.old.file(self.raw_header, records, closed=closed)
        again = Sheet.of(data, "the result", self.old.dialect, self.base.places if self.old.quotes else ())
        if again.header != self.header or again.records != records:  # nothing is published that reads back differently
            raise NoKey("what comes of it does not read back as the same rows")
        return data

    # - columns

    def _columns(self, changed: list[Sheet]) -> tuple[list[str], bytes]:
        old = self.old.header
        gone = dict.fromkeys(name for name in old for sheet in changed if name not in sheet.header)
        kept = {name for name in gone if self._contested(name)}
        if len(changed) == 1 and not kept:
            return changed[0].header, changed[0].raw_header
        new = dict.fromkeys(name for sheet in changed for name in sheet.header if name not in old)
        orders: dict[tuple[str, ...], str] = {}
        for sheet in changed:
            order = [name for name in sheet.header if name in old]
            if order != [name for name in old if name in sheet.header]:
                orders.setdefault(tuple(order), sheet.who)
        spine: Sequence[str] = old
        if len(orders) == 1:
            (spine,) = orders
        elif orders:
            sides = {agent: list(order) for order, agent in orders.items()}
            spine = self._ordered(old, sides, "put the columns in different orders")
        spine = [*spine, *(name for name in old if name not in spine)]
        header = [name for name in spine if name not in gone or name in kept] + list(new)
        like = dict(zip(old, self.old.dialect.raw(self.old.raw_header), strict=True))
        return header, self.old.dialect.written((name, like.get(name)) for name in header)

    def _contested(self, column: str) -> bool:
        """Whether a column that somebody removed stays, since others changed cells in it or added rows with some."""
        stays = False
        removers = [agent for agent, side in self.sides.items() if column not in side.sheet.header]
        for name, made in self.edits.items():
            before = self.base.record(name)
            start = MISSING if before is None else self.old.row(before)[column]
            cells: dict[str, Any] = {}
            for agent, record in made.items():
                if record is not None and agent not in removers:
                    cell = self.sides[agent].sheet.row(record)[column]
                    if cell != ("" if start is MISSING else start):
                        cells[agent] = cell
            if cells:
                reason = f"the column was removed by {', '.join(removers)} and the cell changed by others"
                sides = {**dict.fromkeys(removers, MISSING), **cells}
                settled = self._settle((self.base.key_of(name), column), start, sides, reason)
                self.kept[name, column] = settled
                stays = stays or settled is not MISSING
        return stays

    # - rows

    def _row(self, name: Name, made: Mapping[str, bytes | None]) -> bytes | None:
        """The merged row as bytes; None: it goes."""
        contents = set(made.values())
        if len(contents) == 1 and (len(made) == 1 or None in contents or not self.rules.repeating):
            agent, record = next(iter(made.items()))
            if record is None:
                return None
            if not self.kept and all(self.sides[one].sheet.header == self.header for one in made):
                return record
            if not self.kept and len(made) == 1:
                return self._recut(self.sides[agent].sheet, record, name)
        before = self.base.record(name)
        base = None if before is None else self.old.row(before)
        rows: dict[str, Any] = {
            agent: MISSING if record is None else self.sides[agent].sheet.row(record) for agent, record in made.items()
        }
        if base is not None:  # whoever only wrote it in another style has not changed it
            rows = {agent: row for agent, row in rows.items() if row is MISSING or differs(base, row)}
        gone = [agent for agent, row in rows.items() if row is MISSING]
        settled: Any
        if len(gone) == len(rows) and gone:
            return None
        if gone:
            reason = f"deleted by {', '.join(gone)} and changed by others"
            settled = self._settle((self.base.key_of(name),), MISSING if base is None else base, rows, reason)
        elif base is None and any(differs(one, two) for one in rows.values() for two in rows.values()):
            settled = self._settle((self.base.key_of(name),), MISSING, rows, "added differently")
        else:
            settled = {column: self._cell(name, column, base, rows) for column in self.header}
        if settled is MISSING:
            return None
        if not isinstance(settled, Mapping):
            raise ConfigError(
                f"the resolver returned {type(settled).__name__} for the row {self.base.key_of(name)!r}; it has to "
                "return a dict of cells by column, or MISSING",
                resource=self.options.resource,
            )
        cells = {column: _text(settled.get(column, "")) for column in self.header}
        if before is None:
            agent = next(agent for agent, row in rows.items() if row is not MISSING)
            return self._written(cells, self.sides[agent].sheet, made[agent] or b"")
        return self._written(cells, self.old, before)

    def _cell(self, name: Name, column: str, base: Row | None, rows: Mapping[str, Row]) -> Any:
        if (name, column) in self.kept:
            return self.kept[name, column]
        start = MISSING if base is None else base.get(column, MISSING)
        made = {agent: row[column] for agent, row in rows.items() if column in row}
        made = {agent: cell for agent, cell in made.items() if cell != ("" if start is MISSING else start)}
        if not made:
            return start
        if len(made) == 1 or (len(set(made.values())) == 1 and not self.rules.repeating):
            return next(iter(made.values()))
        path = (self.base.key_of(name), column)
        strategy = self.rules.of(path)
        if strategy != "json":
            try:
                numbers = {agent: _number(value) for agent, value in made.items()}
                return LEAVES[strategy](_number(start), numbers)
            except (Clash, KeyError) as clash:
                reason = str(clash) if isinstance(clash, Clash) else f"{strategy!r} is no strategy for a cell"
                return self._settle(path, start, made, reason)
        if len(set(made.values())) == 1:
            return next(iter(made.values()))
        return self._settle(path, start, made, "changed to different values")

    def _settle(self, path: tuple[str, ...], base: Any, sides: Mapping[str, Any], reason: str) -> Any:
        return settle(
            Conflict(self.options.resource, pointer(path), base, dict(sides), reason), self.options, self.conflicts
        )

    def _recut(self, sheet: Sheet, record: bytes, name: Name | None = None) -> bytes:
        """A row of one version under the merged header."""
        before = self.base.record(name) if name is not None else None
        row = {**(self.old.row(before) if before is not None else {}), **sheet.row(record)}
        return self._written({column: row.get(column, "") for column in self.header}, sheet, record)

    def _written(self, cells: Mapping[str, str], sheet: Sheet, like: bytes) -> bytes:
        raw = dict(zip(sheet.header, sheet.dialect.raw(like), strict=True))
        return self.old.dialect.written((cell, raw.get(column)) for column, cell in cells.items())

    # - orders

    def _order(self) -> list[Name] | None:
        """Every row of any version, in the order of the result; None for those of the base, with no other."""
        spines: dict[tuple[int, ...], str] = {}
        inserted: dict[int, dict[Name, None]] = {}  # by the row of the base that they follow; -1: the beginning
        for agent, side in self.sides.items():
            places: list[int] = side.names  # type: ignore[assignment]
            if any(type(name) is bytes for name in side.edits):
                places = []
                anchor = -1
                for name in side.names:
                    if isinstance(name, int):
                        places.append(name)
                        anchor = name
                    else:
                        inserted.setdefault(anchor, {}).setdefault(name)
            if places != sorted(places):
                spines.setdefault(tuple(places), agent)
        if not spines and not inserted:
            return None
        every = range(len(self.base.keys))
        spine: Iterable[int] = every
        if len(spines) == 1:
            (moved,) = spines
            spine = [*moved, *sorted(set(every).difference(moved))]
        elif spines:
            key_of = self.base.key_of
            sides = {agent: [key_of(one) for one in moved] for moved, agent in spines.items()}
            keys = self._ordered([key_of(one) for one in every], sides, "put the rows in different orders")
            spine = [self.base.numbers[key.encode("utf-8", "surrogateescape")] for key in keys]
        out: list[Name] = list(inserted.get(-1, ()))
        for one in spine:
            out.append(one)
            if one in inserted:
                out += inserted[one]
        return list(dict.fromkeys(out))  # one row that two agents put in different places comes once

    def _ordered(self, base: list[str], sides: Mapping[str, list[str]], reason: str) -> list[str]:
        settled = self._settle((), base, sides, reason)
        if isinstance(settled, Sequence) and set(settled) <= set(base) and len(set(settled)) == len(settled):
            return [*settled, *(one for one in base if one not in set(settled))]
        raise ConfigError(
            f"the resolver returned {settled!r:.80} where agents {reason}; it has to return a list of names in the "
            "order to use",
            resource=self.options.resource,
        )


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
