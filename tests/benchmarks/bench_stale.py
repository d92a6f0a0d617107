"""Stale writes: what is lost without versions and with them, and what they cost.

    python tests/benchmarks/bench_stale.py [PARTS...] [--agents 8] [--rounds 25] [--tokenizers FOLDER] [--crewai]

Parts, all by default: lost, alone, check, texts, order, turn. `--crewai`: the crews of the part `lost` as well.
`--tokenizers`: a folder with real tokenizers as `NAME.json` in Hugging Face's format, for the part `texts`.
`--results`: another file than RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import inspect
import math
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import report
from report import median, publish, table

from agentguard import Guard, StaleWrite
from agentguard.budget import tokens

COMMAND = "python tests/benchmarks/bench_stale.py"
FRAMEWORK = ("langgraph", "langchain")


def p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * 0.99) - 1)]


def us(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


# -- lost ------------------------------------------------------------------------------------------------------------


def lost(base: Path, options: argparse.Namespace) -> None:
    """Read, think, write: what arrives."""
    from stale_agents import MODES, WAYS, Kept, kept, resumed

    agents, rounds = options.agents, options.rounds
    rows: list[tuple[object, ...]] = []

    def told(way: str, run: str, mode: str, found: Kept) -> None:
        print(f"{way}, {run}, {mode}: {found}", flush=True)
        rows.append((way, run, mode, f"{found.arrived} of {found.expected}", found.refused, f"{found.seconds:.1f}"))

    for asynchronous, run in ((False, "sync"), (True, "async")):
        for way, work in WAYS.items():
            for mode in MODES:
                told(way, run, mode, kept(work, base / f"{way} {run} {mode}", mode, agents, rounds, asynchronous))
        for mode in MODES:
            found = resumed(base / f"resumed {run} {mode}", mode, agents, options.resumed, asynchronous)
            told("LangGraph, SQLite checkpoints, new processes", run, mode, found)
    head = ("", "run", "stale", "arrived", "refusals", "seconds")
    title = f"Read, think, write: {agents} agents that have all read before any of them writes"
    packages = (*FRAMEWORK, "langgraph-checkpoint-sqlite")
    publish(title, f"{COMMAND} lost", table(head, rows), *packages)
    if options.crewai:
        from stale_crews import CREWS, crew

        rows = []
        for way in CREWS:
            for mode in MODES:
                told(way, "", mode, crew(way, base / f"{way} {mode}", mode, agents, rounds))
        publish(f"{title}, in CrewAI", f"{COMMAND} lost --crewai", table(head, rows), "crewai")


# -- alone -----------------------------------------------------------------------------------------------------------


def alone(base: Path, options: argparse.Namespace) -> None:
    """Nobody is in anybody's way: nothing may be refused."""
    from stale_agents import WAYS, kept

    rows: list[tuple[object, ...]] = []

    def core(title: str, agents: Mapping[str, str], rounds: int, between: Callable[[Path], object] | None) -> None:
        """`agents`: what each of them reads and writes."""
        root = base / title
        root.mkdir()
        guard = Guard(root=root)
        refused: list[str] = []

        def work(agent: str, name: str) -> None:
            file = root / name
            with guard.agent(agent):
                for n in range(rounds):
                    with guard.hold(reads=name):
                        pass
                    if between is not None:
                        between(file)
                    try:
                        with guard.hold(writes=name) as hold:
                            if not name.startswith("db:"):
                                hold.path(name).write_text(f"{agent} {n}")
                    except StaleWrite as error:
                        refused.append(str(error))

        started = time.perf_counter()
        threads = [threading.Thread(target=work, args=pair) for pair in agents.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        rows.append((title, len(agents) * rounds, len(refused), f"{seconds:.1f}"))
        print(*refused[:3], sep="\n", end="")

    core("core: one agent, one file", {"ann": "a.txt"}, 1000, None)
    core("core: the file is touched in between", {"ann": "a.txt"}, 1000, _touched)
    core("core: the file is replaced by an equal one in between", {"ann": "a.txt"}, 1000, _replaced)
    core("core: one agent, one key", {"ann": "db:a"}, 1000, None)
    core("core: two agents, two files", {"ann": "a.txt", "bob": "b.txt"}, 500, None)
    core("core: two agents, two keys", {"ann": "db:a", "bob": "db:b"}, 500, None)
    for asynchronous, run in ((False, "invoke"), (True, "ainvoke")):
        for way in ("LangGraph, ToolNode", "LangGraph, create_agent"):
            title = f"{way}: one agent, one history, {run}"
            found = kept(WAYS[way], base / title, "reject", 1, 200, asynchronous)
            rows.append((title, found.expected, found.refused, f"{found.seconds:.1f}"))
    text = table(("", "reads and writes", "refused", "seconds"), rows)
    publish("Stale writes: false refusals", f"{COMMAND} alone", text, *FRAMEWORK)


def _touched(file: Path) -> None:
    if file.exists():
        os.utime(file)


def _replaced(file: Path) -> None:
    if file.exists():
        copy = file.with_name("copy")
        copy.write_bytes(file.read_bytes())
        os.replace(copy, file)


# -- check -----------------------------------------------------------------------------------------------------------


def sampled(
    work: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: Mapping[str, int],
    before: Mapping[str, Callable[[], object]],
) -> dict[str, list[float]]:
    """Microseconds of every single call, the works taking turns; `before` each call something that does not count."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, fn in work.items():
            prepare = before.get(name)
            for _ in range(calls[name]):
                if prepare is not None:
                    prepare()
                started = time.perf_counter_ns()
                fn()
                found[name].append((time.perf_counter_ns() - started) / 1000)
    return found


def check(base: Path, options: argparse.Namespace) -> None:
    """What the look at the version costs, when nothing has changed."""
    guard = Guard(root=base)
    files = {"2 kB": base / "small.txt", "10 MB": base / "large.bin"}
    files["2 kB"].write_text("x" * 2048)
    files["10 MB"].write_bytes(random.Random(1).randbytes(10 * 1024 * 1024))
    fresh = {size: file.with_name(f"fresh-{file.name}") for size, file in files.items()}
    for size, file in fresh.items():
        file.write_bytes(files[size].read_bytes())
    time.sleep(0.1)  # a file that has changed just now is hashed at every look
    work: dict[str, Callable[[], object]] = {}
    calls: dict[str, int] = {}
    before: dict[str, Callable[[], object]] = {}

    def holding(agent: str, **declared: Any) -> Callable[[], None]:
        with guard.agent(agent) as made:
            pass

        def call() -> None:
            with guard.hold(**declared):
                pass

        def named() -> None:
            with guard.identified(made):
                call()

        named()  # the agent reads; caches are filled
        return named

    def add(name: str, fn: Callable[[], object], count: int, first: Callable[[], object] | None = None) -> None:
        work[name], calls[name] = fn, count
        if first is not None:
            before[name] = first

    for size, file in files.items():
        many, few = 400, 400 if size == "2 kB" else 10
        holding("reader", reads=file.name)
        holding("reader", reads=fresh[size].name)
        add(f"{size}: writes, never read (no check)", holding("writer", writes=file.name), many)
        add(f"{size}: writes, read before (checked)", holding("reader", writes=file.name), many)
        add(f"{size}: reads (noted)", holding("reader", reads=file.name), many)
        written = fresh[size]
        add(
            f"{size}: writes, read before, touched under 20 ms ago",
            holding("reader", writes=written.name),
            few,
            lambda written=written: os.utime(written),  # type: ignore[misc]
        )
        add(f"{size}: hashing it once", lambda file=file: hash_once(file), few)  # type: ignore[misc]
        add(f"{size}: os.stat", lambda file=file: os.stat(file), many)  # type: ignore[misc]
    holding("reader", reads="db:x")
    add("key: writes, never read (no check)", holding("writer", writes="db:y"), 400)
    add("key: writes, read before (checked)", holding("reader", writes="db:x"), 400)
    add("key: reads (noted)", holding("reader", reads="db:z"), 400)
    found = sampled(work, rounds=9, calls=calls, before=before)
    rows = []
    for name, values in found.items():
        plain = found.get(f"{name.partition(':')[0]}: writes, never read (no check)", values)
        more = f"{median(values) - median(plain):+.1f}" if ": writes, read before" in name else ""
        rows.append((name, us(median(values)), us(p99(values)), more))
    text = table(("empty body, nobody else", "us, median", "us, p99", "more than without the check"), rows)
    publish("Stale writes: the cost of the check", f"{COMMAND} check", text)


def hash_once(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


# -- texts -----------------------------------------------------------------------------------------------------------


def texts(base: Path, options: argparse.Namespace) -> None:
    """How much a model is told: 100 conflicts."""
    from stale_texts import conflicts, counters

    found = [*conflicts(base)]
    estimated = [tokens(one.text) for one in found]
    measures: dict[str, list[int]] = {
        "characters": [len(one.text) for one in found],
        "characters / 4": [math.ceil(len(one.text) / 4) for one in found],
        "`budget.tokens`": estimated,
    }
    real = {
        f"tokens of {name}": [count(one.text) for one in found] for name, count in counters(options.tokenizers).items()
    }
    rows: list[tuple[object, ...]] = []
    for name, values in (measures | real).items():
        longest = max(range(len(found)), key=values.__getitem__)
        over = [value / guess for value, guess in zip(values, estimated, strict=True) if value > guess]
        told = name in real
        rows.append(
            (
                name,
                f"{median(values):.0f}",
                values[longest],
                found[longest].what,
                "" if name.startswith("characters") else sum(value > 300 for value in values),
                f"{len(over)}, by up to {max(over, default=1) - 1:.0%}" if told else "",
            )
        )
    head = ("measured in", "median", "longest", "of", "above 300", "more than `budget.tokens`")
    clear = sum("Nothing was applied" in one.text for one in found)
    alike = len(found) - len({one.text for one in found})
    text = table(head, rows)
    text += f"\n\n{len(found)} texts, {alike} of them like another one; {clear} say that nothing was applied."
    for name, values in real.items():
        text += "".join(
            f"\n- {value} {name} ({guess} estimated): {one.what}"
            for value, guess, one in zip(values, estimated, found, strict=True)
            if value > 300
        )
    publish("Stale writes: the text of 100 conflicts", f"{COMMAND} texts --tokenizers FOLDER", text)


# -- order -----------------------------------------------------------------------------------------------------------

BODY, SLOW = 0.002, 0.05  # seconds that a tool takes: where the order is counted, and where the time is


def order(base: Path, options: argparse.Namespace) -> None:
    """One turn of 20 calls on 5 files, 3 in 4 of which append and the others read."""
    from stale_turns import TURNS, Ending, sequential

    def right(endings: Sequence[Ending]) -> str:
        return f"{sum(one.exact for one in endings)} of {len(endings)}"

    def ms(endings: Sequence[Ending]) -> float:
        return median([one.seconds for one in endings]) * 1000

    rows: list[tuple[object, ...]] = []
    for way, make in TURNS.items():
        for asynchronous, run in ((False, "sync"), (True, "async")):
            root = base / f"{way} {run}"
            root.mkdir()
            turn = make(root, BODY, asynchronous, True)
            bare = make(root, SLOW, asynchronous, False)
            exact = [turn(seed, jitter=True) for seed in range(options.turns)]
            with no_seats():
                mutant = [turn(seed, jitter=True) for seed in range(options.turns // 4)]
            plain, serial, unguarded = [], [], []
            slow = make(root, SLOW, asynchronous, True)
            for seed in range(6):
                plain.append(slow(seed, jitter=False))
                unguarded.append(bare(seed, jitter=False))
                serial.append(sequential(root, SLOW, seed, asynchronous=asynchronous))
            times = [f"{ms(one):.0f}" for one in (plain, serial)]
            faster = f"{ms(serial) / ms(plain):.1f}x"
            wrong = right(unguarded)
            rows.append(
                (way, run, right([*exact, *plain]), right(mutant), wrong, *times, faster, f"{ms(unguarded):.0f}")
            )
    head = (
        "",
        "run",
        "as in sequence",
        "without turns",
        "unguarded",
        "ms",
        "ms, one by one",
        "faster",
        "ms, unguarded",
    )
    text = table(head, rows)
    text += (
        f"\n\n20 calls of one turn on 5 files, bodies of {BODY * 1000:.0f} ms, and of {SLOW * 1000:.0f} ms where the "
        "time is taken; the longest chain is 4 calls. Each run has a new graph "
        "and a new guard. Where only the order is counted, a wrapper around each call waits up to 3 ms "
        "first, so that they come in another order. As in sequence: every file and every answer of a read is."
    )
    publish("One turn: calls take effect in the model's order", f"{COMMAND} order", text, *FRAMEWORK)


@contextlib.contextmanager
def no_seats() -> Iterator[None]:
    """The mutant: no call has a place in its turn."""
    from agentguard_langgraph import turns

    module: Any = turns
    kept = module._seat
    signature = inspect.signature(kept)
    module._seat = lambda *given: (None, signature.bind(*given).arguments["base"])
    try:
        yield
    finally:
        module._seat = kept


# -- turn ------------------------------------------------------------------------------------------------------------


def turn(base: Path, options: argparse.Namespace) -> None:
    """What the stamps cost in LangGraph."""
    from stale_turns import HISTORIES, reading

    (base / "a.txt").write_text("x" * 2048)
    time.sleep(0.1)
    guard = Guard(root=base)
    rows: list[tuple[object, ...]] = []
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        for title, history in HISTORIES.items():
            work: dict[str, Callable[[], object]] = {}
            for asynchronous, run in ((False, "sync"), (True, "async")):
                for mode, tools in (("unguarded", None), ("guarded", guard)):
                    graph, state = reading(base, tools, history, asynchronous)
                    if asynchronous:
                        work[f"{run} {mode}"] = lambda graph=graph, state=state: loop.run_until_complete(
                            graph.ainvoke(state)
                        )  # type: ignore[misc]
                    else:
                        work[f"{run} {mode}"] = lambda graph=graph, state=state: graph.invoke(state)  # type: ignore[misc]
            for fn in work.values():
                fn()
            found = sampled(work, rounds=5, calls=dict.fromkeys(work, 20), before={})
            for run in ("sync", "async"):
                bare, guarded = found[f"{run} unguarded"], found[f"{run} guarded"]
                more = median(guarded) - median(bare)
                rows.append((title, run, us(median(bare)), us(median(guarded)), us(p99(guarded)), f"{more:+.0f}"))
    head = ("history", "run", "us, unguarded", "us, guarded", "us, guarded, p99", "us more")
    publish("A LangGraph turn: one call that reads", f"{COMMAND} turn", table(head, rows), *FRAMEWORK)


# -- all -------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "lost": lost,
    "alone": alone,
    "check": check,
    "texts": texts,
    "order": order,
    "turn": turn,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--resumed", type=int, default=25, help="rounds with a new process in each")
    parser.add_argument("--turns", type=int, default=200, help="runs of the part order")
    parser.add_argument("--tokenizers", type=Path, default=None)
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument("--crewai", action="store_true")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part is called {unknown[0]}; there are {', '.join(PARTS)}")
    report.RESULTS = options.results
    for name in options.parts or PARTS:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), options)
        print(f"({name}: {time.perf_counter() - started:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
