"""`caltune train`: flags and YAML to a config, a source to questions, both to a trainer."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers.trainer_utils import get_last_checkpoint
from yaml import YAMLError

from caltune import methods
from caltune.data import find_overlap, load_other_split, load_questions
from caltune.errors import InputError
from caltune.flags import FlagParser
from caltune.formats import read_knowledge
from caltune.models import TEMPERATURE_FILE, load_model
from caltune.output import first_process, report_bad_rows, require_folder, tell
from caltune.report.advice import flags
from caltune.trainer import CalibrationConfig, CalibrationTrainer
from caltune.types import Question
from caltune.verbs import field_mapping


@dataclass
class TrainArguments:
    """What to train on what, beside the method's own config."""

    model: str | None = field(default=None, metadata={"help": "Hub id, folder, GGUF file, adapter folder, or smollm2."})
    limit: int | None = field(default=None, metadata={"help": "Train on the first so many questions only."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave bad rows out, and list them."})
    lora_r: int = field(default=32, metadata={"help": "Rank of LoRA on all linear layers; 0 trains all weights."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale of LoRA: alpha / r times the adapter's output."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter."})
    lora_given: tuple[str, ...] = field(default=(), init=False, compare=False)  # not left at their defaults


def run_training(method: str, arguments: Sequence[str], *, prog: str) -> None:
    """Parse, train, and leave model (or adapter), tokenizer and the course of training in the output folder."""
    settings, args, source, fields = parse(method, arguments, prog=prog)
    folder = Path(args.output_dir)
    require_folder(folder)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, folder)
    train, calibration = load_splits(source, settings, fields)
    for path in filter(None, (getattr(args, name, None) for name in ("knowledge", "calibration_knowledge"))):
        tell_of_another(path, {**vars(args), "model": settings.model, "data": source})
    # A frozen base may rest in half precision; weights that are trained may not.
    dtype = None if settings.lora_r else torch.float32
    model, tokenizer = load_model(settings.model or "", device=args.device, dtype=dtype, trainable_adapter=True)
    if (settings.lora_r or hasattr(model, "peft_config")) and Path(model.name_or_path).resolve() == folder.resolve():
        raise InputError(
            f"--output-dir: an adapter must not lie in the folder of its base model, got {args.output_dir!r}"
        )
    trainer = build_trainer(method, args, settings, model, tokenizer, train, calibration)
    trained_on = "also what the method is fitted on" if trainer.fits_on_calibration else "not trained on"
    data = Path(source).name if Path(source).exists() else source
    trainer.told = {"data": data, "split": f"calibration, {trained_on}"}
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.accelerator.wait_for_everyone()  # where one has died, nothing is written
    save(trainer, folder)
    trainer.create_model_card(model_name=folder.resolve().name)
    if first_process():
        print(f"{folder}: trained on {len(train)} questions; next, score its test questions:")
        print(f"  {score_command(source, folder, settings, args, fields)}")


def tell_of_another(path: str, now: Mapping[str, Any]) -> None:
    """Say on stderr where a knowledge file is of another model or other data than are trained now, or asked otherwise.

    Its ids alone do not tell: those of a column count anew in each file.
    """
    then = read_knowledge(path).metadata
    for name in ("model", "data", "answers", "template", *([] if now["answers"] == "letters" else ["reduction"])):
        was, is_ = str(then.get(name, now[name])), str(now[name])
        same = was == is_
        if Path(is_).exists():  # a relative path may have been written from another folder
            same = Path(was) == Path(is_).absolute() if os.path.isabs(was) else Path(was).name == Path(is_).name
        if not same:
            tell(f"{path}: was written with {name} {was}, and this is {is_}: it may not hold here")


def score_command(
    source: str, folder: Path, settings: TrainArguments, args: CalibrationConfig, fields: dict[str, str]
) -> str:
    """The command that scores the test questions of `source` as the model in `folder` was trained on the others."""
    names = [f"{ours}={theirs}" for ours, theirs in fields.items()]
    how = flags(vars(args), names, skip_bad=settings.skip_bad)
    words = ["caltune", "score", source, "--split", "test", "--model", str(folder), *how, "-o", "scores.parquet"]
    return shlex.join(words)


def flags_of(method: str, *, prog: str) -> FlagParser:
    """The parser of a method's fields and of what it is trained on, with nothing but TRL's own defaults."""
    config_class = getattr(methods, f"{method}Config")
    return FlagParser((TrainArguments, config_class), prog=prog, usage=f"{prog} SOURCE --model M --output-dir D …")


def parse(
    method: str, arguments: Sequence[str], *, prog: str
) -> tuple[TrainArguments, CalibrationConfig, str, dict[str, str]]:
    """Flags, and the YAML file of `--config` below them: settings, the method's config, SOURCE and `--field`s."""
    verb = prog.removeprefix("caltune ")  # an error's line begins with "caltune" already
    parser = flags_of(method, prog=prog)

    def refuse(message: str) -> None:
        raise InputError(f"{message} (see {prog} --help)")

    parser.error = refuse
    # LoRA wants a higher learning rate than TRL's default, and evaluation is what this is about.
    parser.set_defaults(learning_rate=3e-4, per_device_train_batch_size=16, eval_strategy="epoch", report_to="none")
    parser.set_defaults(output_dir="")  # TRL would choose one
    parser.set_defaults(
        dataloader_pin_memory=torch.cuda.is_available()
    )  # torch warns where there is nothing to pin for
    rest = list(arguments)
    source = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    rest, fields = _take(rest, "--field")
    rest, configs = _take(rest, "--config")
    config = [item for path in configs[-1:] for item in ("--config", path)]
    try:
        settings, args = parser.parse_args_and_config(args=[*config, *rest])
    except (ValueError, TypeError, OSError, YAMLError) as error:
        raise InputError(f"{verb}: {error}") from error
    needed = {"SOURCE, directly behind the method": source, "--model": settings.model, "--output-dir": args.output_dir}
    for name, value in needed.items():
        if not value:
            raise InputError(f"{verb} needs {name}, got none")
    if settings.limit is not None and settings.limit < 1:
        raise InputError(f"--limit must be at least 1, got {settings.limit}")
    for name, least in (("lora_r", 0), ("lora_alpha", 1)):
        if getattr(settings, name) < least:
            raise InputError(f"--{name} must be at least {least}, got {getattr(settings, name)}")
    if not 0 <= settings.lora_dropout < 1:
        raise InputError(f"--lora_dropout must be at least 0 and below 1, got {settings.lora_dropout}")
    if args.max_steps < 1 and args.max_steps != -1:
        raise InputError(f"--max_steps must be at least 1, or -1 for whole epochs, got {args.max_steps}")
    if args.max_steps < 1 and args.num_train_epochs <= 0:
        raise InputError(f"--num_train_epochs must be above 0 without --max_steps, got {args.num_train_epochs}")
    settings.lora_given = parser.given(("lora_r", "lora_alpha", "lora_dropout"), rest)
    return settings, args, source, field_mapping(fields)


def _take(arguments: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """The arguments without a flag that may stand several times, and its values: `flag value` or `flag=value`."""
    rest, values = [], []
    remaining = iter(arguments)
    for item in remaining:
        if item == flag:
            value = next(remaining, None)
            if value is None:
                raise InputError(f"{flag} needs a value, got none")
            values.append(value)
        elif item.startswith(f"{flag}="):
            values.append(item.removeprefix(f"{flag}="))
        else:
            rest.append(item)
    return rest, values


def find_checkpoint(wanted: str | None, folder: Path) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means: a folder, or with "true" the last one in `folder`.

    Raises `InputError` when it does not exist.
    """
    if wanted is None or wanted.casefold() == "false":
        return None
    if wanted.casefold() == "true":
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise InputError(f"--resume_from_checkpoint true: {folder} must hold a checkpoint, found none")
        return str(last)
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise InputError(
            f"--resume_from_checkpoint must name a folder with trainer_state.json, or true, got {wanted!r}"
        )
    return wanted


def load_splits(source: str, settings: TrainArguments, fields: dict[str, str]) -> tuple[list[Question], list[Question]]:
    """Training and calibration questions. A question that stands in a later one of train, calibration and test too is
    left out, and told: nothing that is learned or fitted meets its own test.
    """
    bad: list[str] = []
    on_bad = bad.append if settings.skip_bad else None
    train = load_questions(source, "train", fields=fields, on_bad=on_bad)
    calibration = load_questions(source, "calibration", fields=fields, on_bad=on_bad)
    test = load_other_split(source, "test", fields, tell)
    report_bad_rows(list(dict.fromkeys(bad)))  # two splits may be parts of one file
    overlap = find_overlap({"test": test, "calibration": calibration, "train": train})
    train = _without(train, "training", {item.second_id for item in overlap if item.second_split == "train"})
    twice = {item.second_id for item in overlap if item.second_split == "calibration"}
    return train[: settings.limit], _without(calibration, "calibration", twice)


def _without(questions: Sequence[Question], name: str, twice: set[str]) -> list[Question]:
    if twice and first_process():
        why = "stand in another split too, by id or by text and options, and are left out"
        print(f"caltune: {len(twice)} {name} questions {why}", file=sys.stderr)
    kept = [question for question in questions if question.id not in twice]
    if not kept:
        raise InputError(
            f"{name}: at least one question must stand in no other split, got none; ids that count anew in each split "
            "are left out with --field id="
        )
    return kept


def build_trainer(
    method: str,
    args: CalibrationConfig,
    settings: TrainArguments,
    model: Any,
    tokenizer: Any,
    train: Sequence[Question],
    calibration: Sequence[Question],
    **kwargs: Any,
) -> CalibrationTrainer:
    """The method's trainer, with LoRA as the settings say; an adapter that was loaded is trained on as it is.

    Raises `InputError` where settings of LoRA were given for a loaded adapter.
    """
    if settings.lora_given and hasattr(model, "peft_config"):
        names = ", ".join(f"--{name}" for name in settings.lora_given)
        got = ", ".join(str(getattr(settings, name)) for name in settings.lora_given)
        why = f"--model {settings.model} is an adapter, which is trained on as it is"
        raise InputError(f"{names} must be left out, got {got}: {why}; for a new one give the model beneath it")
    lora = LoraConfig(
        r=settings.lora_r or 1,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer: CalibrationTrainer = getattr(methods, f"{method}Trainer")(
        model,
        args,
        train_dataset=train,
        eval_dataset=calibration if args.eval_strategy != "no" else None,
        calibration_dataset=calibration,
        processing_class=tokenizer,
        peft_config=lora if settings.lora_r and not hasattr(model, "peft_config") else None,
        **kwargs,
    )
    return trainer


def save(trainer: CalibrationTrainer, folder: Path) -> None:
    """Write the model beside its place and move it there file by file, so that an interruption leaves nothing half."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        with warnings.catch_warnings():  # PEFT asks the hub about a base model that need not be there
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            trainer.save_model(str(unfinished))
        if not trainer.is_world_process_zero():
            return  # another process has the weights, and would lose them here
        trainer.state.save_to_json(str(unfinished / "trainer_state.json"))
        (unfinished / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        names = {path.name for path in unfinished.iterdir()}
        for name in names:
            os.replace(unfinished / name, folder / name)
        # Of an earlier run: an adapter, or weights cut otherwise, would be loaded in place of the new ones.
        for pattern in ("adapter_*", "model*.safetensors*", "config.json", TEMPERATURE_FILE):
            for path in folder.glob(pattern):
                if path.name not in names:
                    path.unlink()
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
