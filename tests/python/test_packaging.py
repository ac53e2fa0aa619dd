"""What is installed: the stub, the type marker, a cheap import, the wheel's files, the version."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import inspect
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import gristmill
import pytest
from gristmill import _core

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = importlib.resources.files("gristmill")


# The stub of the compiled module


def arguments_of(signature: str) -> list[str]:
    """Names of the arguments in ``def f(...) -> ...``."""
    match = re.fullmatch(r"(def [\w]+\(.*\))( -> .*)?", signature, re.DOTALL)
    assert match, signature
    # Types in nanobind's signatures are placeholders that Python cannot parse; names are enough.
    depth, names, current = 0, [], ""
    for c in match[1][match[1].index("(") + 1 : -1] + ",":
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            names.append(re.split(r"[:=]", current, maxsplit=1)[0].strip())
            current = ""
        else:
            current += c
    return [name for name in names if name and name not in "*/"]


def compiled_names(owner: object, prefix: str = "") -> dict[str, list[list[str]]]:
    """Every public function, method and property of the compiled module; the arguments of each overload."""
    found: dict[str, list[list[str]]] = {}
    for name, value in vars(owner).items():
        if name.startswith("_") and name != "__init__":
            continue
        kind = type(value).__name__
        if inspect.isclass(value):
            found[f"{prefix}{name}"] = []
            found |= compiled_names(value, f"{prefix}{name}.")
        elif kind in ("nb_func", "nb_method"):
            signatures = [signature for signature, *_ in value.__nb_signature__]
            found[f"{prefix}{name}"] = [arguments_of(signature) for signature in signatures]
        elif isinstance(value, property):
            found[f"{prefix}{name}"] = [["self"]]
    return found


def stub_names(body: list[ast.stmt], prefix: str = "") -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[f"{prefix}{node.name}"] = []
            found |= stub_names(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            found.setdefault(f"{prefix}{node.name}", []).append(arguments)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and prefix:
            found[f"{prefix}{node.target.id}"] = [["self"]]  # a property of the class itself
    return found


def test_stub_is_current() -> None:
    """Names and arguments; CI also compares the text with what nanobind generates."""
    stub = ast.parse((PACKAGE / "_core.pyi").read_text(encoding="utf-8"))
    in_stub, compiled = stub_names(stub.body), compiled_names(_core)
    assert "Session.forward" in compiled
    assert in_stub == compiled


def test_type_marker() -> None:
    assert (PACKAGE / "py.typed").is_file()


# Import


def fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def test_import_is_quick_and_light() -> None:
    """The fastest of several runs, in milliseconds; libraries that take long to import come on first use."""
    heavy = ("numpy", "tokenizers", "jinja2", "rich", "prompt_toolkit", "gguf", "gristmill._core")
    code = (
        "import sys, time; t = time.perf_counter(); import gristmill; t = time.perf_counter() - t;"
        f"print(t * 1000, *[m for m in {heavy!r} if m in sys.modules])"
    )
    results = [fresh_python(code).split() for _ in range(5)]
    assert all(modules == [] for _, *modules in results), results
    assert min(float(time) for time, *_ in results) < 50, results


def test_every_name_is_there() -> None:
    for name in gristmill.__all__:
        assert getattr(gristmill, name) is not None
    assert set(gristmill.__all__) <= set(dir(gristmill))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gristmill.no_such_name


# The distribution


@pytest.fixture(scope="module")
def distribution() -> importlib.metadata.Distribution:
    try:
        found = importlib.metadata.distribution("gristmill")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gristmill runs from its source tree: there is no wheel to look at")
    if '"editable": true' in (found.read_text("direct_url.json") or ""):
        pytest.skip("gristmill is installed in place: there is no wheel to look at")
    return found


def test_wheel_has_no_stray_files(distribution: importlib.metadata.Distribution) -> None:
    files = [PurePosixPath(str(f)) for f in distribution.files or [] if "__pycache__" not in f.parts]
    allowed = re.compile(
        r"gristmill/([a-z_]+/)*[a-z_0-9]+\.py|gristmill/_core\.[\w.-]+\.(so|pyd)|gristmill/_cuda\.so"
        r"|gristmill/_core\.pyi|gristmill/py\.typed"
        r"|gristmill-[\w.]+\.dist-info/.+|(\.\./)+bin/gristmill(\.exe)?"
    )
    assert [str(f) for f in files if not allowed.fullmatch(str(f))] == []
    names = {str(f) for f in files}
    tree = ROOT / "python"
    sources = {p.relative_to(tree).as_posix() for p in tree.rglob("*.py*") if p.suffix in (".py", ".pyi")}
    assert sources - names == set(), "files of the source tree that the wheel lacks"
    assert any(name.endswith("LICENSE") for name in names)
    assert sum(name.startswith("gristmill/_core.") and not name.endswith(".pyi") for name in names) == 1


def test_one_version(distribution: importlib.metadata.Distribution) -> None:
    assert distribution.version == gristmill.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", gristmill.__version__)


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(gristmill.__version__)}\]", text, re.MULTILINE)


def test_nothing_heavy_is_required(distribution: importlib.metadata.Distribution) -> None:
    required = [r for r in distribution.requires or [] if "extra ==" not in r]
    names = {re.split(r"[\s<>=!~;\[]", r, maxsplit=1)[0] for r in required}
    assert names == {"numpy", "gguf", "tokenizers", "jinja2", "rich", "prompt_toolkit", "platformdirs"}
