"""What the configuration may say, and which entry applies to a resource."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["FLAG", "Config", "ResourceConfig", "ToolConfig"]


def _names(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return (os.fspath(value),)
    return tuple(value) if isinstance(value, list) else value


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
FLAG = "true or false"
_SECONDS = "a number of seconds, finite and not below 0"
_NAMES = "a resource name or a list of names"


class Model(BaseModel):
    # Strict: `timeout = "30"` is a mistake, not thirty seconds. The descriptions are what messages say is expected.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ResourceConfig(Model):
    """How one resource, or all that a glob matches, is guarded. `timeout` is in seconds."""

    mode: Literal["serialize", "shard"] = Field("serialize", description='"serialize" or "shard"')
    merge: str | None = Field(None, description="the name of a merge strategy")
    paths: dict[str, str] = Field(
        default_factory=dict, description='a table of JSON pointers and strategies, such as { "/total" = "counter" }'
    )
    on_conflict: str = Field("fail", description='"fail", "park", "park:AGENT" or "package.module:function"')
    stale: Literal["reject", "merge", "ignore"] = Field("reject", description='"reject", "merge" or "ignore"')
    durable: bool | None = Field(None, description=FLAG)
    timeout: Seconds | None = Field(None, description=_SECONDS)
    require_read: bool | None = Field(None, description=FLAG)
    version: str | Callable[..., Any] | None = Field(None, description='"package.module:function"')

    @property
    def parks(self) -> bool:
        """Whether conflicts are kept aside, and what is clean is published."""
        return self.on_conflict == "park" or self.winner is not None

    @property
    def winner(self) -> str | None:
        """The agent whose side is published where parked conflicts are; None: the base stays there."""
        word, _, agent = self.on_conflict.partition(":")
        return agent if word == "park" and agent else None


_DEFAULT = ResourceConfig.model_validate({})


class ToolConfig(Model):
    """What a tool that cannot be changed touches. All empty: it is known to touch nothing that is shared."""

    writes: Names = Field((), description=_NAMES)
    reads: Names = Field((), description=_NAMES)
    updates: Names = Field((), description=_NAMES)
    redirect: Literal["argument", "none"] = Field("argument", description='"argument" or "none"')


class Config(Model):
    """The whole configuration. `root` is absolute, `timeout` in seconds; the names of resources that are paths are
    relative to the root, with symbolic links followed as they were when the configuration was loaded."""

    root: Path = Field(description="the path of a directory")
    locks: str = Field("file", description='"file"')
    timeout: Seconds = Field(30.0, description=_SECONDS)
    durable: bool = Field(True, description=FLAG)
    require_read: bool = Field(False, description=FLAG)
    unknown_tools: Literal["allow", "serialize", "deny"] = Field("allow", description='"allow", "serialize" or "deny"')
    resources: dict[str, ResourceConfig] = Field(default_factory=dict, description="a table for each resource")
    tools: dict[str, ToolConfig] = Field(default_factory=dict, description="a table for each tool")

    def resource(self, name: str) -> ResourceConfig:
        """What applies to a resource: the entry of exactly its name, else the most specific glob that matches, else
        the defaults. `durable`, `timeout` and `require_read` are never None in it: the top level fills them.

        In a glob `*` and `?` stay within one step of a path, `**` crosses steps. The glob with more plain characters
        is the more specific one, then the one with fewer `**`, then fewer `*` and `?`, then the one that stands first.
        """
        known = self._index.known
        found = known.get(name)
        if found is None:
            if len(known) >= 4096:
                known.clear()  # a run may name more resources than should be remembered
            found = known[name] = self._effective(name.rstrip("/") or name)
        return found

    def _effective(self, name: str) -> ResourceConfig:
        entry = self._index.exact.get(name)
        if entry is None:
            entry = next((e for pattern, e in self._index.globs if pattern.fullmatch(name)), _DEFAULT)
        top = ("durable", "timeout", "require_read")
        return entry.model_copy(update={key: getattr(self, key) for key in top if getattr(entry, key) is None})

    @functools.cached_property
    def _index(self) -> _Index:
        return _Index(self.resources)

    def __copy__(self) -> Config:
        copied = super().__copy__()
        vars(copied).pop("_index", None)  # `model_copy` may be about to change what the index was made from
        return copied


class _Index:
    """The entries by name and by glob, most specific first, and what was looked up before."""

    def __init__(self, resources: dict[str, ResourceConfig]) -> None:
        self.known: dict[str, ResourceConfig] = {}
        self.exact = {key.rstrip("/") or key: entry for key, entry in resources.items()}
        self.order = sorted((key for key in resources if any(sign in key for sign in "*?[")), key=_specificity)
        self.globs = [(_pattern(key.rstrip("/")), resources[key]) for key in self.order]


_TOKEN = re.compile(r"(?:\*\*/)+|\*\*+|\*|\?|\[!?\][^\]/]*\]|\[(?!!?\])[^\]/]+\]|.", re.DOTALL)


def _pattern(glob: str) -> re.Pattern[str]:
    out = []
    for part in _TOKEN.findall(glob):
        if part.startswith("**"):
            out.append("(?:.*/)?" if part.endswith("/") else ".*")
        elif part == "*":
            out.append("[^/]*")
        elif part == "?":
            out.append("[^/]")
        elif len(part) > 1:
            out.append(_one_of(part))
        else:
            out.append(re.escape(part))
    return re.compile("".join(out), re.DOTALL)


def _one_of(part: str) -> str:
    """`[abc]`, `[a-z]`, `[!abc]`; as in fnmatch, a range that runs backwards holds nothing."""
    other = part[1] == "!"
    held = re.findall(r".-.|.", part[2:-1] if other else part[1:-1], re.DOTALL)
    held = ["-".join(map(re.escape, one[::2])) for one in held if one[0] <= one[-1]]
    if not held:
        return "[^/]" if other else "(?!)"
    return f"(?!/)[{'^' if other else ''}{''.join(held)}]"


def _specificity(glob: str) -> tuple[int, int, int]:
    parts = _TOKEN.findall(glob)
    double = sum(part.startswith("**") for part in parts)
    plain = sum(len(part) == 1 and part not in "*?" for part in parts)
    return -plain, double, len(parts) - plain - double
