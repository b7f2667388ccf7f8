"""T fitted anew while the first epoch passes: to which answers, when, and gone on with from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from files import strict_json
from test_trainer_runs import StopAt
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import assert_same, build, drawn_answers, weights
from transformers import TrainerCallback

from caltune import tempering
from caltune.checkpoints import STATE_FILE
from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.models import option_temperature
from caltune.recalibrate import fit_temperature
from caltune.scoring import score
from caltune.tempering import OptionTemperature
from caltune.types import OptionLogits

QUESTIONS = drawn_answers(tiny_questions(60))
HOW: dict[str, Any] = {
    "option_temperature": 3.0,
    "option_temperature_refit": True,
    "per_device_train_batch_size": 10,
    "num_train_epochs": 2,
    "train": QUESTIONS,
}


class Steps(TrainerCallback):
    """T after each step, and before it the undivided logits of the questions that it is about to learn."""

    def __init__(self, batch: int = 10) -> None:
        self.batch = batch
        self.temperatures: list[float] = []
        self.logits: list[np.ndarray] = []

    def on_step_begin(self, _: Any, state: Any, *__: Any, model: Any, **___: Any) -> None:
        start = state.global_step * self.batch % len(QUESTIONS)  # in the order of the questions
        found = score(model, tiny_tokenizer(), QUESTIONS[start : start + self.batch]).logits * option_temperature(model)
        self.logits.append(np.pad(found, ((0, 0), (0, 5 - found.shape[1])), constant_values=-np.inf))

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.temperatures.append(option_temperature(model))


def best(logits: np.ndarray, labels: list[int]) -> float:
    return fit_temperature(OptionLogits(tuple(map(str, range(len(labels)))), logits, labels)).temperature


@pytest.fixture
def after_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fit comes after twenty answers, and the window grows from twenty to thirty."""
    monkeypatch.setattr(tempering, "LEAST_SEEN", 20)
    monkeypatch.setattr(tempering, "WINDOW", (20, 30))


@pytest.mark.usefixtures("after_twenty")
@pytest.mark.parametrize("start", [3.0, 0.0])
def test_it_is_fitted_to_what_was_answered_before_learning(tmp_path: Path, start: float) -> None:
    watch = Steps()
    trainer = build("SFT", tmp_path, **{**HOW, "option_temperature": start, "learning_rate": 0.1}, callbacks=[watch])
    trainer.train()
    logits, labels = np.concatenate(watch.logits), [q.answer for q in QUESTIONS]
    untrained = fit_temperature(score(tiny_model(), tiny_tokenizer(), QUESTIONS)).temperature
    assert watch.temperatures[0] == pytest.approx(start or untrained, rel=1e-3)  # ten answers are too few
    # Of n seen, the latest: 20 of 20, 20 of 30, 20 of 40 (its half), 25 of 50, 30 of 60.
    for n, window in ((20, 20), (30, 20), (40, 20), (50, 25), (60, 30)):
        expected = best(logits[n - window : n], labels[n - window : n])
        assert watch.temperatures[n // 10 - 1] == pytest.approx(expected, rel=1e-3)
    assert len({round(t, 3) for t in watch.temperatures[:6]}) == 6
    assert set(watch.temperatures[6:]) == {watch.temperatures[5]}  # the second epoch leaves it as it is


@pytest.mark.usefixtures("after_twenty")
def test_without_it_nothing_is_refitted(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path, **{**HOW, "option_temperature_refit": False})
    trainer.train()
    assert option_temperature(trainer.model) == 3
    assert trainer.tempering.answers == []


def test_windows_are_as_told_and_recover_a_planted_scale() -> None:
    """Answers drawn from softmax(z / 2) at first and softmax(z / 5) later, z divided by whatever T is at the time."""
    draw = np.random.default_rng(0)
    config = SimpleNamespace(option_temperature=1.0)
    model = torch.nn.Module()
    model.config = config  # type: ignore[assignment]
    accelerator = SimpleNamespace(unwrap_model=lambda _: model, gather=lambda values: values)
    args = SimpleNamespace(option_temperature_refit=True)
    trainer: Any = SimpleNamespace(
        accelerator=accelerator, args=args, state=SimpleNamespace(epoch=0.0), model=None, has_ordinary=False
    )
    refit = OptionTemperature(trainer)
    seen: list[tuple[np.ndarray, int]] = []
    earlier: list[AnswerOutputs] = []
    for step in range(1, 101):
        z = draw.normal(scale=8, size=(10, 4))
        p = torch.tensor(z / (2 if step <= 40 else 5)).softmax(-1).numpy()
        labels = [int(draw.choice(4, p=row)) for row in p]
        seen += zip(z, labels, strict=True)
        divided = torch.tensor(z / config.option_temperature)
        rows, none = torch.arange(10 * step, 10 * step + 10), torch.zeros(0)
        outputs = AnswerOutputs(
            rows, divided, torch.tensor(labels), none, none, batch=None, temperature=config.option_temperature
        )
        assert refit.noted(outputs) is outputs
        for again in earlier[-1:]:  # as where several processes share the last batch
            refit.noted(again)
        refit.on_step_end()
        earlier.append(outputs)
        # n seen -> w: none of 60; all of 70 and of 120; 128 of 130 to 250; half of 260 to 510; 256 after that.
        n = 10 * step
        w = 0 if n <= 60 else n if n <= 120 else 128 if n <= 250 else n // 2 if n <= 510 else 256
        latest = seen[n - w :]
        expected = best(np.array([z for z, _ in latest]), [y for _, y in latest]) if w else 1.0
        assert config.option_temperature == pytest.approx(expected, rel=1e-5), n
        if step == 40:
            assert config.option_temperature == pytest.approx(2, rel=0.25)
    assert config.option_temperature == pytest.approx(5, rel=0.25)


@pytest.mark.usefixtures("after_twenty")
def test_where_no_temperature_is_best_the_last_one_stands(tmp_path: Path) -> None:
    z = score(tiny_model(), tiny_tokenizer(), QUESTIONS).logits
    right = [replace(q, answer=int(row.argmax())) for q, row in zip(QUESTIONS, z, strict=True)]
    trainer = build("SFT", tmp_path, **{**HOW, "train": right, "learning_rate": 0.0})
    trainer.train()
    assert option_temperature(trainer.model) == 3
    assert len(trainer.tempering.answers) == 30


@pytest.mark.usefixtures("after_twenty")
def test_ordinary_rows_and_accumulated_batches_are_no_other_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} and {i} is", "completion": f" {2 * i}"} for i in range(20)]
    mixed = [row for i, q in enumerate(QUESTIONS[:40]) for row in ([q, rows[i // 2]] if i % 2 else [q])]
    trainer = build("SFT", tmp_path, **{**HOW, "train": mixed, "learning_rate": 0.0}, gradient_accumulation_steps=2)
    trainer.train()
    expected = score(tiny_model(), tiny_tokenizer(), QUESTIONS[20:40])  # half of the 40 questions, not of the 60 rows
    assert len(trainer.tempering.seen) == 40
    assert option_temperature(trainer.model) == pytest.approx(fit_temperature(expected).temperature, rel=1e-3)


@pytest.mark.usefixtures("after_twenty")
@pytest.mark.parametrize("stop", [1, 4, 6, 8])  # 6 steps an epoch
def test_resuming_equals_not_stopping(tmp_path: Path, stop: int) -> None:
    whole = build("Tempered", tmp_path / "whole", **HOW)
    whole.train()
    build("Tempered", tmp_path, **HOW, callbacks=[StopAt(stop)]).train()
    state = strict_json(tmp_path / f"checkpoint-{stop}" / STATE_FILE)
    assert state["first_pass"]["seen"] == list(range(min(10 * stop, 60)))
    rest = build("Tempered", tmp_path, **HOW)
    rest.train(resume_from_checkpoint=True)
    assert option_temperature(rest.model) == option_temperature(whole.model)
    assert_same(weights(rest.model), weights(whole.model))


@pytest.mark.usefixtures("after_twenty")
def test_a_model_that_is_trained_once_more_keeps_its_own(tmp_path: Path) -> None:
    """It has learned from these questions; only those that it has not are answers before learning."""
    trainer = build("SFT", tmp_path, **{**HOW, "option_temperature": 0.0}, max_steps=6)
    trainer.train()
    fitted, noted = option_temperature(trainer.model), list(trainer.tempering.answers)
    trainer.train()
    assert option_temperature(trainer.model) == fitted
    assert trainer.tempering.answers == noted
    trainer.model = tiny_model()  # as a search over settings brings another
    trainer.train()
    assert trainer.tempering.answers != noted


@pytest.mark.usefixtures("after_twenty")
def test_it_moves_between_steps_and_not_by_an_evaluation(tmp_path: Path) -> None:
    class Parts(Steps):
        """T after each part of a step."""

        def on_substep_end(self, *_: Any, model: Any, **__: Any) -> None:
            self.temperatures.append(option_temperature(model))

    found = []
    for strategy in ("no", "steps"):
        watch = Parts(20)
        how = {"learning_rate": 0.1, "gradient_accumulation_steps": 2, "eval_strategy": strategy, "eval_steps": 1}
        asked = drawn_answers(tiny_questions(30, prefix="e"))
        build("SFT", tmp_path, **HOW, **how, evaluation=asked, callbacks=[watch]).train()
        found.append(watch.temperatures)
    assert found[0] == found[1]
    assert found[0][1::2] == [*found[0][2::2], found[0][-1]]  # a step's first part has the T that the one before left
    assert len(set(found[0])) == 4  # the first, and one of each step of the first epoch


@pytest.mark.usefixtures("after_twenty")
def test_going_on_after_questions_of_more_options(tmp_path: Path) -> None:
    """Answers are as wide as the widest question of all data sets."""
    three = [replace(q, options=q.options[:3], answer=min(q.answer, 2)) for q in QUESTIONS]
    assert {len(q.options) for q in three} == {2, 3}
    how = {**HOW, "train": three}
    build("SFT", tmp_path, **how, callbacks=[StopAt(2)]).train()
    whole, rest = (
        build("SFT", tmp_path / "whole", **how),
        build("SFT", tmp_path, **how, evaluation=tiny_questions(9, prefix="e")),
    )
    whole.train()
    rest.train(resume_from_checkpoint=True)
    assert option_temperature(rest.model) == option_temperature(whole.model)


@pytest.mark.parametrize("method", ["RCFT", "CogCalib"])
def test_what_is_fitted_under_one_is_not_applied_under_another(tmp_path: Path, method: str) -> None:
    with pytest.raises(InputError, match=f"option_temperature_refit must be False for {method}Config: what it fits"):
        build(method, tmp_path, option_temperature=0.0, option_temperature_refit=True)


def test_a_checkpoint_of_before_it_was_thought_of_is_without(tmp_path: Path) -> None:
    build("SFT", tmp_path, **{**HOW, "option_temperature_refit": False}, callbacks=[StopAt(2)]).train()
    path = tmp_path / "checkpoint-2" / STATE_FILE
    state = strict_json(path)
    del state["of"]["option_temperature_refit"]
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(InputError, match="option_temperature_refit must be as before, False, got True"):
        build("SFT", tmp_path, **HOW).train(resume_from_checkpoint=True)
    build("SFT", tmp_path, **{**HOW, "option_temperature_refit": False}).train(resume_from_checkpoint=True)


def test_a_checkpoint_tells_whether_it_was_refitted(tmp_path: Path) -> None:
    build("SFT", tmp_path, **HOW, callbacks=[StopAt(2)]).train()
    with pytest.raises(InputError, match="option_temperature_refit must be as before, True, got False"):
        build("SFT", tmp_path, **{**HOW, "option_temperature_refit": False}).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match=r"training questions must be as before, '60, .*, got '50, "):
        build("SFT", tmp_path, **{**HOW, "train": QUESTIONS[:50]}).train(resume_from_checkpoint=True)


@pytest.mark.usefixtures("after_twenty")
@pytest.mark.parametrize("adapter", [False, True])
def test_the_best_weights_come_back_with_their_own(tmp_path: Path, adapter: bool) -> None:
    """Of weights that hardly move those count as best whose T had the highest NLL, here an early one."""
    from peft import LoraConfig

    how = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    how |= {
        "load_best_model_at_end": True,
        "metric_for_best_model": "nll",
        "greater_is_better": True,
        "learning_rate": 1e-6,
        "evaluation": drawn_answers(tiny_questions(9, prefix="e")),
    }
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    watch = Steps()
    trainer = build("SFT", tmp_path, **{**HOW, **how}, callbacks=[watch], peft_config=lora)
    trainer.train()
    best_step = int(Path(trainer.state.best_model_checkpoint).name.split("-")[1])
    assert watch.temperatures[best_step - 1] != watch.temperatures[-1]
    assert option_temperature(trainer.model) == watch.temperatures[best_step - 1]


def test_it_needs_a_temperature_to_begin_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="option_temperature_refit needs an option_temperature to begin with"):
        build("SFT", tmp_path, option_temperature_refit=True)
    assert json.dumps(build("SFT", tmp_path, option_temperature=2.0).tempering.state()) == "{}"
