"""How each kind of byte-level BPE vocabulary cuts text before merging, by its name in ``tokenizer.ggml.pre``.

The patterns state what the models' own tokenizers match, written so that no quantifier backtracks: a run of a
million spaces costs one pass and no stack. Each is proved equal to the published form by a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

# Whitespace up to and including the last line break of its run: \s*[\r\n]+
_BREAKS = r"(?:[^\S\r\n]*+[\r\n]++)++"
# Whitespace, but the last of it stays with a word that follows: \s+(?!\S)|\s+
_SPACES = r"(?:\s(?!\S))++|\s++"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]++"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}++| ?\p{{N}}++|{_SYMBOLS}|{_SPACES}"
_QWEN2 = "|".join(
    (_CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?\p{L}++", r"\p{N}", _SYMBOLS + r"[\r\n]*+", _BREAKS, _SPACES)
)
_QWEN35 = "|".join(
    (
        _CONTRACTIONS,
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]++",
        r"\p{N}",
        r" ?[^\s\p{L}\p{M}\p{N}]++[\r\n]*+",
        _BREAKS,
        _SPACES,
    )
)
_LLAMA3 = "|".join(
    (_CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?\p{L}++", r"\p{N}{1,3}", _SYMBOLS + r"[\r\n]*+", _BREAKS, _SPACES)
)
_TEKKEN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
        r"\p{N}",
        _SYMBOLS + r"[\r\n/]*+",
        _BREAKS,
        _SPACES,
    )
)


@dataclass(frozen=True)
class PreTokenizer:
    """What one name in ``tokenizer.ggml.pre`` stands for.

    ``patterns`` split one after the other, each within the pieces that those before it left; text between two
    matches is a piece of its own. ``digits`` first makes every numeric character a piece.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    digits: bool = False
    ignore_merges: bool = False  # a piece that is a token as it stands is taken whole
    add_bos: bool = False  # where the file does not say

    def install(self, engine: Engine) -> None:
        """Give ``engine`` this normalizer and these splits, ending in the byte-level alphabet."""
        from tokenizers import Regex, normalizers, pre_tokenizers

        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
        if self.nfc:
            engine.normalizer = normalizers.NFC()


_qwen2 = PreTokenizer((_QWEN2,), nfc=True)
_llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_digits_gpt2 = PreTokenizer((_GPT2,), digits=True)
_gpt2 = PreTokenizer((_GPT2,))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    # The generic rules that converters fall back to: punctuation, then GPT-2's words, then digits by three.
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]++", _GPT2, r"\p{N}++", r"[0-9][0-9][0-9]")),
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "qwen2": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "smollm": _digits_gpt2,
    "starcoder": _digits_gpt2,
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
}
