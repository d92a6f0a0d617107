"""The versions of one call's resources: checked before its body, noted while it reads, moved along when it writes."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import disk
from .contents import LARGEST, SMALL
from .knowledge import UNKNOWN, Known
from .locks import Change, this_host
from .stale import Case, Reason, judge, refusal
from .versions import ABSENT, hash_bytes, signature

if TYPE_CHECKING:
    from .call import Call
    from .exceptions import StaleWrite
    from .redirect import Place

__all__ = ["Freshness"]

log = logging.getLogger("agentguard")

_TICK = 10_000_000  # ns: a file's times may lag behind the clock by so much


class Freshness:
    """See above; one call's. Everything is called with the call's locks held."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.learned: dict[str, Known] = {}
        self.unseen: list[
            tuple[Place, str]
        ] = []  # written over an earlier call of the turn, maybe without a look at it
        self.moves: list[Place] = []  # what the agent will know in its new version, if the call succeeds

    # -- before the body ---

    def begin(self) -> None:
        """Check what the call writes, and note what it reads. Raises `StaleWrite`; then nothing may go on."""
        for place in [*self._call.places.values()]:
            if place.exclusive:
                self.check(place)
        for place in [*self._call.places.values()]:
            if not place.exclusive:
                self.note(place)

    def check(self, place: Place) -> None:
        """Refuse a write that is based on another version than the current one; or have it merged, if it shall be."""
        call, key = self._call, place.resource.id
        known = call.known(key)
        turn = call.seat.turn if call.seat is not None and call.seat.turn.matters(call.seat.place) else None
        found = turn.found.get(key) if turn is not None else None
        if place.read:
            self.moves.append(place)  # it sees what it replaces
        if self._has_no_version(place):
            self._check_kind(place, known)
            return
        must_read = place.options.require_read
        if known is None and turn is None and not must_read:
            return
        try:
            current = self.version(place)
        except OSError as error:
            if known is None or place.update or place.options.stale == "ignore":
                return
            raise self.refused(place, Reason.UNCHECKED, known, UNKNOWN, why=_told(error)) from error
        except _VersionError as error:
            if place.update or place.options.stale == "ignore":
                return
            raise self.refused(place, Reason.UNCHECKED, known, UNKNOWN, why=str(error)) from error.__cause__
        if turn is not None:
            turn.found.setdefault(key, current)
            self._keep(place, current)
        if place.update:
            # One after the other in one turn: each knows the version that the one before it has made of a known one.
            ours = turn.made.get(key) if turn is not None else None
            if known is not None and current in (known.version, ours) and not place.read:
                self.moves.append(place)
            return
        if not place.read and (known is not None or (must_read and current == ABSENT)):
            self.moves.append(place)
        if place.options.stale == "ignore" or self._is_ours(place):
            return
        reason = judge(known, found, current, bool(must_read))
        if reason is None:
            return
        if reason is Reason.TURN and known is None and place.options.stale != "merge":
            # Whether it knows what it replaces shows only when it is done: a tool that reads the content and puts
            # something in has seen the call before it, one that was given the whole content has not.
            if place.resource.path is not None and place.version is None and not place.in_place:
                place.theirs, place.author = disk.content(place.target), self.author(place)
                place.watch()
                self.unseen.append((place, current))
            return
        why = ""
        if place.options.stale == "merge" and reason not in (Reason.UNREAD, Reason.LOST):
            why = self._rebase(place, known.version if known is not None else found, current)
            if not why:
                return
        raise self.refused(place, reason, known, current, why=why)

    def _check_kind(self, place: Place, known: Known | None) -> None:
        """A directory has no version; but if the agent knows a file of that name, it was replaced."""
        file = self._call.known(place.resource.id.rstrip("/")) if place.resource.directory else None
        if file is not None and known is None and not place.update and place.options.stale != "ignore":
            raise self.refused(place, Reason.REPLACED, file, UNKNOWN)

    def _is_ours(self, place: Place) -> bool:
        """Whether a call around this one, of the same agent, has the resource: what changed there is its own doing."""
        call = self._call
        outer = call.parent
        while outer is not None:
            other = outer.places.get(place.resource.id)
            if other is not None and other.exclusive and outer.active and outer.same_agent(call):
                return True
            outer = outer.parent
        return False

    def _rebase(self, place: Place, version: str | None, current: str) -> str:
        """Have the body work on the version that the agent knows; or say why that cannot be."""
        contents = self._call.guard.contents
        base = contents.get(version) if version is not None and version != ABSENT else None
        if place.resource.path is None or place.in_place:
            return "It cannot be merged: only files that are worked on as copies can."
        if base is None and version != ABSENT:
            return "It could not be merged: the version that was read is not kept any more."
        place.theirs, place.author = disk.content(place.target), self.author(place)
        if place.theirs is not None and hash_bytes(place.theirs) != current:
            return "It could not be merged: it is being changed by somebody outside the guard."
        place.rebase(base)
        return ""

    # -- what a version is ---

    @staticmethod
    def _has_no_version(place: Place) -> bool:
        return place.resource.directory and place.version is None

    def version(self, place: Place) -> str:
        """The version of a resource now. Raises OSError for a file that cannot be read."""
        call = self._call
        if place.version is not None:
            name = place.resource.name
            try:
                found = place.version(name)
            except Exception as error:  # the user's own code: whatever it raises, nothing was compared
                raise _VersionError(f"its version function raised {_told(error)}") from error
            return ABSENT if found is None else f"={found}"
        if place.resource.path is None:
            change = self._last_change(place)
            return f"#{change.token if change is not None else 0}"
        return call.guard.versions.of(place.target)

    def _own_version(self, place: Place) -> str | None:
        """Of a key that this call has changed: what `version` would say after reading it back."""
        token = self._call.token(place.resource)
        if place.resource.path is not None or place.version is not None or not place.exclusive or token is None:
            return None
        return f"#{token}"

    def _last_change(self, place: Place) -> Change | None:
        ticket = self._call.ticket(place.resource)
        return ticket.table.last_change(ticket) if ticket is not None else None

    # -- what the agent learns ---

    def note(self, place: Place) -> None:
        """Remember the version that the call is about to read. A tool that cannot be told what it reads still reads;
        what it writes on that account is refused then."""
        if self._has_no_version(place):
            return
        try:
            version = self.version(place)
        except (_VersionError, OSError) as error:
            log.warning(
                "%s of agent %r reads %s, but in which version cannot be told, so that its next write will be refused: "
                "%s", self._call.tool, self._call.identity.agent, place.resource.name, error,
            )  # fmt: skip
            version = UNKNOWN
        self._keep(place, version)
        self.learned[place.resource.id] = Known(version, time.time())

    def _keep(self, place: Place, version: str, file: Path | None = None) -> None:
        """Keep the content behind a version, if it may be asked for: for a diff, or as the base of a merge."""
        if place.resource.path is None or place.version is not None or version in (ABSENT, UNKNOWN):
            return
        merge = place.options.stale == "merge"
        contents = self._call.guard.contents
        lasting = merge or self._call.lasting
        if contents.has(version, lasting=lasting):
            return
        file = file or place.target
        with contextlib.suppress(OSError):
            if file.stat().st_size <= (LARGEST if merge else SMALL):
                contents.keep(version, file.read_bytes(), lasting=lasting)

    def check_seen(self) -> None:
        """After the body: refuse what it has replaced without a look at what an earlier call of its turn has made."""
        for place, current in self.unseen:
            if not place.was_read():
                if place.staged is None:  # it wrote to the file itself
                    place.put_back()
                raise self.refused(place, Reason.TURN, None, current, old=self._found(place), author=place.author)

    def _found(self, place: Place) -> str | None:
        seat = self._call.seat
        return seat.turn.found.get(place.resource.id) if seat is not None else None

    def close(self) -> None:
        """The call is over, one way or the other."""
        for place, _ in self.unseen:
            place.unwatch()

    def end(self) -> None:
        """After the commit: what the agent knows now of what it wrote, and who changed it for others to see."""
        for place in self.moves:
            if place.ours is not None:  # merged: the agent has seen its own side only
                version = place.ours
            else:
                try:
                    version = self._own_version(place) or self.version(place)
                except (_VersionError, OSError):
                    version = UNKNOWN
                self._keep(place, version)
                if place.version is not None and place.exclusive:
                    self.changed(place, version)
            self.learned[place.resource.id] = Known(version, time.time())
            if self._call.seat is not None and place.exclusive:
                self._call.seat.turn.made[place.resource.id] = version

    # -- who changed it ---

    def announce(self) -> None:
        """Before the body: whatever it does, nobody can tell afterwards whether it changed what a key stands for."""
        for place in self._call.places.values():
            if place.exclusive and place.resource.path is None:
                self.changed(place)

    def changed(self, place: Place, version: str = "") -> None:
        """Note for every process that this call has changed a resource; what a function says of it now is `version`."""
        ticket = self._call.ticket(place.resource)
        if ticket is not None:
            numbers = (_number(version), 0, 0, 0)
            if place.resource.path is not None and place.version is None:
                numbers = signature(place.resource.path) or numbers
            ticket.table.change(ticket, numbers)

    def author(self, place: Place) -> Change | None:
        """Who made the current version; None when it was nobody whom the guard knows."""
        change = self._last_change(place)
        path = place.resource.path
        if place.version is not None:
            # Who changed it last through the guard, unless they left another version, or it was before it was read.
            known = self._call.known(place.resource.id)
            told = change is not None and change.numbers[0]
            if change is None or (told and told != _number(self.version(place))):
                return None
            return change if told or known is None or change.at >= known.at else None
        if path is None:
            return change
        found = signature(path) or (0, 0, 0, 0)
        mtime, _, size, inode = found  # not the change time, which whoever watches accesses may set
        if change is not None and (change.numbers[0], *change.numbers[2:]) == (mtime, size, inode):
            return change
        wrote = self._call.guard.in_place.get(place.resource.id)
        if wrote is None:
            return None
        began, who, tool, ended = wrote
        if not began - _TICK <= mtime <= ended + _TICK:
            return None
        return Change(0, found, ended / 1e9, who.agent, who.run, tool, this_host())

    def refused(
        self,
        place: Place,
        reason: Reason,
        known: Known | None,
        current: str,
        *,
        why: str = "",
        old: str | None = None,
        author: Change | None = None,
    ) -> StaleWrite:
        """The refusal of a call. `old`: the version to compare with, if it is not the one that was known; `author`: who
        made the current one, if that cannot be told from the resource any more."""
        call, contents = self._call, self._call.guard.contents
        if old is None and known is not None:
            old = known.version
        if author is None and reason not in (Reason.UNREAD, Reason.LOST, Reason.UNCHECKED):
            author = self.author(place)
        if reason is Reason.DELETED:  # there is nothing to read any more: the refusal itself is the news
            call.remember({place.resource.id: Known(ABSENT, time.time())})
        small = place.resource.path is not None and not place.resource.directory and place.version is None
        return refusal(
            Case(
                reason,
                place.resource.name,
                call.identity.agent,
                call.tool,
                known,
                current,
                author,
                contents.text(old) if small and old is not None else None,
                _text(place.target) if small and current not in (UNKNOWN, ABSENT) else None,
                why,
            )
        )


class _VersionError(Exception):
    """The user's version function failed; its text says how."""


def _number(version: str) -> int:
    """A version as a number for `Change.numbers`; 0 for none."""
    return int(hash_bytes(version.encode("utf-8", "surrogatepass"))[:16], 16) if version else 0


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"


def _text(file: Path) -> str | None:
    try:
        return file.read_bytes().decode("utf-8") if file.stat().st_size <= SMALL else None
    except (OSError, UnicodeDecodeError):
        return None
