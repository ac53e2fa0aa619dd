"""A panel as SVG that takes its colors from the page around it: the CSS variables ``--ink``, ``--muted``,
``--grid``, ``--front`` and ``--surface``. Nothing but the standard library is needed."""

from __future__ import annotations

from html import escape

from gristmill.lab.chart import Axis, Panel, line_boxes, linear_axis, log_axis, place_labels, tick_text

_WIDTH, _HEIGHT = 560, 400
_LEFT, _TOP, _RIGHT, _BOTTOM = 68, 40, 16, 52
_CHARACTER, _LINE = 7.0, 15.0  # of a label at 12 px


def panel_svg(panel: Panel) -> str:
    """An ``<svg>`` element of the panel."""
    x_axis = linear_axis([p.x for p in panel.points], from_zero=False)
    spread = [v for p in panel.points for v in (p.low, p.high)]
    y_axis = log_axis(spread) if panel.log_y else linear_axis(spread)
    at = [(_x(x_axis, p.x), _y(y_axis, p.y)) for p in panel.points]
    front = [at[i] for i in panel.front]
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title, quote=True)}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        _text(_LEFT, 20, panel.title, size=15, weight=600),
        *_grid(x_axis, y_axis),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, panel.x_label, anchor="middle"),
        f'<text transform="translate(16 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" text-anchor="middle" '
        f'fill="var(--ink)">{escape(panel.y_label)}</text>',
        _text(_WIDTH - _RIGHT, 20, f"filled: Pareto front; {panel.note}", anchor="end", color="muted"),
    ]
    if len(front) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--front)" stroke-width="2"/>')
    for i, point in enumerate(panel.points):
        x, y = at[i]
        color = "var(--front)" if i in panel.front else "var(--muted)"
        low, high = _y(y_axis, point.low), _y(y_axis, point.high)
        parts.append(
            f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" '
            f'stroke="{color}" stroke-width="1.5"/>'
        )
        parts.append(_mark(x, y, point.kind, color, filled=i in panel.front, title=_title(panel, i)))
    sizes = [(len(p.name) * _CHARACTER, _LINE) for p in panel.points]
    within = (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM)
    avoid = line_boxes(front, 2) + [
        (x - 1, _y(y_axis, p.high), x + 1, _y(y_axis, p.low))
        for (x, _), p in zip(at, panel.points, strict=True)
    ]
    corners = place_labels(at, sizes, within, 8, avoid)
    for point, (left, top) in zip(panel.points, corners, strict=True):
        parts.append(_text(left, top + 0.75 * _LINE, point.name))
    return "\n".join([*parts, "</svg>"])


def _title(panel: Panel, i: int) -> str:
    point = panel.points[i]
    front = ", on the Pareto front" if i in panel.front else ""
    return f"{point.name}: {panel.x_label} {point.x:.4g}; {panel.y_label} {point.y:.4g}{front}"


def _mark(x: float, y: float, kind: str, color: str, *, filled: bool, title: str) -> str:
    fill = color if filled else "var(--surface)"
    style = f'fill="{fill}" stroke="{color}" stroke-width="2"'
    if kind == "base":
        shape = f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" {style}>'
        return f"{shape}<title>{escape(title)}</title></path>"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {style}><title>{escape(title)}</title></circle>'


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(_text(_LEFT - 6, y + 4, tick_text(tick), anchor="end", color="muted"))
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(
            f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}" stroke="var(--muted)"/>'
        )
        parts.append(_text(x, bottom + 18, tick_text(tick), anchor="middle", color="muted"))
    parts.append(f'<line x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="var(--muted)"/>')
    return parts


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    color: str = "ink",
    size: int = 12,
    weight: int = 400,
) -> str:
    style = f'text-anchor="{anchor}" fill="var(--{color})" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)
