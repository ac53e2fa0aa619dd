"""Loading a model, and what is known of it."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gristmill import _core, devices
from gristmill.errors import ArgumentError, GristmillWarning
from gristmill.gguf import GGUFFile
from gristmill.messages import file_error, printable
from gristmill.session import Session, token_array, tokens_follow

if TYPE_CHECKING:
    from gristmill.chat import ChatTemplate
    from gristmill.generate import Generation
    from gristmill.gguf import TensorInfo
    from gristmill.metadata import Metadata
    from gristmill.tokenizer import Tokenizer

CACHE_TYPES = ("f32", "f16", "q8_0")
_GPU_PREFILL_BITS = 11  # of halves


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
    main_gpu: int | None = None,
    tensor_split: Sequence[float] = (),
    progress: Callable[[int, int], object] | None = None,
) -> Model:
    """Map a GGUF file and make it ready to run.

    Args:
        path: A ``.gguf`` file, or any part of a split one.
        device: ``"cpu"``; ``"cuda"``, ``"cuda:N"`` or several as ``"cuda:0,cuda:2"``, any GPU or those or an
            error; ``"auto"``, GPUs where there are any, else the CPU.
        n_ctx: Positions a session can hold; the model's own context length by default. Memory is taken as
            positions fill, on the CPU behind the first 512 in chunks of 512 where the system has large pages.
        n_threads: Threads that compute; by default the physical cores this process may use.
        n_gpu_layers: Layers on GPUs, the last ones of the model and the output, which counts as one; the rest
            runs on the CPU, and each layer's cache lies beside it. Negative for all, None for as many as free
            memory holds with cache and work space. Warns where there is no GPU to use.
        overrides: Metadata values to use instead of the file's, by full key. A key that nothing reads warns.
        cache_type_k: ``"f16"``, ``"f32"`` or ``"q8_0"``, how the cache keeps keys.
        cache_type_v: The same for values.
        precise: Multiply quantized weights with activations of 15 bits, and F16 and BF16 ones in float32. By
            default layers take 8 bits and a few of a token's values exactly, or for prompts 14 bits for F16
            and BF16, where an instruction set is faster with that; the output is always precise. On a GPU
            decoding always has 15 bits, and prompts take halves (11 bits) either way, which it warns of.
        main_gpu: The GPU, by the driver's number, to use where one is enough; the first by default.
        tensor_split: Shares of the layers for each GPU in order; by default one GPU where that is enough,
            else all of them by their free memory.
        progress: Called while weights are read, with the bytes that were and all there are. What it raises
            ends the loading.

    Raises:
        GGUFError: The file is malformed, truncated, or its metadata and tensors contradict each other.
        UnsupportedModelError: The architecture or a tensor type is not one that gristmill runs.
        ArgumentError: An argument is out of range, or an override has the wrong type.
        DeviceError: ``device`` is not there, memory could not be mapped, or a GPU has too little of it (the
            message says how much is missing and what would fit).
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
        placement = devices.check_placement(n_gpu_layers, main_gpu, tensor_split)
        model = Model(
            file,
            n_ctx,
            n_threads,
            overrides,
            cache_type_k,
            cache_type_v,
            precise,
            device,
            *placement,
            progress,
        )
    _warn_about_device(model, n_gpu_layers)
    return model


def _warn_about_device(model: Model, n_gpu_layers: int | None) -> None:
    """Where a GPU was asked for, or is there, and the CPU was chosen for all layers or some; where what was
    asked for is not to be had on a GPU."""
    note = model.engine.device_note
    if model.precise and model.device != "cpu":
        warnings.warn(
            f"precise has no effect on a GPU, where prompts are multiplied with {_GPU_PREFILL_BITS} bits",
            GristmillWarning,
            stacklevel=3,
        )
    if model.engine.device_slow:
        warnings.warn(model.engine.device_slow, GristmillWarning, stacklevel=3)
    if model.device == "cpu":
        asked = n_gpu_layers not in (None, 0)
        if asked or (note and not devices.why_no_gpu()):
            what = f"n_gpu_layers={n_gpu_layers} has no effect" if asked else "the GPU is not used"
            why = note or "the device is the CPU"
            warnings.warn(f"{what}: {why}; all layers run on the CPU", GristmillWarning, stacklevel=3)
    elif note:
        n = sum(part.last - part.first for part in model.device_layers if part.device != "cpu")
        warnings.warn(
            f"{n} of {model.n_layer + 1} layers run on the GPU, the rest on the CPU: {note}",
            GristmillWarning,
            stacklevel=3,
        )


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
    """Whether quantized weights are always multiplied with activations of 15 bits."""

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
        n_gpu_layers: int | None = None,
        main_gpu: int = -1,
        tensor_split: Sequence[float] = (),
        progress: Callable[[int, int], object] | None = None,
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
            n_gpu_layers,
            main_gpu,
            tensor_split,
            progress,
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

        8 for quantized weights, and 15 or 16 where ``precise`` is or an instruction set has nothing faster;
        for F16 and BF16 14 or 16, or 32 (as floats); on a GPU 11, of halves.
        """
        kind = self._prefill_type
        return (
            _GPU_PREFILL_BITS if kind is None else _core.activation_bits(self.isa, kind, self._prefill_mode)
        )

    @property
    def prefill_arithmetic(self) -> str:
        """What multiplies them: "int8", "int16", "bfloat16" or "float32"; on a GPU "float16"."""
        kind = self._prefill_type
        return "float16" if kind is None else _core.arithmetic(self.isa, kind, self._prefill_mode)

    @property
    def _prefill_mode(self) -> str:
        return "precise" if self.precise else "prefill"

    @property
    def _prefill_type(self) -> int | None:
        """The type of most of the layers' weights; None where most are on a GPU."""
        on_gpu = [part for part in self.device_layers if part.device != "cpu"]
        elements: Counter[int | None] = Counter()
        for tensor in self.tensors.values():
            if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
                layer = int(tensor.name.split(".")[1])
                there = any(part.first <= layer < part.last for part in on_gpu)
                elements[None if there else tensor.type_id] += math.prod(tensor.shape)
        return max(elements, key=elements.__getitem__)

    @property
    def n_threads(self) -> int:
        """Threads that compute."""
        return self.engine.n_threads

    @property
    def device(self) -> str:
        """``"cpu"``, or ``"cuda:0 (NVIDIA H200)"``; several have `` + `` between them."""
        return " + ".join(part.device for part in self.device_layers)

    @property
    def device_layers(self) -> list[devices.DeviceLayers]:
        """Where the layers are, in order."""
        return [devices.DeviceLayers(*part) for part in self.engine.device_layers]

    @property
    def finds_top_logits(self) -> bool:
        """Whether :meth:`Session.forward_top` is there: the output is on a GPU."""
        return self.engine.finds_top_logits

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
        ids = token_array(tokens)
        with tokens_follow(sessions, ids):
            logits: NDArray[np.float32] = _core.decode([s.core for s in sessions], ids)
        return logits

    def decode_batch_top(
        self, sessions: Sequence[Session], tokens: Sequence[int], k: int, n_vocab: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The same, with each session's largest logits alone, as :meth:`Session.forward_top` finds them.

        Returns:
            int32 and float32 ``[len(sessions), k]``: tokens and their logits.
        """
        ids = token_array(tokens)
        with tokens_follow(sessions, ids):
            found: tuple[NDArray[np.int32], NDArray[np.float32]] = _core.decode_top(
                [s.core for s in sessions], ids, k, self.n_vocab if n_vocab is None else n_vocab
            )
        return found

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


def _keys_read_in_python() -> set[str]:
    """The metadata keys of the tokenizer and the template, which are built on first use, after overrides are
    checked."""
    from gristmill.vocabulary import KEYS

    return {*KEYS, "tokenizer.chat_template"}
