"""Where layers go: arguments, flags and what is told, without a GPU; and, with the emulated CUDA library at
hand, from Python to emulated kernels and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gristmill
import pytest
from gristmill import ArgumentError, _core, bench, model
from gristmill.bench_work import device_shares
from gristmill.cli.device_flags import device_arguments
from gristmill.cli.parser import Parser
from gristmill.devices import DeviceLayers, check_placement
from gristmill.errors import DeviceError, GristmillWarning
from gristmill.limits import Limits, one_after_the_other
from oracle.build import Spec, add_tokenizer, build
from test_logits import TinyModel


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ((None, None, ()), (None, -1, [])),
        ((0, 0, ()), (0, 0, [])),
        ((7, 2, (1, 2.5)), (7, 2, [1.0, 2.5])),
        ((-1, None, ()), (2**31 - 1, -1, [])),
        ((10**12, None, ()), (2**31 - 1, -1, [])),
    ],
)
def test_placement(given: tuple[Any, ...], made: tuple[Any, ...]) -> None:
    assert check_placement(*given) == made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, -1, ()), "main_gpu, expected at least 0, got -1"),
        ((None, None, (0, 0)), "tensor_split, expected numbers of at least 0, one above 0"),
        ((None, None, (1, -1)), "tensor_split, expected"),
        ((None, None, (float("nan"),)), "tensor_split, expected"),
        ((None, None, (float("inf"),)), "tensor_split, expected"),
    ],
)
def test_placement_refused(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_placement(*given)


def test_layers_in_words() -> None:
    def words(first: int, last: int) -> str:
        return DeviceLayers("cuda:1 (H200)", first, last).describe(64)

    assert words(0, 65) == "cuda:1 (H200): layers 0 to 63 and the output"
    assert words(64, 65) == "cuda:1 (H200): the output"
    assert words(63, 65) == "cuda:1 (H200): layer 63 and the output"
    assert words(3, 9) == "cuda:1 (H200): layers 3 to 8"
    assert DeviceLayers("cuda:12 (H200)", 0, 1).gpu_index == 12
    assert DeviceLayers("cpu", 0, 1).gpu_index == -1


def test_arguments_reach_the_engine(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class ToldError(Exception):
        pass

    def make_engine(*arguments: Any) -> Any:
        raise ToldError(*arguments[9:])

    def progress(done: int, total: int) -> None:
        pass

    monkeypatch.setattr(_core, "make_engine", make_engine)
    with pytest.raises(ToldError) as told:
        gristmill.load(
            tiny_model(),
            device="cuda:0,cuda:1",
            n_gpu_layers=5,
            main_gpu=1,
            tensor_split=(3, 1),
            progress=progress,
        )
    assert told.value.args == ("cuda:0,cuda:1", 5, 1, [3.0, 1.0], progress)


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        ("", ("auto", None, None, [])),
        ("-ngl 99", ("auto", 99, None, [])),
        ("-ngl auto -dev cuda", ("cuda", None, None, [])),
        ("--n-gpu-layers all -mg 1 -ts 3,1", ("auto", -1, 1, [3.0, 1.0])),
        ("--tensor-split 3/1 --main-gpu 0", ("auto", None, 0, [3.0, 1.0])),
        ("-dev none", ("cpu", None, None, [])),
        ("-sm none -mg 1", ("cuda:1", None, 1, [])),
        ("-sm none -dev cuda:0", ("cuda:0", None, None, [])),
    ],
)
def test_flags(flags: str, made: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from gristmill import devices
    from gristmill.cli.device_flags import add_device_flags

    monkeypatch.setattr(devices, "gpu_count", lambda: 2)
    parser = Parser("x")
    add_device_flags(parser)
    told = device_arguments(parser.parse_args(flags.split()))
    assert tuple(told[name] for name in ("device", "n_gpu_layers", "main_gpu", "tensor_split")) == made


def test_rows_are_not_split() -> None:
    from gristmill.cli.device_flags import add_device_flags

    parser = Parser("x")
    add_device_flags(parser)
    with pytest.warns(GristmillWarning, match="--split-mode row has no effect"):
        device_arguments(parser.parse_args(["-sm", "row"]))


def loaded(parts: list[tuple[str, int, int]], note: str, precise: bool = False, slow: str = "") -> Any:
    """What the engine says it did, without one."""
    fake = object.__new__(gristmill.Model)
    fake.engine = SimpleNamespace(device_layers=parts, device_note=note, device_slow=slow, n_layer=4)  # type: ignore[assignment]
    fake.precise = precise
    return fake


def test_warnings_about_devices() -> None:
    whole = loaded([("cuda:0 (H200)", 0, 5)], "")
    assert whole.device == "cuda:0 (H200)"
    asked = loaded([("cpu", 0, 2), ("cuda:0 (H200)", 2, 5)], "")
    assert asked.device == "cpu + cuda:0 (H200)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model._warn_about_device(whole, None)
        model._warn_about_device(asked, 3)
        model._warn_about_device(loaded([("cpu", 0, 5)], "", precise=True), 0)
    with pytest.warns(
        GristmillWarning, match=r"3 of 5 layers run on the GPU, the rest on the CPU: too small"
    ):
        model._warn_about_device(loaded([("cpu", 0, 2), ("cuda:0 (H200)", 2, 5)], "too small"), None)
    with pytest.warns(GristmillWarning, match=r"n_gpu_layers=99 has no effect: no driver; all layers run on"):
        model._warn_about_device(loaded([("cpu", 0, 5)], "no driver"), 99)
    with pytest.warns(GristmillWarning, match="precise has no effect on a GPU, where prompts .* 11 bits"):
        model._warn_about_device(loaded([("cuda:0 (H200)", 0, 5)], "", precise=True), None)
    with pytest.warns(GristmillWarning, match="^attention is slow$"):
        model._warn_about_device(loaded([("cuda:0 (H200)", 0, 5)], "", slow="attention is slow"), None)


def test_bits_of_prefill_on_a_gpu(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = gristmill.load(tiny_model(formats="Q4_0", n_layer=3), device="cpu", n_threads=1, precise=True)
    most = _core.activation_bits("", tiny.tensors["blk.0.attn_q.weight"].type_id, "precise")
    for first, bits in ((3, most), (2, most), (1, 11), (0, 11)):
        parts = [DeviceLayers("cpu", 0, first), DeviceLayers("cuda:0 (H200)", first, 4)]
        monkeypatch.setattr(gristmill.Model, "device_layers", parts)
        assert tiny.prefill_bits == bits
        assert (tiny.prefill_arithmetic == "float16") == (bits == 11)


# Limits of a benchmark


def test_limits_one_after_the_other() -> None:
    cpu = Limits("avx2", 8, 50.0, 400.0, 100.0, 0.0)
    gpu = Limits("cuda:0", 1, 4000.0, 0.0, 0.0, 0.0, copy_gb_s=3800.0, tensor_gop_s=600e3)
    both = one_after_the_other([(0.5, cpu), (0.5, gpu)], "cpu + cuda:0", 8)
    assert both.read_gb_s == pytest.approx(1 / (0.5 / 50 + 0.5 / 4000))
    assert both.gop_s_of("int8") == both.gop_s_of("float32") == pytest.approx(1 / (0.5 / 400 + 0.5 / 600e3))
    assert (both.isa, both.n_threads, both.copy_gb_s) == ("cpu + cuda:0", 8, 0.0)
    alone = one_after_the_other([(1.0, gpu)], "cuda:0 (H200)", 1)
    assert (alone.read_gb_s, alone.copy_gb_s, alone.tensor_gop_s) == pytest.approx((4000.0, 3800.0, 600e3))


def test_shares_of_devices(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = gristmill.load(tiny_model(formats="Q4_0", n_layer=3), device="cpu", n_threads=1)
    assert device_shares(tiny) == [1.0]
    layers = [t.n_bytes for n, t in tiny.tensors.items() if n.startswith("blk.0.") and len(t.shape) == 2]
    output = (tiny.tensors.get("output.weight") or tiny.tensors["token_embd.weight"]).n_bytes
    parts = [DeviceLayers("cpu", 0, 2), DeviceLayers("cuda:0 (H200)", 2, 4)]
    monkeypatch.setattr(gristmill.Model, "device_layers", parts)
    total = 3 * sum(layers) + output
    assert device_shares(tiny) == pytest.approx([2 * sum(layers) / total, (sum(layers) + output) / total])

    def gpu(index: int, *, seconds: float) -> Limits:
        return Limits(f"cuda:{index}", 1, 1000.0, 0.0, 0.0, 0.0, copy_gb_s=900.0, tensor_gop_s=5000.0)

    def cpu(n_threads: int, isa: str, *, seconds: float) -> Limits:
        return Limits(isa, n_threads, 10.0, 100.0, 50.0, 0.0)

    monkeypatch.setattr(bench, "measure_gpu_limits", gpu)
    monkeypatch.setattr(bench, "measure_limits", cpu)
    limits = bench._limits_of(tiny, 0.0)
    assert limits.isa == "cpu + cuda:0 (H200)"
    assert 10.0 < limits.read_gb_s < 1000.0


def test_no_gpu_to_measure() -> None:
    n = gristmill.devices.gpu_count()
    assert n == len(gristmill.devices.gpus())
    with pytest.raises(DeviceError, match=f"cuda:{n} is not there"):
        _core.measure_gpu_limits(n, 0.0)


def test_progress(tiny_model: TinyModel) -> None:
    seen: list[tuple[int, int]] = []
    gristmill.load(tiny_model(), device="cpu", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gristmill.load(tiny_model(), device="cpu", progress=stop)


# Emulated

SCRIPT = r"""
import json, sys, warnings
warnings.simplefilter("ignore")
import gristmill
from gristmill.sampling import SamplerChain

path, n = sys.argv[1], int(sys.argv[2])
told = []
model = gristmill.load(path, n_ctx=64, n_threads=1, n_gpu_layers=n, precise=True,
                       progress=lambda done, total: told.append(done))
texts = []
for flags in ({"temp": 0.0}, {"seed": 3}, {"seed": 3, "top_k": 0}):
    sampler = SamplerChain.parse(**flags)
    generation = model.generate([5, 6, 7, 8], sampler=sampler, max_tokens=5, ignore_eog=True)
    generation.text()
    texts.append(list(generation.token_ids))
print(json.dumps({"device": model.device, "top": model.finds_top_logits, "tokens": texts, "told": len(told)}))
"""


@pytest.fixture(scope="module")
def emulated() -> dict[str, str]:
    """The environment of a process that takes the emulated library for its CUDA back end."""
    library = os.environ.get("GRISTMILL_TEST_CUDA_LIBRARY")
    if not library:
        pytest.skip("GRISTMILL_TEST_CUDA_LIBRARY names no emulated CUDA library (tests/cuda builds one)")
    return {**os.environ, "GRISTMILL_CUDA_LIBRARY": library}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("devices") / "tiny.gguf"
    spec = Spec(n_vocab=400, n_embd=64, n_ff=64, n_layer=2)
    return build(made, spec, tokenizer=lambda writer: add_tokenizer(writer, 390, "qwen2", None))


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


def test_generation_on_emulated_layers(emulated: dict[str, str], path: Path) -> None:
    """Sampled from the device's largest logits or from all, tokens are those of the CPU."""
    made = [run(emulated, "-c", SCRIPT, path, n) for n in (0, 1, 2, 99)]
    assert [done.stderr for done in made] == [""] * 4
    cpu, *others = (json.loads(done.stdout) for done in made)
    assert (cpu["device"], cpu["top"]) == ("cpu", False)
    gpu = "cuda:0 (host emulation)"
    assert [other["device"] for other in others] == [f"cpu + {gpu}", f"cpu + {gpu}", gpu]
    for other in others:
        assert other["top"]
        assert other["told"] > 10
        assert other["tokens"] == cpu["tokens"]


def test_commands_on_an_emulated_gpu(emulated: dict[str, str], path: Path) -> None:
    done = run(emulated, "-m", "gristmill", "info", "--devices")
    assert "GPU: cuda:0 host emulation" in done.stdout
    words = ["-m", "gristmill", "run", "-m", path, "-no-cnv", "-p", "a", "-n", "2", "-c", "64", "-v"]
    done = run(emulated, *words, "-ngl", "2")
    assert done.returncode == 0
    assert "[cpu: layer 0; cuda:0 (host emulation): layer 1 and the output]" in done.stderr
    # A context whose cache is larger than the emulated GPU's memory.
    done = run(emulated, *words[:-3], "-c", "4000000", "-ngl", "all")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "cuda:0 (host emulation) has 1.00 GiB free and the model needs" in line
    assert "are missing; -ngl 2 or --ctx-size" in line


def test_bench_on_an_emulated_gpu(emulated: dict[str, str], path: Path) -> None:
    words = ["-m", "gristmill", "bench", "-p", "4", "-n", "2", "-r", "1", "--json", "-q", "-ngl", "99"]
    done = run(emulated, *words, "-m", path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [r["device"] for r in results] == ["cuda:0 (host emulation)"] * 2
    assert all(r["limit_tensor_gop_s"] > 0 and r["limit_copy_gb_s"] > 0 and r["share"] > 0 for r in results)
