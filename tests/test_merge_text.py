"""Merging lines, logs and bytes."""

from __future__ import annotations

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
