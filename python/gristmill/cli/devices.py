"""The devices that a model can run on: ``gristmill info --devices`` and ``gristmill run --list-devices``."""

from __future__ import annotations

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
    print("GPU: none is built in")
    return 0
