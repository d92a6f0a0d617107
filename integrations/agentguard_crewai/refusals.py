"""What a call that could not be applied says: to the model as a `ToolFailure`, to the application as an exception.

A tool that raises runs again, up to six times, on CrewAI's text path. So whatever the guard has to say about a call is
returned; the framework then shows it to the model, records it on the task's output, runs nothing twice and caches
nothing.
"""

from __future__ import annotations

import functools
import itertools
import time
from typing import Any

from crewai.hooks import HookAborted
from crewai.tools.tool_failure import ToolFailure

from agentguard import AgentGuardError, Deadlock, InDoubt, LockLost, LockTimeout, StaleWrite, UndeclaredWrite
from agentguard.budget import fit, tokens

__all__ = ["REPORTED", "aborting", "failure"]

REPORTED = (StaleWrite, LockTimeout, Deadlock, LockLost, UndeclaredWrite, InDoubt)

# InDoubt is no refusal, its commit was decided; but raising it would let the text path run the body again.
_FINAL = (UndeclaredWrite, InDoubt)
_LONGEST = 300  # tokens
_numbers = itertools.count(1)


def failure(error: AgentGuardError) -> ToolFailure:
    """The tool result for an error of `REPORTED`: at most 300 tokens to the model, and never twice the same text.

    CrewAI ends a run after five calls with one and the same result, and an agent that waits its turn politely would
    look just like one that is stuck; the number tells them apart.
    """
    tail = f"\n[refusal {next(_numbers)}, {time.strftime('%H:%M:%S')}]"
    room = _LONGEST - tokens(f"{tail} (code: {error.code}) …")  # which is what CrewAI adds
    return ToolFailure(
        message=fit(error.for_model(), room) + tail,
        code=error.code,
        retryable=not isinstance(error, _FINAL),
        details=error.facts(),
    )


def aborting(error: AgentGuardError) -> HookAborted:
    """The same error as something a hook may raise: CrewAI swallows everything from a hook but `HookAborted`.

    `except MergeConflict:` around `crew.kickoff()` catches it, with all its fields.
    """
    kind: Any = type(error)  # mypy takes no class for hashable whose instances define __getattr__
    made = _abort_type(kind)(error.message, **error.fields)
    made.reason, made.source = error.message, "agentguard"
    made.__cause__ = error
    assert isinstance(made, HookAborted)
    return made


@functools.cache
def _abort_type(kind: Any) -> type[Any]:
    def reduce(self: AgentGuardError) -> Any:
        return kind.__reduce__(kind(self.message, **self.fields))  # pickles as the plain error: this class has no home

    return type(kind.__name__, (kind, HookAborted), {"__reduce__": reduce, "__module__": kind.__module__})
