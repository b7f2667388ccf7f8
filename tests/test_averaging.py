"""The average of the weights along the way: which steps enter, what it is a mean of, and that resuming is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from test_trainer_runs import StopAt
from tiny_training import assert_same, build, weights
from torch import Tensor
from transformers import TrainerCallback

from caltune.callbacks import AVERAGE_FILE
from caltune.errors import InputError

HOW = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "optim": "adamw_torch", "learning_rate": 5e-3}


class Course(TrainerCallback):
    """Notes the weights after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.steps.append(weights(model))


def mean(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([step[name].double() for step in steps]).mean(0).float() for name in steps[0]}


@pytest.mark.parametrize(("share", "last"), [(1.0, 9), (0.5, 5), (0.2, 2), (0.01, 1)])  # of 9 steps: 9 · 0.5 = 4.5 → 5
def test_the_weights_are_the_mean_of_the_last_steps(tmp_path: Path, share: float, last: int) -> None:
    watch = Course()
    trainer = build("SFT", tmp_path, callbacks=[watch], average_weights=share, **HOW)
    trainer.train()
    assert len(watch.steps) == 9
    found = weights(trainer.model)
    assert_same(found, mean(watch.steps[-last:]))
    moved = [name for name in found if not torch.allclose(found[name], watch.steps[-1][name])]
    assert bool(moved) == (last > 1)


def test_without_it_the_last_weights_stay(tmp_path: Path) -> None:
    watch = Course()
    trainer = build("SFT", tmp_path, callbacks=[watch], **HOW)
    trainer.train()
    assert_same(weights(trainer.model), watch.steps[-1], tolerance=0)


def test_of_an_adapter_only_what_is_trained_changes(tmp_path: Path) -> None:
    watch = Course()
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build("SFT", tmp_path, callbacks=[watch], peft_config=lora, average_weights=1.0, **HOW)
    [average] = trainer.averages
    trainer.train()
    assert set(average.sums) == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in average.sums)
    assert_same(weights(trainer.model), mean(watch.steps))


@pytest.mark.parametrize("stop", [2, 6])  # before the first averaged step (4 to 9), and among them
def test_resuming_equals_not_stopping(tmp_path: Path, stop: int) -> None:
    how = {**HOW, "average_weights": 6 / 9, "lr_scheduler_type": "cosine"}
    whole = build("RCFT", tmp_path / "whole", **how)
    whole.train()
    stopped = build("RCFT", tmp_path, callbacks=[StopAt(stop)], **how)
    if stop < 4:
        with pytest.warns(UserWarning, match="averaged nothing: none of the steps 4 to 9 was"):
            stopped.train()
    else:
        stopped.train()
    rest = build("RCFT", tmp_path, **how)
    rest.train(resume_from_checkpoint=True)
    [average] = rest.averages
    assert average.count == 6
    assert_same(weights(rest.model), weights(whole.model))


@pytest.mark.parametrize(
    ("share", "later", "gone", "message"),
    [
        (1.0, 1.0, True, "last 6 steps, got 0"),
        (0.0, 1.0, False, "last 6 steps, got 0"),
        (5 / 9, 1.0, False, "last 6 steps, got 2"),  # steps 5 to 9
    ],
    ids=["gone", "none", "others"],
)
def test_a_sum_that_is_not_of_all_its_steps_is_not_gone_on_with(
    tmp_path: Path, share: float, later: float, gone: bool, message: str
) -> None:
    build("SFT", tmp_path, callbacks=[StopAt(6)], average_weights=share, **HOW).train()
    if gone:
        (tmp_path / "checkpoint-6" / AVERAGE_FILE).unlink()
    with pytest.raises(InputError, match=f"{AVERAGE_FILE}: must hold the sum of the weights after the {message};"):
        build("SFT", tmp_path, average_weights=later, **HOW).train(resume_from_checkpoint=True)


def test_a_sum_that_more_epochs_leave_behind_does_not_enter(tmp_path: Path) -> None:
    build("SFT", tmp_path, callbacks=[StopAt(6)], average_weights=5 / 9, **HOW).train()
    watch = Course()
    more = build("SFT", tmp_path, callbacks=[watch], average_weights=5 / 12, **{**HOW, "num_train_epochs": 4})
    more.train(resume_from_checkpoint=True)
    assert_same(weights(more.model), mean(watch.steps[-5:]))  # 8 to 12


def test_a_second_training_starts_a_new_average(tmp_path: Path) -> None:
    watch = Course()
    trainer = build("SFT", tmp_path, callbacks=[watch], average_weights=1.0, **HOW)
    trainer.train()
    watch.steps.clear()
    trainer.train()
    assert_same(weights(trainer.model), mean(watch.steps))


def test_a_second_training_that_ends_early_does_not_take_the_average_of_the_first(tmp_path: Path) -> None:
    watch = Course()
    trainer = build("SFT", tmp_path, callbacks=[watch], average_weights=0.5, **HOW)
    trainer.train()
    watch.steps.clear()
    trainer.add_callback(StopAt(2))
    with pytest.warns(UserWarning, match="averaged nothing"):
        trainer.train()
    assert_same(weights(trainer.model), watch.steps[-1], tolerance=0)


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"average_weights must lie in \[0, 1\], got 1.5"):
        build("SFT", tmp_path, average_weights=1.5)
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    with pytest.raises(InputError, match="average_weights above 0 would replace what load_best_model_at_end loads"):
        build("SFT", tmp_path, average_weights=0.5, **best)
