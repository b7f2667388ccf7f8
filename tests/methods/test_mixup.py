"""Mixup against mixing the hidden states themselves; with α = 0, or a share of 1, it is plain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from baselines import MICRO_BATCHES, QUESTIONS, assert_alike, assert_plain, backward, one_step, outputs_of
from tiny import tiny_model, tiny_tokenizer
from tiny_training import build
from torch import Tensor
from torch.nn import functional

from caltune.errors import InputError
from caltune.methods import MixupConfig, mixup
from caltune.prompts import render
from caltune.types import Question


def hidden_state(model: Any, tokenizer: Any, question: Question) -> tuple[Tensor, list[int]]:
    """The last hidden state before the head where the letter is predicted, and the letters' tokens."""
    prompt = render(question, tokenizer, answers="letters")
    ids = tokenizer(prompt.text, return_tensors="pt").input_ids
    letters = [tokenizer(prompt.text + letter).input_ids[-1] for letter in prompt.continuations]
    return model.model(input_ids=ids).last_hidden_state[0, -1], letters


def mixed(
    model: Any, batch: list[Question], share: Tensor, partner: Tensor, answer_loss: str = "options"
) -> list[Tensor]:
    """The loss of each mixture by the equations, one pair at a time."""
    tokenizer = tiny_tokenizer()
    states = [hidden_state(model, tokenizer, question) for question in batch]
    losses = []
    for i, question in enumerate(batch):
        j, weight = int(partner[i]), share[i]
        logits = model.lm_head(weight * states[i][0] + (1 - weight) * states[j][0])
        terms = []
        for letters, answer in ((states[i][1], question.answer), (states[j][1], batch[j].answer)):
            if answer_loss == "tokens":
                terms.append(functional.cross_entropy(logits, torch.tensor(letters[answer])))
            else:
                terms.append(functional.cross_entropy(logits[letters], torch.tensor(answer)))
        losses.append(weight * terms[0] + (1 - weight) * terms[1])
    return losses


@pytest.mark.parametrize("answer_loss", ["options", "tokens"])
def test_a_step_in_micro_batches_mixes_hidden_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer_loss: str
) -> None:
    drawn = []
    original = mixup.mixed_losses

    def watched(outputs: Any, share: Tensor, partner: Tensor, kind: str) -> Tensor:
        drawn.append((share, partner))
        return original(outputs, share, partner, kind)

    monkeypatch.setattr(mixup, "mixed_losses", watched)
    ours = one_step("Mixup", tmp_path, answers="letters", answer_loss=answer_loss, mixup_alpha=1.0)
    model = tiny_model()
    losses = [
        loss
        for batch, (share, partner) in zip(MICRO_BATCHES, drawn, strict=True)
        for loss in mixed(model, batch, share, partner, answer_loss)
    ]
    assert_alike(ours, backward(model, torch.stack(losses).mean()))
    shares = torch.cat([share for share, _ in drawn])
    assert len(shares.unique()) == 10
    assert ((shares >= 0) & (shares <= 1)).all()
    assert all(sorted(partner.tolist()) == list(range(len(partner))) for _, partner in drawn)


@pytest.mark.parametrize("answer_loss", ["options", "tokens"])
def test_without_alpha_it_is_plain_fine_tuning(tmp_path: Path, answer_loss: str) -> None:
    assert_plain("Mixup", tmp_path, answers="letters", mixup_alpha=0.0, answer_loss=answer_loss)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_special_shares_and_partners(tmp_path: Path, temperature: float) -> None:
    trainer = build("Mixup", tmp_path, answers="letters")
    trainer.model.config.option_temperature = temperature
    with torch.no_grad():
        outputs = outputs_of(trainer, QUESTIONS)
    plain, nobody = trainer.answer_losses(outputs), torch.arange(10)
    turn = nobody.roll(3)
    half = torch.full((10,), 0.5)
    torch.testing.assert_close(mixup.mixed_losses(outputs, torch.ones(10), turn), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixup.mixed_losses(outputs, torch.zeros(10), turn), plain[turn], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixup.mixed_losses(outputs, half, nobody), plain, rtol=1e-5, atol=1e-5)
    # At one half it does not matter which of a pair is the first.
    back = mixup.mixed_losses(outputs, half, turn.argsort())
    assert not torch.allclose(back, plain)
    torch.testing.assert_close(back[turn], mixup.mixed_losses(outputs, half, turn), rtol=1e-5, atol=1e-5)


def test_shares_follow_the_beta_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build("Mixup", tmp_path, answers="letters", mixup_alpha=0.4)
    with torch.no_grad():
        outputs = outputs_of(trainer, QUESTIONS)
    shares = []
    monkeypatch.setattr(mixup, "mixed_losses", lambda _, share, *__: shares.append(share))
    torch.manual_seed(0)
    for _ in range(400):
        trainer.question_losses(outputs)
    found = torch.cat(shares)
    # Beta(α, α) has mean 1/2 and variance 1 / (4·(2α + 1)) = 0.1389 for α = 0.4.
    assert found.mean().item() == pytest.approx(0.5, abs=0.02)
    assert found.var().item() == pytest.approx(0.25 / 1.8, abs=0.005)


def test_only_letters_can_be_mixed(tmp_path: Path) -> None:
    assert MixupConfig(str(tmp_path), activation_checkpointing=False).answers == "letters"
    with pytest.raises(InputError, match="answers must be letters, got 'continuations'"):
        MixupConfig(str(tmp_path), activation_checkpointing=False, answers="continuations")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_settings_out_of_range(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=rf"mixup_alpha must be at least 0 and finite, got {value}"):
        MixupConfig(str(tmp_path), activation_checkpointing=False, mixup_alpha=value)
