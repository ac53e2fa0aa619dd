"""Hostile, corrupt and mistaken files: each is refused with one line that names the file and the flaw."""

from __future__ import annotations

import os
import re
import socket
import time
import tracemalloc
from pathlib import Path

import pytest
from gristmill import GGUFError
from gristmill.cli import main
from gristmill.gguf import GGUFFile
from hostile import ARRAY, HOSTILE, STRING, U8, Raw, kv, sound, string, tensor, u32, u64


def refusal(path: Path, check_extents: bool = True) -> str:
    """The message with which ``path`` is refused, checked for its form."""
    with pytest.raises(GGUFError) as caught:
        GGUFFile.open(path, check_extents=check_extents)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()  # one line, no escape sequences for a terminal
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Promises 1, 2, 4, 5, 7: any hostile file is one clear line, soon and in little memory."""
    content, expected = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(expected, message), message
    assert len(message) < 500 + len(str(path))
    assert time.perf_counter() - begin < 2
    # Promise 3. The constant covers the first read of 64 KiB and the exception itself.
    assert peak < 4 * len(content) + (1 << 18)


@pytest.mark.parametrize("name", HOSTILE)
def test_command_line_says_it_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise 2: exit 1 and one line, the file named first; a file that merely lacks data is described."""
    content, expected = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    cut = expected.startswith("truncated: tensor")
    assert main(["info", str(path)]) == (0 if cut else 1)
    out, err = capsys.readouterr()
    assert err.startswith(f"gristmill: {'warning' if cut else 'error'}: {path}: ")
    assert err.count("\n") == 1
    assert bool(out) is cut


def test_every_truncation_of_a_sound_file_is_refused(tmp_path: Path) -> None:
    """Promises 2 and 5: cut at any byte, a file is refused; in its header, whatever check_extents says."""
    raw = sound()
    content, header = raw.build(), raw.header()
    path = tmp_path / "cut.gguf"
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        assert "truncated" in refusal(path), size
        if size < len(header):
            assert "truncated" in refusal(path, check_extents=False), size


def test_truncated_data_leaves_the_header_readable(tmp_path: Path) -> None:
    """Promise 5: without the check a cut file opens for its header; check_extents() says what is missing."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(sound().build()[:-100])
    with GGUFFile.open(path, check_extents=False) as file:
        assert file.metadata.get_str("general.architecture") == "llama"
        end = file.tensors["b.weight"].end
        with pytest.raises(GGUFError) as caught:
            file.check_extents()
    assert str(caught.value) == (
        f"{path}: truncated: tensor 'b.weight' ends at byte {end} but the file has {end - 100} bytes, "
        "100 too few"
    )


def test_extents_are_held_against_the_size_the_file_has_now(tmp_path: Path) -> None:
    """Promise 6: a file cut after it was opened is noticed by the next check, on the open descriptor."""
    path = tmp_path / "model.gguf"
    path.write_bytes(sound().build())
    with GGUFFile.open(path) as file:
        os.truncate(path, path.stat().st_size - 32)
        with pytest.raises(GGUFError, match="32 too few"):
            file.check_extents()


def test_file_cut_while_its_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 6: a header that gets shorter between two reads is an error, not a dead process."""
    path = tmp_path / "model.gguf"
    raw = sound()
    raw.kvs.append(kv("big", STRING, "x" * (1 << 20)))
    path.write_bytes(raw.build())
    read = os.read

    def cutting_read(fd: int, size: int) -> bytes:
        chunk = read(fd, size)
        if path.stat().st_size > 1000:
            os.truncate(path, 1000)
        return chunk

    monkeypatch.setattr(os, "read", cutting_read)
    assert "the file ended at byte 65536 while its header was read" in refusal(path)


def test_read_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 15: a failed read is an error of that call."""
    path = tmp_path / "model.gguf"
    path.write_bytes(sound().build())

    def failing_read(fd: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", failing_read)
    assert "cannot be read: Input/output error" in refusal(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """Promises 1 and 2: a directory, a FIFO without writer, a socket, a device are refused at once."""
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    assert "is a FIFO" in refusal(fifo)
    assert "is a directory" in refusal(tmp_path)
    assert "is a device" in refusal(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "is a socket" in refusal(tmp_path / "s")


def test_fifo_that_takes_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1: a FIFO that appears between looking and opening is not waited for either."""
    regular, fifo = tmp_path / "model.gguf", tmp_path / "fifo.gguf"
    regular.write_bytes(sound().build())
    os.mkfifo(fifo)
    status = regular.stat()
    monkeypatch.setattr(Path, "stat", lambda self: status)
    with pytest.raises(GGUFError, match="is a FIFO"):
        GGUFFile.open(fifo)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """Promise 2: missing, looping, overlong and impossible names are GGUFErrors too."""
    assert "no such file" in refusal(tmp_path / "missing.gguf")
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    assert "cannot be opened" in refusal(loop)
    assert "cannot be opened" in refusal(tmp_path / ("n" * 300))
    with pytest.raises(GGUFError, match="cannot be opened"):
        GGUFFile.open(tmp_path / "a\0b")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 2: no permission to read is one line. (Simulated: the tests may run as root.)"""
    path = tmp_path / "model.gguf"
    path.write_bytes(sound().build())

    def refusing_open(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refusing_open)
    assert "cannot be opened: Permission denied" in refusal(path)


def test_path_with_control_characters_stays_one_line(tmp_path: Path) -> None:
    """Promise 2: the path, too, is printed on one line without terminal escapes."""
    path = tmp_path / "a\nb\x1b[31m.gguf"
    path.write_bytes(b"nothing")
    with pytest.raises(GGUFError) as caught:
        GGUFFile.open(path)
    assert str(caught.value).isprintable()
    assert r"a\nb\x1b[31m.gguf: not a GGUF file" in str(caught.value)


def test_sparse_file_of_one_string_is_not_read_whole(tmp_path: Path) -> None:
    """Promise 3: a string of 64 GiB, which a sparse file does have, is refused before it is read."""
    path = tmp_path / "sparse.gguf"
    raw = Raw(kvs=[string("x") + u32(STRING) + u64(1 << 36)])
    path.write_bytes(raw.build())
    os.truncate(path, 1 << 37)
    begin = time.perf_counter()
    assert "a header is limited to" in refusal(path)
    assert time.perf_counter() - begin < 1


def test_descriptors_are_closed_after_a_refusal(tmp_path: Path) -> None:
    """Promise 15: a thousand refusals leave no descriptor behind."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(Raw(kvs=[kv("a", U8, 1)], tensors=[tensor("t", type_id=77)]).build())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(1000):
        refusal(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_many_small_arrays_within_an_array_are_bounded_work(tmp_path: Path) -> None:
    """Promises 3 and 9: an array of 200 000 empty arrays costs no more than its bytes suggest."""
    count = 200_000
    raw = Raw(kvs=[string("x") + u32(ARRAY) + u32(ARRAY) + u64(count) + (u32(U8) + u64(0)) * count])
    path = tmp_path / "arrays.gguf"
    path.write_bytes(raw.build())
    begin = time.perf_counter()
    with GGUFFile.open(path) as file:
        assert file.metadata.array_length("x") == count
    assert time.perf_counter() - begin < 2
