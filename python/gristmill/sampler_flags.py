"""llama.cpp's sampling flags: names of samplers, and which flag belongs to which sampler."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from gristmill.errors import ArgumentError
from gristmill.samplers import DRY_SEQUENCE_BREAKERS

DEFAULT_ORDER = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)

LETTERS: Mapping[str, str] = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
}

_ALIASES: Mapping[str, str] = {
    **{name: name for name in DEFAULT_ORDER},
    **{name.replace("_", ""): name for name in DEFAULT_ORDER},
    "nucleus": "top_p",
    "temp": "temperature",
    "typ": "typ_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
}

# Known to llama.cpp, not to gristmill: by letter and by name.
_UNSUPPORTED: Mapping[str, str] = {"a": "adaptive_p", "i": "infill"}

# The models' own recommendations.
PRESETS: Mapping[str, Mapping[str, float]] = {
    # Qwen/QwQ-32B, "Usage Guidelines".
    "qwq": {"temp": 0.6, "top_p": 0.95, "top_k": 40, "min_p": 0.0, "repeat_penalty": 1.0},
}


class SamplerFlags(TypedDict, total=False):
    """The keyword parameters of ``SamplerChain.parse``: llama.cpp's long flags. None means not set."""

    temp: float | None
    dynatemp_range: float | None
    dynatemp_exp: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    frequency_penalty: float | None
    presence_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    mirostat: int | None
    mirostat_lr: float | None
    mirostat_ent: float | None
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] | None
    min_keep: int | None


@dataclass(frozen=True)
class Flag:
    """A flag's default and effect.

    ``samplers``: the samplers that read it; none for a flag about the whole chain. ``is_off``: values that
    ask for no effect, so that it is no surprise if they have none. ``needs``: flags one of which has to be
    on, or this one does nothing.
    """

    default: Any
    samplers: tuple[str, ...]
    is_off: Callable[[Any], bool]
    needs: tuple[str, ...] = ()


def _equals(value: object) -> Callable[[Any], bool]:
    return lambda given: bool(given == value)


def _at_most(limit: float) -> Callable[[Any], bool]:
    return lambda given: bool(given <= limit)


def _at_least(limit: float) -> Callable[[Any], bool]:
    return lambda given: bool(given >= limit)


def _detail(default: object, sampler: str, *needs: str) -> Flag:
    """A parameter that only shapes what other flags switch on."""
    return Flag(default, (sampler,), _equals(default), needs)


_PENALTIES = ("repeat_penalty", "frequency_penalty", "presence_penalty")

FLAGS: Mapping[str, Flag] = {
    "temp": Flag(0.8, ("temperature",), _equals(1.0)),
    "dynatemp_range": Flag(0.0, ("temperature",), _at_most(0.0)),
    "dynatemp_exp": _detail(1.0, "temperature", "dynatemp_range"),
    "top_k": Flag(40, ("top_k",), _at_most(0)),
    "top_p": Flag(0.95, ("top_p",), _at_least(1.0)),
    "min_p": Flag(0.05, ("min_p",), _at_most(0.0)),
    "typical": Flag(1.0, ("typ_p",), _at_least(1.0)),
    "top_n_sigma": Flag(-1.0, ("top_n_sigma",), _at_most(0.0)),
    "xtc_probability": Flag(0.0, ("xtc",), _at_most(0.0)),
    "xtc_threshold": _detail(0.1, "xtc", "xtc_probability"),
    "repeat_penalty": Flag(1.0, ("penalties",), _equals(1.0), ("repeat_last_n",)),
    "frequency_penalty": Flag(0.0, ("penalties",), _equals(0.0), ("repeat_last_n",)),
    "presence_penalty": Flag(0.0, ("penalties",), _equals(0.0), ("repeat_last_n",)),
    "repeat_last_n": Flag(64, ("penalties",), _equals(0), _PENALTIES),
    "dry_multiplier": Flag(0.0, ("dry",), _equals(0.0), ("dry_penalty_last_n",)),
    "dry_base": _detail(1.75, "dry", "dry_multiplier"),
    "dry_allowed_length": _detail(2, "dry", "dry_multiplier"),
    "dry_penalty_last_n": Flag(64, ("dry",), _equals(0), ("dry_multiplier",)),
    "dry_sequence_breakers": _detail(DRY_SEQUENCE_BREAKERS, "dry", "dry_multiplier"),
    "mirostat": Flag(0, (), _equals(0)),
    "mirostat_lr": _detail(0.1, "mirostat"),
    "mirostat_ent": _detail(5.0, "mirostat"),
    "logit_bias": Flag((), (), lambda given: not given),
    "min_keep": Flag(0, ("top_p", "min_p", "typ_p", "xtc"), _at_most(0)),
}


def _unknown(
    kind: str, name: str, known: Iterable[str], spellings: Iterable[str] | None = None
) -> ArgumentError:
    known = list(known)
    near = difflib.get_close_matches(name.lower(), list(spellings or known), 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ArgumentError(f"unknown {kind} {name!r}, known are {', '.join(known)}{hint}")


def canonical_name(name: str) -> str:
    """The sampler that llama.cpp's ``--samplers`` means by ``name``. Raises ArgumentError for an unknown
    one."""
    key = name.strip().lower().replace("-", "_")
    if key in _ALIASES:
        return _ALIASES[key]
    for unsupported in _UNSUPPORTED.values():
        if key in (unsupported, unsupported.replace("_", "")):
            raise ArgumentError(
                f"sampler {unsupported!r} is not supported, known are {', '.join(DEFAULT_ORDER)}"
            )
    raise _unknown("sampler", name.strip(), DEFAULT_ORDER, _ALIASES)


def names_from_letters(letters: str) -> list[str]:
    """The samplers of llama.cpp's ``--sampling-seq``. Raises ArgumentError for an unknown letter."""
    for letter in letters:
        if letter in _UNSUPPORTED:
            raise ArgumentError(f"sampler {_UNSUPPORTED[letter]!r} (letter {letter!r}) is not supported")
        if letter not in LETTERS:
            known = ", ".join(f"{key} ({name})" for key, name in LETTERS.items())
            raise ArgumentError(f"unknown sampler letter {letter!r}, known are {known}")
    return [LETTERS[letter] for letter in letters]


def check_flag_names(names: Iterable[str]) -> None:
    """Raises ArgumentError for a name that is no sampling flag."""
    for name in names:
        if name not in FLAGS:
            raise _unknown("sampling parameter", name, FLAGS)


def preset_flags(preset: str) -> Mapping[str, float]:
    """The flags of a preset. Raises ArgumentError for an unknown one."""
    if preset not in PRESETS:
        raise _unknown("preset", preset, PRESETS)
    return PRESETS[preset]


def without_effect(values: Mapping[str, Any], given: Mapping[str, str], chain: Sequence[str]) -> list[str]:
    """One sentence for each flag that was set and does nothing.

    ``values`` holds every flag; ``given`` says how to call those that were set; ``chain`` names the samplers.
    """
    messages = []
    shown = ";".join(chain)
    replaced = any(name.startswith("mirostat") for name in chain)
    for name, label in given.items():
        flag = FLAGS[name]
        if flag.is_off(values[name]) or not flag.samplers:
            continue
        if name.startswith("mirostat_"):
            if not replaced:
                messages.append(f"{label} has no effect: mirostat is off")
        elif not any(sampler in chain for sampler in flag.samplers):
            missing = " or ".join(repr(sampler) for sampler in flag.samplers)
            messages.append(f"{label} has no effect: {missing} is not in the sampler chain ({shown})")
        elif replaced and name.startswith("dynatemp"):
            messages.append(f"{label} has no effect: mirostat uses a fixed temperature")
        elif flag.needs and all(FLAGS[other].is_off(values[other]) for other in flag.needs):
            off = " and ".join(f"{other} ({values[other]})" for other in flag.needs)
            messages.append(f"{label} has no effect: {off} {'is' if len(flag.needs) == 1 else 'are'} off")
    return messages
