"""What the benchmark scripts share: questions, fine-tuning runs, flags, tables with intervals, published results.

A script lists its jobs as files to be written (`sharing.py`). What is there is not done again, and several processes
may share one folder: on a CPU, one process a core with OMP_NUM_THREADS=1 (as `make bench` starts them) does more than
one process on all cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sharing import Jobs as Jobs
from sharing import work as work

from caltune.errors import InputError
from caltune.formats import read_scores, write_scores
from caltune.metrics import DIRECTIONS, noise_floor
from caltune.metrics.bootstrap import basic_interval, bootstrap, finite_or_none, percentile_interval
from caltune.metrics.summary import CALIBRATION_ERRORS, all_metrics, metric_values
from caltune.output import write_json
from caltune.types import OptionLogits, Question

HERE = Path(__file__).parent
RUN = {
    "model": "smollm2",
    "answers": "continuations",
    "template": "plain",
    "epochs": 3,
    "batch": 16,
    "learning_rate": 3e-4,
    "lora_r": 32,
    "lora_alpha": 64,
}
SHOWN = ("accuracy", "nll", "brier", "ece")


def pick(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """So many questions drawn with a seed; all, in a drawn order, where there are no more."""
    return random.Random(seed).sample(list(questions), min(count, len(questions)))


def fine_tune(
    run: dict[str, Any],
    method: str,
    fields: dict[str, Any],
    seed: int,
    train: Sequence[Question],
    fit: Sequence[Question] | None,
    folder: Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    callbacks: Sequence[Any] = (),
    trainer_class: Any = None,
    merge: bool = True,
) -> tuple[Any, Any]:
    """A model fine-tuned with LoRA by `methods.<method>Trainer`, its adapter merged (or not), and its tokenizer.

    `run` is `RUN` or what differs from it; `fit` is what the method may fit on. Without `model` it is loaded anew.
    Each callback is given the trainer as its attribute `trainer`; `trainer_class` may stand in for the method's own.
    """
    from peft import LoraConfig

    from caltune import methods
    from caltune.models import load_model

    if "reduction" in run:
        fields = {"reduction": run["reduction"], **fields}
    args = getattr(methods, f"{method}Config")(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=run["epochs"],
        per_device_train_batch_size=run["batch"],
        learning_rate=run["learning_rate"],
        answers=run["answers"],
        template=run["template"],
        seed=seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        **fields,
    )
    if model is None:
        model, tokenizer = load_model(run["model"])
    lora = {name: run[name] for name in ("lora_alpha", "lora_dropout") if name in run}
    trainer = (trainer_class or getattr(methods, f"{method}Trainer"))(
        model,
        args,
        train_dataset=train,
        calibration_dataset=fit,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        peft_config=LoraConfig(r=run["lora_r"], **lora, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for callback in callbacks:
        callback.trainer = trainer
    trainer.train()
    return (trainer.model.merge_and_unload() if merge else trainer.model).eval(), tokenizer


def score_into(
    path: Path, run: dict[str, Any], model: Any, tokenizer: Any, questions: Sequence[Question], **metadata: Any
) -> OptionLogits:
    """Score questions into a file with its metadata; a temperature that came with the training is among it."""
    from caltune.models import option_temperature
    from caltune.scoring import score

    how = {name: run[name] for name in ("answers", "template", "reduction") if name in run}
    scores = score(model, tokenizer, questions, **how)
    path.parent.mkdir(parents=True, exist_ok=True)
    temperature = {"temperature": option_temperature(model)} if option_temperature(model) != 1 else {}
    write_scores(path, scores, {"model": run["model"], **how, **temperature, **metadata})
    return scores


def categories_into(path: Path, run: dict[str, Any], questions: Sequence[Question], sets: int, exemplars: int) -> None:
    """What the model knows of training questions, each asked behind exemplars from among the others, into a file."""
    from caltune.models import load_model
    from caltune.scoring.known import knowledge_to_file

    how = {"answers": run["answers"], "template": run["template"], "sets": sets, "exemplars": exemplars}
    source = {"model_name": run["model"], "data": "world-facts", "split": "train"}
    knowledge_to_file(path, *load_model(run["model"]), questions, questions, **source, **how)


def require_made_with(path: Path, made: dict[str, Any]) -> None:
    """Raise `InputError` unless a scores file was made with these settings."""
    found = read_scores(path).metadata.get("made_with")
    if found != made:
        raise InputError(f"{path}: was made with {found}, not with {made}; remove it, or use another --output")


def table(
    rows: dict[str, list[OptionLogits]], baselines: Sequence[str] = ("sft", "sft + temperature"), draws: int = 1000
) -> dict[str, Any]:
    """Means over seeds with 95 % intervals over questions, and paired differences to the baselines.

    All seeds see the same resampled questions, so an interval speaks of other questions of this kind, and the values of
    each seed are given beside it. A row may have one seed where others have more; all are of the same questions.
    """
    count = len(next(iter(rows.values()))[0])
    names = list(DIRECTIONS)
    values, replicates, result = {}, {}, {}
    for row, scores in rows.items():
        statistics = [all_metrics(item) for item in scores]
        per_seed = np.array([metric_values(statistic, count) for statistic in statistics])
        values[row] = per_seed.mean(0)
        replicates[row] = bootstrap(partial(_mean_of, statistics), count, draws=draws)
        result[row] = {
            "per_seed": {name: [finite_or_none(value) for value in per_seed[:, i]] for i, name in enumerate(names)},
            "mean": {
                name: (basic_interval if name in CALIBRATION_ERRORS else percentile_interval)(
                    float(values[row][i]), replicates[row][:, i]
                ).to_json()
                for i, name in enumerate(names)
            },
            "noise_floor": float(np.mean([noise_floor(item.decide()) for item in scores])),
        }
    for row in rows:
        for baseline in baselines:
            difference = values[row] - values[baseline]
            spread = replicates[row] - replicates[baseline]
            result[row][f"minus {baseline}"] = {
                name: percentile_interval(float(difference[i]), spread[:, i]).to_json() for i, name in enumerate(names)
            }
    return result


def _mean_of(statistics: Sequence[Callable[..., Any]], counts: Any) -> Any:
    return np.mean([statistic(counts) for statistic in statistics], axis=0)


def print_table(result: dict[str, Any], baselines: Sequence[str] = ("sft", "sft + temperature")) -> None:
    """The table and the paired differences, as Markdown. ECE is also given as a share of the first baseline's."""
    base = result[baselines[0]]
    share = f"{baselines[0].upper()}'s"
    print(f"\n| method | accuracy | NLL | Brier | ECE | ECE less floor | ECE / {share} | less floor / {share} |")
    print("|---|---|---|---|---|---|---|---|")
    for row, found in result.items():
        mean, floor = found["mean"], found["noise_floor"]
        above, base_above = mean["ece"]["value"] - floor, base["mean"]["ece"]["value"] - base["noise_floor"]
        cells = [f"{mean[m]['value']:.3f} [{mean[m]['low']:.3f}, {mean[m]['high']:.3f}]" for m in SHOWN]
        ratio = mean["ece"]["value"] / base["mean"]["ece"]["value"]
        print(f"| {row} | {' | '.join(cells)} | {above:.3f} | {ratio:.2f} | {above / base_above:.2f} |")
    for baseline in baselines:
        print(f"\n| minus {baseline} | accuracy | NLL | Brier | ECE |\n|---|---|---|---|---|")
        for row, found in result.items():
            if row != baseline:
                d = found[f"minus {baseline}"]
                cells = [f"{d[m]['value']:+.3f} [{d[m]['low']:+.3f}, {d[m]['high']:+.3f}]" for m in SHOWN]
                print(f"| {row} | {' | '.join(cells)} |")


def parse(
    description: str | None,
    name: str,
    parts: Sequence[str] = (),
    add: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    alone: bool = False,
) -> tuple[argparse.Namespace, Path]:
    """`--quick`, `--output`, `--seeds`, `--minutes`, with `parts` also `--part`, and the folder scores are kept in.

    `add` may add arguments of the script's own. `alone` is for those that share no runs: no `--seeds` and `--minutes`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small version: a check of the script, not evidence")
    parser.add_argument(
        "--output", type=Path, help=f"where scores are kept (default: benchmarks/output/{name}[-quick])"
    )
    if not alone:
        parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds (default: 0 1 2)")
        parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many minutes")
    add(parser)
    if parts:
        parser.add_argument("--part", choices=parts, help="only this part (default: all)")
    arguments = parser.parse_args()
    folder = arguments.output or HERE / "output" / (f"{name}-quick" if arguments.quick else name)
    folder.mkdir(parents=True, exist_ok=True)
    from transformers.utils import logging

    logging.disable_progress_bar()
    return arguments, folder


def settings_for(arguments: argparse.Namespace, settings: dict[str, Any], quick: dict[str, Any]) -> dict[str, Any]:
    """A script's settings, with `--quick` the small ones where there are some, with `--seeds` those."""
    chosen = {"seeds": arguments.seeds} if arguments.seeds else {}
    return {**settings, **(quick if arguments.quick else {}), **chosen}


def save_picture(drawing: Any, path: Path) -> None:
    """Write a matplotlib figure whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        drawing.savefig(temporary, dpi=140, facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(name: str, folder: Path, *, quick: bool, document: dict[str, Any]) -> Path:
    """Write `benchmarks/results/<name>.json`, or into the scores' folder; return its path.

    The latter with `--quick`, and where the published one has what this one lacks: a seed, a row, its model.
    """
    document = {**document, "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}", "commit": commit()}
    target = (folder if quick else HERE / "results") / f"{name}.json"
    if not quick and target.exists():
        as_read = json.loads(json.dumps(document))
        if lost := _lost(json.loads(target.read_text(encoding="utf-8")), as_read):
            named = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
            print(
                f"{target} has {named}, which these results lack: it is left as it is, and they are in {folder}; "
                "to publish them, remove it first"
            )
            target = folder / target.name
    write_json(target, document)
    return target


def _lost(published: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """What would be lost if a document took the place of the published one."""
    seeds = [one.get("settings", {}).get("seeds", []) for one in (published, document)]
    lost = [f"seeds {sorted(set(seeds[0]) - set(seeds[1]))}"] if set(seeds[0]) - set(seeds[1]) else []
    for name in ("model", "device"):
        theirs, ours = (one.get(name, one.get("settings", {}).get(name)) for one in (published, document))
        lost += [f"{name} {theirs}"] if theirs != ours else []
    return lost + _missing(published, document)


def _missing(published: dict[str, Any], document: Any, levels: int = 4) -> list[str]:
    """Names that only the first has, each with those that lead to it; a row of a target is four levels down."""
    found = []
    for name, value in published.items():
        if not isinstance(document, dict) or name not in document:
            found.append(name)
        elif isinstance(value, dict) and levels > 1:
            found += [f"{name}/{inner}" for inner in _missing(value, document[name], levels - 1)]
    return found


def commit() -> str | None:
    """The commit that is checked out, None where there is none."""
    done = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None
