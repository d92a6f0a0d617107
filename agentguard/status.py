"""`status` and `recover`: what is going on under one home, told from the disk, not from anybody's memory."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .commit import Pending, Recovered
from .home import Home
from .late import Waiting, sweep, waiting
from .locks import Holder
from .shards import Shard, Shards

__all__ = ["OpenShard", "Recovery", "Status", "recover", "status"]


@dataclass(frozen=True, slots=True)
class OpenShard:
    """What an agent wrote in shard mode and no join has merged yet."""

    reference: str
    run: str
    agent: str
    resources: tuple[str, ...]
    since: float  # seconds since the epoch
    folder: str


@dataclass(frozen=True, slots=True)
class Status:
    """Holders of locks now, open shards, kept conflicts, commits in doubt. `print` it for people."""

    home: str
    holders: tuple[Holder, ...]
    shards: tuple[OpenShard, ...]
    damaged: tuple[str, ...]  # references of shards that cannot be read
    conflicts: tuple[str, ...]  # folders under `conflicts/`
    pending: tuple[Pending, ...]  # commits of live or dead processes that are not finished
    late: tuple[Waiting, ...] = ()  # merged files that somebody still has open for writing

    @property
    def in_doubt(self) -> tuple[Pending, ...]:
        """Commits that recovery must leave to a person."""
        return tuple(one for one in self.pending if one.doubt is not None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "home": self.home,
            "holders": [{**asdict(one), "mode": one.mode.name.lower()} for one in self.holders],
            "shards": [asdict(one) for one in self.shards],
            "damaged": list(self.damaged),
            "conflicts": list(self.conflicts),
            "late": [asdict(one) for one in self.late],
            "pending": [
                {
                    "record": str(one.record),
                    "targets": [str(t) for t in one.targets],
                    "since": one.since,
                    "live": one.live,
                    "doubt": one.doubt,
                }
                for one in self.pending
            ],
        }

    def __str__(self) -> str:
        lines = [f"AgentGuard at {self.home}"]
        lines += _section("held now", [f"{_name(one.key)}: {one}" for one in self.holders])
        lines += _section(
            "open shards",
            [
                f"{one.agent}: {', '.join(one.resources)} (run {one.run}, since {_when(one.since)})\n"
                f"    {one.reference}"
                for one in self.shards
            ],
        )
        if self.damaged:
            lines += _section("damaged shards (look at their files, then drop them)", list(self.damaged))
        lines += _section("kept conflicts", list(self.conflicts))
        if self.late:
            lines += _section(
                "merged, but still open for writing (what comes is kept)",
                [f"{one.resource}: {one.agent} (run {one.run}, {one.joined})\n    {one.folder}" for one in self.late],
            )
        lines += _section("unfinished commits", [_commit(one) for one in self.pending])
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` did."""

    finished: tuple[Recovered, ...]  # commits that were redone
    in_doubt: tuple[Recovered, ...]  # commits that are left to a person
    removed: tuple[str, ...]  # copies of calls whose process is gone

    def __bool__(self) -> bool:
        return bool(self.finished or self.in_doubt or self.removed)

    def __str__(self) -> str:
        if not self:
            return "nothing to recover"
        lines = [f"finished {', '.join(map(str, one.targets))}" for one in self.finished]
        lines += [
            f"IN DOUBT {', '.join(map(str, one.targets))}: {one.doubt}\n    {one.record}" for one in self.in_doubt
        ]
        lines += [f"removed the copies of a call that died: {folder}" for folder in self.removed]
        return "\n".join(lines)


def status(home: Home) -> Status:
    """Look; change nothing. Raises OSError when the folder cannot be read."""
    conflicts = home.folder / "conflicts"
    shards = Shards(home, home.base)
    kept = sorted(str(entry) for entry in conflicts.iterdir() if entry.is_dir()) if conflicts.is_dir() else []
    return Status(
        str(home.base),
        tuple(sorted((one for one in home.locks.scan() if _name(one.key)), key=lambda one: one.key)),
        tuple(_open(shard) for shard in shards.runs() if shard.entries),
        tuple(shards.damaged()),
        tuple(kept),
        tuple(one for journal in (home.journal, *home.above) for one in journal.inspect()),
        tuple(waiting(home)),
    )


def recover(home: Home) -> Recovery:
    """Finish or take back what killed processes left. Needs no locks; never touches a live process's work."""
    found = [one for journal in (home.journal, *home.above) for one in journal.recover()]
    shards = Shards(home, home.base)
    for shard in shards.runs():
        merged = home.ledger.contains([entry.id for entry in shard.entries.values()])
        done = [key for key, entry in shard.entries.items() if entry.id in merged]
        if done:  # committed by a join that was killed before it could tidy up
            shards.finish(shard, done)
    sweep(home)
    return Recovery(
        tuple(one for one in found if one.doubt is None),
        tuple(one for one in found if one.doubt is not None),
        tuple(str(folder) for folder in home.sweep()),
    )


def _open(shard: Shard) -> OpenShard:
    entries = shard.entries.values()
    since = min(entry.forked for entry in entries)
    names = tuple(sorted(entry.resource for entry in entries))
    return OpenShard(shard.reference, shard.identity.run, shard.identity.agent, names, since, str(shard.folder))


def _section(title: str, rows: list[str]) -> list[str]:
    return [f"{title}: none"] if not rows else [f"{title}:", *(f"  {row}" for row in rows)]


def _name(key: str) -> str:
    return key.removeprefix("file:")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _commit(one: Pending) -> str:
    state = (
        f"IN DOUBT: {one.doubt}" if one.doubt else "being committed now" if one.live else "of a dead process; recover"
    )
    return f"{', '.join(Path(t).name for t in one.targets) or one.record.name} ({state}, since {_when(one.since)})"
