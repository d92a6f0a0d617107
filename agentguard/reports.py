"""What a join says it has done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .merge import Conflict

__all__ = ["JoinReport", "ResourceReport"]

_AGENTS = 5  # named in the table; the rest is counted


@dataclass(frozen=True, slots=True)
class ResourceReport:
    """What a join did to one resource.

    `shards`: how many were merged into it. `changes`: how many records (logs, lists), rows or cells (CSV, SQLite), keys
    and leaves (JSON, YAML, TOML) or lines (text) each agent changed, 1 for a file as a whole; agents that changed
    nothing are not in it, a further shard of one agent counts as `agent (2)`. `conflicts`: those that were parked.
    `bytes`: of the resource afterwards, 0 when it was deleted. `seconds`: spent on reading and merging it. `renamed`:
    what it was called before, if an agent renamed it.
    """

    resource: str
    strategy: str
    shards: int
    changes: Mapping[str, int]
    conflicts: tuple[Conflict, ...]
    bytes: int
    seconds: float
    renamed: str | None = None


@dataclass(frozen=True, slots=True)
class JoinReport:
    """What a join did. False when there was nothing to merge; `print` it for people.

    `resources`: one report for each, in the order of their names. `seconds`: of the whole join, waiting for calls that
    still wrote and committing included. `shards`: how many were merged, each counted once.
    """

    run: str
    resources: tuple[ResourceReport, ...]
    seconds: float
    shards: int = 0

    def __bool__(self) -> bool:
        return bool(self.resources)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """All that were parked."""
        return tuple(conflict for one in self.resources for conflict in one.conflicts)

    def __str__(self) -> str:
        if not self.resources:
            return "joined nothing: no agent of this run has an open shard"
        parked = f", {_count(len(self.conflicts), 'conflict')} parked" if self.conflicts else ""
        head = (
            f"joined {_count(self.shards, 'shard')} into {_count(len(self.resources), 'resource')} "
            f"in {self.seconds:.3f} s{parked}"
        )
        rows = [("resource", "strategy", "shards", "conflicts", "bytes", "seconds", "changed by each agent")]
        rows += [
            (
                one.resource if one.renamed is None else f"{one.renamed} -> {one.resource}",
                one.strategy,
                f"{one.shards:,}",
                f"{len(one.conflicts):,}",
                f"{one.bytes:,}",
                f"{one.seconds:.3f}",
                _changes(one.changes),
            )
            for one in self.resources
        ]
        return "\n".join([head, *_table(rows)])


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _changes(changes: Mapping[str, int]) -> str:
    if not changes:
        return "nothing"
    named = [f"{agent} {count:,}" for agent, count in [*changes.items()][:_AGENTS]]
    left = len(changes) - len(named)
    return ", ".join(named) + (f" and {_count(left, 'more agent')}" if left else "")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width: the first two and the last to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if at in (0, 1, len(row) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
