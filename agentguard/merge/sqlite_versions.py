"""One version of an SQLite database against the base: which rows of which tables it changed.

Versions are read from their bytes, in memory, with triggers off. Values are compared exactly: 1 and 1.0 are two values,
and so are texts that only a collation takes for one.
"""

# ruff: noqa: S608 (names of tables and columns are quoted, values are bound)

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw

_MAGIC = b"SQLite format 3\0"
VERSIONS = slice(18, 20)  # of the format: 2 for a write-ahead log, which a database in memory cannot have
SETTINGS = ("user_version", "application_id")
_EXTERNAL = re.compile(r"""\bcontent\s*=\s*['"]?[^'",)\s]""", re.IGNORECASE)

Row = tuple[Any, ...]
Schema = dict[tuple[str, str], str]
"""The text of each definition by its kind (table, index, view, trigger) and name."""


class Unreadable(Exception):
    """What `who` has is no database, or a broken one."""

    def __init__(self, who: str, reason: str) -> None:
        super().__init__(f"what {who} has {reason}")
        self.who = who


@dataclass(frozen=True)
class Table:
    """`columns` without those that are computed; `key`: those of the primary key, in its order; `rowid`: its name for
    the number of a row, where it has one that is no column; `loose`: which rows cannot be told apart by a key."""

    name: str
    columns: tuple[str, ...]
    key: tuple[int, ...]
    sql: str
    rowid: str | None
    loose: str
    typed: tuple[bool, ...]  # whether the column gives all numbers one type
    collated: bool  # whether keys are told apart by more than their bytes


@dataclass(frozen=True)
class Virtual:
    """A table of a module: what it holds is in the tables `shadows`. `derived`: it can be made anew from another."""

    name: str
    sql: str
    shadows: tuple[str, ...]
    derived: bool


@dataclass(frozen=True)
class Edit:
    """What one agent did to one row; None: no such row."""

    old: Row | None
    new: Row | None


@dataclass
class Side:
    """What a version changed: rows by table and key, rows without a key (all that it has now, rowid first), contents of
    virtual tables. Tables whose definition changed are in `schema` alone. `modules`: virtual tables and their own."""

    schema: Schema
    modules: frozenset[str] = frozenset()
    edits: dict[str, dict[Row, Edit]] = field(default_factory=dict)
    loose: dict[str, list[Row]] = field(default_factory=dict)
    virtual: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)

    def touched(self) -> set[str]:
        return {*self.edits, *self.loose, *self.virtual}

    def extent(self) -> int:
        return sum(map(len, self.edits.values())) + len(self.loose) + len(self.virtual) + len(self.settings)


def read(base: bytes, data: bytes, who: str) -> Side:
    """What turned the base into a version. Raises `Unreadable`."""
    check(data, who)
    try:
        with opened(data, base) as database:
            return _side(database)
    except apsw.Error as error:
        check_tables(base, "the base")  # if it is broken itself, nobody else is to blame
        raise Unreadable(who, f"cannot be read as a database: {error}") from error


def check(data: bytes, who: str) -> None:
    """Raise `Unreadable` for what is no database or only a part of one."""
    if data and not data.startswith(_MAGIC):
        raise Unreadable(who, "is not an SQLite database")
    if data[24:28] == data[92:96]:  # else the header's count of pages does not hold
        size = int.from_bytes(data[16:18], "big")
        whole = int.from_bytes(data[28:32], "big") * (65536 if size == 1 else size)
        if len(data) < whole:
            raise Unreadable(who, f"is a database that was cut off: {len(data)} of {whole} bytes")


def check_tables(data: bytes, who: str) -> None:
    """Raise `Unreadable` unless every page that rows are in can be read."""
    check(data, who)
    try:
        with opened(data) as database:
            for table in tables(database, "main").values():
                database.execute(f"SELECT count(*) FROM {quoted(table.name)} NOT INDEXED").fetchall()
    except apsw.Error as error:
        raise Unreadable(who, f"cannot be read as a database: {error}") from error


def _plain(data: bytes) -> bytes:
    return data if data[VERSIONS] == b"\1\1" else b"".join((data[:18], b"\1\1", data[20:]))


@contextlib.contextmanager
def opened(data: bytes, base: bytes | None = None) -> Iterator[apsw.Connection]:
    """A database in memory, with the base as `base` beside it."""
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


# --- what there is ---------------------------------------------------------------------------------------------------


def schema(database: apsw.Connection, where: str) -> Schema:
    found = database.execute(
        f"SELECT type, name, sql FROM {where}.sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return {(kind, name): sql for kind, name, sql in found}


def virtuals(database: apsw.Connection, where: str) -> dict[str, Virtual]:
    found = {
        name: sql
        for (kind, name), sql in schema(database, where).items()
        if kind == "table" and re.match(r"\s*CREATE\s+VIRTUAL\b", sql, re.IGNORECASE)
    }
    if not found:
        return {}
    names = [name for kind, name in schema(database, where) if kind == "table"]
    # Of a module that is not here nobody says which tables are its own: those that are named after the table.
    return {
        name: Virtual(name, sql, tuple(one for one in names if one.startswith(f"{name}_")), bool(_EXTERNAL.search(sql)))
        for name, sql in found.items()
    }


def modules(database: apsw.Connection, where: str) -> frozenset[str]:
    """The names of virtual tables and of those that hold their contents."""
    return frozenset(name for one in virtuals(database, where).values() for name in (one.name, *one.shadows))


def tables(database: apsw.Connection, where: str) -> dict[str, Table]:
    """The tables that hold rows of their own."""
    special = modules(database, where)
    found = {}
    for (kind, name), sql in schema(database, where).items():
        if kind == "table" and name not in special:
            found[name] = _table(database, where, name, sql)
    return found


def _table(database: apsw.Connection, where: str, name: str, sql: str) -> Table:
    info = list(database.execute("SELECT name, pk, type FROM pragma_table_info(?, ?)", (name, where)))
    key = tuple(number for _, number in sorted((pk, number) for number, (_, pk, _) in enumerate(info) if pk))
    (plain,) = next(
        database.execute("SELECT NOT wr FROM pragma_table_list WHERE schema = ? AND name = ?", (where, name))
    )
    columns = tuple(column for column, *_ in info)
    taken = {column.lower() for column in columns}
    rowid = next((one for one in ("rowid", "_rowid_", "oid") if plain and one not in taken), None)
    return Table(
        name,
        columns,
        key,
        sql,
        rowid,
        " OR ".join(f"{quoted(columns[number])} IS NULL" for number in key) if key else "1",
        tuple(kind.upper() not in ("", "ANY") and "BLOB" not in kind.upper() for _, _, kind in info),
        not (len(key) == 1 and plain and info[key[0]][2].upper() == "INTEGER"),
    )


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def listed(table: Table, alias: str = "") -> str:
    return ", ".join(alias + quoted(column) for column in table.columns)


def exact(value: Any) -> Any:
    """For comparisons: 1 and 1.0 are two values."""
    if isinstance(value, tuple):
        return tuple(map(exact, value))
    return type(value), value


# --- what changed ----------------------------------------------------------------------------------------------------


def _side(database: apsw.Connection) -> Side:
    old, new = tables(database, "base"), tables(database, "main")
    side = Side(schema(database, "main"), modules(database, "main"))
    for name, table in new.items():
        if name in old and old[name].sql == table.sql:
            mine, before = (loose(database, where, table) for where in ("main", "base"))
            if not _alike(mine, before):
                side.loose[name] = mine
            edits = _edits(database, table, (len(mine), len(before))) if table.key else {}
            if edits:
                side.edits[name] = edits
    kept = virtuals(database, "base")
    for name, virtual in virtuals(database, "main").items():
        if name in kept and kept[name] == virtual:
            contents = shadows(database, "main", virtual)
            if sealed(contents) != sealed(shadows(database, "base", virtual)):
                side.virtual[name] = contents
    settings, started = (_settings(database, where) for where in ("main", "base"))
    side.settings = {name: value for name, value in settings.items() if value != started[name]}
    side.sequences = sequences(database, "main")
    return side


def _edits(database: apsw.Connection, table: Table, keyless: tuple[int, int]) -> dict[Row, Edit]:
    """By key, what was done to rows that have one; `keyless`: how many have none, now and in the base."""
    name, width = quoted(table.name), len(table.columns)
    same = " AND ".join(
        f"m.{one} = b.{one}" + (f" AND m.{one} COLLATE BINARY = b.{one}" if table.collated else "")
        for one in (quoted(table.columns[number]) for number in table.key)
    )
    differs = [
        f"m.{one} COLLATE BINARY IS NOT b.{one}" + ("" if typed else f" OR typeof(m.{one}) <> typeof(b.{one})")
        for number, (one, typed) in enumerate(zip(map(quoted, table.columns), table.typed, strict=True))
        if number not in table.key or not typed
    ]
    edits: dict[Row, Edit] = {}

    def key_of(row: Sequence[Any]) -> Row:
        return tuple(row[number] for number in table.key)

    present = " AND ".join(f"m.{quoted(table.columns[number])} IS NOT NULL" for number in table.key)
    absent = f"b.{quoted(table.columns[table.key[0]])} IS NULL"
    added = 0
    both = database.execute(
        f"SELECT {absent}, {listed(table, 'b.')}, {listed(table, 'm.')} FROM main.{name} m LEFT JOIN base.{name} b "
        f"ON {same} WHERE {present} AND ({' OR '.join([absent, *differs])})"
    )
    for new, *row in both:
        added += new
        edits[key_of(row[width:] if new else row)] = Edit(None if new else tuple(row[:width]), tuple(row[width:]))
    counts = (next(database.execute(f"SELECT count(*) FROM {where}.{name}"))[0] for where in ("main", "base"))
    if next(counts) - keyless[0] - added < next(counts) - keyless[1]:
        gone = database.execute(
            f"SELECT {listed(table, 'm.')} FROM base.{name} m WHERE {present} AND NOT EXISTS "
            f"(SELECT 1 FROM main.{name} b WHERE {same})"
        )
        edits = {**{key_of(row): Edit(row, None) for row in gone}, **edits}  # first, to make room
    return edits


def loose(database: apsw.Connection, where: str, table: Table) -> list[Row]:
    """The rows that no key tells apart, each behind its rowid."""
    number = table.rowid or "NULL"
    order = f" ORDER BY {table.rowid}" if table.rowid else ""
    return database.execute(
        f"SELECT {number}, {listed(table)} FROM {where}.{quoted(table.name)} WHERE {table.loose}{order}"
    ).fetchall()


def _alike(one: list[Row], two: list[Row]) -> bool:
    return len(one) == len(two) and all(exact(a[1:]) == exact(b[1:]) for a, b in zip(one, two, strict=True))


def shadows(database: apsw.Connection, where: str, virtual: Virtual) -> dict[str, list[Row]]:
    return {name: database.execute(f"SELECT * FROM {where}.{quoted(name)}").fetchall() for name in virtual.shadows}


def sealed(contents: Mapping[str, list[Row]]) -> Any:
    """For comparisons of what `shadows` gives."""
    return exact(tuple(map(tuple, contents.values())))


def _settings(database: apsw.Connection, where: str) -> dict[str, int]:
    return {name: next(database.execute(f"PRAGMA {where}.{name}"))[0] for name in SETTINGS}


def sequences(database: apsw.Connection, where: str) -> dict[str, int]:
    """What AUTOINCREMENT has counted to, by table."""
    if not database.execute(f"SELECT 1 FROM {where}.sqlite_schema WHERE name = 'sqlite_sequence'").fetchall():
        return {}
    found = database.execute(f"SELECT name, seq FROM {where}.sqlite_sequence").fetchall()
    return {name: seq for name, seq in found if isinstance(name, str) and isinstance(seq, int)}
