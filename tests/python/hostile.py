"""Builds GGUF files byte by byte, sound ones and hostile ones, independently of any GGUF writer.

``sound()`` is a small valid file; ``HOSTILE`` names files that must be refused, each with a part of the
message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}
HUGE = (2**31, 2**32, 2**61 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string; ``length`` overrides what its length field says."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def plain(type_id: int, value: object) -> bytes:
    """A value without its type number. An array is given as (element type, [values])."""
    if type_id == STRING:
        assert isinstance(value, (str, bytes))
        return string(value)
    if type_id == ARRAY:
        element, values = value  # type: ignore[misc]
        return array(element, values)
    return struct.pack("<" + CODES[type_id], value)


def array(element: int, values: Iterable[object], count: int | None = None) -> bytes:
    """An array without its type number; ``count`` overrides what its length field says."""
    parts = [plain(element, value) for value in values]
    return u32(element) + u64(len(parts) if count is None else count) + b"".join(parts)


def kv(key: str | bytes, type_id: int, value: object) -> bytes:
    return string(key) + u32(type_id) + plain(type_id, value)


def tensor(
    name: str | bytes,
    ne: Iterable[int] = (32, 2),
    type_id: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """A tensor entry. ``ne`` is in GGUF's order, the row length first."""
    ne = list(ne)
    dims = u32(len(ne) if n_dims is None else n_dims)
    return string(name) + dims + b"".join(u64(n) for n in ne) + u32(type_id) + u64(offset)


@dataclass
class Raw:
    """The parts of a file, every one of which a test may bend. Counts of None are the true ones."""

    kvs: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    n_kv: int | None = None
    n_tensors: int | None = None
    alignment: int = 32

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kv = len(self.kvs) if self.n_kv is None else self.n_kv
        head = self.magic + u32(self.version) + u64(n_tensors) + u64(n_kv)
        return head + b"".join(self.kvs) + b"".join(self.tensors)

    def build(self) -> bytes:
        header = self.header()
        return header + b"\0" * (-len(header) % self.alignment) + self.data


ONE_OF_EACH: list[tuple[str, int, object]] = [
    ("general.architecture", STRING, "llama"),
    ("t.u8", U8, 255),
    ("t.i8", I8, -128),
    ("t.u16", U16, 65535),
    ("t.i16", I16, -32768),
    ("t.u32", U32, 2**32 - 1),
    ("t.i32", I32, -(2**31)),
    ("t.f32", F32, 0.5),
    ("t.bool", BOOL, True),
    ("t.u64", U64, 2**64 - 1),
    ("t.i64", I64, -(2**63)),
    ("t.f64", F64, 1e300),
    ("a.u8", ARRAY, (U8, [1, 2, 3])),
    ("a.i16", ARRAY, (I16, [-1, 0, 1])),
    ("a.f32", ARRAY, (F32, [0.25, -1.5])),
    ("a.f64", ARRAY, (F64, [0.1])),
    ("a.bool", ARRAY, (BOOL, [True, False])),
    ("a.i64", ARRAY, (I64, [-(2**63), 2**63 - 1])),
    ("a.str", ARRAY, (STRING, ["", "a", "日本"])),
    ("a.empty", ARRAY, (STRING, [])),
    ("a.nested", ARRAY, (ARRAY, [(U32, [1, 2]), (U32, []), (U32, [3])])),
]


def sound(version: int = 3) -> Raw:
    """A small valid file: every value type, two F32 tensors of 256 bytes."""
    return Raw(
        kvs=[kv(*entry) for entry in ONE_OF_EACH],
        tensors=[tensor("a.weight"), tensor("b.weight", ne=[64], offset=256)],
        data=bytes(512),
        version=version,
    )


def with_kv(*entries: bytes) -> bytes:
    """The sound file with raw metadata entries appended."""
    raw = sound()
    raw.kvs += entries
    return raw.build()


def with_tensors(*entries: bytes, data: int = 1 << 12) -> bytes:
    """The sound file with these raw tensor entries instead of its own."""
    raw = sound()
    raw.tensors = list(entries)
    raw.data = bytes(data)
    return raw.build()


def nested(depth: int) -> bytes:
    """A key whose value is ``depth`` arrays within each other."""
    return string("deep") + u32(ARRAY) + (u32(ARRAY) + u64(1)) * (depth - 1) + array(U8, [1])


def _changed(**changes: object) -> bytes:
    raw = sound()
    for name, value in changes.items():
        setattr(raw, name, value)
    return raw.build()


def _alignment(type_id: int, value: object) -> bytes:
    return with_kv(kv("general.alignment", type_id, value))


def _hostile() -> dict[str, tuple[bytes, str]]:
    good = sound().build()
    header = sound().header()
    files: dict[str, tuple[bytes, str]] = {
        # what is not GGUF at all
        "empty": (b"", "empty file"),
        "one-byte": (b"G", "truncated"),
        "magic-only": (b"GGUF", "truncated"),
        "zeros": (bytes(4096), "begins with zeros"),
        "text": (b"hello world, this is no model", "not a GGUF file: it begins with b'hell'"),
        "newline-magic": (b"\n\r\x1b[31m evil", "not a GGUF file"),
        "safetensors": (u64(60) + b'{"__metadata__":{}}', "a safetensors file"),
        "pytorch-zip": (b"PK\x03\x04" + bytes(60), "a zip archive, perhaps a PyTorch checkpoint"),
        "pickle": (b"\x80\x02}q\x00", "a Python pickle"),
        "gzip": (b"\x1f\x8b\x08" + bytes(30), "gzip-compressed"),
        "zstd": (b"\x28\xb5\x2f\xfd" + bytes(30), "zstd-compressed"),
        "html": (b"\n <!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        "html-bare": (b"<HTML><body>Sign in</body></HTML>", "an HTML page"),
        "json": (b'{"error": "Repository not found"}', "a JSON document"),
        "git-lfs": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer",
        ),
        "ggml": (b"lmgg" + bytes(60), "a GGML file"),
        "ggjt": (b"tjgg" + bytes(60), "a GGJT file"),
        # versions and byte order
        "version-0": (_changed(version=0), "unknown GGUF version 0"),
        "version-1": (_changed(version=1), "version 1 is not supported"),
        "version-4": (_changed(version=4), "unknown GGUF version 4"),
        "version-huge": (_changed(version=2**32 - 1), "unknown GGUF version 4294967295"),
        "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"big-endian GGUF file \(version 3\)"),
        "big-endian-2": (b"GGUF" + struct.pack(">IQQ", 2, 1, 1), r"big-endian GGUF file \(version 2\)"),
        "swapped-magic": (b"FUGG" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        # keys
        "key-twice": (with_kv(kv("x", U8, 1), kv("x", U8, 2)), "key 'x' appears twice"),
        "key-empty": (with_kv(kv("", U8, 1)), "its name is empty"),
        "key-not-utf8": (with_kv(kv(b"\xff\xfe", U8, 1)), "not valid UTF-8"),
        "key-surrogate": (with_kv(kv(b"\xed\xa0\x80", U8, 1)), "not valid UTF-8"),
        "key-too-long": (with_kv(kv("k" * 65536, U8, 1)), "65536 bytes long, at most 65535"),
        "key-control": (with_kv(string("x\ny") + u32(77)), r"'x\\ny'"),
        "value-type": (with_kv(string("x") + u32(13) + u64(0)), "key 'x': unknown value type 13"),
        "value-type-huge": (with_kv(string("x") + u32(2**32 - 1)), "unknown value type 4294967295"),
        "element-type": (
            with_kv(string("x") + u32(ARRAY) + u32(13) + u64(0)),
            "unknown array element type 13",
        ),
        "bool-2": (with_kv(string("x") + u32(BOOL) + b"\2"), "a bool is neither 0 nor 1"),
        "bool-array-2": (
            with_kv(string("x") + u32(ARRAY) + u32(BOOL) + u64(3) + b"\1\0\2"),
            "a bool is neither 0 nor 1",
        ),
        "deep": (with_kv(nested(9)), "nested more than 8 deep"),
        "deep-100000": (with_kv(nested(100_000)), "nested more than 8 deep"),
        # alignment
        "alignment-0": (_alignment(U32, 0), "general.alignment is 0"),
        "alignment-1": (_alignment(U32, 1), "general.alignment is 1"),
        "alignment-12": (_alignment(U32, 12), "general.alignment is 12"),
        "alignment-huge": (_alignment(U32, 2**31), "general.alignment is 2147483648"),
        "alignment-u64": (_alignment(U64, 32), "'general.alignment': expected uint32, got uint64"),
        "alignment-str": (_alignment(STRING, "32"), "'general.alignment': expected uint32, got string"),
        "alignment-array": (
            _alignment(ARRAY, (U32, [32])),
            "'general.alignment': expected uint32, got array",
        ),
        # tensors
        "tensor-twice": (with_tensors(tensor("t"), tensor("t", offset=256)), "tensor 't' appears twice"),
        "tensor-unnamed": (with_tensors(tensor("")), "tensor 1 of 1: its name is empty"),
        "tensor-name-long": (with_tensors(tensor("n" * 65)), "65 bytes long, at most 64"),
        "tensor-name-not-utf8": (with_tensors(tensor(b"\xc0\x80")), "not valid UTF-8"),
        "dims-0": (with_tensors(tensor("t", ne=[])), "has 0 dimensions"),
        "dims-5": (with_tensors(tensor("t", ne=[1] * 5)), "has 5 dimensions"),
        "dims-huge": (with_tensors(tensor("t", n_dims=2**32 - 1)), "has 4294967295 dimensions"),
        "dim-zero": (with_tensors(tensor("t", ne=[32, 0])), "has no elements"),
        "dim-zero-times-huge": (with_tensors(tensor("t", ne=[2**63, 0, 2**63, 2**63])), "has no elements"),
        "dims-wrap-to-0": (with_tensors(tensor("t", ne=[2**32, 2**32])), "too large"),
        "dims-wrap-to-32": (with_tensors(tensor("t", ne=[2**59 + 1, 32])), "too large"),
        "dims-4-huge": (with_tensors(tensor("t", ne=[2**64 - 1] * 4)), "too large"),
        "bytes-wrap": (with_tensors(tensor("t", ne=[2**61], type_id=0)), "too large"),
        "block-row": (
            with_tensors(tensor("t", ne=[33, 2], type_id=8)),
            "33 elements, not a multiple of Q8_0's",
        ),
        "block-row-k": (with_tensors(tensor("t", ne=[128, 2], type_id=12)), "not a multiple of Q4_K's"),
        "type-removed": (with_tensors(tensor("t", type_id=31)), r"type 31 \(Q4_0_4_4\)"),
        "type-unknown": (with_tensors(tensor("t", type_id=999)), "tensor 't' has unknown type 999"),
        "type-huge": (with_tensors(tensor("t", type_id=2**32 - 1)), "unknown type 4294967295"),
        "misaligned": (with_tensors(tensor("t", offset=4)), "offset 4 is not a multiple of 32"),
        "overlap": (with_tensors(tensor("t"), tensor("u", offset=224)), "tensors 't' and 'u' overlap"),
        "overlap-same": (with_tensors(tensor("t"), tensor("u")), "tensors 't' and 'u' overlap"),
        "overlap-unordered": (
            with_tensors(tensor("t", offset=512), tensor("u", offset=0), tensor("v", offset=480)),
            "tensors 'v' and 't' overlap",
        ),
        "offset-outside": (with_tensors(tensor("t", offset=1 << 20)), "truncated: tensor 't' ends at byte"),
        "offset-2^61": (with_tensors(tensor("t", offset=2**61)), "truncated: tensor 't' ends at byte"),
        "offset-wraps": (with_tensors(tensor("t", offset=2**64 - 256)), "too large"),
        "data-missing": (good[: len(header)], "truncated: tensor 'a.weight'"),
        "data-1-byte-short": (good[:-1], "truncated: tensor 'b.weight' ends at byte .* 1 too few"),
        # split files
        "split-name": (
            with_kv(kv("split.no", U16, 0), kv("split.count", U16, 3), kv("split.tensors.count", I32, 9)),
            "part 1 of 3, but its name does not end in -00001-of-00003.gguf",
        ),
        "split-count-str": (
            with_kv(kv("split.count", STRING, "3")),
            "'split.count': expected int, got string",
        ),
    }
    for n in HUGE:
        files |= {
            f"n_kv-{n}": (_changed(n_kv=n), f"the header says {n} keys"),
            f"n_tensors-{n}": (_changed(n_tensors=n), f"the header says {n} tensors"),
            f"key-length-{n}": (with_kv(string("x", length=n) + u32(U8) + b"\0"), f"{n} bytes long"),
            f"string-length-{n}": (
                with_kv(string("x") + u32(STRING) + u64(n) + b"abc"),
                "truncated or corrupt: key 'x'",
            ),
            f"strings-length-{n}": (
                with_kv(string("x") + u32(ARRAY) + u32(STRING) + u64(2) + string("ok") + u64(n) + b"abc"),
                "truncated or corrupt: key 'x'",
            ),
            f"array-count-{n}": (
                with_kv(string("x") + u32(ARRAY) + array(U8, [], count=n)),
                f"'x' says {n} elements",
            ),
            f"array-count-f64-{n}": (
                with_kv(string("x") + u32(ARRAY) + array(F64, [], count=n)),
                f"'x' says {n} elements",
            ),
            f"array-count-str-{n}": (
                with_kv(string("x") + u32(ARRAY) + array(STRING, [], count=n)),
                f"'x' says {n} elements",
            ),
            f"array-count-array-{n}": (
                with_kv(string("x") + u32(ARRAY) + array(ARRAY, [], count=n)),
                f"'x' says {n} elements",
            ),
            f"tensor-name-length-{n}": (with_tensors(string("t", length=n)), "bytes long"),
        }
    return files


HOSTILE: dict[str, tuple[bytes, str]] = _hostile()
"""Name -> (the file's bytes, a regular expression that the message must match)."""


def write_hostile(folder: Path) -> dict[str, Path]:
    """Write every file of HOSTILE into ``folder``; name -> path."""
    paths: dict[str, Path] = {}
    for i, (name, (content, _)) in enumerate(HOSTILE.items()):
        paths[name] = folder / f"hostile-{i}.gguf"
        paths[name].write_bytes(content)
    return paths


def split_files(
    folder: Path, stem: str = "m", change: Callable[[int, Raw], None] | None = None
) -> list[Path]:
    """Write a sound file in three parts, one tensor each; ``change(i, raw)`` may bend part ``i`` first."""
    paths: list[Path] = []
    for i in range(3):
        raw = Raw(
            kvs=[kv("split.no", U16, i), kv("split.count", U16, 3), kv("split.tensors.count", I32, 3)],
            tensors=[tensor(f"blk.{i}.weight")],
            data=bytes([i]) * 256,
        )
        if i == 0:
            raw.kvs += [kv(*entry) for entry in ONE_OF_EACH]
        if change:
            change(i, raw)
        paths.append(folder / f"{stem}-{i + 1:05}-of-00003.gguf")
        paths[-1].write_bytes(raw.build())
    return paths
