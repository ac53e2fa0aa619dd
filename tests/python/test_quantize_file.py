"""quantize_file and its command: what is kept, what is converted, and that no failure leaves anything
behind.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import gristmill
import numpy as np
import pytest
from gristmill import quants
from gristmill.cli import main
from gristmill.errors import ArgumentError, GGUFError, UnsupportedModelError
from gristmill.gguf import GGUFFile
from gristmill.gguf_writer import GGUFWriter, NewTensor, encode_value
from gristmill.quantize_file import quantize_file
from oracle.build import Spec, build

SPEC = Spec(n_layer=3, n_embd=256, n_ff=512, n_head=4, n_head_kv=1, formats="F16")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = dataclasses.replace(
        SPEC,
        metadata={
            "general.name": "tiny \N{SNOWMAN}",
            "general.file_type": 1,
            "test.list": [1.5, 2.5],
            "test.flag": True,
        },
    )
    return build(tmp_path_factory.mktemp("quantize") / "f16.gguf", spec)


def read(path: Path) -> dict[str, np.ndarray]:
    """Tensors as float32, by another reader."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type) if t.tensor_type != 0 else np.array(t.data)
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("mix", ["Q8_0", "Q4_0", "Q4_K_M", "Q2_K", "IQ4_XS", "BF16", "F32"])
def test_tensors_are_the_quantizers_and_metadata_is_kept(source: Path, tmp_path: Path, mix: str) -> None:
    report = quantize_file(source, tmp_path / "out.gguf", mix, n_threads=2)
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(report.targets[0])
    changed = {"general.file_type", "general.quantization_version"}
    kept = {
        k: (f.types, f.contents())
        for k, f in before.fields.items()
        if not k.startswith("GGUF.") and k not in changed
    }
    assert kept == {
        k: (f.types, f.contents())
        for k, f in after.fields.items()
        if not k.startswith("GGUF.") and k not in changed
    }
    assert after.fields["general.quantization_version"].contents() == 2
    assert after.fields["general.file_type"].contents() == int(
        gguf.LlamaFileType.ALL_F32 if mix == "F32" else gguf.LlamaFileType[f"MOSTLY_{mix}"]
    )
    originals = {t.name: t for t in before.tensors}
    for tensor, told in zip(after.tensors, report.tensors, strict=True):
        assert (tensor.name, tensor.tensor_type.name, tensor.n_bytes) == (told.name, told.type, told.n_bytes)
        original = originals[tensor.name]
        if told.reason == "kept":
            assert tensor.data.tobytes() == original.data.tobytes()
        else:
            assert tensor.data.tobytes() == quants.quantize(original.data, told.type).tobytes()
    assert report.n_bytes == report.targets[0].stat().st_size
    model = gristmill.load(report.targets[0])
    assert np.isfinite(model.session().forward([1, 2, 3])).all()


def test_the_result_depends_on_neither_threads_nor_pieces(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize_file(source, tmp_path / "one.gguf", "Q4_K_M", n_threads=1)
    monkeypatch.setattr("gristmill.quantize_file._PIECE_BYTES", 5000)
    calls: list[tuple[str, int, int]] = []
    quantize_file(
        source, tmp_path / "three.gguf", "Q4_K_M", n_threads=3, progress=lambda *call: calls.append(call)
    )
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "three.gguf").read_bytes()
    done = [call[1] for call in calls]
    assert done == sorted(done) and done[-1] == calls[-1][2] and len(calls) > 100


@pytest.mark.parametrize("start", ["F32", "BF16"])
def test_other_float_sources(tmp_path: Path, start: str) -> None:
    path = build(tmp_path / "in.gguf", dataclasses.replace(SPEC, n_layer=1, formats=start))
    report = quantize_file(path, tmp_path / "out.gguf", "Q6_K")
    before, after = read(path), read(report.targets[0])
    for name, x in before.items():
        assert np.abs(after[name] - x).max() <= np.abs(x).max() / 20, name


def test_requantizing_is_asked_for(source: Path, tmp_path: Path) -> None:
    first = quantize_file(source, tmp_path / "q8.gguf", "Q8_0").targets[0]
    with pytest.raises(UnsupportedModelError, match=r"q8\.gguf: tensor '.*' is already quantized \(Q8_0\)"):
        quantize_file(first, tmp_path / "out.gguf", "Q4_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q8.gguf"]
    report = quantize_file(first, tmp_path / "out.gguf", "Q4_0", requantize=True)
    assert {t.type for t in report.tensors if t.reason == "mix"} == {"Q4_0", "Q6_K"}
    same = quantize_file(first, tmp_path / "same.gguf", "Q8_0")  # nothing to convert
    assert same.n_bytes == first.stat().st_size


def test_tensor_types(source: Path, tmp_path: Path) -> None:
    report = quantize_file(
        source, tmp_path / "out.gguf", "Q4_0", tensor_types=[r"blk\.1\..*ffn=q6_K", ("ffn_down", "Q5_0")],
        output_type="Q8_0", embedding_type="Q5_1",
    )  # fmt: skip
    types = {t.name: (t.type, t.reason) for t in report.tensors}
    assert types["blk.1.ffn_down.weight"] == types["blk.1.ffn_up.weight"] == ("Q6_K", "override")
    assert types["blk.0.ffn_down.weight"] == ("Q5_0", "override")
    assert types["blk.0.attn_q.weight"] == ("Q4_0", "mix")
    assert types["output.weight"][0] == "Q8_0" and types["token_embd.weight"][0] == "Q5_1"
    left = quantize_file(source, tmp_path / "left.gguf", "Q4_0", leave_output=True, pure=True)
    assert {t.name: t.type for t in left.tensors}["output.weight"] == "F16"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("attn_q", "expected PATTERN=TYPE"),
        ("=Q4_0", "expected PATTERN=TYPE"),
        ("attn_(=Q4_0", "is no regular expression"),
        ("attn_q=Q4_9", "unknown type 'Q4_9', did you mean"),
        ("nothing=Q4_0", "matches no tensor"),
    ],
)
def test_bad_tensor_types(source: Path, tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        quantize_file(source, tmp_path / "out.gguf", "Q4_0", tensor_types=[given])
    assert not list(tmp_path.iterdir())


def test_a_type_that_cannot_hold_the_rows(tmp_path: Path) -> None:
    path = build(tmp_path / "in.gguf", dataclasses.replace(SPEC, n_embd=288, n_ff=544, n_layer=1))
    with pytest.raises(
        ArgumentError,
        match=r"tensor 'blk\.0\.attn_k\.weight' has rows of 288 weights, which Q4_K cannot hold",
    ):
        quantize_file(path, tmp_path / "out.gguf", "Q8_0", tensor_types=["attn_k=Q4_K"])
    report = quantize_file(path, tmp_path / "out.gguf", "Q4_K_M")  # a mix has a way out
    types = {t.name.split(".")[-2]: (t.type, t.reason) for t in report.tensors}
    assert types["attn_k"] == ("Q5_0", "fallback") and types["output"] == ("Q8_0", "mix")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_weights_are_named(tmp_path: Path, value: float) -> None:
    path = build(tmp_path / "in.gguf", dataclasses.replace(SPEC, n_layer=1))
    with GGUFFile.open(path) as file:
        tensor = file.tensors["blk.0.ffn_down.weight"]
    with path.open("r+b") as raw:
        raw.seek(tensor.offset + 2 * (512 * 200 + 77))
        raw.write(np.float16(value).tobytes())
    out = tmp_path / "out.gguf"
    with pytest.raises(GGUFError, match=rf"'blk\.0\.ffn_down\.weight' holds {value} at row 200, column 77$"):
        quantize_file(path, out, "Q4_K_M")
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]


def test_overflow_is_told(tmp_path: Path) -> None:
    path = build(tmp_path / "in.gguf", dataclasses.replace(SPEC, n_layer=1, formats="F32"))
    with GGUFFile.open(path) as file:
        tensor = file.tensors["blk.0.ffn_down.weight"]
    with path.open("r+b") as raw:
        raw.seek(tensor.offset)
        raw.write(np.array([1e6, -1e6], np.float32).tobytes())
    with pytest.warns(gristmill.GristmillWarning, match="2 finite weights became infinite"):
        quantize_file(path, tmp_path / "out.gguf", "F16")


def test_the_source_is_never_written_to(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(GGUFError, match="is the file to read from"):
            quantize_file(source, target, "Q4_0")
    assert source.read_bytes() == before


def test_split_out_and_in(source: Path, tmp_path: Path) -> None:
    whole = quantize_file(source, tmp_path / "whole.gguf", "Q4_K_M")
    parts = quantize_file(source, tmp_path / "parts.gguf", "Q4_K_M", split_max_bytes=200_000)
    n = len(parts.targets)
    assert n > 2 and parts.targets[0].name == f"parts-00001-of-{n:05}.gguf"
    assert not (tmp_path / "parts.gguf").exists()
    assert parts.n_bytes == sum(p.stat().st_size for p in parts.targets)
    with GGUFFile.open(parts.targets[1]) as file:
        assert len(file.tensors) == len(whole.tensors)
        assert file.metadata["general.name"] == "tiny \N{SNOWMAN}"
    joined = quantize_file(parts.targets[0], tmp_path / "joined.gguf", "Q4_K_M")
    assert joined.targets[0].read_bytes() == whole.targets[0].read_bytes()
    one = quantize_file(source, tmp_path / "one.gguf", "Q4_K_M", split_max_bytes=10**9)
    assert one.targets == (tmp_path / "one.gguf",)


def test_alignment_is_kept(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    metadata = {
        "general.architecture": encode_value("string", "x"),
        "general.alignment": encode_value("uint32", 256),
    }
    with GGUFWriter(
        tmp_path / "in.gguf", metadata, [NewTensor("a.weight", (3, 64), "F32")] * 1, 256
    ) as writer:
        writer.write_at(writer.offsets["a.weight"], x.tobytes())
        writer.commit()
    report = quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
    with GGUFFile.open(report.targets[0]) as file:
        assert file.alignment == 256 and file.tensors["a.weight"].offset % 256 == 0


def test_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    told = quantize_file(source, tmp_path / "out.gguf", "Q4_K_M", dry_run=True)
    assert not list(tmp_path.iterdir())
    done = quantize_file(source, tmp_path / "out.gguf", "Q4_K_M")
    assert told.tensors == done.tensors and told.bits_per_weight == done.bits_per_weight


def test_a_full_disk_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full at once, where room can be reserved, and full in the middle, where it cannot."""

    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def cannot(*_args: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    target = tmp_path / "out.gguf"
    target.write_bytes(b"an older file")
    calls = 0

    def write(fd: int, data: memoryview, offset: int) -> int:
        nonlocal calls
        calls += 1
        return full() if calls > 5 else real(fd, data, offset)

    real = os.pwrite
    for reserve, put in ((full, real), (cannot, write)):
        monkeypatch.setattr(os, "posix_fallocate", reserve)
        monkeypatch.setattr(os, "pwrite", put)
        assert main(["quantize", str(source), str(target), "Q4_0"]) == 1
        assert capsys.readouterr().err == f"gristmill: error: {target}: No space left on device\n"
        assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]
        assert target.read_bytes() == b"an older file"
    assert calls > 5


@pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_FSIZE stands in for a real full disk on Linux only"
)
def test_a_disk_that_is_really_full(source: Path, tmp_path: Path) -> None:
    code = "import sys; from gristmill.cli import main; sys.exit(main(sys.argv[1:]))"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-c", code, "quantize", str(source), str(tmp_path / "out.gguf"), "Q8_0"],
        capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert (
        done.returncode == 1 and done.stderr == f"gristmill: error: {tmp_path / 'out.gguf'}: File too large\n"
    )
    assert not list(tmp_path.iterdir())


def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    path = build(tmp_path / "in.gguf", dataclasses.replace(SPEC, n_embd=512, n_ff=2048, n_vocab=8192))
    out = tmp_path / "out"
    out.mkdir()
    command = [
        sys.executable,
        "-m",
        "gristmill",
        "quantize",
        str(path),
        str(out / "out.gguf"),
        "Q2_K",
        "-t",
        "1",
    ]
    interrupted = 0
    started = time.monotonic()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    whole = time.monotonic() - started
    (out / "out.gguf").unlink()
    for step in range(6):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(whole * (step + 1) / 7)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        names = [p.name for p in out.iterdir()]
        if process.returncode == 0:
            assert names == ["out.gguf"]
            (out / "out.gguf").unlink()
            continue
        if process.returncode == 130:
            interrupted += 1
            assert err in ("", "[interrupted]\n")  # nothing where Python was starting still
        assert names == [], (process.returncode, err)
    assert interrupted > 0


def test_a_missing_folder_and_a_folder_as_target(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        quantize_file(source, tmp_path / "no" / "out.gguf", "Q4_0")
    assert missing.value.filename == str(tmp_path / "no" / "out.gguf")
    with pytest.raises(ArgumentError, match="is a directory"):
        quantize_file(source, tmp_path, "Q4_0")


def test_a_source_that_is_cut_while_it_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_args: 0)
    with pytest.raises(GGUFError, match="became shorter while it was read"):
        quantize_file(source, tmp_path / "out.gguf", "Q4_0")
    assert not list(tmp_path.iterdir())


def test_unreadable_formats_are_named(tmp_path: Path) -> None:
    metadata = {"general.architecture": encode_value("string", "x")}
    with GGUFWriter(tmp_path / "in.gguf", metadata, [NewTensor("a.weight", (2, 256), "IQ2_XS")]) as writer:
        writer.commit()
    with pytest.raises(UnsupportedModelError, match=r"'a\.weight' is in IQ2_XS, which cannot be converted"):
        quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0", requantize=True)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """The peak of a process that quantizes a file of 200 MB is little above that of one of 1 MB."""
    code = (
        "import sys, resource; from gristmill.quantize_file import quantize_file\n"
        "quantize_file(sys.argv[1], sys.argv[2], 'Q8_0', n_threads=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for n_rows in (512, 102_400):
        path = tmp_path / f"{n_rows}.gguf"
        tensors = [NewTensor("output.weight", (n_rows, 1024), "F16")]
        with GGUFWriter(path, {"general.architecture": encode_value("string", "x")}, tensors) as writer:
            writer.commit()
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), str(tmp_path / "out.gguf")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks  # MiB; the file has 200


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.gguf"
    assert main(["quantize", str(source), str(target), "q4_k_m", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["type"] == "Q4_K_M" and report["n_bytes"] == target.stat().st_size
    assert err.startswith(f"[{target}: ") and err.count("\n") == 1
    for words, status, message in (
        (["x.gguf", "y.gguf", "Q4_0"], 1, "x.gguf: no such file"),
        ([str(source), str(target)], 2, "a type is needed"),
        ([str(source), str(target), "Q4_7"], 2, "unknown type 'Q4_7', did you mean 'Q4_1'?"),
        ([str(source), str(target), "Q4_0", "--split-max-size", "12X"], 2, "'12X' is no size"),
    ):
        assert main(["quantize", *words]) == status
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_sizes() -> None:
    from gristmill.cli.quantize import size

    assert [size(t) for t in ("17.5GB", "500M", "2GiB", "1024", "1.5k")] == [
        17_500_000_000, 500_000_000, 2 << 30, 1024, 1500,
    ]  # fmt: skip
