"""What a tool says it touches: `@declare`, and the templates that are filled from a call's arguments.

A declaration names resources by kind of access:

    writes    the call replaces or changes the resource; refused when the agent's last read of it is stale
    reads     shared with other readers; the version that was read is remembered for the agent
    updates   the new value is computed inside the call from the current one; never stale

Names are templates: `"notes/{topic}.md"`, `"db:orders/{order.id}"`. A field names an argument of the call, or an
attribute or key of one; it is looked up, never evaluated.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import inspect
import os
import string
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .exceptions import ConfigError, UndeclaredWrite

__all__ = ["Access", "Declaration", "Signature", "Template", "declare", "declared_on"]

MARK = "__agentguard__"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Access:
    """One resource that one call touches: its name, and the argument that carries the path, if one does."""

    kind: str  # "writes" | "reads" | "updates"
    name: str
    argument: str | None = None
    index: int | None = None  # the position, where the argument is a list of paths
    suffix: str = ""  # what the template appends to the argument

    @property
    def exclusive(self) -> bool:
        return self.kind != "reads"


@dataclass(frozen=True, slots=True)
class Template:
    """A resource name with `{fields}`, parsed once."""

    text: str
    pieces: tuple[tuple[str, str | None, str], ...]  # (literal before, dotted field or None, format spec)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(field for _, field, _ in self.pieces if field is not None)

    def fill(self, arguments: Mapping[str, Any], kind: str, tool: str) -> list[Access]:
        """The resources this template names for these arguments (a list argument names one for each item).

        Raises `UndeclaredWrite` when a value cannot be part of a name: arguments come from a model, so this refuses
        the call, not the configuration.
        """
        if len(self.pieces) == 1 and self.pieces[0][1] is None:
            return [Access(kind, self.pieces[0][0])]
        if len(self.pieces) == 1 and self.pieces[0][0] == "":
            field = self.pieces[0][1] or ""
            value = _lookup(arguments, field, self, tool)
            if isinstance(value, (list, tuple, set, frozenset)):
                items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
                indexed = "." not in field and isinstance(value, (list, tuple)) and all(map(_is_path, value))
                return [
                    Access(kind, self._text(item, field, "", tool), field if indexed else None, index)
                    for index, item in enumerate(items)
                ]
        parts: list[str] = []
        for literal, piece, spec in self.pieces:
            parts.append(literal)
            if piece is not None:
                parts.append(self._text(_lookup(arguments, piece, self, tool), piece, spec, tool))
        name = "".join(parts)
        head = self.pieces[0]
        fields_only = all(
            literal.strip("/") == "" and (field is not None or literal == "/") for literal, field, _ in self.pieces
        )
        # `{folder}/{name}` leads the tool by its folder; `{project}/notes.md` does not: its folder holds more than the
        # declared file, and a copy of that alone would hide the rest.
        leads = fields_only and head[0] == "" and head[1] is not None and "." not in head[1] and not head[2]
        if leads and _is_path(arguments.get(head[1] or "")):
            return [Access(kind, name, head[1], None, "".join(parts[2:]))]
        return [Access(kind, name)]

    def _text(self, value: Any, field: str, spec: str, tool: str) -> str:
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, (str, int, float, uuid.UUID)) and not (isinstance(value, str) and not value):
            try:
                text = format(value, spec) if spec else str(value)
            except ValueError as error:
                raise UndeclaredWrite(
                    f"{tool}: argument {field!r} does not fit the declared resource {self.text!r}: {error}. "
                    "Nothing was applied; call the tool again with a proper value.",
                    resource=self.text,
                    tool=tool,
                    argument=field,
                ) from error
            if "\0" not in text:
                return text
        shown = "empty" if value == "" else f"{type(value).__name__} {str(value)[:60]!r}"
        raise UndeclaredWrite(
            f"{tool}: argument {field!r} of the declared resource {self.text!r} is {shown}, which cannot be part of a "
            "resource's name. Nothing was applied; call the tool again with a proper value.",
            resource=self.text,
            tool=tool,
            argument=field,
        )


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


@functools.lru_cache(maxsize=4096)
def template(text: str) -> Template:
    """Parse a resource template; raises `ConfigError` for anything that is not plain fields in plain text."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"a resource name must be a non-empty text, not {text!r}", value=text)
    try:
        raw = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(
            f"resource {text!r}: {error}. Fields are written {{argument}}; a brace itself is written twice.", value=text
        ) from error
    pieces: list[tuple[str, str | None, str]] = []
    for literal, field, spec, conversion in raw:
        if field is not None:
            bad = next((p for p in field.split(".") if not p.isidentifier() or p.startswith("_")), None)
            if bad is not None or conversion or "{" in (spec or ""):
                raise ConfigError(
                    f"resource {text!r}: the field {{{field}}} must name an argument ({{path}}) or a public attribute "
                    "of one ({order.id})",
                    value=text,
                )
        pieces.append((literal, field, spec or ""))
    return Template(text, tuple(pieces))


def _lookup(arguments: Mapping[str, Any], field: str, source: Template, tool: str) -> Any:
    head, *rest = field.split(".")
    if head in arguments:
        value = arguments[head]
    else:
        # A tool that takes one pydantic model is called with that model's fields by the frameworks.
        for candidate in arguments.values():
            if head in getattr(type(candidate), "model_fields", ()):
                value = getattr(candidate, head)
                break
        else:
            raise UndeclaredWrite(
                f"{tool}: the declared resource {source.text!r} needs the argument {head!r}, which this call does not "
                f"give (it gives: {', '.join(sorted(arguments)) or 'none'}). Nothing was applied.",
                resource=source.text,
                tool=tool,
                argument=head,
            )
    for part in rest:
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a tool touches. Empty: it is known to touch nothing that is shared, and takes no lock."""

    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    updates: tuple[str, ...] = ()
    redirect: str = "argument"
    version: Callable[[str], Any] | None = None  # of what has no content: keys and directories
    # The accesses, where they are the same for every call; () before that is known, None where they are not.
    fixed: Sequence[Access] | None = dataclasses.field(default=(), init=False, repr=False, compare=False)

    @staticmethod
    def of(
        writes: Any = (), reads: Any = (), updates: Any = (), redirect: str = "argument", version: Any = None
    ) -> Declaration:
        """Build from what users write (a text or a list of texts each); raises `ConfigError` for bad templates."""
        given = (writes, reads, updates, redirect, version)
        try:
            found = _asked.get(given)
        except TypeError:  # lists
            return _made(*_all_names(writes, reads, updates), redirect, version)
        if found is None:
            found = _made(*_all_names(writes, reads, updates), redirect, version)
            if len(_asked) >= 4096:
                _asked.clear()
            _asked[given] = found
        return found

    def __iter__(self) -> Any:
        for kind in ("writes", "updates", "reads"):
            for text in getattr(self, kind):
                yield kind, text

    def __bool__(self) -> bool:
        return bool(self.writes or self.reads or self.updates)

    @property
    def fields(self) -> frozenset[str]:
        """The names of the arguments that the templates need."""
        return frozenset(f.split(".")[0] for _, text in self for f in template(text).fields)

    def accesses(self, arguments: Mapping[str, Any], tool: str) -> Sequence[Access]:
        """The resources of one call. Raises `UndeclaredWrite` when an argument cannot be part of a name."""
        fixed = self.fixed
        if fixed == ():
            fixed = None if self.fields else [a for kind, text in self for a in template(text).fill({}, kind, tool)]
            object.__setattr__(self, "fixed", fixed)
        if fixed is not None:
            return fixed
        return [access for kind, text in self for access in template(text).fill(arguments, kind, tool)]

    def check(self, parameters: Collection[str], tool: str, *, where: str = "") -> None:
        """Raise `ConfigError` for a template that names no argument of the tool, with the nearest one."""
        for kind, text in self:
            for field in template(text).fields:
                head = field.split(".")[0]
                if head in parameters:
                    continue
                near = difflib.get_close_matches(head, list(parameters), n=1)
                hint = f"; did you mean {{{near[0]}}}?" if near else ""
                known = ", ".join(sorted(parameters)) or "none"
                raise ConfigError(
                    f"{where}{tool}: {kind}={text!r} names the argument {head!r}, which the tool does not have "
                    f"(it has: {known}){hint}",
                    key=kind,
                    value=text,
                    tool=tool,
                    nearest=near[0] if near else None,
                )


@functools.lru_cache(maxsize=4096)
def _made(
    writes: tuple[str, ...], reads: tuple[str, ...], updates: tuple[str, ...], redirect: str, version: Any
) -> Declaration:
    if redirect not in ("argument", "none"):
        raise ConfigError(f"redirect must be 'argument' or 'none', not {redirect!r}", key="redirect")
    declaration = Declaration(writes, reads, updates, redirect, version_function(version) if version else None)
    for _, text in declaration:
        template(text)
    return declaration


_asked: dict[tuple[Any, Any, Any, str, Any], Declaration] = {}


def version_function(given: Any) -> Callable[[str], Any]:
    """A user's `version=` as a function of the resource's name. Raises `ConfigError` for what cannot be one."""
    if not callable(given):
        raise ConfigError(f"version must be a function, not {given!r}", key="version", value=given)
    if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(getattr(given, "__call__", None)):  # noqa: B004
        raise ConfigError("version must be a plain function: it is called while locks are held", key="version")
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # built in: it will say what does not fit
        return given  # type: ignore[no-any-return]
    for arguments in (("name",), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return given if arguments else lambda _: given()
    raise ConfigError(f"version must take the resource's name, or nothing: {given!r} does not", key="version")


def _all_names(writes: Any, reads: Any, updates: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return _names(writes, "writes"), _names(reads, "reads"), _names(updates, "updates")


def _names(value: Any, key: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, os.PathLike)):
        return (os.fspath(value),)
    if isinstance(value, Sequence) and all(isinstance(item, (str, os.PathLike)) for item in value):
        return tuple(os.fspath(item) for item in value)
    raise ConfigError(f"{key} must be a resource name or a list of names, not {value!r}", key=key, value=value)


class Signature:
    """A callable's parameters: turns positional and named arguments into one mapping, and puts replacements back."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.signature = inspect.signature(fn)
        kinds = [p.kind for p in self.signature.parameters.values()]
        self.open = inspect.Parameter.VAR_KEYWORD in kinds
        self._var = next(
            (n for n, p in self.signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD), None
        )
        self.fn = fn

    def names(self) -> set[str]:
        """Every name a template may use: the parameters, and the fields of pydantic models among them."""
        found = {n for n in self.signature.parameters if n != self._var}
        for annotation in _annotations(self.fn).values():
            found.update(getattr(annotation, "model_fields", ()))
        return found

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """Raises TypeError for arguments that do not fit, as the call itself would."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound

    def arguments(self, bound: inspect.BoundArguments) -> dict[str, Any]:
        """One flat mapping from argument name to value."""
        flat = dict(bound.arguments)
        if self._var is not None:
            flat.update(flat.pop(self._var, {}))
        return flat

    def replace(self, bound: inspect.BoundArguments, replaced: Mapping[str, Any]) -> None:
        """Put replaced values back where they came from."""
        for name, value in replaced.items():
            if name in self.signature.parameters:
                bound.arguments[name] = value
            elif self._var is not None:
                bound.arguments[self._var] = {**bound.arguments.get(self._var, {}), name: value}


def _annotations(fn: Callable[..., Any]) -> dict[str, Any]:
    try:
        return inspect.get_annotations(inspect.unwrap(fn), eval_str=True)
    except (NameError, TypeError, SyntaxError, AttributeError):
        return {}  # an annotation that cannot be resolved says nothing about fields


def check_function(fn: Callable[..., Any], declaration: Declaration, tool: str, *, where: str = "") -> None:
    """Raise `ConfigError` when a template names an argument that the function cannot get."""
    signature = Signature(fn)
    if not signature.open:
        declaration.check(signature.names(), tool, where=where)


def declare(
    *,
    writes: str | Path | Iterable[str] | None = None,
    reads: str | Path | Iterable[str] | None = None,
    updates: str | Path | Iterable[str] | None = None,
    version: Callable[..., Any] | None = None,
) -> Callable[[F], F]:
    """Say which shared resources a function touches; the function itself is returned unchanged.

    Each argument is a name or a list of names: a path relative to the guard's root (`"findings.json"`; a directory
    ends in `/`), or an opaque key with a scheme (`"db:orders/42"`). `{argument}` is filled from the call:
    `"notes/{topic}.md"`. `@declare()` says that the function touches nothing that is shared.

    `version`: how to tell the version of keys and directories, which have no content that the guard could compare: a
    plain function that gets the resource's name and returns anything whose text changes with it (None: not there).
    Without one a key's version is the fencing token of its last change through the guard.

    Raises `ConfigError` at once for a template that names no argument of the function.
    """
    declaration = Declaration.of(writes, reads, updates, version=version)

    def mark(fn: F) -> F:
        check_function(fn, declaration, getattr(fn, "__name__", repr(fn)))
        setattr(fn, MARK, declaration)
        return fn

    return mark


def declared_on(*carriers: Any) -> Declaration | None:
    """The declaration that one of these objects carries (functions, methods, partials and what they wrap)."""
    for carrier in carriers:
        seen = 0
        while carrier is not None and seen < 32:
            found = getattr(carrier, MARK, None)
            if isinstance(found, Declaration):
                return found
            carrier = getattr(carrier, "__wrapped__", None) or getattr(carrier, "func", None)
            seen += 1
    return None
