"""One guarded call while it runs: what it may touch, where it works on it, and what its commit publishes."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commit import UNFINISHED, Delete, Replace
from .conflicts import keep
from .declaration import Access
from .exceptions import LockLost, StaleWrite, UndeclaredWrite
from .locks import Claim, Mode, Ticket
from .outline import Batch, Outline, Part
from .redirect import CURRENT, Place, check_untouched, leftovers, rewritten, undeclared
from .resources import Resource
from .shards import Identity
from .versions import ABSENT, Known, diff, signature, small_text

if TYPE_CHECKING:
    from .guard import Guard

__all__ = ["Call"]


class Call:
    """One call while it runs: what it may touch, and where. `active` from the grant to the commit."""

    active = False
    _folder: Path | None = None  # of the copies

    def __init__(
        self,
        guard: Guard,
        identity: Identity,
        tool: str,
        outline: Outline,
        arguments: Mapping[str, Any],
        *,
        timeout: float | None = None,
        loop: int | None = None,
    ) -> None:
        self.guard = guard
        self.identity = identity
        self.tool = tool
        self.outline = outline
        self.arguments = arguments
        self.timeout = timeout
        outer = CURRENT.get()
        self.parent: Call | None = outer if outer is not None and outer.active else None
        inside = self.parent.claim if self.parent is not None else None
        self.claim: Claim = Claim(guard.owner(identity.agent, identity.run, tool, loop), inside)
        self.tokens: dict[str, int | None] = {}  # for events, by the resource's id
        self.names: dict[str, str] = {}  # path of a copy -> the spelling that was asked for
        self._learned: dict[str, Known] = {}
        self._mutex = threading.Lock()
        self.places: dict[str, Place] = {}  # by the resource's id
        for part in outline.parts:
            self.places[part.resource.id] = Place(part)

    # -- what is locked ---

    def _shards(self, place: Place) -> bool:
        """Whether this place is a shard's: the resource says so, somebody will join, and no parent call has it."""
        if place.resource.path is None:
            return False
        if self.identity.shard is None:
            if place.exclusive:
                self.guard.warn_unjoined(place.resource.name, self.tool)
            return False
        if place.resource.directory:
            raise UndeclaredWrite(
                f"{self.tool}: the directory {place.resource.name!r} is in shard mode, which works file by file. "
                "Declare the files it writes.",
                resource=place.resource.name,
                tool=self.tool,
            )
        return True

    def locks(self) -> Sequence[Batch]:
        """Everything to lock, in order: the resources' own keys first, then those inside this agent's shard."""
        if self.outline.batches is not None:
            return self.outline.batches
        wanted: list[tuple[Resource, bool]] = []
        inner: list[tuple[str, Mode]] = []
        for place in self.places.values():
            if place.options.mode == "shard" and self._shards(place):
                place.sharded = True
                wanted.append((place.resource, False))  # keeps joins out; other agents' shards share it
                key = f"shard:{self.identity.run}/{self.identity.shard}/{place.resource.id}"
                inner.append((key, Mode.EXCLUSIVE if place.exclusive else Mode.SHARED))
            else:
                wanted.append((place.resource, place.exclusive))
        return [*self.guard.batches(tuple(wanted)), (self.guard.shard_locks, sorted(inner, key=lambda item: item[0]))]

    def limit(self, key: str) -> float:
        """How long (seconds) this call may wait for a key, in all: its own time-out, else the resource's."""
        if self.timeout is not None:
            return self.timeout
        found = {place.resource.key: place.options.timeout or 0.0 for place in self.places.values()}
        return found[key] if key in found else max([*found.values(), self.guard.timeout])  # a directory above

    # -- where it works ---

    def settle_places(self) -> None:
        """Decide for each place where its content is for this call. Called with every lock held."""
        for place in self.places.values():
            if place.resource.path is None:
                continue
            outer = self._outer(place.resource)
            if outer is not None:
                call, found = outer
                if place.exclusive and not found.in_place:
                    place.target = call.stage(found)
                else:
                    place.target = found.staged or found.target
            elif place.sharded:
                place.pinned = signature(place.resource.path)
                if place.exclusive:
                    _, place.entry = self.guard.shards.fork(self.identity, place.resource)
                    place.target = place.entry.ours
                else:
                    shard = self.guard.shards.current(self.identity)
                    entry = shard.entries.get(place.resource.id) if shard is not None else None
                    if entry is not None:
                        place.target = entry.ours
                    else:
                        inherited = self.guard.shards.inherited(self.identity, place.resource.id)
                        place.target = inherited or place.resource.path

    def _outer(self, resource: Resource) -> tuple[Call, Place] | None:
        call = self.parent
        while call is not None:
            found = call._find(resource) if call.active else None
            if found is not None and found.exclusive:
                return call, found
            call = call.parent
        return None

    def _find(self, resource: Resource) -> Place | None:
        place = self.places.get(resource.id)
        if place is None and resource.path is not None:
            for other in list(self.places.values()):
                if other.resource.directory and other.resource.path in resource.path.parents:
                    # A file beneath a declared directory becomes a place of its own, at its first use.
                    options = self.guard.config.resource(resource.name)
                    place = Place(Part(resource, other.exclusive, other.update, options))
                    self.places[resource.id] = place
                    break
        return place

    def stage(self, place: Place, *, copy: bool = True) -> Path:
        with self._mutex:
            if self._folder is None:
                self._folder = self.guard.home.stage_folder()
            staged = place.stage(self._folder, self.guard.root, copy=copy)
            self.names.setdefault(str(staged), place.asked or place.resource.name)
            return staged

    def ticket(self, resource: Resource) -> Ticket | None:
        """The granted ticket of a resource that this call locks itself; None when there is none."""
        ticket = self.claim.held.get(resource.key)
        while ticket is not None and ticket.table is not self.guard.table(resource.home):
            ticket = ticket.earlier
        return ticket

    def token(self, resource: Resource) -> int | None:
        """The fencing token under which this call holds a resource; None when it does not."""
        ticket = self.ticket(resource)
        return ticket.token if ticket is not None else None

    def path(self, name: str | os.PathLike[str]) -> Path:
        """See `agentguard.path`."""
        given = os.fspath(name)
        for one in list(self.places.values()):
            if given == str(one.staged) or (given == str(one.target) and (one.in_place or not one.exclusive)):
                return Path(given)  # an argument that was rewritten to where the call works already
        resource = self.guard.resources.resolve(name, self.tool)
        place = self._find(resource)
        if place is None:
            outer = self._outer(resource)
            if outer is not None:
                return outer[0].path(name)
            raise undeclared(
                os.fspath(name), self.tool, self.identity.agent, (p.resource.name for p in self.places.values())
            )
        if resource.path is None:
            raise UndeclaredWrite(
                f"{resource.name!r} is a key, not a file: it has no path. Use hold.token({resource.name!r}) to fence "
                "what you write.",
                resource=resource.name,
                tool=self.tool,
            )
        place.asked = place.asked or os.fspath(name)
        if not place.exclusive or place.in_place:
            return place.target
        return self.stage(place)

    def rewritten_arguments(self) -> dict[str, Any]:
        """The arguments that lead the tool to its copies; makes those copies."""
        if self.outline.declaration.redirect == "none":
            return {}

        def place_of(access: Access) -> Path | None:
            resource = self.guard.resources.resolve(access.name, self.tool)
            place = self.places[resource.id]
            if resource.path is None or resource.directory:
                return None
            given = self.arguments[access.argument or ""]
            asked = os.fspath(given if access.index is None else given[access.index]) + access.suffix
            place.asked = asked
            if place.exclusive and not place.in_place:
                return self.stage(place)
            # Read where it is; a relative spelling would be looked up in the working directory, not in the root.
            return place.target if os.path.realpath(asked) != str(place.target) else None

        return rewritten(self.outline.accesses, self.arguments, place_of, self.names)

    def has_beginning(self) -> bool:
        """Whether anything is to be done between the grant and the body. With the locks held."""
        if self.outline.begins or self.parent is not None or (UNFINISHED and self.guard.suspect()):
            return True
        for ticket in self.claim.held.values():
            if ticket.foreign or ticket.earlier is not None:
                return True
        knowledge = self.guard.knowledge
        if knowledge.anything:
            for key in self.places:
                if knowledge.get(self.identity.run, self.identity.agent, key) is not None:
                    return True
        return False

    def recover_pending(self) -> None:
        """Finish a commit that another process began on one of our files and was killed in; see `Ticket.foreign`."""
        tickets = self.claim.tickets()
        if self.guard.suspect() or any(ticket.foreign for ticket in tickets):
            self.guard.recover_pending([place.resource for place in self.places.values()])
            for ticket in tickets:
                ticket.table.known(ticket)

    def has_end(self) -> bool:
        """Whether something must be checked or published after the body."""
        if self._folder is not None:
            return True
        for place in self.places.values():  # noqa: SIM110 - a generator costs more than all of this
            if place.entry is not None:
                return True
        return False

    # -- checks ---

    def check_stale(self) -> None:
        """Refuse a write that is based on an older version than the current one. Under the exclusive lock."""
        knowledge, identity = self.guard.knowledge, self.identity
        for key, place in self.places.items():
            if not place.exclusive or place.update or place.resource.path is None or place.resource.directory:
                continue
            known = knowledge.get(identity.run, identity.agent, key)
            options = place.options
            must_read = options.require_read
            if options.stale == "ignore" or (known is None and not must_read):
                continue
            current = self.guard.versions.of(place.target)
            if known is None:
                if current != ABSENT:
                    raise self._stale(place, None, current)
            elif current != known.version:
                raise self._stale(place, known, current)

    def _stale(self, place: Place, known: Known | None, current: str) -> StaleWrite:
        name, identity = place.resource.name, self.identity
        change = self.guard.knowledge.last_change(place.resource.id)
        if change is not None and change.version not in (None, current):
            change = None  # somebody else came after the last writer that we know
        text = diff(known.text, small_text(place.target)) if known is not None else ""
        if known is None:
            what = f"{name} was never read by agent {identity.agent!r}, and it must be (require_read)."
        else:
            who = f"agent {change.agent!r} in {change.tool}" if change else "somebody outside this process's guard"
            when = f" at {_clock(change.at)}" if change else ""
            what = (
                f"{name} was changed by {who}{when}, after agent {identity.agent!r} read it at {_clock(known.at)} "
                f"(version {known.version[:8]}, now {current[:8]})."
            )
        shown = f"\nWhat changed:\n{text}" if text else ""
        return StaleWrite(
            f"Conflict: {what} Nothing was applied. Read {name} again, then retry {self.tool}.{shown}",
            resource=name,
            agent=identity.agent,
            tool=self.tool,
            read_version=known.version if known else None,
            current_version=current,
            changed_by=f"{change.agent} in {change.tool}" if change else None,
            changed_at=change.at if change else None,
            diff=text,
        )

    def _check_isolation(self) -> None:
        for place in self.places.values():
            if place.entry is None or place.staged is not None or place.resource.path is None:
                continue
            if signature(place.resource.path) != place.pinned:
                name = place.resource.name
                raise UndeclaredWrite(
                    f"{self.tool} of agent {self.identity.agent!r} wrote to {name} itself, which is in shard "
                    f"mode: other agents may have seen it before the join. Let it write to path({name!r}), take the "
                    f'path as an argument, or set mode = "serialize" for {name}.',
                    resource=name,
                    tool=self.tool,
                    agent=self.identity.agent,
                )

    # -- commit, discard, remember ---

    def commit(self) -> None:
        """Publish every copy, all or none. Raises before anything is applied, or `InDoubt` after."""
        if self._folder is None:
            return
        extra = leftovers(self._folder, (place.staged for place in self.places.values()))
        if extra:
            kept = self._keep("undeclared")
            names = ", ".join(sorted(os.path.relpath(file, self._folder) for file in extra)[:5])
            raise UndeclaredWrite(
                f"{self.tool} of agent {self.identity.agent!r} also wrote {names}, which it does not declare. Nothing "
                f"was applied; its files are kept in {kept}. Declare what it writes, or let it put temporary files "
                "elsewhere.",
                resource=names,
                tool=self.tool,
                agent=self.identity.agent,
                folder=str(kept),
            )
        try:
            for ticket in self.claim.tickets():
                if not ticket.mode.intent:
                    ticket.table.verify(ticket)
        except LockLost as error:
            error.fields["folder"] = str(self._keep("its lock was lost"))
            raise
        try:
            check_untouched(self.places.values(), self.tool, self.identity.agent)
        except StaleWrite as error:
            error.fields["folder"] = str(self._keep("overtaken"))
            raise
        changes: list[Replace | Delete] = []
        inner: list[Replace | Delete] = []
        durable = False
        for key, place in self.places.items():
            change = place.change()
            if change is None:
                continue
            if self._outer(place.resource) is not None:
                inner.append(change)  # into the parent call's copy: published, or discarded, with it
            else:
                changes.append(change)
                durable = durable or bool(place.options.durable)
            self._note(key, place, change)
        if changes:
            self.guard.home.journal.commit(changes, durable=durable)
        for change in inner:
            if isinstance(change, Replace):
                os.replace(change.source, change.target)
            else:
                change.target.unlink(missing_ok=True)

    def _note(self, key: str, place: Place, change: Replace | Delete) -> None:
        """The agent's own change moves its version along, if it knew the one that it changed."""
        known = self.guard.knowledge.get(self.identity.run, self.identity.agent, key)
        if known is None or known.version != self.guard.versions.of(place.target):
            return
        if isinstance(change, Replace):
            version = self.guard.versions.of(change.source)
            self._learned[key] = Known(version, time.time(), small_text(change.source))
        else:
            self._learned[key] = Known(ABSENT, time.time())

    def note_reads(self) -> None:
        """Remember the versions that this call is about to read. Under the lock."""
        for key, place in self.places.items():
            if place.exclusive or place.resource.path is None or place.resource.directory:
                continue
            self._learned[key] = Known(self.guard.versions.of(place.target), time.time(), small_text(place.target))

    def remember(self) -> None:
        """After success: what the agent knows now, and who wrote last."""
        identity, knowledge = self.identity, self.guard.knowledge
        learned = self._learned
        now = time.time()
        for key, place in self.places.items():
            if learned and key in learned:
                knowledge.read(identity.run, identity.agent, key, learned[key])
            if place.exclusive:
                version = learned[key].version if learned and key in learned else None
                knowledge.wrote(key, identity.agent, self.tool, now, version)

    def _keep(self, why: str) -> Path:
        assert self._folder is not None
        kept = keep(self.guard.home, self._folder, f"{why}: {self.tool} of agent {self.identity.agent!r}")
        self._folder = None
        return kept

    def discard(self) -> None:
        """Remove what is left of the copies."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
