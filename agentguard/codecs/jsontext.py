"""JSON and JSON lines: strict and exact reading at orjson's speed, writing in the style of what was there.

orjson keeps the last of keys that are given twice and turns integers over 64 bits into floats without a word, so both
are looked for; a text with either, or with an error, goes through the standard library, which says where or keeps them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from .values import Problem, Refused, check, decode_strictly, same, show

_LEAVES = (str, int, float, type(None))
_DIGITS = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
_MANY_DIGITS = b"0" * 19  # may be beyond 64 bits
_HALF = re.compile(r"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]\w\w")


def load(data: bytes, *, halves: bool = False) -> Any:
    """The value of a JSON text; `halves` lets half of a surrogate pair pass, which only an escape can write. Raises
    `Problem`, or RecursionError for a text that is nested too deeply."""
    import orjson  # here, so that a program that never reads JSON does not pay for it

    try:
        value = orjson.loads(data)
        if _MANY_DIGITS not in data.translate(_DIGITS) and quotes(orjson.dumps(value)) == quotes(data):
            return value
    except (orjson.JSONDecodeError, TypeError):
        pass  # the careful way finds out why, and accepts what only orjson cannot do
    if not data.strip():
        raise Problem("it is empty")
    return _load_exactly(decode_strictly(data), halves)


def quotes(data: bytes) -> int:
    """How many quotation marks delimit strings. A text has more than its value has if a key was given twice."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return data.count(b'"')


def _load_exactly(text: str, halves: bool) -> Any:
    """Slower, but every integer is exact and a key that is given twice is refused."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            seen: set[str] = set()
            _refuse_twice(text, next(key for key, _ in items if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
        return value

    def number(literal: str) -> float:
        if math.isinf(found := float(literal)):
            _refuse(text, literal, f"the number {literal[:40]} is beyond a float")
        return found

    def constant(literal: str) -> NoReturn:
        _refuse(text, literal, f"{literal} is not JSON")

    try:
        value = json.loads(
            text, object_pairs_hook=pairs, parse_float=number, parse_int=_integer, parse_constant=constant
        )
        if not halves:
            check(value, _LEAVES, (str,))
    except json.JSONDecodeError as error:
        ended = error.pos >= len(text.rstrip())
        raise Problem("it is cut off: unexpected end" if ended else error.msg, error.lineno, error.colno) from error
    except Refused as error:
        half = _HALF.search(text)
        raise Problem(error.problem, *_place(text, half.start()) if half else ()) from error
    return value


def _integer(literal: str) -> int:
    try:
        return int(literal)
    except ValueError:  # Python refuses more than 4,300 digits, which guards against a slow conversion
        raise Problem(f"an integer of {len(literal)} digits is beyond Python's limit") from None


def _refuse_twice(text: str, key: str) -> NoReturn:
    shown = re.escape(json.dumps(key, ensure_ascii=False))
    places = [found.start() for found in re.finditer(shown + r"\s*:", text)]
    at = _place(text, places[1]) if len(places) == 2 else ()  # more: they may be of other objects
    raise Problem(f"the key {key!r} is given twice in one object", *at)


def _refuse(text: str, literal: str, problem: str) -> NoReturn:
    # Strings are blanked out so that the literal is found where it is a value.
    blank = re.sub(r'"(?:[^"\\]|\\.)*"', lambda found: "_" * len(found[0]), text)
    raise Problem(problem, *_place(text, blank.index(literal)))


def _place(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


@dataclass(frozen=True, slots=True)
class Style:
    """How a JSON text is laid out; the defaults are those of a new file."""

    indent: str | None = "  "  # None: all on one line
    spaced: bool = True  # on one line: ", " and ": " rather than "," and ":"
    escaped: bool = False  # \u00e9 for what is not ASCII
    newline: str = "\n"
    end: bool = True  # a newline at the end

    @staticmethod
    def of(data: bytes) -> Style:
        """The style of a text; of `{}` and `[]`, which say nothing of what a fuller one looks like, a new file's."""
        body = data.strip()
        indent = re.match(rb"[\[{][ \t\r]*\n([ \t]*)", body)
        step = re.search(rb'"(?:[^"\\]|\\.)*"[ \t]*:( ?)', body) or re.search(rb",( ?)", body)
        one_line = step is not None or len(body) > 2
        return Style(
            indent=indent[1].decode() if indent else None if one_line else "  ",
            spaced=step is None or bool(step[1]),
            escaped=b"\\u" in data and data.isascii(),
            newline="\r\n" if b"\r\n" in data else "\n",
            end=data.endswith(b"\n"),
        )

    @property
    def separators(self) -> tuple[str, str]:
        return (",", ": ") if self.indent is not None else (", ", ": ") if self.spaced else (",", ":")

    def write(self, value: Any) -> bytes:
        """`value`, which is known to be JSON, in this style. Raises `Refused`, or RecursionError."""
        try:
            out = self._fast(value)
        except TypeError:  # an integer beyond 64 bits, half of a surrogate pair, a subclass of float
            out = None
        if out is None:
            try:
                out = self._slow(value, self.escaped)
            except UnicodeEncodeError:
                out = self._slow(value, True)
        if self.newline != "\n":
            out = out.replace(b"\n", self.newline.encode())
        return out + self.newline.encode() if self.end else out

    def _fast(self, value: Any) -> bytes | None:
        import orjson

        if self.indent is None:
            return None if self.spaced or self.escaped else orjson.dumps(value)
        out = orjson.dumps(value, option=orjson.OPT_INDENT_2)
        if self.indent != "  ":
            # No line begins inside a string, so leading spaces are always indentation.
            unit = self.indent.encode()
            out = re.sub(rb"(?m)^ +", lambda found: unit * (len(found[0]) // 2), out)
        return re.sub(r"[^\x00-\x7f]", _escaped, out.decode()).encode() if self.escaped else out

    def _slow(self, value: Any, escaped: bool) -> bytes:
        try:
            return json.dumps(
                value, ensure_ascii=escaped, allow_nan=False, indent=self.indent, separators=self.separators
            ).encode()
        except UnicodeEncodeError:
            raise
        except ValueError as error:
            raise Refused(str(error)) from error  # Python limits the digits of an integer; or it contains itself


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def dump(value: Any, previous: bytes | None) -> bytes:
    """The JSON text of a value, in the style of the text before it. Raises `Refused`."""
    import orjson

    check(value, _LEAVES, (str,))
    if not previous or not previous.strip():
        return Style().write(value)
    try:
        if orjson.dumps(value) == orjson.dumps(load(previous)):
            return previous
    except (Problem, TypeError, RecursionError):
        pass  # it is not JSON, or holds what orjson cannot write; then it is not worth comparing
    return Style.of(previous).write(value)


def load_lines(data: bytes) -> list[Any]:
    """The records of a JSON lines text; blank lines are passed over. Raises `Problem`."""
    return [value for _, value in _records(data)]


def _records(data: bytes) -> Iterator[tuple[bytes, Any]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                yield line.rstrip(b"\r"), load(line)
            except Problem as error:
                error.line = number
                raise


def dump_lines(value: Any, previous: bytes | None) -> bytes:
    """One line for each record; those that did not change keep their bytes. Raises `Refused`."""
    if not isinstance(value, (list, tuple)):
        raise Refused(f"it holds a list of records, not {show(value)}")
    check(value, _LEAVES, (str,))
    try:
        before = list(_records(previous or b""))
    except (Problem, RecursionError):
        before = []
    style = Style.of(previous) if previous and before else Style(spaced=False)
    style = replace(style, indent=None, end=False, newline="\n")
    lines: list[bytes] = []
    kept = 0
    for index, item in enumerate(value):
        if index < len(before) and same(before[index][1], item):
            lines.append(before[index][0])
            kept += 1
        else:
            lines.append(style.write(item))
    if previous and kept == len(value) == len(before):
        return previous
    newline = b"\r\n" if previous and b"\r\n" in previous else b"\n"
    return b"".join(line + newline for line in lines)
