"""The deep merge of JSON-like values: one pass over the base and all sides at once, never a fold of pairs.

Mappings merge key by key. Lists merge element by element on their differences; what several agents added after the
last element of the base is all kept, in the order of the agents (equal additions once). Everything else is a leaf:
two agents may change it only to the same value, unless its path has a strategy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentguard.codecs.values import same
from agentguard.exceptions import ConfigError
from agentguard.merge.leaves import LEAVES
from agentguard.merge.lines import hunks, regions
from agentguard.merge.rules import Rules, pointer
from agentguard.merge.values import MISSING, Clash, Conflict, Merged, Options, canon, extent, order, settle

_Path = tuple[str, ...]
_Sides = Mapping[str, Any]

_IDENTITY = ("id", "_id", "uuid", "key", "name")
"""Fields that, where a list element has them, say which element it is."""


def merge_values(base: Any, sides: Mapping[str, Any], options: Options | None = None) -> Merged:
    """Merge plain values (dict, list, str, int, float, bool, None; `MISSING` where there is none).

    The same rules as the `json` strategy, without files. Nothing passed in is changed, but the result shares parts
    with it. Raises ConfigError for unknown strategies in `options.paths`.
    """
    merge = _Merge(options or Options())
    touched = {agent: side for agent, side in sides.items() if not same(side, base)}
    if not touched:
        return Merged(base)
    if len(touched) == 1:
        ((agent, side),) = touched.items()
        return Merged(side, (), {agent: max(1, extent(_like(side) if base is MISSING else base, side))})
    value = merge.node((), base, touched)
    changes = {agent: max(1, merge.changes.get(agent, 0)) for agent in touched}
    return Merged(value, tuple(merge.conflicts), changes)


def _like(side: Any) -> Any:
    return type(side)() if type(side) in (dict, list) else MISSING


class _Merge:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.rules = Rules(options.paths)
        self.conflicts: list[Conflict] = []
        self.changes: dict[str, int] = {}

    def count(self, base: Any, sides: _Sides) -> None:
        for agent, side in sides.items():
            self.changes[agent] = self.changes.get(agent, 0) + extent(base, side)

    def node(self, path: _Path, base: Any, sides: _Sides) -> Any:
        """The merged value of one place. `sides` has only the agents whose value differs from the base's."""
        values = list(sides.values())
        if len(values) == 1 or all(value is MISSING for value in values):
            self.count(base, sides)
            return values[0]
        # Under a counter two equal changes are two changes, so equal sides are taken apart all the same.
        agreed = all(same(values[0], value) for value in values[1:])
        if agreed and not self.rules.repeating:
            self.count(base, sides)
            return values[0]
        strategy = self.rules.of(path)
        known, counted = len(self.conflicts), self.changes.copy()
        try:
            if strategy.startswith("list:"):
                return self.records(path, strategy[5:], base, sides)
            if strategy != "json":
                value = LEAVES[strategy](base, sides)
                self.count(base, sides)
                return value
            if all(type(value) is dict for value in values) and (base is MISSING or type(base) is dict):
                return self.mapping(path, {} if base is MISSING else base, sides)
            if all(type(value) is list for value in values) and (base is MISSING or type(base) is list):
                items = [] if base is MISSING else base
                value = self.sequence(path, items, sides)
                self.changes = counted  # of a list, elements are counted and not what changed inside them
                self.count(items, sides)
                return value
            raise Clash(_reason(sides))
        except Clash as clash:
            self.changes = counted
            self.count(base, sides)
            if agreed and strategy != "counter":
                return values[0]
            del self.conflicts[known:]  # conflicts inside a place that is one as a whole
            conflict = Conflict(self.options.resource, pointer(path), base, dict(sides), str(clash))
            return _plain(settle(conflict, self.options, self.conflicts), conflict)

    def mapping(self, path: _Path, base: dict[Any, Any], sides: _Sides) -> dict[Any, Any]:
        changed: dict[Any, dict[str, Any]] = {}
        for agent, side in sides.items():
            for key, value in _differing(base, side):
                changed.setdefault(key, {})[agent] = value
        out = dict(base)
        # New keys after the old ones and sorted, so that the order of agents does not show.
        for key in [*(key for key in base if key in changed), *sorted(changed.keys() - base.keys(), key=order)]:
            value = self.node((*path, str(key)), base.get(key, MISSING), changed[key])
            if value is not MISSING:
                out[key] = value
            else:
                out.pop(key, None)
        return out

    def records(self, path: _Path, key: str, base: Any, sides: _Sides) -> list[Any]:
        """A list of mappings as a mapping by their field `key`; where a record stands in the list is not data."""
        if MISSING in sides.values():
            raise Clash(_reason(sides))
        old = _indexed([] if base is MISSING else base, key, "the base")
        new = {agent: _indexed(value, key, agent) for agent, value in sides.items()}
        return list(self.mapping(path, old, new).values())

    def sequence(self, path: _Path, base: list[Any], sides: _Sides) -> list[Any]:
        numbers: dict[bytes, int] = {}
        pool: list[Any] = []

        def numbered(items: list[Any]) -> list[int]:
            out = []
            for item in items:
                number = numbers.setdefault(canon(item), len(numbers))
                if number == len(pool):
                    pool.append(item)
                out.append(number)
            return out

        start = numbered(base)
        edits = {agent: hunks(start, numbered(value)) for agent, value in sides.items()}
        out: list[Any] = []
        position = 0
        for region in regions(start, edits, touching=False):
            out += base[position : region.lo]
            position = region.hi
            versions = region.distinct()
            if self._edited_in_place(base, region.lo, region.hi, list(region.versions.values()), pool):
                edited = {agent: pool[version[0]] for agent, version in region.versions.items()}
                value = self.node((*path, str(region.lo)), base[region.lo], edited)
                out += [] if value is MISSING else [value]
            elif len(versions) == 1 or region.lo == len(base):
                out += [pool[number] for version in versions for number in version]
            else:
                raise Clash("elements were changed, added or removed differently at one place of the list")
        return out + base[position:]

    def _edited_in_place(self, base: list[Any], lo: int, hi: int, versions: list[list[int]], pool: list[Any]) -> bool:
        if hi - lo != 1 or len(versions) < 2 or any(len(version) != 1 for version in versions):
            return False
        return all(_still_the_same(base[lo], pool[version[0]]) for version in versions)


def _still_the_same(old: Any, new: Any) -> bool:
    """Whether an element was edited rather than replaced, so that edits of several agents may be put together: it has
    kept the fields that identify it, and at least half of all its fields."""
    if type(old) is not dict or type(new) is not dict:
        return False
    if any(field in old and not same(old[field], new.get(field, MISSING)) for field in _IDENTITY):
        return False
    return 2 * sum(same(value, new.get(key, MISSING)) for key, value in old.items()) >= len(old)


def _differing(base: dict[Any, Any], side: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    for key, value in side.items():
        old = base.get(key, MISSING)
        if value is not old and not same(value, old):
            yield key, value
    for key in base.keys() - side.keys():
        yield key, MISSING


def _indexed(items: Any, key: str, whose: str) -> dict[Any, Any]:
    if type(items) is not list:
        raise Clash(f"a list of records is needed, and {whose} has something else")
    out: dict[Any, Any] = {}
    for item in items:
        if type(item) is not dict or key not in item:
            raise Clash(f"a record of {whose} has no field {key!r}")
        name = item[key]
        if type(name) not in (str, int):
            raise Clash(f"the field {key!r} of a record of {whose} is neither a text nor an integer")
        if name in out:
            raise Clash(f"two records of {whose} have {name!r} as {key!r}")
        out[name] = item
    return out


def _reason(sides: _Sides) -> str:
    gone = [agent for agent, value in sides.items() if value is MISSING]
    if gone:
        return f"deleted by {', '.join(gone)} and changed by others"
    if len({type(value) for value in sides.values()}) > 1:
        return "changed to values of different types"
    return "changed to different values"


def _plain(value: Any, conflict: Conflict) -> Any:
    """`value` if it can stand in a document; a resolver may have returned anything."""
    if value is conflict.base or any(value is side for side in conflict.sides.values()):
        return value
    if not _is_plain(value) and value is not MISSING:
        raise ConfigError(
            f"the resolver returned {value!r:.80} for {conflict.path or 'the whole'} of "
            f"{conflict.resource or 'the resource'}; it has to return plain data (dict with text keys, list, str, "
            "finite numbers, bool, None) or MISSING",
            resource=conflict.resource,
            value=value,
        )
    return value


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is float:
        return value - value == 0  # neither NaN nor infinite
    return value is None or type(value) in (str, int, bool)
