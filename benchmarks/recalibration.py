"""Which recalibrators help, and from how many questions: all on real scores, against a temperature and a constant.

    CALTUNE_DATA_DIR=DIR python benchmarks/recalibration.py --part score [--sources NAME …] [--pieces N] [--minutes M]
    python benchmarks/recalibration.py --part fit [--tuned DIR] [--quick] [--minutes M]

`score` lets the small model answer questions of `recalibration_scores.SOURCES`, with features, in resumable pieces;
`fit` needs no model and takes what is there. DIR of `--tuned` holds the scores that `benchmarks/methods.py` leaves:
plain fine-tuning of three seeds on `world-facts`, without features. `make bench BENCH=recalibration` does all; in two
processes on two cores each part takes about 25 minutes, and the same command goes on where it stopped.

In each of 20 splits n calibration questions are drawn (50, 100, 500, 2,000) and up to 2,000 others are the test.

- in-domain: both from one source;
- reweighted: the test has questions of the harder half of the groups `HARDER` times as often, so weights are known;
- longer: the same for the longer half of the questions;
- elsewhere: all test questions are of another source, whose labels only the oracle reads.

Brier score and NLL are over all options; the confidence's own Brier score, the mean of (c − a)², sees the answer only,
as do the maps that replace a confidence and leave the other options their proportions. Told are means over splits, and
paired differences to temperature scaling and to a constant confidence, the accuracy of the calibration questions, with
the range of 95 % of the splits and the number of splits that are better. Splits share questions, so the range says how
much the draw of questions matters, not what other sources would give.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import recalibration_elsewhere
import recalibration_report
from recalibration_scores import SOURCES, group_weights, length_weights, read_source, ready, together, world_lengths

from caltune import recalibrate as r
from caltune.errors import InputError
from caltune.formats import read_scores
from caltune.metrics import auroc, brier, ece, nll
from caltune.output import write_json
from caltune.recalibrate.confidence import with_confidence
from caltune.types import FloatArray, OptionLogits

SIZES = (50, 100, 500, 2000)
SPLITS = 20
MOST, LEAST = 2000, 400  # test questions
TUNED = "world-facts, fine-tuned"
PAIRS = (("arc-easy", "arc-challenge"), ("humanities", "stem"))


@dataclass(frozen=True, eq=False)
class Part:
    """Questions as a recalibrator is given them: `members` are other models' scores, `weights` the known ones.

    `lengths` are those of the questions' texts, from which weights may be known.
    """

    scores: OptionLogits
    features: FloatArray | None = None
    lengths: FloatArray | None = None
    members: tuple[OptionLogits, ...] = ()
    weights: FloatArray | None = None

    def take(self, rows: Any) -> Part:
        return Part(
            self.scores.take(rows),
            None if self.features is None else self.features[rows],
            None if self.lengths is None else self.lengths[rows],
            tuple(member.take(rows) for member in self.members),
            None if self.weights is None else self.weights[rows],
        )


Method = Callable[[Part, Part], OptionLogits]


def constant(fit: Part, test: Part) -> OptionLogits:
    """The accuracy of the calibration questions as the confidence of all."""
    return with_confidence(test.scores, np.full(len(test.scores), fit.scores.decide().correct.mean()))


def simple(function: Callable[[OptionLogits], Any], fit: Part, test: Part) -> OptionLogits:
    return function(fit.scores)(test.scores)


def featured(function: Callable[..., Any], fit: Part, test: Part) -> OptionLogits:
    return function(fit.scores, fit.features)(test.scores, test.features)


def pooled(fit: Part, test: Part) -> OptionLogits:
    return r.fit_pool([fit.scores, *fit.members])([test.scores, *test.members])


def weighted(fit: Part, test: Part, *, known: bool, transcal: bool) -> OptionLogits:
    weights = fit.weights if known else r.density_ratio(fit.features, test.features)
    if transcal:
        return r.fit_transcal(fit.scores, test.scores, weights)(test.scores)
    return r.fit_weighted_temperature(fit.scores, weights)(test.scores)


def oracle(_: Part, test: Part) -> OptionLogits:
    """The temperature that is best for the test questions: what no temperature can beat in NLL."""
    return r.Temperature(r.fit_temperature(test.scores).temperature)(test.scores)


FIRST: dict[str, Method] = {
    "none": lambda _, test: test.scores,
    "constant": constant,
    "temperature": partial(simple, r.fit_temperature),
}
PLAIN: dict[str, Method] = {
    "vector": partial(simple, r.fit_vector),
    "matrix": partial(simple, r.fit_matrix),
    "platt": partial(simple, r.fit_platt),
    "beta": partial(simple, r.fit_beta),
    "isotonic": partial(simple, r.fit_isotonic),
    "histogram": partial(simple, r.fit_histogram),
    "top-label": partial(simple, r.fit_top_label),
    "umnn": partial(simple, r.fit_umnn),
    "balcal": partial(simple, r.fit_balcal),
    "ace": partial(simple, r.fit_adaptive_ensemble),
    "selective": partial(simple, r.fit_selective),
    "dece": partial(simple, r.fit_dece_temperature),
}
FEATURED: dict[str, Method] = {
    "lore": partial(featured, r.fit_lore),
    "umnn, features": partial(featured, r.fit_umnn),
    "balcal, features": partial(featured, r.fit_balcal),
}
KNOWN: dict[str, Method] = {
    "shift, known weights": partial(weighted, known=True, transcal=False),
    "transcal, known weights": partial(weighted, known=True, transcal=True),
}
ESTIMATED: dict[str, Method] = {
    "shift": partial(weighted, known=False, transcal=False),
    "transcal": partial(weighted, known=False, transcal=True),
}
ADAPTING = ("ace", "umnn", "platt")


def methods_for(kind: str, source: Part) -> dict[str, Method]:
    """What can be fitted in a setting with what the source offers."""
    found = {**FIRST}
    has = source.features is not None
    if kind == "in-domain":
        return {**found, **PLAIN, **({"pool": pooled} if source.members else {}), **(FEATURED if has else {})}
    found |= {name: PLAIN[name] for name in ADAPTING} | (FEATURED if has else {})
    found |= {**(KNOWN if kind == "reweighted" else {}), **(ESTIMATED if has else {})}
    return {**found, "oracle": oracle}


def measure(after: OptionLogits) -> dict[str, float]:
    decided = after.decide()
    return {
        "accuracy": float(decided.correct.mean()),
        "nll": nll(after),
        "brier": brier(after),
        "ece": ece(decided),
        "auroc": auroc(decided),
        "confidence_brier": float(np.square(decided.confidence - decided.correct).mean()),
    }


def in_domain(source: Part, count: int, generator: np.random.Generator) -> tuple[Part, Part]:
    order = generator.permutation(len(source.scores))
    return source.take(order[:count]), source.take(order[count : count + MOST])


def reweighted(
    weigh: Callable[..., FloatArray], source: Part, count: int, generator: np.random.Generator
) -> tuple[Part, Part]:
    """Calibration questions as they are, and a test in which a question of weight w is w times as likely to be."""
    order = generator.permutation(len(source.scores))
    weights = weigh(source.scores, source.lengths)
    rest = order[count:]
    kept = rest[generator.random(len(rest)) < weights[rest] / weights.max()]
    return replace(source.take(order[:count]), weights=weights[order[:count]]), source.take(kept[:MOST])


def elsewhere(target: Part, source: Part, count: int, generator: np.random.Generator) -> tuple[Part, Part]:
    rows = generator.permutation(len(source.scores))[:count]
    return source.take(rows), target.take(generator.permutation(len(target.scores))[:MOST])


def read_parts(folder: Path, tuned: Path) -> dict[str, Sequence[Part]]:
    """What there is: each source, of which splits take the parts in turn."""
    found: dict[str, Sequence[Part]] = {}
    for name in SOURCES:
        if (here := read_source(folder, name)) is not None:
            found[name] = [Part(*here)]
    seeds = []
    for seed in range(3):
        paths = [tuned / f"sft-{seed}-fit.parquet", tuned / f"sft-{seed}.parquet"]
        if all(path.exists() for path in paths):
            seeds.append(together([read_scores(path).scores for path in paths]))
    if len(seeds) == 3:
        lengths = world_lengths(seeds[0].ids)
        members = [(seeds[i - 1], seeds[i - 2]) for i in range(3)]
        found[TUNED] = [Part(seeds[i], lengths=lengths, members=members[i]) for i in range(3)]
    return found


def settings_of(
    parts: dict[str, Sequence[Part]], least: int = LEAST
) -> dict[str, tuple[str, Sequence[Part], Callable[..., Any], int]]:
    """Name -> kind, source, how a split is drawn, and how many calibration questions leave `least` for the test."""
    found: dict[str, tuple[str, Sequence[Part], Callable[..., Any], int]] = {}
    for name, source in parts.items():
        size = len(source[0].scores)
        found[name] = ("in-domain", source, in_domain, size - least)
        if len(set(source[0].scores.groups)) > 5:
            found[f"{name}, reweighted"] = ("reweighted", source, partial(reweighted, group_weights), size - 2 * least)
        if source[0].lengths is not None:
            found[f"{name}, longer"] = ("reweighted", source, partial(reweighted, length_weights), size - 2 * least)
    for name, other in PAIRS:
        if name in parts and other in parts:
            draw = partial(elsewhere, parts[other][0])
            found[f"{name} → {other}"] = ("elsewhere", parts[name], draw, len(parts[name][0].scores))
    return found


def fit_all(path: Path, kind: str, source: Sequence[Part], draw: Callable[..., Any], count: int, splits: int) -> None:
    """Every method in every split of one setting and size; null where a fit was refused."""
    methods = methods_for(kind, source[0])
    values: dict[str, list[Any]] = {name: [] for name in methods}
    refused: dict[str, str] = {}
    for split in range(splits):
        fit, test = draw(source[split % len(source)], count, np.random.default_rng([split, count]))
        for name, method in methods.items():
            try:
                values[name].append(measure(method(fit, test)))
            except InputError as error:
                values[name].append(None)
                refused[name] = str(error)
    write_json(path, {"kind": kind, "questions": count, "test": len(test.scores), "values": values, "refused": refused})


def fit_jobs(folder: Path, parts: dict[str, Sequence[Part]], *, quick: bool) -> common.Jobs:
    """A file for each setting and size; another one when more of the source has been scored."""
    jobs: common.Jobs = {}
    for count in SIZES[:2] if quick else SIZES:
        for name, (kind, source, draw, most) in settings_of(parts, 50 if quick else LEAST).items():
            path = result_path(folder, name, count, source, quick=quick)
            if count <= most and not path.exists():
                jobs[path] = partial(fit_all, path, kind, source, draw, count, 2 if quick else SPLITS)
    return jobs


def result_path(folder: Path, name: str, count: int, source: Sequence[Part], *, quick: bool) -> Path:
    plain = name.replace(", ", "-").replace(" → ", "-to-")
    return folder / "fits" / f"{plain}-{count}-of-{len(source[0].scores)}{'-quick' * quick}.json"


def main() -> None:
    """Score, fit, or both, and publish."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sources", nargs="+", choices=tuple(SOURCES), default=tuple(SOURCES))
        parser.add_argument("--pieces", type=int, help="at most so many pieces of a source")
        parser.add_argument("--tuned", type=Path, default=common.HERE / "output" / "methods")

    arguments, folder = common.parse(__doc__, "recalibration", ("score", "fit"), add)
    if arguments.part != "fit":
        pieces = 1 if arguments.quick else arguments.pieces
        if not common.work(partial(ready, folder, arguments.sources, pieces), arguments.minutes):
            return
    if arguments.part == "score":
        return
    parts = read_parts(folder, arguments.tuned)
    if not common.work(partial(fit_jobs, folder, parts, quick=arguments.quick), arguments.minutes):
        return
    settings = {}
    for name, (_, source, _, _) in settings_of(parts).items():
        for count in SIZES:
            if (path := result_path(folder, name, count, source, quick=arguments.quick)).exists():
                settings.setdefault(name, {})[count] = json.loads(path.read_text(encoding="utf-8"))
    document = {
        "splits": 2 if arguments.quick else SPLITS,
        "sources": {name: len(source[0].scores) for name, source in parts.items()},
        "settings": recalibration_report.summarise(settings),
        "digits": recalibration_elsewhere.digits(2 if arguments.quick else SPLITS),
        "regression": recalibration_elsewhere.regression(2 if arguments.quick else SPLITS),
    }
    target = common.publish("recalibration", folder, quick=arguments.quick, document=document)
    recalibration_report.show(document, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
