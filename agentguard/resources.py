"""From names to keys: one file is one resource, whatever the spelling and whatever the root.

A name is a path relative to the guard's root, or an opaque key with a scheme of two letters or more (`db:orders/42`).
The key of a file is relative to its *home*: the nearest folder at or above it that has an `.agentguard/`, so that two
guards with different or nested roots, and containers that mount one volume at different paths, agree on it.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from .exceptions import ConfigError, UndeclaredWrite
from .locks import Mode, directories_above

__all__ = ["FOLDER", "Resource", "Resources", "plan", "still"]

FOLDER = ".agentguard"

_OPAQUE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")  # two letters or more: `C:\` is a path
_PLAIN = re.compile(r"(?:[^/\\\0]+/)*[^/\\\0]+")


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that is shared. `key` is what is locked; `name` is what people read.

    `key` names it within its home, `id` within the home of the guard that resolved it: they differ only beneath a
    nested home, where two files of one guard may have the same key.
    """

    name: str
    key: str
    home: Path  # the folder that has (or will have) the `.agentguard/`
    path: Path | None = None  # the real file or directory; None for an opaque key
    directory: bool = False
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self.key)

    def __hash__(self) -> int:
        return hash(self.id)


class Resources:
    """Names under one root."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.given = Path(os.path.abspath(root))  # the spelling, symbolic links kept
        self._root = str(self.root)
        self.home = home_of(self.root)
        self._homes: dict[str, Path] = {self._root: self.home}
        self._known: dict[tuple[str, bool], Resource] = {}
        # Names that had no link on their way: the steps of the way, and what the name meant.
        self._plain: dict[str, tuple[tuple[str, ...], Resource]] = {}

    def resolve(self, name: str | os.PathLike[str], tool: str = "this call") -> Resource:
        """The resource that a name means now (symbolic links are followed at each call).

        Raises `UndeclaredWrite` for a path that leaves the root or lies inside `.agentguard/`.
        """
        text = os.fspath(name)
        plain = self._plain.get(text)
        if plain is not None and still(*plain):
            return plain[1]
        if _OPAQUE.match(text) and not (os.name == "nt" and text[1:2] == ":"):
            made = Resource(text, text, self.home)
            self._remember(text, (), made)
            return made
        if not text or "\0" in text:
            raise self._outside(text, tool, "is not a path")
        slash = text.endswith(("/", os.sep))
        try:
            real, mode = self._locate(text)
        except OSError as error:  # too long, or links in a circle
            raise self._outside(text, tool, f"cannot be a path here: {error.strerror}") from error
        if real != self._root and not real.startswith(self._root.rstrip(os.sep) + os.sep):
            raise self._outside(text, tool, f"leaves the root {self.root}")
        inside = real[len(self._root.rstrip(os.sep)) + 1 :]
        if FOLDER in inside.split(os.sep):
            raise self._outside(text, tool, f"lies inside {FOLDER}/, which is the guard's own")
        directory = slash if mode is None else stat.S_ISDIR(mode)
        known = self._known.get((real, directory))
        if known is not None and not slash:
            if real == f"{self._root.rstrip('/')}/{text}":  # no link on the way, so far
                self._remember(text, tuple(_steps(self._root, text)), known)
            return known
        if slash and not directory:
            raise ConfigError(
                f"{tool}: {text!r} is declared as a directory, but it is a file. Drop the slash at its end.",
                resource=text,
                tool=tool,
            )
        home = self._home(real if directory else os.path.dirname(real))
        relative = _posix(os.path.relpath(real, home)) if real != str(home) else ""
        key = "file:" + relative + ("/" if directory and relative else "")
        shown = (_posix(inside) or ".") + ("/" if directory and inside else "")
        if len(self._known) > 2_000:
            self._known = {}
        own = key
        if home != self.home:
            own = f"file:{_posix(os.path.relpath(real, self.home))}{'/' if directory else ''}"
        made = self._known[real, directory] = Resource(shown, key, home, Path(real), directory, own)
        return made

    def _remember(self, text: str, steps: tuple[str, ...], meant: Resource) -> None:
        if len(self._plain) > 2_000:
            self._plain = {}
        self._plain[text] = steps, meant

    def recall(self, name: str) -> tuple[tuple[str, ...], Resource] | None:
        """For `still`: what a name meant when it was resolved last; None where that may change unseen (links)."""
        return self._plain.get(name)

    def _locate(self, text: str) -> tuple[str, int | None]:
        """The real path, and its mode (None when it does not exist)."""
        if os.sep == "/" and not text.startswith("/") and _PLAIN.fullmatch(text):
            # The usual name is relative and plain: look only at the steps below the root, which is real already.
            at = self._root.rstrip("/")
            mode: int | None = None
            parts = text.split("/")
            for index, part in enumerate(parts):
                if part in (".", ".."):
                    break
                at = f"{at}/{part}"
                try:
                    mode = os.lstat(at).st_mode
                except (FileNotFoundError, NotADirectoryError):
                    rest = parts[index + 1 :]
                    if ".." in rest or "." in rest:
                        break
                    return "/".join([at, *rest]), None
                if stat.S_ISLNK(mode):
                    break
            else:
                return at, mode
        real = os.path.realpath(os.path.join(self._root, text))
        try:
            return real, os.lstat(real).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return real, None

    def _home(self, folder: str) -> Path:
        home = self._homes.get(folder)
        if home is None:
            own = os.path.join(folder, FOLDER)
            home = Path(folder) if _ours(own) else self._home(os.path.dirname(folder))
            if len(self._homes) > 2_000:
                self._homes = {self._root: self.home}
            self._homes[folder] = home
        return home

    def _outside(self, text: str, tool: str, why: str) -> UndeclaredWrite:
        return UndeclaredWrite(
            f"{tool}: the resource {text[:200]!r} {why}. Nothing was applied; name a file below the root.",
            resource=text,
            tool=tool,
        )


def still(steps: tuple[str, ...], meant: Resource) -> bool:
    """Whether a name still means what it meant: no step has become a link, and a directory is one as before."""
    mode = None
    step = ""
    try:
        for step in steps:
            mode = os.lstat(step).st_mode
            if stat.S_ISLNK(mode):
                return False
    except FileNotFoundError:
        return step == steps[-1] and not meant.directory
    except OSError:
        return False
    return mode is None or stat.S_ISDIR(mode) == meant.directory


def plan(wanted: tuple[tuple[Resource, bool], ...]) -> tuple[tuple[Path, tuple[tuple[str, Mode], ...]], ...]:
    """What to lock, in the order in which everybody locks it: for each home (key, mode), each key once.

    `wanted` says for each resource whether the access is exclusive. A file takes intention locks on the directories
    above it, so that a lock on a directory covers what lies beneath (Gray, Lorie, Putzolu, Traiger 1976).
    """
    modes: dict[tuple[Path, str], Mode] = {}
    for resource, exclusive in wanted:
        own, above = (Mode.EXCLUSIVE, Mode.INTENT_EXCLUSIVE) if exclusive else (Mode.SHARED, Mode.INTENT_SHARED)
        if resource.path is not None:
            for key in directories_above(resource.key):
                _raise(modes, (resource.home, key), above)
        _raise(modes, (resource.home, resource.key), own)
    ordered = sorted(modes.items())
    return tuple(
        (home, tuple((key, mode) for (_, key), mode in group))
        for home, group in itertools.groupby(ordered, lambda item: item[0][0])
    )


def _steps(root: str, text: str) -> list[str]:
    """Each file on the way from the root to a plain relative path, that one last."""
    found = [root.rstrip("/")]
    for part in text.split("/"):
        found.append(f"{found[-1]}/{part}")
    return found[1:]


def _raise(modes: dict[tuple[Path, str], Mode], at: tuple[Path, str], mode: Mode) -> None:
    held = modes.get(at)
    if held is None or held is mode:
        modes[at] = mode
    elif Mode.EXCLUSIVE in (held, mode) or {held, mode} == {Mode.SHARED, Mode.INTENT_EXCLUSIVE}:
        modes[at] = Mode.EXCLUSIVE  # shared + intention exclusive would be SIX; exclusive covers it
    elif Mode.INTENT_SHARED in (held, mode):
        modes[at] = mode if held is Mode.INTENT_SHARED else held


def home_of(folder: Path) -> Path:
    """The nearest folder at or above this one that has an `.agentguard/` of ours, else this one."""
    for candidate in (folder, *folder.parents):
        if _ours(os.path.join(candidate, FOLDER)):
            return candidate
    return folder


def homes_above(home: Path) -> list[Path]:
    """Further homes above a home: a commit of theirs may concern files beneath this one."""
    return [folder for folder in home.parents if _ours(os.path.join(folder, FOLDER))]


def _ours(folder: str) -> bool:
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    # As git does: a folder that somebody else planted above us must not capture our locks.
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())


def _posix(path: str) -> str:
    return os.path.normcase(path).replace(os.sep, "/") if os.sep != "/" else path
