"""Where a quantized file differs from its base: weights, activations, and what stands out."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gristmill.errors import ArgumentError
from gristmill.gguf import GGUFFile
from gristmill.lab.activations import LayerError, activation_errors
from gristmill.lab.divergences import check_same_vocabulary
from gristmill.lab.text import cut
from gristmill.lab.weights import TensorError, check_same_tensors, weight_errors
from gristmill.model import load

Progress = Callable[[str, int, int], None]
"""Called with what runs now, the steps of it that are done, and all there are."""

# A value stands out so many robust standard deviations above its peers' median, and so many times the median.
_OUTLIER_DEVIATIONS = 3.5
_OUTLIER_FACTOR = 1.15


@dataclass(frozen=True)
class Outlier:
    """What is worse than its like: ``value`` is its relative error, ``median`` that of ``peers``."""

    name: str
    what: str
    value: float
    median: float
    peers: str


@dataclass(frozen=True)
class AnalyzeResult:
    """``tensors`` in the base's order. ``layers`` from the embedding (-1) on, or empty without a text."""

    base: str
    model: str
    tensors: tuple[TensorError, ...] = field(repr=False)
    layers: tuple[LayerError, ...] = field(repr=False)
    outliers: tuple[Outlier, ...] = field(repr=False)
    n_ctx: int
    n_windows: int

    def kinds(self) -> list[str]:
        """Kinds of matrices in the layers, in the order of the file."""
        return list(dict.fromkeys(t.kind for t in self._matrices()))

    def heat_map(self) -> NDArray[np.float64]:
        """Relative RMSE ``[len(kinds()), n_layer]``; NaN where a layer has no such matrix."""
        kinds = {kind: i for i, kind in enumerate(self.kinds())}
        n_layer = 1 + max((t.layer for t in self._matrices() if t.layer is not None), default=-1)
        grid = np.full((len(kinds), n_layer), np.nan)
        for t in self._matrices():
            grid[kinds[t.kind], t.layer] = t.relative_rmse
        return grid

    def layer_weight_errors(self) -> NDArray[np.float64]:
        """Relative RMSE of all matrices of a layer together, each by its number of weights, ``[n_layer]``."""
        grid = np.zeros((2, self.heat_map().shape[1]))
        for t in self._matrices():
            n = float(np.prod(t.shape))
            grid[0, t.layer] += n * t.relative_rmse**2
            grid[1, t.layer] += n
        mean: NDArray[np.float64] = np.sqrt(grid[0] / grid[1])
        return mean

    def _matrices(self) -> list[TensorError]:
        return [t for t in self.tensors if t.layer is not None and len(t.shape) > 1]


def analyze(
    base: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    text: str | None = None,
    n_ctx: int = 512,
    n_windows: int | None = 4,
    n_threads: int | None = None,
    source: str = "text",
    progress: Progress | None = None,
) -> AnalyzeResult:
    """Compare ``model`` with ``base``, of which it is a quantization.

    Args:
        base: The file to measure from.
        model: A file with the same tensors.
        text: What activations are measured on; without it weights alone are compared.
        n_ctx: Tokens of a window.
        n_windows: Windows to use at most; None for all.
        n_threads: Threads that compute; the physical cores by default.
        source: What messages call the text.
        progress: Told about each step.

    Raises:
        ArgumentError: Both are the same file, or a number makes no sense.
        GGUFError: The files hold different tensors.
        Error: The vocabularies differ, or the text is too short for one window.
    """
    tell = progress or (lambda what, done, total: None)
    if Path(base).resolve() == Path(model).resolve():
        raise ArgumentError(f"{base}: is given twice")
    with GGUFFile.open(base) as mine, GGUFFile.open(model) as theirs:
        check_same_tensors(mine, theirs)
        layers: list[LayerError] = []
        used = 0
        if text is not None:
            loaded = [load(path, n_ctx=n_ctx, n_threads=n_threads, precise=True) for path in (base, model)]
            one, other = loaded
            check_same_vocabulary(one.tokenizer, one.path, other.tokenizer, other.path)
            windows = cut(one.tokenizer, text, n_ctx, n_windows, source)
            used = windows.n_windows
            tell("activations", 0, used)
            layers = activation_errors(one, other, windows, lambda i, n: tell("activations", i, n))
        tensors = weight_errors(mine, theirs, n_threads, lambda name, i, n: tell("weights", i, n))
    return AnalyzeResult(
        base=Path(base).name,
        model=Path(model).name,
        tensors=tuple(tensors),
        layers=tuple(layers),
        outliers=(*weight_outliers(tensors), *layer_outliers(layers)),
        n_ctx=n_ctx,
        n_windows=used,
    )


def weight_outliers(tensors: Sequence[TensorError]) -> list[Outlier]:
    """Matrices whose relative RMSE stands out among those of the same format, the worst first.

    One that is still better than half of all matrices, since its format is finer, is left out.
    """
    found: list[Outlier] = []
    matrices = [t for t in tensors if len(t.shape) > 1]
    of_all = statistics.median(t.relative_rmse for t in matrices) if matrices else 0.0
    for format in dict.fromkeys(t.format for t in matrices):
        peers = [t for t in matrices if t.format == format]
        values = [t.relative_rmse for t in peers]
        found += [
            Outlier(peers[i].name, "weights", values[i], statistics.median(values), f"matrices in {format}")
            for i in _standing_out(values)
            if values[i] > of_all
        ]
    return sorted(found, key=lambda o: -o.value / (o.median or 1.0))


def layer_outliers(layers: Sequence[LayerError]) -> list[Outlier]:
    """Layers whose own contribution is further off than the others', the worst first."""
    inner = [layer for layer in layers if layer.layer >= 0]
    values = [layer.added_error for layer in inner]
    found = [
        Outlier(f"blk.{inner[i].layer}", "activations", values[i], statistics.median(values), "layers")
        for i in _standing_out(values)
    ]
    return sorted(found, key=lambda o: -o.value)


def _standing_out(values: Sequence[float]) -> list[int]:
    """Indices of values far above the median, in units of the median absolute deviation."""
    if len(values) < 4:
        return []
    median = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(v - median) for v in values)
    return [
        i
        for i, v in enumerate(values)
        if v > median * _OUTLIER_FACTOR and v > median + _OUTLIER_DEVIATIONS * deviation
    ]
