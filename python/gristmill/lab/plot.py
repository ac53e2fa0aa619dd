"""Pictures as PNG, SVG or PDF, with matplotlib, which is an extra: ``pip install "gristmill[lab]"``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.errors import ArgumentError, Error
from gristmill.lab.chart import (
    Axis,
    Panel,
    line_boxes,
    linear_axis,
    log_axis,
    panels,
    place_labels,
    tick_text,
)
from gristmill.lab.comparison import CompareResult
from gristmill.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEMES = ("light", "dark", "both")
SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Theme:
    """Colors of a picture. ``front`` is Okabe and Ito's blue, or their sky blue on dark."""

    surface: str
    ink: str
    muted: str
    grid: str
    front: str
    colormap: str


_THEMES = {
    "light": Theme("#ffffff", "#1b1f24", "#667078", "#dfe3e8", "#0072b2", "cividis_r"),
    "dark": Theme("#14171b", "#e6e8eb", "#98a1aa", "#333a42", "#56b4e9", "cividis"),
}


def check_plot(path: str | os.PathLike[str], theme: str = "light") -> None:
    """Raises, before any time is spent, what drawing would: see :func:`plot_comparison`."""
    _matplotlib()
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}")
    if theme not in THEMES:
        raise ArgumentError(f"theme {theme!r}, expected one of {', '.join(THEMES)}")


def themed_paths(path: str | os.PathLike[str], theme: str) -> list[tuple[Path, str]]:
    """The files to draw and the theme of each: of "both", the dark one's name ends in ``-dark``."""
    path = Path(path)
    if theme != "both":
        return [(path, theme)]
    return [(path, "light"), (path.with_name(f"{path.stem}-dark{path.suffix}"), "dark")]


def plot_comparison(result: CompareResult, path: str | os.PathLike[str], theme: str = "light") -> list[Path]:
    """Draw divergence against size and speed against size.

    ``theme`` is "light", "dark", or "both", which adds a second picture whose name ends in ``-dark``. Returns
    what was written.

    Raises:
        Error: matplotlib is not installed.
        ArgumentError: The file's suffix is not .png, .svg or .pdf, or the theme is unknown.
        OSError: The file cannot be written.
    """
    check_plot(path, theme)
    drawn = panels(result)
    if not drawn:
        raise Error("nothing to draw: no model differs from the base, and no speeds were measured")
    written = themed_paths(path, theme)
    for each, of in written:
        with figure(each, of, 5.2 * len(drawn), 4.0) as (fig, colors):
            for i, panel in enumerate(drawn):
                _draw(fig.add_subplot(1, len(drawn), i + 1), panel, colors)
            fig.tight_layout(w_pad=2.5)
    return [each for each, _ in written]


@contextlib.contextmanager
def figure(path: Path, theme: str, width: float, height: float) -> Iterator[tuple[Figure, Theme]]:
    """A figure of ``width`` by ``height`` inches to draw on, and its colors; written when all went well."""
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    colors = _THEMES[theme]
    settings = {
        "font.size": 9,
        "axes.edgecolor": colors.muted,
        "axes.labelcolor": colors.ink,
        "axes.titlecolor": colors.ink,
        "text.color": colors.ink,
        "xtick.color": colors.muted,
        "ytick.color": colors.muted,
        "xtick.labelcolor": colors.ink,
        "ytick.labelcolor": colors.ink,
        "svg.fonttype": "none",
        # The same input gives the same bytes.
        "svg.hashsalt": "gristmill",
    }
    with matplotlib.rc_context(settings):
        fig = Figure(figsize=(width, height), dpi=160, facecolor=colors.surface)
        yield fig, colors
        write_figure(fig, path)


def write_figure(fig: Figure, path: Path) -> None:
    """Writes the picture, whole or not at all."""
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else {}
    with whole_file(path) as partial:
        fig.savefig(partial, format=kind, metadata=metadata)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise Error(
            "pictures need matplotlib, which is not installed: pip install matplotlib "
            '(or gristmill with its extra, ".[lab]"); --html needs nothing'
        ) from None
    return matplotlib


def _draw(axes: Axes, panel: Panel, colors: Theme) -> None:
    spread = [v for p in panel.points for v in (p.low, p.high)]
    x_axis = linear_axis([p.x for p in panel.points], from_zero=False)
    y_axis = log_axis(spread) if panel.log_y else linear_axis(spread)
    axes.set_facecolor(colors.surface)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yscale("log" if panel.log_y else "linear")
    _set_axis(axes.xaxis, axes.set_xlim, x_axis)
    _set_axis(axes.yaxis, axes.set_ylim, y_axis)
    axes.minorticks_off()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=colors.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", pad=18)
    axes.text(
        0,
        1.02,
        f"filled: Pareto front; {panel.note}",
        transform=axes.transAxes,
        color=colors.muted,
        fontsize=8,
    )
    front = [panel.points[i] for i in panel.front]
    if len(front) > 1:
        axes.plot([p.x for p in front], [p.y for p in front], color=colors.front, linewidth=1.5, zorder=2)
    for i, p in enumerate(panel.points):
        color = colors.front if i in panel.front else colors.muted
        fill = color if i in panel.front else colors.surface
        axes.vlines(p.x, p.low, p.high, color=color, linewidth=1.2, zorder=2)
        axes.plot(
            p.x,
            p.y,
            "D" if p.kind == "base" else "o",
            color=fill,
            markeredgecolor=color,
            markeredgewidth=1.5,
            markersize=6.5,
            zorder=3,
        )
    _label(axes, panel)


def _set_axis(axis: Any, set_limits: Any, scale: Axis) -> None:
    set_limits(scale.low, scale.high)
    axis.set_ticks(list(scale.ticks), [tick_text(tick) for tick in scale.ticks])


def _label(axes: Axes, panel: Panel) -> None:
    """Names beside the points, placed in points of 1/72 inch from the top left of the figure's canvas."""
    fig: Any = axes.get_figure()
    fig.tight_layout(w_pad=2.5)
    scale = 72 / fig.dpi
    to_canvas = axes.transData.transform
    at = [(x * scale, -y * scale) for x, y in (to_canvas((p.x, p.y)) for p in panel.points)]
    box = axes.get_window_extent()
    within = (box.x0 * scale, -box.y1 * scale, box.x1 * scale, -box.y0 * scale)
    sizes = [(5.4 * len(p.name), 10.0) for p in panel.points]
    avoid = line_boxes([at[i] for i in panel.front], 1.5)
    for (x, _), p in zip(at, panel.points, strict=True):
        low, high = (-to_canvas((p.x, y))[1] * scale for y in (p.low, p.high))
        avoid.append((x - 1, high, x + 1, low))
    for point, (left, top), (x, y) in zip(
        panel.points, place_labels(at, sizes, within, 5.5, avoid), at, strict=True
    ):
        axes.annotate(
            point.name,
            (point.x, point.y),
            xytext=(left - x, y - top - 8.5),
            textcoords="offset points",
            annotation_clip=False,
        )
