"""``bench --kernels``: every format and kernel, rates counted by hand, shares of the best limits."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from gristmill import ArgumentError, _core, bench_kernels
from gristmill.bench_kernels import KernelResult, as_csv, as_json, as_markdown, at_best_limits
from gristmill.bench_kernels import bench_kernels as measure
from gristmill.cli import main
from gristmill.limits import Limits
from gristmill.quants import formats

LIMITS = Limits(
    "scalar", 1, read_gb_s=10.0, int8_gop_s=400.0, float32_gop_s=50.0, bfloat16_gop_s=100.0, int16_gop_s=200.0
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices and limits of a moment: these tests are of what is done with the times."""
    seen = iter(range(1, 1000))

    def limits(n_threads: int, isa: str, *, seconds: float) -> Limits:
        return dataclasses.replace(LIMITS, isa=isa, n_threads=n_threads, read_gb_s=float(next(seen)))

    monkeypatch.setattr(bench_kernels, "measure_limits", limits)
    monkeypatch.setattr(bench_kernels, "_CYCLED_BYTES", 1 << 20)
    monkeypatch.setattr(bench_kernels.bench_kernels, "__kwdefaults__", {
        **bench_kernels.bench_kernels.__kwdefaults__, "seconds": 0.001, "rows": 96, "columns": 256,
    })  # fmt: skip


def test_every_format_and_kernel() -> None:
    results = list(measure(n_threads=2, n_prompt=16))
    assert [(r.format, r.kernel, r.n_tokens) for r in results] == [
        (f.name, kernel, n)
        for f in formats()
        for kernel, n in (("dequantize", 0), ("decode", 1), ("prefill", 16))
    ]
    for r in results:
        packed = 96 * next(f for f in formats() if f.name == r.format).row_bytes(256)
        n_bytes = packed + (4 * 96 * 256 if r.kernel == "dequantize" else 0)
        assert r.gb_per_s == pytest.approx(n_bytes / r.seconds / 1e9)
        assert r.gop_per_s == pytest.approx(2 * 96 * 256 * r.n_tokens / r.seconds / 1e9)
        assert r.seconds > 0


def result(format: str, kernel: str, gb: float, gop: float, limits: Limits = LIMITS) -> KernelResult:
    return KernelResult(format, kernel, 96, 256, 1, 0.001, gb, gop, limits)


def test_shares_are_of_the_nearer_limit() -> None:
    decode, prefill = result("Q4_0", "decode", 5.0, 20.0), result("Q4_0", "prefill", 0.1, 300.0)
    assert (decode.bound, decode.share) == ("memory", 0.5)
    assert (prefill.bound, prefill.share) == ("arithmetic", 0.75)
    assert result("F16", "prefill", 0.1, 37.5).share == 0.75
    faster = dataclasses.replace(LIMITS, read_gb_s=20.0)
    both = at_best_limits([decode, result("Q4_0", "decode", 5.0, 20.0, faster)])
    assert [r.share for r in both] == [0.25, 0.25]


def test_reports() -> None:
    results = [result("Q4_0", "decode", 5.0, 20.0), result("Q4_0", "prefill", 0.1, 300.0)]
    document = json.loads(as_json(results))
    (first, second) = csv.DictReader(io.StringIO(as_csv(results)))
    assert [r["share"] for r in document["results"]] == [0.5, 0.75]
    assert (float(first["share"]), second["bound"]) == (0.5, "arithmetic")
    assert as_csv([]) == ""
    lines = as_markdown(results).splitlines()
    assert lines[2].endswith("| 5.0 | 20 | 50 % memory |")
    assert lines[-1].startswith("limits of 1 thread, scalar: read 10.0 GB/s, int8 400 GOP/s")


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_command(
    isa: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each set multiplies F16 in another arithmetic, and the best set is another one on each machine.
    monkeypatch.setenv("GRISTMILL_ISA", isa)
    words = ["bench", "--kernels", "--formats", "Q4_0,F16", "-p", "16", "-t", "1", "-q"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert table.count("| Q4_0 | ") == table.count("| F16 | ") == 3
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    # The limits seen last are the largest here, and all results are measured by them.
    assert {r["limit_read_gb_s"] for r in found} == {max(r["limit_read_gb_s"] for r in found)}
    assert main([*words, "-o", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().startswith("format,kernel,rows,columns,")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kernels", "--formats", "Q9"], "unknown type 'Q9', did you mean "),
        (["--kernels", "-m", "x.gguf"], "--model has no effect with --kernels"),
        (["--formats", "Q4_0"], "--formats says which formats --kernels measures"),
        (["--kernels", "-p", "0"], "expected at least 1, got 0"),
    ],
)
def test_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words, "-q"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert says in captured.err
    with pytest.raises(ArgumentError, match="needs a multiple of 256 values"):
        measure(["Q4_K"], columns=100)
