"""Merges of SQLite databases by rows: `sqlite` finds a row by its primary key and merges it cell by cell.

What each agent changed is worked out from its finished file and the base, so tools may use any client. The result is
the base with every change applied to it, and keeps its pages, indexes and settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from agentguard.exceptions import ConfigError
from agentguard.merge.leaves import LEAVES
from agentguard.merge.refusals import refusal
from agentguard.merge.rules import Rules, pointer
from agentguard.merge.sqlite_plan import planned
from agentguard.merge.sqlite_versions import (
    SETTINGS,
    VERSIONS,
    Edit,
    Row,
    Side,
    Table,
    Unreadable,
    check,
    exact,
    listed,
    loose,
    opened,
    quoted,
    read,
    schema,
    sealed,
    sequences,
    shadows,
    tables,
    virtuals,
)
from agentguard.merge.text import whole
from agentguard.merge.values import MISSING, Clash, Conflict, Merged, Options, settle

_CELLS = (int, float, str, bytes, type(None))
_LOOSE = "rows without a primary key, which cannot be told apart, were changed by several agents"
_VIRTUAL = "a virtual table, whose contents cannot be taken apart, was changed by several agents"


def sqlite(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """Rows by primary key, cell by cell. Agents may add tables, indexes, views and triggers; one agent may alter or
    drop tables, unless others changed rows in them. `paths`: "/table/*/column" for cells, "/PRAGMA/user_version", and
    "/table" = "append" gives rows that several agents added under one integer key new keys instead of a conflict, and
    keeps the rows that they added to a table without a key.

    A conflict: one cell changed differently, a row deleted and changed, one key added differently, a row that a
    constraint forbids beside another one's, a foreign key that only all changes together break, one table, index, view
    or trigger changed differently, rows without a primary key or a virtual table changed by several agents (a full-text
    index of another table is built anew instead). Raises MergeConflict for a file that is no database, naming the
    agent.
    """
    origin = base or b""
    if len(sides) == 1:
        ((agent, data),) = sides.items()
        with contextlib.suppress(Unreadable):
            return Merged(data, (), {agent: max(1, read(origin, data, agent).extent())})
        return Merged(data, (), {agent: 1})
    try:
        check(origin, "the base")
        found = {agent: read(origin, data, agent) for agent, data in sides.items()}
        return _Merge(base, sides, found, options).run()
    except Unreadable as problem:
        raise refusal(str(problem), base, sides, options, agent=problem.who) from None


@dataclass(frozen=True)
class _Step:
    """What is to be done to one row: from what is in the database to what should be. `wanted`: by whom, and what."""

    table: Table
    key: Row
    before: Row | None
    after: Row | None
    wanted: Mapping[str, Row | None]


class _Merge:
    def __init__(
        self, given: bytes | None, sides: Mapping[str, bytes], found: Mapping[str, Side], options: Options
    ) -> None:
        self.given, self.base, self.sides, self.found, self.options = given, given or b"", sides, found, options
        self.rules = Rules(options.paths)
        self.conflicts: list[Conflict] = []
        self.largest: dict[str, int] = {}

    def run(self) -> Merged:
        changes = {agent: max(1, side.extent()) for agent, side in self.found.items()}
        with opened(self.base) as old:
            self.schema, self.tables, self.virtuals = schema(old, "main"), tables(old, "main"), virtuals(old, "main")
            kept = set(old.execute("PRAGMA foreign_key_check"))
        try:
            plan = planned(self.schema, self.found, self.sides)
        except Clash as clash:
            return whole(self.given, self.sides, self.options, str(clash))
        self.first = plan.first
        start = self.base if plan.first is None else self.sides[plan.first]
        with opened(start) as database:
            self._bring(database, plan.wanted)
            self._apply(database)
            broken = [one for one in database.execute("PRAGMA foreign_key_check") if one not in kept]
            if broken:
                reason = self._orphans(database, broken)
                outcome = whole(self.given, self.sides, self.options, reason)
                return Merged(outcome.value, (*self.conflicts, *outcome.conflicts), changes)
            data = bytearray(database.serialize("main"))
        data[VERSIONS] = (self.base or start)[VERSIONS]
        return Merged(bytes(data), tuple(self.conflicts), changes)

    # --- definitions

    def _bring(self, database: apsw.Connection, wanted: Mapping[tuple[str, str], str | None]) -> None:
        """Define what agents other than the first added, and take what all of them put into new tables as added."""
        rank = ("table", "index", "view", "trigger")
        for (kind, name), sql in sorted(wanted.items(), key=lambda item: rank.index(item[0][0])):
            if (kind, name) in self.schema:
                database.execute(f"DROP {kind} IF EXISTS {quoted(name)}")
            if sql is not None:
                database.execute(sql)
        for name, table in tables(database, "main").items():
            if ("table", name) not in self.schema:
                self.tables[name] = table
                for agent, data in self.sides.items():
                    if ("table", name) in self.found[agent].schema:
                        self._added(table, data, self.found[agent])

    @staticmethod
    def _added(table: Table, data: bytes, side: Side) -> None:
        with opened(data) as database:
            keyless = loose(database, "main", table)
            if keyless:
                side.loose[table.name] = keyless
            if table.key:
                keyed = f"NOT ({table.loose})"
                rows = database.execute(f"SELECT {listed(table)} FROM {quoted(table.name)} WHERE {keyed}")
                edits = {tuple(row[number] for number in table.key): Edit(None, row) for row in rows}
                if edits:
                    side.edits[table.name] = edits

    # --- contents

    def _apply(self, database: apsw.Connection) -> None:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("BEGIN")
        for table in self.tables.values():
            self._loose(database, table)
        self._write(database, list(self._steps()))
        for name in self.virtuals:
            self._virtual(database, name)
        counted = [sequences(database, "main"), *(side.sequences for side in self.found.values())]
        for name, seq in counted[0].items():
            top = max(one.get(name, seq) for one in counted)
            if top != seq:
                database.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (top, name))
        database.execute("COMMIT")
        for name in SETTINGS:
            self._setting(database, name)

    def _setting(self, database: apsw.Connection, name: str) -> None:
        made = {agent: side.settings[name] for agent, side in self.found.items() if name in side.settings}
        if made:
            with opened(self.base) as old:
                (start,) = next(old.execute(f"PRAGMA {name}"))
            value = self._leaf(("PRAGMA", name), start, made)
            if type(value) is not int:
                raise ConfigError(
                    f"the resolver returned {value!r:.80} for {name} of {self.options.resource or 'the resource'}; it "
                    "has to return an integer",
                    resource=self.options.resource,
                )
            database.execute(f"PRAGMA {name} = {value}")

    def _loose(self, database: apsw.Connection, table: Table) -> None:
        """Rows without a key."""
        made = {agent: side.loose[table.name] for agent, side in self.found.items() if table.name in side.loose}
        if not made:
            return
        before: list[Row] = []
        if ("table", table.name) in self.schema:
            with opened(self.base) as old:
                before = loose(old, "main", table)
        contents = {agent: [row[1:] for row in rows] for agent, rows in made.items()}
        distinct = {exact(tuple(rows)) for rows in contents.values()}
        rows = next(iter(made.values()))
        if self.rules.of((table.name,)) == "append" and len(made) > 1:
            start = [row[1:] for row in before]
            if all(exact(tuple(one[: len(start)])) == exact(tuple(start)) for one in contents.values()):
                rows = before + [(None, *row) for one in contents.values() for row in one[len(start) :]]
                distinct.clear()
        if len(distinct) > 1:
            shown = {agent: [_named(table, row) for row in rows] for agent, rows in contents.items()}
            base = [_named(table, row[1:]) for row in before]
            settled = self._settle((table.name,), base, shown, _LOOSE)
            if settled is MISSING or not isinstance(settled, Sequence):
                settled = [] if settled is MISSING else [settled]
            rows = before if settled is base else [(None, *self._as_row(table, row)) for row in settled]
        name = quoted(table.name)
        database.execute(f"DELETE FROM {name} WHERE {table.loose}")
        number = f"{table.rowid}, " if table.rowid else ""
        skip = 0 if table.rowid else 1
        marks = ", ".join("?" * (len(table.columns) + 1 - skip))
        database.executemany(
            f"INSERT OR ABORT INTO {name} ({number}{listed(table)}) VALUES ({marks})", (row[skip:] for row in rows)
        )

    def _virtual(self, database: apsw.Connection, name: str) -> None:
        made = {agent: side.virtual[name] for agent, side in self.found.items() if name in side.virtual}
        virtual = self.virtuals[name]
        if not made or ("table", name) not in schema(database, "main"):
            return
        distinct = set(map(sealed, made.values()))
        if len(distinct) > 1 and virtual.derived:
            database.execute(f"INSERT INTO {quoted(name)} ({quoted(name)}) VALUES ('rebuild')")
            return
        contents = next(iter(made.values()))
        if len(distinct) > 1:
            with opened(self.base) as old:
                before = shadows(old, "main", virtual)
            contents = before
            versions = dict.fromkeys(made, "a version of the table")  # which no resolver could put together
            self.conflicts.append(
                Conflict(self.options.resource, pointer((name,)), "the table of the base", versions, _VIRTUAL)
            )
        for shadow, rows in contents.items():
            database.execute(f"DELETE FROM {quoted(shadow)}")
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                database.executemany(f"INSERT INTO {quoted(shadow)} VALUES ({marks})", rows)

    # --- rows

    def _steps(self) -> Iterator[_Step]:
        for name in sorted(self.tables):
            edits: dict[Row, dict[str, Edit]] = {}
            for agent, side in self.found.items():
                for key, edit in side.edits.get(name, {}).items():
                    edits.setdefault(key, {})[agent] = edit
            for key, made in edits.items():
                yield from self._row(self.tables[name], key, made)

    def _row(self, table: Table, key: Row, made: Mapping[str, Edit]) -> Iterator[_Step]:
        base = next(iter(made.values())).old
        rows = {agent: edit.new for agent, edit in made.items()}
        now = base if self.first is None else rows.get(self.first, base)
        if len(set(map(exact, rows.values()))) == 1 and not (self.rules.repeating and base is not None):
            merged = next(iter(rows.values()))
        elif base is None and self.rules.of((table.name,)) == "append" and _counted(table, key):
            yield from self._renumbered(table, key, now, made)
            return
        elif base is None or None in rows.values():
            gone = [agent for agent, row in rows.items() if row is None]
            if len(gone) == len(rows):
                merged = None
            else:
                reason = f"deleted by {', '.join(gone)} and changed by others" if gone else "added differently"
                merged = self._settled(table, key, base, rows, reason)
        else:
            kept = {agent: row for agent, row in rows.items() if row is not None}
            merged = tuple(self._cell(table, key, n, base, kept) for n in range(len(table.columns)))
        if exact(merged) != exact(now):
            yield _Step(table, key, now, merged, rows)

    def _cell(self, table: Table, key: Row, column: int, base: Row, rows: Mapping[str, Row]) -> Any:
        start = base[column]
        made = {agent: row[column] for agent, row in rows.items() if exact(row[column]) != exact(start)}
        return self._leaf((table.name, *_texts(key), table.columns[column]), start, made) if made else start

    def _leaf(self, path: tuple[str, ...], start: Any, made: Mapping[str, Any]) -> Any:
        strategy = self.rules.of(path)
        alike = len(set(map(exact, made.values()))) == 1
        if len(made) > 1 and strategy != "json" and not (alike and not self.rules.repeating):
            try:
                return LEAVES[strategy](start, made)
            except KeyError:
                return self._settle(path, start, made, f"{strategy!r} is no strategy for a cell")
            except Clash as clash:
                return self._settle(path, start, made, str(clash))
        return next(iter(made.values())) if alike else self._settle(path, start, made, "changed to different values")

    def _renumbered(self, table: Table, key: Row, now: Row | None, made: Mapping[str, Edit]) -> Iterator[_Step]:
        """Rows that agents added under one key: the first keeps it, the others follow after every key in use."""
        number = table.key[0]
        rows = dict.fromkeys(edit.new for edit in made.values() if edit.new is not None)
        for at, row in enumerate(rows):
            wanted = {agent: edit.new for agent, edit in made.items() if exact(edit.new) == exact(row)}
            if not at:
                if exact(row) != exact(now):
                    yield _Step(table, key, now, row, wanted)
                continue
            if table.name not in self.largest:
                self.largest[table.name] = self._largest(table)
            self.largest[table.name] = fresh = self.largest[table.name] + 1
            yield _Step(table, (fresh,), None, (*row[:number], fresh, *row[number + 1 :]), wanted)

    def _largest(self, table: Table) -> int:
        """The largest key of a table in any version, or that was ever given in one."""
        found = max((side.sequences.get(table.name, 0) for side in self.found.values()), default=0)
        for data in (self.base, *self.sides.values()):
            with opened(data) as database:
                if ("table", table.name) in schema(database, "main"):
                    column = quoted(table.columns[table.key[0]])
                    top = next(database.execute(f"SELECT max({column}) FROM {quoted(table.name)}"))
                    found = max(found, top[0] or 0)
        return found

    def _write(self, database: apsw.Connection, todo: list[_Step]) -> None:
        """Make the changes, in whatever order they go. What a constraint forbids is a conflict, and stays as it was."""
        left = todo
        while left:
            again = [step for step in left if _refused(database, step)]
            if len(again) == len(left):
                break
            left = again
        if not left or self._all_at_once(database, left):
            return
        for step in left:
            why = _refused(database, step)
            if why is None:  # what stood in its way is gone by now
                continue
            reason = f"a constraint forbids it beside what others changed ({why})"
            known = len(self.conflicts)
            after = self._settled(step.table, step.key, step.before, step.wanted, reason)
            if len(self.conflicts) == known:
                answer = _Step(step.table, step.key, step.before, after, step.wanted)
                why = None if exact(after) == exact(step.before) else _refused(database, answer)
                if why is not None:
                    raise ConfigError(
                        f"the row that the resolver returned for {pointer((step.table.name, *_texts(step.key)))} of "
                        f"{self.options.resource or 'the resource'} is forbidden as well: {why}",
                        resource=self.options.resource,
                    )

    @staticmethod
    def _all_at_once(database: apsw.Connection, steps: list[_Step]) -> bool:
        """Rows that exchange unique values: all out, then all in."""
        done = False
        database.execute("SAVEPOINT exchange")
        try:
            for step in steps:
                if step.before is not None:
                    _refused(database, _Step(step.table, step.key, step.before, None, step.wanted))
            done = not any(
                _refused(database, _Step(step.table, step.key, None, step.after, step.wanted))
                for step in steps
                if step.after is not None
            )
        finally:
            if not done:
                database.execute("ROLLBACK TO exchange")
            database.execute("RELEASE exchange")
        return done

    def _orphans(self, database: apsw.Connection, broken: list[tuple[Any, ...]]) -> str:
        """What to say about foreign keys that all changes together break: (table, rowid, parent, number) of each."""
        said = []
        for name, rowid, parent, _ in broken[:5]:
            table, path = self.tables[name], (name,)
            writers = [agent for agent, side in self.found.items() if name in side.touched()]
            if rowid is not None and table.key and table.rowid is not None:
                where = f"SELECT {listed(table)} FROM {quoted(name)} WHERE {table.rowid} = ?"
                row = next(database.execute(where, (rowid,)))
                key = tuple(row[number] for number in table.key)
                path = (name, *_texts(key))
                writers = [agent for agent in writers if key in self.found[agent].edits.get(name, {})] or writers
            others = [agent for agent, side in self.found.items() if parent in side.touched()]
            said.append(
                f"{pointer(path)} (changed by {', '.join(writers) or 'nobody'}) refers to a row that is not in "
                f"{parent} (changed by {', '.join(others) or 'nobody'})"
            )
        more = f", and {len(broken) - 5} more" if len(broken) > 5 else ""
        return f"together the changes break a foreign key: {'; '.join(said)}{more}"

    # --- conflicts

    def _settle(self, path: tuple[str, ...], base: Any, sides: Mapping[str, Any], reason: str) -> Any:
        return settle(
            Conflict(self.options.resource, pointer(path), base, dict(sides), reason), self.options, self.conflicts
        )

    def _settled(
        self, table: Table, key: Row, base: Row | None, rows: Mapping[str, Row | None], reason: str
    ) -> Row | None:
        """The row to be, by whoever settles a conflict about a whole row."""

        def shown(row: Row | None) -> Any:
            return MISSING if row is None else _named(table, row)

        settled = self._settle(
            (table.name, *_texts(key)), shown(base), {agent: shown(row) for agent, row in rows.items()}, reason
        )
        return None if settled is MISSING else self._as_row(table, settled)

    def _as_row(self, table: Table, settled: Any) -> Row:
        if isinstance(settled, Mapping):
            row = tuple(settled.get(name) for name in table.columns)
            if all(type(cell) in _CELLS for cell in row):
                return row
        raise ConfigError(
            f"the resolver of {self.options.resource or 'the resource'} returned {settled!r:.80} for a row of "
            f"{table.name}; it has to return a dict of cells by column, or MISSING",
            resource=self.options.resource,
        )


def _refused(database: apsw.Connection, step: _Step) -> str | None:
    """Do it; or what forbids it. (OR ABORT: the table's own rule may be to drop rows that are in the way.)"""
    table, before, after = step.table, step.before, step.after
    name = quoted(table.name)
    where = " AND ".join(f"{quoted(table.columns[n])} IS ?" for n in table.key)
    try:
        if after is None:
            database.execute(f"DELETE FROM {name} WHERE {where}", step.key)
        elif before is None:
            marks = ", ".join("?" * len(after))
            database.execute(f"INSERT OR ABORT INTO {name} ({listed(table)}) VALUES ({marks})", after)
        else:
            columns = [n for n in range(len(after)) if exact(after[n]) != exact(before[n])]
            if columns:
                cells = ", ".join(f"{quoted(table.columns[n])} = ?" for n in columns)
                values = [after[n] for n in columns]
                database.execute(f"UPDATE OR ABORT {name} SET {cells} WHERE {where}", [*values, *step.key])
    except apsw.ConstraintError as error:
        return str(error)
    return None


def _named(table: Table, row: Row) -> dict[str, Any]:
    return dict(zip(table.columns, row, strict=True))


def _texts(key: Row) -> tuple[str, ...]:
    return (",".join(cell.hex() if isinstance(cell, bytes) else str(cell) for cell in key),)


def _counted(table: Table, key: Row) -> bool:
    return len(table.key) == 1 and type(key[0]) is int
