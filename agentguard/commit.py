"""All-or-nothing replacement of one or several files, and its recovery: a redo journal.

One file needs no record: flush it, rename it over the target, flush the folder. Several files, or files and marks:

1. A latch (`<id>.lock`) says that the committer lives, and what to take back if it dies now.
2. Each finished file is moved (or copied) to a temporary name beside its target, gets the target's metadata, and is
   flushed; then the folders of the targets are.
3. The record (`<id>.commit`), with the sha256 of every file, appears by one rename and is flushed. This is the commit
   point: before it everything is taken back, from then on everything is redone, by whoever comes next.
4. Each file is renamed over its target (an SQLite database that is there is replaced by a transaction of its own),
   deletions are made, the folders are flushed, the marks are handed on.
5. The record is removed, then the latch.

Callers hold exclusive locks on all targets, so that commits of one file never overlap; those of different files share
nothing. A record is redone only under its own latch, which its committer has while it lives. The protocol is the redo
logging of Mohan et al., "ARIES" (TODS 1992), with whole files for pages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from . import disk, records
from .disk import atomic_write, snapshot
from .exceptions import ConfigError, InDoubt
from .latch import Latch
from .records import Entry, Record, Step
from .recovery import Pending, Recovered, Redo, content, in_doubt, is_suffixed, prepared, why

__all__ = ["UNFINISHED", "Delete", "Journal", "Pending", "Recovered", "Replace", "atomic_write", "snapshot"]

# Records of commits that were decided in this process and broke off: nobody else's lock tells of them.
UNFINISHED: set[str] = set()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Replace:
    """`target` shall have the content of `source`, a finished regular file that nobody else uses.

    The commit consumes `source`: by a rename where it can, else by a copy. The target keeps its owner, mode and
    extended attributes; a new target gets the source's mode. A target that is a symbolic link stays one.
    """

    target: Path
    source: Path


@dataclass(frozen=True, slots=True)
class Delete:
    """`target` (of a symbolic link: the file that it points at) shall not exist; it need not exist now."""

    target: Path


@dataclass(frozen=True, slots=True)
class _Plan:
    """One change, its target resolved, and what was found there; without a `source` it deletes."""

    target: str
    status: os.stat_result | None
    source: str | None = None
    connected: bool = False  # the source has a second name, through which it could still be written


class Journal(Redo):
    """Commits, and what became of them: `Redo` has the recovery."""

    # --- commit ------------------------------------------------------------------------------------------------------

    def commit(self, changes: Sequence[Replace | Delete], *, durable: bool = True, marks: Sequence[str] = ()) -> None:
        """Make all changes and marks, or none. The caller holds exclusive locks on all targets.

        Missing parent folders of targets are made. `durable=False` skips the flushes: all or nothing if the process
        dies, but not if the power fails.

        Returns None when everything is in place (and on the medium). Raises OSError, of the type and errno that the
        disk gave, when nothing was changed and the sources are where they were; InDoubt (fields `record`,
        `resources`) when the commit was decided but could not be finished, which the next `recover` does; ValueError
        for a file named twice; ConfigError for a journal folder that is not safe. Blocks for the flushes. An
        interrupt before the commit point takes everything back, a later one leaves the record for recovery.
        """
        if marks and self._marks is None:
            raise ValueError("this journal was made without a place for marks")
        try:
            plans = [_plan(change) for change in changes]
        except OSError as error:
            raise disk.unchanged(error, self._names(os.path.abspath(c.target) for c in changes)) from error
        if len({plan.target for plan in plans}) < len(plans):
            raise ValueError(f"a commit names one file twice: {', '.join(self._names(p.target for p in plans))}")
        plans = [plan for plan in plans if plan.source is not None or plan.status is not None]
        if not plans:
            if marks and self._marks is not None:
                self._marks(tuple(marks))
        elif marks or len(plans) > 1 or is_suffixed(plans[0].target) or not self._commit_one(plans[0], durable):
            self._commit_all(plans, durable, tuple(marks))

    def _commit_one(self, plan: _Plan, durable: bool) -> bool:
        """One file, by one rename. False, with nothing done, when the source cannot be renamed to its target."""
        target, source = plan.target, plan.source
        made: list[str] = []
        try:
            if source is None:
                disk.withdraw(target, durable=durable)
                return True
            if plan.connected:
                return False
            _finish(source, plan, durable=durable)
            _in_folder(plan, lambda: disk.publish(source, target, durable=durable), made, durable=durable)
        except InDoubt:
            raise
        except OSError as error:
            disk.remove_folders(made)
            if error.errno == errno.EXDEV:
                return False
            raise disk.unchanged(error, self._names([target])) from error
        return True

    def _commit_all(self, plans: Sequence[_Plan], durable: bool, marks: tuple[str, ...]) -> None:
        names = self._names(plan.target for plan in plans)
        made: list[str] = []
        latch: Latch | None = None
        decided = False
        try:
            self._prepare(durable)
            latch = Latch.begin(self._folder, self._root)
            record = self._stage(plans, latch, durable, marks, made)
            self._decide(record, latch, durable)
            decided = True
            self._apply(record, [Step.REPLACE if entry.temp else Step.DELETE for entry in record.entries], durable)
            self._forget(latch, names, durable)
        except BaseException as error:
            if latch is not None and (decided or latch.decided):
                UNFINISHED.add(latch.record)
                latch.release()
                if isinstance(error, (OSError, ValueError)) and not isinstance(error, InDoubt):
                    raise in_doubt(latch.record, names, why(error)) from error
                raise
            if latch is not None:
                latch.take_back()
            disk.remove_folders(made)
            if isinstance(error, OSError):
                raise disk.unchanged(error, names) from error
            raise
        for plan in plans:
            if plan.source is not None:  # one that was copied is still there
                with contextlib.suppress(OSError):
                    os.unlink(plan.source)

    def _stage(
        self, plans: Sequence[_Plan], latch: Latch, durable: bool, marks: tuple[str, ...], made: list[str]
    ) -> Record:
        entries = []
        for plan in plans:
            before = None if plan.status is None else content(plan.target, is_suffixed(plan.target))
            temp = sha256 = None
            if plan.source is not None:
                temp = _in_folder(plan, _Bring(plan, plan.source, latch), made, durable=durable)
                sha256 = _finish(temp, plan, durable=durable, hashed=True)
            entries.append(Entry(plan.target, temp, sha256, before))
        if durable:  # the record must not outlive the names that it relies on
            disk.flush_folders(os.path.dirname(entry.target) for entry in entries if entry.temp)
        return Record(latch.id, time.time(), tuple(entries), marks)

    def _decide(self, record: Record, latch: Latch, durable: bool) -> None:
        """The commit point: the whole record under its name, or nothing of it."""
        fd = disk.create(latch.draft)
        try:
            disk.write_all(fd, records.encode(record, self._root))
            if durable:
                disk.flush(fd)
        finally:
            os.close(fd)
        os.replace(latch.draft, latch.record)
        if durable:
            disk.flush_folders([self._folder])

    def _prepare(self, durable: bool) -> None:
        """Make the journal's folder, private; refuse one in which others could write records."""
        disk.make_folders(self._folder, 0o700, [], durable=durable)
        status = os.lstat(self._folder)
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigError(
                f"the journal {self._folder} is a symbolic link, not a folder; nothing was written. Remove the link.",
                file=self._folder,
            )
        if disk.POSIX and status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"the journal {self._folder} belongs to user {status.st_uid}, who could have this process (user "
                f"{os.geteuid()}) replace any file; nothing was written. Run as that user, or use a root of your own.",
                file=self._folder,
            )


# --- steps ------------------------------------------------------------------------------------------------------------


def _plan(change: Replace | Delete) -> _Plan:
    if isinstance(change, Delete):
        target = os.path.realpath(change.target)
        return _Plan(target, disk.regular(target))
    target, status = disk.replaceable(os.fspath(change.target))
    source = os.path.abspath(change.source)
    found = disk.regular(source)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "the prepared file is missing", source)
    if status is not None and os.path.samestat(status, found):
        raise ValueError(f"the new content of {target} must be in a file of its own")
    return _Plan(target, status, source, found.st_nlink > 1)


def _in_folder(plan: _Plan, put: Callable[[], T], made: list[str], *, durable: bool) -> T:
    """`put` something into the target's folder, which is made if it is missing."""
    folder = os.path.dirname(plan.target)
    if plan.status is not None:
        return put()
    while True:
        disk.make_folders(folder, 0o777, made, durable=durable)
        try:
            return put()
        except FileNotFoundError:
            if os.path.isdir(folder):
                raise
            # Another commit had made it, failed, and took it back in between: once more.


@dataclass(frozen=True, slots=True)
class _Bring:
    """Put the new content under a temporary name beside its target."""

    plan: _Plan
    source: str
    latch: Latch

    def __call__(self) -> str:
        if not self.plan.connected:
            temp = self.latch.temp(self.plan.target)
            self.latch.note(temp, self.source)
            try:
                os.rename(self.source, temp)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                return temp
        temp = self.latch.temp(self.plan.target)
        self.latch.note(temp, None)
        disk.snapshot(Path(self.source), Path(temp))
        return temp


def _finish(file: str, plan: _Plan, *, durable: bool, hashed: bool = False) -> str | None:
    """Give a file the metadata of the target and flush it; its sha256 if asked for."""
    sha256 = prepared(file, plan.target) if hashed and is_suffixed(plan.target) else None
    fd = os.open(file, disk.OPEN_TO_FLUSH | disk.NOFOLLOW | disk.FLAGS)
    try:
        if plan.status is not None:
            disk.adopt(fd, plan.target, plan.status)
        if hashed and sha256 is None:
            sha256 = disk.digest(fd)
        if durable:
            disk.flush(fd)
    finally:
        disk.close(fd)
    return sha256
