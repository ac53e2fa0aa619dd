"""The devices that a model can run on: ``gristmill info --devices`` and ``gristmill run --list-devices``."""

from __future__ import annotations

from gristmill.devices import gpus, why_no_gpu
from gristmill.machine import cpu_name


def print_devices() -> int:
    """Prints each device on standard output and returns the exit status."""
    from gristmill import _core

    usable, built = _core.supported_isas(), _core.built_isas()
    print(f"CPU: {cpu_name()}")
    print(f"  instruction sets: {', '.join(usable)} (best first; GRISTMILL_ISA forces one)")
    missing = [name for name in built if name not in usable]
    if missing:
        print(f"  built in, but not on this machine: {', '.join(missing)}")
    print(f"  threads: {_core.default_thread_count()} (--threads)")
    why = why_no_gpu()
    if why:
        print(f"GPU: none ({why})")
    for gpu in gpus() if not why else ():
        major, minor = gpu.compute_capability
        print(f"GPU: cuda:{gpu.index} {gpu.name}")
        print(f"  compute capability {major}.{minor}, {gpu.multiprocessors} multiprocessors")
        print(f"  memory: {gpu.memory_free / 2**30:.1f} of {gpu.memory / 2**30:.1f} GiB free")
        print(f"  driver: CUDA {gpu.driver[0]}.{gpu.driver[1]}")
    return 0
