"""What is wrong with settings: found as plain records, then told together in one `ConfigError`."""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..exceptions import ConfigError, UndeclaredWrite
from .models import FLAG, Config, Model, ResourceConfig, ToolConfig
from .source import Source

if typing.TYPE_CHECKING:
    from ..resources import Resources

__all__ = ["FUNCTION", "build", "nearest", "show"]

FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_BACKENDS = ("postgresql", "postgres", "redis", "rediss")
_TABLES: dict[Any, type[Model]] = {"resources": ResourceConfig, "tools": ToolConfig}


@dataclass(frozen=True, slots=True)
class _Mistake:
    path: Sequence[Any]
    value: Any
    text: str
    nearest: str | None = None


def build(data: Mapping[str, Any], base: Path, source: Source) -> Config:
    """The configuration that settings mean; a relative root is relative to `base`. Raises `ConfigError`."""
    settings = dict(data)
    if isinstance(settings["root"], (str, os.PathLike)):
        settings["root"] = base / os.fspath(settings["root"])
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        # Its own text would print the values, and a connection string holds a password.
        raise _told([_explain(dict(d), data) for d in error.errors(include_url=False)], source) from None
    mistakes = [*_review_root(config.root), *_review_locks(config.locks)]
    resources: dict[str, ResourceConfig] = {}
    if os.path.isdir(config.root):  # unlike Path's, it never raises
        from ..resources import Resources

        root = config.root.resolve()
        names = Resources(root)
        mistakes += _review_resources(config, names, resources)
        mistakes += _review_tools(config, names)
        config = config.model_copy(update={"root": root, "resources": resources})
    if mistakes:
        raise _told(mistakes, source)
    return config


def _told(mistakes: list[_Mistake], source: Source) -> ConfigError:
    lines = [source.line(mistake.path) for mistake in mistakes]
    told = [
        f"{source.file or 'Guard(...)'}{f', line {line}' if line else ''}: "
        f"{_dotted((*source.prefix, *mistake.path))}: {mistake.text}"
        for mistake, line in zip(mistakes, lines, strict=True)
    ]
    first = mistakes[0]
    return ConfigError(
        "\n".join(told),
        file=source.file,
        line=lines[0],
        key=_dotted(first.path),
        value=_masked(first.value),
        nearest=first.nearest,
    )


def _explain(detail: Mapping[str, Any], data: Mapping[str, Any]) -> _Mistake:
    """One of pydantic's findings in the words of the file."""
    path = typing.cast("Sequence[Any]", detail["loc"])
    value = detail["input"]
    if path[-1] == "[key]" or detail["type"] == "invalid_key":
        path = path[:-1] if path[-1] == "[key]" else path
        return _Mistake(path, path[-1], f"the key {path[-1]!r} must be a text: write it in quotes")
    inner = len(path) > 2 and path[0] in _TABLES
    fields = (_TABLES[path[0]] if inner else Config).model_fields
    name = path[2] if inner else path[0]
    if detail["type"] == "extra_forbidden":
        return _unknown(path, value, name, sorted(fields))
    if len(path) == 2 and path[0] in _TABLES:
        return _Mistake(path, value, f"expected a table of settings, not {show(value)}")
    field = fields[name]
    if field.description == FLAG:
        words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        near = words.get(str(value).lower()) or nearest(value, ["true", "false"])
    else:
        near = nearest(value, [word for word in typing.get_args(field.annotation) if isinstance(word, str)])
    return _Mistake(path, value, f"expected {field.description}, not {show(value)}{_hint(near)}", near)


def _unknown(path: Sequence[Any], value: Any, name: Any, known: list[str]) -> _Mistake:
    near = nearest(name, known)
    home = next((table for table, model in _TABLES.items() if name in model.model_fields and table != path[0]), None)
    if len(path) > 1 and name in Config.model_fields:
        advice = "; it belongs to the top level."
    elif home is not None:
        advice = f'; it belongs to [{home}."<name>"].'
    else:
        advice = _hint(near) or "."
    return _Mistake(path, value, f"unknown key{advice} Known keys here: {', '.join(known)}", near)


def _review_root(root: Path) -> Iterator[_Mistake]:
    if os.path.isdir(root):  # unlike Path's, it never raises
        return
    if os.path.exists(root):
        why = "is not a directory: correct the path"
    elif "~" in root.parts:
        why = "does not exist (~ is not expanded: write the whole path)"
    else:
        why = "does not exist: create it, or correct the path"
    yield _Mistake(("root",), str(root), f"the directory {root} {why}")


def _review_locks(locks: str) -> Iterator[_Mistake]:
    scheme, found, _ = locks.partition("://")
    if found and scheme in _BACKENDS:
        yield _Mistake(("locks",), locks, f'locks by {scheme} are not in this version: use "file"', "file")
    elif locks != "file":
        near = nearest(locks, ["file"])
        yield _Mistake(("locks",), locks, f'expected "file", not {show(locks)}{_hint(near)}', near)


def _review_resources(config: Config, names: Resources, found: dict[str, ResourceConfig]) -> Iterator[_Mistake]:
    """Puts the entries into `found`, under the names that calls will have."""
    spelled: dict[str, str] = {}
    for name, entry in config.resources.items():
        at = ("resources", name)
        if not name.strip():
            yield _Mistake(at, name, "a resource needs a name")
        elif re.search(r"(?<!\[)\{[^{}]*\}", name):
            glob = re.sub(r"\{[^{}]*\}", "*", name)
            yield _Mistake(at, name, f'templates are for tools; a resource is a name or a glob: write "{glob}"', glob)
        else:
            place: list[str] = []

            def resolve(text: str, place: list[str] = place) -> None:
                place.append(names.resolve(text).name)

            yield from _attempt(at, name, resolve, names.root)
            canonical = place[0] if place else name
            key = canonical.rstrip("/") or canonical
            if key in spelled:
                first = spelled[key]
                yield _Mistake(at, name, f'the same resource as "{first}" above: keep one of the two', first)
            spelled[key] = name
            found[canonical] = entry
        yield from _review_entry(at, entry)


def _review_entry(at: tuple[str, str], entry: ResourceConfig) -> Iterator[_Mistake]:
    if entry.merge is not None or entry.paths:
        from ..merge import check_path, check_path_strategy, check_strategy

        if entry.merge is not None:
            yield from _attempt((*at, "merge"), entry.merge, check_strategy)
        for pointer, strategy in entry.paths.items():
            place = (*at, "paths", pointer)
            yield from _attempt(place, pointer, check_path)
            yield from _attempt(place, strategy, check_path_strategy)
    given = entry.on_conflict
    if given != "fail" and not entry.parks and not FUNCTION.fullmatch(given):
        near = nearest(given, ["fail", "park"])
        expected = ResourceConfig.model_fields["on_conflict"].description
        yield _Mistake((*at, "on_conflict"), given, f"expected {expected}, not {show(given)}{_hint(near)}", near)
    version = entry.version
    if isinstance(version, str):
        if not FUNCTION.fullmatch(version):
            expected = ResourceConfig.model_fields["version"].description
            yield _Mistake((*at, "version"), version, f"expected {expected}, not {show(version)}")
    elif version is not None:
        from ..declaration import version_function

        try:
            version_function(version)
        except ConfigError as error:
            yield _Mistake((*at, "version"), repr(version), error.message)


def _review_tools(config: Config, names: Resources) -> Iterator[_Mistake]:
    from ..declaration import template

    def resolve(text: str) -> None:
        # A field stands for itself: what it holds is checked at each call.
        names.resolve("".join(lit + (f"{{{field}}}" if field else "") for lit, field, _ in template(text).pieces))

    for tool, entry in config.tools.items():
        if not tool.strip():
            yield _Mistake(("tools", tool), tool, "a tool needs a name")
        for kind in ("writes", "reads", "updates"):
            for text in getattr(entry, kind):
                yield from _attempt(("tools", tool, kind), text, resolve, names.root)


def _attempt(
    at: tuple[Any, ...], value: str, test: Callable[[str], object], root: Path | None = None
) -> Iterator[_Mistake]:
    try:
        test(value)
    except ConfigError as error:
        near = error.fields.get("nearest")
        yield _Mistake(at, value, error.message, near)
    except UndeclaredWrite:
        yield _Mistake(
            at, value, f"{value!r} must name something below the root {root} and outside .agentguard/, "
            "or an opaque key such as db:orders",
        )  # fmt: skip
    except OSError as error:
        yield _Mistake(at, value, f"{value[:80]!r} cannot be a path: {error.strerror or error}")


# Words


def nearest(word: Any, known: list[str]) -> str | None:
    """The known word that is most like this one, if any is."""
    near = difflib.get_close_matches(str(word).lower(), known, n=1)
    return near[0] if near else None


def _hint(near: str | None) -> str:
    return f'; did you mean "{near}"?' if near else ""


def show(value: Any) -> str:
    """A value and its kind for a message, without what may be a password."""
    text = _mask(repr(value))
    kinds: dict[type, str] = {
        str: "a text",
        bool: "true/false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a table",
        type(None): "nothing",
    }
    return f"{text[:80] + '...' if len(text) > 80 else text} ({kinds.get(type(value), type(value).__name__)})"


def _masked(value: Any) -> Any:
    return value if "://" not in repr(value) else _mask(value if isinstance(value, str) else repr(value))


def _mask(text: str) -> str:
    return re.sub(r"://[^'\"]*", "://...", text)


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(str(step) if re.fullmatch(r"[A-Za-z0-9_-]+", str(step)) else f'"{step}"' for step in path)
