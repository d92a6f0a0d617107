"""Eugene Myers' difference algorithm in linear space ("An O(ND) Difference Algorithm and Its Variations", 1986).

The search from either end goes over the diagonals from the highest down, and prefers deletions to insertions: where an
edit has several readings, equally short, this is git's.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

Match = tuple[int, int, int]
"""(i, j, length): `a[i : i + length] == b[j : j + length]`."""

_CHUNK = 64
"""How many equal items, which are compared in C, take the time of one step."""


def equal_ahead(a: Sequence[T], i: int, b: Sequence[T], j: int, most: int) -> int:
    """How many items from `a[i]` and `b[j]` on are equal, at most `most`."""
    if most <= 0 or a[i] != b[j]:
        return 0
    done, step = 1, 4
    while done + step <= most and a[i + done : i + done + step] == b[j + done : j + done + step]:
        done += step
        step *= 2
    while step > 1:
        step //= 2
        if done + step <= most and a[i + done : i + done + step] == b[j + done : j + done + step]:
            done += step
    return done


def equal_behind(a: Sequence[T], i: int, b: Sequence[T], j: int, most: int) -> int:
    """How many items before `a[i]` and `b[j]` are equal, at most `most`."""
    if most <= 0 or a[i - 1] != b[j - 1]:
        return 0
    done, step = 1, 4
    while done + step <= most and a[i - done - step : i - done] == b[j - done - step : j - done]:
        done += step
        step *= 2
    while step > 1:
        step //= 2
        if done + step <= most and a[i - done - step : i - done] == b[j - done - step : j - done]:
            done += step
    return done


class Myers:
    """One pair of stretches, `a[lo:hi]` and `b[lo:hi]`. What only one of them has cannot match and does not take part.

    `steps`, at most `budget` or little more, counts what takes the time: visits to a diagonal, and the chunks of equal
    items found there. What was not reached until then matches nothing.
    """

    def __init__(
        self, a: Sequence[T], a_span: tuple[int, int], b: Sequence[T], b_span: tuple[int, int], budget: int
    ) -> None:
        in_a, in_b = set(a[slice(*a_span)]), set(b[slice(*b_span)])
        self.a_index = [at for at in range(*a_span) if a[at] in in_b]
        self.b_index = [at for at in range(*b_span) if b[at] in in_a]
        self.a = [a[at] for at in self.a_index]
        self.b = [b[at] for at in self.b_index]
        diagonals = len(self.a) + len(self.b) + 3
        self.ahead = [0] * diagonals  # by diagonal (i - j, plus the length of b, plus 1): the furthest i so far
        self.behind = [0] * diagonals
        self.budget = budget
        self.steps = 0

    def matches(self) -> list[Match]:
        a, b = self.a, self.b
        found: list[Match] = []
        todo = [(0, len(a), 0, len(b))]
        while todo:
            i, a_end, j, b_end = todo.pop()
            head = equal_ahead(a, i, b, j, min(a_end - i, b_end - j))
            if head:
                self._add(found, i, j, head)
                i, j = i + head, j + head
            tail = equal_behind(a, a_end, b, b_end, min(a_end - i, b_end - j))
            if tail:
                a_end, b_end = a_end - tail, b_end - tail
                self._add(found, a_end, b_end, tail)
            if i == a_end or j == b_end or self.steps > self.budget:
                continue
            middle = self._middle(i, a_end, j, b_end)
            if middle is not None:
                x, y = middle
                todo.append((i, x, j, y))
                todo.append((x, a_end, y, b_end))
        return found

    def _add(self, found: list[Match], i: int, j: int, length: int) -> None:
        """A match, in the items' own indexes: in one piece if nothing was set aside inside it."""
        a_at, b_at = self.a_index[i : i + length], self.b_index[j : j + length]
        if a_at[-1] - a_at[0] == b_at[-1] - b_at[0] == length - 1:
            found.append((a_at[0], b_at[0], length))
        else:
            found += [(x, y, 1) for x, y in zip(a_at, b_at, strict=True)]

    def _middle(self, i: int, a_end: int, j: int, b_end: int) -> tuple[int, int] | None:
        """Where a shortest edit of one stretch into the other is half done, found from both of its ends at once (the
        paper's middle snake); None if the budget is used up before."""
        a, b, ahead, behind = self.a, self.b, self.ahead, self.behind
        zero = len(b) + 1
        least, most = i - b_end, a_end - j
        low = high = i - j
        back_low = back_high = a_end - b_end
        odd = (low - back_low) & 1
        ahead[zero + low] = i
        behind[zero + back_low] = a_end
        never = len(a) + 1
        while self.steps <= self.budget:
            self.steps += high - low + back_high - back_low + 4
            if low > least:
                low -= 1
                ahead[zero + low - 1] = -1
            else:
                low += 1
            if high < most:
                high += 1
                ahead[zero + high + 1] = -1
            else:
                high -= 1
            for k in range(high, low - 1, -2):
                at = zero + k
                x = ahead[at - 1]
                x = x + 1 if x >= ahead[at + 1] else ahead[at + 1]
                if x < a_end and x - k < b_end and a[x] == b[x - k]:
                    length = equal_ahead(a, x, b, x - k, min(a_end - x, b_end - x + k))
                    x += length
                    self.steps += length // _CHUNK
                ahead[at] = x
                if odd and back_low <= k <= back_high and behind[at] <= x:
                    return x, x - k
            if back_low > least:
                back_low -= 1
                behind[zero + back_low - 1] = never
            else:
                back_low += 1
            if back_high < most:
                back_high += 1
                behind[zero + back_high + 1] = never
            else:
                back_high -= 1
            for k in range(back_high, back_low - 1, -2):
                at = zero + k
                x = behind[at - 1]
                if x >= behind[at + 1]:
                    x = behind[at + 1] - 1
                if x > i and x - k > j and a[x - 1] == b[x - k - 1]:
                    length = equal_behind(a, x, b, x - k, min(x - i, x - k - j))
                    x -= length
                    self.steps += length // _CHUNK
                behind[at] = x
                if not odd and low <= k <= high and x <= ahead[at]:
                    return x, x - k
        return None
