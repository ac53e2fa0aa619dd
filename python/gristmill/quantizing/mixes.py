"""Mixes: what a name like Q4_K_M means for every tensor of a file.

The choices and the fallbacks for rows that do not divide into blocks are llama.cpp's
(``src/llama-quant.cpp``), so that a file is what a user expects of that name. Rules there for formats that
gristmill does not have are left out, and those for the architecture GLM5-next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gristmill.errors import ArgumentError
from gristmill.gguf_types import TENSOR_TYPES


class Mix(NamedTuple):
    """``base`` is the format that most tensors take, ``file_type`` the number in ``general.file_type``."""

    base: str
    file_type: int


MIXES: dict[str, Mix] = {
    "F32": Mix("F32", 0),
    "F16": Mix("F16", 1),
    "BF16": Mix("BF16", 32),
    "Q4_0": Mix("Q4_0", 2),
    "Q4_1": Mix("Q4_1", 3),
    "Q5_0": Mix("Q5_0", 8),
    "Q5_1": Mix("Q5_1", 9),
    "Q8_0": Mix("Q8_0", 7),
    "Q2_K": Mix("Q2_K", 10),
    "Q3_K_S": Mix("Q3_K", 11),
    "Q3_K_M": Mix("Q3_K", 12),
    "Q3_K_L": Mix("Q3_K", 13),
    "Q4_K_S": Mix("Q4_K", 14),
    "Q4_K_M": Mix("Q4_K", 15),
    "Q5_K_S": Mix("Q5_K", 16),
    "Q5_K_M": Mix("Q5_K", 17),
    "Q6_K": Mix("Q6_K", 18),
    "IQ4_NL": Mix("IQ4_NL", 25),
    "IQ4_XS": Mix("IQ4_XS", 30),
}
ALIASES: dict[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

FLOATS = frozenset({"F32", "F16", "BF16"})
# What takes a format's place where a row is no multiple of its block.
_FALLBACKS = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
_BLOCK_SIZES = {kind.name: kind.block_size for kind in TENSOR_TYPES.values()}

# Parts of names whose matrices stay as they are: routers, recurrent state, position tables and the like.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight",
    "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight",
    "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd",
    "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
# What a part of a layer is, by the first of these that its name holds.
_PARTS = (
    "attn_qkv",
    "attn_kv_b",
    "attn_v",
    "attn_k",
    "attn_q",
    "attn_output",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
)
_VALUES = frozenset({"attn_v", "attn_qkv", "attn_kv_b"})
_LAYER = re.compile(r"blk\.(\d+)")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rules ask of a model's metadata."""

    arch: str
    n_layer: int
    n_head: int = 1
    n_head_kv: int = 1
    n_expert: int = 0

    @property
    def shared_heads(self) -> bool:
        """Whether four or more query heads share their keys and values, so that better values cost little."""
        return self.n_head_kv > 0 and self.n_head // self.n_head_kv >= 4

    @property
    def is_70b(self) -> bool:
        """The shape that has a rule of its own: 80 layers with shared heads (any heads in qwen2)."""
        return self.n_layer == 80 and (
            self.arch == "qwen2" or (self.arch == "llama" and self.n_head != self.n_head_kv)
        )


class Choice(NamedTuple):
    """The type of a tensor and why: "kept", "mix", "override", or "fallback" (rows do not divide)."""

    type: str
    reason: str


def find_mix(name: str) -> str:
    """The canonical spelling of a mix, in any case of letters; ArgumentError with all names otherwise."""
    upper = name.upper()
    upper = ALIASES.get(upper, upper)
    if upper in MIXES:
        return upper
    near = difflib.get_close_matches(upper, MIXES, n=1, cutoff=0.0)[0]
    raise ArgumentError(f"unknown type {name!r}, did you mean {near!r}? Known types: {', '.join(MIXES)}")


def find_type(name: str) -> str:
    """A block format that gristmill writes, in any case of letters; ArgumentError otherwise."""
    upper, known = name.upper(), sorted({mix.base for mix in MIXES.values()})
    if upper in known:
        return upper
    near = difflib.get_close_matches(upper, known, n=1, cutoff=0.0)[0]
    raise ArgumentError(f"unknown type {name!r}, did you mean {near!r}? Known types: {', '.join(known)}")


def layer_of(name: str) -> int:
    """The layer that a tensor belongs to; -1 outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def file_order(name: str) -> tuple[int, bytes]:
    """Sorts tensors as llama.cpp writes them: what is outside the layers, then layer by layer."""
    return layer_of(name), name.encode()


def may_quantize(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is one of the matrices that quantization is for."""
    axes = len(shape)
    while axes > 1 and shape[len(shape) - axes] == 1:  # ggml does not count outer axes of one
        axes -= 1
    if axes < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT)


def fits(type: str, n_cols: int) -> bool:
    """Whether rows of ``n_cols`` weights divide into blocks of ``type``."""
    return n_cols % _BLOCK_SIZES[type] == 0


def with_fallback(type: str, n_cols: int) -> str:
    """``type``, or what takes its place for rows of ``n_cols`` weights."""
    if fits(type, n_cols):
        return type
    fallback = _FALLBACKS.get(type, type)
    return fallback if fits(fallback, n_cols) else "F16"


def choose_types(
    shapes: Mapping[str, tuple[int, ...]],
    mix: str,
    facts: ModelFacts,
    *,
    has_imatrix: bool = False,
    pure: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, Choice]:
    """The choice for every tensor, in the order of the file that llama.cpp would write.

    Args:
        shapes: of all tensors, rows first (the last axis is the row), by name.
        mix: a name in MIXES.
        has_imatrix: whether an importance matrix will be used; two rules look at that.
        pure: the base format for every matrix.
        overrides: a type for tensors by name. They come before all rules, and fall back to nothing.
    """
    rules = _Rules(mix, facts, list(shapes), has_imatrix)
    chosen: dict[str, Choice] = {}
    for name in sorted(shapes, key=file_order):
        given = (overrides or {}).get(name)
        if given is not None:
            chosen[name] = Choice(given, "override")
        elif not may_quantize(name, shapes[name]):
            chosen[name] = Choice("", "kept")
        elif MIXES[mix].base in FLOATS:
            chosen[name] = Choice(MIXES[mix].base, "mix")
        else:
            n_cols = shapes[name][-1]
            wanted = MIXES[mix].base if pure else rules.choose(name, n_cols)
            type = with_fallback(wanted, n_cols)
            chosen[name] = Choice(type, "mix" if type == wanted else "fallback")
    return chosen


class _Rules:
    """The mixes' exceptions to their base format. Tensors are asked for in file order, since some count."""

    def __init__(self, mix: str, facts: ModelFacts, names: list[str], has_imatrix: bool) -> None:
        self._mix, self._facts, self._has_imatrix = mix, facts, has_imatrix
        self._base = MIXES[mix].base
        self._falcon = facts.arch == "falcon"
        self._tied = "output.weight" not in names
        self._n_values = sum(_part(name) in _VALUES for name in names)
        self._i_values = self._i_down = 0

    def choose(self, name: str, n_cols: int) -> str:
        if name == "output.weight" or (
            self._tied and name in {"token_embd.weight", "per_layer_token_embd.weight"}
        ):
            wide = self._base == "Q8_0" or self._falcon or not fits(self._base, n_cols)
            return "Q8_0" if wide else "Q6_K"
        part = _part(name)
        if part in _VALUES:
            self._i_values += 1
            return self._values(self._i_values - 1)
        if part == "ffn_down":
            self._i_down += 1
            layer = layer_of(name) if self._facts.n_expert > 1 else self._i_down - 1
            return self._down(layer)
        if part == "attn_k":
            return "Q8_0" if self._facts.n_expert == 8 else self._base
        if part == "attn_output":
            return self._output()
        return self._base

    def _values(self, i: int) -> str:
        type = self._base
        match self._mix:
            case "Q2_K":
                type = "Q4_K" if self._facts.shared_heads else "Q3_K"
            case "Q3_K_M":
                type = "Q5_K" if i < 2 else "Q4_K"
            case "Q3_K_L":
                type = "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if self._facts.shared_heads:
                type = "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _sensitive(i, self._n_values):
                type = "Q6_K"
            case "Q4_K_S" if i < 4:
                type = "Q5_K"
        if self._facts.is_70b and type in {"Q3_K", "Q4_K"}:
            type = "Q5_K"
        return "Q8_0" if self._facts.n_expert == 8 else type

    def _down(self, i: int) -> str:
        n = self._facts.n_layer
        first = i < n // 8
        match self._mix:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M" if i >= n // 16 and self._falcon and not _sensitive(i, n):
                return "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if i < n // 16 else "Q4_K"
            case "Q3_K_L":
                return "Q4_K" if self._falcon else "Q5_K"
            case "Q4_K_M" if self._falcon:
                return "Q6_K" if i < n // 16 else "Q5_K" if _sensitive(i, n) else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if _sensitive(i, n):
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if first and not self._has_imatrix:
                return "Q5_K"
            case "Q4_K_S" if first and not self._falcon:
                return "Q5_K"
            case "Q4_0" | "Q5_0" if first and self._has_imatrix:
                return "Q4_1" if self._mix == "Q4_0" else "Q5_1"
        return self._base

    def _output(self) -> str:
        if self._falcon:
            return "Q4_K" if self._mix == "Q3_K_L" else self._base
        if self._facts.n_expert == 8:
            return self._base if self._mix in _NO_EXPERT_RULE else "Q5_K"
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self._mix, self._base)


_NO_EXPERT_RULE = frozenset(MIXES) - {"Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS"}


def _part(name: str) -> str:
    for part in _PARTS:
        # The attention's matrices are whole names; experts' carry a suffix: ffn_down_exps.
        if (part if part.startswith("ffn") else f"{part}.weight") in name:
            return part
    return ""


def _sensitive(i: int, n: int) -> bool:
    """The layers that the M mixes give more bits: the first and last eighth, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
