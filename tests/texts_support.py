"""Random texts and random edits of them, each from a seed of its own, so that a failure can be had again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Hunk = tuple[int, int, list[str]]


def each(seeds: Iterable[int], check: Callable[[random.Random], None]) -> None:
    for seed in seeds:
        try:
            check(random.Random(seed))
        except Exception as problem:
            raise AssertionError(f"with random.Random({seed}): {type(problem).__name__}: {problem}") from problem


@dataclass
class Wild:
    """Anything that a text can be: lines that repeat, nothing at all, CRLF, a last line without a newline."""

    newline: str
    base: bytes
    sides: list[bytes]

    @classmethod
    def of(cls, dice: random.Random, sides: int, *, most: int = 3, closed: bool = False) -> Wild:
        words = [*(f"line {number}" for number in range(dice.choice([1, 4, 15, 60]))), "", "}"]
        newline = dice.choice(["\n", "\n", "\r\n"])
        ragged = not closed and dice.random() < 0.5

        def written(lines: list[str]) -> bytes:
            text = "".join(line + newline for line in lines)
            return (text.removesuffix(newline) if ragged and dice.random() < 0.5 else text).encode()

        base = [dice.choice(words) for _ in range(dice.choice([0, 1, 5, 12, 30, 60]))]
        return cls(newline, written(base), [written(cls._edited(dice, base, words, most)) for _ in range(sides)])

    @staticmethod
    def _edited(dice: random.Random, lines: list[str], words: list[str], most: int) -> list[str]:
        out = list(lines)
        for _ in range(dice.randint(0, most)):
            lo, size = dice.randint(0, len(out)), dice.choice([1, 2, 2, most])
            out[lo : lo + dice.randint(0, size)] = [dice.choice(words) for _ in range(dice.randint(0, size))]
        return out

    def closed(self) -> Wild:
        """The same, every text with a newline at its end."""
        end = self.newline.encode()
        base, *sides = (text if not text or text.endswith(b"\n") else text + end for text in (self.base, *self.sides))
        return Wild(self.newline, base, sides)


@dataclass
class Planned:
    """Edits that can be read in one way only, and what each of them is: no line of the base repeats, and no line that
    is put in stands in the base. Sometimes several agents make one and the same edit."""

    base: list[str]
    hunks: dict[str, list[Hunk]]

    @classmethod
    def of(cls, dice: random.Random, agents: int) -> Planned:
        base = [f"line {number}" for number in range(dice.randint(0, 12))]
        shared = [cls._hunk(dice, len(base), f"all {number}") for number in range(2)]
        hunks = {}
        for agent in [f"agent{number}" for number in range(agents)]:
            mine: list[Hunk] = []
            for number in range(dice.randint(0, 3)):
                new = dice.choice(shared) if dice.random() < 0.3 else cls._hunk(dice, len(base), f"{agent} {number}")
                if not any(touching(new, old) for old in mine):
                    mine.append(new)
            hunks[agent] = sorted(mine)
        return cls(base, hunks)

    @staticmethod
    def _hunk(dice: random.Random, length: int, mark: str) -> Hunk:
        lo = dice.choice([dice.randint(0, length), length])
        hi = min(length, lo + dice.randint(0, 2))
        return lo, hi, [f"{mark}.{number}" for number in range(dice.randint(lo == hi, 2))]

    def applied(self, hunks: Iterable[Hunk]) -> bytes:
        out, at = [], 0
        for lo, hi, new in hunks:
            out += self.base[at:lo] + new
            at = hi
        return "".join(line + "\n" for line in out + self.base[at:]).encode()

    @property
    def sides(self) -> dict[str, bytes]:
        return {agent: self.applied(hunks) for agent, hunks in self.hunks.items()}


def touching(one: Hunk, other: Hunk) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
