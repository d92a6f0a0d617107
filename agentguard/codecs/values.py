"""What all formats share: complaints that do not know the resource's name yet, and strict looks at values."""

from __future__ import annotations

import datetime
import math
from typing import Any


class Problem(Exception):
    """A parser's complaint about content; lines and columns count from 1."""

    def __init__(self, problem: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line, self.column = problem, line, column


class Refused(Exception):
    """A complaint about a value; its place, a JSON pointer, is gathered on the way out."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem, self.place = problem, ""


def decode(data: bytes) -> str:
    """The text of UTF-8 bytes, newlines untouched. Raises `Problem` at the first byte that is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        raise Problem(
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8",
            before.count(b"\n") + 1,
            error.start - before.rfind(b"\n"),
        ) from error


def decode_strictly(data: bytes) -> str:
    """As `decode`, for formats whose readers do not take a byte order mark. Raises `Problem`."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise Problem("it starts with a byte order mark; save it as UTF-8 without one", 1, 1)
    return decode(data)


def check(value: Any, leaves: tuple[type, ...], keys: tuple[type, ...], *, finite: bool = True) -> None:
    """Refuse what a format would turn into something else. Raises `Refused`, or RecursionError for a value that is
    nested too deeply or contains itself."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, keys):
                raise Refused(f"the key {show(key)} is not a str" if keys == (str,) else f"{show(key)} is no key")
            try:
                check(key, keys, keys, finite=finite)
                check(item, leaves, keys, finite=finite)
            except Refused as error:
                error.place = f"/{str(key).replace('~', '~0').replace('/', '~1')}{error.place}"
                raise
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            try:
                check(item, leaves, keys, finite=finite)
            except Refused as error:
                error.place = f"/{index}{error.place}"
                raise
    elif not isinstance(value, leaves):
        raise Refused("the format has no null" if value is None else f"the format has no form for {show(value)}")
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            raise Refused(f"the format does not know the number {value}")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused(f"{show(value)} holds half of a surrogate pair, which UTF-8 does not allow") from error


def same(a: Any, b: Any) -> bool:
    """Equal for a reader of the file: True is not 1 is not 1.0, NaN is NaN, missing is not null; the order of keys does
    not count."""
    if a is b:
        return True
    kind = type(a)
    if kind is type(b):
        if kind is str or kind is int:
            return bool(a == b)
        if kind is float:
            return repr(a) == repr(b)  # tells -0.0 from 0.0, and not NaN from NaN
        if (kind is dict or kind is list) and a == b and _equal_texts(a, b):
            return True
    if isinstance(a, dict) and isinstance(b, dict):
        if len(a) != len(b):
            return False
        # Keys may hide a type as well: {1: x} == {True: x} in Python, and YAML can write both.
        kinds = {key: type(key) for key in b if type(key) is not str}
        return all(
            key in b and (type(key) is str or kinds.get(key) is type(key)) and same(item, b[key])
            for key, item in a.items()
        )
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return False
    if isinstance(a, float) and isinstance(b, float):
        return float.__repr__(a) == float.__repr__(b)
    if isinstance(a, datetime.datetime) and isinstance(b, datetime.datetime):
        return a == b and a.utcoffset() == b.utcoffset()
    for kind in (str, int):
        if isinstance(a, kind) and isinstance(b, kind):
            return bool(a == b)
    return type(a) is type(b) and bool(a == b)


def _equal_texts(a: Any, b: Any) -> bool:
    """Of two values that are equal for Python what is left to see is the types of numbers and the order of keys: equal
    texts have neither difference, and making them is many times faster than walking both values in Python."""
    import orjson

    try:
        return orjson.dumps(a) == orjson.dumps(b)
    except TypeError:
        return False


def show(value: Any) -> str:
    """A value and its type, short enough for a message."""
    text = repr(value)
    return f"{text[:60] + '...' if len(text) > 60 else text} ({type(value).__name__})"
