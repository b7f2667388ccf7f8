"""A model card's section on calibration, and results in the form that Hugging Face reads from `.eval_results/`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from caltune import __version__
from caltune.errors import InputError
from caltune.metrics import Summary, summarise
from caltune.report.diagram import compute_diagram, describe_diagram, save_diagram
from caltune.report.table import numbers_table
from caltune.report.text import clean, number, questions
from caltune.types import OptionLogits

CARD = "README.md"
DIAGRAM = "caltune_reliability_diagram.png"  # a name that no file of a user has
BEGIN, END = "<!-- calibration, written by caltune -->", "<!-- end of calibration -->"
_BEFORE = "### Framework versions"  # of TRL's template; the section stands in front of it
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def markdown(text: object) -> str:
    r"""Untrusted text as plain Markdown on one line: no link, picture, HTML, code or table comes of it.

    >>> markdown("a|b <script>\n[x](http://y)")
    'a\\|b &lt;script&gt; \\[x\\]\\(http\\://y\\)'
    """
    line = " ".join(clean(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]()#+!|~@:$])", r"\\\1", line)
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line)  # which GitHub makes a link of


def calibration_section(scores: OptionLogits, *, told: Mapping[str, object] | None = None) -> tuple[str, Summary]:
    """The section in Markdown, without the picture's file, and the numbers in it; `told` says how they came about.

    Intervals are those of `summarise`. Raises `InputError` for a question whose answer is unknown.

    >>> scores = OptionLogits(ids=("a", "b"), logits=[[2.0, 0.0], [0.0, 1.0]], labels=[0, 0])
    >>> section, _ = calibration_section(scores, told={"data": "my_file"})
    >>> [line for line in section.splitlines() if "| Accuracy" in line or "data" in line]
    ['- data: my\\\\_file', '| Accuracy | 50.0\\xa0% | [1.3,\\xa098.7] | share right; higher is better |']
    """
    summary = summarise(scores)
    table = numbers_table(["value"], [summary], comparable=())
    lines = [
        BEGIN,
        "## Calibration",
        "",
        "How far the probability that the model puts on an answer is the share of such answers that are right, over "
        f"{questions(summary.n)}.",
        "",
        *(f"- {name}: {markdown(value)}" for name, value in (told or {}).items()),
        "",
        "| | value | 95 % interval | |",
        "| --- | ---: | --- | --- |",
        *(f"| {row.label} | {row.cells[0].value} | {row.cells[0].range} | {row.hint} |" for row in table.rows),
        "",
        f"![Reliability diagram. {describe_diagram(compute_diagram(scores.decide()))}]({DIAGRAM})",
        "",
        f"Measured with caltune {__version__}. “Noise floor” is the ECE that a perfectly calibrated model would show "
        "on as many questions.",
        END,
    ]
    return "\n".join(lines), summary


def add_section(card: str, section: str) -> str:
    """The card with the section: in the place of an older one, else in front of the versions, else at the end.

    >>> first = add_section("# A\\n\\n### Framework versions\\n", BEGIN + "1" + END)
    >>> add_section(first, BEGIN + "2" + END).split("\\n")[2:5]
    ['<!-- calibration, written by caltune -->2<!-- end of calibration -->', '', '### Framework versions']
    """
    begin, end = card.find(BEGIN), card.find(END)
    if 0 <= begin < end:
        return card[:begin] + section + card[end + len(END) :]
    place = card.find(_BEFORE)
    if place >= 0:
        return f"{card[:place]}{section}\n\n{card[place:]}"
    return f"{card.rstrip()}\n\n{section}\n"


def write_card(
    folder: str | os.PathLike[str], scores: OptionLogits, *, told: Mapping[str, object] | None = None
) -> Summary:
    """Put section and diagram into a model folder's card; without one, a short card is begun.

    Raises `InputError` for a question whose answer is unknown, or a folder that cannot be written.
    """
    path = Path(folder, CARD)
    section, summary = calibration_section(scores, told=told)
    try:
        # A user's own need not be UTF-8, and keeps its bytes.
        card = path.read_bytes().decode(errors="surrogateescape") if path.is_file() else _new_card(path.parent)
        save_diagram(path.with_name(DIAGRAM), scores.decide(), title=questions(summary.n))
        _replace(path, add_section(card, section))
    except OSError as error:
        raise InputError(f"{path}: must be a file in a folder that can be written, got {error}") from error
    return summary


def remove_section(folder: str | os.PathLike[str]) -> None:
    """Take section and diagram out of a folder's card, where they stand: they are of other weights than lie there."""
    path = Path(folder, CARD)
    path.with_name(DIAGRAM).unlink(missing_ok=True)
    card = path.read_bytes() if path.is_file() else b""  # a user's own need not be text
    begin, end = card.find(BEGIN.encode()), card.find(END.encode())
    if 0 <= begin < end:
        _replace(path, card[:begin].rstrip() + b"\n\n" + card[end + len(END.encode()) :].lstrip())


def write_eval_results(
    folder: str | os.PathLike[str], summary: Summary, *, dataset: str, task: str, day: date | None = None
) -> Path:
    """Write the accuracy as a result of a benchmark that the hub knows, ECE and NLL in its notes; return the file.

    `dataset` is a data set's hub id, `task` its name in that data set's `eval.yaml`; the value is in per cent.
    Format: https://huggingface.co/docs/hub/eval-results.

    Raises `InputError` for a `dataset` that is no hub id, an empty `task` or a folder that cannot be written.
    """
    if not HUB_ID.fullmatch(dataset):
        raise InputError(f"dataset must be a hub id (owner/name), got {dataset!r}")
    if not task.strip():
        raise InputError("task must be a name in the data set's eval.yaml, got none")
    found = summary.metrics
    notes = f"option probabilities; ECE {number(found['ece'].value)}, NLL {number(found['nll'].value)}, n {summary.n}"
    entry = [
        "- dataset:",
        f"    id: {dataset}",
        f"    task_id: {json.dumps(clean(task))}",  # a string of JSON is one of YAML
        f"  value: {round(100 * found['accuracy'].value, 2)}",
        f'  date: "{(day or date.today()).isoformat()}"',
        f'  notes: "{notes}"',
    ]
    name = re.sub(r"[^A-Za-z0-9]+", "_", f"{dataset} {task}").strip("_").lower()
    path = Path(folder, ".eval_results", f"{name}.yaml")
    try:
        path.parent.mkdir(exist_ok=True)
        _replace(path, "\n".join(entry) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written, {error}") from error
    return path


def _new_card(folder: Path) -> str:
    """Name, library and base model, in the form that the hub reads."""
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["caltune"]}
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        data["library_name"] = "peft"
        try:
            found = json.loads(adapter.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{adapter}: must be JSON, got {error}") from error
        base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
        if isinstance(base, str) and HUB_ID.fullmatch(base):
            data["base_model"] = base
    front = "\n".join(f"{name}: {json.dumps(value)}" for name, value in data.items())
    return f"---\n{front}\n---\n\n# Model card of {markdown(folder.resolve().name)}\n"


def _replace(path: Path, content: str | bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
