"""gristmill's compiled part: block formats, kernels, models, samplers."""

from collections.abc import Callable, Sequence
from typing import Annotated, Final

import numpy
from numpy.typing import NDArray


def formats() -> list[tuple[str, int, int, int, str, float]]:
    """
    Every block format: (name, type_id, block_size, type_size, kind, max_relative_error).
    """

def quantize_rows(x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], type: str, importance: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

def dequantize_rows(blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], type: str, y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

def search_isa() -> str:
    """The vectors in which the quantizers search."""

def convert_rows(source: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], from_type: str, to_type: str, n_cols: int, importance: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, target: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> tuple[int, int]:
    """
    Rows through float32. Returns (first value that to_type cannot hold or -1, finite values become infinite).
    """

def skip_strings(data: object, pos: int, count: int) -> tuple[int, int]:
    """
    Steps over strings, each a uint64 length and its bytes, while their lengths lie in data and are below 2^62; (position behind the last, strings left). The position may lie beyond data.
    """

def decode_strings(data: object, pos: int, count: int) -> tuple[list[str], int]:
    """
    (list of strings, position behind them), bytes that are not UTF-8 by surrogateescape. ArgumentError if data ends before they do.
    """

def matmul(packed: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], type_id: int, n_cols: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], isa: str = '', mode: str = 'auto') -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
    """x [n, n_cols] times the transpose of packed [m, row_bytes] -> [n, m]."""

def activation_bits(isa: str, type_id: int, mode: str = 'prefill') -> int:
    """
    Bits of an activation that a mode multiplies weights of a type with: 8, 15 or 16; 14, of both; or 32, as floats.
    """

def activation_group(isa: str, type_id: int, mode: str = 'prefill') -> int:
    """
    How many activations share a scale; 1 where they are floats, and then weights have no more bits than they.
    """

def arithmetic(isa: str, type_id: int, mode: str = 'prefill') -> str:
    """What multiplies them, as measure_peak_ops names it."""

def affine_rows(packed: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], type_id: int, n_cols: int) -> tuple:
    """
    Quantized rows taken apart, weight = scale * q + min: (q [m, n_cols], scale [m, n_cols / group], min).
    """

def measure_read_bandwidth(n_threads: int, bytes: int, seconds: float = 0.5, isa: str = '') -> float:
    """
    Gigabytes (1e9) a second that threads together read from memory; the best of several passes.
    """

def measure_peak_ops(n_threads: int, kind: str, seconds: float = 0.2, isa: str = '') -> float:
    """
    1e9 operations a second (a multiply-add is two), kind int8, float32, bfloat16 or int16; 0 where there is no such instruction.
    """

def measure_gpu_limits(index: int, seconds: float = 0.4) -> tuple[float, float, float]:
    """
    1e9 bytes a second that a GPU reads from memory, 1e9 that it copies (both ways counted), 1e9 operations a second of tensor products of halves.
    """

def read_bytes(bytes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], isa: str = '') -> list[int]:
    """
    The loops that bandwidth is measured with, one after the other: the exclusive or of all 64-bit words.
    """

def multiply_adds(kind: str, iterations: int, isa: str = '') -> int:
    """
    The loop that peaks are measured with: how many multiply-adds the iterations made; 0 where there is no such instruction.
    """

def time_matmul(packed: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], type_id: int, n_cols: int, n: int, decode: bool, n_threads: int, weight_bytes: int = 0, large_pages: bool = True, seconds: float = 1.0, isa: str = '') -> Annotated[NDArray[numpy.float64], dict(shape=(None,))]:
    """
    Seconds of each product of n rows with packed [m, row_bytes], copies of which are cycled that take weight_bytes.
    """

def supported_isas() -> list[str]:
    """Instruction sets that this machine can run, best first."""

def built_isas() -> list[str]:
    """Instruction sets that this build has, best first."""

def cuda_devices() -> list[tuple[str, int, int, int, int, int, int]]:
    """
    GPUs, in the driver's order: name, compute capability (major, minor), multiprocessors, bytes of memory, bytes free, the driver's CUDA version (1000 major + 10 minor).
    """

def cuda_device_count() -> int:
    """How many GPUs there are; takes no memory of theirs."""

def cuda_why_not() -> str:
    """Why no GPU can be used; empty where one can."""

def default_thread_count() -> int:
    """
    Physical cores this process may use, affinity and cgroup quota counted.
    """

def supported_architectures() -> list[str]:
    """GGUF architectures that this build runs."""

class Engine:
    """A model's weights on a device."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def n_embd(self) -> int: ...

    @property
    def n_layer(self) -> int: ...

    @property
    def n_head(self) -> int: ...

    @property
    def n_head_kv(self) -> int: ...

    @property
    def n_ctx_train(self) -> int: ...

    @property
    def rope_magnitude(self) -> float: ...

    @property
    def rope_attn_factor(self) -> float: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def n_threads(self) -> int: ...

    @property
    def max_batch(self) -> int: ...

    @property
    def isa(self) -> str: ...

    @property
    def device_layers(self) -> list[tuple[str, int, int]]:
        """
        (device, first, last) of layers [first, last) one after the other, the output counting as the last layer.
        """

    @property
    def finds_top_logits(self) -> bool: ...

    most_top_logits: Final[int] = ...
    """(arg: object, /) -> int"""

    @property
    def device_note(self) -> str: ...

    @property
    def device_slow(self) -> str: ...

    @property
    def keys_read(self) -> set[str]: ...

    @property
    def unused_tensors(self) -> list[str]: ...

    def measure_reading(self, seconds: float = 0.2) -> float:
        """
        Gigabytes (1e9) a second that the threads together read from the model's largest file, its first GiB at most, where it is mapped; the best of several passes.
        """

    def observe(self) -> None:
        """From now on the squares of all inputs of matrices are summed."""

    def input_squares(self) -> list[tuple[str, int, Annotated[NDArray[numpy.float32], dict(shape=(None, None))]]]:
        """
        (tensor, tokens, sums float32 [1, n_cols]) of every matrix since observe().
        """

def make_engine(paths: Sequence[bytes], tensors: Sequence[tuple[str, int, Sequence[int], int, int]], metadata: dict, n_ctx: int, n_threads: int, cache_type_k: str, cache_type_v: str, isa: str, precise: bool = False, device: str = 'cpu', n_gpu_layers: int | None = None, main_gpu: int = -1, tensor_split: Sequence[float] = [], progress: Callable | None = None) -> Engine:
    """
    Maps the files and reads the model. tensors: (name, type_id, shape, file_index, offset). progress is called with the bytes of weights that were read, and all there are.
    """

class Session:
    """One sequence: a KV cache of an engine."""

    def __init__(self, engine: Engine) -> None: ...

    @property
    def n_past(self) -> int: ...

    def truncate(self, n: int) -> None:
        """Keeps the first n positions."""

    def forward(self, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], logits_of: str = 'last') -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
        """
        Appends tokens; logits_of: none, last or all. Float32 logits [0, 1 or len(tokens), n_vocab].
        """

    def forward_top(self, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], k: int, n_vocab: int) -> tuple[Annotated[NDArray[numpy.int32], dict(shape=(None, None))], Annotated[NDArray[numpy.float32], dict(shape=(None, None))]]:
        """
        Appends tokens; of the last one's logits the k largest of the first n_vocab, largest first: ids int32 [1, k], logits float32 [1, k].
        """

    def residuals(self, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None))]:
        """
        Appends tokens; the residual stream before each layer and after the last, float32 [n_layer + 1, len(tokens), n_embd].
        """

def decode(sessions: Sequence[Session], tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
    """One token for each session; float32 logits [len(sessions), n_vocab]."""

def decode_top(sessions: Sequence[Session], tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], k: int, n_vocab: int) -> tuple[Annotated[NDArray[numpy.int32], dict(shape=(None, None))], Annotated[NDArray[numpy.float32], dict(shape=(None, None))]]:
    """
    The same with each session's k largest logits of the first n_vocab, largest first: ids int32 [len(sessions), k], logits float32 [len(sessions), k].
    """

class Sampler:
    pass

def sampler_top_k(arg: int, /) -> Sampler: ...

def sampler_top_p(arg0: float, arg1: int, /) -> Sampler: ...

def sampler_min_p(arg0: float, arg1: int, /) -> Sampler: ...

def sampler_typical_p(arg0: float, arg1: int, /) -> Sampler: ...

def sampler_top_n_sigma(arg: float, /) -> Sampler: ...

def sampler_xtc(arg0: float, arg1: float, arg2: int, /) -> Sampler: ...

def sampler_greedy() -> Sampler: ...

def sampler_temperature(arg0: float, arg1: float, arg2: float, /) -> Sampler: ...

def sampler_logit_bias(arg: Sequence[tuple[int, float]], /) -> Sampler: ...

def sampler_penalties(arg0: int, arg1: float, arg2: float, arg3: float, /) -> Sampler: ...

def sampler_dry(arg0: float, arg1: float, arg2: int, arg3: int, arg4: Sequence[tuple[int, Sequence[int]]], /) -> Sampler: ...

def sampler_mirostat(arg0: float, arg1: float, /) -> Sampler: ...

def sampler_mirostat_v2(arg0: float, arg1: float, /) -> Sampler: ...

def sampler_custom(arg: Callable, /) -> Sampler: ...

def dry_match_breaker(arg0: bytes, arg1: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], arg2: bytes, /) -> list[tuple[int, int]]: ...

class Chain:
    def __init__(self, arg0: Sequence[Sampler], arg1: int, /) -> None: ...

    def sample(self, arg: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], /) -> int: ...

    def n_needed(self) -> int | None: ...

    def sample_top(self, arg0: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg1: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg2: int, /) -> int: ...

    def distribution(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], history: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None) -> tuple: ...

    def accept(self, arg: int, /) -> None: ...

    def accept_many(self, arg: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], /) -> None: ...

    def expect_n_vocab(self, arg: int, /) -> None: ...

    def reset(self, arg: int, /) -> None: ...

    def replace(self, arg0: int, arg1: Sampler, /) -> None: ...

    def clone(self) -> Chain: ...

    def history(self) -> object: ...
