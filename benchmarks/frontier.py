"""The λ path of RCFT on `world-facts`: accuracy against calibration error, from one end to the other.

    python benchmarks/frontier.py [--quick] [--output DIR] [--seeds S …] [--minutes M]

RCFT's loss is L_SFT + λ·L_ECE. λ = 0 is plain fine-tuning: accuracy alone. At λ = 10,000 the answer's loss vanishes
(gradients are clipped and Adam has no scale): calibration error alone. Between them the weights that `WEIGHTS` lists,
with bin accuracies from held-out questions and every question counting the same. Beside the path stand λ = 1 with the
paper's 1/N_m (every bin counts the same), with held-out bins and with bins from the training questions as in the paper;
plain fine-tuning + temperature scaling, which costs nothing more; and the model before.

Each run fine-tunes SmolLM2-135M-Instruct with LoRA on 300 training questions and is scored on 1,000 test questions, the
same throughout. Bins and temperatures are fitted on the same 200 calibration questions. Nothing is chosen. A seed picks
the training questions, their order and the adapter's start.

Scores are kept as they come; several processes may share one DIR, and the same command goes on where it stopped. The
table goes to standard output and, as JSON, to `benchmarks/results/frontier.json` with a picture beside it. In two
processes on two cores it takes about 77 minutes, 6 a run: `--minutes 50` makes parts of less than an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import common
from common import pick

from caltune.data import load_questions
from caltune.formats import read_scores
from caltune.recalibrate import fit_temperature
from caltune.types import OptionLogits, Question

SETTINGS = {**common.RUN, "train": 300, "fit": 200, "test": 1000, "seeds": [0, 1, 2]}
QUICK = {"train": 32, "fit": 32, "test": 100, "epochs": 1, "seeds": [0]}
WEIGHTS = (0.3, 1.0, 3.0, 10.0, 100.0, 10_000.0)
HELD_OUT = {"bin_accuracy_source": "held-out"}
EQUAL = {"bin_weights": "equal", "calibration_weight": 1.0}
PATH = ["sft", *(f"lambda {weight:g}" for weight in WEIGHTS)]
# Where a label stands that would meet another: points to the right of its mark and above it, and its side there.
PLACES = {
    "sft": (8, -3, "left"),
    "sft + temperature": (-22, 24, "left"),
    "lambda 0.3": (-2, 14, "right"),
    "lambda 1": (5, -16, "left"),
    "lambda 3": (-8, -13, "right"),
    "lambda 10": (-8, -13, "right"),
    "lambda 10000": (8, -5, "left"),
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("SFT", {}),
    **{f"lambda {w:g}": ("RCFT", {**HELD_OUT, "bin_weights": "count", "calibration_weight": w}) for w in WEIGHTS},
    "equal bins, held-out": ("RCFT", {**EQUAL, **HELD_OUT}),
    "equal bins, train (the paper)": ("RCFT", {**EQUAL, "bin_accuracy_source": "train"}),
}
Data = dict[str, list[Question]]


def main() -> None:
    arguments, folder = common.parse(__doc__, "frontier")
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    data = {
        "train": load_questions("world-facts", "train"),
        "fit": pick(load_questions("world-facts", "calibration"), settings["fit"], 0),
        "test": pick(load_questions("world-facts", "test"), settings["test"], 0),
    }
    if not common.work(partial(ready, settings, folder, data), arguments.minutes):
        return
    result = common.table(collect(settings, folder))
    common.print_table(result)
    best = {error: undominated(points(result, error)) for error in ("ece", "nll")}
    for error, rows in best.items():
        print(f"\nNo other row is at least as good in accuracy and in {error.upper()}: {'; '.join(rows)}.")
    document = {"settings": settings, "runs": RUNS, "rows": result, "undominated": best}
    path = common.publish("frontier", folder, quick=arguments.quick, document=document)
    draw(path.with_suffix(".png"), settings, result)


def ready(settings: dict[str, Any], folder: Path, data: Data) -> common.Jobs:
    """What has not been done: the file it writes, and how."""
    jobs: common.Jobs = {}
    zero_shot = folder / "zero-shot.parquet"
    if not zero_shot.exists():
        jobs[zero_shot] = partial(run_zero_shot, zero_shot, settings, data)
    for seed in settings["seeds"]:
        for row, run in RUNS.items():
            path = run_path(folder, row, seed)
            if path.exists():
                common.require_made_with(path, made_with(settings, run, seed))
            else:
                jobs[path] = partial(run_method, path, settings, data, run, seed)
    return jobs


def run_path(folder: Path, row: str, seed: int) -> Path:
    name = row.replace(",", "").replace("(", "").replace(")", "").replace(" ", "-")
    return folder / f"{name}-{seed}.parquet"


def made_with(settings: dict[str, Any], run: tuple[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    same = {name: value for name, value in settings.items() if name != "seeds"}
    return {**same, "seed": seed, "method": list(run)}


def run_zero_shot(path: Path, settings: dict[str, Any], data: Data) -> None:
    from caltune.models import load_model

    common.score_into(path, settings, *load_model(settings["model"]), data["test"], split="test")


def run_method(path: Path, settings: dict[str, Any], data: Data, run: tuple[str, dict[str, Any]], seed: int) -> None:
    train = pick(data["train"], settings["train"], seed)
    fit = data["fit"] if run[1].get("bin_accuracy_source") == "held-out" else None
    model, tokenizer = common.fine_tune(settings, *run, seed, train, fit, path.parent)
    if run[0] == "SFT":  # what temperature scaling is fitted on
        fitted = path.with_name(f"{path.stem}-fit.parquet")
        common.score_into(fitted, settings, model, tokenizer, data["fit"], split="calibration", seed=seed)
    made = made_with(settings, run, seed)
    common.score_into(path, settings, model, tokenizer, data["test"], split="test", seed=seed, made_with=made)


def collect(settings: dict[str, Any], folder: Path) -> dict[str, list[OptionLogits]]:
    """Test scores of each row of the table, one a seed."""
    rows = {"zero-shot": [read_scores(folder / "zero-shot.parquet").scores]}
    for row in RUNS:
        paths = [run_path(folder, row, seed) for seed in settings["seeds"]]
        rows[row] = [read_scores(path).scores for path in paths]
        if row == "sft":
            fitted = [read_scores(path.with_name(f"{path.stem}-fit.parquet")).scores for path in paths]
            rows["sft + temperature"] = [
                fit_temperature(fit)(scores) for fit, scores in zip(fitted, rows["sft"], strict=True)
            ]
    return rows


def points(result: dict[str, Any], error: str) -> dict[str, tuple[float, float]]:
    """Accuracy and error of each row."""
    return {row: (found["mean"]["accuracy"]["value"], found["mean"][error]["value"]) for row, found in result.items()}


def undominated(rows: Mapping[str, tuple[float, float]]) -> list[str]:
    """The rows (accuracy, error) that no other beats: none is better in one and at least as good in the other.

    >>> undominated({"a": (0.8, 0.1), "b": (0.7, 0.05), "worse than b": (0.7, 0.2), "worse than a": (0.75, 0.1)})
    ['a', 'b']
    """

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] >= other[0] and one[1] <= other[1]

    return [row for row, point in rows.items() if not any(beats(other, point) for other in rows.values())]


def draw(path: Path, settings: dict[str, Any], result: dict[str, Any]) -> None:
    """Accuracy against ECE and against NLL: the path as a line, the other rows as marks, intervals as crosses."""
    from matplotlib.figure import Figure

    labels = {row: row.replace("lambda ", "λ = ") for row in result} | {"sft": "λ = 0 (SFT)", "lambda 10000": "λ = 10⁴"}
    text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9}
    drawing = Figure(figsize=(12.5, 5.6), layout="constrained")
    for axes, (error, label) in zip(
        drawing.subplots(1, 2), (("ece", "ECE, 15 bins"), ("nll", "NLL, nats")), strict=True
    ):
        found = points(result, error)
        axes.plot([found[row][1] for row in PATH], [found[row][0] for row in PATH], color="#0072b2", linewidth=1.2)
        best = undominated(found)
        for row, (accuracy, value) in found.items():
            colour = "#0072b2" if row in PATH else "#c04e00"
            across, up = (result[row]["mean"][name] for name in (error, "accuracy"))
            axes.plot([across["low"], across["high"]], [accuracy] * 2, color=colour, alpha=0.35, linewidth=1)
            axes.plot([value] * 2, [up["low"], up["high"]], color=colour, alpha=0.35, linewidth=1)
            face = colour if row in best else "white"
            axes.plot(value, accuracy, "o", markersize=7, markeredgecolor=colour, markerfacecolor=face)
            right, up, side = PLACES.get(row, (7, 5 if row in PATH else -13, "left"))
            axes.annotate(labels[row], (value, accuracy), (right, up), **text, color=colour, ha=side)
        axes.set(xlabel=f"{label} (left is better)", ylabel="accuracy (up is better)")
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    seeds = f"{len(settings['seeds'])} seed{'s' if len(settings['seeds']) > 1 else ''}"
    drawing.suptitle(
        f"RCFT from accuracy alone (λ = 0) to calibration error alone (λ = 10⁴): {settings['train']} training "
        f"questions of world-facts, mean of {seeds}\ncrosses: 95 % intervals over {settings['test']} test questions; "
        "filled: no other row is as good in both",
        fontsize=11,
    )
    common.save_picture(drawing, path)


if __name__ == "__main__":
    main()
