"""The first eight bytes of a file: GGUF's magic and version, or a guess at what the file is instead."""

from __future__ import annotations

from gristmill.gguf_reader import HeaderReader

SUPPORTED_VERSIONS = (2, 3)

# What is passed for a GGUF file by mistake, by how it begins (compared in lower case, after white space).
_MISTAKES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (git lfs pull fetches it)"),
    (b"pk\x03\x04", "a zip archive, perhaps a PyTorch checkpoint"),
    (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"\x89hdf", "an HDF5 file"),
    (b"lmgg", "a GGML file, older than GGUF"),
    (b"fmgg", "a GGMF file, older than GGUF"),
    (b"tjgg", "a GGJT file, older than GGUF"),
    (b"algg", "a GGLA adapter, older than GGUF"),
    (b"<!doctype html", "an HTML page, perhaps the error page of a download"),
    (b"<html", "an HTML page, perhaps the error page of a download"),
    (b"<?xml", "an XML document, perhaps the error page of a download"),
    (b"{", "a JSON document"),
)


def check_magic(reader: HeaderReader) -> int:
    """Read magic and version; return the version, 2 or 3. The GGUFError otherwise says what the file is."""
    head = _peek(reader, 64)
    if not head.startswith(b"GGUF"):
        if b"GGUF".startswith(head):
            raise reader.error(f"truncated: the file has only {len(head)} bytes")
        if head.startswith(b"FUGG"):
            raise reader.error("a big-endian GGUF file; only little-endian files are supported")
        raise reader.error(f"not a GGUF file: {_guess(head)}")
    reader.pos = 4
    version = reader.u32()
    if version in SUPPORTED_VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version > 0xFFFF and swapped <= 0xFFFF:
        raise reader.error(
            f"a big-endian GGUF file (version {swapped}); only little-endian files are supported"
        )
    if version == 1:
        raise reader.error("GGUF version 1 is not supported, only 2 and 3; convert the model again")
    raise reader.error(f"unknown GGUF version {version}, expected 2 or 3")


def _peek(reader: HeaderReader, size: int) -> bytes:
    reader.require(min(size, reader.file_size))
    return bytes(reader.data[:size])


def _guess(head: bytes) -> str:
    # safetensors: the length of a JSON header as u64, then the header
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file"
    text = head.lstrip(b" \t\r\n\xef\xbb\xbf").lower()
    for beginning, what in _MISTAKES:
        if text.startswith(beginning):
            return what
    if not head.strip(b"\0"):
        return "it begins with zeros, as an unfinished download does"
    return f"it begins with {head[:4]!r}, expected b'GGUF'"
