"""Byte-level BPE written from its definition, slowly: what the tokenizer is held to. Also tiny GGUF files."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf

# Categories are asked of unicodedata, so tests keep to characters that every Unicode version agrees on.
LETTERS = "aZeétß中文日本Ωжاक한"
MARKS = "\u0301\u093f"
NUMBERS = "0179٣½Ⅷ"
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2028", "\x85"]
SYMBOLS = ["!", "...", "'", "'s", "'LL", "'re", "/", "$", "+", "<", "_", "😀", "€", "\u200d", "\x00", "{}"]
PIECES = [
    *LETTERS,
    *MARKS,
    *NUMBERS,
    *SPACES,
    *SYMBOLS,
    "the",
    " the",
    "Hello",
    "don't",
    "1234567",
    "e\u0301",
]


def is_letter(c: str) -> bool:
    return unicodedata.category(c).startswith("L")


def is_number(c: str) -> bool:
    return unicodedata.category(c).startswith("N")


def is_space(c: str) -> bool:
    return c in "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" or "\u2000" <= c <= "\u200a"


def is_symbol(c: str) -> bool:
    return not (is_letter(c) or is_number(c) or is_space(c))


def run_of(text: str, i: int, accept: Any) -> int:
    while i < len(text) and accept(text[i]):
        i += 1
    return i


def contraction(text: str, i: int, ignore_case: bool) -> int:
    for ending in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
        found = text[i : i + len(ending)]
        if found == ending or (ignore_case and found.lower() == ending):
            return i + len(ending)
    return i


def whitespace(text: str, i: int) -> int:
    """A run of whitespace leaves its last character to what follows."""
    end = run_of(text, i, is_space)
    return end if end == len(text) or end - i == 1 else end - 1


def split_gpt2(text: str) -> list[str]:
    pieces, i = [], 0
    while i < len(text):
        end = contraction(text, i, ignore_case=False)
        if end == i:
            start = i + 1 if text[i] == " " and i + 1 < len(text) and not is_space(text[i + 1]) else i
            for kind in (is_letter, is_number, is_symbol):
                if kind(text[start]):
                    end = run_of(text, start, kind)
                    break
            else:
                end = whitespace(text, i)
        pieces.append(text[i:end])
        i = end
    return pieces


def split_modern(text: str, digits: int) -> list[str]:
    """As Qwen2 (one digit a piece) and Llama 3 (up to three) do."""
    pieces, i = [], 0
    while i < len(text):
        c, following = text[i], text[i + 1 : i + 2]
        end = contraction(text, i, ignore_case=True)
        if end > i:
            pass
        elif is_letter(c) or (c not in "\r\n" and not is_number(c) and following and is_letter(following)):
            end = run_of(text, i + 1, is_letter)
        elif is_number(c):
            end = min(run_of(text, i, is_number), i + digits)
        elif is_symbol(c) or (c == " " and following and is_symbol(following)):
            end = run_of(text, run_of(text, i + 1, is_symbol), lambda x: x in "\r\n")
        else:
            run = text[i : run_of(text, i, is_space)]
            last_break = max(run.rfind("\n"), run.rfind("\r"))
            end = i + last_break + 1 if last_break >= 0 else whitespace(text, i)
        pieces.append(text[i:end])
        i = end
    return pieces


def split_digits(text: str) -> list[str]:
    pieces: list[str] = []
    start = 0
    for i, c in enumerate(text):
        if is_number(c):
            pieces += [*split_gpt2(text[start:i]), c]
            start = i + 1
    return pieces + split_gpt2(text[start:])


SPLITTERS = {
    "gpt-2": split_gpt2,
    "smollm": split_digits,
    "qwen2": lambda text: split_modern(unicodedata.normalize("NFC", text), 1),
    "deepseek-r1-qwen": lambda text: split_modern(unicodedata.normalize("NFC", text), 1),
    "llama-bpe": lambda text: split_modern(text, 3),
}


def alphabet() -> list[str]:
    """The character for each byte."""
    chars, extra = [], 256
    for byte in range(256):
        shown = 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE
        chars.append(chr(byte if shown else extra))
        extra += not shown
    return chars


ALPHABET = alphabet()


def spell(text: str) -> str:
    return "".join(ALPHABET[byte] for byte in text.encode())


def merge_word(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Repeatedly join the pair of lowest rank, leftmost first."""
    parts = list(word)
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get((parts[i], parts[i + 1]), 1 << 60))
        if (parts[best], parts[best + 1]) not in ranks:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def ranked(merges: list[str]) -> dict[tuple[str, str], int]:
    ranks = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ")
        ranks[left, right] = rank
    return ranks


def encode(text: str, pre: str, vocab: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    ids = []
    for piece in SPLITTERS[pre](text):
        word = spell(piece)
        if pre == "llama-bpe" and word in vocab:
            ids.append(vocab[word])
        else:
            ids += [vocab[part] for part in merge_word(word, ranks)]
    return ids


def train(text: str, n_merges: int) -> list[str]:
    """Merges of the most frequent pairs."""
    words = Counter(tuple(spell(piece)) for piece in split_gpt2(text))
    merges: list[str] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for left, right in pairwise(word):
                pairs[left, right] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(" ".join(best))
        merged: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            parts = merge_word_once(word, best)
            merged[tuple(parts)] += count
        words = merged
    return merges


def merge_word_once(word: tuple[str, ...], pair: tuple[str, str]) -> list[str]:
    parts: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            parts.append(word[i] + word[i + 1])
            i += 2
        else:
            parts.append(word[i])
            i += 1
    return parts


SAMPLE = (
    "The the there then this that don't we'll HELLO hello world 123 4567 89 the end.\n\n"
    "def f(x):\n    return x + 1  # comment\n日本語 日本 中文 émigré été Ωмега 😀😀 ... !!! \n\n\n"
    "    aaaa aaaaaa\n\n\n\n\n\n    x\r\n\r\n\r\n        y\n\n\n"
) * 3
MERGES = train(SAMPLE, 220)
SPECIAL = {"<|im_start|>": 3, "<|im_end|>": 3, "<|endoftext|>": 3, "<think>": 4, "</think>": 4}


def vocabulary(special: dict[str, int] | None = None) -> tuple[list[str], list[int]]:
    """Tokens and their types: the bytes, what merging makes, then the special ones."""
    special = SPECIAL if special is None else special
    words = list(dict.fromkeys(merge.replace(" ", "") for merge in MERGES))
    tokens = [*ALPHABET, *words, *special]
    return tokens, [1] * (256 + len(words)) + list(special.values())


def write_vocabulary(path: Path, pre: str | None = "qwen2", **changes: Any) -> Path:
    """A vocabulary-only GGUF file; ``changes`` replaces or, where None, leaves out keys of tokenizer.ggml."""
    tokens, types = vocabulary(changes.pop("special", None))
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": MERGES,
        "eos_token_id": tokens.index("<|endoftext|>") if "<|endoftext|>" in tokens else None,
    }
    fields |= changes
    writer = gguf.GGUFWriter(path, "qwen2")
    for name, value in fields.items():
        key = name if name.startswith("tokenizer.") else f"tokenizer.ggml.{name}"
        if value is None:
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value) if value >= 0 else writer.add_int32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
