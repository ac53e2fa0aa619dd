"""Loading a model and running token sequences through it."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gristmill import _core, devices
from gristmill.errors import ArgumentError, ContextFullError, GristmillWarning
from gristmill.gguf import GGUFFile
from gristmill.messages import file_error, printable

if TYPE_CHECKING:
    from gristmill.chat import ChatTemplate
    from gristmill.generate import Generation
    from gristmill.gguf import TensorInfo
    from gristmill.metadata import Metadata
    from gristmill.tokenizer import Tokenizer

CACHE_TYPES = ("f32", "f16", "q8_0")


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int | None = None,
    overrides: Mapping[str, bool | int | float | str] | None = None,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    precise: bool = False,
) -> Model:
    """Map a GGUF file and make it ready to run.

    Args:
        path: A ``.gguf`` file, or any part of a split one.
        device: ``"cpu"``; ``"cuda"`` or ``"cuda:N"``, that GPU or an error; ``"auto"``, a GPU that the whole
            model fits with its context, else the CPU.
        n_ctx: Positions a session can hold; the model's own context length by default. Memory is taken as
            positions fill.
        n_threads: Threads that compute; by default the physical cores this process may use.
        n_gpu_layers: 0 for the CPU; at least the model's layers, or negative, for the GPU. Warns where there
            is no GPU to use.
        overrides: Metadata values to use instead of the file's, by full key. A key that nothing reads warns.
        cache_type_k: ``"f16"``, ``"f32"`` or ``"q8_0"``, how the cache keeps keys.
        cache_type_v: The same for values.
        precise: Multiply quantized weights with activations of 15 bits in prefill too, as decoding always
            does. By default prefill takes 8 bits and a few of a token's values exactly, which is faster.

    Raises:
        GGUFError: The file is malformed, truncated, or its metadata and tensors contradict each other.
        UnsupportedModelError: The architecture or a tensor type is not one that gristmill runs.
        ArgumentError: An argument is out of range, or an override has the wrong type.
        DeviceError: ``device`` is not there, or memory could not be mapped.
    """
    for name, value in (("n_ctx", n_ctx), ("n_threads", n_threads)):
        if value is not None and not 1 <= value < 2**31:
            raise ArgumentError(f"{name}, expected at least 1, got {value}")
    if n_threads is not None and n_threads > 1024:
        raise ArgumentError(f"n_threads, expected at most 1024, got {n_threads}")
    for name, kind in (("cache_type_k", cache_type_k), ("cache_type_v", cache_type_v)):
        if kind not in CACHE_TYPES:
            raise ArgumentError(f"{name}, expected one of {', '.join(CACHE_TYPES)}, got {kind!r}")
    with GGUFFile.open(path) as file:
        if not file.tensors:
            raise file_error(file.path, "holds a vocabulary and no tensors, so there is no model to run")
        n_layer = file.metadata.scalars().get(f"{file.metadata.get_str('general.architecture')}.block_count")
        device = devices.choose(device, n_gpu_layers, n_layer if isinstance(n_layer, int) else None)
        model = Model(file, n_ctx, n_threads, overrides, cache_type_k, cache_type_v, precise, device)
    _warn_about_device(model, n_gpu_layers)
    return model


def _warn_about_device(model: Model, n_gpu_layers: int | None) -> None:
    """Where a GPU was asked for, or is there, and the CPU was chosen."""
    if model.device != "cpu":
        return
    asked = n_gpu_layers not in (None, 0)
    if asked or (model.engine.device_note and not devices.why_no_gpu()):
        what = f"n_gpu_layers={n_gpu_layers} has no effect" if asked else "the GPU is not used"
        why = model.engine.device_note or "the device is the CPU"
        warnings.warn(f"{what}: {why}; all layers run on the CPU", GristmillWarning, stacklevel=3)


class Model:
    """A loaded model: its metadata, tensors, tokenizer and template, and sessions that run it.

    Made by :func:`load`. One forward pass runs at a time; sessions may be used from several threads.
    """

    path: Path
    metadata: Metadata
    """GGUF metadata with overrides applied."""
    tensors: dict[str, TensorInfo]
    """The tensor table, by GGUF name."""
    cache_type_k: str
    """How sessions keep keys: ``"f16"``, ``"f32"`` or ``"q8_0"``."""
    cache_type_v: str
    """How sessions keep values."""
    precise: bool
    """Whether prefill takes activations of 15 bits, as decoding does."""

    def __init__(
        self,
        file: GGUFFile,
        n_ctx: int | None,
        n_threads: int | None,
        overrides: Mapping[str, bool | int | float | str] | None,
        cache_type_k: str,
        cache_type_v: str,
        precise: bool,
        device: str = "cpu",
    ) -> None:
        self.path = file.path
        self.metadata = file.metadata.with_overrides(overrides)
        self.tensors = file.tensors
        self.cache_type_k, self.cache_type_v = cache_type_k, cache_type_v
        self.precise = precise
        self.engine = _core.make_engine(
            [os.fsencode(p) for p in file.paths],
            [(t.name, t.type_id, t.shape, t.file_index, t.offset) for t in file.tensors.values()],
            self._engine_metadata(),
            n_ctx or 0,
            n_threads or 0,
            cache_type_k,
            cache_type_v,
            "",
            precise,
            device,
        )
        self._warn_about(overrides or {})

    @property
    def architecture(self) -> str:
        """The GGUF architecture, such as ``"qwen2"``."""
        return self.metadata.get_str("general.architecture")

    @property
    def n_vocab(self) -> int:
        """Tokens the embedding and the output know."""
        return self.engine.n_vocab

    @property
    def n_embd(self) -> int:
        """Width of the residual stream."""
        return self.engine.n_embd

    @property
    def n_layer(self) -> int:
        """Transformer layers."""
        return self.engine.n_layer

    @property
    def n_head(self) -> int:
        """Query heads."""
        return self.engine.n_head

    @property
    def n_head_kv(self) -> int:
        """Key and value heads."""
        return self.engine.n_head_kv

    @property
    def n_ctx(self) -> int:
        """Positions a session can hold."""
        return self.engine.n_ctx

    @property
    def n_ctx_train(self) -> int:
        """The context length the metadata gives."""
        return self.engine.n_ctx_train

    @property
    def prefill_bits(self) -> int:
        """Bits of the activations that most of the layers' weights are multiplied with in prefill.

        8 for quantized weights, and 15 where ``precise`` is or an instruction set has nothing faster; for
        F16 and BF16 14, or 32 (as floats).
        """
        elements: Counter[int] = Counter()
        for tensor in self.tensors.values():
            if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
                elements[tensor.type_id] += math.prod(tensor.shape)
        return _core.prefill_bits(self.isa, max(elements, key=elements.__getitem__), self.precise)

    @property
    def n_threads(self) -> int:
        """Threads that compute."""
        return self.engine.n_threads

    @property
    def device(self) -> str:
        """``"cpu"``, or the GPU: ``"cuda:0 (NVIDIA H200)"``."""
        return self.engine.device

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run on the CPU (forced by ``GRISTMILL_ISA``)."""
        return self.engine.isa

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer, built on first use."""
        from gristmill.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.metadata)
        if tokenizer.n_vocab > self.n_vocab:
            raise file_error(
                self.path,
                f"the vocabulary has {tokenizer.n_vocab} tokens, but token_embd.weight only {self.n_vocab} "
                "rows",
            )
        return tokenizer

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The file's chat template, or None where it has none."""
        from gristmill.chat import ChatTemplate

        source = self.metadata.get_str("tokenizer.chat_template", default=None)
        if source is None:
            return None
        tokenizer = self.tokenizer

        def text(token: int | None) -> str:
            return "" if token is None else tokenizer.token_text(token)

        return ChatTemplate(source, bos_token=text(tokenizer.bos_id), eos_token=text(tokenizer.eos_id))

    def session(self) -> Session:
        """A new, empty sequence with a KV cache of its own."""
        return Session(self)

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation:
        """Continue a prompt, piece by piece; see :func:`gristmill.generate.generate` for the options."""
        from gristmill.generate import generate

        return generate(self, prompt, **options)

    def decode_batch(self, sessions: Sequence[Session], tokens: Sequence[int]) -> NDArray[np.float32]:
        """One token for each of several sessions in one pass over the weights.

        Returns:
            float32 ``[len(sessions), n_vocab]``: bit-identical to forwarding each session alone.
        """
        ids = _token_array(tokens)
        try:
            logits: NDArray[np.float32] = _core.decode([s.core for s in sessions], ids)
        finally:
            for session, token in zip(sessions, ids.tolist(), strict=False):
                if session.core.n_past > len(session.tokens):
                    session.tokens.append(token)
        return logits

    def _engine_metadata(self) -> dict[str, object]:
        """Scalars, and arrays under the architecture's prefix: one value for all layers as a scalar, others
        as they are, which the engine refuses by name if it needs the key."""
        values: dict[str, object] = dict(self.metadata.scalars())
        for key in self.metadata:
            if key.startswith(f"{self.architecture}.") and key not in values:
                array = self.metadata[key]
                same = isinstance(array, list) and bool(array) and all(v == array[0] for v in array)
                values[key] = array[0] if same and isinstance(array, list) else ()
        return values

    def _warn_about(self, overrides: Mapping[str, object]) -> None:
        def warn(message: str) -> None:
            warnings.warn(f"{printable(self.path.name)}: {message}", GristmillWarning, stacklevel=5)

        if overrides:
            self.metadata.check_overrides(set(self.engine.keys_read) | _keys_read_in_python())
        unused = self.engine.unused_tensors
        if unused:
            some = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
            warn(f"{len(unused)} tensors are not used by {self.architecture}: {some}")
        given = self.engine.rope_attn_factor
        own = self.engine.rope_magnitude / given  # above 1 only with YaRN
        if own > 1.0 and abs(given - own) < 0.02:
            warn(
                f"the attention factor {given:g} multiplies YaRN's own {own:.4f}, which makes "
                f"{given * own:.4f}; leave it out to get YaRN as published"
            )
        if self.n_ctx > self.n_ctx_train:
            warn(
                f"a context of {self.n_ctx} is longer than the {self.n_ctx_train} positions that the model "
                "knows; text beyond them is likely to be poor"
            )


class Session:
    """One sequence of tokens and its keys and values."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.core = _core.Session(model.engine)
        self.tokens: list[int] = []
        """The tokens whose keys and values the cache holds."""

    @property
    def n_past(self) -> int:
        """Positions filled."""
        return self.core.n_past

    @property
    def n_ctx(self) -> int:
        """Positions there are."""
        return self.model.n_ctx

    def forward(
        self, ids: Sequence[int] | NDArray[np.integer[Any]], all_logits: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens to the sequence.

        Long prompts run in several passes. Ctrl-C takes effect between the layers of one; the session then
        holds the positions of the passes that were done.

        Args:
            ids: Token ids, at least one.
            all_logits: Whether every position's logits are wanted.

        Returns:
            float32 ``[n_vocab]``, the last position's logits, or ``[len(ids), n_vocab]`` with ``all_logits``.

        Raises:
            ContextFullError: The tokens do not fit; nothing was appended.
            ArgumentError: No token, or one outside the vocabulary.
            GGUFError: The file was cut while in use.
            Error: The logits are not finite.
        """
        tokens = _token_array(ids)
        if len(tokens) == 0:
            raise ArgumentError("forward needs at least one token")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.model.n_vocab:
            bad = tokens[(tokens < 0) | (tokens >= self.model.n_vocab)][0]
            raise ArgumentError(f"token {bad} is outside the vocabulary of {self.model.n_vocab}")
        if self.n_past + len(tokens) > self.n_ctx:
            held = f" of which {self.n_past} are filled" if self.n_past else ""
            raise ContextFullError(
                f"{len(tokens)} tokens do not fit the context of {self.n_ctx}{held}; a larger n_ctx "
                "(--ctx-size) would hold them"
            )
        step = self.model.engine.max_batch
        every = np.empty((len(tokens), self.model.n_vocab), np.float32) if all_logits else None
        logits: NDArray[np.float32] | None = None
        for first in range(0, len(tokens), step):
            some = tokens[first : first + step]
            wanted = "all" if all_logits else "last" if first + step >= len(tokens) else "none"
            try:
                logits = self.core.forward(some, wanted)
            finally:
                # Ctrl-C may arrive between the pass and this line: what the cache holds decides.
                self.tokens.extend(some[: self.core.n_past - len(self.tokens)].tolist())
            if every is not None:
                every[first : first + step] = logits
        assert logits is not None
        return logits[0] if every is None else every

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` positions and forget the rest."""
        try:
            self.core.truncate(n)
        finally:
            del self.tokens[self.core.n_past :]

    def reuse_prefix(self, ids: Sequence[int]) -> int:
        """Truncate to the longest prefix shared with ``ids``, and return its length.

        At least one token of ``ids`` is left to forward, since its logits are not kept.
        """
        n = 0
        for have, want in zip(self.tokens, ids, strict=False):
            if have != want:
                break
            n += 1
        n = min(n, len(ids) - 1)
        self.truncate(max(n, 0))
        return self.n_past


def _keys_read_in_python() -> set[str]:
    """The metadata keys of the tokenizer and the template, which are built on first use, after overrides are
    checked."""
    from gristmill.vocabulary import KEYS

    return {*KEYS, "tokenizer.chat_template"}


def _token_array(ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ArgumentError(
            f"token ids, expected a flat sequence of integers, got {array.dtype} {array.shape}"
        )
    if array.size and (int(array.min()) < -(2**31) or int(array.max()) >= 2**31):
        raise ArgumentError("token ids, expected 32-bit integers")
    return np.ascontiguousarray(array, dtype=np.int32)
