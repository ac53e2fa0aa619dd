"""What a run says around an answer: the prompt and its tokens, statistics, why it ended."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from gristmill.cli import output

if TYPE_CHECKING:
    from gristmill.cli.turn import Answer, Speaker
    from gristmill.generate import GenerationStats


def show_prompt(args: argparse.Namespace, speaker: Speaker, text: str, ids: list[int]) -> None:
    """What --verbose-prompt and --display-prompt ask for."""
    if args.verbose_prompt:
        for token in ids:
            output.note(f"{token:>8}  {speaker.model.tokenizer.token_text(token)!r}")
    if args.display_prompt:
        sys.stdout.write(text)
        sys.stdout.flush()


def report(args: argparse.Namespace, speaker: Speaker, answer: Answer) -> None:
    """Statistics, and the reason of an end that is not the model's own."""
    if args.quiet:
        return
    if answer.finish_reason == "context_full":
        output.note(f"[the context of {speaker.session.n_ctx} tokens is full; --ctx-size gives more]")
    elif answer.finish_reason == "length":
        output.note(f"[stopped after {count(args.n_predict)}, as --predict says]")
    if args.show_timings:
        output.note(f"[{statistics(answer.stats)}]")


def statistics(stats: GenerationStats) -> str:
    """One line: tokens, tokens per second of prefill and decode, time to the first token."""
    reused = f" ({stats.n_reused} reused)" if stats.n_reused else ""
    parts = [f"prompt {count(stats.n_prompt)}{reused}", f"answer {count(stats.n_generated)}"]
    if stats.prompt_seconds:
        parts[0] += f", {stats.prompt_tokens_per_second:.1f} tok/s"
    if stats.decode_seconds:
        parts[1] += f", {stats.decode_tokens_per_second:.1f} tok/s"
    if stats.first_token_seconds:
        parts.append(f"first token after {stats.first_token_seconds:.2f} s")
    return " · ".join(parts)


def count(n: int) -> str:
    """``n`` with its noun."""
    return f"{n} token" if n == 1 else f"{n} tokens"
