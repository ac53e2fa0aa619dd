"""What pictures of a comparison show, before anything is drawn: axes, points, and room for labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gristmill.lab.comparison import CompareResult
from gristmill.lab.pareto import pareto_front


@dataclass(frozen=True)
class Point:
    """A model on a panel; ``low`` and ``high`` bound ``y``'s error bar. ``kind``: "base" or "model"."""

    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str = "model"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``front`` has the indices of the points on the Pareto front, by rising ``x``."""

    title: str
    x_label: str
    y_label: str
    log_y: bool
    points: tuple[Point, ...]
    front: tuple[int, ...]
    note: str


def panels(result: CompareResult) -> list[Panel]:
    """Divergence against size, and, where speeds were measured, decoding speed against size."""
    unit, name = (1e9, "GB") if result.base.file_bytes >= 1e9 else (1e6, "MB")
    x_label = f"file size, {name}"
    # No logarithm of zero: a copy of the base has no place among the divergences.
    rows = [row for row in result.rows[1:] if row.mean_kl > 0]
    errors = [min(row.mean_kl_stderr, 0.9 * row.mean_kl) for row in rows]
    points = tuple(
        Point(row.name, row.file_bytes / unit, row.mean_kl, row.mean_kl - e, row.mean_kl + e)
        for row, e in zip(rows, errors, strict=True)
    )
    found = [
        Panel(
            "Divergence against size",
            x_label,
            f"mean KL divergence from {result.base.name}, nats",
            True,
            points,
            tuple(pareto_front([(p.x, p.y) for p in points])),
            "bars: standard error",
        )
    ]
    if result.speeds:
        timed = tuple(
            Point(
                row.name,
                row.file_bytes / unit,
                speed.decode_tps,
                min(speed.decode),
                max(speed.decode),
                "base" if row is result.base else "model",
            )
            for row, speed in zip(result.rows, result.speeds, strict=True)
        )
        threads = result.settings.n_threads
        found.append(
            Panel(
                "Speed against size",
                x_label,
                f"decoding, tokens/s, {threads} thread{'s' * (threads != 1)}",
                False,
                timed,
                tuple(pareto_front([(p.x, -p.y) for p in timed])),
                f"bars: range of {result.settings.rounds} rounds",
            )
        )
    return [panel for panel in found if panel.points]


@dataclass(frozen=True)
class Axis:
    """A scale from data to ``[0, 1]``, with labelled ticks inside its limits."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where ``value`` lies: 0 at ``low``, 1 at ``high``."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(values: Sequence[float], *, from_zero: bool = True) -> Axis:
    """Limits with some room around ``values``, ticks at round numbers."""
    high = max(values)
    low = 0.0 if from_zero else min(values)
    room = 0.08 * ((high - low) or abs(high) or 1.0)
    high, low = high + room, low if from_zero else low - room
    step = _round_step((high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(step * i for i in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(low, high, False, ticks)


def log_axis(values: Sequence[float]) -> Axis:
    """Limits with some room around ``values``, ticks at 1, or at 1, 2 and 5, in decades."""
    low, high = min(values), max(values)
    room = (high / low) ** 0.1 if high > low else 2.0
    low, high = low / room, high * room
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    every = math.ceil(len(decades) / 12)
    ticks = tuple(t for d in decades if d % every == 0 for m in digits if low <= (t := m * 10.0**d) <= high)
    return Axis(low, high, True, ticks)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)


def tick_text(value: float) -> str:
    """A tick's label: no exponent where a few digits do."""
    return f"{value:.10g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.0e}".replace("e-0", "e-")


_SWEEPS = 4
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in the units of the picture, ``y`` downwards."""


def place_labels(
    at: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    within: Box,
    gap: float,
    avoid: Sequence[Box] = (),
) -> list[tuple[float, float]]:
    """Where labels go: beside their points, clear of points, of each other and of ``avoid`` where possible.

    Args:
        at: The points ``(x, y)``.
        sizes: Width and height of each label.
        within: What no label may leave.
        gap: Distance of a label from its point.
        avoid: Boxes to keep clear, such as lines.

    Returns:
        Left and top of each label.
    """
    marks = [(x - gap, y - gap, x + gap, y + gap) for x, y in at]
    choices = [_beside(x, y, w, h, gap) for (x, y), (w, h) in zip(at, sizes, strict=True)]
    placed: list[Box | None] = [None] * len(at)

    def cost(box: Box, i: int) -> float:
        outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, within)
        taken = sum(_overlap(box, mark) for j, mark in enumerate(marks) if j != i)
        taken += sum(_overlap(box, other) for j, other in enumerate(placed) if other and j != i)
        return 100 * outside + 10 * taken + sum(_overlap(box, other) for other in avoid)

    # One label after the other, and then again: those placed first did not know of the rest.
    for _ in range(_SWEEPS):
        for i, boxes in enumerate(choices):
            placed[i] = min(boxes, key=lambda box, i=i: cost(box, i))  # type: ignore[misc]
    return [(box[0], box[1]) for box in placed if box]


def _beside(x: float, y: float, w: float, h: float, gap: float) -> list[Box]:
    """Where a label of ``w`` by ``h`` may stand beside its point, the most legible place first."""
    corners = (
        (x + gap, y - gap / 2 - h),
        (x + gap, y + gap / 2),
        (x - gap - w, y - gap / 2 - h),
        (x - gap - w, y + gap / 2),
        (x - w / 2, y - 1.6 * gap - h),
        (x - w / 2, y + 1.6 * gap),
        (x + 1.6 * gap, y - h / 2),
        (x - 1.6 * gap - w, y - h / 2),
    )
    return [(left, top, left + w, top + h) for left, top in corners]


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def line_boxes(points: Sequence[tuple[float, float]], thickness: float) -> list[Box]:
    """Small boxes along a line through ``points``, for :func:`place_labels` to keep clear of."""
    boxes: list[Box] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        n = max(1, int(math.hypot(x1 - x0, y1 - y0) / (2 * thickness)))
        for i in range(n + 1):
            x, y = x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n
            boxes.append((x - thickness, y - thickness, x + thickness, y + thickness))
    return boxes
