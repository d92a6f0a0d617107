"""What the workers of the stress see, one line each in a file that all append to, and what that proves.

    SIGN PID NUMBER MODE TOKEN FOLDER KEY

NUMBER tells the requests of a process apart, FOLDER is the lock folder. The signs:

r  asks                          +  is in: written after the grant
?  has to wait                   -  goes: written before the release
t  gave up after a time-out      l  the process stands in line: its mark can be seen
c  was cancelled                 k  written by the test: from now on the process may be dead
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

from agentguard.locks import Mode, is_directory

IS, IX, S, X = MODES = list(Mode)
Request = tuple[int, int]  # process, number
Hold = tuple[str, Mode]


class Journal:
    def __init__(self, folder: Path) -> None:
        self.fd = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(
        self, sign: str, number: int, key: str, mode: Mode, token: int = 0, folder: str = "locks", pid: int = 0
    ) -> None:
        os.write(self.fd, f"{sign} {pid or os.getpid()} {number} {mode.index} {token} {folder} {key}\n".encode())

    def close(self) -> None:
        os.close(self.fd)


def exclude(one: Hold, other: Hold) -> bool:
    """Whether two may not be in at once: on the same key, or one beneath the other's directory."""
    if one[0] == other[0]:
        return not one[1].compatible(other[1])
    for (above, held), (key, mode) in ((one, other), (other, one)):
        if is_directory(above) and key.startswith(above):
            return not held.compatible(IS if mode in (IS, S) else IX)
    return False


class Watch:
    """Reads the journal while it grows; `found` are the violations."""

    def __init__(self, folder: Path) -> None:
        self.found: list[str] = []
        self.counts: Counter[str] = Counter()
        self.killed_inside = self.killed_waiting = 0
        self.free = False  # what the test found out
        self.entries: Counter[int] = Counter()  # how often each process was in
        self.keys: dict[str, set[str]] = defaultdict(set)
        self._file = (folder / "journal").open()
        self._rest = ""
        self._inside: dict[str, dict[Request, Hold]] = defaultdict(dict)
        self._waiting: set[Request] = set()
        self._tokens: dict[tuple[str, str], int] = defaultdict(int)
        self._doomed: set[int] = set()
        self._dead: set[int] = set()
        self._since: dict[int, set[Request]] = {}  # a process that stands in line: requests made after that

    def look(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            sign, *numbers, folder, key = line.split()
            pid, number, mode, token = map(int, numbers)
            self.counts[sign] += 1
            if pid in self._dead:
                self.found.append(f"{line}: it was passed as if it were dead")
            if sign == "k":
                self._doom(pid)
            elif sign in "rl":
                self._line(sign, (pid, number))
            else:
                self._step(line, sign, (pid, number), folder, (key, MODES[mode]), token)

    def close(self) -> None:
        self._file.close()

    def _doom(self, pid: int) -> None:
        self._doomed.add(pid)
        self.killed_inside += any(owner == pid for inside in self._inside.values() for owner, _ in inside)
        self.killed_waiting += any(owner == pid for owner, _ in self._waiting)

    def _line(self, sign: str, request: Request) -> None:
        pid, _ = request
        if sign == "l":
            self._since.setdefault(pid, set())
        else:
            for stands, since in self._since.items():
                if stands != pid:
                    since.add(request)

    def _step(self, line: str, sign: str, request: Request, folder: str, hold: Hold, token: int) -> None:
        inside = self._inside[folder]
        self._waiting.discard(request)
        if sign == "?":
            self._waiting.add(request)
        elif sign == "-":
            del inside[request]
            if not inside:
                del self._inside[folder]
        elif sign == "+":
            self._enter(line, inside, request, hold)
            self._rise(line, folder, hold, token)
            self.entries[request[0]] += 1
            self._since.pop(request[0], None)
            self.found += [f"{line}: {stands} was passed" for stands, since in self._since.items() if request in since]

    def _enter(self, line: str, inside: dict[Request, Hold], request: Request, hold: Hold) -> None:
        for other, theirs in [*inside.items()]:
            if other in inside and exclude(hold, theirs):
                pid, _ = other
                if pid in self._doomed:  # it was killed before it could write that it went
                    self._bury(pid)
                else:
                    self.found.append(f"{line}: {theirs[0]} {theirs[1]} of {other} is still in")
        inside[request] = hold

    def _bury(self, pid: int) -> None:
        self._dead.add(pid)
        for inside in self._inside.values():
            for request in [request for request in inside if request[0] == pid]:
                del inside[request]

    def _rise(self, line: str, folder: str, hold: Hold, token: int) -> None:
        key, mode = hold
        self.keys[folder].add(key)
        last = self._tokens[folder, key]
        if (mode is X and token <= last) or (mode is S and token < last):
            self.found.append(f"{line}: token after {last}")
        if mode is X:
            self._tokens[folder, key] = token
