"""Several operating-system processes, and processes that are killed at any instant."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentguard import Guard

PROCESSES, UPDATES = 4, 200

COUNT = """
import json, os, sys
from pathlib import Path
from agentguard import Guard
root, who, updates, guarded = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "guarded"
guard = Guard(root=root)

def step(word):
    print(word, flush=True)
    sys.stdin.readline()

def add(value):
    value["n"] += 1
    value["by"][who] = value["by"].get(who, 0) + 1
    return value

step("ready")
for _ in range(updates):
    if guarded:
        guard.update("store.json", add)
    else:
        value = json.loads((root / "store.json").read_text())
        step("read")  # the others read now, too
        copy = root / f"{who}.tmp"
        copy.write_text(json.dumps(add(value)))
        os.replace(copy, root / "store.json")
"""


def count(root: Path, guarded: str, updates: int, steps: tuple[str, ...]) -> dict[str, object]:
    (root / "store.json").write_text('{"n": 0, "by": {}}')
    command = [sys.executable, "-c", COUNT, str(root)]
    children = [
        subprocess.Popen(
            [*command, str(n), str(updates), guarded], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(PROCESSES)
    ]
    for word in steps:  # all processes reach each step before one goes on
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == word + "\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
    for child in children:
        child.communicate(timeout=100)
        assert child.returncode == 0
    found: dict[str, object] = json.loads((root / "store.json").read_text())
    return found


def test_four_processes_lose_nothing_with_the_guard(tmp_path: Path) -> None:
    found = count(tmp_path, "guarded", UPDATES, ("ready",))
    assert found == {"n": PROCESSES * UPDATES, "by": {str(n): UPDATES for n in range(PROCESSES)}}


def test_four_processes_lose_without_it(tmp_path: Path) -> None:
    assert count(tmp_path, "off", 1, ("ready", "read"))["n"] == 1  # three of four are gone


VICTIM = """
import sys, json, time
from pathlib import Path
from agentguard import Guard, path
guard = Guard(root=sys.argv[1])

def tool(number):
    old, big = path("store.json"), path("big.txt")
    data = json.loads(old.read_text())
    old.write_text("half a")                       # what a reader must never see
    big.write_text(str(number) * 20_000)
    old.write_text(json.dumps({"n": data["n"] + 1, "pad": "x" * 20_000}))

guarded = guard.wrap(tool, writes=["store.json", "big.txt"])
print("ready", flush=True)
number = 0
while True:
    number += 1
    guarded(number % 10)
"""


def kills(root: Path, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    (root / "store.json").write_text('{"n": 0}')
    (root / "big.txt").write_text("0" * 20_000)
    guard = Guard(root=root, durable=False)
    last = 0
    for _ in range(rounds):
        victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(root)], stdout=subprocess.PIPE, text=True)
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.03)  # any instant will do: the assertions below hold at each
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
        killed = time.monotonic()
        with guard.hold(writes=["store.json", "big.txt"], timeout=1):  # recovers what was decided, if anything
            assert time.monotonic() - killed < 1
            number = json.loads((root / "store.json").read_text())["n"]
            text = (root / "big.txt").read_text()
        assert number >= last
        assert len(set(text)) == 1 and len(text) == 20_000, "torn"
        if number > 0:
            assert text[0] == str((number - last) % 10) or number == last, "one file of the call is old, the other new"
        last = number
        assert guard.status().holders == ()
    guard.recover()
    left = [file for file in (root / ".agentguard" / "stage").rglob("*") if file.is_file() and file.name != ".alive"]
    assert not left
    assert guard.status().pending == ()


def test_killed_at_random_moments_the_files_are_old_or_new(tmp_path: Path) -> None:
    kills(tmp_path, 12, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_killed_a_hundred_times(tmp_path: Path) -> None:
    kills(tmp_path, 100, seed=2)


FORKER = """
import os, sys
from agentguard import Guard, LockTimeout
guard = Guard(root=sys.argv[1])
with guard.hold(writes="store.json"):
    child = os.fork()
    if child == 0:
        try:
            guard.hold(writes="store.json", timeout=0).__enter__()
        except LockTimeout:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child took the parent's lock for its own"
child = os.fork()
if child == 0:
    guard.update("store.json", lambda value: {"n": 2})
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
guard.update("store.json", lambda value: {"n": value["n"] + 1})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_holds_nothing_and_can_lock_anew(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"n": 1}')
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKER, str(tmp_path)], check=True, timeout=60)
    assert json.loads((tmp_path / "store.json").read_text()) == {"n": 3}


SHARDS = """
import sys
from agentguard import Guard
guard = Guard(root=sys.argv[1], resources={"*.json": {"mode": "shard"}})
with guard.agent(sys.argv[2], run="shared"):
    for number in range(10):
        guard.update("store.json", lambda value: {"items": [*value["items"], f"{sys.argv[2]}{number}"]})
"""


def test_shards_of_several_processes_are_joined_by_another(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"items": []}')
    children = [subprocess.Popen([sys.executable, "-c", SHARDS, str(tmp_path), agent]) for agent in "abc"]
    for child in children:
        assert child.wait(60) == 0
    guard = Guard(root=tmp_path, resources={"*.json": {"mode": "shard"}})
    assert guard.read("store.json") == {"items": []}
    guard.join(run="shared")
    assert guard.read("store.json") == {"items": [f"{agent}{n}" for agent in "abc" for n in range(10)]}
