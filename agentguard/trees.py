"""Directories in shard mode.

A tool that asks for one file beneath a declared directory gets that file's own shard entry: nothing else is copied.
One that is given the directory itself, as an argument or by `path()`, gets a copy of all of it, since nobody can say
what it will open; afterwards only what differs becomes an entry, with the file as it was copied for its base. So every
file is merged by itself, by the rules of its own name.

Files are content; folders are where they lie: an empty one is not kept. Symbolic links that stay inside are copied as
links and must stay what they are; one that leads out is refused, since a write through it would reach the file itself.
Pipes, sockets and devices are left out, and so is every `.agentguard/`.
"""

from __future__ import annotations

import filecmp
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .disk import snapshot
from .exceptions import StaleWrite, UndeclaredWrite
from .outline import Part, options_of
from .redirect import Place
from .resources import FOLDER, Resource
from .stale import touching
from .versions import DATABASES, Signature, signature

if TYPE_CHECKING:
    from .call import Call

__all__ = ["LARGEST", "Tree", "beneath", "fill", "gather", "scan"]

LARGEST = 10_000  # files that are copied for one call

_LOGS = ("-wal", "-shm", "-journal")  # beside an SQLite database; part of what is copied of it


@dataclass(frozen=True, slots=True)
class _Copied:
    source: Path
    before: Signature | None  # of the source
    fresh: Signature | None  # of the copy as it was handed out


class Tree:
    """One call's copy of a directory: where it is, and what was copied, by the path within it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, _Copied] = {}
        self.links: dict[str, str] = {}


class _TooMany(Exception):
    pass


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything beneath a folder, folders before what is in them; links are not followed. Paths are relative."""
    left = [""]
    while left:
        inside = left.pop()
        try:
            with os.scandir(folder / inside) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:  # removed meanwhile, or the directory does not exist yet
            continue
        for entry in found:
            name = os.path.join(inside, entry.name) if inside else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield name, status
            if stat.S_ISDIR(status.st_mode) and entry.name != FOLDER:
                left.append(name)


def scan(folder: Path) -> dict[str, Signature] | None:
    """The signatures of all files beneath a folder; None when there are too many to look at for every call."""
    found: dict[str, Signature] = {}
    for name, status in _walk(folder):
        if stat.S_ISREG(status.st_mode):
            found[name] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            if len(found) > LARGEST:
                return None
    return found


# -- before the body ---


def fill(call: Call, place: Place, folder: Path) -> Tree:
    """Copy a directory as the call's agent sees it into `folder`, around what was copied there already."""
    real = place.resource.path
    assert real is not None
    tree = Tree(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = {
        os.path.relpath(call.guard.home.base / entry.relative, real): entry.ours
        for entry in call.guard.shards.beneath(call.identity, place.resource.id).values()
    }
    names = {name: status.st_mode for name, status in _walk(real)}
    if len(names) + len(written) > LARGEST:
        raise UndeclaredWrite(
            f"{call.tool} of agent {call.identity.agent!r} needs a copy of all of {place.resource.name}, which has "
            f"more than {LARGEST:,} files. Nothing was applied. Let it ask for single files, as path(...) of a name "
            "beneath it, declare a smaller directory, or the files themselves.",
            resource=place.resource.name,
            tool=call.tool,
            agent=call.identity.agent,
        )
    for name, mode in names.items():
        if FOLDER in name.split(os.sep) or name in written:
            continue
        if stat.S_ISDIR(mode):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        elif stat.S_ISLNK(mode):
            tree.links[name] = _link(call, place, real / name, folder / name)
        elif stat.S_ISREG(mode) and not _is_log(name, names):
            _copy(tree, name, real / name)
    for name, ours in written.items():
        _copy(tree, name, ours)
    return tree


def _is_log(name: str, names: Collection[str]) -> bool:
    return any(name.endswith(end) and _is_database(name[: -len(end)]) and name[: -len(end)] in names for end in _LOGS)


def _is_database(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in DATABASES


def _copy(tree: Tree, name: str, source: Path) -> None:
    target = tree.folder / name
    if os.path.lexists(target):  # this call has asked for it before
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = signature(source)
    if _duplicate(source, target) and before is not None:
        # Well before now: any write to the copy, even in the same clock tick, shows as another time.
        old = (before[0] // 1_000_000_000 - 2) * 1_000_000_000
        os.utime(target, ns=(old, old))
        tree.files[name] = _Copied(source, before, signature(target))


def _duplicate(source: Path, target: Path) -> bool:
    if source.suffix.lower() in DATABASES:
        from .databases import copy  # it imports sqlite3

        return copy(source, target)
    return snapshot(source, target)


def _link(call: Call, place: Place, link: Path, copy: Path) -> str:
    real = place.resource.path
    assert real is not None
    target = os.path.realpath(link)
    if target != str(real) and not target.startswith(f"{real}{os.sep}"):
        raise UndeclaredWrite(
            f"{call.tool}: {place.resource.name} is in shard mode, but its symbolic link {os.path.relpath(link, real)} "
            "leads out of it: a write through it would be seen by everybody at once. Nothing was applied. Move the "
            "link elsewhere, or declare the single files.",
            resource=place.resource.name,
            tool=call.tool,
            agent=call.identity.agent,
        )
    text = os.path.relpath(target, os.path.realpath(link.parent))
    copy.symlink_to(text)
    return text


def beneath(call: Call, directory: Place, resource: Resource) -> Place:
    """The place of a file beneath a declared directory, as of its first use."""
    options, shard = options_of(call.guard, resource)
    place = Place(Part(resource, directory.exclusive, directory.update, directory.read, options, None, shard))
    if directory.sharded:
        place.sharded = True
        call.settle(place)
        if directory.tree is not None:
            assert directory.resource.path is not None
            assert resource.path is not None
            _adopt(call, place, directory.tree, os.path.relpath(resource.path, directory.resource.path))
    return place


# -- after the body ---


def gather(call: Call) -> None:
    """Make a place, with an entry, of every file that differs in the call's copies of directories."""
    for directory in [*call.places.values()]:
        tree, real = directory.tree, directory.resource.path
        if tree is None or real is None or not directory.exclusive:
            continue
        own = {str(place.staged) for place in call.places.values() if place.staged is not None}
        names = [name for name in _changed(call, directory, tree) if str(tree.folder / name) not in own]
        resources = [_resource(call, directory, real / name) for name in names]
        durable = bool(directory.options.durable)
        gone = {resource.id: _removed(call, tree, real, name) for name, resource in zip(names, resources, strict=True)}
        removed = {key: folder for key, folder in gone.items() if folder is not None}
        shard, entries = call.guard.shards.fork_all(call.identity, resources, durable=durable, gone=removed)
        for name, resource, entry in zip(names, resources, entries, strict=True):
            options, _ = options_of(call.guard, resource)
            place = Place(Part(resource, True, directory.update, directory.read, options, None, True))
            place.sharded, place.shard, place.entry, place.target = True, shard, entry, entry.ours
            _adopt(call, place, tree, name)
            if place.in_place and os.path.lexists(tree.folder / name):
                # A database: what its readers see, in one file. It is not worked on any more.
                place.staged = tree.folder / f"{name}.agentguard"
                place.target = entry.ours
                _duplicate(tree.folder / name, place.staged)
            try:
                call.freshness().check(place)
            except StaleWrite as error:
                error.fields["folder"] = str(call.keep("stale"))
                raise
            call.places[resource.id] = place


def _removed(call: Call, tree: Tree, real: Path, name: str) -> str | None:
    """The outermost folder that is not there any more in the tree, with a file of it; see `Entry.gone`."""
    parts = name.split(os.sep)[:-1]
    for count in range(1, len(parts) + 1):
        inside = os.path.join(*parts[:count])
        if not os.path.lexists(tree.folder / inside):
            return os.path.relpath(real / inside, call.guard.home.base)
    return None


def _adopt(call: Call, place: Place, tree: Tree, name: str) -> None:
    """Have a place's copy be the one in the tree; its entry must have been forked from what was copied there."""
    copied = tree.files.get(name)
    before = copied.before if copied is not None else None
    if place.exclusive and signature(copied.source if copied is not None else place.target) != before:
        error = touching(place.resource.name, call.tool, call.identity.agent)
        error.fields["folder"] = str(call.keep("overtaken"))
        raise error
    if place.exclusive and not (place.in_place and os.path.lexists(tree.folder / name)):
        place.staged, place.existed, place.before = tree.folder / name, copied is not None, signature(place.target)
        place.fresh = copied.fresh if copied is not None else None
    else:
        place.target = tree.folder / name


def _changed(call: Call, directory: Place, tree: Tree) -> list[str]:
    """The files that were changed, added or deleted. Raises `UndeclaredWrite` for what a shard cannot keep."""
    found: list[str] = []
    links: dict[str, str] = {}
    names = dict(_walk(tree.folder))
    for name, status in names.items():
        if stat.S_ISLNK(status.st_mode):
            links[name] = os.readlink(tree.folder / name)
        elif FOLDER in name.split(os.sep) or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise _refused(call, directory, f"made {name}, which is no plain file")
        elif stat.S_ISREG(status.st_mode) and not _is_log(name, names) and _differs(tree, name):
            found.append(name)
    if links != tree.links:
        name = min(name for name in links.keys() | tree.links.keys() if links.get(name) != tree.links.get(name))
        raise _refused(call, directory, f"made, changed or removed the symbolic link {name}")
    return found + [name for name in tree.files if name not in names or not stat.S_ISREG(names[name].st_mode)]


def _differs(tree: Tree, name: str) -> bool:
    copied, copy = tree.files.get(name), tree.folder / name
    if copied is None:
        return True
    if _is_database(name) and any(os.path.lexists(f"{copy}{end}") for end in _LOGS):
        return True
    now = signature(copy)
    if now is not None and copied.fresh is not None and (now[0], now[2:]) == (copied.fresh[0], copied.fresh[2:]):
        return False
    try:
        return not filecmp.cmp(copy, copied.source, shallow=False)
    except OSError:  # it cannot be compared: treat it as changed
        return True


def _resource(call: Call, directory: Place, file: Path) -> Resource:
    resource = call.guard.resources.resolve(file, call.tool)
    blocked = next((one for one in file.parents if os.path.lexists(one) and not one.is_dir()), None)
    if resource.path != file or resource.directory or blocked is not None:
        name = os.path.relpath(blocked or file, directory.resource.path)
        raise _refused(call, directory, f"put a file where a directory or link is, or the other way round: {name}")
    return resource


def _refused(call: Call, directory: Place, what: str) -> UndeclaredWrite:
    name, agent = directory.resource.name, call.identity.agent
    kept = call.keep("not kept in shards")
    return UndeclaredWrite(
        f"{call.tool} of agent {agent!r} {what} in {name}, which is in shard mode: shards keep plain files. Nothing "
        f'was applied; what it made is kept in {kept}. Set mode = "serialize" for {name}, or let the tool leave such '
        "things alone.",
        resource=name,
        tool=call.tool,
        agent=agent,
        folder=str(kept),
    )
