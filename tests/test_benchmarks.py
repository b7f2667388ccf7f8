"""What the benchmark scripts share: runs in parts, results that are not lost, a list of them all, their examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import common
import sharing
import transfer

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


def some_jobs(folder: Path, names: str, done: list[str]) -> Any:
    """`ready` for a file a letter; each job notes its name."""

    def do(path: Path) -> None:
        done.append(path.stem)
        path.write_text("done", encoding="utf-8")

    paths = [folder / f"{name}.txt" for name in names]
    return lambda: {path: lambda path=path: do(path) for path in paths if not path.exists()}


def test_the_same_command_goes_on_where_the_limit_stopped_it(tmp_path, monkeypatch, capsys):
    done: list[str] = []
    ready = some_jobs(tmp_path, "abcde", done)
    clock = iter(range(0, 10_000, 20))  # each look at the clock is 20 s later
    monkeypatch.setattr(sharing, "STARTED", 0.0)
    monkeypatch.setattr(sharing, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    # It looks before, at the start and at the end of a run: a may begin at 0, b at 60, c at 120, which is after 90.
    assert not sharing.work(ready, minutes=1.5)
    assert done == ["a", "b"]
    assert capsys.readouterr().out == (
        "a: 20 s\nb: 20 s\n3 or more runs are left, c first; the same command goes on with them\n"
    )
    assert list(tmp_path.glob("*.lock")) == []
    assert sharing.work(ready)
    assert done == list("abcde")


def test_runs_in_other_hands_are_waited_for_and_not_counted(tmp_path, monkeypatch, capsys):
    done: list[str] = []
    (tmp_path / "a.lock").write_text(str(os.getpid()), encoding="utf-8")  # a living process
    assert not sharing.work(some_jobs(tmp_path, "abc", done), minutes=0)
    assert capsys.readouterr().out.startswith("2 or more runs are left, b first;")

    def other_ends(_: float) -> None:
        (tmp_path / "a.txt").write_text("done", encoding="utf-8")
        (tmp_path / "a.lock").unlink()

    monkeypatch.setattr(sharing, "time", SimpleNamespace(perf_counter=sharing.time.perf_counter, sleep=other_ends))
    assert sharing.work(some_jobs(tmp_path, "a", done), minutes=0)  # it was the last one
    assert done == []
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not Path("/proc").exists(), reason="there it is not seen which processes live")
def test_the_run_of_a_killed_process_is_done_anew(tmp_path, monkeypatch):
    done: list[str] = []
    (tmp_path / "a.lock").write_text(str(2**31), encoding="utf-8")  # no process has so large a number
    clock = SimpleNamespace(perf_counter=sharing.time.perf_counter, sleep=lambda _: None)
    monkeypatch.setattr(sharing, "time", clock)
    assert sharing.work(some_jobs(tmp_path, "ab", done))
    assert sorted(done) == ["a", "b"]


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
    assert "some.json has seeds [1], too, and is left as it is" in capsys.readouterr().out
    assert json.loads(published.read_text(encoding="utf-8"))["settings"]["seeds"] == [0, 1]
    assert publish([0, 1, 2], quick=True) == folder / "some.json"
    assert publish([0, 1, 2]) == published
    # Results without seeds, or whose settings are something else, are written over.
    for document in ({"rows": []}, {"settings": {"arc": {}}}, {"rows": [1]}):
        assert common.publish("other", folder, quick=False, document=document).parent == published.parent


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
