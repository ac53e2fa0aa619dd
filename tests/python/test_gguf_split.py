"""Split GGUF files: any part opens the whole; parts that do not belong together are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gristmill import GGUFError
from gristmill.gguf import GGUFFile
from hostile import I32, U16, Raw, kv, split_files, tensor


def refusal(path: Path) -> str:
    with pytest.raises(GGUFError) as caught:
        GGUFFile.open(path)
    return str(caught.value)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_opens_all(given: int, tmp_path: Path) -> None:
    """Metadata comes from the first part, tensors from all, each with the index of its file."""
    paths = split_files(tmp_path)
    with GGUFFile.open(paths[given]) as file:
        assert file.paths == paths
        assert file.path == paths[0]
        assert file.file_sizes == [path.stat().st_size for path in paths]
        assert file.metadata["general.architecture"] == "llama"
        assert [(t.name, t.file_index) for t in file.tensors.values()] == [
            (f"blk.{i}.weight", i) for i in range(3)
        ]
        for i, t in enumerate(file.tensors.values()):
            assert paths[i].read_bytes()[t.offset : t.end] == bytes([i]) * 256
            assert Path(f"/proc/self/fd/{file.fileno(i)}").resolve() == paths[i]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_part_is_named(missing: int, tmp_path: Path) -> None:
    """Promise 2: the message begins with the file that was given and names the one that is not there."""
    paths = split_files(tmp_path)
    paths[missing].unlink()
    given = paths[(missing + 1) % 3]
    message = refusal(given)
    assert message.startswith(f"{given}: is part ")
    assert message.endswith(f"m-{missing + 1:05}-of-00003.gguf is not beside it")


def test_renamed_part(tmp_path: Path) -> None:
    """A part whose name does not say what it is cannot find the others."""
    paths = split_files(tmp_path)
    renamed = paths[1].rename(tmp_path / "model.gguf")
    assert refusal(renamed) == (
        f"{renamed}: is part 2 of 3, but its name does not end in -00002-of-00003.gguf, "
        "so the other parts cannot be found"
    )


def test_parts_exchanged(tmp_path: Path) -> None:
    """A part under another part's name is refused, whichever part was given."""
    paths = split_files(tmp_path)
    shutil.copy(paths[2], paths[1])
    assert "is part 3 of 3, but its name does not end in" in refusal(paths[1])
    assert (
        refusal(paths[0])
        == f"{paths[1]}: split.no and split.count are 2 and 3, expected 1 and 3 as in its name"
    )


def test_part_of_another_split(tmp_path: Path) -> None:
    """A part that says it is one of four does not belong to three."""

    def change(i: int, raw: Raw) -> None:
        if i == 1:
            raw.kvs[1] = kv("split.count", U16, 4)

    paths = split_files(tmp_path, change=change)
    assert refusal(paths[0]).startswith(f"{paths[1]}: split.no and split.count are 1 and 4")


def test_tensor_in_two_parts(tmp_path: Path) -> None:
    """Names are unique over all parts."""

    def change(i: int, raw: Raw) -> None:
        if i == 2:
            raw.tensors = [tensor("blk.0.weight")]

    paths = split_files(tmp_path, change=change)
    assert refusal(paths[1]) == f"{paths[2]}: tensor 'blk.0.weight' is also in {paths[0].name}"


def test_tensor_count(tmp_path: Path) -> None:
    """split.tensors.count is held against what the parts contain."""

    def change(i: int, raw: Raw) -> None:
        raw.kvs[2] = kv("split.tensors.count", I32, 4)

    paths = split_files(tmp_path, change=change)
    assert refusal(paths[0]) == f"{paths[0]}: split.tensors.count is 4, but the 3 parts hold 3 tensors"


def test_truncated_part_is_named(tmp_path: Path) -> None:
    """Promise 5 holds for each part against its own file."""
    paths = split_files(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    message = refusal(paths[0])
    assert message.startswith(f"{paths[1]}: truncated: tensor 'blk.1.weight'")
    assert message.endswith("1 too few")


def test_corrupt_part_is_named(tmp_path: Path) -> None:
    """A flaw in a later part is reported with that part's path."""
    paths = split_files(tmp_path)
    paths[2].write_bytes(b"<html>")
    assert refusal(paths[0]).startswith(f"{paths[2]}: not a GGUF file: an HTML page")


def test_a_count_of_65535_parts_ends_at_the_first_missing_one(tmp_path: Path) -> None:
    """Promise 3: the claimed number of parts costs nothing."""
    path = tmp_path / "m-00001-of-65535.gguf"
    path.write_bytes(Raw(kvs=[kv("split.no", U16, 0), kv("split.count", U16, 65535)]).build())
    assert refusal(path).endswith("m-00002-of-65535.gguf is not beside it")


def test_single_file_with_a_split_name(tmp_path: Path) -> None:
    """A merged file that kept its name (split.count 0 or none) is one file."""
    path = tmp_path / "m-00001-of-00003.gguf"
    for kvs in ([], [kv("split.count", U16, 0)], [kv("split.count", U16, 1), kv("split.no", U16, 0)]):
        path.write_bytes(Raw(kvs=kvs, tensors=[tensor("t")], data=bytes(256)).build())
        with GGUFFile.open(path) as file:
            assert file.paths == [path]
