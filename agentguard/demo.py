"""The shared state of the demo: four kinds of it, one naive update of each, and the count of what is left.

The tools that the demo gives to its agents all do what such tools usually do: read the state, think, write all of it
back. Nothing here knows a framework or a lock; with or without the guard the same lines run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .exceptions import ConfigError
from .merge import check_installed
from .redirect import path

__all__ = [
    "KINDS",
    "MODES",
    "Gate",
    "Kind",
    "Outcome",
    "aapply",
    "agent_names",
    "apply",
    "count",
    "kind_of",
    "missing",
    "seed",
    "settings",
]

MODES = ("off", "serialize", "shard")


@dataclass(frozen=True)
class Kind:
    """One kind of shared state."""

    name: str
    title: str
    file: str  # under the root

    @property
    def resource(self) -> str:
        """What a tool declares as `updates`."""
        return self.file


_ALL = {
    kind.name: kind
    for kind in (
        Kind("json", "JSON store", "findings.json"),
        Kind("log", "JSONL log", "events.jsonl"),
        Kind("report", "Markdown report", "report.md"),
        Kind("rows", "SQLite row", "board.sqlite3"),
    )
}
KINDS = tuple(_ALL)

_START: dict[str, Any] = {"total": 0, "findings": []}
_FIRST = '{"event": "the demo begins"}\n'
_REPORT = "# Report\n\n## Findings\n\n## Sources\n\n- the agents of this demo\n"
_END = "\n## Sources\n"
_BULLET = re.compile(r"- #(\d+) by (.+): something worth keeping")


def kind_of(name: str) -> Kind:
    """The kind called `name`, one of `KINDS`. Raises ValueError for another word."""
    if name not in _ALL:
        raise ValueError(f"no kind of state is called {name!r}; there are {', '.join(KINDS)}")
    return _ALL[name]


def missing(kind: str) -> str | None:
    """Why a kind cannot be sharded here, and how to get what it needs; None when it can."""
    if kind == "rows":
        try:
            check_installed("sqlite")
        except ConfigError as error:
            return error.message
    return None


def settings(mode: str) -> dict[str, Any]:
    """What `Guard(root=folder, **settings(mode))` needs for the four kinds in "serialize" or "shard" mode."""
    if mode not in MODES[1:]:
        raise ValueError(f"the guard has no mode {mode!r}; there are {', '.join(MODES[1:])}")
    rows = "serialize" if missing("rows") else mode
    return {
        "resources": {
            "findings.json": {"mode": mode, "paths": {"/total": "counter"}},
            "events.jsonl": {"mode": mode},
            "report.md": {"mode": mode, "merge": "union"},
            "board.sqlite3": {"mode": rows, "paths": {"/findings": "append", "/counters/*/value": "counter"}},
        }
    }


def agent_names(agents: int) -> tuple[str, ...]:
    """Names for the demo's agents; their order is the order of merging."""
    return tuple(f"agent-{number:02d}" for number in range(1, agents + 1))


# -- one update ----------------------------------------------------------------------------------------------------


def apply(kind: str, agent: str, n: int, folder: Path, pause: Callable[[], None]) -> str:
    """The `n`-th update of `agent`, as a naive tool does it: read, think (`pause()`), write everything back.

    `folder` is the root of the guard, if there is one. Returns the tool's answer to its model.
    """
    steps = _UPDATES[kind_of(kind).name](agent, n, folder)
    next(steps)
    pause()
    return _last(steps)


async def aapply(kind: str, agent: str, n: int, folder: Path, pause: Callable[[], Awaitable[None]]) -> str:
    """The same for an async tool: it awaits where it thinks (`Gate.wait`)."""
    steps = _UPDATES[kind_of(kind).name](agent, n, folder)
    next(steps)
    await pause()
    return _last(steps)


def _last(steps: Generator[None, None, str]) -> str:
    try:
        next(steps)
    except StopIteration as done:
        return str(done.value)
    raise RuntimeError("an update thinks once")


def _update_json(agent: str, n: int, folder: Path) -> Generator[None, None, str]:
    file = path(folder / "findings.json")
    state = _loaded(_whole(file, lambda text: text.endswith("}\n")))
    yield
    state["findings"].append(_mark(agent, n))
    state["total"] += 1
    file.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return f"findings.json holds {state['total']} findings now"


def _update_log(agent: str, n: int, folder: Path) -> Generator[None, None, str]:
    file = path(folder / "events.jsonl")
    text = _whole(file, lambda text: text.endswith("}\n"))
    yield
    file.write_text(f"{text}{json.dumps(_mark(agent, n))}\n", encoding="utf-8")
    return f"event {n} of {agent} logged"


def _update_report(agent: str, n: int, folder: Path) -> Generator[None, None, str]:
    file = path(folder / "report.md")
    before, _, after = _whole(file, lambda text: _END in text).partition(_END)
    yield
    line = f"- #{n} by {agent}: something worth keeping\n"
    file.write_text(f"{before}{line}{_END}{after}", encoding="utf-8")
    return f"finding {n} of {agent} is in the report"


def _update_rows(agent: str, n: int, folder: Path) -> Generator[None, None, str]:
    file = path(folder / "board.sqlite3")
    with contextlib.closing(_open(file)) as board:
        total, last = _counted(board)
    yield
    with contextlib.closing(_open(file)) as board:
        # Two statements, as tools that keep a counter beside their rows usually have it.
        board.execute("REPLACE INTO findings VALUES (?, ?, ?, ?)", (last + 1, *_mark(agent, n).values()))
        board.execute("UPDATE counters SET value = ? WHERE name = 'findings'", (total + 1,))
    return f"the board has {total + 1} findings now"


_UPDATES: dict[str, Callable[[str, int, Path], Generator[None, None, str]]] = {
    "json": _update_json,
    "log": _update_log,
    "report": _update_report,
    "rows": _update_rows,
}


def _mark(agent: str, n: int) -> dict[str, Any]:
    return {"agent": agent, "n": n, "text": "something worth keeping"}


def _whole(file: Path, whole: Callable[[str], bool]) -> str:
    """Unguarded, another agent may be just writing: look again some times, as a careful tool does, then take it."""
    text = ""
    for _ in range(200):
        text = file.read_text(encoding="utf-8")
        if whole(text):
            break
    return text


def _loaded(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # two unguarded writers left a mixture: tools start over then
        found = json.loads(json.dumps(_START))
    return dict(found)


def _open(file: Path) -> sqlite3.Connection:
    board = sqlite3.connect(file, timeout=30, isolation_level=None)
    try:
        board.execute("PRAGMA synchronous = OFF")  # a demo need not survive a power cut
    except sqlite3.Error:
        board.close()
        raise
    return board


def _counted(board: sqlite3.Connection) -> tuple[int, int]:
    """What the counter says, and the largest key of a finding."""
    (total,) = board.execute("SELECT value FROM counters WHERE name = 'findings'").fetchone()
    (last,) = board.execute("SELECT coalesce(max(id), 0) FROM findings").fetchone()
    return total, last


# -- before and after ------------------------------------------------------------------------------------------------


def seed(kind: str, folder: Path) -> None:
    """Write the state that a run begins with into an existing folder."""
    file = folder / kind_of(kind).file
    if kind == "json":
        file.write_text(json.dumps(_START, indent=2) + "\n", encoding="utf-8")
    elif kind == "log":
        file.write_text(_FIRST, encoding="utf-8")
    elif kind == "report":
        file.write_text(_REPORT, encoding="utf-8")
    else:
        with contextlib.closing(_open(file)) as board:
            board.executescript(
                "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);"
                "CREATE TABLE findings (id INTEGER PRIMARY KEY, agent TEXT, n INTEGER, text TEXT);"
                "INSERT INTO counters VALUES ('findings', 0);"
            )


@dataclass(frozen=True)
class Outcome:
    """What is left of the updates of one run. `torn`: places that cannot be read, are there twice or contradict."""

    expected: int
    kept: int
    lost: int
    torn: int

    @property
    def intact(self) -> bool:
        return not self.lost and not self.torn


def count(kind: str, folder: Path, agents: int, rounds: int) -> Outcome:
    """Count the updates of `agents` agents with `rounds` updates each that the state still shows."""
    marks, total, torn = _READERS[kind_of(kind).name](folder)
    found = Counter(marks)
    twice = sum(number - 1 for number in found.values())
    # Where there is a counter beside the list, an update is kept when both show it.
    kept = len(found) if total is None else min(len(found), total)
    torn += twice + (total is not None and total != len(marks))
    expected = agents * rounds
    return Outcome(expected, kept, max(0, expected - kept), torn)


_Found = tuple[list[tuple[str, int]], int | None, int]  # marks, counter, damage


def _read_json(folder: Path) -> _Found:
    try:
        state = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        return _marks(state["findings"]), int(state["total"]), 0
    except (ValueError, KeyError, TypeError):
        return [], None, 1


def _read_log(folder: Path) -> _Found:
    marks: list[tuple[str, int]] = []
    torn = 0
    text = (folder / "events.jsonl").read_text(encoding="utf-8", errors="replace")
    for line in text.removeprefix(_FIRST).splitlines():
        try:
            marks += _marks([json.loads(line)])
        except (ValueError, KeyError, TypeError):
            torn += 1
    return marks, None, torn


def _read_report(folder: Path) -> _Found:
    text = (folder / "report.md").read_text(encoding="utf-8", errors="replace")
    start, _, end = _REPORT.partition(_END)
    frame = [line for line in _REPORT.splitlines() if line]
    lines = [line for line in text.splitlines() if line]
    rest = [line for line in lines if line not in frame]
    whole = text.startswith(start) and text.endswith(_END + end) and len(lines) - len(rest) == len(frame)
    matches = [_BULLET.fullmatch(line) for line in rest]
    marks = [(match[2], int(match[1])) for match in matches if match is not None]
    return marks, None, len(rest) - len(marks) + (not whole)


def _read_rows(folder: Path) -> _Found:
    try:
        with contextlib.closing(_open(folder / "board.sqlite3")) as board:
            total, _ = _counted(board)
            return [(str(agent), int(n)) for agent, n in board.execute("SELECT agent, n FROM findings")], int(total), 0
    except (ValueError, TypeError, sqlite3.DatabaseError):
        return [], None, 1


def _marks(findings: Iterable[Any]) -> list[tuple[str, int]]:
    return [(str(finding["agent"]), int(finding["n"])) for finding in findings]


_READERS: dict[str, Callable[[Path], _Found]] = {
    "json": _read_json,
    "log": _read_log,
    "report": _read_report,
    "rows": _read_rows,
}


# -- interleaving ----------------------------------------------------------------------------------------------------


class Gate:
    """Forces calls to overlap: whoever thinks waits until a second call has read as well, then both write.

    `gate()` in a thread, `await gate.wait()` in a coroutine; both kinds meet. Nobody waits longer than `patience`
    seconds (each time that nobody came, half of it), so that calls which cannot overlap, because the guard lets in one
    at a time, are only a little slower. The last of `calls` calls does not wait: nobody can come any more.
    """

    def __init__(self, mode: str, calls: int, *, patience: float | None = None) -> None:
        # Without the guard somebody surely comes, however slow the machine is.
        self.patience = patience if patience is not None else 1.0 if mode == "off" else 0.004
        self._alone = 0  # how often in a row nobody came
        self._left = calls
        self._waiting: concurrent.futures.Future[None] | None = None
        self._mutex = threading.Lock()

    def __call__(self) -> None:
        ticket, seconds = self._arrive()
        if ticket is not None:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                ticket.result(seconds)
            self._leave(ticket)

    async def wait(self) -> None:
        """The async twin of calling it."""
        ticket, seconds = self._arrive()
        if ticket is not None:
            try:
                await asyncio.wait([asyncio.wrap_future(ticket)], timeout=seconds)
            finally:
                self._leave(ticket)

    def _arrive(self) -> tuple[concurrent.futures.Future[None] | None, float]:
        with self._mutex:
            self._left -= 1
            met, self._waiting = self._waiting, None
            if met is not None:
                self._alone = 0
                met.set_result(None)
            elif self._left > 0:
                self._waiting = concurrent.futures.Future()
            return self._waiting, max(self.patience / 2**self._alone, min(self.patience, 0.002))

    def _leave(self, ticket: concurrent.futures.Future[None]) -> None:
        with self._mutex:
            if self._waiting is ticket:
                self._waiting = None
                self._alone = min(self._alone + 1, 20)
