"""A web server on the loopback that misbehaves as told, for tests of downloads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behavior:
    """What the server does; tests change it between requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Error statuses for the next requests of a path."""
    cuts: list[int] = field(default_factory=list)
    """For each next answer with a file: the bytes after which the connection breaks (-1: it does not)."""
    ranges: bool = True
    etag: str | None = None
    lengths: bool = True
    delay: float = 0.0
    """Seconds between chunks of 4096 bytes."""
    wrong_range: bool = False
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """(path, headers in lower case) of every request."""

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behavior: Behavior

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        b, path = self.behavior, self.path.partition("?")[0]
        b.requests.append((path, {k.lower(): v for k, v in self.headers.items()}))
        if path in b.redirects:
            self._head(302, {"Location": b.redirects[path], "Content-Length": "0"})
        elif b.statuses.get(path):
            self._head(b.statuses[path].pop(0), {"Content-Length": "0"})
        elif path in b.files:
            self._send(b, b.files[path])
        else:
            self._head(404, {"Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, b: Behavior, data: bytes) -> None:
        start, status = 0, 200
        headers = {"Content-Type": "text/html" if data.startswith(b"<") else "application/octet-stream"}
        if b.etag is not None:
            headers["ETag"] = b.etag
        wanted = self.headers.get("Range")
        if wanted and b.ranges and self.headers.get("If-Range") in (None, b.etag):
            first = wanted.removeprefix("bytes=").partition("-")[0]
            start = int(first) if first else max(len(data) - int(wanted.rpartition("-")[2]), 0)
            if start >= len(data):
                self._head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
                return
            status = 206
            claimed = start + 1 if b.wrong_range else start
            headers["Content-Range"] = f"bytes {claimed}-{len(data) - 1}/{len(data)}"
        if b.lengths:
            headers["Content-Length"] = str(len(data) - start)
        else:
            headers["Connection"] = "close"
            self.close_connection = True
        self._head(status, headers)
        cut = b.cuts.pop(0) if b.cuts else -1
        body = data[start:] if cut < 0 else data[start : start + cut]
        with contextlib.suppress(OSError):
            for at in range(0, len(body), 4096):
                self.wfile.write(body[at : at + 4096])
                if b.delay:
                    self.wfile.flush()
                    time.sleep(b.delay)
            if cut >= 0:
                self.wfile.flush()
                self.close_connection = True


@contextlib.contextmanager
def serve(address: str = "127.0.0.1") -> Iterator[tuple[str, Behavior]]:
    """A server until the end of the block: its URL without a slash at the end, and its behavior."""
    behavior = Behavior()
    handler = type("Handler", (_Handler,), {"behavior": behavior})
    server = ThreadingHTTPServer((address, 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_address[1]}", behavior
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
