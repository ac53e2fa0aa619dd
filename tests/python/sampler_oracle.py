"""The samplers in plain numpy and float64, from their definitions: candidates are sorted, summed and cut one
by one.

A decision that hangs on less than MARGIN of probability raises AmbiguousError: float32 and float64 may then
rightly differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MARGIN = 2e-6


class AmbiguousError(Exception):
    pass


@dataclass
class State:
    ids: np.ndarray  # ascending
    logits: np.ndarray  # float32
    n_vocab: int
    history: list[int]
    rng: np.random.RandomState
    breakers: list[tuple[int, list[int]]] = field(default_factory=list)

    def order(self) -> list[int]:
        """Indices, most likely first, ties by id."""
        return sorted(range(len(self.ids)), key=lambda i: (-self.logits[i], self.ids[i]))

    def probs(self) -> np.ndarray:
        x = self.logits.astype(np.float64)
        weights = np.exp(x - x.max())
        return weights / weights.sum()

    def keep(self, indices: Sequence[int]) -> None:
        indices = sorted(indices)
        self.ids, self.logits = self.ids[indices], self.logits[indices]


def _decide(difference: float) -> bool:
    """difference >= 0, unless that is too close to call."""
    if abs(difference) < MARGIN:
        raise AmbiguousError
    return difference > 0


def top_k(s: State, k: int) -> None:
    if k > 0:
        s.keep(s.order()[:k])


def _prefix(s: State, order: Sequence[int], p: float, min_keep: int) -> None:
    probs, total = s.probs(), 0.0
    for count, i in enumerate(order, 1):
        total += probs[i]
        if count >= min_keep and _decide(total - p):
            return s.keep(order[:count])


def top_p(s: State, p: float, min_keep: int) -> None:
    if p < 1:
        _prefix(s, s.order(), p, min_keep)


def min_p(s: State, p: float, min_keep: int) -> None:
    if p <= 0:
        return
    order = s.order()
    limit = float(s.logits.max()) + math.log(p)
    kept = [i for rank, i in enumerate(order) if rank < max(min_keep, 1) or s.logits[i] >= limit]
    if any(abs(s.logits - limit) < MARGIN):
        raise AmbiguousError
    s.keep(kept)


def entropy(s: State) -> float:
    probs = s.probs()
    probs = probs[probs > 0]
    return float(-(probs * np.log(probs)).sum())


def typ_p(s: State, p: float, min_keep: int) -> None:
    if p >= 1:
        return
    with np.errstate(divide="ignore"):
        distance = np.abs(-np.log(s.probs()) - entropy(s))
    order = sorted(range(len(s.ids)), key=lambda i: (distance[i], -s.logits[i], s.ids[i]))
    for a, b in itertools.pairwise(order):
        # Equal logits have equal distances; others that are nearly equal may rank either way.
        if math.isinf(distance[b]) or s.logits[a] == s.logits[b]:
            continue
        if distance[b] - distance[a] < 1e-5 * max(1.0, distance[a]):
            raise AmbiguousError
    _prefix(s, order, p, min_keep)


def top_n_sigma(s: State, n: float) -> None:
    if n <= 0 or len(s.ids) <= 1:
        return
    x = s.logits.astype(np.float64)
    finite = x[np.isfinite(x)]
    limit = finite.max() - n * finite.std()
    if any(abs(finite - limit) < MARGIN):
        raise AmbiguousError
    s.logits = np.where(x < limit, np.float32(-np.inf), s.logits)


def xtc(s: State, probability: float, threshold: float, min_keep: int) -> None:
    if probability <= 0 or threshold > 0.5 or len(s.ids) < 2:
        return
    if s.rng.random_sample() > probability:
        return
    probs, order = s.probs(), s.order()
    top = [i for i in order if _decide(probs[i] - threshold)]
    if len(top) >= 2 and len(order) - len(top) + 1 >= min_keep:
        s.keep(order[len(top) - 1 :])


def temperature(s: State, temp: float, spread: float, exponent: float) -> None:
    if spread > 0:
        if len(s.ids) <= 1:
            return
        low, high = max(0.0, temp - spread), temp + spread
        temp = low + (high - low) * max(0.0, entropy(s) / math.log(len(s.ids))) ** exponent
    if temp <= 0:
        return s.keep(s.order()[:1])
    s.logits = (s.logits / np.float32(temp)).astype(np.float32)


def penalties(s: State, last_n: int, repeat: float, frequency: float, presence: float) -> None:
    window = s.history[-last_n:] if last_n > 0 else []
    logits = s.logits.astype(np.float64)
    for i, token in enumerate(s.ids):
        count = window.count(int(token))
        if count:
            logits[i] = logits[i] / repeat if logits[i] > 0 else logits[i] * repeat
            logits[i] -= count * frequency + presence
    s.logits = logits.astype(np.float32)


def dry(s: State, multiplier: float, base: float, allowed: int, last_n: int) -> None:
    """Compares the context's end with every earlier place, token by token: quadratic, but plainly right."""
    if multiplier == 0 or base < 1 or last_n == 0:
        return
    window = s.history if last_n < 0 else s.history[-last_n:]
    n = len(window)
    if n <= allowed:
        return
    limit = n
    for after in range(n):
        head = n - 1 - after
        tails = [len(t) for h, t in s.breakers if h == window[head] and window[head + 1 :][: len(t)] == t]
        if tails:
            limit = after - max(tails)
            break
    if limit < allowed:
        return
    longest: dict[int, int] = {}
    for end in range(1, n):  # window[:end] ends like the window, and window[end] came next
        length = 0
        while length < end and window[end - 1 - length] == window[n - 1 - length]:
            length += 1
        length = min(length, limit)
        if length >= allowed:
            longest[window[end]] = max(longest.get(window[end], 0), length)
    single = {head for head, tail in s.breakers if not tail}
    logits = s.logits.astype(np.float64)
    for i, token in enumerate(s.ids):
        if int(token) in longest and int(token) not in single:
            logits[i] -= multiplier * base ** (longest[int(token)] - allowed)
    s.logits = logits.astype(np.float32)


def logit_bias(s: State, biases: dict[int, float]) -> None:
    for i, token in enumerate(s.ids):
        s.logits[i] += np.float32(biases.get(int(token), 0.0))


def mirostat(s: State, mu: float) -> None:
    x = np.sort(s.logits.astype(np.float64))[::-1][:100]
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return s.keep(s.order()[:1])
    t = np.log(np.arange(2, len(x) + 1) / np.arange(1, len(x)))
    zipf = float((t * -np.diff(x)).sum() / (t * t).sum())
    epsilon = zipf - 1
    if abs(epsilon) < 1e-6 or zipf < 1e-6:
        raise AmbiguousError
    base = epsilon * 2**mu / (1 - s.n_vocab**-epsilon)
    log_k = math.log(base) / zipf
    k = math.exp(log_k) if log_k < 40 else math.inf
    if k < len(s.ids) + 1 and k >= 1 and abs(k - round(k)) < 1e-4:
        raise AmbiguousError
    s.keep(s.order()[: int(min(max(k, 1), len(s.ids)))])


def mirostat_v2(s: State, mu: float) -> None:
    with np.errstate(divide="ignore"):
        surprise = -np.log2(s.probs())
    kept = [i for i in s.order() if _decide(mu - surprise[i])]
    s.keep(kept or s.order()[:1])


def draw(s: State) -> int:
    """The inverse of the cumulative distribution, in the order of ids."""
    total = np.cumsum(s.probs())
    u = s.rng.random_sample()
    if np.abs(total - u).min() < MARGIN:
        raise AmbiguousError
    return int(s.ids[np.searchsorted(total, u, side="right")])
