"""Scores come in the order of the questions, whatever the batches, and the model is left as it was."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import one_pass_per_option, tiny_model, tiny_questions, tiny_tokenizer

from caltune.errors import InputError
from caltune.prompts import render
from caltune.scoring import encode_questions, engine, score
from caltune.scoring.engine import context_length, score_encoded
from caltune.scoring.packing import EncodedQuestion, pack
from caltune.types import Question

QUESTIONS = tiny_questions(14)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def slow(model: Any, tokenizer: Any) -> Any:
    """Option logits of `QUESTIONS` in chat, one plain pass per option."""
    with torch.no_grad():
        return one_pass_per_option(model, encode_questions(QUESTIONS, tokenizer)).numpy()


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_results_keep_the_order_of_the_input(model: Any, tokenizer: Any, slow: Any, batch_tokens: int) -> None:
    scores = score(model, tokenizer, QUESTIONS, batch_tokens=batch_tokens)
    assert scores.ids == tuple(f"q{i}" for i in range(14))
    np.testing.assert_allclose(scores.logits, slow, atol=1e-5)
    order = np.random.default_rng(0).permutation(14)
    shuffled = score(model, tokenizer, [QUESTIONS[i] for i in order], batch_tokens=batch_tokens)
    assert shuffled.ids == tuple(f"q{i}" for i in order)
    np.testing.assert_allclose(shuffled.logits, slow[order], atol=1e-5)


@pytest.mark.parametrize("budget", [1, 50, 100, 333, 100_000])
def test_batches_keep_to_the_budget(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    shapes, forward = [], engine.forward

    def spy(model: Any, batch: Any) -> Any:
        shapes.append(tuple(batch.input_ids.shape))
        return forward(model, batch)

    monkeypatch.setattr(engine, "forward", spy)
    score(model, tokenizer, QUESTIONS, template="plain", batch_tokens=budget)  # what they share pays for no pass
    assert sum(rows for rows, _ in shapes) == 14
    assert all(rows * length <= budget or rows == 1 for rows, length in shapes)
    lengths = [length for _, length in shapes]
    assert lengths == sorted(lengths, reverse=True)
    # Not one more row would have fitted.
    assert all((rows + 1) * length > budget for rows, length in shapes[:-1])
    if budget == 100_000:
        assert len(shapes) == 1


@pytest.mark.parametrize("reduction", ["sum", "mean", "min"])
def test_reductions_reach_the_scores(model: Any, tokenizer: Any, reduction: Any) -> None:
    with torch.no_grad():
        expected = one_pass_per_option(model, encode_questions(QUESTIONS, tokenizer), reduction).numpy()
    np.testing.assert_allclose(score(model, tokenizer, QUESTIONS, reduction=reduction).logits, expected, atol=1e-5)


@pytest.mark.parametrize(("template", "space"), [("plain", "Ġ"), ("chat", "")])
def test_letters_are_next_token_log_probabilities(model: Any, tokenizer: Any, template: Any, space: str) -> None:
    scores = score(model, tokenizer, QUESTIONS, answers="letters", template=template)
    for row, question in zip(scores.logits, QUESTIONS, strict=True):
        text = render(question, tokenizer, answers="letters", template=template).text
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        letters = [tokenizer.convert_tokens_to_ids(space + letter) for letter in "ABCDE"[: len(question.options)]]
        np.testing.assert_allclose(row[: len(letters)], logs[letters].numpy(), atol=1e-5)


def test_templates_differ_and_auto_is_chat_where_there_is_one(model: Any, tokenizer: Any) -> None:
    plain, chat, auto = (score(model, tokenizer, QUESTIONS, template=t).logits for t in ("plain", "chat", "auto"))
    assert np.array_equal(auto, chat)
    assert not np.allclose(plain, chat)
    without = score(model, tiny_tokenizer(chat=False), QUESTIONS).logits
    assert np.array_equal(without, plain)


def test_what_a_question_carries_is_kept(model: Any, tokenizer: Any) -> None:
    questions = [replace(q, answer=None) if i == 3 else q for i, q in enumerate(QUESTIONS)]
    scores = score(model, tokenizer, questions)
    # The answer to question i lies at i mod (2 + i mod 4).
    assert scores.labels.tolist() == [0, 1, 2, -1, 0, 2, 2, 2, 0, 0, 2, 1, 0, 1]
    assert scores.groups == ("south", "north") * 7
    assert (scores.logits == -np.inf).sum(axis=1).tolist() == [5 - len(q.options) for q in questions]
    assert scores.logits.dtype == np.float32


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_left_as_it_was(tokenizer: Any, slow: Any, training: bool) -> None:
    model = tiny_model(attention_dropout=0.5).train(training)
    np.testing.assert_allclose(score(model, tokenizer, QUESTIONS).logits, slow, atol=1e-5)  # so: without dropout
    assert model.training is training
    assert model.model.layers[0].training is training


@pytest.mark.parametrize("training", [True, False])
def test_also_after_an_exception(model: Any, training: bool) -> None:
    model.train(training)
    outside = EncodedQuestion(prompt=(1, 10**6), options=((1,), (2,)))  # no such token
    try:
        with pytest.raises(IndexError):
            score_encoded(model, [outside], 0)
        assert model.training is training
    finally:
        model.eval()


def test_no_gradients_are_kept(model: Any, tokenizer: Any) -> None:
    score(model, tokenizer, QUESTIONS[:2])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_tokenizer_without_padding_token(model: Any, slow: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    np.testing.assert_allclose(score(model, tokenizer, QUESTIONS).logits, slow, atol=1e-5)


def test_a_question_may_fill_the_context_but_not_more(tokenizer: Any) -> None:
    encoded = encode_questions(QUESTIONS, tokenizer)
    # The last token of an option is never read: prompt and longest option, less one.
    reach = [len(e.prompt) + max(map(len, e.options)) - 1 for e in encoded]
    assert reach == [int(pack([e], 0).position_ids.max()) + 1 for e in encoded]
    longest = max(range(14), key=lambda i: reach[i])
    exact = tiny_model(max_position_embeddings=reach[longest])
    assert context_length(exact) == reach[longest]
    score(exact, tokenizer, QUESTIONS)
    short = tiny_model(max_position_embeddings=reach[longest] - 1)
    message = f"^question q{longest}: has {reach[longest]} tokens, the model's context holds {reach[longest] - 1}$"
    with pytest.raises(InputError, match=message):
        score(short, tokenizer, QUESTIONS)
    assert encode_questions(QUESTIONS, tokenizer, context=None) == encoded


def test_a_model_that_names_no_context(model: Any) -> None:
    class Silent:
        config = type("Config", (), {"get_text_config": lambda self: self})()

    assert context_length(Silent()) is None
    assert context_length(model) == 256


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reduction": "max"}, "reduction must be sum, mean or min, got 'max'"),
        ({"answers": "words"}, "answers must be continuations or letters, got 'words'"),
        ({"template": "jinja"}, "template must be auto, chat or plain, got 'jinja'"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
        ({"questions": []}, "there are no questions to score"),
    ],
)
def test_wrong_arguments(model: Any, tokenizer: Any, wrong: dict[str, Any], message: str) -> None:
    arguments = {"questions": QUESTIONS, **wrong}
    with pytest.raises(InputError, match=f"^{message}$"):
        score(model, tokenizer, **arguments)


def test_chat_without_a_template_and_open_questions_raise(model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="template 'chat' needs a tokenizer with a chat template"):
        score(model, tiny_tokenizer(chat=False), QUESTIONS, template="chat")
    open_ended = Question(id="open", text="Why?", options=(), answer=None, accepted=("because",))
    with pytest.raises(InputError, match="question open: is open-ended"):
        score(model, tokenizer, [*QUESTIONS, open_ended])


def test_repeated_ids_raise(model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="ids must be unique, got 'q0'"):
        score(model, tokenizer, [QUESTIONS[0], QUESTIONS[0]])


@pytest.mark.parametrize(("progress", "terminal"), [(True, True), (True, False), (False, True)])
def test_progress_counts_questions_on_a_terminal(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, progress: bool, terminal: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    score(model, tokenizer, QUESTIONS, batch_tokens=50, progress=progress)
    assert ("14/14" in stream.getvalue()) == (progress and terminal)
    assert progress or not stream.getvalue()
