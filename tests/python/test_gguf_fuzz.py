"""Property tests of the header parser: any bytes parse or raise GGUFError, in bounded time and memory."""

from __future__ import annotations

import functools
import math
import tempfile
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gristmill import ArgumentError, GGUFError
from gristmill.gguf import GGUFFile
from gristmill.info import describe
from hostile import (
    ARRAY,
    BOOL,
    F32,
    F64,
    HUGE,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Raw,
    kv,
    sound,
    tensor,
    u32,
    u64,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

fuzz = functools.partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path that every example writes its file to."""
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.gguf"


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Small valid files of our own builder and of gguf.GGUFWriter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "qwen2")
        writer.add_context_length(64)
        writer.add_block_count(2)
        writer.add_embedding_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_token_list([f"token{i}" for i in range(40)])
        writer.add_token_types([1] * 40)
        writer.add_chat_template("{{ x }}")
        writer.add_tensor("token_embd.weight", np.ones((40, 64), np.float32))
        kind = gguf.GGMLQuantizationType.Q8_0
        packed = gguf.quants.quantize(np.ones((4, 64), np.float32), kind)
        writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        written = path.read_bytes()
    split = Raw(kvs=[kv("split.no", U16, 0), kv("split.count", U16, 1), kv("split.tensors.count", I32, 0)])
    return sound(3).build(), sound(2).build(), written, split.build()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file after a few cuts, insertions, repeats and overwrites, some with extreme numbers."""
    content = bytearray(draw(st.sampled_from(seeds())))
    extremes = [u64(n) for n in (0, 1, 2, 7, 255, 65535, *HUGE)] + [
        u32(n) for n in (0, 1, 9, 13, 2**31, 2**32 - 1)
    ]
    for _ in range(draw(st.integers(1, 4))):
        # Most of a file is data; what is interesting lies in front.
        at = draw(st.integers(0, min(len(content), draw(st.sampled_from([64, 512, 1 << 20])))))
        what = draw(
            st.sampled_from(["overwrite", "overwrite", "extreme", "insert", "delete", "repeat", "cut"])
        )
        if what == "overwrite":
            patch = draw(st.binary(min_size=1, max_size=4))
            content[at : at + len(patch)] = patch
        elif what == "extreme":
            patch = draw(st.sampled_from(extremes))
            content[at : at + len(patch)] = patch
        elif what == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif what == "delete":
            del content[at : at + draw(st.integers(1, 32))]
        elif what == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 20))
        else:
            del content[at:]
    return bytes(content)


def use(file: GGUFFile, file_size: int) -> None:
    """Everything that works on a header alone. Raises GGUFError where a key has the wrong type."""
    list(file.metadata.items())
    file.metadata.scalars()
    for t in file.tensors.values():
        assert t.n_elements > 0
        assert t.end < 2**63
    describe(file).to_dict()
    try:
        file.check_extents()
    except GGUFError:
        return
    assert all(t.end <= file_size for t in file.tensors.values())


def exercise(path: Path, content: bytes) -> bool:
    """Write ``content`` to ``path``, open it and use it. True if it parsed; GGUFError is the only refusal."""
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with GGUFFile.open(path, check_extents=False) as file:
            parsed_peak = tracemalloc.get_traced_memory()[1]
            use(file, len(content))
        parsed = True
    except GGUFError as error:
        parsed_peak = tracemalloc.get_traced_memory()[1]
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        parsed = False
    finally:
        seconds = time.perf_counter() - begin
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds < 2
    assert parsed_peak < 16 * len(content) + (1 << 18)
    assert peak < 64 * len(content) + (1 << 19)  # decoded: a Python object for each byte of a uint8 array
    return parsed


@fuzz(max_examples=600)
@given(mutated())
def test_mutated_files(fuzzed: Path, content: bytes) -> None:
    """Promises 1 to 5: a mutated file parses or raises GGUFError; time and memory stay small either way."""
    exercise(fuzzed, content)


@fuzz(max_examples=200)
@given(st.binary(max_size=400))
def test_random_bytes_behind_the_magic(fuzzed: Path, content: bytes) -> None:
    """Promises 1 to 4 for bytes that resemble nothing."""
    exercise(fuzzed, b"GGUF" + u32(3) + content)


def test_seeds_parse(fuzzed: Path) -> None:
    """The files that the fuzzing starts from are sound, so that mutations reach deep into the parser."""
    assert all(exercise(fuzzed, seed) for seed in seeds())


def integers(bits: int, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else st.integers(0, (1 << bits) - 1)


PLAIN: dict[int, st.SearchStrategy[object]] = {
    U8: integers(8, False),
    I8: integers(8, True),
    U16: integers(16, False),
    I16: integers(16, True),
    U32: integers(32, False),
    I32: integers(32, True),
    F32: st.floats(width=32, allow_nan=False),
    BOOL: st.booleans(),
    STRING: st.text(max_size=20),
    U64: integers(64, False),
    I64: integers(64, True),
    F64: st.floats(allow_nan=False),
}
Typed = tuple[int, object]


def arrays(depth: int) -> st.SearchStrategy[Typed]:
    """(ARRAY, (element type, values)) nested up to ``depth`` deep."""
    flat = st.sampled_from(sorted(PLAIN)).flatmap(
        lambda t: st.lists(PLAIN[t], max_size=6).map(lambda values: (ARRAY, (t, values)))
    )
    if depth == 1:
        return flat
    inner = st.lists(arrays(depth - 1).map(lambda typed: typed[1]), max_size=3)
    return flat | inner.map(lambda values: (ARRAY, (ARRAY, values)))


TYPED = arrays(3) | st.sampled_from(sorted(PLAIN)).flatmap(lambda t: st.tuples(st.just(t), PLAIN[t]))


def plain_value(typed: Typed) -> object:
    """What the parser should make of a (type, value) pair."""
    type_id, value = typed
    if type_id != ARRAY:
        return value
    element, values = value  # type: ignore[misc]
    return [plain_value((element, item)) for item in values]


@fuzz(max_examples=300)
@given(
    st.dictionaries(st.text(max_size=30).map("key.".__add__), TYPED, max_size=8),
    st.dictionaries(st.text(min_size=1, max_size=16), st.lists(st.integers(1, 5), min_size=1, max_size=4)),
    st.sampled_from([2, 3]),
)
def test_any_valid_file_round_trips(
    fuzzed: Path, entries: dict[str, Typed], shapes: dict[str, list[int]], version: int
) -> None:
    """Whatever GGUF can express comes back as it was written, with the same types."""
    tensors, offset = [], 0
    for name, ne in shapes.items():
        tensors.append(tensor(name, ne=ne, offset=offset))
        offset += -(-4 * math.prod(ne) // 32) * 32
    kvs = [kv(key, *typed) for key, typed in entries.items()]
    fuzzed.write_bytes(Raw(kvs=kvs, tensors=tensors, data=bytes(offset), version=version).build())
    with GGUFFile.open(fuzzed) as file:
        for key, typed in entries.items():
            # repr() tells True from 1 and 1 from 1.0
            assert repr(file.metadata[key]) == repr(plain_value(typed))
        assert {name: list(reversed(t.shape)) for name, t in file.tensors.items()} == shapes


KEYS = st.sampled_from(["t.u8", "t.f32", "general.name", "llama.block_count", "x"])
VALUES = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=8))


@fuzz(max_examples=200)
@given(mutated(), st.dictionaries(KEYS, VALUES))
def test_overrides_on_mutated_files(fuzzed: Path, content: bytes, overrides: dict[str, object]) -> None:
    """Promise 7: an override is in force with the file's type, or refused; never anything else."""
    fuzzed.write_bytes(content)
    try:
        with GGUFFile.open(fuzzed, check_extents=False) as file:
            metadata = file.metadata.with_overrides(overrides)
    except (GGUFError, ArgumentError):
        return
    for key, value in overrides.items():
        assert metadata[key] == value
        kind = metadata.value_type(key)
        assert kind is None or type(metadata[key]) is kind.python
