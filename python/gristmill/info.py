"""What a GGUF file holds and what running it takes: the data behind ``gristmill info``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gristmill.errors import GGUFError
from gristmill.gguf import GGUFFile
from gristmill.messages import printable
from gristmill.metadata import Metadata
from gristmill.overrides import known_type

MAX_TEXT = 200

# Bytes of one cached element of K or V; q8_0 holds 32 in 34 bytes.
KV_ELEMENT_BYTES: dict[str, Fraction] = {"f16": Fraction(2), "f32": Fraction(4), "q8_0": Fraction(34, 32)}


@dataclass(frozen=True)
class FormatUse:
    """How much of a file is in one tensor format."""

    format: str
    n_tensors: int
    n_parameters: int
    n_bytes: int


@dataclass(frozen=True)
class RopeInfo:
    """Rotary embedding as the file sets it; None where it does not."""

    dimension_count: int | None
    freq_base: float | None
    scaling_type: str | None
    scaling_factor: float | None
    original_context_length: int | None
    attn_factor: float | None
    yarn_beta_fast: float | None
    yarn_beta_slow: float | None


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer; ids and flags are None where the file does not set them."""

    model: str | None
    pre: str | None
    n_tokens: int
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unknown_id: int | None
    padding_id: int | None
    add_bos: bool | None
    add_eos: bool | None


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes needed for ``n_ctx`` positions: the weights, and the KV cache in each cache type."""

    n_ctx: int
    weights: int
    kv_cache: dict[str, int]


@dataclass(frozen=True)
class ModelInfo:
    """Everything ``gristmill info`` shows. What the file lacks is None; sizes are bytes; texts are printable.

    ``truncated`` is the error that loading would raise because the file is too short, or None.
    """

    paths: list[str]
    file_bytes: int
    gguf_version: int
    architecture: str | None
    name: str | None
    file_type: str | None
    n_tensors: int
    n_parameters: int
    formats: list[FormatUse]
    context_length: int | None
    n_vocab: int | None
    n_embd: int | None
    n_layer: int | None
    n_ff: int | None
    n_head: int | None
    n_head_kv: int | None
    head_size_k: int | None
    head_size_v: int | None
    rope: RopeInfo
    tokenizer: TokenizerInfo
    has_chat_template: bool
    has_thinking: bool
    memory: MemoryInfo | None
    truncated: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, ready for JSON."""
        return dataclasses.asdict(self)


def describe(
    file: GGUFFile, n_ctx: int | None = None, overrides: Mapping[str, object] | None = None
) -> ModelInfo:
    """Describe ``file``, which may be truncated or vocabulary-only, with ``overrides`` applied.

    ``n_ctx`` (default: the model's own context length) is the context that ``memory`` is for. Raises
    GGUFError for a key of the wrong type and ArgumentError for an override of the wrong type.
    """
    metadata = file.metadata.with_overrides(overrides)
    model = _ModelKeys(metadata)
    n_layer, n_embd = model.get_int("block_count"), model.get_int("embedding_length")
    n_head, _ = model.per_layer("attention.head_count", n_layer)
    n_head_kv, n_head_kv_sum = model.per_layer("attention.head_count_kv", n_layer)
    if n_head_kv is None:
        n_head_kv, n_head_kv_sum = model.per_layer("attention.head_count", n_layer)
    head_size = n_embd // n_head if n_embd and n_head and n_head > 0 else None
    head_size_k = model.get_int("attention.key_length") or head_size
    head_size_v = model.get_int("attention.value_length") or head_size
    context_length = model.get_int("context_length")
    formats = _formats(file)
    weights = sum(use.n_bytes for use in formats)
    n_ctx = n_ctx or context_length
    memory = None
    if formats and n_ctx and n_head_kv_sum and head_size_k and head_size_v:
        elements = n_ctx * n_head_kv_sum * (head_size_k + head_size_v)
        memory = MemoryInfo(n_ctx, weights, {t: int(elements * size) for t, size in KV_ELEMENT_BYTES.items()})
    template = metadata.get_str("tokenizer.chat_template", "")
    info = ModelInfo(
        paths=[printable(str(path)) for path in file.paths],
        file_bytes=sum(file.file_sizes),
        gguf_version=file.version,
        architecture=_text(metadata, "general.architecture"),
        name=_text(metadata, "general.name"),
        file_type=_file_type(metadata.get_int("general.file_type", None)),
        n_tensors=len(file.tensors),
        n_parameters=sum(use.n_parameters for use in formats),
        formats=formats,
        context_length=context_length,
        n_vocab=_n_vocab(file, metadata),
        n_embd=n_embd,
        n_layer=n_layer,
        n_ff=model.per_layer("feed_forward_length", n_layer)[0],
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_size_k=head_size_k,
        head_size_v=head_size_v,
        rope=RopeInfo(
            dimension_count=model.get_int("rope.dimension_count"),
            freq_base=model.get_float("rope.freq_base"),
            scaling_type=model.get_str("rope.scaling.type"),
            scaling_factor=model.get_float("rope.scaling.factor"),
            original_context_length=model.get_int("rope.scaling.original_context_length"),
            attn_factor=model.get_float("rope.scaling.attn_factor"),
            yarn_beta_fast=model.get_float("rope.scaling.yarn_beta_fast"),
            yarn_beta_slow=model.get_float("rope.scaling.yarn_beta_slow"),
        ),
        tokenizer=_tokenizer(metadata),
        has_chat_template=bool(template),
        has_thinking="think>" in template,
        memory=memory,
        truncated=_truncation(file),
    )
    # An override may concern what is not described, such as an epsilon; a key nobody knows is a mistake.
    metadata.check_overrides({key for key in metadata.overrides if known_type(key)})
    return info


class _ModelKeys:
    """The keys under the architecture's prefix; None where the file lacks one."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.prefix = metadata.get_str("general.architecture", "") + "."

    def get_int(self, key: str) -> int | None:
        return self.metadata.get_int(self.prefix + key, None)

    def get_float(self, key: str) -> float | None:
        return self.metadata.get_float(self.prefix + key, None)

    def get_str(self, key: str) -> str | None:
        return _text(self.metadata, self.prefix + key)

    def per_layer(self, key: str, n_layer: int | None) -> tuple[int | None, int]:
        """(largest, sum over layers) of a number held once or, by some architectures, once per layer."""
        if self.metadata.array_length(self.prefix + key):
            values = self.metadata.get_array(self.prefix + key, int)
            return max(values), sum(values)
        value = self.get_int(key)
        return value, (value or 0) * (n_layer or 0)


def _text(metadata: Metadata, key: str) -> str | None:
    """A string that is safe to print: of one line, without control characters, of bounded length."""
    value = metadata.get_str(key, None)
    return None if value is None else printable(value, MAX_TEXT)


def _formats(file: GGUFFile) -> list[FormatUse]:
    """The formats in use, the one with most bytes first."""
    totals: dict[str, tuple[int, int, int]] = {}
    for tensor in file.tensors.values():
        n_tensors, n_parameters, n_bytes = totals.get(tensor.type, (0, 0, 0))
        totals[tensor.type] = (n_tensors + 1, n_parameters + tensor.n_elements, n_bytes + tensor.n_bytes)
    return sorted((FormatUse(name, *total) for name, total in totals.items()), key=lambda use: -use.n_bytes)


def _file_type(number: int | None) -> str | None:
    """general.file_type by name ("Q4_K_M"), as the gguf package spells it."""
    if number is None:
        return None
    from gguf.constants import LlamaFileType

    try:
        return str(LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"unknown ({number})"


def _n_vocab(file: GGUFFile, metadata: Metadata) -> int | None:
    """Rows of the embedding; in a file without tensors, the number of tokens."""
    embedding = file.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else metadata.array_length("tokenizer.ggml.tokens")


def _tokenizer(metadata: Metadata) -> TokenizerInfo:
    prefix = "tokenizer.ggml."
    return TokenizerInfo(
        model=_text(metadata, prefix + "model"),
        pre=_text(metadata, prefix + "pre"),
        n_tokens=metadata.array_length(prefix + "tokens") or 0,
        bos_id=metadata.get_int(prefix + "bos_token_id", None),
        eos_id=metadata.get_int(prefix + "eos_token_id", None),
        eot_id=metadata.get_int(prefix + "eot_token_id", None),
        unknown_id=metadata.get_int(prefix + "unknown_token_id", None),
        padding_id=metadata.get_int(prefix + "padding_token_id", None),
        add_bos=metadata.get_bool(prefix + "add_bos_token", None),
        add_eos=metadata.get_bool(prefix + "add_eos_token", None),
    )


def _truncation(file: GGUFFile) -> str | None:
    try:
        file.check_extents()
    except GGUFError as e:
        return str(e)
    return None
