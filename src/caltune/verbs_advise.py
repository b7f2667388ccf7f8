"""The verb `advise`: which method to take, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from caltune.errors import InputError
from caltune.output import quiet
from caltune.verbs import about, load

if TYPE_CHECKING:
    import argparse

    from caltune.report.advice import Setting
    from caltune.types import OptionLogits


def advise(arguments: argparse.Namespace) -> None:
    """Which method to take, and why: for a model and its fine-tuned form, or for their scores files."""
    from caltune.formats.predictions import holds_scores
    from caltune.metrics import compare
    from caltune.regime import diagnose
    from caltune.report.advice import advice_lines

    if arguments.model is not None and holds_scores(arguments.source):
        raise InputError(f"--model is for questions, which {arguments.source} has been asked; leave it out")
    if arguments.model is None and not arguments.source.endswith(".parquet"):
        raise InputError(f"advise needs --model, or a scores file (.parquet) as SOURCE, got {arguments.source!r}")
    found, setting = _scored_before(arguments) if arguments.model is None else _scored_now(arguments)
    diagnoses = []
    for name, scores in found:
        with about(name):
            diagnoses.append(diagnose(scores))
    if len(found) == 1:
        lines = advice_lines(setting, diagnoses[0])
    else:
        (_, before), (name, after) = found
        with about(name):
            change = compare(before, after).metrics["accuracy"].difference
        lines = advice_lines(setting, diagnoses[0], diagnoses[1], change)
    print("\n".join(lines))


def _scored_before(arguments: argparse.Namespace) -> tuple[list[tuple[str, OptionLogits]], Setting]:
    from caltune.formats import read_scores
    from caltune.report.advice import SCORING, Setting

    for name, default in SCORING.items():
        if getattr(arguments, name) != default:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} needs --model: {arguments.source} was scored before, got {getattr(arguments, name)!r}"
            )
    try:
        files = [read_scores(arguments.source)]
    except InputError as error:
        raise InputError(f"{error}; to score questions, name a --model") from error
    names = [arguments.source]
    if arguments.adapter:
        names.append(arguments.adapter)
        files.append(read_scores(arguments.adapter))
        if set(files[0].scores.ids) != set(files[1].scores.ids):
            raise InputError(f"{names[1]}: must hold the questions of {names[0]}, got others")
        keys = ["answers", *([] if files[0].metadata.get("answers") == "letters" else ["reduction"])]
        for key in keys:
            asked = [file.metadata.get(key) for file in files]
            if None not in asked and asked[0] != asked[1]:
                raise InputError(f"{names[1]}: must be asked as {names[0]}, with {key} {asked[0]!r}, got {asked[1]!r}")
        prompts = {file.metadata.get("prompt_example") for file in files} - {None}
        if len(prompts) > 1 and files[0].scores.ids[0] == files[1].scores.ids[0]:
            raise InputError(f"{names[1]}: must be asked as {names[0]}, got another prompt (template or exemplars)")
    splits = [split for file in files if isinstance(split := file.metadata.get("split"), str)]
    if len(set(splits)) > 1:
        raise InputError(f"{names[1]}: must be of the split {splits[0]}, as {names[0]}, got {splits[1]}")
    found = [(name, file.scores) for name, file in zip(names, files, strict=True)]
    return found, Setting.from_metadata({**files[0].metadata, "split": splits[0] if splits else None})


def _scored_now(arguments: argparse.Namespace) -> tuple[list[tuple[str, OptionLogits]], Setting]:
    from caltune.formats.predictions import holds_scores

    if arguments.adapter and holds_scores(arguments.adapter):
        raise InputError(f"--adapter must be a model where SOURCE holds questions, got the scores {arguments.adapter}")
    questions = load(arguments)
    quiet()
    from caltune.models import load_model, load_tokenizer
    from caltune.regime import LEAST
    from caltune.report.advice import Setting, flags
    from caltune.scoring import score
    from caltune.scoring.record import require_device, training_course

    blank = next((question.id for question in questions if question.answer is None), None)
    if blank is not None or len(questions) < LEAST:  # before the work
        found = f"id {blank!r} without one" if blank is not None else f"{len(questions)}"
        raise InputError(f"{arguments.source}: advise needs {LEAST} questions with an answer, got {found}")
    require_device(arguments.device)
    if arguments.adapter:
        load_tokenizer(arguments.adapter)
    trained = bool(training_course(Path(arguments.model)))
    model = "MODEL" if trained else arguments.model  # the one to train is that before
    shared = flags(vars(arguments), arguments.field, skip_bad=arguments.skip_bad)
    setting = Setting(arguments.source, arguments.split, model, trained, shared)
    how = {name: getattr(arguments, name) for name in ("answers", "reduction", "template", "batch_tokens")}
    found = []
    for name in [arguments.model, *([arguments.adapter] if arguments.adapter else [])]:
        model, tokenizer = load_model(name, device=arguments.device)
        found.append((name, score(model, tokenizer, questions, progress=True, **how)))
    return found, setting
