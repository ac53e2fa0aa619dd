"""Tiny GGUF models with random weights: any shape, format and RoPE scaling, with tokenizer and chat template.

path = build(tmp_path / "tiny.gguf", Spec(arch="qwen2", formats="Q4_K", n_layer=2))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .blocks import random_blocks, row_bytes

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# In byte-level spelling; each merges two tokens that exist by then.
MERGES = (
    "t h", "th e", "i n", "e r", "a n", "o n", "r e", "e n", "o u", "Ġ t", "Ġ a", "Ġ s", "Ġ w", "Ġ the",
    "an d", "Ġ and", "in g", "o f", "Ġ of", "Ġ in", "l l", "y ou", "Ċ Ċ", "Ġ Ġ",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """The shape of a model."""

    arch: str = "qwen2"
    n_layer: int = 2
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int | None = None  # n_embd / n_head; written as key_length and value_length where given
    n_ff: int = 512
    n_vocab: int = 320
    n_ctx: int = 256
    tied: bool = False
    bias: bool | None = None  # of q, k and v; None: as the architecture has it
    rope_dim: int | None = None  # leading dimensions of a head that rotate; None: all
    rope_base: float = 10000.0
    rope_freqs: bool = False
    rms_eps: float = 1e-6
    formats: str | Mapping[str, str] = (
        "F32"  # or {name of a matrix, or its last part: format, "": the others}
    )
    metadata: Mapping[str, Any] = field(default_factory=dict)  # more keys; {arch} stands for the architecture
    tokenizer_pre: str = "qwen2"
    chat_template: str | None = CHAT_TEMPLATE
    seed: int = 0

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def has_bias(self) -> bool:
        return self.arch == "qwen2" if self.bias is None else self.bias

    def format_of(self, tensor: str) -> str:
        """Format of a matrix by its name (``blk.0.attn_q``), else by the last part (``attn_q``), else ""."""
        if isinstance(self.formats, str):
            return self.formats
        names = (tensor, tensor.rpartition(".")[2], "")
        return next((self.formats[name] for name in names if name in self.formats), "F32")


def yarn(factor: float, original: int, **more: float) -> dict[str, Any]:
    """Metadata of YaRN scaling; ``more``: attn_factor, yarn_beta_fast, yarn_beta_slow."""
    key = "{arch}.rope.scaling."
    base = {key + "type": "yarn", key + "factor": float(factor), key + "original_context_length": original}
    return base | {key + name: value for name, value in more.items()}


def linear(factor: float) -> dict[str, Any]:
    """Metadata of linear RoPE scaling: positions are divided by ``factor``."""
    return {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": float(factor)}


def matrices(spec: Spec) -> Iterator[tuple[str, int, int]]:
    """Name, rows (outputs) and columns (inputs) of every matrix, in the order of the file."""
    q, kv = spec.n_head * spec.head_size, spec.n_head_kv * spec.head_size
    yield "token_embd", spec.n_vocab, spec.n_embd
    for i in range(spec.n_layer):
        yield f"blk.{i}.attn_q", q, spec.n_embd
        yield f"blk.{i}.attn_k", kv, spec.n_embd
        yield f"blk.{i}.attn_v", kv, spec.n_embd
        yield f"blk.{i}.attn_output", spec.n_embd, q
        yield f"blk.{i}.ffn_gate", spec.n_ff, spec.n_embd
        yield f"blk.{i}.ffn_up", spec.n_ff, spec.n_embd
        yield f"blk.{i}.ffn_down", spec.n_embd, spec.n_ff
    if not spec.tied:
        yield "output", spec.n_vocab, spec.n_embd


def vectors(spec: Spec, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of every norm and bias, and of ``rope_freqs``."""

    def norm() -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(spec.n_embd)).astype(np.float32)

    sizes = {"attn_q": spec.n_head, "attn_k": spec.n_head_kv, "attn_v": spec.n_head_kv}
    for i in range(spec.n_layer):
        yield f"blk.{i}.attn_norm.weight", norm()
        yield f"blk.{i}.ffn_norm.weight", norm()
        for name, heads in sizes.items() if spec.has_bias else ():
            bias = 0.3 * rng.standard_normal(heads * spec.head_size)
            yield f"blk.{i}.{name}.bias", bias.astype(np.float32)
    yield "output_norm.weight", norm()
    if spec.rope_freqs:
        # As Llama 3.1 has it: high frequencies untouched, low ones divided by up to 8.
        n_freqs = (spec.rope_dim or spec.head_size) // 2
        yield "rope_freqs.weight", np.geomspace(1, 8, n_freqs).astype(np.float32)


def weight_std(n_cols: int) -> float:
    """Spread that keeps a layer's output about as large as its input."""
    return float(n_cols) ** -0.5


def vocabulary(n_vocab: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types, and merges of a byte-level BPE: bytes, merges, special tokens, unused padding."""
    bytes_ = sorted(byte_alphabet().items())
    tokens = [char for _, char in bytes_] + [merge.replace(" ", "") for merge in MERGES]
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types += [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED] * 2  # SPECIAL_TOKENS
    tokens += SPECIAL_TOKENS
    if n_vocab < len(tokens):
        raise ValueError(f"n_vocab: {n_vocab} is less than the {len(tokens)} tokens that there are")
    padding = range(len(tokens), n_vocab)
    tokens += [f"[PAD{i}]" for i in padding]
    types += [gguf.TokenType.UNUSED] * len(padding)
    return tokens, [int(t) for t in types], list(MERGES)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for U+0100 and up."""
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [b for first, last in ranges for b in range(ord(first), ord(last) + 1)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int, pre: str, chat_template: str | None) -> None:
    tokens, types, merges = vocabulary(n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def add_hyperparameters(writer: gguf.GGUFWriter, spec: Spec) -> None:
    writer.add_name(f"tiny {spec.arch}")
    writer.add_block_count(spec.n_layer)
    writer.add_context_length(spec.n_ctx)
    writer.add_embedding_length(spec.n_embd)
    writer.add_feed_forward_length(spec.n_ff)
    writer.add_head_count(spec.n_head)
    writer.add_head_count_kv(spec.n_head_kv)
    writer.add_layer_norm_rms_eps(spec.rms_eps)
    writer.add_rope_freq_base(spec.rope_base)
    if spec.head_dim is not None:
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
    if spec.rope_dim is not None or spec.arch == "llama":
        writer.add_rope_dimension_count(spec.rope_dim or spec.head_size)
    if spec.arch == "llama":
        writer.add_vocab_size(spec.n_vocab)
    for key, value in spec.metadata.items():
        add_value(writer, key.format(arch=spec.arch), value)


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a key with the type that GGUF files of the field give it: uint32, float32, bool, string, array."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def build(
    path: Path,
    spec: Spec | None = None,
    tokenizer: Callable[[gguf.GGUFWriter], None] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes the model that ``spec`` describes to ``path`` and returns it; the same spec, the same bytes.

    One matrix at a time is in memory. ``tokenizer`` adds the tokenizer's keys; by default the small one here.
    ``more`` are float32 tensors beside those of the architecture.
    """
    spec = spec or Spec()
    rng = np.random.Generator(np.random.SFC64(spec.seed))
    writer = gguf.GGUFWriter(path, spec.arch)
    add_hyperparameters(writer, spec)
    if tokenizer is None:
        add_tokenizer(writer, spec.n_vocab, spec.tokenizer_pre, spec.chat_template)
    else:
        tokenizer(writer)
    small = [*vectors(spec, rng), *(more or {}).items()]
    for name, values in small:
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, n_rows, n_cols in matrices(spec):
        kind = spec.format_of(name)
        length = row_bytes(kind, n_cols)
        dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(f"{name}.weight", (n_rows, length), np.dtype(np.uint8), n_rows * length, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, values in small:
        writer.write_tensor_data(values)
    for name, n_rows, n_cols in matrices(spec):
        blocks = random_blocks(spec.format_of(name), n_rows, n_cols, rng, weight_std(n_cols))
        writer.write_tensor_data(blocks)
    writer.close()
    return path
