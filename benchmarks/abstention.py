"""Whether thresholds keep their guarantee, and what it costs: simulated calibration sets whose true error is known.

    python benchmarks/abstention.py [--runs N] [--output FILE]

A row is a world: how confidences are drawn and how often an answer of that confidence is right; a number N of
calibration questions; and a limit. In each run `caltune.abstain` sees N questions. Told are

- missed: the share of runs whose threshold has a true error among the answered above the limit; 5 % are allowed;
- answers: the mean share of questions answered, against the best threshold's if the truth were known, and in how many
  runs there was no threshold;
- one start: the share answered by one fixed sequence with the whole 5 %, from a tenth of the questions until the first
  failure, and in how many runs that has no threshold;
- Bonferroni: the share answered if the same thresholds, at 20 ranks, each had a twentieth of the 5 %;
- crc: the mean share of all questions answered wrongly under conformal risk control with the same limit, with twice its
  standard error, and the share answered.

Tables of the truth have 200,000 confidences. The table goes to standard output and, as JSON, to
`benchmarks/results/abstention.json`. About 7 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from caltune.abstain import Policy, fit_expected_loss, fit_threshold
from caltune.binomial import allowed_errors, fewest
from caltune.output import write_json
from caltune.types import FloatArray, Predictions

MANY = 200_000
CONFIDENCE = 0.95
SETTINGS = ((200, 0.1), (500, 0.05), (2000, 0.05))
World = Callable[[np.random.Generator, int], tuple[FloatArray, FloatArray]]


def calibrated(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Right as often as it says; 87 % of all."""
    confidence = 1 - 0.5 * generator.beta(0.5, 1.5, count)
    return confidence, confidence


def overconfident(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """The same knowledge, odds cubed."""
    truth, _ = calibrated(generator, count)
    return truth**3 / (truth**3 + (1 - truth) ** 3), truth


def coarse(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Ten values of confidence, as of an agreement of ten samples."""
    truth, _ = calibrated(generator, count)
    confidence = np.ceil(20 * truth) / 20
    return confidence, confidence - 0.025


def mislabelled(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """2 % of the labels are wrong, whatever the confidence."""
    confidence, truth = calibrated(generator, count)
    return confidence, 0.98 * truth


def boundary(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """A confidence that says nothing, and an error of 0.101 everywhere: just above the limit of 0.1."""
    return generator.random(count), np.full(count, 0.899)


def flat(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """A confidence that says nothing, and an error of 0.02 everywhere: far below either limit."""
    return generator.random(count), np.full(count, 0.98)


def hard(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Wrong 2 times of 100 in the surest tenth, then more and more, up to 62 of 100."""
    confidence = generator.random(count)
    return confidence, 0.98 - 0.6 * np.clip((0.9 - confidence) / 0.8, 0, 1)


def surest_wrong(generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """The surest 18 % are wrong 13 times of 100: against the assumption that errors do not fall with coverage."""
    confidence, truth = calibrated(generator, count)
    return confidence, np.where(confidence > 0.99, 0.87, truth)


WORLDS: tuple[World, ...] = (calibrated, overconfident, coarse, mislabelled, flat, hard, boundary, surest_wrong)


class Truth:
    """The error among the answered and the share answered at any threshold, from many draws."""

    def __init__(self, world: World) -> None:
        confidence, right = world(np.random.default_rng(0), MANY)
        order = np.argsort(-confidence, kind="stable")
        self.falling = confidence[order]
        self.wrong = np.concatenate([[0.0], np.cumsum(1 - right[order])])

    def at(self, threshold: float | None) -> tuple[float, float]:
        """(error among the answered, share answered); no error where nothing is answered."""
        if threshold is None:
            return 0.0, 0.0
        kept = int(np.searchsorted(-self.falling, -threshold, side="right"))
        return float(self.wrong[kept] / max(kept, 1)), kept / MANY

    def best(self, limit: float) -> float:
        """The largest share that can be answered with an error of at most `limit`."""
        ends = np.flatnonzero(np.append(self.falling[1:] != self.falling[:-1], True)) + 1
        kept = ends[self.wrong[ends] / ends <= limit]
        return float(kept[-1] / MANY) if len(kept) else 0.0


def one_start(predictions: Predictions, limit: float) -> float | None:
    """The lowest threshold before the first that fails, all tested at the whole level from a tenth of the questions on.

    From as many questions at least as it takes to pass without an error.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    falling = predictions.confidence[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    ends = ends[ends + 1 >= max(len(falling) / 10, fewest(limit, 1 - CONFIDENCE))]
    wrong = np.cumsum(1 - predictions.correct[order])[ends]
    failed = np.flatnonzero(wrong > allowed_errors(len(falling), limit, 1 - CONFIDENCE)[ends + 1])
    passed = ends[: failed[0] if len(failed) else len(ends)]
    return float(falling[passed[-1]]) if len(passed) else None


def bonferroni(predictions: Predictions, limit: float, ranks: int = 20) -> float | None:
    """The lowest of the thresholds at `ranks` ranks that passes at a level divided by their number."""
    order = np.argsort(-predictions.confidence, kind="stable")
    falling = predictions.confidence[order]
    values = falling[np.linspace(0, len(falling), ranks + 1)[1:].astype(int) - 1]
    kept = np.searchsorted(-falling, -values, side="right")
    wrong = np.cumsum(1 - predictions.correct[order])[kept - 1]
    passed = np.flatnonzero(wrong <= allowed_errors(len(falling), limit, (1 - CONFIDENCE) / ranks)[kept])
    return float(values[passed[-1]]) if len(passed) else None


def measure(world: World, count: int, limit: float, runs: int) -> dict[str, Any]:
    """One row."""
    truth = Truth(world)
    ids = tuple(map(str, range(count)))
    errors, shares, single, plain, lost, crc_shares = [], [], [], [], [], []
    for run in range(runs):
        generator = np.random.default_rng([1, run])
        confidence, right = world(generator, count)
        drawn = Predictions(ids, confidence, (generator.random(count) < right).astype(np.float64))
        policy: Policy = fit_threshold(drawn, limit, CONFIDENCE)
        error, share = truth.at(policy.threshold)
        errors.append(error)
        shares.append(share)
        single.append(truth.at(one_start(drawn, limit))[1])
        plain.append(truth.at(bonferroni(drawn, limit))[1])
        error, share = truth.at(fit_expected_loss(drawn, limit).threshold)
        lost.append(error * share)
        crc_shares.append(share)
    return {
        "world": world.__name__,
        "n": count,
        "limit": limit,
        "runs": runs,
        "missed": float(np.mean(np.array(errors) > limit)),
        "share": float(np.mean(shares)),
        "best_share": truth.best(limit),
        "none": float(np.mean(np.array(shares) == 0)),
        "one_start_share": float(np.mean(single)),
        "one_start_none": float(np.mean(np.array(single) == 0)),
        "bonferroni_share": float(np.mean(plain)),
        "crc_loss": float(np.mean(lost)),
        "crc_loss_error": float(2 * np.std(lost) / np.sqrt(runs)),
        "crc_share": float(np.mean(crc_shares)),
    }


def main() -> None:
    """Measure every world at every setting, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "abstention.json")
    arguments = parser.parse_args()
    rows = []
    print(
        "| world | N | limit | missed | answers | best | none | one start | none | Bonferroni | crc: wrong | answers |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    told = ("missed", "share", "best_share", "none", "one_start_share", "one_start_none", "bonferroni_share")
    for world in WORLDS:
        for count, limit in SETTINGS:
            row = measure(world, count, limit, arguments.runs)
            rows.append(row)
            cells = [f"{row[key]:.3f}" for key in told]
            cells += [f"{row['crc_loss']:.4f} ± {row['crc_loss_error']:.4f}", f"{row['crc_share']:.3f}"]
            print(f"| {world.__name__} | {count} | {limit} | {' | '.join(cells)} |", flush=True)
    write_json(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
