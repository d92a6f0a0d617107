"""YAML 1.2: a new value is written into the tree of the old content, so that comments and order stay."""

from __future__ import annotations

import datetime
import io
import re
import sys
from typing import Any

from ..exceptions import ConfigError
from .trees import dump, first_line
from .values import Problem, Refused, check, decode_strictly

KEYS = (str, int, float, datetime.date, type(None))
LEAVES = (str, int, float, datetime.date, type(None))
"""What a mapping and a list of scalars may hold."""

_DEPTH = 250
_INDENTED = re.compile(rf"^[ ?-]{{{_DEPTH},}}", re.MULTILINE)
_UNFOLDED = 1_000_000  # values; YAML aliases can make a short text mean more than any machine holds


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
        if ("*" in text and "&" in text) or text.count("[") + text.count("{") > _DEPTH or _INDENTED.search(text):
            _check_nesting(text)
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (None, None)
        problem = first_line(error.problem or error.context)
        twice = re.match(r'found duplicate key "(.*?)" with value', problem)
        raise Problem(f"{twice[1]} is given twice" if twice else problem, *at) from error
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # Values such as `2020-99-99` and `!!int x` make the reader fail with Python's own errors.
        spot = getattr(error, "position", None)
        raise Problem(first_line(error), text.count("\n", 0, spot) + 1 if isinstance(spot, int) else None) from error


def _check_nesting(text: str) -> None:
    """Refuse what the loader takes minutes for (deep nesting) or gets wrong (an alias inside what it stands for)."""
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    opened: list[str | None] = []
    for event in _yaml("rt").parse(text):
        if isinstance(event, CollectionStartEvent):
            opened.append(event.anchor)
        elif isinstance(event, CollectionEndEvent):
            opened.pop()
        elif isinstance(event, AliasEvent) and event.anchor in opened:
            raise Problem(f"the alias *{event.anchor} stands inside itself", event.start_mark.line + 1)
        if len(opened) > _DEPTH:
            raise Problem(f"it is nested too deeply (more than {_DEPTH} levels)", event.start_mark.line + 1)


def load_yaml(data: bytes) -> Any:
    """The value of a YAML document. Raises `Problem`."""
    value = parse_yaml(decode_strictly(data))
    if (size := _unfolded(value, {})) > _UNFOLDED and size > len(data):
        raise Problem(f"its aliases unfold to {size} values")
    return value


def _unfolded(value: Any, known: dict[int, int]) -> int:
    """How many values this is with every alias written out; each container is counted once, so it takes no time."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded(item, known) for item in items)
    return known[id(value)]


def dump_yaml(value: Any, previous: bytes | None, *, keep: bool = False) -> bytes:
    """The YAML text of a value; comments of what did not change stay. `keep`: refuse rather than lose the others' too.
    Raises `Refused`."""
    check(value, (*LEAVES, bytes, set, frozenset), (*KEYS, tuple), finite=False)

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
            raise Refused(first_line(error)) from error
        return out.getvalue()

    return dump(value, previous, load_yaml, lambda text: parse_yaml(text, "rt"), write, keep=keep)


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
