"""What merging two shards costs, decoding and encoding included: `python tests/benchmarks/bench_merge.py`."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import orjson
from deepmerge import always_merger
from report import interleaved, median, publish, table

from agentguard.merge import Options, merge

COMMAND = "python tests/benchmarks/bench_merge.py"
Work = dict[str, Callable[[], object]]


def edited(lines: list[bytes], first: int) -> bytes:
    """One line in a thousand changed, beginning with `first`, and one added at the end."""
    made = list(lines)
    for at in range(first, len(lines), 1000):
        made[at] = made[at].rstrip(b"\n") + b" changed\n"
    return b"".join([*made, b"added by %d\n" % first])


def worked(lines: list[bytes], agent: int, agents: int) -> bytes:
    """What an agent makes of a file: in each of its own 20 stretches (they alternate with those of the others) lines
    changed, a block deleted, a block inserted that is like one elsewhere, or a block moved; and a block at the end."""
    rng = random.Random(agent)
    step = len(lines) // (20 * agents)
    made: list[bytes] = []
    for number in range(20 * agents):
        part = lines[number * step : (number + 1) * step if number < 20 * agents - 1 else len(lines)]
        if number % agents == agent:
            at, size = rng.randint(5, step // 2), rng.randint(3, 30)
            match rng.choice(["change", "change", "delete", "insert", "move"]):
                case "change":
                    for line in rng.sample(range(at, at + size), 3):
                        part[line] = part[line].rstrip(b"\n")[:40] + b" as agent %d says\n" % agent
                case "delete":
                    del part[at : at + size]
                case "insert":
                    like = rng.randint(0, len(lines) - size)
                    part[at:at] = [line.replace(b"e", b"%d" % agent) for line in lines[like : like + size]]
                case _:
                    block = part[at : at + size]
                    del part[at : at + size]
                    to = rng.randint(5, len(part) - 5)
                    part[to:to] = block
        made += part
    return b"".join([*made, *(b"added by agent %d: %d\n" % (agent, number) for number in range(20))])


def texts(folder: Path) -> Iterator[tuple[str, Work]]:
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3000)]
    prose = [(" ".join(rng.choices(words, k=rng.randint(8, 16))) + "\n").encode() for _ in range(14_000)]
    usual = ["return x", "}", "", "if a:", "pass", "x = 1"]
    code = [("    " * rng.randint(0, 4) + rng.choice(usual) + "\n").encode() for _ in range(80_000)]
    for at in range(0, len(code), 5):
        code[at] = b"def f%d():\n" % at
    manual = b"".join(f"{name}\n\n{said}\n\n".encode() for name, said in topics.items()).splitlines(keepends=True)
    sources = b"".join(file.read_bytes() for file in sorted(Path(os.__file__).parent.glob("*.py")))
    real = sources[: sources.index(b"\n", 1 << 20) + 1].splitlines(keepends=True)
    scattered = [edited(prose, first) for first in (100, 600)], [edited(code, first) for first in (100, 600)]
    for name, lines, shards in (
        ("text, 1 MB of prose, a line in 500 changed", prose, scattered[0]),
        ("text, 1 MB of code, a line in 500 changed", code, scattered[1]),
        ("text, 1 MB of prose, 42 edits", prose, [worked(prose, agent, 2) for agent in range(2)]),
        ("text, 1 MB of code, 42 edits", code, [worked(code, agent, 2) for agent in range(2)]),
        (
            f"text, {len(b''.join(manual)) / 1e6:.1f} MB: Python's manual, 42 edits",
            manual,
            [worked(manual, agent, 2) for agent in range(2)],
        ),
        ("text, 1 MB: Python's own library, 42 edits", real, [worked(real, agent, 2) for agent in range(2)]),
        ("text, 10 kB of prose, 3 edits", prose[:140], [edited(prose[:140], first) for first in (20, 90)]),
        (
            "text, 1 MB: Python's own library, 8 shards of 21 edits",
            real,
            [worked(real, agent, 8) for agent in range(8)],
        ),
    ):
        yield name, versions(folder, b"".join(lines), shards)


def versions(folder: Path, base: bytes, shards: list[bytes]) -> Work:
    """The merge of all shards, and what git needs for it: a process for every shard after the first."""
    sides = {f"agent {number}": shard for number, shard in enumerate(shards)}
    (folder / "base").write_bytes(base)
    for number, shard in enumerate(shards):
        (folder / f"{number}").write_bytes(shard)

    def git() -> bytes:
        merged = folder / "0"
        for number in range(1, len(shards)):
            command = [
                "git",
                "merge-file",
                "-p",
                "--union",
                str(merged),
                str(folder / "base"),
                str(folder / f"{number}"),
            ]
            done = subprocess.run(command, capture_output=True, check=False).stdout
            if number + 1 < len(shards):
                merged = folder / "merged"
                merged.write_bytes(done)
        return done

    work: Work = {"ours": lambda: merge("text", base, sides)}
    if shutil.which("git"):
        ours = merge("text", base, sides)
        if ours.conflicts or ours.value != git():
            raise SystemExit(f"git merges {len(shards)} shards of {len(base)} bytes to something else")
        work["git merge-file, a process" if len(shards) == 2 else f"git merge-file, {len(shards) - 1} processes"] = git
    return work


def stores() -> Iterator[tuple[str, Work]]:
    for count, peer in ((100_000, True), (1_000_000, False)):
        store: dict[str, Any] = {f"key {n}": {"name": f"item {n}", "n": n, "tags": ["a", "b"]} for n in range(count)}
        base = json.dumps(store).encode()
        sides = {}
        for name, first in (("one", 0), ("two", 50)):
            changed = {key: {**value, "n": -1} if value["n"] % 100 == first else value for key, value in store.items()}
            sides[name] = json.dumps(changed).encode()
        store.clear()

        def deepmerge(sides: dict[str, bytes] = sides) -> None:
            """The fastest of deepmerge, mergedeep, dictdiffer, jsonpatch and jsonmerge; it knows no base."""
            one, two = map(orjson.loads, sides.values())
            orjson.dumps(always_merger.merge(one, two))

        def stdlib(base: bytes = base, sides: dict[str, bytes] = sides) -> None:
            """Key by key, as one would by hand."""
            old, one, two = map(json.loads, (base, *sides.values()))
            for key, value in two.items():
                if value != old[key]:
                    one[key] = value
            json.dumps(one).encode()

        ours: Work = {"ours": lambda b=base, s=sides: merge("json", b, s)}  # type: ignore[misc]
        name = f"json, {count:,} keys"
        yield (
            name,
            {**ours, "deepmerge, with orjson": deepmerge} if peer else {**ours, "json: load, merge, dump": stdlib},
        )


def sheets() -> Iterator[tuple[str, Work]]:
    rows = [[str(n), f"name {n}", str(n * 7)] for n in range(200_000)]

    def written(first: int | None) -> bytes:
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["id", "name", "n"])
        writer.writerows(
            [*row[:2], "0"] if first is not None and n % 200 == first else row for n, row in enumerate(rows)
        )
        return out.getvalue().encode()

    base, sides = written(None), {"one": written(0), "two": written(100)}

    def once() -> None:
        out = io.StringIO(newline="")
        csv.writer(out).writerows(csv.reader(io.StringIO(base.decode(), newline="")))
        out.getvalue().encode()

    yield "csv, 200,000 rows", {"ours": lambda: merge("csv", base, sides), "csv.reader and csv.writer, once": once}


def databases(folder: Path) -> Iterator[tuple[str, Work]]:
    files = {name: folder / f"{name}.db" for name in ("base", "one", "two")}
    with closing(sqlite3.connect(files["base"])) as database, database:
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, x)")
        rows = ((n, f"name {n}", n * 2, "payload" * 3) for n in range(200_000))
        database.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
    for name, first in (("one", 0), ("two", 200)):
        shutil.copyfile(files["base"], files[name])
        with closing(sqlite3.connect(files[name])) as database, database:
            database.executemany("UPDATE t SET a = 'new' WHERE id = ?", ((first + n * 400,) for n in range(500)))
    base, sides = files["base"].read_bytes(), {name: files[name].read_bytes() for name in ("one", "two")}

    def queries() -> None:
        """What sqldiff asks of two databases, for each shard, and its changes applied (and taken back)."""
        with closing(sqlite3.connect(files["base"])) as database:
            for name in ("one", "two"):
                database.execute(f"ATTACH ? AS {name}", (str(files[name]),))
            for name in ("one", "two"):
                changed = database.execute(
                    f"SELECT o.a, o.b, o.x, o.id FROM main.t m JOIN {name}.t o ON m.id = o.id "
                    "WHERE m.a IS NOT o.a OR m.b IS NOT o.b OR m.x IS NOT o.x"
                ).fetchall()
                for here, there in ((f"{name}.t", "main.t"), ("main.t", f"{name}.t")):
                    missing = f"NOT EXISTS (SELECT 1 FROM {there} t WHERE t.id = h.id)"
                    database.execute(f"SELECT * FROM {here} h WHERE {missing}").fetchall()
                database.executemany("UPDATE main.t SET a = ?, b = ?, x = ? WHERE id = ?", changed)
            database.rollback()

    def sqldiff() -> None:
        """The program itself, for each shard, and its output applied to a copy of the base."""
        copy = folder / "copy.db"
        shutil.copyfile(files["base"], copy)
        with closing(sqlite3.connect(copy)) as database:
            database.execute("PRAGMA synchronous = OFF")
            for name in ("one", "two"):
                command = ["sqldiff", str(files["base"]), str(files[name])]
                script = subprocess.run(command, capture_output=True, check=True, text=True).stdout
                assert script.count("\n") == 500
                database.executescript(f"BEGIN; {script} COMMIT")

    ours: Work = {"ours": lambda: merge("sqlite", base, sides, Options("t.db"))}
    yield "sqlite, 200,000 rows, 1,000 changes", {**ours, "sqldiff's queries": queries}
    if shutil.which("sqldiff"):
        yield "the same", {**ours, "sqldiff, and applying its output": sqldiff}


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as made:
        folder = Path(made)
        for work in (texts(folder), stores(), sheets(), databases(folder)):
            for name, todo in work:
                found = {who: median(times) / 1000 for who, times in interleaved(todo, rounds=5, calls=1).items()}
                ours = found.pop("ours")
                peer, theirs = next(iter(found.items()), ("-", 0.0))
                rows.append((name, f"{ours:.0f}", peer, f"{theirs:.0f}", f"{ours / theirs:.2f}x" if theirs else "-"))
    publish("Merging two shards", COMMAND, table(("what", "ms", "beside", "its ms", "ours / its"), rows))


if __name__ == "__main__":
    main()
