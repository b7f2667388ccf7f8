"""MC dropout on the tiny model: what drops out, what the passes are, and that nothing is left changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from caltune.errors import InputError
from caltune.predictors.mc_dropout import mc_dropout_scores
from caltune.scoring import encode_questions, score
from caltune.scoring.packing import forward, option_logits, pack, token_log_probabilities

QUESTIONS = tiny_questions(6)
TOKENIZER = tiny_tokenizer()


def with_lora(dropout: float, **settings: Any) -> Any:
    dora = settings.pop("use_dora", False)
    lora = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
    torch.manual_seed(3)
    return get_peft_model(tiny_model(**settings), lora).eval()


MODELS = {
    "lora": lambda: with_lora(0.5),
    "attention": lambda: tiny_model(attention_dropout=0.3),
    "both": lambda: with_lora(0.5, attention_dropout=0.3),
    "dora": lambda: with_lora(0.5, use_dora=True),
    "dora and attention": lambda: with_lora(0.5, use_dora=True, attention_dropout=0.3),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_is_the_models_own_training_pass(name: str) -> None:
    """The tiny model has nothing else that depends on its mode."""
    model = MODELS[name]()
    ours = mc_dropout_scores(model, TOKENIZER, QUESTIONS, passes=2, seed=5)
    order = sorted(range(6), key=lambda i: -encode_questions(QUESTIONS, TOKENIZER)[i].length)
    batch = pack([encode_questions(QUESTIONS, TOKENIZER)[i] for i in order], 0)
    torch.manual_seed(5)
    model.train()
    p = torch.zeros(batch.option_lengths.shape)
    with torch.no_grad():
        for _ in range(2):
            tokens = token_log_probabilities(forward(model, batch), batch)
            p += option_logits(tokens, batch).softmax(-1) / 2
    np.testing.assert_allclose(ours.probabilities()[order], p.numpy(), atol=1e-5)
    assert np.abs(ours.probabilities() - score(model, TOKENIZER, QUESTIONS).probabilities()).max() > 0.01


def test_what_an_adapter_wraps_stays_in_evaluation_mode() -> None:
    """DoRA asks the adapter's layer for its mode; the layer beneath must not notice, as a batch norm would."""
    model = with_lora(0.5, use_dora=True)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    seen: list[tuple[bool, bool]] = []
    layer.base_layer.register_forward_hook(lambda *_: seen.append((layer.training, layer.base_layer.training)))
    mc_dropout_scores(model, TOKENIZER, QUESTIONS[:2], passes=1)
    assert set(seen) == {(True, False)}
    assert not any(module.training for module in model.modules())


def gpt2(**settings: float) -> Any:
    torch.manual_seed(0)
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    sizes = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(TOKENIZER), initializer_range=0.2, **sizes, **{**off, **settings})
    ).eval()


def opt(**settings: float) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 256}
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    return OPTForCausalLM(OPTConfig(vocab_size=len(TOKENIZER), init_std=0.2, **sizes, **{**off, **settings})).eval()


@pytest.mark.parametrize(
    ("build", "name"),
    [(gpt2, "attn_pdrop"), (gpt2, "embd_pdrop"), (gpt2, "resid_pdrop"), (opt, "dropout"), (opt, "attention_dropout")],
)
def test_dropout_is_found_wherever_a_model_keeps_it(build: Any, name: str) -> None:
    model = build(**{name: 0.4})
    ours = mc_dropout_scores(model, TOKENIZER, QUESTIONS, passes=2).probabilities()
    assert np.abs(ours - score(model, TOKENIZER, QUESTIONS).probabilities()).max() > 0.01
    assert not any(module.training for module in model.modules())
    with pytest.raises(InputError, match="a model with dropout, got none above 0"):
        mc_dropout_scores(build(), TOKENIZER, QUESTIONS)


def test_passes_that_are_all_alike_are_refused() -> None:
    lora = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear")  # zero until it is trained
    model = get_peft_model(tiny_model(), lora).eval()
    with pytest.raises(InputError, match="whose dropout changes its scores, got the same 3 times"):
        mc_dropout_scores(model, TOKENIZER, QUESTIONS, passes=3)


def test_the_seed_decides_and_torch_is_left_as_it_was() -> None:
    model = with_lora(0.5)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (
        mc_dropout_scores(model, TOKENIZER, QUESTIONS[:2], passes=1, seed=seed).logits for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = with_lora(0.5).train(training)
    modes = [module.training for module in model.modules()]
    before = score(model, TOKENIZER, QUESTIONS[:2]).logits
    mc_dropout_scores(model, TOKENIZER, QUESTIONS[:2], passes=1)
    with pytest.raises(InputError, match="no questions"):
        mc_dropout_scores(model, TOKENIZER, [], passes=1)
    assert [module.training for module in model.modules()] == modes
    np.testing.assert_array_equal(score(model, TOKENIZER, QUESTIONS[:2]).logits, before)  # no dropout any more


def test_settings_reach_the_scoring() -> None:
    scores = mc_dropout_scores(with_lora(0.1), TOKENIZER, QUESTIONS, passes=3, answers="letters", template="plain")
    assert scores.ids == tuple(question.id for question in QUESTIONS)
    plain = score(with_lora(0.1), TOKENIZER, QUESTIONS, answers="letters", template="plain").probabilities()
    texts = score(with_lora(0.1), TOKENIZER, QUESTIONS).probabilities()
    near, far = (np.abs(scores.probabilities() - p).mean() for p in (plain, texts))
    assert near < far / 2


def test_what_is_refused() -> None:
    for model in (tiny_model(), with_lora(0.0)):
        with pytest.raises(InputError, match="a model with dropout, got none above 0"):
            mc_dropout_scores(model, TOKENIZER, QUESTIONS)
    with pytest.raises(InputError, match="passes must be at least 1, got 0"):
        mc_dropout_scores(with_lora(0.5), TOKENIZER, QUESTIONS, passes=0)
