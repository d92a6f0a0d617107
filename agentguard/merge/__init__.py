"""Merge what several agents made of one base: pure functions, one pass over all sides, never a fold of pairs.

    merged = merge("json", base, {"researcher": b"...", "writer": b"..."}, Options(resource="findings.json"))
    merged.value        # the bytes to publish (None: no file); at a conflict the base's content stays
    merged.conflicts    # every place that could not be settled
    merged.changes      # how much each agent changed

For every strategy: nobody changed it, the base; one agent changed it, that version as it is (only `append:KEY` looks at
it); one deleted it and another changed it, a conflict. Sides come in the order that decides where order matters
(additions at one place).

    strategy    merges                                      conflict when
    json        keys, list elements, values, see `paths`    one leaf changed differently, delete against change
    yaml, toml  as json; comments kept                      as json
    text        lines; additions at the end all kept        touching changes differ
    union       as text; additions kept anywhere            overlapping changes of base lines differ
    append      additions to a log; equal ones all kept     what was there was changed
    append:KEY  the same, each record once, by its KEY      as append; one KEY, different records
    sqlite      rows by primary key, cell by cell           one cell changed differently, delete against change
    csv         rows by their key column, cell by cell      one cell changed differently, delete against change
    binary      nothing                                     different contents
    first, last the first or last agent's version, silently never

Inside structured data a path may have `counter`, `set`, `list:KEY`, `max`, `min`, `first`, `last`, `append`, `text`,
`binary` or `json`. A name from this list that the table lacks, given for a whole file, means JSON with that rule at the
top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec

from agentguard.exceptions import ConfigError
from agentguard.merge import rules
from agentguard.merge import text as _text
from agentguard.merge.documents import JSON, TOML, YAML, merge_document
from agentguard.merge.rules import PATH_STRATEGIES, check_path, check_path_strategy, default_strategy
from agentguard.merge.tree import merge_values
from agentguard.merge.values import MISSING, Conflict, Merged, Missing, Options, Resolver

__all__ = [
    "MISSING",
    "Conflict",
    "Merged",
    "Missing",
    "Options",
    "Resolver",
    "Strategy",
    "check_installed",
    "check_path",
    "check_path_strategy",
    "check_strategy",
    "default_strategy",
    "merge",
    "merge_values",
    "register",
    "strategies",
]

Strategy = Callable[[bytes | None, Mapping[str, bytes], Options], Merged]
"""A merge of whole files: gets the base (None: there was no file) and the versions of the agents who changed it."""


def _json(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    from agentguard.merge.members import merge_members

    return merge_members(base, sides, options) or merge_document(JSON, base, sides, options)


def _append_once(base: bytes | None, sides: Mapping[str, bytes], options: Options, key: str) -> Merged:
    from agentguard.merge.once import append_once

    return append_once(base, sides, options, key)


def _csv(base: bytes | None, sides: Mapping[str, bytes], options: Options, key: str | None = None) -> Merged:
    from agentguard.merge.rows import csv

    return csv(base, sides, options, key)


def _sqlite(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    check_installed("sqlite")
    from agentguard.merge.database import sqlite

    return sqlite(base, sides, options)


def _yaml(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    return merge_document(YAML, base, sides, options)


def _toml(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    return merge_document(TOML, base, sides, options)


_strategies: dict[str, Strategy] = {
    "append": _text.append,
    "binary": _text.binary,
    "csv": _csv,
    "json": _json,
    "sqlite": _sqlite,
    "text": _text.text,
    "toml": _toml,
    "union": _text.union,
    "yaml": _yaml,
}
_WINNERS = {"first": 0, "last": -1}
_PLAIN = Options()


def strategies() -> tuple[str, ...]:
    """The names that `merge` knows; in `append:KEY`, `csv:KEY` and `list:KEY`, KEY is any field or column."""
    return tuple(sorted({*_strategies, *_WINNERS, *PATH_STRATEGIES, "append:KEY", "csv:KEY"}))


def check_strategy(name: str) -> None:
    """Raise ConfigError, with the nearest valid word as `nearest`, unless `merge` knows the strategy `name`."""
    rules.check(name, strategies(), "merge strategy")


def check_installed(strategy: str) -> None:
    """Raise ConfigError, with the command that installs it, if a strategy needs a library that is not there."""
    if strategy == "sqlite" and find_spec("apsw") is None:
        raise ConfigError(
            "merging SQLite databases needs apsw, which is not installed: pip install 'agentguard[sqlite]'",
            value=strategy,
        )


def register(name: str, function: Strategy) -> None:
    """Add a strategy for whole files under `name`, for the life of the process.

    `function(base, sides, options)` is called only if at least two agents changed the file and nobody deleted it. Equal
    versions are passed like different ones. Raises ConfigError if the name is taken or has characters other than
    letters, digits, "_", "-" and ".".
    """
    if name in strategies() or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise ConfigError(f"the merge strategy {name!r} cannot be registered: taken, or not a plain name", value=name)

    def with_sole_writer(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
        if len(sides) == 1:
            return Merged(next(iter(sides.values())), (), dict.fromkeys(sides, 1))
        merged: object = function(base, sides, options)
        if not isinstance(merged, Merged) or not isinstance(merged.value, (bytes, type(None))):
            raise ConfigError(f"the merge strategy {name!r} has to return a Merged whose value is bytes or None")
        return merged

    _strategies[name] = with_sole_writer


def merge(strategy: str, base: bytes | None, sides: Mapping[str, bytes | None], options: Options = _PLAIN) -> Merged:
    """Merge `sides` ({agent: content}, in the order that decides) over `base`; None is a file that is not there.

    Returns the merged content (None: no file) with all conflicts found; does no I/O. Raises ConfigError for an unknown
    strategy, in `options.paths` too, and MergeConflict if a version that is needed cannot be read in its format
    (fields: `conflicts`, `resources`, `agent`, `line`, `column`).
    """
    check_strategy(strategy)
    rules.Rules(options.paths)
    touched = {agent: data for agent, data in sides.items() if data != base}
    if not touched:
        return Merged(base)
    if strategy in _WINNERS:
        return Merged(list(touched.values())[_WINNERS[strategy]], (), dict.fromkeys(touched, 1))
    written = {agent: data for agent, data in touched.items() if data is not None}
    if not written:
        return Merged(None, (), dict.fromkeys(touched, 1))
    if len(written) < len(touched):
        gone = ", ".join(agent for agent in touched if agent not in written)
        return _text.whole(base, touched, options, f"deleted by {gone} and changed by others")
    word, _, key = strategy.partition(":")
    if word == "csv":
        return _csv(base, written, options, key or None)
    if word == "append" and key:
        return _append_once(base, written, options, key)
    if strategy not in _strategies:
        strategy, options = "json", replace(options, paths={**options.paths, "": strategy})
    return _strategies[strategy](base, written, options)
