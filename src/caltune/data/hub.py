"""Hugging Face data sets by id, and presets for the known ones.

A preset knows the hub id, which of its splits to use, and which columns say what. Where a data set's test split has no
answers, its validation split is our test, and calibration is a fifth of its train split (rule 3 of `splits`).

`$CALTUNE_DATA_DIR`, when it is set, is looked at first: a folder there with a preset's name (with "-" or "_") replaces
the hub. Its files hold one split each in the plain form of `fields`: `question`, `choices`, `answer`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caltune.errors import InputError

DATA_FOLDER_VARIABLE = "CALTUNE_DATA_DIR"
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<config>[\w.,+-]+))?")
OWN_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
VALIDATION_IS_TEST = {"train": "train", "test": "validation"}


@dataclass(frozen=True, slots=True)
class Preset:
    """A known data set: where it is, our split names for its splits, and the mapping of its columns.

    `left_out` are columns that are not read, `folder` and `local_splits` say where a local copy differs.
    """

    hub_id: str
    config: str | None
    splits: Mapping[str, str]
    fields: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    folder: str = ""
    local_splits: Mapping[str, str] = field(default_factory=dict)


_ARC = {"id": "id", "question": "question", "options": "choices", "answer": "answerKey"}
_WINOGRANDE = {"question": "sentence", "options": "option1,option2", "answer": "answer", "answer_is": "number"}
_OPEN = {"question": "question", "options": "", "accepted": "answer"}

PRESETS: dict[str, Preset] = {
    "arc-easy": Preset("allenai/ai2_arc", "ARC-Easy", OWN_SPLITS, _ARC),
    "arc-challenge": Preset("allenai/ai2_arc", "ARC-Challenge", OWN_SPLITS, _ARC),
    "openbookqa": Preset("allenai/openbookqa", "main", OWN_SPLITS, {**_ARC, "question": "question_stem"}),
    "winogrande-s": Preset(
        "allenai/winogrande",
        "winogrande_s",
        VALIDATION_IS_TEST,
        _WINOGRANDE,
        folder="winogrande",
        local_splits={"train": "train_s", "test": "validation"},
    ),
    "winogrande-m": Preset(
        "allenai/winogrande",
        "winogrande_m",
        VALIDATION_IS_TEST,
        _WINOGRANDE,
        folder="winogrande",
        local_splits={"train": "train_m", "test": "validation"},
    ),
    "boolq": Preset(
        "google/boolq", None, VALIDATION_IS_TEST, {"question": "question", "context": "passage", "answer": "answer"}
    ),
    # auxiliary_train is left out: it is other data sets in one, ARC and OpenBookQA among them.
    "mmlu": Preset(
        "cais/mmlu",
        "all",
        {"dev": "dev", "validation": "validation", "test": "test"},
        {"question": "question", "options": "choices", "answer": "answer", "answer_is": "index", "group": "subject"},
    ),
    "medmcqa": Preset(
        "openlifescienceai/medmcqa",
        None,
        VALIDATION_IS_TEST,
        {
            "id": "id",
            "question": "question",
            "options": "opa,opb,opc,opd",
            "answer": "cop",
            "answer_is": "index",
            "group": "subject_name",
        },
    ),
    # Its ten paragraphs a question are left out: they would be most of the time it takes to load.
    "hotpotqa": Preset(
        "hotpotqa/hotpot_qa",
        "distractor",
        VALIDATION_IS_TEST,
        {"id": "id", **_OPEN},
        left_out=("context", "supporting_facts"),
    ),
    "nq-open": Preset("google-research-datasets/nq_open", None, VALIDATION_IS_TEST, _OPEN),
}


def local_folder(name: str) -> Path | None:
    """The folder below `$CALTUNE_DATA_DIR` that replaces a preset's hub data set, or None where there is none.

    Raises `InputError` when the variable names something that is not a folder.
    """
    root = os.environ.get(DATA_FOLDER_VARIABLE)
    if not root:
        return None
    if not Path(root).is_dir():
        raise InputError(f"{DATA_FOLDER_VARIABLE}: it must name a folder, got {root!r}")
    wanted = PRESETS[name].folder or name
    candidates = (Path(root, wanted), Path(root, wanted.replace("-", "_")))
    return next((path for path in candidates if path.is_dir()), None)


def load_hub(hub_id: str, config: str | None = None) -> dict[str, Any]:
    """Load a Hugging Face data set: split name -> rows. No code of the data set is run.

    Raises `InputError` with the id and the reason, on one line, when it does not exist or cannot be reached.
    """
    shown = f"{hub_id}:{config}" if config else hub_id
    try:
        import datasets

        loaded = datasets.load_dataset(hub_id, config)
    except Exception as error:  # the hub, the network and the builder each raise their own kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{shown}: the data set must be loadable from the Hugging Face hub, got: {reason}") from error
    return dict(loaded)


def hub_rows(rows: Any, place: str, left_out: Collection[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one loaded split (a `datasets.Dataset`) as (place, row), numbered from 1, without some columns."""
    rows = rows.remove_columns([name for name in rows.column_names if name in left_out])
    for number, row in enumerate(rows, 1):
        yield f"{place}:row {number}", row
