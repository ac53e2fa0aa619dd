"""The samplers a :class:`~gristmill.sampling.SamplerChain` is made of: their parameters and what they mean.

The names, meanings and defaults of parameters are llama.cpp's. Constructors raise ArgumentError for what is
not a number or out of range. ``min_keep`` is the number of most likely candidates that a truncation keeps in
any case.
"""

from __future__ import annotations

import copy
import math
import operator
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from gristmill import _core
from gristmill.errors import ArgumentError

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_number(sampler: str, name: str, value: float) -> float:
    """``value`` as a float that float32 can hold; ArgumentError if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > _FLOAT32_MAX:
        raise ArgumentError(f"[{sampler}] {name} must be a finite number, got {value!r}")
    return number


def _integer(sampler: str, name: str, value: int, low: int = -(2**31)) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"[{sampler}] {name} must be an integer, got {value!r}") from None
    if not low <= number < 2**31:
        raise ArgumentError(f"[{sampler}] {name} must be at least {low} and below 2^31, got {value!r}")
    return number


class Sampler(ABC):
    """One link of a chain. The ones that gristmill brings are immutable and may be used in several chains."""

    name: ClassVar[str]

    @abstractmethod
    def _build(self) -> _core.Sampler: ...

    def _check_numbers(self, *names: str) -> None:
        for name in names:
            object.__setattr__(self, name, check_number(self.name, name, getattr(self, name)))

    def _check_integer(self, name: str, low: int = -(2**31)) -> None:
        object.__setattr__(self, name, _integer(self.name, name, getattr(self, name), low))


class CustomSampler(Sampler):
    """Base of samplers written in Python. Only :meth:`apply` has to be defined."""

    name: ClassVar[str] = "custom"

    @abstractmethod
    def apply(self, logits: npt.NDArray[np.float32]) -> None:
        """Change ``logits``, float32 [n_vocab], in place; return None.

        -inf stands for a removed token; giving it a number brings it back. Making one NaN or +inf is an
        Error, and so is masking them all. Exceptions pass through to the caller of ``sample``. The array
        belongs to this call.
        """

    def accept(self, token: int) -> None:
        """Called for each token that the chain accepts."""

    def reset(self) -> None:
        """Called by the chain's ``reset``."""

    def clone(self) -> CustomSampler:
        """The sampler of a cloned chain: by default a deep copy."""
        return copy.deepcopy(self)

    def _build(self) -> _core.Sampler:
        # Weak, because the garbage collector does not see through the compiled chain: a sampler that refers
        # to its chain would never be freed. The chain's Python side keeps the sampler alive.
        weak = weakref.ref(self)

        def apply(logits: npt.NDArray[np.float32]) -> None:
            sampler = weak()
            assert sampler is not None
            # Typed as None, but a user who returns a new array has to learn that it would go nowhere.
            result: object = sampler.apply(logits)
            if result is not None:
                name = type(sampler).__name__
                raise ArgumentError(f"[{name}] apply changes logits in place and returns None")

        return _core.sampler_custom(apply)


@dataclass(frozen=True)
class Penalties(Sampler):
    """Penalties on tokens that occur among the last ``last_n`` accepted ones (0: off).

    ``repeat`` divides a positive logit and multiplies a negative one (Keskar et al. 2019, "CTRL", with the
    usual correction for negative logits); then ``frequency`` times the number of occurrences, and
    ``presence`` once, are subtracted.
    """

    last_n: int = 64
    repeat: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    name: ClassVar[str] = "penalties"

    def __post_init__(self) -> None:
        self._check_integer("last_n", 0)
        self._check_numbers("repeat", "frequency", "presence")
        if self.repeat < 1 / _FLOAT32_MAX:
            raise ArgumentError(f"[penalties] repeat must be greater than 0, got {self.repeat!r}")

    def _build(self) -> _core.Sampler:
        return _core.sampler_penalties(self.last_n, self.repeat, self.frequency, self.presence)


DRY_SEQUENCE_BREAKERS: tuple[str, ...] = ("\n", ":", '"', "*")


@dataclass(frozen=True)
class Dry(Sampler):
    """DRY, "don't repeat yourself" (p-e-w 2024): penalizes tokens that would prolong a repetition.

    If a token would extend a sequence of ``n >= allowed_length`` tokens at the end of the context that
    occurred before, ``multiplier * base ** (n - allowed_length)`` is subtracted from its logit. Looks at the
    last ``penalty_last_n`` tokens (-1: all; 0: off). Off for multiplier 0 or base below 1. A repetition does
    not reach over a sequence breaker; breakers are texts, which the chain finds in tokens once it is bound to
    a tokenizer.
    """

    multiplier: float = 0.0
    base: float = 1.75
    allowed_length: int = 2
    penalty_last_n: int = 64
    sequence_breakers: Sequence[str] = DRY_SEQUENCE_BREAKERS
    name: ClassVar[str] = "dry"

    def __post_init__(self) -> None:
        self._check_numbers("multiplier", "base")
        self._check_integer("allowed_length", 0)
        self._check_integer("penalty_last_n", -1)
        breakers = self.sequence_breakers
        if isinstance(breakers, str) or not all(isinstance(b, str) and b for b in breakers):
            raise ArgumentError(f"[dry] sequence_breakers must be non-empty strings, got {breakers!r}")
        object.__setattr__(self, "sequence_breakers", tuple(breakers))

    @property
    def active(self) -> bool:
        return self.multiplier != 0 and self.base >= 1 and self.penalty_last_n != 0

    def _build(self) -> _core.Sampler:
        return self._build_with([])

    def _build_with(self, breakers: Sequence[tuple[int, Sequence[int]]]) -> _core.Sampler:
        return _core.sampler_dry(
            self.multiplier, self.base, self.allowed_length, self.penalty_last_n, breakers
        )


@dataclass(frozen=True)
class TopNSigma(Sampler):
    """Masks logits more than ``n`` standard deviations below the largest one (Tang et al. 2024). Off for n <=
    0."""

    n: float = -1.0
    name: ClassVar[str] = "top_n_sigma"

    def __post_init__(self) -> None:
        self._check_numbers("n")

    def _build(self) -> _core.Sampler:
        return _core.sampler_top_n_sigma(self.n)


@dataclass(frozen=True)
class TopK(Sampler):
    """Keeps the ``k`` most likely candidates, of equally likely ones those of lower id. Off for k <= 0."""

    k: int = 40
    name: ClassVar[str] = "top_k"

    def __post_init__(self) -> None:
        self._check_integer("k")

    def _build(self) -> _core.Sampler:
        return _core.sampler_top_k(self.k)


@dataclass(frozen=True)
class _Truncation(Sampler):
    p: float
    min_keep: int = 0

    def __post_init__(self) -> None:
        self._check_numbers("p")
        self._check_integer("min_keep", 0)


@dataclass(frozen=True)
class TypicalP(_Truncation):
    """Keeps the candidates whose surprise is nearest to the entropy, until their probabilities exceed ``p``
    (Meister et al. 2022, "Locally Typical Sampling"). Off for p >= 1."""

    p: float = 1.0
    name: ClassVar[str] = "typ_p"

    def _build(self) -> _core.Sampler:
        return _core.sampler_typical_p(self.p, self.min_keep)


@dataclass(frozen=True)
class TopP(_Truncation):
    """Keeps the fewest most likely candidates whose probabilities add up to ``p`` (Holtzman et al. 2019, "The
    Curious Case of Neural Text Degeneration"). Off for p >= 1."""

    p: float = 0.95
    name: ClassVar[str] = "top_p"

    def _build(self) -> _core.Sampler:
        return _core.sampler_top_p(self.p, self.min_keep)


@dataclass(frozen=True)
class MinP(_Truncation):
    """Keeps candidates at least ``p`` times as probable as the most likely one (Nguyen et al. 2024). Off for
    p <= 0."""

    p: float = 0.05
    name: ClassVar[str] = "min_p"

    def _build(self) -> _core.Sampler:
        return _core.sampler_min_p(self.p, self.min_keep)


@dataclass(frozen=True)
class Xtc(Sampler):
    """Exclude top choices (p-e-w 2024): with the given ``probability`` at each token, removes all candidates
    of at least ``threshold`` but the least likely of them. Off for probability <= 0 or threshold > 0.5."""

    probability: float = 0.0
    threshold: float = 0.1
    min_keep: int = 0
    name: ClassVar[str] = "xtc"

    def __post_init__(self) -> None:
        self._check_numbers("probability", "threshold")
        self._check_integer("min_keep", 0)

    def _build(self) -> _core.Sampler:
        return _core.sampler_xtc(self.probability, self.threshold, self.min_keep)


@dataclass(frozen=True)
class Temperature(Sampler):
    """Divides logits by ``temp``; for temp <= 0 only the most likely candidate is left.

    With ``dynatemp_range`` above 0 the temperature lies between ``max(0, temp - range)`` and ``temp +
    range``, at the point ``(entropy / ln(number of candidates)) ** dynatemp_exp`` of the way (dynamic
    temperature, kalomaze 2024).
    """

    temp: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exp: float = 1.0
    name: ClassVar[str] = "temperature"

    def __post_init__(self) -> None:
        self._check_numbers("temp", "dynatemp_range", "dynatemp_exp")

    def _build(self) -> _core.Sampler:
        return _core.sampler_temperature(self.temp, self.dynatemp_range, self.dynatemp_exp)


@dataclass(frozen=True)
class Mirostat(Sampler):
    """Truncates so that the surprise of drawn tokens stays near ``tau`` bits (Basu et al. 2020, version 1: by
    the rank that Zipf's law predicts). ``eta`` is the learning rate. Has to be the last of its chain."""

    tau: float = 5.0
    eta: float = 0.1
    name: ClassVar[str] = "mirostat"

    def __post_init__(self) -> None:
        self._check_numbers("tau", "eta")

    def _build(self) -> _core.Sampler:
        return _core.sampler_mirostat(self.tau, self.eta)


@dataclass(frozen=True)
class MirostatV2(Sampler):
    """Mirostat 2.0 (Basu et al. 2020): removes tokens of more surprise than a bound that is adapted after
    each draw. Parameters and place in the chain are those of :class:`Mirostat`."""

    tau: float = 5.0
    eta: float = 0.1
    name: ClassVar[str] = "mirostat_v2"

    def __post_init__(self) -> None:
        self._check_numbers("tau", "eta")

    def _build(self) -> _core.Sampler:
        return _core.sampler_mirostat_v2(self.tau, self.eta)


@dataclass(frozen=True)
class LogitBias(Sampler):
    """Adds to the logits of tokens; -inf forbids a token. Biases for the same token add up."""

    biases: Mapping[int, float] | Iterable[tuple[int, float]] = field(default_factory=dict)
    name: ClassVar[str] = "logit_bias"

    def __post_init__(self) -> None:
        pairs = self.biases.items() if isinstance(self.biases, Mapping) else self.biases
        checked: list[tuple[int, float]] = []
        for token, bias in pairs:
            masked = isinstance(bias, (int, float)) and bias == -math.inf
            checked.append(
                (
                    _integer("logit_bias", "token", token, 0),
                    -math.inf if masked else check_number("logit_bias", "bias", bias),
                )
            )
        object.__setattr__(self, "biases", tuple(checked))

    def _build(self) -> _core.Sampler:
        pairs = self.biases.items() if isinstance(self.biases, Mapping) else self.biases
        return _core.sampler_logit_bias(list(pairs))


@dataclass(frozen=True)
class Greedy(Sampler):
    """Keeps the most likely candidate only, of equally likely ones that of lowest id."""

    name: ClassVar[str] = "greedy"

    def _build(self) -> _core.Sampler:
        return _core.sampler_greedy()
