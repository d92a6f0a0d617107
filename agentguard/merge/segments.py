"""The members of a big JSON object as pieces of its bytes, and which of them a version changed.

A version is compared with the base as bytes, from the start and again after each difference: only what lies between two
stretches that are equal is taken apart. That is right because the two agree up to a boundary between members, what
lies between is one or more whole members, and then a member of the base follows.
"""

from __future__ import annotations

import json
import operator
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from agentguard.codecs.jsontext import Style, quotes

_AHEAD = 8
"""How many members of the base to look for after a difference, to find where a version goes on as the base does."""

_FAR = 1 << 16
"""How many bytes, at least, to look for each of them."""

Members = Mapping[str, Any]
"""Each member's value as a `msgspec.Raw`: the bytes that it has in the text."""


class Whole(Exception):
    """Only reading the whole can tell."""


@dataclass(frozen=True)
class Layout:
    """What stands around the members of an object: `between` before each key (before the first without its comma),
    `colon` before each value, `end` after the last."""

    between: str
    colon: str
    end: str
    escaped: bool

    @classmethod
    def of(cls, style: Style, level: int) -> Layout:
        comma, colon = style.separators
        line = "" if style.indent is None else style.newline
        indent = style.indent or ""
        last = style.newline if style.end else ""
        return cls(f"{comma}{line}{indent * level}", colon, f"{line}{indent * (level - 1)}}}{last}", style.escaped)

    def heads(self, keys: Iterable[str]) -> list[bytes]:
        """What stands before each value. Done for all keys at once, which is many times faster: no key has a quotation
        mark inside, and no JSON a NUL."""
        import orjson

        names = list(keys)
        if not names:
            return []
        data = json.dumps(names, separators=(",", ":")).encode() if self.escaped else orjson.dumps(names)
        text = data[1:-1].replace(b'","', f'"{self.colon}\0{self.between}"'.encode())
        return (self.between.encode() + text + self.colon.encode()).split(b"\0")

    def text(self, members: Members) -> bytes:
        """The object with these members."""
        heads = self.heads(members)
        if not heads:
            return b"{}" + self.end.partition("}")[2].encode()
        heads[0] = heads[0].removeprefix(b",").removeprefix(b" ")
        return b"".join([b"{", *chain.from_iterable(zip(heads, members.values(), strict=True)), self.end.encode()])


def members_of(data: bytes) -> Members:
    """The members of an object. Raises `Whole` for what is no object, or no JSON, or has a key twice, or one with a
    quotation mark inside."""
    import msgspec

    found = _decoded(data)
    # Every member leaves its key's two quotation marks; none of a key that has one inside can be told apart.
    if '"' in "".join(found) or quotes(data) != quotes(msgspec.json.encode(found)):
        raise Whole
    return found


def cut(data: bytes, layout: Layout) -> tuple[Members, Segments | None]:
    """The members of an object, and if all of it has the layout, where they are. Raises `Whole` as `members_of`."""
    members = _decoded(data)
    segments = Segments.of(data, members, layout)
    if segments is None:
        members = members_of(data)
    return members, segments


def _decoded(data: bytes) -> Members:
    import msgspec  # here, since only big stores need it

    try:
        found: Members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Whole from error
    return found


def check_syntax(data: bytes) -> None:
    """Raise `Whole` unless it is JSON."""
    import msgspec

    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        raise Whole from error


@dataclass
class Segments:
    """An object's text cut where its members begin; `end` of them where what follows the last one begins."""

    data: bytes
    members: Members
    keys: list[str]
    starts: list[int]
    at: dict[str, int] = field(default_factory=dict)  # the number of each member that some version changed

    @classmethod
    def of(cls, data: bytes, members: Members, layout: Layout) -> Segments | None:
        """None if the text has another layout somewhere, or more members than these: a key that is given twice."""
        if not members or '"' in "".join(members):
            return None
        heads, values = layout.heads(members), list(map(bytes, members.values()))
        heads[0] = heads[0].removeprefix(b",").removeprefix(b" ")
        body = b"".join(chain.from_iterable(zip(heads, values, strict=True)))
        end = layout.end.encode()
        if len(body) + len(end) + 1 != len(data) or not (data.startswith(b"{" + body) and data.endswith(end)):
            return None
        lengths = map(operator.add, map(len, heads), map(len, values))
        return cls(data, members, list(members), list(accumulate(lengths, initial=1)))

    def changes(self, side: bytes) -> dict[str, Any] | None:
        """What a version changed: the new bytes of each member, None for one that it removed. None if that cannot be
        told in this way."""
        base, starts, count = self.data, self.starts, len(self.keys)
        end = base[starts[count] :]
        if not side.startswith(b"{") or not side.endswith(end) or len(side) <= len(end):
            return None
        found: dict[str, Any] = {}
        here = there = 0
        while True:
            equal = _common(base, here, side, there)
            if here + equal == len(base) and there + equal == len(side):
                return found
            # The first byte of a member may differ because the value before it has become longer, as 1 to 12.
            number = max(0, bisect_left(starts, here + equal) - 1)
            start = there + starts[number] - here
            following, stop = self._again(side, number, start, len(side) - len(end))
            if stop < start:
                return None
            try:
                new = members_of(b"{" + side[start:stop].strip().removeprefix(b",") + b"}")
            except Whole:
                return None
            old = self.keys[number:following]
            for key, value in new.items():
                if key in found or (key in self.members and key not in old):
                    return None  # it moved, or is there twice
                if key not in old or self.members[key] != value:
                    found[key] = value
            found.update((key, None) for key in old if key not in new)
            self.at.update(zip(old, range(number, following), strict=True))
            here, there = starts[following], stop

    def _again(self, side: bytes, number: int, start: int, last: int) -> tuple[int, int]:
        """The next member of the base that a version has unchanged, and where; -1: not found."""
        count, starts = len(self.keys), self.starts
        for following in range(number + 1, min(number + 1 + _AHEAD, count)):
            segment = self.data[starts[following] : starts[following + 1]]
            stop = side.find(segment, start, start + len(segment) + max(_FAR, 2 * (starts[following] - starts[number])))
            if stop >= 0:
                return following, stop
        return (count, last) if number + _AHEAD >= count else (count, -1)

    def with_changes(self, pieces: Mapping[str, Any], layout: Layout) -> bytes:
        """The text with new values for some members (None: removed), new ones after the last."""
        out: list[Any] = []
        here = 0
        heads = dict(zip(pieces, layout.heads(pieces), strict=True))
        for key in sorted(pieces.keys() & self.at.keys(), key=self.at.__getitem__):
            number = self.at[key]
            out.append(self.data[here : self.starts[number]])
            if pieces[key] is not None:
                out += (heads[key] if number else heads[key].removeprefix(b",").removeprefix(b" "), pieces[key])
            here = self.starts[number + 1]
        out.append(self.data[here : self.starts[-1]])
        for key in pieces:
            if key not in self.at:
                out += (heads[key], pieces[key])
        return b"".join([*out, self.data[self.starts[-1] :]])


def _common(a: bytes, i: int, b: bytes, j: int) -> int:
    """How many bytes from `a[i]` and `b[j]` on are equal."""
    done, step = 0, 512
    while True:
        one, two = a[i + done : i + done + step], b[j + done : j + done + step]
        if one != two:
            break
        done += len(one)
        if len(one) < step:
            return done
        step = min(2 * step, 1 << 20)
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return done + low
