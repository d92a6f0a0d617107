"""Logs: each record once by its id, and big ones in constant memory with the very same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard import Guard, Identity, MergeConflict, join, logfiles
from agentguard.exceptions import ConfigError
from agentguard.logfiles import concatenate
from agentguard.merge import MISSING, Conflict, Merged, Options, merge
from agentguard.merge.values import canon

# -- append:KEY ---


def line(id: object, value: object = 0) -> bytes:
    return json.dumps({"id": id, "v": value}).encode() + b"\n"


BASE = line(1) + line("a")


def once(base: bytes | None, *sides: bytes | None, **options: Any) -> Merged:
    return merge("append:id", base, {f"a{n}": side for n, side in enumerate(sides)}, Options("r", **options))


@pytest.mark.parametrize(
    ("base", "added", "result"),
    [
        (BASE, [line(2), line(3)], line(2) + line(3)),
        (BASE, [line(2), line(2)], line(2)),
        (BASE, [line(2) + line(3), line(3) + line(4), line(4) + line(2)], line(2) + line(3) + line(4)),
        (BASE, [line(1), line(2)], line(2)),
        (BASE, [line("a"), line(1)], b""),
        (BASE, [line(1) + line(2)], line(2)),  # one agent, who did his work once more
        (BASE, [line(2) + line(2), line(3)], line(2) + line(3)),
        (BASE, [line(2), b'{"v":0,"id":2}'], line(2)),  # equal as values
        (BASE, [line("1"), line(2)], line("1") + line(2)),  # a text is no number
        (BASE, [line(2**70), line(2**70), line(2**70 + 1)], line(2**70) + line(2**70 + 1)),
        (line(2**70), [line(2**70), line(2)], line(2)),
        (b"\xef\xbb\xbf" + line(1), [line(1), line(2)], line(2)),
        (BASE, [b"noise\n", b"noise\n"], b"noise\nnoise\n"),
        (BASE, [b'{"v": 1}\n[1]\n', b'{"id": null}\n{"id": 1.5}\n'], b'{"v": 1}\n[1]\n{"id": null}\n{"id": 1.5}\n'),
        (BASE, [b'{"id": 2, "id": 2}\n', b'{"id": NaN}\n'], b'{"id": 2, "id": 2}\n{"id": NaN}\n'),
        (BASE, [line(2)[:-1], line(3)[:-1]], line(2) + line(3)[:-1]),
        (BASE[:-1], [b"\n" + line(2), b"\n" + line(3)], b"\n" + line(2) + line(3)),
        (BASE[:-1], [b"\n" + line(1), b"\n" + line(1)], b""),
        (BASE[:-1], [b"\n" + line(1), b"\n" + line(3)], b"\n" + line(3)),
        (BASE[:-1], [b" \n" + line(1)[:-1], b"\n" + line(3)], b" \n" + line(3)),
        (None, [line(1), line(1) + line(2)], line(1) + line(2)),
        (b'{"id": 1}\r\n', [b'{"id": 2}\r\n', b'{"id": 2}', b'{"id": 3}'], b'{"id": 2}\r\n{"id": 3}'),
    ],
)
def test_each_record_is_added_once(base: bytes | None, added: list[bytes], result: bytes) -> None:
    outcome = once(base, *((base or b"") + new for new in added))
    assert (outcome.value, outcome.conflicts) == ((base or b"") + result, ())


def test_one_id_and_different_records_are_a_conflict() -> None:
    outcome = once(BASE, BASE + line(1, 5) + line(2, 1) + line(3), BASE + line(2, 2) + line(4), BASE + line(2, 1))
    assert outcome.value == BASE + line(3) + line(4)
    assert outcome.conflicts == (
        Conflict("r", "/1", {"id": 1, "v": 0}, {"a0": {"id": 1, "v": 5}}, "added again with other content"),
        Conflict(
            "r",
            "/2",
            MISSING,
            {"a0": {"id": 2, "v": 1}, "a1": {"id": 2, "v": 2}, "a2": {"id": 2, "v": 1}},
            "added with different contents",
        ),
    )
    assert outcome.changes == {"a0": 3, "a1": 2, "a2": 1}


def test_values_are_compared_strictly() -> None:
    assert [c.path for c in once(BASE, BASE + line(2, 1), BASE + line(2, 1.0)).conflicts] == ["/2"]
    assert [c.path for c in once(BASE, BASE + line(1, False), BASE + line(3)).conflicts] == ["/1"]


def test_one_agent_with_two_records_of_one_id() -> None:
    outcome = once(BASE, BASE + line("a/b", 1) + line("a/b", 2), BASE + line(3))
    assert outcome.value == BASE + line(3)
    assert [(c.path, c.sides) for c in outcome.conflicts] == [
        ("/a~1b", {"a0": [{"id": "a/b", "v": 1}, {"id": "a/b", "v": 2}]})
    ]


def test_rewritten_history_is_a_conflict_as_for_append() -> None:
    sides = {"x": BASE + line(2), "y": line(9)}
    assert merge("append:id", BASE, sides) == merge("append", BASE, sides)
    assert merge("append:id", BASE, {"y": line(9)}).value == line(9)


@pytest.mark.parametrize(
    ("answer", "added"),
    [
        ({"id": 2, "v": 2}, line(2, 2)),
        ({"id": 2, "v": 9}, line(2, 9)),
        (MISSING, b""),
    ],
)
def test_the_resolver_gives_a_record(answer: object, added: bytes) -> None:
    sides = [BASE + line(2, 1) + line(3), BASE + line(4) + line(2, 2)[:-1]]
    outcome = once(BASE, *sides, resolve=lambda conflict: answer)
    assert (outcome.value, outcome.conflicts) == (BASE + added + line(3) + line(4), ())


@pytest.mark.parametrize("answer", [None, "x", {"id": float("nan")}])
def test_the_resolver_gives_something_else(answer: object) -> None:
    with pytest.raises(ConfigError, match="return a record"):
        once(BASE, BASE + line(2, 1), BASE + line(2, 2), resolve=lambda conflict: answer)


IDS = st.sampled_from([1, 2, 3, "a", "1"])
LOGS = st.lists(
    st.one_of(st.builds(line, IDS, st.integers(0, 1)), st.builds(line, st.integers(4, 99))), max_size=4
).map(b"".join)
OPEN = st.sampled_from([b"", b"\n", b'{"n": 0}', b"\r\n"])


def check_records(base: bytes, added: list[bytes]) -> None:
    start = b"\n" if base and not base.endswith(b"\n") else b""
    sides = {f"a{n}": base + (start + new if new else b"") for n, new in enumerate(added)}
    outcome = merge("append:id", base, sides)
    assert outcome.value.startswith(base)
    again = merge("append:id", base, {"now": outcome.value, **sides})
    assert again.value == outcome.value
    assert [c.path for c in again.conflicts] == [c.path for c in outcome.conflicts]
    later = merge("append:id", outcome.value, {n: outcome.value + side[len(base) :] for n, side in sides.items()})
    assert later.value == outcome.value
    if len(sides) > 2 and not outcome.conflicts:  # two first and the third later
        *others, last = sides
        pair = merge("append:id", base, {name: sides[name] for name in others})
        assert not pair.conflicts
        assert merge("append:id", base, {"pair": pair.value, last: sides[last]}).value == outcome.value
    twice = merge("append:id", base, {**sides, **{f"{name}'": side for name, side in sides.items()}, "idle": base})
    assert twice.value == outcome.value
    assert [c.path for c in twice.conflicts] == [c.path for c in outcome.conflicts]
    turned = merge("append:id", base, dict(reversed(sides.items())))
    assert sorted(turned.value.split(b"\n")) == sorted(outcome.value.split(b"\n"))
    assert sorted(c.path for c in turned.conflicts) == sorted(c.path for c in outcome.conflicts)

    def records(data: bytes) -> list[bytes]:
        return [canon(json.loads(text)) for text in data.split(b"\n") if text]

    def by_id(data: bytes) -> dict[bytes, set[bytes]]:
        found: dict[bytes, set[bytes]] = {}
        for text in filter(None, data.split(b"\n")):
            found.setdefault(canon(json.loads(text)["id"]), set()).add(canon(json.loads(text)))
        return found

    # A conflict exactly where one id stands for different records, those of the base that nobody added to left aside.
    meant, had = [by_id(side[len(base) :]) for side in sides.values()], by_id(base)
    clashes = [
        name
        for name in {name for side in meant for name in side}
        if len(set().union(had.get(name, ()), *(side.get(name, ()) for side in meant))) > 1
        and set().union(*(side.get(name, ()) for side in meant)) - had.get(name, set())
    ]
    assert sorted(c.path for c in outcome.conflicts) == sorted(f"/{json.loads(name)}" for name in clashes)
    kept = set(records(outcome.value))
    for conflict in outcome.conflicts:
        for side in conflict.sides.values():
            kept |= {canon(one) for one in (side if type(side) is list else [side])}
    new = records(outcome.value[len(base) :])
    assert len(new) == len(set(new))
    for side in sides.values():
        assert set(records(side)) <= kept


@given(LOGS, st.lists(LOGS, min_size=1, max_size=3), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_algebra_of_records(base: bytes, added: list[bytes], closed: bool) -> None:
    check_records(base if closed else base.removesuffix(b"\n"), added)


@pytest.mark.soak
@pytest.mark.timeout(900)
@given(LOGS, st.lists(LOGS, min_size=1, max_size=3), st.booleans())
@settings(max_examples=20_000, deadline=None)
def test_the_algebra_of_records_at_length(base: bytes, added: list[bytes], closed: bool) -> None:
    check_records(base if closed else base.removesuffix(b"\n"), added)


# -- big files ---

ENDS = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", b"{}\n"]), max_size=6).map(b"".join)


def check_files(base: bytes | None, added: list[bytes], rewriter: bool) -> None:
    start = base or b""
    sides = {f"a{n}": start + new for n, new in enumerate(added)}
    if rewriter and start:
        sides["r"] = start[:-1] + b"!"
    expected = merge("append", base, sides)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, data in {**sides, **({"base": base} if base is not None else {})}.items():
            (folder / label).write_bytes(data)
        target = folder / "target"
        got = concatenate(
            folder / "base" if base is not None else None, {label: folder / label for label in sides}, target
        )
        if rewriter and start:
            assert got is None
            assert not target.exists()
            return
        assert got is not None
        assert target.read_bytes() == expected.value
        assert (got.size, got.changes) == (len(expected.value), expected.changes)


CASES = (st.none() | ENDS, st.lists(ENDS, min_size=1, max_size=4), st.sampled_from([False, False, False, True]))


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_files_merge_as_bytes_do(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfiles, "_BLOCK", block)
    monkeypatch.setattr(logfiles, "_MOST", 2)
    settings(max_examples=100, deadline=None)(given(*CASES)(check_files))()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_files_merge_as_bytes_do_at_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfiles, "_BLOCK", 3)
    settings(max_examples=20_000, deadline=None)(given(*CASES)(check_files))()


def test_blocks_of_big_files_are_put_together(tmp_path: Path) -> None:
    base = b"".join(b"record %07d\n" % number for number in range(200_000))[:-1]
    tails = [b"\n" + b"x" * 70_000 + b"\ny", b"\r\n" + b"z\n" * 600_000, b"\n\n", b"\ntail"]
    (tmp_path / "base").write_bytes(base)
    for number, tail in enumerate(tails):
        (tmp_path / str(number)).write_bytes(base + tail)
    expected = merge("append", base, {str(number): base + tail for number, tail in enumerate(tails)})
    files = {str(number): tmp_path / str(number) for number in range(4)}
    got = concatenate(tmp_path / "base", files, tmp_path / "out", copies=[tmp_path / "base"])
    assert got is not None
    assert (tmp_path / "out").read_bytes() == expected.value
    assert got.changes == expected.changes
    assert concatenate(tmp_path / "base", files, tmp_path / "no", copies=[tmp_path / "1"]) is None
    assert not (tmp_path / "no").exists()


# -- joins ---


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setattr(join, "LARGE", 100)
    (tmp_path / "run.log").write_bytes(b"start\n" * 40)
    return Guard(root=tmp_path, resources={"*": {"mode": "shard"}})


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the joins of a test put files together, one after the other."""
    found: list[bool] = []

    def spy(*arguments: Any, **named: Any) -> object:
        outcome = concatenate(*arguments, **named)
        found.append(outcome is not None)
        return outcome

    monkeypatch.setattr(join, "concatenate", spy)
    return found


def log(guard: Guard, agent: str, text: str, name: str = "run.log") -> None:
    with guard.agent(agent), guard.hold(updates=name) as hold, open(hold.path(name), "a") as file:
        file.write(text)


def test_a_big_log_is_joined_from_files(guard: Guard, streamed: list[bool]) -> None:
    target = guard.root / "run.log"
    os.chmod(target, 0o640)
    log(guard, "b", "b1\nb2\n")
    log(guard, "a", "a1\n")
    with open(target, "a") as file:
        file.write("editor\n")
    report = guard.join()
    assert streamed == [True]
    assert target.read_text() == "start\n" * 40 + "editor\na1\nb1\nb2\n"
    assert target.stat().st_mode & 0o777 == 0o640
    (one,) = report.resources
    assert (one.strategy, one.shards, one.changes, one.bytes) == ("append", 2, {"a": 1, "b": 2}, target.stat().st_size)
    assert not guard.join()
    assert guard.status().shards == ()


def test_a_big_log_that_several_agents_begin(guard: Guard, streamed: list[bool]) -> None:
    log(guard, "a", "a" * 80, "new.log")
    log(guard, "b", "b" * 80, "new.log")
    guard.join()
    assert (guard.root / "new.log").read_text() == "a" * 80 + "\n" + "b" * 80
    assert streamed == [True]


def test_shards_that_added_nothing_leave_the_file_alone(guard: Guard, streamed: list[bool]) -> None:
    before = os.stat(guard.root / "run.log")
    log(guard, "a", "")
    log(guard, "b", "")
    guard.join()
    after = os.stat(guard.root / "run.log")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert guard.status().shards == ()


def test_a_rewritten_big_log_is_the_conflict_that_it_always_was(guard: Guard, streamed: list[bool]) -> None:
    log(guard, "a", "a\n")
    log(guard, "b", "b\n")
    (guard.root / "run.log").write_text("begun anew\n" * 20)
    with pytest.raises(MergeConflict, match="changed what was there"):
        guard.join()
    assert streamed == [False]
    assert (guard.root / "run.log").read_text() == "begun anew\n" * 20
    assert len(guard.status().shards) == 2


def test_shards_of_different_bases_are_joined_in_memory(guard: Guard, streamed: list[bool]) -> None:
    log(guard, "a", "a\n")
    (guard.root / "run.log").write_text("start\n" * 41)
    log(guard, "b", "b\n")
    guard.join()
    assert streamed == [False]
    assert (guard.root / "run.log").read_text() == "start\n" * 41 + "a\nb\n"


def test_later_nodes_of_a_branch_are_joined_in_memory(guard: Guard, streamed: list[bool]) -> None:
    def step(name: str, parent: str | None) -> str:
        with guard.identified(Identity(name, "run", name, name, (name,), parent)):
            guard.update("run.log", lambda text: text + f"{name}\n")
            shard = guard.shards.close("run", name)
        assert shard is not None
        return shard.reference

    first = step("a1", None)
    guard.join(run="run", shards=[first, step("a2", first)])
    assert streamed == []
    assert (guard.root / "run.log").read_text() == "start\n" * 40 + "a1\na2\n"


@pytest.mark.parametrize("gone", ["ours", "current"])
def test_a_deleted_big_log(guard: Guard, streamed: list[bool], gone: str) -> None:
    log(guard, "a", "a\n")
    if gone == "current":
        (guard.root / "run.log").unlink()
    else:
        with guard.agent("b"), guard.hold(updates="run.log") as hold:
            hold.path("run.log").unlink()
    with pytest.raises(MergeConflict, match="deleted by"):
        guard.join()
    assert streamed == []


def test_records_by_id_are_joined(tmp_path: Path) -> None:
    guard = Guard(root=tmp_path, resources={"*.jsonl": {"mode": "shard", "merge": "append:id"}})
    (tmp_path / "x.jsonl").write_bytes(BASE)
    log(guard, "a", (line(1) + line(2)).decode(), "x.jsonl")
    log(guard, "b", (line(2) + line(3)).decode(), "x.jsonl")
    guard.join()
    assert (tmp_path / "x.jsonl").read_bytes() == BASE + line(2) + line(3)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_memory_that_a_big_join_needs_is_constant(tmp_path: Path) -> None:
    script = Path(__file__).parent / "benchmarks" / "bench_merge_logs.py"
    command = [sys.executable, str(script), "memory", str(tmp_path), "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, size = map(float, done.stdout.split())
    assert size > 300
    assert grown < 30
