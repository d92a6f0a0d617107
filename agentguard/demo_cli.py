"""What `agentguard demo` prints: progress while it runs, then one table and one sentence."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .demo_runs import FRAMEWORKS, Plan, Result, execute, left_out, load, plans, summary
from .exceptions import ConfigError

__all__ = ["show"]

_WIDTH = 110  # of the table in a file or pipe, which have no width of their own


def show(framework: str, agents: int, rounds: int, asynchronous: bool, keep: Path | None, as_json: bool) -> int:
    """Run the demo and print it; returns the exit code.

    Raises `ConfigError` for a framework that nobody knows, one that was asked for by name and is not installed, and a
    `keep` that is not a new or empty folder.
    """
    names = _named(framework)
    with _folder(keep) as base, _folder(None) as scratch:
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        # What a framework prints must not get between the lines of the table or into the JSON.
        with contextlib.redirect_stdout(sys.stderr), progress:
            task = progress.add_task("starting", total=None)
            frameworks, missing = load(
                names, scratch, loading=lambda title: progress.update(task, description=f"importing {title}")
            )
            if missing and framework != "all":
                raise ConfigError("\n".join(missing))
            todo = plans(frameworks)
            progress.update(task, total=len(todo) * agents * rounds)
            results: list[Result] = []
            for result in execute(
                _announced(todo, progress, task),
                base,
                agents,
                rounds,
                asynchronous=asynchronous,
                progress=lambda: progress.advance(task),
            ):
                results.append(result)
                progress.update(task, completed=len(results) * agents * rounds)
        if results:
            missing = [*missing, *left_out()]
        if as_json:
            _print_json(results, missing, agents, rounds, keep)
        elif not results:
            print("The demo runs a framework, and none is installed here:", *missing, sep="\n")
        else:
            _print(results, missing, agents, rounds, keep)
    return 1 if any(one.failed for one in results) else 0


def _named(framework: str) -> list[str]:
    if framework == "all":
        return list(FRAMEWORKS)
    if framework not in FRAMEWORKS:
        raise ConfigError(
            f"no framework is called {framework!r}; choose {', '.join(FRAMEWORKS)} or all", value=framework
        )
    return [framework]


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="agentguard-demo-", ignore_cleanup_errors=True) as made:
            yield Path(made)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        taken = any(keep.iterdir())
    except OSError as error:
        raise ConfigError(f"--keep {keep}: {error.strerror or error}", file=str(keep)) from error
    if taken:
        raise ConfigError(f"--keep {keep}: this folder is not empty; name a new one", file=str(keep))
    yield keep.resolve()


def _announced(todo: list[Plan], progress: Progress, task: Any) -> Iterator[Plan]:
    for plan in todo:
        progress.update(task, description=f"{plan.framework.title}: {plan.kind.title}, {plan.mode_title}")
        yield plan


def _print(results: list[Result], missing: list[str], agents: int, rounds: int, keep: Path | None) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_WIDTH)
    console.print(
        f"{agents} agents in parallel, {rounds} updates each, on real files. The models are scripted; graphs, crews "
        "and tools are real. Each tool reads the shared state, thinks, and writes it back.\n"
    )
    console.print(_table(results))
    for one in results:
        if one.error is not None:
            where = f"{one.plan.framework.title}, {one.plan.kind.title}, {one.plan.mode_title}"
            console.print(Text.assemble((f"{where}: ", "bold"), one.error))
    console.print(_sentence(results))
    for text in missing:
        console.print(Text(f"Not shown: {text}", "yellow"))
    if keep is not None:
        console.print(f"The files of every run are kept in {keep}", soft_wrap=True)


def _table(results: list[Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("framework", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("mode", min_width=len("serialized"))
    for name in ("expected", "kept", "lost", "torn", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    before: Plan | None = None
    for number, one in enumerate(results):
        plan, outcome = one.plan, one.outcome
        same = before is not None and before.framework is plan.framework
        following = results[number + 1].plan if number + 1 < len(results) else None
        table.add_row(
            "" if same else plan.framework.title,
            "" if same and before is not None and before.kind is plan.kind else plan.kind.title,
            plan.mode_title,
            str(outcome.expected),
            str(outcome.kept),
            _damage(outcome.lost),
            _damage(outcome.torn),
            f"{one.seconds:.2f}",
            end_section=following is None or following.kind is not plan.kind,
        )
        before = plan
    return table


def _damage(number: int) -> Text:
    return Text(str(number), "bold red" if number else "green")


def _sentence(results: list[Result]) -> Text:
    told = summary(results)
    plain = f"Without the guard {told['unguarded_lost']} of {told['unguarded_updates']} updates were lost"
    if told["unguarded_torn"]:
        plain += f", and in {told['unguarded_torn']} place(s) the state was torn"
    if told["ok"]:
        return Text.assemble((f"{plain}. ", ""), (f"With it: none of {told['guarded_updates']}.", "bold green"))
    guarded = f"With it: {told['guarded_lost']} of {told['guarded_updates']} lost, {told['guarded_torn']} torn."
    return Text.assemble(
        (f"{plain}. ", ""), (f"{guarded} That is a bug in AgentGuard: please report it with this output.", "bold red")
    )


def _print_json(results: list[Result], missing: list[str], agents: int, rounds: int, keep: Path | None) -> None:
    runs = [one.as_dict() | ({"folder": str(one.folder)} if keep is not None else {}) for one in results]
    report = {"agents": agents, "rounds": rounds, "runs": runs, "missing": missing, **summary(results)}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
