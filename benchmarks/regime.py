"""How often the interval for A* holds A*: simulated questions whose true answer distribution is known.

    python benchmarks/regime.py [--runs N] [--output FILE]

A row is a world: how a model's option logits Z are drawn and what the answer's distribution η(Z) is given them. A* is
the mean of max η over 400,000 draws. In each run the answers of N questions are drawn from η, and
`caltune.regime.reachable_accuracy` sees logits and answers only. Told are the bias and root mean square error of the
estimate, the share of intervals that hold A*, that lie above it and below it, and the mean width; and for the target
calibration error its bias against the true E|c − η(d)|.

The table goes to standard output and, as JSON, to `benchmarks/results/regime.json`. About 8 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from caltune.output import write_json
from caltune.regime import reachable_accuracy
from caltune.types import FloatArray, OptionLogits

OPTIONS = 4
SIZES = (100, 500, 2000)
MANY = 400_000
DRAWS = 400

World = Callable[[np.random.Generator, int], tuple[FloatArray, FloatArray]]


def softmax(logits: FloatArray) -> FloatArray:
    """Along the options."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _truth(generator: np.random.Generator, count: int) -> FloatArray:
    """Log-odds of questions that are hard, middling or easy."""
    return generator.normal(size=(count, OPTIONS)) * generator.choice([0.3, 1.0, 3.0], size=(count, 1))


def calibrated(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """The model is right."""
    truth = _truth(generator, count)
    return truth, softmax(truth)


def overconfident(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Logits three times too large: what temperature scaling undoes."""
    truth = _truth(generator, count)
    return 3 * truth, softmax(truth)


def biased(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Twice too large, and 1.5 too much for the first position: recalibration changes answers."""
    truth = _truth(generator, count)
    return 2 * truth + 1.5 * (np.arange(OPTIONS) == 0), softmax(truth)


def collapsed(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Log-odds squared and quadrupled: nearly all mass on one option, outside the family of recalibrations."""
    truth = _truth(generator, count)
    return 4 * np.sign(truth) * truth**2, softmax(truth)


def guessing(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Opinions without knowledge: A* is chance."""
    return 2 * generator.normal(size=(count, OPTIONS)), np.full((count, OPTIONS), 1 / OPTIONS)


def expert(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Right 98 times of 100, and twice too sure."""
    truth = generator.normal(size=(count, OPTIONS))
    truth[np.arange(count), generator.integers(0, OPTIONS, count)] += 6
    return 2 * truth, softmax(truth)


def mixed(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Too sure where it is sure, not sure enough elsewhere, with a jump: outside the family."""
    logits = 2 * generator.normal(size=(count, OPTIONS))
    return logits, softmax(logits * np.where(np.abs(logits).max(axis=1, keepdims=True) > 2.5, 0.4, 1.5))


def twisted(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """The sign of the second logit turns that of the first: knowledge that no sensible recalibration finds."""
    logits = 1.5 * generator.normal(size=(count, OPTIONS))
    truth = 1.5 * logits
    truth[:, 0] *= np.where(logits[:, 1] > 0, -1, 1)
    return logits, softmax(truth)


def weak(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Hardly any knowledge, ten times too large."""
    truth = 0.3 * generator.normal(size=(count, OPTIONS))
    return 10 * truth, softmax(truth)


def key(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Opinions without knowledge, and an answer key in which the first position is right in 55 %."""
    return 2 * generator.normal(size=(count, OPTIONS)), np.tile([0.55, 0.15, 0.15, 0.15], (count, 1))


def uneven(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Opinions without knowledge on two to six options: A* is E 1/K."""
    there = np.arange(6) < generator.integers(2, 7, size=(count, 1))
    return np.where(there, 2 * generator.normal(size=(count, 6)), -np.inf), there / there.sum(axis=1, keepdims=True)


WORLDS: tuple[World, ...] = (
    *(calibrated, overconfident, biased, collapsed, guessing, expert, mixed, twisted),
    *(weak, key, uneven),  # added after the first eight: chance, and options that differ in number
)


def target_error(logits: FloatArray, truth: FloatArray) -> float:
    """E|c − η(d)| with the true η."""
    probabilities = softmax(logits)
    choice = probabilities.argmax(axis=1)[:, None]
    return float(np.abs(np.take_along_axis(probabilities - truth, choice, axis=1)).mean())


def measure(world: World, size: int, runs: int) -> dict[str, Any]:
    """Bias, error and coverage in `runs` simulated data sets."""
    logits, truth = world(np.random.default_rng(0), MANY)
    reachable, error = float(truth.max(axis=1).mean()), target_error(logits, truth)
    found = []
    for run in range(runs):
        generator = np.random.default_rng([1, run])
        logits, truth = world(generator, size)
        labels = (generator.random((size, 1)) > truth.cumsum(axis=1)[:, :-1]).sum(axis=1)
        scores = OptionLogits(tuple(map(str, range(size))), logits.astype(np.float32), labels)
        one = reachable_accuracy(scores, draws=DRAWS, seed=run)
        found.append([*(getattr(one.accuracy, name) for name in ("value", "low", "high")), one.target_error.value])
    value, low, high, error_found = np.array(found).T
    return {
        "world": world.__name__,
        "size": size,
        "runs": runs,
        "reachable": reachable,
        "bias": float(value.mean() - reachable),
        "rmse": float(np.sqrt(np.square(value - reachable).mean())),
        "coverage": float(((low <= reachable) & (reachable <= high)).mean()),
        "too_high": float((low > reachable).mean()),
        "too_low": float((high < reachable).mean()),
        "width": float((high - low).mean()),
        "target_error": error,
        "target_error_bias": float(error_found.mean() - error),
    }


def settings(runs: dict[int, int]) -> dict[str, Any]:
    """What decides the figures; a run is a data set and has its own seeds."""
    return {
        "options": {"uneven": [2, 6], "others": OPTIONS},
        "sizes": list(SIZES),
        "runs": {str(size): count for size, count in runs.items()},
        "resamples": DRAWS,
        "draws_of_the_truth": MANY,
        "seeds": {"truth": 0, "data": "[1, run]", "folds and resamples": "run"},
    }


def main() -> None:
    """Measure every world at every size, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="data sets a row; a quarter of them where N is 2,000")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "regime.json")
    arguments = parser.parse_args()
    rows = []
    runs = {size: arguments.runs if size < 2000 else max(1, arguments.runs // 4) for size in SIZES}
    print("| world | N | runs | A* | bias | RMSE | holds A* | too high | too low | width | TCE | its bias |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for world in WORLDS:
        for size in SIZES:
            row = measure(world, size, runs[size])
            rows.append(row)
            cells = [
                str(row["runs"]),
                f"{row['reachable']:.3f}",
                f"{row['bias']:+.3f}",
                f"{row['rmse']:.3f}",
                f"{row['coverage']:.2f}",
            ]
            cells += [f"{row['too_high']:.2f}", f"{row['too_low']:.2f}", f"{row['width']:.3f}"]
            cells += [f"{row['target_error']:.3f}", f"{row['target_error_bias']:+.3f}"]
            print(f"| {row['world']} | {size} | {' | '.join(cells)} |", flush=True)
    write_json(arguments.output, {"settings": settings(runs), "rows": rows})


if __name__ == "__main__":
    main()
