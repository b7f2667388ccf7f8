"""Every method against plain fine-tuning and temperature scaling, on the real small model and `world-facts`.

    python benchmarks/methods.py [--quick] [--output DIR] [--seeds S …] [--minutes M]

Each run is one fine-tuning of SmolLM2-135M-Instruct with LoRA on 600 questions, scored on 2,000 test questions. First
the strength of each method is chosen: the least NLL on 1,143 calibration questions among a grid, trained on 600
questions drawn with another seed ("sft" and "tempered" have none). Then 3 seeds of every method with its chosen
strength; a seed picks the training questions, their order and the adapter's start. The test questions are the same
throughout, and nothing is fitted or chosen on them, but for a temperature of the untrained model that is told
(`zero_shot_temperature`) and used by nothing. Temperatures are fitted on the other 500 calibration questions,
detectors and held-out bins on 200 of those.

A first version of this benchmark, with 300 training questions, was scored on `SEEN` test questions, so that whoever
chose the grids below knew how an earlier grid did on them. The 668 test questions it never met are all among the 2,000
here, and the table of these alone is in the JSON under `rows_on_fresh_questions`. A second version had met all 2,000
before "tempered" was added.

Scores are written to DIR as they come, and what is there is not done again; several processes may share one DIR.
The table goes to standard output and, as JSON, to `benchmarks/results/methods.json` with a picture beside it (with
`--quick` into DIR only). In two processes on two cores the 46 runs of 7 minutes take about 2 hours and 45 minutes;
`make bench ARGS="--minutes 50"` does a part of less than an hour, and the same command goes on where it stopped.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import pick

from caltune.data import load_questions
from caltune.formats import read_scores
from caltune.metrics import nll
from caltune.metrics.planning import questions_needed
from caltune.recalibrate import fit_temperature
from caltune.report.diagram import save_diagram
from caltune.types import OptionLogits, Question

SETTINGS = {
    **common.RUN,
    "train": 600,
    "choose_train": 600,
    "fit": 500,
    "method_fit": 200,
    "choose": 1143,
    "test": 2000,
    "seeds": [0, 1, 2],
    "choose_seed": 100,
}
QUICK = {
    "train": 64,
    "choose_train": 48,
    "fit": 64,
    "method_fit": 32,
    "choose": 64,
    "test": 200,
    "epochs": 1,
    "seeds": [0],
}
SEEN = 2000  # test questions that the first version drew, with seed 0

TEMPERED = {"option_temperature": 0.0, "average_weights": 1.0}
# Method -> (trainer, fixed settings, strengths to choose from).
METHODS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "sft": ("SFT", {}, [{}]),
    "rcft-train": (
        "RCFT",
        {"bin_accuracy_source": "train", "bin_weights": "count"},
        [{"calibration_weight": 1.0}, {"calibration_weight": 5.0}],
    ),
    "rcft-held-out": (
        "RCFT",
        {"bin_accuracy_source": "held-out"},
        [
            {"bin_weights": "equal", "calibration_weight": 1.0},
            {"bin_weights": "count", "calibration_weight": 1.0},
            {"bin_weights": "count", "calibration_weight": 5.0},
        ],
    ),
    "cogcalib-label-smoothing": (
        "CogCalib",
        {"penalty": "label-smoothing"},
        [{"smoothing": 0.1}, {"smoothing": 0.2}, {"smoothing": 0.4}],
    ),
    "cogcalib-margin": (
        "CogCalib",
        {"penalty": "margin", "margin": 2.0},
        [{"penalty_weight": 0.1, "style_share": 0.33}, {"penalty_weight": 0.3}],
    ),
    "cogcalib-entropy": (
        "CogCalib",
        {"penalty": "entropy"},
        [{"penalty_weight": 0.3, "style_share": 0.33}, {"penalty_weight": 1.0}],
    ),
    "sft-averaged": ("SFT", {"average_weights": 1.0}, [{}]),
    "tempered": ("SFT", TEMPERED, [{}]),
    "tempered-rcft": (
        "RCFT",
        {**TEMPERED, "bin_accuracy_source": "held-out", "bin_weights": "count"},
        [{"calibration_weight": 1.0}, {"calibration_weight": 2.5}],
    ),
    "tempered-cogcalib": (
        "CogCalib",
        {**TEMPERED, "penalty": "label-smoothing"},
        [{"smoothing": 0.05}, {"smoothing": 0.1}],
    ),
}
# Pairs of which it is told how many questions would show a difference between two such models.
COMPARED = [("zero-shot", "tempered"), ("sft", "tempered"), ("tempered", "tempered-cogcalib")]
BASELINES = ("sft", "sft + temperature", "tempered")
SCALED = ("sft", "tempered")  # also shown with a temperature, fitted on calibration questions


def main() -> None:
    arguments, folder = common.parse(__doc__, "methods")
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    data, seen = load(settings)
    if not common.work(partial(ready, settings, folder, data), arguments.minutes):
        return
    strengths = choose(folder)
    print(json.dumps(strengths["chosen"]), flush=True)
    rows = collect(settings, folder)
    result = common.table(rows, BASELINES)
    common.print_table(result, BASELINES)
    fresh = [row for row, name in enumerate(rows["zero-shot"][0].ids) if name not in seen]
    on_fresh = common.table({row: [scores.take(fresh) for scores in files] for row, files in rows.items()}, BASELINES)
    document = {
        "settings": settings,
        "strengths": strengths,
        "rows": result,
        "rows_on_fresh_questions": on_fresh,
        # How far too wide the untrained model's logits are; said of it, and used for nothing.
        "zero_shot_temperature": fit_temperature(rows["zero-shot"][0]).temperature,
        "questions_needed": {f"{a}, {b}": needed(rows[a], rows[b]) for a, b in COMPARED},
    }
    print(json.dumps(document["questions_needed"], indent=1))
    target = common.publish("methods", folder, quick=arguments.quick, document=document)
    # Reliability before and after with the first seed, one panel a row of the table.
    shown = ("zero-shot", "sft", "sft + temperature", "tempered")
    save_diagram(target.with_name("reliability.png"), {row: rows[row][0].decide() for row in shown})


def load(settings: dict[str, Any]) -> tuple[dict[str, list[Question]], set[str]]:
    """Questions by their use, and the ids of the test questions that the first version saw."""
    calibration = pick(load_questions("world-facts", "calibration"), settings["fit"] + settings["choose"], 0)
    train = load_questions("world-facts", "train")
    test = load_questions("world-facts", "test")
    seen = {question.id for question in pick(test, SEEN, 0)}
    fresh = [question for question in test if question.id not in seen]
    rest = pick([question for question in test if question.id in seen], max(0, settings["test"] - len(fresh)), 1)
    data = {
        "train": train,
        "choose_train": pick(train, settings["choose_train"], settings["choose_seed"]),
        "fit": calibration[: settings["fit"]],
        "choose": calibration[settings["fit"] :],
        "test": (fresh + rest)[: settings["test"]],
    }
    return data, seen


def ready(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]]) -> common.Jobs:
    """What can be done now and has not been: the file it writes, and how."""
    jobs: common.Jobs = {}

    def add(path: Path, job: Any, *arguments: Any, made: dict[str, Any] | None = None) -> None:
        if not path.exists():
            jobs[path] = partial(job, path, settings, data, *arguments)
        elif made is not None:
            common.require_made_with(path, made)

    for method, (_, _, grid) in METHODS.items():
        for strength in grid if len(grid) > 1 else []:
            made = made_with(settings, method, strength, "choose_train", settings["choose_seed"])
            add(choice_path(folder, method, strength), run_choice, method, strength, made=made)
    add(folder / "zero-shot.parquet", run_zero_shot)
    chosen = choose(folder)["chosen"]
    for seed in settings["seeds"]:
        for method in METHODS:
            if method in chosen:
                made = made_with(settings, method, chosen[method], "train", seed)
                add(folder / f"{method}-{seed}.parquet", run_method, method, chosen[method], seed, made=made)
    return jobs


def choose(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each method whose grid is done, the strength with the least NLL on calibration questions, and all tried."""
    found: dict[str, dict[str, Any]] = {"chosen": {}, "tried": {}}
    for method, (_, _, grid) in METHODS.items():
        paths = [choice_path(folder, method, strength) for strength in grid] if len(grid) > 1 else []
        if all(path.exists() for path in paths):
            scores = [read_scores(path).scores for path in paths]
            losses = [nll(item) for item in scores]
            found["chosen"][method] = grid[int(np.argmin(losses)) if losses else 0]
            found["tried"][method] = [
                {**strength, "accuracy": item.decide().correct.mean(), "nll": loss}
                for strength, item, loss in zip(grid, scores, losses, strict=False)
            ]
    return found


def choice_path(folder: Path, method: str, strength: dict[str, Any]) -> Path:
    return folder / f"choose-{method}-{','.join(f'{key}={value}' for key, value in strength.items())}.parquet"


def made_with(settings: dict[str, Any], method: str, strength: dict[str, Any], train: str, seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    names = ("model", "template", "method_fit", "test", "epochs", "batch", "learning_rate", "lora_r", "lora_alpha")
    return {
        **{name: settings[name] for name in names},
        "train": settings[train],
        "seed": seed,
        **METHODS[method][1],
        **strength,
    }


def fine_tune(
    settings: dict[str, Any], data: Any, method: str, strength: dict[str, Any], seed: int, train: Any, folder: Path
) -> tuple[Any, Any]:
    trainer, fixed, _ = METHODS[method]
    fit = None if trainer == "SFT" else data["fit"][: settings["method_fit"]]
    return common.fine_tune(settings, trainer, {**fixed, **strength}, seed, train, fit, folder)


def run_choice(path: Path, settings: dict[str, Any], data: Any, method: str, strength: dict[str, Any]) -> None:
    seed = settings["choose_seed"]
    model, tokenizer = fine_tune(settings, data, method, strength, seed, data["choose_train"], path.parent)
    made = made_with(settings, method, strength, "choose_train", seed)
    common.score_into(path, settings, model, tokenizer, data["choose"], split="calibration", made_with=made)


def run_zero_shot(path: Path, settings: dict[str, Any], data: Any) -> None:
    from caltune.models import load_model

    common.score_into(path, settings, *load_model(settings["model"]), data["test"], split="test")


def run_method(
    path: Path, settings: dict[str, Any], data: Any, method: str, strength: dict[str, Any], seed: int
) -> None:
    train = pick(data["train"], settings["train"], seed)
    model, tokenizer = fine_tune(settings, data, method, strength, seed, train, path.parent)
    if method in SCALED:
        fitted = path.with_name(f"{method}-{seed}-fit.parquet")
        common.score_into(fitted, settings, model, tokenizer, data["fit"], split="calibration", seed=seed)
    made = made_with(settings, method, strength, "train", seed)
    common.score_into(
        path, settings, model, tokenizer, data["test"], split="test", seed=seed, method=method, made_with=made
    )


def collect(settings: dict[str, Any], folder: Path) -> dict[str, list[OptionLogits]]:
    """Test scores of each row of the table, one a seed; temperature is fitted on each seed's calibration scores."""

    def read(name: str) -> OptionLogits:
        return read_scores(folder / f"{name}.parquet").scores

    rows = {"zero-shot": [read("zero-shot")]}
    for method in METHODS:
        rows[method] = [read(f"{method}-{seed}") for seed in settings["seeds"]]
        if method in SCALED:
            rows[f"{method} + temperature"] = [
                fit_temperature(read(f"{method}-{seed}-fit"))(read(f"{method}-{seed}")) for seed in settings["seeds"]
            ]
    return rows


def needed(some: list[OptionLogits], others: list[OptionLogits]) -> dict[str, Any]:
    """Shared questions that show a difference with a probability of 0.8, by the mean variance over the seeds."""
    some = some * len(others) if len(some) == 1 else some
    pairs = [(per_question(a), per_question(b)) for a, b in zip(some, others, strict=True)]
    found = {}
    for name in ("accuracy", "brier", "nll"):
        variance = float(np.mean([np.var(b[name] - a[name], ddof=1) for a, b in pairs]))
        found[name] = {"variance": variance, **{str(d): questions_needed(d, variance) for d in (0.01, 0.02, 0.05)}}
    return found


def per_question(scores: OptionLogits) -> dict[str, Any]:
    """What accuracy, Brier score and NLL are means of."""
    p, rows = scores.probabilities(), np.arange(len(scores))
    of_answer = p[rows, scores.labels]
    return {
        "accuracy": scores.decide().correct,
        "brier": 1 - 2 * of_answer + (p**2).sum(axis=1),
        "nll": -scores.log_probabilities()[rows, scores.labels],
    }


if __name__ == "__main__":
    main()
