"""The prompts' likelihood against plain passes with all logits: values, gradients, memory, wrappers."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ragged_questions, tiny_model
from torch import Tensor
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from caltune.errors import InputError
from caltune.scoring import prompt_loss
from caltune.scoring.packing import EncodedQuestion, forward, pack
from caltune.scoring.prompt_loss import forward_with_prompt_nll


def plain_prompt_nll(model: Any, questions: list[EncodedQuestion]) -> Tensor:
    """One pass and one full matrix of logits a prompt."""
    sums = []
    for question in questions:
        ids = torch.tensor([question.prompt])
        logits = model(input_ids=ids).logits[0, :-1].float()
        sums.append(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return torch.stack(sums)


def small_gpt2() -> Any:
    torch.manual_seed(0)
    settings = {"vocab_size": 300, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **settings)).eval()


@pytest.mark.parametrize("row_tokens", [0, 64])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_values_are_those_of_plain_passes(monkeypatch: pytest.MonkeyPatch, row_tokens: int, chunk: int) -> None:
    monkeypatch.setattr(prompt_loss, "CHUNK", chunk)
    model, questions = tiny_model(), ragged_questions()
    batch = pack(questions, 0, row_tokens=row_tokens)
    with torch.no_grad():
        logits, found = forward_with_prompt_nll(model, batch)
        expected = plain_prompt_nll(model, questions)
        torch.testing.assert_close(logits, forward(model, batch))
    assert len(questions[0].prompt) == 1
    assert found[0] == 0  # nothing stands before its only token
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [tiny_model, small_gpt2], ids=["own head", "tied head"])
def test_gradients_are_those_of_plain_passes(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    monkeypatch.setattr(prompt_loss, "CHUNK", 5)
    questions = ragged_questions()
    weights = torch.arange(1.0, len(questions) + 1)
    gradients = []
    for way in (plain_prompt_nll, lambda model, asked: forward_with_prompt_nll(model, pack(asked, 0))[1]):
        model = build()
        (way(model, questions) * weights).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected.abs().max() > 1e-2, name
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-4)


def test_no_tensor_holds_the_logits_of_all_prompt_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_loss, "CHUNK", 4)
    model, questions = tiny_model(), [EncodedQuestion(tuple(range(3, 63)), ((5,), (6,)))] * 3
    vocabulary, rows, kept = model.config.vocab_size, [], []
    linear = functional.linear

    def watched(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape[0] == vocabulary:
            rows.append(hidden.shape[:-1].numel())
        return linear(hidden, weight, bias)

    monkeypatch.setattr(functional, "linear", watched)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        _, nll = forward_with_prompt_nll(model, pack(questions, 0))
    assert max(rows) == 4
    assert sum(rows) == 3 * 59 + 3
    # Nothing that waits for the backward pass is as wide as the vocabulary, but the head's own weight.
    assert [shape for shape in kept if len(shape) > 1 and shape[-1] == vocabulary] == [(32, vocabulary)]
    nll.sum().backward()
    assert sum(rows) == 2 * 3 * 59 + 3  # each chunk once more, the answers' logits not


def test_no_hook_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    head = model.get_output_embeddings()
    forward_with_prompt_nll(model, pack(ragged_questions(), 0))
    monkeypatch.setattr(prompt_loss, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward_with_prompt_nll(model, pack(ragged_questions(), 0))
    assert not head._forward_pre_hooks
    assert not head._forward_hooks


def test_a_model_that_changes_its_logits_is_refused() -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "initializer_range": 0.5}
    torch.manual_seed(0)
    for cap in (5.0, None):
        model = Gemma2ForCausalLM(Gemma2Config(**small, **settings, final_logit_softcapping=cap)).eval()
        batch = pack(ragged_questions(), 0)
        if cap:
            with pytest.raises(InputError, match=r"logits are its output head's, got .*Gemma2ForCausalLM"):
                forward_with_prompt_nll(model, batch)
        else:
            found = forward_with_prompt_nll(model, batch)[1]
            torch.testing.assert_close(found, plain_prompt_nll(model, ragged_questions()), rtol=1e-5, atol=1e-4)


def test_a_diverged_model_gives_nan_and_is_not_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    logits, nll = forward_with_prompt_nll(model, pack(ragged_questions(), 0))
    assert logits.isnan().all()
    assert nll.isnan().any()  # a prompt of one token has nothing to predict


def test_under_ddp_the_gradients_are_the_same(tmp_path: Path) -> None:
    questions = ragged_questions()
    batch = pack(questions, 0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        gradients = []
        for wrap in (lambda model: model, torch.nn.parallel.DistributedDataParallel):
            model = tiny_model()
            wrapped = wrap(model)
            for _ in range(2):  # in the second pass DDP checks that the first left nothing open
                model.zero_grad()
                logits, nll = forward_with_prompt_nll(wrapped, batch, head_owner=model)
                (nll.sum() + logits.square().mean()).backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        # Were DDP's part the last to let go of the process group, its threads would wait for the lock held here.
        del wrapped
        gc.collect()
    finally:
        torch.distributed.destroy_process_group()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-5)
