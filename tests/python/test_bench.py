"""Benchmarks: what they count, against counts by hand; what they report; and what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gristmill
import numpy as np
import pytest
from gristmill import ArgumentError, _core, bench_report, quants
from gristmill.bench import BenchResult, at_best_limits, bench, run
from gristmill.bench_work import BenchTest, Work, main_format, plan, work_of
from gristmill.cli import main
from gristmill.limits import Limits
from test_logits import TinyModel

SHAPE = {"n_layer": 2, "n_embd": 256, "n_head": 4, "n_head_kv": 2, "n_ff": 512, "n_vocab": 320}
# Weights of one layer: q and output 256 x 256, k and v 128 x 256, gate, up and down 512 x 256.
LAYER = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256
OUTPUT = 320 * 256
OPTIONAL_KINDS = ("bfloat16", "int16")
KINDS = ("int8", "float32", *OPTIONAL_KINDS)
LIMITS = Limits("some", 2, read_gb_s=10.0, int8_gop_s=400.0, float32_gop_s=50.0, bfloat16_gop_s=100.0)


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a moment on a small buffer: these tests are of what is done with them."""
    from gristmill import bench, limits

    def measure(n_threads: int, isa: str, *, seconds: float = 0.0) -> Limits:
        return limits.measure_limits(n_threads, isa, seconds=0.0, buffer_bytes=1 << 20)

    monkeypatch.setattr(bench, "measure_limits", measure)


@pytest.fixture(scope="module")
def path(tiny_model: TinyModel) -> Path:
    return tiny_model(formats="Q4_0", **SHAPE)


@pytest.fixture(scope="module")
def model(path: Path) -> Any:
    return gristmill.load(path, n_ctx=96, n_threads=1)


def make(
    test: BenchTest, work: Work, seconds: tuple[float, ...] = (1.0,), limits: Limits = LIMITS
) -> BenchResult:
    return BenchResult(
        "m.gguf", "qwen2", "Q4_0", 1, 1, "f16", "f16", False, 8, "int8", test, seconds, work, limits
    )


# What is counted -------------------------------------------------------------------------------------------


def test_decoding_reads_layers_and_output(model: Any) -> None:
    """Q4_0 holds 32 weights in 18 bytes; the token embedding is only looked up in."""
    work = work_of(model, BenchTest("decode", 4))
    assert work.weight_bytes == 4 * (2 * LAYER + OUTPUT) * 18 // 32
    assert work.all_ops == 4 * 2 * (2 * LAYER + OUTPUT)
    # A position is 2 layers x 2 heads x (64 + 64) numbers of 2 bytes; the steps see 1, 2, 3 and 4 positions.
    assert work.kv_bytes == (1 + 2 + 3 + 4) * 2 * 2 * 128 * 2


def test_depth_and_sequences(model: Any) -> None:
    one = work_of(model, BenchTest("decode", 3))
    work = work_of(model, BenchTest("decode", 3, batch=5, depth=10))
    assert work.weight_bytes == one.weight_bytes, "read once for all sequences"
    assert work.all_ops == 5 * one.all_ops
    assert work.kv_bytes == 5 * (11 + 12 + 13) * 2 * 2 * 128 * 2


def test_prefill_makes_logits_of_one_token(model: Any) -> None:
    work = work_of(model, BenchTest("prefill", 40))
    assert work.all_ops == 2 * (40 * 2 * LAYER + OUTPUT)
    assert work.weight_bytes == (2 * LAYER + OUTPUT) * 18 // 32
    assert work.kv_bytes == 0
    long = BenchTest("prefill", model.engine.max_batch + 1)
    assert work_of(model, long).weight_bytes == (2 * 2 * LAYER + OUTPUT) * 18 // 32, "two passes"


def test_mixed_formats_and_tied_embedding(tiny_model: TinyModel) -> None:
    """Q6_K: 210 bytes hold 256. Each kind of weights is counted where it is multiplied: F16 as float32 in
    decoding whatever multiplies it in prompts. A tied embedding is the output matrix."""
    formats = {"": "Q6_K", "ffn_down": "F16", "token_embd": "Q8_0"}
    model = gristmill.load(
        tiny_model(formats=formats, tied=True, **SHAPE), n_ctx=16, cache_type_k="q8_0", n_threads=1
    )
    work = work_of(model, BenchTest("decode", 1))
    down = 2 * 512 * 256
    rest = 2 * LAYER - down
    assert work.weight_bytes == rest * 210 // 256 + 2 * down + OUTPUT * 34 // 32
    assert work.all_ops == 2 * (rest + down + OUTPUT)
    assert work.ops["float32"] == 2 * down
    prompt = work_of(model, BenchTest("prefill", 8))
    halves = _core.arithmetic(model.isa, quants.format_named("F16").type_id, "prefill")
    quantized = _core.arithmetic(model.isa, quants.format_named("Q6_K").type_id, "prefill")
    expected = Counter({halves: 8 * 2 * down})
    expected[quantized] += 8 * 2 * rest
    expected[_core.arithmetic(model.isa, quants.format_named("Q8_0").type_id, "decode")] += 2 * OUTPUT
    assert prompt.ops == expected
    assert work.kv_bytes == 2 * 2 * (64 * 34 // 32 + 64 * 2)
    assert main_format(model) == "Q6_K"


# Rates and shares ------------------------------------------------------------------------------------------


def test_statistics() -> None:
    result = make(BenchTest("decode", 10, batch=2), Work(0, 0, {}), seconds=(1.0, 2.0, 4.0))
    assert result.samples == [20.0, 10.0, 5.0]
    assert result.mean == pytest.approx(35 / 3)
    assert result.stddev == pytest.approx(7.6376, abs=1e-4)
    assert result.best == 20.0
    assert make(BenchTest("decode", 10), Work(0, 0, {})).stddev == 0.0


def test_shares_of_both_limits() -> None:
    """5e9 bytes of 10 GB/s; 100e9 of 400 GOP/s and 5e9 of 50: 0.25 + 0.1 s."""
    ops = {"int8": 100_000_000_000, "float32": 5_000_000_000}
    result = make(BenchTest("decode", 1), Work(4_000_000_000, 1_000_000_000, ops))
    assert result.gb_per_s == pytest.approx(5.0)
    assert result.gop_per_s == pytest.approx(105.0)
    assert result.share_of_bandwidth == pytest.approx(0.5)
    assert result.share_of_peak == pytest.approx(0.35)
    assert (result.bound, result.share) == ("memory", result.share_of_bandwidth)
    busy = make(BenchTest("prefill", 1), Work(1, 0, {"int8": 100_000_000_000}))
    assert (busy.bound, busy.share) == ("arithmetic", pytest.approx(0.25))


def test_best_limits_of_all_results() -> None:
    test, work = BenchTest("decode", 1), Work(1, 0, {"int8": 1})
    other = dataclasses.replace(LIMITS, read_gb_s=12.0, int8_gop_s=300.0)
    alone = dataclasses.replace(LIMITS, n_threads=1, read_gb_s=5.0)
    results = at_best_limits([make(test, work, limits=each) for each in (LIMITS, other, alone)])
    assert [r.limits.read_gb_s for r in results] == [12.0, 12.0, 5.0]
    assert [r.limits.int8_gop_s for r in results] == [400.0, 400.0, 400.0]


@pytest.mark.parametrize("kind", KINDS)
def test_peak_of_every_set(kind: str) -> None:
    for isa in _core.supported_isas():
        peak = _core.measure_peak_ops(1, kind, 0.0, isa)
        assert peak > 0.05 or (kind in OPTIONAL_KINDS and peak == 0), isa


def test_peak_loops_do_what_they_are_timed_for() -> None:
    """Factors of one, so a loop's result is its number of multiply-adds: lanes, products a lane, sums."""
    lanes = {
        "avx512_vnni": {"int8": 16 * 4, "float32": 16, "bfloat16": 16 * 2, "int16": 16 * 2},
        "avx2": {"int8": 16 * 2, "float32": 8, "int16": 8 * 2},
    }
    expected = {isa: {kind: 12 * n for kind, n in kinds.items()} for isa, kinds in lanes.items()}
    expected["scalar"] = {"int8": 256, "float32": 32}
    expected["amx_bf16"] = {**expected["avx512_vnni"], "bfloat16": 4 * 16 * 16 * 32}  # four tiles of sums
    for isa, kind in itertools.product(_core.supported_isas(), KINDS):
        done = _core.multiply_adds(kind, 1000, isa)
        lacks = (isa, kind) == ("avx512_vnni", "bfloat16") and done == 0  # a later addition to AVX-512
        assert done == expected[isa].get(kind, 0) * 1000 or lacks, (isa, kind)
        most = 1 << 22
        assert _core.multiply_adds(kind, most, isa) == done // 1000 * most, (isa, kind)


def test_bandwidth_loops_read_every_byte() -> None:
    """Any length and alignment: the exclusive or of the 64-bit words, zeros after the end."""
    data = np.random.default_rng(5).integers(0, 256, 4096, dtype=np.uint8)
    lengths = (0, 1, 7, 8, 63, 64, 65, 127, 128, 200, 255, 256, 257, 1000, 2049)
    for isa, offset, n in itertools.product(_core.supported_isas(), (0, 3), lengths):
        part = data[offset : offset + n]
        padded = np.zeros((n + 7) // 8 * 8, np.uint8)
        padded[:n] = part
        expected = int(np.bitwise_xor.reduce(padded.view(np.uint64))) if n else 0
        assert _core.read_bytes(part, isa) == [expected] * 2, (isa, offset, n)


def test_limits_refuse_nonsense() -> None:
    for arguments in (
        (0, 1 << 20, 0.0),
        (2000, 1 << 20, 0.0),
        (1, 0, 0.0),
        (1, 1 << 20, float("nan")),
        (1, 1 << 20, -1.0),
    ):
        with pytest.raises(ArgumentError, match="limits"):
            _core.measure_read_bandwidth(*arguments)
    with pytest.raises(ArgumentError, match="kind"):
        _core.measure_peak_ops(1, "int4")
    with pytest.raises(ArgumentError, match="isa"):
        _core.measure_peak_ops(1, "int8", 0.0, "sse9")


# Runs ------------------------------------------------------------------------------------------------------


def test_plan_and_names() -> None:
    names = [test.name for test in plan((512, 0, 16), (128,), (1, 8), (0, 4096))]
    assert names == [
        "pp512", "pp16", "pp512@d4096", "pp16@d4096",
        "tg128", "tg128@b8", "tg128@d4096", "tg128@b8@d4096",
    ]  # fmt: skip
    assert plan((0,), (0,)) == []


def test_bench_runs_every_test(model: Any) -> None:
    told: list[tuple[str, int, int]] = []
    results = bench(
        model,
        (20,),
        (3,),
        (1, 2),
        (0, 5),
        repetitions=2,
        limit_seconds=0.0,
        progress=lambda *t: told.append(t),
    )
    assert [r.test.name for r in results] == ["pp20", "pp20@d5", "tg3", "tg3@b2", "tg3@d5", "tg3@b2@d5"]
    for result in results:
        assert len(result.seconds) == 2
        assert result.mean > 0
        assert result.limits == results[0].limits
        assert (result.limits.isa, result.limits.n_threads) == (model.isa, 1)
        assert (result.model, result.format, result.architecture) == (model.path.name, "Q4_0", "qwen2")
    done = [n for _, n, _ in told]
    assert done == sorted(done)
    assert told[-1] == ("tg3@b2@d5", 18, 18)


def test_sessions_hold_what_the_test_says(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock sees exactly the test's tokens, at the test's depth, in every repetition."""
    seen: list[tuple[str, tuple[int, ...], int]] = []
    forward, decode_batch = gristmill.Session.forward, gristmill.Model.decode_batch

    def spy_forward(self: Any, ids: Any, all_logits: bool = False) -> Any:
        seen.append(("forward", (self.n_past,), len(ids)))
        return forward(self, ids, all_logits)

    def spy_decode(self: Any, sessions: Any, tokens: Any) -> Any:
        seen.append(("decode", tuple(s.n_past for s in sessions), len(tokens)))
        return decode_batch(self, sessions, tokens)

    monkeypatch.setattr(gristmill.Session, "forward", spy_forward)
    monkeypatch.setattr(gristmill.Model, "decode_batch", spy_decode)
    list(run(model, [BenchTest("prefill", 20, depth=5)], 2))
    assert seen == [("forward", (0,), 5)] + [("forward", (5,), 20)] * 3
    seen.clear()
    list(run(model, [BenchTest("decode", 2, batch=3, depth=4)], 1))
    assert seen == [("forward", (0,), 4)] * 3 + [("decode", (4,) * 3, 3), ("decode", (5,) * 3, 3)] * 2
    seen.clear()
    list(run(model, [BenchTest("decode", 2)], 1))
    assert seen == [("forward", (0,), 1), ("forward", (1,), 1)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": (97,)}, "97 positions.* context of 96"),
        ({"prompts": (90,), "depths": (7,)}, "97 positions"),
        ({"prompts": (-1,)}, "prompts"),
        ({"batches": (0,)}, "batches"),
        ({"repetitions": 0}, "repetitions"),
    ],
    ids=str,
)
def test_bench_refuses(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        bench(model, **({"prompts": (8,), "generations": (2,)} | arguments))


def test_time_matmul(model: Any) -> None:
    packed = np.zeros((64, 18), np.uint8)
    q4_0 = next(f for f in _core.formats() if f[0] == "Q4_0")[1]
    for n, decode in ((1, True), (8, True), (20, False)):
        times = _core.time_matmul(packed, q4_0, 32, n, decode, 2, weight_bytes=10_000, seconds=0.0)
        assert times.dtype == np.float64
        assert len(times) == 3
        assert (times > 0).all()
    for arguments in (
        (packed, 999, 32, 1),
        (packed, q4_0, 64, 1),
        (packed, q4_0, 33, 1),
        (packed, q4_0, 32, 0),
        (packed, q4_0, 32, 9),
    ):
        with pytest.raises(ArgumentError, match="time_matmul"):
            _core.time_matmul(*arguments, True, 1)


# Reports and the command -----------------------------------------------------------------------------------

FLAGS = ["-p", "16", "-n", "2", "-b", "1,2", "-r", "2", "-t", "1"]
KEYS = {
    "model", "architecture", "format", "model_bytes", "n_parameters", "isa", "n_threads",
    "cache_type_k", "cache_type_v", "precise", "prefill_bits", "prefill_arithmetic",
    "test", "phase", "n_tokens", "batch", "depth",
    "repetitions", "mean", "stddev", "best", "samples", "weight_bytes_per_token", "kv_bytes_per_token",
    "operations_per_token", "gb_per_s", "gop_per_s", "share_of_bandwidth", "share_of_peak", "bound",
    "share", "limit_read_gb_s", "limit_int8_gop_s", "limit_float32_gop_s", "limit_bfloat16_gop_s",
    "limit_int16_gop_s", "device", "limit_copy_gb_s", "limit_tensor_gop_s",
    "limit_file_gb_s",
}  # fmt: skip


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str], path: Path) -> Iterator[Any]:
    def call(*args: str, status: int = 0) -> tuple[str, str]:
        assert main(["bench", "-m", str(path), *args]) == status
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


def test_json(out: Any) -> None:
    text, err = out(*FLAGS, "--json")
    document = json.loads(text)
    assert document["gristmill"] == gristmill.__version__
    assert document["machine"]["cpus_usable"] >= 1
    assert [r["test"] for r in document["results"]] == ["pp16", "tg2", "tg2@b2"]
    for record in document["results"]:
        assert set(record) == KEYS
        assert (record["repetitions"], len(record["samples"]), record["n_threads"]) == (2, 2, 1)
    alone, together = document["results"][1:]
    assert alone["weight_bytes_per_token"] == 2 * together["weight_bytes_per_token"]
    assert all(line.startswith("[") for line in err.splitlines())


def test_a_cut_file_is_not_measured(tiny_model: TinyModel, tmp_path: Path) -> None:
    """What is read in place of pages that a file no longer has is no speed of its memory."""
    copy = tmp_path / "cut.gguf"
    copy.write_bytes(tiny_model(formats="Q4_0", **SHAPE).read_bytes())
    model = gristmill.load(copy, n_ctx=16, n_threads=1)
    assert model.engine.measure_reading(0.0) > 0
    with copy.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(gristmill.GGUFError, match=r"cut\.gguf"):
        model.engine.measure_reading(0.0)


def test_csv(out: Any) -> None:
    text, _ = out(*FLAGS, "--csv", "-q")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["test"] for row in rows] == ["pp16", "tg2", "tg2@b2"]
    assert set(rows[0]) == KEYS
    assert len(rows[0]["samples"].split()) == 2


def test_table_and_file(out: Any, tmp_path: Path) -> None:
    """A pipe gets Markdown; -o writes the file as well, in the shape that its suffix says."""
    target = tmp_path / "result.json"
    text, err = out(*FLAGS, "-q", "-o", str(target))
    lines = text.splitlines()
    assert err == ""
    assert lines[0] == "| " + " | ".join(bench_report.HEADINGS) + " |"
    assert {line.count("|") for line in lines[:5]} == {len(bench_report.HEADINGS) + 1}
    assert lines[6].startswith("limits of 1 thread, ")
    assert re.fullmatch(r"read from \S+\.gguf as it lies in memory, 1 thread: [0-9.]+ GB/s", lines[7])
    assert len(json.loads(target.read_text())["results"]) == 3


def test_precise_is_a_setting_of_the_results(out: Any) -> None:
    """What prefill multiplies with, where the machine's instruction set has a choice."""
    q8_0 = quants.format_named("Q8_0").type_id
    best = _core.supported_isas()[0]
    bits, most = (_core.activation_bits(best, q8_0, mode) for mode in ("prefill", "precise"))
    flags = ["-p", "16", "-n", "0", "-r", "1", "-t", "1", "-q"]
    for more, precise, expected in (([], False, bits), (["--precise"], True, most)):
        [record] = json.loads(out(*flags, *more, "--json")[0])["results"]
        assert (record["precise"], record["prefill_bits"]) == (precise, expected)
        [csv_record] = csv.DictReader(io.StringIO(out(*flags, *more, "--csv")[0]))
        assert csv_record["precise"] == str(precise)
        row = out(*flags, *more)[0].splitlines()[2]
        arithmetic = _core.arithmetic(best, q8_0, "precise" if precise else "prefill")
        assert f"| {expected}-bit {arithmetic} prefill |" in row


def test_several_models_and_threads(out: Any, path: Path) -> None:
    text, _ = out("-m", str(path), "-p", "0", "-n", "1", "-r", "1", "-t", "1,2", "--json", "-q")
    assert [r["n_threads"] for r in json.loads(text)["results"]] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["-p", "0", "-n", "0"], 2, "nothing to measure"),
        (["-p", "x"], 2, "--n-prompt"),
        (["-p", ""], 2, "--n-prompt"),
        (["-b", "0"], 2, "at least 1"),
        (["-r", "0"], 2, "at least 1"),
        (["-t", "2000"], 2, "1 to 1024"),
        (["-o", "result"], 2, "--output result"),
        (["-o", "/nowhere/result.csv"], 1, "/nowhere/result.csv"),
        (["-m", "/nowhere/x.gguf"], 1, "/nowhere/x.gguf"),
        (["--json", "--csv"], 2, "not allowed"),
        (["--override-kv", "qwen2.block_count=int:9"], 1, "tiny|gguf"),
    ],
    ids=str,
)
def test_command_errors(out: Any, args: list[str], status: int, message: str) -> None:
    text, err = out(*args, "-q", status=status)
    assert text == ""
    assert err.startswith("gristmill: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_interrupted_run_prints_what_was_measured(
    out: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Any, sessions: Any, tokens: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(gristmill.Model, "decode_batch", interrupt)
    text, _ = out(*FLAGS, "-q", "--csv", status=130)
    assert [row["test"] for row in csv.DictReader(io.StringIO(text))] == ["pp16", "tg2"]


@pytest.mark.parametrize(
    ("script", "flags", "n_rows"),
    [
        ("matmul.py", "--formats Q4_0,F16 --shape 64x256 --tokens 1,9 --seconds 0.01 --weight-mib 1", 4),
        ("attention.py", "--depths 16,40 --prompt 8 --layers 1 --cache-types q8_0 -r 1", 4),
    ],
)
def test_kernel_benchmarks(script: str, flags: str, n_rows: int) -> None:
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels" / script
    words = [sys.executable, str(file), *flags.split(), "-t", "1", "--json", "-"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["results"]
    assert len(rows) == n_rows
    assert all(row["seconds"] > 0 for row in rows)
