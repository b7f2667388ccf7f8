"""Every method against plain fine-tuning and temperature scaling, on the real small model and `world-facts`.

    python benchmarks/methods.py [--quick] [--output DIR]

Each run is one fine-tuning of SmolLM2-135M-Instruct with LoRA on 300 questions, scored on 2,000 test questions. First
the strength of each method is chosen: the least NLL on 500 calibration questions among a small grid, trained on 300
questions drawn with another seed. Then 3 seeds of every method with its chosen strength; a seed picks the training
questions, their order and the adapter's start. The test questions are the same throughout, and nothing is fitted or
chosen on them. Temperatures are fitted on another 500 calibration questions, detectors and held-out bins on 200 of
those.

Scores are written to DIR as they come, and what is there is not done again. Several processes may share one DIR: on a
CPU, one process a core with OMP_NUM_THREADS=1 (as `make bench` starts them) does more than one process on all cores.
The table goes to standard output and, as JSON, to `benchmarks/results/methods.json` with a picture beside it (with
`--quick` into DIR only).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caltune.data import load_questions
from caltune.errors import InputError
from caltune.formats import ScoreFile, read_scores, write_scores
from caltune.metrics import DIRECTIONS, nll, noise_floor
from caltune.metrics.bootstrap import basic_interval, bootstrap, percentile_interval
from caltune.metrics.summary import CALIBRATION_ERRORS, all_metrics, metric_values
from caltune.recalibrate import fit_temperature
from caltune.report.diagram import save_diagram
from caltune.types import OptionLogits, Question

SETTINGS = {
    "model": "smollm2",
    "template": "plain",
    "train": 300,
    "choose_train": 300,
    "fit": 500,
    "method_fit": 200,
    "choose": 500,
    "test": 2000,
    "epochs": 3,
    "batch": 16,
    "learning_rate": 3e-4,
    "lora_r": 32,
    "lora_alpha": 64,
    "seeds": [0, 1, 2],
    "choose_seed": 100,
}
QUICK = {
    "train": 64,
    "choose_train": 48,
    "fit": 64,
    "method_fit": 32,
    "choose": 64,
    "test": 200,
    "epochs": 1,
    "seeds": [0],
}

# Method -> (trainer, fixed settings, strengths to choose from).
METHODS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "sft": ("sft", {}, [{}]),
    "rcft-train": (
        "rcft",
        {"bin_accuracy_source": "train"},
        [{"calibration_weight": 0.3}, {"calibration_weight": 1.0}],
    ),
    "rcft-held-out": (
        "rcft",
        {"bin_accuracy_source": "held-out"},
        [{"calibration_weight": 0.3}, {"calibration_weight": 1.0}],
    ),
    "cogcalib-label-smoothing": (
        "cogcalib",
        {"penalty": "label-smoothing"},
        [{"smoothing": 0.2}, {"smoothing": 0.4}],
    ),
    "cogcalib-margin": ("cogcalib", {"penalty": "margin", "penalty_weight": 0.1}, [{"margin": 1.0}, {"margin": 2.0}]),
    "cogcalib-entropy": (
        "cogcalib",
        {"penalty": "entropy"},
        [{"penalty_weight": 0.1}, {"penalty_weight": 0.3}],
    ),
}


def pick(questions: list[Question], count: int, seed: int) -> list[Question]:
    return random.Random(seed).sample(questions, min(count, len(questions)))


def fine_tune(
    settings: dict[str, Any],
    method: str,
    strength: dict[str, Any],
    seed: int,
    train: list[Question],
    fit: list[Question],
    folder: Path,
) -> tuple[Any, Any]:
    """A fresh model fine-tuned by one method, its adapter merged, and its tokenizer."""
    from peft import LoraConfig

    from caltune import methods
    from caltune.models import load_model

    kind, fixed, _ = METHODS[method]
    trainer_class, config_class = {
        "sft": (methods.SFTTrainer, methods.SFTConfig),
        "rcft": (methods.RCFTTrainer, methods.RCFTConfig),
        "cogcalib": (methods.CogCalibTrainer, methods.CogCalibConfig),
    }[kind]
    args = config_class(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch"],
        learning_rate=settings["learning_rate"],
        template=settings["template"],
        seed=seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        **fixed,
        **strength,
    )
    model, tokenizer = load_model(settings["model"])
    trainer = trainer_class(
        model,
        args,
        train_dataset=train,
        calibration_dataset=None if kind == "sft" else fit,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=settings["lora_r"], lora_alpha=settings["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    return trainer.model.merge_and_unload().eval(), tokenizer


def score_into(
    path: Path, settings: dict[str, Any], model: Any, tokenizer: Any, questions: list[Question], **metadata: Any
) -> None:
    from caltune.scoring import score

    scores = score(model, tokenizer, questions, template=settings["template"])
    write_scores(
        path, scores, {"model": settings["model"], "data": "world-facts", "answers": "continuations", **metadata}
    )


def choose(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each method whose grid is done, the strength with the least NLL on calibration questions, and all tried."""
    found: dict[str, dict[str, Any]] = {"chosen": {}, "tried": {}}
    for method, (_, _, grid) in METHODS.items():
        paths = [choice_path(folder, method, strength) for strength in grid] if len(grid) > 1 else []
        if all(path.exists() for path in paths):
            losses = [nll(read_scores(path).scores) for path in paths]
            found["chosen"][method] = grid[int(np.argmin(losses)) if losses else 0]
            found["tried"][method] = [{**strength, "nll": loss} for strength, loss in zip(grid, losses, strict=False)]
    return found


def choice_path(folder: Path, method: str, strength: dict[str, Any]) -> Path:
    return folder / f"choose-{method}-{','.join(f'{key}={value}' for key, value in strength.items())}.parquet"


def report(path: Path, start: float) -> None:
    scores = read_scores(path).scores
    decided = scores.decide()
    print(
        f"{path.stem}: accuracy {decided.correct.mean():.3f}, confidence {decided.confidence.mean():.3f}, "
        f"NLL {nll(scores):.3f}, {time.perf_counter() - start:.0f} s",
        flush=True,
    )


def ready(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]]) -> dict[Path, Callable[[], None]]:
    """What can be done now and has not been: the file it writes, and how."""
    jobs: dict[Path, Callable[[], None]] = {}

    def add(path: Path, job: Callable[..., None], *arguments: Any, made: dict[str, Any] | None = None) -> None:
        if not path.exists():
            jobs[path] = partial(job, path, settings, data, *arguments)
        elif made is not None and (found := read_scores(path).metadata.get("made_with")) != made:
            raise InputError(f"{path}: was made with {found}, not with {made}; remove it, or use another --output")

    for method, (_, _, grid) in METHODS.items():
        for strength in grid if len(grid) > 1 else []:
            made = made_with(settings, method, strength, "choose_train", settings["choose_seed"])
            add(choice_path(folder, method, strength), run_choice, method, strength, made=made)
    add(folder / "zero-shot.parquet", run_zero_shot)
    chosen = choose(folder)["chosen"]
    for seed in settings["seeds"]:
        for method in METHODS:
            if method in chosen:
                made = made_with(settings, method, chosen[method], "train", seed)
                add(folder / f"{method}-{seed}.parquet", run_method, method, chosen[method], seed, made=made)
    return jobs


def made_with(settings: dict[str, Any], method: str, strength: dict[str, Any], train: str, seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    names = ("model", "template", "method_fit", "test", "epochs", "batch", "learning_rate", "lora_r", "lora_alpha")
    return {
        **{name: settings[name] for name in names},
        "train": settings[train],
        "seed": seed,
        **METHODS[method][1],
        **strength,
    }


def run_choice(path: Path, settings: dict[str, Any], data: Any, method: str, strength: dict[str, Any]) -> None:
    seed = settings["choose_seed"]
    model, tokenizer = fine_tune(
        settings, method, strength, seed, data["choose_train"], data["fit"][: settings["method_fit"]], path.parent
    )
    made = made_with(settings, method, strength, "choose_train", seed)
    score_into(path, settings, model, tokenizer, data["choose"], split="calibration", made_with=made)


def run_zero_shot(path: Path, settings: dict[str, Any], data: Any) -> None:
    from caltune.models import load_model

    score_into(path, settings, *load_model(settings["model"]), data["test"], split="test")


def run_method(
    path: Path, settings: dict[str, Any], data: Any, method: str, strength: dict[str, Any], seed: int
) -> None:
    train = pick(data["train"], settings["train"], seed)
    model, tokenizer = fine_tune(
        settings, method, strength, seed, train, data["fit"][: settings["method_fit"]], path.parent
    )
    if method == "sft":  # what temperature scaling is fitted on
        fitted = path.with_name(f"sft-{seed}-fit.parquet")
        score_into(fitted, settings, model, tokenizer, data["fit"], split="calibration", seed=seed)
    made = made_with(settings, method, strength, "train", seed)
    score_into(path, settings, model, tokenizer, data["test"], split="test", seed=seed, method=method, made_with=made)


def work(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]]) -> None:
    """Do what is ready until nothing is left; other processes may do the same beside this one."""
    while jobs := ready(settings, folder, data):
        for path, job in jobs.items():
            lock = path.with_suffix(".lock")
            if claim(lock):
                if path.exists():  # done by another process since the list was made
                    lock.unlink()
                    break
                start = time.perf_counter()
                try:
                    job()
                finally:
                    lock.unlink()
                report(path, start)
                break
        else:
            time.sleep(10)  # the rest is in other hands


def claim(lock: Path) -> bool:
    """Take a job unless a living process has it."""
    try:
        with open(lock, "x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        with suppress(OSError, ValueError):
            owner = int(lock.read_text(encoding="utf-8"))
            if not Path(f"/proc/{owner}").exists() and Path("/proc").exists():
                lock.unlink(missing_ok=True)  # its process was killed; the next round takes it
        return False


def collect(settings: dict[str, Any], folder: Path) -> dict[str, list[OptionLogits]]:
    """Test scores of each row of the table, one a seed; temperature is fitted on each seed's calibration scores."""

    def read(name: str) -> ScoreFile:
        return read_scores(folder / f"{name}.parquet")

    rows = {"zero-shot": [read("zero-shot").scores]}
    for method in METHODS:
        rows[method] = [read(f"{method}-{seed}").scores for seed in settings["seeds"]]
        if method == "sft":
            rows["sft + temperature"] = [
                fit_temperature(read(f"sft-{seed}-fit").scores)(read(f"sft-{seed}").scores)
                for seed in settings["seeds"]
            ]
    return rows


def table(rows: dict[str, list[OptionLogits]], draws: int = 1000) -> dict[str, Any]:
    """Means over seeds with 95 % intervals over questions, and paired differences to the two baselines.

    All seeds see the same resampled questions, so an interval speaks of other questions of this kind, and the spread
    over seeds is given beside it.
    """
    count = len(rows["zero-shot"][0])
    names = list(DIRECTIONS)
    values, replicates, result = {}, {}, {}
    for row, scores in rows.items():
        statistics = [all_metrics(item) for item in scores]
        per_seed = np.array([metric_values(statistic, count) for statistic in statistics])
        values[row] = per_seed.mean(0)
        replicates[row] = bootstrap(
            lambda counts, used=statistics: np.mean([statistic(counts) for statistic in used], axis=0),
            count,
            draws=draws,
        )
        result[row] = {
            "per_seed": {name: per_seed[:, i].tolist() for i, name in enumerate(names)},
            "mean": {
                name: (basic_interval if name in CALIBRATION_ERRORS else percentile_interval)(
                    float(values[row][i]), replicates[row][:, i]
                ).to_json()
                for i, name in enumerate(names)
            },
            "noise_floor": float(np.mean([noise_floor(item.decide()) for item in scores])),
        }
    for row in rows:
        for baseline in ("sft", "sft + temperature"):
            difference = values[row] - values[baseline]
            spread = replicates[row] - replicates[baseline]
            result[row][f"minus {baseline}"] = {
                name: percentile_interval(float(difference[i]), spread[:, i]).to_json() for i, name in enumerate(names)
            }
    return result


def draw(rows: dict[str, list[OptionLogits]], path: Path) -> None:
    """Reliability before and after with the first seed, one panel a row of the table."""
    shown = ("zero-shot", "sft", "rcft-held-out", "cogcalib-label-smoothing")
    save_diagram(path, {row: rows[row][0].decide() for row in shown})


def print_table(result: dict[str, Any]) -> None:
    base = result["sft"]
    print("\n| method | accuracy | NLL | Brier | ECE | ECE less floor | ECE / SFT's | less floor / SFT's |")
    print("|---|---|---|---|---|---|---|---|")
    for row, found in result.items():
        mean, floor = found["mean"], found["noise_floor"]
        above, base_above = mean["ece"]["value"] - floor, base["mean"]["ece"]["value"] - base["noise_floor"]
        cells = [
            f"{mean[m]['value']:.3f} [{mean[m]['low']:.3f}, {mean[m]['high']:.3f}]"
            for m in ("accuracy", "nll", "brier", "ece")
        ]
        ratio = mean["ece"]["value"] / base["mean"]["ece"]["value"]
        print(f"| {row} | {' | '.join(cells)} | {above:.3f} | {ratio:.2f} | {above / base_above:.2f} |")
    for baseline in ("sft", "sft + temperature"):
        print(f"\n| minus {baseline} | accuracy | NLL | Brier | ECE |\n|---|---|---|---|---|")
        for row, found in result.items():
            if row != baseline:
                d = found[f"minus {baseline}"]
                cells = [
                    f"{d[m]['value']:+.3f} [{d[m]['low']:+.3f}, {d[m]['high']:+.3f}]"
                    for m in ("accuracy", "nll", "brier", "ece")
                ]
                print(f"| {row} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small version, under 10 minutes: a check, not evidence")
    parser.add_argument(
        "--output", type=Path, help="where scores are kept (default: benchmarks/output/methods[-quick])"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds (default: 0 1 2)")
    arguments = parser.parse_args()
    here = Path(__file__).parent
    folder = arguments.output or here / "output" / ("methods-quick" if arguments.quick else "methods")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**SETTINGS, **(QUICK if arguments.quick else {})}
    settings["seeds"] = arguments.seeds or settings["seeds"]
    from transformers.utils import logging

    logging.disable_progress_bar()
    calibration = pick(load_questions("world-facts", "calibration"), settings["fit"] + settings["choose"], 0)
    data = {
        "train": load_questions("world-facts", "train"),
        "test": pick(load_questions("world-facts", "test"), settings["test"], 0),
        "fit": calibration[: settings["fit"]],
        "choose": calibration[settings["fit"] :],
    }
    data["choose_train"] = pick(data["train"], settings["choose_train"], settings["choose_seed"])
    start = time.perf_counter()
    work(settings, folder, data)
    strengths = choose(folder)
    print(json.dumps(strengths["chosen"]), flush=True)
    rows = collect(settings, folder)
    result = table(rows)
    print_table(result)
    document = {
        "settings": settings,
        "strengths": strengths,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "seconds_this_run": round(time.perf_counter() - start),
        "rows": result,
    }
    target = folder / "methods.json" if arguments.quick else here / "results" / "methods.json"
    draw(rows, target.with_name("reliability.png"))
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
