"""Every sampler, alone and in chains of any order, against the plain ones of sampler_oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sampler_oracle as oracle
from gristmill import sampling as gs
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

SEED = 1234

Plain = Callable[[oracle.State], None]
Pair = tuple[gs.Sampler, Plain]


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    # Values that float32 holds, so that both sides compute with the same number.
    return st.floats(low, high, width=32, allow_subnormal=False)


MIN_KEEP = st.sampled_from([0, 0, 1, 2, 7])
P = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 0.9, 1.0]), floats(0.0, 1.125))


@st.composite
def _penalties(draw: st.DrawFn) -> Pair:
    args = (
        draw(st.sampled_from([0, 1, 5, 64])),
        draw(floats(0.5, 2)),
        draw(floats(-1, 2)),
        draw(floats(-1, 2)),
    )
    return gs.Penalties(*args), lambda s: oracle.penalties(s, *args)


@st.composite
def _dry(draw: st.DrawFn) -> Pair:
    args = (
        draw(floats(0, 2)),
        draw(floats(1, 2)),
        draw(st.integers(0, 4)),
        draw(st.sampled_from([-1, 0, 5, 64])),
    )
    return gs.Dry(*args, sequence_breakers=()), lambda s: oracle.dry(s, *args)


@st.composite
def _xtc(draw: st.DrawFn) -> Pair:
    args = (draw(st.sampled_from([0.0, 0.5, 1.0])), draw(floats(0, 0.625)), draw(MIN_KEEP))
    return gs.Xtc(*args), lambda s: oracle.xtc(s, *args)


@st.composite
def _temperature(draw: st.DrawFn) -> Pair:
    spread = draw(st.sampled_from([0.0, 0.0, 0.25, 1.0]))
    args = (draw(st.sampled_from([-1.0, 0.0, 0.25, 0.75, 1.0, 2.0])), spread, draw(floats(0.25, 2)))
    return gs.Temperature(*args), lambda s: oracle.temperature(s, *args)


@st.composite
def _logit_bias(draw: st.DrawFn) -> Pair:
    values = st.one_of(floats(-5, 5), st.just(-np.inf))
    biases = draw(st.dictionaries(st.integers(0, 7), values, max_size=4))
    return gs.LogitBias(biases), lambda s: oracle.logit_bias(s, biases)


def _pair(cls: Any, plain: Any, *strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Pair]:
    return st.tuples(*strategies).map(lambda args: (cls(*args), lambda s: plain(s, *args)))


SAMPLERS: dict[str, st.SearchStrategy[Pair]] = {
    "penalties": _penalties(),
    "dry": _dry(),
    "top_n_sigma": _pair(gs.TopNSigma, oracle.top_n_sigma, floats(-1, 3)),
    "top_k": _pair(gs.TopK, oracle.top_k, st.sampled_from([-1, 0, 1, 2, 5, 40, 700])),
    "typ_p": _pair(gs.TypicalP, oracle.typ_p, P, MIN_KEEP),
    "top_p": _pair(gs.TopP, oracle.top_p, P, MIN_KEEP),
    "min_p": _pair(gs.MinP, oracle.min_p, P, MIN_KEEP),
    "xtc": _xtc(),
    "temperature": _temperature(),
    "logit_bias": _logit_bias(),
    "greedy": st.just((gs.Greedy(), lambda s: oracle.top_k(s, 1))),
}


@st.composite
def all_logits(draw: st.DrawFn) -> np.ndarray:
    """Small and arbitrary, or large and of a kind: spread, flat, with many ties, with many masked tokens."""
    if draw(st.booleans()):
        value = st.one_of(floats(-30, 30), st.integers(-3, 3).map(float), st.just(-np.inf))
        logits = np.array(draw(st.lists(value, min_size=8, max_size=70)), dtype=np.float32)
    else:
        n = draw(st.sampled_from([640, 1025, 3001]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        logits = (rng.standard_normal(n) * draw(st.sampled_from([0.1, 1, 4]))).astype(np.float32)
        kind = draw(st.sampled_from(["spread", "ties", "masked"]))
        if kind == "ties":
            logits = np.round(logits)
        elif kind == "masked":
            logits[rng.random(n) < 0.9] = -np.inf
    assume(np.isfinite(logits).any())
    return logits


def check(chain: gs.SamplerChain, plain: list[Plain], logits: np.ndarray, history: list[int]) -> None:
    state = oracle.State(
        np.arange(len(logits)), logits.copy(), len(logits), history, np.random.RandomState(SEED)
    )
    try:
        for apply in plain:
            apply(state)
            assume(np.isfinite(state.logits).any())
    except oracle.AmbiguousError:
        assume(False)
    alive = state.logits - state.logits.max() >= -87
    order = [i for i in state.order() if alive[i]]
    ids, probs = chain.distribution(logits)
    assert ids.dtype == np.int32
    assert probs.dtype == np.float32
    np.testing.assert_array_equal(ids, state.ids[order])
    np.testing.assert_allclose(probs, state.probs()[order], rtol=3e-5, atol=1e-12)
    assert probs.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    try:
        expected = oracle.draw(state)
    except oracle.AmbiguousError:
        assume(False)
    assert chain.sample(logits) == expected


def test_minus_zero_among_many_zeros_is_a_zero() -> None:
    """Beyond 1024 candidates a histogram of differences finds the cut; 0 and -0 differ by -0."""
    logits = np.zeros(1025, np.float32)
    logits[1::2] = -0.0
    for first in (0.0, -0.0):
        logits[0] = first
        ids, _ = gs.SamplerChain([gs.TopP(-1.0)], seed=1).distribution(logits)
        assert ids.tolist() == [0]


HISTORY = st.lists(st.integers(0, 7), max_size=90)
SLOW_OK = settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_sampler(name: str) -> None:
    @settings(SLOW_OK, max_examples=150)
    @given(SAMPLERS[name], all_logits(), HISTORY)
    def run(pair: Pair, logits: np.ndarray, history: list[int]) -> None:
        chain = gs.SamplerChain([pair[0]], seed=SEED)
        chain.accept_many(history)
        check(chain, [pair[1]], logits, history)

    run()


@settings(SLOW_OK, max_examples=400)
@given(st.lists(st.one_of(*SAMPLERS.values()), max_size=9), all_logits(), HISTORY)
def test_chains_in_any_order(pairs: list[Pair], logits: np.ndarray, history: list[int]) -> None:
    chain = gs.SamplerChain([sampler for sampler, _ in pairs], seed=SEED)
    chain.accept_many(history)
    check(chain, [plain for _, plain in pairs], logits, history)


@pytest.mark.parametrize("version", [gs.Mirostat, gs.MirostatV2])
def test_mirostat(version: type[gs.Mirostat] | type[gs.MirostatV2]) -> None:
    plain = oracle.mirostat if version is gs.Mirostat else oracle.mirostat_v2

    @settings(SLOW_OK, max_examples=150)
    @given(floats(0.125, 8), all_logits())
    def run(tau: float, logits: np.ndarray) -> None:
        chain = gs.SamplerChain([version(tau)], seed=SEED)
        check(chain, [lambda s: plain(s, 2 * tau)], logits, [])

    run()


@pytest.mark.parametrize("version", [gs.Mirostat, gs.MirostatV2])
def test_mirostat_bound_follows_the_surprise_of_what_is_drawn(version: Any) -> None:
    plain = oracle.mirostat if version is gs.Mirostat else oracle.mirostat_v2
    rng = np.random.default_rng(5)
    chain = gs.SamplerChain([version(3.0, 0.25)], seed=SEED)
    draws = np.random.RandomState(SEED)
    mu = 6.0
    for _ in range(60):
        logits = (rng.standard_normal(500) * 2).astype(np.float32)
        state = oracle.State(np.arange(500), logits, 500, [], draws)
        plain(state, mu)
        expected = oracle.draw(state)
        assert chain.sample(logits) == expected
        surprise = -np.log2(state.probs()[list(state.ids).index(expected)])
        mu -= 0.25 * (surprise - 3.0)


@pytest.mark.parametrize(("version", "tau"), [(gs.Mirostat, 2.0), (gs.MirostatV2, 2.0), (gs.MirostatV2, 4.0)])
def test_mirostat_converges_to_its_target(version: Any, tau: float) -> None:
    """On Zipf-like logits the mean surprise under the truncated distribution comes near tau."""
    logits = (-1.1 * np.log(np.arange(1, 5001))).astype(np.float32)
    chain = gs.SamplerChain([version(tau, 0.1)], seed=1)
    surprises = []
    for _ in range(3000):
        ids, probs = chain.distribution(logits)
        token = chain.sample(logits)
        surprises.append(-np.log2(probs[list(ids).index(token)]))
    assert np.mean(surprises[500:]) == pytest.approx(tau, abs=0.1)


@pytest.mark.parametrize("n", [4, 2000])
def test_ties_go_to_lower_ids(n: int) -> None:
    logits = np.zeros(n, dtype=np.float32)
    for sampler, kept in [
        (gs.TopK(3), 3),
        (gs.TopP(0.5), n // 2),
        (gs.TypicalP(0.5), n // 2 + 1),
        (gs.Greedy(), 1),
        (gs.Temperature(0), 1),
        (gs.MinP(1.0), n),
        (gs.MinP(2.0), 1),
        (gs.MinP(2.0, min_keep=3), 3),
        (gs.TopP(-1.0), 1),
    ]:
        ids, _ = gs.SamplerChain([sampler]).distribution(logits)
        np.testing.assert_array_equal(ids, np.arange(kept), err_msg=repr(sampler))


def test_xtc_leaves_the_least_of_the_top_choices() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32))
    ids, probs = gs.SamplerChain([gs.Xtc(1.0, 0.15)]).distribution(logits)
    np.testing.assert_array_equal(ids, [2, 0])
    np.testing.assert_allclose(probs, [2 / 3, 1 / 3], rtol=1e-6)
    for off in (gs.Xtc(1.0, 0.51), gs.Xtc(0.0, 0.15), gs.Xtc(1.0, 0.35), gs.Xtc(1.0, 0.15, min_keep=3)):
        assert len(gs.SamplerChain([off]).distribution(logits)[0]) == 4, off


def test_extreme_temperatures_do_not_overflow() -> None:
    logits = np.array([3e38, -3e38, 2.9e38], dtype=np.float32)
    for temp in (1e-38, 1e-3, 3e38):
        ids, probs = gs.SamplerChain([gs.Temperature(temp)]).distribution(logits)
        assert ids[0] == 0
        assert np.isfinite(probs).all()


def test_masked_candidates_count_for_dynamic_temperature() -> None:
    """As in llama.cpp, the greatest possible entropy is that of all candidates, masked ones too."""
    logits = np.array([0, 0, -np.inf, -np.inf], dtype=np.float32)
    bent = np.array([1, 0, -np.inf, -np.inf], dtype=np.float32)
    _, probs = gs.SamplerChain([gs.Temperature(1.0, 1.0)]).distribution(logits)
    np.testing.assert_allclose(probs, [0.5, 0.5])
    p = 1 / (1 + np.exp(-1.0))
    temp = 2 * -(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(4)
    _, probs = gs.SamplerChain([gs.Temperature(1.0, 1.0)]).distribution(bent)
    np.testing.assert_allclose(probs[0], 1 / (1 + np.exp(-1 / temp)), rtol=1e-5)
