"""Pictures of an analysis: a heat map of weight errors, and curves of activation errors over the layers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gristmill.lab.analysis import AnalyzeResult
from gristmill.lab.plot import Theme, check_plot, figure, themed_paths
from gristmill.messages import printable

WEIGHTS, ACTIVATIONS = "weights.png", "activations.png"


def plot_analysis(result: AnalyzeResult, folder: str | os.PathLike[str], theme: str = "light") -> list[Path]:
    """Write ``weights.png`` and, where activations were measured, ``activations.png``; "both" themes add
    ``weights-dark.png`` and ``activations-dark.png``. Returns what was written.

    Raises:
        Error: matplotlib is not installed.
        OSError: The folder cannot be made or written.
    """
    folder = Path(folder)
    check_plot(folder / WEIGHTS, theme)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(WEIGHTS, _heat_map, bool(result.kinds())), (ACTIVATIONS, _curves, bool(result.layers))]
    written: list[Path] = []
    for name, draw, there in wanted:
        for path, of in themed_paths(folder / name, theme) if there else []:
            draw(result, path, of)
            written.append(path)
    return written


def _heat_map(result: AnalyzeResult, path: Path, theme: str) -> None:
    grid = 100 * result.heat_map()
    kinds = result.kinds()
    n_kinds, n_layer = grid.shape
    width = min(14.0, max(6.0, 2.6 + 0.2 * n_layer))
    with figure(path, theme, width, 1.6 + 0.3 * n_kinds) as (fig, colors):
        axes = fig.add_subplot()
        axes.set_facecolor(colors.surface)
        finite = grid[np.isfinite(grid)]
        drawn = axes.imshow(
            grid,
            aspect="auto",
            cmap=colors.colormap,
            vmin=0.0,
            vmax=float(finite.max()) if finite.size and finite.max() > 0 else 1.0,
            interpolation="nearest",
        )
        # Gaps of the surface's color set cells apart without lines of their own.
        axes.set_xticks(np.arange(-0.5, n_layer), minor=True)
        axes.set_yticks(np.arange(-0.5, n_kinds), minor=True)
        axes.grid(which="minor", color=colors.surface, linewidth=0.8)
        axes.tick_params(which="both", length=0)
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if n_layer / s <= 24)
        axes.set_xticks(range(0, n_layer, step))
        axes.set_yticks(range(n_kinds), [printable(kind, 24) for kind in kinds])
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer")
        _mark_outliers(result, axes, colors)
        _title(axes, result, "Weight error by layer and matrix", "boxed: stands out in its format")
        bar = fig.colorbar(drawn, ax=axes, pad=0.02, fraction=0.03)
        bar.set_label("relative RMSE, %")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        fig.tight_layout()


def _mark_outliers(result: AnalyzeResult, axes: object, colors: Theme) -> None:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

    assert isinstance(axes, Axes)
    rows = {kind: i for i, kind in enumerate(result.kinds())}
    named = {o.name for o in result.outliers if o.what == "weights"}
    for t in result.tensors:
        if t.name in named and t.layer is not None and t.kind in rows:
            corner = (t.layer - 0.5, rows[t.kind] - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#d55e00", linewidth=1.8, zorder=3))


def _curves(result: AnalyzeResult, path: Path, theme: str) -> None:
    from matplotlib.ticker import MaxNLocator

    layers = [layer for layer in result.layers if layer.layer >= 0]
    x = [layer.layer for layer in layers]
    # Vermillion beside the blue: the pair of Okabe and Ito's that is told apart best by everyone.
    with figure(path, theme, 7.5, 3.8) as (fig, colors):
        axes = fig.add_subplot()
        axes.set_facecolor(colors.surface)
        other = "#d55e00" if theme == "light" else "#f0883e"
        curves = (
            ("what each layer adds", [100 * v.added_error for v in layers], other, "s", "--"),
            ("stream after the layer", [100 * v.stream_error for v in layers], colors.front, "o", "-"),
        )
        for label, y, color, marker, line in curves:
            axes.plot(x, y, line, color=color, marker=marker, markersize=4, linewidth=1.5, label=label)
        named = {o.name for o in result.outliers if o.what == "activations"}
        for layer in layers:
            if f"blk.{layer.layer}" in named:
                axes.annotate(
                    f"blk.{layer.layer}",
                    (layer.layer, 100 * layer.added_error),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="center",
                )
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.08)
        axes.set_xlim(-0.5, max(x) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color=colors.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("layer")
        axes.set_ylabel("relative error, %")
        tokens = result.n_windows * result.n_ctx
        _title(axes, result, "Activation error by layer", f"mean over {tokens} tokens")
        axes.legend(frameon=False, labelcolor=colors.ink, loc="best")
        fig.tight_layout()


def _title(axes: object, result: AnalyzeResult, title: str, note: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=20)
    models = f"{printable(result.model, 50)} from {printable(result.base, 50)}; {note}"
    axes.annotate(
        models, (0, 1), xytext=(0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=8
    )
