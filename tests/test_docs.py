"""Every example in the documentation runs, every command parses, every link, field and key that is named exists."""

from __future__ import annotations

import argparse
import ast
import csv
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
from files import scores_file

from caltune.cli import METHODS, _parser, main
from caltune.data import PRESETS
from caltune.data.fields import CONVENTIONS
from caltune.types import Question

pytestmark = [
    # TRL sets what transformers has renamed since; torch on a machine without an accelerator.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]
PAPERS, GUIDE, FORMATS = (ROOT / "docs" / f"{name}.md" for name in ("papers", "guide", "formats"))
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line of its first line, text) of each fenced block in a language."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in FENCE.finditer(text) if match["language"] == language]
    return [(text[: match.start("body")].count("\n") + 1, match["body"]) for match in found]


def section(page: Path, heading: str) -> str:
    """The text from a heading of the second level to the next."""
    (found,) = (part for part in page.read_text(encoding="utf-8").split("\n## ") if part.startswith(heading))
    return found


def commands(text: str) -> list[list[str]]:
    """The `caltune …` lines of fenced and indented blocks, as words without the first."""
    joined = text.replace("\\\n", " ")
    fenced = "\n".join(match["body"] for match in FENCE.finditer(joined))
    indented = re.findall(r"^    .*$", FENCE.sub("", joined), re.MULTILINE)
    lines = (line.strip().removeprefix("$ ") for line in [*fenced.splitlines(), *indented])
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("caltune ")]


def rows(text: str) -> Iterator[list[str]]:
    """The rows of a section's tables, as cells."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def keys(document: Any, path: str = "") -> set[str]:
    """Where values stand in a JSON document, as in "metrics/ece/low"."""
    if not isinstance(document, dict):
        return {path}
    return {deeper for key, value in document.items() for deeper in keys(value, f"{path}/{key}")}


ALL_COMMANDS = [(page.name, words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Sixty questions with four options, of which the tiny model knows two in three."""
    from tiny import CAPITALS, tiny_model, tiny_tokenizer

    from caltune.scoring import score

    cities = list(CAPITALS.values())
    asked = [
        Question(
            id=f"q{i}",
            text=f"What is the capital of {country}? ({i})",
            options=tuple(cities[(i + j) % len(cities)] for j in range(4)),
            answer=0,
            group="geography",
        )
        for i, country in enumerate(list(CAPITALS) * 5)
    ]
    choices = score(tiny_model(), tiny_tokenizer(), asked).logits.argmax(axis=1)
    return [
        replace(q, answer=(int(best) + (i % 3 == 0)) % 4)
        for i, (q, best) in enumerate(zip(asked, choices, strict=True))
    ]


@pytest.fixture
def place(questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the `exam.csv` of the guide, grown to sixty rows; the working directory."""
    ((_, shown),) = blocks(GUIDE, "csv")
    header = shown.splitlines()[0]
    assert header == "id,question,option_a,option_b,option_c,option_d,answer,subject"
    with (tmp_path / "exam.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows([q.id, q.text, *q.options, "ABCD"[q.answer or 0], q.group] for q in questions)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "words"), ALL_COMMANDS, ids=[f"{page}: {' '.join(w)}"[:70] for page, w in ALL_COMMANDS]
)
def test_command_parses(page: str, words: list[str]) -> None:
    flags = {word.partition("=")[0] for word in words[1:] if re.match("--?[a-z]", word)}
    if words[0] != "train":
        parser = _parser()
        parser.parse_args(words)
        (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert flags <= verbs.choices[words[0]]._option_string_actions.keys()  # argparse takes abbreviations too
        return
    from caltune.training import TrainArguments, parse

    settings, args, source, _ = parse(METHODS[words[1]], words[2:], prog="caltune train")
    assert source == words[2]
    assert settings.model
    assert args.output_dir
    known = {"field", "config"} | {f.name for config in (TrainArguments, type(args)) for f in fields(config)}
    assert {flag.lstrip("-").replace("-", "_") for flag in flags} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_seen_by_these_tests(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    assert 2 * len(found) == text.count("```")  # none is indented or left open
    assert {match["language"] for match in found} <= {"python", "sh", "json", "csv", ""}
    told = "\n".join(match["body"] for match in found if match["language"] in ("sh", ""))
    for line in filter(None, told.replace("\\\n", " ").splitlines()):
        assert line.lstrip("$ ").split()[0] in ("caltune", "make", "lm_eval", "accelerate"), line
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"^(?:    )?make ([\w-]+)", text, re.MULTILINE)) <= set(targets)


def test_commands_are_found() -> None:
    text = "```sh\ncaltune a b \\\n  --c 'd e'  # why\n```\nand `caltune f` and\n\n    $ caltune g\n    other h\n"
    assert commands(text) == [["a", "b", "--c", "d e"], ["g"]]
    verbs = {words[0] for _, words in ALL_COMMANDS}
    assert verbs >= {"data", "score", "train", "evaluate", "recalibrate", "compare", "report"}
    assert {words[1] for _, words in ALL_COMMANDS if words[0] == "train"} == set(METHODS)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, place: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace; each finds a fresh tiny model under `model`, and a loaded model is the tiny one."""
    from tiny import tiny_model, tiny_tokenizer

    from caltune import models, starting
    from caltune.formats import write_scores
    from caltune.scoring import score

    for module in (models, starting):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: (tiny_model(), tiny_tokenizer()))
    write_scores("scores.parquet", score(tiny_model(), tiny_tokenizer(), questions[:5]), {"model": "tiny"})
    names: dict[str, Any] = {"__name__": "example"}
    for line, body in blocks(page, "python"):
        names |= {"model": tiny_model(), "tokenizer": tiny_tokenizer()}
        names |= {"train": questions[:40], "calibration": questions[40:50], "test": questions[50:]}
        exec(compile("\n" * (line - 1) + body, page, "exec"), names)


def test_worked_example_runs_from_the_command_line(place: Path) -> None:
    from tiny import tiny_model, tiny_tokenizer

    from caltune.formats import read_scores

    tiny_model().save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    for words in commands(section(GUIDE, "A worked example")):
        assert main(["tiny" if word == "smollm2" else word for word in words]) == 0
    assert "cogcalib" in (place / "report.html").read_text(encoding="utf-8")

    # What docs/formats.md says of these files.
    in_tables = {cells[0].strip("`") for cells in rows(section(FORMATS, "The scores file"))}
    written = read_scores("sft-temperature.parquet").metadata | read_scores("sft.parquet").metadata
    assert in_tables - {"id", "logits", "label", "group", "features", "exemplars"} == set(written)  # no --shots here
    examples = [json.loads(body) for _, body in blocks(FORMATS, "json")[1:]]
    shown_metrics, shown_comparison = examples
    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    assert keys(shown_metrics["test.parquet"]) == keys(metrics["cogcalib.parquet"])
    comparison = json.loads(Path("comparison.json").read_text(encoding="utf-8"))
    assert comparison["metrics"].keys() == metrics["sft.parquet"]["metrics"].keys()
    assert keys(shown_comparison) == keys(comparison | {"metrics": {"nll": comparison["metrics"]["nll"]}})


def test_what_needs_scores_alone_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the first pages that take scores files and no model."""
    monkeypatch.chdir(tmp_path)
    for name, first in (("before", 0), ("after", 0), ("sft", 0), ("test", 0), ("cal", 100), ("sft-calibration", 100)):
        scores_file(tmp_path / "tuned", 40, first=first).rename(f"{name}.parquet")  # all by one model
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/quickstart.md")]
    texts += [section(GUIDE, heading) for heading in ("Which method when", "When not to answer")]
    light = {"advise", "apply-threshold", "compare", "evaluate", "recalibrate", "report", "threshold"}
    ran = [words for text in texts for words in commands(text) if words[0] in light and "exam.csv" not in words]
    assert {words[0] for words in ran} == light
    for words in ran:
        assert main(words) == 0, words


def test_recipe_from_the_harness_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "runs" / "my-model"
    folder.mkdir(parents=True)
    chosen = [
        {"doc_id": i, "target": str(i % 3 // 2), "resps": [[["-1.5", "True"]], [["-2.5", "False"]]]} for i in range(60)
    ]
    texts = [["7"] * (5 + i % 6) + ["so 8"] * (5 - i % 6) for i in range(60)]
    said = [{"resps": [one], "filtered_resps": ["7"], "exact_match": i % 4 // 3} for i, one in enumerate(texts)]
    written = [{"doc_id": i, "filter": name, **row} for name in ("first", "maj@10") for i, row in enumerate(said)]
    for path, rows_ in ((folder / "samples_arc_easy.jsonl", chosen), (place / "samples_gsm8k.jsonl", written)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_), encoding="utf-8")
    (place / "theirs.csv").write_text("score,is_right\n" + "0.8,1\n0.6,0\n" * 30, encoding="utf-8")
    for words in commands(section(GUIDE, "From the harness")):
        expanded = [
            found for word in words for found in (map(str, sorted(Path().glob(word))) if "*" in word else [word])
        ]
        assert main(expanded) == 0, capsys.readouterr().err
    assert (place / "harness.html").is_file()


def test_recipe_into_transformers_runs(
    place: Path, questions: list[Question], capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny import tiny_model, tiny_tokenizer

    from caltune.scoring import score

    tiny_model().save_pretrained("runs/sft")
    tiny_tokenizer().save_pretrained("runs/sft")
    best = score(tiny_model(), tiny_tokenizer(), questions, answers="letters").logits.argmax(axis=1)
    with (place / "exam.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "option_a", "option_b", "option_c", "option_d", "answer", "subject"])
        answers = [(int(one) + (i % 3 == 0)) % 4 for i, one in enumerate(best)]
        writer.writerows(
            [q.id, q.text, *q.options, "ABCD"[answer], q.group] for q, answer in zip(questions, answers, strict=True)
        )
    for words in commands(section(GUIDE, "Into transformers")):
        assert main(words) == 0, capsys.readouterr().err
    assert {"decision.json", "decision_template.jinja"} <= {path.name for path in Path("runs/sft").iterdir()}


def test_theirs_is_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, (_, body) = blocks(FORMATS, "python")
    exec("import numpy as np\n" + body, {})
    assert main(["evaluate", "theirs.parquet"]) == 0
    assert re.search(r"^accuracy +0\.5000", capsys.readouterr().out, re.MULTILINE)  # q1 right, q2 wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    assert links or page.name == "CONTRIBUTING.md"
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings.

    >>> anchors(GUIDE) >= {"the-same-in-python"}
    True
    """
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_papers_name_every_field_with_its_default() -> None:
    from trl import SFTConfig

    from caltune import CalibrationConfig, methods

    parents: dict[str, tuple[type, type]] = {"What all trainers share": (CalibrationConfig, SFTConfig)}
    for name, prefix in METHODS.items():
        (heading,) = re.findall(rf"^## (.*`{name}`)$", PAPERS.read_text(encoding="utf-8"), re.MULTILINE)
        parents[heading] = (getattr(methods, f"{prefix}Config"), CalibrationConfig)
    for heading, (config, parent) in parents.items():
        inherited = {f.name: f.default for f in fields(parent)}
        own = {f.name: f.default for f in fields(config) if f.default != inherited.get(f.name, MISSING)}
        shown = {cells[0].strip("`"): ast.literal_eval(cells[1].strip("`")) for cells in rows(section(PAPERS, heading))}
        assert shown == own, heading


def test_papers_name_only_what_exists() -> None:
    from caltune import methods
    from caltune.training import TrainArguments

    configs = [getattr(methods, f"{prefix}Config") for prefix in METHODS.values()]
    known = {f.name for config in (*configs, TrainArguments) for f in fields(config)}
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("src/**/*.py"))
    text = FENCE.sub("", PAPERS.read_text(encoding="utf-8"))
    named = re.findall(r"`([a-z]\w*)`|`([a-z]\w*)=([^`]+)`", text)
    assert len(named) > 30
    for word, name, value in named:
        if name:
            owners = [config for config in configs if name in {f.name for f in fields(config)}]
            assert owners, name
            owners[0]("somewhere", **{name: ast.literal_eval(value)})  # raises for a value that is not allowed
        elif word not in known and word != "mixed":
            assert re.search(rf"\b{word}\b", source), word


def test_tables_of_formats_are_those_of_the_code() -> None:
    presets = {cells[0].strip("`"): cells[1:] for cells in rows(section(FORMATS, "Presets"))}
    assert presets.keys() == PRESETS.keys()
    for name, (hub, splits) in presets.items():
        preset = PRESETS[name]
        assert hub.strip("`") == preset.hub_id + (f":{preset.config}" if preset.config else "")
        assert splits == ", ".join(ours if ours == own else f"{ours} from {own}" for ours, own in preset.splits.items())
    conventions = {
        cells[0].strip("`"): re.findall(r"`(\w+)`", cells[1]) for cells in rows(section(FORMATS, "Questions"))
    }
    assert {field: tuple(map(str.lower, names)) for field, names in conventions.items()} == CONVENTIONS
