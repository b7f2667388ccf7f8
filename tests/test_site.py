"""The documentation site builds without a warning, loads nothing from elsewhere, and describes every public name."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_docs import PAGES, blocks

from caltune.cli import METHODS

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

site_docstrings = importlib.import_module("site_docstrings")
site_pages = importlib.import_module("site_pages")

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


def test_each_section_of_the_papers_is_a_page_and_links_find_it() -> None:
    pages = site_pages.paper_pages()
    for name in METHODS:
        (page,) = (text for title, text in pages.values() if re.search(rf"^# .*`{name}`$", text, re.MULTILINE))
        assert f"::: caltune.methods.{name.replace('-', '_')}" in page
    text, linked = site_pages.relink(
        "[a](../docs/papers.md#rcft-rcft) [b](#metrics) [c](../README.md#x) [d](methods.py) [e](https://x.example/y)\n"
        "```\n[f](../README.md)\n```\n",
        "benchmarks/x.md",
        "docs/deep/x.md",
    )
    assert text == (
        "[a](../methods/rcft.md#rcft-rcft) [b](../../benchmarks/x.md#metrics) [c](../../README.md#x)"
        " [d](../../benchmarks/methods.py.md) [e](https://x.example/y)\n```\n[f](../README.md)\n```\n"
    )
    assert linked == {"README.md", "benchmarks/methods.py"}  # benchmarks/x.md does not exist


def test_lists_are_those_that_github_shows() -> None:
    text = "Where:\n- one\n   - deep\n\n9. nine\n   - ten\n| a |\n- b\n"
    assert site_pages.spaced(text) == "Where:\n\n- one\n    - deep\n\n9. nine\n    - ten\n| a |\n- b\n"


def test_docstrings_show_examples_as_code() -> None:
    given = "A* here.\n\n    A* there\n\n>>> a = [\n...     1]\n>>> a\n[1]\n\nB."
    shown = "A\\* here.\n\n    A* there\n\n```pycon\n>>> a = [\n...     1]\n>>> a\n[1]\n```\n\nB."
    assert site_docstrings.fence(given) == shown


class Loaded(HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("rel") not in ("next", "prev", "canonical") and given.get(LOADS.get(tag, "")):
            self.found.append(given[LOADS[tag]] or "")


def exported() -> Iterator[tuple[str, str]]:
    """(package, name) of everything that a package of ours offers, and of all that the documentation imports."""
    for path in sorted((ROOT / "src" / "caltune").rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(ROOT / "src").parts)
        yield from ((package, name) for name in getattr(importlib.import_module(package), "__all__", ()))
    for page in PAGES:
        for _, body in blocks(page, "python"):
            for node in ast.walk(ast.parse(body)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "caltune":
                    yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.mark.model  # it takes some seconds
def test_the_site_is_complete_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "docs/guide.html", "docs/methods/rcft.html", "examples/quickstart.ipynb.html"} <= pages.keys()
    for name, text in pages.items():
        outside = [address for address in Loaded(text).found if re.match(r"(\w+:)?//", address)]
        assert outside == [], name
        assert "&gt;&gt;&gt;" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL), (
            name
        )  # a doctest out of its fence
    figures = {path.name for path in ROOT.glob("benchmarks/results/*.png")}
    assert figures == {name for name in figures if f"benchmarks/results/{name}" in pages["docs/gallery.html"]}
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"url\(\"?(?:https?:)?//[^)]*|@import[^;]*", styles)


@pytest.mark.model
def test_the_reference_describes_every_public_name(site: Path) -> None:
    described = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    names = {line.split()[0] for line in described.splitlines()}
    told = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/reference/*.md"))
    count = 0
    for package, name in exported():
        value = getattr(importlib.import_module(package), name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert f"{value.__module__}.{value.__name__}" in names, f"{package}.{name}"
            count += 1
        elif not inspect.ismodule(value) and name != "__version__":
            assert f"`{name}`" in told, f"{package}.{name}"
    assert count > 130
