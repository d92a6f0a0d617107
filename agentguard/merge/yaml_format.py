"""YAML 1.2 by its values, written back into the base's own tree so that comments, order and quotes stay.

`no` and `on` are texts here, as YAML 1.2 has it. Tags are refused and nothing is ever constructed from them.
"""

from __future__ import annotations

import datetime
import io
import re
from typing import Any

from agentguard.exceptions import ConfigError
from agentguard.merge.documents import Unreadable
from agentguard.merge.graft import decoded, finite, graft

try:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
    from ruamel.yaml.scalarbool import ScalarBoolean
except ModuleNotFoundError as missing:
    raise ConfigError(
        "merging YAML needs the package ruamel.yaml: pip install 'agentguard[yaml]'", key="merge", value="yaml"
    ) from missing

_BOMB = 20
"""How many values a byte of the file may stand for on average before its aliases count as an attack."""

_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ["map", "seq", "str", "int", "float", "bool", "null", "timestamp"]}
_DEPTH = 250
_INDENTED = re.compile(rf"^[ ?-]{{{_DEPTH},}}", re.MULTILINE)
_PARENT = r"^( *)[^\s#-][^\n]*?:[ ]*(?:#[^\n]*)?\n"


class Yaml:
    name = "YAML"

    def parse(self, data: bytes) -> Any:
        try:
            return _Plain(1000 + _BOMB * len(data)).of(_load(decoded(data)))
        except RecursionError:
            raise Unreadable("nested too deeply") from None

    def write(self, value: Any, like: bytes, old: Any) -> bytes:
        text = decoded(like)
        out = io.StringIO()
        try:
            _yaml(text).dump(graft(_load(text), old, value), out)
        except (YAMLError, KeyError) as error:  # KeyError: a key that came from a merge key cannot be deleted
            raise Unreadable(f"a change cannot be put into this file ({error})") from None
        data = out.getvalue().encode()
        return data.replace(b"\n", b"\r\n") if b"\r\n" in like else data

    def loses(self, like: bytes, old: Any) -> bool:
        return True


def _yaml(text: str) -> Any:
    yaml = YAML(typ="rt")  # one for each use: they keep state
    yaml.preserve_quotes = True
    yaml.width = 1 << 20  # never fold lines that were not folded
    nested = re.search(_PARENT + r"( +)[^\s#-]", text, re.MULTILINE)
    items = re.search(_PARENT + r"( *)- ", text, re.MULTILINE)
    offset = max(0, len(items[2]) - len(items[1])) if items else 0
    mapping = len(nested[2]) - len(nested[1]) if nested else 2
    yaml.indent(mapping=mapping if mapping > 0 else 2, sequence=offset + 2, offset=offset)
    return yaml


def _load(text: str) -> Any:
    try:
        if ("*" in text and "&" in text) or text.count("[") + text.count("{") > _DEPTH or _INDENTED.search(text):
            _check_nesting(text)
        return _yaml(text).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = re.sub(r"\s+", " ", str(error.problem or error.context or "it is not YAML"))
        raise Unreadable(reason, *((mark.line + 1, mark.column + 1) if mark else (None, None))) from None
    except (YAMLError, ValueError) as error:
        raise Unreadable(str(error).partition("\n")[0]) from None


def _check_nesting(text: str) -> None:
    """Refuse what the loader takes minutes for (deep nesting) or gets wrong (an alias inside what it stands for)."""
    opened: list[str | None] = []
    for event in _yaml(text).parse(text):
        if isinstance(event, CollectionStartEvent):
            opened.append(event.anchor)
        elif isinstance(event, CollectionEndEvent):
            opened.pop()
        elif isinstance(event, AliasEvent) and event.anchor in opened:
            raise Unreadable(f"the alias *{event.anchor} stands inside itself", event.start_mark.line + 1)
        if len(opened) > _DEPTH:
            raise Unreadable(f"nested too deeply (more than {_DEPTH} levels)", event.start_mark.line + 1)


class _Plain:
    """Turns a round-trip tree into plain values, within a budget: nested aliases can stand for billions of them."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def of(self, node: Any) -> Any:
        self.budget -= 1
        if self.budget < 0:
            raise Unreadable("its aliases stand for too many values")
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag is not None and str(tag) not in _TAGS:
            raise Unreadable(f"the tag {tag} is not merged", *_position(node))
        if isinstance(node, CommentedMap):
            return {self._key(key): self.of(value) for key, value in node.items()}
        if isinstance(node, CommentedSeq):
            return [self.of(value) for value in node]
        return self._scalar(node)

    def _key(self, key: Any) -> Any:
        if isinstance(key, (CommentedMap, CommentedSeq, tuple, dict)):
            raise Unreadable("a key that is a list or a mapping is not merged", *_position(key))
        return self._scalar(key)

    def _scalar(self, node: Any) -> Any:
        if node is None or type(node) in (str, bool, int, datetime.date):
            return node
        if isinstance(node, ScalarBoolean):
            return bool(node)
        if isinstance(node, str):
            return str(node)
        if isinstance(node, int):
            return int(node)
        if isinstance(node, float):
            return finite(float(node))
        if isinstance(node, datetime.datetime):
            return datetime.datetime.combine(node.date(), node.time(), node.tzinfo)
        raise Unreadable(f"a value of the kind {type(node).__name__} is not merged", *_position(node))


def _position(node: Any) -> tuple[int, int] | tuple[None, None]:
    at = getattr(node, "lc", None)
    return (at.line + 1, at.col + 1) if at is not None and at.line is not None else (None, None)
