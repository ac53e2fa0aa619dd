"""Types by measured sensitivity: the exact optimizer, and files that meet a size and diverge less than
mixes.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import gristmill
import numpy as np
import pytest
from gristmill.cli import main
from gristmill.errors import ArgumentError
from gristmill.gguf import GGUFFile
from gristmill.imatrix_measure import chunks_of
from gristmill.quantize_file import quantize_file
from gristmill.quantizing.allocate import allocate
from gristmill.quantizing.knapsack import solve
from gristmill.quantizing.sensitivity import (
    blocks_of,
    log_probs,
    mean_divergence,
    mixed_model,
    probe,
    shared_out,
)
from gristmill.quantizing.weight_error import relative_errors
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.build import Spec, build

SPEC = Spec(n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_vocab=320, formats="F16", tied=True)
TEXT = "the other and then in the end of you " * 60

choice = st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.1, 0.25]) | st.floats(0, 1))
item = st.lists(choice, min_size=1, max_size=5)


@settings(deadline=None, max_examples=300)
@given(items=st.lists(item, min_size=1, max_size=6), slack=st.floats(0, 1))
def test_the_knapsack_is_exact(items: list[list[tuple[int, float]]], slack: float) -> None:
    """Against every combination."""
    sizes, costs = ([[c[k] for c in choices] for choices in items] for k in (0, 1))
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    budget = low + int(slack * (high - low))
    found = solve(sizes, costs, budget)
    best = min(
        sum(c[1] for c in combination)
        for combination in itertools.product(*items)
        if sum(c[0] for c in combination) <= budget
    )
    assert found.cost == pytest.approx(best, rel=1e-8, abs=1e-12) and found.bound == found.cost
    assert found.size == sum(sizes[i][k] for i, k in enumerate(found.picks)) <= budget
    assert found.cost == pytest.approx(sum(costs[i][k] for i, k in enumerate(found.picks)))


def test_the_knapsack_of_a_large_model_is_proven() -> None:
    """64 layers in eight types: 8^450 combinations."""
    rng = np.random.default_rng(1)
    bits = (2.625, 3.4375, 4.25, 4.5, 5.5, 6.5625, 8.5, 16)
    weights = [26_214_400, 5_242_880, 5_242_880, 26_214_400, *[141_557_760] * 3] * 64 + [778_567_680] * 2
    sizes = [[int(n * b / 8) for b in bits] for n in weights]
    costs = [[rng.lognormal() * 4**-b for b in bits] for _ in weights]
    found = solve(sizes, costs, 17_500_000_000)
    assert found.bound == found.cost and found.size <= 17_500_000_000


def test_a_budget_that_nothing_fits() -> None:
    with pytest.raises(ArgumentError, match="a budget of 4 bytes is too small: the smallest choices take 5"):
        solve([[2, 3], [3, 4]], [[1, 0], [1, 0]], 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("allocate") / "f16.gguf", SPEC)


def test_a_mixed_model_is_the_file_that_it_stands_for(source: Path, tmp_path: Path) -> None:
    """The probe with one tensor of a quantized copy computes what the file written so would."""
    quantized = quantize_file(source, tmp_path / "q.gguf", "Q4_0", pure=True).targets[0]
    name = "blk.1.ffn_down.weight"
    written = quantize_file(source, tmp_path / "one.gguf", "F16", exact_types={name: "Q4_0"}).targets[0]
    ids = list(range(5, 40))
    mixed = mixed_model(source, quantized, [name], 64, 1)
    expected = gristmill.load(
        written, cache_type_k="f32", cache_type_v="f32", n_ctx=64, n_threads=1, precise=True
    )
    assert np.array_equal(
        mixed.session().forward(ids, all_logits=True), expected.session().forward(ids, all_logits=True)
    )


def test_divergence_is_kullback_and_leiblers(source: Path, tmp_path: Path) -> None:
    quantized = quantize_file(source, tmp_path / "q.gguf", "Q2_K", pure=True).targets[0]
    windows = [list(range(3, 30)), list(range(40, 60))]
    models = [gristmill.load(path, n_ctx=64) for path in (source, quantized)]
    p, q = (
        np.concatenate([m.session().forward(w, all_logits=True) for w in windows]).astype(np.float64)
        for m in models
    )
    log_p, log_q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert mean_divergence(log_probs(models[0], windows), models[1], windows) == pytest.approx(
        expected, rel=1e-3
    )
    assert mean_divergence(log_probs(models[0], windows), models[0], windows) == pytest.approx(0, abs=1e-7)


def test_shares_add_up_to_what_was_measured(source: Path, tmp_path: Path) -> None:
    with GGUFFile.open(source) as file:
        names = [n for n, t in file.tensors.items() if len(t.shape) == 2]
    groups = blocks_of(names)
    assert groups["layer 1"] == [n for n in names if n.startswith("blk.1.")]
    assert groups["attn_q"] == ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
    assert groups["token_embd.weight"] == ["token_embd.weight"]
    quantized = quantize_file(source, tmp_path / "q.gguf", "Q4_0", pure=True).targets[0]
    harm = probe(source, quantized, groups, [list(range(3, 60))], n_threads=1)
    assert all(value > 0 for value in harm.values())
    # What was measured of layers and of kinds does not sum to quite the same; here it has to.
    inside = [group for group in groups if groups[group][0].startswith("blk.")]
    layers = [group for group in inside if group.startswith("layer")]
    kinds = [group for group in inside if group not in layers]
    ratio = sum(harm[g] for g in layers) / sum(harm[g] for g in kinds)
    harm |= {g: harm[g] * ratio for g in kinds}
    shares = shared_out(names, harm, dict.fromkeys(names, 0.01))
    for group in (*layers, *kinds):
        assert sum(shares[n] for n in groups[group]) == pytest.approx(harm[group], rel=1e-3)


def test_relative_errors_are_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 256)).astype(np.float32)
    h = (rng.random(256) ** 3).astype(np.float32)
    x = rng.standard_normal((256, 4096)) * np.sqrt(h)[:, None]
    coarse, fine = relative_errors(w, ["Q4_0", "Q8_0"], h, led=True)
    for type, error in (("Q4_0", coarse), ("Q8_0", fine)):
        again = gristmill.dequantize(gristmill.quantize(w, type, h), type, w.shape)
        measured = (((again - w) @ x) ** 2).sum() / ((w @ x) ** 2).sum()
        assert error == pytest.approx(measured, rel=0.1)
    assert relative_errors(np.zeros((2, 32), np.float32), ["Q4_0"], None, led=False) == [0.0]


@pytest.mark.parametrize("by", ["blocks", "tensors", "outputs", "weights"])
def test_the_size_is_met_and_used(source: Path, tmp_path: Path, by: str) -> None:
    mix = quantize_file(source, tmp_path / "mix.gguf", "Q4_K_M")
    chosen = allocate(source, TEXT, target_bytes=mix.n_bytes, by=by, probe_tokens=128, n_threads=1)
    made = quantize_file(source, tmp_path / "made.gguf", chosen.mix, exact_types=chosen.types)
    assert 0.97 * mix.n_bytes < made.n_bytes <= mix.n_bytes
    assert chosen.bound == chosen.expected
    assert {t.name: t.type for t in made.tensors if t.name in chosen.types} == chosen.types
    assert not list(tmp_path.glob("gristmill-*"))


def test_bits_per_weight(source: Path, tmp_path: Path) -> None:
    chosen = allocate(source, TEXT, bits_per_weight=5.0, by="weights")
    made = quantize_file(source, tmp_path / "made.gguf", chosen.mix, exact_types=chosen.types)
    assert 4.8 < made.bits_per_weight <= 5.0


def test_budgets_that_do_not_do(source: Path) -> None:
    for budget, message in (
        ({"target_bytes": 100_000}, "in their smallest types they take"),
        ({}, "either"),
        ({"target_bytes": 10**6, "bits_per_weight": 4.0}, "either"),
    ):
        with pytest.raises(ArgumentError, match=message):
            allocate(source, TEXT, by="weights", **budget)
    with pytest.raises(ArgumentError, match="expected blocks, tensors, outputs, weights"):
        allocate(source, TEXT, bits_per_weight=5.0, by="folklore")


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out.gguf"
    text.write_text(TEXT)
    words = ["quantize", str(source), str(out)]
    assert main([*words, "--bpw", "5", "-f", str(text), "--probe-tokens", "128", "--json"]) == 0
    told, err = capsys.readouterr()
    report = json.loads(told)
    assert report["bits_per_weight"] <= 5 and report["allocation"]["by"] == "blocks"
    assert "most sensitive: " in err and "proven least within the size" in err and "ffn_down" in err
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".gguf" or p.is_dir()] == ["out.gguf"]
    for more, message in (
        (["Q4_0", "--bpw", "5"], "give a type (Q4_0) or a size, not both"),
        (["--bpw", "5"], "a text to measure on is needed"),
        (["--bpw", "x", "-f", str(text)], "'x' is no number of bits"),
        (["Q4_0", "-f", str(text)], "there is nothing to measure"),
        (["--bpw", "5", "-f", str(text), "--pure"], "flags that set types do not go with it"),
        (["--bpw", "1", "-f", str(text), "--sensitivity", "weights"], "in their smallest types they take"),
    ):
        assert main([*words, *more]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def _off_the_grid(path: Path) -> None:
    """Moves every F16 weight by up to half a step of a 4-bit grid over its 32 neighbours, in place: weights
    that came out of Q4_1 would otherwise cost nothing in Q4_1, which no model's own do.
    """
    rng = np.random.default_rng(0)
    with GGUFFile.open(path) as file:
        tensors = [t for t in file.tensors.values() if t.type == "F16"]
    for tensor in tensors:
        weights = np.memmap(path, np.float16, "r+", tensor.offset, (tensor.n_elements // 32, 32))
        x = weights.astype(np.float32)
        step = (x.max(1, keepdims=True) - x.min(1, keepdims=True)) / 15
        weights[:] = x + (rng.random(x.shape, np.float32) - 0.5) * step
        weights.flush()


@pytest.mark.slow
def test_smollm2_diverges_less_than_the_mix_of_its_size(smollm2_path: Path, tmp_path: Path) -> None:
    """On text that was not measured on."""
    source = quantize_file(smollm2_path, tmp_path / "f16.gguf", "F16", requantize=True).targets[0]
    _off_the_grid(source)
    prose = (Path(__file__).parent / "data" / "prose.txt").read_text(encoding="utf-8")
    half = len(prose) // 2
    mix = quantize_file(source, tmp_path / "mix.gguf", "Q4_K_M")
    chosen = allocate(source, prose[:half], target_bytes=mix.n_bytes, probe_tokens=128)
    made = quantize_file(source, tmp_path / "made.gguf", chosen.mix, exact_types=chosen.types)
    assert made.n_bytes <= mix.n_bytes
    model = gristmill.load(source, n_ctx=128)
    windows = chunks_of(model, prose[half:], 128)[:3]
    base = log_probs(model, windows)
    ours, theirs = (
        mean_divergence(base, gristmill.load(r.targets[0], n_ctx=128), windows) for r in (made, mix)
    )
    assert ours < theirs
