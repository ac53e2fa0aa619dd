"""How close the engine stays to the exact model on a real file and real text.

The exact model is the file's weights dequantized and everything else in float32, by the oracle.
The engine runs as users run it, with its default f16 KV cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle.engine import Engine
from oracle.forward import Oracle

TEXT = Path(__file__).parent / "data" / "prose.txt"
N_MIN = 765
N_CTX = 1024


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
    import gristmill

    tokens = gristmill.Tokenizer.from_gguf(smollm2_path).encode(TEXT.read_text(encoding="utf-8"))
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
    # Prefill but for the last positions, which are decoded: the two have kernels of their own.
    n_decoded = 32 if engine.isa != "scalar" else 4
    splits = [len(ids) - n_decoded, *[1] * n_decoded]
    log_q = log_softmax(engine.logits(smollm2_path, ids, splits, n_ctx=N_CTX))
    kl = divergence(exact, log_q)
    top = np.mean(exact.argmax(axis=-1) == log_q.argmax(axis=-1))
    ratio = perplexity(log_q, ids) / perplexity(exact, ids)
    print(
        f"{engine.isa}: {len(ids)} positions, mean KL {kl.mean():.1e}, decoded {kl[-n_decoded:].mean():.1e}, "
        f"99th percentile {np.percentile(kl, 99):.1e}, top-1 agreement {top:.4f}, "
        f"perplexity {perplexity(log_q, ids):.4f}, {ratio:.5f} of the exact model's"
    )
    assert kl.mean() < 3e-3
    assert kl[-n_decoded:].mean() < 3e-3
    assert abs(ratio - 1) < 0.005
