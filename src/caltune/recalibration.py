"""`caltune recalibrate`: which maps there are by name, fitted, kept as JSON, and applied to scores files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caltune.errors import InputError
from caltune.output import write_json

if TYPE_CHECKING:
    import numpy as np

    from caltune.formats import ScoreFile
    from caltune.types import OptionLogits

    Features = np.ndarray[Any, Any]

# Name -> the value's class and the function that fits it, both in `caltune.recalibrate`.
RECALIBRATORS = {
    "temperature": ("Temperature", "fit_temperature"),
    "vector": ("Vector", "fit_vector"),
    "matrix": ("Matrix", "fit_matrix"),
    "platt": ("Platt", "fit_platt"),
    "beta": ("Beta", "fit_beta"),
    "isotonic": ("Isotonic", "fit_isotonic"),
    "histogram": ("Histogram", "fit_histogram"),
    "top-label": ("TopLabel", "fit_top_label"),
    "umnn": ("MonotoneNetwork", "fit_umnn"),
    "balcal": ("BalCAL", "fit_balcal"),
    "ace": ("AdaptiveEnsemble", "fit_adaptive_ensemble"),
    "selective": ("SelectiveScaling", "fit_selective"),
    "dece": ("Temperature", "fit_dece_temperature"),
    "lore": ("LoRe", "fit_lore"),
    "shift": ("Temperature", "fit_weighted_temperature"),
    "transcal": ("Temperature", "fit_transcal"),
    "pool": ("Pool", "fit_pool"),
}
WITH_TARGET = ("shift", "transcal")
# Their files must hold the column `features`; of the second kind only where --features asks for it.
WITH_FEATURES = ("lore", *WITH_TARGET)
MAYBE_FEATURES = ("umnn", "balcal")


def fit(
    name: str,
    *scores: OptionLogits,
    features: Features | None = None,
    target: OptionLogits | None = None,
    target_features: Features | None = None,
) -> tuple[Any, list[str]]:
    """The recalibrator of that name, fitted on `scores`, of which a pool takes several, and what else there is to say.

    The `target` and its features are for `WITH_TARGET`; its labels are not read. Raises `InputError` as the fits do.
    """
    from caltune import recalibrate
    from caltune.recalibrate.guards import require_unseen

    function = getattr(recalibrate, RECALIBRATORS[name][1])
    if name == "pool":
        return function(scores), []
    (only,) = scores
    if target is None:
        return (function(only) if features is None else function(only, features)), []
    require_unseen("the target", target.ids, only.ids)
    weights = recalibrate.density_ratio(features, target_features)
    told = [
        f"weighted to look like the target: worth {recalibrate.effective_size(weights):.1f} of {len(only)} questions"
    ]
    return function(only, *([target] if name == "transcal" else []), weights), told


def save(path: Path | None, name: str, fitted: Any, source: dict[str, Any]) -> None:
    """Write a fitted recalibrator as JSON with its name and what its scores were made with; nothing without a path."""
    write_json(path, {"recalibrator": name, "source": source, **fitted.to_json()})


def load(path: Path, name: str) -> Any:
    """What `save` wrote.

    Raises `InputError` when the file is missing, no JSON object, of another recalibrator, or not well formed.
    """
    from caltune import recalibrate

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: a fitted recalibrator must be JSON, got {error}") from error
    found = document.get("recalibrator") if isinstance(document, dict) else None
    if found != name:
        raise InputError(f"{path}: must hold a recalibrator of the name {name!r}, got {found!r}")
    try:
        return getattr(recalibrate, RECALIBRATORS[name][0]).from_json(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_source(path: Path) -> dict[str, Any]:
    """What a file that `load` has read says its scores were made with; {} where it says nothing."""
    source = json.loads(path.read_text(encoding="utf-8")).get("source")
    return source if isinstance(source, dict) else {}


def needs_features(name: str, fitted: Any) -> bool:
    """Whether a fitted recalibrator is to be given features with the scores."""
    return name == "lore" or (name in MAYBE_FEATURES and fitted.projection is not None)


def apply(
    name: str, fitted: Any, *files: ScoreFile, features: Features | None = None
) -> tuple[OptionLogits, dict[str, Any]]:
    """The recalibrated scores of a file, for a pool of several, and the first file's metadata with what was done.

    Raises `InputError` when a question was fitted on, or the metadata's `temperature` or `recalibrated` is broken.
    """
    if name == "pool":
        after = fitted([file.scores for file in files])
    else:
        (only,) = files
        after = fitted(only.scores) if features is None else fitted(only.scores, features)
    metadata = record(name, fitted, files[0].metadata)
    if name == "pool":
        metadata["pooled"] = [str(file.metadata.get("model", "")) for file in files]
        temperatures = [file.metadata.get("temperature", 1.0) for file in files]
        if any(one != temperatures[0] for one in temperatures):  # then no one number is true of all
            metadata.pop("temperature", None)
            metadata["pooled_temperatures"] = temperatures
    return after, metadata


def record(name: str, fitted: Any, before: dict[str, Any]) -> dict[str, Any]:
    """Metadata with what was done: the name, on how many questions it was fitted, and its numbers.

    Raises `InputError` when the metadata's `temperature` or `recalibrated` is broken.
    """
    earlier = before.get("recalibrated", [])
    if not isinstance(earlier, list) or not all(isinstance(one, (str, dict)) for one in earlier):
        raise InputError(f"'recalibrated' must be a list of what was applied, got {earlier!r}")
    done = {"name": name, "questions": len(fitted.fitted_on), **numbers(fitted)}
    metadata = {**before, "recalibrated": [*earlier, done]}
    if RECALIBRATORS[name][0] == "Temperature":
        own = type(fitted).from_json({"temperature": before.get("temperature", 1.0), "fitted_on": []})
        metadata["temperature"] = own.temperature * fitted.temperature  # of the model's own logits
    return metadata


def numbers(fitted: Any) -> dict[str, float]:
    """The numbers of a fitted recalibrator that stand alone, by name; curves and matrices are left out."""
    return {key: value for key, value in fitted.to_json().items() if isinstance(value, (int, float))}


def lines(name: str, fitted: Any, before: OptionLogits, after: OptionLogits) -> list[str]:
    """What was fitted and what it did, for the terminal."""
    told = ", ".join(f"{key} {value:.4f}".removesuffix(".0000") for key, value in numbers(fitted).items())
    found = told if name == "temperature" else f"{name}: {told}" if told else name
    old, new = before.probabilities(), after.probabilities()
    changed = int((old.argmax(axis=1) != new.argmax(axis=1)).sum())
    return [
        f"{found}, fitted on {len(fitted.fitted_on)} questions",
        f"mean confidence {old.max(axis=1).mean():.4f}, now {new.max(axis=1).mean():.4f}; "
        f"{changed} of {len(before)} answers changed",
    ]
