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


def texts(folder: Path) -> Iterator[tuple[str, Work]]:
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3000)]
    prose = [(" ".join(rng.choices(words, k=rng.randint(8, 16))) + "\n").encode() for _ in range(14_000)]
    usual = ["return x", "}", "", "if a:", "pass", "x = 1"]
    code = [("    " * rng.randint(0, 4) + rng.choice(usual) + "\n").encode() for _ in range(80_000)]
    for at in range(0, len(code), 5):
        code[at] = b"def f%d():\n" % at
    for name, lines in (("text, 1 MB of prose", prose), ("text, 1 MB of code", code)):
        base, one, two = b"".join(lines), edited(lines, 100), edited(lines, 600)
        for suffix, data in (("base", base), ("one", one), ("two", two)):
            (folder / suffix).write_bytes(data)
        command = ["git", "merge-file", "-p", "--union", str(folder / "one"), str(folder / "base"), str(folder / "two")]
        work: Work = {"ours": lambda b=base, o=one, t=two: merge("text", b, {"one": o, "two": t})}  # type: ignore[misc]
        if shutil.which("git"):
            work["git merge-file, a process"] = lambda c=command: subprocess.run(c, capture_output=True, check=False)  # type: ignore[misc]
        yield name, work


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
