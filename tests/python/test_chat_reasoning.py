"""Splitting answers into reasoning and content."""

from __future__ import annotations

import pytest
from gristmill.chat import ReasoningSplitter, opens_reasoning, strip_reasoning
from hypothesis import given
from hypothesis import strategies as st


def split(pieces: list[str], in_reasoning: bool) -> tuple[str, str]:
    splitter = ReasoningSplitter(in_reasoning)
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.flush()
    assert all(text for _, text in parts)
    kinds = [kind for kind, _ in parts]
    if in_reasoning:
        assert kinds == sorted(kinds, reverse=True)  # reasoning before content
    return tuple("".join(text for kind, text in parts if kind == want) for want in ("reasoning", "content"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "in_reasoning", "reasoning", "content"),
    [
        ("hm\n</think>\n\n4", True, "hm", "4"),
        ("<think>\nhm\n</think>\n\n4", False, "hm", "4"),
        ("plain\n", False, "", "plain\n"),
        ("never ends\n", True, "never ends\n", ""),
        ("</think>x", True, "", "x"),
        ("\n</think>x", True, "", "x"),
        ("<think></think>", False, "", ""),
        ("a < b </thin", True, "a < b </thin", ""),
        ("a\n\nb\n</think>\nc </think> d", True, "a\n\nb", "c </think> d"),
        ("say <think>x</think> y", False, "x", "say  y"),
        ("x</think>y<think>z", True, "x", "y<think>z"),
        ("</thi</think>z", True, "</thi", "z"),
    ],
)
def test_cut_anywhere(text: str, in_reasoning: bool, reasoning: str, content: str) -> None:
    assert split([text], in_reasoning) == (reasoning, content)
    assert split(list(text), in_reasoning) == (reasoning, content)
    for i in range(len(text)):
        assert split([text[:i], text[i:]], in_reasoning) == (reasoning, content)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think", ">", "\n", "a", " "])), st.booleans()
)
def test_any_cut_gives_the_same(pieces: list[str], in_reasoning: bool) -> None:
    assert split(pieces, in_reasoning) == split(["".join(pieces)], in_reasoning)


def test_text_is_not_held_back_longer_than_needed() -> None:
    splitter = ReasoningSplitter()
    assert splitter.push("a<") == [("content", "a")]
    assert splitter.push("b") == [("content", "<b")]
    assert splitter.push("<think>x") == [("reasoning", "x")]
    assert splitter.push("\n") == []
    assert splitter.push("y</") == [("reasoning", "\ny")]
    assert splitter.push("think>\n\nz") == [("content", "z")]
    assert splitter.push("<think>") == [("content", "<think>")]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("<think>\nx\n</think>\n\nanswer", "answer"),
        ("x</think>answer\n", "answer\n"),
        ("answer", "answer"),
        ("<think>cut off", ""),
        ("a</think>b</think>c", "c"),
    ],
)
def test_strip_reasoning(text: str, want: str) -> None:
    assert strip_reasoning(text) == want


def test_opens_reasoning() -> None:
    assert opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not opens_reasoning("<|im_start|>assistant\n<think>\n</think>")
    assert not opens_reasoning("<|im_start|>assistant\n")
    assert opens_reasoning("<think>a</think>b<think>\n")
