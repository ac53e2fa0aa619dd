"""The metadata of a GGUF file: a mapping decoded on demand, typed getters that note what is read."""

from __future__ import annotations

import difflib
import struct
import warnings
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast, overload

from gristmill.errors import ArgumentError, GGUFError, GristmillWarning
from gristmill.gguf_reader import array_type, decode_value, value_end
from gristmill.gguf_types import ARRAY, VALUE_TYPES, ValueType
from gristmill.messages import file_error, printable, quoted
from gristmill.overrides import (
    TYPE_NAMES,
    Scalar,
    checked_override,
    parse_override,
    parse_overrides,
)

__all__ = ["MISSING", "Metadata", "Scalar", "Value", "parse_override", "parse_overrides"]

Value: TypeAlias = Scalar | list[Any]
D = TypeVar("D")
E = TypeVar("E", int, float, bool, str)


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
_U32 = struct.Struct("<I")


class Metadata(Mapping[str, Value]):
    """Keys and values of a GGUF header, with the user's overrides in front.

    ``data`` is the header's bytes and ``entries`` gives each key the position of its value's type number
    there. A value is decoded each time it is asked for, so hold on to arrays. Integers of every width are
    int, float32 and float64 are float, and bool is never int. Strings that are not UTF-8 carry their bytes by
    ``surrogateescape``.
    """

    def __init__(
        self,
        path: Path,
        data: bytes = b"",
        entries: Mapping[str, int] | None = None,
        overrides: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.path = path
        self._data = data
        self._entries = {} if entries is None else entries
        self._overrides = {} if overrides is None else dict(overrides)
        self._read: set[str] = set()

    # Mapping ------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Value:
        if key in self._overrides:
            return self._overrides[key]
        pos = self._entries[key]
        return cast(Value, decode_value(self._data, pos + 4, self._type_id(pos))[0])

    def __contains__(self, key: object) -> bool:
        return key in self._overrides or key in self._entries

    def __iter__(self) -> Iterator[str]:
        yield from self._entries
        yield from (key for key in self._overrides if key not in self._entries)

    def __len__(self) -> int:
        return len(self._entries.keys() | self._overrides.keys())

    def __repr__(self) -> str:
        return (
            f"<Metadata of {printable(str(self.path))}: {len(self)} keys, {len(self._overrides)} overridden>"
        )

    # What is known without decoding -------------------------------------------------------------------------

    @property
    def overrides(self) -> dict[str, Scalar]:
        """The overrides in force."""
        return dict(self._overrides)

    @property
    def keys_read(self) -> frozenset[str]:
        """The keys that the typed getters were asked for so far, present or not."""
        return frozenset(self._read)

    def value_type(self, key: str) -> ValueType | None:
        """The type of ``key`` in the file, regardless of overrides; None where the file lacks it."""
        pos = self._entries.get(key)
        return None if pos is None else VALUE_TYPES[self._type_id(pos)]

    def array_length(self, key: str) -> int | None:
        """The number of elements of the array ``key``; None where ``key`` is missing or no array."""
        pos = self._entries.get(key)
        if pos is None or self._type_id(pos) != ARRAY:
            return None
        return array_type(self._data, pos + 4)[1]

    @property
    def file_keys(self) -> tuple[str, ...]:
        """The keys of the file in its order, without overrides."""
        return tuple(self._entries)

    def raw_value(self, key: str) -> bytes:
        """The bytes of a value of the file: its type's number, then itself. KeyError where it is missing."""
        pos = self._entries[key]
        return bytes(self._data[pos : value_end(self._data, pos + 4, self._type_id(pos))])

    def scalars(self) -> dict[str, Scalar]:
        """Everything that is not an array, decoded. Bytes that are not UTF-8 become U+FFFD here."""
        found: dict[str, Scalar] = {}
        for key, pos in self._entries.items():
            if key not in self._overrides and self._type_id(pos) != ARRAY:
                found[key] = cast(Scalar, decode_value(self._data, pos + 4, self._type_id(pos))[0])
        found.update(self._overrides)
        for key, value in found.items():
            if isinstance(value, str) and not value.isascii():
                found[key] = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return found

    def _type_id(self, pos: int) -> int:
        type_id: int = _U32.unpack_from(self._data, pos)[0]
        return type_id

    # Typed getters ------------------------------------------------------------------------------------------

    @overload
    def get_int(self, key: str) -> int: ...
    @overload
    def get_int(self, key: str, default: D) -> int | D: ...
    def get_int(self, key: str, default: object = MISSING) -> object:
        """The integer ``key``. A missing key without ``default`` and a wrong type raise GGUFError."""
        return self._get(key, int, default)

    @overload
    def get_float(self, key: str) -> float: ...
    @overload
    def get_float(self, key: str, default: D) -> float | D: ...
    def get_float(self, key: str, default: object = MISSING) -> object:
        """The float32 or float64 ``key``; errors as :meth:`get_int`."""
        return self._get(key, float, default)

    @overload
    def get_bool(self, key: str) -> bool: ...
    @overload
    def get_bool(self, key: str, default: D) -> bool | D: ...
    def get_bool(self, key: str, default: object = MISSING) -> object:
        """The bool ``key``; errors as :meth:`get_int`."""
        return self._get(key, bool, default)

    @overload
    def get_str(self, key: str) -> str: ...
    @overload
    def get_str(self, key: str, default: D) -> str | D: ...
    def get_str(self, key: str, default: object = MISSING) -> object:
        """The string ``key``; errors as :meth:`get_int`."""
        return self._get(key, str, default)

    @overload
    def get_array(self, key: str, element_type: type[E]) -> list[E]: ...
    @overload
    def get_array(self, key: str, element_type: type[E], default: D) -> list[E] | D: ...
    def get_array(self, key: str, element_type: type, default: object = MISSING) -> object:
        """The array ``key`` of ``element_type``: int, float, bool or str; errors as :meth:`get_int`.

        The element type is the one the file declares, so an empty array is checked as well.
        """
        self._read.add(key)
        pos = self._entries.get(key)
        if pos is None:
            return self._default(key, f"array of {TYPE_NAMES[element_type]}", default)
        if self._type_id(pos) != ARRAY:
            raise self._wrong_type(key, f"array of {TYPE_NAMES[element_type]}")
        if VALUE_TYPES[array_type(self._data, pos + 4)[0]].python is not element_type:
            raise self._wrong_type(key, f"array of {TYPE_NAMES[element_type]}")
        return self[key]

    def _get(self, key: str, want: type, default: object) -> object:
        self._read.add(key)
        if key in self._overrides:
            value = self._overrides[key]
            if want is float and type(value) is int:  # a key whose type neither the file nor gristmill knew
                return float(value)
            if type(value) is not want:
                raise ArgumentError(
                    f"override {quoted(key)}: expected {TYPE_NAMES[want]}, got {TYPE_NAMES[type(value)]}"
                )
            return value
        pos = self._entries.get(key)
        if pos is None:
            return self._default(key, TYPE_NAMES[want], default)
        if VALUE_TYPES[self._type_id(pos)].python is not want:
            raise self._wrong_type(key, TYPE_NAMES[want])
        return self[key]

    def _default(self, key: str, want: str, default: object) -> object:
        if default is MISSING:
            raise file_error(self.path, f"key {quoted(key)} is missing, expected {want}")
        return default

    def _wrong_type(self, key: str, want: str) -> GGUFError:
        pos = self._entries[key]
        got = VALUE_TYPES[self._type_id(pos)].name
        if got == "array":
            got += f" of {VALUE_TYPES[array_type(self._data, pos + 4)[0]].name}"
        return file_error(self.path, f"key {quoted(key)}: expected {want}, got {got}")

    # Overrides ----------------------------------------------------------------------------------------------

    def with_overrides(self, overrides: Mapping[str, object] | None) -> Metadata:
        """A view of the same file with ``overrides`` in front, added to those in force, and no key read yet.

        An override must have the type its key has in the file or, where the file lacks the key, the type it
        should have; an int does for a float unless it is a :class:`~gristmill.overrides.TypedInt`.
        Raises ArgumentError.
        """
        merged = dict(self._overrides)
        for key, value in (overrides or {}).items():
            merged[key] = checked_override(key, value, self.value_type(key))
        return Metadata(self.path, self._data, self._entries, merged)

    def check_overrides(self, keys_read: Set[str] = frozenset()) -> None:
        """Warn (GristmillWarning) of every override without effect: its key is neither in ``keys_read`` nor
        was it asked for through the getters. The warning names the nearest key that is read.
        """
        read = self._read | keys_read
        for key in self._overrides:
            if key not in read:
                near = difflib.get_close_matches(key, sorted(read), n=1)
                hint = f"; did you mean {quoted(near[0])}?" if near else ""
                warnings.warn(
                    f"override {quoted(key)} has no effect: nothing reads this key{hint}",
                    GristmillWarning,
                    stacklevel=2,
                )
