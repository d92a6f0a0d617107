"""Write a changed value back into a round-trip tree (ruamel.yaml, tomlkit), touching nothing that did not change."""

from __future__ import annotations

import math
from typing import Any

from agentguard.merge.documents import Unreadable
from agentguard.merge.values import MISSING, same


def graft(tree: Any, old: Any, new: Any) -> Any:
    """`tree`, whose plain value is `old`, changed in place to say `new`; or `new` itself if it is of another kind."""
    if same(old, new):
        return tree
    if type(old) is dict and type(new) is dict:
        for key in [key for key in old if key not in new]:
            del tree[key]
        for key, value in new.items():
            before = old.get(key, MISSING)
            if not same(before, value):
                _put(tree, key, before, value)
        return tree
    if type(old) is list and type(new) is list:
        return _graft_list(tree, old, new)
    return new


def _graft_list(tree: Any, old: list[Any], new: list[Any]) -> Any:
    start, most = 0, min(len(old), len(new))
    while start < most and same(old[start], new[start]):
        start += 1
    end = 0
    while end < most - start and same(old[-1 - end], new[-1 - end]):
        end += 1
    both = most - start - end
    for at in range(start, start + both):
        _put(tree, at, old[at], new[at])
    for at in range(len(old) - end - 1, start + both - 1, -1):
        del tree[at]
    for at in range(start + both, len(new) - end):
        tree.insert(at, new[at])
    return tree


def _put(tree: Any, key: Any, before: Any, value: Any) -> None:
    if type(before) is type(value) and type(value) in (dict, list):
        graft(tree[key], before, value)
    else:
        tree[key] = value


def decoded(data: bytes) -> str:
    """The text of a file; raises `Unreadable` for anything but UTF-8 without a byte order mark."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise Unreadable("it begins with a byte order mark (BOM); save it as UTF-8 without one", 1, 1)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise Unreadable(f"invalid UTF-8 (byte 0x{data[error.start]:02x})", line, column) from None


def finite(number: float) -> float:
    if math.isfinite(number):
        return number
    raise Unreadable(f"the number {number} has no equal to compare with, so it cannot be merged")
