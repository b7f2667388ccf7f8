"""Train on one source, test on it and on others: does calibration learnt on one kind of question hold on another?

    python benchmarks/transfer.py --part world-facts|arc|obqa [--data DIR] [--quick] [--seeds S …] [--minutes M]

`world-facts`: trained on relations about countries, cities, airports and currencies; tested on the test questions of
these, and of the relations it never saw, about elements, the states and counties of the USA, and languages. `arc`:
trained on ARC-Easy; tested on ARC-Easy, ARC-Challenge and OpenBookQA. `obqa`: trained on OpenBookQA; tested on it and
on the MMLU subjects of business, culture, history and psychology. The first test of each part is in-domain.

Each run fine-tunes SmolLM2-135M-Instruct with LoRA on 400 training questions of the source, option text, 3 epochs; a
seed picks the questions, their order and the adapter's start. The test questions are the same throughout. Training
questions that stand among those that are fitted or tested on are left out, and so are rows with two equal options. An
option's logit is its text's log-probability for `world-facts`, and the mean over its tokens for the other two, whose
options differ in length: by sums the untrained model falls below chance on OpenBookQA (`caltune score --reduction`).

Nothing is chosen here: the strengths of the methods are those that did best on calibration questions of `world-facts`
(all relations, those held out here too) in a first look at 600 training questions. Detectors and bins are fitted on 200
held-out questions of the source, the temperature of "sft + temperature" on 300 (these 200 among them). "sft + oracle
temperature" is out of a user's reach: it is fitted on answered questions of the target itself, each half of the test
questions for the other half, and tells what one number could do at best. "tempered" needs no held-out question; its T
is fixed before the first step (`tempered_parts.py` has it fitted again, too).

DIR (default: ../shared/data beside the repository) holds the folders arc_easy, arc_challenge, openbookqa and mmlu with
one JSONL file a split; `world-facts` needs none. Scores are kept as they come; several processes may share one folder.
Tables and a picture go to `benchmarks/results/transfer-PART.json` and beside it. Two processes on two cores take about
56 minutes for `world-facts`, and for each seed 50 for `arc` and `obqa` (beside other work): `--minutes 50` makes parts
under an hour.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import pick

from caltune.data import find_overlap, load_questions
from caltune.errors import InputError
from caltune.formats import read_scores
from caltune.metrics import nll
from caltune.recalibrate.temperature import LOG_RANGE, Temperature, fit_temperature
from caltune.types import OptionLogits, Question

SETTINGS = {**common.RUN, "train": 400, "fit": 300, "method_fit": 200, "seeds": [0, 1, 2]}
TESTS = {"world-facts": 800, "arc": 800, "obqa": 500, "mmlu": 200}  # test questions of each target; mmlu: of each field
QUICK = {"train": 64, "fit": 48, "method_fit": 32, "epochs": 1, "seeds": [0]}
QUICK_TEST = 16

TEMPERED = {"option_temperature": 0.0, "average_weights": 1.0}  # `tempered` with T fixed before the first step
# Method -> (trainer, its settings).
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("SFT", {}),
    "rcft-held-out": (
        "RCFT",
        {"bin_accuracy_source": "held-out", "bin_weights": "count", "calibration_weight": 1.0},
    ),
    "cogcalib-label-smoothing": ("CogCalib", {"penalty": "label-smoothing", "smoothing": 0.2}),
    "cogcalib-margin": (
        "CogCalib",
        {"penalty": "margin", "margin": 2.0, "penalty_weight": 0.1, "style_share": 0.33},
    ),
    "cogcalib-entropy": ("CogCalib", {"penalty": "entropy", "penalty_weight": 0.3, "style_share": 0.33}),
    "tempered": ("Tempered", {"option_temperature_refit": False}),
    "tempered-rcft": (
        "RCFT",
        {**TEMPERED, "bin_accuracy_source": "held-out", "bin_weights": "count", "calibration_weight": 2.5},
    ),
    "tempered-cogcalib": ("CogCalib", {**TEMPERED, "penalty": "label-smoothing", "smoothing": 0.05}),
}
HELD_OUT = ("element-", "number-element", "symbol-element", "us-", "language-code", "code-language")
MMLU = {
    "business": ("business_ethics", "management", "marketing"),
    "culture": ("human_sexuality", "sociology"),
    "history": (*(f"high_school_{where}_history" for where in ("european", "us", "world")), "prehistory"),
    "psychology": ("high_school_psychology", "professional_psychology"),
}
Data = dict[str, list[Question]]


def main() -> None:
    arguments, folder = common.parse(__doc__, "transfer", parts=("world-facts", "arc", "obqa"), add=add_arguments)
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    tests = dict.fromkeys(TESTS, QUICK_TEST) if arguments.quick else TESTS
    for part in [arguments.part] if arguments.part else ("world-facts", "arc", "obqa"):
        how = settings if part == "world-facts" else {**settings, "reduction": "mean"}
        run_part(f"transfer-{part}", how, folder, load(part, how, tests, arguments.data), arguments, METHODS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, default=common.HERE.parents[1] / "shared" / "data", help="folder of the data sets"
    )


def run_part(
    name: str,
    settings: dict[str, Any],
    folder: Path,
    data: Data,
    arguments: Any,
    methods: dict[str, Any],
    baselines: Sequence[str] = ("sft", "sft + temperature"),
) -> None:
    """Do what is to be done, and publish the tables and the picture once all of it is done."""
    if not common.work(partial(ready, name, settings, folder, data, methods), arguments.minutes):
        return
    rows = collect(name, settings, folder, methods)
    results = {}
    for target in dict.fromkeys(question.group for question in data["test"]):
        results[target] = of_target(rows, lambda group, target=target: group == target, baselines)
    mmlu = [target for target in results if target.startswith("MMLU")]
    if len(mmlu) > 1:
        results[f"MMLU, {len(mmlu)} fields"] = of_target(rows, lambda group: group in mmlu, baselines)
    for target, result in results.items():
        print(f"\n### {name}: {target}, {result['questions']} questions")
        common.print_table(result["rows"], baselines)
    shown = {**settings, "model": Path(settings["model"]).name}
    document = {
        "settings": shown,
        "methods": methods,
        "train": len(data["train"]),
        "option_temperatures": option_temperatures(name, settings, folder, methods),
        "targets": results,
    }
    path = common.publish(name, folder, quick=arguments.quick, document=document)
    draw(path.with_suffix(".png"), name, shown, results)


def load(part: str, settings: dict[str, Any], tests: dict[str, int], folder: Path) -> Data:
    """The questions to train on, to fit on and to test on; a test question's group is the name of its target."""
    if part == "world-facts":
        splits = {split: load_questions("world-facts", split) for split in ("train", "calibration", "test")}
        seen = {
            split: [question for question in questions if not question.group.startswith(HELD_OUT)]
            for split, questions in splits.items()
        }
        new = [question for question in splits["test"] if question.group.startswith(HELD_OUT)]
        targets = {"relations trained on": seen["test"], "held-out relations": new}
        return assemble(seen["train"], seen["calibration"], targets, settings, tests["world-facts"])
    source = {"arc": "arc_easy", "obqa": "openbookqa"}[part]
    read = partial(read_data, folder)
    if part == "arc":
        targets = {"ARC-Easy": read("arc_easy", "test"), "ARC-Challenge": read("arc_challenge", "test")}
        targets["OpenBookQA"] = read("openbookqa", "test")[: tests["obqa"]]
        return assemble(read(source, "train"), read(source, "validation"), targets, settings, tests["arc"])
    targets = {"OpenBookQA": read("openbookqa", "test")[: tests["obqa"]]}
    mmlu = read("mmlu", "test")
    for field, subjects in MMLU.items():
        of_field = [question for question in mmlu if question.group in subjects]
        targets[f"MMLU {field}"] = pick(of_field, tests["mmlu"], 0)
    return assemble(read(source, "train"), read(source, "validation"), targets, settings, tests["obqa"])


def read_data(folder: Path, name: str, split: str) -> list[Question]:
    """A split of a data set in the folder; a row that breaks a rule, such as equal options, is left out."""
    if not (folder / name).is_dir():
        raise SystemExit(f"{folder / name}: this folder must hold the data set (see --data), found none")
    return load_questions(folder / name, split, on_bad=lambda _: None)


def assemble(
    train: Sequence[Question],
    fit: Sequence[Question],
    targets: dict[str, list[Question]],
    settings: dict[str, Any],
    count: int,
) -> Data:
    """Draw `count` test questions of each target, then what to fit on and train on among the rest."""
    test = [replace(q, group=target) for target, questions in targets.items() for q in pick(questions, count, 0)]
    twice = {item.second_id for item in find_overlap({"test": test, "fit": fit})}
    fit = pick([question for question in fit if question.id not in twice], settings["fit"], 0)
    twice = {item.second_id for item in find_overlap({"tested": [*test, *fit], "train": train})}
    return {"train": [question for question in train if question.id not in twice], "fit": fit, "test": test}


def ready(name: str, settings: dict[str, Any], folder: Path, data: Data, methods: dict[str, Any]) -> common.Jobs:
    """What has not been done: the file it writes, and how."""
    wanted = {folder / f"{name}-zero-shot.parquet": (run_zero_shot, made_with(settings, data, None, None))}
    for seed in settings["seeds"]:
        for method, fields in methods.items():
            made = made_with(settings, data, fields, seed)
            wanted[folder / f"{name}-{method}-{seed}.parquet"] = (partial(run_method, fields, seed), made)
    jobs: common.Jobs = {}
    for path, (job, made) in wanted.items():
        if path.exists():
            common.require_made_with(path, made)
        else:
            jobs[path] = partial(job, path, settings, data, made)
    return jobs


def made_with(settings: dict[str, Any], data: Data, fields: Any, seed: int | None) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    names = ("answers", "template", "epochs", "batch", "learning_rate", "lora_r", "lora_alpha", "train", "method_fit")
    of_run = {name: settings[name] for name in names} if fields else {}
    of_run |= {"reduction": settings["reduction"]} if "reduction" in settings else {}
    method, model = list(fields) if fields else None, Path(settings["model"]).name
    return {**of_run, "model": model, "method": method, "seed": seed, "test": len(data["test"])}


def run_zero_shot(path: Path, settings: dict[str, Any], data: Data, made: dict[str, Any]) -> None:
    from caltune.models import load_model

    common.score_into(path, settings, *load_model(settings["model"]), data["test"], split="test", made_with=made)


def run_method(
    fields: tuple[str, dict[str, Any]], seed: int, path: Path, settings: dict[str, Any], data: Data, made: Any
) -> None:
    train = pick(data["train"], settings["train"], seed)
    fit = None if fields[0] == "SFT" else data["fit"][: settings["method_fit"]]
    model, tokenizer = common.fine_tune(settings, *fields, seed, train, fit, path.parent)
    if fields[0] == "SFT":  # what temperature scaling is fitted on
        fitted = path.with_name(f"{path.stem}-fit.parquet")
        common.score_into(fitted, settings, model, tokenizer, data["fit"], split="calibration", seed=seed)
    common.score_into(path, settings, model, tokenizer, data["test"], split="test", seed=seed, made_with=made)


def collect(
    name: str, settings: dict[str, Any], folder: Path, methods: dict[str, Any]
) -> dict[str, list[tuple[OptionLogits, OptionLogits | None]]]:
    """Scores of all test questions for each row, one a seed, and those that the row's temperature is fitted on."""

    def read(rest: str) -> OptionLogits:
        return read_scores(folder / f"{name}-{rest}.parquet").scores

    rows: dict[str, Any] = {"zero-shot": [(read("zero-shot"), None)]}
    for method in methods:
        rows[method] = [(read(f"{method}-{seed}"), None) for seed in settings["seeds"]]
        if methods[method][0] == "SFT":
            fitted = [(read(f"{method}-{seed}"), read(f"{method}-{seed}-fit")) for seed in settings["seeds"]]
            rows[f"{method} + temperature"] = fitted
    return rows


def option_temperatures(
    name: str, settings: dict[str, Any], folder: Path, methods: dict[str, Any]
) -> dict[str, list[float]]:
    """What each model that has an option temperature divides its logits by, one number a seed."""
    found: dict[str, list[float]] = {}
    for method in methods:
        files = [read_scores(folder / f"{name}-{method}-{seed}.parquet").metadata for seed in settings["seeds"]]
        if any("temperature" in metadata for metadata in files):
            found[method] = [float(metadata.get("temperature", 1.0)) for metadata in files]
    return found


def of_target(rows: dict[str, Any], belongs: Any, baselines: Sequence[str]) -> dict[str, Any]:
    """The table of the test questions whose group `belongs`, with the temperatures of source and target."""
    found: dict[str, list[OptionLogits]] = {}
    temperatures = []
    for row, files in rows.items():
        wanted = [i for i, group in enumerate(files[0][0].groups) if belongs(group)]
        found[row] = [scores.take(wanted) for scores, _ in files]
        if row.endswith(" + temperature"):
            plain = found[row]
            fitted = [best_temperature(fit) for _, fit in files]
            found[row] = [temperature(scores) for temperature, scores in zip(fitted, plain, strict=True)]
        if row == "sft + temperature":
            temperatures = [temperature.temperature for temperature in fitted]
            found["sft + oracle temperature"] = [oracle_temperature(scores) for scores in plain]
    table = common.table(found, baselines)
    return {"questions": len(found["zero-shot"][0]), "source_temperatures": temperatures, "rows": table}


def best_temperature(scores: OptionLogits) -> Temperature:
    """`fit_temperature`, or the better end of its range where none within is best.

    >>> right_by_chance = OptionLogits(("a", "b"), [[2.0, 0.0]] * 2, [0, 1])
    >>> round(best_temperature(right_by_chance).temperature, 1)
    148.4
    """
    try:
        return fit_temperature(scores)
    except InputError:
        ends = [Temperature(math.exp(end)) for end in (-LOG_RANGE, LOG_RANGE)]
        return replace(min(ends, key=lambda end: nll(end(scores))), fitted_on=scores.ids)


def oracle_temperature(scores: OptionLogits) -> OptionLogits:
    """Every other question divided by the temperature that fits the rest best, and the rest by that of the others.

    Logits of 2 and 0 that are right 3 times of 4 in each half come out as 0.75:

    >>> scores = OptionLogits(tuple("abcdefgh"), [[2.0, 0.0]] * 8, [0, 0, 0, 0, 0, 0, 1, 1])
    >>> scaled = oracle_temperature(scores)
    >>> scaled.ids == scores.ids, scaled.decide().confidence.round(4).tolist()
    (True, [0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75])
    """
    logits = np.empty_like(scores.logits)
    for start in (0, 1):
        half, rest = np.arange(start, len(scores), 2), np.arange(1 - start, len(scores), 2)
        logits[half] = best_temperature(scores.take(rest))(scores.take(half)).logits
    return replace(scores, logits=logits)


def draw(path: Path, name: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """A column a target and a row a metric: mean of the seeds with its 95 % interval, and each seed as a dot."""
    from matplotlib.figure import Figure

    metrics = {"accuracy": "accuracy (more is better)", "nll": "NLL, nats (less is better)", "ece": "ECE (less)"}
    methods = list(next(iter(results.values()))["rows"])[::-1]
    drawing = Figure(figsize=(2.6 + 2.7 * len(results), 1.4 + 0.26 * len(methods) * len(metrics)), layout="constrained")
    grid = drawing.subplots(len(metrics), len(results), sharey=True, squeeze=False)
    for column, (target, result) in enumerate(results.items()):
        for axes, (metric, label) in zip(grid[:, column], metrics.items(), strict=True):
            for height, method in enumerate(methods):
                found = result["rows"][method]
                mean = found["mean"][metric]
                colour = "#777777" if method == "zero-shot" else "#c04e00" if "sft" in method else "#0072b2"
                axes.plot([mean["low"], mean["high"]], [height, height], color=colour, linewidth=1.4)
                axes.plot(found["per_seed"][metric], [height] * len(found["per_seed"][metric]), ".", color="#888888")
                axes.plot(mean["value"], height, "o", color=colour, markersize=5)
            axes.set(xlabel=label, yticks=range(len(methods)), yticklabels=methods)
            axes.grid(axis="x", color="#e4e4e4")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0, column].set_title(f"{target}\n{result['questions']} questions", fontsize=10)
    seeds = f"{len(settings['seeds'])} seed{'s' if len(settings['seeds']) > 1 else ''}"
    how = f"{settings['train']} training questions, {settings['answers']}"
    told = (name, settings["model"], how, f"mean of {seeds}, 95 % intervals over questions")
    drawing.suptitle("\n".join(told), fontsize=11)
    common.save_picture(drawing, path)


if __name__ == "__main__":
    main()
