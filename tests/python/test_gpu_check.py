"""benchmarks/gpu/check.sh on a build folder of stand-ins: verdicts, exit status, and what it leaves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "check.sh"


class Fixture:
    """A build folder with scripts where check.sh expects programs."""

    def __init__(self, folder: Path) -> None:
        self.build = folder / "build"
        self.out = folder / "out"
        self.bin = folder / "bin"
        self.bin.mkdir()

    def program(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def test(self, name: str, body: str) -> None:
        self.program(self.build / "tests" / "cuda" / f"gpu_test_{name}", body)

    def check(self, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "GRISTMILL_GPU_BUILD": str(self.build),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            **environment,
        }
        return subprocess.run(
            ["bash", str(SCRIPT), str(self.out), *parts],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )


@pytest.fixture
def gpu(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_failed_test_has_its_status(gpu: Fixture) -> None:
    gpu.test("good", "exit 0")
    gpu.test("bad", "echo what was wrong; exit 3")
    result = gpu.check("tests")
    assert "gpu_test_good: ok" in result.stdout
    assert "gpu_test_bad: FAILED (3)" in result.stdout
    assert "what was wrong" in result.stdout
    assert "tests: FAILED" in result.stdout
    assert result.returncode == 1


def test_no_test_is_a_failure(gpu: Fixture) -> None:
    result = gpu.check("tests")
    assert "tests: FAILED" in result.stdout
    assert result.returncode == 1


def test_failed_model_has_its_status(gpu: Fixture) -> None:
    bench = 'case $1 in model:Q8_0*) exit 7 ;; esac\necho "{\\"part\\": \\"model\\"}" >&2'
    gpu.program(gpu.build / "benchmarks" / "gpu" / "gpu_bench", bench)
    result = gpu.check("models", GRISTMILL_GPU_MIXES="Q4_0 Q8_0")
    assert "model Q8_0: FAILED (7)" in result.stdout
    assert "model Q4_0" not in result.stdout
    assert result.returncode == 1


def test_logits_of_other_bits(gpu: Fixture) -> None:
    """Those of the first mix are compared with what each switch gives."""
    line = '{\\"part\\": \\"logits\\", \\"name\\": \\"Q4_0, four layers, bits\\", \\"value\\": %s}'
    body = f'echo "{line % 12}"'
    gpu.program(gpu.build / "benchmarks" / "gpu" / "gpu_bench", body)
    assert gpu.check("logits", GRISTMILL_GPU_MIXES="Q4_0 Q8_0").returncode == 0
    other = f'if [ "$GRISTMILL_CUDA_GRAPHS" = 0 ]; then echo "{line % 13}"; else {body}; fi'
    gpu.program(gpu.build / "benchmarks" / "gpu" / "gpu_bench", other)
    result = gpu.check("logits", GRISTMILL_GPU_MIXES="Q4_0 Q8_0")
    assert "GRISTMILL_CUDA_GRAPHS=0: other bits than usual" in result.stdout
    assert "DEPENDENT_LAUNCH=0: other" not in result.stdout
    assert result.returncode == 1


def test_part_that_cannot_run_says_so(gpu: Fixture) -> None:
    gpu.program(gpu.bin / "python3", "exit 1")  # has no package
    result = gpu.check("python")
    assert "python: not run" in result.stdout
    assert "python: ok" not in result.stdout
    assert result.returncode == 0


def test_sanitizer_verdicts(gpu: Fixture) -> None:
    gpu.test("clean", "exit 0")
    gpu.test("racy", "exit 0")
    gpu.program(gpu.bin / "compute-sanitizer", 'case "$*" in *racecheck*racy) exit 9 ;; esac')
    result = gpu.check("sanitizer")
    assert "memcheck-gpu_test_racy: clean" in result.stdout
    assert "racecheck-gpu_test_racy: FAILED" in result.stdout
    assert "3 clean, 0 not finished, 0 not begun" in result.stdout
    assert "sanitizer: FAILED" in result.stdout
    assert result.returncode == 1


def test_sanitizer_that_finishes_nothing_is_not_ok(gpu: Fixture) -> None:
    gpu.test("slow", "exit 0")
    gpu.test("library", "exit 0")
    gpu.program(gpu.bin / "compute-sanitizer", "exec sleep 30")
    result = gpu.check("sanitizer", GRISTMILL_GPU_SANITIZER_SECONDS="0", GRISTMILL_GPU_TEST_SECONDS="1")
    assert "memcheck-gpu_test_slow: no finding in 1 s, not finished" in result.stdout
    assert "0 clean, 2 not finished, 2 not begun after 0 s" in result.stdout
    assert "sanitizer: not run" in result.stdout
    assert "memcheck-gpu_test_slow" in (gpu.out / "log.txt").read_text()


def test_results_are_few_files(gpu: Fixture) -> None:
    gpu.test("good", "exit 0")
    gpu.program(gpu.bin / "compute-sanitizer", "exit 0")
    gpu.program(gpu.build / "benchmarks" / "gpu" / "gpu_bench", "exit 0")
    assert gpu.check("tests", "limits", "sanitizer").returncode == 0
    left = sorted(p.name for p in gpu.out.iterdir())
    assert all((gpu.out / name).is_file() for name in left), left
    assert len(left) <= 8, left
