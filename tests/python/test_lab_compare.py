"""Comparisons: what each column is, that a run repeats itself, the cache, the output, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gristmill
import pytest
from gristmill import ArgumentError, Error, UnsupportedModelError, lab
from gristmill.cli import main
from gristmill.gguf import GGUFFile
from gristmill.info import describe
from gristmill.lab import comparison
from gristmill.lab.comparison_html import as_html
from gristmill.lab.comparison_report import as_csv, as_json, as_markdown, nats, size
from gristmill.lab.formats import quantized, quantized_path
from gristmill.lab.pareto import pareto_front
from hypothesis import given
from hypothesis import strategies as st
from test_logits import TinyModel

PROSE = Path(__file__).parent / "data" / "prose.txt"
TEXT = PROSE.read_text(encoding="utf-8")[:600]
QUICK: dict[str, Any] = {
    "n_ctx": 64, "memory_ctx": 128, "n_prompt": 20, "n_decode": 3, "rounds": 2, "loop_tokens": 32,
    "prompts": ("Hello", "And then"), "n_threads": 1,
}  # fmt: skip
MEASURED = {"load_seconds", "prefill_tps", "decode_tps"}


@pytest.fixture(scope="module")
def base(tiny_model: TinyModel) -> Path:
    return tiny_model(formats="F16", seed=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def result(base: Path, cache: Path) -> lab.CompareResult:
    return lab.compare(base, formats=["Q8_0", "q4_k", "Q2_K"], text=TEXT, cache=cache, **QUICK)


def test_columns_are_what_they_say(result: lab.CompareResult, base: Path, cache: Path) -> None:
    assert [row.name for row in result.rows] == ["F16", "Q8_0", "Q4_K_M", "Q2_K"]
    for row in result.rows:
        with GGUFFile.open(row.path) as file:
            memory = describe(file, 128).memory
            n_bytes = sum(t.n_bytes for t in file.tensors.values())
            n_weights = sum(t.n_elements for t in file.tensors.values())
        assert row.file_bytes == Path(row.path).stat().st_size
        assert row.bits_per_weight == 8 * n_bytes / n_weights
        assert memory is not None
        assert row.memory_bytes == memory.weights + memory.kv_cache["f16"]
        model = gristmill.load(row.path, n_ctx=64, n_threads=1, precise=True)
        assert row.perplexity == lab.perplexity(model, TEXT, n_ctx=64).perplexity
        assert min(row.load_seconds or 0, row.prefill_tps or 0, row.decode_tps or 0) > 0
        looped = lab.loops(gristmill.load(row.path, n_ctx=100, precise=True), QUICK["prompts"], n_tokens=32)
        assert (row.greedy_loop_rate, row.sampled_loop_rate) == (looped.greedy_rate, looped.sampled_rate)
    first, *others = result.rows
    assert (first.mean_kl, first.max_kl, first.top1_agreement) == (0.0, 0.0, 1.0)
    loaded = gristmill.load(base, n_ctx=64, precise=True)
    for row, against in zip(others, result.divergences, strict=True):
        model = gristmill.load(row.path, n_ctx=64, precise=True)
        _, (alone,) = lab.divergence(loaded, [model], TEXT, n_ctx=64)
        assert against.kl.tobytes() == alone.kl.tobytes()
        assert (row.mean_kl, row.p99_kl, row.max_kl) == (alone.mean_kl, alone.p99_kl, alone.max_kl)
        assert row.top1_agreement == alone.top1_agreement
    assert others[0].mean_kl < others[1].mean_kl < others[2].mean_kl


def test_a_second_run_gives_the_same_and_quantizes_nothing(
    result: lab.CompareResult, base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another number of threads, and with too little memory for all models side by side."""
    import gristmill.quantize_file

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("quantized again")

    monkeypatch.setattr(gristmill.quantize_file, "quantize_file", refuse)
    monkeypatch.setattr(comparison, "available_memory", lambda: 1)
    groups: list[int] = []
    inner = comparison.divergence

    def counted(base: Any, models: Any, *args: Any, **kwargs: Any) -> Any:
        groups.append(len(models))
        return inner(base, models, *args, **kwargs)

    monkeypatch.setattr(comparison, "divergence", counted)
    options = QUICK | {"n_threads": 2}
    again = lab.compare(base, formats=["Q8_0", "Q4_K_M", "Q2_K"], text=TEXT, cache=cache, **options)
    assert groups == [1, 1, 1]
    for one, two in zip(result.rows, again.rows, strict=True):
        same = {name: value for name, value in dataclasses.asdict(one).items() if name not in MEASURED}
        assert same.items() <= dataclasses.asdict(two).items()
    assert again.loops == result.loops


def test_groups_fit_in_memory_beside_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "available_memory", lambda: 100)
    assert comparison._groups([25, 30, 20, 10, 60, 1]) == [[1, 2], [3], [4], [5]]
    assert comparison._groups([25, 30, 20]) == [[1, 2]]
    monkeypatch.setattr(comparison, "available_memory", lambda: None)
    assert comparison._groups([25, 300, 200]) == [[1, 2]]


def test_the_cache_knows_what_a_file_was_made_from(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(base.read_bytes())
    first = quantized(copy, "Q8_0", cache=tmp_path / "cache", n_threads=1)
    assert first.name == "copy-Q8_0.gguf"
    assert quantized_path(copy, "Q4_0", cache=tmp_path / "cache").parent != first.parent
    assert quantized(copy, "Q8_0", cache=tmp_path / "cache") == first
    os.utime(copy, ns=(1, 1))
    assert not quantized_path(copy, "Q8_0", cache=tmp_path / "cache").exists()
    monkey = dict(os.environ, GRISTMILL_CACHE=str(tmp_path / "elsewhere"))
    code = "import sys; from pathlib import Path; from gristmill.lab.formats import quantized_path as p; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(p(Path(sys.argv[1]), 'Q8_0'))", str(copy)],
        env=monkey, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / "elsewhere" / "lab"))


def test_an_imatrix_is_part_of_the_key(base: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    paths = {quantized_path(base, "Q4_0", i, tmp_path) for i in (None, one, two)}
    assert len(paths) == 3


def test_an_interrupted_quantization_leaves_nothing(base: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantized(base, "Q4_K_M", cache=tmp_path, progress=interrupt, n_threads=1)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["lock"]
    assert quantized(base, "Q4_K_M", cache=tmp_path, n_threads=1).exists()


def names_of(paths: list[tuple[str, str]]) -> list[str]:
    return comparison._labels([comparison._File(Path(p), f, 1, 1, 1, 1) for p, f in paths])


def test_names_tell_files_apart() -> None:
    assert names_of([("a/m.gguf", "F16"), ("a/n.gguf", "Q4_0")]) == ["F16", "Q4_0"]
    assert names_of([("m-F16.gguf", "Q4_0"), ("m-mine.gguf", "Q4_0")]) == ["F16", "mine"]
    assert names_of([("m.gguf", "Q4_0"), ("m-2.gguf", "Q4_0")]) == ["m", "m-2"]
    assert names_of([("a/m.gguf", "Q4_0"), ("b/m.gguf", "Q4_0")]) == ["a/m.gguf", "b/m.gguf"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    for i, p in enumerate(points):
        beaten = any((q[0] < p[0] and q[1] <= p[1]) or (q[0] <= p[0] and q[1] < p[1]) for q in points)
        assert (i in front) != beaten
    assert [points[i] for i in front] == sorted(points[i] for i in front)


def test_json_csv_and_table_hold_the_rows(result: lab.CompareResult) -> None:
    document = json.loads(as_json(result))
    assert document["settings"]["n_scored"] == result.divergences[0].kl.size
    for row, record in zip(result.rows, document["models"], strict=True):
        assert dataclasses.asdict(row).items() <= record.items()
    against = document["models"][1]
    assert against["kl_by_window"] == result.divergences[0].kl.mean(axis=1).tolist()
    assert [len(against["speed_rounds"][k]) for k in ("load", "prefill", "decode")] == [2, 2, 2]
    assert len(against["continuations"]) == 4
    records = list(csv.DictReader(io.StringIO(as_csv(result.rows))))
    assert [float(r["mean_kl"]) for r in records] == [row.mean_kl for row in result.rows]
    lines = as_markdown(result).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[-6].count("|") == 14
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| F16", "| Q8_0", "| Q4_K_M", "| Q2_K"]
    assert size(result.rows[1].file_bytes) in lines[3]
    assert nats(result.rows[1].mean_kl) in lines[3]


def test_what_was_left_out_has_no_column(base: Path, cache: Path) -> None:
    bare = lab.compare(
        base, formats=["Q8_0"], text=TEXT, cache=cache, **QUICK | {"rounds": 0, "loop_tokens": 0}
    )
    assert (bare.rows[0].decode_tps, bare.rows[0].greedy_loop_rate, bare.speeds, bare.loops) == (
        None,
        None,
        (),
        (),
    )
    table = as_markdown(bare)
    assert "tok/s" not in table
    assert "loops" not in table
    assert json.loads(as_json(bare))["models"][0]["load_seconds"] is None
    assert as_html(bare).count("<svg") == 1


class Page(HTMLParser):
    """Tags that are open at the end, and everything that could point outside of the page."""

    VOID = frozenset({"meta", "line", "polyline", "path", "circle", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta"}:
            self.open.append(tag)
        self.references += [
            f"{k}={v}" for k, v in attrs if k in {"src", "href", "xlink:href", "srcset", "action"}
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_points_nowhere(result: lab.CompareResult) -> None:
    rows = (dataclasses.replace(result.rows[0], name='<b>"&'), *result.rows[1:])
    text = as_html(dataclasses.replace(result, rows=rows))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.references == []
    assert not re.search(r"https?:|url\(|@import|<script", text)
    assert "<b>" not in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 2
    for name in ("Q8_0", "Q4_K_M", "Q2_K"):
        assert text.count(f">{name}</text>") == 2
        assert f"<td>{name}</td>" in text


def flags(base: Path, cache: Path, *more: object) -> list[str]:
    quick = [
        "-c",
        "64",
        "--memory-ctx",
        "128",
        "-p",
        "20",
        "-n",
        "3",
        "-r",
        "1",
        "--loop-tokens",
        "32",
        "-t",
        "1",
    ]
    return [
        "compare", str(base), "--formats", "Q8_0,Q2_K", "-f", str(PROSE), "--windows", "2",
        "--cache", str(cache), *quick, *map(str, more),
    ]  # fmt: skip


def test_command_writes_table_page_and_picture(
    base: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install '.[lab]'")
    more = ("--html", tmp_path / "report.html", "--plot", tmp_path / "out.png", "--theme", "both")
    (tmp_path / "prompts.txt").write_text("Hello\n\n  And then\n")
    assert main(flags(base, cache, "--prompts", tmp_path / "prompts.txt", *more)) == 0
    out = capsys.readouterr()
    assert [line.split(" | ")[0] for line in out.out.splitlines()[2:5]] == ["| F16", "| Q8_0", "| Q2_K"]
    assert "- loops: share of 2 prompts whose continuation of up to 32 tokens" in out.out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out-dark.png",
        "out.png",
        "prompts.txt",
        "report.html",
    ]
    assert main(flags(base, cache, "--json", "-q")) == 0
    assert json.loads(capsys.readouterr().out)["models"][1]["format"] == "Q8_0"
    assert main(flags(base, cache, "--csv", "-q")) == 0
    assert capsys.readouterr().out.startswith("name,path,format,file_bytes,bits_per_weight,")


Refusal = tuple[Callable[[Path, Path], list[str]], int, str]
REFUSALS: dict[str, Refusal] = {
    "no base": (lambda base, tmp: ["-f", str(PROSE)], 2, "a base is needed: "),
    "nothing to compare": (lambda base, tmp: [str(base), "-f", str(PROSE)], 2, "nothing to compare: "),
    "no text": (lambda base, tmp: [str(base), "--formats", "Q8_0"], 2, "a text is needed: --file TEXT"),
    "unknown format": (
        lambda base, tmp: [str(base), "--formats", "Q8_0,Q9_K", "-f", str(PROSE)],
        2,
        "unknown type 'Q9_K', did you mean ",
    ),
    "a format twice": (
        lambda base, tmp: [str(base), "--formats", "Q4_K,q4_k_m", "-f", str(PROSE)],
        2,
        "format Q4_K_M is given twice",
    ),
    "a file twice": (
        lambda base, tmp: [str(base), str(base), "-f", str(PROSE)],
        2,
        "{base}: is given twice",
    ),
    "a missing file": (
        lambda base, tmp: [str(base), str(tmp / "none.gguf"), "-f", str(PROSE)],
        1,
        "{tmp}/none.gguf: no such file",
    ),
    "no GGUF": (
        lambda base, tmp: [str(base), str(tmp / "short.txt"), "-f", str(PROSE)],
        1,
        "{tmp}/short.txt: not a GGUF file",
    ),
    "a short text": (
        lambda base, tmp: [str(base), "--formats", "Q8_0", "-f", str(tmp / "short.txt")],
        1,
        "{tmp}/short.txt: too short: ",
    ),
    "no UTF-8": (
        lambda base, tmp: [str(base), "--formats", "Q8_0", "-f", str(tmp / "latin.txt")],
        1,
        "{tmp}/latin.txt: byte 0xe9 at 3 is not UTF-8",
    ),
    "a folder to write to": (
        lambda base, tmp: [str(base), "--formats", "Q8_0", "-f", str(PROSE), "--html", str(tmp)],
        1,
        "{tmp}: Is a directory",
    ),
    "nowhere to write to": (
        lambda base, tmp: [str(base), "--formats", "Q8_0", "-f", str(PROSE), "--html", str(tmp / "a" / "b")],
        1,
        "{tmp}/a: No such file or directory",
    ),
    "another suffix": (
        lambda base, tmp: [str(base), "--formats", "Q8_0", "-f", str(PROSE), "--plot", str(tmp / "a.gif")],
        2,
        "{tmp}/a.gif: a picture's name ends in .png, .svg, .pdf",
    ),
    "no prompts": (
        lambda base, tmp: [
            str(base),
            "--formats",
            "Q8_0",
            "-f",
            str(PROSE),
            "--prompts",
            str(tmp / "empty.txt"),
        ],
        1,
        "{tmp}/empty.txt: holds no prompts, one a line",
    ),
    "few tokens to loop in": (
        lambda base, tmp: [str(base), "--formats", "Q8_0", "-f", str(PROSE), "--loop-tokens", "8"],
        2,
        "at least 32 tokens to show a loop, got 8",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """And before anything is quantized or run."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("work was begun")

    for name in ("quantized", "speeds", "divergence", "load"):
        monkeypatch.setattr(comparison, name, refuse)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "empty.txt").write_text("\n \n")
    make, status, says = REFUSALS[case]
    if "suffix" in case:
        pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install '.[lab]'")
    assert main(["compare", *make(base, tmp_path), "-c", "64", "-q"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gristmill: error: ")
    assert captured.err.count("\n") == 1
    assert says.format(base=base, tmp=tmp_path) in captured.err


def test_another_vocabulary_and_a_quantized_base(base: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    other = tiny_model(n_vocab=352, formats="F16")
    with pytest.raises(Error, match=r"cannot be compared with .*, since the vocabularies differ: it has 352"):
        lab.compare(base, [other], text=TEXT, **QUICK)
    quantized_base = tiny_model(formats="Q8_0", seed=3)
    with pytest.raises(UnsupportedModelError, match="--requantize"):
        lab.compare(quantized_base, formats=["Q4_0"], text=TEXT, cache=tmp_path, **QUICK)
    with pytest.raises(ArgumentError, match="nothing to compare"):
        lab.compare(base, text=TEXT)


def test_matplotlib_missing_is_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", str(base), "--formats", "Q8_0", "-f", str(PROSE), "--plot", "x.png"]) == 1
    assert capsys.readouterr().err == (
        "gristmill: error: pictures need matplotlib, which is not installed: pip install matplotlib "
        '(or gristmill with its extra, ".[lab]"); --html needs nothing\n'
    )


def test_ctrl_c_leaves_nothing_half_made(base: Path, tmp_path: Path) -> None:
    """Status 130, one line, the cache whole, no report."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 4)
    words = [
        *flags(base, tmp_path / "cache", "--html", tmp_path / "report.html"),
        "--file", str(text), "--windows", "-1", "-r", "500",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "gristmill", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[speed: "):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert re.fullmatch(
        r"\[interrupted at speed: .*, \d+ of 1500; quantized files stay in the cache\]", err.splitlines()[-1]
    )
    assert "Traceback" not in err
    assert not (tmp_path / "report.html").exists()
    kept = sorted(p.name for p in (tmp_path / "cache").rglob("*.gguf"))
    assert len(kept) == 2
    assert not list(tmp_path.rglob("*partial*"))
