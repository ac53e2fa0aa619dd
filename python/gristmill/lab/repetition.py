"""How often a model's continuations fall into a repetition.

Low-bit files may repeat themselves while their perplexity looks smooth, since perplexity never lets a model
read its own text. Here each prompt is continued twice, greedily and sampled, until the model ends its answer,
the limit is reached, or it loops.

A continuation **loops** when it ends, at any moment, in one stretch of tokens repeated without a break: at
least ``MIN_REPEATS`` times, over at least ``MIN_TOKENS`` tokens. Tokens that are numbers count as the same
token, so that a list of which only the numbering goes on is a loop, as a word 32 times or a sentence of 20
tokens three times is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gristmill.errors import ArgumentError
from gristmill.lab.prompts import PROMPTS

if TYPE_CHECKING:
    from gristmill.model import Model
    from gristmill.sampling import SamplerChain

MIN_REPEATS = 3
MIN_TOKENS = 32
DEFAULT_TOKENS = 192
DEFAULT_SEED = 1
_SEQUENCES = 32  # decoded together
_NUMBER = -1  # what the detector sees of any number

Progress = Callable[[int, int], None]
"""Called with the tokens decoded of the longest continuation, and their limit."""


@dataclass(frozen=True)
class Continuation:
    """What a model made of a prompt. ``period`` is the length of the stretch that it repeats; 0: no loop.

    ``ended``: "loop", "eog" (its own end), or "length".
    """

    prompt: int
    mode: str
    seed: int
    ended: str
    period: int
    tokens: tuple[int, ...] = field(repr=False)
    text: str


@dataclass(frozen=True)
class LoopResult:
    """All continuations of one model: "greedy" first, then "sampled", in the order of the prompts."""

    model: str
    n_tokens: int
    continuations: tuple[Continuation, ...] = field(repr=False)

    @property
    def greedy_rate(self) -> float:
        """Share of greedy continuations that loop."""
        return self._rate("greedy")

    @property
    def sampled_rate(self) -> float:
        """Share of sampled continuations that loop."""
        return self._rate("sampled")

    def _rate(self, mode: str) -> float:
        chosen = [c.period > 0 for c in self.continuations if c.mode == mode]
        return sum(chosen) / len(chosen)


class LoopDetector:
    """Watches one continuation token by token; the definition is the module's."""

    def __init__(self, max_tokens: int) -> None:
        self._tokens = np.empty(max_tokens, np.int64)
        self._n = 0
        # runs[p - 1]: how many tokens up to the last one equal the token p before them.
        self._runs = np.zeros(max_tokens // MIN_REPEATS, np.int64)
        self._periods = np.arange(1, len(self._runs) + 1)

    def push(self, token: int) -> int:
        """Takes the next token and returns the shortest period that loops, or 0."""
        reach = min(self._n, len(self._runs))
        before = self._tokens[self._n - reach : self._n][::-1]  # before[p - 1]: the token p ago
        self._runs[:reach] = np.where(before == token, self._runs[:reach] + 1, 0)
        self._tokens[self._n] = token
        self._n += 1
        covered = self._runs + self._periods
        loops = (covered >= MIN_REPEATS * self._periods) & (covered >= MIN_TOKENS) & (self._runs > 0)
        return int(loops.argmax()) + 1 if loops.any() else 0


def find_loop(tokens: Sequence[int] | NDArray[np.integer]) -> int:
    """The period of the first loop in ``tokens``, or 0."""
    detector = LoopDetector(len(tokens))
    return next((period for token in tokens if (period := detector.push(int(token)))), 0)


def loops(
    model: Model,
    prompts: Sequence[str] | Sequence[Sequence[int]] = PROMPTS,
    n_tokens: int = DEFAULT_TOKENS,
    seed: int = DEFAULT_SEED,
    progress: Progress | None = None,
) -> LoopResult:
    """Continue each prompt greedily and sampled, and see which continuations loop.

    Args:
        model: Its context must hold a prompt and ``n_tokens`` more.
        prompts: Texts, put as a user's turn through the model's chat template where it has one; or token ids.
        n_tokens: Tokens of a continuation at most, at least 32: fewer cannot loop.
        seed: Prompt ``i`` is sampled with the seed ``seed + i``, by llama.cpp's default chain.
        progress: Told about each step.

    Raises:
        ArgumentError: No prompts, or a number makes no sense.
        ContextFullError: A prompt and its continuation do not fit the model's context.
        Error: The logits are not finite.
    """
    check_loop_settings(prompts, n_tokens)
    ids = [prompt_ids(model, p) if isinstance(p, str) else [int(i) for i in p] for p in prompts]
    numbers = number_tokens(model)
    runs = [_Run(model, i, "greedy", None, ids[i], n_tokens, numbers) for i in range(len(ids))]
    runs += [_Run(model, i, "sampled", seed + i, ids[i], n_tokens, numbers) for i in range(len(ids))]
    for first in range(0, len(runs), _SEQUENCES):
        _decode(model, runs[first : first + _SEQUENCES], n_tokens, progress)
    return LoopResult(model.path.name, n_tokens, tuple(run.result() for run in runs))


def check_loop_settings(prompts: Sequence[object], n_tokens: int) -> None:
    """Raises ArgumentError where :func:`loops` would."""
    if n_tokens < MIN_TOKENS:
        raise ArgumentError(f"continuations need at least {MIN_TOKENS} tokens to show a loop, got {n_tokens}")
    if len(prompts) == 0:
        raise ArgumentError("at least one prompt is needed to look for loops")


def prompt_ids(model: Model, prompt: str) -> list[int]:
    """The tokens of a prompt: a user's turn through the model's chat template, or the bare text."""
    if model.chat_template is None:
        return model.tokenizer.encode(prompt)
    text = model.chat_template.render([{"role": "user", "content": prompt}])
    return model.tokenizer.encode(text, add_special=False, parse_special=True)


def number_tokens(model: Model) -> frozenset[int]:
    """Tokens that are digits and nothing else but blanks."""
    return frozenset(i for i, b in enumerate(model.tokenizer.all_token_bytes()) if b.strip().isdigit())


class _Run:
    """One continuation while it grows. Its keys and values are freed as soon as it ends."""

    def __init__(
        self,
        model: Model,
        prompt: int,
        mode: str,
        seed: int | None,
        ids: list[int],
        n_tokens: int,
        numbers: frozenset[int],
    ) -> None:
        from gristmill.sampling import SamplerChain

        self.model, self.prompt, self.mode, self.ids = model, prompt, mode, ids
        self.seed = seed if seed is not None else 0
        self.chain: SamplerChain | None = None if seed is None else SamplerChain.parse(seed=seed)
        self.detector = LoopDetector(n_tokens)
        self.tokens: list[int] = []
        self.ended, self.period = "", 0
        self.limit = n_tokens
        self.numbers = numbers

    def take(self, logits: NDArray[np.float32]) -> None:
        """Chooses the next token from float32 ``[n_vocab]`` and sees whether that ends the continuation."""
        tokenizer = self.model.tokenizer
        logits[tokenizer.n_vocab :] = -np.inf
        if self.chain is None:
            token = int(logits.argmax())
        else:
            token = self.chain.sample(logits)
            self.chain.accept(token)
        if token in tokenizer.eog_ids:
            self.ended = "eog"
            return
        self.tokens.append(token)
        self.period = self.detector.push(_NUMBER if token in self.numbers else token)
        if self.period:
            self.ended = "loop"
        elif len(self.tokens) == self.limit:
            self.ended = "length"

    def result(self) -> Continuation:
        text = self.model.tokenizer.decode(self.tokens)
        return Continuation(
            self.prompt, self.mode, self.seed, self.ended, self.period, tuple(self.tokens), text
        )


def _decode(model: Model, runs: Sequence[_Run], n_tokens: int, progress: Progress | None) -> None:
    """Takes all runs to their ends, those that still grow in one pass a token."""
    sessions = {}
    for run in runs:
        session = model.session()
        run.take(session.forward(run.ids))
        sessions[id(run)] = session
    for step in range(1, n_tokens + 1):
        for run in runs:
            if run.ended:
                sessions.pop(id(run), None)
        growing = [run for run in runs if not run.ended]
        if progress is not None:
            progress(step if growing else n_tokens, n_tokens)
        if not growing:
            return
        logits = model.decode_batch([sessions[id(run)] for run in growing], [r.tokens[-1] for r in growing])
        for run, row in zip(growing, logits, strict=True):
            run.take(row)
