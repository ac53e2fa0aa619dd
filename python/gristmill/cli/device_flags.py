"""The flags that say which device runs which layers, spelled as llama.cpp's, and what they mean here."""

from __future__ import annotations

import argparse
import re
import warnings
from typing import Any

from gristmill.cli.flags import integer, number
from gristmill.errors import GristmillWarning


def gpu_layers(text: str) -> int:
    """``auto`` (-1), ``all`` (-2) or a number of layers."""
    return {"auto": -1, "all": -2}.get(text) or integer()(text)


def tensor_split(text: str) -> list[float]:
    """Shares of layers for each GPU, separated by commas or slashes."""
    shares = [number(word) for word in re.split("[,/]", text)]
    if min(shares) < 0 or max(shares) <= 0:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 0, one above 0, got {text!r}")
    return shares


def add_device_flags(group: argparse._ActionsContainer) -> None:
    """``-ngl``, ``-dev``, ``-mg``, ``-ts`` and ``-sm``; :func:`device_arguments` reads them."""
    group.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", dest="n_gpu_layers", type=gpu_layers, default=-1,
        metavar="N",
        help="layers on GPUs, the last ones and the output, which counts as one: a number, auto (as many as "
        "fit; the default), or all",
    )  # fmt: skip
    group.add_argument(
        "-dev", "--device", default="auto", metavar="NAME",
        help="auto, cuda, cuda:N (several with commas), or none for the CPU",
    )  # fmt: skip
    group.add_argument(
        "-mg", "--main-gpu", type=integer(0), metavar="N", help="the GPU to use where one is enough (0)"
    )
    group.add_argument(
        "-ts", "--tensor-split", type=tensor_split, default=[], metavar="N0,N1,...",
        help="shares of the layers for each GPU (default: one GPU where that is enough, else by free memory)",
    )  # fmt: skip
    group.add_argument(
        "-sm", "--split-mode", choices=("none", "layer", "row", "tensor"), default="layer",
        help="none: use the main GPU alone; layer: split layers over GPUs (row and tensor: the same)",
    )  # fmt: skip


def device_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`gristmill.load` is told of devices."""
    from gristmill.devices import gpu_count

    device = "cpu" if args.device in {"none", "cpu"} else args.device
    if args.split_mode in {"row", "tensor"}:
        warnings.warn(
            f"--split-mode {args.split_mode} has no effect: a GPU has whole layers",
            GristmillWarning,
            stacklevel=2,
        )
    if args.split_mode == "none" and device in {"auto", "cuda"} and gpu_count() > 0:
        device = f"cuda:{args.main_gpu or 0}"
    return {
        "device": device,
        "n_gpu_layers": {-1: None, -2: -1}.get(args.n_gpu_layers, args.n_gpu_layers),
        "main_gpu": args.main_gpu,
        "tensor_split": args.tensor_split,
    }
