"""Merges of bytes and lines: `text`, `union`, `append` and `binary`.

Lines end at LF only, in bytes, so that CRLF files and odd characters come through untouched. Whether a file ends with
a newline is merged apart from its lines: a writer who drops or adds that newline does not collide with one who appends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from agentguard.exceptions import ConfigError
from agentguard.merge.lines import Hunk, hunks, regions
from agentguard.merge.values import MISSING, Conflict, Merged, Options, settle


@dataclass(frozen=True)
class _Document:
    lines: list[bytes]
    closed: bool
    """Ends with a newline (or is empty)."""

    @classmethod
    def of(cls, data: bytes, crlf: bool) -> _Document:
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
            return cls(lines, True)
        if crlf:
            lines[-1] += b"\r"  # so that the last line equals itself once a newline follows
        return cls(lines, False)


def _crlf(data: bytes) -> bool:
    at = data.find(b"\n")
    return at > 0 and data[at - 1 : at] == b"\r"


def text(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """Three-way on lines, for any number of sides at once.

    Changes that touch each other are a conflict unless they are equal, as in git. One case is kinder than git: lines
    that several agents added after the last line of the base are all kept, in the order of the agents (equal additions
    once); two agents who each create the file are that case too. Bytes with NUL are not text: a conflict as a whole.
    """
    return _lines(base, sides, options, union=False)


def union(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """As `text`, and additions at one point are all kept anywhere, in the order of the agents."""
    return _lines(base, sides, options, union=True)


def _lines(base: bytes | None, sides: Mapping[str, bytes], options: Options, *, union: bool) -> Merged:
    if len(sides) > 1 and any(b"\0" in data for data in (base or b"", *sides.values())):
        return whole(base, sides, options, "holds NUL bytes, so it is not text and cannot be merged by lines")
    origin = base or b""
    crlf = _crlf(origin) or (b"\n" not in origin and any(map(_crlf, sides.values())))
    old = _Document.of(origin, crlf)
    times: Counter[bytes] = Counter()
    closed: dict[str, bool] = {}
    edits: dict[str, list[Hunk[bytes]]] = {}
    for agent, data in sides.items():
        twin = next((other for other in edits if sides[other] == data), None)
        if twin is not None:
            closed[agent], edits[agent] = closed[twin], edits[twin]
            continue
        new = _Document.of(data, crlf)
        closed[agent], edits[agent] = new.closed, hunks(old.lines, new.lines, times)
    changes = {agent: sum(max(hi - lo, len(new)) for lo, hi, new in edits[agent]) or 1 for agent in edits}
    if len(sides) == 1:
        return Merged(next(iter(sides.values())), (), changes)

    @cache
    def readable() -> bool:
        return all(map(_is_utf8, (origin, *sides.values())))

    def shown(lines: list[bytes]) -> str | bytes:
        joined = _joined(lines)
        return joined.decode() if readable() else joined

    out: list[bytes] = []
    conflicts: list[Conflict] = []
    position, end, left = 0, len(old.lines), False
    for region in regions(old.lines, edits, touching=True):
        out += old.lines[position : region.lo]
        position = region.hi
        versions = region.distinct()
        insertion = region.lo == region.hi
        if len(versions) == 1 or (insertion and (union or region.lo == end)):
            for version in versions:
                out += version
            continue
        conflict = Conflict(
            options.resource,
            _place(region.lo, region.hi),
            shown(old.lines[region.lo : region.hi]),
            {agent: shown(version) for agent, version in region.versions.items()},
            "added different lines at one place" if insertion else "changed the same lines differently",
        )
        known = len(conflicts)
        settled = settle(conflict, options, conflicts)
        left = region.hi == end and len(conflicts) > known
        out += _Document.of(_as_bytes(settled, options), crlf).lines
    out += old.lines[position:]

    # Who changed the end decides whether it has a newline; any one of them who kept it is enough.
    enders = [a for a in sides if closed[a] is not old.closed or (edits[a] and edits[a][-1][1] == end)]
    ends = any(closed[agent] for agent in enders) if enders and not left else old.closed
    merged = _joined(out)
    if not ends and out and out[-1] not in (b"", b"\r"):
        merged = merged.removesuffix(b"\n").removesuffix(b"\r" if crlf else b"")
    return Merged(merged, tuple(conflicts), changes)


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join([*lines, b""])


def append(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """Logs and JSON Lines: what each agent added after the base, one after the other in the order of the agents.

    Equal additions are all kept: two agents that log the same line logged it twice. A conflict as a whole if somebody
    rewrote what was there. Records are never glued together: a missing newline between two additions is put in.
    """
    origin = base or b""
    rewriters = [agent for agent, data in sides.items() if not data.startswith(origin)]
    additions = {agent: data[len(origin) :] for agent, data in sides.items() if agent not in rewriters}
    changes = {agent: records_in(additions[agent]) if agent in additions else 1 for agent in sides}
    if len(sides) == 1:
        return Merged(next(iter(sides.values())), (), changes)
    if rewriters:
        reason = f"only additions at the end can be merged, and {', '.join(rewriters)} changed what was there"
        return Merged(*_settled_whole(base, sides, options, reason), changes)
    return Merged(concatenated(origin, additions.values(), newline_of(origin, *sides.values())), (), changes)


def records_in(added: bytes) -> int:
    """How many lines an addition has, blank ones at either end not counted."""
    return added.strip(b"\r\n").count(b"\n") + 1


def newline_of(*contents: bytes) -> bytes:
    """What stands between records that nobody put a newline between."""
    return b"\r\n" if any(map(_crlf, contents)) else b"\n"


def concatenated(origin: bytes, additions: Iterable[bytes], newline: bytes) -> bytes:
    """The base and what each agent added to it."""
    pieces = [origin]
    before: bytes | None = None
    for added in filter(None, additions):
        missing, surplus = seam(origin, before, added)
        if missing:
            pieces.append(newline)
        pieces.append(added[surplus:])
        before = added[surplus:] or before
    return b"".join(pieces)


def seam(origin: bytes, before: bytes | None, added: bytes) -> tuple[bool, int]:
    """Where an addition follows the one `before` it (None: it is the first): whether a newline is missing between them,
    and how many bytes at its start are too many. Looks at the last byte of the first two and at two bytes of `added`.
    """
    starts = 2 if added.startswith(b"\r\n") else 1 if added.startswith(b"\n") else 0
    if not (origin and not origin.endswith(b"\n")):
        starts = 0  # a blank line of its own
    # Else a newline at the start ended the base's last line, which is ended once.
    if before is None:
        return False, 0
    return (False, starts) if before.endswith(b"\n") else (not starts, 0)


def binary(base: bytes | None, sides: Mapping[str, bytes], options: Options) -> Merged:
    """Opaque bytes: agents who wrote different contents are a conflict."""
    contents = set(sides.values())
    if len(contents) == 1:
        return Merged(contents.pop(), (), dict.fromkeys(sides, 1))
    return whole(base, sides, options, "was replaced with different contents, and this kind of file is not merged")


def whole(base: bytes | None, sides: Mapping[str, bytes | None], options: Options, reason: str) -> Merged:
    """A conflict about the resource as a whole, asked of the resolver (who answers with bytes, a text or `MISSING`)."""
    return Merged(*_settled_whole(base, sides, options, reason), dict.fromkeys(sides, 1))


def _settled_whole(
    base: bytes | None, sides: Mapping[str, bytes | None], options: Options, reason: str
) -> tuple[bytes | None, tuple[Conflict, ...]]:
    known = {agent: MISSING if data is None else data for agent, data in sides.items()}
    conflict = Conflict(options.resource, "", MISSING if base is None else base, known, reason)
    conflicts: list[Conflict] = []
    settled = settle(conflict, options, conflicts)
    return None if settled is MISSING else _as_bytes(settled, options), tuple(conflicts)


def _as_bytes(value: object, options: Options) -> bytes:
    if value is MISSING:
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value
    raise ConfigError(
        f"the resolver of {options.resource or 'the resource'} returned {type(value).__name__}; for this kind of file "
        "it has to return bytes, str or MISSING",
        resource=options.resource,
        value=value,
    )


def _place(lo: int, hi: int) -> str:
    return f"lines {lo + 1}-{hi}" if hi - lo > 1 else f"line {lo + 1}"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
