"""What each part of RCFT does: where bin accuracies come from, when they are taken, targets, and the paper's own loss.

    python benchmarks/rcft_parts.py [--part sources|schedule] [--quick] [--output DIR] [--seeds S …] [--minutes M]

All runs fine-tune SmolLM2-135M-Instruct with LoRA on 400 training questions of `world-facts` and are scored on the same
1,000 test questions. Every question weighs alike and λ = 3, the largest that still buys calibration in `frontier.py`,
whose test questions are the same 1,000: that choice can only favour RCFT beside its rivals, and else nothing is fitted
or chosen on them. Only "the paper's own" rows have the paper's 1/N_m, λ = 1 and its loss over question and answer
tokens. Held-out bins are of 200 calibration questions, on which the temperatures are fitted, too. A seed picks the
training questions from a pool of 1,200, their order and the adapter's start; 3 seeds a row.

`sources` compares where the accuracy of a bin comes from: training questions, held-out ones, each training question's
answer from before it was trained on (first pass), and models trained without it (cross-fitted, two folds, each of which
trains on half the questions). `schedule` keeps the held-out bins and changes one thing: a smooth accuracy instead of
bins, an E-step once or every 10 of 75 steps, a running average, a strength that follows the measured gap (λ = 30 × the
overconfidence at each E-step); and plain fine-tuning on option scores that are means over tokens, not sums.

Scores are written to DIR as they come, and what is there is not done again; several processes may share one DIR. The
tables go to standard output and, as JSON, to `benchmarks/results/rcft-parts-PART.json` with a picture beside it (with
`--quick` into DIR only). In two processes on two cores `sources` takes 53 minutes, `schedule` 30 a seed;
`--minutes 40` keeps a part under an hour, and the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import common
from common import pick
from rows_picture import MARKS, describe, draw_rows

from caltune.data import load_questions
from caltune.formats import read_scores
from caltune.methods import RCFTTrainer
from caltune.recalibrate import fit_temperature
from caltune.types import OptionLogits, Predictions, Question

SIZES = {"pool": 1200, "train": 400, "fit": 200, "test": 1000, "seeds": [0, 1, 2]}
SETTINGS = {**common.RUN, **SIZES}
QUICK = {"pool": 64, "train": 32, "fit": 24, "test": 60, "epochs": 1, "seeds": [0]}
FOLLOWED = 0.1  # the overconfidence at which a strength that follows it is λ


@dataclass(frozen=True)
class Variant:
    """One row: a method with these fields; `follows` scales RCFT's strength with the measured gap."""

    part: str
    label: str
    method: str
    fields: dict[str, Any] = field(default_factory=dict)
    follows: bool = False


def rcft(source: str, **fields: Any) -> dict[str, Any]:
    return {"bin_accuracy_source": source, "calibration_weight": 3.0, **fields}


TOKENS = {"answer_loss": "tokens", "question_loss_weight": 1.0}
VARIANTS = {
    "sft": Variant("both", "plain fine-tuning", "SFT"),
    "held-out": Variant("both", "RCFT, held-out bins", "RCFT", rcft("held-out")),
    "train": Variant("sources", "bins of training questions", "RCFT", rcft("train")),
    "first-pass": Variant("sources", "bins of the first pass", "RCFT", rcft("first-pass")),
    "cross-fitted": Variant("sources", "cross-fitted bins", "RCFT", rcft("cross-fitted")),
    "sft-tokens": Variant("sources", "plain, the paper's own loss", "SFT", TOKENS),
    "paper": Variant(
        "sources",
        "RCFT, the paper's own, λ = 1",
        "RCFT",
        {**TOKENS, **rcft("train", calibration_weight=1.0, bin_weights="equal")},
    ),
    "smooth": Variant("schedule", "smooth accuracy", "RCFT", rcft("held-out", bin_targets="smooth")),
    "once": Variant("schedule", "E-step once", "RCFT", rcft("held-out", refresh="once")),
    "steps": Variant("schedule", "E-step every 10 steps", "RCFT", rcft("held-out", refresh="steps", refresh_steps=10)),
    "momentum": Variant("schedule", "running average, μ = 0.5", "RCFT", rcft("held-out", refresh_momentum=0.5)),
    "following": Variant("schedule", "λ = 30 × the gap", "RCFT", rcft("held-out"), follows=True),
    "sft-mean": Variant("schedule", "plain, means over tokens", "SFT", {"reduction": "mean"}),
}
SCALED = ("sft", "sft-tokens", "sft-mean")  # also shown with a temperature
PARTS = ("sources", "schedule")
BASELINES = ("sft", "sft + temperature", "held-out", "sft-tokens", "sft-mean")


class Following(RCFTTrainer):
    """RCFT whose strength is proportional to the mean overconfidence of the answers the bins are taken from."""

    def source_answers(self, train: Predictions) -> Predictions:
        answers = super().source_answers(train)
        self.gap = max(float((answers.confidence - answers.correct).mean()), 0.0)
        return answers

    def expectation(self) -> None:
        super().expectation()
        self.weights = self.weights * (self.gap / FOLLOWED)


def main() -> None:
    arguments, folder = common.parse(__doc__, "rcft_parts", parts=PARTS)
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    parts = [arguments.part] if arguments.part else PARTS
    if not common.work(partial(ready, settings, folder, load(settings), parts), arguments.minutes):
        return
    for part in parts:
        publish(part, settings, folder, quick=arguments.quick)


def publish(part: str, settings: dict[str, Any], folder: Path, *, quick: bool) -> None:
    """Print the tables of a part, and write them with their picture."""
    rows = collect(settings, folder, part)
    baselines = tuple(baseline for baseline in BASELINES if baseline in rows)
    result = common.table(rows, baselines=baselines)
    print(f"\n### {part}")
    common.print_table(result, baselines=baselines)
    of_part = {name: variant for name, variant in VARIANTS.items() if variant.part in ("both", part)}
    variants = {name: {"method": variant.method, **variant.fields} for name, variant in of_part.items()}
    document = {"settings": {**settings, "followed": FOLLOWED}, "variants": variants, "rows": result}
    target = common.publish(f"rcft-parts-{part}", folder, quick=quick, document=document)
    labels = {name: variant.label for name, variant in of_part.items()}
    labels |= {f"{name} + temperature": f"{labels[name]} + temperature" for name in SCALED if name in labels}
    title = f"RCFT part by part: {describe(settings)}; λ = 3 but where another is named"
    title += f"\n{MARKS}: plain fine-tuning (grey), RCFT (blue)"
    draw_rows(target.with_suffix(".png"), result, labels, ("sft", "held-out"), title)


def load(settings: dict[str, Any]) -> dict[str, list[Question]]:
    """Questions by their use."""
    return {
        "pool": pick(load_questions("world-facts", "train"), settings["pool"], 0),
        "fit": pick(load_questions("world-facts", "calibration"), settings["fit"], 0),
        "test": pick(load_questions("world-facts", "test"), settings["test"], 0),
    }


def ready(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]], parts: Sequence[str]) -> common.Jobs:
    """What can be done now and has not been: the file it writes, and how."""
    jobs: common.Jobs = {}
    for seed in settings["seeds"]:
        for name, variant in VARIANTS.items():
            path = folder / f"{name}-{seed}.parquet"
            if path.exists():
                common.require_made_with(path, made_with(settings, name, seed))
            elif variant.part in ("both", *parts):
                jobs[path] = partial(run, path, settings, data, name, seed)
    return jobs


def made_with(settings: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    own = {key: value for key, value in settings.items() if key != "seeds"}
    variant = VARIANTS[name]
    follows = {"followed": FOLLOWED} if variant.follows else {}
    return {**own, "method": variant.method, **variant.fields, **follows, "seed": seed}


def run(path: Path, settings: dict[str, Any], data: dict[str, list[Question]], name: str, seed: int) -> None:
    """Fine-tune one variant with one seed and score the test questions."""
    variant = VARIANTS[name]
    train, fit = pick(data["pool"], settings["train"], seed), data["fit"] if variant.method == "RCFT" else None
    trainer = Following if variant.follows else None
    tuned = common.fine_tune(
        settings, variant.method, variant.fields, seed, train, fit, path.parent, trainer_class=trainer
    )
    how = {**settings, "reduction": variant.fields.get("reduction", "sum")}
    if name in SCALED:  # what temperature scaling is fitted on
        fitted = path.with_name(f"{name}-{seed}-fit.parquet")
        common.score_into(fitted, how, *tuned, data["fit"], split="calibration", seed=seed)
    made = made_with(settings, name, seed)
    common.score_into(path, how, *tuned, data["test"], split="test", seed=seed, made_with=made)


def collect(settings: dict[str, Any], folder: Path, part: str) -> dict[str, list[OptionLogits]]:
    """Test scores of the rows of a part."""
    rows: dict[str, list[OptionLogits]] = {}
    for name, variant in VARIANTS.items():
        if variant.part not in ("both", part):
            continue
        paths = [folder / f"{name}-{seed}.parquet" for seed in settings["seeds"]]
        rows[name] = [read_scores(path).scores for path in paths]
        if name in SCALED:
            fits = [read_scores(path.with_name(f"{path.stem}-fit.parquet")).scores for path in paths]
            pairs = zip(fits, rows[name], strict=True)
            rows[f"{name} + temperature"] = [fit_temperature(fit)(scores) for fit, scores in pairs]
    return rows


if __name__ == "__main__":
    main()
