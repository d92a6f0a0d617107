"""Which definitions a merged SQLite database has, and with whose file the merge begins.

Tables, indexes, views and triggers that agents added can be defined in any file. A table that was altered or dropped
cannot, so the merge begins with the file of the agent who did that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentguard.merge.sqlite_versions import Schema, Side, exact, opened, quoted
from agentguard.merge.values import Clash


@dataclass(frozen=True)
class Plan:
    """`first`: with whose file to begin (None: the base); it has this agent's changes already. `wanted`: what to define
    in it besides, or (None) to drop."""

    first: str | None
    wanted: Mapping[tuple[str, str], str | None]


def planned(base: Schema, found: Mapping[str, Side], versions: Mapping[str, bytes]) -> Plan:
    """Raises `Clash` where the definitions do not fit each other, or the rows that others changed."""
    made: dict[tuple[str, str], dict[str, str | None]] = {}
    for agent, side in found.items():
        for one in {*base, *side.schema}:
            if side.schema.get(one) != base.get(one):
                made.setdefault(one, {})[agent] = side.schema.get(one)
    altered: dict[str, dict[str, str | None]] = {}
    for (kind, name), by in sorted(made.items()):
        if len(set(by.values())) > 1:
            raise Clash(f"its schema was changed differently by {', '.join(by)}: the {kind} {name}")
        if kind == "table" and ((kind, name) in base or any(name in found[agent].modules for agent in by)):
            altered[name] = by
            others = [agent for agent, side in found.items() if name in side.touched() and agent not in by]
            if others:
                raise Clash(f"{', '.join(by)} changed the schema of {name}, and {', '.join(others)} rows in it")
            gone = None in by.values()
            if len(by) > 1 and not gone and not _equal(name, [versions[agent] for agent in by]):
                raise Clash(f"its schema was changed by {', '.join(by)} alike, and rows in {name} differently")
    able = [agent for agent in found if all(agent in by for by in altered.values())]
    first = next((agent for agent in able if any(agent in by for by in made.values())), None)
    if altered and first is None:
        who = dict.fromkeys(agent for by in altered.values() for agent in by)
        raise Clash(f"tables were altered or dropped by {', '.join(who)}, each another one: {', '.join(altered)}")
    return Plan(first, {one: next(iter(by.values())) for one, by in made.items() if first not in by})


def _equal(name: str, versions: list[bytes]) -> bool:
    contents = []
    for data in versions:
        with opened(data) as database:
            contents.append(exact(tuple(database.execute(f"SELECT * FROM {quoted(name)}"))))  # noqa: S608 (quoted)
    return all(one == contents[0] for one in contents)
