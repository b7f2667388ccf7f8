"""How often do 95 % intervals hold the truth? Simulated models whose true metrics are known, calibrated and not.

Each trial draws N questions with four options; labels follow softmax(z), the model says softmax(z), or the softmax of
a multiple of z where it is to be miscalibrated. Of the "calibrated" and the "overconfident" model 61 % are right; the
other two are nearly always right, "sure" with reason and "saturated" surer than that. The truth is that of a large
population (of calibrated models: 0 for calibration errors). Intervals are those that `caltune evaluate` prints,
Clopper-Pearson for accuracy, percentile for other means, proper scores and order, basic for calibration errors, and
`corrected_ece`; BCa beside them at N = 200 (its jackknife grows with N²). Sets where a metric is not defined do not
count.

    python benchmarks/coverage.py --quick                          # 60 trials, two sizes
    python benchmarks/coverage.py                                  # 400 trials at 200 and 1,000, 200 at 5,000
    python benchmarks/coverage.py --models sure --sizes 200 1000   # these anew, the other rows are kept
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from caltune.metrics import (
    accuracy_interval,
    aurc_statistic,
    bca_interval,
    bootstrap,
    corrected_ece,
    jackknife,
    mce_statistic,
    percentile_interval,
)
from caltune.metrics.bootstrap import Interval, Statistic, basic_interval
from caltune.metrics.summary import CALIBRATION_ERRORS, DIRECTIONS, all_metrics, metric_values
from caltune.output import write_json
from caltune.types import FloatArray, OptionLogits

HERE = Path(__file__).parent
NAMES = (*DIRECTIONS, "mce", "aurc")
ERRORS = (*CALIBRATION_ERRORS, "mce")
POPULATION = 200_000
LARGEST_JACKKNIFE = 200
TRIALS = {200: 400, 1000: 400, 5000: 200}


@dataclass(frozen=True)
class Model:
    """Logits `spread` wide, one of them `lead` ahead, and by how much the model says more than them."""

    spread: float
    lead: float
    scale: float


MODELS = {
    "calibrated": Model(1.5, 0.0, 1.0),
    "overconfident": Model(1.5, 0.0, 1.7),
    "sure": Model(2.0, 9.0, 1.0),
    "saturated": Model(2.0, 9.0, 2.0),
}


def draw(size: int, model: Model, generator: np.random.Generator) -> OptionLogits:
    logits = model.spread * generator.normal(size=(size, 4))
    if model.lead:
        logits[np.arange(size), generator.integers(4, size=size)] += model.lead
    chances = np.exp(logits)
    chances /= chances.sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) < generator.random((size, 1))).sum(axis=1).clip(0, 3)
    return OptionLogits(tuple(map(str, range(size))), model.scale * logits, labels)


def statistic_of(scores: OptionLogits) -> Statistic:
    predictions = scores.decide()
    first, more = all_metrics(scores), (mce_statistic(predictions), aurc_statistic(predictions))
    return lambda counts: np.column_stack([first(counts), *(each(counts) for each in more)])


@cache
def true_values(model: Model) -> dict[str, float]:
    population = draw(POPULATION, model, np.random.default_rng(1))
    truth = dict(zip(NAMES, metric_values(statistic_of(population), POPULATION).tolist(), strict=True))
    if model.scale == 1:
        truth |= dict.fromkeys((*ERRORS, "overconfidence"), 0.0)
        # One number by definition: a calibrated model's confidence is its accuracy.
        truth["accuracy"] = truth["confidence"]
    truth["corrected_ece"] = truth["ece"]
    return truth


def intervals(size: int, model: Model, seed: int, draws: int) -> dict[str, Interval]:
    scores = draw(size, model, np.random.default_rng([seed, size]))
    statistic = statistic_of(scores)
    values = metric_values(statistic, size)
    replicates: FloatArray = bootstrap(statistic, size, draws=draws, seed=seed)
    found = {}
    for i, name in enumerate(NAMES):
        kind = basic_interval if name in ERRORS else percentile_interval
        found[name] = kind(float(values[i]), replicates[:, i])
    if size <= LARGEST_JACKKNIFE:
        alone = jackknife(statistic, size)
        for i, name in enumerate(NAMES):
            if name not in ERRORS:
                found[f"{name} (BCa)"] = bca_interval(float(values[i]), replicates[:, i], alone[:, i])
    found["accuracy"] = accuracy_interval(scores.decide())
    found["corrected_ece"] = corrected_ece(scores.decide(), draws=draws)
    return found


def simulate(size: int, model: str, trials: int, draws: int) -> list[dict[str, Any]]:
    truth = true_values(MODELS[model])
    held: dict[str, list[bool]] = {}
    width: dict[str, list[float]] = {}
    for seed in range(trials):
        for name, interval in intervals(size, MODELS[model], seed, draws).items():
            if math.isnan(interval.low):
                continue
            true = truth[name.removesuffix(" (BCa)")]
            held.setdefault(name, []).append(interval.low - 1e-9 <= true <= interval.high + 1e-9)
            width.setdefault(name, []).append(interval.high - interval.low)
    return [
        {
            "metric": name,
            "model": model,
            "questions": size,
            "trials": len(hits),
            "truth": truth[name.removesuffix(" (BCa)")],
            "coverage": float(np.mean(hits)),
            # Of the coverage itself, by the number of trials.
            "standard_error": math.sqrt(0.95 * 0.05 / len(hits)),
            "mean_width": float(np.mean(width[name])),
        }
        for name, hits in held.items()
    ]


def kept_rows(path: Path, draws: int, anew: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """Of an earlier run with as many resamples, the rows of models and sizes that are not made anew."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    same = found.get("draws") == draws
    return [row for row in found["rows"] if same and (row["model"], row["questions"]) not in anew]


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys((row["model"], row["questions"]) for row in rows))
    shown = {(row["metric"], row["model"], row["questions"]): row["coverage"] for row in rows}
    lines = ["| Metric | " + " | ".join(f"{model}, {size}" for model, size in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for name in dict.fromkeys(row["metric"] for row in rows):
        cells = [f"{100 * shown[name, *at]:.1f}" if (name, *at) in shown else "" for at in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 trials at 200 and 1,000 questions")
    parser.add_argument("--trials", type=int, help="simulated sets for each size and model")
    parser.add_argument("--sizes", type=int, nargs="+", help="questions in a set")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--draws", type=int, default=400, help="resamples of each set")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "coverage.json")
    args = parser.parse_args()
    sizes = args.sizes or ([200, 1000] if args.quick else list(TRIALS))
    rows = kept_rows(args.output, args.draws, {(model, size) for model in args.models for size in sizes})
    start = time.process_time()
    for size in sizes:
        trials = args.trials or (60 if args.quick else TRIALS.get(size, 200))
        for model in args.models:
            rows += simulate(size, model, trials, args.draws)
            rows.sort(key=lambda row: (row["questions"], list(MODELS).index(row["model"])))
            # After each part: what is done is not lost.
            write_json(args.output, {"level": 0.95, "draws": args.draws, "rows": rows})
    print("Share of 95 % intervals that hold the truth, in %\n")
    print(table(rows))
    seconds = time.process_time() - start
    print(f"\n{args.draws} resamples of each set, {seconds:.0f} s of processor time")


if __name__ == "__main__":
    main()
