"""The notebook among the examples runs from top to bottom on the embedded model, and holds what such a run gave."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
run_notebook = importlib.import_module("run_notebook").run_notebook

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def read() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return document


def kinds(document: dict[str, Any]) -> list[list[list[str]]]:
    """For each code cell and each of its outputs the kinds of data."""
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    return [[sorted(output.get("data", {"stream": ""})) for output in cell["outputs"]] for cell in cells]


def test_the_runner_keeps_what_is_printed_and_shown() -> None:
    class Shown:
        def _repr_html_(self) -> str:
            return "<b>x</b>"

    sources = ["a = 1\nprint(a)\na + 1", "b = [1]\n", "import builtins\nbuiltins.shown", "None"]
    cells = [{"cell_type": "code", "source": text.splitlines(keepends=True)} for text in sources]
    import builtins

    builtins.shown = Shown()  # type: ignore[attr-defined]
    try:
        done = run_notebook({"cells": [{"cell_type": "markdown", "source": ["# A"]}, *cells]})
    finally:
        del builtins.shown  # type: ignore[attr-defined]
    first, second, third, fourth = (cell["outputs"] for cell in done["cells"][1:])
    assert [one.get("text", one.get("data")) for one in first] == [["1\n"], {"text/plain": ["2"]}]
    assert (second, fourth) == ([], [])
    assert third[0]["data"] == {"text/html": ["<b>x</b>"], "text/plain": ["<Shown>"]}
    with pytest.raises(ZeroDivisionError):
        run_notebook({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]})


def test_its_outputs_are_kept_and_tell_nothing_of_a_machine() -> None:
    document = read()
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        ast.parse("".join(cell["source"]))
        assert cell["execution_count"] == number
        assert cell["outputs"], cell["source"]
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text.count('"text/html"') >= 8
    assert text.count("data:image/svg+xml") >= 3
    assert not re.search(r"/(home|root|tmp|work|usr|var)/|Traceback|Warning|[A-Z]:\\\\", text)
    assert len(text) < 200_000


@pytest.mark.model
@pytest.mark.filterwarnings("default")  # a reader's notebook does not turn warnings into errors
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_notebook(read())
    assert kinds(done) == kinds(read())
    assert (tmp_path / "report.html").is_file()
    *_, ranked, written = (cell["outputs"][-1]["data"] for cell in done["cells"] if cell["cell_type"] == "code")
    first, *_ = re.findall(r'<th scope="row"[^>]*>([^<]+)</th>', "".join(ranked["text/html"]))
    assert first != "before"
    assert written["text/plain"] == ["'report.html'"]
