"""Merging lines, logs and bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.merge import MISSING, Conflict, Merged, Options, merge


def merged(strategy: str, base: bytes | None, *sides: bytes | None, **options: object) -> Merged:
    named = {f"agent{number}": side for number, side in enumerate(sides)}
    return merge(strategy, base, named, Options(resource="notes.md", **options))  # type: ignore[arg-type]


BASE = b"one\ntwo\nthree\nfour\nfive\nsix\n"


@pytest.mark.parametrize("strategy", ["text", "union"])
@pytest.mark.parametrize(
    ("base", "sides", "result"),
    [
        (BASE, [BASE.replace(b"one", b"ONE"), BASE.replace(b"six", b"SIX")], b"ONE\ntwo\nthree\nfour\nfive\nSIX\n"),
        (BASE, [BASE.replace(b"two\n", b""), BASE.replace(b"five", b"V")], b"one\nthree\nfour\nV\nsix\n"),
        (BASE, [BASE + b"a\n", BASE + b"b\n", BASE + b"c\n"], BASE + b"a\nb\nc\n"),
        (BASE, [BASE + b"a\n", BASE + b"a\n"], BASE + b"a\n"),
        (BASE, [BASE.replace(b"one", b"ONE") + b"a\n", BASE + b"b\n"], BASE.replace(b"one", b"ONE") + b"a\nb\n"),
        (b"x\n", [b"x\na", b"x\nb\n"], b"x\na\nb\n"),
        (b"x\n", [b"x\na", b"x\nb"], b"x\na\nb"),
        (b"x", [b"x\na", b"x\nb"], b"x\na\nb"),
        (b"x", [b"x\na\n", b"x\nb"], b"x\na\nb\n"),
        (b"x\r\ny", [b"x\r\ny\r\na", b"x\r\ny\r\nb\r\n"], b"x\r\ny\r\na\r\nb\r\n"),
        (b"x\r\ny", [b"X\r\ny", b"x\r\ny\r\na"], b"X\r\ny\r\na"),
        (b"x\r\ny", [b"x\r\nY", b"x\r\ny\r\na"], None),
        (b"x\r\n\r\ny", [b"X\r\n\r\ny", b"x\r\n\r\ny\r\na"], b"X\r\n\r\ny\r\na"),
        (b"one\ntwo\nthree\n", [b"ONE\ntwo\nthree\n", b"one\ntwo\nthree"], b"ONE\ntwo\nthree"),
        (
            b"a\x0cb\nm\nc\xe2\x80\xa8d\n",
            [b"A\x0cb\nm\nc\xe2\x80\xa8d\n", b"a\x0cb\nm\nC\xe2\x80\xa8d\n"],
            b"A\x0cb\nm\nC\xe2\x80\xa8d\n",
        ),
        (b"\xff\nm\nn\n", [b"\xfe\nm\nn\n", b"\xff\nm\nN\n"], b"\xfe\nm\nN\n"),
        (b"b\n\n", [b"b\n\n\n", b"a\nb\n\n\n"], b"a\nb\n\n\n"),  # both added one blank line, wherever it is seen
        (None, [b"a\n", b"b\n"], b"a\nb\n"),
        (b"", [b"a\n", b"b\n"], b"a\nb\n"),
    ],
)
def test_clean(strategy: str, base: bytes | None, sides: list[bytes], result: bytes | None) -> None:
    outcome = merged(strategy, base, *sides)
    assert (bool(outcome.conflicts), outcome.value) == ((False, result) if result is not None else (True, base))


def test_touching_changes_that_differ_conflict_and_the_base_stays() -> None:
    outcome = merged("text", BASE, BASE.replace(b"two\nthree", b"2\n3"), BASE.replace(b"three", b"III") + b"end\n")
    assert outcome.value == BASE + b"end\n"
    assert outcome.conflicts == (
        Conflict(
            "notes.md",
            "lines 2-3",
            "two\nthree\n",
            {"agent0": "2\n3\n", "agent1": "two\nIII\n"},
            "changed the same lines differently",
        ),
    )
    assert outcome.changes == {"agent0": 2, "agent1": 2}


def test_every_conflict_is_found_in_one_pass() -> None:
    outcome = merged("text", BASE, b"1\ntwo\nthree\nfour\nfive\n6\n", b"I\ntwo\nthree\nfour\nfive\nVI\n")
    assert [conflict.path for conflict in outcome.conflicts] == ["line 1", "line 6"]
    assert outcome.value == BASE


def test_insertions_at_one_point_conflict_but_not_for_union() -> None:
    sides = [BASE.replace(b"two\n", b"two\n" + new) for new in (b"x\n", b"y\n")]
    outcome = merged("text", BASE, *sides)
    assert outcome.value == BASE
    assert [conflict.path for conflict in outcome.conflicts] == ["line 3"]
    assert merged("union", BASE, *sides).value == BASE.replace(b"two\n", b"two\nx\ny\n")


def test_a_conflict_at_the_end_keeps_the_end_of_the_base() -> None:
    assert merged("text", b"m\nx", b"m\na\n", b"m\nb\n").value == b"m\nx"


@pytest.mark.parametrize(
    ("answer", "result"), [("2 and II\n", b"2 and II"), (b"2 and II", b"2 and II"), (MISSING, None)]
)
def test_the_resolver_is_asked_about_the_conflict_only(answer: object, result: bytes | None) -> None:
    asked: list[Conflict] = []

    def resolve(conflict: Conflict) -> object:
        asked.append(conflict)
        return answer

    outcome = merged("text", BASE, BASE.replace(b"two", b"2"), BASE.replace(b"two", b"II") + b"end\n", resolve=resolve)
    assert not outcome.conflicts
    assert outcome.value == (BASE.replace(b"two", result) if result else BASE.replace(b"two\n", b"")) + b"end\n"
    assert [conflict.path for conflict in asked] == ["line 2"]


def test_nul_bytes_are_not_text() -> None:
    outcome = merged("text", "a\nb\n".encode("utf-16"), "A\nb\n".encode("utf-16"), "a\nB\n".encode("utf-16"))
    assert [conflict.path for conflict in outcome.conflicts] == [""]
    assert outcome.value == "a\nb\n".encode("utf-16")


def test_markers_in_the_content_are_only_content() -> None:
    marked = b"<<<<<<< ours\n" + BASE + b">>>>>>> theirs\n"
    outcome = merged("text", marked, marked.replace(b"one", b"1"), marked.replace(b"six", b"6"))
    assert not outcome.conflicts
    assert outcome.value == marked.replace(b"one", b"1").replace(b"six", b"6")


@pytest.mark.parametrize(
    ("base", "sides", "result"),
    [
        (b"x\n", [b"x\na\n", b"x\nb\n"], b"x\na\nb\n"),
        (b"x\n", [b"x\na\n", b"x\na\n"], b"x\na\na\n"),
        (b"x\n", [b"x\na", b"x\nb"], b"x\na\nb"),
        (b"x", [b"x\na", b"x\nb"], b"x\na\nb"),
        (b"x", [b"x\na\n", b"x\nb\n"], b"x\na\nb\n"),
        (b"x\r\n", [b"x\r\na", b"x\r\nb"], b"x\r\na\r\nb"),
        (None, [b"a\n", b"b\n"], b"a\nb\n"),
        (b"x\n", [b"x\n\na\n", b"x\n\nb\n"], b"x\n\na\n\nb\n"),
        (b"xx"[:1], [b"xx", b"xy"], b"xx\ny"),  # an addition that equals the base is not the base
        (None, [b"x", b""], b"x"),
    ],
)
def test_append(base: bytes | None, sides: list[bytes], result: bytes) -> None:
    outcome = merged("append", base, *sides)
    assert (outcome.value, outcome.conflicts) == (result, ())


def test_append_refuses_rewritten_history() -> None:
    outcome = merged("append", b"x\ny\n", b"x\ny\nz\n", b"y\n")
    assert outcome.value == b"x\ny\n"
    assert "agent1 changed what was there" in outcome.conflicts[0].reason
    assert outcome.conflicts[0].sides == {"agent0": b"x\ny\nz\n", "agent1": b"y\n"}


def test_binary() -> None:
    assert merged("binary", b"0", b"1", b"1").value == b"1"
    outcome = merged("binary", b"0", b"1", b"2")
    assert (outcome.value, outcome.conflicts[0].sides) == (b"0", {"agent0": b"1", "agent1": b"2"})
    assert merged("binary", None, b"1", b"2").conflicts[0].base is MISSING


LINES = st.sampled_from([b"a", b"b", b"c", b"}", b"", b"d\r"])


@st.composite
def edited(draw: st.DrawFn, base: list[bytes]) -> list[bytes]:
    out = list(base)
    for _ in range(draw(st.integers(0, 3))):
        lo = draw(st.integers(0, len(out)))
        hi = min(len(out), lo + draw(st.integers(0, 2)))
        out[lo:hi] = draw(st.lists(LINES, max_size=2))
    return out


@st.composite
def cases(draw: st.DrawFn, most: int = 3) -> tuple[bytes, dict[str, bytes]]:
    base = draw(st.lists(LINES, max_size=10))
    end = st.sampled_from([b"\n", b""])

    def joined(lines: list[bytes]) -> bytes:
        return b"\n".join(lines) + (draw(end) if lines else b"")

    return joined(base), {f"a{number}": joined(draw(edited(base))) for number in range(draw(st.integers(1, most)))}


def said(outcome: Merged) -> list[object]:
    return sorted((c.path, str(c.base), tuple(sorted(c.sides.items()))) for c in outcome.conflicts)  # type: ignore[type-var]


def plain(data: bytes) -> list[bytes]:
    """The lines, whatever they end with: who wrote the last one decides that, and CR is added to a last line."""
    return data.replace(b"\r", b"").removesuffix(b"\n").split(b"\n")


def check_text(base: bytes, sides: dict[str, bytes], strategy: str) -> None:
    outcome = merge(strategy, base, sides)
    turned = merge(strategy, base, dict(reversed(sides.items())))
    assert said(outcome) == said(turned)
    assert sorted(plain(outcome.value)) == sorted(plain(turned.value))
    doubled = merge(strategy, base, {**sides, **{name + "'": side for name, side in sides.items()}})
    assert bool(doubled.conflicts) == bool(outcome.conflicts)
    assert doubled.value == outcome.value
    kept = set(outcome.value.replace(b"\r", b"").split(b"\n"))
    for conflict in outcome.conflicts:
        for text in conflict.sides.values():
            kept |= set(str(text).encode().replace(b"\r", b"").split(b"\n"))
    for name, side in sides.items():
        added = set(side.replace(b"\r", b"").split(b"\n")) - set(base.replace(b"\r", b"").split(b"\n"))
        assert added <= kept, name


@given(cases(), st.sampled_from(["text", "union"]))
@settings(max_examples=400, deadline=None)
def test_the_algebra_of_lines(case: tuple[bytes, dict[str, bytes]], strategy: str) -> None:
    check_text(*case, strategy)


@pytest.mark.soak
@given(cases(), st.sampled_from(["text", "union"]))
@settings(max_examples=20_000, deadline=None)
def test_the_algebra_of_lines_at_length(case: tuple[bytes, dict[str, bytes]], strategy: str) -> None:
    check_text(*case, strategy)


@st.composite
def marked(draw: st.DrawFn) -> tuple[bytes, dict[str, bytes]]:
    """Three sides that never write the same line, over a base in which no line repeats: one reading of every edit."""
    base = [b"line %d" % number for number in range(draw(st.integers(0, 10)))]
    sides = {}
    for agent in (b"x", b"y", b"z"):
        out = list(base)
        for number in range(draw(st.integers(1, 2))):
            lo = draw(st.integers(0, len(out)))
            out[lo : lo + draw(st.integers(0, 2))] = [agent + b"%d" % number] * draw(st.integers(0, 2))
        sides[agent.decode()] = b"".join(line + b"\n" for line in out)
    return b"".join(line + b"\n" for line in base), sides


def check_associative(case: tuple[bytes, dict[str, bytes]], strategy: str) -> None:
    base, sides = case
    outcome = merge(strategy, base, sides)
    (x, first), (y, second), (z, third) = sides.items()
    pair = merge(strategy, base, {x: first, y: second})
    if not outcome.conflicts:
        assert not pair.conflicts
        folded = merge(strategy, base, {x: pair.value, z: third})
        assert not folded.conflicts
        assert sorted(plain(folded.value)) == sorted(plain(outcome.value))


@given(marked(), st.sampled_from(["text", "union"]))
@settings(max_examples=300, deadline=None)
def test_three_at_once_are_two_and_then_one(case: tuple[bytes, dict[str, bytes]], strategy: str) -> None:
    check_associative(case, strategy)


@pytest.mark.soak
@given(marked(), st.sampled_from(["text", "union"]))
@settings(max_examples=20_000, deadline=None)
def test_three_at_once_are_two_and_then_one_at_length(case: tuple[bytes, dict[str, bytes]], strategy: str) -> None:
    check_associative(case, strategy)


@given(st.binary(max_size=20), st.lists(st.binary(min_size=1, max_size=20), min_size=2, max_size=4))
@settings(max_examples=300, deadline=None)
def test_append_keeps_every_addition_in_order(base: bytes, added: list[bytes]) -> None:
    outcome = merge("append", base, {f"a{number}": base + tail for number, tail in enumerate(added)})
    assert not outcome.conflicts
    assert outcome.value.startswith(base)
    at = len(base)
    for tail in added:
        core = tail.strip(b"\r\n")
        at = outcome.value.index(core, at) + len(core)
    assert outcome.changes.keys() == {f"a{number}" for number in range(len(added))}


def git_merge(folder: Path, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    for name, data in (("base", base), ("ours", ours), ("theirs", theirs)):
        (folder / name).write_bytes(data)
    command = ["git", "merge-file", "-p", "--diff3", "ours", "base", "theirs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def against_git(folder: Path, cases: int, seed: int) -> None:
    """Equal where both are clean, and a conflict where git has none in at most one case of a hundred.

    Where nearly every line repeats, an edit has several readings and git may take another one, with another clean
    result: in at most one case of a thousand, which for a short run means never. All texts end with a newline: git
    takes a last line without one for another line.
    """
    dice = random.Random(seed)

    def edit(lines: list[str], words: list[str]) -> list[str]:
        out = list(lines)
        for _ in range(dice.randint(0, 3)):
            lo = dice.randint(0, len(out))
            out[lo : lo + dice.randint(0, 2)] = [dice.choice(words) for _ in range(dice.randint(0, 2))]
        return out

    both = different = stricter = 0
    for _ in range(cases):
        words = [*(f"line {number}" for number in range(dice.choice([4, 15, 60]))), "", "}"]
        lines = [dice.choice(words) for _ in range(dice.choice([5, 12, 30]))]
        base, ours, theirs = (
            "".join(line + "\n" for line in text).encode() for text in (lines, edit(lines, words), edit(lines, words))
        )
        outcome = merge("text", base, {"ours": ours, "theirs": theirs})
        git = git_merge(folder, base, ours, theirs)
        if git is not None and not outcome.conflicts:
            both += 1
            different += outcome.value != git
        stricter += git is not None and bool(outcome.conflicts)
    assert both > cases / 2
    assert different <= both / 1000
    assert stricter <= cases / 100


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="compares with git merge-file")


@needs_git
def test_equal_to_git_where_both_are_clean(tmp_path: Path) -> None:
    against_git(tmp_path, 300, seed=1)


@needs_git
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_equal_to_git_at_length(tmp_path: Path) -> None:
    against_git(tmp_path, 20_000, seed=2)
