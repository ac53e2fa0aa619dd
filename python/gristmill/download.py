"""URL to file: resumed when broken off, checked, and renamed into place only when whole.

The name of the file is the caller's, never the server's. Credentials (``headers``, or a user in the URL) go
to the host they were given for and to no other, whatever redirects say.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gristmill._version import __version__
from gristmill.errors import DownloadError

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes on disk and the bytes in all (None: unknown)."""

CHUNK = 1 << 18
_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


class UnreachableError(DownloadError):
    """The server could not be spoken to or refused, and no byte was fetched: another way may do better."""


@dataclass(frozen=True)
class Source:
    """Where to fetch from and how. ``headers`` may hold credentials for the URL's own host."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    proxy: str | None = None
    """Proxy for every scheme; None follows the environment."""
    ca_file: str | None = None
    """Certificates to trust; None: the system's."""
    timeout: float = 60.0
    """Seconds without a byte before the connection is given up."""


def download(
    source: Source,
    dest: Path,
    *,
    sha256: str | None = None,
    max_size: int | None = None,
    progress: Progress | None = None,
    attempts: int = 6,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetches ``source`` into ``dest`` and returns it.

    Bytes collect in ``dest.part`` beside it, which a later call goes on from. ``attempts`` is the number of
    connections in a row that may bring nothing. Raises DownloadError: :class:`UnreachableError` if no byte
    could be had, a plain one for a broken connection (the part is kept), too many bytes, a wrong SHA-256 (the
    part is removed) or a full disk (the part is kept). Hold :func:`exclusive` around it where two processes
    may fetch the same file.
    """
    part = Path(f"{dest}.part")
    transfer = _Transfer(source, part, sha256, max_size, progress)
    fruitless = 0
    while True:
        before = transfer.offset
        try:
            transfer.run()
            break
        except _TransientError as error:
            fruitless = 0 if transfer.offset > before else fruitless + 1
            if fruitless >= attempts:
                kind = DownloadError if transfer.offset else UnreachableError
                kept = f"; {transfer.offset} bytes are kept, the next try goes on from there"
                raise kind(f"{source_name(source)}: {error}{kept if transfer.offset else ''}") from error
            if fruitless:
                wait(min(0.25 * 2**fruitless, 8.0))
    transfer.verify()
    part.replace(dest)
    with contextlib.suppress(OSError):
        transfer.etag_file.unlink()
    return dest


def source_name(source: Source) -> str:
    """The URL for messages: without credentials, query and fragment, any of which may hold a token."""
    parts = urllib.parse.urlsplit(source.url)
    return urllib.parse.urlunsplit((parts.scheme, _host(parts), parts.path, "", ""))


def _host(parts: urllib.parse.SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


class _TransientError(Exception):
    """Another connection may succeed."""


class _Transfer:
    """The part file and what is known of the whole one."""

    def __init__(
        self, source: Source, part: Path, sha256: str | None, max_size: int | None, progress: Progress | None
    ) -> None:
        self.source = source
        self.part = part
        self.etag_file = Path(f"{part}.etag")
        self.sha256 = sha256
        self.max_size = max_size
        self.progress = progress or (lambda done, total: None)
        self.offset = part.stat().st_size if part.exists() else 0
        self.resumed = self.offset > 0
        self.etag = _read_etag(self.etag_file)
        self._opener = _opener(source)

    def run(self) -> None:
        """One connection: from ``offset`` to the end. Raises _TransientError when it breaks off."""
        if self.offset and self.sha256 is None and self.etag is None:
            self._restart()  # nothing could tell whether the rest fits what is there
        try:
            response = self._open()
        except urllib.error.HTTPError as error:
            with error:
                self._http_error(error)
            return
        except (OSError, http.client.HTTPException) as error:
            raise _transient(error) from error
        with response:
            total = self._begin(response)
            self._check_room(total)
            self._copy(response, total)

    def _open(self) -> Any:
        headers = {"User-Agent": f"gristmill/{__version__}", "Accept-Encoding": "identity"}
        if self.offset:
            headers["Range"] = f"bytes={self.offset}-"
            if self.sha256 is None and self.etag is not None:
                headers["If-Range"] = self.etag
        secrets = dict(self.source.headers)
        parts = urllib.parse.urlsplit(self.source.url)
        if parts.username is not None:
            user = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
            secrets.setdefault("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
            parts = parts._replace(netloc=_host(parts))
        url, origin = parts.geturl(), (parts.scheme, _host(parts))
        for _ in range(_MAX_REDIRECTS):
            try:
                request = urllib.request.Request(url, headers=headers | secrets)
                return self._opener.open(request, timeout=self.source.timeout)
            except urllib.error.HTTPError as error:
                if error.code not in _REDIRECTS or "location" not in error.headers:
                    raise
                error.close()
                url = urllib.parse.urljoin(url, error.headers["location"])
                target = urllib.parse.urlsplit(url)
                if target.scheme not in {"https", origin[0]} or target.scheme not in {"http", "https"}:
                    raise UnreachableError(
                        f"{source_name(self.source)}: redirected to {target.scheme}:, which is not followed"
                    ) from None
                if (target.scheme, _host(target)) != origin:
                    secrets = {k: v for k, v in secrets.items() if not _is_secret(k, self.source.headers)}
        raise UnreachableError(f"{source_name(self.source)}: more than {_MAX_REDIRECTS} redirects")

    def _http_error(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416 and self.offset:  # the range begins at or after the end
            if error.headers.get("Content-Range") == f"bytes */{self.offset}":
                return  # the part is whole
            self._restart()
            raise _TransientError("the server's file is shorter than what was fetched of it") from error
        text = f"HTTP status {error.code} {error.reason}"
        if error.code in _TRANSIENT:
            raise _TransientError(text) from error
        kind = DownloadError if self.offset else UnreachableError
        raise kind(f"{source_name(self.source)}: {text}") from error

    def _begin(self, response: Any) -> int | None:
        """Settles where the response's bytes belong; returns the size of the whole file, if said."""
        length = _number(response.headers.get("Content-Length"))
        if response.status == 206:
            unit, _, rest = (response.headers.get("Content-Range") or "").partition(" ")
            start, _, _ = rest.partition("-")
            if unit != "bytes" or _number(start) != self.offset:
                self._restart()
                raise _TransientError("the server sent another range than the one asked for")
        elif self.offset:
            self._restart()  # the server does not resume, or its file has changed
        self.etag = response.headers.get("ETag")
        if self.etag is not None and not self.etag.startswith("W/"):
            self.etag_file.write_text(self.etag, "utf-8")
        total = None if length is None else self.offset + length
        self._check_size(self.offset if total is None else total)
        return total

    def _check_size(self, size: int) -> None:
        if self.max_size is not None and size > self.max_size:
            self._restart()
            raise DownloadError(
                f"{source_name(self.source)}: {size} bytes, where at most {self.max_size} are expected"
            )

    def _check_room(self, total: int | None) -> None:
        if total is not None:
            free = shutil.disk_usage(self.part.parent).free
            if free < total - self.offset:
                raise self._full(f"{total - self.offset} bytes are needed, {free} are free")

    def _full(self, what: str) -> DownloadError:
        kept = f"; {self.offset} bytes are kept, the next try goes on from there" if self.offset else ""
        return DownloadError(f"{self.part.parent}: no room on the disk: {what}{kept}")

    def _copy(self, response: Any, total: int | None) -> None:
        with self.part.open("ab", buffering=0) as file:
            self.progress(self.offset, total)
            while True:
                try:
                    chunk = response.read1(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _transient(error) from error
                if not chunk:
                    break
                self._check_size(self.offset + len(chunk))
                self._write(file, chunk)
                self.progress(self.offset, total)
            os.fsync(file.fileno())
        if total is not None and self.offset < total:
            raise _TransientError(f"the connection ended after {self.offset} of {total} bytes")

    def _write(self, file: IO[bytes], chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                n = file.write(view)  # unbuffered: may write less than it was given
                self.offset += n
                view = view[n:]
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise self._full(error.strerror or str(error)) from error
            raise

    def _restart(self) -> None:
        self.part.unlink(missing_ok=True)
        self.etag_file.unlink(missing_ok=True)
        self.offset, self.etag = 0, None

    def verify(self) -> None:
        """Compares the SHA-256 of the whole part; a wrong one removes it: the next try begins anew."""
        if self.sha256 is None:
            return
        got = sha256_of(self.part)
        if got != self.sha256.lower():
            self._restart()
            raise DownloadError(
                f"{source_name(self.source)}: SHA-256 is {got}, expected {self.sha256}; what was fetched "
                "is removed"
            )


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_secret(name: str, given: Mapping[str, str]) -> bool:
    """Every header that the caller gave counts: a hub's token may have any name."""
    return name.lower() in _SECRET_HEADERS or name in given


def _transient(error: Exception) -> Exception:
    """What to raise for a failed connection: a certificate that does not verify will not verify next time."""
    reason = getattr(error, "reason", None) or error
    if isinstance(error, DownloadError):
        return error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UnreachableError(f"the server's certificate does not verify: {reason.verify_message}")
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return _TransientError(text)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def _read_etag(path: Path) -> str | None:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError):
        return None
    return text if text.isprintable() and 0 < len(text) < 1000 else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Redirects are followed in ``_open``, where credentials are dropped."""


def _opener(source: Source) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=source.ca_file)
    proxies = None if source.proxy is None else {"http": source.proxy, "https": source.proxy}
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _NoRedirect(),
    ):
        opener.add_handler(handler)
    return opener


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock file ``path`` against other processes; the lock of a process that dies is free at once.

    ``waiting`` is called once if another process holds it.
    """
    with path.open("a+b") as file:
        if not _try_lock(file):
            if waiting is not None:
                waiting()
            while not _try_lock(file):
                time.sleep(0.1)
        yield  # closing the file gives the lock back


if os.name == "nt":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
