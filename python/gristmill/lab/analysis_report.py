"""An analysis as text: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import Any

from gristmill._version import __version__
from gristmill.lab.analysis import AnalyzeResult
from gristmill.lab.weights import TensorError
from gristmill.messages import printable


def as_text(result: AnalyzeResult) -> str:
    """Weights by kind, activations by layer, and what stands out."""
    parts = [_table(_KINDS, _kind_rows(result))]
    if result.layers:
        parts.append(_table(_LAYERS, _layer_rows(result)))
    parts.append(_outliers(result))
    return "\n".join(parts)


_KINDS = ("matrix", "formats", "bits/weight", "relative RMSE", "worst", "where", "largest error, RMS", "in")
_LAYERS = ("layer", "weights, relative RMSE", "adds, relative error", "stream after it", "worst token")


def _kind_rows(result: AnalyzeResult) -> list[list[str]]:
    """A line for each kind of matrix, over all layers, and for each matrix outside of them."""
    groups: dict[str, list[TensorError]] = {}
    for tensor in result.tensors:
        if len(tensor.shape) > 1:
            groups.setdefault(tensor.kind, []).append(tensor)
    rows = []
    for kind, tensors in groups.items():
        counts = Counter(t.format for t in tensors)
        n = [math.prod(t.shape) for t in tensors]
        together = math.sqrt(sum(k * t.relative_rmse**2 for k, t in zip(n, tensors, strict=True)) / sum(n))
        worst = max(tensors, key=lambda t: t.relative_rmse)
        largest = max(tensors, key=lambda t: t.max_error)
        rows.append(
            [
                printable(kind, 40),
                ", ".join(f"{count} {name}" for name, count in counts.most_common()),
                f"{sum(k * t.bits_per_weight for k, t in zip(n, tensors, strict=True)) / sum(n):.2f}",
                percent(together),
                percent(worst.relative_rmse),
                printable(worst.name, 40),
                f"{largest.max_error:.2f}",
                printable(largest.name, 40),
            ]
        )
    return rows


def _layer_rows(result: AnalyzeResult) -> list[list[str]]:
    weights = result.layer_weight_errors()
    return [
        [
            "embedding" if layer.layer < 0 else str(layer.layer),
            "" if layer.layer < 0 else percent(float(weights[layer.layer])),
            percent(layer.added_error),
            percent(layer.stream_error),
            percent(layer.worst_error),
        ]
        for layer in result.layers
    ]


def _table(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _outliers(result: AnalyzeResult) -> str:
    if not result.outliers:
        return "nothing stands out\n"
    lines = [
        f"stands out: {printable(o.name, 60)}, {o.what}: {percent(o.value)}, "
        f"{o.value / o.median:.2f} times the median of {o.peers}"
        for o in result.outliers
    ]
    return "\n".join(lines) + "\n"


def percent(value: float) -> str:
    """A share with three digits."""
    return f"{100 * value:#.3g}".rstrip(".") + " %" if math.isfinite(value) else "infinite"


def as_json(result: AnalyzeResult) -> str:
    """Every tensor, layer and outlier; numbers that JSON lacks are null."""
    record = {
        "gristmill": __version__,
        "base": result.base,
        "model": result.model,
        "n_ctx": result.n_ctx,
        "n_windows": result.n_windows,
        "tensors": [dataclasses.asdict(t) for t in result.tensors],
        "layers": [dataclasses.asdict(layer) for layer in result.layers],
        "outliers": [dataclasses.asdict(o) for o in result.outliers],
    }
    return json.dumps(_finite(record), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
