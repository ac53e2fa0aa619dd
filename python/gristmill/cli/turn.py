"""One answer: the only place of the command line that drives the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gristmill.cli.output import AnswerWriter

if TYPE_CHECKING:
    from gristmill.generate import FinishReason, GenerationStats
    from gristmill.model import Model
    from gristmill.sampling import SamplerChain


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one prompt. ``text`` leaves thinking out; "interrupted" is Ctrl-C."""

    text: str
    finish_reason: FinishReason | Literal["interrupted"]
    stats: GenerationStats


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an answer. ``max_tokens`` None: only the model itself or the end of the context."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eog: bool = False


class Speaker:
    """Answers prompts in one session: one that begins like the last is taken up where it differs."""

    def __init__(self, model: Model, sampler: SamplerChain, limits: Limits) -> None:
        self.model = model
        self.sampler = sampler
        self.limits = limits
        self.session = model.session()

    def answer(self, prompt: Sequence[int], writer: AnswerWriter, *, split_reasoning: bool) -> Answer:
        """Generates an answer to the token ids ``prompt`` and streams it to ``writer``.

        Ctrl-C ends the answer (finish reason "interrupted"); the caller decides whether it ends the program.
        With ``split_reasoning`` thinking goes to the writer as such and is left out of the answer's text.
        Raises ContextFullError when the prompt does not fit, and whatever the engine raises.
        """
        self.sampler.reset()
        generation = self.model.generate(
            prompt,
            session=self.session,
            sampler=self.sampler,
            max_tokens=self.limits.max_tokens,
            stop=self.limits.stop,
            ignore_eog=self.limits.ignore_eog,
            split_reasoning=split_reasoning,
        )
        content: list[str] = []
        try:
            for piece in generation:
                if piece.kind == "content":
                    content.append(piece.text)
                writer.write(piece.text, piece.kind)
        except KeyboardInterrupt:
            pass
        finally:
            writer.end()
        return Answer("".join(content), generation.finish_reason or "interrupted", generation.stats)
