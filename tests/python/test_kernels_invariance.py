"""What a product does not depend on, what it never hides, and how quants.matmul refuses arguments."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gristmill import _core, quants
from gristmill.errors import ArgumentError, DeviceError
from oracle.products import Array
from test_kernels import _supported, activations, each_format, each_isa, each_mode, multiply, packed_rows

__all__ = ["_supported"]

K = 1280


def same_bits(a: Array, b: Array) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


@each_format
@each_isa
@pytest.mark.parametrize("mode", ["decode", "precise_decode"])
@pytest.mark.parametrize("k", [K, 288])  # whole pieces, and a part; blocks of 256 have no parts
def test_decoding_in_company_changes_no_bit(fmt: quants.Format, isa: str, mode: str, k: int) -> None:
    k = -(-k // fmt.block_size) * fmt.block_size
    packed, _ = packed_rows(fmt, k, "random")
    x = activations(8, k)
    alone = np.concatenate([multiply(packed, fmt, row[None], isa, mode) for row in x])
    for n in range(2, 9):
        assert same_bits(multiply(packed, fmt, x[:n], isa, mode), alone[:n]), f"batch of {n}"


@each_format
@each_isa
@pytest.mark.parametrize("mode", ["prefill", "precise"])
def test_prefill_in_company_changes_no_bit(fmt: quants.Format, isa: str, mode: str) -> None:
    packed, _ = packed_rows(fmt, K, "random")
    x = activations(200, K)
    together = multiply(packed, fmt, x, isa, mode)
    for n in (1, 2, 3, 17, 70):
        assert same_bits(multiply(packed, fmt, x[:n], isa, mode), together[:n]), f"batch of {n}"


@each_format
@each_isa
def test_prefill_is_precise_where_it_has_no_8_bits(fmt: quants.Format, isa: str) -> None:
    """Where a set has no kernels of fewer bits for a format. Elsewhere the two must not be one."""
    packed, _ = packed_rows(fmt, K, "random")
    x = activations(9, K)
    same = same_bits(multiply(packed, fmt, x, isa, "prefill"), multiply(packed, fmt, x, isa, "precise"))
    bits = [_core.activation_bits(isa, fmt.type_id, mode) for mode in ("prefill", "precise")]
    assert bits[1] == 32 if fmt.kind == "float" else bits[1] in (15, 16)
    assert same == (bits[0] == bits[1])


@each_format
@each_isa
@each_mode
def test_rows_do_not_depend_on_their_neighbours(fmt: quants.Format, isa: str, mode: str) -> None:
    packed, _ = packed_rows(fmt, K, "random")
    x = activations(5, K)
    together = multiply(packed, fmt, x, isa, mode)
    for rows in (slice(0, 1), slice(3, 20), slice(129, 130)):
        assert same_bits(multiply(packed[rows], fmt, x, isa, mode), together[:, rows]), rows


def nan_fields(fmt: quants.Format) -> list[int]:
    """Offsets in a block where a half that is not a number makes weights that are none: scales and minima."""
    rng = np.random.default_rng(1)
    found = []
    for offset in range(fmt.type_size - 1):
        block = rng.integers(0, 64, fmt.type_size, dtype=np.uint8)
        block[offset : offset + 2] = 0xFF, 0x7F
        if np.isnan(quants.dequantize(block, fmt.name, fmt.block_size)).all():
            found.append(offset)
    assert found, fmt.name
    return found


@each_format
@each_isa
@each_mode
def test_a_scale_that_is_not_a_number_is_seen(fmt: quants.Format, isa: str, mode: str) -> None:
    packed, _ = packed_rows(fmt, K, "gaussian")
    x = activations(9, K)
    for offset in nan_fields(fmt):
        for block in {0, K // fmt.block_size // 2, K // fmt.block_size - 1}:
            spoiled = packed[:33].copy()
            at = block * fmt.type_size + offset
            spoiled[20, at : at + 2] = 0xFF, 0x7F
            y = multiply(spoiled, fmt, x, isa, mode)
            assert np.isnan(y[:, 20]).all(), f"field at byte {offset} of block {block}"
            assert np.isfinite(np.delete(y, 20, axis=1)).all()


@each_format
@each_isa
@each_mode
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_is_seen(
    fmt: quants.Format, isa: str, mode: str, value: float
) -> None:
    packed, _ = packed_rows(fmt, K, "gaussian")
    x = activations(9, K)
    for column in (0, 31, 700, K - 1):
        spoiled = x.copy()
        spoiled[4, column] = value
        y = multiply(packed[:33], fmt, spoiled, isa, mode)
        assert not np.isfinite(y[4]).any(), f"column {column}"
        assert same_bits(np.delete(y, 4, 0), np.delete(multiply(packed[:33], fmt, x, isa, mode), 4, 0))


@each_isa
@pytest.mark.parametrize(
    "case",
    [("Q4_1", "decode"), ("Q4_1", "precise_decode"), ("F16", "prefill"), ("BF16", "prefill")],
    ids="-".join,
)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-31, 1e-25, 1e25, 1e33])
def test_activations_of_any_magnitude(isa: str, case: tuple[str, str], scale: float) -> None:
    fmt, mode = quants.format_named(case[0]), case[1]
    packed, weights = packed_rows(fmt, K, "gaussian")
    x = (np.random.default_rng(2).standard_normal((2, K)) * scale).astype(np.float32)
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    # Groups below 2^-100 count as zero.
    allowed = np.abs(x).astype(np.float64) @ np.abs(weights).T * (1 if scale < 1e-30 else 1e-3)
    assert (np.abs(multiply(packed, fmt, x, isa, mode) - exact) <= allowed).all()


@each_isa
@pytest.mark.parametrize(
    "case", [("F16", 1e-6), ("F16", 2e3), ("BF16", 1e-35), ("BF16", 1e-28), ("BF16", 1e32)]
)
def test_weights_of_any_magnitude(isa: str, case: tuple[str, float]) -> None:
    """Subnormal halves, and groups below 2^-100, which prefill may take as zero."""
    name, scale = case
    fmt = quants.format_named(name)
    rng = np.random.default_rng(3)
    packed = quants.quantize((rng.standard_normal((17, K)) * scale).astype(np.float32), name)
    weights = quants.dequantize(packed, name, (17, K))
    x = rng.standard_normal((9, K)).astype(np.float32)
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    allowed = np.abs(x).astype(np.float64) @ np.abs(weights).T * (1 if scale < 1e-30 else 1e-3)
    assert (np.abs(multiply(packed, fmt, x, isa, "prefill") - exact) <= allowed).all()


@each_isa
@pytest.mark.parametrize("case", [("F16", 0x7C00), ("F16", 0xFC01), ("BF16", 0x7F80), ("BF16", 0x7FC1)])
def test_weights_that_are_not_finite(isa: str, case: tuple[str, int]) -> None:
    """Infinity or NaN in one row spoils that row of the result and no other."""
    fmt = quants.format_named(case[0])
    packed, _ = packed_rows(fmt, K, "gaussian")
    x = activations(9, K)
    exact = multiply(packed[:33], fmt, x, isa, "prefill")
    for row, column in ((0, 0), (16, 31), (32, K - 1)):
        spoiled = packed[:33].copy()
        spoiled.view("<u2")[row, column] = case[1]
        y = multiply(spoiled, fmt, x, isa, "prefill")
        whole = x[:, column] != 0  # zero times infinity is NaN as well, but a group of zeros may be left out
        assert not np.isfinite(y[whole, row]).any()
        assert same_bits(np.delete(y, row, 1), np.delete(exact, row, 1))


def refused(*parts: str) -> pytest.RaisesExc[ArgumentError]:
    return pytest.raises(ArgumentError, match=".*".join(map(re.escape, parts)))


def test_arguments_that_do_not_fit() -> None:
    packed = quants.quantize(np.ones((3, 64)), "Q8_0")
    x = np.ones((2, 64), np.float32)
    assert quants.matmul(packed, "Q8_0", (3, 64), x[0]).shape == (3,)
    assert quants.matmul(packed[:0], "Q8_0", (0, 64), x).shape == (2, 0)
    assert quants.matmul(packed, "Q8_0", (3, 64), x[:0]).shape == (0, 3)
    assert not quants.matmul(packed[:, :0], "Q8_0", (3, 0), x[:, :0]).any()
    with refused("unknown type", "'Q8'"):
        quants.matmul(packed, "Q8", (3, 64), x)
    with refused("shape of the matrix", "(m, k)"):
        quants.matmul(packed, "Q8_0", (1, 3, 64), x)  # type: ignore[arg-type]
    with refused("(4, 64)", "got 204"):
        quants.matmul(packed, "Q8_0", (4, 64), x)
    with refused("multiple of 32", "got 63"):
        quants.matmul(packed, "Q8_0", (3, 63), x)
    with refused("x must have shape", "(n, 64)", "(2, 32)"):
        quants.matmul(packed, "Q8_0", (3, 64), x[:, :32])
    with refused("x must be an array of real numbers", "complex"):
        quants.matmul(packed, "Q8_0", (3, 64), x.astype(complex))
    with refused("mode", "decode, prefill, precise_decode, precise or auto", "both"):
        quants.matmul(packed, "Q8_0", (3, 64), x, mode="both")
    with refused("sse9"):
        quants.matmul(packed, "Q8_0", (3, 64), x, isa="sse9")


def test_an_instruction_set_that_the_machine_lacks_is_refused() -> None:
    lacking = [isa for isa in _core.built_isas() if isa not in _core.supported_isas()]
    if not lacking:
        pytest.skip("this machine has every instruction set that was built")
    with pytest.raises(DeviceError, match=lacking[0]):
        quants.matmul(quants.quantize(np.ones((1, 32)), "Q8_0"), "Q8_0", (1, 32), np.ones(32), isa=lacking[0])
