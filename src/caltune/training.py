"""`caltune train`: flags and YAML to a config, a source to questions, both to a trainer."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig
from trl import TrlParser

from caltune import methods
from caltune.data import find_overlap, load_questions
from caltune.errors import InputError
from caltune.models import load_model
from caltune.trainer import CalibrationConfig, CalibrationTrainer
from caltune.types import Question


@dataclass
class TrainArguments:
    """What to train on what, beside the method's own config."""

    model: str | None = field(default=None, metadata={"help": "Hub id, folder, GGUF file, adapter folder, or smollm2."})
    limit: int | None = field(default=None, metadata={"help": "Train on the first so many questions only."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave bad rows out, and list them."})
    lora_r: int = field(default=32, metadata={"help": "Rank of LoRA on all linear layers; 0 trains all weights."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale of LoRA: alpha / r times the adapter's output."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter."})


def run_training(method: str, arguments: Sequence[str], *, prog: str) -> None:
    """Parse, train, and leave model (or adapter), tokenizer and the course of training in the output folder."""
    settings, args, source, fields = parse(method, arguments, prog=prog)
    train, calibration = load_splits(source, settings, fields)
    model, tokenizer = load_model(settings.model or "", trainable_adapter=True)
    trainer = build_trainer(method, args, settings, model, tokenizer, train, calibration)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save(trainer, Path(args.output_dir))
    print(f"{args.output_dir}: trained on {len(train)} questions; next, score its test questions:")
    print(f"  caltune score {source} --split test --model {args.output_dir} -o scores.parquet")


def parse(
    method: str, arguments: Sequence[str], *, prog: str
) -> tuple[TrainArguments, CalibrationConfig, str, dict[str, str]]:
    """Flags, and the YAML file of `--config` below them: settings, the method's config, SOURCE and `--field`s."""
    config_class = getattr(methods, f"{method}Config")
    parser = TrlParser((TrainArguments, config_class), prog=prog, usage=f"{prog} SOURCE --model M --output-dir D …")

    def refuse(message: str) -> None:
        raise InputError(f"{message} (see {prog} --help)")

    parser.error = refuse
    # LoRA wants a higher learning rate than TRL's default, and evaluation is what this is about.
    parser.set_defaults(learning_rate=3e-4, per_device_train_batch_size=16, eval_strategy="epoch", report_to="none")
    rest = list(arguments)
    source = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    fields = {}
    while "--field" in rest:
        at = rest.index("--field")
        ours, equals, theirs = (rest[at + 1] if at + 1 < len(rest) else "").partition("=")
        if not equals:
            raise InputError(f"--field must look like question=prompt, got {ours!r}")
        fields[ours] = theirs
        del rest[at : at + 2]
    try:
        settings, args = parser.parse_args_and_config(args=rest)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{prog}: {error}") from error
    for flag, value in (("SOURCE, directly behind the method,", source), ("--model", settings.model)):
        if not value:
            raise InputError(f"{prog} needs {flag} got none")
    if not any(item.split("=")[0] in ("--output_dir", "--output-dir", "--config") for item in rest):
        raise InputError(f"{prog} needs --output-dir, got none")
    return settings, args, source, fields


def load_splits(source: str, settings: TrainArguments, fields: dict[str, str]) -> tuple[list[Question], list[Question]]:
    """Training and calibration questions; training questions that stand in another split too are left out, and told."""
    bad: list[str] = []
    on_bad = bad.append if settings.skip_bad else None
    train = load_questions(source, "train", fields=fields, on_bad=on_bad)
    calibration = load_questions(source, "calibration", fields=fields, on_bad=on_bad)
    others = {"calibration": calibration}
    with suppress(InputError):  # a source need not have a test split
        others["test"] = load_questions(source, "test", fields=fields, on_bad=lambda _: None)
    twice = {item.second_id for item in find_overlap({**others, "train": train}) if item.second_split == "train"}
    if bad:
        print(f"caltune: skipped {len(bad)} bad rows:", *bad, sep="\n  ", file=sys.stderr)
    if twice:
        print(f"caltune: {len(twice)} training questions stand in another split too and are left out", file=sys.stderr)
    train = [question for question in train if question.id not in twice]
    return train[: settings.limit], calibration


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
    """The method's trainer, with LoRA as the settings say; an adapter that was loaded is trained on."""
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
        trainer.save_model(str(unfinished))
        trainer.state.save_to_json(str(unfinished / "trainer_state.json"))
        for path in unfinished.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
