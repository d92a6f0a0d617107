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


def same(one: Any, other: Any) -> bool:
    """Equal for a reader of the file: True is not 1 is not 1.0, NaN is NaN; the order of keys does not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        kinds = {key: type(key) for key in other}  # the keys 1 and True are equal, but not the same
        return len(one) == len(other) and all(
            kinds.get(key) is type(key) and same(item, other[key]) for key, item in one.items()
        )
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) and isinstance(other, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (one != one and other != other)
    if isinstance(one, datetime.datetime) and isinstance(other, datetime.datetime):
        return one == other and one.utcoffset() == other.utcoffset()
    for kind in (str, int):
        if isinstance(one, kind) and isinstance(other, kind):
            return bool(one == other)
    return type(one) is type(other) and bool(one == other)


def show(value: Any) -> str:
    """A value and its type, short enough for a message."""
    text = repr(value)
    return f"{text[:60] + '...' if len(text) > 60 else text} ({type(value).__name__})"
