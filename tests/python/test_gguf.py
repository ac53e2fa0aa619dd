"""Sound GGUF files: what the parser reads of built files, the gguf package's files and real ones."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gristmill.gguf import GGUFFile, TensorInfo
from gristmill.gguf_types import REMOVED_TENSOR_TYPES, TENSOR_TYPES, VALUE_TYPES
from hostile import ONE_OF_EACH, STRING, U8, U32, Raw, kv, nested, sound, tensor


def plain_value(value: Any) -> Any:
    """An entry of ONE_OF_EACH as the parser should give it."""
    if isinstance(value, tuple):
        return [plain_value(item) for item in value[1]]
    return value


def opened(path: Path, raw: Raw) -> GGUFFile:
    path.write_bytes(raw.build())
    return GGUFFile.open(path)


@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type(version: int, tmp_path: Path) -> None:
    """Versions 2 and 3, all value types, nested arrays; no type is changed (promise 7)."""
    path = tmp_path / "model.gguf"
    with opened(path, sound(version)) as file:
        assert file.version == version
        assert file.path == path
        assert file.paths == [path]
        assert file.file_sizes == [path.stat().st_size]
        assert file.alignment == 32
        assert list(file.metadata) == [key for key, _, _ in ONE_OF_EACH]
        for key, _, value in ONE_OF_EACH:
            got = file.metadata[key]
            assert got == plain_value(value), key
            assert type(got) is type(plain_value(value)), key


def test_tensor_table(tmp_path: Path) -> None:
    """Shapes are in numpy's order and offsets absolute."""
    raw = sound()
    start = -(-len(raw.header()) // 32) * 32
    with opened(tmp_path / "m.gguf", raw) as file:
        assert list(file.tensors.values()) == [
            TensorInfo("a.weight", (2, 32), "F32", 0, start, 256, 0),
            TensorInfo("b.weight", (64,), "F32", 0, start + 256, 256, 0),
        ]
        assert file.tensors["a.weight"].n_elements == 64
        assert file.tensors["a.weight"].end == start + 256


@pytest.mark.parametrize("alignment", [8, 16, 24, 64, 4096, 1 << 20])
def test_alignment(alignment: int, tmp_path: Path) -> None:
    """general.alignment moves the data, also where it is no power of two, which the specification allows."""
    raw = Raw(
        kvs=[kv("general.alignment", U32, alignment)],
        tensors=[tensor("a", ne=[2]), tensor("b", ne=[2], offset=alignment)],
        data=bytes(alignment + 8),
        alignment=alignment,
    )
    with opened(tmp_path / "m.gguf", raw) as file:
        assert file.alignment == alignment
        assert file.tensors["a"].offset == -(-len(raw.header()) // alignment) * alignment
        assert file.tensors["b"].offset == file.tensors["a"].offset + alignment


def test_no_tensors_no_keys(tmp_path: Path) -> None:
    """A vocabulary-only file has no tensors; the smallest file has nothing."""
    with opened(tmp_path / "m.gguf", Raw()) as file:
        assert not file.tensors
        assert not file.metadata
    content = Raw(kvs=[kv("x", U8, 1)]).header()  # no padding behind the header either
    (tmp_path / "v.gguf").write_bytes(content)
    with GGUFFile.open(tmp_path / "v.gguf") as file:
        assert dict(file.metadata) == {"x": 1}


def test_tensors_in_any_order_with_gaps(tmp_path: Path) -> None:
    """Offsets need neither ascend nor be dense; bytes behind the last tensor are nobody's business."""
    raw = Raw(tensors=[tensor("late", ne=[8], offset=640), tensor("early", ne=[8])], data=bytes(4096))
    with opened(tmp_path / "m.gguf", raw) as file:
        assert file.tensors["late"].offset - file.tensors["early"].offset == 640


def test_limits_are_inclusive(tmp_path: Path) -> None:
    """What lies on a limit is accepted: 64-byte tensor names, 65535-byte keys, 8 array levels, 4 dims."""
    raw = sound()
    raw.kvs += [kv("k" * 65535, U8, 1), nested(8)]
    raw.tensors = [tensor("n" * 64, ne=[2, 2, 2, 2])]
    with opened(tmp_path / "m.gguf", raw) as file:
        assert file.metadata["k" * 65535] == 1
        assert file.metadata["deep"] == [[[[[[[[1]]]]]]]]
        assert file.tensors["n" * 64].shape == (2, 2, 2, 2)


def test_bytes_that_are_not_utf8_survive(tmp_path: Path) -> None:
    """Values need not be UTF-8: surrogateescape keeps their bytes, as byte-level vocabularies need."""
    raw = sound()
    raw.kvs += [kv("s", STRING, b"\xff\x80ok"), kv("tokens", 9, (STRING, [b"\xe6\x97", b"\xa5", "日"]))]
    with opened(tmp_path / "m.gguf", raw) as file:
        assert str(file.metadata["s"]).encode("utf-8", "surrogateescape") == b"\xff\x80ok"
        tokens = file.metadata.get_array("tokens", str)
        assert [t.encode("utf-8", "surrogateescape") for t in tokens] == [b"\xe6\x97", b"\xa5", "日".encode()]
        assert file.metadata.scalars()["s"] == "\ufffd\ufffdok"


def test_values_spread_over_many_reads(tmp_path: Path) -> None:
    """Strings, arrays and entries that straddle the reader's steps come out whole."""
    words = [f"w{i}" * (i % 97) for i in range(60_000)]
    raw = Raw(kvs=[kv("words", 9, (STRING, words)), kv("long", STRING, "日" * 2_000_000), kv("end", U8, 7)])
    with opened(tmp_path / "m.gguf", raw) as file:
        assert file.metadata["words"] == words
        assert file.metadata["long"] == "日" * 2_000_000
        assert file.metadata["end"] == 7


def test_descriptor_lives_until_close(tmp_path: Path) -> None:
    """fileno() is of the file that was parsed, whatever its path names later; metadata outlives close()."""
    path = tmp_path / "m.gguf"
    file = opened(path, sound())
    path.unlink()
    assert os.fstat(file.fileno()).st_size == file.file_sizes[0]
    file.check_extents()
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.fileno()
    assert file.metadata["t.u8"] == 255


def test_forgotten_file_is_closed_quietly(tmp_path: Path) -> None:
    """A GGUFFile that is dropped leaves no descriptor and no ResourceWarning."""
    path = tmp_path / "m.gguf"
    gc.collect()  # what earlier tests left to be closed is not this one's
    before = len(list(Path("/proc/self/fd").iterdir()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(path, sound())
        gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_type_tables_agree_with_the_gguf_package() -> None:
    """The hand-kept tables name every type the gguf package knows, with its number and size."""
    for kind in GGMLQuantizationType:
        assert TENSOR_TYPES[int(kind)] == (kind.name, *GGML_QUANT_SIZES[kind])
    assert not set(TENSOR_TYPES) & set(REMOVED_TENSOR_TYPES)
    assert [t.name for t in VALUE_TYPES] == [t.name.lower() for t in GGUFValueType]


def write_with_package(path: Path) -> None:
    """A file of many types and tensor formats from gguf.GGUFWriter."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(4096)
    writer.add_rope_freq_base(1e6)
    writer.add_token_list(["a", "b", "<|im_end|>"])
    writer.add_token_types([1, 1, 3])
    writer.add_token_scores([0.0, -1.0, 0.5])
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    writer.add_array("nested.ints", [1, -2, 3])
    rng = np.random.default_rng(1)
    writer.add_tensor("token_embd.weight", rng.standard_normal((5, 64), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.add_tensor("half", rng.standard_normal((3, 2, 8)).astype(np.float16))
    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.BF16):
        array = rng.standard_normal((4, 256), dtype=np.float32)
        writer.add_tensor(f"q.{kind.name}", gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def assert_same_as_package(path: Path) -> None:
    """Everything gguf.GGUFReader reads from ``path``, GGUFFile reads the same."""
    reader = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        theirs = {key: f.contents() for key, f in reader.fields.items() if not key.startswith("GGUF.")}
        assert dict(file.metadata) == theirs
        assert [t.name for t in reader.tensors] == list(file.tensors)
        for tensor in reader.tensors:
            ours = file.tensors[tensor.name]
            assert ours.shape == tuple(reversed([int(n) for n in tensor.shape]))
            assert ours.type == tensor.tensor_type.name
            assert ours.type_id == int(tensor.tensor_type)
            assert ours.offset == int(tensor.data_offset)
            assert ours.n_bytes == int(tensor.n_bytes)
            assert ours.n_elements == int(tensor.n_elements)


def test_round_trip_with_the_gguf_package(tmp_path: Path) -> None:
    """Files of gguf.GGUFWriter read as gguf.GGUFReader reads them."""
    path = tmp_path / "m.gguf"
    write_with_package(path)
    assert_same_as_package(path)


def test_smollm2_against_the_gguf_package(smollm2_path: Path) -> None:
    """The demo model, field by field."""
    assert_same_as_package(smollm2_path)


def test_qwen7b_header(qwen7b_part_path: Path) -> None:
    """A real header of 152 064 tokens is right and opens in under 0.4 s, the best of three runs."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        file = GGUFFile.open(qwen7b_part_path, check_extents=False)
        seconds.append(time.perf_counter() - begin)
        file.close()
    assert min(seconds) < 0.4
    assert len(file.tensors) == 339
    assert file.metadata.array_length("tokenizer.ggml.tokens") == 152_064
    assert file.tensors["output.weight"].shape == (152_064, 3584)
    assert file.metadata.get_int("qwen2.block_count") == 28


def test_qwen2_vocabulary(shared_data: Path) -> None:
    """A real vocabulary-only file opens with the extents checked."""
    with GGUFFile.open(shared_data / "qwen2-vocab.gguf") as file:
        assert not file.tensors
        assert file.metadata.get_array("tokenizer.ggml.tokens", str)[:3] == ["!", '"', "#"]


def test_import_is_cheap() -> None:
    """Importing the parser pulls in neither the gguf package nor anything as heavy."""
    code = "import sys, gristmill.gguf; print({'gguf', 'jinja2', 'tokenizers', 'rich'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
