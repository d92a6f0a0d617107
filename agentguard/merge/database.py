"""Merges of SQLite databases by rows: `sqlite` finds a row by its primary key and merges it cell by cell.

What each agent changed is worked out from its finished file and the base (SQLite's session extension), so tools may use
any client. The result is the base with every change applied to it, and keeps its pages, indexes and settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import apsw

from agentguard.exceptions import ConfigError, MergeConflict
from agentguard.merge.leaves import LEAVES
from agentguard.merge.rules import Rules, pointer
from agentguard.merge.text import whole
from agentguard.merge.values import MISSING, Clash, Conflict, Merged, Options, settle

_MAGIC = b"SQLite format 3\0"
_VERSIONS = slice(18, 20)  # of the format: 2 for a write-ahead log, which a database in memory cannot have
_CELLS = (int, float, str, bytes, type(None))

Row = tuple[Any, ...]


@dataclass(frozen=True)
class _Table:
    name: str
    columns: tuple[str, ...]
    key: tuple[int, ...]  # the columns of the primary key, in its order
    sql: str


@dataclass
class _Edit:
    """What one agent did to one row: `old` and `new` are whole or partly `apsw.no_change`; None: no such row."""

    old: Row | None
    new: Row | None


@dataclass
class _Side:
    schema: dict[tuple[str, str], str]
    edits: dict[str, dict[Row, _Edit]] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)  # tables without a primary key that it changed


class _Unreadable(Exception):
    pass


def sqlite(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """Rows by primary key, cell by cell. One agent may change the schema besides, unless others changed rows of those
    tables. `paths`: "/table/*/column" for cells, and "/table" = "append" gives rows that several agents added under one
    integer key new keys instead of a conflict.

    A conflict: one cell changed differently, a row deleted and changed, one key added differently, a row that a
    constraint forbids beside another one's, schemas changed differently, a table without a primary key changed by
    several agents. Raises MergeConflict for a file that is no database, naming the agent.
    """
    origin = base or b""
    if len(sides) == 1:
        ((agent, data),) = sides.items()
        with contextlib.suppress(_Unreadable):
            return Merged(data, (), {agent: max(1, _extent(_side(origin, data)))})
        return Merged(data, (), {agent: 1})
    try:
        _check(origin, "the base")
        found = {}
        for agent, data in sides.items():
            found[agent] = _read(origin, data, agent)
        return _Merge(origin, sides, found, options).run(base)
    except _Unreadable as problem:
        raise MergeConflict(
            f"{options.resource or 'the resource'} was not merged: {problem}. Nothing was published; write that "
            "version again, or drop it",
            conflicts=(Conflict(options.resource, "", MISSING if base is None else base, dict(sides), str(problem)),),
            resources=(options.resource,),
        ) from None


def _check(data: bytes, who: str) -> None:
    if data and not data.startswith(_MAGIC):
        raise _Unreadable(f"what {who} has is not an SQLite database")


def _read(base: bytes, data: bytes, agent: str) -> _Side:
    _check(data, agent)
    try:
        return _side(base, data)
    except apsw.Error as error:
        raise _Unreadable(f"what {agent} has cannot be read as a database: {error}") from error


def _plain(data: bytes) -> bytes:
    changed = bytearray(data)
    if data:
        changed[_VERSIONS] = b"\1\1"
    return bytes(changed)


@contextlib.contextmanager
def _opened(data: bytes, base: bytes | None = None) -> Iterator[apsw.Connection]:
    database = apsw.Connection(":memory:")
    try:
        database.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        database.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
        if data:
            database.deserialize("main", _plain(data))
        if base is not None:
            database.execute("ATTACH ':memory:' AS base")
            if base:
                database.deserialize("base", _plain(base))
        yield database
    finally:
        database.close(True)


def _schema(database: apsw.Connection, where: str) -> dict[tuple[str, str], str]:
    found = database.execute(
        f"SELECT type, name, sql FROM {where}.sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return {(kind, name): sql for kind, name, sql in found}


def _tables(database: apsw.Connection, where: str) -> dict[str, _Table]:
    shadows = {
        name
        for _, name, kind, *_ in database.execute("SELECT * FROM pragma_table_list WHERE schema = ?", (where,))
        if kind in ("shadow", "virtual")
    }
    tables = {}
    for (kind, name), sql in _schema(database, where).items():
        if kind == "table" and name not in shadows:
            info = list(database.execute("SELECT name, pk FROM pragma_table_info(?, ?)", (name, where)))
            key = sorted((pk, number) for number, (_, pk) in enumerate(info) if pk)
            tables[name] = _Table(name, tuple(column for column, _ in info), tuple(n for _, n in key), sql)
    return tables


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _side(base: bytes, data: bytes) -> _Side:
    """What turned the base into this version, table by table; of tables whose definition changed, nothing."""
    with _opened(data, base) as database:
        old, new = _tables(database, "base"), _tables(database, "main")
        side = _Side(_schema(database, "main"))
        shared = [table for name, table in new.items() if name in old and old[name].sql == table.sql]
        session = apsw.Session(database, "main")
        try:
            for table in shared:
                if table.key:
                    session.attach(table.name)
                    session.diff("base", table.name)
                elif _differs(database, table.name):
                    side.replaced.add(table.name)
            for change in apsw.Changeset.iter(session.changeset()):
                row = change.old if change.old is not None else change.new
                assert row is not None
                if change.op == "UPDATE":
                    assert change.old is not None
                    row = change.old
                key = tuple(row[number] for number in new[change.name].key)
                side.edits.setdefault(change.name, {})[key] = _Edit(change.old, change.new)
        finally:
            session.close()
        return side


def _differs(database: apsw.Connection, name: str) -> bool:
    table = _quoted(name)
    counts = [next(database.execute(f"SELECT count(*) FROM {where}.{table}"))[0] for where in ("main", "base")]
    if counts[0] != counts[1]:
        return True
    rows = f"SELECT *, count(*) FROM {{}}.{table} GROUP BY {_columns(database, name)}"
    both = (rows.format(where) for where in ("main", "base"))
    return next(database.execute(" EXCEPT ".join(both) + " LIMIT 1"), None) is not None


def _columns(database: apsw.Connection, name: str) -> str:
    return ", ".join(
        _quoted(column) for (column,) in database.execute("SELECT name FROM pragma_table_info(?)", (name,))
    )


def _extent(side: _Side) -> int:
    return sum(map(len, side.edits.values())) + len(side.replaced)


class _Merge:
    def __init__(self, base: bytes, sides: Mapping[str, bytes], found: Mapping[str, _Side], options: Options) -> None:
        self.base, self.sides, self.found, self.options = base, sides, found, options
        self.rules = Rules(options.paths)
        self.conflicts: list[Conflict] = []

    def run(self, given: bytes | None) -> Merged:
        changes = {agent: max(1, _extent(side)) for agent, side in self.found.items()}
        with _opened(self.base) as old:
            schema, tables = _schema(old, "main"), _tables(old, "main")
        changed = [agent for agent, side in self.found.items() if side.schema != schema]
        start = self.base
        if changed:
            first = self.found[changed[0]]
            if any(self.found[agent].schema != first.schema for agent in changed):
                reason = f"its schema was changed differently by {', '.join(changed)}"
                return whole(given, self.sides, self.options, reason)
            if not schema:  # all of them made the database
                return self._made(given, changed, changes)
            clash = self._altered(schema, first.schema, tables, changed)
            if clash is not None:
                return whole(given, self.sides, self.options, clash)
            start = self.sides[changed[0]]
        with _opened(start) as database:
            kept = self._violations(database)
            self._apply(database, tables, changed)
            if self._violations(database) > kept and not self.conflicts:
                reason = "together the changes break a foreign key, which those of no single agent do"
                return whole(given, self.sides, self.options, reason)
            data = bytearray(database.serialize("main"))
        if start:
            data[_VERSIONS] = start[_VERSIONS]
        if self.conflicts and changed:
            return Merged(given, tuple(self.conflicts), changes)
        return Merged(bytes(data), tuple(self.conflicts), changes)

    def _made(self, given: bytes | None, changed: list[str], changes: dict[str, int]) -> Merged:
        """There was no database, or an empty one: the base is what all of them made, without a row."""
        with _opened(self.sides[changed[0]]) as database:
            for table in _tables(database, "main").values():
                database.execute(f"DELETE FROM {_quoted(table.name)}")
            empty = bytes(database.serialize("main"))
        found = {agent: _read(empty, data, agent) for agent, data in self.sides.items()}
        merged = _Merge(empty, self.sides, found, self.options).run(empty)
        return Merged(given if merged.conflicts else merged.value, merged.conflicts, {**changes, **merged.changes})

    def _altered(
        self,
        old: Mapping[tuple[str, str], str],
        new: Mapping[tuple[str, str], str],
        tables: Mapping[str, _Table],
        changed: list[str],
    ) -> str | None:
        """Why what others changed does not fit the new schema; None if it does."""
        altered = {name for (kind, name), sql in old.items() if kind == "table" and new.get((kind, name)) != sql}
        for agent, side in self.found.items():
            if agent not in changed:
                touched = sorted(altered & {*side.edits, *side.replaced})
                if touched:
                    return f"{', '.join(changed)} changed the schema of {', '.join(touched)}, and {agent} rows in it"
        return None

    def _apply(self, database: apsw.Connection, tables: Mapping[str, _Table], changed: list[str]) -> None:
        """Every change into a database that has those of the first agent of `changed` already, if there is one."""
        for name in sorted({name for side in self.found.values() for name in side.replaced}):
            writers = [agent for agent, side in self.found.items() if name in side.replaced]
            if len({self.sides[agent] for agent in writers}) > 1:
                rows = dict.fromkeys(writers, f"a version of the table {name}")
                reason = "a table without a primary key, whose rows cannot be told apart, was changed by several agents"
                self._settle((name,), "the table of the base", rows, reason)
            elif writers[0] not in changed[:1]:
                self._take_over(database, name, self.sides[writers[0]])
        todo: list[tuple[_Table, Row, Row | None, Row | None]] = []
        for name in sorted({name for side in self.found.values() for name in side.edits}):
            table = tables[name]
            edits: dict[Row, dict[str, _Edit]] = {}
            for agent, side in self.found.items():
                for key, edit in side.edits.get(name, {}).items():
                    edits.setdefault(key, {})[agent] = edit
            for key, made in edits.items():
                todo += self._row(database, table, key, made, changed)
        self._write(database, todo)

    def _take_over(self, database: apsw.Connection, name: str, data: bytes) -> None:
        table = _quoted(name)
        with _opened(data) as other:
            rows = list(other.execute(f"SELECT * FROM {table}"))
        database.execute(f"DELETE FROM {table}")
        if rows:
            database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)

    def _row(
        self, database: apsw.Connection, table: _Table, key: Row, made: Mapping[str, _Edit], changed: list[str]
    ) -> Iterator[tuple[_Table, Row, Row | None, Row | None]]:
        """What is to be done to one row: (table, key, row in the database now, row to be)."""
        now = self._find(database, table, key)
        if len(made) == 1:
            ((agent, edit),) = made.items()
            if agent not in changed[:1]:
                before = None if edit.old is None else now
                yield table, key, before, _overlaid(before, edit.new) if edit.new is not None else None
            return
        rows: dict[str, Any] = {}
        base = self._base_row(table, key, made, now)
        for agent, edit in made.items():
            rows[agent] = _overlaid(base, edit.new) if edit.new is not None else None
        if len(set(map(_exact, rows.values()))) == 1 and not (self.rules.repeating and base is not None):
            merged: Any = next(iter(rows.values()))
        elif base is None and self.rules.of((table.name,)) == "append" and _counted(table, key):
            yield from self._renumbered(database, table, key, now, rows)
            return
        elif base is None or None in rows.values():
            gone = [agent for agent, row in rows.items() if row is None]
            reason = f"deleted by {', '.join(gone)} and changed by others" if gone else "added differently"
            named = {agent: MISSING if row is None else _named(table, row) for agent, row in rows.items()}
            settled = self._settle(
                (table.name, *_texts(key)), MISSING if base is None else _named(table, base), named, reason
            )
            merged = None if settled is MISSING else self._as_row(table, settled)
        else:
            merged = tuple(self._cell(table, key, n, base, rows) for n in range(len(table.columns)))
        if _exact(merged) != _exact(now):
            yield table, key, now, merged

    def _base_row(self, table: _Table, key: Row, made: Mapping[str, _Edit], now: Row | None) -> Row | None:
        if any(edit.old is None for edit in made.values()):
            return None
        for edit in made.values():
            if edit.new is None and edit.old is not None:
                return edit.old  # a deletion tells the whole row
        with _opened(self.base) as database:
            return self._find(database, table, key)

    @staticmethod
    def _find(database: apsw.Connection, table: _Table, key: Row) -> Row | None:
        return next(
            database.execute(f"SELECT {_listed(table)} FROM {_quoted(table.name)} WHERE {_where(table)}", key), None
        )

    def _cell(self, table: _Table, key: Row, column: int, base: Row, rows: Mapping[str, Row]) -> Any:
        start, name = base[column], table.columns[column]
        made = {agent: row[column] for agent, row in rows.items() if _exact(row[column]) != _exact(start)}
        if not made:
            return start
        path = (table.name, *_texts(key), name)
        strategy = self.rules.of(path)
        alike = len(set(map(_exact, made.values()))) == 1
        if strategy != "json" and not (alike and not self.rules.repeating):
            try:
                return LEAVES[strategy](start, made)
            except KeyError:
                return self._settle(path, start, made, f"{strategy!r} is no strategy for a cell")
            except Clash as clash:
                return self._settle(path, start, made, str(clash))
        return next(iter(made.values())) if alike else self._settle(path, start, made, "changed to different values")

    def _renumbered(
        self, database: apsw.Connection, table: _Table, key: Row, now: Row | None, rows: Mapping[str, Row]
    ) -> Iterator[tuple[_Table, Row, Row | None, Row | None]]:
        """Rows that agents added under one key: the first keeps it, the others follow after every key in use."""
        number = table.key[0]
        kept = False
        for row in dict.fromkeys(rows.values()):
            if not kept:
                kept = True
                if _exact(row) != _exact(now):
                    yield table, key, now, row
                continue
            self._next = max(getattr(self, "_next", 0), self._largest(table)) + 1
            yield table, (self._next,), None, (*row[:number], self._next, *row[number + 1 :])

    def _largest(self, table: _Table) -> int:
        """The largest key of a table in any version."""
        found = 0
        for data in (self.base, *self.sides.values()):
            with _opened(data) as database:
                top = next(
                    database.execute(f"SELECT max({_quoted(table.columns[table.key[0]])}) FROM {_quoted(table.name)}")
                )
                found = max(found, top[0] or 0)
        return found

    def _write(self, database: apsw.Connection, todo: list[tuple[_Table, Row, Row | None, Row | None]]) -> None:
        """Make the changes; in whatever order they go. What a constraint forbids is a conflict, and stays as it was."""
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("BEGIN")
        left = list(todo)
        while left:
            again = [item for item in left if not _done(database, item)]
            if len(again) == len(left):
                break
            left = again
        if left and not self._all_at_once(database, left):
            for table, key, before, after in left:
                named = {"all of it": MISSING if after is None else _named(table, after)}
                self._settle(
                    (table.name, *_texts(key)), MISSING if before is None else _named(table, before), named,
                    "a constraint of the table forbids it beside what others changed",
                )  # fmt: skip
        database.execute("COMMIT")

    @staticmethod
    def _all_at_once(database: apsw.Connection, items: list[tuple[_Table, Row, Row | None, Row | None]]) -> bool:
        """Rows that exchange unique values: all out, then all in."""
        done = False
        database.execute("SAVEPOINT exchange")
        try:
            for table, key, before, _ in items:
                if before is not None:
                    database.execute(f"DELETE FROM {_quoted(table.name)} WHERE {_where(table)}", key)
            done = all(
                _done(database, (table, key, None, after)) for table, key, _, after in items if after is not None
            )
        finally:
            if not done:
                database.execute("ROLLBACK TO exchange")
            database.execute("RELEASE exchange")
        return done

    @staticmethod
    def _violations(database: apsw.Connection) -> int:
        return sum(1 for _ in database.execute("PRAGMA foreign_key_check"))

    def _settle(self, path: tuple[str, ...], base: Any, sides: Mapping[str, Any], reason: str) -> Any:
        return settle(
            Conflict(self.options.resource, pointer(path), base, dict(sides), reason), self.options, self.conflicts
        )

    def _as_row(self, table: _Table, settled: Any) -> Row:
        if isinstance(settled, Mapping):
            row = tuple(settled.get(name) for name in table.columns)
            if all(type(cell) in _CELLS for cell in row):
                return row
        raise ConfigError(
            f"the resolver of {self.options.resource or 'the resource'} returned {settled!r:.80} for a row of "
            f"{table.name}; it has to return a dict of cells by column, or MISSING",
            resource=self.options.resource,
        )


def _done(database: apsw.Connection, item: tuple[_Table, Row, Row | None, Row | None]) -> bool:
    table, key, before, after = item
    name = _quoted(table.name)
    try:
        if after is None:
            database.execute(f"DELETE FROM {name} WHERE {_where(table)}", key)
        elif before is None:
            database.execute(f"INSERT INTO {name} ({_listed(table)}) VALUES ({', '.join('?' * len(after))})", after)
        else:
            columns = [n for n in range(len(after)) if _exact(after[n]) != _exact(before[n])]
            if columns:
                cells = ", ".join(f"{_quoted(table.columns[n])} = ?" for n in columns)
                values = [after[n] for n in columns]
                database.execute(f"UPDATE {name} SET {cells} WHERE {_where(table)}", [*values, *key])
    except apsw.ConstraintError:
        return False
    return True


def _where(table: _Table) -> str:
    return " AND ".join(f"{_quoted(table.columns[n])} IS ?" for n in table.key)


def _listed(table: _Table) -> str:
    return ", ".join(map(_quoted, table.columns))


def _overlaid(row: Row | None, new: Row) -> Row:
    if row is None:
        return new
    return tuple(old if cell is apsw.no_change else cell for old, cell in zip(row, new, strict=True))


def _exact(value: Any) -> Any:
    """For comparisons: 1 and 1.0 are two values."""
    if isinstance(value, tuple):
        return tuple(map(_exact, value))
    return type(value), value


def _named(table: _Table, row: Row) -> dict[str, Any]:
    return dict(zip(table.columns, row, strict=True))


def _texts(key: Row) -> tuple[str, ...]:
    return (",".join(cell.hex() if isinstance(cell, bytes) else str(cell) for cell in key),)


def _counted(table: _Table, key: Row) -> bool:
    return len(table.key) == 1 and type(key[0]) is int
