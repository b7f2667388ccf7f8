"""A letter is one token behind its prompt, or it raises."""

from __future__ import annotations

import re

import pytest
from tiny import COLON_TEMPLATE, character_tokenizer, tiny_questions, tiny_tokenizer

from caltune.errors import InputError
from caltune.prompts import LETTERS
from caltune.scoring.letters import encode_letters
from caltune.types import Question

FRANCE = Question(id="fr", text="Capital of France?", options=("Lyon", "Paris"), answer=1)


def test_letters_differ_with_and_without_the_space() -> None:
    tokenizer = tiny_tokenizer()
    (plain,), (chat,) = (encode_letters([FRANCE], tokenizer, template) for template in ("plain", "chat"))
    assert plain.options == tuple((tokenizer.convert_tokens_to_ids("Ġ" + letter),) for letter in "AB")
    assert chat.options == tuple((tokenizer.convert_tokens_to_ids(letter),) for letter in "AB")
    assert not set(plain.options) & set(chat.options)


def test_the_prompt_shows_the_options_and_ends_before_the_letter() -> None:
    tokenizer = tiny_tokenizer()
    (plain,) = encode_letters([FRANCE], tokenizer, "plain")
    assert tokenizer.decode(plain.prompt) == "Question: Capital of France?\nA. Lyon\nB. Paris\nAnswer:"


def test_a_letter_of_two_tokens_raises() -> None:
    tokenizer = character_tokenizer()
    space, letter = tokenizer.convert_tokens_to_ids([" ", "A"])
    message = f"question fr: the letter A must be one token behind the prompt, this tokenizer makes 2 of it ([{space}, "
    with pytest.raises(InputError, match=re.escape(f"{message}{letter}])")):
        encode_letters([FRANCE], tokenizer, "plain")


def test_the_letter_named_is_the_one_that_fails() -> None:
    tokenizer = character_tokenizer((" ", "A"))
    with pytest.raises(InputError, match=r"question fr: the letter B must be one token .* makes 2 of it"):
        encode_letters([FRANCE], tokenizer, "plain")


def test_the_same_tokenizer_works_where_no_space_comes_first() -> None:
    tokenizer = character_tokenizer(template=COLON_TEMPLATE)
    (encoded,) = encode_letters([FRANCE], tokenizer, "chat")
    assert encoded.options == tuple((tokenizer.convert_tokens_to_ids(letter),) for letter in "AB")


def test_twenty_six_options() -> None:
    question = Question(id="many", text="Which?", options=tuple(f"number {i}" for i in range(26)), answer=25)
    tokenizer = tiny_tokenizer()
    for template, space in (("plain", "Ġ"), ("chat", "")):
        (encoded,) = encode_letters([question], tokenizer, template)
        assert encoded.options == tuple((tokenizer.convert_tokens_to_ids(space + letter),) for letter in LETTERS)


def test_as_many_letters_as_options() -> None:
    questions = tiny_questions()
    for question, encoded in zip(questions, encode_letters(questions, tiny_tokenizer()), strict=True):
        assert len(encoded.options) == len(question.options)
