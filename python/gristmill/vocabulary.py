"""The vocabulary in a GGUF header: tokens, their kinds, the ids with a role, checked against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from gristmill.errors import GGUFError
from gristmill.messages import printable, quoted
from gristmill.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_PREFIX = "tokenizer.ggml."
# fmt: off
_ROLES = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)
_OTHER_KEYS = (
    "model", "pre", "tokens", "token_type", "merges", "scores",
    "add_bos_token", "add_eos_token", "add_space_prefix",
)
# fmt: on
KEYS: tuple[str, ...] = tuple(_PREFIX + name for name in _OTHER_KEYS + tuple(f"{r}_token_id" for r in _ROLES))

# Tokens that end an answer, recognized by their text because many files name only one of them. The first one
# present is the end of a turn where the file names none.
_TURN_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
)
_OTHER_ENDS = ("<|eom_id|>", "<|return|>", "<|call|>", "</s>", "[EOS]", "<eos>")
# Padding, repository and file separators of fill-in-the-middle vocabularies: nothing sensible follows them.
_FIM_ENDS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}


@dataclass
class Vocabulary:
    """What the header says about tokens.

    ``texts`` are as the file spells them (byte-level alphabet for ``gpt2``); ``kinds`` has GGUF's token type
    of each; ``ids`` gives the id of each role ("bos", "eos", "fim_pad", ...) that the file assigns.
    """

    source: str  # the file's path, for messages
    texts: list[str]
    kinds: list[int]
    ids: dict[str, int]
    eot_id: int | None = None
    eog_ids: frozenset[int] = frozenset()
    merges: list[str] = field(default_factory=list)  # "left right", best first
    index: dict[str, int] = field(default_factory=dict)  # text -> id; tokens without text are not in it

    @classmethod
    def read(cls, metadata: Metadata) -> Vocabulary:
        """Raises GGUFError for a vocabulary that contradicts itself."""
        source = printable(str(metadata.path))
        texts = metadata.get_array(_PREFIX + "tokens", str)
        n = len(texts)
        if n == 0:
            raise GGUFError(f"{source}: {_PREFIX}tokens is empty")
        index = {text: i for i, text in enumerate(texts) if text}
        if len(index) != n:
            _refuse_duplicates(source, texts)
        kinds = metadata.get_array(_PREFIX + "token_type", int, None)
        if kinds is None:
            kinds = [NORMAL] * n
        if len(kinds) != n:
            raise GGUFError(
                f"{source}: {_PREFIX}token_type has {len(kinds)} elements, expected {n} as in tokens"
            )
        if not set(kinds) <= set(range(BYTE + 1)):
            bad = next(i for i, kind in enumerate(kinds) if not 0 <= kind <= BYTE)
            raise GGUFError(
                f"{source}: {_PREFIX}token_type of token {bad} is {kinds[bad]}, expected 1 to {BYTE}"
            )
        ids: dict[str, int] = {}
        for name in _ROLES:
            key = f"{_PREFIX}{name}_token_id"
            value = metadata.get_int(key, None)
            if value is None:
                continue
            if not 0 <= value < n:
                raise GGUFError(f"{source}: {key} is {value}, but the vocabulary has {n} tokens")
            ids[name] = value
        merges = metadata.get_array(_PREFIX + "merges", str, [])
        vocabulary = cls(source, texts, kinds, ids, merges=merges, index=index)
        vocabulary._find_ends()
        return vocabulary

    def of_kind(self, *kinds: int) -> list[int]:
        """Ids of all tokens with a text and one of these kinds."""
        wanted = set(kinds)
        return [i for i, kind in enumerate(self.kinds) if kind in wanted and self.texts[i]]

    def _find_ends(self) -> None:
        """Collect the tokens that end generation, and treat those known by their text as control tokens, so
        that a user's text cannot end a turn."""
        ends = {name: self.ids[name] for name in ("eos", "eot", "eom", *_FIM_ENDS) if name in self.ids}
        for name, spellings in _FIM_ENDS.items():
            if name not in ends:
                ends.update((name, i) for i in self._present(spellings)[:1])
        known = self._present(_TURN_ENDS)
        if "eot" not in ends and known:
            ends["eot"] = known[0]
        found = {*ends.values(), *known, *self._present(_OTHER_ENDS)}
        for i in found - {ends.get("eos")}:
            self.kinds[i] = CONTROL
        # Vocabularies that close every message, also one before a tool's turn, with <|end|>, and the whole
        # answer with <|return|> or <|call|>.
        if {"<|return|>", "<|call|>", "<|end|>"} <= self.index.keys():
            found.discard(self.index["<|end|>"])
        self.eot_id = ends.get("eot")
        self.eog_ids = frozenset(found)

    def _present(self, texts: Iterable[str]) -> list[int]:
        """Ids of the ``texts`` that are tokens, without those that merging spells: these are words, as
        ``</s>`` is the end of struck-through text to Qwen."""
        ids = [self.index[text] for text in texts if text in self.index]
        for i in [i for i in ids if self.kinds[i] == NORMAL]:
            text = self.texts[i]
            if not {f"{text[:k]} {text[k:]}" for k in range(1, len(text))}.isdisjoint(self.merges):
                ids.remove(i)
        return ids


def _refuse_duplicates(source: str, texts: list[str]) -> None:
    for text, count in Counter(texts).most_common():
        if count == 1:
            return
        if text:
            first = texts.index(text)
            second = texts.index(text, first + 1)
            raise GGUFError(f"{source}: tokens {first} and {second} are both {quoted(text)}")
