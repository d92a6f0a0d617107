"""`agentguard merge`: the merges of the guard for files at hand, and for git as a merge driver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .commit import atomic_write
from .config import Config
from .databases import content
from .exceptions import ConfigError
from .merge import Merged, Options, default_strategy, merge

__all__ = ["labels", "merge_files", "path_rules"]


def merge_files(
    base: Path,
    out: Path,
    sides: Sequence[Path],
    *,
    name: str | None = None,
    strategy: str | None = None,
    paths: dict[str, str] | None = None,
    config: Config | None = None,
) -> Merged:
    """Merge files over a base and write the result to `out`, which may be one of them; an absent base is no file.

    `name`: how the resource is called, for its rules in `config` and for the strategy by its suffix; default: that of
    `out`. `out` is written also when there are conflicts, with the base at the conflicting places; it is not touched
    when something cannot be read. Raises `ConfigError`, `MergeConflict` and OSError.
    """
    if len(sides) < 2:
        raise ConfigError("a merge needs at least two versions: agentguard merge --base B --out O A1 A2 ...")
    missing = [side for side in sides if not side.exists()]
    if missing:
        raise ConfigError(f"there is no file {missing[0]}", file=str(missing[0]))
    called = name or out.name
    options = config.resource(called) if config is not None else None
    chosen = strategy or (options.merge if options is not None else None) or default_strategy(called)
    rules = {**(options.paths if options is not None else {}), **(paths or {})}
    contents = {label: content(side) for label, side in zip(labels(sides), sides, strict=True)}
    merged = merge(chosen, content(base), contents, Options(called, rules))
    if merged.value is None:
        out.unlink(missing_ok=True)
    else:
        atomic_write(out, merged.value)
    return merged


def labels(sides: Sequence[Path]) -> list[str]:
    """A name for each version: that of its file, with its number where several have it."""
    names = [side.name for side in sides]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def path_rules(given: Sequence[str]) -> dict[str, str]:
    """`/total=counter` as a rule. Raises `ConfigError`."""
    rules = {}
    for one in given:
        place, sign, strategy = one.rpartition("=")
        if not sign:
            raise ConfigError(f"--path {one!r}: write it as /place=strategy, such as /total=counter", value=one)
        rules[place] = strategy
    return rules
