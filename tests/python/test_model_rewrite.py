"""SmolLM2 rewritten from llama to qwen2: other rows, other rotary pairs, biases; the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gristmill
import numpy as np
import pytest
from test_logits import rms_error

PROMPT = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"


def half_split_rows(rows: np.ndarray, n_head: int) -> np.ndarray:
    """Rows of each head from interleaved pairs (2i, 2i + 1) to NEOX pairs (i, i + n/2).

    A row is a whole number of blocks, so quantized rows move as bytes.
    """
    pairs = rows.reshape(n_head, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def rewrite_as_qwen2(source: Path, target: Path) -> Path:
    """Writes ``source``, a llama file, as a qwen2 file of the same function, with biases that are zero."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "qwen2")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        renamed = key.replace("llama.", "qwen2.", 1) if key.startswith("llama.") else key
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(renamed, field.contents(), field.types[0], sub_type)
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    for tensor in reader.tensors:
        part = tensor.name.split(".")[-2]
        data = half_split_rows(tensor.data, heads[part]) if part in heads else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
        if part in ("attn_q", "attn_k", "attn_v"):
            bias = np.zeros(len(tensor.data), np.float32)
            writer.add_tensor(tensor.name.replace(".weight", ".bias"), bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def pair(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    rewritten = rewrite_as_qwen2(smollm2_path, tmp_path_factory.mktemp("qwen2") / "smollm2-qwen2.gguf")
    return tuple(gristmill.load(path, n_ctx=512, precise=True) for path in (smollm2_path, rewritten))


def test_same_logits(pair: tuple[Any, Any]) -> None:
    llama, qwen2 = pair
    ids = llama.tokenizer.encode(PROMPT, parse_special=True)
    assert qwen2.tokenizer.encode(PROMPT, parse_special=True) == ids
    reference = llama.session().forward(ids, all_logits=True).astype(np.float64)
    error = rms_error(qwen2.session().forward(ids, all_logits=True), reference)
    print(f"difference {error:.1e} of the logits' root mean square")
    # Products of q and k are summed in another order. What float32 makes of that tips some activations over
    # to the next of their 15-bit steps, in each of 30 layers.
    assert error < 5e-4


def greedy(model: Any, n_tokens: int) -> list[int]:
    session = model.session()
    ids = model.tokenizer.encode(PROMPT, parse_special=True)
    chosen: list[int] = []
    for _ in range(n_tokens):
        chosen.append(int(np.argmax(session.forward(ids))))
        ids = chosen[-1:]
    return chosen


def test_same_greedy_text(pair: tuple[Any, Any]) -> None:
    llama, qwen2 = pair
    tokens = greedy(llama, 48)
    text = llama.tokenizer.decode(tokens)
    print(text)
    assert len(set(tokens)) > 12, "the text repeats itself, which any broken model can do"
    assert "light" in text or "scatter" in text
    assert greedy(qwen2, 48) == tokens
