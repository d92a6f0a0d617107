"""One version of a CSV file: its records as bytes, and the cells of a record.

Records and cells are told apart as Python's csv module does it (a quote counts at the start of a cell only), but in
bytes, so that what nobody changed is neither decoded nor written anew, and a cell may be of any length.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (b",", b";", b"\t", b"|")
_QUOTED = re.compile(rb'"([^"]*(?:""[^"]*)*)"(.*)', re.DOTALL)


class Problem(Exception):
    """What is wrong with the version that `who` has, and the line, which counts from 1."""

    def __init__(self, reason: str, who: str | None = None, line: int | None = None) -> None:
        super().__init__(reason if who is None else f"in what {who} has, {reason}")
        self.who, self.line = who, line


class Unreadable(Problem):
    """The bytes are no table."""


class NoKey(Problem):
    """A table, whose rows cannot be told apart by a column."""


def decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")  # so that bytes of any other encoding come through


class Dialect:
    """How the cells of a record are separated."""

    def __init__(self, delimiter: bytes) -> None:
        self.delimiter = delimiter
        names = {b"q": rb'[^"]*(?:""[^"]*)*"(?!")', b"d": re.escape(delimiter)}  # q: from within quotes to their end
        names[b"f"] = rb'(?:"%(q)b[^%(d)b]*|[^"%(d)b][^%(d)b]*|)' % names
        self._whole = re.compile(rb"%(f)b(?:%(d)b%(f)b)*" % names).fullmatch
        self._rest = re.compile(rb"%(q)b[^%(d)b]*(?:%(d)b%(f)b)*" % names).fullmatch
        self._cell = re.compile(rb"(%(f)b)(%(d)b|\Z)" % names).match
        self._needs = re.compile(rb'["\r\n%(d)b]' % names).search

    @classmethod
    def of(cls, header: bytes) -> Dialect:
        plain = b"".join(header.split(b'"')[::2])
        return cls(max(_DELIMITERS, key=plain.count))

    def records(self, lines: list[bytes], newline: bytes, known: Container[bytes]) -> tuple[list[bytes], int | None]:
        """The records that lines make up, and the number of the line whose quote is never closed, if there is one.
        `known` are records that need no look."""
        if all(b'"' not in line or line in known or self._whole(line) for line in lines):
            return lines, None
        found: list[bytes] = []
        open_: list[bytes] = []
        begun = None
        for number, line in enumerate(lines):
            if open_:
                open_.append(line)
                if b'"' in line and self._rest(line):
                    found.append(newline.join(open_))
                    open_, begun = [], None
            elif b'"' not in line or line in known or self._whole(line):
                found.append(line)
            else:
                open_, begun = [line], number
        return found, begun

    def raw(self, record: bytes) -> list[bytes]:
        """The cells as they are written."""
        if b'"' not in record:
            return record.split(self.delimiter)
        found, at = [], 0
        while True:
            cell = self._cell(record, at)
            assert cell is not None
            found.append(cell[1])
            if not cell[2]:
                return found
            at = cell.end()

    @staticmethod
    def value(raw: bytes) -> bytes:
        """What a cell says."""
        quoted = _QUOTED.fullmatch(raw) if raw.startswith(b'"') else None
        return raw if quoted is None else quoted[1].replace(b'""', b'"') + quoted[2]

    def cells(self, record: bytes) -> list[str]:
        return [decoded(self.value(raw)) for raw in self.raw(record)] if record else []

    def written(self, cells: Iterable[tuple[str, bytes | None]]) -> bytes:
        """A record of cells, each beside what it is to look like: as it is where it says the same, else quoted where
        that one is."""
        out = []
        for text, like in cells:
            value = text.encode("utf-8", "surrogateescape")
            if like is not None and self.value(like) == value:
                out.append(like)
            elif (like is not None and like.startswith(b'"')) or self._needs(value):
                out.append(b'"' + value.replace(b'"', b'""') + b'"')
            else:
                out.append(value)
        return self.delimiter.join(out) or b'""'  # an empty line would be no row


@dataclass(eq=False)
class Sheet:
    """One version of the file. `records` are its rows as bytes, without their line ends; `blank` counts the empty lines
    that follow them, `ends` has the line ends where not all are alike."""

    who: str
    dialect: Dialect
    mark: bytes
    newline: bytes
    closed: bool
    raw_header: bytes
    header: list[str]
    records: list[bytes]
    blank: int
    ends: dict[bytes, bytes]
    quotes: bool

    @classmethod
    def of(cls, data: bytes, who: str, dialect: Dialect | None = None, known: Container[bytes] = ()) -> Sheet:
        """Read a version. Raises `Unreadable`."""
        mark = _BOM if data.startswith(_BOM) else b""
        body = data[len(mark) :]
        at = body.find(b"\0")
        if at >= 0:
            line = body.count(b"\n", 0, at) + 1
            raise Unreadable(f"line {line} has a NUL byte: that is no CSV in UTF-8", who, line)
        feeds, both = body.count(b"\n"), body.count(b"\r\n")
        newline = b"\n" if 0 < both < feeds else b"\r\n" if both else b"\r" if b"\r" in body and not feeds else b"\n"
        lines = body.split(newline)
        closed = not lines[-1]
        if closed:
            lines.pop()
        dialect = dialect or Dialect.of(lines[0] if lines else b"")
        quotes = b'"' in body
        records, begun = dialect.records(lines, newline, known) if quotes else (lines, None)
        if begun is not None:
            raise Unreadable(f"line {begun + 1} opens a quote that is never closed", who, begun + 1)
        ends: dict[bytes, bytes] = {}
        if 0 < both < feeds:
            newline = b"\r\n" if records[0].endswith(b"\r") else b"\n"
            ended = records if closed else records[:-1]
            ends = {one.removesuffix(b"\r"): b"\r\n" if one.endswith(b"\r") else b"\n" for one in ended}
            if len(set(ends.values())) == 1:  # the other kind stands within quotes
                ends = {}
            records = [one.removesuffix(b"\r") for one in records]
        blank = 0
        while records and not records[-1]:
            records.pop()
            blank += 1
        raw = records.pop(0) if records else b""
        if records and not raw:
            raise Unreadable("line 1 is empty, where the names of the columns should be", who, 1)
        return cls(who, dialect, mark, newline, closed, raw, dialect.cells(raw), records, blank, ends, quotes)

    def line(self, number: int) -> int:
        """The line of the file that a record begins in."""
        feed = self.newline[-1:]
        return 1 + sum(one.count(feed) + 1 for one in [self.raw_header, *self.records[:number]])

    def keys(self, column: int, numbers: Sequence[int] | None = None) -> list[bytes]:
        """The key cells of some records, or of all. Raises `NoKey`."""
        records = self.records if numbers is None else [self.records[number] for number in numbers]
        delimiter = self.dialect.delimiter
        if b"" in records:
            raise self._bad(numbers, records.index(b""), "is empty")
        look: Iterable[int] = ()
        if column == 0:
            found = [record.partition(delimiter)[0] for record in records]
            if self.quotes:
                look = [number for number, cell in enumerate(found) if cell[:1] == b'"']
        else:
            found = [b"".join(record.split(delimiter, column + 1)[column : column + 1]) for record in records]
            # An empty cell may be one that is not there.
            look = [number for number, cell in enumerate(found) if not cell or b'"' in records[number]]
        for number in look:
            raw = self.dialect.raw(records[number])
            if column >= len(raw):
                raise self._bad(numbers, number, f"({_shown(records[number])}) has no {self.header[column]!r}")
            found[number] = self.dialect.value(raw[column])
        return found

    def _bad(self, numbers: Sequence[int] | None, at: int, reason: str) -> NoKey:
        line = self.line(at if numbers is None else numbers[at])
        return NoKey(f"line {line} {reason}", self.who, line)

    def row(self, record: bytes) -> dict[str, str]:
        """The cells by column. Raises `NoKey` for a row of another length."""
        cells = self.dialect.cells(record)
        if len(cells) != len(self.header):
            line = self.line(self.records.index(record))
            reason = f"line {line} ({_shown(record)}) has {len(cells)} cells, and the header has {len(self.header)}"
            raise NoKey(reason, self.who, line)
        return dict(zip(self.header, cells, strict=True))

    def file(self, raw_header: bytes, records: Sequence[bytes], *, closed: bool) -> bytes:
        """A file in the manner of this one."""
        lines = [raw_header, *records]
        if self.ends:
            data = b"".join(one + self.ends.get(one, self.newline) for one in lines)
            data = data if closed else data.removesuffix(self.ends.get(lines[-1], self.newline))
        else:
            data = self.newline.join(lines) + (self.newline if closed else b"")
        return self.mark + data + (self.newline * self.blank if closed else b"")


def _shown(record: bytes) -> str:
    return repr(record[:60].decode("utf-8", "replace"))
