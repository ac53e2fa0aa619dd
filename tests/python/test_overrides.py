"""The text form of overrides: `KEY=TYPE:VALUE`, several in one argument, and the table of known keys."""

from __future__ import annotations

from typing import Any

import gguf.constants
import pytest
from gristmill import ArgumentError
from gristmill.metadata import parse_override, parse_overrides
from gristmill.overrides import _GLOBAL_KEYS, _MODEL_KEYS, TypedInt
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("qwen2.context_length=int:131072", "qwen2.context_length", 131072),
        ("a=int:-5", "a", -5),
        ("a=int:+5", "a", 5),
        ("a=int:9223372036854775807", "a", 2**63 - 1),
        ("a=float:4", "a", 4.0),
        ("a=float:-1.5e-3", "a", -0.0015),
        ("a=float:.5", "a", 0.5),
        ("a=bool:true", "a", True),
        ("a=bool:false", "a", False),
        ("qwen2.rope.scaling.type=str:yarn", "qwen2.rope.scaling.type", "yarn"),
        ("a=str:", "a", ""),
        ("a=str:x=y:z", "a", "x=y:z"),
        ("a=str:" + "x" * 1000, "a", "x" * 1000),
        ("a=str:日本", "a", "日本"),
    ],
)
def test_one(text: str, key: str, value: Any) -> None:
    """llama.cpp's four types; strings may have any length."""
    got_key, got = parse_override(text)
    assert (got_key, got) == (key, value)
    assert isinstance(got, TypedInt) if type(value) is int else type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected KEY=TYPE:VALUE"),
        ("key", "expected KEY=TYPE:VALUE"),
        ("key=4", "expected KEY=TYPE:VALUE"),
        ("=int:4", "expected KEY=TYPE:VALUE"),
        ("key=uint:4", "unknown type 'uint'"),
        ("key=INT:4", "unknown type 'INT'"),
        ("key=int:", "expected an integer of 64 bits, got ''"),
        ("key=int:4.0", "expected an integer of 64 bits, got '4.0'"),
        ("key=int:4k", "expected an integer of 64 bits, got '4k'"),
        ("key=int:1_000", "expected an integer of 64 bits, got '1_000'"),
        ("key=int: 4", "expected an integer of 64 bits"),
        ("key=int:٤", "expected an integer of 64 bits"),
        ("key=int:9223372036854775808", "expected an integer of 64 bits"),
        ("key=int:" + "9" * 100_000, "expected an integer of 64 bits"),
        ("key=float:abc", "expected a finite number, got 'abc'"),
        ("key=float:nan", "expected a finite number, got 'nan'"),
        ("key=float:inf", "expected a finite number, got 'inf'"),
        ("key=float:1e999", "expected a finite number, got '1e999'"),
        ("key=float:1,5", "expected KEY=TYPE:VALUE"),
        ("key=bool:1", "expected true or false, got '1'"),
        ("key=bool:True", "expected true or false, got 'True'"),
        ("a=int:1,", "expected KEY=TYPE:VALUE"),
        ('"a=int:1', "the double quote is not closed"),
        ("a=int:1,a=int:2", "override 'a': given twice, as 1 and as 2"),
        ("a=int:1,a=float:1", "override 'a': given twice, as 1 and as 1.0"),
    ],
)
def test_malformed(text: str, message: str) -> None:
    """What llama.cpp would take for 0, or drop, is an error of one bounded line."""
    with pytest.raises(ArgumentError) as caught:
        parse_overrides(text)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["a=int:1,b=str:x"], {"a": 1, "b": "x"}),
        (["a=int:1", "b=float:2,c=bool:true"], {"a": 1, "b": 2.0, "c": True}),
        (["a=int:1", "a=int:1"], {"a": 1}),
        ([r"a=str:x\,y,b=int:2"], {"a": "x,y", "b": 2}),
        (['"a=str:x,y",b=int:2'], {"a": "x,y", "b": 2}),
        (['"a=str:say ""hi"", you"'], {"a": 'say "hi", you'}),
        (['a=str:say "hi"'], {"a": 'say "hi"'}),
        ([r"a=str:C:\dir\file"], {"a": r"C:\dir\file"}),
    ],
)
def test_lists(texts: list[str], expected: dict[str, Any]) -> None:
    """Commas separate, within an argument as in llama.cpp; backslash or quotes keep a comma."""
    assert parse_overrides(*texts) == expected


@given(st.dictionaries(st.text("abc._", min_size=1), st.text(st.characters(exclude_characters='"\\'))))
def test_quoting_round_trip(values: dict[str, str]) -> None:
    """Any string value can be written, its commas escaped."""
    text = ",".join(f"{key}=str:{value}".replace(",", r"\,") for key, value in values.items())
    assert parse_overrides(*([text] if values else [])) == values


@given(st.text())
def test_any_text_parses_or_is_an_argument_error(text: str) -> None:
    """Promise 2 for the command line's input: no other exception, one line."""
    try:
        parse_overrides(text)
    except ArgumentError as error:
        assert str(error).isprintable()


def test_known_keys_are_spelled_as_the_gguf_package_spells_them() -> None:
    """The table of known keys holds no key that GGUF does not have."""
    known: set[str] = set()
    for group in vars(gguf.constants.Keys).values():
        if isinstance(group, type):
            known |= {value for value in vars(group).values() if isinstance(value, str)}
    old = {"rope.scale_linear"}  # llama.cpp still reads it; the package has dropped it
    assert not {"{arch}." + key for key in _MODEL_KEYS.keys() - old} - known
    assert not _GLOBAL_KEYS.keys() - known
