"""JSON, strictly: no duplicate keys, no NaN, integers of any size, and the style of the file that was there.

orjson does the work. It keeps the last of duplicate keys and turns integers over 64 bits into floats without a word,
so both are looked for; a file with either goes through the standard library, which says where or keeps them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from agentguard.merge.documents import Unreadable

_DIGITS = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
_LONG = b"0" * 19
_READ_BY_PEOPLE = 1 << 20
_DEEP = "nested too deeply (more than 250 levels)"


class Json:
    name = "JSON"

    def parse(self, data: bytes) -> Any:
        try:
            value = orjson.loads(data)
            if _LONG not in data.translate(_DIGITS) and _strings(orjson.dumps(value)) == _strings(data):
                return value
        except (orjson.JSONDecodeError, TypeError):
            pass  # the careful way finds out why, and accepts what only orjson cannot do
        return _parsed_carefully(data)

    def write(self, value: Any, like: bytes, old: Any) -> bytes:
        try:
            return _Style.of(like).dump(value)
        except (ValueError, RecursionError) as error:
            raise Unreadable(_DEEP if isinstance(error, RecursionError) else str(error)) from None

    def loses(self, like: bytes, old: Any) -> bool:
        # Layouts that no style describes (short lists on one line) are worth a second merge only in files people read.
        return len(like) < _READ_BY_PEOPLE and self.write(old, like, old) != like


def _strings(data: bytes) -> int:
    """How many quotation marks delimit strings: a text has more than its value if a duplicate key was dropped."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return data.count(b'"')


def _parsed_carefully(data: bytes) -> Any:
    if data.startswith(b"\xef\xbb\xbf"):
        raise Unreadable("it begins with a byte order mark (BOM); save it as UTF-8 without one", 1, 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line, column = _place(data.decode("latin-1"), error.start)
        raise Unreadable(f"invalid UTF-8 (byte 0x{data[error.start]:02x})", line, column) from None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            seen: set[str] = set()
            _duplicate(text, next(key for key, _ in items if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
        return value

    def number(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            _refuse(text, literal, f"the number {literal} is out of range")
        return value

    def constant(literal: str) -> NoReturn:
        _refuse(text, literal, f"{literal} is not JSON")

    try:
        value = json.loads(
            text, object_pairs_hook=pairs, parse_float=number, parse_constant=constant, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        reason = "it is empty or cut off" if error.pos >= len(text.rstrip()) else error.msg
        raise Unreadable(reason, error.lineno, error.colno) from None
    except RecursionError:
        raise Unreadable(_DEEP) from None
    if _depth(value) > 250:
        raise Unreadable(_DEEP)
    return value


def _integer(literal: str) -> int:
    try:
        return int(literal)
    except ValueError:  # Python refuses more than 4,300 digits, which guards against a slow conversion
        raise Unreadable(f"an integer of {len(literal)} digits is too long") from None


def _duplicate(text: str, key: str) -> NoReturn:
    places = [found.start() for found in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)]
    line, column = _place(text, places[1]) if len(places) == 2 else (None, None)
    raise Unreadable(f"the key {key!r} stands twice in one object", line, column)


def _refuse(text: str, literal: str, reason: str) -> NoReturn:
    # Strings are blanked out so that the literal is found where it is a value.
    blank = re.sub(r'"(?:[^"\\]|\\.)*"', lambda found: "_" * len(found[0]), text)
    raise Unreadable(reason, *_place(text, blank.index(literal)))


def _place(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= 250:
        depth += 1
        level = [
            item
            for parent in level
            if type(parent) in (dict, list)
            for item in (parent.values() if type(parent) is dict else parent)
        ]
    return depth


@dataclass(frozen=True)
class _Style:
    indent: bytes | None
    """One level of indentation; None for everything on one line."""
    separators: tuple[str, str]
    ascii: bool
    newline: bytes
    end: bytes

    @classmethod
    def of(cls, data: bytes) -> _Style:
        body = data.strip()
        newline = b"\r\n" if b"\r\n" in data else b"\n"
        lead = re.match(rb"[\[{]\r?\n([ \t]*)", body)
        compact = re.search(rb'[,:]\s*(?=["\d\[{tfn-])', body) if not lead else None
        spaced = compact is None or compact[0] != compact[0].strip()
        return cls(
            indent=lead[1] if lead else None,
            separators=(", ", ": ") if spaced else (",", ":"),
            ascii=data.isascii() and b"\\u" in data,
            newline=newline,
            end=newline if data.endswith(b"\n") else b"",
        )

    def dump(self, value: Any) -> bytes:
        try:
            data = self._fast(value)
        except TypeError:  # an integer over 64 bits
            data = self._slow(value)
        return (data.replace(b"\n", self.newline) if self.newline != b"\n" else data) + self.end

    def _fast(self, value: Any) -> bytes:
        if self.indent is None:
            if self.separators != (",", ":") or self.ascii:
                return self._slow(value)
            return orjson.dumps(value)
        data = orjson.dumps(value, option=orjson.OPT_INDENT_2)
        if self.indent != b"  ":
            # A line of JSON begins inside a string never, so leading spaces are always indentation.
            unit = self.indent
            data = re.sub(rb"(?m)^ +", lambda found: unit * (len(found[0]) // 2), data)
        return re.sub(r"[^\x00-\x7f]", _escaped, data.decode()).encode() if self.ascii else data

    def _slow(self, value: Any) -> bytes:
        def text(ascii_only: bool) -> str:
            return json.dumps(
                value,
                ensure_ascii=ascii_only,
                allow_nan=False,
                indent=None if self.indent is None else self.indent.decode(),
                separators=(",", ": ") if self.indent is not None else self.separators,
            )

        try:
            return text(self.ascii).encode()
        except UnicodeEncodeError:  # half of a surrogate pair can only be written as an escape
            return text(True).encode()


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
