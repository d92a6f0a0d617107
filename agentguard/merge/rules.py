"""The names of the strategies, which one a place or a file gets, and what is said about a name that does not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import PurePosixPath

from agentguard.exceptions import ConfigError

PATH_STRATEGIES = (
    "append",
    "binary",
    "counter",
    "first",
    "json",
    "last",
    "list:KEY",
    "max",
    "min",
    "set",
    "text",
)
"""The strategies for a place inside structured data."""

_REPEATING = frozenset({"append", "counter"})
"""Strategies under which two equal changes are two changes."""

_SUFFIXES = {
    "json": "json geojson ipynb",
    "append": "jsonl ndjson log",
    "csv": "csv tsv",
    "sqlite": "sqlite sqlite3 db db3",
    "yaml": "yaml yml",
    "toml": "toml",
    "text": "md markdown rst txt text tex adoc org py pyi js jsx mjs cjs ts tsx css scss less html htm xml svg vue c h "
    "cc cpp hpp cs go rs java kt kts swift rb php pl lua r jl scala sh bash zsh ps1 bat sql graphql proto ini cfg conf "
    "env properties tf cmake mk gradle diff patch",
}
_BY_SUFFIX = {suffix: name for name, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}


def default_strategy(name: str) -> str:
    """The strategy of a resource by the suffix of its name: json, append (`.jsonl`, `.ndjson`, `.log`), csv (and
    `.tsv`), sqlite (and `.db`), text, yaml or toml; binary for everything else."""
    return _BY_SUFFIX.get(PurePosixPath(name.replace("\\", "/")).suffix[1:].lower(), "binary")


def check(name: str, known: Iterable[str], what: str) -> None:
    """Raise ConfigError unless `name` is one of `known`, where `list:KEY`, `csv:KEY` and the like stand for any key."""
    names = sorted(set(known))
    if name in names and not name.endswith(":KEY"):
        return
    word, _, key = name.partition(":")
    if f"{word}:KEY" in names:
        if key:
            return
        raise ConfigError(
            f"{what} {name!r} needs the name of the field that identifies a record, as in '{word}:id'",
            value=name,
            nearest=f"{word}:id",
        )
    close = difflib.get_close_matches(name.lower(), [*names, "list"], 1, 0.5)
    nearest = (close[0] if close != ["list"] else "list:KEY") if close else None
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    raise ConfigError(f"there is no {what} {name!r}{hint} Known: {', '.join(names)}", value=name, nearest=nearest)


def check_path_strategy(name: str) -> None:
    """Raise ConfigError, with the nearest valid word as `nearest`, unless `name` is a strategy for a place inside
    structured data."""
    check(name, PATH_STRATEGIES, "merge strategy for a path")


def check_path(glob: str) -> None:
    """Raise ConfigError unless `glob` can name a place inside structured data: "" or a text that begins with "/"."""
    if glob and not glob.startswith("/"):
        raise ConfigError(
            f"the path {glob!r} has to begin with '/', as in '/{glob}'; '*' stands for one step, '**' for any number",
            value=glob,
            nearest="/" + glob,
        )


def pointer(path: Iterable[str]) -> str:
    """The JSON pointer (RFC 6901) of a place."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


class Rules:
    """Which strategy a place has, from `Options.paths`."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._exact: dict[str, str] = {}
        self._globs: list[tuple[re.Pattern[str], str]] = []
        for glob, name in paths.items():
            check_path(glob)
            check_path_strategy(name)
            place = "" if glob == "/" else glob
            if "*" in place:
                self._globs.append((_compiled(place), name))
            else:
                self._exact[place] = name
        self.repeating = not _REPEATING.isdisjoint(paths.values())
        """Whether equal changes by two agents may count twice somewhere."""

    def of(self, path: tuple[str, ...]) -> str:
        if not self._exact and not self._globs:
            return "json"
        place = pointer(path)
        if place in self._exact:
            return self._exact[place]
        return next((name for pattern, name in self._globs if pattern.fullmatch(place)), "json")


@lru_cache(maxsize=256)
def _compiled(glob: str) -> re.Pattern[str]:
    steps: list[str] = []
    names = glob.split("/")[1:]
    for number, step in enumerate(names, 1):
        if step == "**":
            steps.append("(?:/[^/]*)*" if number < len(names) else "(?:/[^/]*)+")  # "/x/**": below /x, not /x
        else:
            steps.append("/" + "[^/]*".join(map(re.escape, step.split("*"))))
    return re.compile("".join(steps), re.DOTALL)
