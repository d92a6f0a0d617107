"""The command line: `agentguard demo | merge | status | recover`.

Exit codes: 0 all is well; 1 a guarded run of the demo lost something, or a merge has conflicts; 2 a mistake in what was
asked for, or a commit in doubt. Frameworks, tables and the configuration are imported by the commands that need them,
so that `--help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .exceptions import AgentGuardError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from .config import Config
    from .guard import Guard
    from .home import Home

__all__ = ["app", "main"]

app = typer.Typer(
    name="agentguard",
    help="Parallel agents stop losing each other's work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The configuration file. Default: the nearest one, searched upward."),
]
_Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="The folder that the guard works in, instead of a file.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]


def main() -> None:
    """The command `agentguard`. Errors of ours are one message on standard error and exit code 2."""
    try:
        app()
    except AgentGuardError as error:
        _complain(str(error))
        sys.exit(2)
    except PermissionError as error:
        _complain(f"{error.filename}: {error.strerror}. Run it as the user whose folder it is.")
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the versions and exit.")] = False) -> None:
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as version_of

        parts = [f"Python {sys.version.split()[0]}"]
        for name in ("langgraph", "crewai"):
            try:
                parts.append(f"{name} {version_of(name)}")
            except PackageNotFoundError:
                parts.append(f"{name} not installed")
        typer.echo(f"agentguard {__version__} ({', '.join(parts)})")
        raise typer.Exit


@app.command()
def demo(
    framework: Annotated[str, typer.Option(metavar="langgraph|crewai|all", help="Which framework to run.")] = "all",
    agents: Annotated[int, typer.Option(min=2, max=64, help="Agents that work in parallel.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Updates that each agent makes.")] = 5,
    asynchronous: Annotated[bool, typer.Option("--async", help="Use the frameworks' async entry points.")] = False,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep what the runs wrote in this new or empty folder.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Watch parallel agents lose work, and none with the guard.

    Real graphs and crews with scripted models (no key, no network) update four kinds of shared state on real files:
    without the guard, serialized, and sharded and merged. Exits with 1 if a guarded run lost or tore anything.
    """
    from . import demo_cli

    raise typer.Exit(demo_cli.show(framework, agents, rounds, asynchronous, keep, as_json))


@app.command()
def merge(
    sides: Annotated[list[Path], typer.Argument(metavar="A1 A2 ...", help="The versions, in the order that decides.")],
    base: Annotated[Path, typer.Option(metavar="FILE", help="What all of them began with; it need not exist.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the result goes; it may be one of the versions.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the file is called; its suffix chooses the strategy.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(metavar="STRATEGY", help="Instead of the one by the suffix.")] = None,
    path: Annotated[
        list[str] | None, typer.Option(metavar="PLACE=STRATEGY", help="A strategy for a place, as /total=counter.")
    ] = None,
    config: _ConfigFile = None,
) -> None:
    """Merge versions of a file: JSON, YAML, TOML, CSV, SQLite, logs, text.

    Conflicts are listed on standard error, and the base stays at those places: the result can be read in its format at
    all times. Exits with 1 when there are any, with 2 when a version cannot be read; then nothing is written.

    As a merge driver of git: `git config merge.agentguard.driver "agentguard merge --base %O --out %A --name %P %A %B"`
    and, in .gitattributes, `*.json merge=agentguard`.
    """
    from .config import find_config, load_config
    from .merge_cli import merge_files, path_rules

    rules = load_config(config) if config is not None or find_config() is not None else None
    try:
        merged = merge_files(base, out, sides, name=name, strategy=strategy, paths=path_rules(path or ()), config=rules)
    except OSError as error:
        raise ConfigError(f"{error.filename or out}: {error.strerror or error}") from error
    for conflict in merged.conflicts:
        typer.echo(f"conflict: {conflict}", err=True)
    raise typer.Exit(1 if merged.conflicts else 0)


@app.command()
def status(config: _ConfigFile = None, root: _Root = None, as_json: _Json = False) -> None:
    """Show who holds what now, and what was left behind.

    Lists held locks, open shards, kept conflicts and unfinished commits, of every process. Looks at the disk and
    changes nothing. Exits with 2 when a commit is in doubt.
    """
    from . import status as disk

    settings = _settings(config, root)
    home = _home(settings)
    if home is None:
        if as_json:
            _print_json({"home": None, "holders": [], "shards": [], "conflicts": [], "late": [], "pending": []})
        else:
            _say(f"No guard has worked in {settings.root} yet: there is no .agentguard folder in it or above it.")
        return
    found = disk.status(home)
    if as_json:
        _print_json(found.as_dict())
    else:
        _say(str(found))
        _advise(found)
    raise typer.Exit(2 if found.in_doubt else 0)


@app.command()
def recover(
    config: _ConfigFile = None,
    root: _Root = None,
    join: Annotated[
        str | None, typer.Option(metavar="RUN", help="Merge the shards that this run left, with the configured rules.")
    ] = None,
    drop: Annotated[
        str | None, typer.Option(metavar="REFERENCE", help="Throw away one shard, by the reference `status` shows.")
    ] = None,
) -> None:
    """Finish what killed processes left.

    Completes their commits, removes their copies and, if you say so, joins or drops their shards. Safe beside
    processes that work: it never touches what they hold. A shard is joined or dropped only by you, here, or by its run
    when that resumes; do neither while the run still works. Exits with 2 when a commit is in doubt, or the run or
    shard does not exist.
    """
    if join is not None and drop is not None:
        raise ConfigError("give either --join or --drop, not both")
    settings = _settings(config, root)
    home = _home(settings)
    if home is None:
        _say(f"Nothing to recover: no guard has worked in {settings.root} yet.")
        raise typer.Exit(2 if join is not None or drop is not None else 0)
    from . import status as disk
    from .guard import Guard

    done = disk.recover(home)  # before a guard is made: that would sweep silently
    if (join is None and drop is None) or done:
        _say(str(done))
    if join is not None:
        _join(Guard(config=settings), join)
    elif drop is not None:
        _drop(Guard(config=settings), drop)
    else:
        _advise(disk.status(home))
    raise typer.Exit(2 if done.in_doubt else 0)


def _join(guard: Guard, run: str) -> None:
    if not guard.shards.of_run(run):
        known = sorted({shard.identity.run for shard in guard.shards.runs() if shard.entries})
        listed = f"Runs with open shards: {', '.join(known)}." if known else "No run has an open shard."
        raise ConfigError(f"no agent of run {run!r} has an open shard under {guard.root}. {listed}", value=run)
    _say(str(guard.join(run=run)))


def _drop(guard: Guard, reference: str) -> None:
    if reference in guard.shards.damaged():
        guard.shards.remove(reference)
        _say(f"dropped the damaged shard {reference}")
        return
    shard = guard.shards.load(reference)
    if shard is None:
        raise ConfigError(
            f"there is no shard {reference!r} under {guard.root}: it was merged or dropped already. "
            "`agentguard status` lists the open ones.",
            value=reference,
        )
    names = ", ".join(sorted(entry.resource for entry in shard.entries.values())) or "nothing"
    guard.shards.drop(shard)
    _say(f"dropped what {shard.identity.agent} of run {shard.identity.run} wrote: {names}")


# -- finding the place -----------------------------------------------------------------------------------------------


def _settings(file: Path | None, root: Path | None) -> Config:
    """The configuration that the options mean. Raises `ConfigError`."""
    from .config import find_config, load_config, make_config

    if file is not None and root is not None:
        raise ConfigError("give either --config or --root, not both")
    if root is None:
        return load_config(file)
    if not root.is_dir():
        raise ConfigError(f"--root {root}: there is no such folder", file=str(root))
    plain = make_config(root)
    found = find_config(plain.root)
    if found is not None:
        named = load_config(found)
        if os.path.realpath(named.root) == os.path.realpath(plain.root):
            return named
    return plain


def _home(settings: Config) -> Home | None:
    """The folder of the guards that work there, if there is one: looking must not make it."""
    from .home import Home
    from .resources import FOLDER, home_of

    base = home_of(Path(os.path.realpath(settings.root)))
    return Home(base) if (base / FOLDER).is_dir() else None


# -- printing --------------------------------------------------------------------------------------------------------


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


def _say(text: str) -> None:
    from rich.text import Text

    shown = Text()
    for number, line in enumerate(text.splitlines()):
        doubtful = "IN DOUBT" in line
        shown.append("\n" if number else "")
        shown.append(line, "bold red" if doubtful else "bold" if line.endswith(":") and line[:1].strip() else "")
    _console().print(shown)


def _complain(text: str) -> None:
    from rich.text import Text

    _console(stderr=True).print(Text.assemble(("Error: ", "bold red"), text))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _advise(found: Any) -> None:
    """What a person can do about what `status` shows."""
    lines: list[str] = []
    if any(not one.live and one.doubt is None for one in found.pending):
        lines.append("finish the commits of dead processes:  agentguard recover")
    if found.shards:
        lines.append(f"merge what a run that ended has left:  agentguard recover --join {found.shards[0].run}")
        lines.append(f"or throw one shard away:               agentguard recover --drop {found.shards[0].reference}")
    if found.in_doubt:
        lines.append("a commit in doubt is yours to decide: make the named files as they shall be, remove the record")
    if lines:
        _say("\n".join(["next:", *(f"  {line}" for line in lines)]))
