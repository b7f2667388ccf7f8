"""What the verbs that need no model read, print and write."""

from __future__ import annotations

import numpy as np
import pytest
from files import scores_file, strict_json, write_jsonl

from caltune.formats import read_scores, write_scores
from caltune.types import OptionLogits, Question

LYON = Question("lyon", "Capital of France?", ("Lyon", "Paris"), 1, group="geography")
ROME = Question("rome", "Capital of Italy?", ("Rome", "Milan", "Turin"), 0, group="geography")
WHY = Question("why", "Why?", ("this", "that"), None)


# data


def test_data_counts_questions_options_and_groups(caltune, tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [LYON, ROME, WHY])
    result = caltune("data", path)
    assert result.status == 0
    assert result.err == ""
    assert result.out.splitlines() == [
        f"3 questions from {path}",
        "options: 2 in 2, 3 in 1",
        "without an answer: 1",
        "groups: 1, the largest geography (2)",
        "first prompt, between the lines, and what may follow it:",
        "--------------------",
        "Question: Capital of France?",
        "Answer:",
        "--------------------",
        "  ' Lyon'",
        "* ' Paris'",
    ]


def test_data_shows_letters_and_takes_the_first_questions_only(caltune, tmp_path):
    result = caltune("data", write_jsonl(tmp_path / "data.jsonl", [LYON, ROME]), "--answers", "letters", "--limit", 1)
    assert "1 questions from" in result.out
    assert "A. Lyon\nB. Paris\nAnswer:" in result.out
    assert result.out.endswith("  ' A'\n* ' B'\n")


def test_data_shows_the_chat_template_of_a_model(caltune, questions_file, tiny_folder):
    out = caltune("data", questions_file, "--model", tiny_folder).out
    assert "<|start|>user\nWhat is the capital of France?<|end|>\n<|start|>assistant\n" in out


def test_data_shows_an_open_question(caltune, tmp_path):
    path = tmp_path / "open.jsonl"
    path.write_text('{"id": "a", "question": "Who?", "answers": ["me"]}\n')
    assert caltune("data", path).out.endswith("without an answer: 0\nfirst question (open-ended): Who?\n")


def test_data_finds_questions_that_stand_in_another_split(caltune, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [LYON, ROME])
    write_jsonl(tmp_path / "validation.jsonl", [WHY])
    again = Question("other", "capital of  FRANCE?", ("Paris", "Lyon"), 0)
    write_jsonl(tmp_path / "test.jsonl", [again])
    out = caltune("data", tmp_path, "--split", "test").out
    assert "also in another split: 1\n  test other = train lyon (same content)\n" in out
    # "calibration" is this source's validation split under another name.
    assert "also in another split: 0\n" in caltune("data", tmp_path, "--split", "validation").out


def test_data_maps_columns_of_every_split(caltune, tmp_path):
    row = '{"id": "%s", "ask": "Capital?", "choices": ["x", "y"], "answer": 0}\n'
    (tmp_path / "train.jsonl").write_text(row % "a")
    (tmp_path / "test.jsonl").write_text(row % "b")
    out = caltune("data", tmp_path, "--split", "test", "--field", "question=ask").out
    assert "1 questions" in out
    assert "also in another split: 1\n" in out


def test_data_skips_and_lists_bad_rows(caltune, refused, tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [LYON, ROME])
    path.write_text(path.read_text() + "not JSON\n" + '{"question": "?", "choices": ["x", "y"], "answer": 5}\n')
    assert f"{path}:3: " in refused("data", path)
    result = caltune("data", path, "--skip-bad")
    assert result.status == 0
    assert "2 questions" in result.out
    lines = result.err.splitlines()
    assert lines[0] == "caltune: skipped 2 bad rows:"
    assert lines[1].startswith(f"  {path}:3: ")
    assert lines[2].startswith(f"  {path}:4: ")
    assert len(lines) == 3


# evaluate, recalibrate, compare, report


def test_evaluate_writes_valid_json_and_a_column_a_file(caltune, tmp_path):
    a, b = scores_file(tmp_path / "a.parquet"), scores_file(tmp_path / "b.parquet", seed=1)
    result = caltune("evaluate", a, b, "--json", tmp_path / "metrics.json")
    assert result.status == 0
    document = strict_json(tmp_path / "metrics.json")
    assert list(document) == [str(a), str(b)]
    accuracy = read_scores(a).scores.decide().correct.mean()
    assert document[str(a)]["n"] == 300
    assert document[str(a)]["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    row = next(line for line in result.out.splitlines() if line.startswith("accuracy"))
    assert f" {accuracy:.4f} [" in row
    assert [line.split()[0] for line in result.out.splitlines()[1:3]] == ["questions", "accuracy"]


def test_evaluate_ranks_several_files_and_not_one(caltune, tmp_path):
    sharp, plain = scores_file(tmp_path / "sharp.parquet"), scores_file(tmp_path / "plain.parquet", sharpness=1.0)
    result = caltune("evaluate", sharp, plain, "--json", tmp_path / "m.json")
    lines = result.out.splitlines()
    heading = lines.index("ranked by nll, lowest first; a range where chance leaves the place open")
    assert [line.split()[:2] for line in lines[heading + 2 : heading + 4]] == [["1", str(plain)], ["2", str(sharp)]]
    assert f"nll differs, accuracy not clearly: {plain} and {sharp}" in lines
    found = strict_json(tmp_path / "m.json")[str(sharp)]["ranking"]
    assert (found["first_place"], found["last_place"]) == (2, 2)
    assert found["against"][0]["file"] == str(plain)
    assert found["against"][0]["accuracy"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "ranked" not in caltune("evaluate", sharp, "--json", tmp_path / "one.json").out
    assert "ranking" not in strict_json(tmp_path / "one.json")[str(sharp)]


def test_what_is_undefined_is_null_in_json_and_nan_on_the_terminal(caltune, tmp_path):
    # Every answer is right, so there is no wrong one to rank below it.
    write_scores(tmp_path / "a.parquet", OptionLogits(("p", "q"), [[2.0, 0.0], [1.0, 0.0]], [0, 0]), {})
    result = caltune("evaluate", tmp_path / "a.parquet", "--json", tmp_path / "m.json")
    assert result.status == 0
    assert strict_json(tmp_path / "m.json")[str(tmp_path / "a.parquet")]["metrics"]["auroc"]["value"] is None
    assert "auroc               nan" in result.out


def test_recalibrate_recovers_the_temperature(caltune, tmp_path):
    fit = scores_file(tmp_path / "cal.parquet", 2000)
    apply = scores_file(tmp_path / "test.parquet", 2000, first=2000, seed=1)
    out = tmp_path / "out.parquet"
    result = caltune("recalibrate", "temperature", "--fit", fit, "--apply", apply, "-o", out)
    assert result.status == 0
    assert result.out.endswith(f"{out}\n")
    before, after = read_scores(apply), read_scores(out)
    temperature = after.metadata["temperature"]
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert f"temperature {temperature:.4f}, fitted on 2000 questions" in result.out
    done = {"name": "temperature", "questions": 2000, "temperature": temperature}
    assert after.metadata == {**before.metadata, "temperature": temperature, "recalibrated": [done]}
    assert after.scores.ids == before.scores.ids
    expected = OptionLogits(before.scores.ids, before.scores.logits / temperature, before.scores.labels)
    np.testing.assert_allclose(after.scores.probabilities(), expected.probabilities(), atol=1e-6)
    # Scaled once more, what is told is still what the model's own logits were divided by.
    assert caltune("recalibrate", "temperature", "--fit", fit, "--apply", out, "-o", out).status == 0
    assert read_scores(out).metadata["temperature"] == pytest.approx(temperature**2)
    write_scores(out, after.scores, {"temperature": "hot"})
    refused = caltune("recalibrate", "temperature", "--fit", fit, "--apply", out, "-o", out)
    assert (refused.status, refused.err) == (2, f"caltune: {out}: 'temperature' must be a number, got 'hot'\n")


def test_compare_finds_the_same_order_of_questions_and_writes_json(caltune, tmp_path):
    a, scaled = scores_file(tmp_path / "a.parquet"), scores_file(tmp_path / "b.parquet", sharpness=1.0)
    shuffled = read_scores(scaled).scores.take(range(299, -1, -1))
    write_scores(tmp_path / "b.parquet", shuffled, {})
    result = caltune("compare", a, scaled, "--json", tmp_path / "c.json")
    assert result.status == 0
    found = strict_json(tmp_path / "c.json")
    assert found["n"] == 300
    # Three times too sharp against calibrated: the same answers, a better Brier score.
    assert found["metrics"]["accuracy"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["metrics"]["brier"]["verdict"] == "better"
    assert "300 questions, paired\n" in result.out


def test_report_prints_the_address_of_the_page(caltune, tmp_path):
    a, b = scores_file(tmp_path / "before.parquet"), scores_file(tmp_path / "after.parquet", sharpness=1.0)
    page = tmp_path / "page.html"
    result = caltune("report", a, b, "-o", page)
    assert result == (0, page.resolve().as_uri() + "\n", "")
    text = page.read_text(encoding="utf-8")
    assert "before" in text
    assert "after" in text
