"""The types that mixes give: llama-quantize's own choices, recorded in data/quantize_mixes.txt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gristmill.errors import ArgumentError
from gristmill.quantizing.mixes import (
    MIXES,
    ModelFacts,
    choose_types,
    file_order,
    find_mix,
    find_type,
    layer_of,
    may_quantize,
)
from oracle.build import Spec, matrices

SHAPES = {
    "tied, 4 query heads a value head": Spec(
        n_layer=9, n_embd=256, n_head=4, n_head_kv=1, n_ff=512, tied=True
    ),
    "rows of 288 and 544": Spec(arch="llama", n_layer=17, n_embd=288, n_head=4, n_head_kv=2, n_ff=544),
    "80 layers": Spec(n_layer=80, n_embd=256, n_head=4, n_head_kv=2, n_ff=256),
    "rows of 80 and 96": Spec(arch="llama", n_layer=3, n_embd=80, n_head=4, n_head_kv=4, n_ff=96, tied=True),
    "every head its own": Spec(arch="llama", n_layer=34, n_embd=256, n_head=4, n_head_kv=4, n_ff=256),
    "falcon": Spec(arch="falcon", n_layer=34, n_embd=256, n_head=4, n_head_kv=4, n_ff=256),
}


def _table() -> dict[tuple[str, str, bool], str]:
    rows: dict[tuple[str, str, bool], str] = {}
    for line in (Path(__file__).parent / "data" / "quantize_mixes.txt").read_text().splitlines():
        if not line.startswith("#"):
            shape, mix, types = line.split(" | ")
            rows[shape, mix.removesuffix(" with imatrix"), mix.endswith(" with imatrix")] = types
    return rows


TABLE = _table()


def _recorded(shape: str, mix: str, with_imatrix: bool) -> dict[str, str]:
    """The recorded types by tensor."""
    text = TABLE.get((shape, mix, with_imatrix), TABLE[shape, mix, False])
    most, *exceptions = text.split("; ")
    types = {f"{name}.weight": most for name, _, _ in matrices(SHAPES[shape])}
    for exception in exceptions:
        part, type, *layers = exception.split(" ")
        if not layers:
            types[f"{part}.weight"] = type
            continue
        for run in layers[0].split(","):
            first, _, last = run.partition("-")
            for layer in range(int(first), int(last or first) + 1):
                types[f"blk.{layer}.{part}.weight"] = type
    return types


@pytest.mark.parametrize("with_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_types_are_llama_cpps(shape: str, mix: str, with_imatrix: bool) -> None:
    spec = SHAPES[shape]
    shapes = {f"{name}.weight": (n_rows, n_cols) for name, n_rows, n_cols in matrices(spec)}
    facts = ModelFacts(spec.arch, spec.n_layer, spec.n_head, spec.n_head_kv)
    chosen = choose_types(shapes, mix, facts, has_imatrix=with_imatrix)
    assert {name: choice.type for name, choice in chosen.items()} == _recorded(shape, mix, with_imatrix)
    assert list(chosen) == sorted(shapes, key=file_order)


def test_every_mix_is_recorded_for_every_shape() -> None:
    assert {(shape, mix) for shape, mix, _ in TABLE} == {(s, m) for s in SHAPES for m in MIXES}


def test_experts_follow_their_own_rules() -> None:
    """llama-quant.cpp: with eight experts the attention is small beside them and gets more bits."""
    facts = ModelFacts("llama", 32, 32, 8, n_expert=8)
    shapes = {f"blk.3.{part}.weight": (256, 256) for part in ("attn_v", "attn_k", "attn_output", "attn_q")}
    chosen = choose_types(shapes, "Q4_K_M", facts)
    assert {name.split(".")[2]: choice.type for name, choice in chosen.items()} == {
        "attn_v": "Q8_0", "attn_k": "Q8_0", "attn_output": "Q5_K", "attn_q": "Q4_K",
    }  # fmt: skip


def test_pure_and_overrides() -> None:
    spec = SHAPES["tied, 4 query heads a value head"]
    shapes = {f"{name}.weight": (n_rows, n_cols) for name, n_rows, n_cols in matrices(spec)}
    facts = ModelFacts(spec.arch, spec.n_layer, spec.n_head, spec.n_head_kv)
    pure = choose_types(shapes, "Q3_K_M", facts, pure=True)
    assert {choice.type for choice in pure.values()} == {"Q3_K"}
    led = choose_types(shapes, "Q3_K_M", facts, overrides={"blk.2.ffn_up.weight": "Q8_0"})
    assert led["blk.2.ffn_up.weight"] == ("Q8_0", "override")


def test_what_is_no_matrix_stays() -> None:
    assert may_quantize("blk.0.ffn_down.weight", (8, 8))
    assert may_quantize("blk.0.ffn_down_exps.weight", (4, 8, 8))
    for name, shape in (
        ("blk.0.attn_norm.weight", (8,)), ("blk.0.attn_q.bias", (8,)), ("blk.0.ffn_gate_inp.weight", (8, 8)),
        ("blk.0.attn_q.weight", (1, 8)), ("position_embd.weight", (8, 8)), ("rope_freqs.weight", (8,)),
    ):  # fmt: skip
        assert not may_quantize(name, shape), name


def test_names() -> None:
    assert find_mix("q4_k") == "Q4_K_M" and find_mix("Q8_0") == "Q8_0" and find_type("q4_k") == "Q4_K"
    with pytest.raises(ArgumentError, match=re.escape("unknown type 'Q4_7', did you mean 'Q4_1'?")):
        find_mix("Q4_7")
    with pytest.raises(ArgumentError, match="unknown type 'Q4_K_M'"):
        find_type("Q4_K_M")
    assert [layer_of(name) for name in ("blk.12.x", "output.weight", "v.blk.3.x")] == [12, -1, -1]
