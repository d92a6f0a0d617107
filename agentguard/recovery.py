"""What becomes of a commit record: it is listed, redone by whoever comes next, or left to a person.

Redoing is idempotent: a recovery that dies is finished by the next one. It decides by what it finds (`records.decide`),
and touches nothing that it cannot explain.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import disk, records
from .exceptions import InDoubt
from .latch import DRAFT, LOCK, RECORD, Latch
from .records import Content, Doubt, Record, Step
from .versions import DATABASES

__all__ = ["PATIENCE", "Pending", "Recovered", "Redo", "content", "in_doubt", "is_suffixed", "prepared", "why"]

PATIENCE = 30.0  # seconds for another recovery of the same record, which takes milliseconds

_BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database


@dataclass(frozen=True, slots=True)
class Pending:
    """A commit record that is there: of a committer at work, of a dead one, or in doubt.

    `since` is in seconds since the epoch. A damaged record has no targets. `live` (somebody works on it now) and
    `doubt` (why recovery leaves it to a person) are filled by `inspect`.
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


class Redo:
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

    def _names(self, targets: Iterable[str]) -> list[str]:
        return [records.to_name(target, self._root) for target in targets]

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
                raise in_doubt(str(recovered.record), self._names(map(str, recovered.targets)), recovered.doubt)
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
            return Recovered(pending.record, pending.targets, (), why(error))
        finally:
            latch.release()

    def _remaining(self, record: Record) -> tuple[list[Step], str | None]:
        """What is left to do; or, in words, why nothing of it may be done."""
        if record.marks and self._marks is None:
            return [], "it has marks, and this journal was made without a place for them"
        steps: list[Step] = []
        try:
            for entry in record.entries:
                database = is_suffixed(entry.target)
                prepared = content(entry.temp, database) if entry.temp else None
                found = content(entry.target, database)
                step = records.decide(entry, prepared.sha256 if prepared else None, found)
                if isinstance(step, Doubt):
                    return [], step.text
                steps.append(step)
        except OSError as error:
            return [], why(error)
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

    # --- the steps after the commit point ----------------------------------------------------------------------------

    def _apply(self, record: Record, steps: Sequence[Step], durable: bool) -> None:
        for entry, step in zip(record.entries, steps, strict=True):
            if step is Step.REPLACE and entry.temp is not None:
                _put(entry.temp, entry.target)
            elif entry.temp is None:  # done or not: a database may have left files beside it
                _remove(entry.target)
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
                    f"{', '.join(names)} were replaced, but the journal could not be flushed ({why(error)}): a power "
                    f"loss may bring {latch.record} back. Check the disk, then run `agentguard recover`.",
                    record=latch.record,
                    resources=tuple(names),
                ) from error
        latch.finish()


# --- one file ---------------------------------------------------------------------------------------------------------


def _put(temp: str, target: str) -> None:
    """Give a target its prepared content: by a rename, or of a database that is there by a transaction."""
    if is_suffixed(target):
        from .databases import is_database, restore

        if is_database(temp) and is_database(target, empty=True):
            restore(temp, target)
            os.unlink(temp)
            return
        _remove_beside(target)  # SQLite would take them for the new file's own
    os.replace(temp, target)


def _remove(target: str) -> None:
    disk.remove(target)
    if is_suffixed(target):
        _remove_beside(target)


def _remove_beside(database: str) -> None:
    for suffix in _BESIDE:
        disk.remove(database + suffix)


def is_suffixed(target: str) -> bool:
    """Whether others may have the target open as a database, and would go on writing to a file renamed away."""
    return os.path.splitext(target)[1].lower() in DATABASES


def prepared(temp: str, target: str) -> str | None:
    """The fingerprint of a database's new content. Raises OSError for one that could not be put there."""
    from .databases import check, fingerprint

    if os.path.lexists(target):
        check(temp, target)
    return fingerprint(temp)


def content(file: str, database: bool = False) -> Content | None:
    """What a regular file holds; None when there is none. Raises OSError for what is no regular file."""
    if disk.regular(file) is None:
        return None
    if database:
        from .databases import fingerprint  # it imports sqlite3

        found = fingerprint(file)
        return Content(found, _changed(file)) if found is not None else None
    fd = os.open(file, os.O_RDONLY | disk.NOFOLLOW | disk.FLAGS)
    try:
        return Content(disk.digest(fd), os.fstat(fd).st_mtime_ns)
    finally:
        disk.close(fd)


def _changed(database: str) -> int:
    """When a database was changed last: with a write-ahead log, only that file tells."""
    times = [os.stat(database).st_mtime_ns]
    with contextlib.suppress(FileNotFoundError):
        times.append(os.stat(database + "-wal").st_mtime_ns)
    return max(times)


def _concerns(wanted: Sequence[str] | None, targets: Sequence[Path]) -> bool:
    if wanted is None:
        return True
    beneath = tuple(path.rstrip(os.sep) + os.sep for path in wanted)
    return any(str(target) in wanted or str(target).startswith(beneath) for target in targets)


def why(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def in_doubt(record: str, names: Sequence[str], reason: str) -> InDoubt:
    return InDoubt(
        f"the commit of {', '.join(names)} was decided but is not finished: {reason}. Its record is kept; the next "
        "guarded call on these files, or `agentguard recover`, tries again. To give it up, bring the files into the "
        f"state that you want and delete {record}",
        record=record,
        resources=tuple(names),
    )
