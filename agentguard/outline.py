"""What a declaration comes to, before anybody calls: its resources, their options, and what to lock in which order.

Where a declaration has no fields this is worked out once and used again, as long as its names mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .declaration import Access, Declaration
from .exceptions import UndeclaredWrite
from .locks import LockTable, Mode
from .resources import Resource, still

if TYPE_CHECKING:
    from .config import ResourceConfig
    from .guard import Guard

__all__ = ["Batch", "Outline", "Part", "check_directory", "options_of", "outline"]

Batch = tuple[LockTable, Sequence[tuple[str, Mode]]]  # keys of one table, in their order


@dataclass(frozen=True, slots=True)
class Part:
    """One resource of a call, and how the call uses it."""

    resource: Resource
    exclusive: bool
    update: bool
    read: bool  # besides being written, as the declaration says
    options: ResourceConfig
    version: Callable[[str], Any] | None  # the user's own way to tell its version
    shard: bool = False  # in shard mode, as it is or as a directory above it is


class Outline:
    """All of a call's resources. `batches` is None where it depends on who calls (shard mode)."""

    __slots__ = ("_checks", "accesses", "announces", "batches", "begins", "declaration", "parts")

    def __init__(self, guard: Guard, declaration: Declaration, arguments: Mapping[str, Any], tool: str) -> None:
        self.declaration = declaration
        self.accesses = declaration.accesses(arguments, tool)
        self.parts = tuple(_parts(guard, self.accesses, tool, declaration.version))
        shards = any(part.shard for part in self.parts)
        # Whether there is something to do between the grant and the body, whoever calls.
        self.begins = shards or any(
            access.argument is not None or not access.exclusive for access in self.accesses
        ) or any(part.options.require_read for part in self.parts)  # fmt: skip
        # Whether a key is written, of whose changes only the guard can keep the record.
        self.announces = any(part.exclusive and part.resource.path is None for part in self.parts)
        self.batches = None if shards else guard.batches(tuple((p.resource, p.exclusive) for p in self.parts))
        checks = [guard.resources.recall(access.name) for access in self.accesses]
        self._checks = None if declaration.fixed is None or None in checks else [c for c in checks if c is not None]

    def holds(self) -> bool:
        """Whether it can be used again: every name means what it meant."""
        if self._checks is None:
            return False
        for steps, resource in self._checks:  # noqa: SIM110 - a generator costs more than the look
            if not still(steps, resource):
                return False
        return True


def outline(guard: Guard, declaration: Declaration, arguments: Mapping[str, Any], tool: str) -> Outline:
    """The outline of a call. Raises `UndeclaredWrite` for a name that leaves the root, or a directory that is missing;
    `ConfigError` for one that cannot be meant."""
    known = guard.outlines
    found = known.get(id(declaration))
    if found is not None and found.declaration is declaration and found.holds():
        return found
    made = Outline(guard, declaration, arguments, tool)
    if declaration.fixed is not None:
        if len(known) > 1000:
            known.clear()
        known[id(declaration)] = made
    return made


def _parts(
    guard: Guard, accesses: Sequence[Access], tool: str, declared_version: Callable[[str], Any] | None
) -> list[Part]:
    parts: dict[str, Part] = {}
    for access in accesses:
        resource = guard.resources.resolve(access.name, tool)
        options, shard = options_of(guard, resource)
        if not shard:
            check_directory(guard, resource, tool)
        exclusive, update, read = access.exclusive, access.kind == "updates", False
        earlier = parts.get(resource.id)
        if earlier is not None:
            read = earlier.read or exclusive is not earlier.exclusive
            exclusive, update = exclusive or earlier.exclusive, update or earlier.update
        version = guard.version_of(options) or (declared_version if _has_no_content(resource) else None)
        parts[resource.id] = Part(resource, exclusive, update, read, options, version, shard)
    return list(parts.values())


def check_directory(guard: Guard, resource: Resource, tool: str) -> None:
    """Raise `UndeclaredWrite` for a directory that is not there: outside of shards it is worked on as it is."""
    if resource.directory and resource.path is not None and not resource.path.is_dir():
        raise UndeclaredWrite(
            f"{tool}: the directory {resource.name!r} does not exist under {guard.root}. Nothing was "
            f"applied; create it first, or declare the files themselves.",
            resource=resource.name,
            tool=tool,
        )


def options_of(guard: Guard, resource: Resource) -> tuple[ResourceConfig, bool]:
    """What applies to a resource, and whether it is in shard mode: what lies in a directory that is configured so, by
    its name, is too, unless its own entry says otherwise."""
    options = guard.config.resource(resource.name)
    if options.mode == "shard" or "mode" in options.model_fields_set or resource.path is None:
        return options, options.mode == "shard"
    for directory in guard.sharded_directories:
        if directory == "." or resource.name.startswith(directory + "/"):
            return options, True
    return options, False


def _has_no_content(resource: Resource) -> bool:
    return resource.path is None or resource.directory
