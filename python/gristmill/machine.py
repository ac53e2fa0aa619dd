"""The machine that figures were measured on, as far as the system tells."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_CPU_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)


@dataclass(frozen=True)
class Machine:
    """What speed depends on. ``memory_gib`` is None where the system does not tell."""

    cpu: str
    cpu_features: tuple[str, ...]
    cpus_usable: int
    memory_gib: float | None
    system: str
    python: str


def describe_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        cpu=cpu_name(),
        cpu_features=tuple(name for name in _CPU_FEATURES if name in _cpu_info("flags").split()),
        cpus_usable=_cpus_usable(),
        memory_gib=_memory_gib(),
        system=platform.platform(),
        python=platform.python_version(),
    )


def cpu_name() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    return (
        _cpu_info("model name")
        or _cpu_info("Model")
        or platform.processor()
        or platform.machine()
        or "unknown"
    )


def available_memory() -> int | None:
    """Bytes that can be taken without pushing others out, by system and cgroup; None if unknown."""
    found = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        found.append(int(limit))
    return min(found, default=None)


def _cpu_info(field: str) -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def _cpus_usable() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
