"""TOML: a new value is written into the tree of the old content, so that comments and order stay."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

from .trees import dump, first_line
from .values import Problem, Refused, check, decode_strictly, show

LEAVES = (str, int, float, datetime.date, datetime.time)


def parse_toml(text: str) -> Any:
    """A TOML document as a tree that knows its comments (`.unwrap()` is the plain value). Raises `Problem`."""
    import tomlkit
    from tomlkit.exceptions import ParseError, TOMLKitError

    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        if "already exists" in str(error):
            seen: set[tuple[str, ...]] = set()
            for path, line, array in toml_lines(text):
                if path in seen:
                    raise Problem(f"{'.'.join(path)} is given twice", line) from error
                if array:
                    seen = {known for known in seen if known[: len(path)] != path}
                else:
                    seen.add(path)
            raise Problem(first_line(error).split(" at line ")[0].rstrip(".")) from error
        problem = first_line(error).split(" at line ")[0].rstrip(".")
        if problem.startswith("Unexpected end of file") or ("\\x00" in problem and "\0" not in text):
            # The parser does not know where the end is, or takes it for a character.
            raise Problem("unexpected end of the file", text.rstrip().count("\n") + 1) from error
        at = (error.line, error.col + 1) if isinstance(error, ParseError) else (None, None)
        raise Problem(problem, *at) from error


def toml_lines(text: str) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """Where each key and table stands: (path, line from 1, is it an element of an array of tables). For messages: it
    goes line by line, so that broken content can be searched too."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    part = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
    shape = re.compile(rf"\s*(\[\[?)?\s*({part}(?:\s*\.\s*{part})*)\s*(=|\]\]?)")
    above: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        found = shape.match(line)
        if found is None or (found[1] is None) != (found[3] == "="):
            continue
        try:
            node: Any = tomlkit.parse(f"{found[2]} = 0").unwrap()
        except TOMLKitError:
            continue
        path: list[str] = []
        while isinstance(node, dict):
            key, node = next(iter(node.items()))
            path.append(key)
        if found[1]:
            above = tuple(path)
        yield (above if found[1] else (*above, *path)), number, found[1] == "[["


def load_toml(data: bytes) -> Any:
    """The value of a TOML document, a dict. Raises `Problem`."""
    return parse_toml(decode_strictly(data)).unwrap()


def dump_toml(value: Any, previous: bytes | None, *, keep: bool = False) -> bytes:
    """The TOML text of a dict; comments of what did not change stay. `keep`: refuse rather than lose the others' too.
    Raises `Refused`."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if not isinstance(value, dict):
        raise Refused(f"the whole of it is a table (a dict), not {show(value)}")
    check(value, LEAVES, (str,), finite=False)

    def write(tree: Any, before: str = "") -> str:
        try:
            return tomlkit.dumps(tree)
        except (TOMLKitError, ValueError, TypeError) as error:
            raise Refused(first_line(error)) from error

    return dump(value, previous, load_toml, parse_toml, write, keep=keep)
