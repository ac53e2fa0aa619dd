"""The oracle itself, held to Transformers: the same random weights give the same logits.

Transformers' model is made float64, but its RoPE tables stay float32 (``modeling_rope_utils.py``), which
leaves relative differences of about 1e-6 at these lengths; a wrong formula shows up at 1e-2 and more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from oracle.build import Spec, add_hyperparameters, linear, yarn
from oracle.forward import Oracle

torch = pytest.importorskip("torch", reason='torch is missing: pip install ".[oracle]"')
transformers = pytest.importorskip("transformers", reason='transformers is missing: pip install ".[oracle]"')

N_POSITIONS = 200
SHAPE = {"n_layer": 3, "n_embd": 96, "n_head": 6, "n_head_kv": 2, "n_ff": 160, "n_vocab": 128, "n_ctx": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

# name: Spec fields, rope_parameters of Transformers
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2": ({}, {}),
    "qwen2 tied": ({"tied": True}, {}),
    "qwen2 base": ({"rope_base": 1e6}, {"rope_theta": 1e6}),
    "qwen2 linear": ({"metadata": linear(4.0)}, {"rope_type": "linear", "factor": 4.0}),
    "qwen2 yarn": ({"metadata": yarn(4.0, 64)}, YARN),
    "qwen2 yarn betas": (
        {"metadata": yarn(2.5, 64, yarn_beta_fast=16.0, yarn_beta_slow=2.0)},
        YARN | {"factor": 2.5, "beta_fast": 16.0, "beta_slow": 2.0},
    ),
    "llama": ({"arch": "llama"}, {}),
    "llama tied": ({"arch": "llama", "tied": True}, {}),
    "llama head_dim": ({"arch": "llama", "head_dim": 32}, {}),
    "llama bias": ({"arch": "llama", "bias": True}, {}),
    "llama linear": ({"arch": "llama", "metadata": linear(2.0)}, {"rope_type": "linear", "factor": 2.0}),
    "llama yarn": ({"arch": "llama", "metadata": yarn(4.0, 64)}, YARN),
    "llama rope_freqs": (
        {"arch": "llama", "rope_freqs": True, "rope_base": 5e5},
        LLAMA3 | {"rope_theta": 5e5},
    ),
}
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def reference_model(spec: Spec, rope: dict[str, Any]) -> Any:
    """A random Transformers model of the spec's shape, with norms and biases that are not trivial."""
    kind = {"qwen2": "Qwen2", "llama": "Llama"}[spec.arch]
    more = {"head_dim": spec.head_size, "attention_bias": spec.has_bias} if spec.arch == "llama" else {}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=spec.n_vocab,
        hidden_size=spec.n_embd,
        intermediate_size=spec.n_ff,
        num_hidden_layers=spec.n_layer,
        num_attention_heads=spec.n_head,
        num_key_value_heads=spec.n_head_kv,
        max_position_embeddings=spec.n_ctx,
        rms_norm_eps=spec.rms_eps,
        tie_word_embeddings=spec.tied,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_base} | rope,
        **more,
    )
    torch.manual_seed(spec.seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.1 * torch.randn_like(weight))
            elif name.endswith("o_proj.bias"):
                weight.zero_()  # the file format has no such tensor
            else:
                weight.normal_(std=0.3 if name.endswith("bias") else weight.shape[-1] ** -0.5)
    return model


def interleave(weight: np.ndarray, n_head: int) -> np.ndarray:
    """Rows of each head from Transformers' order (pairs i, i + n/2) to that of llama files (2i, 2i + 1)."""
    halves = weight.reshape(n_head, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def llama3_factors(model: Any) -> np.ndarray:
    """What the model's frequencies were divided by, which is what ``rope_freqs.weight`` holds."""
    config, scaled = model.config, model.model.rotary_emb.inv_freq.numpy().astype(np.float64)
    n = 2 * len(scaled)
    plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, n, 2) / n)
    return (plain / scaled).astype(np.float32)


def export(model: Any, spec: Spec, path: Path) -> Path:
    """Writes the model as float32 GGUF, as llama.cpp's converter lays such models out."""
    writer = gguf.GGUFWriter(path, spec.arch)
    add_hyperparameters(writer, spec)
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    if not spec.tied:
        writer.add_tensor("output.weight", state["lm_head.weight"])
    if spec.rope_freqs:
        writer.add_tensor("rope_freqs.weight", llama3_factors(model))
    heads = {"attn_q": spec.n_head, "attn_k": spec.n_head_kv}
    for i in range(spec.n_layer):
        for theirs, ours in TENSORS.items():
            for part in ("weight", "bias"):
                data = state.get(f"model.layers.{i}.{theirs}.{part}")
                if data is None or (ours == "attn_output" and part == "bias"):
                    continue
                if spec.arch == "llama" and ours in heads:
                    data = interleave(data, heads[ours])
                writer.add_tensor(f"blk.{i}.{ours}.{part}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("case", CASES)
def test_oracle_equals_transformers(case: str, tmp_path: Path) -> None:
    fields, rope = CASES[case]
    spec = Spec(**(SHAPE | fields))
    model = reference_model(spec, rope)
    path = export(model, spec, tmp_path / "model.gguf")
    ids = np.random.default_rng(1).integers(0, spec.n_vocab, N_POSITIONS)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(ids)[None]).logits[0].numpy()
    logits = Oracle(path).forward(ids.tolist())
    error = np.abs(logits - expected).max() / np.sqrt(np.mean(expected**2))
    print(f"{case}: largest error {error:.1e} of the logits' root mean square")
    assert error < 1e-5
