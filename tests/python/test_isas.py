"""Which instruction set runs where the processor has it and the system does not allow it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gristmill import _core

# Linux grants tiles only to processes whose signal stacks could hold them: 4 KiB could not.
SCRIPT = """
import ctypes, os, sys

class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.addressof(memory), 0, len(memory))
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
from gristmill import DeviceError, _core

assert "amx_bf16" in _core.built_isas() and "amx_bf16" not in _core.supported_isas()
assert _core.arithmetic("", 2, "prefill") == "int8"
try:
    _core.arithmetic("amx_bf16", 2, "prefill")
except DeviceError as error:
    print(error)
"""


def test_tiles_that_the_system_refuses() -> None:
    if "amx_bf16" not in _core.supported_isas():
        pytest.skip("this machine has no tiles (amx_bf16)")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = "[isa] amx_bf16 is not supported by this processor, or not allowed by the system"
    assert done.stdout.strip() == expected
