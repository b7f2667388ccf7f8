"""Hooks of MkDocs: which pages the documentation site has, and where their links lead.

The Markdown files of the repository are the pages, at the same places, so that links between them work here as they do
there. docs/papers.md becomes one page a section, with the reference of the method's module below. What a page links to
comes along: Python files and notebooks as a page, anything else as it is.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
PAPERS = "docs/papers.md"
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """List the pages of the methods under the paper index."""
    (methods,) = (entry["Methods"] for entry in config.nav if "Methods" in entry)
    methods += [{title: place} for place, (title, _) in paper_pages().items() if place != PAPERS]
    return config


def on_files(files: Files, config: Any) -> Files:
    """The pages, and what they link to, in place of what lies in docs/."""
    found = Files([file for file in files if file.src_dir != config.docs_dir])
    pages = {path.name: path.name for path in ROOT.glob("*.md")}
    pages |= {str(path.relative_to(ROOT)): str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")}
    texts = {place: (origin, (ROOT / origin).read_text(encoding="utf-8")) for place, origin in pages.items()}
    texts |= {place: (PAPERS, text) for place, (_, text) in paper_pages().items()}
    others = {"docs/site.css"}
    while texts:
        place, (origin, text) = texts.popitem()
        text, linked = relink(text, origin, place)
        if place == "docs/gallery.md":
            text += more_figures(linked)
        found.append(File.generated(config, place, content=text))
        for target in sorted(linked - others):
            others.add(target)
            if target.endswith(".py"):
                found.append(File.generated(config, page_of(target), content=shown(ROOT / target)))
            elif target.endswith(".ipynb"):
                texts[page_of(target)] = (target, shown(ROOT / target))
            elif not target.endswith(".md"):
                found.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
            elif not found.get_file_from_path(target) and target not in texts:
                texts[target] = (target, (ROOT / target).read_text(encoding="utf-8"))
    found.append(File.generated(config, "docs/site.css", abs_src_path=str(ROOT / "docs/site.css")))
    return found


def page_of(target: str) -> str:
    """Where a file is shown: Python and notebooks as a page, anything else as it is."""
    return f"{target}.md" if target.endswith((".py", ".ipynb")) else target


def shown(path: Path) -> str:
    """A Python file or a notebook with its outputs as Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return f"# `{path.relative_to(ROOT)}`\n\n````python\n{text}\n````\n"
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", ())})
            plain = f"```text\n{''.join(data.get('text/plain', ()))}\n```"
            html = "".join(data.get("text/html", ()))
            parts.append(f'<div class="output">{html}</div>' if html else plain)
    return "\n\n".join(parts) + "\n"


def more_figures(linked: set[str]) -> str:
    """The figures of benchmarks that the gallery does not show by itself; adds them to what is linked."""
    text = ""
    for path in sorted(ROOT.glob("benchmarks/results/*.png")):
        name = f"benchmarks/results/{path.name}"
        if name not in linked:
            linked.add(name)
            text += f"\n## {path.stem.replace('_', ' ').capitalize()}\n\n![{path.stem}](../{name})\n"
    return text


def paper_pages() -> dict[str, tuple[str, str]]:
    """Title and text of each page that docs/papers.md becomes, by the page's place."""
    start, first, *sections = re.split(r"^## ", (ROOT / PAPERS).read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = {}
    for section in sections:
        heading, _, body = section.partition("\n")
        title = heading.partition(":")[0]
        text = f"# {heading}\n" + re.sub(r"^##(#+ )", r"#\1", body, flags=re.MULTILINE)
        module = re.sub(r"\W", "_", "".join(re.findall(r"`([\w-]+)`$", heading)))
        if module and (ROOT / f"src/caltune/methods/{module}.py").is_file():
            text += f"\n## Reference\n\n::: caltune.methods.{module}\n    options: {{show_root_heading: false}}\n"
        pages[f"docs/methods/{slug(title)}.md"] = (title, text)
    listed = "".join(f"- [{title}]({place})\n" for place, (title, _) in pages.items())
    listed = listed.replace("(docs/", "(")  # a link from docs/papers.md
    return {PAPERS: ("Paper index", f"{start}## {first}\n## The methods\n\n{listed}"), **pages}


def relink(text: str, origin: str, place: str) -> tuple[str, set[str]]:
    """The text of a file as a page that lies elsewhere, and the files of the repository that it links to."""
    moved = {anchor: page for page, (_, body) in paper_pages().items() for anchor in anchors(body)}
    linked = set()

    def target(match: re.Match[str]) -> str:
        link, _, anchor = match[1].partition("#")
        if "://" in link or link.startswith("mailto:"):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link)) if link else origin
        if file == PAPERS and anchor:
            file = moved.get(anchor, PAPERS)
        elif (ROOT / file).is_file():
            linked.add(file)
        page = posixpath.relpath(page_of(file), posixpath.dirname(place) or ".")
        return f"]({page}{'#' + anchor if anchor else ''})"

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(target, spaced(part)) for part in parts[::2]]
    return "".join(parts), linked


def spaced(text: str) -> str:
    """The lists of a text as Python-Markdown wants them: after an empty line, and four spaces deep in another list."""
    text = re.sub(r"^([^\s#|-].*)\n(?=- |1\. )", r"\1\n\n", text, flags=re.MULTILINE)
    return re.sub(r"^ {2,3}(?=- )", "    ", text, flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a text's headings."""
    return {slug(heading) for heading in HEADING.findall(FENCE.sub("", text))}


def slug(heading: str) -> str:
    """As GitHub makes it."""
    return str(slugify(case="lower")(heading.replace("`", "").replace("\\", ""), "-"))
