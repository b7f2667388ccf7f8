"""Are caltune's metrics and intervals faster than those of torchmetrics, netcal, scikit-learn, calibstats and scipy?

    python benchmarks/speed_metrics.py [--sizes 1000 10000 …] [--rounds 5] [--quick]

Peers that are not installed are left out and named (`pip install caltune[bench]`). Each is given arrays of the kind it
wants, made beforehand, as ours are; values are compared first. Then all alternate, and medians of the ratios are given
with their spread. The time to read both arrays once stands beside the ECE. About 10 minutes on an idle machine; the
largest size takes some 3 GB, most of it for the ids that our `Predictions` carry.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import common
import numpy as np

from caltune.errors import InputError
from caltune.metrics import auroc, bootstrap, ece, ece_statistic, mean_statistic, nll, reliability_bins
from caltune.types import OptionLogits, Predictions

SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
BOOTSTRAPPED = (10**4, 10**5)
DRAWS = 2000
PEERS = ("torchmetrics", "netcal", "scikit-learn", "calibstats", "scipy")
Calls = dict[str, Callable[[], Any]]


def draw(size: int) -> Predictions:
    """Overconfident answers."""
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.25, 1.0, size)
    return Predictions(tuple(map(str, range(size))), confidence, (generator.random(size) < confidence**2).astype(float))


def ece_calls(given: Predictions) -> Calls:
    """Expected calibration error in 15 bins of equal width, and reading the two arrays once."""
    calls: Calls = {"caltune": lambda: ece(given), "reading": lambda: given.confidence.sum() + given.correct.sum()}
    with suppress(ImportError):
        import torch
        from torchmetrics.functional.classification import binary_calibration_error

        tensors = torch.from_numpy(given.confidence), torch.from_numpy(given.correct).long()
        calls["torchmetrics"] = lambda: float(binary_calibration_error(*tensors, n_bins=15, validate_args=False))
    with suppress(ImportError):
        from netcal.metrics import ECE

        whole = given.correct.astype(int)
        calls["netcal"] = lambda: float(ECE(15).measure(given.confidence, whole))
    with suppress(ImportError):
        import calibstats

        calls["calibstats"] = lambda: calibstats.ece(given.confidence, given.correct)
    return calls


def curve_calls(given: Predictions) -> Calls:
    """Mean confidence and accuracy in each of 15 bins."""
    from sklearn.calibration import calibration_curve

    def theirs() -> Any:
        return calibration_curve(given.correct, given.confidence, n_bins=15)[0]

    def ours() -> Any:
        found = reliability_bins(given)
        return found.accuracy[found.count > 0]

    return {"caltune": ours, "scikit-learn": theirs}


def auroc_calls(given: Predictions) -> Calls:
    """Area under the ROC curve of confidence for being right."""
    from sklearn.metrics import roc_auc_score

    calls: Calls = {
        "caltune": lambda: auroc(given),
        "scikit-learn": lambda: float(roc_auc_score(given.correct, given.confidence)),
    }
    with suppress(ImportError):
        import torch
        from torchmetrics.functional.classification import binary_auroc

        tensors = torch.from_numpy(given.confidence), torch.from_numpy(given.correct).long()
        calls["torchmetrics"] = lambda: float(binary_auroc(*tensors, validate_args=False))
    return calls


def nll_calls(given: Predictions) -> Calls:
    """Mean negative log-likelihood of the right one of four options."""
    from sklearn.metrics import log_loss

    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, len(given))
    scores = OptionLogits(given.ids, generator.normal(0, 2, (len(given), 4)), labels)
    probabilities = scores.probabilities()
    return {
        "caltune": lambda: nll(scores),
        "scikit-learn": lambda: float(log_loss(labels, probabilities, labels=range(4))),
    }


def numpy_ece(confidence: Any, correct: Any, axis: int = -1) -> Any:
    """ECE in as few passes as numpy allows, for scipy to resample."""
    index = np.minimum((confidence * 15).astype(np.intp), 14)
    return np.abs(np.bincount(index, correct - confidence, 15)).sum() / len(confidence)


def bootstrap_calls(given: Predictions, draws: int) -> Calls:
    """The ECE of `draws` resamples."""
    import scipy.stats

    size = len(given)
    data = (given.confidence, given.correct)
    calls: Calls = {
        "caltune": lambda: bootstrap(ece_statistic(given), size, draws=draws),
        "scipy": lambda: (
            scipy.stats.bootstrap(
                data, numpy_ece, n_resamples=draws, batch=10, paired=True, vectorized=False, method="percentile"
            ).bootstrap_distribution
        ),
    }
    with suppress(ImportError):
        import calibstats

        calls["calibstats"] = lambda: calibstats.bootstrap_ci(*data, calibstats.ece, n_boot=draws).distribution
    return calls


def mean_calls(given: Predictions, draws: int) -> Calls:
    """The accuracy of `draws` resamples."""
    import scipy.stats

    mean = mean_statistic(given.correct)
    return {
        "caltune": lambda: bootstrap(mean, len(given), draws=draws),
        "scipy": lambda: (
            scipy.stats.bootstrap(
                (given.correct,), np.mean, n_resamples=draws, batch=10, vectorized=True, method="percentile"
            ).bootstrap_distribution
        ),
    }


def require_agreement(name: str, calls: Calls, *, resampled: bool) -> None:
    """Raise `InputError` unless all give the same; of resamples the mean and the spread, as far as chance lets."""
    found = {who: np.asarray(call()) for who, call in calls.items() if who != "reading"}
    mine = found["caltune"]
    for who, theirs in found.items():
        if resampled:
            chance = 6 / np.sqrt(len(mine))  # six standard errors of a spread's logarithm
            near = abs(mine.mean() - theirs.mean()) < chance * np.sqrt(2) * mine.std()
            same = near and abs(np.log(theirs.std() / mine.std())) < chance
        else:
            same = np.allclose(mine, theirs, rtol=1e-5, atol=1e-7)
        if not same:
            raise InputError(f"{name}: {who} must give what caltune gives, {mine.mean()}, got {theirs.mean()}")


def alternate(calls: Calls, rounds: int) -> dict[str, Any]:
    """Seconds of each, in turn, and how many times as long as ours the others take. Short calls are repeated."""
    repeats = {}
    for who, call in calls.items():
        start = time.perf_counter()
        call()
        repeats[who] = max(1, int(0.02 / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(rounds):
        for who, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[who]):
                call()
            seconds[who].append((time.perf_counter() - start) / repeats[who])
    result = {}
    for who, each in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(each, seconds["caltune"], strict=True)]
        ratio = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        result[who] = {"seconds": statistics.median(each), "ratio": ratio}
    return result


def installed(name: str) -> str | None:
    """Its version, None where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
        parser.add_argument("--rounds", type=int, default=5)

    arguments, folder = common.parse(__doc__, "speed_metrics", add=add, alone=True)
    sizes, rounds, draws = arguments.sizes, arguments.rounds, DRAWS
    if arguments.quick:
        sizes, rounds, draws = [10**3, 10**4], 2, 200
    versions = {name: installed(name) for name in PEERS}
    print("not installed:", ", ".join(name for name, found in versions.items() if found is None) or "none")
    print("\n| what | n | caltune ms | others: ms (times ours, spread) |\n|---|---|---|---|")
    results: dict[str, dict[str, Any]] = {}
    kinds = {"ece": ece_calls, "reliability curve": curve_calls, "auroc": auroc_calls, "nll": nll_calls}
    for size in sizes:
        given = draw(size)
        jobs: dict[str, Callable[[Predictions], Calls]] = dict(kinds)
        if size in BOOTSTRAPPED:
            jobs |= {
                f"ece, {draws} resamples": partial(bootstrap_calls, draws=draws),
                f"accuracy, {draws} resamples": partial(mean_calls, draws=draws),
            }
        for name, make in jobs.items():
            calls = make(given)
            require_agreement(f"{name} of {size}", calls, resampled="resamples" in name)
            found = alternate(calls, rounds)
            results.setdefault(name, {})[str(size)] = found
            others = [
                f"{who} {one['seconds'] * 1e3:.3g} ({one['ratio']['median']:.1f}, {one['ratio']['low']:.1f} to "
                f"{one['ratio']['high']:.1f})"
                for who, one in found.items()
                if who != "caltune"
            ]
            print(f"| {name} | {size:,} | {found['caltune']['seconds'] * 1e3:.3g} | {'; '.join(others)} |", flush=True)
    document = {
        "versions": versions,
        "rounds": rounds,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "results": results,
    }
    common.publish("speed_metrics", folder, quick=arguments.quick, document=document)


if __name__ == "__main__":
    main()
