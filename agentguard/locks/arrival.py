"""Waiting for another process: on a thread, and then at the table."""

from __future__ import annotations

from ..exceptions import AgentGuardError
from .contract import Lock, Mode
from .domain import Domain
from .pump import Pumps
from .section import LATER, TODO, leave

__all__ = ["PUMPS", "Arrival"]

PUMPS = Pumps(leave)


class Arrival:
    """Waiting for another process on a thread kept for it (`pump.Job`), and what its end calls for (`section.Item`)."""

    __slots__ = ("_domain", "_error", "_lock", "_mode")

    def __init__(self, domain: Domain, lock: Lock, mode: Mode) -> None:
        self._domain, self._lock, self._mode = domain, lock, mode
        self._error: BaseException | None = None

    def _wanted(self) -> bool:
        return bool(self._domain.waiting)

    def wait(self) -> None:
        if self._domain.waiting:
            try:
                self._lock.acquire(self._mode, self._wanted)
            except (OSError, AgentGuardError) as error:
                self._error = error
        TODO.append(self)
        leave()

    def poll(self) -> bool:
        try:
            if not self._lock.poll(self._mode, self._wanted) and self._domain.waiting:
                return False
        except (OSError, AgentGuardError) as error:
            self._error = error
        TODO.append(self)
        return True

    def attend(self) -> None:
        self._domain.table.arrived(self._domain, self._error)
        LATER.append(_StepOut(self._domain, self._lock))

    def mend(self) -> None:
        self._domain.pumping = False
        self._domain.table.mend_queue(self._domain)
        self._lock.step_out()


class _StepOut:
    """Letting the next one into the line: `section.Item`."""

    __slots__ = ("_domain", "_lock")

    def __init__(self, domain: Domain, lock: Lock) -> None:
        self._domain, self._lock = domain, lock

    def attend(self) -> None:
        if not self._domain.pumping:  # else another wait has begun, which did it first
            self._lock.step_out()

    mend = attend
