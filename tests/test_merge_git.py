"""Merging texts beside git: nearly always the same differences, the same clean merges, conflicts at the same places."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from texts_support import Wild

from agentguard.merge import merge
from agentguard.merge.lines import hunks

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="compares with git, which is not installed")

MARKS = 40
ADDITIONS = re.compile(
    rb"<{%d} ours\r?\n(.*)\|{%d} base\r?\n={%d}\r?\n(.*)>{%d} theirs\r?\n\Z" % ((MARKS,) * 4), re.DOTALL
)


def git_merge(folder: Path, case: Wild, *options: str) -> tuple[bytes, bool]:
    """What git prints, and whether it is clean."""
    for name, data in zip(("base", "ours", "theirs"), (case.base, *case.sides), strict=True):
        (folder / name).write_bytes(data)
    command = ["git", "merge-file", "-p", *options, "ours", "base", "theirs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode < 128, done.stderr
    return done.stdout, done.returncode == 0


def documented(folder: Path, case: Wild) -> bytes | None:
    """git's merge by the two rules in which a merge here is kinder than git's; None: a conflict.

    A newline at the end is merged apart from the lines: git sees all texts with one. And different additions after the
    last line of the base are all kept: a conflict of git about nothing at the end becomes both sides.
    """
    whole = case.closed()
    merged, clean = git_merge(folder, whole)
    if clean:
        return merged
    marked, _ = git_merge(folder, whole, "--diff3", f"--marker-size={MARKS}")
    return ADDITIONS.sub(rb"\1\2", marked) if ADDITIONS.search(marked) and marked.count(b"<" * MARKS) == 1 else None


def bare(text: bytes | None) -> bytes | None:
    return text and text.removesuffix(b"\n").removesuffix(b"\r")


def outcome(folder: Path, case: Wild) -> str:
    merged = merge("text", case.base, dict(zip(("ours", "theirs"), case.sides, strict=True)))
    git, clean = git_merge(folder, case)
    if merged.conflicts:
        return "a conflict here only" if clean else "a conflict for both"
    if clean and merged.value == git:
        return "equal"
    # git drops a line here that somebody added: "x", of one side the last line without a newline, is for git another
    # line than "x" with one, so it can take the two additions for one.
    if bare(merged.value) == bare(documented(folder, case)):
        ends = {text.endswith(b"\n") or not text for text in case.sides}
        assert len(ends) == 2 or merged.value.endswith(b"\n") in ends or not merged.value
        return "clean by a rule" if not clean else "different by a rule"
    return "different" if clean else "a conflict for git only"


def compare(folder: Path, seeds: range) -> None:
    """Nothing differs where both are clean (but for one of 10,000), and at most one case of a hundred is a conflict
    for one of the two only.

    What the documented rules explain is counted apart: a clean merge here where git has a conflict, and, if a last line
    has no newline, another clean merge (in at most one case of a thousand: it takes lines that repeat).
    """
    found: dict[str, list[int]] = {}
    for seed in seeds:
        dice = random.Random(seed)
        found.setdefault(outcome(folder, Wild.of(dice, 2, most=dice.choice([3, 3, 8]))), []).append(seed)
    print({name: len(seen) for name, seen in found.items()})
    assert len(found["equal"]) > len(seeds) / 3
    # Among lines that repeat git may take an edit that is not the shortest, and so put an insertion elsewhere.
    assert len(found.get("different", ())) <= len(seeds) // 10_000, f"seeds {found['different'][:5]}"
    assert len(found.get("different by a rule", ())) <= len(seeds) / 1000
    alone = found.get("a conflict here only", []) + found.get("a conflict for git only", [])
    assert len(alone) <= len(seeds) / 100, f"{found.keys()}, seeds {alone[:5]}"


def test_equal_to_git_where_both_are_clean(tmp_path: Path) -> None:
    compare(tmp_path, range(500))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_equal_to_git_at_length(tmp_path: Path) -> None:
    compare(tmp_path, range(1000, 21_000))


def git_hunks(folder: Path, cases: list[Wild]) -> list[list[tuple[int, int, list[bytes]]]]:
    """What git's diff finds, for all cases in one process."""
    for name, pick in (("a", lambda case: case.base), ("b", lambda case: case.sides[0])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(cases):
            (folder / name / f"{number:06}").write_bytes(pick(case))
    command = [
        "git",
        "-c",
        "core.autocrlf=false",
        "diff",
        "--no-index",
        "--no-indent-heuristic",
        "--no-color",
        "--text",
    ]
    command += ["--diff-algorithm=myers", "--unified=100000", "a", "b"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found: list[list[tuple[int, int, list[bytes]]]] = [[] for _ in cases]
    for part in done.stdout.split(b"diff --git a/a/")[1:]:
        mine = found[int(part[:6])]
        _, _, body = part.partition(b"@@ ")
        at, changed = 0, False
        for line in body.split(b"\n")[1:-1]:
            if line[:1] == b" ":
                at, changed = at + 1, False
                continue
            lo, hi, new = mine.pop() if changed else (at, at, [])
            changed = True
            if line[:1] == b"-":
                at += 1
                mine.append((lo, at, new))
            else:
                mine.append((lo, hi, [*new, line[1:]]))
    return found


def other_differences(folder: Path, seeds: range, most: int) -> list[int]:
    """The seeds for which git's diff reads an edit in another way."""
    cases = [Wild.of(random.Random(seed), 1, most=most, closed=True) for seed in seeds]
    return [
        seed
        for seed, case, git in zip(seeds, cases, git_hunks(folder, cases), strict=True)
        if hunks(case.base.split(b"\n")[:-1], case.sides[0].split(b"\n")[:-1]) != git
    ]


@pytest.mark.parametrize("most", [3, 20])
def test_differences_are_those_of_git(tmp_path: Path, most: int) -> None:
    """But for a few among many edits of lines that repeat, where git takes a longer one."""
    other = other_differences(tmp_path, range(1000), most)
    assert len(other) <= 50, f"seeds {other[:5]}"


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("most", [3, 8, 20])
def test_differences_are_those_of_git_at_length(tmp_path: Path, most: int) -> None:
    other: list[int] = []
    for start in range(1000, 21_000, 1000):
        other += other_differences(tmp_path / str(start), range(start, start + 1000), most)
    assert len(other) <= 1000, f"seeds {other[:5]}"


def long_case(dice: random.Random) -> Wild:
    """Two agents who work on a long source text: blocks changed, deleted, copied and moved, each on its own side of a
    line that stays."""
    names = count()
    usual = [b"", b"    return None", b"    }", b"        pass", b"    try:", b'    """'] * 2
    base = []
    while len(base) < 3000:
        base += [b"def function_%d():" % next(names), *dice.choices(usual, k=dice.randint(1, 9))]
    stretches = [base[at : at + 100] for at in range(0, 3000, 100)]

    def worked(agent: int) -> bytes:
        out: list[bytes] = []
        for number, stretch in enumerate(stretches):
            part = list(stretch)
            at, size = dice.randint(2, 40), dice.randint(1, 25)
            block = part[at : at + size]
            if number % 2 == agent:
                match dice.randint(0, 4):
                    case 0:
                        part[at] += b" # %d" % agent
                    case 1:
                        del part[at : at + size]
                    case 2:
                        part[at:at] = [line.replace(b"function", b"copy") for line in dice.choice(stretches)[:size]]
                    case 3:
                        del part[at : at + size]
                        part[50:50] = block
                    case _:
                        part[at : at + size] = dice.choices(usual, k=dice.randint(1, 9))
            out += part
        return b"".join(line + b"\n" for line in out)

    return Wild("\n", b"".join(line + b"\n" for line in base), [worked(0), worked(1)])


def compare_long(folder: Path, seeds: range) -> None:
    seen = Counter(outcome(folder, long_case(random.Random(seed))) for seed in seeds)
    print(dict(seen))
    assert seen["equal"] > len(seeds) / 2
    assert seen.keys() <= {"equal", "a conflict for both", "a conflict here only", "a conflict for git only"}
    assert seen["a conflict here only"] + seen["a conflict for git only"] <= len(seeds) / 100


def test_long_texts_are_merged_as_by_git(tmp_path: Path) -> None:
    compare_long(tmp_path, range(100))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_long_texts_are_merged_as_by_git_at_length(tmp_path: Path) -> None:
    compare_long(tmp_path, range(1000, 4000))
