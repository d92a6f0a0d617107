"""`stale = "merge"`: a write based on an older version is merged with what others made of that version meanwhile.

The body has worked on the version that its agent knows. Before the commit its result (ours) and the current content
(theirs) are merged over that version (base), as two shards would be; only where both changed one place the call is
refused. The agent then knows its own side: its next write is merged over that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import disk
from .exceptions import MergeConflict, StaleWrite
from .merge.values import Conflict, Merged
from .stale import Reason
from .versions import ABSENT, hash_bytes, signature

if TYPE_CHECKING:
    from .call import Call
    from .redirect import Place

__all__ = ["merge_stale"]

_THEIRS = "(current)"


def merge_stale(call: Call) -> None:
    """Put what is to be published into the copies of rebased places, with the exclusive locks held, after the body.

    Raises `StaleWrite` for true conflicts: nothing is applied, and what the call has made is kept under `conflicts/`.
    """
    for place in [*call.places.values()]:
        if place.rebased:
            merged = _merge(call, place)
            if call.guard.hooks:
                call.guard.emit_one("merged", call, place, changes=dict(merged.changes))


def _merge(call: Call, place: Place) -> Merged:
    from .merge import Options, default_strategy, merge  # parsers are imported by those who parse

    name, options, agent = place.resource.name, place.options, call.identity.agent
    ours = _ours(call, place)
    if ours is not None and place.staged is None and ours != place.base:
        call.stage(place, copy=False).write_bytes(ours)  # where a refusal keeps it
    place.ours = ABSENT if ours is None else hash_bytes(ours)
    strategy = options.merge or default_strategy(name)
    sides = {_THEIRS: place.theirs, agent if agent != _THEIRS else f"{agent} (2)": ours}
    made = Options(name, options.paths, call.guard.resolver(options))
    try:
        merged = merge(strategy, place.base, sides, made)
    except MergeConflict as error:  # one of them cannot be read in its format
        raise _refused(call, place, (), error.message) from error
    if merged.conflicts:
        where = "; ".join(map(_shown, merged.conflicts[:3]))
        raise _refused(call, place, merged.conflicts, f"Both changed the same place: {where}.")
    if ours is not None:
        call.guard.contents.keep(place.ours, ours, lasting=True)
    if place.staged is not None or merged.value != place.theirs:
        staged = call.stage(place, copy=False)
        if merged.value is None:
            staged.unlink(missing_ok=True)
        else:
            staged.write_bytes(merged.value)
    return merged


def _ours(call: Call, place: Place) -> bytes | None:
    """What the body has made of the base; a target that it wrote in place is put back as it was."""
    if place.staged is not None:
        return disk.content(place.staged)
    if signature(place.target) == place.before:
        return place.base
    ours = disk.content(place.target)
    place.put_back()
    return ours


def _refused(call: Call, place: Place, conflicts: tuple[Conflict, ...], why: str) -> StaleWrite:
    known = call.known(place.resource.id)
    current = ABSENT if place.theirs is None else hash_bytes(place.theirs)
    reason = Reason.TURN if known is None else Reason.DELETED if place.theirs is None else Reason.CHANGED
    error = call.freshness().refused(place, reason, known, current, why=why, author=place.author)
    kept = call.keep("a stale write that could not be merged")
    error.fields.update(conflicts=tuple(map(str, conflicts)), folder=str(kept) if kept is not None else None)
    return error


def _shown(conflict: Conflict) -> str:
    return f"{conflict.path or 'the whole of it'} ({conflict.reason})"[:120]
