"""One answer: the only place of the command line that drives the engine.

A :class:`Speaker` owns a session, its sampler chain, and the tokens that lie in the session's cache, so that
a prompt which begins like the last one is processed from where it differs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gristmill.cli.output import AnswerWriter

if TYPE_CHECKING:
    from gristmill.model import Model
    from gristmill.sampling import SamplerChain


@dataclass(slots=True)
class Answer:
    """What came of one prompt. Times are in seconds from the start of processing the prompt."""

    text: str = ""
    """The answer without thinking."""
    finish_reason: str = "interrupted"
    """"eog", "stop", "length", "context_full", or "interrupted" (Ctrl-C)."""
    n_prompt: int = 0
    """Tokens of the prompt that had to be processed ..."""
    n_reused: int = 0
    """... and those that still lay in the cache."""
    n_generated: int = 0
    first_token: float = 0.0
    total: float = 0.0

    def statistics(self) -> str:
        """One line: tokens, tokens per second of prefill and decode, time to the first token."""
        reused = f" ({self.n_reused} more reused)" if self.n_reused else ""
        line = f"prompt {_count(self.n_prompt)}{reused}"
        if self.n_generated:
            line += f", {_rate(self.n_prompt, self.first_token)}"
        line += f" · answer {_count(self.n_generated)}"
        if self.n_generated > 1:
            line += f", {_rate(self.n_generated - 1, self.total - self.first_token)}"
        if self.n_generated:
            line += f" · first token after {self.first_token:.2f} s"
        return line


def _count(n: int) -> str:
    return f"{n} token" if n == 1 else f"{n} tokens"


def _rate(n: int, seconds: float) -> str:
    return f"{n / seconds:.1f} tok/s" if seconds > 0 else "- tok/s"


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an answer. ``max_tokens`` None: only the model itself or the end of the context."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class Speaker:
    """See the module. ``model`` stays the caller's."""

    def __init__(self, model: Model, sampler: SamplerChain, limits: Limits) -> None:
        self.model = model
        self.sampler = sampler
        self.limits = limits
        self.session = model.session()
        self._cached: list[int] = []

    def answer(self, prompt: Sequence[int], writer: AnswerWriter, *, split_reasoning: bool) -> Answer:
        """Generates an answer to the token ids ``prompt`` and streams it to ``writer``.

        Ctrl-C ends the answer (finish reason "interrupted"); the caller decides whether it ends the program.
        With ``split_reasoning`` thinking goes to the writer as such and is left out of the answer's text.
        Raises ContextFullError when the prompt does not fit, and whatever the engine raises.
        """
        prompt = list(prompt)
        n_reused = min(_common_prefix(self._cached, prompt), max(len(prompt) - 1, 0))
        self.session.truncate(n_reused)
        del self._cached[n_reused:]
        self.sampler.reset()
        for token in prompt[:n_reused]:
            self.sampler.accept(token)
        answer = Answer(n_prompt=len(prompt) - n_reused, n_reused=n_reused)
        generated: list[int] = []
        start = time.perf_counter()
        try:
            for piece in self.model.generate(
                prompt[n_reused:],
                session=self.session,
                sampler=self.sampler,
                max_tokens=self.limits.max_tokens,
                stop=list(self.limits.stop),
                ignore_eos=self.limits.ignore_eos,
                split_reasoning=split_reasoning,
            ):
                if piece.token is not None:
                    generated.append(piece.token)
                    answer.total = time.perf_counter() - start
                    if len(generated) == 1:
                        answer.first_token = answer.total
                if piece.kind == "content":
                    answer.text += piece.text
                writer.write(piece.text, piece.kind)
                if piece.finish_reason is not None:
                    answer.finish_reason = piece.finish_reason
        except KeyboardInterrupt:
            pass
        finally:
            answer.n_generated = len(generated)
            # The last token generated has not been through the model.
            self._cached = (prompt + generated)[: self.session.n_past]
            writer.end()
        return answer


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
