"""docs/papers.md names every loss, config and trainer, and our figures beside the papers' are the benchmarks'."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from caltune import knowledge, losses, methods
from caltune.methods import accuracy_curve, mixup, rcft

ROOT = Path(__file__).parents[1]
SECTIONS = {
    part.partition("\n")[0]: part for part in (ROOT / "docs/papers.md").read_text(encoding="utf-8").split("\n## ")[1:]
}
TABLES = SECTIONS["Theirs and ours"]
METRICS = {"ECE": "ece", "classwise ECE": "classwise_ece", "accuracy": "accuracy"}
TRANSFER = ("transfer-world-facts", "held-out relations")
SECOND = ("second-family-openbookqa", "openbookqa")
COGCALIB = ["sft", "sft + temperature", "cogcalib-label-smoothing", "cogcalib-margin", "cogcalib-entropy"]
# "*ours*, …: metric" -> file in benchmarks/results, its target where it has several, and its row behind each cell.
OURS: dict[str, tuple[tuple[str, str | None], list[str | None]]] = {
    "after DPO": (("alignment", None), ["aligned", "aligned + temperature", None, "cft", "rcft-5"]),
    "as it comes": (("methods", None), ["zero-shot", None, None, "sft", "rcft-held-out"]),
    "as it comes, bins of training questions": (("methods", None), ["zero-shot", None, None, "sft", "rcft-train"]),
    "other relations": (TRANSFER, ["zero-shot", None, None, "sft", "rcft-held-out"]),
    "Qwen2.5-Coder-0.5B, OpenBookQA": (SECOND, ["zero-shot", None, None, "sft", "rcft-held-out"]),
    "`world-facts`": (("methods", None), COGCALIB),
    "OpenBookQA, Qwen2.5-Coder-0.5B": (SECOND, [*COGCALIB[:3], None, None]),
    "`world-facts`, on `tempered`": (
        ("methods", None),
        ["tempered", "tempered + temperature", "tempered-cogcalib", None, None],
    ),
    "`world-facts` → other relations": (TRANSFER, COGCALIB),
    "OpenBookQA": (("transfer-obqa", "OpenBookQA"), COGCALIB),
    "ARC-E → ARC-E": (("transfer-arc", "ARC-Easy"), COGCALIB),
    "ARC-E → ARC-C": (("transfer-arc", "ARC-Challenge"), COGCALIB),
    **{
        f"OpenBookQA → MMLU {field}": (("transfer-obqa", f"MMLU {field}"), COGCALIB)
        for field in ("business", "culture", "history", "psychology")
    },
    "`world-facts` → other relations, on `tempered`": (TRANSFER, ["tempered", None, "tempered-cogcalib", None, None]),
}
BASELINES = {
    "plain fine-tuning": "sft",
    "label smoothing": "label-smoothing",
    "Brier": "brier",
    "DECE": "dece",
    **{name: name for name in ("margin", "entropy", "focal")},
}
# The figures of three decimals in a claim's last cell.
CLAIMS = {
    "the answer loss alone": [("frontier", "sft", "accuracy"), ("frontier", "sft", "ece")],
    "the calibration loss alone": [("frontier", "lambda 10000", "accuracy"), ("frontier", "lambda 10000", "ece")],
    "[known : unknown]": [("known_unknown", mix, "ece") for mix in ("0:5", "5:0", "2:3")],
    "[deleting known questions]": [("cogcalib", row, "accuracy") for row in ("known-deleted", "as-many-deleted")],
}


def published(file: str, target: str | None, row: str, metric: str) -> float:
    found = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text(encoding="utf-8"))
    rows = found["targets"][target]["rows"] if target else found["rows"]
    return rows[row]["mean"][metric]["value"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def same(shown: str, value: float) -> bool:
    """Whether a figure of three decimals is a value, rounded."""
    return re.fullmatch(r"0\.\d{3}", shown) is not None and abs(float(shown) - value) < 0.000501


def test_our_figures_are_those_of_the_benchmarks() -> None:
    seen = set()
    for name, *shown in (cells(line.replace("*ours*, ", "")) for line in TABLES.splitlines() if "*ours*, " in line):
        setting, _, metric = name.rpartition(": ")
        source, rows = OURS[setting]
        for cell, row in zip(shown, rows, strict=True):
            assert cell == "–" if row is None else same(cell, published(*source, row, METRICS[metric])), (name, row)
        seen.add(setting)
    assert seen == set(OURS)


def test_our_figures_of_baselines_are_those_of_the_benchmark() -> None:
    rows = [cells(line) for line in TABLES.splitlines() if line.startswith("| ")]
    shown = {name: figures for name, _, *figures in rows if name in BASELINES}
    assert shown.keys() == BASELINES.keys()
    for name, figures in shown.items():
        for cell, metric in zip(figures, METRICS.values(), strict=True):
            assert same(cell, published("baselines", None, BASELINES[name], metric)), (name, metric)


@pytest.mark.parametrize("claim", CLAIMS)
def test_our_figures_of_claims_are_those_of_the_benchmarks(claim: str) -> None:
    (line,) = (line for line in TABLES.splitlines() if line.startswith(f"| {claim}"))
    shown = re.findall(r"0\.\d{3}", cells(line)[-1])
    for figure, (file, row, metric) in zip(shown, CLAIMS[claim], strict=True):
        assert same(figure, published(file, None, row, metric)), (row, metric)


def public_functions(module: ModuleType) -> list[str]:
    here = inspect.getmembers(module, lambda found: inspect.isfunction(found) and found.__module__ == module.__name__)
    return [name for name, _ in here if not name.startswith("_")]


@pytest.mark.parametrize("module", [losses, accuracy_curve, mixup, rcft], ids=lambda module: module.__name__)
def test_functions_are_named(module: ModuleType) -> None:
    names = public_functions(module)
    assert names
    text = "\n".join(SECTIONS.values())
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_detector_is_named_with_its_method() -> None:
    assert knowledge.fit_detector.__name__ in SECTIONS["CogCalib: `cogcalib`"]


@pytest.mark.parametrize("name", [name.removesuffix("Trainer") for name in methods.__all__ if name.endswith("Trainer")])
def test_every_method_is_shown_in_python_and_as_a_command(name: str) -> None:
    (shown,) = (part for part in SECTIONS.values() if re.search(rf"^trainer = {name}Trainer\(", part, re.MULTILINE))
    heading = shown.partition("\n")[0]
    verb = re.fullmatch(r".*`([a-z-]+)`", heading)
    assert verb is not None
    assert f"args = {name}Config(" in shown
    assert f"caltune train {verb[1]} " in shown
