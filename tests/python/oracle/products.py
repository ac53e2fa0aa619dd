"""How far a product with packed weights may be from the exact one, computed from the data.

Kernels round activations to 15 bits with one scale per 32 values, or in prefill to 8 bits with a few values
of a row kept apart, multiply integers exactly, and add the scaled sums of groups in float32. Float formats
are multiplied in float32 throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gristmill import _core, quants

Array = npt.NDArray[Any]

ROUND = 2.0**-24  # relative error of one float32 operation
STEPS = 16256  # of the activation grid on either side of zero
STEPS_8_BIT = 127
OUTLIER_RATIO = 2.0
OUTLIER_MOST = 1e18  # whose square a float32 still holds


def steps(x: Array, isa: str, mode: str = "decode") -> Array:
    """Distance between neighbouring activations, for each value of x [n, k]; float64."""
    n, k = x.shape
    group = _core.activation_group(isa) or k
    magnitudes = np.abs(x.astype(np.float64)).reshape(n, k // group, group)
    if mode == "prefill" and _core.prefill_bits(isa) == 8:
        return np.repeat(scale_peaks(magnitudes) / STEPS_8_BIT, group, axis=1)
    return np.repeat(magnitudes.max(2) / STEPS, group, axis=1)


def scale_peaks(magnitudes: Array) -> Array:
    """What 8-bit activations take as the largest of a group, from magnitudes [n, groups, 32].

    A row's two (below 24 groups) or four groups that gain most have their largest value kept apart if it is
    at least twice the second and at most ``OUTLIER_MOST``. The second then sets the step; the value itself
    has ``STEPS`` steps at most.
    """
    second, first = np.moveaxis(np.sort(magnitudes, axis=2)[:, :, -2:], 2, 0)
    stands_out = (first >= OUTLIER_RATIO * second) & (first <= OUTLIER_MOST)
    gain = np.where(stands_out, first**2 - second**2, 0)
    limit = 2 if magnitudes.shape[1] < 24 else 4
    chosen = np.argsort(-gain, axis=1, kind="stable")[:, :limit]
    kept_apart = np.zeros(gain.shape, bool)
    np.put_along_axis(kept_apart, chosen, True, axis=1)
    kept_apart &= gain > 0
    return np.where(kept_apart, np.maximum(second, first * STEPS_8_BIT / STEPS), first)


def bound(
    packed: Array, fmt: quants.Format, weights: Array, x: Array, isa: str, mode: str = "decode"
) -> Array:
    """Largest error that each element of ``x @ weights.T`` may have, float64 [n, m]; weights: packed's."""
    k = x.shape[1]
    exact = np.abs(x.astype(np.float64))
    if fmt.kind == "float":
        return exact @ np.abs(weights.astype(np.float64)).T * compounded(k + 2)
    # Half a step for each value, and what rounding x * (1 / scale) adds: two operations on up to 16256 steps.
    off = steps(x, isa, mode) * (0.5 + 2 * ROUND * STEPS)
    q, scale, low = _core.affine_rows(packed, fmt.type_id, k)
    group = k // scale.shape[1]
    terms = np.abs(np.repeat(scale, group, axis=1).astype(np.float64)) * q
    terms += np.abs(np.repeat(low, group, axis=1))
    # Each term is a product of up to six rounded factors and conversions; a group adds at most its dot
    # product and its minimum to the row's sum, and up to 16 lanes are added at the end.
    operations = 6 + 2 * scale.shape[1] + 4
    return off @ np.abs(weights.astype(np.float64)).T + (exact + off) @ terms.T * compounded(operations)


def compounded(operations: int) -> float:
    """Relative error of a sum whose every term passes through so many roundings (Higham 2002, 3.1)."""
    return operations * ROUND / (1 - operations * ROUND)


def expected_error(weights: Array, x: Array, isa: str, mode: str = "decode") -> Array:
    """Standard deviation that rounding the activations alone gives each element: uniform over a step."""
    return np.sqrt(steps(x, isa, mode) ** 2 / 12 @ (weights.astype(np.float64) ** 2).T)
