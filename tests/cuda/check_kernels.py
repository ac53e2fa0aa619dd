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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "86", "89", "90a")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


def compile_file(source: Path, arch: str) -> list[tuple[str, int, int, int]]:
    """(mangled name, registers, bytes of stack, bytes spilled) of each kernel of a file."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++20", "-O3", "-fmad=false", f"-gencode=arch=compute_{arch},code=sm_{arch}",
                   f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-Xcudafe=--diag_suppress=177", "-cubin", str(source),
                   "-o", f"{folder}/kernel.cubin"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} for sm_{arch}:\n{result.stdout}{result.stderr}")
    kernels: list[tuple[str, int, int, int]] = []
    name, stack, spilled = "", 0, 0
    for line in (result.stdout + result.stderr).splitlines():
        if match := _ENTRY.search(line):
            name, stack, spilled = match[1], 0, 0
        elif match := _SPILL.search(line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif (match := _USED.search(line)) and name:
            kernels.append((name, int(match[1]), stack, spilled))
            name = ""
        elif "setmaxnreg" in line or "wgmma" in line:
            print(f"{source.name} sm_{arch}: {line.strip()}", file=sys.stderr)
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
    parser.add_argument("files", nargs="*", type=Path, help="kernel sources; by default csrc/cuda/*.cu")
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, metavar="N")
    parser.add_argument("--table", action="store_true", help="print every kernel, not only those that fail")
    args = parser.parse_args()
    n_kernels = n_bad = 0
    sources = args.files or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    jobs = [(source, arch) for source in sources for arch in args.arch]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for an nvcc of its own
        compiled = pool.map(lambda job: compile_file(*job), jobs)
        for (source, arch), kernels in zip(jobs, compiled, strict=True):
            names = demangle([k[0] for k in kernels])
            for name, (_, registers, stack, spilled) in zip(names, kernels, strict=True):
                n_kernels += 1
                bad = stack > 0 or spilled > 0
                n_bad += bad
                if bad or args.table:
                    verdict = f" FAILED: {stack} bytes of stack, {spilled} spilled" if bad else ""
                    print(f"sm_{arch:4} {registers:4} registers  {source.name}: {name}{verdict}", flush=True)
    print(f"{n_kernels} kernels compiled, {n_bad} spill or keep a stack")
    return 1 if n_bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(str(error))
