"""A model file in other formats: what each makes of the same weights can then be compared on a real model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gristmill import quants


def requantize(source: Path, target: Path, formats: Mapping[str, str]) -> Path:
    """Writes ``source`` with the matrices that ``formats`` names (``blk.0.attn_q``, else ``""``) in them.

    Weights are dequantized and quantized again without importance; vectors stay as they are.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        data, kind = np.asarray(tensor.data), tensor.tensor_type
        if len(tensor.shape) == 2:
            name = formats.get(tensor.name.removesuffix(".weight"), formats.get("", kind.name))
            rows, n_cols = (int(n) for n in reversed(tensor.shape))
            weights = quants.dequantize(data, kind.name, (rows, n_cols))
            data, kind = quants.quantize(weights, name), gguf.GGMLQuantizationType[name]
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
