"""describe(): what a file holds and what running it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gristmill import ArgumentError, GGUFError, GristmillWarning
from gristmill.gguf import GGUFFile
from gristmill.info import FormatUse, MemoryInfo, ModelInfo, describe
from hostile import ARRAY, BOOL, F32, I32, STRING, U32, Raw, kv, sound, tensor

KVS = [
    kv("general.architecture", STRING, "qwen2"),
    kv("general.name", STRING, "Tiny"),
    kv("general.file_type", U32, 15),
    kv("qwen2.context_length", U32, 1024),
    kv("qwen2.block_count", U32, 3),
    kv("qwen2.embedding_length", U32, 256),
    kv("qwen2.feed_forward_length", U32, 512),
    kv("qwen2.attention.head_count", U32, 4),
    kv("qwen2.attention.head_count_kv", U32, 2),
    kv("qwen2.rope.freq_base", F32, 1e6),
    kv("qwen2.rope.scaling.type", STRING, "yarn"),
    kv("qwen2.rope.scaling.factor", F32, 4.0),
    kv("qwen2.rope.scaling.original_context_length", U32, 256),
    kv("tokenizer.ggml.model", STRING, "gpt2"),
    kv("tokenizer.ggml.pre", STRING, "qwen2"),
    kv("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "c"])),
    kv("tokenizer.ggml.eos_token_id", U32, 2),
    kv("tokenizer.ggml.add_bos_token", BOOL, False),
    kv("tokenizer.chat_template", STRING, "{{ '<think>' }}"),
]
TENSORS = [
    tensor("token_embd.weight", ne=[256, 3], type_id=12),
    tensor("output_norm.weight", ne=[256], offset=448),
    tensor("output.weight", ne=[256, 3], type_id=12, offset=1472),
]


def described(path: Path, raw: Raw, **arguments: object) -> ModelInfo:
    path.write_bytes(raw.build())
    with GGUFFile.open(path, check_extents=False) as file:
        return describe(file, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_all_of_a_small_model(path: Path) -> None:
    """Every number against one worked out by hand."""
    info = described(path, Raw(kvs=KVS, tensors=TENSORS, data=bytes(1904)))
    assert info.paths == [str(path)]
    assert info.file_bytes == path.stat().st_size
    assert (info.architecture, info.name, info.file_type) == ("qwen2", "Tiny", "Q4_K_M")
    assert (info.n_tensors, info.n_parameters) == (3, 7 * 256)
    assert info.formats == [FormatUse("F32", 1, 256, 1024), FormatUse("Q4_K", 2, 1536, 864)]
    assert (info.context_length, info.n_vocab, info.n_embd, info.n_layer, info.n_ff) == (1024, 3, 256, 3, 512)
    assert (info.n_head, info.n_head_kv, info.head_size_k, info.head_size_v) == (4, 2, 64, 64)
    assert info.rope.freq_base == 1e6
    assert (info.rope.scaling_type, info.rope.scaling_factor) == ("yarn", 4.0)
    assert (info.rope.original_context_length, info.rope.attn_factor) == (256, None)
    assert (info.tokenizer.model, info.tokenizer.pre, info.tokenizer.n_tokens) == ("gpt2", "qwen2", 3)
    assert (info.tokenizer.bos_id, info.tokenizer.eos_id, info.tokenizer.add_bos) == (None, 2, False)
    assert info.has_chat_template
    assert info.has_thinking
    assert info.truncated is None
    elements = 1024 * 3 * 2 * (64 + 64)
    kv_cache = {"f16": 2 * elements, "f32": 4 * elements, "q8_0": elements // 32 * 34}
    assert info.memory == MemoryInfo(1024, 1888, kv_cache)


def test_context_of_the_callers_choice(path: Path) -> None:
    """The cache grows with n_ctx; the weights do not."""
    raw = Raw(kvs=KVS, tensors=TENSORS, data=bytes(1904))
    small, large = described(path, raw, n_ctx=100).memory, described(path, raw, n_ctx=300).memory
    assert small is not None
    assert large is not None
    assert large.kv_cache["f16"] == 3 * small.kv_cache["f16"]
    assert large.weights == small.weights


def test_overrides_are_applied(path: Path) -> None:
    """Overrides change what is shown; one of the wrong type is an ArgumentError."""
    raw = Raw(kvs=KVS, tensors=TENSORS, data=bytes(1904))
    info = described(path, raw, overrides={"qwen2.context_length": 2048, "qwen2.rope.scaling.attn_factor": 2})
    assert info.context_length == 2048
    assert info.rope.attn_factor == 2.0
    with pytest.raises(ArgumentError, match="expected int"):
        described(path, raw, overrides={"qwen2.context_length": "x"})


def test_mistyped_override_is_reported(path: Path) -> None:
    """A key nobody knows gets a warning; one that only a forward pass reads gets none."""
    raw = Raw(kvs=KVS, tensors=TENSORS, data=bytes(1904))
    with pytest.warns(GristmillWarning, match=r"did you mean 'qwen2\.context_length'\?") as caught:
        described(
            path, raw, overrides={"qwen2.contextlength": 1, "qwen2.attention.layer_norm_rms_epsilon": 1e-5}
        )
    assert len(caught) == 1


def test_truncated_file_is_described(path: Path) -> None:
    """A cut file is described as whole, and says what loading would say."""
    info = described(path, Raw(kvs=KVS, tensors=TENSORS, data=bytes(1000)))
    assert info.n_parameters == 7 * 256
    assert info.truncated is not None
    assert info.truncated.startswith(f"{path}: truncated: tensor 'output_norm.weight' ends at byte")


def test_vocabulary_only(path: Path) -> None:
    """Without tensors there is no memory to tell; the vocabulary counts its tokens."""
    info = described(path, Raw(kvs=KVS))
    assert info.n_vocab == 3
    assert info.memory is None
    assert info.formats == []


def test_nearly_nothing(path: Path) -> None:
    """A file without any key is described by what it lacks."""
    info = described(path, Raw())
    assert (info.architecture, info.n_layer, info.memory, info.truncated) == (None, None, None, None)
    assert not info.has_chat_template


def test_numbers_per_layer(path: Path) -> None:
    """Architectures that hold head counts per layer: the cache is the sum over layers."""
    kvs = [*KVS[:8], kv("qwen2.attention.head_count_kv", ARRAY, (I32, [1, 2, 4]))]
    info = described(path, Raw(kvs=kvs, tensors=TENSORS, data=bytes(1904)))
    assert info.n_head_kv == 4
    assert info.memory is not None
    assert info.memory.kv_cache["f16"] == 2 * 1024 * (1 + 2 + 4) * 128


@pytest.mark.parametrize("n_head", [0, 2**32 - 1])
def test_absurd_heads(path: Path, n_head: int) -> None:
    """Promise 1: zero heads, or more heads than embeddings, divide nothing by zero."""
    kvs = [entry for entry in KVS if b"head_count" not in entry]
    kvs.append(kv("qwen2.attention.head_count", U32, n_head))
    info = described(path, Raw(kvs=kvs, tensors=TENSORS, data=bytes(1904)))
    assert info.n_head == n_head
    assert info.memory is None


def test_wrong_type_names_the_key(path: Path) -> None:
    """Promise 7: a key of the wrong type is refused, not guessed."""
    with pytest.raises(GGUFError, match=r"key 'qwen2.block_count': expected int, got string"):
        described(path, Raw(kvs=[KVS[0], kv("qwen2.block_count", STRING, "3")]))


def test_texts_are_safe_to_print(path: Path) -> None:
    """Promise 2: control characters, undecodable bytes and endless names do not reach a terminal."""
    kvs = [KVS[0], kv("general.name", STRING, b"a\x1b[31m\n\xff" + b"x" * 10_000)]
    name = described(path, Raw(kvs=kvs)).name
    assert name is not None
    assert name.isprintable()
    assert len(name) < 300


def test_to_dict_is_json(path: Path) -> None:
    """to_dict() holds plain data only."""
    data = described(path, sound()).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["formats"] == [{"format": "F32", "n_tensors": 2, "n_parameters": 128, "n_bytes": 512}]


def test_qwen7b(qwen7b_part_path: Path) -> None:
    """The real 7B header: 7.6e9 parameters, truncated, f16 cache of 56 KiB a token."""
    with GGUFFile.open(qwen7b_part_path, check_extents=False) as file:
        info = describe(file, n_ctx=1)
    assert info.n_parameters == 7_615_616_512
    assert info.file_type == "Q4_K_M"
    assert info.truncated is not None
    assert info.memory is not None
    assert info.memory.kv_cache["f16"] == 56 * 1024
    assert {use.format for use in info.formats} == {"Q4_K", "Q6_K", "F32"}
