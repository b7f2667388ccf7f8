"""The packed batch gives what one plain pass per option gives: values, gradients, and nothing leaks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import one_pass_per_option, ragged_questions, tiny_model, tiny_questions, tiny_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from caltune.scoring import packing
from caltune.scoring.continuations import encode_continuations
from caltune.scoring.packing import (
    EncodedQuestion,
    PackedBatch,
    attention_mask,
    forward,
    only_at,
    option_logits,
    pack,
    token_log_probabilities,
)

HAND = EncodedQuestion(prompt=(10, 11, 12), options=((20,), (21, 22), (23, 24, 25)))


def packed(model: Any, questions: list[EncodedQuestion], reduction: str = "sum", pad_id: int = 0, **how: Any) -> Tensor:
    batch = pack(questions, pad_id, **how)
    return option_logits(token_log_probabilities(forward(model, batch), batch), batch, reduction)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.mark.parametrize("reduction", ["sum", "mean", "min"])
@pytest.mark.parametrize("row_tokens", [0, 64, 512])
def test_packed_equals_one_pass_per_option(model: Any, row_tokens: int, reduction: str) -> None:
    questions = ragged_questions()
    with torch.no_grad():
        expected = one_pass_per_option(model, questions, reduction)
        found = packed(model, questions, reduction, row_tokens=row_tokens)
    assert expected[torch.isfinite(expected)].std() > 0.3  # opinions to compare, not one constant
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("row_tokens", [0, 64, 512])
def test_the_same_under_eager_attention(row_tokens: int) -> None:
    model = tiny_model(attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        expected, found = (
            one_pass_per_option(model, ragged_questions()),
            packed(model, ragged_questions(), row_tokens=row_tokens),
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


def other_architectures() -> list[Any]:
    torch.manual_seed(0)
    small = {"vocab_size": 300, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **small)  # learned positions, tied head
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    qwen = Qwen2Config(**wide, num_key_value_heads=1, **small)
    return [GPT2LMHeadModel(gpt2).eval(), Qwen2ForCausalLM(qwen).eval()]


@pytest.mark.parametrize("model", other_architectures(), ids=lambda model: model.config.model_type)
def test_other_architectures(model: Any) -> None:
    with torch.no_grad():
        expected, found = (
            one_pass_per_option(model, ragged_questions()),
            packed(model, ragged_questions(), row_tokens=64),
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("row_tokens", [0, 200])
def test_a_row_may_be_longer_than_the_table_of_learned_positions(row_tokens: int) -> None:
    questions = ragged_questions()
    longest = max(len(q.prompt) + max(map(len, q.options)) for q in questions) - 1  # the last token is never read
    assert pack(questions, 0, row_tokens=row_tokens).input_ids.shape[1] > longest
    small = {"vocab_size": 300, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    wide, narrow = (
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=n, **small)).eval()
        for n in (200, longest)
    )
    narrow.load_state_dict({**wide.state_dict(), "transformer.wpe.weight": wide.transformer.wpe.weight[:longest]})
    with torch.no_grad():
        expected, found = one_pass_per_option(wide, questions), packed(narrow, questions, row_tokens=row_tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


def test_tokenised_questions_too(model: Any) -> None:
    questions = encode_continuations(tiny_questions(), tiny_tokenizer(), "chat")
    assert {len(option) for question in questions for option in question.options} >= {2, 3}
    with torch.no_grad():
        expected, found = one_pass_per_option(model, questions), packed(model, questions, row_tokens=128)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("row_tokens", [0, 64])
@pytest.mark.parametrize("reduction", ["sum", "mean", "min"])
def test_gradients_are_equal(row_tokens: int, reduction: str) -> None:
    questions = ragged_questions()
    labels = torch.tensor([i % 2 for i in range(len(questions))])
    gradients = []
    for way in (one_pass_per_option, packed):
        model = tiny_model()
        how = {} if way is one_pass_per_option else {"row_tokens": row_tokens}
        torch.nn.functional.cross_entropy(way(model, questions, reduction, **how), labels).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected.abs().max() > 1e-3, name
        torch.testing.assert_close(
            gradients[1][name], expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("row_tokens", [0, 1000])
def test_an_option_does_not_see_another(model: Any, row_tokens: int) -> None:
    question = EncodedQuestion(prompt=(10, 11), options=((20, 21, 22), (30, 31, 32), (40, 41, 42)))
    changed = EncodedQuestion(prompt=(10, 11), options=((90, 91, 92), (30, 31, 32), (40, 41, 42)))
    with torch.no_grad():
        before, after = (packed(model, [q, HAND], row_tokens=row_tokens)[0] for q in (question, changed))
    assert abs(before[0] - after[0]) > 0.01
    torch.testing.assert_close(after[1:], before[1:], atol=1e-6, rtol=0)


def test_a_question_does_not_see_another_in_its_row(model: Any) -> None:
    first, last = ragged_questions(2, seed=3)
    other = EncodedQuestion(prompt=(*first.prompt[:-1], 99), options=tuple((77,) * len(o) for o in first.options))
    assert len(pack([first, last], 0, row_tokens=1000).input_ids) == 1
    with torch.no_grad():
        before, after = (packed(model, [q, last], row_tokens=1000, options=5) for q in (first, other))
    assert (before[0] != after[0]).any()
    torch.testing.assert_close(after[1], before[1], atol=1e-6, rtol=0)


def test_the_padding_id_does_not_matter(model: Any) -> None:
    questions = ragged_questions()
    assert (pack(questions, 0).owners < 0).any()
    with torch.no_grad():
        for row_tokens in (0, 64):
            zero, other = (packed(model, questions, pad_id=i, row_tokens=row_tokens) for i in (0, 123))
            assert torch.equal(zero, other)


@pytest.mark.parametrize("width", [None, 5, 8])
def test_missing_options_are_minus_infinity(model: Any, width: int | None) -> None:
    questions = ragged_questions(3)  # 2, 3 and 4 options
    for reduction in ("sum", "mean", "min"):
        with torch.no_grad():
            found = packed(model, questions, reduction, options=width)
        assert found.shape == (3, width or 4)
        for row, question in zip(found, questions, strict=True):
            assert torch.isfinite(row[: len(question.options)]).all()
            assert (row[len(question.options) :] == -torch.inf).all()


def may_see(batch: PackedBatch, row: int, query: int, key: int) -> bool:
    if key > query or batch.owners[row, key] != batch.owners[row, query]:
        return False
    return bool(batch.segments[row, key] == 0 or batch.segments[row, key] == batch.segments[row, query])


@pytest.mark.parametrize("row_tokens", [0, 64, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mask_token_by_token(row_tokens: int, dtype: torch.dtype) -> None:
    batch = pack(ragged_questions(), 0, row_tokens=row_tokens)
    mask = attention_mask(batch, dtype)
    rows, length = batch.input_ids.shape
    assert mask is not None
    assert mask.shape == (rows, 1, length, length)
    assert mask.dtype == dtype
    for row, query, key in itertools.product(range(rows), range(length), range(length)):
        expected = 0.0 if may_see(batch, row, query, key) else torch.finfo(dtype).min
        assert mask[row, 0, query, key] == expected


def test_plain_causal_attention_equals_the_mask(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [EncodedQuestion(q.prompt, tuple(o[:1] for o in q.options)) for q in ragged_questions()]
    batch = pack(questions, 0)
    assert attention_mask(batch, torch.float32) is None
    assert attention_mask(pack(questions, 0, row_tokens=64), torch.float32) is not None
    assert attention_mask(pack([HAND], 0), torch.float32) is not None
    rows, length = batch.input_ids.shape
    mask = torch.full((rows, 1, length, length), torch.finfo(torch.float32).min)
    for row, query, key in itertools.product(range(rows), range(length), range(length)):
        if may_see(batch, row, query, key):
            mask[row, 0, query, key] = 0.0
    with torch.no_grad():
        short = forward(model, batch)
        monkeypatch.setattr(packing, "attention_mask", lambda *_: mask)
        torch.testing.assert_close(short, forward(model, batch), atol=1e-5, rtol=1e-6)


def test_the_head_sees_only_the_needed_positions(model: Any) -> None:
    questions, seen = ragged_questions(), []
    head = model.get_output_embeddings()
    spy = head.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].shape))
    batch = pack(questions, 0, row_tokens=64)
    try:
        logits = forward(model, batch)
    finally:
        spy.remove()
    # One for each prompt, and one for each option token that is read.
    needed = sum(1 + sum(len(option) - 1 for option in question.options) for question in questions)
    assert seen == [(1, needed, 32)]
    assert logits.shape == (needed, model.config.vocab_size)
    assert needed < batch.input_ids.numel() / 1.5


class Broken(torch.nn.Module):
    """Raises where a model would run; knows its head."""

    dtype = torch.float32

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **_: Any) -> None:
        raise RuntimeError("out of memory")


def test_the_hook_goes_also_when_the_model_raises(model: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with pytest.raises(RuntimeError, match="out of memory"):
            forward(Broken(model), pack(ragged_questions(), 0))
        assert torch.equal(model(input_ids=ids).logits, before)
        with only_at(model, torch.tensor([2, 0])):
            torch.testing.assert_close(model(input_ids=ids).logits[0], before[0, [2, 0]])
        assert torch.equal(model(input_ids=ids).logits, before)


class Wrapped(torch.nn.Module):
    """Like DDP: forwards calls, hides everything else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module = model

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def test_a_wrapped_model_names_the_owner_of_its_head(model: Any) -> None:
    batch = pack(ragged_questions(), 0)
    with torch.no_grad():
        assert torch.equal(forward(Wrapped(model), batch, head_owner=model), forward(model, batch))


def test_half_precision_gives_no_nan() -> None:
    model, exact = tiny_model().to(torch.bfloat16), tiny_model()
    with torch.no_grad():
        found, expected = (
            packed(model, ragged_questions(), row_tokens=64),
            one_pass_per_option(exact, ragged_questions()),
        )
    assert found.dtype == torch.float32
    assert not found.isnan().any()
    torch.testing.assert_close(found, expected, atol=2.0, rtol=0.1)
