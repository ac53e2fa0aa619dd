"""Logits of every block format, architecture and instruction set against the float64 oracle.

Errors are given in units of the logits' root mean square, and the largest one counts. Weights enter exactly,
so what is left is rounding of activations: to float32 for float formats, to 15 bits for quantized ones (see
BOUND), or, unless the model was loaded with ``precise``, to 8 (see BOUND_8_BIT), and in prefill to 14 beside
weights of F16 and BF16, which are rounded as well (see BOUND_14_BIT). The KV cache is float32 here, for
nothing else to blur the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gristmill import _core, quants
from gristmill.gguf import GGUFFile
from oracle.blocks import FORMATS, block_size
from oracle.engine import Engine
from oracle.forward import Oracle

NAMES = [f.name for f in quants.formats()]
ARCHITECTURES = _core.supported_architectures()
# A quantized activation is off by up to half a step of 1/16256 of the largest of its 32: for normal values
# 4e-5 of their spread, and so is a product of them. Two layers and the head quantize nine times, among them
# gated values with longer tails: 1.3e-4 together, and the largest of 12 000 logits is five deviations out.
# Float formats leave the rounding of float32 sums.
BOUND = {"affine": 1.5e-3, "float": 2e-5}
# 8 bits have 127 steps where 15 have 16256, so everything is 128 times as much: 1.7e-2 together, and the
# largest again at five deviations. The root mean square of all logits scatters less than the largest one, by
# which share of a format's codes is large: 0.9e-2 to 2.1e-2.
BOUND_8_BIT = 128 * BOUND["affine"]
RMS_8_BIT = 2.5e-2
# 14 bits have 8191 steps and round weights too: 1.1e-4 of a product, 2.9 times that of 15 bits.
BOUND_14_BIT = 2.9 * BOUND["affine"]
RMS_14_BIT = 2.9 / 128 * RMS_8_BIT
# Two bfloat16 have 16 bits of each value itself, off by 2^-17 of it or so: a tenth of what 15 bits are.
BOUND_16_BIT = BOUND["affine"] / 5
RMS_16_BIT = RMS_8_BIT / 128 / 5
# By the fewest bits that a product of the model takes, and what multiplies them. A bfloat16 is off by 2^-9 of
# itself at most, weight and activation, 1.5e-3 of a product together: a third of what 8 bits and a scale are.
DEFAULT_BOUNDS = {
    (8, "int8"): (BOUND_8_BIT, RMS_8_BIT),
    (8, "bfloat16"): (BOUND_8_BIT / 2, RMS_8_BIT / 2),
    (14, "int16"): (BOUND_14_BIT, RMS_14_BIT),
    (16, "bfloat16"): (BOUND_16_BIT, RMS_16_BIT),
}
IDS = np.random.default_rng(7).integers(0, 320, 37)
F32_CACHE = {"cache_type_k": "f32", "cache_type_v": "f32"}

TinyModel = Callable[..., Path]


@functools.cache
def _expected(path: Path, ids: tuple[int, ...], kv: str) -> np.ndarray:
    return Oracle(path).forward(ids, kv)


def expected(path: Path, ids: Sequence[int], kv: str = "f32") -> np.ndarray:
    """The oracle's logits; remembered, because every instruction set asks for the same."""
    return _expected(path, tuple(int(i) for i in ids), kv)


def largest_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference in units of the reference's root mean square; infinite for anything not finite."""
    assert logits.shape == reference.shape
    if not np.isfinite(logits).all():
        return float("inf")
    return float(np.abs(logits - reference).max() / np.sqrt(np.mean(np.square(reference))))


def rms_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square of the difference in units of the reference's."""
    return float(np.sqrt(np.mean(np.square(logits - reference)) / np.mean(np.square(reference))))


def bound(name: str) -> float:
    return BOUND[next(f.kind for f in quants.formats() if f.name == name)]


def check(engine: Engine, path: Path, limit: float, ids: Sequence[int] = IDS) -> None:
    """Prompt at once, and token by token, which have kernels of their own; and both with fewer bits."""
    reference = expected(path, ids)
    for mode, splits in (("decode", [1] * len(ids)), ("prefill", None)):
        logits = engine.logits(path, ids, splits, precise=True, **F32_CACHE)
        error = largest_error(logits, reference)
        print(f"{engine.isa}, {mode}: {error:.1e}, bound {limit:.1e}")
        assert error < limit
        check_default(engine, path, ids, splits, mode, logits)


def fewest_bits(path: Path, isa: str, mode: str) -> tuple[int, str]:
    """Of the activations that any matrix of a model's layers is multiplied with, and what multiplies them."""
    with GGUFFile.open(path) as file:
        matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 2]
        types = {tensor.type_id for tensor in matrices if tensor.name.startswith("blk.")}
    return min((_core.activation_bits(isa, t, mode), _core.arithmetic(isa, t, mode)) for t in types)


def check_default(
    engine: Engine, path: Path, ids: Sequence[int], splits: list[int] | None, mode: str, precise: np.ndarray
) -> None:
    """Logits without ``precise``: the same bits as with it, unless the set has kernels of fewer bits."""
    logits = engine.logits(path, ids, splits, **F32_CACHE)
    bits, arithmetic = fewest_bits(path, engine.isa, mode)
    if (bits, arithmetic) not in DEFAULT_BOUNDS:
        assert np.array_equal(logits, precise)
        return
    largest_bound, rms_bound = DEFAULT_BOUNDS[bits, arithmetic]
    reference = expected(path, ids)
    largest, rms = largest_error(logits, reference), rms_error(logits, reference)
    print(f"{engine.isa}, {mode}, {bits} bits: {largest:.1e}, bound {largest_bound:.1e}; rms {rms:.1e}")
    assert largest < largest_bound
    assert rms < rms_bound
    # One that silently stayed precise would pass the bounds and be slow. 16 bits are not far from float32.
    assert rms > (3 if bits == 16 else 10) * rms_error(precise, reference)


def test_every_format_has_random_blocks() -> None:
    assert sorted(NAMES) == sorted(FORMATS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_format(engine: Engine, tiny_model: TinyModel, arch: str, name: str) -> None:
    # A vocabulary of 322 leaves a remainder in any grouping of rows by 4, 8 or 16.
    check(engine, tiny_model(arch=arch, formats=name, n_vocab=322, seed=1), bound(name))


@pytest.mark.parametrize("name", [name for name in NAMES if block_size(name)[0] <= 32])
def test_rows_of_few_blocks(engine: Engine, tiny_model: TinyModel, name: str) -> None:
    """Rows of 5 and 3 blocks of 32, and of 2 where heads are put together."""
    spec = {"n_embd": 160, "n_head": 2, "n_head_kv": 1, "head_dim": 32, "n_ff": 96}
    check(engine, tiny_model(formats=name, **spec), bound(name))


@pytest.mark.parametrize("width", [96, 288, 576])
def test_width(engine: Engine, tiny_model: TinyModel, width: int) -> None:
    check(
        engine, tiny_model(arch="llama", formats="Q4_1", n_embd=width, n_head=3, n_head_kv=3), bound("Q4_1")
    )


def test_mixed_formats(engine: Engine, tiny_model: TinyModel) -> None:
    """Formats of one layer differ, also among q, k and v, which share their input."""
    mix = {
        "": "Q4_K",
        "attn_v": "Q6_K",
        "ffn_down": "Q5_K",
        "attn_k": "F16",
        "token_embd": "Q3_K",
        "output": "Q8_0",
    }
    check(engine, tiny_model(formats=mix), bound("Q4_K"))


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (8, 2), (6, 3)], ids=lambda h: f"{h[0]}/{h[1]}")
def test_grouped_query_attention(engine: Engine, tiny_model: TinyModel, heads: tuple[int, int]) -> None:
    n_head, n_head_kv = heads
    check(engine, tiny_model(n_head=n_head, n_head_kv=n_head_kv, head_dim=32), bound("F32"))


@pytest.mark.parametrize("head_dim", [16, 40, 80, 128])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_head_size(engine: Engine, tiny_model: TinyModel, arch: str, head_dim: int) -> None:
    check(engine, tiny_model(arch=arch, head_dim=head_dim, rms_eps=1e-5), bound("F32"))


@pytest.mark.parametrize("tied", [False, True], ids=["separate", "tied"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_output_and_bias(engine: Engine, tiny_model: TinyModel, arch: str, bias: bool, tied: bool) -> None:
    check(engine, tiny_model(arch=arch, bias=bias, tied=tied, formats="Q5_0"), bound("Q5_0"))
    check(engine, tiny_model(arch=arch, bias=bias, tied=tied), bound("F32"))


def test_the_output_is_always_precise(engine: Engine, tiny_model: TinyModel) -> None:
    """All other matrices are floats here, which decoding multiplies alike in both modes."""
    path = tiny_model(formats={"": "F16", "output": "Q4_1"})
    ids, splits = IDS[:9], [1] * 9
    precise = engine.logits(path, ids, splits, precise=True)
    assert np.array_equal(engine.logits(path, ids, splits), precise)


def test_outlier_channel(engine: Engine, tiny_model: TinyModel, tmp_path: Path) -> None:
    """One channel 64 times as large as the others, and weights as much smaller where it enters.

    Real models have such channels (Sun et al. 2024, arXiv 2402.17762). A scale that they share with others
    costs those 6 of their bits: of 15 bits a row it leaves 9, of 8 bits nothing.
    """
    path = with_outlier_channel(tiny_model(formats="Q8_0"), tmp_path / "outlier.gguf", scale_its_block)
    error = rms_error(engine.logits(path, IDS, precise=True, **F32_CACHE), expected(path, IDS))
    print(f"{engine.isa}: {error:.1e}")
    assert error < 5e-4
    default = rms_error(engine.logits(path, IDS, **F32_CACHE), expected(path, IDS))
    print(f"{engine.isa}, default: {default:.1e}")
    assert default < RMS_8_BIT


def test_outlier_channel_among_others(engine: Engine, tiny_model: TinyModel, tmp_path: Path) -> None:
    """The same with small weights for that one channel alone, so that its 31 neighbours count in full.

    With a scale from the outlier 8 bits would round each of them to nothing, an eighth of all channels: a
    third of the result. It is kept apart from its group instead, so they have their own scale.
    """
    path = with_outlier_channel(tiny_model(formats="Q8_0"), tmp_path / "outlier.gguf", scale_its_column)
    reference = expected(path, IDS)
    error = rms_error(engine.logits(path, IDS, **F32_CACHE), reference)
    print(f"{engine.isa}: {error:.1e}")
    assert error < RMS_8_BIT


def scale_its_block(blocks: np.ndarray) -> None:
    """A 64th of every row's first scale, so of its first 32 columns, in Q8_0 blocks [rows, bytes]."""
    scales = blocks[:, :2].copy().view(np.float16)
    blocks[:, :2] = (scales / np.float16(64)).view(np.uint8)


def scale_its_column(blocks: np.ndarray) -> None:
    """A 64th of every row's first code."""
    codes = blocks[:, 2].view(np.int8)
    blocks[:, 2] = np.rint(codes / 64).astype(np.int8).view(np.uint8)


def with_outlier_channel(source: Path, path: Path, shrink: Callable[[np.ndarray], None]) -> Path:
    """Copies a Q8_0 model; channel 0 leaves every norm 64 times as large, where weights are shrunk for it."""
    path.write_bytes(source.read_bytes())
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        part = tensor.name.split(".")[-2]
        if part in ("attn_norm", "ffn_norm"):
            tensor.data[0] *= 64
        elif part in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up") and "bias" not in tensor.name:
            shrink(tensor.data)
    reader.data.flush()
    return path


def test_long_prompt(engine: Engine, tiny_model: TinyModel) -> None:
    """Long enough for attention and prefill to work in several pieces, none of them full at the end."""
    path = tiny_model(n_layer=1, n_embd=64, n_head=2, n_head_kv=1, n_ff=64, n_ctx=2048)
    ids = np.random.default_rng(8).integers(0, 320, 1103)
    logits = engine.logits(path, ids, [700, 400, 1, 1, 1], **F32_CACHE)
    assert largest_error(logits, expected(path, ids)) < bound("F32")
