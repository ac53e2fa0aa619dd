"""What a benchmark's tests are, and the bytes and operations that each cannot do without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gristmill import _core
from gristmill.errors import ArgumentError
from gristmill.gguf import TensorInfo
from gristmill.info import KV_ELEMENT_BYTES
from gristmill.model import Model


@dataclass(frozen=True)
class BenchTest:
    """One kind of work: ``n_tokens`` of ``batch`` sequences, each of which holds ``depth`` tokens before.

    ``phase``: "prefill", the tokens of a sequence in one call; or "decode", one at a time, all sequences
    together.
    """

    phase: str
    n_tokens: int
    batch: int = 1
    depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's ``pp512`` and ``tg128``, then sequences and depth: ``tg128@b8@d4096``."""
        name = f"{'pp' if self.phase == 'prefill' else 'tg'}{self.n_tokens}"
        name += f"@b{self.batch}" if self.batch > 1 else ""
        return name + (f"@d{self.depth}" if self.depth else "")

    @property
    def n_positions(self) -> int:
        """Context that a sequence needs."""
        return self.depth + self.n_tokens

    @property
    def n_total(self) -> int:
        """Tokens of all sequences."""
        return self.n_tokens * self.batch


@dataclass(frozen=True)
class Work:
    """What a test cannot do without, in one repetition.

    ``weight_bytes``: matrices of the layers and of the output, once for each pass over them. Looking up
    embeddings, norms and biases are not counted. ``kv_bytes``: keys and values that decoding attends to.
    ``ops``: two operations for each weight of a matrix and token, by the arithmetic that the CPU multiplies
    them in ("int8", "int16", "bfloat16" or "float32"); the output only for the tokens whose logits are
    wanted. Attention's own are not counted.
    """

    weight_bytes: int
    kv_bytes: int
    ops: Mapping[str, int]

    @property
    def all_ops(self) -> int:
        """Operations of every arithmetic."""
        return sum(self.ops.values())


def plan(
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (128,),
    batches: Sequence[int] = (1,),
    depths: Sequence[int] = (0,),
) -> list[BenchTest]:
    """Each prompt at each depth, then each generation at each depth with each number of sequences.

    A prompt or generation of 0 tokens stands for no test. Raises ArgumentError for a number that makes no
    sense.
    """
    for name, values, low in (
        ("prompts", prompts, 0),
        ("generations", generations, 0),
        ("batches", batches, 1),
        ("depths", depths, 0),
    ):
        for value in values:
            if value < low:
                raise ArgumentError(f"{name}, expected numbers of at least {low}, got {value}")
    prefill = [BenchTest("prefill", n, 1, d) for d in depths for n in prompts if n]
    return prefill + [BenchTest("decode", n, b, d) for d in depths for n in generations if n for b in batches]


def layer_matrices(model: Model) -> list[TensorInfo]:
    """The matrices that every token of a batch is multiplied with."""
    unused = set(model.engine.unused_tensors)
    return [
        tensor
        for name, tensor in model.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) == 2 and name not in unused
    ]


def output_matrix(model: Model) -> TensorInfo:
    """The matrix that makes logits: the token embedding where the file has no output matrix."""
    return model.tensors.get("output.weight") or model.tensors["token_embd.weight"]


def main_format(model: Model) -> str:
    """The format that most bytes of the matrices are in."""
    totals: dict[str, int] = {}
    for tensor in (*layer_matrices(model), output_matrix(model)):
        totals[tensor.type] = totals.get(tensor.type, 0) + tensor.n_bytes
    return max(totals, key=lambda name: totals[name])


def work_of(model: Model, test: BenchTest) -> Work:
    """Bytes and operations of one repetition of a test."""
    layers, output = layer_matrices(model), output_matrix(model)
    layer_bytes = sum(t.n_bytes for t in layers)
    if test.phase == "decode":
        # Step i sees what was there before, the i tokens since, and itself.
        positions = test.batch * sum(test.depth + i + 1 for i in range(test.n_tokens))
        n_passes, n_outputs = test.n_tokens, test.n_total
        kv_bytes = int(positions * kv_bytes_per_position(model))
    else:
        n_passes, n_outputs, kv_bytes = -(-test.n_tokens // model.engine.max_batch), 1, 0
    mode = {("prefill", False): "prefill", ("prefill", True): "precise", ("decode", False): "decode"}.get(
        (test.phase, model.precise), "precise_decode"
    )
    ops: Counter[str] = Counter()
    for tensor in layers:
        ops[_core.arithmetic(model.isa, tensor.type_id, mode)] += 2 * tensor.n_elements * test.n_total
    # The head is made by the kernels of decoding, precisely.
    ops[_core.arithmetic(model.isa, output.type_id, "precise_decode")] += 2 * output.n_elements * n_outputs
    n_output_passes = test.n_tokens if test.phase == "decode" else 1
    return Work(n_passes * layer_bytes + n_output_passes * output.n_bytes, kv_bytes, dict(ops))


def device_shares(model: Model) -> list[float]:
    """The share of the matrices' bytes on each of ``model.device_layers``."""
    layers, output = layer_matrices(model), output_matrix(model)
    sizes = []
    for part in model.device_layers:
        size = output.n_bytes if part.last > model.n_layer else 0
        for tensor in layers:
            if part.first <= int(tensor.name.split(".")[1]) < part.last:
                size += tensor.n_bytes
        sizes.append(size)
    return [size / sum(sizes) for size in sizes]


def kv_bytes_per_position(model: Model) -> Fraction:
    """Bytes of keys and values that attention reads for each position that a token sees, in all layers."""
    prefix = f"{model.architecture}.attention."
    head_size = model.n_embd // model.n_head
    k = model.metadata.get_int(prefix + "key_length", head_size)
    v = model.metadata.get_int(prefix + "value_length", head_size)
    of_k, of_v = KV_ELEMENT_BYTES[model.cache_type_k], KV_ELEMENT_BYTES[model.cache_type_v]
    return model.n_layer * model.n_head_kv * (k * of_k + v * of_v)
