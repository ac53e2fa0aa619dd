"""Vocabularies that contradict themselves, and kinds that are not supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gristmill import ArgumentError, Error, GGUFError, GristmillWarning, Tokenizer, UnsupportedModelError
from slow_bpe import MERGES, write_vocabulary
from test_tokenizer import IDS, TOKENS, TYPES

N = len(TOKENS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [*TOKENS[:-1], TOKENS[0]]}, f"tokens 0 and {N - 1} are both '{TOKENS[0]}'"),
        ({"tokens": None}, "tokenizer.ggml.tokens' is missing"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens': expected array of str"),
        ({"merges": None}, "tokenizer.ggml.merges' is missing"),
        ({"merges": [*MERGES, "a zzzz"]}, f"merge {len(MERGES)} is 'a zzzz', but 'zzzz' is no token"),
        ({"merges": [*MERGES, "Ω a"]}, "but 'Ω' is no token"),
        ({"merges": ["x y"]}, "merge 0 is 'x y', but 'xy' is no token"),
        ({"merges": ["ab"]}, "merge 0 is 'ab', expected two tokens"),
        ({"merges": ["a b c"]}, "merge 0 is 'a b c', expected two tokens"),
        ({"token_type": TYPES[:-1]}, f"token_type has {N - 1} elements, expected {N}"),
        ({"token_type": [*TYPES[:-1], 7]}, f"token_type of token {N - 1} is 7"),
        ({"token_type": [*TYPES[:-1], -1]}, f"token_type of token {N - 1} is -1"),
        ({"bos_token_id": -1}, f"bos_token_id is -1, but the vocabulary has {N} tokens"),
        ({"bos_token_id": N}, f"bos_token_id is {N}, but the vocabulary has {N} tokens"),
        ({"eos_token_id": (1 << 32) - 1}, "eos_token_id is 4294967295, but"),
        ({"eot_token_id": "x"}, "eot_token_id': expected int, got str"),
        ({"add_bos_token": 1}, "add_bos_token': expected bool"),
        ({"add_bos_token": True}, "add_bos_token is true, but tokenizer.ggml.bos_token_id is missing"),
        ({"model": None}, "tokenizer.ggml.model' is missing"),
    ],
)
def test_contradictions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", **changes)
    with pytest.raises(GGUFError) as caught:
        Tokenizer.from_gguf(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize("model", ["llama", "bert", "t5", "rwkv", "no_vocab", "evil\nname"])
def test_other_families_are_refused_by_name(tmp_path: Path, model: str) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", model=model)
    with pytest.raises(UnsupportedModelError) as caught:
        Tokenizer.from_gguf(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert model.replace("\n", "\\n") in text


def test_an_unknown_pre_tokenizer_names_the_override(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", "klingon")
    with pytest.raises(UnsupportedModelError) as caught:
        Tokenizer.from_gguf(path)
    assert "'klingon'" in str(caught.value)
    assert "--override-kv tokenizer.ggml.pre=str:qwen2" in str(caught.value)
    overridden = Tokenizer.from_gguf(path, overrides={"tokenizer.ggml.pre": "qwen2"})
    assert overridden.pre == "qwen2"
    assert overridden.encode("ab12") == [*overridden.encode("ab"), IDS["1"], IDS["2"]]


def test_a_missing_pre_tokenizer_warns(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", None)
    with pytest.warns(GristmillWarning, match="tokenizer.ggml.pre is missing"):
        assert Tokenizer.from_gguf(path).pre == "default"


def test_overrides_take_effect(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.gguf")
    tok = Tokenizer.from_gguf(
        path, overrides={"tokenizer.ggml.bos_token_id": IDS["a"], "tokenizer.ggml.add_bos_token": True}
    )
    assert tok.encode("b") == [IDS["a"], IDS["b"]]
    with pytest.raises(GGUFError, match="bos_token_id is 99999"):
        Tokenizer.from_gguf(path, overrides={"tokenizer.ggml.bos_token_id": 99999})
    with pytest.raises(ArgumentError):
        Tokenizer.from_gguf(path, overrides={"tokenizer.ggml.pre": 7})


def test_tokens_without_text_are_harmless(tmp_path: Path) -> None:
    """Padding that converters leave empty, more than once, and bytes that are not UTF-8."""
    tokens = [*TOKENS, "", ""]
    path = write_vocabulary(tmp_path / "v.gguf", tokens=tokens, token_type=[*TYPES, 5, 3])
    tok = Tokenizer.from_gguf(path)
    assert tok.token_bytes(N) == tok.token_bytes(N + 1) == b""
    assert tok.decode([IDS["a"], N, N + 1]) == "a"
    data = bytearray(path.read_bytes())
    at = data.index(b"<|im_start|>")
    data[at : at + 2] = b"\xff\xfe"
    path.write_bytes(data)
    tok = Tokenizer.from_gguf(path)
    assert tok.token_bytes(IDS["<|im_start|>"]) == b"\xff\xfeim_start|>"
    assert tok.token_text(IDS["<|im_start|>"]).startswith("\ufffd\ufffd")
    assert tok.decode(tok.encode("abc <|im_end|>", parse_special=True)) == "abc <|im_end|>"


def test_all_token_bytes_are_those_of_each(tmp_path: Path) -> None:
    """Also of tokens that the byte alphabet does not spell, at both ends and side by side."""
    odd = ["two words", "\n", "", "\u0143\u0144", "日本", "\U0001f600", "a\u2028b", "", "é b"]
    tokens = [*odd, *TOKENS, *(text + "!" for text in odd if text), ""]
    types = [*[4] * len(odd), *TYPES, *[1] * (len(odd) - 2), 5]
    path = write_vocabulary(tmp_path / "v.gguf", tokens=tokens, token_type=types)
    tok = Tokenizer.from_gguf(path)
    assert tok.all_token_bytes() == [tok.token_bytes(i) for i in range(len(tokens))]
    assert tok.all_token_bytes()[-2:] == ["é b!".encode(), b""]


def test_a_vocabulary_without_most_bytes(tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "v.gguf",
        tokens=["<a>", "a", "b", "ab"],
        token_type=[3, 1, 1, 1],
        merges=["a b"],
        eos_token_id=0,
    )
    tok = Tokenizer.from_gguf(path)
    assert tok.encode("<a>ab", parse_special=True) == [0, 3]
    with pytest.warns(GristmillWarning, match="2 bytes of the text are dropped"):
        assert tok.encode("<a>") == [1]


def test_truncated_files_are_errors_of_ours(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.gguf")
    data = path.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:end])
        with pytest.raises(Error):
            Tokenizer.from_gguf(path)
