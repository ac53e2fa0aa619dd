"""How close the engine stays to the exact model on a real file and real text.

The exact model is the file's weights dequantized and everything else in float32, by the oracle.
The engine runs as users run it, with its default f16 KV cache, and with ``precise``.
"""

from __future__ import annotations

from pathlib import Path

import gristmill
import numpy as np
import pytest
from gristmill import Tokenizer, _core, quants
from oracle.engine import Engine, forward_all
from oracle.forward import Oracle
from oracle.requantize import requantize

# By the bits of activations. 15 bits and the f16 cache leave 6e-7 where 32 share a scale, 4e-6 where a row
# does. 8 bits alone would leave 3e-3; with the outliers' upper bits they leave 6e-4.
MEAN_KL = {8: 1e-3, 14: 1e-5, 15: 1e-5, 16: 1e-5, 32: 1e-5}
# bfloat16 has 8 bits of each value itself, which leave 0.9e-4 to 1.2e-4.
MEAN_KL_BFLOAT16 = 2.5e-4

TEXT = Path(__file__).parent / "data" / "prose.txt"
N_MIN = 765
N_CTX = 1024
# Decoded one by one after a prefill of the rest: the two have kernels of their own.
N_DECODED = 32
# For instruction sets other than the machine's best, of which some would take minutes for the whole text.
N_OTHER = 128
# For the same weights in other formats, each of which needs an exact model of its own.
N_REQUANTIZED = 128


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def perplexity(log_p: np.ndarray, ids: list[int]) -> float:
    """exp of the mean negative log probability of each token after the first."""
    return float(np.exp(-np.mean(log_p[np.arange(len(ids) - 1), ids[1:]])))


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p || q) at each position, in nats."""
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


@pytest.fixture(scope="module")
def ids(smollm2_path: Path) -> list[int]:
    tokens = Tokenizer.from_gguf(smollm2_path).encode(TEXT.read_text(encoding="utf-8"))
    assert len(tokens) > N_MIN
    return tokens


@pytest.fixture(scope="module")
def exact(smollm2_path: Path, ids: list[int]) -> np.ndarray:
    """Log probabilities of the exact model, float64 [len(ids), n_vocab]."""
    return log_softmax(Oracle(smollm2_path, dtype=np.float32).forward(ids))


@pytest.mark.slow
def test_close_to_the_exact_model(
    engine: Engine, smollm2_path: Path, ids: list[int], exact: np.ndarray
) -> None:
    best = engine.isa == _core.supported_isas()[0]
    ids, exact = (ids, exact) if best else (ids[:N_OTHER], exact[:N_OTHER])
    splits = [len(ids) - N_DECODED, *[1] * N_DECODED]
    q4_1 = quants.format_named("Q4_1").type_id
    most, fewest = (_core.activation_bits(engine.isa, q4_1, mode) for mode in ("precise", "prefill"))
    # A set without kernels of 8 bits has the same bits in both modes, which test_logits.py sees to.
    for bits in sorted({most, fewest}):
        log_q = log_softmax(engine.logits(smollm2_path, ids, splits, n_ctx=N_CTX, precise=bits == most))
        kl = divergence(exact, log_q)
        top = np.mean(exact.argmax(axis=-1) == log_q.argmax(axis=-1))
        ratio = perplexity(log_q, ids) / perplexity(exact, ids)
        print(
            f"{engine.isa}, prefill {bits} bits: {len(ids)} positions, mean KL {kl.mean():.1e}, "
            f"decoded {kl[-N_DECODED:].mean():.1e}, 99th percentile {np.percentile(kl, 99):.1e}, "
            f"top-1 agreement {top:.4f}, perplexity {perplexity(log_q, ids):.4f}, "
            f"{ratio:.5f} of the exact model's"
        )
        tiles = bits == 8 and _core.arithmetic(engine.isa, q4_1, "prefill") == "bfloat16"
        assert kl[:-N_DECODED].mean() < (MEAN_KL_BFLOAT16 if tiles else MEAN_KL[bits])
        assert kl[-N_DECODED:].mean() < MEAN_KL[bits]
        assert abs(ratio - 1) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_close_in_other_formats(smollm2_path: Path, ids: list[int], tmp_path: Path, name: str) -> None:
    path = requantize(smollm2_path, tmp_path / f"{name}.gguf", {"": name})
    ids = ids[:N_REQUANTIZED]
    exact = log_softmax(Oracle(path, dtype=np.float32).forward(ids))
    for precise in (True, False):
        model = gristmill.load(path, n_ctx=N_REQUANTIZED, precise=precise)
        kl = divergence(exact, log_softmax(forward_all(model.session(), ids))).mean()
        bits = model.prefill_bits
        print(f"{model.isa}, {name}, prefill {bits} bits: {len(ids)} positions, mean KL {kl:.1e}")
        tiles = bits == 8 and model.prefill_arithmetic == "bfloat16"
        assert kl < (MEAN_KL_BFLOAT16 if tiles else MEAN_KL[bits])
    path.unlink()  # up to 260 MB
