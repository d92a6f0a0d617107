"""Eugene Myers' difference algorithm in linear space, with the choices that git's diff makes.

Items that cannot match are set aside first, and where an edit has several readings, equally short, the one taken is
git's: so a merge that is clean here and there has one result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import compress
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

Match = tuple[int, int, int]
"""(i, j, length): `a[i : i + length] == b[j : j + length]`."""

_COST = 256
"""The differences at which the search for the best middle is given up for a good one, at least."""

_CHUNK = 64
"""How many equal items, which are compared in C, take the time of one step."""

_WINDOW = 100
"""How far to look around an item that is frequent on the other side when deciding whether to set it aside."""

_FREQUENT = 1024
"""An item with so many matches always counts as frequent; fewer are enough in a short sequence."""


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


def _root(number: int) -> int:
    """A power of two not far above the square root."""
    root = 1
    while number:
        root, number = root * 2, number // 4
    return root


def _worth_matching(items: Sequence[T], lo: int, hi: int, there: Mapping[T, int], frequent: int) -> list[int]:
    """The indexes of the items that take part: not those that the other side lacks, nor frequent ones among these."""
    # 0: nowhere on the other side; 2: too often; 1: in between.
    kinds = bytes((0 if not times else 2 if times >= frequent else 1) for times in map(there.get, items[lo:hi]))
    taken = bytearray(kinds)
    zero = kinds.find(0)
    while zero >= 0:  # only between two zeros that are close to each other can anything be lost
        following = kinds.find(0, zero + 1)
        if following - zero <= 2 * _WINDOW:
            for at in range(zero + 1, following):
                taken[at] = kinds[at] == 1 or not _lost(kinds, at)
        zero = following
    return list(compress(range(lo, hi), taken))


def _lost(kinds: bytes, at: int) -> bool:
    """Whether a frequent item stands between items without any match, which are more than three times as many as the
    frequent ones around it."""
    before = kinds[max(0, at - _WINDOW) : at]
    before = before[before.rfind(1) + 1 :]
    after = kinds[at + 1 : at + 1 + _WINDOW]
    after = after[: after.find(1)] if 1 in after else after
    zeros = before.count(0), after.count(0)
    twos = len(before) + len(after) - sum(zeros) + 2
    return all(zeros) and 4 * twos < twos + sum(zeros)


class Myers:
    """One pair of stretches. `whole`: they are (but for what their ends have in common) all of `a` and all of `b`.

    `steps`, at most `budget` or little more, counts what takes the time: visits to a diagonal, and the chunks of equal
    items found there. What was not reached until then matches nothing.
    """

    def __init__(
        self, a: Sequence[T], a_span: tuple[int, int], b: Sequence[T], b_span: tuple[int, int], whole: bool, budget: int
    ) -> None:
        # What occurs elsewhere in a small pair counts as well, as in git. In a part of a large one it could not match.
        in_a, in_b = (Counter(a), Counter(b)) if whole else (Counter(a[slice(*a_span)]), Counter(b[slice(*b_span)]))
        frequent = min(_root(len(a) if whole else a_span[1] - a_span[0]), _FREQUENT)
        self.a_index = _worth_matching(a, *a_span, in_b, frequent)
        frequent = min(_root(len(b) if whole else b_span[1] - b_span[0]), _FREQUENT)
        self.b_index = _worth_matching(b, *b_span, in_a, frequent)
        self.a = [a[at] for at in self.a_index]
        self.b = [b[at] for at in self.b_index]
        diagonals = len(self.a) + len(self.b) + 3
        self.most = max(_COST, _root(diagonals))
        self.ahead = [0] * diagonals  # by diagonal (i - j, plus the length of b, plus 1): the furthest i so far
        self.behind = [0] * diagonals
        self.budget = budget
        self.steps = 0

    def matches(self) -> list[Match]:
        a, b = self.a, self.b
        found: list[Match] = []
        todo = [(0, len(a), 0, len(b), False)]
        while todo:
            i, a_end, j, b_end, exact = todo.pop()
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
            x, y, exact_before, exact_after = self._middle(i, a_end, j, b_end, exact)
            todo.append((i, x, j, y, exact_before))
            todo.append((x, a_end, y, b_end, exact_after))
        return found

    def _add(self, found: list[Match], i: int, j: int, length: int) -> None:
        """A match, in the items' own indexes: in one piece if nothing was set aside inside it."""
        a_at, b_at = self.a_index[i : i + length], self.b_index[j : j + length]
        if a_at[-1] - a_at[0] == b_at[-1] - b_at[0] == length - 1:
            found.append((a_at[0], b_at[0], length))
        else:
            found += [(x, y, 1) for x, y in zip(a_at, b_at, strict=True)]

    def _middle(self, i: int, a_end: int, j: int, b_end: int, exact: bool) -> tuple[int, int, bool, bool]:
        """Where a shortest edit of one stretch into the other is half done, found from both of its ends at once; and
        whether the two halves have to be searched to the end (they are known to be short)."""
        a, b, ahead, behind = self.a, self.b, self.ahead, self.behind
        zero = len(b) + 1
        least, most = i - b_end, a_end - j
        low = high = i - j
        back_low = back_high = a_end - b_end
        odd = (low - back_low) & 1
        ahead[zero + low] = i
        behind[zero + back_low] = a_end
        never = len(a) + 1
        cost = 0
        while True:
            cost += 1
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
                    return x, x - k, True, True
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
                    return x, x - k, True, True
            if (not exact and cost >= self.most) or self.steps > self.budget:
                break
        # Too far apart: the point furthest from its end on either side.
        _, x, y = max(
            (x + x - k, x, x - k) for k in range(high, low - 1, -2) for x in [min(ahead[zero + k], a_end, b_end + k)]
        )
        _, back_x, back_y = min(
            (x + x - k, x, x - k) for k in range(back_high, back_low - 1, -2) for x in [max(behind[zero + k], i, j + k)]
        )
        if a_end + b_end - back_x - back_y < x + y - i - j:
            return x, y, True, False
        return back_x, back_y, False, True
