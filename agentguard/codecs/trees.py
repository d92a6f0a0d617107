"""What YAML and TOML share: writing a value into the tree of the old content, touching nothing that did not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .values import Problem, Refused, decode, same


def first_line(error: object) -> str:
    """What a parser complains about, without its picture of the place."""
    return (str(error).splitlines() or ["it cannot be read"])[0]


def dump(
    value: Any,
    previous: bytes | None,
    load: Callable[[bytes], Any],
    parse: Callable[[str], Any],
    write: Callable[..., str],
    *,
    keep: bool = False,
) -> bytes:
    """Patch the old content if what comes out reads as the value; else write the value plainly, without comments, or
    with `keep` raise `Refused`."""
    if previous is not None:
        try:
            old = load(previous)
            if same(old, value):
                return previous
            text = decode(previous)
            newline = "\r\n" if "\r\n" in text else "\n"
            text = text.replace("\r\n", "\n")
            # What holds no value yet may hold comments: they stay on top.
            new = (
                write(patch(parse(text), old, value), text)
                if old
                else text.rstrip("\n") + "\n" * bool(text) + write(value)
            )
            out = new.replace("\n", newline).encode()
            if same(load(out), value):
                return out
        except (Problem, Refused, RecursionError, ValueError, TypeError, LookupError, AttributeError):
            pass  # content that cannot be read, or a tree that does not take the change
        if keep:
            raise Refused("the change cannot be put into this file without touching more than what changed")
    out = write(value).encode()
    try:
        if same(load(out), value):
            return out
    except Problem as error:
        raise Refused(error.problem) from error
    raise Refused("it would not read back as the same value")


def patch(tree: Any, old: Any, new: Any) -> Any:
    """Change a round-trip tree, whose plain value is `old`, only where `new` differs; returns the tree to use."""
    if isinstance(old, dict) and isinstance(new, dict) and old:
        for key in [key for key in old if key not in new]:
            del tree[key]
        for key, item in new.items():
            if key not in old:
                tree[key] = item
            elif not same(old[key], item):
                _put(tree, key, old[key], item)
        return tree
    if isinstance(old, list) and isinstance(new, (list, tuple)) and old:
        short = min(len(old), len(new))
        head = next((i for i in range(short) if not same(old[i], new[i])), short)
        tail = next((i for i in range(short - head) if not same(old[-1 - i], new[-1 - i])), short - head)
        shared = short - tail
        for index in range(head, shared):
            _put(tree, index, old[index], new[index])
        for index in reversed(range(shared, len(old) - tail)):
            del tree[index]
        for index in range(shared, len(new) - tail):
            tree.insert(index, new[index])
        return tree
    return _quoted(tree, new)


def _put(tree: Any, key: Any, old: Any, new: Any) -> None:
    before = tree[key]
    try:
        after = patch(before, old, new)
    except (ValueError, TypeError, LookupError, AttributeError):
        after = new  # an array of tables takes no number, a merge key cannot be deleted: this one is written anew
    if after is before:
        return  # a container that was changed in place keeps its layout better if left alone
    if type(before).__name__ == "AoT":  # TOML's array of tables, which nothing else can take the place of
        del tree[key]
    tree[key] = after


def _quoted(before: Any, new: Any) -> Any:
    """A text in the quotes of the one that it replaces, where YAML's tree knows them."""
    quoted = type(new) is str and type(before).__name__ in ("SingleQuotedScalarString", "DoubleQuotedScalarString")
    return type(before)(new) if quoted else new
