"""llama.cpp's names, letters, flags and defaults; presets; and a warning for whatever is set to no effect."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from gristmill import ArgumentError, CustomSampler, GristmillWarning, SamplerChain
from gristmill import sampling as gs

DEFAULT = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"


def names(chain: SamplerChain) -> str:
    return ";".join(sampler.name for sampler in chain.samplers)


def quiet(*args: Any, **kwargs: Any) -> SamplerChain:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return SamplerChain.parse(*args, **kwargs)


def warned(*args: Any, **kwargs: Any) -> tuple[SamplerChain, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chain = SamplerChain.parse(*args, **kwargs)
    assert all(w.category is GristmillWarning and w.filename == __file__ for w in caught)
    return chain, [str(w.message) for w in caught]


def test_defaults_are_llama_cpp_s() -> None:
    chain = quiet()
    assert names(chain) == DEFAULT
    assert chain.samplers == (
        gs.Penalties(64, 1.0, 0.0, 0.0),
        gs.Dry(0.0, 1.75, 2, 64, ("\n", ":", '"', "*")),
        gs.TopNSigma(-1.0),
        gs.TopK(40),
        gs.TypicalP(1.0),
        gs.TopP(0.95),
        gs.MinP(0.05),
        gs.Xtc(0.0, 0.1),
        gs.Temperature(0.8, 0.0, 1.0),
    )


def test_flags_reach_their_samplers() -> None:
    chain = quiet(
        repeat_last_n=10,
        repeat_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        dry_multiplier=0.5,
        dry_base=2.0,
        dry_allowed_length=3,
        dry_penalty_last_n=-1,
        dry_sequence_breakers=["#"],
        top_n_sigma=1.5,
        top_k=50,
        typical=0.9,
        top_p=0.8,
        min_p=0.1,
        xtc_probability=0.25,
        xtc_threshold=0.2,
        temp=0.7,
        dynatemp_range=0.1,
        dynatemp_exp=1.5,
        logit_bias={7: -np.inf},
        min_keep=2,
        seed=9,
    )
    assert chain.seed == 9
    assert chain.samplers == (
        gs.LogitBias(((7, -np.inf),)),
        gs.Penalties(10, 1.1, 0.2, 0.3),
        gs.Dry(0.5, 2.0, 3, -1, ("#",)),
        gs.TopNSigma(1.5),
        gs.TopK(50),
        gs.TypicalP(0.9, 2),
        gs.TopP(0.8, 2),
        gs.MinP(0.1, 2),
        gs.Xtc(0.25, 0.2, 2),
        gs.Temperature(0.7, 0.1, 1.5),
    )


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("top_k;top_p;min_p;temperature;", "top_k;top_p;min_p;temperature"),
        ("TOP-K;TopP;Min_P;Temp", "top_k;top_p;min_p;temperature"),
        ("nucleus; typ ;typical;typical-p;typ-p;typp", "top_p;typ_p;typ_p;typ_p;typ_p;typ_p"),
        ("top-n-sigma;topnsigma;XTC;Dry;penalties", "top_n_sigma;top_n_sigma;xtc;dry;penalties"),
        ("minp;min-p;topk;top-p;temperature", "min_p;min_p;top_k;top_p;temperature"),
        (";;top_k;;", "top_k"),
        ("", ""),
        (["top_k", "temp"], "top_k;temperature"),
        (None, DEFAULT),
    ],
)
def test_names(order: Any, expected: str) -> None:
    assert names(quiet(order)) == expected


def test_letters() -> None:
    assert names(SamplerChain.parse_letters("edskypmxt")) == DEFAULT
    assert names(quiet(letters="kpmt", temp=0.5)) == "top_k;top_p;min_p;temperature"
    assert names(quiet(letters="")) == ""
    with pytest.raises(ArgumentError, match=r"unknown sampler letter 'z', known are e .penalties."):
        SamplerChain.parse(letters="kz")
    with pytest.raises(ArgumentError, match=r"'adaptive_p'.*not supported"):
        SamplerChain.parse(letters="a")
    with pytest.raises(ArgumentError, match="both"):
        SamplerChain.parse("top_k", letters="k")


def test_samplers_may_stand_among_names() -> None:
    class Mine(CustomSampler):
        def apply(self, logits: np.ndarray) -> None:
            pass

    assert names(quiet(["top_k", Mine(), "temp", gs.TopK(3)])) == "top_k;custom;temperature;top_k"


@pytest.mark.parametrize(
    ("order", "hint"),
    [("top_k;top_pp", "top_p"), ("temprature", "temperature"), ("nuclues", "nucleus"), ("DRYY", "dry")],
)
def test_unknown_names_are_errors_that_name_the_nearest(order: str, hint: str) -> None:
    with pytest.raises(ArgumentError, match=f"unknown sampler .*known are penalties, dry, .*{hint!r}"):
        SamplerChain.parse(order)


def test_names_that_only_llama_cpp_knows() -> None:
    for order in ("infill", "adaptive-p", "adaptivep"):
        with pytest.raises(ArgumentError, match="not supported"):
            SamplerChain.parse(order)


def test_unknown_parameters_and_presets_are_errors() -> None:
    with pytest.raises(ArgumentError, match=r"unknown sampling parameter 'top_kk'.*did you mean 'top_k'"):
        SamplerChain.parse(top_kk=3)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match=r"unknown preset 'qwk'.*did you mean 'qwq'"):
        SamplerChain.preset("qwk")


# What has no effect -----------------------------------------------------------------------------------------


def test_the_published_qwq_command() -> None:
    chain, messages = warned(
        "top_k;top_p;min_p;temperature;dry;typ_p;xtc",
        seed=3407,
        temp=0.6,
        repeat_penalty=1.1,
        dry_multiplier=0.5,
        min_p=0.01,
        top_k=40,
        top_p=0.95,
    )
    assert names(chain) == "top_k;top_p;min_p;temperature;dry;typ_p;xtc"
    assert messages == [
        "--repeat-penalty 1.1 has no effect: 'penalties' is not in the sampler chain "
        "(top_k;top_p;min_p;temperature;dry;typ_p;xtc)"
    ]


@pytest.mark.parametrize(
    ("flag", "value", "sampler"),
    [
        ("temp", 0.5, "temperature"),
        ("dynatemp_range", 0.5, "temperature"),
        ("top_k", 40, "top_k"),
        ("top_p", 0.95, "top_p"),
        ("min_p", 0.05, "min_p"),
        ("typical", 0.9, "typ_p"),
        ("top_n_sigma", 1.0, "top_n_sigma"),
        ("xtc_probability", 0.5, "xtc"),
        ("repeat_penalty", 1.1, "penalties"),
        ("frequency_penalty", 0.1, "penalties"),
        ("presence_penalty", 0.1, "penalties"),
        ("repeat_last_n", 128, "penalties"),
        ("dry_multiplier", 0.8, "dry"),
        ("dry_sequence_breakers", ["#"], "dry"),
    ],
)
def test_a_parameter_without_its_sampler_warns(flag: str, value: Any, sampler: str) -> None:
    others = ";".join(name for name in DEFAULT.split(";") if name != sampler)
    chain, messages = warned(others, **{flag: value})
    assert len(messages) == 1
    name = "--" + flag.replace("_", "-")
    assert re.match(rf"{name}\b.* has no effect: '{sampler}' is not in the sampler chain", messages[0])
    assert names(chain) == others


def test_values_that_ask_for_nothing_do_not_warn() -> None:
    quiet(
        "",
        temp=1.0,
        dynatemp_range=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        typical=1.0,
        top_n_sigma=-1.0,
        xtc_probability=0.0,
        repeat_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        repeat_last_n=0,
        dry_multiplier=0.0,
        mirostat=0,
        logit_bias={},
    )
    quiet("top_k", temp=None, top_p=None, dry_sequence_breakers=None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"repeat_last_n": 128}, "--repeat-last-n 128 has no effect: repeat_penalty .1.0. and"),
        ({"repeat_last_n": 0, "repeat_penalty": 1.1}, "--repeat-penalty 1.1 .*repeat_last_n .0. is off"),
        ({"dry_base": 2.0}, "--dry-base 2.0 has no effect: dry_multiplier .0.0. is off"),
        ({"xtc_threshold": 0.2}, "--xtc-threshold 0.2 has no effect: xtc_probability .0.0. is off"),
        ({"dynatemp_exp": 2.0}, "--dynatemp-exp 2.0 has no effect: dynatemp_range .0.0. is off"),
        ({"mirostat_lr": 0.2}, "--mirostat-lr 0.2 has no effect: mirostat is off"),
        ({"mirostat_ent": 3.0}, "--mirostat-ent 3.0 has no effect: mirostat is off"),
        ({"dry_base": 0.5, "dry_multiplier": 1.0}, "--dry-base 0.5 is below 1: 1.75 is used"),
    ],
)
def test_a_parameter_of_something_that_is_off_warns(flags: dict[str, Any], message: str) -> None:
    _, messages = warned(**flags)
    assert len(messages) == 1
    assert re.match(message, messages[0])


def test_mirostat_replaces_the_chain_and_says_so() -> None:
    for version, cls in ((1, gs.Mirostat), (2, gs.MirostatV2)):
        chain, messages = warned(
            "top_k;temp", mirostat=version, mirostat_lr=0.2, mirostat_ent=3.0, temp=0.7, top_k=40
        )
        assert chain.samplers == (gs.Temperature(0.7), cls(3.0, 0.2))
        assert len(messages) == 2
        assert messages[0].startswith("mirostat replaces the sampler chain: temperature;mirostat")
        assert "--top-k 40 has no effect" in messages[1]
    chain, messages = warned(mirostat=2, dynatemp_range=0.5, logit_bias={1: 2.0})
    assert names(chain) == "logit_bias;temperature;mirostat_v2"
    assert "--dynatemp-range 0.5 has no effect: mirostat uses a fixed temperature" in messages


# Presets and values -----------------------------------------------------------------------------------------


def test_preset_qwq() -> None:
    chain = SamplerChain.preset("qwq", seed=4)
    assert chain.samplers == quiet(temp=0.6, top_p=0.95, top_k=40, min_p=0.0).samplers
    assert chain.seed == 4
    assert gs.Temperature(0.9) in SamplerChain.preset("qwq", temp=0.9).samplers
    assert gs.MinP(0.1) in quiet(preset="qwq", min_p=0.1, temp=None).samplers
    _, messages = warned("temperature;top_k", preset="qwq")
    assert messages == [
        "top_p 0.95 of preset 'qwq' has no effect: 'top_p' is not in the sampler chain (temperature;top_k)"
    ]


def test_breakers_none_forgets_those_before() -> None:
    for given, expected in (
        (["a", "none"], ()),
        (["none", "b"], ("b",)),
        ([], ()),
    ):
        chain = quiet("dry", dry_multiplier=1.0, dry_sequence_breakers=given)
        assert chain.samplers == (gs.Dry(1.0, sequence_breakers=expected),)
    _, messages = warned("dry", dry_multiplier=1.0, dry_sequence_breakers=["", "a"])
    assert messages == ["an empty DRY sequence breaker has no effect"]


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("temp", [np.nan, np.inf, "hot", 1e39]),
        ("top_k", [1.5, 2**31, "40"]),
        ("top_p", [np.nan, "x"]),
        ("min_p", [np.nan]),
        ("typical", [np.nan]),
        ("top_n_sigma", [np.nan]),
        ("xtc_probability", [np.nan]),
        ("xtc_threshold", [np.nan]),
        ("repeat_penalty", [np.nan, 0.0, -1.0, np.inf, 1e-45]),
        ("repeat_last_n", [-1, 2.5]),
        ("frequency_penalty", [np.inf]),
        ("presence_penalty", [np.nan]),
        ("dry_multiplier", [np.nan]),
        ("dry_base", [np.nan, "x"]),
        ("dry_allowed_length", [-1]),
        ("dry_penalty_last_n", [-2]),
        ("dry_sequence_breakers", ["\n"]),
        ("dynatemp_range", [np.nan]),
        ("dynatemp_exp", [np.inf]),
        ("mirostat", [3, -1]),
        ("mirostat_lr", [np.nan]),
        ("mirostat_ent", [np.nan]),
        ("min_keep", [-1]),
        ("logit_bias", [{-1: 1.0}, {1: np.nan}, {1: np.inf}, {1.5: 1.0}]),
    ],
)
def test_values_out_of_range_are_errors(flag: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ArgumentError):
            SamplerChain.parse(**{flag: value})


def test_values_that_llama_cpp_takes_are_taken() -> None:
    logits = np.arange(10, dtype=np.float32)
    for flags, kept in (
        ({"temp": -1.0}, 1),
        ({"top_k": -5, "top_p": 1.0, "min_p": 0.0}, 10),
        ({"top_p": -1.0}, 1),
    ):
        assert len(quiet(**flags).distribution(logits)[0]) == kept, flags
    for flags in ({"top_p": 1.5}, {"min_p": 2.0}, {"xtc_probability": 2.0}):
        quiet(**flags).sample(logits)
