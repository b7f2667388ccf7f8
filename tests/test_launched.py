"""Several processes: the work shared, what was fitted and trained the same as with one, and nothing left by a dead one.

Two real processes that talk by gloo take a while to start, so these run with the tests on the real model (`-m model`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import write_jsonl
from tiny import tiny_questions

from caltune.formats import read_scores

HERE = Path(__file__).parent
ACCELERATE = HERE.parent / "examples" / "accelerate"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", ACCELERATE / "cpu.yaml", "--main_process_port", "0")
EXPECTATION = ("curve", "targets", "weights", "first_pass")
FITTED = {"RCFT": EXPECTATION, "mixed": EXPECTATION, "CogCalib": ("known", "detector"), "Tempered": (), "refit": ()}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, on one thread a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [sys.executable, *map(str, command)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process finds, then what each of two finds."""
    folder = tmp_path_factory.mktemp("launched")
    for launcher in ((), TORCHRUN):
        done = run(*launcher, HERE / "launched.py", "compute", folder)
        assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("1-0", "2-0", "2-1")]


def numbers(values: Any) -> np.ndarray:
    """Nested lists with None for what is not there."""
    return np.array(values, dtype=float)


@pytest.mark.model
def test_scores_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    one, *two = (document["scores"] for document in found)
    for process in two:
        assert process["ids"] == one["ids"]
        assert process["cost"] == one["cost"]
        for name in ("logits", "features", "shots", "one"):
            np.testing.assert_allclose(numbers(process[name]), numbers(one[name]), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.model
@pytest.mark.parametrize("method", FITTED)
def test_what_is_fitted_trained_and_logged_is_that_of_one_process(found: list[dict[str, Any]], method: str) -> None:
    one, *two = (document[method] for document in found)
    # To the last bit the same in both: neither has fitted on its own questions only.
    assert two[0]["state"] == two[1]["state"]
    assert two[0]["weights"] == two[1]["weights"]
    assert two[0]["temperature"] == two[1]["temperature"]
    for name in FITTED[method]:
        if name == "detector":
            assert two[0]["state"][name] == pytest.approx(one["state"][name], abs=1e-5)
        else:
            np.testing.assert_allclose(two[0]["state"][name], one["state"][name], rtol=0, atol=1e-5, err_msg=name)
    assert two[0]["temperature"] == pytest.approx(one["temperature"], rel=1e-5)
    assert (one["temperature"] != 1) == (method in ("Tempered", "refit"))
    for name, values in one["weights"].items():
        np.testing.assert_allclose(two[0]["weights"][name], values, rtol=0, atol=1e-5, err_msg=name)
    assert len(two[0]["log"]) == len(one["log"])
    for ours, theirs in zip(two[0]["log"], one["log"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)  # what is logged is rounded


@pytest.mark.model
def test_spread_weights_score_the_same_and_can_be_trained_afterwards(found: list[dict[str, Any]]) -> None:
    for process in found[1:]:
        sharded = process["sharded"]
        np.testing.assert_allclose(numbers(sharded["found"]), numbers(sharded["expected"]), rtol=0, atol=1e-4)
        assert sharded["gradient"] > 0


@pytest.mark.model
def test_weights_that_one_process_has_broken_end_all(found: list[dict[str, Any]]) -> None:
    for process in found[1:]:
        assert process["diverged"].startswith("the model's weights are no numbers after step 1: training has diverged")


@pytest.mark.model
def test_the_command_as_the_examples_give_it(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "test.jsonl", tiny_questions(11))
    verb = ("-m", "caltune", "score", data, "--model", tiny_folder, "-o")
    for launcher, name in (((), "one"), (LAUNCH, "two")):
        done = run(*launcher, *verb, tmp_path / f"{name}.parquet")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path}/{name}.parquet\n"  # said once
    one, two = (read_scores(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert two.scores.ids == one.scores.ids
    np.testing.assert_allclose(two.scores.logits, one.scores.logits, rtol=0, atol=1e-5)
    assert two.metadata == one.metadata


@pytest.mark.model
@pytest.mark.parametrize("verb", ["score", "train"])
def test_a_dead_process_ends_the_run_without_output(
    verb: str, tiny_folder: Path, questions_file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    rest = {
        "score": ("--batch-tokens", 64, "-o", target),
        "train": ("--output-dir", target, "--option_temperature", 2, "--max_steps", 4, "--save_strategy", "no"),
    }[verb]
    method = ("tempered",) if verb == "train" else ()
    done = run(*TORCHRUN, HERE / "launched.py", "die", verb, *method, questions_file, "--model", tiny_folder, *rest)
    assert done.returncode != 0
    assert "exitcode  : 7" in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not target.is_file()


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_parses_the_examples(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == {"cpu": 2, "ddp-two-machines": 16}.get(path.stem, 8)
    assert f"{path.name}" in (ACCELERATE / "README.md").read_text(encoding="utf-8")
    kind = {"fsdp": "FSDP", "deepspeed": "DEEPSPEED"}.get(path.stem, "MULTI_GPU")
    assert config.distributed_type == kind
    # What caltune asks of them, and what would otherwise be saved in pieces.
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == 2
