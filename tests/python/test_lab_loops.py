"""Loops: the definition, word for word; continuations that are the model's own; what ends one."""

from __future__ import annotations

from pathlib import Path

import gristmill
import pytest
from gristmill import ArgumentError, SamplerChain, lab
from gristmill.lab.prompts import PROMPTS
from gristmill.lab.repetition import LoopDetector, number_tokens, prompt_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logits import TinyModel


def slow_loop(tokens: list[int]) -> tuple[int, int]:
    """The module's definition, tried out: (period, tokens read), or (0, all)."""
    for end in range(1, len(tokens) + 1):
        for period in range(1, end // 3 + 1):
            covered = max(3 * period, 32)
            tail = tokens[end - covered : end] if end >= covered else []
            if tail and all(tail[i] == tail[i - period] for i in range(period, covered)):
                return period, end
    return 0, len(tokens)


def test_examples() -> None:
    assert lab.find_loop([5] * 31) == 0
    assert lab.find_loop([5] * 32) == 1
    sentence = list(range(20))
    assert lab.find_loop([99, *sentence * 2, 99]) == 0
    assert lab.find_loop([99, *sentence * 3]) == 20
    assert lab.find_loop([99, *sentence * 3][:-1]) == 0
    assert lab.find_loop([]) == 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_is_the_definition(data: st.DataObject) -> None:
    head = data.draw(st.lists(st.integers(0, 2), max_size=20))
    unit = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=25))
    tokens = head + unit * data.draw(st.integers(1, 8)) + data.draw(st.lists(st.integers(0, 2), max_size=10))
    detector, found = LoopDetector(len(tokens)), (0, len(tokens))
    for i, token in enumerate(tokens):
        if period := detector.push(token):
            found = (period, i + 1)
            break
    assert found == slow_loop(tokens)
    assert lab.find_loop(tokens) == found[0]


@pytest.fixture(scope="module")
def path(tiny_model: TinyModel) -> Path:
    return tiny_model(formats="Q8_0", seed=3)


@pytest.fixture(scope="module")
def model(path: Path) -> gristmill.Model:
    return gristmill.load(path, n_ctx=200, n_threads=1)


def test_continuations_are_what_generate_makes(model: gristmill.Model) -> None:
    result = lab.loops(model, PROMPTS[:3], n_tokens=40, seed=7)
    assert [(c.prompt, c.mode, c.seed) for c in result.continuations] == [
        (0, "greedy", 0), (1, "greedy", 0), (2, "greedy", 0),
        (0, "sampled", 7), (1, "sampled", 8), (2, "sampled", 9),
    ]  # fmt: skip
    for c in result.continuations:
        greedy = SamplerChain.parse("temperature", temp=0.0, seed=0)
        chain = greedy if c.mode == "greedy" else SamplerChain.parse(seed=c.seed)
        generation = model.generate(
            prompt_ids(model, PROMPTS[c.prompt]), sampler=chain, max_tokens=len(c.tokens)
        )
        generation.text()
        assert tuple(generation.token_ids) == c.tokens
        assert (c.ended == "loop") == (c.period > 0) == (lab.find_loop(c.tokens) > 0)
        assert len(c.tokens) == 40 or c.ended != "length"
    for mode, rate in (("greedy", result.greedy_rate), ("sampled", result.sampled_rate)):
        looped = [c.period > 0 for c in result.continuations if c.mode == mode]
        assert rate == sum(looped) / 3


def test_the_same_every_time_and_on_any_number_of_threads(path: Path) -> None:
    first, second = (
        lab.loops(gristmill.load(path, n_ctx=200, n_threads=n), PROMPTS[:2], n_tokens=32) for n in (1, 2)
    )
    assert first == second


def test_its_own_end_ends_it(model: gristmill.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [prompt_ids(model, PROMPTS[0])]
    first = lab.loops(model, prompt, n_tokens=32).continuations[0].tokens
    monkeypatch.setattr(model.tokenizer, "eog_ids", frozenset({first[3]}))
    ended = lab.loops(model, prompt, n_tokens=32).continuations[0]
    assert (ended.ended, ended.period) == ("eog", 0)
    assert ended.tokens == first[: first.index(first[3])]


def test_numbers_are_one_token_to_it(smollm2_path: Path) -> None:
    model = gristmill.load(smollm2_path, n_ctx=8)
    numbers = number_tokens(model)
    assert {model.tokenizer.token_text(t) for t in numbers} >= {str(i) for i in range(10)}
    assert not any(c.isalpha() for t in numbers for c in model.tokenizer.token_text(t))
    text = "".join(f"{i}. The Wizard of Oz\n" for i in range(10, 30))
    ids = model.tokenizer.encode(text)
    assert lab.find_loop(ids) == 0
    assert lab.find_loop([-1 if i in numbers else i for i in ids]) > 0


def test_what_makes_no_sense(model: gristmill.Model) -> None:
    with pytest.raises(ArgumentError, match="at least 32 tokens to show a loop, got 31"):
        lab.loops(model, n_tokens=31)
    with pytest.raises(ArgumentError, match="at least one prompt"):
        lab.loops(model, [])
