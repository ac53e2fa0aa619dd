"""Odd files, odd moments and odd numbers: what the engine makes of them beside the right logits."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gristmill
import numpy as np
import pytest
from gristmill import _core
from oracle.build import Spec, add_tokenizer, build, linear, yarn
from oracle.engine import Engine, known_isas
from test_logits import BOUND, TinyModel, check

UINT64, INT32 = gguf.GGUFValueType.UINT64, gguf.GGUFValueType.INT32
ARRAY, UINT32 = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
PROMPT = [5, 6, 7, 8, 9]


def build_with_keys(path: Path, spec: Spec, keys: dict[str, gguf.GGUFValue]) -> Path:
    """A tiny model whose metadata has these values and types in place of its own."""

    def more(writer: gguf.GGUFWriter) -> None:
        add_tokenizer(writer, spec.n_vocab, spec.tokenizer_pre, spec.chat_template)
        writer.kv_data[0].update(keys)

    return build(path, spec, tokenizer=more)


def one_line(error: BaseException) -> str:
    """The message, which fits a terminal of any encoding that knows UTF-8."""
    message = str(error)
    assert message.isprintable(), ascii(message)
    message.encode()
    return message


# What a cache cannot hold


@pytest.mark.parametrize("cache", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("isa", known_isas())
def test_nan_passes_through_the_cache(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str, cache: str
) -> None:
    """Token 0 is NaN: the last position, whose own row is sound, sees it through keys and values alone."""
    if isa not in _core.supported_isas():
        pytest.skip(f"instruction set {isa} is missing on this machine")
    monkeypatch.setenv("GRISTMILL_ISA", isa)
    source = tiny_model()
    with gristmill.GGUFFile.open(source) as file:
        info = file.tensors["token_embd.weight"]
    data = bytearray(source.read_bytes())
    data[info.offset : info.offset + 4] = np.float32(np.nan).tobytes()
    path = tmp_path / "nan.gguf"
    path.write_bytes(data)
    model = gristmill.load(path, cache_type_k=cache, cache_type_v=cache)
    assert model.isa == isa
    assert np.isfinite(model.session().forward([5, 6])).all()
    session = model.session()
    with pytest.raises(gristmill.Error, match="not finite"):
        session.forward([0, 5, 6])
    assert session.n_past == len(session.tokens) == 0


@pytest.mark.parametrize(("cache", "limit"), [("f16", 65504.0), ("q8_0", 65504.0 * 127)])
def test_keys_beyond_a_cache_type(tmp_path: Path, cache: str, limit: float) -> None:
    """A bias moves all keys beyond what the type holds: an error, which a wider type does not have."""
    for share, fits in ((0.5, True), (2.0, False)):
        biases = {f"blk.0.attn_{name}.bias": np.zeros(256, np.float32) for name in "qkv"}
        biases["blk.0.attn_k.bias"][:] = share * limit
        spec = Spec(arch="llama", n_layer=1, n_head_kv=4, rope_base=1e30)
        path = build(tmp_path / f"{share}.gguf", spec, more=biases)
        assert np.isfinite(gristmill.load(path, cache_type_k="f32").session().forward(PROMPT)).all()
        session = gristmill.load(path, cache_type_k=cache).session()
        if fits:
            assert np.isfinite(session.forward(PROMPT)).all()
        else:
            with pytest.raises(gristmill.Error, match="not finite"):
                session.forward(PROMPT)


# Ctrl-C and threads


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> gristmill.Model:
    """Many thin layers: a pass takes long, a layer does not."""
    spec = Spec(n_layer=128, n_embd=128, n_head=4, n_head_kv=4, n_ff=128, n_ctx=4096, formats="Q8_0")
    return gristmill.load(build(tmp_path_factory.mktemp("deep") / "deep.gguf", spec), n_threads=2)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("moment", [0.3, 1.5])
def test_ctrl_c_in_a_long_prompt(deep_model: gristmill.Model, moment: float) -> None:
    """In the first pass and in the second: it ends within a few layers, and the session can go on."""
    step = deep_model.engine.max_batch
    prompt = [i % 300 for i in range(4 * step)]
    session = deep_model.session()
    begin = time.perf_counter()
    session.forward(prompt[:step])
    pass_seconds = time.perf_counter() - begin
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(moment * pass_seconds, interrupt)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        session.forward(prompt[step:])
    late = time.perf_counter() - sent[0]
    timer.join()
    assert late < min(0.5, pass_seconds / 2)
    assert session.n_past % step == 0
    assert step <= session.n_past < len(prompt)
    assert session.tokens == prompt[: session.n_past]
    fresh = deep_model.session()
    fresh.forward(session.tokens)
    following = prompt[session.n_past : session.n_past + 40]
    assert np.array_equal(session.forward(following), fresh.forward(following))


def in_threads(work: list[Callable[[], None]]) -> None:
    """Runs all at once; the first exception of any is this call's."""
    barrier = threading.Barrier(len(work))
    failures: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        barrier.wait()
        try:
            task()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_one_session_in_two_threads(tiny_model: TinyModel) -> None:
    """No position is given out twice, and none beyond the context."""
    model = gristmill.load(tiny_model(n_embd=64, n_ff=64, n_layer=1), n_ctx=48, n_threads=1)
    for n_tokens in (1, 3, 7):
        for _ in range(10):
            session = model.session()
            done: list[int] = []

            def fill(n: int = n_tokens, session: gristmill.Session = session, done: list[int] = done) -> None:
                try:
                    while True:
                        session.forward([1] * n)
                        done.append(n)
                        assert session.n_past <= 48
                except gristmill.ContextFullError:
                    pass

            in_threads([fill, fill])
            assert session.n_past == len(session.tokens) == sum(done) == 48 // n_tokens * n_tokens


def test_sessions_in_threads_of_their_own(tiny_model: TinyModel) -> None:
    """Bit for bit what each gets alone."""
    model = gristmill.load(tiny_model(formats="Q4_K"), n_threads=2)
    prompts = [np.random.default_rng(i).integers(0, 300, 20 + 9 * i).tolist() for i in range(4)]

    def logits(prompt: list[int]) -> np.ndarray:
        session = model.session()
        rows = [session.forward(prompt)]
        rows += [session.forward([token]) for token in prompt[:12]]
        return np.stack(rows)

    alone = [logits(prompt) for prompt in prompts]
    together: dict[int, np.ndarray] = {}

    def work(i: int) -> Callable[[], None]:
        return lambda: together.update({i: logits(prompts[i])})

    in_threads([work(i) for i in range(len(prompts))])
    for i, expected in enumerate(alone):
        assert np.array_equal(together[i], expected), i


# Metadata


def test_overrides_of_the_tokenizer_and_the_template(tiny_model: TinyModel) -> None:
    """They are read after loading and are no less known for that."""
    overrides = {
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.chat_template": "said: {{ messages[0].content }}",
        "tokenizer.ggml.eos_token_id": 7,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = gristmill.load(tiny_model(), overrides=overrides)
        assert model.tokenizer.pre == "llama-bpe"
        assert model.tokenizer.eos_id == 7
        assert 7 in model.tokenizer.eog_ids
        assert model.chat_template is not None
        assert model.chat_template.render([{"role": "user", "content": "x"}]) == "said: x"


@pytest.mark.parametrize(
    ("mistyped", "nearest"),
    [
        ("tokenizer.ggml.eos_token_ids", "tokenizer.ggml.eos_token_id"),
        ("tokenizer.chat_templates", "tokenizer.chat_template"),
        ("qwen2.rope.freq_bases", "qwen2.rope.freq_base"),
    ],
)
def test_a_mistyped_override_names_the_nearest(tiny_model: TinyModel, mistyped: str, nearest: str) -> None:
    with pytest.warns(gristmill.GristmillWarning) as caught:
        gristmill.load(tiny_model(), overrides={mistyped: 7})
    (warning,) = caught
    assert repr(mistyped) in str(warning.message)
    assert f"did you mean {nearest!r}?" in str(warning.message)


def test_a_context_length_of_64_bits(tmp_path: Path) -> None:
    keys = {"qwen2.context_length": gguf.GGUFValue(2**64 - 1, UINT64)}
    path = build_with_keys(tmp_path / "huge.gguf", Spec(), keys)
    for n_ctx in (None, 64):
        with pytest.raises(gristmill.GGUFError, match=r"huge\.gguf.*qwen2\.context_length") as caught:
            gristmill.load(path, n_ctx=n_ctx)
        one_line(caught.value)


def test_a_value_for_each_layer(tmp_path: Path, tiny_model: TinyModel) -> None:
    """The same for all layers is one value; others are refused by name."""
    spec = Spec()

    def with_heads(values: list[int]) -> Path:
        path = tmp_path / f"{values}.gguf"
        value = gguf.GGUFValue(values, ARRAY, INT32)
        return build_with_keys(path, spec, {"qwen2.attention.head_count_kv": value})

    expected = gristmill.load(tiny_model(spec)).session().forward(PROMPT)
    same = gristmill.load(with_heads([2, 2]))
    assert same.n_head_kv == 2
    assert np.array_equal(same.session().forward(PROMPT), expected)
    for values in ([2, 1], [2, 4], [True, 2]):
        with pytest.raises(gristmill.GGUFError, match=r"qwen2\.attention\.head_count_kv") as caught:
            gristmill.load(with_heads(values))
        assert "layer" in one_line(caught.value)


def logits_with(tiny_model: TinyModel, tmp_path: Path, metadata: dict[str, Any]) -> np.ndarray:
    """Logits of the last of positions far enough out for scaling to show."""
    spec = Spec(n_ctx=512, metadata=metadata)
    return gristmill.load(tiny_model(spec)).session().forward([i % 300 for i in range(200)])


def test_yarn_without_an_original_context(tiny_model: TinyModel, tmp_path: Path) -> None:
    """0 is how it is written by converters that do not know it: the context length stands in."""
    key = "{arch}.rope.scaling.original_context_length"
    given = logits_with(tiny_model, tmp_path, yarn(4, 512))
    assert np.array_equal(logits_with(tiny_model, tmp_path, yarn(4, 0)), given)
    absent = {k: v for k, v in yarn(4, 0).items() if k != key}
    assert np.array_equal(logits_with(tiny_model, tmp_path, absent), given)
    assert not np.array_equal(logits_with(tiny_model, tmp_path, yarn(4, 64)), given)


def test_yarn_ext_factor(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Negative: as not given. 0: no ramp and no factor on attention: linear scaling. Above 1: an error."""

    def scaled(ext_factor: float) -> np.ndarray:
        return logits_with(tiny_model, tmp_path, yarn(4, 64, yarn_ext_factor=ext_factor))

    plain = logits_with(tiny_model, tmp_path, yarn(4, 64))
    assert np.array_equal(scaled(-1.0), plain)
    assert np.array_equal(scaled(1.0), plain)
    assert np.array_equal(scaled(0.0), logits_with(tiny_model, tmp_path, linear(4)))
    assert not np.array_equal(scaled(0.5), plain)
    with pytest.raises(gristmill.GGUFError, match=r"qwen2\.rope\.scaling\.yarn_ext_factor") as caught:
        scaled(1.5)
    one_line(caught.value)


# Tensors that not every model has


def random_vector(n: int) -> np.ndarray:
    return (0.3 * np.random.default_rng(n).standard_normal(n)).astype(np.float32)


def test_a_bias_of_the_queries_alone(tmp_path: Path) -> None:
    path = build(tmp_path / "q.gguf", Spec(arch="llama"), more={"blk.1.attn_q.bias": random_vector(256)})
    with pytest.raises(gristmill.GGUFError, match=r"q\.gguf: layer 1 has a bias for some of q, k and v"):
        gristmill.load(path)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_biases_of_other_matrices(engine: Engine, tmp_path: Path, arch: str) -> None:
    """Every matrix of a layer may have one, and the oracle adds them all."""
    sizes = {"attn_output": 256, "ffn_gate": 512, "ffn_up": 512, "ffn_down": 256}
    more = {f"blk.1.{name}.bias": random_vector(n) for name, n in sizes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(engine, build(tmp_path / "biases.gguf", Spec(arch=arch), more=more), BOUND["float"])


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "blk.1.ffn_gate_inp.weight", "blk.2.x.weight"])
def test_an_unknown_tensor_of_a_layer(tmp_path: Path, name: str) -> None:
    """The result would be wrong without it, also beyond the layers that the metadata counts."""
    path = build(tmp_path / "unknown.gguf", more={name: random_vector(64)})
    with pytest.raises(gristmill.UnsupportedModelError, match=rf"unknown\.gguf: tensor {re.escape(name)}"):
        gristmill.load(path)


@pytest.mark.parametrize("name", ["cls.weight", "blk.0.attn_rot_embd.weight"])
def test_a_tensor_that_no_text_depends_on(tmp_path: Path, tiny_model: TinyModel, name: str) -> None:
    """A table that follows from the metadata, or what stands outside the layers: a warning that names it."""
    path = build(tmp_path / "more.gguf", more={name: random_vector(64)})
    with pytest.warns(gristmill.GristmillWarning, match=re.escape(name)):
        model = gristmill.load(path)
    expected = gristmill.load(tiny_model()).session().forward(PROMPT)
    assert np.array_equal(model.session().forward(PROMPT), expected)


# Names and memory


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX")
def test_a_file_name_that_is_not_utf8(tiny_model: TinyModel, tmp_path: Path) -> None:
    """It loads, and every message about it is a line that can be printed."""
    source = tiny_model().read_bytes()
    path = tmp_path / os.fsdecode(b"tiny \xff\xc3\n.gguf")
    try:
        path.write_bytes(source)
    except OSError as error:
        pytest.skip(f"the file system refuses the name: {error}")
    with pytest.warns(gristmill.GristmillWarning, match="longer than") as caught:
        model = gristmill.load(path, n_ctx=1024)
    one_line(caught[0].message)
    expected = gristmill.load(tiny_model()).session().forward(PROMPT)
    assert np.array_equal(model.session().forward(PROMPT), expected)
    for overrides in ({"qwen2.attention.head_count": 7}, {"general.architecture": "none"}):
        with pytest.raises(gristmill.Error) as error:
            gristmill.load(path, overrides=overrides)
        assert ".gguf" in one_line(error.value)
    with pytest.raises(gristmill.ArgumentError) as argument:
        gristmill.load(path, overrides={"qwen2.block_count": "two"})
    one_line(argument.value)
    path.write_bytes(source[:-100])
    with pytest.raises(gristmill.GGUFError) as cut:
        gristmill.load(path)
    assert ".gguf" in one_line(cut.value)
    path.unlink()
    with pytest.raises(gristmill.GGUFError) as missing:
        gristmill.load(path)
    one_line(missing.value)


def test_a_context_beyond_the_address_space(deep_model: gristmill.Model) -> None:
    """The first session is too late to say it. 2^31 positions of this model are 256 TiB."""
    wide = {"cache_type_k": "f32", "cache_type_v": "f32"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(gristmill.DeviceError, match=r"2147483647.*n_ctx") as caught:
            gristmill.load(deep_model.path, n_ctx=2**31 - 1, **wide)
    one_line(caught.value)
    small = gristmill.load(deep_model.path, n_ctx=64, **wide)
    assert np.isfinite(small.session().forward(PROMPT)).all()
