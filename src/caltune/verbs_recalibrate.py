"""The verb `recalibrate`: fit on scores files, or load what was fitted, and apply it to others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from caltune import verbs_answers
from caltune.errors import InputError
from caltune.output import require_place

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from caltune.formats import ScoreFile
    from caltune.formats.features import FeatureArray


def recalibrate(arguments: argparse.Namespace) -> None:
    """Fit or load, apply, write the scores, and say what changed."""
    from caltune import recalibration
    from caltune.formats import write_scores
    from caltune.formats.policy import source_of

    read = [*(arguments.fit or []), *(arguments.target or []), *filter(None, [arguments.load])]
    require_place(arguments.output, *read)
    require_place(arguments.save, *read, *arguments.apply)
    if arguments.save is not None and arguments.save.resolve() == arguments.output.resolve():
        raise InputError(f"-o and --save must be two files, got {str(arguments.save)!r} for both")
    name = arguments.name
    _require_flags(arguments)
    if verbs_answers.any_answers([*(arguments.fit or []), *arguments.apply]):
        verbs_answers.recalibrate(arguments)
        return
    told: list[str] = []
    if arguments.load is not None:
        fitted, source = recalibration.load(arguments.load, name), recalibration.load_source(arguments.load)
    else:
        features = name in recalibration.WITH_FEATURES or arguments.features
        fit, at = _read(name, "--fit", arguments.fit, features=features)
        target: dict[str, Any] = {}
        if name in recalibration.WITH_TARGET:
            (like,), there = _read(name, "--target", arguments.target or arguments.apply, features=True)
            target = {"target": like.scores, "target_features": there}
        with _about([*arguments.fit, *((arguments.target or arguments.apply) if target else [])]):
            source = source_of(fit[0].metadata)
            fitted, told = recalibration.fit(name, *(file.scores for file in fit), features=at, **target)
    files, at = _read(name, "--apply", arguments.apply, features=recalibration.needs_features(name, fitted))
    with _about(arguments.apply):
        after, metadata = recalibration.apply(name, fitted, *files, features=at)
    write_scores(arguments.output, after, metadata)
    if arguments.save is not None:
        recalibration.save(arguments.save, name, fitted, source)
    verbs_answers.warn_of_others(source, files[0].metadata)
    print("\n".join([*told, *recalibration.lines(name, fitted, files[0].scores, after)]))
    print(arguments.output)


def _require_flags(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for flags that the recalibrator, or one that is loaded, has no use for."""
    from caltune.recalibration import MAYBE_FEATURES, WITH_FEATURES, WITH_TARGET

    name = arguments.name
    if arguments.save and arguments.load:
        raise InputError("--save keeps what --fit has fitted, got it with --load")
    if arguments.target and (name not in WITH_TARGET or arguments.load):
        raise InputError(f"--target is for fitting {' and '.join(WITH_TARGET)}, got it with {name}")
    if arguments.features and arguments.load:
        raise InputError("--features is for fitting; a recalibrator that is loaded knows whether it needs features")
    if arguments.features and name not in (*MAYBE_FEATURES, *WITH_FEATURES):
        raise InputError(f"--features is for {', '.join((*MAYBE_FEATURES, *WITH_FEATURES))}, got it with {name}")


def _read(
    name: str, flag: str, paths: Sequence[Path], *, features: bool
) -> tuple[list[ScoreFile], FeatureArray | None]:
    """The scores files, one unless for a pool, and the first one's features where they are needed."""
    from caltune.formats import read_features, read_scores

    if name != "pool" and len(paths) > 1:
        raise InputError(f"{flag}: {name} takes one file, only pool takes several; got {len(paths)}")
    return [read_scores(path) for path in paths], read_features(paths[0]) if features else None


@contextmanager
def _about(paths: Sequence[Path]) -> Iterator[None]:
    """Name the files that an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{', '.join(map(str, paths))}: {error}") from error
