"""A calibrated model is preference-aligned with DPO until its probabilities collapse; then calibration is restored.

    python benchmarks/alignment.py [--part align|tune] [--quick] [--output DIR] [--seeds S …] [--minutes M]

All on `world-facts`. Its train split is cut into three by entity, so that what is asked about one country stays
together, and no training meets another's part: 30 % make DPO's pairs, 10 % pairs that nothing is trained on, 25 % the
start, 35 % the repair. A pair is a question with its right option (chosen) and a wrong one, drawn by the question's id.

1. Start: SmolLM2-135M-Instruct fine-tuned with CogCalib's label smoothing at the strongest s of benchmarks/methods.py,
   0.4, fixed beforehand. Its ECE on calibration questions is 0.07, where chance alone would show 0.05.
2. Aligned: from the start TRL's own DPOTrainer (beta 0.1, LoRA, 3 epochs), one model a seed. After each epoch option
   logits of 500 calibration questions are taken. Learning rates 5e-5 and 2e-4 are tried with another seed; the one that
   collapses further is taken: the larger ECE on those 500 after the last epoch, of those whose accuracy there is at
   most 2 points below the start's. That is a choice of the illness, not of a cure.
3. Repaired: from each seed's aligned model, with 400 questions: SFT (question's text and answer, the paper's L_SFT2),
   CFT (the answer only: its tokens, the paper's L_SFT1; or among the options, our default), RCFT with held-out bins and
   two strengths (L_SFT among the options, so compare with "cft-options"), RCFT with the paper's loss, bins and λ = 1
   (compare with "sft"), CogCalib's label smoothing, our tempered fine-tuning with T fixed, and temperature scaling.
   Temperatures are fitted on 500 calibration questions, bins and detectors on 200 of those; strengths are fixed
   beforehand. The tables speak of 1,000 test questions that nothing was fitted or chosen on.

Whether alignment survives: on held-out pairs the DPO reward margin, beta·[log π(chosen)/ref − log π(rejected)/ref] with
the start as reference, the share of pairs with a margin above 0 (wins) and with π(chosen) > π(rejected), all of the
options' text without the end-of-text token that DPO also trains; and KL(aligned || tuned) over the options of the test
questions. The preference here is for right answers, so a method that learns right answers serves it too: a margin that
falls means less certainty about them, a KL tells how far the model has moved.

Scores and models (0.5 GB each, one and one a seed) are written to DIR as they come, and what is there is not done
again; several processes may share one DIR. `--part align` does steps 1 and 2, `--part tune` the rest: in two processes
on two cores about 70 and 62 minutes, a run of DPO 21 of them, so that `--minutes 35` makes parts under an hour. Tables
and a picture go to `benchmarks/results/alignment.json` and beside it (with `--quick` into DIR).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import common
from alignment_dpo import align, collapse_of
from alignment_report import draw, print_course, print_survival, survival
from common import pick

from caltune.data import load_questions
from caltune.data.world_facts import questions_by_entity
from caltune.formats import read_scores
from caltune.output import write_json
from caltune.recalibrate import fit_temperature
from caltune.types import OptionLogits, Question

SETTINGS: dict[str, Any] = {
    **common.RUN,
    "start": 600,
    "start_seed": 100,
    "pairs": 640,
    "held_out_pairs": 300,
    "align_epochs": 3,
    "align_batch": 16,
    "align_rates": [5e-5, 2e-4],
    "align_seed": 100,
    "beta": 0.1,
    "train": 400,
    "fit": 500,
    "method_fit": 200,
    "choose": 500,
    "test": 1000,
    "seeds": [0, 1, 2],
}
QUICK = {
    "start": 32,
    "pairs": 32,
    "held_out_pairs": 24,
    "align_epochs": 2,
    "align_rates": [2e-4, 1e-3],
    "train": 16,
    "fit": 32,
    "method_fit": 16,
    "choose": 48,
    "test": 60,
    "epochs": 1,
    "seeds": [0],
}
PARTS = {"pairs": 30, "held_out_pairs": 40, "start": 65, "train": 100}  # of 100 hashes, those below
START = ("CogCalib", {"penalty": "label-smoothing", "smoothing": 0.4})
RCFT = {"bin_accuracy_source": "held-out", "bin_weights": "count"}
TOKENS = {"answer_loss": "tokens", "question_loss_weight": 1.0}  # the paper's L_SFT2
PAPER = {**TOKENS, "bin_accuracy_source": "train", "bin_weights": "equal", "calibration_weight": 1.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("SFT", TOKENS),
    "cft": ("SFT", {"answer_loss": "tokens"}),
    "cft-options": ("SFT", {}),
    "rcft-1": ("RCFT", {**RCFT, "calibration_weight": 1.0}),
    "rcft-5": ("RCFT", {**RCFT, "calibration_weight": 5.0}),
    "rcft-paper": ("RCFT", PAPER),
    "cogcalib": ("CogCalib", {"penalty": "label-smoothing", "smoothing": 0.2}),
    "tempered": ("Tempered", {"option_temperature_refit": False}),
}
SCALED = ("aligned", "cft-options")  # also shown with a temperature
BASELINES = ("aligned", "aligned + temperature", "cft", "cft-options", "cft-options + temperature")


def main() -> None:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL's trainers report their use; read at the hub's first import
    arguments, folder = common.parse(__doc__, "alignment", parts=("align", "tune"))
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    data = load(settings)
    if not common.work(partial(ready, settings, folder, data, arguments.part != "align"), arguments.minutes):
        return
    tried = {rate: read_course(folder, f"rate-{rate}") for rate in settings["align_rates"]}
    courses = [read_course(folder, f"aligned-{seed}") for seed in settings["seeds"]]
    print_course({f"rate {rate}, seed {settings['align_seed']}": course for rate, course in tried.items()})
    print_course({f"seed {seed}": course for seed, course in zip(settings["seeds"], courses, strict=True)})
    if arguments.part == "align":
        return
    rows = collect(settings, folder)
    result = common.table(rows, baselines=BASELINES)
    common.print_table(result, baselines=BASELINES)
    kept = survival(rows, pair_scores(settings, folder), settings["beta"])
    print_survival(result, kept)
    document = {
        "settings": {**settings, "start_method": START, "methods": METHODS, "parts": PARTS},
        "rate": choose_rate(settings, folder),
        "tried": {str(rate): course for rate, course in tried.items()},
        "courses": courses,
        "rows": result,
        "survival": kept,
    }
    target = common.publish("alignment", folder, quick=arguments.quick, document=document)
    common.save_picture(draw(courses, result, kept), target.with_suffix(".png"))


def part_of(entity: str) -> str:
    """Which part of the train split an entity's questions are for, by a hash of its name.

    >>> [part_of(f"country/{name}") for name in ("france", "peru", "chad")]
    ['train', 'start', 'held_out_pairs']
    """
    percent = int.from_bytes(hashlib.sha256(f"alignment {entity}".encode()).digest()[:8]) % 100
    return next(part for part, below in PARTS.items() if percent < below)


def load(settings: dict[str, Any]) -> dict[str, list[Question]]:
    """Questions by their use; "train" holds all that a seed may draw from."""
    parts: dict[str, list[Question]] = {part: [] for part in PARTS}
    train = {question.id for question in load_questions("world-facts", "train")}
    for entity, question in questions_by_entity():
        if question.id in train:
            parts[part_of(entity)].append(question)
    calibration = pick(load_questions("world-facts", "calibration"), settings["fit"] + settings["choose"], 0)
    return {
        **{part: pick(parts[part], settings[part], 0) for part in ("pairs", "held_out_pairs", "start")},
        "train": parts["train"],
        "fit": calibration[: settings["fit"]],
        "choose": calibration[settings["fit"] :],
        "test": pick(load_questions("world-facts", "test"), settings["test"], 0),
    }


def ready(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]], tune: bool = True) -> common.Jobs:
    """What can be done now and has not been: the file or model folder it writes, and how."""
    jobs: common.Jobs = {}

    def add(path: Path, job: Any, *arguments: Any, method: str | None = None) -> None:
        scores = path if path.suffix else path.with_name(f"{path.name}-choose.parquet")
        if path.exists():
            common.require_made_with(scores, made_with(settings, method))
        else:
            jobs[path] = partial(job, path, settings, data, *arguments)

    add(folder / "start", run_start)
    if jobs:
        return jobs
    for rate in settings["align_rates"]:
        add(folder / f"rate-{rate}-choose.parquet", run_align, rate, settings["align_seed"])
    if jobs:
        return jobs
    rate = choose_rate(settings, folder)
    for seed in settings["seeds"]:
        add(folder / f"aligned-{seed}", run_align, rate, seed)
    for seed in settings["seeds"] if tune else []:
        for method in METHODS if (folder / f"aligned-{seed}").exists() else []:
            add(folder / f"{method}-{seed}.parquet", run_method, method, seed, method=method)
    return jobs


def made_with(settings: dict[str, Any], method: str | None = None) -> dict[str, Any]:
    """Everything that decides the scores but the seed, which is in a file's name; all that JSON can say."""
    kept = {name: value for name, value in settings.items() if name != "seeds"}
    own = {} if method is None else {"method": METHODS[method]}
    return json.loads(json.dumps({**kept, "start_method": START, "parts": PARTS, **own}))


def score_all(
    path: Path, settings: dict[str, Any], model: Any, tokenizer: Any, data: Any, *names: str, method: str | None = None
) -> None:
    """Score the named questions into `<path>-<name>.parquet`."""
    made = made_with(settings, method)
    for name in names:
        target = path.with_name(f"{path.name}-{name}.parquet")
        common.score_into(target, settings, model, tokenizer, data[name], made_with=made)


def save_model(path: Path, model: Any, tokenizer: Any) -> None:
    """A model folder, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)


def run_start(path: Path, settings: dict[str, Any], data: Any) -> None:
    fit = data["fit"][: settings["method_fit"]]
    seed = settings["start_seed"]
    model, tokenizer = common.fine_tune(settings, *START, seed, data["start"], fit, path.parent)
    score_all(path, settings, model, tokenizer, data, "choose", "test", "held_out_pairs")
    save_model(path, model, tokenizer)


def run_align(path: Path, settings: dict[str, Any], data: Any, rate: float, seed: int) -> None:
    """DPO from the start. To try a rate, its course only; for a seed also scores and the model."""
    from caltune.models import load_model

    start = read_scores(path.with_name("start-choose.parquet")).scores
    course = [{"epoch": 0, **collapse_of(start)}]
    model, tokenizer = load_model(path.parent / "start")
    model = align(settings, model, tokenizer, data, rate, seed, course, path.parent)
    name = path.stem.removesuffix("-choose")
    write_json(path.with_name(f"{name}-course.json"), course)
    if path.suffix:
        score_all(path.with_name(name), settings, model, tokenizer, data, "choose")
    else:
        score_all(path, settings, model, tokenizer, data, "choose", "fit", "test", "held_out_pairs")
        save_model(path, model, tokenizer)


def run_method(path: Path, settings: dict[str, Any], data: Any, method: str, seed: int) -> None:
    trainer, fields = METHODS[method]
    run = {**settings, "model": str(path.parent / f"aligned-{seed}")}
    fit = None if trainer == "SFT" else data["fit"][: settings["method_fit"]]
    train = pick(data["train"], settings["train"], seed)
    model, tokenizer = common.fine_tune(run, trainer, fields, seed, train, fit, path.parent)
    names = ("held_out_pairs", "fit") if method in SCALED else ("held_out_pairs",)
    score_all(path.with_suffix(""), settings, model, tokenizer, data, *names, method=method)
    common.score_into(path, run, model, tokenizer, data["test"], split="test", made_with=made_with(settings, method))


def read_course(folder: Path, name: str) -> list[dict[str, float]]:
    return json.loads((folder / f"{name}-course.json").read_text(encoding="utf-8"))


def choose_rate(settings: dict[str, Any], folder: Path) -> float:
    """The rate with the largest ECE after the last epoch; one that costs more than 2 points of accuracy comes last."""

    def rank(rate: float) -> tuple[bool, float]:
        course = read_course(folder, f"rate-{rate}")
        return course[-1]["accuracy"] >= course[0]["accuracy"] - 0.02, course[-1]["ece"]

    return max(settings["align_rates"], key=rank)


def collect(settings: dict[str, Any], folder: Path) -> dict[str, list[OptionLogits]]:
    """Test scores of each row, one a seed; a temperature is fitted on each seed's calibration scores."""

    def read(name: str) -> OptionLogits:
        return read_scores(folder / f"{name}.parquet").scores

    rows = {"start": [read("start-test")]}
    for name in ("aligned", *METHODS):
        test = "-test" if name == "aligned" else ""
        rows[name] = [read(f"{name}-{seed}{test}") for seed in settings["seeds"]]
        if name in SCALED:
            fits = [fit_temperature(read(f"{name}-{seed}-fit")) for seed in settings["seeds"]]
            rows[f"{name} + temperature"] = [fit(scores) for fit, scores in zip(fits, rows[name], strict=True)]
    return rows


def pair_scores(settings: dict[str, Any], folder: Path) -> dict[str, list[OptionLogits]]:
    """Log-probabilities of the held-out pairs' options; a temperature is no policy, so its rows have none."""

    def read(name: str) -> OptionLogits:
        file = read_scores(folder / f"{name}-held_out_pairs.parquet")
        return replace(file.scores, logits=file.scores.logits * file.metadata.get("temperature", 1))

    rows = {name: [read(f"{name}-{seed}") for seed in settings["seeds"]] for name in ("aligned", *METHODS)}
    return {"start": [read("start")], **rows}


if __name__ == "__main__":
    main()
