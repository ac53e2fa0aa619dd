"""The Pareto front: what nothing else beats on one axis without losing on the other."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, by rising first coordinate, of the points that none dominates. Smaller is better on both axes.

    A point dominates another if it is at least as good on both axes and better on one; equal points keep each
    other.
    """

    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    front = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    return sorted(front, key=lambda i: points[i])
