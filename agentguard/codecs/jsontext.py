"""JSON and JSON lines: strict and exact reading at orjson's speed, writing in the style of what was there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from .values import Problem, Refused, check, decode, same, show

_LEAVES = (str, int, float, type(None))
_MANY_DIGITS = re.compile(rb"\d{19}")  # may be beyond 64 bits, which orjson would round to a float
_KEY = re.compile(rb'"[ \t\r\n]*:')
_HIDDEN = re.compile(rb"\\u00(?:2[02]|3[aA])")  # a quote, space or colon that `_KEY` would see only after decoding


def load(data: bytes) -> Any:
    """The value of a JSON text. Raises `Problem`."""
    import orjson  # here, so that a program that never reads JSON does not pay for it

    if not data.strip():
        raise Problem("it is empty")
    if data.startswith(b"\xef\xbb\xbf"):
        raise Problem("it starts with a byte order mark; save it as UTF-8 without one", 1, 1)
    text = decode(data)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "infinity" in error.msg:
            return _load_exactly(text)  # too much for a float; if it is an integer, it has no limit
        raise Problem(error.msg, error.lineno, error.colno) from error
    if _MANY_DIGITS.search(data) or _HIDDEN.search(data):
        return _load_exactly(text)
    # orjson drops a key that is given twice. Each key leaves one `":`, so that counting them finds the loss in a
    # fraction of the exact reader's time; quotes and colons inside texts count the same on both sides.
    if len(_KEY.findall(data)) != len(_KEY.findall(orjson.dumps(value))):
        return _load_exactly(text)
    return value


def _load_exactly(text: str) -> Any:
    """Slower, but every integer is exact and a key that is given twice is refused."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in items:
            if key in found:
                raise Problem(f"the key {key!r} is given twice in one object", _second_line(text, key))
            found[key] = item
        return found

    def number(digits: str) -> float:
        if math.isinf(found := float(digits)):
            raise Problem(f"the number {digits[:40]} is beyond a float")
        return found

    def constant(name: str) -> NoReturn:
        raise Problem(f"{name} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_float=number, parse_constant=constant)
        check(value, _LEAVES, (str,))
    except json.JSONDecodeError as error:
        raise Problem(error.msg, error.lineno, error.colno) from error
    except Refused as error:
        raise Problem(error.problem) from error
    except ValueError as error:
        raise Problem(str(error)) from error  # Python limits the digits of an integer
    return value


def _second_line(text: str, key: str) -> int | None:
    """The line of a key that is given twice; None where several objects have it, so that it cannot be told."""
    spots = [m.start() for m in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)]
    return text.count("\n", 0, spots[1]) + 1 if len(spots) == 2 else None


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
            spaced=bool(step and step[1]),
            escaped=data.isascii() and b"\\u" in data,
            newline="\r\n" if b"\r\n" in data else "\n",
            end=data.endswith(b"\n"),
        )


def dump(value: Any, previous: bytes | None) -> bytes:
    """The JSON text of a value, in the style of the text before it. Raises `Refused`."""
    import orjson

    check(value, _LEAVES, (str,))
    if not previous or not previous.strip():
        return _write(value, Style())
    try:
        if orjson.dumps(value) == orjson.dumps(load(previous)):
            return previous
    except (Problem, TypeError, RecursionError):
        pass  # it is not JSON, or holds what orjson cannot write; then it is not worth comparing
    return _write(value, Style.of(previous))


def _write(value: Any, style: Style) -> bytes:
    import orjson

    out: bytes | None = None
    if not style.escaped and (style.indent == "  " or (style.indent is None and not style.spaced)):
        try:
            out = orjson.dumps(value, option=orjson.OPT_INDENT_2 if style.indent else 0)
        except TypeError:
            out = None  # integers beyond 64 bits and subclasses of float are for the standard library
    if out is None:
        separators = (",", ": ") if style.indent is not None else (", ", ": ") if style.spaced else (",", ":")
        try:
            out = json.dumps(
                value, ensure_ascii=style.escaped, allow_nan=False, indent=style.indent, separators=separators
            ).encode()
        except ValueError as error:
            raise Refused(str(error)) from error  # Python limits the digits of an integer; or it contains itself
    if style.newline != "\n":
        out = out.replace(b"\n", style.newline.encode())
    return out + style.newline.encode() if style.end else out


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
            lines.append(_write(item, style))
    if previous and kept == len(value) == len(before):
        return previous
    newline = b"\r\n" if previous and b"\r\n" in previous else b"\n"
    return b"".join(line + newline for line in lines)
