"""Mixtures of experts: scored as any model is, and trained with the loss that keeps experts busy, as with TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CAPITALS, one_pass_per_option, ragged_questions, tiny_questions, tiny_tokenizer
from tiny_training import build, logged
from transformers import MixtralConfig, MixtralForCausalLM

from caltune.scoring.engine import score_encoded
from caltune.scoring.packing import EncodedQuestion

ROWS = [{"prompt": f"Capital of {land}?", "completion": " " + city} for land, city in list(CAPITALS.items())[:5]]


def experts(**settings: Any) -> Any:
    """Two layers of four experts, with opinions of their own on whom to ask."""
    torch.manual_seed(0)
    how = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    how |= {"vocab_size": len(tiny_tokenizer()), "num_key_value_heads": 2, "num_local_experts": 4, "pad_token_id": 0}
    return MixtralForCausalLM(MixtralConfig(**{**how, "initializer_range": 0.2, **settings})).eval()


def test_a_model_that_counts_its_experts_tokens_is_scored_as_any(tmp_path: Path) -> None:
    """As TRL leaves one; with a common beginning too, whose keys and values are read in another way."""
    shared = [EncodedQuestion((7,) * 150 + (i,), ((5, 6), (8,))) for i in range(4)]
    for questions in (ragged_questions(), shared):
        with torch.no_grad():
            expected = one_pass_per_option(experts(), questions)
        model = experts(output_router_logits=True)
        found = torch.from_numpy(score_encoded(model, questions, 0))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert model.config.output_router_logits is True


@pytest.mark.parametrize("times", [1, 2])
def test_the_balance_of_experts_is_added_as_trl_adds_it(tmp_path: Path, times: int) -> None:
    """Twice the mean of the micro-batches' losses, each of a plain pass over rows without the token never read."""
    how = {"train": ROWS[:4], "num_train_epochs": 1, "per_device_train_batch_size": 4 // times}
    how |= {"gradient_accumulation_steps": times, "learning_rate": 0.0}
    plain, balanced = (
        build("SFT", tmp_path, model=experts(), router_aux_loss_coef=weight, **how) for weight in (0.0, 2.0)
    )
    for trainer in (plain, balanced):
        trainer.train()
    tokenizer, expected = tiny_tokenizer(), []
    rows = [tokenizer(row["prompt"] + row["completion"]).input_ids for row in ROWS[:4]]
    for first in range(0, 4, 4 // times):
        batch = tokenizer.pad({"input_ids": rows[first : first + 4 // times]}, return_tensors="pt")
        with torch.no_grad():
            expected.append(experts()(**batch, output_router_logits=True).aux_loss.item())
    mean = sum(expected) / times
    assert logged(balanced, "aux_loss") == [pytest.approx(mean, rel=1e-5)]
    assert logged(balanced, "loss")[0] - logged(plain, "loss")[0] == pytest.approx(2 * mean, rel=1e-4)
    assert logged(plain, "aux_loss") == []


def test_questions_train_a_mixture_of_experts(tmp_path: Path) -> None:
    trainer = build("RCFT", tmp_path, model=experts(), train=[*ROWS, *tiny_questions(6)], num_train_epochs=2)
    gates = trainer.model.model.layers[0].mlp.gate.weight.detach().clone()
    trainer.train()
    assert len(logged(trainer, "aux_loss")) == trainer.state.global_step
    assert not torch.equal(trainer.model.model.layers[0].mlp.gate.weight, gates)
    assert trainer.experts.found is None
