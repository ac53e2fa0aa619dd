"""DRY against the quadratic comparison of sampler_oracle, and its sequence breakers on a small vocabulary."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sampler_oracle as oracle
from gristmill import Dry, GristmillWarning, SamplerChain
from gristmill.dry_breakers import resolve
from hypothesis import given, settings
from hypothesis import strategies as st


class Letters:
    """A tokenizer of a few pieces; takes the longest that fits."""

    def __init__(self, *pieces: str | bytes) -> None:
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        self.n_vocab = len(pieces)

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        assert not add_special
        rest, tokens = text.encode(), []
        while rest:
            fits = [token for token, piece in enumerate(self.pieces) if rest.startswith(piece)]
            tokens.append(max(fits, key=lambda token: len(self.pieces[token])))
            rest = rest[len(self.pieces[tokens[-1]]) :]
        return tokens


VOCABULARY = Letters(
    "a", "b", "c", "\n", "ab", "b\n", "ca", "x<", "<|", "|>", "<", "|", ">", "<|>y", "é", "\xa9"
)
WORDS = st.lists(st.integers(0, VOCABULARY.n_vocab - 1), max_size=60)


def applied(sampler: Dry, history: list[int], bind: bool = True) -> np.ndarray:
    """The penalty of each token."""
    chain = SamplerChain([sampler])
    if bind:
        chain.bind(VOCABULARY)
    chain.accept_many(history)
    n = VOCABULARY.n_vocab
    ids, probs = chain.distribution(np.zeros(n, dtype=np.float32))
    logits = np.full(n, -np.inf)
    logits[ids] = np.log(probs.astype(np.float64))
    return np.max(logits) - logits


@settings(deadline=None, max_examples=500)
@given(
    WORDS,
    st.integers(0, 4),
    st.sampled_from([-1, 0, 1, 7, 30, 64]),
    st.lists(st.sampled_from(["\n", "a", "<|>", "b\n", "cab", "|>a"]), max_size=3, unique=True),
)
def test_against_the_quadratic_comparison(
    history: list[int], allowed: int, last_n: int, breakers: list[str]
) -> None:
    sampler = Dry(0.75, 1.25, allowed, last_n, breakers)
    n = VOCABULARY.n_vocab
    state = oracle.State(np.arange(n), np.zeros(n, dtype=np.float32), n, history, np.random.RandomState(0))
    state.breakers = resolve(VOCABULARY, breakers)
    oracle.dry(state, 0.75, 1.25, allowed, last_n)
    expected = state.logits.max() - state.logits
    np.testing.assert_allclose(applied(sampler, history), expected, atol=1e-3)


def test_periodic_history_of_few_tokens() -> None:
    """Overlapping repetitions, where the linear algorithm reuses what it knows."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        history = rng.integers(0, 2, rng.integers(5, 40)).tolist()
        history += history[: rng.integers(0, len(history))]
        n = VOCABULARY.n_vocab
        state = oracle.State(
            np.arange(n), np.zeros(n, dtype=np.float32), n, history, np.random.RandomState(0)
        )
        oracle.dry(state, 0.5, 1.125, 1, -1)
        got = applied(Dry(0.5, 1.125, 1, -1, ()), history)
        np.testing.assert_allclose(got, state.logits.max() - state.logits, atol=1e-3)


def test_the_penalty_grows_with_the_repetition() -> None:
    for length, penalty in ((1, 0.0), (2, 0.8), (3, 0.8 * 1.75), (4, 0.8 * 1.75**2)):
        history = [*[0, 1, 2, 4, 6][-length - 1 :], 7, 8, 9, *[0, 1, 2, 4][-length:]]
        got = applied(Dry(0.8, sequence_breakers=()), history)
        assert got[6] == pytest.approx(penalty, abs=1e-5), length
        assert np.count_nonzero(got > 1e-6) == (penalty > 0)


def test_window_of_minus_one_is_the_whole_context() -> None:
    phrase = [0, 1, 2, 4]
    history = [*phrase, *([8, 9, 10, 11, 12] * 200), *phrase[:3]]
    for last_n, hit in ((64, False), (900, False), (len(history), True), (-1, True)):
        got = applied(Dry(0.8, 1.75, 3, last_n, ()), history)
        assert (got[4] > 0) == hit, last_n


def test_a_breaker_ends_a_repetition() -> None:
    line = [0, 1, 3, 2, 0]  # "ab\nca"
    history = [*line, 6, 8, *line[:4]]
    assert applied(Dry(0.8, sequence_breakers=()), history)[0] == pytest.approx(0.8 * 1.75**2, abs=1e-5)
    assert applied(Dry(0.8, sequence_breakers=["\n"]), history)[0] == 0
    # One token since the breaker: an allowed length of 1 still sees it.
    assert applied(Dry(0.8, 1.75, 1, -1, ["\n"]), history)[0] == pytest.approx(0.8, abs=1e-5)


def test_breakers_are_found_in_tokens_that_hold_or_begin_them() -> None:
    assert resolve(VOCABULARY, ["\n"]) == [(3, []), (5, [])]
    # "x<" and "<" begin "<|>", the rest is "|>" as one token; "<|" leaves ">"; "<|>y" holds it all.
    assert resolve(VOCABULARY, ["<|>"]) == [(7, [9]), (8, [12]), (10, [9]), (13, [])]
    assert resolve(VOCABULARY, []) == []


def test_breakers_of_many_bytes_and_split_characters() -> None:
    pieces = Letters("é", b"\xc3", b"\xa9", "z")
    assert resolve(pieces, ["é"]) == [(0, []), (1, [2])]
    assert resolve(pieces, ["z" * 50]) == [(3, [3] * 20)]
    assert resolve(Letters("é", b"\xc3", "z"), ["é"]) == [(0, [])]


def test_a_breaker_itself_is_not_penalized() -> None:
    history = [0, 1, 3] * 6
    free = applied(Dry(0.8, sequence_breakers=()), history)
    assert free[0] > 0
    held = applied(Dry(0.8, 1.75, 0, -1, ["a"]), [1, 2, 0, 1, 2])
    assert held[0] == 0
    assert held[1] >= 0


def test_unbound_breakers_warn_once() -> None:
    history = [0, 1, 3, 2, 0, 6, 8, 0, 1, 3, 2]
    with pytest.warns(GristmillWarning, match="not bound to a tokenizer") as caught:
        unbound = applied(Dry(0.8), history, bind=False)
    assert len(caught) == 1
    np.testing.assert_allclose(unbound, applied(Dry(0.8, sequence_breakers=()), history), atol=1e-6)
    chain = SamplerChain([Dry(0.8)])
    with pytest.warns(GristmillWarning):
        chain.sample(np.zeros(16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chain.sample(np.zeros(16))
        SamplerChain([Dry(0.0)]).sample(np.zeros(16))
        SamplerChain([Dry(0.8, sequence_breakers=[])]).sample(np.zeros(16))
        SamplerChain([Dry(0.8)]).bind(VOCABULARY).sample(np.zeros(16))


def test_bind_keeps_the_state_and_clones_keep_the_breakers() -> None:
    line = [0, 1, 3, 2, 0]
    chain = SamplerChain([Dry(0.8, sequence_breakers=["\n"])])
    chain.accept_many([*line, 6, 8, *line[:4]])
    for bound in (chain.bind(VOCABULARY), chain.clone()):
        _, probs = bound.distribution(np.zeros(VOCABULARY.n_vocab))
        assert np.ptp(probs) == 0


def test_a_long_history_is_linear() -> None:
    """131072 equal tokens: a quadratic algorithm would need minutes."""
    chain = SamplerChain([Dry(0.8, 1.75, 2, -1, ())])
    chain.accept_many(np.zeros(131_072, dtype=np.int32))
    ids, probs = chain.distribution(np.zeros(16, dtype=np.float32))
    assert 0 not in ids
    assert len(ids) == 15
    assert np.isfinite(probs).all()
