"""What is said when versions cannot be merged at all: one sentence for every format."""

from __future__ import annotations

from collections.abc import Mapping

from agentguard.exceptions import MergeConflict
from agentguard.merge.values import MISSING, Conflict, Options

__all__ = ["AGAIN", "refusal"]

AGAIN = "write that version again, or drop it"


def refusal(
    reason: str,
    base: bytes | None,
    sides: Mapping[str, bytes],
    options: Options,
    *,
    advice: str = AGAIN,
    agent: str | None = None,
    line: int | None = None,
    column: int | None = None,
) -> MergeConflict:
    """A conflict about a whole resource that no resolver can settle, since it cannot be read or written by its format.

    `reason` says who has what and where; `advice` what to do next ("" for nothing); `agent`, `line` and `column` become
    fields of the exception.
    """
    then = f"; {advice}" if advice else ""
    return MergeConflict(
        f"{options.resource or 'the resource'} was not merged: {reason}. Nothing was published{then}",
        conflicts=(Conflict(options.resource, "", MISSING if base is None else base, dict(sides), reason),),
        resources=(options.resource,),
        agent=agent,
        line=line,
        column=column,
    )
