"""Divergence: the arithmetic against its definition, models side by side, and other vocabularies."""

from __future__ import annotations

from pathlib import Path

import gristmill
import numpy as np
import pytest
from gristmill import ArgumentError, Error, lab
from gristmill.lab.divergences import Reference
from test_logits import TinyModel

TEXT = (Path(__file__).parent / "data" / "prose.txt").read_text(encoding="utf-8")[:600]


def exact(p: np.ndarray, q: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Negative log probabilities under q and KL(p || q), in extended precision."""

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        x = logits.astype(np.longdouble)
        x -= x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    log_p, log_q = log_softmax(p), log_softmax(q)
    nll = -log_q[np.arange(len(targets)), targets]
    return nll.astype(float), (np.exp(log_p) * (log_p - log_q)).sum(axis=1).astype(float)


@pytest.mark.parametrize("spread", [0.01, 3.0, 60.0])
@pytest.mark.parametrize("change", [1e-4, 0.05, 5.0])
def test_is_the_definition(spread: float, change: float) -> None:
    rng = np.random.default_rng(0)
    p = (spread * rng.standard_normal((20, 5000)) - 30).astype(np.float32)
    q = (p + change * rng.standard_normal(p.shape)).astype(np.float32)
    targets = rng.integers(0, 5000, 20).astype(np.int32)
    reference = Reference(p)
    nll, kl, same_top = reference.compare(q, targets)
    expected_nll, expected_kl = exact(p, q, targets)
    np.testing.assert_allclose(nll, expected_nll, rtol=1e-12)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(reference.nll(targets), exact(p, p, targets)[0], rtol=1e-12)
    assert same_top.tolist() == (p.argmax(axis=1) == q.argmax(axis=1)).tolist()


def test_nothing_diverges_from_itself() -> None:
    p = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    _, kl, same_top = Reference(p).compare(p + np.float32(0), np.zeros(5, np.int32))
    assert kl.tolist() == [0.0] * 5
    assert same_top.all()
    with pytest.raises(ArgumentError, match=r"logits, expected shape \(5, 1000\), got \(4, 1000\)"):
        Reference(p).compare(p[:4], np.zeros(4, np.int32))


def test_company_and_threads_change_nothing(tiny_model: TinyModel) -> None:
    """Each model against the base alone gives the very numbers that it gives beside another."""
    shapes = {"n_vocab": 320, "seed": 3}
    base_path = tiny_model(formats="F16", **shapes)
    paths = [tiny_model(formats=name, **shapes) for name in ("Q8_0", "Q4_0")]

    def load(path: Path, n_threads: int = 1) -> gristmill.Model:
        return gristmill.load(path, n_ctx=64, n_threads=n_threads)

    scores, together = lab.divergence(load(base_path), [load(p) for p in paths], TEXT, n_ctx=64)
    for path, result in zip(paths, together, strict=True):
        alone_scores, (alone,) = lab.divergence(load(base_path, 2), [load(path, 2)], TEXT, n_ctx=64)
        assert alone.kl.tobytes() == result.kl.tobytes()
        assert alone.scores.nll.tobytes() == result.scores.nll.tobytes()
        assert alone_scores.nll.tobytes() == scores.nll.tobytes()
        assert alone.same_top.tobytes() == result.same_top.tobytes()
        assert result.scores.nll.tobytes() == lab.perplexity(load(path), TEXT, n_ctx=64).nll.tobytes()
    assert [(r.base, r.model) for r in together] == [(base_path.name, p.name) for p in paths]


def test_summaries(tiny_model: TinyModel) -> None:
    base = gristmill.load(tiny_model(formats="F16", seed=3), n_ctx=64, n_threads=1)
    other = gristmill.load(tiny_model(formats="Q2_K", seed=3), n_ctx=64, n_threads=1)
    _, (result,) = lab.divergence(base, [other], TEXT, n_ctx=64)
    flat = np.sort(result.kl.ravel())
    assert result.kl.shape == (result.scores.n_windows, 31)
    assert 0 < result.mean_kl < result.max_kl == flat[-1]
    assert result.mean_kl == pytest.approx(flat.mean())
    assert flat[int(0.98 * flat.size)] <= result.p99_kl <= result.max_kl
    assert result.mean_kl_stderr == pytest.approx(flat.std(ddof=1) / flat.size**0.5)
    assert result.top1_agreement == result.same_top.mean() < 1


def test_other_vocabularies_are_refused_by_name(tiny_model: TinyModel) -> None:
    base = gristmill.load(tiny_model(n_vocab=320), n_ctx=64, n_threads=1)
    longer = gristmill.load(tiny_model(n_vocab=352), n_ctx=64, n_threads=1)
    says = f"{longer.path}: cannot be compared with {base.path.name}, since the vocabularies differ: "
    with pytest.raises(Error) as error:
        lab.divergence(base, [longer], TEXT, n_ctx=64)
    assert str(error.value) == says + "it has 352 tokens, not 320"


def test_a_token_that_differs_is_named() -> None:
    class Renamed:
        n_vocab = 320

        def __init__(self, tokens: list[bytes]) -> None:
            self.tokens = tokens

        def all_token_bytes(self) -> list[bytes]:
            return self.tokens

    from gristmill.lab.divergences import check_same_vocabulary

    mine = [b"%d" % i for i in range(320)]
    theirs = [*mine[:7], b"\xff\n", *mine[8:]]
    with pytest.raises(Error, match=r"^b\.gguf: .* a\.gguf, .* differ: its token 7 is .*, not '7'$"):
        check_same_vocabulary(Renamed(mine), Path("a.gguf"), Renamed(theirs), Path("b.gguf"))  # type: ignore[arg-type]
    check_same_vocabulary(Renamed(mine), Path("a.gguf"), Renamed(mine), Path("b.gguf"))  # type: ignore[arg-type]
