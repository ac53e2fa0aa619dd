"""What gristmill promises about bad input and bad luck: the tests that prove each promise, and the few tests
that belong to no single part."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import gristmill
import numpy as np
import pytest

TinyModel = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Promise:
    text: str
    proofs: tuple[str, ...]
    """``file.py::test`` beside this file, or a C++ file under tests/, ``cpp/file.cpp::function``."""


PROMISES = {
    1: Promise(
        "No file crashes the process.",
        (
            "test_gguf_fuzz.py::test_mutated_files",
            "test_gguf_fuzz.py::test_random_bytes_behind_the_magic",
            "test_tokenizer_errors.py::test_truncated_files_are_errors_of_ours",
            "cpp/test_engine.cpp::hostile_tensors",
            "cpp/test_engine.cpp::hostile_metadata",
            "cpp/test_formats.cpp::check_bytes",
            "fuzz/fuzz_engine.cpp::LLVMFuzzerTestOneInput",
            "fuzz/fuzz_formats.cpp::LLVMFuzzerTestOneInput",
            "fuzz/fuzz_sampling.cpp::LLVMFuzzerTestOneInput",
        ),
    ),
    2: Promise(
        "Every refusal is one line that names the file and the flaw; exit 1, 2 for usage.",
        (
            "test_gguf_hostile.py::test_is_refused_by_name",
            "test_gguf_hostile.py::test_command_line_says_it_in_one_line",
            "test_cli_run.py::test_errors_are_one_line",
            "test_cli_run.py::test_a_warning_is_one_line",
            "test_cli_parser.py::test_refused",
            "test_lab_perplexity.py::test_refused_in_one_line",
            "test_lab_compare.py::test_refused_in_one_line",
            "test_lab_analyze.py::test_refused_in_one_line",
        ),
    ),
    3: Promise(
        "Memory for a header is a small multiple of its bytes.",
        (
            "test_gguf_limits.py::test_memory_is_a_small_multiple_of_the_header",
            "test_gguf_hostile.py::test_sparse_file_of_one_string_is_not_read_whole",
            "test_gguf_hostile.py::test_many_small_arrays_within_an_array_are_bounded_work",
        ),
    ),
    4: Promise(
        "All size arithmetic is checked.",
        ("test_gguf_hostile.py::test_is_refused_by_name", "cpp/test_engine.cpp::hostile_tensors"),
    ),
    5: Promise(
        "Every tensor lies inside the file before it is touched.",
        (
            "test_gguf_hostile.py::test_extents_are_held_against_the_size_the_file_has_now",
            "test_gguf_hostile.py::test_every_truncation_of_a_sound_file_is_refused",
            "test_gguf_split.py::test_truncated_part_is_named",
            "cpp/test_engine.cpp::hostile_tensors",
            "test_promises.py::test_a_cut_file_does_not_load",
        ),
    ),
    6: Promise(
        "A file cut while it is mapped gives an error, not a dead process.",
        (
            "test_promises.py::test_file_cut_while_in_use",
            "test_promises.py::test_file_cut_in_the_middle_of_a_prefill",
            "test_gguf_hostile.py::test_file_cut_while_its_header_is_read",
            "cpp/test_mapped_file.cpp::cut_while_mapped",
            "cpp/test_mapped_file.cpp::cut_under_many_threads",
            "cpp/test_mapped_file.cpp::previous_handler_is_asked",
            "cpp/test_engine.cpp::cut_file",
        ),
    ),
    7: Promise(
        "Metadata types are checked, never reinterpreted; element types of arrays too.",
        (
            "test_metadata.py::test_wrong_or_missing",
            "test_metadata.py::test_override_of_the_wrong_type",
            "test_info.py::test_wrong_type_names_the_key",
            "test_tokenizer_errors.py::test_contradictions",
            "cpp/test_engine.cpp::hostile_metadata",
        ),
    ),
    8: Promise(
        "Hyperparameters are consistent before anything is computed.",
        ("cpp/test_engine.cpp::hostile_metadata", "test_info.py::test_absurd_heads"),
    ),
    9: Promise(
        "Work on a header is near-linear in keys and tensors.",
        ("test_gguf_limits.py::test_100_000_of_anything_under_5_seconds",),
    ),
    10: Promise(
        "Templates reach no Python object, file or process.",
        (
            "test_chat_limits.py::test_nothing_outside_is_reached",
            "test_chat_limits.py::test_messages_are_copies",
            "test_chat.py::test_only_plain_data_goes_in",
        ),
    ),
    11: Promise(
        "Templates have limits on steps or time, memory and output that really stop them.",
        (
            "test_chat_limits.py::test_limits_stop_it_soon_and_in_little_memory",
            "test_chat_limits.py::test_each_limit_says_its_name",
        ),
    ),
    12: Promise(
        "Tokenizing 1 MB of one character is near-linear and without recursion.",
        (
            "test_tokenizer.py::test_a_megabyte_of_one_thing_takes_linear_time",
            "test_tokenizer.py::test_every_split_takes_linear_time",
        ),
    ),
    13: Promise(
        "Non-finite logits stop the request with an error.",
        (
            "test_promises.py::test_nan_scale_names_the_position",
            "test_model_session.py::test_nan_weights_are_an_error",
            "test_sampling_chain.py::test_non_finite_logits_stop",
            "cpp/test_engine.cpp::nan_blocks",
            "cpp/test_engine.cpp::errors_append_nothing",
        ),
    ),
    14: Promise(
        "Downloads stay in their folder, are verified, resume, are renamed when whole; tokens never cross "
        "hosts; kill -9 and a full disk lose nothing.",
        (
            "test_pull.py::test_wheels_that_are_refused",
            "test_pull.py::test_model_that_is_not_what_is_expected",
            "test_pull_download.py::test_wrong_hash_leaves_nothing",
            "test_pull_download.py::test_a_later_call_goes_on_from_the_part",
            "test_pull_download.py::test_credentials_do_not_cross_hosts",
            "test_pull_download.py::test_kill_in_the_middle_loses_nothing",
            "test_pull_download.py::test_full_disk_keeps_what_is_there",
        ),
    ),
    15: Promise(
        "A failed allocation, map, read or device call is an error of that call; the process stays usable.",
        (
            "test_promises.py::test_a_context_that_memory_cannot_hold",
            "test_promises.py::test_memory_that_runs_out_anywhere",
            "test_gguf_hostile.py::test_read_error_is_reported",
            "test_cli_run.py::test_out_of_memory_and_the_unexpected",
            "cpp/test_thread_pool.cpp::exceptions",
        ),
    ),
    16: Promise(
        "Nothing in a model file is ever executed; no pickle, no remote code.",
        (
            "test_promises.py::test_nothing_that_executes_data_is_used",
            "test_chat_limits.py::test_nothing_outside_is_reached",
        ),
    ),
}


@pytest.mark.parametrize("number", PROMISES)
def test_every_promise_has_its_tests(number: int) -> None:
    assert PROMISES[number].proofs
    for proof in PROMISES[number].proofs:
        name, _, function = proof.partition("::")
        if name.endswith(".py"):
            tree = ast.parse((Path(__file__).parent / name).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, proof
        else:
            source = (ROOT / "tests" / name).read_text()
            uses = re.findall(rf"\b{function}\b(?:<\w+>)?\(", source)
            called = len(uses) >= 2 or (function == "LLVMFuzzerTestOneInput" and len(uses) == 1)
            assert called, f"{proof} is not defined and called"


def test_all_promises_are_listed() -> None:
    assert list(PROMISES) == list(range(1, 17))


# Promises 5 and 6


@pytest.fixture
def own_copy(tiny_model: TinyModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model(formats="Q4_K", n_layer=3).read_bytes())
    return path


def cut(path: Path, keep: float) -> None:
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * keep))


def test_a_cut_file_does_not_load(own_copy: Path) -> None:
    cut(own_copy, 0.9)
    with pytest.raises(gristmill.GGUFError, match=re.escape(str(own_copy))):
        gristmill.load(own_copy)


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_file_cut_while_in_use(own_copy: Path, tiny_model: TinyModel, n_threads: int, keep: float) -> None:
    other = gristmill.load(tiny_model(formats="Q4_K", n_layer=3), n_threads=n_threads)
    before = other.session().forward(range(60))
    model = gristmill.load(own_copy, n_threads=n_threads)
    session = model.session()
    session.forward([1, 2, 3])
    cut(own_copy, keep)
    for _ in range(2):  # and it stays so
        with pytest.raises(gristmill.GGUFError, match=f"^{re.escape(str(own_copy))}: the file was cut"):
            session.forward(range(60))
    assert session.n_past == len(session.tokens) == 3
    # Other models of the process do not notice.
    assert np.array_equal(other.session().forward(range(60)), before)


def test_file_cut_in_the_middle_of_a_prefill(own_copy: Path) -> None:
    """In a process of its own: if the promise were broken, it would be dead."""
    program = f"""
import os, threading, time, gristmill
model = gristmill.load({str(own_copy)!r}, n_threads=4)
session = model.session()
session.forward(list(range(200)))
stop = threading.Event()
def cut():
    time.sleep(0.05)
    os.truncate({str(own_copy)!r}, 8192)
thread = threading.Thread(target=cut)
thread.start()
deadline = time.monotonic() + 60
try:
    while time.monotonic() < deadline:
        session.truncate(0)
        session.forward(list(range(200)))
    print("never noticed")
except gristmill.GGUFError as error:
    print("alive:", error)
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"alive: {own_copy}: the file was cut"), done.stdout


# Promise 13


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16"])
@pytest.mark.parametrize("tensor", ["token_embd", "blk.1.attn_v", "blk.2.ffn_up", "output"])
def test_nan_scale_names_the_position(tiny_model: TinyModel, tmp_path: Path, name: str, tensor: str) -> None:
    """One block of NaN in one row of one matrix, on whichever instruction set this machine runs best."""
    source = tiny_model(formats=name, n_layer=3)
    with gristmill.GGUFFile.open(source) as file:
        info = file.tensors[f"{tensor}.weight"]
    row = info.n_bytes // info.shape[0]
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    data = bytearray(source.read_bytes())
    data[info.offset + 7 * row : info.offset + 7 * row + block] = b"\xff" * block
    path = tmp_path / "nan.gguf"
    path.write_bytes(data)
    session = gristmill.load(path).session()
    ids = [1, 2, 3, 7]
    if tensor == "token_embd":
        session.forward(ids[:3])  # rows without the flaw
        ids = ids[3:]
    n_past = session.n_past
    with pytest.raises(
        gristmill.Error, match=rf"^{re.escape(str(path))}: the logits at position 3 are not finite"
    ):
        session.forward(ids)
    assert session.n_past == len(session.tokens) == n_past


# Promise 15


def run_limited(program: str) -> str:
    """Output of a program that may set limits on its own address space, which must end by itself."""
    header = """
import os, resource, sys, numpy as np, gristmill
def address_space():
    return int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
def limit(more):
    size = address_space() + more if more is not None else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
"""
    done = subprocess.run(
        [sys.executable, "-c", header + program], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")


@needs_limits
def test_a_context_that_memory_cannot_hold(tiny_model: TinyModel) -> None:
    path = str(tiny_model(formats="Q4_K"))
    out = run_limited(f"""
import warnings
warnings.simplefilter("ignore")
model = gristmill.load({path!r}, n_ctx=2**31 - 1, n_threads=2)
limit(1 << 30)
try:
    model.session()
    print("no error")
except gristmill.DeviceError as error:
    print(type(error).__name__, error)
small = gristmill.load({path!r}, n_ctx=64, n_threads=2)
print(np.isfinite(small.session().forward([1, 2, 3])).all())
""")
    error, alive = out.splitlines()
    assert error.startswith("DeviceError [kv cache]")
    assert "2147483647" in error
    assert "n_ctx" in error
    assert alive == "True"


@needs_limits
def test_memory_that_runs_out_anywhere(tiny_model: TinyModel) -> None:
    """Loading, sessions and passes under ever larger limits: errors until one fits, then the right logits.

    The threads of a fresh model have no work space yet, so some of the failures are theirs.
    """
    path = str(tiny_model(formats="Q4_K", n_ctx=512, n_ff=8192, n_layer=1))
    out = run_limited(f"""
ids = [i % 300 for i in range(500)]
def load():
    return gristmill.load({path!r}, n_threads=4)
model = load()
expected = model.session().forward(ids)
failures = passes = 0
for step in range(400):
    fresh = load()
    limit(step * (32 << 10))
    try:
        if step % 8 == 0:
            fresh = load()
        same = np.array_equal(fresh.session().forward(ids), expected)
        passes += 1
    except (gristmill.DeviceError, MemoryError):
        failures += 1
        limit(None)
        # With memory to spare again, nothing is left broken.
        assert np.array_equal(fresh.session().forward(ids), expected), step
        continue
    finally:
        limit(None)
    assert same, step
    if passes == 8:
        break
assert np.array_equal(model.session().forward(ids), expected)
print(failures, passes)
""")
    failures, passes = map(int, out.split())
    assert failures >= 2
    assert passes == 8


# Promise 16


def test_nothing_that_executes_data_is_used() -> None:
    """No module of the package uses pickle, marshal, eval, exec or a shell."""
    forbidden_modules = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
    forbidden_calls = {"eval", "exec", "compile", "__import__", "system", "popen"}
    package = Path(gristmill.__file__).parent
    found: list[str] = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)}"
            names: list[Any] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            found += [f"{where}: {name}" for name in names if name in forbidden_modules]
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else None
                if name is None and isinstance(node.func, ast.Attribute):
                    is_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
                    name = node.func.attr if is_os else None
                found += [f"{where}: {name}()"] if name in forbidden_calls else []
                found += [
                    f"{where}: shell=True"
                    for word in node.keywords
                    if word.arg == "shell" and getattr(word.value, "value", None) is not False
                ]
                allow_pickle = [word for word in node.keywords if word.arg == "allow_pickle"]
                found += [
                    f"{where}: allow_pickle" for word in allow_pickle if getattr(word.value, "value", True)
                ]
    assert not found
