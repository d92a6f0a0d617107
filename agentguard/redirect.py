"""Where a call reads and writes: the target itself, a staged copy of it, or the agent's shard.

A copy is made only when somebody asks for it: by `path()`, or because the tool takes the path as an argument. It keeps
the file's name and its place under the root; what the model sees is mapped back to the name that was asked for.
"""

from __future__ import annotations

import contextvars
import filecmp
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import disk
from .commit import Delete, Replace, atomic_write, snapshot
from .declaration import Access
from .exceptions import UndeclaredWrite
from .resources import FOLDER
from .versions import DATABASES, Signature, signature

if TYPE_CHECKING:
    from .call import Call
    from .guard import Guard
    from .locks import Change
    from .outline import Part
    from .shards import Entry, Shard
    from .trees import Tree

__all__ = ["CURRENT", "Place", "path", "unmap"]

CURRENT: contextvars.ContextVar[Call | None] = contextvars.ContextVar("agentguard_call", default=None)
GUARD: contextvars.ContextVar[Guard | None] = contextvars.ContextVar("agentguard_guard", default=None)
OPEN_GUARDS: list[weakref.ref[Guard]] = []  # the process's guards, the newest last

_NOWHERE = Path()


class Watched:
    """A file whose access time is watched, also when it is replaced meanwhile.

    Where reading leaves no trace (mounted with noatime), nobody has read it."""

    def __init__(self, file: Path) -> None:
        self._fd = -1
        try:
            self._fd = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
            found = os.fstat(self._fd)
            # Usual mounts note an access only if the last one was before the last change.
            past = min(found.st_mtime_ns, found.st_ctime_ns) // 1_000_000_000 * 1_000_000_000 - 2_000_000_000
            os.utime(file, ns=(past, found.st_mtime_ns))
            self._accessed = os.fstat(self._fd).st_atime_ns
        except OSError:
            self.close()

    def was_read(self) -> bool:
        return self._fd >= 0 and os.fstat(self._fd).st_atime_ns != self._accessed

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Place:
    """One resource of one call, and where its content is for this call."""

    sharded = False
    shard: Shard | None = None  # in shard mode: where the entry is
    entry: Entry | None = None
    tree: Tree | None = None  # of a directory: the call's copy of all of it
    scanned: dict[str, Signature] | None = None  # of a directory: its files before the body ran
    staged: Path | None = None
    existed = False  # whether the target existed when it was staged
    before: Signature | None = None  # of the target when the call began or the copy was made
    fresh: Signature | None = None  # of the copy as it was handed out
    asked: str | None = None  # the spelling by which it was asked for
    pinned: Signature | None = None  # shard mode: of the real file before the body ran
    rebased = False  # a stale write that shall be merged: the body works on `base`, what others made of it is `theirs`
    base: bytes | None = None
    theirs: bytes | None = None  # the target's content before the body, where it may have to be put back or merged
    author: Change | None = None  # of `theirs`
    ours: str | None = None  # the version that the agent made of `base`
    watched: Watched | None = None  # to see whether the body reads the content

    def __init__(self, part: Part) -> None:
        self.part = part
        self.resource = resource = part.resource
        self.exclusive = part.exclusive
        self.update = part.update
        self.read = part.read
        self.options = part.options
        self.version = part.version
        # What a commit of this call replaces: the file, the parent call's copy, or the shard's copy.
        self.target = resource.path or _NOWHERE

    @property
    def in_place(self) -> bool:
        # SQLite commits by itself, and a copy of its main file alone would miss a write-ahead log.
        return self.resource.directory or self.target.suffix.lower() in DATABASES

    def rebase(self, base: bytes | None) -> None:
        """Have the body work on another content than the target's; see `rebased`."""
        self.rebased, self.base = True, base
        self.before = signature(self.target)

    def stage(self, folder: Path, root: Path, *, copy: bool = True) -> Path:
        """Make this call's copy under `folder`, at the file's place under `root`."""
        if self.staged is not None:
            return self.staged
        real = self.resource.path
        assert real is not None
        staged = folder / os.path.relpath(real, root)
        staged.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.before = signature(self.target)
        self.existed = copy and self._fill(staged)
        if self.existed and self.before is not None and not self.rebased:
            # Well before now: any write to the copy, even in the same clock tick, shows as another time.
            old = (self.before[0] // 1_000_000_000 - 2) * 1_000_000_000
            os.utime(staged, ns=(old, old))
            self.fresh = signature(staged)
        self.staged = staged
        if self.watched is not None:
            self.watch()  # the copy from here on
        return staged

    def _fill(self, staged: Path) -> bool:
        if not self.rebased:
            return snapshot(self.target, staged)
        if self.base is None:
            return False
        snapshot(self.target, staged)  # for its mode and owner
        staged.write_bytes(self.base)
        return True

    def put_back(self) -> None:
        """Give the target `theirs` again, over what a tool has written there directly."""
        if disk.content(self.target) != self.theirs:
            if self.theirs is None:
                self.target.unlink()
            else:
                atomic_write(self.target, self.theirs)
        self.before = signature(self.target)

    def watch(self) -> None:
        """Notice from now on whether somebody reads the content that the body works on; `unwatch` ends it."""
        self.unwatch()
        self.watched = Watched(self.staged or self.target)

    def was_read(self) -> bool:
        """Whether somebody has, since `watch`."""
        return self.watched is not None and self.watched.was_read()

    def unwatch(self) -> None:
        watched, self.watched = self.watched, None
        if watched is not None:
            watched.close()

    def change(self) -> Replace | Delete | None:
        """What a commit has to do here; None when the copy was not touched."""
        if self.staged is None:
            return None
        now = signature(self.staged)
        if now is None:
            existed = self.theirs is not None if self.rebased else self.existed
            return Delete(self.target) if existed else None
        if self.fresh is not None and now[0] == self.fresh[0] and now[2] == self.fresh[2]:
            try:
                if filecmp.cmp(self.staged, self.target, shallow=False):
                    return None
            except OSError:
                pass  # the target cannot be compared: treat the copy as changed
        return Replace(self.target, self.staged)


def path(name: str | os.PathLike[str]) -> Path:
    """The file that THIS call reads and writes for the resource `name`.

    Inside a guarded call: the staged copy of a resource it writes or updates (committed when the call succeeds,
    discarded when it fails), the agent's shard in shard mode, or the file itself where it is only read, is a
    directory, or is an SQLite database. Outside of one: the plain target under the root of the guard in force
    (`with guard.agent(...)`, else the newest open guard of the process), or `name` as it is when there is no guard.

    Raises `UndeclaredWrite` inside a guarded call that did not declare `name`.
    """
    call = CURRENT.get()
    if call is not None and call.active:
        return call.path(name)
    guard = GUARD.get()
    if guard is None:
        guard = next((found for ref in reversed(OPEN_GUARDS) if (found := ref()) is not None), None)
    if guard is None or os.path.isabs(name):
        return Path(name)
    return guard.root / name


def rewritten(
    accesses: Iterable[Access],
    arguments: Mapping[str, Any],
    place_of: Callable[[Access], Path | None],
    names: dict[str, str],
) -> dict[str, Any]:
    """The arguments that must change so that the tool is led to its copies: {argument: new value}.

    `place_of` gives the path for an access, or None to leave it. A text stays a text and a `Path` a `Path`. What was
    replaced is added to `names` (new text -> old text).
    """
    changed: dict[str, Any] = {}
    for access in accesses:
        if access.argument is None:
            continue
        wanted = place_of(access)
        if wanted is None:
            continue
        text = str(wanted)
        if access.suffix:
            tail = access.suffix.replace("/", os.sep)
            text += os.sep * (tail.endswith(os.sep) and not text.endswith(os.sep))  # of a directory
            if not text.endswith(tail) or len(text) == len(tail):
                continue  # `{folder}/../x`: the argument alone cannot lead there
            text = text[: -len(tail)]
        old = arguments[access.argument]
        asked = os.fspath(old if access.index is None else old[access.index])
        if asked.endswith(("/", os.sep)) and not access.suffix.strip("/"):
            text += os.sep  # of a directory: a tool may simply put a name behind it
            names[text] = asked
        else:
            names[text] = asked.rstrip("/" + os.sep) or asked
        if access.index is not None:
            items = list(changed.get(access.argument, old))
            items[access.index] = _like(old[access.index], text)
            changed[access.argument] = tuple(items) if isinstance(old, tuple) else items
        else:
            changed[access.argument] = _like(old, text)
    return changed


def _like(old: Any, text: str) -> Any:
    kind: Any = type(old)
    return kind(text) if isinstance(old, os.PathLike) else text


def unmap(value: Any, names: Mapping[str, str]) -> Any:
    """Replace the paths of copies by the names that were asked for, in texts and in plain containers of texts."""
    if isinstance(value, str):
        if FOLDER not in value:
            return value
        for copy, name in sorted(names.items(), key=lambda pair: -len(pair[0])):  # a file before its folder
            value = value.replace(copy, name)
        return value
    if type(value) in (list, tuple):
        return type(value)(unmap(item, names) for item in value)
    if type(value) is dict:
        return {key: unmap(item, names) for key, item in value.items()}
    return value


def unmap_error(error: BaseException, names: Mapping[str, str]) -> None:
    """The same for an error's texts, in place."""
    if not names:
        return
    error.args = tuple(unmap(arg, names) for arg in error.args)
    for attribute in ("filename", "filename2"):
        given = getattr(error, attribute, None)
        if isinstance(given, (str, Path)):
            setattr(error, attribute, unmap(str(given), names))


def leftovers(folder: Path, places: Iterable[Place]) -> list[Path]:
    """Files that a tool put beside its copies: nobody declared them, and discarding them would lose them silently."""
    expected: set[str] = set()
    trees: set[str] = set()
    for place in places:
        expected.add(str(place.staged))
        if place.tree is not None:
            trees.add(str(place.tree.folder))
    found = []
    for where, folders, names in os.walk(folder):
        if where in trees:
            folders.clear()  # everything in there was declared
            continue
        found += [Path(where) / name for name in names if os.path.join(where, name) not in expected]
    return found


def check_untouched(places: Iterable[Place], tool: str, agent: str) -> None:
    """Refuse a commit over a file that changed under this call's exclusive lock: somebody writes without the guard."""
    for place in places:
        if place.staged is None or place.entry is not None:
            continue
        if signature(place.target) != place.before and place.change() is not None:
            from .stale import touching

            raise touching(place.resource.name, tool, agent)


def undeclared(name: str, tool: str, agent: str, declared: Iterable[str]) -> UndeclaredWrite:
    known = ", ".join(sorted(declared)) or "nothing"
    return UndeclaredWrite(
        f"{tool} of agent {agent!r} asked for {name!r}, which it does not declare (it declares: {known}). "
        f"Add it: @declare(writes=[..., {name!r}]).",
        resource=name,
        tool=tool,
        agent=agent,
        declared=known,
    )
