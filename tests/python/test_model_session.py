"""Sessions: threads, splits, decoding beside others, truncation, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gguf
import gristmill
import numpy as np
import pytest
from oracle.engine import Engine, forward_all
from test_logits import BOUND, BOUND_8_BIT, F32_CACHE, TinyModel, largest_error

IDS = np.random.default_rng(11).integers(0, 320, 90).tolist()


@pytest.fixture(scope="module")
def path(tiny_model: TinyModel) -> Path:
    return tiny_model(formats={"": "Q4_K", "attn_v": "Q6_K", "output": "Q8_0"}, n_layer=3)


@pytest.fixture(scope="module")
def model(path: Path) -> Any:
    return gristmill.load(path, n_threads=2)


def test_threads_change_no_bit(engine: Engine, path: Path) -> None:
    splits = [70, 1, 1, 1, 2, 15]
    one = engine.logits(path, IDS, splits, n_threads=1)
    for n_threads in (2, 3, 5):
        assert np.array_equal(engine.logits(path, IDS, splits, n_threads=n_threads), one), n_threads


def test_same_call_same_bits(model: Any) -> None:
    first = forward_all(model.session(), IDS)
    assert np.array_equal(forward_all(model.session(), IDS), first)


@pytest.mark.parametrize("splits", [None, [45, 45], [89, 1], [1, 89], [17, 33, 2, 38]], ids=str)
def test_any_split_of_a_prompt(engine: Engine, path: Path, splits: list[int] | None) -> None:
    """Without parts of one token, the same bits. Kernels for one token and for many may differ in bits and
    order, so with them equal up to their bounds.

    In an f16 cache keys and values that are off by 4e-5 fall on the other side of a rounding boundary one
    time in eight, and then are off by a whole step: three times their error, and of all logits twice.
    """
    precise = {"precise": True}
    for options, bound in (
        ({**precise, **F32_CACHE}, 2 * BOUND["affine"]),
        (precise, 4 * BOUND["affine"]),
        ({}, 2 * BOUND_8_BIT),
    ):
        whole = engine.logits(path, IDS, **options).astype(np.float64)
        parts = splits or [1] * 90
        logits = engine.logits(path, IDS, parts, **options)
        assert largest_error(logits, whole) < bound
        assert min(parts) == 1 or np.array_equal(logits, whole)


def test_last_position_alone(model: Any) -> None:
    last = model.session().forward(IDS)
    assert last.shape == (model.n_vocab,)
    assert last.dtype == np.float32
    assert np.array_equal(last, model.session().forward(IDS, all_logits=True)[-1])


def test_a_token_alone_has_one_result_however_it_is_given(model: Any) -> None:
    results = []
    for one in ([5], (5,), np.array([5], np.int32), np.array([5], np.uint64)):
        session = model.session()
        session.forward(IDS[:7])
        results.append(session.forward(one))
        assert session.tokens == [*IDS[:7], 5]
        assert all(type(token) is int for token in session.tokens)
    assert all(np.array_equal(one, results[0]) for one in results)
    assert results[0].shape == (model.n_vocab,)
    assert results[0].dtype == np.float32


def test_truncate_and_go_on(model: Any) -> None:
    session = model.session()
    forward_all(session, IDS, [60, *[1] * 30])
    session.truncate(60)
    assert session.n_past == 60
    again = forward_all(session, IDS[60:], [1] * 30)
    fresh = forward_all(model.session(), IDS, [60, *[1] * 30])
    assert np.array_equal(again, fresh[60:])


def test_truncate_leaves_nothing_behind(model: Any) -> None:
    """What comes after is as if the dropped part had never been, at any length and down to none."""
    other = IDS[::-1]
    for keep in (0, 1, 15, 16, 17, 60):
        session, fresh = model.session(), model.session()
        for each in (session, fresh) if keep else ():
            each.forward(IDS[:keep])
        session.forward(IDS[keep:])
        session.truncate(keep)
        assert np.array_equal(forward_all(session, other[:20]), forward_all(fresh, other[:20])), keep


@pytest.mark.parametrize("n", [-1, 91])
def test_truncate_out_of_range(model: Any, n: int) -> None:
    session = model.session()
    session.forward(IDS)
    with pytest.raises(gristmill.ArgumentError, match="90"):
        session.truncate(n)
    assert session.n_past == 90


def test_sessions_do_not_mix(model: Any) -> None:
    alone = forward_all(model.session(), IDS, [30, *[1] * 60])
    a, b = model.session(), model.session()
    a.forward(IDS[:30])
    b.forward(IDS[::-1][:41])
    rows = []
    for token, other in itertools.islice(zip(IDS[30:], IDS, strict=False), 40):
        rows.append(a.forward([token]))
        b.forward([other])
    assert np.array_equal(rows, alone[30:70])


def test_decode_beside_others(model: Any) -> None:
    alone = forward_all(model.session(), IDS, [30, *[1] * 60])[30:]
    for n_others in (1, 2, 7, 8, 9):
        sessions = [model.session() for _ in range(n_others + 1)]
        position = n_others // 2
        for i, session in enumerate(sessions):
            session.forward(IDS[:30] if i == position else IDS[i : 2 * i + 5])
        for step in range(3):
            tokens = [IDS[i + step] for i in range(n_others + 1)]
            tokens[position] = IDS[30 + step]
            logits = model.decode_batch(sessions, tokens)
            assert np.array_equal(logits[position], alone[step]), (n_others, step)


def test_context_full(path: Path) -> None:
    session = gristmill.load(path, n_ctx=32).session()
    session.forward(IDS[:31])
    session.forward(IDS[31:32])
    assert session.n_past == session.n_ctx == 32
    with pytest.raises(gristmill.ContextFullError, match="32"):
        session.forward([1])
    assert session.n_past == 32
    session.truncate(31)
    session.forward([1])


def test_prompt_longer_than_the_context(path: Path) -> None:
    session = gristmill.load(path, n_ctx=32).session()
    with pytest.raises(gristmill.ContextFullError, match="33") as caught:
        session.forward(IDS[:33])
    assert "32" in str(caught.value)
    assert session.n_past == 0
    session.forward(IDS[:32])


def test_context_defaults_to_the_models_own(path: Path) -> None:
    assert gristmill.load(path).n_ctx == 256
    overridden = gristmill.load(path, overrides={"qwen2.context_length": 4096})
    assert overridden.session().n_ctx == 4096


@pytest.mark.parametrize("token", [-1, 320, 2**31 - 1])
def test_token_out_of_range(model: Any, token: int) -> None:
    session = model.session()
    with pytest.raises(gristmill.ArgumentError, match=str(token)):
        session.forward([1, token, 2])
    with pytest.raises(gristmill.ArgumentError, match=str(token)):
        session.forward([token])
    assert session.n_past == 0


@pytest.mark.parametrize("ids", [[], [2**40], [-(2**70)], [1.5], ["a"], [[1, 2]], None], ids=repr)
def test_not_a_list_of_ids(model: Any, ids: Any) -> None:
    with pytest.raises(gristmill.ArgumentError):
        model.session().forward(ids)


@pytest.mark.parametrize(
    "option", [{"n_ctx": 0}, {"n_ctx": -5}, {"n_threads": 0}, {"cache_type_k": "q3"}], ids=str
)
def test_bad_options(path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(gristmill.ArgumentError):
        gristmill.load(path, **option).session()


def test_quantized_cache_needs_whole_blocks(tiny_model: TinyModel) -> None:
    path = tiny_model(head_dim=48)
    with pytest.raises(gristmill.ArgumentError, match="48"):
        gristmill.load(path, cache_type_k="q8_0").session().forward([1])


def test_nan_weights_are_an_error(path: Path, tmp_path: Path) -> None:
    """The first norm's weights become NaN, and so does everything after."""
    broken = tmp_path / "nan.gguf"
    broken.write_bytes(path.read_bytes())
    reader = gguf.GGUFReader(broken, "r+")
    next(t for t in reader.tensors if t.name == "blk.0.attn_norm.weight").data[:] = np.nan
    reader.data.flush()
    with pytest.raises(gristmill.Error, match=r"nan\.gguf.*finite"):
        gristmill.load(broken).session().forward([1, 2, 3])
