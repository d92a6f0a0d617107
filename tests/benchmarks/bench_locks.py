"""The lock layer against other locks: `python tests/benchmarks/bench_locks.py [NAMES OF WORK...] [--quick]`.

In each work ours and the peers take turns for several rounds. A figure is the median of the rounds, but "longest" is
the longest of all rounds and Jain's index (1: all got as many turns; 1/n: one got all) that of the worst round. Ratios
are ratios of these. A wait that the end of a round cuts off counts with what it had waited. "-": a peer cannot do it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import aiologic
import fasteners
import portalocker
from filelock import FileLock
from lock_figures import (
    Figures,
    Found,
    Row,
    at_least,
    at_most,
    at_most_one_of,
    beyond,
    contended,
    digits,
    figure,
    hand_overs,
    ratio,
    spread,
)
from lock_peers import PEERS
from lock_worker import Crew, Hung, now
from report import interleaved, publish, table

from agentguard import Guard
from agentguard.locks import Claim, FileBackend, LockTable, Mode, Owner

T = TypeVar("T")

OURS, FLOOR, PEER = "agentguard", "flock (floor)", "filelock"
COMMAND = "python tests/benchmarks/bench_locks.py"

quick = False


def show(title: str, found: Found, bars: Sequence[Row], others: Iterable[str] = PEERS) -> None:
    """`others` that were not `found` cannot do this work; one with an empty list hung in every round."""
    heads = list(next((figures for figures in found.values() if figures), [{}])[0])
    rows = []
    for name in dict.fromkeys((*found, *others)):
        lacking = ["hung" if name in found else "-"] * len(heads)
        rows.append((name, *([digits(figure(found, name, head)) for head in heads] if found.get(name) else lacking)))
    text = table(("", *heads), rows)
    if bars:
        text += "\n\n" + table(("", "bar", "measured", "met"), bars)
    if quick:
        print(f"## {title}\n\n{text}\n", flush=True)
    else:
        publish(title, COMMAND, text, "filelock", "portalocker", "fasteners", "aiologic")


def peers(job: str) -> list[str]:
    return [name for name, peer in PEERS.items() if peer.can(job)]


def turns(
    crew: Crew, names: Iterable[str], run: Callable[[str, int], T], rounds: int = 3, quickly: int = 1
) -> dict[str, list[T]]:
    """`run(peer, round)`: one peer after the other, then all again. A peer that hangs has no further turn."""
    found: dict[str, list[T]] = {name: [] for name in names}
    hung = set()
    for turn in range(quickly if quick else rounds):
        for name in [name for name in found if name not in hung]:
            try:
                found[name].append(run(name, turn))
            except Hung as error:
                print(f"{name}: {error}", file=sys.stderr)
                hung.add(name)
                crew.dismiss()
    return found


# -- work ------------------------------------------------------------------------------------------------------------


def alone(crew: Crew) -> None:
    """One process, one thread, nobody else: acquire and release, again and again."""
    folder = crew.folder()
    locks = LockTable(FileBackend(folder / "locks"))
    owner, exclusive, plain, green = Owner("agent", "run", "tool"), Mode.EXCLUSIVE, threading.Lock(), aiologic.Lock()
    file_lock, portal = FileLock(folder / "filelock"), portalocker.Lock(folder / "portalocker", timeout=60)
    fast, raw = fasteners.InterProcessLock(folder / "fasteners"), str(folder / "flock")
    kept = os.open(raw, os.O_RDWR | os.O_CREAT)

    def ours() -> None:
        locks.release(locks.request(Claim(owner), "db:a", exclusive))

    def flock() -> None:
        fcntl.flock(kept, fcntl.LOCK_EX)
        fcntl.flock(kept, fcntl.LOCK_UN)

    def opened() -> None:
        fd = os.open(raw, os.O_RDWR | os.O_CREAT)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)

    def inside(lock: object) -> Callable[[], None]:
        def work() -> None:
            with lock:  # type: ignore[attr-defined]
                pass

        return work

    work = {OURS: ours, FLOOR: flock, "open + flock + close": opened, PEER: inside(file_lock)}
    work |= {"portalocker": inside(portal), "fasteners": inside(fast)}
    work |= {"aiologic": inside(green), "threading.Lock": inside(plain)}
    micros = interleaved(work, rounds=3 if quick else 9, calls=1000)
    found: Found = {name: [{"us": value} for value in values] for name, values in micros.items()}
    os.close(kept)
    locks.close()
    bars = [
        at_least("cheaper than FileLock", 10, ratio(found, "us", PEER, OURS)),
        at_most("open + flock + close", 2, ratio(found, "us", OURS, "open + flock + close")),
    ]
    show("Locks: uncontended acquire and release", found, bars)


def guarded(crew: Crew) -> None:
    """A guarded block around nothing, no hook and no event file, nobody else."""
    folder = crew.folder()
    (folder / "a.json").write_text("{}")
    guard, file_lock = Guard(root=folder), FileLock(folder / "filelock")

    def hold(name: str) -> Callable[[], None]:
        def work() -> None:
            with guard.hold(writes=name):
                pass

        return work

    def peer() -> None:
        with file_lock:
            pass

    work = {"hold(writes=file)": hold("a.json"), "hold(writes=key)": hold("db:a"), PEER: peer}
    micros = interleaved(work, rounds=3 if quick else 9, calls=500)
    found: Found = {name: [{"us": value} for value in values] for name, values in micros.items()}
    bars = [
        at_least(f"{name}: cheaper than FileLock", 4, ratio(found, "us", PEER, name)) for name in work if name != PEER
    ]
    show("Locks: a guarded call with an empty body", found, bars, others=())


def wait_once(crew: Crew, peer: str, seconds: float) -> tuple[float, float]:
    """One holds for `seconds`, one waits: us from the release to the grant, and the waiter's CPU ms a second."""
    (one, other), folder = crew.get(2), crew.folder()
    one.play("holder", peer, folder, names=["one"], seconds=seconds)
    one.hear()
    other.play("waiter", peer, folder)
    other.hear()
    (released, _), found = one.hear(), other.hear()
    return (found["granted"] - released) / 1e3, found["cpu"] * 1e3


def handover(crew: Crew) -> None:
    """One waits while another holds for 1 s and up to 50 ms more.

    In equal steps, so that a peer that looks each 50 ms is met at every moment of its sleep alike.
    """
    rounds, quickly = 13, 3

    def run(peer: str, turn: int) -> float:
        return wait_once(crew, peer, 1 + 0.05 * (turn + 0.5) / (quickly if quick else rounds))[0]

    waited = turns(crew, peers("lock"), run, rounds, quickly)
    found = {peer: [spread("hand-over", "us", values)] if values else [] for peer, values in waited.items()}
    key = "hand-over median, us"
    bars = [
        at_least("sooner than FileLock", 50, ratio(found, key, PEER, OURS)),
        at_most("hand-over", 1, figure(found, OURS, key) / 1e3, " ms"),
    ]
    show("Locks: hand-over after a hold of 1 s", found, bars)


def cpu(crew: Crew) -> None:
    """The CPU time that a process uses, all its threads, while it waits 2 s for one lock."""
    key = "CPU ms a second"
    found = turns(crew, peers("lock"), lambda peer, _: {key: wait_once(crew, peer, 2.0)[1]})
    show("Locks: CPU while waiting", found, [at_most_one_of("of FileLock's", 10, ratio(found, key, OURS, PEER))])


def processes(crew: Crew) -> None:
    """8 processes, one lock, 1 ms hold, nothing between."""
    seconds = 1.0 if quick else 4.0

    def run(peer: str, _: int) -> Figures:
        runs = crew.together(peer, 8, "loop", lambda _: {"kind": "lock", "seconds": seconds, "hold": 0.001})
        return {**contended(runs, seconds), **hand_overs(peer, runs)}

    found = turns(crew, peers("lock"), run)
    bars = [
        at_least("Jain's index", 0.99, figure(found, OURS, "Jain"), ""),
        at_most_one_of("longest wait, of FileLock's", 30, ratio(found, "longest wait, ms", OURS, PEER)),
        at_most("p99 hand-over, of blocking flock's", 8, ratio(found, "hand-over p99, us", OURS, FLOOR)),
    ]
    show("Locks: 8 processes, 1 ms hold", found, bars)


def tasks(crew: Crew) -> None:
    """4 processes with 25 asyncio tasks each, and one with 100: one lock, 1 ms hold (`asyncio.sleep`)."""
    seconds = 1.5 if quick else 3.0

    def measure(kind: str, count: int) -> Found:
        def run(peer: str, _: int) -> Figures:
            options = {"kind": kind, "count": 100 // count, "seconds": seconds, "hold": 0.001}
            runs = [stamps for answer in crew.together(peer, count, "tasks", lambda _: options) for stamps in answer]
            return {**contended(runs, seconds), **hand_overs(peer, runs)}

        return turns(crew, peers(kind), run)

    found = measure("task_lock", 4)
    bars = [
        at_least("AsyncFileLock's throughput", 1.5, ratio(found, "a second", OURS, PEER)),
        at_least("Jain's index, over tasks", 0.99, figure(found, OURS, "Jain"), ""),
    ]
    show("Locks: 4 processes with 25 tasks each, 1 ms hold", found, bars)
    show("Locks: one process with 100 tasks, 1 ms hold", measure("shared_task_lock", 1), ())


def waiters(crew: Crew) -> None:
    """1,000 tasks of one process wait, each for another lock; then the process that holds them all releases them."""
    names = [f"r{number}" for number in range(1000)]

    def run(peer: str, _: int) -> Figures:
        (one, other), folder = crew.get(2), crew.folder()
        one.play("holder", peer, folder, names=names, seconds=None)
        one.hear()
        other.play("waiters", peer, folder, names=names, settle=1.0, seconds=1.0 if quick else 2.0)
        other.hear()
        one.say("release")
        (released, ended), found = one.hear(), other.hear()
        served = [(granted - released) / 1e6 for granted in found["granted"]]
        releases = {"the holder's releases, ms": (ended - released) / 1e6}
        return {"cores while waiting": found["cpu"], **spread("until served", "ms", served), **releases}

    found = turns(crew, peers("task_lock"), run)
    bars = [
        at_most("while waiting", 0.05, figure(found, OURS, "cores while waiting"), " core"),
        at_least("all served sooner than with AsyncFileLock", 10, ratio(found, "longest until served, ms", PEER, OURS)),
    ]
    show("Locks: 1,000 tasks wait for 1,000 locks", found, bars)


def transactions(crew: Crew) -> None:
    """4 processes take 3 of 8 locks in sorted order, any 3, hold them for 1 ms; every peer gets the same draws."""
    seconds = 1.0 if quick else 3.0

    def run(peer: str, round_: int) -> Figures:
        options = {"seconds": seconds, "hold": 0.001}
        runs = crew.together(peer, 4, "transactions", lambda n: {**options, "seed": round_ * 100 + n})
        return contended(runs, seconds)

    found = turns(crew, peers("lock"), run)
    bars = [
        at_least("FileLock's transactions a second", 4, ratio(found, "a second", OURS, PEER)),
        at_most_one_of("p99 wait, of FileLock's", 15, ratio(found, "wait p99, ms", OURS, PEER)),
    ]
    show("Locks: 3 of 8 locks, 4 processes, 1 ms hold", found, bars)


def readers(crew: Crew) -> None:
    """3 readers without a pause and a writer with random ones, 20 ms on average, a process each, 5 ms hold.

    A writer waits for readers that are inside (up to 5 ms under any lock), and then for the lock: "beyond" is that.
    """
    seconds = 1.0 if quick else 3.0

    def run(peer: str, _: int) -> Figures:
        reading = {"kind": "reader", "seconds": seconds, "hold": 0.005}
        writing = {**reading, "kind": "writer", "pause": 0.02}
        *reads, writes = crew.together(peer, 4, "loop", lambda n: writing if n == 3 else reading)
        read, wrote = contended(reads, seconds), contended([writes], seconds)
        return {
            "reads a second": read["a second"],
            "writes a second": wrote["a second"],
            **spread("writer's wait", "ms", [(granted - asked) / 1e6 for asked, granted, _ in writes]),
            **spread("of it beyond", "ms", beyond(writes, [stamp for run in reads for stamp in run])),
            "longest reader's wait, ms": read["longest wait, ms"],
            "Jain": read["Jain"],
        }

    found = turns(crew, peers("reader"), run)
    bars = [at_least("ReadWriteLock's reads", 1.5, ratio(found, "reads a second", OURS, PEER))] + [
        at_most_one_of(f"{what}, of ReadWriteLock's", 5, ratio(found, key, OURS, PEER))
        for what, key in (
            ("writer's median wait", "writer's wait median, ms"),
            ("writer's longest wait", "longest writer's wait, ms"),
            ("median wait beyond the readers", "of it beyond median, ms"),
            ("longest wait beyond the readers", "longest of it beyond, ms"),
        )
    ]
    show("Locks: 3 readers and a writer, 5 ms hold", found, bars)


def kills(crew: Crew) -> None:
    """From `kill -9` of the holder to the grant of the one that waits."""

    def once(peer: str, _: int) -> float:
        victim, (other,), folder = crew.hire(), crew.get(1), crew.folder()
        victim.play("holder", peer, folder, names=["one"], seconds=None)
        victim.hear()
        other.play("waiter", peer, folder)
        other.hear()
        time.sleep(0.05 + random.random() * 0.06)
        killed = now()
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        granted: int = other.hear()["granted"]
        return (granted - killed) / 1e6

    waited = turns(crew, peers("lock"), once, 25, 4)
    found = {peer: [spread("until held", "ms", values)] if values else [] for peer, values in waited.items()}
    bars = [
        at_most("the next one holds, median", 10, figure(found, OURS, "until held median, ms"), " ms"),
        at_most("the next one holds, longest", 10, figure(found, OURS, "longest until held, ms"), " ms"),
    ]
    show("Locks: kill -9 of the holder", found, bars)


WORK = {
    work.__name__: work
    for work in (alone, guarded, handover, cpu, processes, tasks, waiters, transactions, readers, kills)
}


def main() -> None:
    global quick
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", metavar="work", help=f"of {', '.join(WORK)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, RESULTS.md stays as it is")
    given = parser.parse_args()
    unknown = [name for name in given.work if name not in WORK]
    if unknown:
        parser.error(f"no such work: {', '.join(unknown)}")
    quick = given.quick
    with Crew() as crew:
        for name in given.work or WORK:
            WORK[name](crew)


if __name__ == "__main__":
    main()
