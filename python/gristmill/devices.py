"""The GPUs that models can run on, and how a model's layers are placed on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gristmill import _core
from gristmill.errors import ArgumentError


@dataclass(frozen=True)
class Gpu:
    """One GPU of NVIDIA's driver. Memory is in bytes; ``driver`` is the CUDA version that it supports."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory: int
    memory_free: int
    driver: tuple[int, int]


def gpu_count() -> int:
    """How many GPUs :func:`gpus` describes, at no cost: asking each for its memory takes some of it."""
    return _core.cuda_device_count()


def gpus() -> list[Gpu]:
    """The GPUs that there are, in the driver's order.

    One that fails, or for which this build has no code, has no free memory, and the reason in its name.
    """
    return [
        Gpu(i, name, (major, minor), n, memory, free, (driver // 1000, driver % 1000 // 10))
        for i, (name, major, minor, n, memory, free, driver) in enumerate(_core.cuda_devices())
    ]


def why_no_gpu() -> str:
    """Why :func:`gpus` is empty, in a few words; empty where it is not."""
    return _core.cuda_why_not()


@dataclass(frozen=True)
class DeviceLayers:
    """Layers ``first`` to ``last - 1`` of a model on one device; the output counts as one more layer."""

    device: str
    """``"cpu"``, or ``"cuda:0 (NVIDIA H200)"``."""
    first: int
    last: int

    @property
    def gpu_index(self) -> int:
        """The driver's number of the GPU; -1 for the CPU."""
        return -1 if self.device == "cpu" else int(self.device.partition(" ")[0].removeprefix("cuda:"))

    def describe(self, n_layer: int) -> str:
        """In words: ``"cuda:0 (NVIDIA H200): layers 20 to 63 and the output"``."""
        layers = range(self.first, min(self.last, n_layer))
        parts = []
        if len(layers) == 1:
            parts.append(f"layer {layers[0]}")
        elif layers:
            parts.append(f"layers {layers[0]} to {layers[-1]}")
        if self.last > n_layer:
            parts.append("the output")
        return f"{self.device}: {' and '.join(parts)}"


def check_placement(
    n_gpu_layers: int | None, main_gpu: int | None, tensor_split: Sequence[float]
) -> tuple[int | None, int, list[float]]:
    """The layers, the main GPU and the shares of GPUs as the engine takes them.

    Args:
        n_gpu_layers: None for as many as fit; a negative number for all.
        main_gpu: None for the first GPU.
        tensor_split: Shares; empty leaves them to the engine.

    Raises:
        ArgumentError: One is out of range.
    """
    if n_gpu_layers is not None:
        n_gpu_layers = _ALL_LAYERS if n_gpu_layers < 0 else min(n_gpu_layers, _ALL_LAYERS)
    if main_gpu is not None and not 0 <= main_gpu < 2**31:
        raise ArgumentError(f"main_gpu, expected at least 0, got {main_gpu}")
    shares = [float(share) for share in tensor_split]
    if shares and (not all(0 <= share < math.inf for share in shares) or not any(shares)):
        raise ArgumentError(f"tensor_split, expected numbers of at least 0, one above 0, got {tensor_split}")
    return n_gpu_layers, -1 if main_gpu is None else main_gpu, shares


_ALL_LAYERS = 2**31 - 1
