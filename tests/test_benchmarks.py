"""What the benchmark scripts share: results that are not lost, a list of them all, their examples."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import json
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import common
import methods
import transfer

from caltune.formats import write_scores
from caltune.types import OptionLogits

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(BENCHMARKS.glob("*.py"))}
SCRIPTS = [name for name, text in TEXTS.items() if "\ndef main(" in text]
LINES = (BENCHMARKS / "README.md").read_text(encoding="utf-8").splitlines()
ROWS = {
    found[1]: line.split("|")[1:-1] for line in LINES if (found := re.match(r"\| \[(\w+)\.py\]\(\1\.py\) \|", line))
}


def parts_of(name: str) -> list[str]:
    """The parts that a script gives to `common.parse`, which stand there or in a constant."""
    tree = ast.parse(TEXTS[name])
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "common.parse":
            given = [*node.args[2:3], *(keyword.value for keyword in node.keywords if keyword.arg == "parts")]
            return [part for one in given for part in ast.literal_eval(constants.get(ast.unparse(one), one))]
    return []


def test_parts_are_found_wherever_they_stand():
    assert parts_of("transfer") == ["world-facts", "arc", "obqa"]  # in the call
    assert parts_of("recalibration") == ["score", "fit"]  # by place
    assert parts_of("baselines") == ["losses", "predictors"]  # in a constant
    assert parts_of("frontier") == parts_of("regime") == []


def test_every_benchmark_is_listed_with_its_parts_and_minutes():
    assert sorted(ROWS) == SCRIPTS
    for name, (_, parts, shows, minutes, _) in ROWS.items():
        assert re.findall(r"`([^`]+)`", parts) == parts_of(name), name
        assert shows.strip(), name
        assert re.search(r"\d", minutes), name


def test_every_result_is_listed():
    listed = {name for row in ROWS.values() for name in re.findall(r"`([\w-]+\.json)`", row[-1])}
    assert {path.name for path in BENCHMARKS.glob("results/*.json")} <= listed


def test_one_process_does_what_is_not_shared():
    [alone] = re.findall(r"^ALONE := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    unshared = [name for name in SCRIPTS if not re.search(r"\b(common\.work|transfer\.run_part)\(", TEXTS[name])]
    assert sorted(alone.split()) == unshared
    assert [name for name in SCRIPTS if "alone" in ROWS[name][3]] == unshared


def test_nothing_is_published_before_all_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "HERE", tmp_path)
    data = {"train": [], "fit": [], "test": []}
    settings = {**transfer.SETTINGS, "seeds": [0]}
    transfer.run_part("some", settings, tmp_path, data, Namespace(minutes=0, quick=False), transfer.METHODS)
    runs = 1 + len(transfer.METHODS)
    assert capsys.readouterr().out.startswith(f"{runs} or more runs are left, some-zero-shot first;")
    assert list(tmp_path.iterdir()) == []


def test_what_is_published_loses_no_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "HERE", tmp_path)
    folder = tmp_path / "scores"
    for path in (folder, tmp_path / "results"):
        path.mkdir()

    def publish(seeds: list[int], quick: bool = False) -> Path:
        return common.publish("some", folder, quick=quick, document={"settings": {"seeds": seeds}})

    published = tmp_path / "results" / "some.json"
    assert publish([0]) == published  # where there is none, one seed is better than nothing
    assert publish([0, 1]) == published
    assert capsys.readouterr().out == ""
    for seeds in ([0], [1, 2, 3]):
        assert publish(seeds) == folder / "some.json"
        assert json.loads((folder / "some.json").read_text(encoding="utf-8"))["settings"]["seeds"] == seeds
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{published} has seeds [1], which these results lack: it is left as it is")
    assert told[1].startswith(f"{published} has seeds [0], which")
    assert json.loads(published.read_text(encoding="utf-8"))["settings"]["seeds"] == [0, 1]
    assert publish([0, 1, 2], quick=True) == folder / "some.json"
    assert publish([0, 1, 2]) == published
    # Results without seeds are written over.
    for document in ({"rows": []}, {"rows": [1]}, {"rows": [1], "settings": {"arc": {}}}):
        assert common.publish("other", folder, quick=False, document=document).parent == published.parent


ROW = {"mean": {"nll": {"value": 1.0}}}
WITH_ROWS = {"settings": {"model": "small", "seeds": [0]}, "rows": {"sft": ROW, "tempered": ROW}}
BETTER = {"mean": {"nll": {"value": 0.5}}}
WITH_TARGETS = {"targets": {"arc": {"questions": 9, "rows": {"sft": ROW, "tempered": ROW}}, "obqa": {"rows": {}}}}
WITH_SIZES = {"sizes": {40: {"sft": ROW, "tempered": ROW}, 80: {"sft": ROW}}}


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (WITH_ROWS, {**WITH_ROWS, "rows": {"sft": ROW}}, "rows/tempered"),
        (WITH_ROWS, {**WITH_ROWS, "settings": {"model": "other", "seeds": [0]}}, "model small"),
        (WITH_ROWS, {**WITH_ROWS, "rows": {"sft": BETTER, "tempered": ROW, "new": ROW}}, None),
        (WITH_TARGETS, {"targets": {**WITH_TARGETS["targets"], "arc": {"questions": 9, "rows": {"sft": ROW}}}},
         "targets/arc/rows/tempered"),
        (WITH_TARGETS, {"targets": {"arc": WITH_TARGETS["targets"]["arc"]}}, "targets/obqa"),
        (WITH_TARGETS, {"targets": {**WITH_TARGETS["targets"], "mmlu": {"rows": {}}}}, None),
        (WITH_SIZES, {"sizes": {40: {"sft": ROW}, 80: {"sft": ROW}}}, "sizes/40/tempered"),
        (WITH_SIZES, WITH_SIZES, None),
        ({"device": "cpu", "series": {"options": 1}}, {"device": "cuda", "series": {}}, "device cpu, series/options"),
        ({"rows": dict.fromkeys("abcdefg", ROW)}, {}, "rows"),
        ({"rows": dict.fromkeys("abcdefg", ROW)}, {"rows": {}},
         "rows/a, rows/b, rows/c, rows/d, rows/e and 2 more"),
    ],
)  # fmt: skip
def test_what_is_published_loses_no_row_and_no_model(before, after, lost, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "HERE", tmp_path)
    folder, results = tmp_path / "scores", tmp_path / "results"
    folder.mkdir()
    results.mkdir()
    assert common.publish("some", folder, quick=False, document=before) == results / "some.json"
    text = (results / "some.json").read_text(encoding="utf-8")
    target = common.publish("some", folder, quick=False, document=after)
    if lost is None:
        assert target == results / "some.json"
        assert capsys.readouterr().out == ""
    else:
        assert target == folder / "some.json"
        assert (results / "some.json").read_text(encoding="utf-8") == text
        assert f"some.json has {lost}, which these results lack" in capsys.readouterr().out
        (results / "some.json").unlink()  # as that line says
        assert common.publish("some", folder, quick=False, document=after) == results / "some.json"


def test_rows_beside_the_baselines_are_made_as_the_methods_make_them(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(
        "other_losses", BENCHMARKS / "baselines.py"
    )  # tests/ has that name, too
    spec.loader.exec_module(baselines := importlib.util.module_from_spec(spec))
    settings = {**methods.SETTINGS, "seeds": [0, 1]}
    scores = OptionLogits(("a",), [[1.0, 0.0]], [0])
    row = "cogcalib-label-smoothing"

    def make(name: str, strength: dict[str, Any], seed: int) -> None:
        made = methods.made_with(settings, name, strength, "train", seed)
        write_scores(tmp_path / f"{name}-{seed}.parquet", scores, {"made_with": made})

    assert baselines.beside(settings, tmp_path) == []
    for seed in (0, 1):
        make(row, {"smoothing": 0.2}, seed)
    assert capsys.readouterr().out == ""
    assert baselines.beside(settings, tmp_path) == []
    assert capsys.readouterr().out == f"{row} is left out: {tmp_path}: lacks the runs that its strength was chosen on\n"
    for strength in methods.METHODS[row][2]:  # all alike, so the first of the grid is chosen, 0.1
        write_scores(methods.choice_path(tmp_path, row, strength), scores, {})
    assert baselines.beside(settings, tmp_path) == []
    assert "'smoothing': 0.2}, not with" in capsys.readouterr().out
    for seed in (0, 1):
        make(row, {"smoothing": 0.1}, seed)
        make("tempered", {}, seed)
    assert baselines.beside(settings, tmp_path) == [row, "tempered"]
    make("tempered", {}, 1)
    assert baselines.beside({**settings, "train": 300}, tmp_path) == []


def test_flags_are_those_that_a_script_heeds(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["some.py", "--help"])
    for alone in (False, True):
        with pytest.raises(SystemExit):
            common.parse("Some script.", "some", alone=alone)
        told = capsys.readouterr().out
        assert [flag in told for flag in ("--minutes", "--seeds")] == [not alone] * 2
    settings, quick = {"train": 600, "seeds": [0, 1, 2]}, {"train": 16, "seeds": [0]}
    for flags, expected in (
        (Namespace(quick=False, seeds=None), settings),
        (Namespace(quick=True, seeds=None), quick),
        (Namespace(quick=True, seeds=[1, 2]), {"train": 16, "seeds": [1, 2]}),
        (Namespace(quick=False, seeds=[5]), {"train": 600, "seeds": [5]}),
    ):
        assert common.settings_for(flags, settings, quick) == expected


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "    >>> " in text])
def test_examples_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
