"""`Guard`: what applications and the framework adapters call."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import logging
import os
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from . import flow, values
from .call import Call
from .commit import UNFINISHED
from .declaration import Declaration, Signature, check_function, declared_on, version_function
from .events import Event, Hook
from .exceptions import AgentGuardError, ConfigError, UndeclaredWrite
from .home import Home, home_at
from .knowledge import Knowledge
from .locks import LockTable, Owner
from .outline import Batch, Outline, outline
from .redirect import CURRENT, GUARD, OPEN_GUARDS, Place
from .resources import Resource, Resources, plan
from .shards import Identity, Shards
from .versions import DATABASES, Versions

if TYPE_CHECKING:
    from .config import Config, ResourceConfig
    from .reports import JoinReport, ResourceReport
    from .status import Recovery, Status
    from .turns import Seat

__all__ = ["Guard", "Hold"]

log = logging.getLogger("agentguard")

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

IDENTITY: contextvars.ContextVar[tuple[Guard, Identity] | None] = contextvars.ContextVar(
    "agentguard_identity", default=None
)


class Guard:
    """Serializes tool calls on the resources they declare, or leads them to shards that a join merges.

    `root`: the folder that resource names are relative to; it must exist. Further `settings` are those of the
    configuration file (`timeout` in seconds, `durable`, `unknown_tools`, `resources`, `tools`, ...). Locks and journals
    live in `<root>/.agentguard/`, or in that of the nearest folder above which has one. Guards may be made anywhere,
    any number of them; all of one tree exclude each other, in threads, event loops and processes.

    Raises `ConfigError` for settings that cannot be meant and for a root that cannot be used.
    """

    def __init__(self, root: str | os.PathLike[str] = ".", *, config: Config | None = None, **settings: Any) -> None:
        from .config import make_config
        from .contents import Contents

        if config is not None and settings:
            raise ConfigError(f"give either config= or settings ({', '.join(settings)}), not both")
        self.config: Config = config if config is not None else make_config(root, **settings)
        _check_merges(self.config)
        self.resources = Resources(self.config.root)
        self.root: Path = self.resources.root
        self.home: Home = home_at(self.root)
        self.shards = Shards(self.home, self.root)
        self.shard_locks = self.shards.locks
        sharded = [name for name, one in self.config.resources.items() if one.mode == "shard"]
        self.sharded_directories = tuple(
            name.rstrip("/") for name in sharded if not any(sign in name for sign in "*?[")
        )
        self.knowledge = Knowledge()
        self.versions = Versions()
        self.contents = Contents(self.home.folder / "versions")
        # By resource: since when (ns) who had a file that was not worked on as a copy, with which tool, until when.
        self.in_place: OrderedDict[str, tuple[int, Identity, str, int]] = OrderedDict()
        self.hooks: list[Hook] = []
        self.timeout: float = self.config.timeout
        self.run = f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(3)}"
        self._homes: dict[Path, Home] = {self.home.base: self.home}
        self.outlines: dict[int, Outline] = {}
        self._tables: dict[Path, LockTable] = {}
        self._batches: dict[tuple[tuple[Resource, bool], ...], Sequence[Batch]] = {}
        self._owners: dict[tuple[str, str, str, int | None], Owner] = {}
        self._warned: set[str] = set()
        self._threads: dict[str, Identity] = {}  # of callers that nobody named
        self._closed = False
        self._tools = {name: _tool_declaration(one) for name, one in self.config.tools.items()}
        OPEN_GUARDS.append(weakref.ref(self, OPEN_GUARDS.remove))

    @classmethod
    def from_config(cls, file: str | os.PathLike[str] | None = None) -> Guard:
        """A guard by `agentguard.toml`, `agentguard.yaml` or `[tool.agentguard]` in `pyproject.toml`.

        Without `file` it is searched from the working directory upward; none there means the embedded default (file
        locks, the working directory as root). A given `file` must exist. Raises `ConfigError` that names file and key.
        """
        from .config import load_config

        return cls(config=load_config(Path(file) if file is not None else None))

    def __repr__(self) -> str:
        return f"Guard(root={str(self.root)!r})"

    # -- guarding ---

    def wrap(
        self,
        fn: F,
        *,
        writes: Any = None,
        reads: Any = None,
        updates: Any = None,
        version: Callable[..., Any] | None = None,
        name: str | None = None,
        timeout: float | None = None,
    ) -> F:
        """The same function, guarded at each call; a coroutine function stays one.

        Without `writes`, `reads` and `updates` its `@declare` is used, else the configuration's entry for its name,
        else `unknown_tools` decides. `version` as in `declare`. `timeout` in seconds (0: try once); None: the
        configuration's.

        The guarded function raises `StaleWrite`, `LockTimeout`, `Deadlock` or `UndeclaredWrite` without having run the
        body. A cancelled call stops waiting at once; a body that runs is cancelled, and its copies are discarded.
        Raises `ConfigError` at once for a template that names no argument.
        """
        tool = name or str(getattr(fn, "__name__", type(fn).__name__))
        if any(given is not None for given in (writes, reads, updates)):
            declaration: Declaration | None = Declaration.of(writes, reads, updates, version=version)
        else:
            declaration = self.declaration_of(tool, fn)
        if declaration is not None:
            check_function(fn, declaration, tool)
        if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise ConfigError(
                f"{tool} is a generator: its body runs after the call has returned. Guard with `hold`.", tool=tool
            )
        signature = Signature(fn)

        def prepare(
            args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Any]]:
            if declaration is None or not declaration.fields:
                return {}, lambda _: fn(*args, **kwargs)
            bound = signature.bind(args, kwargs)

            def invoke(replaced: Mapping[str, Any]) -> Any:
                signature.replace(bound, replaced)
                return fn(*bound.args, **bound.kwargs)

            return signature.arguments(bound), invoke

        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                arguments, invoke = prepare(args, kwargs)
                return await self.acall(declaration, tool, arguments, invoke, timeout=timeout)

            return guarded_async  # type: ignore[return-value]

        @functools.wraps(fn)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            arguments, invoke = prepare(args, kwargs)
            return self.call(declaration, tool, arguments, invoke, timeout=timeout)

        return guarded  # type: ignore[return-value]

    def hold(
        self,
        *,
        writes: Any = None,
        reads: Any = None,
        updates: Any = None,
        version: Callable[..., Any] | None = None,
        timeout: float | None = None,
        name: str = "hold",
    ) -> Hold:
        """A guarded block: `with` in threads, `async with` in coroutines.

        `timeout` in seconds for all resources together (0: try once). Leaving the block normally commits what
        `hold.path(name)` gave; an exception discards it. Raises on entry as a guarded function does.
        """
        return Hold(self, Declaration.of(writes, reads, updates, version=version), name, timeout)

    def call(
        self,
        declaration: Declaration | None,
        tool: str,
        arguments: Mapping[str, Any],
        body: Callable[[Mapping[str, Any]], T],
        *,
        identity: Identity | None = None,
        timeout: float | None = None,
        seat: Seat | None = None,
    ) -> T:
        """Run one guarded call in this thread; what adapters use. `body` gets the arguments to replace.

        `seat`: the call's place in its turn, when a model makes several calls at once (see `agentguard.turns`)."""
        declaration = self._known(declaration, tool)
        if not declaration:
            return body({})
        made = self.begin(declaration, tool, arguments, identity=identity, timeout=timeout, seat=seat)
        result: T = flow.run(flow.steps(made), body)
        return result

    async def acall(
        self,
        declaration: Declaration | None,
        tool: str,
        arguments: Mapping[str, Any],
        body: Callable[[Mapping[str, Any]], Any],
        *,
        identity: Identity | None = None,
        timeout: float | None = None,
        threaded: bool = False,
        seat: Seat | None = None,
    ) -> Any:
        """The async twin of `call`. `threaded`: the body is sync; it runs in a thread and is waited for even when the
        call is cancelled, since a thread cannot be stopped and must not write after the release."""
        run = functools.partial(_in_thread, body) if threaded else body
        declaration = self._known(declaration, tool)
        if not declaration:
            return await run({})
        made = self.begin(
            declaration, tool, arguments, identity=identity, timeout=timeout, asynchronous=True, seat=seat
        )
        return await flow.arun(flow.steps(made), run)

    def begin(
        self,
        declaration: Declaration,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        identity: Identity | None = None,
        timeout: float | None = None,
        asynchronous: bool = False,
        seat: Seat | None = None,
    ) -> Call:
        """The `Call` for a declaration: names filled and resolved, nothing locked yet."""
        if self._closed:
            raise AgentGuardError(f"this guard of {self.root} is closed; make a new one")
        loop = None
        if asynchronous:
            import asyncio

            loop = id(asyncio.get_running_loop())
        return Call(
            self,
            identity or self.identity(asynchronous=asynchronous),
            tool,
            outline(self, declaration, arguments, tool),
            arguments,
            timeout=timeout,
            loop=loop,
            seat=seat,
        )

    def declaration_of(self, tool: str, *carriers: Any) -> Declaration | None:
        """What is declared for a tool: by the configuration, else on one of the objects; None when nobody knows."""
        found = self._tools.get(tool)
        return found if found is not None else declared_on(*carriers)

    def _known(self, declaration: Declaration | None, tool: str) -> Declaration:
        if declaration is not None:
            return declaration
        policy = self.config.unknown_tools
        if policy == "allow":
            return _NOTHING
        if policy == "serialize":
            return Declaration(updates=(f"tool:{tool.replace('{', '{{').replace('}', '}}')}",))
        raise UndeclaredWrite(
            f'{tool} declares nothing, and unknown_tools = "deny". Declare what it writes: @declare(writes=...), or '
            f"[tools.{tool}] in the configuration; @declare() says that it shares nothing.",
            tool=tool,
            resource=tool,
        )

    # -- identity ---

    @contextlib.contextmanager
    def agent(self, name: str, *, run: str | None = None) -> Iterator[Identity]:
        """Say who makes the calls in this block (and in tasks and threads that copy its context).

        `name` is any text. Resources in shard mode then go to this agent's shard, until `join()`. `run`: what the join
        belongs to; default: this guard's own run. Raises `ConfigError` for an empty name.
        """
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"an agent needs a name, not {name!r}", value=name)
        around = IDENTITY.get()
        memory = around[1].memory if around is not None and around[0] is self else None
        if memory is not None:
            memory = memory.named(name)
        with self.identified(Identity(name, run or self.run, shard=name, memory=memory)) as identity:
            yield identity

    @contextlib.contextmanager
    def identified(self, identity: Identity) -> Iterator[Identity]:
        """The same with a whole `Identity`, for adapters."""
        token, guard = IDENTITY.set((self, identity)), GUARD.set(self)
        try:
            yield identity
        finally:
            try:
                IDENTITY.reset(token)
                GUARD.reset(guard)
            except ValueError:
                pass  # left in another context than it was entered in (a generator that was moved)

    def identity(self, *, asynchronous: bool = False) -> Identity:
        """Who calls now: set by `agent` or an adapter, else the task or thread."""
        found = IDENTITY.get()
        if found is not None and found[0] is self:
            return found[1]
        around = CURRENT.get()
        if around is not None and around.active and around.guard is self:
            return around.identity
        if asynchronous:
            import asyncio

            task = asyncio.current_task()
            if task is not None:
                return Identity(task.get_name(), self.run)
        name = threading.current_thread().name
        known = self._threads.get(name)
        if known is None:
            if len(self._threads) > 1000:
                self._threads.clear()
            known = self._threads[name] = Identity(name, self.run)
        return known

    # -- values ---

    def read(self, name: str, *, timeout: float | None = None) -> Any:
        """A file's value, by its suffix: json, jsonl, yaml, toml: values; txt, md, log, csv, ...: text; else bytes.

        None when it does not exist. The version is remembered for the agent. Raises `codecs.BadContent`.
        """
        return flow.run(values.reading(self, name, timeout, False))

    async def aread(self, name: str, *, timeout: float | None = None) -> Any:
        """The async twin of `read`."""
        return await flow.arun(values.reading(self, name, timeout, True))

    def write(self, name: str, value: Any, *, timeout: float | None = None) -> None:
        """Replace a file's value. Raises `StaleWrite` when it changed since this agent read it."""
        flow.run(values.writing(self, name, value, timeout, False))

    async def awrite(self, name: str, value: Any, *, timeout: float | None = None) -> None:
        """The async twin of `write`."""
        await flow.arun(values.writing(self, name, value, timeout, True))

    def update(self, name: str, fn: Callable[[Any], T], *, timeout: float | None = None) -> T:
        """Replace a file's value by `fn(value)`, once, under the exclusive lock; returns the new value.

        `fn` gets None when the file does not exist. An error in it leaves the file as it was."""
        result: T = flow.run(values.updating(self, name, timeout, False), fn)
        return result

    async def aupdate(self, name: str, fn: Callable[[Any], Awaitable[T] | T], *, timeout: float | None = None) -> T:
        """The async twin of `update`; `fn` may be a coroutine function."""

        async def body(value: Any) -> Any:
            result: Any = fn(value)
            return await result if inspect.isawaitable(result) else result

        made: T = await flow.arun(values.updating(self, name, timeout, True), body)
        return made

    # -- joining ---

    def join(
        self, *, run: str | None = None, shards: Sequence[str] | None = None, timeout: float | None = None
    ) -> JoinReport:
        """Merge the open shards of a run (default: this guard's current one) and commit the result, each shard once.

        `shards`: only those with these references. Waits up to `timeout` seconds for calls that still write. Raises
        `MergeConflict` and publishes nothing when sides disagree and `on_conflict` is "fail".
        """
        report: JoinReport = flow.run(self._joining(run, shards, timeout))
        return report

    async def ajoin(
        self, *, run: str | None = None, shards: Sequence[str] | None = None, timeout: float | None = None
    ) -> JoinReport:
        """The async twin of `join`. A cancellation while it waits applies nothing; a commit that began is finished."""
        report: JoinReport = await flow.arun(self._joining(run, shards, timeout))
        return report

    def _joining(self, run: str | None, shards: Sequence[str] | None, timeout: float | None) -> flow.Flow[JoinReport]:
        run = run or self.identity().run
        from .join import joining

        return joining(self, run, shards, self.timeout if timeout is None else timeout)

    # -- looking after ---

    def status(self) -> Status:
        """What is held, open, parked or in doubt under this guard's home, by any process. Changes nothing."""
        from .status import status

        return status(self.home)

    def recover(self) -> Recovery:
        """Finish commits that killed processes left, remove copies of calls that died. Safe beside live processes."""
        from .status import recover

        return recover(self.home)

    def close(self) -> None:
        """Refuse further calls. Running ones finish; shards that were not joined stay on disk."""
        self._closed = True

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the flow ---

    def options(self, name: str) -> ResourceConfig:
        return self.config.resource(name)

    def owner(self, agent: str, run: str, tool: str, loop: int | None) -> Owner:
        """Who asks for locks: made once for each, as making one costs more than a lock."""
        at = agent, run, tool, loop
        owner = self._owners.get(at)
        if owner is None:
            if len(self._owners) > 1000:
                self._owners.clear()
            owner = self._owners[at] = Owner(agent, run, tool, loop)
        return owner

    def at_home(self, base: Path) -> Home:
        home = self._homes.get(base)
        if home is None:
            home = self._homes[base] = home_at(base)
        return home

    def batches(self, wanted: tuple[tuple[Resource, bool], ...]) -> Sequence[Batch]:
        """`plan`, with the tables instead of the homes."""
        found = self._batches.get(wanted)
        if found is None:
            if len(self._batches) > 2_000:
                self._batches.clear()
            found = self._batches[wanted] = [(self.table(home), keys) for home, keys in plan(wanted)]
        return found

    def table(self, base: Path) -> LockTable:
        table = self._tables.get(base)
        if table is None:
            table = self._tables[base] = self.at_home(base).locks
        return table

    def suspect(self) -> bool:
        """See `Home.suspect`, for every home that this guard has to do with."""
        return bool(UNFINISHED) and any(home.suspect for home in [*self._homes.values()])

    def recover_pending(self, resources: Sequence[Resource]) -> None:
        """See `Home.recover_pending`, for the homes of these resources."""
        files = [resource.path for resource in resources if resource.path is not None]
        if files:
            self.home.recover_pending(files)
            if len(self._homes) > 1:
                for base in {resource.home for resource in resources} - {self.home.base}:
                    self.at_home(base).recover_pending(files)

    def resolver(self, options: ResourceConfig) -> Any:
        """The user's function that settles conflicts; None: there is none."""
        if options.on_conflict == "fail" or options.parks:
            return None
        from .config import resolver

        return resolver(options.on_conflict)

    def version_of(self, options: ResourceConfig) -> Callable[[str], Any] | None:
        """The user's function for the version of a resource with these options."""
        given = options.version
        if given is None:
            return None
        if isinstance(given, str):
            from .config import resolver

            given = resolver(given, "version")
        return version_function(given)

    def warn_unjoined(self, resource: str, tool: str) -> None:
        if resource not in self._warned:
            self._warned.add(resource)
            log.warning(
                "%s is in shard mode, but nothing will join what %s writes: its calls are serialized instead. Use "
                "guard_graph, guard_crew, guard_flow, or `with guard.agent(name)` and guard.join().",
                resource,
                tool,
            )

    def emit(self, kind: str, call: Call, **details: Any) -> None:
        for place in list(call.places.values()):
            self.emit_one(kind, call, place, **details)

    def emit_one(self, kind: str, call: Call, place: Place, **details: Any) -> None:
        who, told = call.identity, {**details, "token": call.tokens.get(place.resource.id)}
        self._send(Event(kind, time.time(), place.resource.name, who.agent, who.run, call.tool, told))

    def emit_refused(self, call: Call, error: AgentGuardError) -> None:
        """Nothing of a call was applied, and its body did not run."""
        who, facts = call.identity, {"error": type(error).__name__, "code": error.code, **error.facts()}
        name = str(facts.get("resource") or ", ".join(place.resource.name for place in call.places.values()))
        self._send(Event("refused", time.time(), name, who.agent, who.run, call.tool, facts))

    def emit_merged(self, run: str, report: ResourceReport) -> None:
        self._send(
            Event(
                "merged",
                time.time(),
                report.resource,
                "join",
                run,
                "join",
                {"shards": report.shards, "changes": dict(report.changes), "seconds": report.seconds},
            )
        )

    def _send(self, event: Event) -> None:
        for hook in self.hooks:
            try:
                hook(event)
            except Exception:
                log.exception("an event hook failed")


class Hold:
    """A guarded block; see `Guard.hold`. Use it once."""

    def __init__(self, guard: Guard, declaration: Declaration, name: str, timeout: float | None) -> None:
        self._guard, self._declaration, self._name, self._timeout = guard, declaration, name, timeout
        self._call: Call | None = None
        self._flow: flow.Flow[Any] | None = None

    def path(self, name: str | os.PathLike[str]) -> Path:
        """As `agentguard.path`, for this block."""
        return self._entered().path(name)

    def token(self, name: str | os.PathLike[str]) -> int:
        """The fencing token of a held resource: an int that rises with every exclusive grant of it."""
        call = self._entered()
        token = call.token(self._guard.resources.resolve(name))
        if token is None:
            raise UndeclaredWrite(
                f"{os.fspath(name)!r} is not held by this block", resource=os.fspath(name), tool=self._name
            )
        return token

    def _entered(self) -> Call:
        if self._call is None or not self._call.active:
            raise AgentGuardError("the hold is not entered: use it as `with guard.hold(...) as hold:`")
        return self._call

    def _start(self, asynchronous: bool) -> flow.Flow[Any]:
        if self._flow is not None:
            raise AgentGuardError("a hold is used once: call guard.hold(...) again")
        self._call = self._guard.begin(
            self._declaration, self._name, {}, timeout=self._timeout, asynchronous=asynchronous
        )
        self._flow = flow.steps(self._call)
        return self._flow

    def __enter__(self) -> Hold:
        flow.pump(self._start(False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._flow is not None
        try:
            flow.pump(self._flow, error=error)
        except BaseException as raised:
            if raised is not error:
                raise

    async def __aenter__(self) -> Hold:
        await flow.apump(self._start(True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._flow is not None
        try:
            await flow.apump(self._flow, error=error)
        except BaseException as raised:
            if raised is not error:
                raise


_NOTHING = Declaration()


def _in_thread(body: Callable[[Mapping[str, Any]], T], replaced: Mapping[str, Any]) -> Awaitable[T]:
    return flow.threaded(functools.partial(body, replaced))


def _check_merges(config: Config) -> None:
    """Raise `ConfigError` now, and not at the first join, for a merge whose library is not installed."""
    for name, options in config.resources.items():
        if options.mode == "shard" and (options.merge or Path(name).suffix.lower() in DATABASES):
            from .merge import check_installed, default_strategy

            check_installed(options.merge or default_strategy(name))


def _tool_declaration(tool: Any) -> Declaration:
    return Declaration.of(tool.writes, tool.reads, tool.updates, tool.redirect)
