"""Flaws in the course of the released code's runs: what it reads, pads, passes, repeats and learns, and ours beside it.

`released_rcft` restates that code. Flaws in its loss are in `test_rcft_released.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released_rcft as released
import torch
from datasets import Dataset
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import QUIET, answer_logits, build, logged, plain_option_logits
from torch import Tensor
from torch.nn import functional
from trl import SFTConfig

from caltune.prompts import render
from caltune.recalibrate import fit_temperature
from caltune.scoring import score
from caltune.types import OptionLogits, Question

FOUR = [question for question in tiny_questions(16) if len(question.options) == 4]
LONG = Question("long", f"{FOUR[1].text} Think of France, Japan and Italy.", FOUR[1].options, 0)


def answered(questions: list[Question]) -> list[str]:
    """Prompt and right letter, as it trains on and measures."""
    prompts = [render(question, tiny_tokenizer(), answers="letters") for question in questions]
    return [p.text + p.continuations[q.answer or 0] for p, q in zip(prompts, questions, strict=True)]


def rows_passed(model: Any) -> list[torch.Size]:
    """The shape (rows, tokens) of every forward pass from now on."""
    seen: list[torch.Size] = []

    def note(_: Any, arguments: Any, named: Any) -> None:
        seen.append((named["input_ids"] if "input_ids" in named else arguments[0]).shape)

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def released_run(folder: Path, model: Any, **settings: Any) -> Any:
    """Its trainer on the four questions, with the letter as the completion and rows padded on the left."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    rows = []
    for question, text in zip(FOUR, answered(FOUR), strict=True):
        ids = tokenizer(text).input_ids
        start = len(tokenizer(render(question, tokenizer, answers="letters").text).input_ids)
        rows.append({"input_ids": ids, "completion_mask": [int(i >= start) for i in range(len(ids))]})
    with torch.no_grad():
        p = torch.stack([plain_option_logits(tiny_model(), tokenizer, q, answers="letters") for q in FOUR]).softmax(-1)
    accuracy, count = released.e_step(p, torch.tensor([question.answer for question in FOUR]))
    return released.ReleasedTrainer(
        model,
        SFTConfig(str(folder), completion_only_loss=True, per_device_train_batch_size=4, **{**QUIET, **settings}),
        train_dataset=Dataset.from_list(rows),
        data_collator=partial(released.collate, tokenizer),
        processing_class=tokenizer,
        alpha=0.5,
        accuracy=accuracy,
        count=count,
    )


def test_epochs_are_squared(tmp_path: Path) -> None:
    seen = []
    how = {"num_train_epochs": 2, "lr_scheduler_type": "linear"}
    for run in (
        released_run(tmp_path, tiny_model(), **how),
        build("RCFT", tmp_path, train=FOUR, answers="letters", per_device_train_batch_size=4, **how),
    ):
        steps, step = [], run.training_step
        run.training_step = lambda *a, s=steps, r=run, f=step, **k: (s.append(r._get_learning_rate()), f(*a, **k))[1]
        run.train()
        seen.append(steps)
    theirs, ours = seen
    assert ours == pytest.approx([0.02, 0.01])  # falling to 0 once
    assert theirs == pytest.approx([0.02, 0.01, 0.02, 0.01])


@pytest.mark.parametrize(("side", "end", "rows"), [("right", "", [0]), ("left", "<|end|>", [0, 1]), ("left", "", [])])
def test_position_minus_2_can_be_another_token(side: str, end: str, rows: list[int]) -> None:
    """Letters behind prompts of two lengths: in the `rows` -2 is not where the letter is predicted.

    Padded on the right it lies in the shorter row's padding; with an end of text behind the letter it predicts that
    end. The released scripts pad on the left, with tokenizers that add no end.
    """
    model, tokenizer, questions = tiny_model(), tiny_tokenizer(), [FOUR[0], LONG]
    texts = [text + end for text in answered(questions)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    inputs["position_ids"] = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
    assert inputs.attention_mask.sum(-1).diff() > 0
    plain = torch.stack([plain_option_logits(model, tokenizer, q, answers="letters") for q in questions]).detach()
    with torch.no_grad():
        logits = model(**{k: v for k, v in inputs.items() if k != "token_type_ids"}).logits
    away = (released.letter_probabilities(logits, tokenizer) - plain.softmax(-1)).abs().amax(-1)
    assert [row for row in (0, 1) if away[row] > 0.05] == rows
    assert (away[[row for row in (0, 1) if row not in rows]] < 1e-5).all()
    ours = score(model, tokenizer, questions, answers="letters").probabilities()
    np.testing.assert_allclose(ours, plain.softmax(-1), atol=1e-5)


def test_measured_rows_are_padded_to_2048(tmp_path: Path) -> None:
    """Tokens that an E-step passes through the model; theirs are counted and not passed."""
    texts = answered(FOUR)
    padded = tiny_tokenizer()(texts, padding="max_length", truncation=True, max_length=released.PADDED_TO).input_ids
    assert sum(map(len, padded)) == 4 * 2048
    model = tiny_model()
    trainer = build("RCFT", tmp_path, model=model, train=FOUR, answers="letters", activation_checkpointing=False)
    seen = rows_passed(model)
    trainer.refresh()
    longest = max(len(tiny_tokenizer()(text).input_ids) for text in texts)
    assert sum(shape.numel() for shape in seen) <= 4 * longest
    assert 25 * longest < 2048


def test_each_step_passes_the_model_twice(tmp_path: Path) -> None:
    """Once for the letters and once for the answer's loss; ours once for both."""
    theirs, ours = tiny_model(), tiny_model()
    run = released_run(tmp_path, theirs)
    other = build("RCFT", tmp_path, model=ours, train=FOUR, answers="letters")
    other.refresh()
    passed = []
    for trainer, model in ((run, theirs), (other, ours)):
        inputs = trainer.data_collator(list(trainer.train_dataset))
        seen = rows_passed(model)
        trainer.compute_loss(model, inputs)
        passed.append(seen)
    longest = max(len(tiny_tokenizer()(text).input_ids) for text in answered(FOUR))
    assert passed[0] == [(4, longest)] * 2
    (packed,) = passed[1]  # all in one row, without padding
    assert packed[0] == 1
    assert packed.numel() < 4 * longest


def test_its_loss_is_the_restated_one(tmp_path: Path) -> None:
    """The trainer above, by one plain pass a question: so the restatement holds in a run, too."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    run = released_run(tmp_path, model)
    total = run.compute_loss(model, run.data_collator(list(run.train_dataset)))
    logits, nll = [], []
    for question in FOUR:
        with torch.no_grad():
            prompt = render(question, tokenizer, answers="letters")
            at_letter, ids = answer_logits(model, tokenizer, prompt.text, prompt.continuations[question.answer or 0])
            logits.append(plain_option_logits(model, tokenizer, question, answers="letters"))
            nll.append(functional.cross_entropy(at_letter, ids).item())
    calibration = released.calibration_loss(torch.stack(logits).softmax(-1), run.accuracy, run.count)
    assert calibration > 0.1
    expected = sum(nll) / 4 / 2 + calibration.item() / 2000
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_its_temperature_never_moves() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(400, 4))
    labels = np.array([draw.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    scores = OptionLogits(tuple(map(str, range(400))), 3 * logits, labels)  # too sure by a factor of 3
    temperature = torch.nn.Parameter(torch.ones(1) * 1.5)
    optimizer = torch.optim.LBFGS([temperature], lr=0.01, max_iter=50)

    def eval_loss() -> Tensor:
        optimizer.zero_grad()
        with torch.no_grad():
            mean = functional.cross_entropy(torch.tensor(scores.logits) / temperature, torch.tensor(labels)).item()
        loss = torch.tensor(mean, requires_grad=True)
        loss.backward()
        return loss

    optimizer.step(eval_loss)
    assert temperature.item() == 1.5
    assert fit_temperature(scores).temperature == pytest.approx(3, rel=0.15)


def test_the_question_is_not_learned(tmp_path: Path) -> None:
    """Its collator masks all before the answer: −log π(answer | prompt), which is not −log π(prompt, answer)."""
    question = tiny_questions(3)[2]
    prompt = render(question, tiny_tokenizer(), answers="continuations")
    ids = tiny_tokenizer()(prompt.text + prompt.continuations[question.answer], return_tensors="pt").input_ids[0]
    start = len(tiny_tokenizer()(prompt.text).input_ids)
    with torch.no_grad():
        nll = functional.cross_entropy(tiny_model()(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
    masked, paper = nll[start - 1 :].sum().item(), nll.sum().item()
    assert paper > masked + 10
    found = []
    for weight in (0.0, 1.0):
        how = {"answer_loss": "tokens", "question_loss_weight": weight, "calibration_weight": 0.0}
        run = build("RCFT", tmp_path, train=[question], num_train_epochs=1, **how)
        run.train()
        found += logged(run, "loss")
    assert found == pytest.approx([masked, paper], rel=1e-5)
