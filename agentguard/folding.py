"""Merge what several shards made of one resource: pure.

Entries form a forest, since a later node of one branch starts from the earlier one's content; each tree is folded into
one side, and all sides of one base are merged with the current content in one N-way pass.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .merge import Conflict, Merged

__all__ = ["CURRENT_SIDE", "Merge", "Side", "fold", "label", "moves"]

CURRENT_SIDE = "(current)"


@dataclass(frozen=True, slots=True)
class Side:
    """One entry's content, as the merge sees it. `parent`: the entry it was forked from, if that is a side too."""

    id: str
    agent: str
    base: bytes | None
    ours: bytes | None
    forked: float
    parent: str | None = None


Merge = Callable[["bytes | None", "Mapping[str, bytes | None]"], "Merged"]


def fold(
    sides: Sequence[Side], current: bytes | None, merge_: Merge
) -> tuple[bytes | None, list[Conflict], dict[str, int]]:
    """Merge sides (in merge order) into the current content: (content, conflicts, changes by agent).

    Sides with one base are merged with it in one pass, together with the current content where that has moved on;
    different bases one after another, in the order in which they were forked.
    """
    conflicts: list[Conflict] = []
    changes: dict[str, int] = {}
    ids = {side.id for side in sides}
    children: dict[str | None, list[Side]] = {}
    for side in sides:
        children.setdefault(side.parent if side.parent in ids else None, []).append(side)

    def count(found: Mapping[str, int], own: Container[str]) -> None:
        for agent, number in found.items():
            if agent in own:
                changes[agent] = changes.get(agent, 0) + number

    def combine(content: bytes | None, whose: str, found: Sequence[Side]) -> bytes | None:
        """Merge sides into a content that is `whose`: the current one, or that of the side they were forked from."""
        groups: dict[bytes | None, list[Side]] = {}
        for side in found:
            groups.setdefault(side.base, []).append(side)
        for base, group in sorted(groups.items(), key=lambda item: min(side.forked for side in item[1])):
            values: dict[str, bytes | None] = {} if content == base else {whose: content}
            plain: set[str] = set()
            for side in group:
                name = label(side.agent, values)
                if side.id in children:
                    values[name] = combine(side.ours, name, children[side.id])
                    count(merge_(side.base, {name: side.ours}).changes, {name})  # without what its children changed
                else:
                    values[name] = side.ours
                    plain.add(name)
            merged = merge_(base, values)
            conflicts.extend(merged.conflicts)
            count(merged.changes, plain)
            content = merged.value
        return content

    content = combine(current, CURRENT_SIDE, children.get(None, []))
    return content, conflicts, changes


def label(agent: str, taken: Container[str]) -> str:
    """A name for one more side, since an agent may have several."""
    name, number = agent, 1
    while name in taken or name == CURRENT_SIDE:
        number += 1
        name = f"{agent} ({number})"
    return name


def moves(renamed: Sequence[Mapping[str, str]], touched: Mapping[str, int], missing: Container[str]) -> dict[str, str]:
    """Which files were renamed, old key to new key, so that what others changed in the old one goes to the new one.

    `renamed`: for each shard what it deleted under one name and added, unchanged, under another. `touched`: how many
    shards have an entry of a key. `missing`: keys of files that are not there now. Only where it cannot be meant in two
    ways: everybody who renamed the file gave it the same name, which nobody else uses.
    """
    to: dict[str, set[str]] = {}
    came: dict[str, list[str]] = {}
    for one in renamed:
        for old, new in one.items():
            to.setdefault(old, set()).add(new)
            came.setdefault(new, []).append(old)
    return {
        old: new
        for old, (new, *others) in ((old, [*news]) for old, news in to.items())
        if not others and set(came[new]) == {old} and touched[new] == len(came[new]) and new in missing
    }
