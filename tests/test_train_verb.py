"""`caltune train` for real on a tiny model: what it learns, what it leaves, how it resumes and is interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from files import strict_json, write_jsonl
from safetensors.numpy import load_file
from tiny import tiny_questions

from caltune.errors import InputError
from caltune.formats import read_scores
from caltune.models import load_model
from caltune.trainer import CalibrationTrainer
from caltune.training import find_checkpoint
from caltune.types import Question

SHORT = ("--max_steps", 2, "--save_strategy", "no", "--eval_strategy", "no")


@pytest.fixture
def train(caltune, questions_file, tiny_folder):
    """`train(method, folder, flag, ...)` on the sixty questions; standard output."""

    def run(method, folder, *flags):
        result = caltune("train", method, questions_file, "--model", tiny_folder, "--output-dir", folder, *flags)
        assert result.status == 0, result.err
        assert result.err == ""
        return result.out

    return run


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The weights in a folder: those of an adapter where it holds one."""
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else folder / "model.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two sets of weights are the same to the last bit."""
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_from_questions_to_the_report(caltune, train, questions_file, tiny_folder, tmp_path):
    tuned = tmp_path / "tuned"
    out = train("sft", tuned, "--learning_rate", 0.01, "--num_train_epochs", 12, "--save_strategy", "no")
    assert out.splitlines()[-2:] == [
        f"{tuned}: trained on 41 questions; next, score its test questions:",
        f"  caltune score {questions_file} --split test --model {tuned} -o scores.parquet",
    ]
    right = {}
    for name, model in (("before", tiny_folder), ("after", tuned)):
        for split in ("train", "calibration", "test"):
            file = tmp_path / f"{name}-{split}.parquet"
            assert caltune("score", questions_file, "--split", split, "--model", model, "-o", file).status == 0
            right[name, split] = read_scores(file).scores.decide().correct.mean()
    # The same twelve capitals are asked for in each split, so what is learned carries over.
    assert right["before", "train"] < 0.6
    assert right["after", "train"] > 0.95
    assert right["after", "test"] > right["before", "test"] + 0.3

    metadata = read_scores(tmp_path / "after-test.parquet").metadata
    assert metadata["model"] == str(tuned)
    assert [entry["epoch"] for entry in metadata["training"]] == list(range(1, 13))
    assert metadata["training"][-1]["eval_accuracy"] == pytest.approx(right["after", "calibration"])
    assert "training" not in read_scores(tmp_path / "before-test.parquet").metadata

    before, after = tmp_path / "before-test.parquet", tmp_path / "after-test.parquet"
    metrics = tmp_path / "metrics.json"
    assert caltune("evaluate", before, after, "--json", metrics).status == 0
    assert strict_json(metrics)[str(after)]["metrics"]["accuracy"]["value"] == pytest.approx(right["after", "test"])
    assert caltune("compare", before, after).status == 0
    page = tmp_path / "report.html"
    assert caltune("report", before, after, "-o", page).out == page.resolve().as_uri() + "\n"
    text = page.read_text(encoding="utf-8")
    assert 'id="course-1' in text  # only the second model was trained
    assert 'id="course-0' not in text


def earlier(folder: Path, *names: str) -> Path:
    """A folder with files of an earlier run."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("earlier")
    return folder


def test_the_folder_holds_an_adapter_and_no_pickle(train, tiny_folder, tmp_path):
    d = earlier(tmp_path / "d", "config.json", "model.safetensors", "model.safetensors.index.json", "notes.txt")
    train("sft", d, *SHORT)
    names = {path.name for path in d.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "trainer_state.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl")) or name.startswith(".")]
    assert not names & {"config.json", "model.safetensors", "model.safetensors.index.json"}
    assert "notes.txt" in names  # not ours
    assert "This model was trained with" in (d / "README.md").read_text()
    config = json.loads((d / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(tiny_folder), 32, 64)


def test_without_lora_an_ordinary_folder_is_left(train, tiny_folder, tmp_path):
    # A left-over adapter would be loaded in place of the model, and left-over pieces beside it.
    pieces = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    d = earlier(tmp_path / "d", "adapter_config.json", "adapter_model.safetensors", *pieces)
    train("sft", d, *SHORT, "--lora_r", 0)
    names = {path.name for path in d.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.startswith("adapter_") or name in pieces]
    before, after = weights(tiny_folder), weights(d)
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before)
    assert not hasattr(load_model(d)[0], "peft_config")


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("rcft", ("--bin-accuracy-source", "held-out", "--bins", 5)),
        ("cogcalib", ("--penalty", "margin", "--answers", "letters")),
    ],
)
def test_the_calibrating_methods_train_too(caltune, train, method, flags, questions_file, tmp_path):
    out = train(method, tmp_path / "d", *flags, "--max_steps", 4, "--logging_steps", 1, "--save_strategy", "no")
    assert "calibration_penalty" in out
    scores = tmp_path / "s.parquet"
    assert caltune("score", questions_file, "--split", "test", "--model", tmp_path / "d", "-o", scores).status == 0
    assert len(read_scores(scores).metadata["training"]) == 2  # 41 questions in batches of 16: three steps an epoch


def test_yaml_gives_the_settings_of_a_run(caltune, questions_file, tiny_folder, tmp_path):
    config = tmp_path / "f.yaml"
    config.write_text(
        f"model: {tiny_folder}\noutput_dir: {tmp_path / 'd'}\nmax_steps: 5\neval_strategy: 'no'\nsave_strategy: 'no'\n"
        "lora_r: 4\n"
    )
    assert caltune("train", "sft", questions_file, "--config", config, "--max-steps", 1).status == 0
    assert json.loads((tmp_path / "d" / "trainer_state.json").read_text())["global_step"] == 1
    assert json.loads((tmp_path / "d" / "adapter_config.json").read_text())["r"] == 4


def test_an_adapter_can_be_trained_on(caltune, train, questions_file, tiny_folder, tmp_path):
    train("sft", tmp_path / "one", *SHORT)
    flags = (*SHORT, "--model", tmp_path / "one", "--output-dir", tmp_path / "two")
    assert caltune("train", "rcft", questions_file, *flags).status == 0
    config = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_settings_of_lora_are_refused_for_an_adapter(caltune, refused, train, questions_file, tiny_folder, tmp_path):
    """It keeps its own rank, and without LoRA (rank 0) nothing but it would be trained either."""
    train("sft", tmp_path / "one", *SHORT, "--lora_r", 4, "--save_steps", 1)
    shared = ("train", "sft", questions_file, *SHORT, "--model", tmp_path / "one", "--output-dir", tmp_path / "two")
    (tmp_path / "f.yaml").write_text("lora_r: 32\n")
    for flags, named in (
        (("--lora-r", 8, "--lora_alpha=1"), "--lora_r, --lora_alpha must be left out, got 8, 1"),
        (("--lora_r", 0), "--lora_r must be left out, got 0"),
        (("--lora_drop", 0.0), "--lora_dropout must be left out, got 0.0"),
        (("--config", tmp_path / "f.yaml"), "--lora_r must be left out, got 32"),
    ):
        line = refused(*shared, *flags)
        assert f"{named}: --model {tmp_path / 'one'} is an adapter, which is trained on as it is" in line
    assert not (tmp_path / "two").exists()


def test_open_ended_questions_are_told_as_such(refused, tiny_folder, tmp_path):
    for split, questions in (("train", tiny_questions(3)), ("validation", tiny_questions(6)[3:])):
        write_jsonl(tmp_path / f"{split}.jsonl", questions)
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "o47", "question": "What is the capital of Peru?", "accepted": ["Lima"]}\n')
    line = refused("train", "sft", tmp_path, "--model", tiny_folder, "--output-dir", tmp_path / "d")
    assert "1 questions have no options, the first is id 'o47': open-ended ones are neither trained on nor" in line


def test_an_adapter_is_not_put_on_top_of_its_base_model(refused, questions_file, tiny_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    kept = weights(base)
    line = refused("train", "sft", questions_file, "--model", base, "--output-dir", base, *SHORT)
    assert "an adapter must not lie in the folder of its base model" in line
    assert same(weights(base), kept)


def test_resuming_ends_where_an_unbroken_run_ends(monkeypatch, train, tmp_path):
    taken = []
    take = CalibrationTrainer.training_step
    monkeypatch.setattr(CalibrationTrainer, "training_step", lambda *a, **k: (taken.append(1), take(*a, **k))[1])
    steps = ("--max_steps", 6, "--learning_rate", 0.01, "--save_strategy", "steps", "--save_steps", 2)
    whole = tmp_path / "whole"
    train("sft", whole, *steps)
    checkpoint = whole / "checkpoint-4"  # amid the second epoch
    assert len(taken) == 6
    train("sft", tmp_path / "resumed", *steps, "--resume_from_checkpoint", checkpoint)
    assert len(taken) == 6 + 2
    assert same(weights(whole), weights(tmp_path / "resumed"))
    assert not same(weights(whole), weights(checkpoint))
    # The last checkpoint there is the end of the run: nothing is left to do.
    train("sft", whole, *steps, "--resume_from_checkpoint", "true")
    assert len(taken) == 6 + 2
    assert same(weights(whole), weights(tmp_path / "resumed"))


def test_which_checkpoint_is_meant(tmp_path):
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("False", tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert find_checkpoint("True", tmp_path) == str(tmp_path / "checkpoint-10")
    assert find_checkpoint(str(tmp_path / "checkpoint-2"), tmp_path) == str(tmp_path / "checkpoint-2")
    with pytest.raises(InputError, match="checkpoint, found none"):
        find_checkpoint("true", tmp_path / "missing")


def test_a_training_question_without_an_answer_is_refused(refused, tiny_folder, tmp_path):
    for split, questions in (("train", tiny_questions(3)), ("validation", tiny_questions(6)[3:])):
        write_jsonl(tmp_path / f"{split}.jsonl", questions)
    unlabelled = Question("blank", "Capital of nowhere?", ("Rome", "Oslo"), None)
    write_jsonl(tmp_path / "train.jsonl", [*tiny_questions(3), unlabelled])
    flags = ("--model", tiny_folder, "--output-dir", tmp_path / "d")
    line = refused("train", "sft", tmp_path, *flags)
    assert "1 questions have no answer, the first is id 'blank'" in line
    assert not list((tmp_path / "d").glob("*"))


@pytest.mark.parametrize("place", ["caltune.trainer.CalibrationTrainer.training_step", "os.replace"])
def test_interrupted_training_leaves_an_earlier_model_as_it_was(
    caltune, monkeypatch, place, questions_file, tiny_folder, tmp_path
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    d = earlier(tmp_path / "d", "adapter_config.json", "adapter_model.safetensors")
    before = {path.name: path.read_bytes() for path in d.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupt)
        result = caltune("train", "sft", questions_file, "--model", tiny_folder, "--output-dir", d, *SHORT)
    assert result.status == 130
    assert result.err == "caltune: interrupted\n"
    assert {path.name: path.read_bytes() for path in d.iterdir()} == before
    assert list(tmp_path.iterdir()) == [d]
