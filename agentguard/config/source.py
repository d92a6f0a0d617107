"""The text that settings come from: read, parsed, and searched for the line of a key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..codecs.tomltext import parse_toml, toml_lines
from ..codecs.values import Problem, decode
from ..codecs.yamltext import parse_yaml
from ..exceptions import ConfigError

__all__ = ["SECTION", "Source"]

SECTION = ("tool", "agentguard")  # of a pyproject.toml


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings come from: a file, or (`file` None) the arguments of a call. `prefix` leads to their table."""

    file: str | None = None
    text: str = ""
    prefix: tuple[str, ...] = ()

    @staticmethod
    def read(path: Path) -> Source:
        """Raises `ConfigError` for a file that is missing, cannot be read, or has another suffix or encoding."""
        if path.suffix.lower() not in (".toml", ".yaml", ".yml"):
            raise ConfigError(
                f"{path}: a configuration is a .toml, .yaml or .yml file", file=str(path), value=path.suffix
            )
        try:
            text = decode(path.read_bytes()).removeprefix("\ufeff")
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: this configuration file does not exist: create it, or correct the path", file=str(path)
            ) from error
        except OSError as error:
            raise ConfigError(f"{path}: it cannot be read: {error.strerror or error}", file=str(path)) from error
        except Problem as error:
            raise _syntax(str(path), error) from error
        return Source(str(path), text, SECTION if path.name == "pyproject.toml" else ())

    @property
    def toml(self) -> bool:
        return self.file is not None and self.file.lower().endswith(".toml")

    def parse(self) -> Any:
        """The plain value of the whole text. Raises `ConfigError` with line and column where the syntax is broken."""
        try:
            return parse_toml(self.text).unwrap() if self.toml else parse_yaml(self.text)
        except RecursionError as error:
            raise _syntax(self.file, Problem("it is nested too deeply")) from error
        except Problem as error:
            raise _syntax(self.file, error) from error

    def line(self, path: Sequence[Any]) -> int | None:
        """The line of a key, or of the nearest table around it that has one."""
        if self.file is None:
            return None
        return self._toml_line(path) if self.toml else self._yaml_line(path)

    def _toml_line(self, path: Sequence[Any]) -> int | None:
        lines: dict[tuple[str, ...], int] = {}
        for at, line, _ in toml_lines(self.text):
            for end in range(1, len(at) + 1):  # the header [a.b] may be the first that is seen of a
                lines.setdefault(at[:end], line)
        wanted = (*self.prefix, *map(str, path))
        for end in range(len(wanted), 0, -1):
            if wanted[:end] in lines:
                return lines[wanted[:end]]
        return None

    def _yaml_line(self, path: Sequence[Any]) -> int | None:
        node: Any = parse_yaml(self.text, "rt")
        line: int | None = None
        for step in path:
            try:
                line = (node.lc.item if isinstance(step, int) else node.lc.key)(step)[0] + 1
                node = node[step]
            except (AttributeError, LookupError, TypeError):
                break
        return line


def _syntax(file: str | None, error: Problem) -> ConfigError:
    at = "".join(f", {word} {n}" for word, n in (("line", error.line), ("column", error.column)) if n is not None)
    return ConfigError(
        f"{file}{at}: the file cannot be read: {error.problem}. Correct it there.",
        file=file,
        line=error.line,
        column=error.column,
    )
