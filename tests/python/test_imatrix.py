"""Importance matrices: the file format both ways, what is measured, and refusal of another model's."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import gguf
import gristmill
import numpy as np
import pytest
from gristmill.cli import main
from gristmill.errors import ArgumentError, Error, GGUFError
from gristmill.gguf import GGUFFile
from gristmill.gguf_writer import GGUFWriter, NewTensor, encode_value
from gristmill.imatrix import Channels, Imatrix
from gristmill.imatrix_measure import chunks_of, measure_imatrix
from gristmill.quantize_file import quantize_file
from oracle.build import Spec, build

SPEC = Spec(n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, formats="F32")
TEXT = "the other and then in the end of you " * 60


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("imatrix") / "model.gguf", SPEC)


@pytest.fixture(scope="module")
def measured(model_path: Path) -> Imatrix:
    return measure_imatrix(model_path, TEXT, chunk_size=32, n_chunks=3, dataset="the text")


def test_what_is_measured_is_the_mean_square_of_inputs(model_path: Path, measured: Imatrix) -> None:
    """The first layer's inputs are the normed embeddings, which are computed here."""
    model = gristmill.load(model_path, n_ctx=64)
    chunks = chunks_of(model, TEXT, 32)[:3]
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(model_path).tensors}
    x = np.concatenate([tensors["token_embd.weight"][list(chunk)] for chunk in chunks]).astype(np.float64)
    normed = x / np.sqrt((x**2).mean(1, keepdims=True) + SPEC.rms_eps) * tensors["blk.0.attn_norm.weight"]
    for part in ("attn_q", "attn_k", "attn_v"):
        entry = measured.entries[f"blk.0.{part}.weight"]
        assert entry.counts.tolist() == [96.0]
        np.testing.assert_allclose(entry.mean(), (normed**2).mean(0), rtol=1e-5)
    assert len(measured.entries) == 7 * SPEC.n_layer  # not the output matrix


def test_observing_changes_no_logits_and_reaches_the_output_matrix(model_path: Path) -> None:
    plain = gristmill.load(model_path, n_ctx=64)
    observed = gristmill.load(model_path, n_ctx=64)
    ids = list(range(20, 52))
    expected = plain.session().forward(ids, all_logits=True)
    assert plain.engine.input_squares() == []
    imatrix = measure_imatrix(observed, TEXT, chunk_size=32, n_chunks=1, process_output=True)
    assert np.array_equal(observed.session().forward(ids, all_logits=True), expected)
    assert "output.weight" in imatrix.entries
    assert imatrix.entries["output.weight"].counts.tolist() == [32.0]


def test_file_both_ways(measured: Imatrix, tmp_path: Path) -> None:
    measured.save(tmp_path / "im.gguf")
    again = Imatrix.load(tmp_path / "im.gguf")
    assert (again.datasets, again.n_chunks, again.chunk_size) == (("the text",), 3, 32)
    assert list(again.entries) == list(measured.entries)
    for name, entry in measured.entries.items():
        assert np.array_equal(again.entries[name].sums, entry.sums)
        assert np.array_equal(again.entries[name].counts, entry.counts)


def test_the_format_is_llama_cpps(measured: Imatrix, tmp_path: Path) -> None:
    """Names, types and shapes as tools/imatrix/imatrix.cpp writes them, by the gguf package's reader."""
    measured.save(tmp_path / "im.gguf")
    reader = gguf.GGUFReader(tmp_path / "im.gguf")
    values = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert values == {
        "general.type": "imatrix", "imatrix.datasets": ["the text"], "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 32,
    }  # fmt: skip
    assert reader.fields["imatrix.chunk_count"].types == [gguf.GGUFValueType.UINT32]
    shapes = {t.name: (t.tensor_type.name, t.shape.tolist()) for t in reader.tensors}
    assert shapes["blk.1.ffn_down.weight.in_sum2"] == ("F32", [512, 1])
    assert shapes["blk.1.ffn_down.weight.counts"] == ("F32", [1, 1])


def test_reads_a_file_written_by_the_gguf_package(tmp_path: Path) -> None:
    """With two experts, one of which no token has reached."""
    writer = gguf.GGUFWriter(tmp_path / "im.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a", "b"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.x.weight.in_sum2", np.array([[2, 4, 8], [0, 0, 0]], np.float32))
    writer.add_tensor("blk.0.x.weight.counts", np.array([[2], [0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    imatrix = Imatrix.load(tmp_path / "im.gguf")
    assert imatrix.datasets == ("a", "b")
    assert imatrix.channels("blk.0.x.weight").tolist() == [1, 2, 4]
    assert imatrix.channels("blk.0.x.weight", 1).tolist() == [1, 1, 1]
    assert imatrix.channels("blk.1.x.weight") is None


def test_quantizing_with_it(model_path: Path, measured: Imatrix, tmp_path: Path) -> None:
    """The error that counts falls, and the file says what it was made with, in llama.cpp's keys."""
    measured.save(tmp_path / "im.gguf")
    led = quantize_file(model_path, tmp_path / "led.gguf", "Q4_K_M", imatrix=tmp_path / "im.gguf").targets[0]
    blind = quantize_file(model_path, tmp_path / "blind.gguf", "Q4_K_M").targets[0]
    metadata = gguf.GGUFReader(led).fields
    assert metadata["quantize.imatrix.file"].contents() == str(tmp_path / "im.gguf")
    assert metadata["quantize.imatrix.dataset"].contents() == "the text"
    assert metadata["quantize.imatrix.entries_count"].contents() == 14
    assert metadata["quantize.imatrix.chunks_count"].contents() == 3
    x = {t.name: np.array(t.data) for t in gguf.GGUFReader(model_path).tensors}
    errors = {}
    for path in (led, blind):
        packed = {t.name: t for t in gguf.GGUFReader(path).tensors}
        tensors = {
            name: gguf.quants.dequantize(packed[name].data, packed[name].tensor_type)
            for name in measured.entries
        }
        errors[path] = sum(
            float(((tensors[n] - x[n]).astype(np.float64) ** 2 @ e.mean()).sum())
            for n, e in measured.entries.items()
        )
    assert errors[led] < errors[blind]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_ff": 768}, r"'blk\.0\.ffn_down\.weight' has 768 channels there and 512 here"),
        ({"n_layer": 1}, r"it has 'blk\.1\.attn_k\.weight', which the model lacks"),
        ({"n_layer": 3}, "it has nothing for layer 2"),
    ],
)
def test_an_imatrix_of_another_model_is_refused(
    measured: Imatrix,
    tmp_path: Path,
    change: dict[str, int],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = build(tmp_path / "other.gguf", dataclasses.replace(SPEC, **change))
    path = tmp_path / "im.gguf"
    measured.save(path)
    with pytest.raises(GGUFError, match=rf"im\.gguf: is the importance matrix of another model .*{message}"):
        quantize_file(other, tmp_path / "out.gguf", "Q4_K_M", imatrix=path)
    assert main(["quantize", "--imatrix", str(path), str(other), str(tmp_path / "out.gguf"), "Q4_0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.gguf").exists()


def test_a_matrix_without_entry_is_warned_of(model_path: Path, measured: Imatrix, tmp_path: Path) -> None:
    entries = {name: entry for name, entry in measured.entries.items() if name != "blk.1.attn_q.weight"}
    with pytest.warns(
        gristmill.GristmillWarning, match=r"no importances for 1 matrices, 'blk\.1\.attn_q\.weight'"
    ):
        quantize_file(
            model_path, tmp_path / "out.gguf", "Q8_0", imatrix=dataclasses.replace(measured, entries=entries)
        )


def _write(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    new = [NewTensor(name, x.shape, "F32") for name, x in tensors.items()]
    with GGUFWriter(path, {"general.type": encode_value("string", kind)}, new) as writer:
        for name, x in tensors.items():
            writer.write_at(writer.offsets[name], x.astype(np.float32).tobytes())
        writer.commit()
    return path


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        ({"a.in_sum2": np.ones((1, 4)), "a.counts": np.ones((1, 1))}, "model", "is no importance matrix"),
        ({"a.in_sum2": np.ones((1, 4))}, "imatrix", "'a' has sums but no counts"),
        (
            {"a.in_sum2": np.full((1, 4), np.nan), "a.counts": np.ones((1, 1))},
            "imatrix",
            "sums of 'a' are not all",
        ),
        (
            {"a.in_sum2": np.ones((1, 4)), "a.counts": np.full((1, 1), -1.0)},
            "imatrix",
            "counts of 'a' are not all",
        ),
        (
            {"a.in_sum2": np.ones((3, 4)), "a.counts": np.ones((2, 1))},
            "imatrix",
            "sums of 3 matrices, but counts of 2",
        ),
        ({"b.other": np.ones((1, 4))}, "imatrix", "'b.other' does not belong"),
    ],
)
def test_broken_files(tmp_path: Path, tensors: dict[str, np.ndarray], kind: str, message: str) -> None:
    path = _write(tmp_path / "im.gguf", tensors, kind)
    with pytest.raises(GGUFError, match=message) as error:
        Imatrix.load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_truncated_file(measured: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "im.gguf"
    measured.save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(GGUFError, match="truncated"):
        Imatrix.load(path)


def test_texts_and_chunks_that_do_not_do(model_path: Path) -> None:
    with pytest.raises(Error, match=r"the text: has \d+ tokens of model\.gguf, too few for one chunk of 64"):
        measure_imatrix(model_path, "the", chunk_size=64)
    with pytest.raises(ArgumentError, match="at least one token"):
        measure_imatrix(model_path, TEXT, chunk_size=0)


def test_chunks_begin_with_bos_where_the_model_wants_one(model_path: Path) -> None:
    model = gristmill.load(model_path, n_ctx=64, overrides={"tokenizer.ggml.add_bos_token": True})
    chunks = chunks_of(model, TEXT, 16)
    assert len(chunks) > 2 and {len(chunk) for chunk in chunks} == {16}
    assert {chunk[0] for chunk in chunks} == {model.tokenizer.bos_id}
    ids = model.tokenizer.encode(TEXT)
    assert list(chunks[1][1:]) == ids[17:32]


def test_command_line(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "im.gguf"
    text.write_text(TEXT)
    words = ["imatrix", "-m", str(model_path), "-f", str(text), "-o", str(out), "-c", "32", "--chunks", "2"]
    assert main(words) == 0
    assert capsys.readouterr().err == f"[{out}: 14 matrices over 2 chunks of 32 tokens]\n"
    assert Imatrix.load(out).datasets == (str(text),)
    assert main(["imatrix", "-m", str(model_path)]) == 2
    assert "no text is given" in capsys.readouterr().err
    text.write_text("a")
    assert main([*words[:5], "-o", str(tmp_path / "no.gguf")]) == 1
    assert "text.txt: has" in capsys.readouterr().err
    assert not (tmp_path / "no.gguf").exists()


def test_an_entry_of_an_expert_reaches_its_own_rows(tmp_path: Path) -> None:
    """A tensor of two matrices: each is quantized by its own channels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 64)).astype(np.float32)
    path = tmp_path / "in.gguf"
    metadata = {"general.architecture": encode_value("string", "x")}
    with GGUFWriter(path, metadata, [NewTensor("blk.0.ffn_down_exps.weight", x.shape, "F32")]) as writer:
        writer.write_at(writer.offsets["blk.0.ffn_down_exps.weight"], x.tobytes())
        writer.commit()
    h = (rng.random((2, 64)) ** 4).astype(np.float32)
    imatrix = Imatrix({"blk.0.ffn_down_exps.weight": Channels(h, np.ones(2, np.float32))})
    out = quantize_file(path, tmp_path / "out.gguf", "Q4_0", imatrix=imatrix, pure=True).targets[0]
    with GGUFFile.open(out) as file:
        tensor = file.tensors["blk.0.ffn_down_exps.weight"]
        data = out.read_bytes()[tensor.offset : tensor.end]
    assert data == b"".join(gristmill.quantize(x[e], "Q4_0", h[e]).tobytes() for e in range(2))
    assert struct.unpack_from("<e", data)[0] != 0
