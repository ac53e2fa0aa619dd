"""Metadata: the mapping, the typed getters, and what the user is told about overrides."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gristmill import ArgumentError, GGUFError, GristmillWarning
from gristmill.gguf import GGUFFile
from gristmill.metadata import Metadata, parse_override
from hostile import ARRAY, BOOL, F32, I32, ONE_OF_EACH, STRING, U32, Raw, kv, sound

MODEL_KEYS = [
    kv("general.architecture", STRING, "qwen2"),
    kv("general.name", STRING, "a model"),
    kv("qwen2.context_length", U32, 32768),
    kv("qwen2.rope.freq_base", F32, 1e6),
    kv("qwen2.head_counts", ARRAY, (I32, [4, 8])),
    kv("tokenizer.ggml.add_bos_token", BOOL, False),
    kv("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b"])),
    kv("tokenizer.ggml.empty", ARRAY, (STRING, [])),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.fixture
def metadata(path: Path) -> Iterator[Metadata]:
    path.write_bytes(Raw(kvs=MODEL_KEYS).build())
    with GGUFFile.open(path) as file:
        yield file.metadata


def test_mapping(metadata: Metadata) -> None:
    """Metadata is a Mapping in the file's order; a missing key is a KeyError there."""
    assert list(metadata)[:2] == ["general.architecture", "general.name"]
    assert len(metadata) == len(MODEL_KEYS)
    assert "general.name" in metadata
    assert "general" not in metadata
    assert metadata["qwen2.head_counts"] == [4, 8]
    assert metadata.get("nothing") is None
    with pytest.raises(KeyError):
        metadata["nothing"]


def test_arrays_are_fresh_lists(metadata: Metadata) -> None:
    """What a caller does to an array that was handed out does not reach the next caller."""
    first = metadata.get_array("qwen2.head_counts", int)
    first.append(99)
    assert metadata["qwen2.head_counts"] == [4, 8]


def test_getters(metadata: Metadata) -> None:
    """The right type comes back; the element type of an array is checked, also of an empty one."""
    assert metadata.get_int("qwen2.context_length") == 32768
    assert metadata.get_float("qwen2.rope.freq_base") == 1e6
    assert metadata.get_bool("tokenizer.ggml.add_bos_token") is False
    assert metadata.get_str("general.architecture") == "qwen2"
    assert metadata.get_array("tokenizer.ggml.tokens", str) == ["a", "b"]
    assert metadata.get_array("tokenizer.ggml.empty", str) == []


def test_defaults(metadata: Metadata) -> None:
    """A default stands for a missing key, whatever it is; it does not excuse a wrong type."""
    assert metadata.get_int("missing", 7) == 7
    assert metadata.get_float("missing", None) is None
    assert metadata.get_array("missing", str, None) is None
    with pytest.raises(GGUFError, match="expected int, got string"):
        metadata.get_int("general.name", 7)


@pytest.mark.parametrize(
    ("getter", "arguments", "message"),
    [
        ("get_int", ["missing"], "key 'missing' is missing, expected int"),
        ("get_array", ["missing", str], "key 'missing' is missing, expected array of str"),
        ("get_int", ["general.name"], "key 'general.name': expected int, got string"),
        ("get_int", ["qwen2.rope.freq_base"], "key 'qwen2.rope.freq_base': expected int, got float32"),
        (
            "get_int",
            ["tokenizer.ggml.add_bos_token"],
            "key 'tokenizer.ggml.add_bos_token': expected int, got bool",
        ),
        ("get_float", ["qwen2.context_length"], "key 'qwen2.context_length': expected float, got uint32"),
        ("get_bool", ["qwen2.context_length"], "key 'qwen2.context_length': expected bool, got uint32"),
        ("get_str", ["qwen2.head_counts"], "key 'qwen2.head_counts': expected str, got array of int32"),
        ("get_array", ["general.name", str], "key 'general.name': expected array of str, got string"),
        (
            "get_array",
            ["qwen2.head_counts", str],
            "'qwen2.head_counts': expected array of str, got array of int32",
        ),
        ("get_array", ["qwen2.head_counts", float], "expected array of float, got array of int32"),
        ("get_array", ["tokenizer.ggml.empty", int], "expected array of int, got array of string"),
    ],
)
def test_wrong_or_missing(
    metadata: Metadata, path: Path, getter: str, arguments: list[Any], message: str
) -> None:
    """Promise 7: types are checked, never reinterpreted; the error names file, key, expected and got."""
    with pytest.raises(GGUFError) as caught:
        getattr(metadata, getter)(*arguments)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(message)


def test_scalars(metadata: Metadata) -> None:
    """scalars() holds all but arrays, overrides applied; values keep their Python types."""
    scalars = metadata.with_overrides({"qwen2.context_length": 5, "extra": "x"}).scalars()
    assert scalars == {
        "general.architecture": "qwen2",
        "general.name": "a model",
        "qwen2.context_length": 5,
        "qwen2.rope.freq_base": 1e6,
        "tokenizer.ggml.add_bos_token": False,
        "extra": "x",
    }
    assert scalars["tokenizer.ggml.add_bos_token"] is False


def test_keys_read_are_recorded(metadata: Metadata) -> None:
    """Getters note the keys they were asked for, missing ones as well; the mapping notes nothing."""
    metadata["general.name"]
    metadata.get_int("qwen2.context_length")
    metadata.get_str("missing", "")
    metadata.get_array("tokenizer.ggml.tokens", str)
    assert metadata.keys_read == {"qwen2.context_length", "missing", "tokenizer.ggml.tokens"}
    assert not metadata.with_overrides({}).keys_read


def test_override_takes_effect_everywhere(metadata: Metadata) -> None:
    """An override shows in the mapping, the getters and scalars(); the original stays as it was."""
    changed = metadata.with_overrides({"qwen2.context_length": 131072, "qwen2.rope.scaling.type": "yarn"})
    assert changed["qwen2.context_length"] == 131072
    assert changed.get_int("qwen2.context_length") == 131072
    assert changed.get_str("qwen2.rope.scaling.type") == "yarn"
    assert list(changed) == [*metadata, "qwen2.rope.scaling.type"]
    assert len(changed) == len(metadata) + 1
    assert "qwen2.rope.scaling.type" in changed
    assert metadata["qwen2.context_length"] == 32768
    assert "qwen2.rope.scaling.type" not in metadata


def test_overrides_add_up(metadata: Metadata) -> None:
    """Overriding twice keeps what was overridden first, unless it is overridden again."""
    twice = metadata.with_overrides({"qwen2.context_length": 1, "x": 1}).with_overrides({"x": 2})
    assert twice.overrides == {"qwen2.context_length": 1, "x": 2}
    assert metadata.with_overrides(None).overrides == {}


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("qwen2.rope.freq_base", 10000, 10000.0),  # int for a float of the file
        ("qwen2.rope.scaling.factor", 4, 4.0),  # int for a float that the file lacks
        ("qwen2.context_length", 2**32 - 1, 2**32 - 1),
        ("tokenizer.ggml.add_bos_token", True, True),
        ("general.name", "", ""),
        ("nobody.knows", 3, 3),
    ],
)
def test_override_of_the_right_type(metadata: Metadata, key: str, value: Any, result: Any) -> None:
    """An int does for a float; anything else must match."""
    got = metadata.with_overrides({key: value})[key]
    assert got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("qwen2.context_length", "long", "expected int, got str 'long'"),
        ("qwen2.context_length", 4096.0, "expected int, got float 4096.0"),
        ("qwen2.context_length", True, "expected int, got bool True"),
        ("qwen2.context_length", -1, "-1 is outside 0..4294967295"),
        ("qwen2.context_length", 2**32, "4294967296 is outside 0..4294967295"),
        ("qwen2.rope.freq_base", "1e6", "expected float, got str '1e6'"),
        ("qwen2.rope.freq_base", float("nan"), "expected a finite number, got nan"),
        ("qwen2.rope.freq_base", float("inf"), "expected a finite number, got inf"),
        ("qwen2.rope.freq_base", 10**400, "expected float, got int"),
        ("tokenizer.ggml.add_bos_token", 1, "expected bool, got int 1"),
        ("general.name", 5, "expected str, got int 5"),
        ("qwen2.head_counts", 4, "the file holds an array here, and arrays cannot be overridden"),
        ("tokenizer.ggml.tokens", "x", "arrays cannot be overridden"),
        ("qwen2.rope.scaling.type", 1, "expected str, got int 1"),  # a known key that the file lacks
        ("qwen2.rope.scaling.factor", "4", "expected float, got str '4'"),
        ("tokenizer.ggml.eot_token_id", "x", "expected int, got str 'x'"),
        ("nobody.knows", 2**63, "is outside -9223372036854775808..9223372036854775807"),
        ("nobody.knows", None, "expected int, float, bool or str, got NoneType"),
        ("nobody.knows", [1], "expected int, float, bool or str, got list"),
    ],
)
def test_override_of_the_wrong_type(metadata: Metadata, key: str, value: Any, message: str) -> None:
    """An override that cannot take effect is an error, at once."""
    with pytest.raises(ArgumentError) as caught:
        metadata.with_overrides({key: value})
    assert str(caught.value).startswith(f"override '{key}': ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_written_int_is_no_float(metadata: Metadata) -> None:
    """`KEY=int:4` for a float is an error, unlike the Python int 4: the type was written out."""
    for key in ("qwen2.rope.freq_base", "qwen2.rope.scaling.factor"):
        with pytest.raises(ArgumentError, match="expected float, got int 4"):
            metadata.with_overrides(dict([parse_override(f"{key}=int:4")]))
    key, value = parse_override("qwen2.context_length=int:4")
    assert type(metadata.with_overrides({key: value})[key]) is int


def test_getter_checks_overrides_of_unknown_keys(metadata: Metadata) -> None:
    """A key that neither the file nor gristmill knows is checked when something reads it."""
    changed = metadata.with_overrides({"new.flag": 1, "new.number": 2})
    with pytest.raises(ArgumentError, match=r"override 'new\.flag': expected bool, got int"):
        changed.get_bool("new.flag")
    assert changed.get_float("new.number") == 2.0
    assert changed.get_int("new.number") == 2


def test_override_that_nothing_reads_is_reported(metadata: Metadata) -> None:
    """A mistyped key gets a warning with the nearest key that is read; a key that is read gets none."""
    changed = metadata.with_overrides(
        {"qwen2.contxt_length": 5, "tokenizer.ggml.pre": "qwen2", "qwen2.rope.freq_base": 1.0, "zzz": 1}
    )
    changed.get_float("qwen2.rope.freq_base")
    with pytest.warns(GristmillWarning) as caught:
        changed.check_overrides({"qwen2.context_length", "tokenizer.ggml.pre"})
    assert [str(w.message) for w in caught] == [
        "override 'qwen2.contxt_length' has no effect: nothing reads this key; "
        "did you mean 'qwen2.context_length'?",
        "override 'zzz' has no effect: nothing reads this key",
    ]


def test_no_warning_without_overrides(metadata: Metadata) -> None:
    """check_overrides() is silent where every override is read."""
    changed = metadata.with_overrides({"qwen2.context_length": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata.check_overrides()
        changed.check_overrides({"qwen2.context_length"})


def test_every_type_by_name(path: Path) -> None:
    """value_type() gives GGUF's type of each key, overrides or not; array_length() only that of arrays."""
    path.write_bytes(sound().build())
    with GGUFFile.open(path) as file:
        for key, type_id, value in ONE_OF_EACH:
            kind = file.metadata.value_type(key)
            assert kind is not None
            assert kind.python is (list if type_id == ARRAY else type(value))
            assert file.metadata.array_length(key) == (len(value[1]) if type_id == ARRAY else None)  # type: ignore[index]
        assert file.metadata.value_type("missing") is None
        assert file.metadata.array_length("missing") is None


def test_repr_names_the_file(metadata: Metadata, path: Path) -> None:
    """repr() is short, whatever the file holds."""
    assert repr(metadata) == f"<Metadata of {path}: 8 keys, 0 overridden>"
