"""The embedded model: packing, letters, saving, and that it knows something. Run with `-m model`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import one_pass_per_option

from caltune.data import load_questions
from caltune.models import load_model
from caltune.scoring import encode_questions, score, shared
from caltune.scoring.engine import score_encoded
from caltune.types import Question

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def facts() -> list[Question]:
    return load_questions("world-facts", "test")


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model("smollm2", device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_packed_equals_one_pass_per_option(loaded: Any, facts: list[Question], template: Any) -> None:
    model, tokenizer = loaded
    questions = facts[:: len(facts) // 12][:12]
    encoded = encode_questions(questions, tokenizer, template=template)
    assert max(len(option) for item in encoded for option in item.options) > 1
    with torch.no_grad():
        expected = one_pass_per_option(model, encoded).numpy()
    np.testing.assert_allclose(score_encoded(model, encoded, tokenizer.pad_token_id), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("answers", "template", "shots"),
    [("continuations", "plain", 2), ("continuations", "chat", 0), ("letters", "plain", 2)],
)
def test_a_shared_beginning_changes_nothing(
    loaded: Any, facts: list[Question], monkeypatch: pytest.MonkeyPatch, answers: Any, template: Any, shots: int
) -> None:
    model, tokenizer = loaded[0], copy.deepcopy(loaded[1])
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert system in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(system, "")  # an empty system prompt
    words = list(dict.fromkeys(option for fact in facts for option in fact.options))
    asked = [replace(facts[i], options=tuple(words[:count]), answer=0) for i, count in ((3, 2), (40, 26), (60, 5))]
    asked.append(replace(facts[80], options=(words[0], f"{words[0]} and {words[1]}", words[0][:-1]), answer=0))
    encoded = encode_questions(asked, tokenizer, answers=answers, template=template, exemplars=facts[:shots])
    monkeypatch.setattr(shared, "PASS_TOKENS", 1)
    assert [members for _, members in shared.group_by_beginning(encoded, 1)] == [[0, 1, 2, 3]]
    with torch.no_grad():
        expected = one_pass_per_option(model, encoded).numpy()
    for batch_tokens in (16, 512):  # a question a batch, and all at once
        found = score_encoded(model, encoded, tokenizer.pad_token_id, batch_tokens=batch_tokens)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    alone = score_encoded(model, encoded[1:2], tokenizer.pad_token_id)
    np.testing.assert_allclose(alone[0], expected[1], atol=1e-4)


def test_letters_are_single_tokens(loaded: Any, facts: list[Question]) -> None:
    tokenizer = loaded[1]
    kinds = []
    for template in ("plain", "chat"):
        encoded = encode_questions(facts[:40], tokenizer, answers="letters", template=template)
        assert all(len(option) == 1 for item in encoded for option in item.options)
        kinds.append([tokenizer.decode(option) for option in encoded[0].options])
    assert kinds[0] == [" " + letter for letter in kinds[1]]
    assert kinds[1] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")[: len(kinds[1])]


def test_its_default_system_message_is_part_of_the_prompt(loaded: Any, facts: list[Question]) -> None:
    tokenizer = loaded[1]
    (item,) = encode_questions(facts[:1], tokenizer, template="chat")
    text = tokenizer.decode(item.prompt)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert f"<|im_start|>user\n{facts[0].text}<|im_end|>\n<|im_start|>assistant\n" in text


def test_it_knows_more_than_chance(loaded: Any, facts: list[Question]) -> None:
    questions = facts[:40]
    accuracy = score(*loaded, questions).decide().correct.mean()
    chance = np.mean([1 / len(question.options) for question in questions])
    # One in a thousand guessers of 40 questions with four options gets above 0.47.
    assert accuracy > chance + 3.1 * np.sqrt(chance * (1 - chance) / 40)


def test_a_saved_folder_gives_the_same_scores(loaded: Any, facts: list[Question], tmp_path: Path) -> None:
    model, tokenizer = loaded
    before = score(model, tokenizer, facts[:4])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = score(*load_model(tmp_path, device="cpu", dtype=torch.float32), facts[:4])
    (tmp_path / "model.safetensors").unlink()  # half a gigabyte
    assert np.array_equal(again.logits, before.logits)
