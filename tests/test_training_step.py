"""What a training step leaves out, against the step that leaves nothing out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_questions
from tiny_training import assert_same, build, logged, weights
from torch import Tensor

from caltune.methods import SFTTrainer
from caltune.scoring.processes import means_of


class ReadsAll(SFTTrainer):
    """Learns the same as its parent, which cannot know that."""

    def question_losses(self, outputs: Any) -> Tensor:
        return self.answer_losses(outputs)


@pytest.mark.parametrize("settings", [{}, {"question_loss_weight": 0.1}, {"answers": "letters"}])
def test_wrong_options_need_not_be_read_for_the_answers_tokens(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = []
    for trainer_class in (SFTTrainer, ReadsAll):
        trainer = build(
            "SFT",
            tmp_path,
            trainer_class=trainer_class,
            evaluation=tiny_questions(6, prefix="e"),
            answer_loss="tokens",
            eval_strategy="epoch",
            num_train_epochs=2,
            **settings,
        )
        trainer.train()
        runs.append(trainer)
    fast, slow = runs
    assert_same(weights(fast.model), weights(slow.model), 1e-5)
    for name in ("loss", "eval_loss", "eval_nll", "eval_ece"):
        assert logged(fast, name) == pytest.approx(logged(slow, name), rel=1e-4), name
    assert {len(options) for options in fast.train_dataset["option_ids"]} == {1}
    assert {len(options) for options in slow.train_dataset["option_ids"]} == {2, 3, 4, 5}
    assert fast.eval_dataset["option_ids"] == slow.eval_dataset["option_ids"]  # evaluation reads them all
    both = [trainer.data_collator(list(trainer.train_dataset)) for trainer in runs]
    assert both[0]["target_tokens"].numel() < both[1]["target_tokens"].numel() / 2


def test_what_the_loss_over_options_needs_is_read(tmp_path: Path) -> None:
    for method in ("SFT", "RCFT"):
        trainer = build(method, tmp_path)
        assert {len(options) for options in trainer.train_dataset["option_ids"]} == {2, 3, 4, 5}


def test_a_step_does_not_walk_over_the_modules(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path)
    inputs = trainer.data_collator(list(trainer.train_dataset))
    expected = trainer.compute_loss(trainer.model, inputs)
    walked = torch.nn.parallel.DataParallel(trainer.model)  # a wrapper the trainer has not seen
    asked = []
    unwrap = trainer.accelerator.unwrap_model
    trainer.accelerator.unwrap_model = lambda model: (asked.append(model), unwrap(model))[1]
    assert trainer.compute_loss(trainer.model, inputs) == expected
    trainer.model_wrapped = walked
    assert trainer.compute_loss(walked, inputs) == expected
    assert asked == []
    trainer.model_wrapped = trainer.model
    assert trainer.compute_loss(walked, inputs) == expected
    assert asked == [walked]


def test_means_are_over_all_processes_and_of_what_was_counted() -> None:
    """Two processes that recorded alike double both totals and counts: (3 + 3) / (2 + 2) = 1.5."""
    alone = SimpleNamespace(device="cpu", reduce=lambda both: both)
    two = SimpleNamespace(device="cpu", reduce=lambda both: 2 * both)
    terms = {"penalty": (torch.tensor(3.0), 2), "nothing": (torch.tensor(0.0), 0), "share": (torch.tensor(1), 4)}
    assert means_of(terms, alone) == means_of(terms, two) == {"penalty": 1.5, "share": 0.25}
    assert means_of({}, two) == {}
