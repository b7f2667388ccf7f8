"""What each part of CogCalib does: other categories of knowledge, other thresholds, other schedules, one at a time.

    python benchmarks/cogcalib.py [--part categories|settings] [--quick] [--output DIR] [--seeds S …] [--minutes M]

All runs fine-tune SmolLM2-135M-Instruct with LoRA on 400 training questions of `world-facts` and are scored on the same
1,000 test questions. CogCalib's term is label smoothing over the options with s = 0.2, which `methods.py` chose on
calibration questions. Its detector is fitted on 200 calibration questions, and so is the temperature of plain
fine-tuning. Nothing is fitted or chosen on test questions. A seed picks the training questions from a pool of 1,200,
their order and the adapter's start; 3 seeds of each row. Where categories take the detector's place they are SliCK's,
found with 4 sets of 2 exemplars for the pool; known is HighlyKnown or MaybeKnown.

Scores are written to DIR as they come, and what is there is not done again; several processes may share one DIR. The
tables go to standard output and, as JSON, to `benchmarks/results/cogcalib.json` with a picture beside it (with
`--quick` into DIR only). They hold the rows that are done for all seeds, so that the second part adds to the first. In
two processes on two cores `--part categories` takes about 47 minutes, `--part settings` then 37.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import pick
from rows_picture import MARKS, describe, draw_rows
from transformers import TrainerCallback

from caltune.data import load_questions
from caltune.formats import read_knowledge, read_scores, write_knowledge
from caltune.knowledge import Knowledge
from caltune.methods import CogCalibTrainer
from caltune.metrics.bootstrap import finite_or_none
from caltune.recalibrate import fit_temperature
from caltune.types import OptionLogits, Question

SIZES = {"pool": 1200, "sets": 4, "exemplars": 2, "train": 400, "fit": 200, "test": 1000, "seeds": [0, 1, 2]}
SETTINGS = {**common.RUN, **SIZES}
QUICK = {"pool": 64, "sets": 2, "train": 32, "fit": 24, "test": 60, "epochs": 1, "seeds": [0]}
SMOOTHING = 0.2


@dataclass(frozen=True)
class Variant:
    """One row: CogCalib with these fields, a threshold times `factor`, or these categories in the detector's place.

    With `train` it is plain fine-tuning, on all questions, the unknown ones, or as many of all drawn at random.
    """

    part: str
    label: str
    fields: dict[str, Any] = field(default_factory=dict)
    factor: float = 1.0
    categories: str = ""
    train: str = ""

    @property
    def needs_knowledge(self) -> bool:
        return self.categories in ("given", "random") or self.train in ("unknown", "as many")


VARIANTS = {
    "sft": Variant("both", "plain fine-tuning", train="all"),
    "detector": Variant("both", "CogCalib: NLL detector"),
    "given": Variant("categories", "SliCK categories given", categories="given"),
    "random": Variant("categories", "the same categories shuffled", categories="random"),
    "all-known": Variant("categories", "everything known", categories="all known"),
    "known-deleted": Variant("categories", "plain, known questions deleted", train="unknown"),
    "as-many-deleted": Variant("categories", "plain, as many deleted at random", train="as many"),
    "threshold-0.5": Variant("settings", "threshold × 0.5", factor=0.5),
    "threshold-2": Variant("settings", "threshold × 2", factor=2.0),
    "style-0": Variant("settings", "one style step (style_share 0)", {"style_share": 0.0}),
    "style-0.33": Variant("settings", "a third are style steps", {"style_share": 0.33}),
    "refresh-once": Variant("settings", "threshold fitted once", {"refresh": "once"}),
}
BASELINES = ("sft", "detector")
# Further pairs that answer a question: does it matter which are known, and which are deleted?
CONTRASTS = (("random", "given"), ("all-known", "given"), ("known-deleted", "as-many-deleted"))
NOTED = ("known_share", "detector_true_share", "detector_known_share", "detector_accuracy", "detector_threshold")


def main() -> None:
    arguments, folder = common.parse(__doc__, "cogcalib", parts=("categories", "settings"))
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    if not common.work(partial(ready, settings, folder, load(settings), arguments.part), arguments.minutes):
        return
    rows, notes = collect(settings, folder)
    extra = {baseline for row, baseline in CONTRASTS if row in rows and baseline in rows}
    baselines = (*BASELINES, *sorted(extra - set(BASELINES)))
    result = common.table(rows, baselines=baselines)
    common.print_table(result, baselines=BASELINES)
    print_contrasts(result)
    print_notes(notes)
    document = {"settings": {**settings, "smoothing": SMOOTHING}, "rows": result, "notes": notes}
    target = common.publish("cogcalib", folder, quick=arguments.quick, document=document)
    labels = {name: variant.label for name, variant in VARIANTS.items()}
    labels["sft + temperature"] = "plain fine-tuning + temperature"
    title = f"CogCalib part by part: {describe(settings)}\n{MARKS}: plain fine-tuning (grey), CogCalib (blue)"
    plain = [name for name, variant in VARIANTS.items() if variant.train]
    draw_rows(target.with_suffix(".png"), result, labels, ("sft", "detector"), title, plain)


def load(settings: dict[str, Any]) -> dict[str, list[Question]]:
    """Questions by their use."""
    return {
        "pool": pick(load_questions("world-facts", "train"), settings["pool"], 0),
        "fit": pick(load_questions("world-facts", "calibration"), settings["fit"], 0),
        "test": pick(load_questions("world-facts", "test"), settings["test"], 0),
    }


def knowledge_path(settings: dict[str, Any], folder: Path) -> Path:
    return folder / "pool-{pool}-sets-{sets}-exemplars-{exemplars}.knowledge".format(**settings)


def ready(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]], part: str | None) -> common.Jobs:
    """What can be done now and has not been: the file it writes, and how."""
    jobs: common.Jobs = {}
    pool = knowledge_path(settings, folder)
    if part != "settings" and not pool.exists():
        how = (settings["sets"], settings["exemplars"])
        jobs[pool] = partial(common.categories_into, pool, settings, data["pool"], *how)
    for seed in settings["seeds"]:
        for name, variant in VARIANTS.items():
            path = folder / f"{name}-{seed}.parquet"
            if path.exists():
                common.require_made_with(path, made_with(settings, name, seed))
            elif (part is None or variant.part in ("both", part)) and (pool.exists() or not variant.needs_knowledge):
                jobs[path] = partial(run, path, settings, data, name, seed)
    return jobs


def made_with(settings: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    own = {key: value for key, value in settings.items() if key != "seeds"}
    variant = VARIANTS[name]
    chosen = {"categories": variant.categories, "trained_on": variant.train, "factor": variant.factor, **variant.fields}
    return {**own, "smoothing": SMOOTHING, **chosen, "seed": seed}


class Noting(TrainerCallback):
    """Reads what the trainer has logged."""

    trainer: Any

    def values(self) -> dict[str, list[float | None]]:
        """Each noted quantity in the order of training."""
        logs = self.trainer.state.log_history
        return {name: [finite_or_none(log[name]) for log in logs if name in log] for name in NOTED}


def run(path: Path, settings: dict[str, Any], data: dict[str, list[Question]], name: str, seed: int) -> None:
    """Fine-tune one variant with one seed and score the test questions."""
    variant = VARIANTS[name]
    train = pick(data["pool"], settings["train"], seed)
    noting = Noting()
    tune = partial(common.fine_tune, settings, seed=seed, folder=path.parent, callbacks=[noting])
    if variant.train:
        if variant.train != "all":
            found = read_knowledge(knowledge_path(settings, path.parent)).knowledge
            train = kept(variant.train, train, found, seed)
        model, tokenizer = tune(method="SFT", fields={}, train=train, fit=None)
    else:
        fields = {"penalty": "label-smoothing", "smoothing": SMOOTHING, **variant.fields}
        fit = data["fit"]
        if variant.categories:
            file = path.with_suffix(".categories")
            pool = knowledge_path(settings, path.parent)
            known = read_knowledge(pool).knowledge if variant.needs_knowledge else None
            write_knowledge(file, categories(variant.categories, [question.id for question in train], known, seed), {})
            fields, fit = {**fields, "knowledge": str(file)}, None
        trainer = scaled(variant.factor) if variant.factor != 1 else None
        model, tokenizer = tune(method="CogCalib", fields=fields, train=train, fit=fit, trainer_class=trainer)
    how = {"seed": seed, "method": name, "made_with": made_with(settings, name, seed)}
    if name == "sft":  # what temperature scaling is fitted on
        fitted = path.with_name(f"sft-{seed}-fit.parquet")
        common.score_into(fitted, settings, model, tokenizer, data["fit"], split="calibration", seed=seed)
    notes = {"trained_on": len(train), **noting.values()}
    common.score_into(path, settings, model, tokenizer, data["test"], split="test", notes=notes, **how)


def kept(which: str, questions: Sequence[Question], knowledge: Knowledge, seed: int) -> list[Question]:
    """The unknown questions, or as many of all, drawn with a seed."""
    known = knowledge.known_of([question.id for question in questions])
    unknown = [question for question, is_known in zip(questions, known, strict=True) if not is_known]
    return unknown if which == "unknown" else pick(questions, len(unknown), seed)


def categories(which: str, ids: Sequence[str], knowledge: Knowledge | None, seed: int) -> Knowledge:
    """Categories of these questions: as found, as found but dealt out at random, or all HighlyKnown.

    >>> found = Knowledge(("a", "b", "c"), ("HighlyKnown", "Unknown", "Unknown"), [1.0, 0.0, 0.0], [0.9, 0.0, 0.0])
    >>> categories("given", ["c", "a"], found, 0).categories
    ('Unknown', 'HighlyKnown')
    >>> shuffled = [categories("random", ["a", "b", "c"], found, seed) for seed in range(30)]
    >>> {one.categories.index("HighlyKnown") for one in shuffled}, {one.counts()["Unknown"] for one in shuffled}
    ({0, 1, 2}, {2})
    """
    if knowledge is None:
        return Knowledge(tuple(ids), ("HighlyKnown",) * len(ids), np.ones(len(ids)), np.ones(len(ids)))
    place = {name: row for row, name in enumerate(knowledge.ids)}
    rows = np.array([place[name] for name in ids])
    if which == "random":
        rows = np.random.default_rng(seed).permutation(rows)
    taken = tuple(knowledge.categories[row] for row in rows)
    return Knowledge(tuple(ids), taken, knowledge.greedy_right[rows], knowledge.sampled_right[rows])


def scaled(factor: float) -> type[CogCalibTrainer]:
    """A trainer whose threshold is so many times what is fitted; what it logs of the detector is of the fitted one."""

    class Scaled(CogCalibTrainer):
        def refresh(self) -> None:
            before = self.detector
            super().refresh()
            if self.detector is not None and self.detector is not before:
                self.detector = replace(self.detector, threshold=factor * self.detector.threshold)

    return Scaled


def collect(settings: dict[str, Any], folder: Path) -> tuple[dict[str, list[OptionLogits]], dict[str, Any]]:
    """Test scores of the rows that are done for all seeds, and what their trainers noted: means over the seeds."""
    rows: dict[str, list[OptionLogits]] = {}
    notes: dict[str, Any] = {}
    for name in VARIANTS:
        paths = [folder / f"{name}-{seed}.parquet" for seed in settings["seeds"]]
        if not all(path.exists() for path in paths):
            continue
        files = [read_scores(path) for path in paths]
        rows[name] = [file.scores for file in files]
        notes[name] = [file.metadata["notes"] for file in files]
        if name == "sft":
            fits = [read_scores(folder / f"sft-{seed}-fit.parquet").scores for seed in settings["seeds"]]
            both = zip(fits, rows["sft"], strict=True)
            rows["sft + temperature"] = [fit_temperature(fit)(test) for fit, test in both]
    return rows, notes


def print_contrasts(result: dict[str, Any]) -> None:
    there = [(row, baseline) for row, baseline in CONTRASTS if row in result and baseline in result]
    if there:
        print("\n| contrast | accuracy | NLL | Brier | ECE | ECE, each seed |\n|---|---|---|---|---|---|")
    for row, baseline in there:
        found = [result[row][f"minus {baseline}"][metric] for metric in common.SHOWN]
        cells = [f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]" for one in found]
        each = zip(result[row]["per_seed"]["ece"], result[baseline]["per_seed"]["ece"], strict=True)
        cells.append(", ".join(f"{one - other:+.3f}" for one, other in each))
        print(f"| {row} minus {baseline} | {' | '.join(cells)} |")


def print_notes(notes: dict[str, Any]) -> None:
    """What was trained on and taken as known; the last value of each, as a mean over seeds."""
    print("\n| method | training questions | known share, first log | last | detector accuracy, first fit | last |")
    print("|---|---|---|---|---|---|")
    for name, seeds in notes.items():
        cells = [f"{np.mean([seed['trained_on'] for seed in seeds]):.0f}"]
        for quantity in ("known_share", "detector_accuracy"):
            for place in (0, -1):
                values = [seed[quantity][place] for seed in seeds if seed[quantity]]
                defined = [value for value in values if value is not None]
                cells.append(f"{np.mean(defined):.2f}" if defined else "")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
