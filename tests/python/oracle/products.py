"""How far a product with packed weights may be from the exact one, computed from the data.

Kernels round activations to 15 bits with one scale per 32 values, or to 8 bits with a few values of a row
kept apart, multiply integers exactly, and add the scaled sums of groups in float32. Float formats
are multiplied in float32, or in prefill with both sides rounded to 14 bits, one scale per 32. Kernels with
tiles round both sides to bfloat16, or to two of them that have 16 bits together, and add in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gristmill import _core, quants

Array = npt.NDArray[Any]

ROUND = 2.0**-24  # relative error of one float32 operation
STEPS = 16256  # of the activation grid on either side of zero
STEPS_14_BIT = 8191
STEPS_8_BIT = 127
OUTLIER_RATIO = 2.0
OUTLIER_MOST = 1e18  # whose square a float32 still holds


def bits_of(fmt: quants.Format, isa: str, mode: str) -> int:
    return _core.activation_bits(isa, fmt.type_id, mode)


def floats_of(fmt: quants.Format, isa: str, mode: str) -> int:
    """Bits of both sides where each value has an exponent of its own; 0 where 32 share a scale."""
    bits = bits_of(fmt, isa, mode)
    return bits if bits in (8, 16) and _core.activation_group(isa, fmt.type_id, mode) == 1 else 0


def floats_off(bits: int) -> float:
    """Largest relative error of a product of two values.

    Half of the last bit's unit of either side, 2^-bits; with two planes lo lo as well, which is left out.
    Subnormal numbers count as zero, which no value here is small enough for.
    """
    one = 2.0**-bits
    return (1 + one) ** 2 - 1 + (one if bits == 16 else 0)


def steps_of_14_bits(values: Array) -> Array:
    """Distance between neighbouring weights or activations [n, k], the last group of 32 perhaps short."""
    k = values.shape[1]
    magnitudes = np.pad(np.abs(values.astype(np.float64)), ((0, 0), (0, -k % 32)))
    peaks = magnitudes.reshape(len(values), -1, 32).max(2)
    return np.repeat(peaks / STEPS_14_BIT, 32, axis=1)[:, :k]


def steps(x: Array, fmt: quants.Format, isa: str, mode: str = "decode") -> Array:
    """Distance between neighbouring activations where weights are quantized, of x [n, k]; float64."""
    n, k = x.shape
    group = _core.activation_group(isa, fmt.type_id, mode)
    magnitudes = np.abs(x.astype(np.float64)).reshape(n, k // group, group)
    if bits_of(fmt, isa, mode) == 8:
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
    if bits := floats_of(fmt, isa, mode):
        size = np.abs(weights.astype(np.float64))
        if fmt.kind == "affine":  # scale * q - zero * scale + minimum, whose terms may be larger than the sum
            q, scale, low = _core.affine_rows(packed, fmt.type_id, k)
            group = k // scale.shape[1]
            terms = np.abs(np.repeat(scale, group, axis=1).astype(np.float64)) * q
            size_of_terms = terms + np.abs(np.repeat(low, group, axis=1)) * 2
        else:
            size_of_terms = np.zeros_like(size)
        # Pairs of products are added to a sum, up to three times where there are two planes.
        additions = compounded((1 if bits == 8 else 3) * (k + 2))
        return exact @ size.T * (floats_off(bits) + additions) + exact @ size_of_terms.T * compounded(6)
    if fmt.kind == "float":
        size = np.abs(weights.astype(np.float64))
        if bits_of(fmt, isa, mode) == 14:
            half = 0.5 + 2 * ROUND * STEPS_14_BIT
            x_off, w_off = steps_of_14_bits(x) * half, steps_of_14_bits(weights) * half
            # Scales are rounded twice each, their product, a group's sum and its conversion once.
            terms = (exact + x_off) @ (size + w_off).T * compounded(7 + -(-k // 32))
            return x_off @ size.T + (exact + x_off) @ w_off.T + terms
        return exact @ size.T * compounded(k + 2)
    # Half a step for each value, and what rounding x * (1 / scale) adds: two operations on up to 16256 steps.
    off = steps(x, fmt, isa, mode) * (0.5 + 2 * ROUND * STEPS)
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


def expected_error(fmt: quants.Format, weights: Array, x: Array, isa: str, mode: str = "decode") -> Array:
    """Standard deviation that rounding gives each element: errors uniform over a step, independent."""
    exact, size = x.astype(np.float64) ** 2, weights.astype(np.float64) ** 2
    if bits := floats_of(fmt, isa, mode):
        noise = bfloat16_noise(x, bits) @ size.T + exact @ bfloat16_noise(weights, bits).T
        if bits == 16:
            noise += bfloat16_noise(x, 8) @ bfloat16_noise(weights, 8).T
        return np.sqrt(noise)
    if fmt.kind == "affine":
        return np.sqrt(steps(x, fmt, isa, mode) ** 2 / 12 @ size.T)
    return np.sqrt(steps_of_14_bits(x) ** 2 / 12 @ size.T + exact @ (steps_of_14_bits(weights) ** 2 / 12).T)


def bfloat16_noise(values: Array, bits: int) -> Array:
    """Squared error of rounding values to one or two bfloat16, float64; what is exact has none."""
    high = bfloat16(values)
    rest = values.astype(np.float64) - high
    return (rest if bits == 8 else rest - bfloat16(rest.astype(np.float32))) ** 2


def bfloat16(values: Array) -> Array:
    """Rounded to the nearest bfloat16, ties to even, as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
