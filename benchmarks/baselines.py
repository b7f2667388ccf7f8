"""Other losses and other predictors beside `methods.py`: what smoothing, focal loss, ensembles and dropout reach here.

    python benchmarks/baselines.py [--part losses|predictors] [--quick] [--output DIR] [--seeds S …] [--minutes M]

The runs are those of `methods.py`: SmolLM2-135M-Instruct, LoRA on 600 questions of `world-facts` for 3 epochs, the same
training questions by seed, the same 2,000 test questions, 3 seeds. Given its folder as DIR, plain fine-tuning is taken
from there, and two of its rows are shown beside these. Strengths are the papers' where they carry over, else caltune's
defaults; nothing is chosen, so a row says what one gets who tries the method once.

`losses` puts a penalty or another loss in the place of the answer loss. DECE needs batches of 128: it takes 120
questions a step, so 15 steps, and with them goes a row of plain fine-tuning on as large batches. Mixup needs letters,
which this model does not answer by; `second_family.py` has it.

`predictors` leave the loss and change how the answer is read: MC dropout (LoRA dropout 0.1, 8 passes), last-layer
Laplace (its prior from 200 calibration questions), and the ensemble of the seeds' models, which is one row. Each but
dropout's is also shown with a temperature fitted on 500 calibration questions, as plain fine-tuning is; Laplace's on
the 300 that its prior has not seen.

Scores are written to DIR as they come, and what is there is not done again; several processes may share one DIR. The
tables go to standard output and, as JSON, to `benchmarks/results/baselines.json` (with `--quick` into DIR only). They
hold the rows that are done for all seeds, so that the second part adds to the first. In two processes on two cores
each takes about 55 minutes, and 10 more without the runs of `methods.py`. A run of MC dropout takes 26, the others 5 to
9: `--minutes 30` makes parts of less than an hour.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import methods
from common import pick

from caltune.errors import InputError
from caltune.formats import read_scores, write_scores
from caltune.predictors.ensemble import average_probabilities
from caltune.predictors.laplace import fit_laplace, laplace_scores
from caltune.predictors.mc_dropout import mc_dropout_scores
from caltune.recalibrate import fit_temperature
from caltune.types import OptionLogits

PARTS = ("losses", "predictors")
QUICK = {**methods.QUICK, "seeds": [0, 1]}
LARGE = {"batch": 120}
# Row -> (trainer, its settings, what differs in the run).
LOSSES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "label-smoothing": ("LabelSmoothing", {"smoothing": 0.1}, {}),
    "margin": ("Margin", {"penalty_weight": 0.1, "margin": 2.0}, {}),
    "entropy": ("Entropy", {"penalty_weight": 0.1}, {}),
    "focal": ("Focal", {"gamma": 2.0}, {}),
    "brier": ("Brier", {"brier_share": 1.0}, {}),
    "dece": ("DECE", {"penalty_weight": 1.0}, LARGE),
    "sft-large-batches": ("SFT", {}, LARGE),
}
DROPOUT = {"lora_dropout": 0.1}
PASSES = 8
BESIDE = ("cogcalib-label-smoothing", "tempered")  # of `methods.py`, shown where their scores are in DIR
BASELINES = ("sft", "sft + temperature", "sft-large-batches", *BESIDE)
SCALED = ("sft", "ensemble", "laplace")  # also shown with a temperature


def main() -> None:
    arguments, folder = common.parse(__doc__, "baselines", parts=PARTS)
    settings = common.settings_for(arguments, methods.SETTINGS, QUICK)
    data, _ = methods.load(settings)
    parts = [arguments.part] if arguments.part else PARTS
    if not common.work(partial(ready, settings, folder, data, parts), arguments.minutes):
        return
    rows = collect(settings, folder)
    result = common.table(rows, [baseline for baseline in BASELINES if baseline in rows])
    common.print_table(result)
    told = {"losses": LOSSES, "dropout": DROPOUT, "passes": PASSES, "rows": result}
    common.publish("baselines", folder, quick=arguments.quick, document={"settings": settings, **told})


def ready(settings: dict[str, Any], folder: Path, data: Any, parts: Any) -> common.Jobs:
    """What can be done now and has not been: the file it writes, and how."""
    wanted: dict[Path, tuple[Callable[..., None], dict[str, Any]]] = {}
    for seed in settings["seeds"]:
        run = partial(methods.run_method, method="sft", strength={}, seed=seed)
        wanted[folder / f"sft-{seed}.parquet"] = (run, methods.made_with(settings, "sft", {}, "train", seed))
        for row in LOSSES if "losses" in parts else ():
            wanted[folder / f"{row}-{seed}.parquet"] = (partial(run_loss, row, seed), made_with(settings, row, seed))
        for row, run in PREDICTORS.items() if "predictors" in parts else ():
            wanted[folder / f"{row}-{seed}.parquet"] = (partial(run, seed), made_with(settings, row, seed))
    jobs: common.Jobs = {}
    for path, (run, made) in wanted.items():
        if path.exists():
            common.require_made_with(path, made)
        else:
            jobs[path] = partial(run, path=path, settings=settings, data=data)
    return jobs


def made_with(settings: dict[str, Any], row: str, seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    how = {"row": LOSSES[row]} if row in LOSSES else {"row": [row, DROPOUT, PASSES]}
    made = {**methods.made_with(settings, "sft", {}, "train", seed), **how, "fit": settings["fit"]}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in made.items()}


def run_loss(row: str, seed: int, path: Path, settings: dict[str, Any], data: Any) -> None:
    trainer, fields, other = LOSSES[row]
    train = pick(data["train"], settings["train"], seed)
    tuned = common.fine_tune({**settings, **other}, trainer, fields, seed, train, None, path.parent)
    made = made_with(settings, row, seed)
    common.score_into(path, settings, *tuned, data["test"], split="test", seed=seed, made_with=made)


def run_dropout(seed: int, path: Path, settings: dict[str, Any], data: Any) -> None:
    train = pick(data["train"], settings["train"], seed)
    tuned = common.fine_tune({**settings, **DROPOUT}, "SFT", {}, seed, train, None, path.parent, merge=False)
    found = mc_dropout_scores(*tuned, data["test"], passes=PASSES, **reading(settings))
    write_scores(path, found, {"split": "test", "seed": seed, "made_with": made_with(settings, "mc-dropout", seed)})


def run_laplace(seed: int, path: Path, settings: dict[str, Any], data: Any) -> None:
    train = pick(data["train"], settings["train"], seed)
    tuned = common.fine_tune(settings, "SFT", {}, seed, train, None, path.parent)
    prior, rest = data["fit"][: settings["method_fit"]], data["fit"][settings["method_fit"] :]
    fitted = fit_laplace(*tuned, train, prior, **reading(settings))
    made = made_with(settings, "laplace", seed)
    for target, questions in ((path.with_name(f"{path.stem}-fit.parquet"), rest), (path, data["test"])):
        write_scores(target, laplace_scores(*tuned, questions, fitted), {"seed": seed, "made_with": made})


PREDICTORS = {"mc-dropout": run_dropout, "laplace": run_laplace}


def reading(settings: dict[str, Any]) -> dict[str, Any]:
    return {"answers": settings["answers"], "template": settings["template"]}


def collect(settings: dict[str, Any], folder: Path) -> dict[str, list[OptionLogits]]:
    """Test scores of each row that is done for all seeds; each temperature is fitted on calibration questions."""

    def read(row: str, end: str = "") -> list[OptionLogits]:
        return [read_scores(folder / f"{row}-{seed}{end}.parquet").scores for seed in settings["seeds"]]

    rows: dict[str, list[OptionLogits]] = {}
    for row in ("sft", *LOSSES, "ensemble", *PREDICTORS, *beside(settings, folder)):
        if row == "ensemble":
            rows[row], fit = [average_probabilities(rows["sft"])], lambda: [average_probabilities(read("sft", "-fit"))]
        elif all((folder / f"{row}-{seed}.parquet").exists() for seed in settings["seeds"]):
            rows[row], fit = read(row), partial(read, row, "-fit")
        else:
            continue
        if row in SCALED:
            rows[f"{row} + temperature"] = [fit_temperature(f)(s) for f, s in zip(fit(), rows[row], strict=True)]
    return rows


def beside(settings: dict[str, Any], folder: Path) -> list[str]:
    """The rows of `methods.py` that are in DIR, made as it makes them there; a line for each that is made otherwise."""
    chosen, rows = methods.choose(folder)["chosen"], []
    for row in BESIDE:
        paths = {seed: folder / f"{row}-{seed}.parquet" for seed in settings["seeds"]}
        if not all(path.exists() for path in paths.values()):
            continue
        try:
            if row not in chosen:
                raise InputError(f"{folder}: lacks the runs that its strength was chosen on")
            for seed, path in paths.items():
                common.require_made_with(path, methods.made_with(settings, row, chosen[row], "train", seed))
            rows.append(row)
        except InputError as error:
            print(f"{row} is left out: {error}")
    return rows


if __name__ == "__main__":
    main()
