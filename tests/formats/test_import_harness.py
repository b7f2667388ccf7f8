"""The real lm-evaluation-harness, offline on local files with the tiny model: our numbers are its numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny import CAPITALS, tiny_model, tiny_tokenizer

from caltune.formats import read_answers, read_scores
from caltune.metrics import accuracy, brier

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("default")]
lm_eval = pytest.importorskip("lm_eval")

TASK = """\
task: {name}
tag: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{cache}"}}
test_split: test
"""
CHOICE = (
    TASK
    + """\
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{metrics}]
"""
)
BOOLEAN = (
    TASK
    + """\
output_type: multiple_choice
doc_to_text: "Is {{{{choices[0]}}}} the capital of {{{{country}}}}?"
doc_to_choice: ["no", "yes"]
doc_to_target: "{{{{['no', 'yes'][label == 0]}}}}"
metric_list: [{metrics}]
"""
)
WRITTEN = (
    TASK
    + """\
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 3, do_sample: true, temperature: 0.7}}
repeats: 5
filter_list:
  - name: most
    filter: [{{function: majority_vote}}, {{function: take_first}}]
  - name: first
    filter: [{{function: take_first}}]
metric_list: [{{metric: exact_match}}]
"""
)
ACC, BRIER = "{metric: acc}, {metric: acc_norm}", "{metric: brier_score}"


def documents(count: int, sizes: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    draw, cities = random.Random(seed), list(CAPITALS.values())
    found = []
    for i in range(count):
        country = draw.choice(list(CAPITALS))
        choices = draw.sample(cities, draw.choice(sizes))
        asked = {"question": f"What is the capital of {country}? ({i})", "country": country}
        found.append({**asked, "choices": choices, "label": draw.randrange(len(choices))})
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder of the samples, and the harness's results by task."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    place = tmp_path_factory.mktemp("harness")
    tasks = {
        "capitals_four": (CHOICE, f"{ACC}, {BRIER}", documents(60, (4,), 1)),
        "capitals_ragged": (CHOICE, ACC, documents(60, (2, 3, 5), 2)),
        "capitals_boolean": (BOOLEAN, f"{ACC}, {BRIER}", documents(40, (2,), 3)),
        "capitals_written": (WRITTEN, "", documents(12, (4,), 4)),
    }
    tasks["capitals_ragged"][2][7]["label"] = 9  # no such option: the harness makes −100 of it
    for name, (text, metrics, rows) in tasks.items():
        data = place / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = text.format(name=name, data=data, cache=place / "cache", metrics=metrics)
        (place / f"{name}.yaml").write_text(config, encoding="utf-8")
    tokenizer = tiny_tokenizer(chat=False)
    model = HFLM(pretrained=tiny_model(), tokenizer=tokenizer, device="cpu", batch_size=8, max_length=256)
    manager = TaskManager(include_path=str(place), include_defaults=False)
    tracker = EvaluationTracker(output_path=str(place / "runs"))
    results = simple_evaluate(
        model, tasks=list(tasks), task_manager=manager, evaluation_tracker=tracker, bootstrap_iters=0, log_samples=True
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in tasks:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return place / "runs", results["results"]


def imported(caltune, run, tmp_path, task: str, *words: object) -> Path:
    (path,) = run[0].rglob(f"samples_{task}_*.jsonl")
    out = tmp_path / "out.parquet"
    result = caltune("import", "lm-eval", path, *words, "-o", out)
    assert result.status == 0, result.err
    return out


@pytest.mark.parametrize("task", ["capitals_four", "capitals_boolean"])
def test_accuracy_and_brier_score_are_the_harness_s(caltune, run, tmp_path, task):
    scores = read_scores(imported(caltune, run, tmp_path, task)).scores
    theirs = run[1][task]
    assert 0 < theirs["acc,none"] < 1
    assert accuracy(scores.decide()) == pytest.approx(theirs["acc,none"], abs=1e-12)
    assert brier(scores) == pytest.approx(theirs["brier_score,none"], abs=1e-5)
    assert set(scores.groups) == {task}


def test_differing_option_counts_and_a_missing_right_option(caltune, run, tmp_path):
    file = read_scores(imported(caltune, run, tmp_path, "capitals_ragged"))
    assert file.metadata["left_out"] == 1
    right = accuracy(file.scores.decide()) * len(file.scores)
    assert right / 60 == pytest.approx(run[1]["capitals_ragged"]["acc,none"], abs=1e-12)  # it counts that one wrong
    assert file.scores.logits.shape == (59, 5)


def test_generated_answers_with_repeats(caltune, run, tmp_path):
    out = imported(caltune, run, tmp_path, "capitals_written", "--filter", "most")
    answers = read_answers(out).answers
    assert accuracy(answers) == pytest.approx(run[1]["capitals_written"]["exact_match,most"], abs=1e-12)
    assert {round(5 * one) for one in answers.confidence} <= {1, 2, 3, 4, 5}
    assert answers.confidence == pytest.approx((5 * answers.confidence).round() / 5)
