"""What a YAML file of `caltune train` may hold, and which fields count as given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caltune.errors import InputError
from caltune.flags import require_type
from caltune.training import parse

NEEDED = ("data.jsonl", "--model", "m", "--output-dir", "d")


def read(folder: Path, line: str, *flags: str) -> Any:
    file = folder / "f.yaml"
    file.write_text(line + "\n", encoding="utf-8")
    return parse("RCFT", [*NEEDED, *flags, "--config", str(file)], prog="caltune train rcft")[:2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bins: [1, 2]", r"bins must be a whole number, got \[1, 2\]"),
        ("bins: 7.5", r"bins must be a whole number, got 7\.5"),
        ("bins: true", "bins must be a whole number, got True"),
        ("bins:", "bins must be a whole number, got None"),
        ("bins: seven", "invalid int value: 'seven'"),
        ("lora_r: {a: 1}", r"lora_r must be a whole number, got \{'a': 1\}"),
        ("learning_rate: [1e-3]", "learning_rate must be a number, got"),
        ("learning_rate: false", "learning_rate must be a number, got False"),
        ("skip_bad: 3", "skip_bad must be true or false, got 3"),
        ("model: [a]", r"model must be text, in quotes where YAML reads something else, got \['a'\]"),
        ("run_name: 2024", "run_name must be text, in quotes .*, got 2024"),
        ("fsdp: [true]", r"fsdp must be text, in quotes .*, got \[True\]"),
    ],
)
def test_values_of_another_type_are_refused_by_name(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, line)


def test_values_of_the_right_type_are_taken(tmp_path: Path) -> None:
    lines = ("limit:", "learning_rate: 1e-3", "num_train_epochs: 2", "skip_bad: true", "bins: '5'", "bf16: false")
    settings, args = read(tmp_path, "\n".join((*lines, "report_to: [none]", "lr_scheduler_kwargs: {power: 2.0}")))
    assert (settings.limit, settings.skip_bad, args.bins, args.learning_rate) == (None, True, 5, 1e-3)
    assert (args.num_train_epochs, args.bf16, args.lr_scheduler_kwargs) == (2, False, {"power": 2.0})


def test_words_that_yaml_takes_for_booleans(tmp_path: Path) -> None:
    _, args = read(tmp_path, "resume_from_checkpoint: true\neval_strategy: no\nsave_strategy: off")
    assert (args.resume_from_checkpoint, args.eval_strategy, args.save_strategy) == ("true", "no", "no")
    require_type("fsdp", True, str | None)


@pytest.mark.parametrize(
    ("line", "flags", "given"),
    [
        ("bins: 3", (), ()),
        ("bins: 3", ("--lora_r", "32"), ("lora_r",)),  # the default, but asked for
        ("lora_alpha: 64", ("--lora-dropout=0", "--bins", "4"), ("lora_alpha", "lora_dropout")),
    ],
)
def test_which_settings_of_lora_were_given(
    tmp_path: Path, line: str, flags: tuple[str, ...], given: tuple[str, ...]
) -> None:
    settings, args = read(tmp_path, line, *flags)
    assert settings.lora_given == given
    assert (settings.lora_r, settings.lora_alpha, args.learning_rate) == (32, 64, 3e-4)
