"""Drawing from the most likely tokens alone: the same tokens as from the whole vocabulary, wherever a chain
says that it needs no more; and generation through them, on a model whose device is played by its CPU."""

from __future__ import annotations

from typing import Any

import gristmill
import numpy as np
import pytest
from gristmill.errors import ArgumentError, Error
from gristmill.generate import MOST_TOP_LOGITS
from gristmill.sampling import (
    CustomSampler,
    Dry,
    Greedy,
    LogitBias,
    MinP,
    Mirostat,
    MirostatV2,
    Penalties,
    Sampler,
    SamplerChain,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    Xtc,
)
from oracle.build import Spec, add_tokenizer, build

N_VOCAB = 1500


class Halve(CustomSampler):
    """Custom, and harmless."""

    def __repr__(self) -> str:  # tests are named by it
        return "Halve()"

    def apply(self, logits: Any) -> None:
        logits /= 2


OFF: list[Sampler] = [
    Penalties(repeat=1.0), Dry(), TopNSigma(-1), TopK(0), TypicalP(1.0), TopP(1.0), MinP(0.0), Xtc(0.0),
    Temperature(1.0),
]  # fmt: skip
LOWER: list[Sampler] = [
    LogitBias({3: -1.0, 7: float("-inf"), 900: -2.5}), Penalties(64, 1.3, 0.2, 0.1),
    Dry(0.8, allowed_length=1, sequence_breakers=()),
]  # fmt: skip
AFTER: list[Sampler] = [
    TypicalP(0.9),
    TopP(0.9),
    MinP(0.02),
    Xtc(0.5, 0.1),
    TopNSigma(2.0),
    Temperature(0.7, 0.3),
]


def top(logits: np.ndarray[Any, Any], n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The n largest, largest first, equal ones by token."""
    ids = np.argsort(-logits, kind="stable")[:n].astype(np.int32)
    return ids, logits[ids]


@pytest.mark.parametrize(
    "samplers",
    [
        [TopK(40)],
        [TopK(1)],
        [Greedy()],
        [Temperature(0.0)],
        [*OFF, TopK(40), TopP(0.95), Temperature(0.6)],
        [*LOWER, TopK(20), *AFTER],
        [*LOWER, Greedy()],
        [TopK(30), Mirostat()],
        [TopK(30), MirostatV2()],
        [TopK(30), Halve(), MinP(0.1)],
        SamplerChain.parse(repeat_penalty=1.1, dry_multiplier=0.5, dry_sequence_breakers=["none"]).samplers,
        SamplerChain.preset("qwq").samplers,
    ],
    ids=str,
)
@pytest.mark.parametrize("grid", [0, 2], ids=["distinct", "ties"])
def test_same_tokens(samplers: list[Sampler], grid: int) -> None:
    rng = np.random.default_rng(1)
    whole, few = SamplerChain(samplers, seed=7), SamplerChain(samplers, seed=7)
    seen = set()
    for _ in range(150):
        logits = rng.normal(0, 3, N_VOCAB).astype(np.float32)
        if grid:
            logits = np.round(logits * grid) / grid
        n = few.n_needed()
        assert n is not None
        ids, values = top(logits, n)
        order = rng.permutation(n)
        token = few.sample_top(ids[order], values[order], N_VOCAB)
        assert token == whole.sample(logits)
        # Likely tokens, so that penalties and dry meet what would be drawn.
        accepted = [token, int(ids[0]), int(ids[min(1, n - 1)])]
        for chain in (whole, few):
            chain.accept_many(accepted)
        seen.add(token)
    assert len(seen) > 30 or n < 10


def test_fewer_than_needed_would_not_do() -> None:
    """The places of penalized tokens are taken by ones below the k largest."""
    logits = np.arange(N_VOCAB, dtype=np.float32) / 10
    last = list(range(N_VOCAB - 5, N_VOCAB))
    chain = SamplerChain([Penalties(64, 100.0), TopK(3), Greedy()])
    chain.accept_many(last)
    assert chain.n_needed() == 8
    assert chain.sample(logits) == N_VOCAB - 6
    assert chain.sample_top(*top(logits, 8), N_VOCAB) == N_VOCAB - 6
    assert chain.sample_top(*top(logits, 5), N_VOCAB) != N_VOCAB - 6


@pytest.mark.parametrize(
    "samplers",
    [
        [],
        OFF,
        [TopP(0.9), TopK(40)],
        [MinP(0.05), TopK(40)],
        [TypicalP(0.9), TopK(40)],
        [TopNSigma(1.0), TopK(40)],
        [Xtc(0.5), TopK(40)],
        [Temperature(0.8), TopK(40)],
        [Temperature(0.0, 0.5), TopK(40)],
        [Halve(), TopK(40)],
        [MirostatV2()],
        [LogitBias({3: 1.0}), TopK(40)],
        [Penalties(64, 0.9), TopK(40)],
        [Penalties(64, 1.0, -0.1), TopK(40)],
        [Penalties(64, 1.0, 0.0, -0.1), TopK(40)],
        [Dry(-0.5), TopK(40)],
    ],
    ids=str,
)
def test_needs_the_whole(samplers: list[Sampler]) -> None:
    assert SamplerChain(samplers).n_needed() is None


def test_counts_what_may_fall() -> None:
    chain = SamplerChain([Penalties(4, 1.1), LogitBias({1: -1.0}), Dry(0.5, penalty_last_n=3), TopK(10)])
    assert chain.n_needed() == 11
    chain.accept_many([5, 5, 6, 7, 8])
    assert chain.n_needed() == 10 + 4 + 1 + 3
    chain.accept_many([8, 8, 8])
    assert chain.n_needed() == 10 + 1 + 1 + 1


def test_refuses() -> None:
    chain = SamplerChain([TopK(2)])
    for ids, values, message in (
        ([], [], "at least one"),
        ([1, 2], [0.0], "ids must have the logits' shape"),
        ([1, 1], [0.0, 0.0], "ascending"),
        ([-1, 2], [0.0, 0.0], "ascending"),
        ([1, 10], [0.0, 0.0], "below 10"),
    ):
        with pytest.raises(ArgumentError, match=message):
            chain.sample_top(ids, values, 10)
    with pytest.raises(Error, match="non-finite logits, expected finite or -inf, got nan for token 4"):
        chain.sample_top([4, 5], [float("nan"), 0.0], 10)
    chain = SamplerChain([TopK(2)])
    chain.accept(11)
    with pytest.raises(ArgumentError, match="token out of range"):
        chain.sample_top([4, 5], [1.0, 0.0], 10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """400 tokens, and 200 rows of the embedding beyond them."""
    spec = Spec(n_vocab=600, n_embd=64, n_ff=64, n_layer=1)
    path = tmp_path_factory.mktemp("top") / "padded.gguf"
    build(path, spec, tokenizer=lambda writer: add_tokenizer(writer, 400, "qwen2", None))
    return gristmill.load(path, n_ctx=96, n_threads=1, device="cpu")


@pytest.mark.parametrize("ignore_eog", [False, True])
@pytest.mark.parametrize(
    ("flags", "on_device"),
    [
        ({}, True),
        ({"temp": 0.0, "repeat_penalty": 1.2}, True),
        ({"top_k": 0, "min_p": 0.1}, False),
        ({"top_k": 390}, False),  # rounded up, that is the vocabulary
    ],
)
def test_generation(
    model: Any, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], on_device: bool, ignore_eog: bool
) -> None:
    def tokens() -> list[int]:
        generation = model.generate(
            list(range(40)),
            sampler=SamplerChain.parse(seed=3, **flags),
            max_tokens=40,
            ignore_eog=ignore_eog,
        )
        generation.text()
        return list(generation.token_ids)

    expected = tokens()
    asked: list[int] = []

    def forward_top(session: Any, ids: Any, k: int, n_vocab: int) -> Any:
        asked.append(k)
        return top(session.forward(ids)[:n_vocab], k)

    monkeypatch.setattr(gristmill.Model, "finds_top_logits", True)
    monkeypatch.setattr(gristmill.Session, "forward_top", forward_top)
    assert tokens() == expected
    assert bool(asked) == on_device
    assert all(k % 64 == 0 and k <= MOST_TOP_LOGITS for k in asked)


def test_the_cpu_has_no_top_logits(model: Any) -> None:
    assert not model.finds_top_logits
    session = model.session()
    with pytest.raises(ArgumentError, match="expected on a GPU"):
        session.forward_top([1, 2], 5)
    assert session.n_past == 0
