"""From the bytes of a file to a value and back, chosen by the file's suffix.

    json                 any JSON value
    jsonl, ndjson        a list of records
    yaml, yml, toml      plain dicts, lists and scalars; comments of what did not change are kept
    txt, md, log, csv..  str (UTF-8, newlines untouched)
    anything else        bytes

Writing keeps the style of what was there: indentation, escapes, line ends, and for an unchanged value the very bytes.
What is read is exactly what was written: keys given twice, NaN and integers beyond 64 bits are refused or kept exactly,
never passed over or rounded. Nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..exceptions import AgentGuardError
from . import jsontext, tomltext, yamltext
from .values import Problem, Refused, check, decode, show

__all__ = ["BadContent", "BadValue", "Codec", "codec_for"]

_WORDS = """
txt text md markdown rst adoc tex log csv tsv html htm xml svg css scss js mjs cjs jsx ts tsx vue py pyi rb go rs java
kt scala swift c h cc cpp hpp cs php pl lua r jl sh bash zsh fish ps1 bat sql graphql proto tf ini cfg conf properties
env diff patch srt vtt mmd dot bib
"""
_TEXT = frozenset(_WORDS.split())


class BadContent(AgentGuardError, ValueError):
    """A file does not hold what its suffix says; it was not touched.

    Fields: `resource`, `line` and `column` (from 1, or None), `problem` (the parser's own words).
    """

    code = "content"


class BadValue(AgentGuardError, TypeError, ValueError):
    """A value cannot be written in the resource's format; nothing was written.

    Fields: `resource`, `place` (a JSON pointer into the value, "" for the whole), `problem`.
    """

    code = "value"


@dataclass(frozen=True, slots=True)
class Codec:
    """Reads and writes one resource. `name` is the format: json, jsonl, yaml, toml, text or bytes."""

    name: str
    resource: str

    def load(self, data: bytes) -> Any:
        """The value of a file's content.

        Raises `BadContent` when it is not in the format its suffix says (an empty .json file is not JSON; an empty
        .jsonl is [], .toml {}, .yaml None, .txt ""), and `ConfigError` when the library that reads the format is not
        installed.
        """
        try:
            return _FORMATS[self.name].load(data)
        except Problem as found:
            error = found
        except RecursionError:
            error = Problem("it is nested too deeply")
        at = "".join(f", {word} {n}" for word, n in (("line", error.line), ("column", error.column)) if n is not None)
        raise BadContent(
            f"{self.resource}{at}: not valid {_FORMATS[self.name].title}: {error.problem}. The file is untouched; "
            "correct it, or write it anew as a whole.",
            resource=self.resource,
            line=error.line,
            column=error.column,
            problem=error.problem,
        )

    def dump(self, value: Any, previous: bytes | None = None) -> bytes:
        """The content of a file that holds this value, in the style of `previous`.

        `previous` is what the file holds now (None: a new file); if it cannot be read in the format, it is replaced.
        Raises `BadValue` for what the format cannot hold or would not give back, and `ConfigError` when the library
        that writes the format is not installed.
        """
        try:
            return _FORMATS[self.name].dump(value, previous)
        except Refused as found:
            error = found
        except RecursionError:
            error = Refused("it is nested too deeply or contains itself")
        at = f" at {error.place}" if error.place else ""
        raise BadValue(
            f"{self.resource}: the value{at} cannot be written as {_FORMATS[self.name].title}: {error.problem}. "
            "Nothing was written; change the value and try again.",
            resource=self.resource,
            place=error.place,
            problem=error.problem,
        )


def codec_for(name: str) -> Codec:
    """The codec of a resource, by the suffix of its name (case does not matter)."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix[1:].lower()
    return Codec(_SUFFIXES.get(suffix, "text" if suffix in _TEXT else "bytes"), name)


def _dump_text(value: Any, previous: bytes | None) -> bytes:
    if not isinstance(value, str):
        raise Refused(f"it holds a str, not {show(value)}")
    check(value, (str,), (str,))
    return value.encode()


def _dump_bytes(value: Any, previous: bytes | None) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise Refused(f"it holds bytes, not {show(value)}; a suffix such as .json or .txt would say otherwise")
    return bytes(value)


@dataclass(frozen=True, slots=True)
class _Format:
    title: str
    load: Callable[[bytes], Any]
    dump: Callable[[Any, bytes | None], bytes]


_FORMATS = {
    "json": _Format("JSON", jsontext.load, jsontext.dump),
    "jsonl": _Format("JSON lines", jsontext.load_lines, jsontext.dump_lines),
    "yaml": _Format("YAML", yamltext.load_yaml, yamltext.dump_yaml),
    "toml": _Format("TOML", tomltext.load_toml, tomltext.dump_toml),
    "text": _Format("UTF-8 text", decode, _dump_text),
    "bytes": _Format("bytes", bytes, _dump_bytes),
}
_SUFFIXES = {"json": "json", "jsonl": "jsonl", "ndjson": "jsonl", "yaml": "yaml", "yml": "yaml", "toml": "toml"}
