"""What a model's output suffers when single matrices are quantized, measured on a text.

A probe is the model with one matrix in another type. Its file is not written: the engine takes each tensor
from where the table says, so that one comes out of a quantized copy of the model and all others from the
source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from gristmill.gguf import GGUFFile
from gristmill.model import Model
from gristmill.quantizing.mixes import layer_of

LogProbs: TypeAlias = npt.NDArray[np.float32]


class _Mixed:
    """The tensors of one file, some of them from another with the same names: what Model asks of a
    GGUFFile.
    """

    def __init__(self, file: GGUFFile, other: GGUFFile, names: Iterable[str]) -> None:
        n = len(file.paths)
        self.path, self.metadata = file.path, file.metadata
        self.paths = [*file.paths, *other.paths]
        self.tensors = dict(file.tensors)
        for name in names:
            tensor = other.tensors[name]
            self.tensors[name] = dataclasses.replace(tensor, file_index=n + tensor.file_index)


def mixed_model(source: Path, other: Path, names: Iterable[str], n_ctx: int, n_threads: int | None) -> Model:
    """``source`` with the tensors ``names`` taken from ``other``."""
    with GGUFFile.open(source) as file, GGUFFile.open(other) as quantized:
        mixed = cast(GGUFFile, _Mixed(file, quantized, names))
        return Model(mixed, n_ctx, n_threads, None, "f32", "f32", precise=True)


def log_probs(model: Model, windows: Sequence[Sequence[int]]) -> list[LogProbs]:
    """For each window float32 [len(window), n_vocab]; a context of its own for each."""
    return [_log_softmax(model.session().forward(window, all_logits=True)) for window in windows]


def mean_divergence(base: Sequence[LogProbs], model: Model, windows: Sequence[Sequence[int]]) -> float:
    """Mean Kullback-Leibler divergence of ``model`` from ``base``, in nats, over all positions."""
    total, n = 0.0, 0
    for expected, window in zip(base, windows, strict=True):
        got = _log_softmax(model.session().forward(window, all_logits=True))
        got -= expected
        np.negative(got, out=got)
        got *= np.exp(expected)
        total += float(got.sum(dtype=np.float64))
        n += len(window)
    return max(0.0, total / n)


def _log_softmax(logits: npt.NDArray[np.float32]) -> LogProbs:
    logits = logits - logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def probe(
    source: Path,
    quantized: Path,
    groups: Mapping[str, Sequence[str]],
    windows: Sequence[Sequence[int]],
    *,
    n_threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """The mean divergence that each group of tensors causes when it alone is taken from ``quantized``."""
    n_ctx = max(map(len, windows))
    base = log_probs(mixed_model(source, quantized, (), n_ctx, n_threads), windows)
    found: dict[str, float] = {}
    for i, (label, names) in enumerate(groups.items()):
        model = mixed_model(source, quantized, names, n_ctx, n_threads)
        found[label] = mean_divergence(base, model, windows)
        if progress is not None:
            progress(f"sensitivity of {label}", i + 1, len(groups))
    return found


def blocks_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Each layer, and each kind of matrix over all layers, as groups to probe; what lies outside the layers
    is its own group."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = layer_of(name)
        if layer < 0:
            groups[name] = [name]
        else:
            groups.setdefault(f"layer {layer}", []).append(name)
            groups.setdefault(kind_of(name), []).append(name)
    return groups


def kind_of(name: str) -> str:
    """``attn_q`` for ``blk.3.attn_q.weight``."""
    return name.split(".", 2)[2].removesuffix(".weight")


def shared_out(
    names: Sequence[str], harm: Mapping[str, float], errors: Mapping[str, float]
) -> dict[str, float]:
    """The divergence of every single matrix from that of the groups of :func:`blocks_of`.

    A matrix's share is modelled as its probe's relative error, times a factor of its layer, times a factor of
    its kind; the factors are those with which the shares add up to what was measured of every layer and of
    every kind (iterative proportional fitting, Deming and Stephan 1940).
    """
    share = {name: errors[name] if layer_of(name) >= 0 else harm[name] for name in names}
    groups = {label: members for label, members in blocks_of(names).items() if layer_of(members[0]) >= 0}
    for _ in range(100):
        for label, members in groups.items():
            total = sum(share[name] for name in members)
            if total > 0:
                for name in members:
                    share[name] *= harm[label] / total
    return share
