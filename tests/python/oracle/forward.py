"""The forward pass of qwen2 and llama models, written from the formulas in numpy.

It shares no code with the engine: the file is read and dequantized by the ``gguf`` package, the arithmetic is
float64 (float32 on request, where a whole text has to be evaluated), and nothing is cached or fused.

Sources:
- RMSNorm: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4. SwiGLU: Shazeer 2020 (arXiv 2002.05202), eq. 6.
- RoPE: Su et al. 2021 (arXiv 2104.09864), section 3.4.2. Rotated pairs are (2i, 2i+1) for llama files, as in
  the paper, and (i, i + n/2) for qwen2, as in Transformers' ``modeling_qwen2.py`` (``rotate_half``).
- Linear scaling: Chen et al. 2023 (arXiv 2306.15595), eq. 4. YaRN: Peng et al. 2023 (arXiv 2309.00071),
  definitions 2 and 3, with the rounding of Transformers' ``modeling_rope_utils.py``.
- Grouped-query attention: Ainslie et al. 2023 (arXiv 2305.13245).
- ``rope_freqs``: a factor for each pair that divides its frequency; how converted Llama 3.1 files carry
  ``rope_type: llama3``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def yarn_ramp(n: int, base: float, original: int, beta_fast: float, beta_slow: float) -> Array:
    """Share of interpolation in each of the n / 2 frequencies: 0 for pairs that turn often in ``original``.

    Pair d turns ``original * base**(-2d/n) / 2pi`` times; solved for d at beta_fast and beta_slow turns,
    rounded outwards, and linear between.
    """

    def pair_that_turns(times: float) -> float:
        return float(n * np.log(original / (times * 2 * np.pi)) / (2 * np.log(base)))

    low = max(np.floor(pair_that_turns(beta_fast)), 0)
    high = min(np.ceil(pair_that_turns(beta_slow)), n - 1)
    if low == high:
        high += 0.001
    return np.clip((np.arange(n // 2) - low) / (high - low), 0, 1)


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """RoPE on x [n, heads, head_size]; cos and sin are [n, rotated / 2], dimensions beyond pass through."""
    half = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first = np.s_[..., 0 : 2 * half : 2] if interleaved else np.s_[..., :half]
    second = np.s_[..., 1 : 2 * half : 2] if interleaved else np.s_[..., half : 2 * half]
    y = x.copy()
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[first] * sin + x[second] * cos
    return y


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of q [n, n_head, head_size] over k, v [n, n_head_kv, head_size]; returns q's shape."""
    n, n_head, size = q.shape
    group = n_head // k.shape[1]
    out = np.empty_like(q)
    causal = np.triu(np.full((n, n), -np.inf, q.dtype), 1)
    for h in range(n_head):
        scores = (q[:, h] / np.asarray(np.sqrt(size), q.dtype)) @ k[:, h // group].T
        out[:, h] = softmax(scores + causal) @ v[:, h // group]
    return out


def round_f16(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float16).astype(x.dtype)


def round_q8_0(x: Array) -> Array:
    """Each 32 consecutive values of a head as one Q8_0 block."""
    blocks = gguf.quantize(np.ascontiguousarray(x, np.float32), gguf.GGMLQuantizationType.Q8_0)
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0).astype(x.dtype)


KV_ROUNDING: dict[str, Callable[[Array], Array]] = {"f32": lambda x: x, "f16": round_f16, "q8_0": round_q8_0}


class Oracle:
    """A GGUF file and what its metadata says; ``forward`` computes logits from scratch.

    ``overrides`` replaces metadata keys. ``dtype`` is that of all arithmetic.
    """

    def __init__(
        self, path: Path, overrides: Mapping[str, Any] | None = None, dtype: type = np.float64
    ) -> None:
        reader = gguf.GGUFReader(path)
        self._keys = {key: field.contents() for key, field in reader.fields.items()} | dict(overrides or {})
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.dtype = dtype
        self.arch = str(self._keys["general.architecture"])
        self.n_layer = int(self._key("block_count"))
        self.n_embd = int(self._key("embedding_length"))
        self.n_head = int(self._key("attention.head_count"))
        self.n_head_kv = int(self._key("attention.head_count_kv", self.n_head))
        self.head_size = int(self._key("attention.key_length", self.n_embd // self.n_head))
        self.eps = float(self._key("attention.layer_norm_rms_epsilon"))
        self.n_vocab = int(self._tensors["token_embd.weight"].shape[1])

    def _key(self, name: str, default: Any = None) -> Any:
        value = self._keys.get(f"{self.arch}.{name}", default)
        if value is None:
            raise KeyError(f"{self.arch}.{name}")
        return value

    def tensor(self, name: str) -> Array:
        """The tensor dequantized, [rows, columns] or [columns]."""
        found = self._tensors[name]
        return gguf.dequantize(np.asarray(found.data), found.tensor_type).astype(self.dtype)

    def _linear(self, x: Array, name: str) -> Array:
        y = x @ self.tensor(f"{name}.weight").T
        return y + self.tensor(f"{name}.bias") if f"{name}.bias" in self._tensors else y

    def rope(self, n_positions: int) -> tuple[Array, Array]:
        """cos and sin of all angles, float64 [n_positions, rotated / 2], times the attention factor."""
        rotated = int(self._key("rope.dimension_count", self.head_size))
        base = float(self._key("rope.freq_base", 10000.0))
        frequency = base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
        if "rope_freqs.weight" in self._tensors:
            frequency /= self.tensor("rope_freqs.weight")
        kind = self._key("rope.scaling.type", "none")
        factor = float(self._key("rope.scaling.factor", 1.0))
        magnitude = float(self._key("rope.scaling.attn_factor", 1.0))
        if kind == "linear":
            frequency /= factor
        elif kind == "yarn":
            original = int(self._key("rope.scaling.original_context_length", self._key("context_length")))
            beta_fast = float(self._key("rope.scaling.yarn_beta_fast", 32.0))
            beta_slow = float(self._key("rope.scaling.yarn_beta_slow", 1.0))
            interpolated = yarn_ramp(rotated, base, original, beta_fast, beta_slow)
            frequency *= interpolated / factor + (1 - interpolated)
            magnitude *= 0.1 * np.log(factor) + 1
        angle = np.arange(n_positions)[:, None] * frequency
        return magnitude * np.cos(angle), magnitude * np.sin(angle)

    def forward(self, ids: Sequence[int], kv: str | tuple[str, str] = "f32") -> Array:
        """Logits [len(ids), n_vocab] of the prompt ``ids``.

        ``kv`` names what keys and values are rounded to before attention, as a cache of that type would:
        "f32" (not at all), "f16" or "q8_0", or one for each.
        """
        kv_k, kv_v = (kv, kv) if isinstance(kv, str) else kv
        round_k, round_v = KV_ROUNDING[kv_k], KV_ROUNDING[kv_v]
        n = len(ids)
        cos, sin = (a.astype(self.dtype) for a in self.rope(n))
        interleaved = self.arch == "llama"
        embedding = self.tensor("token_embd.weight")
        x = embedding[np.asarray(ids)]
        for i in range(self.n_layer):
            blk = f"blk.{i}."
            h = rms_norm(x, self.tensor(blk + "attn_norm.weight"), self.eps)
            q = self._linear(h, blk + "attn_q").reshape(n, self.n_head, self.head_size)
            k = self._linear(h, blk + "attn_k").reshape(n, self.n_head_kv, self.head_size)
            v = self._linear(h, blk + "attn_v").reshape(n, self.n_head_kv, self.head_size)
            k = round_k(rotate(k, cos, sin, interleaved))
            o = attention(rotate(q, cos, sin, interleaved), k, round_v(v))
            x = x + self._linear(o.reshape(n, -1), blk + "attn_output")
            h = rms_norm(x, self.tensor(blk + "ffn_norm.weight"), self.eps)
            gated = silu(self._linear(h, blk + "ffn_gate")) * self._linear(h, blk + "ffn_up")
            x = x + self._linear(gated, blk + "ffn_down")
        x = rms_norm(x, self.tensor("output_norm.weight"), self.eps)
        if "output.weight" in self._tensors:
            return x @ self.tensor("output.weight").T
        return x @ embedding.T
