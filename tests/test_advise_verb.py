"""`caltune advise`: from a model and questions, or from scores files alone."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
from files import scores_file, write_jsonl
from tiny import tiny_questions

from caltune.data.splits import hash_split
from caltune.formats import read_scores, write_scores
from caltune.models import load_model
from caltune.scoring import score
from caltune.types import OptionLogits, Question


def rows(out):
    """The lines of the answer by their label."""
    lines = out.splitlines()
    assert len(lines) <= 10
    return {line[:12].strip(): line[12:] for line in lines}


def test_a_scores_file_needs_no_model(caltune, tmp_path):
    path = scores_file(tmp_path / "before.parquet", 400)
    write_scores(
        path, read_scores(path).scores, {"data": "exam.csv", "model": "m", "split": "test", "template": "plain"}
    )
    result = caltune("advise", path)
    assert (result.status, result.err) == (0, "")
    assert len(result.out.splitlines()) == 10
    found = rows(result.out)
    assert found["questions"].startswith("400 from exam.csv, split test; ")
    evaluated = caltune("evaluate", path).out
    for label, metric, then in (
        ("accuracy", "accuracy", " ["),
        ("confidence", "confidence", ":"),
        ("ECE", "ece", ":"),
    ):
        value = float(re.search(rf"^{metric} +([0-9.]+)", evaluated, re.MULTILINE)[1])
        assert found[label].startswith(f"{value:.3f}{then}")
    assert "it is too sure" in found["because"]
    words = shlex.split(found["train"])
    assert words[:6] == ["caltune", "train", "tempered", "exam.csv", "--model", "m"]
    assert words[6:] == ["--template", "plain", "--output-dir", "tuned"]


def test_two_scores_files_are_compared(caltune, refused, tmp_path):
    before = scores_file(tmp_path / "before.parquet", 300)
    scores = read_scores(before).scores
    knowing = scores.logits + 20 * np.eye(4, dtype=np.float32)[scores.labels]
    after = tmp_path / "after.parquet"
    write_scores(after, OptionLogits(scores.ids, knowing, scores.labels).take(range(299, -1, -1)), {})
    found = rows(caltune("advise", before, "--adapter", after).out)
    assert ", before → after training" in found["questions"]
    assert re.match(r"0\.\d+ \[.*\] → (1\.000|0\.99\d) \[", found["accuracy"])
    assert found["regime"].startswith("calibratable, if it was not trained on these")
    assert "above A* of before" in found["because"] or found["take"] == "it as it is"
    lost = np.flatnonzero(scores.logits.argmax(axis=1) == scores.labels)[:9]  # 0.03 of all, within either interval
    forgot = scores.logits.copy()
    forgot[lost, (scores.labels[lost] + 1) % 4] += 40
    write_scores(after, OptionLogits(scores.ids, forgot, scores.labels), {})
    found = rows(caltune("advise", before, "--adapter", after).out)
    assert found["because"].startswith("training cost 0.030 [0.0")
    write_scores(after, scores, {"split": "train", "training": []})  # the first file names no split
    assert rows(caltune("advise", before, "--adapter", after).out)["take"].startswith("nothing yet; ask what")
    write_scores(tmp_path / "calibration.parquet", scores, {"split": "calibration"})
    told = refused("advise", tmp_path / "calibration.parquet", "--adapter", after)
    assert "must be of the split calibration, as" in told
    for how, asked in (("before", "letters"), ("after", "continuations")):
        write_scores(tmp_path / f"{how}.parquet", scores, {"answers": asked})
    line = refused("advise", before, "--adapter", after)
    assert f"{after}: must be asked as {before}, with answers 'letters', got 'continuations'" in line
    for how, asked in (("before", "Question: a?"), ("after", "Question: b?\nAnswer: c\n\nQuestion: a?")):
        write_scores(tmp_path / f"{how}.parquet", scores, {"answers": "letters", "prompt_example": asked})
    line = refused("advise", before, "--adapter", after)
    assert f"{after}: must be asked as {before}, got another prompt (template or exemplars)" in line
    other = scores_file(tmp_path / "other.parquet", 300, first=5)
    assert "must hold the questions of" in refused("advise", before, "--adapter", other)


@pytest.fixture(scope="module")
def mostly_known(tmp_path_factory, tiny_folder):
    """A file of calibration questions, seven of ten with the tiny model's own answer for the right one."""
    questions = [question for question in tiny_questions(700) if hash_split(question.id) == "calibration"]
    chosen = score(*load_model(tiny_folder), questions, answers="letters", template="chat").logits.argmax(axis=1)
    right = [
        int(c) if i % 10 < 7 else (q.answer + 1) % 3 for i, (q, c) in enumerate(zip(questions, chosen, strict=True))
    ]
    rows = [replace(q, answer=answer) for q, answer in zip(questions, right, strict=True)]
    return write_jsonl(tmp_path_factory.mktemp("known") / "known.jsonl", rows)


def test_a_model_and_its_fine_tuned_form_are_scored(caltune, mostly_known, tiny_folder):
    how = ("--answers", "letters", "--template", "chat", "--batch-tokens", 512)
    result = caltune("advise", mostly_known, "--model", tiny_folder, "--adapter", tiny_folder, *how)
    assert result.status == 0, result.err
    found = rows(result.out)
    assert re.match(rf"1\d\d from {mostly_known}, split calibration, before → after training", found["questions"])
    both = re.match(r"(.*\]) → (.*\]): ", found["accuracy"])
    assert both[1] == both[2]
    assert f"train tempered {mostly_known} --model {tiny_folder} --answers letters --template chat" in found["or train"]


def test_a_model_that_caltune_trained_is_not_named_as_the_one_to_train(caltune, mostly_known, tiny_folder, tmp_path):
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_folder, tuned)
    (tuned / "trainer_state.json").write_text('{"log_history": []}')
    how = ("--answers", "letters", "--template", "chat")
    result = caltune("advise", mostly_known, "--model", tuned, *how)
    assert result.status == 0, result.err
    found = rows(result.out)
    assert f"train tempered {mostly_known} --model MODEL" in found["or train"]
    taught = rows(caltune("advise", mostly_known, "--model", tuned, *how, "--split", "calibration").out)
    assert taught == found


def test_how_the_questions_were_read_is_in_the_command(caltune, mostly_known, tiny_folder, tmp_path):
    path = tmp_path / "scored.parquet"
    how = (
        "--answers",
        "letters",
        "--template",
        "chat",
        "--split",
        "calibration",
        "--field",
        "group=subject",
        "--skip-bad",
    )
    assert caltune("score", mostly_known, "--model", tiny_folder, *how, "-o", path).status == 0
    train = shlex.split(rows(caltune("advise", path).out)["train"])
    assert train[train.index("--field") :][:3] == ["--field", "group=subject", "--skip-bad"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *[("--split", "test"), ("--limit", 5), ("--field", "question=ask"), ("--skip-bad", True)],
        *[("--answers", "letters"), ("--reduction", "mean"), ("--template", "plain")],
        *[("--batch-tokens", 512), ("--device", "cpu")],
    ],
)
def test_a_scores_file_is_not_scored_anew(refused, tmp_path, flag, value):
    path = scores_file(tmp_path / "before.parquet", 400)
    line = refused("advise", path, flag, *([] if value is True else [value]))
    assert f"{flag} needs --model: {path} was scored before, got " in line
    assert str(value) in line


def test_scores_and_models_are_not_mixed(refused, questions_file, tiny_folder, tmp_path):
    path = scores_file(tmp_path / "before.parquet", 400)
    assert f"--model is for questions, which {path} has been asked" in refused("advise", path, "--model", tiny_folder)
    line = refused("advise", questions_file, "--model", tiny_folder, "--adapter", path)
    assert f"--adapter must be a model where SOURCE holds questions, got the scores {path}" in line


def test_what_cannot_be_advised_on_is_refused(refused, tmp_path):
    few = scores_file(tmp_path / "few.parquet", 9)
    unlabelled = tmp_path / "unlabelled.parquet"
    write_scores(unlabelled, OptionLogits(("p",), [[2.0, 0.0]], [-1]), {})
    data = write_jsonl(tmp_path / "data.jsonl", [Question("a", "?", ("x", "y"), 0)])
    assert "advise needs --model, or a scores file" in refused("advise", data)
    assert "to score questions, name a --model" in refused("advise", tmp_path / "missing.parquet")
    assert f"{few}: cross-fitting needs at least 2 folds and 2 questions a fold" in refused("advise", few)
    assert f"{unlabelled}: 1 questions have no label" in refused("advise", unlabelled)


def test_what_cannot_be_advised_on_is_refused_before_the_work(
    refused, questions_file, tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("caltune.scoring.score", lambda *_, **__: pytest.fail("scored"))
    line = refused("advise", questions_file, "--model", tiny_folder, "--limit", 9)
    assert f"{questions_file}: advise needs 10 questions with an answer, got 9" in line
    blank = write_jsonl(tmp_path / "blank.jsonl", [replace(q, answer=None) for q in tiny_questions(90)])
    line = refused("advise", blank, "--model", tiny_folder)
    assert re.search("advise needs 10 questions with an answer, got id '.*' without one", line)
    assert "no-adapter" in refused("advise", questions_file, "--model", tiny_folder, "--adapter", "./no-adapter")


@pytest.mark.parametrize("count", [10, 30, 100])
def test_few_questions_give_numbers_but_no_choice_below_100(caltune, tmp_path, count):
    found = rows(caltune("advise", scores_file(tmp_path / "some.parquet", count)).out)
    assert (found["take"] == "nothing yet") == (count < 100)
