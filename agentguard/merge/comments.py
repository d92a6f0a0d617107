"""Comments of YAML and TOML, line by line: which there are, and putting one agent's into a text that others changed.

Looks at lines, not at the formats: of a text over several lines a part may be taken for a comment. That does no harm,
since nothing is published before it has been read again and says the merged value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from difflib import SequenceMatcher

_TEXTS = re.compile(rb"\"(?:[^\"\\]|\\.)*\"|'[^']*'")
_START = re.compile(rb"(?:^|(?<=[\s,\[\]{}]))#")
_NAME = re.compile(rb"[^:=]*[:=]?")


def comments(data: bytes) -> set[bytes]:
    """The different comments of a text."""
    return {found for _, _, found in map(_split, data.split(b"\n")) if found}


def wanted(base: bytes, sides: Mapping[str, bytes]) -> dict[str, Set[bytes]]:
    """The comments that a merged text should have: those of the base that nobody removed ("(base)"), and those that
    each agent added."""
    old, new = comments(base), {agent: comments(side) for agent, side in sides.items()}
    return {"(base)": old.intersection(*new.values()), **{agent: found - old for agent, found in new.items()}}


def lacking(text: bytes, asked: Mapping[str, Set[bytes]]) -> dict[str, str]:
    """What a text has not of the wanted comments, by agent."""
    here = comments(text)
    missing = {agent: b"\n".join(sorted(found - here)).decode() for agent, found in asked.items()}
    return {agent: found for agent, found in missing.items() if found}


def transplanted(target: bytes, base: bytes, sides: Mapping[str, bytes], asked: Mapping[str, Set[bytes]]) -> bytes:
    """`target` with the wanted comments that it lacks, beside or above the lines where they stood in their versions.

    One beside a line may take the place of the base's; different ones of several agents for one line are left out.
    """
    old, here = comments(base), comments(target)
    lines = target.split(b"\n")
    names = [_name(_split(line)[0]) for line in lines]
    end = b"\r" if b"\r\n" in target else b""
    above: dict[int, dict[bytes, None]] = {}
    beside: dict[int, dict[bytes, bytes]] = {}
    for agent, found in asked.items():
        source = list(map(_split, sides.get(agent, base).split(b"\n")))
        standing = {comment for _, _, comment in source}
        counterpart = _aligned([_name(code) for code, _, _ in source], names)
        for at, (code, gap, comment) in enumerate(source):
            if comment not in found or comment in here:
                continue
            there = counterpart.get(at) if code.strip() else None
            has = _split(lines[there])[2] if there is not None else b""
            if there is not None and (not has or has not in standing):
                beside.setdefault(there, {})[comment] = gap
                continue
            following = min((line for own, line in counterpart.items() if own >= at), default=len(lines) - 1)
            indent = code[: len(code) - len(code.lstrip())] if code.strip() else gap
            above.setdefault(following, {})[indent + comment + end] = None
    for there, versions in beside.items():
        code, space, has = _split(lines[there])
        if len(versions) == 1 and (not has or has in old):
            ((comment, gap),) = versions.items()
            lines[there] = code + (space if has else gap) + comment + end
    for at in sorted(above, reverse=True):
        lines[at:at] = above[at]
    return b"\n".join(lines)


def _split(line: bytes) -> tuple[bytes, bytes, bytes]:
    """(what comes before, the space between, the comment) of one line."""
    line = line.rstrip(b"\r")
    found = _START.search(_TEXTS.sub(lambda text: b"x" * len(text[0]), line))
    if found is None:
        return line, b"", b""
    before = line[: found.start()]
    code = before.rstrip()
    return code, before[len(code) :], line[found.start() :].rstrip()


def _name(code: bytes) -> bytes:
    """What says which line it is, when its value changes: the key, the table, the element."""
    text = code.strip()
    found = _NAME.match(text)
    return found[0] if found and found[0][-1:] in (b":", b"=") else text


def _aligned(source: list[bytes], target: list[bytes]) -> dict[int, int]:
    """Which line of the target is which of the source; blank lines and lines of comments alone are none."""
    ours, theirs = ([at for at, name in enumerate(names) if name] for names in (source, target))
    matcher = SequenceMatcher(None, [source[at] for at in ours], [target[at] for at in theirs], autojunk=False)
    return {
        ours[block.a + k]: theirs[block.b + k] for block in matcher.get_matching_blocks() for k in range(block.size)
    }
