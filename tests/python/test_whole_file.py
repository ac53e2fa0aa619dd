"""Results are written whole or not at all, and whether they can be is asked before the work."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from gristmill.cli import main
from gristmill.whole_file import check_writable, whole_file


def test_takes_its_name_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("before")
    with whole_file(target) as partial:
        partial.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "report.html"
    target.write_text("before")
    with pytest.raises(type(error)) as raised, whole_file(target) as partial:
        partial.write_text("half")
        raise error
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(target)  # which a full disk does not say by itself


@pytest.mark.parametrize(
    "words",
    [
        ["imatrix", "-m", "model.gguf", "-o"],
        ["quantize", "model.gguf", "--bpw", "5"],
        ["compare", "model.gguf", "--formats", "Q8_0", "--html"],
    ],
    ids=lambda words: words[0],
)
def test_a_folder_that_is_not_there_is_told_before_the_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the model nor the text exists here, and both would be complained of later."""
    monkeypatch.chdir(tmp_path)
    assert main([*words, "missing/out.gguf", "-f", "text.txt"]) == 1
    err = capsys.readouterr().err
    assert err == "gristmill: error: missing: No such file or directory\n"


def test_writable_is_a_file_or_its_folder(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.html")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        check_writable(tmp_path)
