"""Streaming a URL to a file: resumed, checked, whole or not there, and credentials for one host only."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gristmill import DownloadError
from gristmill import download as module
from gristmill.download import Source, UnreachableError, download, exclusive
from http_fake import Behavior, serve

DATA = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
NO_WAIT = {"wait": lambda seconds: None}


@pytest.fixture
def server() -> Iterator[tuple[str, Behavior]]:
    with serve() as (url, behavior):
        behavior.files["/file"] = DATA
        yield url, behavior


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ranges(behavior: Behavior) -> list[str | None]:
    return [headers.get("range") for _, headers in behavior.requests]


def test_whole(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, _ = server
    seen: list[tuple[int, int | None]] = []
    dest = download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, progress=lambda *p: seen.append(p))
    assert dest.read_bytes() == DATA
    assert names(tmp_path) == ["f"]
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_cut_connections_are_resumed_where_they_broke(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    behavior.cuts = [100_000, 50_000, 0, 7, -1]
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, **NO_WAIT)
    assert (tmp_path / "f").read_bytes() == DATA
    assert ranges(behavior) == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150007-"]


def test_a_later_call_goes_on_from_the_part(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    behavior.cuts = [1234] + [0] * 99
    with pytest.raises(DownloadError, match="1234 bytes are kept") as caught:
        download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, attempts=3, **NO_WAIT)
    assert not isinstance(caught.value, UnreachableError)
    assert not (tmp_path / "f").exists()
    assert (tmp_path / "f.part").read_bytes() == DATA[:1234]
    behavior.cuts, behavior.requests = [], []
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA
    assert ranges(behavior) == ["bytes=1234-"]


def test_a_server_without_ranges_starts_over(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    behavior.ranges = False
    behavior.cuts = [100_000, 250_000, -1]
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, **NO_WAIT)
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_server_that_sends_another_range_is_not_believed(
    server: tuple[str, Behavior], tmp_path: Path
) -> None:
    url, behavior = server
    behavior.wrong_range = True
    (tmp_path / "f.part").write_bytes(DATA[:1000])
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, **NO_WAIT)
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_part_that_is_whole_already(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, _ = server
    (tmp_path / "f.part").write_bytes(DATA)
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_part_that_is_too_long(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, _ = server
    (tmp_path / "f.part").write_bytes(DATA + b"more")
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, **NO_WAIT)
    assert (tmp_path / "f").read_bytes() == DATA


def test_without_a_hash_only_an_etag_allows_resuming(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    behavior.cuts = [1000]
    download(Source(url + "/file"), tmp_path / "f", **NO_WAIT)
    assert ranges(behavior) == [None, None]
    behavior.etag, behavior.cuts, behavior.requests = '"one"', [1000], []
    download(Source(url + "/file"), tmp_path / "g", **NO_WAIT)
    assert ranges(behavior) == [None, "bytes=1000-"]
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == DATA
    assert names(tmp_path) == ["f", "g"]


def test_a_file_that_changed_meanwhile_starts_over(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    behavior.etag, behavior.cuts = '"one"', [1000, 0, 0]
    with pytest.raises(DownloadError):
        download(Source(url + "/file"), tmp_path / "f", attempts=2, **NO_WAIT)
    behavior.etag, behavior.files["/file"] = '"two"', DATA[::-1]
    download(Source(url + "/file"), tmp_path / "f", **NO_WAIT)
    assert (tmp_path / "f").read_bytes() == DATA[::-1]


def test_wrong_hash_leaves_nothing(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, _ = server
    with pytest.raises(DownloadError, match=f"SHA-256 is {SHA256}, expected {'0' * 64}"):
        download(Source(url + "/file"), tmp_path / "f", sha256="0" * 64)
    assert names(tmp_path) == []


@pytest.mark.parametrize("lengths", [True, False])
def test_too_many_bytes(server: tuple[str, Behavior], tmp_path: Path, lengths: bool) -> None:
    url, behavior = server
    behavior.lengths = lengths
    with pytest.raises(DownloadError, match="at most 1000 are expected"):
        download(Source(url + "/file"), tmp_path / "f", max_size=1000)
    assert names(tmp_path) == []


def test_without_a_length(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    behavior.lengths = False
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_repeated(server: tuple[str, Behavior], tmp_path: Path, status: int) -> None:
    url, behavior = server
    behavior.statuses["/file"] = [status] * 9
    with pytest.raises(UnreachableError, match=f"HTTP status {status}"):
        download(Source(url + "/file?token=secret"), tmp_path / "f", **NO_WAIT)
    assert len(behavior.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(
    server: tuple[str, Behavior], tmp_path: Path, status: int
) -> None:
    url, behavior = server
    behavior.statuses["/file"] = [status] * 3
    waits: list[float] = []
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, wait=waits.append)
    assert (tmp_path / "f").read_bytes() == DATA
    assert len(waits) == 3
    assert waits == sorted(waits)


def test_no_server(tmp_path: Path) -> None:
    with serve() as (url, _):
        pass
    with pytest.raises(UnreachableError, match="refused"):
        download(Source(url + "/file"), tmp_path / "f", attempts=2, **NO_WAIT)


def test_a_server_that_falls_silent_is_asked_for_the_rest(
    server: tuple[str, Behavior], tmp_path: Path
) -> None:
    url, behavior = server
    behavior.files["/file"] = DATA[:10_000]
    behavior.delay = 3.0
    seen: list[int] = []
    source = Source(url + "/file", timeout=0.2)
    digest = hashlib.sha256(DATA[:10_000]).hexdigest()
    download(source, tmp_path / "f", sha256=digest, progress=lambda done, total: seen.append(done), **NO_WAIT)
    assert (tmp_path / "f").read_bytes() == DATA[:10_000]
    assert ranges(behavior) == [None, "bytes=4096-", "bytes=8192-"]


# Credentials ---------------------------------------------------------------------------------------------


def test_credentials_do_not_cross_hosts(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    secrets = {"Authorization": "Bearer secret", "Cookie": "a=b", "X-Hub-Token": "secret"}
    with serve() as (other, elsewhere):
        behavior.redirects = {"/start": "/middle", "/middle": other + "/back"}
        elsewhere.redirects = {"/back": url + "/file"}
        download(Source(url + "/start", headers=secrets), tmp_path / "f", sha256=SHA256)
    by_path = dict(behavior.requests)
    for path in ("/start", "/middle"):
        assert by_path[path]["authorization"] == "Bearer secret"
        assert by_path[path]["x-hub-token"] == "secret"
    for headers in (elsewhere.requests[0][1], by_path["/file"]):
        # Nor do they come back when another host redirects to the first one.
        assert not {"authorization", "cookie", "x-hub-token"} & headers.keys()
        assert "secret" not in str(headers)


def test_a_user_in_the_url_is_a_credential(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    with serve() as (other, elsewhere):
        elsewhere.files["/file"] = DATA
        behavior.redirects = {"/start": other + "/file"}
        with_user = url.replace("http://", "http://me:p%40ss@") + "/start"
        download(Source(with_user), tmp_path / "f", sha256=SHA256)
    expected = "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert behavior.requests[0][1]["authorization"] == expected
    assert behavior.requests[0][1]["host"] == url.removeprefix("http://")
    assert "authorization" not in elsewhere.requests[0][1]


def test_messages_hold_no_credentials(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, _ = server
    with pytest.raises(DownloadError) as caught:
        download(Source(url.replace("://", "://me:pass@") + "/no?token=secret#x"), tmp_path / "f")
    assert "pass" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert f"{url}/no" in str(caught.value)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "/loop"])
def test_redirects_that_are_not_followed(server: tuple[str, Behavior], tmp_path: Path, target: str) -> None:
    url, behavior = server
    behavior.redirects = {"/loop": target}
    with pytest.raises(DownloadError, match="not followed|redirects"):
        download(Source(url + "/loop"), tmp_path / "f", **NO_WAIT)
    assert names(tmp_path) == []
    assert len(behavior.requests) < 20


# Bad luck ------------------------------------------------------------------------------------------------


def test_full_disk_keeps_what_is_there(
    server: tuple[str, Behavior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server

    class Full:
        """A file on a disk with room for 100 000 bytes."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *args: object) -> None:
            self.file.close()

        def write(self, data: memoryview) -> int:
            room = 100_000 - self.file.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data[:room]))

    with monkeypatch.context() as patch:
        real = Path.open
        patch.setattr(
            Path,
            "open",
            lambda self, *a, **k: Full(real(self, *a, **k)) if a == ("ab",) else real(self, *a, **k),
        )
        with pytest.raises(DownloadError, match="no room on the disk.*100000 bytes are kept"):
            download(Source(url + "/file"), tmp_path / "f", sha256=SHA256, **NO_WAIT)
    assert (tmp_path / "f.part").read_bytes() == DATA[:100_000]
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA


def test_too_little_room_is_known_before(
    server: tuple[str, Behavior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DownloadError, match=f"{len(DATA)} bytes are needed, 10 are free"):
        download(Source(url + "/file"), tmp_path / "f")


def test_kill_in_the_middle_loses_nothing(server: tuple[str, Behavior], tmp_path: Path) -> None:
    url, behavior = server
    behavior.delay = 0.02
    code = (
        "import sys; from pathlib import Path; from gristmill.download import Source, download\n"
        "download(Source(sys.argv[1]), Path(sys.argv[2]), sha256=sys.argv[3])"
    )
    part = tmp_path / "f.part"
    process = subprocess.Popen([sys.executable, "-c", code, url + "/file", str(tmp_path / "f"), SHA256])
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    assert 20_000 < kept < len(DATA)
    assert not (tmp_path / "f").exists()
    behavior.delay, behavior.requests = 0.0, []
    download(Source(url + "/file"), tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA
    assert ranges(behavior) == [f"bytes={kept}-"]


def test_exclusive_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    waited: list[bool] = []
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with exclusive(tmp_path / "lock", lambda: waited.append(True)):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert waited


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from gristmill.download import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    process.kill()
    process.wait()
    start = time.monotonic()
    with exclusive(tmp_path / "lock"):
        assert time.monotonic() - start < 5
