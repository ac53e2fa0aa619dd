"""The chain as a whole: drawing, state, custom samplers, and what it refuses."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from gristmill import ArgumentError, CustomSampler, Error, SamplerChain
from gristmill import sampling as gs


def random_logits(n: int = 1000, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def generate(chain: SamplerChain, n: int = 40) -> list[int]:
    tokens = []
    for step in range(n):
        tokens.append(chain.sample(random_logits(seed=step)))
        chain.accept(tokens[-1])
    return tokens


def every_sampler() -> list[gs.Sampler]:
    return [
        gs.LogitBias({3: 1.0}),
        gs.Penalties(64, 1.1, 0.1, 0.2),
        gs.Dry(0.8, sequence_breakers=()),
        gs.TopNSigma(2.0),
        gs.TopK(200),
        gs.TypicalP(0.95),
        gs.TopP(0.95),
        gs.MinP(0.01),
        gs.Xtc(0.5, 0.1),
        gs.Temperature(0.9, 0.2),
        gs.MirostatV2(),
    ]


# Drawing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samplers", [[], [gs.Temperature(0.7)], [gs.TopK(20)], [gs.TypicalP(0.8)]], ids=str)
def test_draws_follow_the_distribution(samplers: list[gs.Sampler]) -> None:
    logits = random_logits(300)
    chain = SamplerChain(samplers, seed=77)
    ids, probs = chain.distribution(logits)
    n = 60_000
    counts = np.bincount([chain.sample(logits) for _ in range(n)], minlength=300)
    assert counts.sum() == counts[ids].sum()
    common = probs * n >= 10
    expected = np.append(probs[common] * n, probs[~common].sum() * n)
    observed = np.append(counts[ids][common], counts[ids][~common].sum())
    expected, observed = expected[expected > 0], observed[expected > 0]
    chi_square = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    # Chi-square has mean k and standard deviation sqrt(2 k); four of the latter are exceeded once in 10^4.
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_the_generator_is_mt19937_with_53_bits() -> None:
    """Fixes which token a seed gives, on every platform."""
    reference = np.random.RandomState(42)
    chain = SamplerChain([], seed=42)
    for _ in range(100):
        assert chain.sample(np.zeros(4096, dtype=np.float32)) == int(reference.random_sample() * 4096)


def test_a_seed_gives_these_tokens() -> None:
    """A change of generator, of the draw's order or of the exponential shows here first."""
    logits = np.array([(i * 37 % 50) / 8 for i in range(50)], dtype=np.float32)
    chain = SamplerChain([gs.TopK(10), gs.Temperature(0.8)], seed=1234)
    assert [chain.sample(logits) for _ in range(12)] == [8, 27, 20, 35, 35, 12, 12, 35, 43, 39, 16, 27]


def test_probability_zero_is_never_drawn() -> None:
    logits = np.full(200, -np.inf, dtype=np.float32)
    logits[[50, 199]] = 0
    chain = SamplerChain([], seed=3)
    assert {chain.sample(logits) for _ in range(200)} == {50, 199}


# State ------------------------------------------------------------------------------------------------------


def test_same_seed_same_tokens() -> None:
    first, second = (generate(SamplerChain(every_sampler(), seed=5)) for _ in range(2))
    assert first == second
    assert first != generate(SamplerChain(every_sampler(), seed=6))


def test_a_random_seed_can_be_read_and_used_again() -> None:
    chain = SamplerChain(every_sampler())
    assert SamplerChain().seed != chain.seed
    assert generate(SamplerChain(every_sampler(), seed=chain.seed)) == generate(chain)
    assert SamplerChain(seed=-1).seed != SamplerChain(seed=2**32 - 1).seed


def test_reset_starts_over() -> None:
    chain = SamplerChain(every_sampler(), seed=5)
    first = generate(chain)
    chain.reset()
    assert chain.history == []
    assert generate(chain) == first


def test_clone_is_independent_and_in_the_same_state() -> None:
    chain = SamplerChain(every_sampler(), seed=5)
    generate(chain, 10)
    clone = chain.clone()
    assert clone.history == chain.history
    continued = generate(chain)
    assert generate(clone) == continued


def test_sample_does_not_accept() -> None:
    chain = SamplerChain([gs.Penalties(64, 1.0, 0.0, 5.0)], seed=5)
    for _ in range(3):
        chain.sample(random_logits())
    assert chain.history == []


def test_distribution_changes_nothing() -> None:
    quiet, asked = (SamplerChain(every_sampler(), seed=5) for _ in range(2))
    for step in range(30):
        logits = random_logits(seed=step)
        before = asked.distribution(logits)
        asked.distribution(logits, history=[1, 2, 3])
        asked.distribution(random_logits(seed=99))
        after = asked.distribution(logits)
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)
        token = quiet.sample(logits)
        assert asked.sample(logits) == token
        assert token in before[0]
        quiet.accept(token)
        asked.accept(token)


def test_history_stands_in_for_accepted_tokens() -> None:
    logits = random_logits()
    chain = SamplerChain([gs.Penalties(64, 1.5)], seed=5)
    other = SamplerChain([gs.Penalties(64, 1.5)], seed=5)
    other.accept_many([1, 2, 3])
    for history, reference in (([1, 2, 3], other), ([], chain)):
        for a, b in zip(
            other.distribution(logits, history=history), reference.distribution(logits), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert other.history == [1, 2, 3]


def test_logits_of_other_kinds_are_converted_and_left_alone() -> None:
    logits = random_logits(64)
    chain = SamplerChain([gs.Penalties(4, 2.0)])
    chain.accept_many(range(4))
    expected = chain.distribution(logits)
    wide = np.zeros(128)
    wide[::2] = logits
    frozen = logits.copy()
    frozen.flags.writeable = False
    for same in (wide[::2], logits.tolist(), logits.astype(np.float64), frozen):
        copy = np.array(same)
        for a, b in zip(chain.distribution(same), expected, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.array(same), copy)


# Custom samplers --------------------------------------------------------------------------------------------


class OnlyEven(CustomSampler):
    def apply(self, logits: np.ndarray) -> None:
        assert logits.dtype == np.float32
        logits[1::2] = -np.inf


class Boost(CustomSampler):
    """Gives one token a logit, whether it was removed or not, and counts what it sees."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.accepted: list[int] = []

    def apply(self, logits: np.ndarray) -> None:
        self.alive = int(np.isfinite(logits).sum())
        logits[self.token] = 100.0

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def reset(self) -> None:
        self.accepted.clear()


@pytest.mark.parametrize("place", range(4))
def test_custom_samplers_anywhere(place: int) -> None:
    logits = random_logits()
    samplers: list[gs.Sampler] = [gs.TopP(0.99), gs.MinP(0.001), gs.Temperature(0.5)]
    samplers.insert(place, OnlyEven())
    ids, probs = SamplerChain(samplers).distribution(logits)
    assert len(ids) > 10
    assert (ids % 2 == 0).all()
    assert probs.sum() == pytest.approx(1)


def test_custom_sampler_sees_removed_tokens_as_masked_and_can_bring_them_back() -> None:
    logits = np.arange(100, dtype=np.float32)
    boost = Boost(3)
    chain = SamplerChain([gs.TopK(10), boost])
    ids, _ = chain.distribution(logits)
    assert boost.alive == 10
    np.testing.assert_array_equal(ids, [3, *range(99, 89, -1)][: len(ids)])


def test_custom_sampler_state_follows_the_chain() -> None:
    boost = Boost(3)
    chain = SamplerChain([boost], seed=1)
    chain.accept_many([1, 2])
    clone = chain.clone()
    clone.accept(9)
    assert boost.accepted == [1, 2]
    assert isinstance(clone.samplers[0], Boost)
    assert clone.samplers[0].accepted == [1, 2, 9]
    chain.reset()
    assert boost.accepted == []


def custom(function: object) -> SamplerChain:
    return SamplerChain([type("Bad", (CustomSampler,), {"apply": function})(), gs.TopK(3)], seed=1)


def test_custom_sampler_errors_pass_through() -> None:
    def fails(self: object, logits: np.ndarray) -> None:
        raise KeyError("mine")

    chain = custom(fails)
    for _ in range(2):  # the chain stays usable
        with pytest.raises(KeyError, match="mine"):
            chain.sample(random_logits())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_custom_sampler_may_not_make_logits_non_finite(value: float) -> None:
    def spoils(self: object, logits: np.ndarray) -> None:
        logits[7] = value

    with pytest.raises(Error, match="non-finite logits"):
        custom(spoils).sample(random_logits())


def test_custom_sampler_may_not_mask_everything_nor_return_an_array() -> None:
    with pytest.raises(Error, match="every token is masked"):
        custom(lambda self, logits: logits.fill(-np.inf)).sample(random_logits())
    with pytest.raises(ArgumentError, match="in place"):
        custom(lambda self, logits: logits * 2).sample(random_logits())


def test_a_custom_sampler_that_refers_to_its_chain_is_freed() -> None:
    sampler = OnlyEven()
    sampler.chain = SamplerChain([sampler], seed=1)  # type: ignore[attr-defined]
    sampler.chain.sample(random_logits())  # type: ignore[attr-defined]
    weak = weakref.ref(sampler)
    del sampler
    gc.collect()
    assert weak() is None


def test_a_chain_is_not_used_twice_at_once() -> None:
    def recurses(self: object, logits: np.ndarray) -> None:
        chain.sample(logits)

    chain = custom(recurses)
    with pytest.raises(Error, match="in use"):
        chain.sample(random_logits())

    inside, go_on = threading.Event(), threading.Event()

    def waits(self: object, logits: np.ndarray) -> None:
        inside.set()
        go_on.wait(30)

    slow = custom(waits)
    thread = threading.Thread(target=slow.sample, args=(random_logits(),))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(Error, match="in use"):
        slow.accept(1)
    go_on.set()
    thread.join()
    slow.accept(1)


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.nan])
@pytest.mark.parametrize("where", [0, 63, 64, 999])
def test_non_finite_logits_stop(value: float, where: int) -> None:
    logits = random_logits()
    logits[where] = value
    chain = SamplerChain([gs.TopK(40)])
    for call in (chain.sample, chain.distribution):
        with pytest.raises(Error, match=rf"non-finite logits.*token {where}\b"):
            call(logits)
    chain.sample(random_logits())


def test_all_masked_logits_stop() -> None:
    masked = np.full(100, -np.inf, dtype=np.float32)
    with pytest.raises(Error, match="every token is masked"):
        SamplerChain([gs.TopK(40)]).sample(masked)
    forbid = gs.LogitBias(dict.fromkeys(range(100), -np.inf))
    with pytest.raises(Error, match="every token is masked after sampler 1"):
        SamplerChain([forbid]).sample(np.zeros(100, dtype=np.float32))


@pytest.mark.parametrize("shape", [(), (0,), (2, 5)])
def test_logits_of_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError):
        SamplerChain().sample(np.zeros(shape, dtype=np.float32))


def test_penalties_that_overflow_stop_or_mask() -> None:
    logits = np.array([1, 2, 3], dtype=np.float32)
    reward = SamplerChain([gs.Penalties(64, 1.0, -3e38, 0.0)])
    reward.accept_many([1, 1])
    for _ in range(2):
        with pytest.raises(Error, match="token 1 non-finite"):
            reward.sample(logits)
    punish = SamplerChain([gs.Penalties(64, 1.0, 3e38, 0.0)])
    punish.accept_many([1, 1])
    np.testing.assert_array_equal(punish.distribution(logits)[0], [2, 0])


def test_tokens_out_of_range() -> None:
    chain = SamplerChain([gs.Penalties(64, 2.0)])
    for token in (-1, 2**31):
        with pytest.raises(ArgumentError, match="out of range"):
            chain.accept(token)
    chain.accept(1000)  # nobody knows the vocabulary yet
    with pytest.raises(ArgumentError, match="expected 0 to 999, got 1000"):
        chain.sample(random_logits(1000))
    chain.sample(random_logits(1001))
    with pytest.raises(ArgumentError, match="expected 0 to 1000, got 1001"):
        chain.accept_many([5, 1001])
    assert chain.history == [1000]
    with pytest.raises(ArgumentError, match="got 1001"):
        chain.distribution(random_logits(1001), history=[1001])
    # A smaller vocabulary, seen first with a history that fits it, does not let the real one through.
    chain.distribution(random_logits(10), history=[3])
    with pytest.raises(ArgumentError, match="got 1000"):
        chain.sample(random_logits(10))
    with pytest.raises(ArgumentError, match="integers"):
        chain.accept_many([1.5])  # type: ignore[list-item]


def test_a_logit_bias_for_a_token_out_of_range() -> None:
    with pytest.raises(ArgumentError, match="logit_bias"):
        SamplerChain([gs.LogitBias({10: 1.0})]).sample(random_logits(10))


def test_mirostat_must_be_last() -> None:
    with pytest.raises(ArgumentError, match="mirostat must be the last"):
        SamplerChain([gs.Mirostat(), gs.Temperature()])


@pytest.mark.parametrize("seed", [-2, 2**32, 1.5, "1"])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(ArgumentError, match="seed"):
        SamplerChain(seed=seed)  # type: ignore[arg-type]


def test_the_default_chain_is_fast_enough() -> None:
    """0.4 ms is the bound on a quiet machine (benchmarks/sampling.py); this one only catches a gross
    mistake."""
    chain = SamplerChain.parse(repeat_penalty=1.1, seed=1)
    chain.accept_many(range(64))
    logits = random_logits(152_064)
    best = np.inf
    for _ in range(30):
        start = time.perf_counter()
        chain.sample(logits)
        best = min(best, time.perf_counter() - start)
    assert best < 2e-3
