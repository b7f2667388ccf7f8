"""A common beginning read once: the same logits, fewer tokens, and the plain way where nothing is shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import one_pass_per_option, ragged_questions, tiny_model, tiny_questions, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from caltune.scoring import encode_questions, shared
from caltune.scoring.cost import ScoringCost
from caltune.scoring.engine import score_encoded
from caltune.scoring.packing import EncodedQuestion
from caltune.scoring.shared import group_by_beginning, read_beginning

QUESTIONS = tiny_questions(12)
SHOWN, ASKED = QUESTIONS[:3], QUESTIONS[3:]


@pytest.fixture(autouse=True)
def a_pass_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PASS_TOKENS", 8)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def slow(model: Any, encoded: list[EncodedQuestion], reduction: str = "sum") -> Any:
    with torch.no_grad():
        return one_pass_per_option(model, encoded, reduction).numpy()


def words(draw: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(draw.integers(3, 300, count).tolist())


def behind(length: int, *counts: int, seed: int = 0) -> list[EncodedQuestion]:
    """Questions behind one beginning, each with a few tokens of its own and two options of so many tokens."""
    draw = np.random.default_rng(seed)
    beginning = words(draw, length)
    return [
        EncodedQuestion((*beginning, i + 3, *words(draw, 4)), (words(draw, n), words(draw, n)))
        for i, n in enumerate(counts)
    ]


def read_shapes(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the batches that the model is given from now on."""
    read: list[tuple[int, int]] = []
    forward = type(model).forward

    def spy(self: Any, input_ids: Any = None, **how: Any) -> Any:
        read.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **how)

    monkeypatch.setattr(type(model), "forward", spy)
    return read


@pytest.mark.parametrize("answers", ["continuations", "letters"])
@pytest.mark.parametrize("template", ["plain", "chat"])
def test_logits_are_those_of_one_pass_per_option(model: Any, answers: Any, template: Any) -> None:
    # Letters behind a prompt of three exemplars do not fit into the tiny model's context.
    exemplars = SHOWN[:1] if answers == "letters" else SHOWN
    encoded = encode_questions(
        ASKED, tiny_tokenizer(), answers=answers, template=template, context=256, exemplars=exemplars
    )
    [(length, members)] = group_by_beginning(encoded, 8)
    assert length > 25
    assert members == list(range(len(ASKED)))
    reduction = "sum" if template == "plain" else "mean"
    expected = slow(model, encoded, reduction)
    for batch_tokens in (1, 150, 100_000):
        found = score_encoded(model, encoded, 0, reduction=reduction, batch_tokens=batch_tokens)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def many_options(beginning: tuple[int, ...]) -> list[EncodedQuestion]:
    """2 to 26 options, ragged, some the beginning of others, some prompts empty but for one token of their own."""
    draw = np.random.default_rng(3)
    questions = []
    for i, count in enumerate((2, 26, 3, 7, 2, 13)):
        options = [words(draw, int(n)) for n in draw.integers(1, 7, count)]
        options[1] = (*options[0], 5)
        questions.append(EncodedQuestion((*beginning, *words(draw, 1 + 9 * (i % 2))), tuple(options)))
    return questions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [0, 1, 40])
def test_two_to_twenty_six_options_ragged(attention: str, length: int) -> None:
    model = tiny_model(attn_implementation=attention)
    encoded = many_options(words(np.random.default_rng(8), length))
    assert [members for _, members in group_by_beginning(encoded, 8)] == ([[*range(6)]] if length == 40 else [])
    expected = slow(model, encoded)
    for batch_tokens in (1, 100, 2048):
        np.testing.assert_allclose(score_encoded(model, encoded, 0, batch_tokens=batch_tokens), expected, atol=2e-5)
    for i in range(6):  # one question at a time
        count = len(encoded[i].options)
        np.testing.assert_allclose(score_encoded(model, encoded[i : i + 1], 0)[0], expected[i, :count], atol=2e-5)


def test_several_beginnings_and_questions_without_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = behind(100, 1, 2, 3, seed=1), behind(90, 2, 2, 1, seed=2), ragged_questions(3)
    encoded = [question for three in zip(*parts, strict=True) for question in three]
    assert sorted(group_by_beginning(encoded, 8)) == [(90, [1, 4, 7]), (100, [0, 3, 6])]
    expected = slow(model, encoded)
    read, cost, features = read_shapes(model, monkeypatch), ScoringCost(), {}
    np.testing.assert_allclose(score_encoded(model, encoded, 0, cost=cost, features=features), expected, atol=2e-5)
    assert sorted(shape for shape in read if shape in [(1, 90), (1, 100)]) == [(1, 90), (1, 100)]
    assert len(read) == 5  # each beginning, what stands behind it, and the rest
    assert cost.places == sum(rows * width for rows, width in read)
    alone = sum(question.length for question in encoded)
    assert (cost.questions, cost.alone, cost.tokens) == (9, alone, alone - 2 * 100 - 2 * 90)
    monkeypatch.setattr(shared, "PASS_TOKENS", 10**9)
    plain: dict[int, Any] = {}
    score_encoded(model, encoded, 0, features=plain)
    assert sorted(features) == sorted(plain) == list(range(9))
    for row in range(9):
        np.testing.assert_allclose(features[row], plain[row], atol=2e-5)


def test_the_option_temperature_acts_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = behind(100, 1, 2, 3)
    expected = slow(model, encoded) / 2
    warm = tiny_model()
    warm.config.option_temperature = 2.0
    read = read_shapes(warm, monkeypatch)
    np.testing.assert_allclose(score_encoded(warm, encoded, 0), expected, atol=2e-5)
    assert read[0] == (1, 100)


def test_the_beginning_is_read_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode_questions(ASKED, tiny_tokenizer(), template="plain", exemplars=SHOWN)
    [(length, _)] = group_by_beginning(encoded, 8)
    read = read_shapes(model, monkeypatch)
    model.train()
    score_encoded(model, encoded, 0, batch_tokens=20)
    assert model.training
    model.eval()
    assert read[0] == (1, length)
    assert len(read) > 2
    assert all(rows * width <= 20 or rows == 1 for rows, width in read[1:])


def test_plain_way_where_a_model_keeps_something_else(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = encode_questions(ASKED, tiny_tokenizer(), template="plain", exemplars=SHOWN)
    expected = slow(model, alike)
    assert read_beginning(model, alike[0].prompt[:30], 60) is not None
    for kind in ("DynamicCache", "DynamicLayer"):
        with monkeypatch.context() as other:
            other.setattr(shared, kind, type("Other", (), {}))
            assert read_beginning(model, alike[0].prompt[:30], 60) is None
            np.testing.assert_allclose(score_encoded(model, alike, 0), expected, atol=2e-5)


def most_saved(prompts: list[tuple[int, ...]], length: int, least: int) -> int:
    """Of questions that share their first `length` tokens: all as one group, or the best of those that share more."""
    branches: dict[int, list[tuple[int, ...]]] = {}
    for prompt in prompts:
        if len(prompt) > length + 1:
            branches.setdefault(prompt[length], []).append(prompt)
    apart = sum(most_saved(branch, length + 1, least) for branch in branches.values())
    return max(0, (len(prompts) - 1) * length - least, apart)


@pytest.mark.parametrize("seed", range(20))
def test_groups_save_the_most(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 12, 15)
    encoded = [EncodedQuestion(tuple(draw.integers(0, 2, n).tolist()), ((1,),)) for n in lengths]
    for least in (0, 1, 3, 7):
        groups = group_by_beginning(encoded, least)
        placed = [i for _, members in groups for i in members]
        assert len(set(placed)) == len(placed)
        for length, members in groups:
            assert len({encoded[i].prompt[:length] for i in members}) == 1
            assert all(len(encoded[i].prompt) > length for i in members)
        saved = sum((len(members) - 1) * length - least for length, members in groups)
        assert saved == most_saved([question.prompt for question in encoded], 0, least)


def test_no_question_and_one_question() -> None:
    assert group_by_beginning([], 8) == []
    assert group_by_beginning([EncodedQuestion((1,) * 50, ((1,), (2,)))], 8) == []


@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 2, 1)])
@pytest.mark.parametrize("length", [10, 15, 40])
def test_a_sliding_window_forgets_a_long_beginning(
    length: int, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=300, num_key_value_heads=2, sliding_window=16, initializer_range=0.2, **sizes)
    model = MistralForCausalLM(config).eval()
    encoded = behind(length, *counts)
    assert group_by_beginning(encoded, 8)[0][0] == length
    longest = length + 5 + max(counts)
    assert (read_beginning(model, encoded[0].prompt[:length], longest) is None) == (longest > 16)
    found = score_encoded(model, encoded, 0, batch_tokens=128)  # a small batch: a pass costs little
    monkeypatch.setattr(shared, "PASS_TOKENS", 10**9)
    np.testing.assert_allclose(found, score_encoded(model, encoded, 0, batch_tokens=128), atol=2e-5)


def test_padding_stays_within_learned_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=300, n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, **ends)
    model = GPT2LMHeadModel(config).eval()
    encoded = behind(150, 29, *[2] * 75)  # in two rows, the shorter one padded far beyond place 106
    assert group_by_beginning(encoded, 8) == [(150, list(range(76)))]
    found = score_encoded(model, encoded, 0)
    monkeypatch.setattr(shared, "PASS_TOKENS", 10**9)
    np.testing.assert_allclose(found, score_encoded(model, encoded, 0), atol=2e-5)
