"""The token loop: prompt in, pieces of text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from gristmill.errors import ArgumentError, ContextFullError

if TYPE_CHECKING:
    from gristmill.model import Model
    from gristmill.reasoning import ReasoningSplitter
    from gristmill.sampling import SamplerChain
    from gristmill.session import Session
    from gristmill.stream_decoder import StreamDecoder

FinishReason = Literal["eog", "stop", "length", "context_full"]
Kind = Literal["content", "reasoning"]

# Of a position, that a GPU finds at once.
MOST_TOP_LOGITS = 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of generated text. The last of a generation carries the finish reason (and may be empty)."""

    text: str
    token: int | None
    """The token that completed this text; None for what was held back until the end."""
    kind: Kind = "content"
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class GenerationStats:
    """What a generation did and how long it took, in seconds. Grows while the generation runs."""

    n_prompt: int = 0
    """Tokens of the prompt."""
    n_reused: int = 0
    """Those of them that the session's cache already held."""
    n_generated: int = 0
    """Tokens sampled, the end-of-generation token included."""
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    """Forward passes of generated tokens and sampling."""
    first_token_seconds: float = 0.0
    """From the call to the first token."""

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prefill speed over the tokens that were computed."""
        return (self.n_prompt - self.n_reused) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decoding speed; the first token comes with the prompt and is not counted."""
        return (
            (self.n_generated - 1) / self.decode_seconds
            if self.decode_seconds and self.n_generated > 1
            else 0.0
        )


@dataclass
class Generation:
    """An iterator of pieces, with what is known about the generation beside it."""

    pieces: Iterator[Piece]
    stats: GenerationStats = field(default_factory=GenerationStats)
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(default_factory=list)
    """Sampled tokens so far, the end-of-generation token included."""

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        piece = next(self.pieces)
        self.finish_reason = piece.finish_reason or self.finish_reason
        return piece

    def text(self) -> str:
        """Run to the end and return the rest of the text, reasoning left out."""
        return "".join(piece.text for piece in self if piece.kind == "content")


class StopMatcher:
    """Finds stop strings in streamed text, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not s for s in stops):
            raise ArgumentError("a stop string must not be empty")
        self._stops = list(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was reached (its text is dropped)."""
        self._held += text
        found = [at for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((self._overlap(s) for s in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:n]):
                return n
        return 0


def generate(
    model: Model,
    prompt: str | Sequence[int],
    *,
    sampler: SamplerChain | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    session: Session | None = None,
    ignore_eog: bool = False,
    split_reasoning: bool = False,
    add_special: bool | None = None,
    parse_special: bool = True,
) -> Generation:
    """Continue a prompt.

    Args:
        model: The model.
        prompt: Text, or token ids.
        sampler: The chain to draw with; llama.cpp's default chain, freshly seeded, where None. The prompt's
            tokens are accepted into it, as llama.cpp does, so penalties see them.
        max_tokens: Tokens to sample at most; None goes on to the end of generation or of the context.
        stop: Strings (or one string) that end the generation; they are not shown.
        session: A session to go on in: what its cache shares with the prompt is not computed again.
        ignore_eog: Whether end-of-generation tokens are masked out, so that only ``max_tokens`` ends it.
        split_reasoning: Whether text between ``<think>`` and ``</think>`` comes as pieces of kind
            ``"reasoning"`` without the tags.
        add_special: Whether the tokenizer adds what the file asks for (BOS); for text only. None adds it
            unless the text, such as a rendered chat template, begins with it already.
        parse_special: Whether special tokens in the text are parsed; for text only.

    Returns:
        An iterator of :class:`Piece`. The last one has a finish reason: ``"eog"``, ``"stop"``, ``"length"``
        or ``"context_full"``.

    Raises:
        ContextFullError: The prompt does not fit the context (both lengths are in the message).
        Error: The logits are not finite.
    """
    started = time.perf_counter()
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        if add_special is None:
            bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
            add_special = not (bos and parse_special and prompt.startswith(bos))
        text, ids = prompt, tokenizer.encode(prompt, add_special=add_special, parse_special=parse_special)
    else:
        ids = [int(i) for i in prompt]
        text = tokenizer.decode(ids) if split_reasoning else ""
    if not ids:
        raise ArgumentError("the prompt has no tokens")
    if len(ids) > model.n_ctx:
        raise ContextFullError(
            f"the prompt has {len(ids)} tokens, but the context holds {model.n_ctx}; "
            "a larger n_ctx (--ctx-size) or a shorter prompt would do"
        )
    if session is not None and session.model is not model:
        raise ArgumentError("the session belongs to another model")
    if max_tokens is not None and max_tokens < 0:
        raise ArgumentError(f"max_tokens, expected at least 0, got {max_tokens}")
    if sampler is None:
        from gristmill.sampling import SamplerChain

        sampler = SamplerChain.parse()
    generation = Generation(iter(()))
    generation.stats.n_prompt = len(ids)
    loop = _Loop(model, session or model.session(), sampler, generation, ids, started)
    splitter = None
    if split_reasoning:
        from gristmill.reasoning import ReasoningSplitter, opens_reasoning

        splitter = ReasoningSplitter(in_reasoning=opens_reasoning(text))
    tokens = loop.tokens(max_tokens, ignore_eog)
    generation.pieces = _pieces(
        tokens,
        loop,
        tokenizer.stream(skip_special=True),
        StopMatcher([stop] if isinstance(stop, str) else stop),
        splitter,
    )
    return generation


class _Loop:
    """Forward and sample, token by token."""

    def __init__(
        self,
        model: Model,
        session: Session,
        sampler: SamplerChain,
        generation: Generation,
        ids: list[int],
        started: float,
    ) -> None:
        self.model = model
        self.session = session
        self.sampler = sampler
        self.generation = generation
        self.ids = ids
        self.started = started
        self.finish: FinishReason = "length"

    def tokens(self, max_tokens: int | None, ignore_eog: bool) -> Iterator[int]:
        stats, session, sampler = self.generation.stats, self.session, self.sampler
        if max_tokens == 0:
            return
        stats.n_reused = session.reuse_prefix(self.ids)
        sampler.bind(self.model.tokenizer)
        sampler.accept_many(self.ids)
        begin = time.perf_counter()
        eog = self.model.tokenizer.eog_ids
        masked = sorted(eog) if ignore_eog else []
        draw = self._forward(self.ids[stats.n_reused :], masked)
        stats.prompt_seconds = time.perf_counter() - begin
        while True:
            begin = time.perf_counter()
            token = draw()
            sampler.accept(token)
            stats.decode_seconds += time.perf_counter() - begin
            stats.n_generated += 1
            if stats.n_generated == 1:
                stats.first_token_seconds = time.perf_counter() - self.started
                stats.decode_seconds = 0.0
            self.generation.token_ids.append(token)
            if token in eog:
                self.finish = "eog"
                return
            yield token
            if stats.n_generated == max_tokens:
                self.finish = "length"
                return
            if session.n_past >= session.n_ctx:
                self.finish = "context_full"
                return
            begin = time.perf_counter()
            draw = self._forward([token], masked)
            stats.decode_seconds += time.perf_counter() - begin

    def _forward(self, ids: list[int], masked: list[int]) -> Callable[[], int]:
        """Appends tokens to the session; what draws the next one, never one that is masked.

        Where the logits are on a GPU and the sampler needs few of them, only those come to the host: the
        token is the same.
        """
        session, sampler = self.session, self.sampler
        # Embeddings may be padded beyond the vocabulary, with rows that mean nothing.
        n_vocab = self.model.tokenizer.n_vocab
        k = sampler.n_needed() if self.model.finds_top_logits else None
        # In steps, so that the device can repeat itself while penalties look back on more and more tokens.
        k = -(-(k + len(masked)) // 64) * 64 if k is not None else MOST_TOP_LOGITS + 1
        if k <= MOST_TOP_LOGITS and k < n_vocab:
            tokens, top = session.forward_top(ids, k, n_vocab)
            kept = ~np.isin(tokens, masked)
            return lambda: sampler.sample_top(tokens[kept], top[kept], self.model.n_vocab)
        logits = session.forward(ids)
        logits[masked] = -float("inf")
        logits[n_vocab:] = -float("inf")
        return lambda: sampler.sample(logits)


def _pieces(
    tokens: Iterator[int],
    loop: _Loop,
    decoder: StreamDecoder,
    stops: StopMatcher,
    splitter: ReasoningSplitter | None,
) -> Iterator[Piece]:
    def kinds(text: str, last: bool) -> list[tuple[Kind, str]]:
        if splitter is None:
            return [("content", text)] if text else []
        out = splitter.push(text) if text else []
        return out + splitter.flush() if last else out

    for token in tokens:
        shown, stopped = stops.push(decoder.push(token))
        for kind, text in kinds(shown, last=stopped):
            if text:
                yield Piece(text, token, kind)
        if stopped:
            loop.finish = "stop"
            break
    else:
        shown, stopped = stops.push(decoder.flush())
        if stopped:
            loop.finish = "stop"
        else:
            shown += stops.flush()
        for kind, text in kinds(shown, last=True):
            if text:
                yield Piece(text, None, kind)
    yield Piece("", None, "content", loop.finish)
