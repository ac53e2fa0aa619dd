"""Pictures: axes that hold their data, labels that find room, files that are whole, in both themes."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from gristmill import ArgumentError, lab
from gristmill.lab.activations import LayerError
from gristmill.lab.analysis import AnalyzeResult, Outlier
from gristmill.lab.chart import Panel, Point, linear_axis, log_axis, panels, place_labels, tick_text
from gristmill.lab.comparison import CompareResult, ModelRow, Settings
from gristmill.lab.divergences import DivergenceResult
from gristmill.lab.score import PerplexityResult
from gristmill.lab.svg import panel_svg
from gristmill.lab.weights import TensorError
from hypothesis import given
from hypothesis import strategies as st

numbers = st.floats(1e-6, 1e6)


def made_up(n: int = 5, *, speeds: bool = True) -> CompareResult:
    """A comparison with round numbers: model i is i files smaller, ten times further off, and faster."""
    scores = PerplexityResult("m", 8, 8, np.ones((1, 3)))

    def row(i: int) -> ModelRow:
        return ModelRow(
            name=f"Q{i}", path=f"Q{i}.gguf", format=f"Q{i}", file_bytes=(10 - i) * 10**8,
            bits_per_weight=16 - i, memory_bytes=10**9, load_seconds=0.1, prefill_tps=100.0,
            decode_tps=10.0 + i, perplexity=10.0,
            perplexity_stderr=0.1, mean_kl=10.0 ** (i - 6) if i else 0.0, mean_kl_stderr=10.0 ** (i - 7),
            p99_kl=1.0, max_kl=2.0, top1_agreement=0.9, greedy_loop_rate=None, sampled_loop_rate=None,
        )  # fmt: skip

    timed = tuple(
        lab.SpeedResult(f"Q{i}", 1, 1, (0.1,), (100.0,), (9.0 + i, 10.0 + i, 12.0 + i)) for i in range(n)
    )
    settings = Settings("text", "", 8, 1, 3, 4096, 1, 1, 3, 0, 0, 1, 2, "avx2")
    rows = tuple(row(i) for i in range(n))
    divergences = tuple(
        DivergenceResult("Q0", scores, np.ones((1, 3)), np.ones((1, 3), bool)) for _ in rows[1:]
    )
    return CompareResult(rows, settings, scores, divergences, timed if speeds else (), ())


def test_panels_show_the_rows() -> None:
    divergence, speed = panels(made_up())
    assert [(p.name, p.x) for p in divergence.points] == [
        ("Q1", 0.9),
        ("Q2", 0.8),
        ("Q3", 0.7),
        ("Q4", 0.6),
    ]
    assert [p.y for p in divergence.points] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    assert divergence.front == (3, 2, 1, 0)
    assert [(p.y, p.low, p.high) for p in speed.points][:2] == [(10.0, 9.0, 12.0), (11.0, 10.0, 13.0)]
    assert speed.points[0].kind == "base"
    assert speed.front == (4,)
    assert [len(panels(made_up(speeds=False))), speed.y_label] == [1, "decoding, tokens/s, 2 threads"]


def test_a_copy_of_the_base_is_not_on_a_logarithm() -> None:
    result = made_up(2)
    same = dataclasses.replace(result.rows[1], mean_kl=0.0)
    drawn = panels(dataclasses.replace(result, rows=(result.rows[0], same)))
    assert [panel.title for panel in drawn] == ["Speed against size"]


@given(st.lists(numbers, min_size=1, max_size=8), st.booleans())
def test_axes_hold_their_values(values: list[float], from_zero: bool) -> None:
    for axis in (linear_axis(values, from_zero=from_zero), log_axis(values)):
        assert all(0 <= axis.place(v) <= 1 for v in values)
        assert all(axis.low <= t <= axis.high * (1 + 1e-9) for t in axis.ticks)
        assert len(axis.ticks) <= 14
        assert list(axis.ticks) == sorted(set(axis.ticks))
        texts = [tick_text(t) for t in axis.ticks]
        assert len(set(texts)) == len(texts) or max(values) - min(values) < 1e-4 * max(values)
    assert linear_axis(values).low == 0


def test_ticks_are_round() -> None:
    assert linear_axis([0.0, 100.0]).ticks == (0, 25, 50, 75, 100)
    assert log_axis([0.001, 0.5]).ticks == pytest.approx((0.001, 0.01, 0.1))
    assert log_axis([0.01, 0.5]).ticks == pytest.approx((0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
    assert [tick_text(v) for v in (0.0, 0.001, 1e-6, 20.0)] == ["0", "0.001", "1e-6", "20"]


def test_labels_keep_clear_where_there_is_room() -> None:
    at = [(50.0, 50.0), (58.0, 52.0), (95.0, 50.0), (5.0, 95.0)]
    sizes = [(20.0, 8.0)] * 4
    placed = place_labels(at, sizes, (0, 0, 100, 100), 4)
    boxes = [(x, y, x + 20, y + 8) for x, y in placed]
    for i, a in enumerate(boxes):
        assert min(a[0], a[1]) >= 0
        assert max(a[2], a[3]) <= 100
        assert not any(a[0] < x < a[2] and a[1] < y < a[3] for x, y in at)
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_svg_is_well_formed_and_names_every_point() -> None:
    for panel in panels(made_up()):
        root = ET.fromstring(panel_svg(panel))
        texts = ["".join(t.itertext()) for t in root.iter("text")]
        assert {p.name for p in panel.points} <= set(texts)
        assert {panel.title, panel.x_label, panel.y_label} <= set(texts)
        width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
        for circle in root.iter("circle"):
            assert 0 < float(circle.attrib["cx"]) < width
            assert 0 < float(circle.attrib["cy"]) < height


def test_svg_escapes_names() -> None:
    panel = Panel("<t>", "x & y", "y", False, (Point("<b>&", 1.0, 1.0, 1.0, 1.0),), (0,), "")
    assert "<b>&" in [t.text for t in ET.fromstring(panel_svg(panel)).iter("text")]


def analysis() -> AnalyzeResult:
    def tensor(layer: int | None, kind: str, error: float) -> TensorError:
        name = f"{kind}.weight" if layer is None else f"blk.{layer}.{kind}.weight"
        return TensorError(name, layer, kind, (8, 8), "F16", "Q4_0", 4.5, error, 1.0, 0, 0)

    tensors = [tensor(i, kind, 0.01 * (i + 1)) for i in range(40) for kind in ("attn_q", "ffn_down")]
    layers = tuple(LayerError(i, 0.01 * (i + 2), 0.02, 0.5) for i in range(-1, 40))
    outliers = (
        Outlier("blk.39.attn_q.weight", "weights", 0.4, 0.2, "matrices in Q4_0"),
        Outlier("blk.7", "activations", 0.02, 0.01, "layers"),
    )
    return AnalyzeResult("a", "b", (tensor(None, "output", 0.1), *tensors), layers, outliers, 8, 1)


def pixels(path: Path) -> np.ndarray:
    """uint8 [height, width, 4]"""
    from matplotlib.image import imread

    return (imread(path) * 255).round().astype(np.uint8)


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install '.[lab]'")


@pytest.mark.usefixtures("matplotlib")
def test_png_in_both_themes(tmp_path: Path) -> None:
    assert lab.plot_comparison(made_up(), tmp_path / "a.png", "both") == [
        tmp_path / "a.png", tmp_path / "a-dark.png",
    ]  # fmt: skip
    written = lab.plot_analysis(analysis(), tmp_path / "new" / "folder", "both")
    assert [p.name for p in written] == [
        "weights.png", "weights-dark.png", "activations.png", "activations-dark.png",
    ]  # fmt: skip
    for path in (tmp_path / "a.png", tmp_path / "a-dark.png", *written):
        image = pixels(path)
        assert min(image.shape[:2]) > 300
        corner = image[0, 0, :3].tolist()
        assert corner == ([0x14, 0x17, 0x1B] if "-dark" in path.name else [255, 255, 255])
        # Something was drawn, and stands out from the ground by lightness alone.
        gray = image[..., :3].astype(float) @ [0.2126, 0.7152, 0.0722]
        assert np.abs(gray - gray[0, 0]).max() > 100
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.usefixtures("matplotlib")
def test_pictures_repeat_themselves(tmp_path: Path) -> None:
    for suffix in (".svg", ".png"):
        for name in ("one", "two"):
            lab.plot_comparison(made_up(), tmp_path / (name + suffix))
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    texts = [
        "".join(t.itertext()) for t in ET.parse(tmp_path / "one.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"Q1", "Q4", "Divergence against size", "file size, GB"} <= set(texts)


@pytest.mark.usefixtures("matplotlib")
def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"a\.txt: a picture's name ends in \.png, \.svg, \.pdf"):
        lab.plot_comparison(made_up(), tmp_path / "a.txt")
    with pytest.raises(ArgumentError, match="theme 'blue', expected one of light, dark, both"):
        lab.plot_comparison(made_up(), tmp_path / "a.png", "blue")
    with pytest.raises(OSError, match="No such file"):
        lab.plot_comparison(made_up(), tmp_path / "none" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_colors_are_told_apart_by_lightness() -> None:
    """For those who see no hues: WCAG's contrast against the ground, 3 to 1 for marks, 4.5 for text."""
    from gristmill.lab.plot import _THEMES

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for theme in _THEMES.values():
        assert contrast(theme.ink, theme.surface) > 7
        assert contrast(theme.muted, theme.surface) > 4.5
        assert contrast(theme.front, theme.surface) > 3
    assert not math.isclose(luminance(_THEMES["light"].surface), luminance(_THEMES["dark"].surface))
