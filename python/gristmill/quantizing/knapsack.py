"""One choice for each of many items, the least total cost within a budget of sizes, with proof.

The multiple-choice knapsack problem. A multiplier on size (Lagrange) gives a first solution and a lower bound
on every other. Then partial solutions are extended item by item, keeping only those that no other beats in
size and cost together, and dropping each whose lower bound cannot beat the best solution known. What remains
is optimal. See Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gristmill.errors import ArgumentError

_TOLERANCE = 1e-9  # of the cost: solutions closer than this count as equal
_MAX_STATES = 1 << 21

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Solution:
    """``picks`` has the index of the choice for each item. ``bound`` is below every solution's cost; it is
    ``cost`` itself but where the search ran out of room."""

    picks: tuple[int, ...]
    size: int
    cost: float
    bound: float


def solve(sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int) -> Solution:
    """The choices of least total cost whose sizes sum to at most ``budget``.

    Args:
        sizes, costs: for each item, one number >= 0 for each of its choices.

    Raises:
        ArgumentError: even the smallest choices do not fit.
    """
    items = [
        _undominated(np.array(s, np.int64), np.array(c, np.float64))
        for s, c in zip(sizes, costs, strict=True)
    ]
    least = sum(int(s.min()) for s, _, _ in items)
    if least > budget:
        raise ArgumentError(f"a budget of {budget} bytes is too small: the smallest choices take {least}")
    multiplier, best = _relax(items, budget)
    solution = _extend(items, budget, multiplier, best)
    picks = tuple(int(items[i][2][k]) for i, k in enumerate(solution.picks))
    return Solution(picks, solution.size, solution.cost, solution.bound)


_Item = tuple[Ints, Floats, Ints]  # sizes rising, costs falling, the choices' own indices


def _undominated(sizes: Ints, costs: Floats) -> _Item:
    order = np.lexsort((costs, sizes))
    lowest = np.minimum.accumulate(np.concatenate(([np.inf], costs[order][:-1])))
    kept = order[costs[order] < lowest]
    return sizes[kept], costs[kept], kept


def _relax(items: list[_Item], budget: int) -> tuple[float, Solution]:
    """The multiplier under which the best choices just fit, and those choices."""

    def at(multiplier: float) -> Solution:
        picks = tuple(int(np.argmin(c + multiplier * s)) for s, c, _ in items)
        size = sum(int(items[i][0][k]) for i, k in enumerate(picks))
        return Solution(picks, size, _cost(items, picks), 0.0)

    low, high = 0.0, 1.0
    if (free := at(0.0)).size <= budget:
        return 0.0, free
    while at(high).size > budget:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle).size <= budget else (middle, high)
    return high, _fill(items, at(high), budget)


def _fill(items: list[_Item], start: Solution, budget: int) -> Solution:
    """Spends what is left of the budget, the most cost saved for a byte first: a good solution to begin
    with.
    """
    picks, size = list(start.picks), start.size
    while True:
        best, gain = None, 0.0
        for i, (s, c, _) in enumerate(items):
            for k in range(picks[i] + 1, len(s)):
                more = int(s[k] - s[picks[i]])
                if size + more > budget:
                    break
                if (c[picks[i]] - c[k]) / more > gain:
                    best, gain = (i, k), float((c[picks[i]] - c[k]) / more)
        if best is None:
            return Solution(tuple(picks), size, _cost(items, picks), 0.0)
        size += int(items[best[0]][0][best[1]] - items[best[0]][0][picks[best[0]]])
        picks[best[0]] = best[1]


def _cost(items: list[_Item], picks: Sequence[int]) -> float:
    return float(sum(items[i][1][k] for i, k in enumerate(picks)))


def _extend(items: list[_Item], budget: int, multiplier: float, best: Solution) -> Solution:
    """All partial solutions that may still beat ``best``, item by item; ``multiplier`` bounds the rest."""
    reduced = [float((c + multiplier * s).min()) for s, c, _ in items]
    rest_cost = np.concatenate((np.cumsum(reduced[::-1])[::-1], [0.0]))  # of items i.. with the multiplier
    rest_size = np.concatenate((np.cumsum([int(s[0]) for s, _, _ in items][::-1])[::-1], [0])).astype(
        np.int64
    )
    bound = float(rest_cost[0] - multiplier * budget)
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []  # for each item: whence each state came, and what it picked
    for i, (s, c, _) in enumerate(items):
        new_sizes = (sizes[:, None] + s).ravel()
        new_costs = (costs[:, None] + c).ravel()
        lower = new_costs + rest_cost[i + 1] - multiplier * (budget - new_sizes)
        alive = (new_sizes + rest_size[i + 1] <= budget) & (lower < best.cost * (1 - _TOLERANCE))
        kept = np.flatnonzero(alive)
        kept = kept[np.lexsort((new_costs[kept], new_sizes[kept]))]
        before = np.minimum.accumulate(np.concatenate(([np.inf], new_costs[kept][:-1])))
        kept = kept[new_costs[kept] < before]
        if len(kept) == 0:
            return Solution(best.picks, best.size, best.cost, best.cost)
        if len(kept) > _MAX_STATES:
            return Solution(best.picks, best.size, best.cost, min(bound, best.cost))
        trail.append((kept // len(s), kept % len(s)))
        sizes, costs = new_sizes[kept], new_costs[kept]
    at = int(np.argmin(costs))
    if costs[at] >= best.cost:
        return Solution(best.picks, best.size, best.cost, best.cost)
    size, cost, picks = int(sizes[at]), float(costs[at]), []
    for origin, pick in reversed(trail):
        picks.append(int(pick[at]))
        at = int(origin[at])
    return Solution(tuple(reversed(picks)), size, cost, cost)
