"""YAML and TOML: a new value is written into the tree of the old content, so that comments and order stay."""

from __future__ import annotations

import datetime
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..exceptions import ConfigError
from .values import Problem, Refused, check, decode, same, show

_UNFOLDED = 1_000_000  # values; YAML aliases can make a short text mean more than any machine holds
_YAML_KEYS = (str, int, float, datetime.date, type(None), tuple)
_YAML_LEAVES = (str, int, float, datetime.date, type(None), bytes, set, frozenset)


def _yaml(kind: str) -> Any:
    try:
        from ruamel.yaml import YAML
    except ImportError as error:
        raise ConfigError(
            "YAML needs ruamel.yaml, which is not installed: pip install 'agentguard[yaml]'", value="yaml"
        ) from error
    return YAML(typ=kind, pure=True)


def parse_yaml(text: str, kind: str = "safe") -> Any:
    """One YAML document as plain values, or (kind "rt") as a tree that knows its comments and lines.

    Raises `Problem` for what is not one document of plain values: nothing is ever constructed from a tag.
    """
    reader = _yaml(kind)
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader.preserve_quotes = True
    try:
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (None, None)
        problem = _first_line(error.problem or error.context)
        twice = re.match(r'found duplicate key "(.*?)" with value', problem)
        raise Problem(f"{twice[1]} is given twice" if twice else problem, *at) from error
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # Values such as `2020-99-99` and `!!int x` make the reader fail with Python's own errors.
        spot = getattr(error, "position", None)
        raise Problem(_first_line(error), text.count("\n", 0, spot) + 1 if isinstance(spot, int) else None) from error


def _first_line(error: object) -> str:
    return (str(error).splitlines() or ["it cannot be read"])[0]


def load_yaml(data: bytes) -> Any:
    """The value of a YAML document. Raises `Problem`, also for one that contains itself."""
    value = parse_yaml(decode(data))
    if (size := _unfolded(value, {})) > _UNFOLDED and size > len(data):
        raise Problem(f"its aliases unfold to {size} values (or contain themselves)")
    return value


def _unfolded(value: Any, known: dict[int, int]) -> int:
    """How many values this is with every alias written out; each container is counted once, so it takes no time."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = sys.maxsize  # what is met again before it is counted contains itself
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded(item, known) for item in items)
    return known[id(value)]


def dump_yaml(value: Any, previous: bytes | None) -> bytes:
    """The YAML text of a value; comments of what did not change stay. Raises `Refused`."""
    check(value, _YAML_LEAVES, _YAML_KEYS, finite=False)

    def write(tree: Any, before: str = "") -> str:
        writer = _yaml("rt")
        from ruamel.yaml.error import YAMLError

        writer.width = sys.maxsize  # long lines stay as they are
        writer.explicit_start = before.startswith("---") or None
        writer.indent(**_yaml_indents(before))
        out = io.StringIO()
        try:
            writer.dump(tree, out)
        except YAMLError as error:
            raise Refused(_first_line(error)) from error
        return out.getvalue()

    return _dump(value, previous, load_yaml, lambda text: parse_yaml(text, "rt"), write)


def _yaml_indents(text: str) -> dict[str, int]:
    """The indentation of nested mappings and lists, from the first of each."""
    opener = r"^( *)[^\s#\-][^\n]*:[ \t]*(?:#[^\n]*)?\n"
    mapping = re.search(opener + r"\1( +)[^\s#\-]", text, re.MULTILINE)
    items = re.search(opener + r"\1( *)-( +)\S", text, re.MULTILINE)
    offset = len(items[2]) if items else 0
    return {
        "mapping": len(mapping[2]) if mapping else 2,
        "sequence": offset + 1 + len(items[3]) if items else 2,
        "offset": offset,
    }


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
            raise Problem(_first_line(error).split(" at line ")[0].rstrip(".")) from error
        problem = _first_line(error).split(" at line ")[0].rstrip(".")
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
    return parse_toml(decode(data)).unwrap()


def dump_toml(value: Any, previous: bytes | None) -> bytes:
    """The TOML text of a dict; comments of what did not change stay. Raises `Refused`."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if not isinstance(value, dict):
        raise Refused(f"the whole of it is a table (a dict), not {show(value)}")
    check(value, (str, int, float, datetime.date, datetime.time), (str,), finite=False)

    def write(tree: Any, before: str = "") -> str:
        try:
            return tomlkit.dumps(tree)
        except (TOMLKitError, ValueError, TypeError) as error:
            raise Refused(_first_line(error)) from error

    return _dump(value, previous, load_toml, parse_toml, write)


def _dump(
    value: Any,
    previous: bytes | None,
    load: Callable[[bytes], Any],
    parse: Callable[[str], Any],
    write: Callable[..., str],
) -> bytes:
    """Patch the old content if what comes out reads as the value; else write the value plainly, without comments."""
    if previous is not None:
        try:
            old = load(previous)
            if same(old, value):
                return previous
            text = decode(previous)
            newline = "\r\n" if "\r\n" in text else "\n"
            text = text.replace("\r\n", "\n")
            # What holds no value yet may hold comments: they stay on top.
            new = (
                write(patch(parse(text), old, value), text)
                if old
                else text.rstrip("\n") + "\n" * bool(text) + write(value)
            )
            out = new.replace("\n", newline).encode()
            if same(load(out), value):
                return out
        except (Problem, Refused, RecursionError, ValueError, TypeError, LookupError, AttributeError):
            pass  # content that cannot be read, or a tree that does not take the change
    out = write(value).encode()
    try:
        if same(load(out), value):
            return out
    except Problem as error:
        raise Refused(error.problem) from error
    raise Refused("it would not read back as the same value")


def patch(tree: Any, old: Any, new: Any) -> Any:
    """Change a round-trip tree, whose plain value is `old`, only where `new` differs; returns the tree to use."""
    if isinstance(old, dict) and isinstance(new, dict) and old:
        for key in [key for key in old if key not in new]:
            del tree[key]
        for key, item in new.items():
            if key not in old:
                tree[key] = item
            elif not same(old[key], item):
                tree[key] = patch(tree[key], old[key], item)
        return tree
    if isinstance(old, list) and isinstance(new, (list, tuple)) and old:
        short = min(len(old), len(new))
        head = next((i for i in range(short) if not same(old[i], new[i])), short)
        tail = next((i for i in range(short - head) if not same(old[-1 - i], new[-1 - i])), short - head)
        shared = short - tail
        for index in range(head, shared):
            tree[index] = patch(tree[index], old[index], new[index])
        for index in reversed(range(shared, len(old) - tail)):
            del tree[index]
        for index in range(shared, len(new) - tail):
            tree.insert(index, new[index])
        return tree
    return new
