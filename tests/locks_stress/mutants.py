"""Each takes one protection away from the locks of this process: what the stress must notice."""

from __future__ import annotations

from collections.abc import Callable

from agentguard.locks import Mode
from agentguard.locks.directory import DirectoryFile
from agentguard.locks.keyfile import KeyFile


def no_fast_path() -> None:
    """It does by itself what the methods replaced here are for."""

    def try_acquire(self: KeyFile, mode: Mode) -> bool:
        return self._try_general(mode)

    KeyFile.try_acquire = try_acquire


def no_turnstile() -> None:
    """A newcomer neither looks whether somebody stands in line nor goes there because of it."""
    head = KeyFile._head

    def never_queued(self: KeyFile) -> bool:
        head(self)  # which notes the token
        return False

    no_fast_path()
    KeyFile._head = never_queued


def no_inode_check() -> None:
    """Whatever is locked counts, even if the path names another file by now."""
    current = KeyFile._current

    def always_current(self: KeyFile) -> bool:
        current(self)  # which notes whether the file is whole
        return True

    no_fast_path()
    KeyFile._current = always_current


def no_look_at_the_mark() -> None:
    DirectoryFile.look = lambda self: True


def no_waiting_beneath() -> None:
    DirectoryFile._free_once = lambda self, path, wanted: True


MUTANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "no turnstile": no_turnstile,
    "no inode check": no_inode_check,
    "no release on cancel": lambda: None,  # the caller's duty: see `worker.tasks`
    "no look at the mark": no_look_at_the_mark,
    "no waiting beneath": no_waiting_beneath,
}
