"""What a task has written before it failed or was interrupted.

LangGraph runs such a task again from its top, under the same id. What it then writes a second time is not stale against
what it wrote itself. Kept in this process only: resumed in another one, it is refused, and reads again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from agentguard.knowledge import Known
from agentguard.redirect import CURRENT
from agentguard.versions import ABSENT

__all__ = ["Attempt"]

_KEPT = 1000  # attempts

_learned: OrderedDict[tuple[object, ...], dict[str, Known]] = OrderedDict()
_mutex = threading.Lock()


@dataclass(frozen=True)
class Attempt:
    """One task, or one call in it, with all its attempts. `key`: unique in this process."""

    key: tuple[object, ...]

    def known(self) -> dict[str, Known]:
        """What earlier attempts have written."""
        with _mutex:
            return dict(_learned.get(self.key, ()))

    def learn(self, learned: Mapping[str, Known]) -> None:
        """Remember, of what the call in force has learned, what it has made itself; not what it has only seen."""
        call = CURRENT.get()
        places = call.places if call is not None else {}
        made = {
            resource: known
            for resource, known in learned.items()
            if known.version != ABSENT and resource in places and places[resource].exclusive
        }
        if not made:
            return
        with _mutex:
            _learned.setdefault(self.key, {}).update(made)
            _learned.move_to_end(self.key)
            while len(_learned) > _KEPT:
                _learned.popitem(last=False)

    def named(self, name: str) -> Attempt:
        """That of an agent, or a call, in it."""
        return Attempt((*self.key, name))
