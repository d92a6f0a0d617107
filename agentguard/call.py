"""One guarded call while it runs: what it may touch, where it works on it, and what its commit publishes."""

from __future__ import annotations

import contextlib
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
from .exceptions import AgentGuardError, LockLost, StaleWrite, UndeclaredWrite
from .knowledge import Known
from .late import too_late
from .locks import Claim, Ticket
from .outline import Batch, Outline, Part, check_directory
from .redirect import CURRENT, Place, check_untouched, leftovers, rewritten, undeclared
from .resources import Resource, plan
from .shards import Identity
from .versions import signature

if TYPE_CHECKING:
    from .freshness import Freshness
    from .guard import Guard
    from .turns import Seat

__all__ = ["Call"]


class Call:
    """One call while it runs: what it may touch, and where. `active` from the grant to the commit."""

    active = False
    began = 0  # ns since the epoch: when every lock was held
    fresh: Freshness | None = None  # where there is anything to check or to note
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
        seat: Seat | None = None,
    ) -> None:
        self.guard = guard
        self.seat = seat  # in the turn of a model that makes several calls at once
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
            check_directory(self.guard, place.resource, self.tool)
            if place.exclusive:
                self.guard.warn_unjoined(place.resource.name, self.tool)
            return False
        return True

    def locks(self) -> Sequence[Batch]:
        """Everything to lock, in order: the resources' own keys first, then those inside this agent's shard."""
        if self.outline.batches is not None:
            if self.outline.announces:
                self._announce_at_once()
            return self.outline.batches
        wanted: list[tuple[Resource, bool]] = []
        inside: list[tuple[Resource, bool]] = []
        for place in self.places.values():
            if place.part.shard and self._shards(place):
                place.sharded = True
                wanted.append((place.resource, False))  # keeps joins out; other agents' shards share it
                inside.append((place.resource, place.exclusive))
            else:
                wanted.append((place.resource, place.exclusive))
        start = f"shard:{self.identity.run}/{self.identity.shard}/"
        inner = [
            (f"{start}{'' if home == self.guard.home.base else f'{home}:'}{key}", mode)
            for home, keys in plan(tuple(inside))
            for key, mode in keys
        ]
        return [*self.guard.batches(tuple(wanted)), (self.guard.shard_locks, inner)]

    def _announce_at_once(self) -> None:
        """Where nothing can keep the body from running once the only lock is granted, that grant is the change."""
        if len(self.places) == 1 and self.seat is None and not self.outline.begins:
            self.claim.changes = not self._knows_any()

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
                place.sharded = False  # it is the outer call's
                if found.resource.directory and found.sharded:
                    place.target = call.tree(found)
                elif place.exclusive and not found.in_place:
                    place.target = call.stage(found)
                else:
                    place.target = found.staged or found.target
            elif place.sharded:
                self.settle(place)

    def settle(self, place: Place) -> None:
        """Find a place in the agent's shard: the entry that it writes, or what the agent sees of what it reads."""
        assert place.resource.path is not None
        shards, key = self.guard.shards, place.resource.id
        if place.resource.directory:
            if place.exclusive:
                from .trees import scan

                place.scanned = scan(place.resource.path)
            return
        place.pinned = signature(place.resource.path)
        if place.exclusive:
            durable = bool(place.options.durable)
            place.shard, place.entry = shards.fork(self.identity, place.resource, durable=durable)
            place.target = place.entry.ours
        else:
            shard = shards.current(self.identity)
            entry = shard.entries.get(key) if shard is not None else None
            place.target = entry.ours if entry is not None else shards.inherited(self.identity, key) or place.target

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
                    if other.part.shard:
                        from .trees import beneath

                        place = beneath(self, other, resource)
                    else:
                        options = self.guard.config.resource(resource.name)
                        place = Place(Part(resource, other.exclusive, other.update, other.read, options, None))
                    self._discovered(place)
                    self.places[resource.id] = place
                    break
        return place

    def _discovered(self, place: Place) -> None:
        """A file beneath a declared directory: checked, or noted, when the tool asks for it."""
        if place.exclusive:
            self.freshness().check(place)
        else:
            self.freshness().note(place)

    def freshness(self) -> Freshness:
        if self.fresh is None:
            from .freshness import Freshness  # imported by the first call that has something to check

            self.fresh = Freshness(self)
        return self.fresh

    def stage(self, place: Place, *, copy: bool = True) -> Path:
        with self._mutex:
            if self._folder is None:
                self._folder = self.guard.home.stage_folder()
            staged = place.stage(self._folder, self.guard.root, copy=copy)
            self.names.setdefault(str(staged), place.asked or place.resource.name)
            return staged

    def tree(self, place: Place) -> Path:
        """The directory that this call works on for one in shard mode: a copy, but where it reads what nobody wrote."""
        assert place.resource.path is not None
        if not place.exclusive and not self.guard.shards.beneath(self.identity, place.resource.id):
            return place.target
        with self._mutex:
            if place.tree is None:
                from .trees import fill

                if self._folder is None:
                    self._folder = self.guard.home.stage_folder()
                folder = self._folder / os.path.relpath(place.resource.path, self.guard.root)
                place.tree = fill(self, place, folder)
                self.names.setdefault(str(folder), (place.asked or place.resource.name).rstrip("/") or ".")
            return place.tree.folder

    def ticket(self, resource: Resource) -> Ticket | None:
        """The granted ticket of a resource that this call locks itself; None when there is none."""
        return self.claim.ticket(resource.key, self.guard.table(resource.home))

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
        if place.resource.directory and place.sharded:
            return self.tree(place)
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
            if resource.path is None or (resource.directory and not place.part.shard):
                return None
            given = self.arguments[access.argument or ""]
            asked = os.fspath(given if access.index is None else given[access.index]) + access.suffix
            place.asked = asked
            if place.resource.directory and place.sharded:
                return self.tree(place)
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
        if self.seat is not None and self.seat.turn.matters(self.seat.place):
            return True
        return self._knows_any()

    def _knows_any(self) -> bool:
        if self.identity.memory is not None or self.guard.knowledge:
            for key, place in self.places.items():
                if self.known(key) is not None or (place.resource.directory and self.known(key.rstrip("/"))):
                    return True
        return False

    def recover_pending(self) -> None:
        """Finish a commit that another process began on one of our files and was killed in; see `Ticket.foreign`."""
        tickets = self.claim.tickets()
        if self.guard.suspect() or any(ticket.foreign for ticket in tickets):
            self.guard.recover_pending([place.resource for place in self.places.values()])
            for ticket in tickets:
                ticket.table.known(ticket)
            self.guard.shards.doubt(self.identity)

    def has_end(self) -> bool:
        """Whether something must be checked or published after the body."""
        if self._folder is not None or (self.fresh is not None and (self.fresh.moves or self.fresh.unseen)):
            return True
        for place in self.places.values():
            if place.entry is not None or place.scanned is not None or place.rebased:
                return True
        return False

    # -- what the agent knows ---

    def known(self, key: str) -> Known | None:
        """What the agent has last seen of a resource."""
        identity = self.identity
        if identity.memory is not None:
            return identity.memory.get(key)
        return self.guard.knowledge.get(identity.run, identity.agent, key)

    def remember(self, learned: Mapping[str, Known]) -> None:
        """Have the agent know this from now on."""
        identity = self.identity
        if identity.memory is not None:
            identity.memory.learn(learned)
        else:
            self.guard.knowledge.learn(identity.run, identity.agent, learned)

    @property
    def lasting(self) -> bool:
        """Whether what the agent knows outlives this process."""
        return self.identity.memory is not None and self.identity.memory.lasting

    def same_agent(self, other: Call) -> bool:
        mine, its = self.identity, other.identity
        return (mine.run, mine.agent, mine.memory) == (its.run, its.agent, its.memory)

    # -- checks ---

    def begin(self) -> None:
        """With every lock held, right before the body: find where the work is done, and refuse what is stale."""
        self.recover_pending()
        self.settle_places()
        self.freshness().begin()

    def announce(self) -> None:
        """The body runs now, and may change what the call's keys stand for."""
        self.freshness().announce()

    def check_isolation(self) -> None:
        """Refuse what was written to a resource itself that is in shard mode."""
        for place in self.places.values():
            if place.resource.path is None or place.staged is not None or place.tree is not None:
                continue
            if place.scanned is not None:
                from .trees import scan

                touched = scan(place.resource.path) != place.scanned
            else:
                touched = place.entry is not None and signature(place.resource.path) != place.pinned
            if touched:
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
        if any(place.tree is not None for place in self.places.values()):
            from .trees import gather

            gather(self)
        if any(place.rebased for place in self.places.values()):
            from .rebase import merge_stale

            merge_stale(self)
        with contextlib.ExitStack() as stack:
            for shard in {place.shard.reference: place.shard for place in self.places.values() if place.shard}.values():
                stack.enter_context(shard.mutex)  # it is not closed while something is put into it
            self._check_open()
            self._publish()

    def _check_open(self) -> None:
        """Refuse what comes after the shard was closed, joined or dropped; its copies are kept."""
        for place in self.places.values():
            if place.shard is None or place.entry is None or self.guard.shards.writable(place.shard, place.entry):
                continue
            raise too_late(
                place.resource.name,
                self.tool,
                self.identity.agent,
                self.identity.run,
                self.guard.shards.ended(place.shard, place.entry),
                self.keep("late"),
            )

    def _publish(self) -> None:
        if self._folder is None:
            return
        extra = leftovers(self._folder, self.places.values())
        if extra:
            kept = self.keep("undeclared")
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
            error.fields["folder"] = str(self.keep("its lock was lost"))
            raise
        try:
            check_untouched(self.places.values(), self.tool, self.identity.agent)
        except StaleWrite as error:
            error.fields["folder"] = str(self.keep("overtaken"))
            raise
        changes: list[Replace | Delete] = []
        inner: list[Replace | Delete] = []
        changed: list[Place] = []
        durable = False
        for place in self.places.values():
            change = place.change()
            if change is None:
                continue
            if self._outer(place.resource) is not None:
                inner.append(change)  # into the parent call's copy: published, or discarded, with it
            else:
                changes.append(change)
                changed.append(place)
                durable = durable or bool(place.options.durable)
        if changes:
            self.guard.home.journal.commit(changes, durable=durable)
        for change in inner:
            if isinstance(change, Replace):
                os.replace(change.source, change.target)
            else:
                change.target.unlink(missing_ok=True)
        for place in changed:
            if place.entry is None:
                self.freshness().changed(place)

    def end(self) -> None:
        """The call has succeeded: what the agent knows now, and who wrote in place."""
        if self.fresh is not None and self.fresh.learned:
            self.remember(self.fresh.learned)
        for key, place in self.places.items():
            if place.exclusive and place.staged is None and place.resource.path is not None and not place.sharded:
                self.guard.in_place[key] = self.began, self.identity, self.tool, time.time_ns()
                if len(self.guard.in_place) > 10_000:
                    self.guard.in_place.popitem(last=False)

    def refuses(self, error: AgentGuardError) -> bool:
        """Whether an error is this call's own refusal after its body, and not one of a call inside of it."""
        return isinstance(error, StaleWrite) and error.fields.get("tool") == self.tool

    def keep(self, why: str) -> Path | None:
        """Move the copies to `conflicts/`, where they stay; None when there are none."""
        if self._folder is None:
            return None
        kept = keep(self.guard.home, self._folder, f"{why}: {self.tool} of agent {self.identity.agent!r}")
        self._folder = None
        return kept

    def discard(self) -> None:
        """Remove what is left of the copies."""
        if self.fresh is not None:
            self.fresh.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
