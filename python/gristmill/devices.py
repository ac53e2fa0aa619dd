"""The GPUs that models can run on, and which device a load means."""

from __future__ import annotations

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


def gpus() -> list[Gpu]:
    """The GPUs that this build can use, in the driver's order. Raises DeviceError where the driver fails."""
    return [
        Gpu(i, name, (major, minor), n, memory, free, (driver // 1000, driver % 1000 // 10))
        for i, (name, major, minor, n, memory, free, driver) in enumerate(_core.cuda_devices())
    ]


def why_no_gpu() -> str:
    """Why :func:`gpus` is empty, in a few words; empty where it is not."""
    return _core.cuda_why_not()


def choose(device: str, n_gpu_layers: int | None, n_layer: int | None) -> str:
    """The device that the engine is asked for: ``"cpu"``, ``"auto"``, ``"cuda"`` or ``"cuda:N"``.

    Args:
        device: As the user gave it.
        n_gpu_layers: Layers for the GPU; None leaves it to the device, a negative number means all.
        n_layer: Layers of the model, where the file says.

    Raises:
        ArgumentError: Some layers on the GPU and some not, which this version cannot do.
    """
    if n_gpu_layers == 0:
        return "cpu"
    if n_gpu_layers is None or n_gpu_layers < 0 or n_layer is None or n_gpu_layers >= n_layer:
        return device
    if device != "cpu" and not why_no_gpu():
        raise ArgumentError(
            f"n_gpu_layers, expected 0 or at least the model's {n_layer}, got {n_gpu_layers}: "
            "a model runs on one device as a whole"
        )
    return device
