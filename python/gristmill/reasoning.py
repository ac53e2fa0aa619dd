"""Separating a model's reasoning, between ``<think>`` and ``</think>``, from its answer."""

from __future__ import annotations

from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["reasoning", "content"]

OPEN, CLOSE = "<think>", "</think>"


def opens_reasoning(prompt: str) -> bool:
    """Whether ``prompt`` ends inside a ``<think>`` block, so that the answer begins with reasoning."""
    return prompt.rfind(OPEN) > prompt.rfind(CLOSE)


def strip_reasoning(text: str) -> str:
    """An answer without its reasoning, for the history of a chat: what follows the last ``</think>``. An
    answer broken off while reasoning has nothing left but what stood before.
    """
    before, tag, after = text.rpartition(CLOSE)
    if tag:
        return after.lstrip("\n")
    before, tag, _ = text.partition(OPEN)
    return before if tag else text


class ReasoningSplitter:
    """Splits a stream of text into reasoning and content; a tag may be cut anywhere between pieces.

    ``in_reasoning`` says that the prompt has opened ``<think>`` already (see :func:`opens_reasoning`). Tags
    and the line breaks around them belong to neither part. Only the first block counts, later tags are text.
    """

    def __init__(self, in_reasoning: bool = False) -> None:
        self._kind: Kind = "reasoning" if in_reasoning else "content"
        self._tag: str | None = CLOSE if in_reasoning else OPEN  # the tag looked for; None after the block
        self._held = ""  # perhaps the beginning of a tag, or the line breaks in front of it
        self._skip_breaks = in_reasoning  # right behind a tag

    def push(self, text: str) -> list[tuple[Kind, str]]:
        """The parts that are certain now, in order."""
        parts: list[tuple[Kind, str]] = []
        text = self._held + text
        self._held = ""
        while text:
            if self._skip_breaks:
                text = text.lstrip("\n")
                if not text:
                    break
                self._skip_breaks = False
            if self._tag is None:
                parts.append((self._kind, text))
                break
            before, tag, text = text.partition(self._tag)
            if not tag:
                keep = _undecided(before, self._tag)
                if len(before) > keep:
                    parts.append((self._kind, before[: len(before) - keep]))
                self._held = before[len(before) - keep :]
                break
            if self._tag == CLOSE:
                before = before.rstrip("\n")
            if before:
                parts.append((self._kind, before))
            self._kind, self._tag = ("reasoning", CLOSE) if self._tag == OPEN else ("content", None)
            self._skip_breaks = True
        return parts

    def flush(self) -> list[tuple[Kind, str]]:
        """What was held back as the possible beginning of a tag; call it at the end."""
        held, self._held = self._held, ""
        return [(self._kind, held)] if held else []


def _undecided(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may belong to ``tag`` or, before ``</think>``, be the line
    breaks in front of it."""
    for n in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-n:]):
            break
    else:
        n = 0
    if tag == CLOSE:
        rest = text[: len(text) - n]
        n += len(rest) - len(rest.rstrip("\n"))
    return n
