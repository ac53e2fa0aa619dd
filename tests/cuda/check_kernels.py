#!/usr/bin/env python3
"""Compiles every kernel for every supported GPU and fails where one spills registers or keeps a stack.

    tests/cuda/check_kernels.py [--arch 80 90a ...] [--table] [FILE.cu ...]

Needs nvcc and no GPU. Registers are bounded by the launch bounds that each kernel states: a kernel that does
not fit spills, and is found here.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "86", "89", "90a")
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Kernel:
    name: str
    """Mangled."""
    arch: str
    registers: int
    stack: int
    """Bytes."""
    spilled: int
    """Bytes, stored and loaded."""


def compile_together(architectures: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(virtual architecture, what to assemble from its PTX).

    Half of the time is spent on making PTX, and that of all 8.x is the same: no source tells them apart.
    """
    for source in sorted((ROOT / "csrc").rglob("*")):
        if source.suffix not in (".cu", ".h"):
            continue
        for line in source.read_text().splitlines():
            if "__CUDA_ARCH__" in line and (other := set(re.findall(r"\b\d{3,}\b", line)) - {"900"}):
                raise RuntimeError(f"{source}: __CUDA_ARCH__ and {min(other)} in a line: 8.x need PTX each")
    groups: dict[str, list[str]] = {}
    for arch in architectures:
        groups.setdefault("80" if re.fullmatch(r"8\d", arch) else arch, []).append(arch)
    return list(groups.items())


def compile_file(source: Path, virtual: str, architectures: Sequence[str]) -> list[Kernel]:
    """Every kernel of a file on every architecture."""
    code = ",".join(f"sm_{arch}" for arch in architectures)
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++20", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}",
                   f"-gencode=arch=compute_{virtual},code=[{code}]", "-Xptxas=-v",
                   "-Xcudafe=--diag_suppress=177", "-fatbin", str(source),
                   "-o", f"{folder}/kernel.fatbin"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} for {code}:\n{result.stdout}{result.stderr}")
    output = result.stdout + result.stderr
    if serialized := re.search(r".*\bC75\d\d\b.*", output):  # ptxas waits after every product of wgmma
        raise RuntimeError(f"{source.name} for {code}: {serialized[0].strip()}")
    kernels: list[Kernel] = []
    name, arch, stack, spilled = "", "", 0, 0
    for line in output.splitlines():
        if match := _ENTRY.search(line):
            name, arch, stack, spilled = match[1], match[2], 0, 0
        elif match := _SPILL.search(line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif (match := _USED.search(line)) and name:
            kernels.append(Kernel(name, arch, int(match[1]), stack, spilled))
            name = ""
        elif "setmaxnreg" in line or "wgmma" in line:
            print(f"{source.name} {code}: {line.strip()}", file=sys.stderr)
    return kernels


def demangle(names: list[str]) -> list[str]:
    """Readable names, where c++filt is there."""
    try:
        result = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return names
    return [
        re.sub(
            r"^void |gristmill::(cuda|formats)::|\(.*",
            "",
            re.sub(r"\((anonymous namespace\)::|[\w:]+\))", "", line),
        )
        for line in result.stdout.splitlines()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="kernel sources; by default all there are")
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, metavar="N")
    parser.add_argument("--table", action="store_true", help="print every kernel, not only those that fail")
    args = parser.parse_args()
    n_kernels = n_bad = 0
    peaks = ROOT / "benchmarks" / "gpu" / "peaks.cu"  # the yardstick of wgmma
    sources = args.files or [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), peaks]
    groups = compile_together(args.arch)
    jobs = [(source, *group) for source in sources for group in groups]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for an nvcc of its own
        compiled = pool.map(lambda job: compile_file(*job), jobs)
        for (source, _, architectures), kernels in zip(jobs, compiled, strict=True):
            missing = set(architectures) - {kernel.arch for kernel in kernels}
            if kernels and missing:
                raise RuntimeError(f"{source.name}: nothing was assembled for {', '.join(sorted(missing))}")
            names = demangle([kernel.name for kernel in kernels])
            for name, kernel in zip(names, kernels, strict=True):
                n_kernels += 1
                bad = kernel.stack > 0 or kernel.spilled > 0
                n_bad += bad
                if bad or args.table:
                    failed = f" FAILED: {kernel.stack} bytes of stack, {kernel.spilled} spilled"
                    place = f"sm_{kernel.arch:4} {kernel.registers:4} registers  {source.name}"
                    print(f"{place}: {name}{failed if bad else ''}", flush=True)
    print(f"{n_kernels} kernels compiled, {n_bad} spill or keep a stack")
    return 1 if n_bad or not n_kernels else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(str(error))
