"""The installed package on a GPU against itself on the CPU.

    python benchmarks/gpu/through_python.py FOLDER [--tiny]

Makes a small model of four layers for each of some formats in FOLDER and compares the logits of a prompt and
of steps, with all layers on the GPU and with the last two, for f16 and q8_0 caches; then runs the commands.
Prints a line for each and ends with 1 where one is wrong. ``--tiny`` is for an emulated GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "python"))

import gristmill
from oracle.build import Spec, build

TINY = "--tiny" in sys.argv
SHAPE = {
    "n_layer": 4,
    "n_embd": 512,
    "n_head": 8,
    "n_head_kv": 2,
    "n_ff": 1536,
    "n_vocab": 2000,
    "n_ctx": 512,
}
FORMATS = ("Q4_0", "Q4_K", "Q6_K", "Q8_0", "F16")
N_PROMPT, N_STEPS = 100, 16
if TINY:
    SHAPE |= {"n_embd": 256, "n_head": 4, "n_ff": 256, "n_vocab": 400}
    FORMATS = ("Q4_K",)
    N_PROMPT, N_STEPS = 40, 3
# Prompts take halves on a GPU (11 bits of each factor). With q8_0 some codes of the cache then fall on the
# other side of a step.
BOUND = {"f16": 6e-3, "q8_0": 2e-2}
failures = 0


def verdict(what: str, wrong: str, found: str = "") -> None:
    global failures  # noqa: PLW0603
    failures += bool(wrong)
    print(f"  {what}: {'WRONG, ' + wrong if wrong else 'ok'}{', ' + found if found else ''}", flush=True)


def logits_of(path: Path, tokens: list[int], cache: str, n_gpu_layers: int) -> np.ndarray:
    """Of the prompt's last token and of each step: ``[1 + N_STEPS, n_vocab]`` float32."""
    model = gristmill.load(
        path, n_gpu_layers=n_gpu_layers, cache_type_k=cache, cache_type_v=cache, precise=True
    )
    session = model.session()
    rows = [session.forward(tokens[:N_PROMPT])]
    rows += [session.forward([token]) for token in tokens[N_PROMPT:]]
    return np.stack([row.reshape(-1, model.n_vocab)[-1] for row in rows])


def compare(path: Path, name: str) -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, SHAPE["n_vocab"] - 100, N_PROMPT + N_STEPS).tolist()
    for cache, bound in BOUND.items():
        expected = logits_of(path, tokens, cache, 0)
        for layers in (99, 2):
            found = logits_of(path, tokens, cache, layers)
            errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
            worst = float(errors.max())
            wrong = "" if worst <= bound else f"expected at most {bound}"
            # Another token than the CPU's, though it led by more than the difference.
            top = np.sort(expected, axis=1)[:, -2:]
            clear = top[:, 1] - top[:, 0] > 2 * np.abs(found - expected).max(axis=1)
            if np.any((found.argmax(axis=1) != expected.argmax(axis=1)) & clear):
                wrong = "another token is the likeliest"
            what = f"{name}, {cache} cache, {'all layers' if layers == 99 else 'the last 2 layers'}"
            verdict(what, wrong, f"off by {worst:.2g} of RMS")


def command(words: list[str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gristmill", *words], capture_output=True, text=True, check=False, timeout=120
    )
    wrong = f"exit {done.returncode}: {done.stderr.strip()[-300:]}" if done.returncode else ""
    if not wrong and expected not in done.stdout + done.stderr:
        wrong = f"expected {expected!r}, got {(done.stdout + done.stderr)[-300:]!r}"
    verdict("gristmill " + " ".join(words), wrong)


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # that prompts on a GPU are not more precise
    command(["info", "--devices"], "cuda:0")
    for name in FORMATS:
        path = build(folder / f"{name.lower()}.gguf", Spec(formats=name, **SHAPE))
        compare(path, name)
    model = os.fspath(folder / "q4_k.gguf")
    run = ["run", "-m", model, "-no-cnv", "-p", "a", "-n", "8", "-c", "256", "-v"]
    command([*run, "--device", "cuda"], "cuda:0")
    command([*run, "-ngl", "2"], "layers 0 to 2")
    if not TINY:  # limits are measured for seconds, and an emulated GPU takes minutes for them
        command(["bench", "-m", model, "-p", "64", "-n", "8", "-r", "1", "-q", "-ngl", "99"], "cuda:0")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
