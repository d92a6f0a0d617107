"""The runs of the demo: each installed framework, each kind of state, without the guard and with it.

A run is a real graph or a real crew with scripted models that works on real files; the adapters bring them along
(`agentguard_langgraph.demo`, `agentguard_crewai.demo`). Frameworks are imported here and nowhere else in the core, and
only when a run needs them.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .demo import KINDS, MODES, Kind, Outcome, count, kind_of, missing, seed
from .exceptions import AgentGuardError, ConfigError

__all__ = ["FRAMEWORKS", "Framework", "Plan", "Result", "execute", "left_out", "load", "plans", "summary"]

FRAMEWORKS = {"langgraph": "LangGraph", "crewai": "CrewAI"}

# A demo neither reports home nor writes into the user's folders, whatever the user's own settings are.
_QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
}


@dataclass(frozen=True)
class Framework:
    """A framework whose demo can run. `run` is the adapter's function of that name."""

    name: str
    run: Callable[..., None]

    @property
    def title(self) -> str:
        return FRAMEWORKS[self.name]


@dataclass(frozen=True)
class Plan:
    """One run, before it has happened."""

    framework: Framework
    kind: Kind
    mode: str

    @property
    def mode_title(self) -> str:
        """What the table calls the mode."""
        return {"off": "no guard", "serialize": "serialized", "shard": "sharded"}[self.mode]


@dataclass(frozen=True)
class Result:
    """One run, and what it left. `error`: the text with which it ended early, if it did."""

    plan: Plan
    outcome: Outcome
    seconds: float
    folder: Path
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the guard did not keep its promise."""
        return self.plan.mode != "off" and (self.error is not None or not self.outcome.intact)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "framework": self.plan.framework.name,
            "state": self.plan.kind.name,
            "mode": self.plan.mode,
            "expected": self.outcome.expected,
            "kept": self.outcome.kept,
            "lost": self.outcome.lost,
            "torn": self.outcome.torn,
            "seconds": round(self.seconds, 3),
            "error": self.error,
        }


def load(names: Iterable[str], scratch: Path, *, loading: Callable[[str], None]) -> tuple[list[Framework], list[str]]:
    """Import the demos of these frameworks; returns those that are there, and for each other one how to get it.

    `loading` is told the title of each before it is imported (CrewAI takes seconds). `scratch`: where a framework may
    keep files of its own.
    """
    os.environ.update(_QUIET, CREWAI_STORAGE_DIR=str(scratch))
    found: list[Framework] = []
    absent: list[str] = []
    for name in names:
        loading(FRAMEWORKS[name])
        try:
            module = importlib.import_module(f"agentguard_{name}.demo")
        except ImportError as error:
            if (error.name or "").startswith("agentguard"):
                raise  # ours is broken, not theirs missing
            absent.append(_missing(name, error))
        else:
            found.append(Framework(name, module.run))
    return found, absent


def _missing(name: str, error: ImportError) -> str:
    fix = f"pip install 'agentguard[{name}]'"
    text = str(error)
    if fix in text:
        return text
    return f"{FRAMEWORKS[name]} cannot be imported ({text}). Install it: {fix}"


def plans(frameworks: Iterable[Framework]) -> list[Plan]:
    """Every run of the demo, in the order of the table."""
    return [
        Plan(framework, kind, mode)
        for framework in frameworks
        for kind in map(kind_of, KINDS)
        for mode in MODES
        if mode != "shard" or missing(kind.name) is None
    ]


def left_out() -> list[str]:
    """The kinds that cannot be sharded here, each with what to do about it."""
    return [f"{kind_of(kind).title}, sharded: {why}" for kind in KINDS if (why := missing(kind)) is not None]


def execute(
    todo: Iterable[Plan], base: Path, agents: int, rounds: int, *, asynchronous: bool, progress: Callable[[], None]
) -> Iterator[Result]:
    """Run them one after another, each in a folder of its own under `base`. `progress` is called for each update."""
    for plan in todo:
        folder = base / plan.framework.name / plan.kind.name / plan.mode
        folder.mkdir(parents=True)
        seed(plan.kind.name, folder)
        started = time.perf_counter()
        error = None
        try:
            plan.framework.run(
                plan.kind.name,
                plan.mode,
                folder,
                agents=agents,
                rounds=rounds,
                asynchronous=asynchronous,
                progress=progress,
            )
        except AgentGuardError as raised:
            if isinstance(raised, ConfigError):
                raise  # not a broken promise: this folder or machine cannot be used
            error = f"{type(raised).__name__}: {raised}"
        seconds = time.perf_counter() - started
        yield Result(plan, count(plan.kind.name, folder, agents, rounds), seconds, folder, error)


def summary(results: Iterable[Result]) -> dict[str, Any]:
    """The demo in four numbers: updates asked for and lost, without the guard and with it."""
    done = list(results)
    plain = [one.outcome for one in done if one.plan.mode == "off"]
    guarded = [one.outcome for one in done if one.plan.mode != "off"]
    return {
        "unguarded_updates": sum(one.expected for one in plain),
        "unguarded_lost": sum(one.lost for one in plain),
        "unguarded_torn": sum(one.torn for one in plain),
        "guarded_updates": sum(one.expected for one in guarded),
        "guarded_lost": sum(one.lost for one in guarded),
        "guarded_torn": sum(one.torn for one in guarded),
        "ok": not any(one.failed for one in done),
    }
