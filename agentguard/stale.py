"""Whether a write is based on an old version, and how that is told. Pure.

Optimistic concurrency control (Kung, Robinson 1981) with the harness as its transaction manager: the version is taken
when a tool reads, and checked under the exclusive lock when one writes.
"""

from __future__ import annotations

import difflib
import enum
import itertools
import time
from dataclasses import dataclass

from .budget import LIMIT, clip, fit, tokens
from .exceptions import StaleWrite
from .knowledge import UNKNOWN, Known
from .locks import Change
from .versions import ABSENT

__all__ = ["Case", "Reason", "diff", "judge", "refusal", "touching"]

_numbers = itertools.count(1)
_NAME = 16  # tokens of an agent's or a tool's name
_WIDE = 160  # characters of a line in a diff


class Reason(enum.Enum):
    """Why a write is refused."""

    CHANGED = "changed"
    DELETED = "deleted"
    CREATED = "created"
    REPLACED = "replaced by a directory"
    UNREAD = "never read"
    LOST = "read in a version that is not known any more"
    TURN = "changed by an earlier call of the same turn"
    UNCHECKED = "cannot be compared"


def judge(known: Known | None, found: str | None, current: str, must_read: bool) -> Reason | None:
    """Whether a write may not go on, and why.

    `known`: what the agent last saw, None when it never read the resource. `found`: the version that an earlier call of
    the same turn has written over, None when there was none. `current`: the version now.
    """
    if known is None:
        if found is not None:
            return Reason.TURN if found != current else None
        return Reason.UNREAD if must_read and current != ABSENT else None
    if known.version == UNKNOWN:
        return Reason.LOST
    if known.version == current:
        return None
    if found is not None and found == known.version:
        return Reason.TURN
    if current == ABSENT:
        return Reason.DELETED
    return Reason.CREATED if known.version == ABSENT else Reason.CHANGED


@dataclass(frozen=True, slots=True)
class Case:
    """One conflict: all that its text is made of. `old` and `new`: the contents, where they are small texts."""

    reason: Reason
    resource: str
    agent: str
    tool: str
    known: Known | None
    current: str
    change: Change | None = None  # who made the current version; None: nobody whom the guard knows
    old: str | None = None
    new: str | None = None
    why: str = ""  # what kept it from being compared or merged


def refusal(case: Case) -> StaleWrite:
    """The error for a conflict: in at most some 300 tokens what happened and what to do, no two of them the same."""
    name, agent, tool = clip(case.resource), clip(case.agent, _NAME), clip(case.tool, _NAME)
    change, known = case.change, case.known
    who = (
        f"agent {clip(change.agent, _NAME)!r} in {clip(change.tool, _NAME)}" if change else "somebody outside the guard"
    )
    when = f" at {_clock(change.at)}" if change else ""
    read = f" at {_clock(known.at)}" if known is not None and known.at else ""
    versions = f" (version {_short(known.version)}, now {_short(case.current)})" if known is not None else ""
    again = f"Nothing was applied. Read {name} again, then retry {tool}."
    if case.reason is Reason.UNREAD:
        what = f"{name} was never read by agent {agent!r}, and it must be (require_read). {again}"
    elif case.reason is Reason.LOST:
        what = f"{name} was read by agent {agent!r}, but in which version is not known any more. {again}"
    elif case.reason is Reason.TURN:
        what = (
            f"{name} was changed by an earlier call of the same turn ({who}{when}), which this call could not take "
            f"into account. {again}"
        )
    elif case.reason is Reason.UNCHECKED:
        what = f"whether {name} was changed since agent {agent!r} read it cannot be told: {clip(case.why, 40)}. {again}"
    elif case.reason is Reason.DELETED:
        what = (
            f"{name} was deleted or renamed by {who}{when}, after agent {agent!r} read it{read}{versions}. Nothing was "
            f"applied. Look where it is now; to create it anew, retry {tool}."
        )
    elif case.reason is Reason.REPLACED:
        what = (
            f"{name} was a file when agent {agent!r} read it{read}, and is a directory now. Nothing was "
            "applied. Look what is in it, and name a file."
        )
    elif case.reason is Reason.CREATED:
        what = f"{name} did not exist when agent {agent!r} looked{read}; {who} created it{when}. {again}"
    else:
        what = f"{name} was changed by {who}{when}, after agent {agent!r} read it{read}{versions}. {again}"
    text = f"Conflict: {what} (conflict {next(_numbers)})"
    if case.why and case.reason is not Reason.UNCHECKED:
        text = f"{text} {clip(case.why, 40)}"
    head = "\nWhat changed:\n"
    shown = fit(diff(case.old, case.new), max(0, LIMIT - tokens(text) - tokens(head) - 4))
    return StaleWrite(
        fit(f"{text}{head}{shown}" if len(shown) > 2 else text),
        resource=case.resource,
        agent=case.agent,
        tool=case.tool,
        reason=case.reason.value,
        read_version=known.version if known is not None else None,
        current_version=case.current,
        changed_by=f"{change.agent} in {change.tool}" if change is not None else None,
        changed_at=change.at if change is not None else None,
        diff=shown,
    )


def touching(name: str, tool: str, agent: str) -> StaleWrite:
    """The error for a file that changed under the exclusive lock, while a tool worked on its copy."""
    return StaleWrite(
        fit(
            f"Conflict: {clip(name)} was changed outside the guard while {clip(tool, _NAME)} of agent "
            f"{clip(agent, _NAME)!r} worked on its copy: either the tool itself also wrote to the file directly, or "
            f"another program did. The copy was not applied. Let the tool write only to path({clip(name)!r}), read it "
            f"again, then retry. (conflict {next(_numbers)})"
        ),
        resource=name,
        agent=agent,
        tool=tool,
        reason="changed under the lock",
        read_version=None,
        current_version=None,
        changed_by=None,
        changed_at=None,
        diff="",
    )


def _short(version: str) -> str:
    return version[:8] if version != ABSENT else version


def _clock(at: float) -> str:
    recent = time.time() - at < 86_400
    return time.strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M:%S", time.localtime(at))


def diff(old: str | None, new: str | None, *, limit: int = 600) -> str:
    """A short diff of two texts, `-` and `+` lines without context, cut to `limit` characters; empty when either is
    not known. Of two long lines only the part that differs is shown."""
    if old is None or new is None or old == new:
        return ""
    before, after = old.splitlines(), new.splitlines()
    if before == after:
        return "(only the ends of lines)"
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    before, after = before[start : len(before) - end], after[start : len(after) - end]
    lines: list[str] = []
    spent = 0
    for one in _changes(before, after):
        lines.append(one)
        spent += len(one) + 1
        if spent > limit:
            break
    text = "\n".join(lines)
    return text if len(text) <= limit else text[: limit - 2] + " …"


def _changes(before: list[str], after: list[str]) -> list[str]:
    if len(before) * len(after) > 1_000_000:  # comparing line by line would take longer than the call
        return [*(f"-{_cut(line)}" for line in before[:10]), *(f"+{_cut(line)}" for line in after[:10])]
    found: list[str] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if j - i == m - k == 1 and max(len(before[i]), len(after[k])) > _WIDE:
            found += _part(before[i], after[k])
        else:
            found += [f"-{_cut(line)}" for line in before[i:j]] + [f"+{_cut(line)}" for line in after[k:m]]
    return found


def _part(old: str, new: str) -> tuple[str, str]:
    """Where two long lines differ, with a little of what stands around it."""
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    start, end = max(0, start - 20), max(0, end - 20)
    lead, tail = "…" * (start > 0), "…" * (end > 0)
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    return f"-{lead}{_cut(old)}{tail}", f"+{lead}{_cut(new)}{tail}"


def _cut(line: str) -> str:
    return line if len(line) <= _WIDE else line[: _WIDE - 1] + "…"
