"""Time of SamplerChain.sample for one token, single-threaded, handing over the logits included.

    python benchmarks/sampling.py [--n-vocab 152064] [--json result.json]

"peaked" logits have a few clear favourites, as a model's mostly have; "flat" ones are plain Gaussian noise,
of which top_p 0.95 keeps tens of thousands: the worst case for a truncation. Each figure is the best of
several rounds, each round the mean over a few different vectors, so that none stays in the nearest cache.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from gristmill import (
    Greedy,
    GristmillWarning,
    MinP,
    Mirostat,
    MirostatV2,
    SamplerChain,
    Temperature,
    TopNSigma,
    TopP,
    TypicalP,
    Xtc,
)

ROUNDS = 15
VECTORS = 8


def chains() -> dict[str, SamplerChain]:
    warnings.simplefilter("ignore", GristmillWarning)  # DRY's breakers need a tokenizer, not wanted here
    return {
        "llama.cpp's default chain": SamplerChain.parse(seed=1),
        "default, penalties and dry on": SamplerChain.parse(repeat_penalty=1.1, dry_multiplier=0.8, seed=1),
        "default, dry over 8192 tokens": SamplerChain.parse(
            dry_multiplier=0.8, dry_penalty_last_n=-1, seed=1
        ),
        "preset qwq": SamplerChain.preset("qwq", seed=1),
        "greedy": SamplerChain([Greedy()], seed=1),
        "temperature": SamplerChain([Temperature(0.8)], seed=1),
        "dynamic temperature": SamplerChain([Temperature(0.8, 0.3)], seed=1),
        "min_p": SamplerChain([MinP(0.05)], seed=1),
        "top_p": SamplerChain([TopP(0.95)], seed=1),
        "typ_p": SamplerChain([TypicalP(0.95)], seed=1),
        "top_n_sigma": SamplerChain([TopNSigma(1.0)], seed=1),
        "xtc": SamplerChain([Xtc(1.0, 0.1)], seed=1),
        "mirostat": SamplerChain([Mirostat()], seed=1),
        "mirostat_v2": SamplerChain([MirostatV2()], seed=1),
        "default without top_k": SamplerChain.parse(top_k=0, seed=1),
    }


def logits(kind: str, n_vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = []
    for _ in range(VECTORS):
        x = rng.standard_normal(n_vocab) * (2.5 if kind == "peaked" else 1.0)
        if kind == "peaked":
            x[rng.integers(0, n_vocab, 20)] += np.linspace(8, 14, 20)
        vectors.append(x.astype(np.float32))
    return vectors


def measure(chain: SamplerChain, vectors: list[np.ndarray], n_history: int) -> float:
    """Milliseconds a token."""
    chain.reset()
    chain.accept_many(np.random.default_rng(1).integers(0, len(vectors[0]), n_history))
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for x in vectors:
            chain.sample(x)
        best = min(best, (time.perf_counter() - start) / len(vectors))
    return best * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n-vocab", type=int, default=152_064)
    parser.add_argument("--history", type=int, default=8192, help="accepted tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    vectors = {kind: logits(kind, args.n_vocab) for kind in ("peaked", "flat")}
    results = {}
    print(f"{'ms a token, n_vocab ' + str(args.n_vocab):36}{'peaked':>8}{'flat':>8}")
    for name, chain in chains().items():
        results[name] = {kind: measure(chain, vectors[kind], args.history) for kind in vectors}
        print(f"{name:36}{results[name]['peaked']:8.3f}{results[name]['flat']:8.3f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
