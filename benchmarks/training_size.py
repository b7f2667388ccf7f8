"""How many training questions are needed: plain, with a temperature, and tempered fine-tuning on 40 to 640 questions.

    python benchmarks/training_size.py [--quick] [--output DIR] [--seeds S …] [--minutes M]

Each run fine-tunes SmolLM2-135M-Instruct with LoRA on so many training questions of `world-facts` for 3 epochs of
batches of 16, and is scored on the same 1,000 test questions. "sft + temperature" takes its temperature from 200
calibration questions beside them; "of all questions" gives tempered fine-tuning as many questions as both together
have, so that no row has more answers to learn from. With 40 questions there are 9 steps: "last half" averages the
weights over the last half of the steps, where `tempered` takes all. Nothing is chosen. A seed picks the training
questions, their order and the adapter's start; 3 seeds of each row.

Scores are written to DIR as they come, and what is there is not done again; several processes may share one DIR. The
tables go to standard output and, as JSON, to `benchmarks/results/training_size.json` with a picture beside it (with
`--quick` into DIR only). In two processes on two cores it takes 66 minutes:
`--minutes 45` makes parts of less than an hour, and the same command goes on where it stopped.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import common
from common import pick

from caltune.data import load_questions
from caltune.formats import read_scores
from caltune.recalibrate import fit_temperature
from caltune.types import OptionLogits, Question

SETTINGS = {**common.RUN, "sizes": [40, 160, 640], "fit": 200, "test": 1000, "seeds": [0, 1, 2]}
QUICK = {"sizes": [16, 32], "fit": 32, "test": 60, "epochs": 1, "seeds": [0]}
BASELINES = ("sft", "sft + temperature", "tempered")
REFIT = {"option_temperature_refit": True}
# Row -> (trainer, its settings, whether it trains on as many more questions as others fit a temperature on).
METHODS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "sft": ("SFT", {}, False),
    "tempered": ("Tempered", REFIT, False),
    "tempered, last half": ("Tempered", {**REFIT, "average_weights": 0.5}, False),
    "tempered, of all questions": ("Tempered", REFIT, True),
}
SHOWN = {"accuracy": "accuracy (more is better)", "nll": "NLL, nats (less)", "ece": "ECE (less)"}


def main() -> None:
    arguments, folder = common.parse(__doc__, "training_size")
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    data = {
        "train": load_questions("world-facts", "train"),
        "fit": pick(load_questions("world-facts", "calibration"), settings["fit"], 0),
        "test": pick(load_questions("world-facts", "test"), settings["test"], 0),
    }
    if not common.work(partial(ready, settings, folder, data), arguments.minutes):
        return
    results = {}
    for size in settings["sizes"]:
        results[size] = common.table(collect(settings, folder, size), BASELINES)
        print(f"\n### {size} training questions")
        common.print_table(results[size], BASELINES)
    told = {"settings": settings, "methods": METHODS, "sizes": results}
    target = common.publish("training_size", folder, quick=arguments.quick, document=told)
    draw(target.with_suffix(".png"), settings, results)


def path_of(folder: Path, row: str, size: int, seed: int) -> Path:
    return folder / f"{row.replace(',', '').replace(' ', '-')}-{size}-{seed}.parquet"


def ready(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]]) -> common.Jobs:
    """What can be done now and has not been: the file it writes, and how."""
    jobs: common.Jobs = {}
    for seed in settings["seeds"]:
        for size in settings["sizes"]:
            for row in METHODS:
                path = path_of(folder, row, size, seed)
                if not path.exists():
                    jobs[path] = partial(run, path, settings, data, row, size, seed)
                else:
                    common.require_made_with(path, made_with(settings, row, size, seed))
    zero_shot = folder / "zero-shot.parquet"
    if not zero_shot.exists():
        jobs[zero_shot] = partial(run_zero_shot, zero_shot, settings, data)
    return jobs


def made_with(settings: dict[str, Any], row: str, size: int, seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    same = {key: value for key, value in settings.items() if key not in ("seeds", "sizes")}
    return {**same, "method": list(METHODS[row]), "size": size, "seed": seed}


def run_zero_shot(path: Path, settings: dict[str, Any], data: Any) -> None:
    from caltune.models import load_model

    common.score_into(path, settings, *load_model(settings["model"]), data["test"], split="test")


def run(path: Path, settings: dict[str, Any], data: Any, row: str, size: int, seed: int) -> None:
    trainer, fields, all_questions = METHODS[row]
    train = pick(data["train"], size, seed) + (data["fit"] if all_questions else [])
    tuned = common.fine_tune(settings, trainer, fields, seed, train, None, path.parent)
    if row == "sft":  # what its temperature is fitted on
        fitted = path.with_name(f"{path.stem}-fit.parquet")
        common.score_into(fitted, settings, *tuned, data["fit"], split="calibration", seed=seed)
    made = made_with(settings, row, size, seed)
    common.score_into(path, settings, *tuned, data["test"], split="test", seed=seed, made_with=made)


def collect(settings: dict[str, Any], folder: Path, size: int) -> dict[str, list[OptionLogits]]:
    """Test scores of each row, one a seed."""
    rows = {"zero-shot": [read_scores(folder / "zero-shot.parquet").scores]}
    for row in METHODS:
        paths = [path_of(folder, row, size, seed) for seed in settings["seeds"]]
        rows[row] = [read_scores(path).scores for path in paths]
        if row == "sft":
            fits = [read_scores(path.with_name(f"{path.stem}-fit.parquet")).scores for path in paths]
            pairs = zip(fits, rows[row], strict=True)
            rows["sft + temperature"] = [fit_temperature(fit)(scores) for fit, scores in pairs]
    return rows


def draw(path: Path, settings: dict[str, Any], results: dict[int, Any]) -> None:
    """A panel a metric: means of the seeds with 95 % intervals, against the number of training questions."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 4.8), layout="constrained")
    sizes = list(results)
    rows = list(results[sizes[0]])
    for panel, (metric, label) in zip(drawing.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        for place, row in enumerate(rows):
            means = [results[size][row]["mean"][metric] for size in sizes]
            values = [mean["value"] for mean in means]
            if row == "zero-shot":
                panel.axhline(values[0], color="#777777", linestyle=":", label=row)
                continue
            spread = [[m["value"] - m["low"] for m in means], [m["high"] - m["value"] for m in means]]
            shifted = [size * 1.02 ** (place - 3) for size in sizes]
            panel.errorbar(shifted, values, spread, fmt="o-", capsize=2, markersize=4, label=row)
        panel.set(xscale="log", xlabel="training questions", title=label)
        panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e5e5e5", linewidth=0.6)
    drawing.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=len(rows), fontsize=9)
    seeds = f"{len(settings['seeds'])} seed{'s' if len(settings['seeds']) > 1 else ''}"
    told = f"{settings['test']} test questions, mean of {seeds}, 95 % intervals over questions"
    drawing.suptitle(f"SmolLM2-135M-Instruct, world-facts, {told}")
    common.save_picture(drawing, path)


if __name__ == "__main__":
    main()
