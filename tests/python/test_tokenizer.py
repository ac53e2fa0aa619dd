"""The tokenizer on small vocabularies, held to an independent, slow implementation."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import gristmill.bpe
import pytest
from gristmill import ArgumentError, GristmillWarning, Tokenizer
from gristmill.pretokenizers import PRE_TOKENIZERS
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_bpe import MERGES, PIECES, SPLITTERS, encode, ranked, vocabulary, write_vocabulary

TOKENS, TYPES = vocabulary()
IDS = {token: i for i, token in enumerate(TOKENS)}
RANKS = ranked(MERGES)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("vocabularies")
    return {pre: Tokenizer.from_gguf(write_vocabulary(folder / f"{pre}.gguf", pre)) for pre in PRE_TOKENIZERS}


@pytest.fixture(scope="session")
def tokenizer(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["qwen2"]


@pytest.mark.parametrize("pre", SPLITTERS)
@given(text=TEXTS)
@settings(deadline=None, max_examples=300)
def test_ids_equal_the_slow_implementation(tokenizers: dict[str, Tokenizer], pre: str, text: str) -> None:
    assert tokenizers[pre].encode(text) == encode(text, pre, IDS, RANKS)


# The patterns as the models' own files write them.
_MODERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN_UPPER, _TEKKEN_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PUBLISHED = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _MODERN % "",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _MODERN % "{1,3}",
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}*{_TEKKEN_LOWER}+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}+{_TEKKEN_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("pre", PUBLISHED)
@given(text=st.text(max_size=40) | TEXTS)
@settings(deadline=None, max_examples=300)
def test_patterns_split_as_published(pre: str, text: str) -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    (ours,) = PRE_TOKENIZERS[pre].patterns
    want = Split(Regex(PUBLISHED[pre]), "isolated").pre_tokenize_str(text)
    assert Split(Regex(ours), "isolated").pre_tokenize_str(text) == want


@given(text=st.text(max_size=60) | TEXTS)
@settings(deadline=None)
def test_decode_inverts_encode(tokenizers: dict[str, Tokenizer], text: str) -> None:
    for parse_special in (False, True):
        ids = tokenizers["llama-bpe"].encode(text, add_special=False, parse_special=parse_special)
        assert tokenizers["llama-bpe"].decode(ids) == text


def test_nfc_is_applied_for_qwen_only(tokenizers: dict[str, Tokenizer]) -> None:
    assert tokenizers["qwen2"].encode("e\u0301") == tokenizers["qwen2"].encode("é")
    assert tokenizers["smollm"].encode("e\u0301") != tokenizers["smollm"].encode("é")


def test_default_rules_isolate_punctuation_and_group_digits(tokenizers: dict[str, Tokenizer]) -> None:
    default = tokenizers["default"]
    parts = ["ab", "!?", "1234", "+", "c"]
    assert default.encode("ab!?1234+c") == [i for part in parts for i in default.encode(part)]
    # Three digits make a piece, so what is behind them cannot change them.
    assert default.encode("1234") == default.encode("123") + default.encode("4")


def test_control_tokens_only_when_asked(tokenizer: Tokenizer) -> None:
    end = IDS["<|im_end|>"]
    text = "a<|im_end|>b"
    assert tokenizer.encode(text, parse_special=True) == [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
    plain = tokenizer.encode(text)
    assert end not in plain
    assert tokenizer.decode(plain) == text
    assert plain == encode(text, "qwen2", IDS, RANKS)


def test_user_defined_tokens_always(tokenizer: Tokenizer) -> None:
    think = IDS["<think>"]
    for parse_special in (False, True):
        assert tokenizer.encode("x<think>y", parse_special=parse_special) == [IDS["x"], think, IDS["y"]]
    assert not tokenizer.is_special(think)


def test_special_tokens_do_not_swallow_spaces(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" <|im_end|> ", parse_special=True)
    assert ids == [IDS["Ġ"], IDS["<|im_end|>"], IDS["Ġ"]]


def test_the_longest_special_token_wins(tmp_path: Path) -> None:
    special = {"<a": 3, "<a>": 3, "<a>b": 4}
    tok = Tokenizer.from_gguf(write_vocabulary(tmp_path / "v.gguf", special=special))
    first = len(TOKENS) - 5
    assert tok.encode("<a>b<a><a", parse_special=True) == [first + 2, first + 1, first]


def test_merging_never_makes_a_control_token(tmp_path: Path) -> None:
    """Even in a file whose merges spell one, plain text stays plain."""
    tokens = [*TOKENS, "<z", "<z>"]
    path = write_vocabulary(
        tmp_path / "v.gguf", tokens=tokens, token_type=[*TYPES, 1, 3], merges=["< z", "<z >", *MERGES]
    )
    tok = Tokenizer.from_gguf(path)
    assert tok.encode("<z>") == [tokens.index("<z"), IDS[">"]]
    assert tok.encode("<z>", parse_special=True) == [tokens.index("<z>")]
    llama = Tokenizer.from_gguf(path, overrides={"tokenizer.ggml.pre": "gpt-2"})
    assert tokens.index("<z>") not in llama.encode("<z>")


def test_begin_and_end_tokens(tmp_path: Path) -> None:
    bos, eos = IDS["<|im_start|>"], IDS["<|im_end|>"]
    tok = Tokenizer.from_gguf(
        write_vocabulary(
            tmp_path / "v.gguf", bos_token_id=bos, eos_token_id=eos, add_bos_token=True, add_eos_token=True
        )
    )
    assert tok.encode("a") == [bos, IDS["a"], eos]
    assert tok.encode("") == [bos, eos]
    assert tok.encode("a", add_special=False) == [IDS["a"]]
    assert (tok.bos_id, tok.eos_id, tok.add_bos, tok.add_eos) == (bos, eos, True, True)
    with pytest.warns(GristmillWarning, match=re.escape("begins with the token '<|im_start|>'")):
        assert tok.encode("<|im_start|>a", parse_special=True) == [bos, bos, IDS["a"], eos]


def test_llama_bpe_adds_bos_where_the_file_is_silent(tmp_path: Path) -> None:
    bos = IDS["<|im_start|>"]
    assert Tokenizer.from_gguf(write_vocabulary(tmp_path / "a.gguf", "llama-bpe", bos_token_id=bos)).add_bos
    no = write_vocabulary(tmp_path / "b.gguf", "llama-bpe", bos_token_id=bos, add_bos_token=False)
    assert not Tokenizer.from_gguf(no).add_bos


def test_ends_of_generation(tmp_path: Path) -> None:
    tok = Tokenizer.from_gguf(write_vocabulary(tmp_path / "v.gguf"))
    assert tok.eot_id == IDS["<|im_end|>"]
    assert tok.eog_ids == {IDS["<|im_end|>"], IDS["<|endoftext|>"]}
    # A marker of the wrong type is still a control token; a word that merging spells is a word.
    special = {"<|im_end|>": 1, "<|fim_pad|>": 3, "</s>": 1, "</": 1, "s>": 1, "<|endoftext|>": 3}
    merges = ["< /", "s >", "</ s>", *MERGES]
    tok = Tokenizer.from_gguf(write_vocabulary(tmp_path / "w.gguf", special=special, merges=merges))
    ids = {text: len(TOKENS) - 5 + i for i, text in enumerate(special)}
    assert tok.eog_ids == {ids["<|im_end|>"], ids["<|fim_pad|>"], ids["<|endoftext|>"]}
    assert tok.is_special(ids["<|im_end|>"])
    assert ids["<|im_end|>"] not in tok.encode("<|im_end|>")


def test_bytes_and_text_of_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é😀")
    assert b"".join(map(tokenizer.token_bytes, ids)) == "é😀".encode()
    assert tokenizer.token_text(IDS["<|im_end|>"]) == "<|im_end|>"
    assert tokenizer.token_text(IDS["Ġ"]) == " "
    assert tokenizer.token_bytes(IDS["ÿ"]) == b"\xff"
    assert tokenizer.token_text(IDS["ÿ"]) == "\ufffd"
    assert tokenizer.n_vocab == len(TOKENS)


def test_decode_is_total_and_checks_its_range(tokenizer: Tokenizer) -> None:
    import numpy as np

    everything = tokenizer.decode(range(tokenizer.n_vocab))
    assert "<|im_end|>" in everything
    assert "<|im_end|>" not in tokenizer.decode(range(tokenizer.n_vocab), skip_special=True)
    assert tokenizer.decode(np.array([IDS["a"]], dtype=np.int32)) == "a"
    for bad in (-1, tokenizer.n_vocab, 1 << 70):
        with pytest.raises(ArgumentError, match="out of range"):
            tokenizer.decode([bad])
        with pytest.raises(ArgumentError, match="out of range"):
            tokenizer.stream().push(bad)
    with pytest.raises(ArgumentError, match="expected int, got str"):
        tokenizer.decode(["a"])  # type: ignore[list-item]


@given(ids=st.lists(st.integers(0, len(TOKENS) - 1), max_size=30))
@settings(deadline=None)
def test_streaming_gives_the_same_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    for skip in (False, True):
        stream = tokenizer.stream(skip_special=skip)
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids, skip_special=skip)


def test_streaming_holds_half_characters_back(tokenizer: Tokenizer) -> None:
    smile = [IDS["ð"], IDS["Ł"], IDS["ĺ"], IDS["Ģ"]]  # the four bytes of an emoji
    stream = tokenizer.stream()
    assert [stream.push(i) for i in smile] == ["", "", "", "😀"]
    assert [stream.push(i) for i in smile[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.push(smile[1]) == "\ufffd"
    assert [stream.push(smile[0]), stream.push(IDS["a"])] == ["", "\ufffda"]


@pytest.mark.parametrize("unit", ["a", " ", "\n", "日", " \n", "!", "0"])
def test_a_megabyte_of_one_thing_takes_linear_time(tokenizers: dict[str, Tokenizer], unit: str) -> None:
    tok = tokenizers["qwen2"]
    times = []
    for n in (1 << 18, 1 << 20):
        start = time.process_time()
        ids = tok.encode((unit * n)[:n])
        times.append(time.process_time() - start)
        if n == 1 << 18:
            assert tok.decode(ids) == (unit * n)[:n]
    assert times[1] < 10 * times[0] + 0.5  # four times the text
    assert times[1] < 10


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_split_takes_linear_time(tokenizers: dict[str, Tokenizer], pre: str) -> None:
    for unit in ("A", "\u0301", "'s", " ", "$"):
        times = []
        for n in (1 << 14, 1 << 16):
            start = time.process_time()
            tokenizers[pre].encode((unit * n)[:n] + "x")
            times.append(time.process_time() - start)
        assert times[1] < 10 * times[0] + 0.1, unit


def test_text_beyond_what_the_regex_engine_takes_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gristmill.bpe, "_MAX_UNCUT", 1000)
    assert tokenizer.encode("a" * 1000)
    with pytest.raises(ArgumentError, match="1001 characters without a line break"):
        tokenizer.encode("a" * 1001)


@given(parts=st.lists(st.sampled_from([*PIECES, ".\nThe", "x\ny", "!\nA", "\nB", ")\n\nC", ";\n  d"])))
@settings(deadline=None, max_examples=300)
def test_long_texts_are_cut_where_it_does_not_show(
    tokenizers: dict[str, Tokenizer], parts: list[str]
) -> None:
    text = "".join(parts)
    for tok in tokenizers.values():
        whole = tok.encode(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gristmill.bpe, "_PORTION", 2)
            assert tok.encode(text) == whole


def test_cutting_really_happens(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gristmill.bpe, "_PORTION", 2)
    assert list(tokenizer._codec._portions("ab.\ncd.\nef.\ngh")) == ["ab.\n", "cd.\n", "ef.\n", "gh"]  # type: ignore[attr-defined]


def test_dropped_bytes_are_reported(tmp_path: Path) -> None:
    tokens = [f"x{i}" if token == "z" else token for i, token in enumerate(TOKENS)]
    tok = Tokenizer.from_gguf(write_vocabulary(tmp_path / "v.gguf", tokens=tokens))
    with pytest.warns(GristmillWarning, match="1 bytes of the text are dropped.*byte 0x7A"):
        assert tok.encode("azb") == [IDS["a"], IDS["b"]]


def test_nul_is_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "\ude00\ud83d"])
def test_lone_surrogates_are_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(ArgumentError, match=r"half of a surrogate pair"):
        tokenizer.encode(text)


@pytest.mark.parametrize("text", [None, b"bytes", 7, ["a"]])
def test_other_types_are_refused(tokenizer: Tokenizer, text: object) -> None:
    with pytest.raises(ArgumentError, match="expected str"):
        tokenizer.encode(text)  # type: ignore[arg-type]


def test_libraries_are_imported_on_use() -> None:
    code = (
        "import sys, gristmill, gristmill.tokenizer, gristmill.chat;"
        "sys.exit(bool({'tokenizers', 'jinja2'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
