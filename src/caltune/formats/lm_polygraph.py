"""Results of LM-Polygraph: what `UEManager.save` wrote (`.man`), of one estimator and one measure of what is right."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.formats.predictions import Imported
from caltune.types import Predictions

# Estimators are uncertainties; these alone are made of a probability, and this is how it is had back.
_MINUS_LOG = ("MaximumSequenceProbability", "Perplexity", "PTrue", "PTrueSampling")
_ONE_MINUS = ("PTrueEmpirical", "LabelProb", "Verbalized1S", "Verbalized2S")


def read_lm_polygraph(paths: Sequence[Path], fields: Mapping[str, str]) -> Imported:
    """Answers of one manager file: `fields` names the estimator (confidence) and the generation metric (correct).

    Where only one estimator is a probability, or one metric is there, it need not be named. The metric must be 0 or 1.
    Questions whose estimate is undefined are left out and told. Answers are called by their place, "0", "1", ….

    The file is a torch archive. It is read without running code from it: numbers, texts, lists and arrays only.

    Raises `InputError` naming the file for anything else in it, for an estimator that is no probability, and for a
    metric between 0 and 1.
    """
    if len(paths) != 1:
        raise InputError(f"one manager file at a time: its answers are called by their place, got {len(paths)} files")
    path = paths[0]
    document = _load(path)
    estimates, metrics = (_by_name(path, document, key) for key in ("estimations", "gen_metrics"))
    usable = [name for name in estimates if _confidence(name) is not None]
    estimator = fields.get("confidence") or (usable[0] if len(usable) == 1 else None)
    if estimator not in usable:
        raise InputError(
            f"{path}: choose an estimator that is a probability with --field confidence=NAME, "
            f"one of {', '.join(usable) or 'none there'}; got {estimator or ', '.join(estimates) or 'none'}"
        )
    metric = fields.get("correct") or (next(iter(metrics)) if len(metrics) == 1 else None)
    if metric not in metrics:
        raise InputError(f"{path}: choose a metric with --field correct=NAME, got {metric} of {', '.join(metrics)}")
    uncertainty, correct = np.asarray(estimates[estimator], float), np.asarray(metrics[metric], float)
    if uncertainty.shape != correct.shape or uncertainty.ndim != 1:
        raise InputError(
            f"{path}: {estimator} and {metric} must be of one length, got {len(uncertainty)}, {len(correct)}"
        )
    known = np.isfinite(uncertainty) & np.isfinite(correct)
    if not np.isin(correct[known], (0.0, 1.0)).all():
        value = correct[known][~np.isin(correct[known], (0.0, 1.0))][0]
        raise InputError(f"{path}: {metric} must be 0 or 1 to say what is right, as Accuracy is; got {value:.4g}")
    kind = _confidence(str(estimator))
    confidence = np.exp(-uncertainty[known]) if kind == "minus log" else 1 - uncertainty[known]
    ids = tuple(str(i) for i in np.flatnonzero(known))
    try:
        answers = Predictions(ids, np.where(np.abs(confidence - 1) < 1e-6, 1.0, confidence), correct[known])
    except InputError as error:
        raise InputError(f"{path}: {estimator}: {error}") from error
    left_out = int((~known).sum())
    about = {"data": path.name, "source": "lm-polygraph", "confidence": estimator, "correct": metric}
    notes = (f"{left_out} answers left out: {estimator} or {metric} is undefined there",) if left_out else ()
    return Imported(answers, about, notes)


def _confidence(name: str) -> str | None:
    """How the estimator's probability is had back; None where it is made of none."""
    if name in _MINUS_LOG:
        return "minus log"
    return "one minus" if name.startswith(_ONE_MINUS) else None


def _load(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    # What makes an array and a number of numpy, under the names that both of its generations write.
    makers = {"_reconstruct": np.zeros(1).__reduce__()[0], "scalar": np.float64(1).__reduce__()[0]}
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")
    made = [(maker, f"{module}.{name}") for name, maker in makers.items() for module in modules]
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "bool", "U", "O")]
    # The reader fills no defaultdict; what it makes in its place is filled alike.
    containers = [(_ordered, "collections.defaultdict"), (list, "builtins.list"), (list, "__builtin__.list")]
    known: list[Any] = [np.ndarray, np.dtype, *made, *kinds, *containers]
    try:
        with torch.serialization.safe_globals(known):
            document = torch.load(path, map_location="cpu", weights_only=True)  # reads no code
    except Exception as error:  # what is not an archive, or holds more than numbers and texts, raises all sorts
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: must be a manager file of LM-Polygraph that holds plain values, got: {reason}"
        ) from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: must be a manager file of LM-Polygraph, got {type(document).__name__}")
    return document


def _ordered(*_: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _by_name(path: Path, document: dict[str, Any], key: str) -> dict[str, list[float]]:
    """The values of whole answers by name."""
    found = document.get(key)
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: must be a manager file of LM-Polygraph with {key!r}, got {', '.join(map(str, document))}"
        )
    return {str(name[1]): list(values) for name, values in found.items() if name[0] == "sequence"}
