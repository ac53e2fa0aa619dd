"""The arithmetic of divergence alone: processor time a position, two sizes of vocabulary, one thread.

python benchmarks/divergence.py
"""

from __future__ import annotations

import time

import numpy as np
from gristmill.lab.divergences import Reference

POSITIONS, REPEATS = 64, 5


def main() -> None:
    rng = np.random.default_rng(0)
    print("| vocabulary | base, ms a position | each model against it |")
    print("|---|---|---|")
    for n_vocab in (49152, 152064):
        p = (3 * rng.standard_normal((POSITIONS, n_vocab))).astype(np.float32)
        q = (p + 0.05 * rng.standard_normal(p.shape)).astype(np.float32)
        base, model = [], []
        for _ in range(REPEATS):
            start = time.process_time()
            reference = Reference(p)
            base.append(time.process_time() - start)
            start = time.process_time()
            reference.compare(q, np.zeros(POSITIONS, np.int32))
            model.append(time.process_time() - start)
        print(f"| {n_vocab} | {1e3 * min(base) / POSITIONS:.2f} | {1e3 * min(model) / POSITIONS:.2f} |")


if __name__ == "__main__":
    main()
