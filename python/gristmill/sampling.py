"""Sampler chains: from logits to the next token.

A chain passes the candidates for the next token through its samplers, in order, and draws one of what they
leave::

    chain = SamplerChain([TopK(40), TopP(0.95), Temperature(0.6)], seed=1234)
    token = chain.sample(logits)
    chain.accept(token)

:meth:`SamplerChain.parse` takes llama.cpp's names and flags instead.
"""

from __future__ import annotations

import operator
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gristmill import _core, sampler_flags
from gristmill.dry_breakers import BreakerTokenizer, resolve
from gristmill.errors import ArgumentError, GristmillWarning
from gristmill.sampler_flags import FLAGS, PRESETS, SamplerFlags
from gristmill.samplers import (
    CustomSampler,
    Dry,
    Greedy,
    LogitBias,
    MinP,
    Mirostat,
    MirostatV2,
    Penalties,
    Sampler,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    Xtc,
    check_number,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "PRESETS",
    "CustomSampler",
    "Dry",
    "Greedy",
    "LogitBias",
    "MinP",
    "Mirostat",
    "MirostatV2",
    "Penalties",
    "Sampler",
    "SamplerChain",
    "SamplerFlags",
    "Temperature",
    "TopK",
    "TopNSigma",
    "TopP",
    "TypicalP",
    "Xtc",
]

# llama.cpp's way to ask for a random seed: -1 as an unsigned number of 32 bits.
_RANDOM_SEED = 2**32 - 1


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbelow(_RANDOM_SEED)
    try:
        number = operator.index(seed)
    except TypeError:
        raise ArgumentError(f"[sampling] seed must be an integer or None, got {seed!r}") from None
    if number in (-1, _RANDOM_SEED):
        return secrets.randbelow(_RANDOM_SEED)
    if not 0 <= number < _RANDOM_SEED:
        raise ArgumentError(f"[sampling] seed must be from 0 to {_RANDOM_SEED - 1}, got {seed!r}")
    return number


def _logits(logits: npt.ArrayLike) -> npt.NDArray[np.float32]:
    array = np.asarray(logits, dtype=np.float32)
    if array.ndim != 1:
        raise ArgumentError(f"[sampling] logits must have the shape [n_vocab], got {list(array.shape)}")
    return np.ascontiguousarray(array)


def _tokens(tokens: Iterable[int]) -> npt.NDArray[np.int32]:
    array = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    if array.size == 0:
        return np.empty(0, dtype=np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ArgumentError(
            f"[sampling] tokens must be a sequence of integers, got {array.dtype}{list(array.shape)}"
        )
    refused = array[(array < 0) | (array >= 2**31)]
    if refused.size:
        raise ArgumentError(
            f"[sampling] token out of range, expected 0 to n_vocab - 1, got {int(refused[0])}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


class SamplerChain:
    """Samplers in order, and then a draw from what they leave (so ``SamplerChain([])`` draws from the
    softmax).

    The state consists of the accepted tokens, which penalties look back on, the random generator (mt19937),
    mirostat's bound, and what custom samplers hold. The same seed, logits and accepted tokens give the same
    tokens on every platform. A chain may be used by one thread at a time.

    Raises ArgumentError for a seed that is not from 0 to 2^32 - 2 (None, -1 and 2^32 - 1 ask for a random
    one) and for a mirostat that is not last, since it judges the token that is drawn from what it leaves.
    """

    def __init__(self, samplers: Iterable[Sampler] = (), *, seed: int | None = None) -> None:
        self._samplers = tuple(samplers)
        for sampler in self._samplers:
            if not isinstance(sampler, Sampler):
                raise ArgumentError(f"[sampling] expected samplers, got {sampler!r}")
        for sampler in self._samplers[:-1]:
            if isinstance(sampler, (Mirostat, MirostatV2)):
                raise ArgumentError(f"[sampling] {sampler.name} must be the last sampler, in {self._order()}")
        self._seed = _seed(seed)
        self._core = _core.Chain([sampler._build() for sampler in self._samplers], self._seed)
        self._custom = [sampler for sampler in self._samplers if isinstance(sampler, CustomSampler)]
        self._bound: BreakerTokenizer | None = None
        # DRY samplers that wait for a tokenizer to find their breakers.
        self._unresolved = any(
            isinstance(s, Dry) and s.active and s.sequence_breakers for s in self._samplers
        )

    @classmethod
    def parse(
        cls,
        order: str | Iterable[str | Sampler] | None = None,
        *,
        letters: str | None = None,
        preset: str | None = None,
        seed: int | None = None,
        **flags: Unpack[SamplerFlags],
    ) -> SamplerChain:
        """A chain from llama.cpp's names and flags.

        ``order`` is what ``--samplers`` takes ("top_k;top_p;temperature"; aliases allowed, case ignored), or
        a sequence of names and samplers; ``letters`` is what ``--sampling-seq`` takes. Without either, the
        order is "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature". ``flags`` are
        llama.cpp's long flags with underscores, with llama.cpp's defaults (:class:`SamplerFlags`); None means
        not set. ``preset`` gives other defaults: "qwq". ``mirostat`` 1 or 2 replaces the samplers by
        temperature and mirostat, as in llama.cpp.

        Warns (GristmillWarning) of each parameter that has no effect, such as one whose sampler is not in the
        chain. Raises ArgumentError for an unknown name, and for values that are out of range.
        """
        sampler_flags.check_flag_names(flags)
        given = {name: value for name, value in flags.items() if value is not None}
        labels = {name: _label(name, value) for name, value in given.items()}
        values = {name: flag.default for name, flag in FLAGS.items()}
        if preset is not None:
            for name, value in sampler_flags.preset_flags(preset).items():
                values[name] = value
                labels.setdefault(name, f"{name} {value} of preset {preset!r}")
        values.update(given)

        if order is not None and letters is not None:
            raise ArgumentError("[sampling] samplers are given both by name and by letter")
        links: list[str | Sampler]
        if letters is not None:
            links = list(sampler_flags.names_from_letters(letters))
        elif order is None:
            links = list(sampler_flags.DEFAULT_ORDER)
        else:
            words = order.split(";") if isinstance(order, str) else order
            links = [
                word if isinstance(word, Sampler) else sampler_flags.canonical_name(word)
                for word in words
                if isinstance(word, Sampler) or word.strip()
            ]

        # Built even if it will not be used: a value out of range is an error in any case.
        available = _samplers_from_flags(values)
        samplers = [link if isinstance(link, Sampler) else available[link] for link in links]
        if values["mirostat"]:
            replaced = ";".join(sampler.name for sampler in samplers)
            samplers = [
                Temperature(values["temp"]),
                available["mirostat" if values["mirostat"] == 1 else "mirostat_v2"],
            ]
            _warn(
                f"mirostat replaces the sampler chain: temperature;{samplers[-1].name} instead of {replaced}"
            )
        if values["dry_base"] < 1:
            _warn(f"{labels['dry_base']} is below 1: {FLAGS['dry_base'].default} is used")
        names = [sampler.name for sampler in samplers]
        for message in sampler_flags.without_effect(values, labels, names):
            _warn(message)
        if values["logit_bias"]:
            samplers.insert(0, available["logit_bias"])
        return cls(samplers, seed=seed)

    @classmethod
    def parse_letters(
        cls,
        letters: str,
        *,
        preset: str | None = None,
        seed: int | None = None,
        **flags: Unpack[SamplerFlags],
    ) -> SamplerChain:
        """``parse`` with the order given by ``--sampling-seq``'s letters, such as "kpmt"."""
        return cls.parse(letters=letters, preset=preset, seed=seed, **flags)

    @classmethod
    def preset(cls, name: str, *, seed: int | None = None, **flags: Unpack[SamplerFlags]) -> SamplerChain:
        """The sampling that a model's authors recommend: "qwq" for QwQ-32B. ``flags`` win over it."""
        return cls.parse(preset=name, seed=seed, **flags)

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        return self._samplers

    @property
    def seed(self) -> int:
        """The seed in use, also if it was chosen at random."""
        return self._seed

    @property
    def history(self) -> list[int]:
        """The accepted tokens, oldest first."""
        tokens: list[int] = np.asarray(self._core.history()).tolist()
        return tokens

    def bind(self, tokenizer: BreakerTokenizer) -> SamplerChain:
        """Tell the chain the vocabulary, in whose tokens DRY looks for its sequence breakers. Returns the
        chain."""
        if tokenizer is self._bound:
            return self
        for index, sampler in enumerate(self._samplers):
            if isinstance(sampler, Dry) and sampler.active and sampler.sequence_breakers:
                breakers = resolve(tokenizer, sampler.sequence_breakers)
                self._core.replace(index, sampler._build_with(breakers))
        self._core.expect_n_vocab(tokenizer.n_vocab)
        self._bound = tokenizer
        self._unresolved = False
        return self

    def sample(self, logits: npt.ArrayLike) -> int:
        """Draw a token. Does not accept it: call :meth:`accept` with the token that is really used.

        ``logits``: float32 [n_vocab]; -inf masks a token. Raises Error if one is NaN or +inf, or if every
        token is masked in the end, and ArgumentError for another shape.
        """
        if self._unresolved:
            self._warn_unresolved()
        return self._core.sample(_logits(logits))

    def n_needed(self) -> int | None:
        """How many of the most likely tokens the next :meth:`sample` has to see; None for all of them.

        A number where a sampler that leaves only so many, such as top_k, comes before every other that looks
        at all tokens, and what is in front of it only lowers logits (penalties, dry, bans). Custom samplers
        look at all, and so does a class that draws in its own way.
        """
        return self._core.n_needed() if type(self).sample is SamplerChain.sample else None

    def sample_top(self, ids: npt.ArrayLike, logits: npt.ArrayLike, n_vocab: int) -> int:
        """What :meth:`sample` would draw, from the :meth:`n_needed` most likely tokens alone, or more.

        ``ids``: int32 [n], in any order, each once; ``logits``: float32 [n]; ``n_vocab``: tokens that there
        are. Tokens that would be masked are left out, and each counts as one more that is needed. Raises what
        :meth:`sample` raises.
        """
        if self._unresolved:
            self._warn_unresolved()
        tokens, values = np.asarray(ids, dtype=np.int32), _logits(logits)
        if tokens.shape != values.shape:
            raise ArgumentError(
                f"[sampling] ids must have the logits' shape {list(values.shape)}, got {list(tokens.shape)}"
            )
        order = np.argsort(tokens)
        return self._core.sample_top(tokens[order], values[order], n_vocab)

    def distribution(
        self, logits: npt.ArrayLike, history: Iterable[int] | None = None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """What the next :meth:`sample` would draw from: ids int32 [n] and probs float32 [n], most likely
        first.

        Tokens of probability zero are left out; equally likely ones are in the order of their ids.
        ``history`` stands in for the accepted tokens. Has no effect on the chain: whether xtc strikes is
        decided as the next ``sample`` will decide it, and mirostat's bound stays as it is. Raises what
        :meth:`sample` raises.
        """
        if self._unresolved:
            self._warn_unresolved()
        return self._core.distribution(_logits(logits), None if history is None else _tokens(history))

    def accept(self, token: int) -> None:
        """Add a token to the history that penalties look back on. Raises ArgumentError if it is out of
        range."""
        self.accept_many((token,))

    def accept_many(self, tokens: Iterable[int]) -> None:
        """Accept tokens in order, such as a prompt's. Accepts all of them or, if one is out of range,
        none."""
        array = _tokens(tokens)
        self._core.accept_many(array)
        for sampler in self._custom:
            for token in array.tolist():
                sampler.accept(token)

    def reset(self) -> None:
        """Forget accepted tokens and mirostat's bound, and start the random numbers of :attr:`seed` again."""
        self._core.reset(self._seed)
        for sampler in self._custom:
            sampler.reset()

    def clone(self) -> SamplerChain:
        """An independent chain in the same state."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._core = self._core.clone()
        samplers = list(self._samplers)
        for index, sampler in enumerate(samplers):
            if isinstance(sampler, CustomSampler):
                samplers[index] = sampler.clone()
                other._core.replace(index, samplers[index]._build())
        other._samplers = tuple(samplers)
        other._custom = [sampler for sampler in samplers if isinstance(sampler, CustomSampler)]
        return other

    def __repr__(self) -> str:
        return f"SamplerChain([{', '.join(map(repr, self._samplers))}], seed={self._seed})"

    def _order(self) -> str:
        return ";".join(sampler.name for sampler in self._samplers)

    def _warn_unresolved(self) -> None:
        self._unresolved = False
        warnings.warn(
            "DRY's sequence breakers have no effect: the chain is not bound to a tokenizer",
            GristmillWarning,
            stacklevel=3,
        )


def _warn(message: str) -> None:
    # 3: the caller of parse.
    warnings.warn(message, GristmillWarning, stacklevel=3)


def _label(name: str, value: object) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag} {value}" if isinstance(value, (int, float)) else flag


def _breakers(breakers: Sequence[str]) -> list[str]:
    """Without those that a "none" after them cancels, and without empty ones."""
    if isinstance(breakers, str):
        raise ArgumentError(f"[dry] dry_sequence_breakers must be a sequence of strings, got {breakers!r}")
    kept: list[str] = []
    for breaker in breakers:
        if breaker == "none":
            kept.clear()
        elif breaker == "":
            warnings.warn("an empty DRY sequence breaker has no effect", GristmillWarning, stacklevel=4)
        else:
            kept.append(breaker)
    return kept


def _samplers_from_flags(values: Mapping[str, Any]) -> dict[str, Sampler]:
    """Every sampler with the parameters that the flags give it, by name."""
    if values["mirostat"] not in (0, 1, 2):
        raise ArgumentError(f"[sampling] mirostat must be 0, 1 or 2, got {values['mirostat']!r}")
    min_keep = values["min_keep"]
    dry_base = check_number("dry", "base", values["dry_base"])
    samplers: list[Sampler] = [
        Penalties(
            values["repeat_last_n"],
            values["repeat_penalty"],
            values["frequency_penalty"],
            values["presence_penalty"],
        ),
        Dry(
            values["dry_multiplier"],
            # llama.cpp ignores a base below 1; parse says so.
            FLAGS["dry_base"].default if dry_base < 1 else dry_base,
            values["dry_allowed_length"],
            values["dry_penalty_last_n"],
            _breakers(values["dry_sequence_breakers"]),
        ),
        TopNSigma(values["top_n_sigma"]),
        TopK(values["top_k"]),
        TypicalP(values["typical"], min_keep),
        TopP(values["top_p"], min_keep),
        MinP(values["min_p"], min_keep),
        Xtc(values["xtc_probability"], values["xtc_threshold"], min_keep),
        Temperature(values["temp"], values["dynatemp_range"], values["dynatemp_exp"]),
        Mirostat(values["mirostat_ent"], values["mirostat_lr"]),
        MirostatV2(values["mirostat_ent"], values["mirostat_lr"]),
        LogitBias(values["logit_bias"]),
    ]
    return {sampler.name: sampler for sampler in samplers}
