"""The configuration file: what it may say, where it is found, and what is wrong with it.

    root = "workspace"                  # agentguard.toml, agentguard.yaml, or [tool.agentguard] in pyproject.toml
    timeout = 30.0
    [resources."reports/*.md"]          # a name or a glob
    mode = "shard"
    [tools.write_file]                  # a tool that cannot be changed, by its name
    writes = ["{file_path}"]

Every mistake is a `ConfigError` that names the file, the line, the key, what is expected and the nearest valid word;
several mistakes are told together. This module imports pydantic: import it where it is needed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ..exceptions import ConfigError
from .models import Config, ResourceConfig, ToolConfig
from .review import FUNCTION, build, nearest, show
from .source import SECTION, Source

__all__ = ["Config", "ResourceConfig", "ToolConfig", "find_config", "load_config", "make_config", "resolver"]

FILES = ("agentguard.toml", "agentguard.yaml", "agentguard.yml", "pyproject.toml")


def find_config(start: Path | None = None) -> Path | None:
    """The configuration that applies in a folder (default: the working directory): the nearest one at or above it, of
    several in one folder the first of agentguard.toml, agentguard.yaml, agentguard.yml and a pyproject.toml that has
    [tool.agentguard]. None when there is none. Raises `ConfigError` for a pyproject.toml that should say but is broken.
    """
    here = Path.cwd() if start is None else Path(start).absolute()
    for folder in (here, *here.parents):
        if (found := _in_folder(folder)) is not None:
            return found
    return None


def _in_folder(folder: Path) -> Path | None:
    for name in FILES:
        file = folder / name
        if os.path.isfile(file) and (name != "pyproject.toml" or _mentions(file)):
            return file
    return None


def _mentions(file: Path) -> bool:
    """Whether a pyproject.toml has our section; a foreign project's broken file must not stop the search."""
    source = Source.read(file)
    return "agentguard" in source.text and _section(source.parse()) is not None


def _section(document: Any) -> Any:
    for step in SECTION:
        document = document.get(step) if isinstance(document, dict) else None
    return document


def load_config(file: Path | None = None) -> Config:
    """The configuration of a file, of a folder (that folder only), or (None) of the nearest file at or above the
    working directory; without any, the defaults with the working directory as root.

    Raises `ConfigError` for a given file or folder that has none, and for everything that is wrong in it.
    """
    if file is None:
        found = find_config()
        if found is None:
            return make_config(Path.cwd())
    else:
        found = Path(file).absolute()
        if found.is_dir():
            inside = _in_folder(found)
            if inside is None:
                raise ConfigError(f"{found}: no configuration in this folder: create {FILES[0]} there", file=str(found))
            found = inside
    source = Source.read(found)
    data = source.parse()
    if found.name == "pyproject.toml":
        data = _section(data)
        if data is None:
            raise ConfigError(f"{found}: it has no table [tool.agentguard]: add one", file=source.file)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{found}, line 1: the whole of it must be a table of keys and values, not {show(data)}",
            file=source.file,
            line=1,
            value=data,
        )
    return build({"root": ".", **data}, found.parent, source)


def make_config(root: str | os.PathLike[str] = ".", **settings: Any) -> Config:
    """The configuration of `Guard(root, **settings)`: the keys of the file as arguments, tables as dicts. A relative
    root is relative to the working directory. Raises `ConfigError` as `load_config` does."""
    return build({"root": root, **settings}, Path.cwd(), Source())


def resolver(spec: str, key: str = "on_conflict") -> Callable[..., Any]:
    """The function that `on_conflict = "package.module:function"` (or another `key`) names; it is imported now.

    Raises `ConfigError` when the text has another form, the module cannot be found or read, or what it names is not
    callable. Other errors of the module's own code pass through.
    """

    def wrong(why: str) -> ConfigError:
        return ConfigError(f"{key} = {spec!r}: {why}", key=key, value=spec)

    if not isinstance(spec, str) or not FUNCTION.fullmatch(spec):
        raise wrong('expected "package.module:function"')
    module, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        raise wrong(f"{module} cannot be imported: {error}. Is its folder on sys.path?") from error
    for step in path.split("."):
        try:
            found = getattr(found, step)
        except AttributeError as error:
            near = nearest(step, dir(found))
            hint = f'; did you mean "{near}"?' if near else ""
            raise ConfigError(
                f"{key} = {spec!r}: {module} has no {path!r}{hint}", key=key, value=spec, nearest=near
            ) from error
    if not callable(found):
        raise wrong(f"it is a {type(found).__name__}, which cannot be called")
    return cast("Callable[..., Any]", found)
