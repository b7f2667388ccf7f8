"""Models whose layers see only so far back, with prompts and options that reach further."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import one_pass_per_option, ragged_questions
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

from caltune.scoring.engine import score_encoded
from caltune.scoring.packing import EncodedQuestion, forward, layer_masks, option_logits, pack, token_log_probabilities

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
KINDS = ["sliding_attention", "full_attention"]


def models() -> list[Any]:
    torch.manual_seed(0)
    every = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    some = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, layer_types=KINDS))
    return [every.eval(), some.eval()]


@pytest.mark.parametrize("row_tokens", [0, 100])
@pytest.mark.parametrize("model", models(), ids=lambda model: model.config.model_type)
def test_packed_equals_one_pass_per_option(model: Any, row_tokens: int) -> None:
    questions = ragged_questions()
    assert max(len(question.prompt) for question in questions) > 12
    batch = pack(questions, 0, row_tokens=row_tokens)
    with torch.no_grad():
        expected = one_pass_per_option(model, questions)
        found = option_logits(token_log_probabilities(forward(model, batch), batch), batch)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        model.config.sliding_window = 10**6  # no window, as if the mask were all that counts: it is noticed
        try:
            blind = option_logits(token_log_probabilities(forward(model, batch), batch), batch)
        finally:
            model.config.sliding_window = 8
    assert (blind - expected).abs().nan_to_num().max() > 0.01
    for batch_tokens in (1, 40):
        again = torch.from_numpy(score_encoded(model, questions, 0, batch_tokens=batch_tokens))
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)


def test_masks_by_hand() -> None:
    model = models()[0]
    model.config.sliding_window = 2
    batch = pack([EncodedQuestion((5, 6, 7), ((1, 2), (3,)))], 0)  # the row is 5 6 7 1
    seen = (layer_masks(model, batch) == 0)[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    model.config.sliding_window = 4  # reaches as far as the row does
    assert (layer_masks(model, batch) == 0)[0, 0].int().tolist()[3] == [1, 1, 1, 1]
