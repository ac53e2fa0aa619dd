"""The token loop: what ends it, what is shown, what is counted.

A script stands in for the sampler where the text matters, so that stops and cuts fall where a test wants them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gristmill
import numpy as np
import pytest
from gristmill import Greedy, LogitBias, SamplerChain, Temperature
from gristmill.generate import Generation, Piece, StopMatcher
from hypothesis import given
from hypothesis import strategies as st
from oracle.build import Spec, add_tokenizer, build
from test_logits import TinyModel

N_CTX = 64


@pytest.fixture(scope="module")
def model(tiny_model: TinyModel) -> gristmill.Model:
    return gristmill.load(tiny_model(n_embd=64, n_ff=64, n_layer=1), n_ctx=N_CTX, n_threads=1)


class Script(SamplerChain):
    """Samples the characters of a text, one or more tokens each, then the end of generation."""

    def __init__(self, model: gristmill.Model, text: str) -> None:
        super().__init__([Greedy()], seed=0)
        tokenizer = model.tokenizer
        pieces = [*text] if "think>" not in text else text.replace(">", ">|").replace("<", "|<").split("|")
        self.ids = [i for piece in pieces for i in tokenizer.encode(piece, add_special=False)]
        assert tokenizer.decode(self.ids) == text
        assert tokenizer.eos_id is not None
        self.ids.append(tokenizer.eos_id)

    def sample(self, logits: Any) -> int:
        token = self.ids.pop(0)
        assert np.isfinite(logits[token]), f"token {token} is masked"
        return token


def run(model: gristmill.Model, text: str, **options: Any) -> tuple[list[Piece], Generation]:
    generation = model.generate([1, 2, 3], sampler=Script(model, text), **options)
    pieces = list(generation)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == generation.finish_reason is not None
    return pieces, generation


def shown(pieces: Iterable[Piece], kind: str = "content") -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind)


# How it ends


def test_the_end_of_generation(model: gristmill.Model) -> None:
    """Its token is counted and not shown, nor does the cache hold it."""
    session = model.session()
    pieces, generation = run(model, "hi!", session=session)
    assert generation.finish_reason == "eog"
    assert shown(pieces) == "hi!"
    assert generation.token_ids == [*model.tokenizer.encode("hi!"), model.tokenizer.eos_id]
    assert session.tokens == [1, 2, 3, *generation.token_ids[:-1]]
    assert [piece.token for piece in pieces[:-1]] == generation.token_ids[:-1]


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_the_length(model: gristmill.Model, max_tokens: int) -> None:
    session = model.session()
    pieces, generation = run(model, "hello", max_tokens=max_tokens, session=session)
    assert generation.finish_reason == "length"
    assert shown(pieces) == "hello"[:max_tokens]
    assert generation.stats.n_generated == len(generation.token_ids) == max_tokens
    assert session.n_past == 3 + max_tokens - 1


def test_no_tokens(model: gristmill.Model) -> None:
    """Nothing is computed."""
    session = model.session()
    pieces, generation = run(model, "hello", max_tokens=0, session=session)
    assert pieces == [Piece("", None, "content", "length")]
    assert session.n_past == generation.stats.n_generated == 0
    with pytest.raises(gristmill.ArgumentError, match="max_tokens, expected at least 0, got -1"):
        model.generate([1], max_tokens=-1)


def test_the_context(model: gristmill.Model) -> None:
    """The last token that fits is forwarded, and one more sampled from it."""
    session = model.session()
    pieces, generation = run(model, "x" * 100, session=session)
    assert generation.finish_reason == "context_full"
    assert session.n_past == N_CTX
    assert shown(pieces) == "x" * (N_CTX - 3 + 1)
    full = list(range(N_CTX))
    (piece, last) = model.generate(full, sampler=Script(model, "xy"), session=session)
    assert (piece.text, last.finish_reason) == ("x", "context_full")


def test_the_length_comes_before_the_context(model: gristmill.Model) -> None:
    _, generation = run(model, "x" * 100, max_tokens=N_CTX - 3 + 1)
    assert generation.finish_reason == "length"


def test_ignore_eog(model: gristmill.Model) -> None:
    """The likeliest token by far ends it, unless all of its kind are masked."""
    eog = sorted(model.tokenizer.eog_ids)
    assert len(eog) >= 2

    def chain() -> SamplerChain:
        return SamplerChain([LogitBias(dict.fromkeys(eog, 50.0)), Greedy()], seed=1)

    ended = model.generate([1, 2], sampler=chain(), max_tokens=20)
    assert ended.text() == ""
    assert ended.finish_reason == "eog"
    assert ended.stats.n_generated == 1
    endless = model.generate([1, 2], sampler=chain(), max_tokens=20, ignore_eog=True)
    endless.text()
    assert endless.finish_reason == "length"
    assert len(endless.token_ids) == 20
    assert not set(endless.token_ids) & set(eog)


# Stop strings


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("hello END more", ["END"], "hello "),
        ("hello EN", ["END"], "hello EN"),  # the beginning of one, at the end
        ("ENEND", ["END"], "EN"),
        ("aaab", ["aab"], "a"),
        ("x abcd", ["abcd", "bc"], "x a"),  # the one that is whole first
        ("x abcd", ["abcx", "bcd"], "x a"),
        ("END", ["END"], ""),
        ("a\n\nb", ["\n\n", "\n"], "a"),
        ("für é!", ["é!"], "für "),  # cut within a character, too
        ("nothing", ["zero", "none"], "nothing"),
    ],
)
def test_stop(model: gristmill.Model, text: str, stops: list[str], expected: str) -> None:
    """Each character is a token of its own or several."""
    pieces, generation = run(model, text, stop=stops)
    assert shown(pieces) == expected
    assert generation.finish_reason == ("eog" if text == expected else "stop")
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_one_stop_string(model: gristmill.Model) -> None:
    """Not each of its characters."""
    pieces, _ = run(model, "NED END", stop="END")
    assert shown(pieces) == "NED "


def test_a_stop_string_that_is_empty(model: gristmill.Model) -> None:
    with pytest.raises(gristmill.ArgumentError, match="must not be empty"):
        model.generate([1], stop=["a", ""])


def test_the_session_after_a_stop(model: gristmill.Model) -> None:
    """It holds what was forwarded, and the next generation goes on from there."""
    session = model.session()
    _, generation = run(model, "one END two", stop=["END"], session=session)
    assert session.tokens == [1, 2, 3, *generation.token_ids[:-1]]
    again, generation = run(model, "one two", session=session)
    assert shown(again) == "one two"
    assert generation.stats.n_reused == 2  # the prompt's last token gives the first logits


TEXTS = st.text("ab<", max_size=12)


@given(TEXTS, st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3))
def test_stop_matcher_character_by_character(text: str, stops: list[str]) -> None:
    """The same as looking at the whole text after each."""
    matcher, out = StopMatcher(stops), ""
    for n in range(1, len(text) + 1):
        piece, stopped = matcher.push(text[n - 1])
        out += piece
        found = [text[:n].find(stop) for stop in stops if stop in text[:n]]
        assert stopped == bool(found)
        if found:
            assert out == text[: min(found)]
            return
    assert out + matcher.flush() == text


@given(TEXTS, st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3), st.sets(st.integers(0, 12)))
def test_stop_matcher_in_pieces(text: str, stops: list[str], cuts: set[int]) -> None:
    """However it is cut: nothing of a stop string is shown, nothing before it lost or held back for long."""
    matcher, out = StopMatcher(stops), ""
    ends = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    for begin, end in pairwise(ends):
        piece, stopped = matcher.push(text[begin:end])
        out += piece
        assert stopped == any(stop in text[:end] for stop in stops)
        assert text.startswith(out)
        assert not any(stop in out for stop in stops)
        if stopped:
            assert any(text[len(out) :].startswith(stop) for stop in stops)
            return
        assert end - len(out) < max(map(len, stops), default=1)
    assert out + matcher.flush() == text


# Reasoning


def test_reasoning_is_split(model: gristmill.Model) -> None:
    pieces, generation = run(model, "<think>\nhm\n</think>\n\nyes", split_reasoning=True)
    assert shown(pieces, "reasoning") == "hm"
    assert shown(pieces) == "yes"
    assert generation.finish_reason == "eog"
    plain, _ = run(model, "<think>hm</think>yes")
    assert shown(plain) == "<think>hm</think>yes"


def test_reasoning_that_the_prompt_began(model: gristmill.Model) -> None:
    """As text and as ids."""
    prompt = "why?<think>\n"
    for given_prompt in (prompt, model.tokenizer.encode(prompt, parse_special=True)):
        script = Script(model, "hm</think>yes")
        pieces = list(model.generate(given_prompt, sampler=script, split_reasoning=True))
        assert (shown(pieces, "reasoning"), shown(pieces)) == ("hm", "yes")
        script = Script(model, "hm</think>yes")
        assert model.generate(given_prompt, sampler=script, split_reasoning=True).text() == "yes"


def test_what_reasoning_holds_back_at_a_stop(model: gristmill.Model) -> None:
    """The beginning of a tag is text when a stop string follows it, or the length."""
    pieces, generation = run(model, "<think>x</thEND", split_reasoning=True, stop=["END"])
    assert generation.finish_reason == "stop"
    assert (shown(pieces, "reasoning"), shown(pieces)) == ("x</th", "")
    pieces, _ = run(model, "a <thEND", split_reasoning=True, stop=["END"])
    assert shown(pieces) == "a <th"
    pieces, _ = run(model, "a <thi", split_reasoning=True, max_tokens=5)
    assert shown(pieces) == "a <th"


def test_half_a_character_at_the_end(model: gristmill.Model) -> None:
    """What never becomes a character is shown as such, once."""
    assert len(model.tokenizer.encode("é")) == 2
    pieces, _ = run(model, "aé", max_tokens=2)
    assert [piece.text for piece in pieces] == ["a", "\ufffd", ""]
    assert pieces[1].token is None


# Prompts


def test_a_session_of_another_model(model: gristmill.Model) -> None:
    other = gristmill.load(model.path, n_ctx=N_CTX)
    with pytest.raises(gristmill.ArgumentError, match="another model"):
        model.generate([1], session=other.session())


@pytest.mark.parametrize("prompt", ["", []], ids=repr)
def test_an_empty_prompt(model: gristmill.Model, prompt: Sequence[int] | str) -> None:
    with pytest.raises(gristmill.ArgumentError, match="no tokens"):
        model.generate(prompt)


@pytest.mark.parametrize("token", [-1, 320, 2**40])
def test_a_prompt_outside_the_vocabulary(model: gristmill.Model, token: int) -> None:
    session = model.session()
    with pytest.raises(gristmill.ArgumentError):
        model.generate([1, token], session=session).text()
    assert session.n_past == 0


def test_a_prompt_too_long(model: gristmill.Model) -> None:
    """Both lengths, and the session is as it was."""
    session = model.session()
    session.forward([1, 2])
    with pytest.raises(gristmill.ContextFullError, match=rf"{N_CTX + 1} tokens.*holds {N_CTX}") as caught:
        model.generate([1] * (N_CTX + 1), session=session)
    assert "n_ctx" in str(caught.value)
    assert session.tokens == [1, 2]
    assert model.generate([1] * N_CTX, max_tokens=1).text() is not None


def test_bos_is_not_doubled(model: gristmill.Model) -> None:
    """A rendered template may begin with it; text from elsewhere does not."""
    with_bos = gristmill.load(model.path, n_ctx=N_CTX, overrides={"tokenizer.ggml.add_bos_token": True})
    bos = with_bos.tokenizer.bos_id
    assert bos is not None

    def prompt_of(prompt: str, **options: Any) -> list[int]:
        session = with_bos.session()
        list(with_bos.generate(prompt, session=session, max_tokens=1, **options))
        return session.tokens

    hi = with_bos.tokenizer.encode("hi", add_special=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompt_of("hi") == [bos, *hi]
        assert prompt_of("<|endoftext|>hi") == [bos, *hi]
        assert prompt_of("hi", add_special=False) == hi
        as_text = prompt_of("<|endoftext|>hi", parse_special=False)
        assert as_text[0] == bos
        assert bos not in as_text[1:]
        assert prompt_of("") == [bos]
    with pytest.warns(gristmill.GristmillWarning, match="one more is added"):
        assert prompt_of("<|endoftext|>hi", add_special=True) == [bos, bos, *hi]


# Sampling and counting


def test_padded_embeddings_are_never_sampled(tmp_path: Path) -> None:
    """Half of the rows have no token; a chain that takes anything finds none of them."""
    spec = Spec(n_vocab=600, n_embd=64, n_ff=64, n_layer=1)
    path = build(tmp_path / "padded.gguf", spec, tokenizer=lambda w: add_tokenizer(w, 300, "qwen2", None))
    model = gristmill.load(path)
    assert (model.n_vocab, model.tokenizer.n_vocab) == (600, 300)
    generation = model.generate(
        [1], sampler=SamplerChain([Temperature(1000.0)], seed=3), max_tokens=100, ignore_eog=True
    )
    generation.text()
    assert len(generation.token_ids) == 100
    assert max(generation.token_ids) < 300
    likeliest = model.generate([1], sampler=SamplerChain([Greedy()], seed=3), max_tokens=5)
    likeliest.text()
    assert max(likeliest.token_ids) < 300


def test_stats(model: gristmill.Model) -> None:
    session = model.session()
    prompt = list(range(20, 40))
    _, first = run(model, "abcdef", session=session)
    assert first.stats.n_prompt == 3
    assert first.stats.n_reused == 0
    assert first.stats.n_generated == 7  # with the end of generation
    stats = first.stats
    assert 0 < stats.prompt_seconds <= stats.first_token_seconds
    assert stats.decode_seconds > 0
    assert stats.decode_tokens_per_second == pytest.approx(6 / stats.decode_seconds)
    assert stats.prompt_tokens_per_second == pytest.approx(3 / stats.prompt_seconds)
    session.truncate(0)
    session.forward(prompt[:15])
    second = model.generate(prompt, sampler=Script(model, "a"), session=session, max_tokens=1)
    assert second.stats.n_prompt == 20
    assert second.text() == "a"
    assert second.stats.n_reused == 15
    assert second.stats.prompt_tokens_per_second == pytest.approx(5 / second.stats.prompt_seconds)
    assert second.stats.decode_seconds == second.stats.decode_tokens_per_second == 0.0
    assert model.generate(prompt, max_tokens=0).stats.prompt_tokens_per_second == 0.0


def test_reuse_changes_nothing(model: gristmill.Model) -> None:
    """A session that holds another continuation of the prompt gives what a fresh one gives."""
    prompt = list(range(30, 50))

    def tokens(session: gristmill.Session) -> list[int]:
        generation = model.generate(
            prompt, sampler=SamplerChain([Greedy()], seed=1), session=session, max_tokens=10, ignore_eog=True
        )
        generation.text()
        return generation.token_ids

    used = model.session()
    used.forward([*prompt[:-1], 7, 8, 9])
    assert tokens(used) == tokens(model.session())
