"""The quantizers find the same bytes in every width of vector."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
from gristmill import _core, quants

CODE = """
import hashlib, json, numpy as np
from gristmill import _core, quants
rng = np.random.default_rng(3)
found = {"search": _core.search_isa()}
for fmt in quants.formats():
    digest = hashlib.sha256()
    for k in (256, 2304):
        x = rng.standard_normal((7, k)).astype(np.float32)
        x[1] *= rng.random(k) < 0.05
        x[2] = np.where(rng.random(k) < 0.02, 8, 0.3) * x[2]
        x[3] = -0.0
        x[4] *= 1e-7
        x[5] = np.abs(x[5])
        h = (rng.random(k) ** 4).astype(np.float32)
        h[:40] = 0
        for importance in (None, None if fmt.kind == "float" else h):
            digest.update(quants.quantize(x, fmt.name, importance).tobytes())
        for source, held in (("F32", x), ("F16", x.astype(np.float16)), ("BF16", None)):
            raw = quants.quantize(x, "BF16") if held is None else held
            packed = np.empty(7 * fmt.row_bytes(k), np.uint8)
            _core.convert_rows(raw.view(np.uint8).ravel(), source, fmt.name, k, None, packed)
            values = quants.dequantize(raw.view(np.uint8), source, x.shape)
            assert packed.tobytes() == quants.quantize(values, fmt.name).tobytes(), (fmt.name, source)
            digest.update(packed.tobytes())
    found[fmt.name] = digest.hexdigest()
print(json.dumps(found))
"""


def _run(isa: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "GRISTMILL_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_same_bytes_from_every_width() -> None:
    found = {isa: _run(isa) for isa in _core.supported_isas()}
    forced = {isa: digests.pop("search") for isa, digests in found.items()}
    expected = {isa: {"scalar": "generic", "avx2": "avx2"}.get(isa, "avx512") for isa in forced}
    assert forced == expected  # that each really ran
    for isa, digests in found.items():
        assert digests == found["scalar"], isa


def test_blocks_do_not_depend_on_their_neighbours() -> None:
    """Sixteen groups share a pass; alone, at the end of a row or among others a block gets the same bytes."""
    rng = np.random.default_rng(1)
    for fmt in quants.formats():
        x = rng.standard_normal((1, fmt.block_size * 19)).astype(np.float32)
        packed = quants.quantize(x, fmt.name)[0]
        for block in (0, 7, 16, 18):
            alone = quants.quantize(x[:, block * fmt.block_size : (block + 1) * fmt.block_size], fmt.name)[0]
            at = block * fmt.type_size
            assert hashlib.sha256(alone).digest() == hashlib.sha256(packed[at : at + fmt.type_size]).digest()
