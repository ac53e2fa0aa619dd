"""Analyses: weight errors against numpy, residual streams against the model's own logits, what stands out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import gristmill
import numpy as np
import pytest
from gristmill import ArgumentError, Error, GGUFError, lab
from gristmill.cli import main
from gristmill.lab.activations import LayerError, activation_errors
from gristmill.lab.analysis import layer_outliers, weight_outliers
from gristmill.lab.analysis_report import as_json, as_text
from gristmill.lab.weights import TensorError, split_name
from gristmill.quantize_file import quantize_file
from oracle.forward import rms_norm
from test_logits import TinyModel

PROSE = Path(__file__).parent / "data" / "prose.txt"
TEXT = PROSE.read_text(encoding="utf-8")[:400]


@pytest.fixture(scope="module")
def base(tiny_model: TinyModel) -> Path:
    return tiny_model(arch="llama", formats="F32", seed=3, n_layer=3)


@pytest.fixture(scope="module")
def quantized(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("analyze") / "q.gguf"
    quantize_file(base, path, "Q4_K_M", n_threads=1)
    return path


@pytest.fixture(scope="module")
def result(base: Path, quantized: Path) -> lab.AnalyzeResult:
    return lab.analyze(base, quantized, text=TEXT, n_ctx=32, n_windows=2, n_threads=1)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as float64, by the gguf package."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in tensors}


def test_weight_errors_are_numpys(result: lab.AnalyzeResult, base: Path, quantized: Path) -> None:
    mine, theirs = arrays(base), arrays(quantized)
    assert [t.name for t in result.tensors] == list(mine)
    for t in result.tensors:
        difference = np.abs(theirs[t.name] - mine[t.name])
        rms = np.sqrt((mine[t.name] ** 2).mean())
        assert t.relative_rmse == pytest.approx(np.sqrt((difference**2).mean()) / rms, rel=1e-9, abs=1e-15)
        assert t.max_error == pytest.approx(difference.max() / rms, rel=1e-9, abs=1e-15)
        if difference.max() > 0:
            assert np.atleast_2d(difference)[t.max_row, t.max_column] == difference.max()
    assert {t.format for t in result.tensors} >= {"F32", "Q4_K", "Q6_K"}
    assert next(t for t in result.tensors if t.name == "output_norm.weight").relative_rmse == 0.0


def test_heat_map_and_layers(result: lab.AnalyzeResult) -> None:
    assert set(result.kinds()) == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    }  # fmt: skip
    by_name = {t.name: t for t in result.tensors}
    grid = result.heat_map()
    assert grid.shape == (7, 3)
    for i, kind in enumerate(result.kinds()):
        assert grid[i].tolist() == [by_name[f"blk.{k}.{kind}.weight"].relative_rmse for k in range(3)]
    of_layer = [t for t in result.tensors if t.layer == 1 and len(t.shape) == 2]
    sizes = [np.prod(t.shape) for t in of_layer]
    expected = np.average([t.relative_rmse**2 for t in of_layer], weights=sizes) ** 0.5
    assert result.layer_weight_errors()[1] == pytest.approx(expected)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_residual_streams_begin_with_the_embedding_and_end_in_the_logits(
    tiny_model: TinyModel, arch: str
) -> None:
    path = tiny_model(arch=arch, formats="F32", n_layer=3, seed=5, rms_eps=1e-5)
    model = gristmill.load(path, n_ctx=32, n_threads=1, cache_type_k="f32", cache_type_v="f32")
    ids = np.arange(40, 60, dtype=np.int32)
    session = model.session()
    streams = np.concatenate([session.core.residuals(ids[:13]), session.core.residuals(ids[13:])], axis=1)
    weights = arrays(path)
    assert streams.shape == (4, 20, 256)
    np.testing.assert_array_equal(streams[0], weights["token_embd.weight"][ids].astype(np.float32))
    last = rms_norm(streams[-1].astype(np.float64), weights["output_norm.weight"], 1e-5)
    logits = model.session().forward(ids, all_logits=True)
    np.testing.assert_allclose(last @ weights["output.weight"].T, logits, atol=2e-5 * np.abs(logits).max())
    assert session.n_past == 20
    assert np.abs(np.diff(streams, axis=0)).max(axis=(1, 2)).min() > 0


def test_asking_for_residuals_changes_no_bit(tiny_model: TinyModel) -> None:
    model = gristmill.load(tiny_model(formats="Q4_0", seed=3), n_ctx=64, n_threads=1)
    ids = np.arange(40, dtype=np.int32)
    plain, watched = model.session(), model.session()
    plain.forward(ids[:30])
    watched.core.residuals(ids[:30])
    assert plain.forward(ids[30:]).tobytes() == watched.core.forward(ids[30:], "last").tobytes()


def test_activation_errors_are_lengths_over_lengths(base: Path, quantized: Path) -> None:
    models = [gristmill.load(p, n_ctx=32, n_threads=1) for p in (base, quantized)]
    windows = lab.cut(models[0].tokenizer, TEXT, 32, 2)
    found = activation_errors(*models, windows)
    streams = [
        np.concatenate([m.session().core.residuals(w) for w in windows.ids], axis=1).astype(np.float64)
        for m in models
    ]
    norm = np.linalg.norm
    for k, layer in enumerate(found):
        mine, theirs = streams[0][k], streams[1][k]
        error = norm(theirs - mine, axis=1) / norm(mine, axis=1)
        assert layer.layer == k - 1
        assert layer.stream_error == pytest.approx(error.mean(), rel=1e-5)
        assert layer.worst_error == pytest.approx(error.max(), rel=1e-5)
        if k:
            grown, theirs_grown = mine - streams[0][k - 1], theirs - streams[1][k - 1]
            added = norm(theirs_grown - grown, axis=1) / norm(grown, axis=1)
            assert layer.added_error == pytest.approx(added.mean(), rel=1e-4)
    same = activation_errors(models[0], gristmill.load(base, n_ctx=32, n_threads=2), windows)
    assert all((e.stream_error, e.added_error, e.worst_error) == (0.0, 0.0, 0.0) for e in same)


def tensor(name: str, error: float, format: str = "Q4_K") -> TensorError:
    return TensorError(name, *split_name(name), (8, 8), "F16", format, 4.5, error, 1.0, 0, 0)


def test_outliers_stand_out_among_their_like() -> None:
    errors = [0.050, 0.051, 0.049, 0.052, 0.080, 0.048]
    tensors = [tensor(f"blk.{i}.attn_q.weight", e) for i, e in enumerate(errors)]
    # Coarser formats are no outliers, and neither is what is still good in absolute terms.
    tensors += [tensor(f"blk.{i}.ffn_up.weight", 0.1 + e / 100, "Q2_K") for i, e in enumerate(errors)]
    tensors += [tensor(f"blk.{i}.ffn_down.weight", e, "Q8_0") for i, e in enumerate([0.001] * 5 + [0.002])]
    (found,) = weight_outliers(tensors)
    assert (found.name, found.value, found.peers) == ("blk.4.attn_q.weight", 0.080, "matrices in Q4_K")
    assert found.median == pytest.approx(0.0505)
    layers = [LayerError(i, 0.1, 0.1 if i != 3 else 0.4, 1.0) for i in range(-1, 8)]
    assert [o.name for o in layer_outliers(layers)] == ["blk.3"]
    assert weight_outliers(tensors[:3]) == layer_outliers([]) == []


def test_names() -> None:
    assert split_name("blk.12.attn_q.weight") == (12, "attn_q")
    assert split_name("blk.0.attn_q.bias") == (0, "attn_q.bias")
    assert split_name("output.weight") == (None, "output")
    assert split_name("blk.x.weight") == (None, "blk.x")


def test_reports(result: lab.AnalyzeResult, base: Path, quantized: Path) -> None:
    document = json.loads(as_json(result))
    assert len(document["tensors"]) == len(result.tensors)
    assert document["layers"][0]["layer"] == -1
    text = as_text(result)
    assert text.count("\n| attn_q | ") == 1
    assert "\n| embedding | " in text
    assert "\n| 2 | " in text
    infinite = TensorError("a", None, "a", (2, 2), "F16", "Q4_0", 4.5, float("inf"), float("inf"), 0, 0)
    made = lab.AnalyzeResult("a", "b", (infinite,), (), (), 0, 0)
    assert json.loads(as_json(made))["tensors"][0]["relative_rmse"] is None
    assert "infinite" in as_text(made)


def test_weights_of_zeros(tmp_path: Path) -> None:
    """An error where there was nothing is infinite; no error is none."""
    for name, value in (("a", 0.0), ("b", 0.5)):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_tensor("w.weight", np.full((2, 32), value, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (error,) = lab.analyze(tmp_path / "a.gguf", tmp_path / "b.gguf").tensors
    assert (error.relative_rmse, error.max_error) == (float("inf"), float("inf"))


def test_command(base: Path, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install '.[lab]'")
    words = ["analyze", str(base), str(quantized), "-f", str(PROSE), "-c", "32", "--windows", "1", "-t", "1"]
    assert main([*words, "--plot", str(tmp_path / "pictures")]) == 0
    assert "| embedding | " in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["activations.png", "weights.png"]
    assert main(["analyze", str(base), str(quantized), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["layers"] == []
    assert captured.err == "[weights alone; --file TEXT measures activations too]\n"


def refused(words: Sequence[object], capsys: Any) -> tuple[int, str]:
    status = main(["analyze", *map(str, words)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return status, captured.err.removeprefix("gristmill: error: ").rstrip("\n")


def test_refused_in_one_line(
    base: Path, quantized: Path, tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("short")
    deeper = tiny_model(arch="llama", formats="F32", seed=3, n_layer=4)
    wider = tiny_model(arch="llama", formats="F32", seed=3, n_layer=3, n_ff=768)
    none = tmp_path / "none.gguf"
    assert refused([base], capsys) == (2, "two files are needed: gristmill analyze BASE.gguf MODEL.gguf")
    assert refused([base, base], capsys) == (2, f"{base}: is given twice")
    assert refused([base, none], capsys) == (1, f"{none}: no such file")
    assert refused([base, deeper], capsys)[1].startswith(f"{deeper}: has a tensor 'blk.3.attn_")
    assert refused([deeper, base], capsys)[1].startswith(f"{base}: has no tensor 'blk.3.attn_")
    assert refused([base, wider], capsys) == (
        1, f"{wider}: tensor 'blk.0.ffn_gate.weight' has shape [768, 256], but [512, 256] in {base.name}",
    )  # fmt: skip
    status, says = refused([base, quantized, "-f", tmp_path / "short.txt", "-c", "32"], capsys)
    assert (status, says.partition(": too short: ")[0]) == (1, str(tmp_path / "short.txt"))
    with pytest.raises(ArgumentError, match="is given twice"):
        lab.analyze(base, base)
    with pytest.raises(GGUFError, match="has no tensor"):
        lab.analyze(deeper, base)


def test_other_shapes_of_models(tiny_model: TinyModel) -> None:
    one, two = (gristmill.load(tiny_model(n_layer=n), n_ctx=32, n_threads=1) for n in (2, 3))
    with pytest.raises(Error, match=r"has 3 layers of width 256, but .* has 2 of width 256"):
        activation_errors(one, two, lab.cut(one.tokenizer, TEXT, 32, 1))
