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
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from . import disk, records
from .disk import atomic_write, snapshot
from .exceptions import ConfigError, InDoubt
from .latch import DRAFT, LOCK, RECORD, Latch
from .records import Content, Doubt, Entry, Record, Step
from .versions import DATABASES

__all__ = ["UNFINISHED", "Delete", "Journal", "Pending", "Recovered", "Replace", "atomic_write", "snapshot"]

# Records of commits that were decided in this process and broke off: nobody else's lock tells of them.
UNFINISHED: set[str] = set()

PATIENCE = 30.0  # seconds for another recovery of the same record, which takes milliseconds

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
class Pending:
    """A commit record that is there: of a committer at work, of a dead one, or in doubt.

    `since` is in seconds since the epoch. A damaged record has no targets. `live` (somebody works on it now) and
    `doubt` (why recovery leaves it to a person) are filled by `Journal.inspect`.
    """

    record: Path
    targets: tuple[Path, ...]
    since: float
    live: bool = False
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """A record that recovery finished, or kept for the reason in `doubt`."""

    record: Path
    targets: tuple[Path, ...]
    marks: tuple[str, ...]
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """One change, its target resolved; without a `source` it deletes."""

    target: str
    status: os.stat_result | None
    source: str | None


class Journal:
    """The commit records of one home folder. Cheap to make, keeps nothing in memory, usable from every thread."""

    def __init__(self, folder: Path, *, root: Path, marks: Callable[[Sequence[str]], None] | None = None) -> None:
        """`folder` holds the records (made 0700 when first needed); `root` is what their names are relative to.

        `marks` makes strings durable, idempotently (`Ledger.add`): it is called in a commit that has marks, and again
        with the same ones by a recovery. It raises OSError when it cannot.
        """
        self._folder = os.path.abspath(folder)
        self._root = os.path.realpath(root)
        self._marks = marks

    @property
    def folder(self) -> str:
        """Where the records are."""
        return self._folder

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
        elif marks or len(plans) > 1 or _is_database(plans[0]) or not self._commit_one(plans[0], durable):
            self._commit_all(plans, durable, tuple(marks))

    def _commit_one(self, plan: _Plan, durable: bool) -> bool:
        """One file, by one rename. False, with nothing done, when the source cannot be renamed to its target."""
        target, source = plan.target, plan.source
        made: list[str] = []
        try:
            if source is None:
                disk.withdraw(target, durable=durable)
                return True
            if _source(source).st_nlink > 1:
                return False
            _finish(source, plan, durable=durable)
            _in_folder(target, lambda: disk.publish(source, target, durable=durable), made, durable=durable)
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
                    raise _in_doubt(latch.record, names, _why(error)) from error
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
            before = None if plan.status is None else _content(plan.target, _suffixed(plan.target))
            temp = sha256 = None
            if plan.source is not None:
                bring = _Bring(plan.source, plan.target, latch)
                temp = _in_folder(plan.target, bring, made, durable=durable)
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

    def _apply(self, record: Record, steps: Sequence[Step], durable: bool) -> None:
        for entry, step in zip(record.entries, steps, strict=True):
            if step is Step.REPLACE and entry.temp is not None:
                _put(entry.temp, entry.target)
            elif step is Step.DELETE:
                disk.remove(entry.target)
        if durable:  # in a recovery some folder of a deleted file may be gone altogether
            disk.flush_folders(map(os.path.dirname, record.targets), missing_ok=True)
        if record.marks and self._marks is not None:
            self._marks(record.marks)

    def _forget(self, latch: Latch, names: Sequence[str], durable: bool) -> None:
        os.unlink(latch.record)
        if durable:  # while the locks are held: a record that came back later would doubt the next commit of its files
            try:
                disk.flush_folders([self._folder])
            except OSError as error:
                raise InDoubt(
                    f"{', '.join(names)} were replaced, but the journal could not be flushed ({_why(error)}): a power "
                    f"loss may bring {latch.record} back. Check the disk, then run `agentguard recover`.",
                    record=latch.record,
                    resources=tuple(names),
                ) from error
        latch.finish()

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

    # --- what is there -----------------------------------------------------------------------------------------------

    def pending(self) -> tuple[Pending, ...]:
        """The records that are there, in no order; one directory listing when there is none. Never waits.

        A caller that was just granted a lock on one of the targets knows that the committer, who held it too, is
        dead or gave up: `recover([target])` comes before anything else. Raises OSError when the journal cannot be
        read.
        """
        found = (self._pending(os.path.join(self._folder, id + RECORD)) for id in self._ids(RECORD))
        return tuple(pending for pending in found if pending is not None)

    def inspect(self) -> tuple[Pending, ...]:
        """`pending` with `live` and `doubt` filled: what `recover` would find. Changes no file, waits for nobody."""
        found = []
        for id in sorted(self._ids(RECORD)):
            latch = Latch.take(self._folder, self._root, id, wait=0)
            try:
                pending = self._pending(os.path.join(self._folder, id + RECORD))
                if pending is None:
                    if latch is not None:
                        latch.finish()
                    continue
                if latch is None:
                    pending = replace(pending, live=True)
                elif pending.doubt is None:
                    pending = replace(pending, doubt=self._remaining(self._read(latch.record))[1])
                found.append(pending)
            finally:
                if latch is not None:
                    latch.release()
        return tuple(found)

    def _ids(self, *suffixes: str) -> set[str]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return set()
        return {name.rpartition(".")[0] for name in names if name.endswith(suffixes)}

    def _pending(self, path: str) -> Pending | None:
        try:
            record = self._read(path)
        except FileNotFoundError:  # finished meanwhile
            return None
        except ValueError as error:
            return Pending(Path(path), (), 0.0, doubt=str(error))
        return Pending(Path(path), tuple(map(Path, record.targets)), record.since)

    def _read(self, path: str) -> Record:
        fd = os.open(path, os.O_RDONLY | disk.NOFOLLOW | disk.FLAGS)
        try:
            return records.decode(disk.read_all(fd), self._root)
        finally:
            disk.close(fd)

    # --- recovery ----------------------------------------------------------------------------------------------------

    def recover(self, only: Collection[Path] | None = None) -> tuple[Recovered, ...]:
        """Finish the commits that died after their commit point, and take back what died before it. Idempotent.

        Without `only`: every record whose committer is dead. Needs no locks: those of live committers are left alone.
        What must be left to a person is in the result, with `doubt` saying why.

        With `only` (files, or folders for everything beneath them, on which the caller holds locks): the records that
        name them, after waiting for another recovery of the same record. One that cannot be finished raises InDoubt
        (fields `record`, `resources`), because the files that it names must not be used.

        Returns what was found, finished or in doubt. Raises OSError when the journal cannot be read. An interrupt
        leaves the record for the next recovery.
        """
        wanted = None if only is None else [os.path.realpath(path) for path in only]
        found: list[Recovered] = []
        for id in sorted(self._ids(RECORD)):
            pending = self._pending(os.path.join(self._folder, id + RECORD))
            if pending is None or not _concerns(wanted, pending.targets):
                continue
            recovered = self._recover(id, pending, wait=0 if wanted is None else PATIENCE)
            if recovered is None:
                continue
            if recovered.doubt is not None and wanted is not None:
                raise _in_doubt(str(recovered.record), self._names(map(str, recovered.targets)), recovered.doubt)
            found.append(recovered)
        if wanted is None:
            self._sweep()
        return tuple(found)

    def _recover(self, id: str, pending: Pending, *, wait: float) -> Recovered | None:
        latch = Latch.take(self._folder, self._root, id, wait=wait)
        if latch is None:
            busy = f"somebody else has been working on it for {wait:g} seconds"
            return Recovered(pending.record, pending.targets, (), busy) if wait else None
        try:
            record = self._read(latch.record)
            steps, doubt = self._remaining(record)
            if doubt is None:
                self._apply(record, steps, durable=True)
                for entry in record.entries:  # a rename between two names of one file leaves both
                    if entry.temp is not None:
                        disk.remove(entry.temp)
                self._forget(latch, self._names(record.targets), durable=True)
            return Recovered(pending.record, pending.targets, record.marks, doubt)
        except (InDoubt, ValueError) as error:
            return Recovered(pending.record, pending.targets, (), str(error))
        except OSError as error:
            if not latch.decided:  # finished, by another one while this one waited for the latch, or just now
                latch.finish()
                return None
            return Recovered(pending.record, pending.targets, (), _why(error))
        finally:
            latch.release()

    def _remaining(self, record: Record) -> tuple[list[Step], str | None]:
        """What is left to do; or, in words, why nothing of it may be done."""
        if record.marks and self._marks is None:
            return [], "it has marks, and this journal was made without a place for them"
        steps: list[Step] = []
        try:
            for entry in record.entries:
                database = _suffixed(entry.target)
                prepared = _content(entry.temp, database) if entry.temp else None
                found = _content(entry.target, database)
                step = records.decide(entry, prepared.sha256 if prepared else None, found)
                if isinstance(step, Doubt):
                    return [], step.text
                steps.append(step)
        except OSError as error:
            return [], _why(error)
        return steps, None

    def _sweep(self) -> None:
        """Take back what committers left that died before their commit point."""
        for id in sorted(self._ids(DRAFT, LOCK) - self._ids(RECORD)):
            latch = Latch.take(self._folder, self._root, id, wait=0)
            if latch is None:
                continue
            if latch.decided:  # between the listing and the latch
                latch.release()
            else:
                latch.take_back()

    def _names(self, targets: Iterable[str]) -> list[str]:
        return [records.to_name(target, self._root) for target in targets]


# --- steps ------------------------------------------------------------------------------------------------------------


def _plan(change: Replace | Delete) -> _Plan:
    if isinstance(change, Delete):
        target = os.path.realpath(change.target)
        return _Plan(target, disk.regular(target), None)
    target, status = disk.replaceable(os.fspath(change.target))
    source = os.path.abspath(change.source)
    if os.path.realpath(source) == target:
        raise ValueError(f"the new content of {target} must be in a file of its own")
    return _Plan(target, status, source)


def _source(source: str) -> os.stat_result:
    status = disk.regular(source)
    if status is None:
        raise FileNotFoundError(errno.ENOENT, "the prepared file is missing", source)
    return status


def _in_folder(target: str, put: Callable[[], T], made: list[str], *, durable: bool) -> T:
    """`put` something into the target's folder, which is made if it is missing."""
    folder = os.path.dirname(target)
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

    source: str
    target: str
    latch: Latch

    def __call__(self) -> str:
        if _source(self.source).st_nlink == 1:  # with a second name the file could still be written through it
            temp = self.latch.temp(self.target)
            self.latch.note(temp, self.source)
            try:
                os.rename(self.source, temp)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                return temp
        temp = self.latch.temp(self.target)
        self.latch.note(temp, None)
        disk.snapshot(Path(self.source), Path(temp))
        return temp


def _finish(file: str, plan: _Plan, *, durable: bool, hashed: bool = False) -> str | None:
    """Give a file the metadata of the target and flush it; its sha256 if asked for."""
    fd = os.open(file, disk.OPEN_TO_FLUSH | disk.NOFOLLOW | disk.FLAGS)
    try:
        if plan.status is not None:
            disk.adopt(fd, plan.target, plan.status)
        sha256 = None
        if hashed:
            sha256 = _fingerprint(file) if _suffixed(plan.target) else disk.digest(fd)
        if durable:
            disk.flush(fd)
    finally:
        disk.close(fd)
    return sha256


def _put(temp: str, target: str) -> None:
    """Give a target its prepared content: by a rename, or of a database that is there by a transaction."""
    if _suffixed(target):
        from .databases import is_database, restore

        if is_database(temp) and is_database(target):
            restore(temp, target)
            os.unlink(temp)
            return
    os.replace(temp, target)


def _is_database(plan: _Plan) -> bool:
    """Whether others may have the target open, and would go on writing to a file that was renamed away."""
    return plan.source is not None and plan.status is not None and _suffixed(plan.target)


def _suffixed(target: str) -> bool:
    return os.path.splitext(target)[1].lower() in DATABASES


def _fingerprint(file: str) -> str | None:
    from .databases import fingerprint

    return fingerprint(file)


def _content(file: str, database: bool = False) -> Content | None:
    if disk.regular(file) is None:
        return None
    if database:
        found = _fingerprint(file)
        return Content(found, os.stat(file).st_mtime_ns) if found is not None else None
    fd = os.open(file, os.O_RDONLY | disk.NOFOLLOW | disk.FLAGS)
    try:
        return Content(disk.digest(fd), os.fstat(fd).st_mtime_ns)
    finally:
        disk.close(fd)


def _concerns(wanted: Sequence[str] | None, targets: Sequence[Path]) -> bool:
    if wanted is None:
        return True
    beneath = tuple(path.rstrip(os.sep) + os.sep for path in wanted)
    return any(str(target) in wanted or str(target).startswith(beneath) for target in targets)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _in_doubt(record: str, names: Sequence[str], why: str) -> InDoubt:
    return InDoubt(
        f"the commit of {', '.join(names)} was decided but is not finished: {why}. Its record is kept; the next "
        "guarded call on these files, or `agentguard recover`, tries again. To give it up, bring the files into the "
        f"state that you want and delete {record}",
        record=record,
        resources=tuple(names),
    )
