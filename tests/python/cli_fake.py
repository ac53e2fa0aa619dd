"""An engine of a few lines for tests of the command line, and a program that runs the command line on it.

The model's vocabulary is the 256 bytes and an end; its answer to a prompt is what ``reply`` says. Run as a
program (``python cli_fake.py run ...``), commands behave like ``gristmill``'s, so that signals and terminals
can be tested.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from gristmill.errors import ContextFullError, Error, GristmillWarning
from gristmill.generate import Generation, GenerationStats, Piece

EOG = 256


class FakeTokenizer:
    bos_id = None
    eos_id = EOG
    n_vocab = 257

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return bytes(ids).decode()

    def token_text(self, token: int) -> str:
        return "<end>" if token == EOG else chr(token)


class FakeTemplate:
    """Renders ``[role:content]`` for each message and ``[assistant:`` at the end."""

    def render(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        text = "".join(f"[{m['role']}:{m['content']}]" for m in messages)
        self.arguments = kwargs
        # Thinking is on unless something says otherwise, and not worth a mark.
        marked = {k: v for k, v in kwargs.items() if (k, v) != ("enable_thinking", True)}
        return text + "".join(f"({k}={v})" for k, v in marked.items()) + "[assistant:" * add_generation_prompt


class FakeSession:
    def __init__(self, n_ctx: int) -> None:
        self.n_ctx = n_ctx
        self.tokens: list[int] = []


class FakeSampler:
    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1


class FakeModel:
    """Keeps what it was loaded with and every prompt it was given."""

    def __init__(self, path: Any, **arguments: Any) -> None:
        self.path = path
        self.arguments = arguments
        self.tokenizer = FakeTokenizer()
        self.chat_template: FakeTemplate | None = FakeTemplate()
        self.prompts: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.n_ctx = arguments.get("n_ctx") or 1000

    def session(self) -> FakeSession:
        return FakeSession(self.n_ctx)

    def reply(self, prompt: str) -> str:
        """What the answer is: by the last message, some words ask for something special."""
        last = prompt.rpartition("[user:")[2].partition("]")[0]
        if "slowly" in last:
            return "word " * 1000
        if "think" in last:
            return f"<think>hm</think>\n\nthought about {last}"
        return f"you said {last!r} in {len(prompt)} characters"

    def generate(self, prompt: Sequence[int], **options: Any) -> Generation:
        self.options.append(options)
        text = bytes(prompt).decode()
        self.prompts.append(text)
        session: FakeSession = options["session"]
        if len(prompt) > session.n_ctx:
            raise ContextFullError(
                f"the prompt has {len(prompt)} tokens, but the context holds {session.n_ctx}"
            )
        if "fail" in text.rpartition("[user:")[2]:
            raise Error("the logits are not finite")
        n_reused = 0
        for have, want in zip(session.tokens, prompt[:-1], strict=False):
            if have != want:
                break
            n_reused += 1
        stats = GenerationStats(n_prompt=len(prompt), n_reused=n_reused, prompt_seconds=0.5)
        generation = Generation(iter(()), stats)
        generation.pieces = self._pieces(list(prompt), session, options, generation)
        return generation

    def _pieces(
        self, prompt: list[int], session: FakeSession, options: dict[str, Any], generation: Generation
    ) -> Iterator[Piece]:
        answer = self.reply(bytes(prompt).decode())
        kinds = [("content", answer)]
        if options["split_reasoning"] and answer.startswith("<think>"):
            thought, _, rest = answer.removeprefix("<think>").partition("</think>")
            kinds = [("reasoning", thought), ("content", rest)]
        session.tokens = prompt
        reason = "eog"
        for kind, text in kinds:
            for character in text:
                if generation.stats.n_generated == options["max_tokens"]:
                    reason = "length"
                    break
                if len(session.tokens) >= session.n_ctx:
                    reason = "context_full"
                    break
                if answer.startswith("word"):
                    time.sleep(0.01)
                session.tokens = session.tokens + list(character.encode())
                generation.stats.n_generated += 1
                generation.stats.decode_seconds += 0.01
                generation.stats.first_token_seconds = 0.5
                yield Piece(character, ord(character), kind)
        yield Piece("", None, "content", reason)


def install(model_type: type[FakeModel] = FakeModel) -> list[FakeModel]:
    """Puts the engine in place of the real one; the list receives every model that is loaded."""
    from gristmill.cli import run

    loaded: list[FakeModel] = []

    def load(path: Any, **arguments: Any) -> FakeModel:
        if os.environ.get("FAKE_WARNING"):
            warnings.warn("something\nodd", GristmillWarning, stacklevel=2)
        loaded.append(model_type(path, **arguments))
        return loaded[-1]

    run._load = load  # type: ignore[assignment]
    run._sampler = lambda args: FakeSampler()  # type: ignore[assignment,return-value]
    return loaded


if __name__ == "__main__":
    from gristmill.cli import main

    install()
    sys.exit(main())
