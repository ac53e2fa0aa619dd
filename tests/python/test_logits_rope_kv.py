"""RoPE scaling, by metadata and by overrides, and the types of the KV cache, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle.build import linear, yarn
from oracle.engine import Engine
from oracle.forward import Oracle
from test_logits import ARCHITECTURES, BOUND, F32_CACHE, TinyModel, largest_error, rms_error

IDS = np.random.default_rng(9).integers(0, 320, 200)
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": linear(4.0),
    "yarn": yarn(4.0, 64),
    "yarn, betas": yarn(2.5, 64, yarn_beta_fast=16.0, yarn_beta_slow=2.0),
    "yarn, attn_factor": yarn(4.0, 64, attn_factor=1.125),
    "yarn, as long as the context": {"{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 2.0},
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scaling(engine: Engine, tiny_model: TinyModel, arch: str, scaling: str) -> None:
    scaled = tiny_model(arch=arch, metadata=SCALINGS[scaling])
    logits = engine.logits(scaled, IDS, **F32_CACHE)
    error = largest_error(logits, Oracle(scaled).forward(IDS))
    print(f"{engine.isa}, {arch}, {scaling}: {error:.1e}")
    assert error < BOUND["float"]

    plain = tiny_model(arch=arch)
    overrides = {key.format(arch=arch): value for key, value in SCALINGS[scaling].items()}
    assert np.array_equal(engine.logits(plain, IDS, overrides=overrides, **F32_CACHE), logits)
    # The bound would be void if scaling changed less than it.
    assert largest_error(Oracle(plain).forward(IDS), Oracle(scaled).forward(IDS)) > 100 * BOUND["float"]


@pytest.mark.parametrize("base", [500.0, 1e6])
def test_base(engine: Engine, tiny_model: TinyModel, base: float) -> None:
    path = tiny_model(rope_base=base)
    logits = engine.logits(path, IDS, **F32_CACHE)
    assert largest_error(logits, Oracle(path).forward(IDS)) < BOUND["float"]
    overrides = {"qwen2.rope.freq_base": base}
    assert np.array_equal(engine.logits(tiny_model(), IDS, overrides=overrides, **F32_CACHE), logits)


def test_rope_freqs(engine: Engine, tiny_model: TinyModel) -> None:
    path = tiny_model(arch="llama", rope_freqs=True, rope_base=5e5)
    logits = engine.logits(path, IDS, **F32_CACHE)
    assert largest_error(logits, Oracle(path).forward(IDS)) < BOUND["float"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_part_of_each_head_rotates(engine: Engine, tiny_model: TinyModel, arch: str) -> None:
    path = tiny_model(arch=arch, rope_dim=32)
    logits = engine.logits(path, IDS, **F32_CACHE)
    assert largest_error(logits, Oracle(path).forward(IDS)) < BOUND["float"]


def test_epsilon_override(engine: Engine, tiny_model: TinyModel) -> None:
    overrides = {"qwen2.attention.layer_norm_rms_epsilon": 0.25}
    logits = engine.logits(tiny_model(), IDS, overrides=overrides, **F32_CACHE)
    assert largest_error(logits, Oracle(tiny_model(), overrides).forward(IDS)) < BOUND["float"]


# A key or value that float32 and float64 put on two sides of a rounding boundary ends up one step apart:
# 2**-11 of itself in f16, 1/127 of the block's largest in q8_0. Few do. The rounding itself does far more,
# which test_cache_type checks, so that a cache that rounds otherwise (or not at all) is found out.
CACHE_BOUNDS = {"f32": 5e-6, "f16": 1e-4, "q8_0": 5e-4}  # root mean square


@pytest.mark.parametrize("type_v", CACHE_BOUNDS)
@pytest.mark.parametrize("type_k", CACHE_BOUNDS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cache_type(engine: Engine, tiny_model: TinyModel, arch: str, type_k: str, type_v: str) -> None:
    path = tiny_model(arch=arch)
    reference = Oracle(path).forward(IDS[:150], (type_k, type_v))
    limit = max(CACHE_BOUNDS[type_k], CACHE_BOUNDS[type_v])
    for splits in (None, [100, *[1] * 50]):
        logits = engine.logits(path, IDS[:150], splits, cache_type_k=type_k, cache_type_v=type_v)
        error = rms_error(logits, reference)
        print(f"{engine.isa}, {arch}: K {type_k}, V {type_v}: {error:.1e}, bound {limit:.0e}")
        assert error < limit
        if (type_k, type_v) != ("f32", "f32"):
            assert error < rms_error(Oracle(path).forward(IDS[:150]), reference) / 2


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [((4, 4), 32), ((4, 1), 96), ((6, 2), 128), ((16, 1), 32), ((2, 2), 160)],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_cache_type_of_any_shape(
    engine: Engine, tiny_model: TinyModel, heads: tuple[int, int], head_dim: int, cache_type: str
) -> None:
    """Sets may have kernels of their own for prompts; with 16 heads to one, 16 queries decode together."""
    path = tiny_model(n_head=heads[0], n_head_kv=heads[1], head_dim=head_dim)
    ids, cache = IDS[:77], {"cache_type_k": cache_type, "cache_type_v": cache_type}
    reference = Oracle(path).forward(ids, (cache_type, cache_type))
    for splits in (None, [70, *[1] * 7]):
        error = rms_error(engine.logits(path, ids, splits, **cache), reference)
        assert error < CACHE_BOUNDS[cache_type]


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_cache_type_of_a_long_prompt(engine: Engine, tiny_model: TinyModel, cache_type: str) -> None:
    """More positions than lie together in memory, in prefill and in decoding."""
    path = tiny_model(n_layer=1, n_embd=64, n_head=2, n_head_kv=1, n_ff=64, n_ctx=2048)
    ids = np.random.default_rng(8).integers(0, 320, 1103)
    reference = Oracle(path).forward(ids, (cache_type, cache_type))
    cache = {"cache_type_k": cache_type, "cache_type_v": cache_type}
    for splits in (None, [700, 400, 1, 1, 1]):
        assert rms_error(engine.logits(path, ids, splits, **cache), reference) < CACHE_BOUNDS[cache_type]


def test_f16_is_the_default_cache(engine: Engine, tiny_model: TinyModel) -> None:
    path = tiny_model()
    named = engine.logits(path, IDS, cache_type_k="f16", cache_type_v="f16")
    assert np.array_equal(engine.logits(path, IDS), named)
