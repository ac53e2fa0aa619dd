"""quantize and dequantize: round trips, bytes against the gguf package, quality of the search, importance."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import pytest
from gristmill import quants
from gristmill.errors import GristmillWarning
from hypothesis import given, settings
from hypothesis import strategies as st

FORMATS = quants.formats()
AFFINE = [fmt for fmt in FORMATS if fmt.kind == "affine"]

each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
each_affine = pytest.mark.parametrize("fmt", AFFINE, ids=lambda fmt: fmt.name)

# Each fills [rows, k] from a generator. Magnitudes are such that every half of a block is a normal number.
DATA = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "positive": lambda rng, shape: rng.uniform(0.5, 1, shape),
    "negative": lambda rng, shape: rng.uniform(-1, -0.5, shape),
    "outliers": lambda rng, shape: np.where(rng.random(shape) < 0.02, 8, 0.3) * rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: np.clip(rng.standard_cauchy(shape), -1e3, 1e3),
    "ternary": lambda rng, shape: rng.choice([-1.0, 0.0, 1.0], shape),
    "constant": lambda rng, shape: np.full(shape, rng.uniform(-5, 5)),
    "sparse": lambda rng, shape: np.where(rng.random(shape) < 0.03, rng.standard_normal(shape), 0),
    "zero": lambda rng, shape: np.zeros(shape),
}


def round_trip(x: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    return quants.dequantize(quants.quantize(x, name, importance), name, x.shape)


def share(x: np.ndarray, fmt: quants.Format, importance: np.ndarray | float = 1.0) -> np.ndarray:
    """The search counts each weight's squared error importance * sqrt(mean x^2 of the block + x^2) times."""
    blocks = x.reshape(-1, fmt.block_size).astype(np.float64)
    return np.sqrt((blocks**2).mean(1, keepdims=True) + blocks**2).reshape(x.shape) * importance


@each_format
@pytest.mark.parametrize("kind", DATA)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 3.7, 20.0]))
def test_round_trip_within_bound(fmt: quants.Format, kind: str, seed: int, scale: float) -> None:
    x = (DATA[kind](np.random.default_rng(seed), (6, 512)) * scale).astype(np.float32)
    y = round_trip(x, fmt.name)
    peak = np.abs(x).reshape(-1, fmt.block_size).max(1)
    error = np.abs(y - x).reshape(-1, fmt.block_size).max(1)
    # A block whose peak is small has halves with fewer bits; only there the bound does not speak.
    spoken_for = (peak >= 0.25) | (peak == 0)
    assert (error <= fmt.max_relative_error * peak)[spoken_for].all(), (error / peak)[spoken_for].max()


@each_format
def test_bound_can_fail(fmt: quants.Format) -> None:
    """The bound is at most five times the worst that it is a bound of, so that a broken format exceeds it."""
    if fmt.max_relative_error == 0:
        return
    rng = np.random.default_rng(3)
    worst = 0.0
    for fill in DATA.values():
        x = fill(rng, (64, 1024)).astype(np.float32)
        peak = np.abs(x).reshape(-1, fmt.block_size).max(1)
        error = np.abs(round_trip(x, fmt.name) - x).reshape(-1, fmt.block_size).max(1)
        worst = max(worst, float((error / np.maximum(peak, 0.25)).max()))
    assert worst > fmt.max_relative_error / 5


@each_format
def test_bytes_equal_the_gguf_package(fmt: quants.Format) -> None:
    for kind, fill in DATA.items():
        x = (fill(np.random.default_rng(7), (32, 1024)) * 0.05).astype(np.float32)
        try:
            theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[fmt.name])
        except NotImplementedError:
            pytest.skip(f"the gguf package does not quantize to {fmt.name}")
        assert quants.quantize(x, fmt.name).tobytes() == theirs.tobytes(), kind


@each_affine
def test_no_worse_than_ggml(fmt: quants.Format) -> None:
    """Against ggml's own quantizers, where the package libgguf is installed: the same bytes, or less error.

    Less by the weighting that both minimize; where no importance is given, by the plain sum of squares too.
    """
    libgguf = pytest.importorskip(
        "libgguf", reason=f"libgguf is not installed: {fmt.name} not held to ggml's error"
    )
    rng = np.random.default_rng(11)
    importance = (rng.random(2048) ** 4 + 1e-4).astype(np.float32)
    for kind in ("gaussian", "uniform", "outliers"):
        x = (DATA[kind](rng, (32, 2048)) * 0.05).astype(np.float32)
        for given_importance in (None, importance):
            packed = quants.quantize(x, fmt.name, given_importance)
            theirs = libgguf.quantize_rows(x, fmt.type_id, given_importance)
            if packed.tobytes() == theirs.tobytes():
                continue
            ours_error = (quants.dequantize(packed, fmt.name, x.shape) - x.astype(np.float64)) ** 2
            their_error = (quants.dequantize(theirs, fmt.name, x.shape) - x.astype(np.float64)) ** 2
            weight = 1.0 if given_importance is None else importance
            shared = share(x, fmt, weight)
            weighted = (ours_error * shared).sum() / (their_error * shared).sum()
            plain = ours_error.sum() / their_error.sum() if given_importance is None else 0.0
            assert weighted <= 1.0 and plain <= 1.0, (kind, given_importance is not None, weighted, plain)


@each_affine
def test_search_leaves_no_better_neighbour(fmt: quants.Format) -> None:
    """Flipping any one bit of a block hardly helps, and never by much: levels, codes and scales all fit."""
    rng = np.random.default_rng(5)
    n = max(fmt.block_size, 256)
    flips = np.packbits(np.eye(fmt.type_size * 8, dtype=np.uint8), axis=1, bitorder="little")
    for _ in range(3):
        x = rng.standard_normal(n).astype(np.float32)[: fmt.block_size]
        packed = quants.quantize(x, fmt.name, np.ones(fmt.block_size, np.float32))
        weight = np.sqrt((x.astype(np.float64) ** 2).mean() + x.astype(np.float64) ** 2)
        with np.errstate(all="ignore"):
            error = weight * (quants.dequantize(packed, fmt.name, x.shape).astype(np.float64) - x) ** 2
            y = quants.dequantize(packed ^ flips, fmt.name, (len(flips), fmt.block_size)).astype(np.float64)
            others = (weight * (y - x) ** 2).sum(1)
        assert np.nanmin(others) >= 0.97 * error.sum(), int(np.nanargmin(others))


@each_affine
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_importance_lowers_the_weighted_error(fmt: quants.Format, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((16, 1024)).astype(np.float32)
    importance = (rng.random(1024) ** 4 + 1e-3).astype(np.float32)
    blind, led = ((round_trip(x, fmt.name, w).astype(np.float64) - x) ** 2 for w in (None, importance))
    assert (led * importance).sum() < (blind * importance).sum()


@each_affine
def test_importance_by_row_is_importance_by_column_where_rows_agree(fmt: quants.Format) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 512)).astype(np.float32)
    by_column = rng.random(512).astype(np.float32)
    by_row = np.tile(by_column, (5, 1))
    packed = quants.quantize(x, fmt.name, by_column)
    assert np.array_equal(packed, quants.quantize(x, fmt.name, by_row))
    by_row[3] = by_row[3, ::-1]
    changed = (quants.quantize(x, fmt.name, by_row) != packed).any(1)
    assert changed.tolist() == [False, False, False, True, False]


@each_affine
def test_importance_of_zero_everywhere_is_none_at_all(fmt: quants.Format) -> None:
    """Otherwise a column that never saw data would lose its weights."""
    x = np.random.default_rng(4).standard_normal((2, 512)).astype(np.float32)
    error = np.abs(round_trip(x, fmt.name, np.zeros(512)) - x).max()
    assert error <= fmt.max_relative_error * np.abs(x).max()


@each_affine
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1e-7, 1e5, 1e20, 3e38])
def test_extreme_magnitudes_stay_finite(fmt: quants.Format, scale: float) -> None:
    x = (np.random.default_rng(6).uniform(-1, 1, (4, 512)) * scale).astype(np.float32)
    y = round_trip(x, fmt.name)
    assert np.isfinite(y).all()
    # No weight ends further out than its format's largest deviation from the block's peak.
    assert float(np.abs(y).max()) <= float(np.abs(x).max()) * 1.5 + 2.0**-24 * 128


@each_format
def test_rows_are_independent(fmt: quants.Format) -> None:
    """Also across the slices in which a tall array is walked."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((9, 256)).astype(np.float32)
    tall = np.tile(x, (500, 1))
    packed = quants.quantize(tall, fmt.name)
    assert np.array_equal(packed, np.tile(quants.quantize(x, fmt.name), (500, 1)))
    assert np.array_equal(packed[4], quants.quantize(x[4], fmt.name))


@each_format
def test_shapes_dtypes_and_layouts(fmt: quants.Format) -> None:
    x = np.random.default_rng(9).standard_normal((2, 3, 512)).astype(np.float32)
    packed = quants.quantize(x, fmt.name)
    assert packed.shape == (2, 3, fmt.row_bytes(512)) and packed.dtype == np.uint8
    for other in (x.astype(np.float64), np.asfortranarray(x), x[::-1][::-1], x.tolist()):
        assert np.array_equal(quants.quantize(other, fmt.name), packed)
    y = quants.dequantize(packed, fmt.name, x.shape)
    assert y.shape == x.shape and y.dtype == np.float32
    assert np.array_equal(quants.dequantize(packed.tobytes(), fmt.name, [6, 512]), y.reshape(6, 512))
    shifted = np.frombuffer(b"\0" + packed.tobytes(), np.uint8)[1:]
    assert np.array_equal(quants.dequantize(shifted, fmt.name, 6 * 512), y.ravel())
    assert quants.quantize(np.empty((0, 512)), fmt.name).shape == (0, fmt.row_bytes(512))
    assert quants.dequantize(b"", fmt.name, (0, 512)).shape == (0, 512)


def test_float_formats_say_that_importance_has_no_effect() -> None:
    for fmt in FORMATS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quants.quantize(np.ones((1, 256)), fmt.name, np.ones(256))
        assert [w.category for w in caught] == ([GristmillWarning] if fmt.kind == "float" else []), fmt.name


def test_overflow_of_a_float_format_is_told() -> None:
    with pytest.warns(GristmillWarning, match="2 finite values became infinite.*F16"):
        quants.quantize([[1.0, 1e6, -7e4, 65504.0]], "F16")
    with pytest.warns(GristmillWarning, match="1 finite values became infinite.*F32"):
        quants.quantize(np.array([1e300, 1.0]), "F32")
