"""The verb `card`: a model's card with its calibration, and its results for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from caltune.errors import InputError

if TYPE_CHECKING:
    import argparse

# What a scores file tells that a reader of the numbers must know.
_TOLD = ("model", "data", "split", "answers", "reduction", "template", "temperature", "recalibration")


def card(arguments: argparse.Namespace) -> None:
    """Write the section on calibration into DIR's README.md, and `.eval_results` where a task is named."""
    from caltune.card import CARD, HUB_ID, write_card, write_eval_results
    from caltune.data import PRESETS
    from caltune.formats import read_scores

    folder: Path = arguments.model_dir
    if not folder.is_dir():
        raise InputError(f"{folder}: must be a model's folder, got none")
    if arguments.dataset and not arguments.task:
        raise InputError("--dataset is for the results of a --task, got none")
    file = read_scores(arguments.scores)
    data = str(file.metadata.get("data", ""))
    dataset = arguments.dataset or (PRESETS[data].hub_id if data in PRESETS else data.partition(":")[0])
    if arguments.task and not HUB_ID.fullmatch(dataset):
        source = f"{arguments.scores} is of {data!r}" if arguments.dataset is None else f"got {dataset!r}"
        raise InputError(f"--dataset must be a hub id (owner/name), of the benchmark of --task; {source}")
    if arguments.task is not None and not arguments.task.strip():
        raise InputError("--task must be a name in the data set's eval.yaml, got none")
    told = {name: file.metadata[name] for name in _TOLD if file.metadata.get(name) is not None}
    summary = write_card(folder, file.scores, told=told)
    print(f"{folder / CARD}: calibration on {summary.n} questions")
    if arguments.task:
        print(f"{write_eval_results(folder, summary, dataset=dataset, task=arguments.task)}: accuracy, for the hub")
