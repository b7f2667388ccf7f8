"""Tokens of prompt and options: tokenised together, cut where the prompt ends, special tokens once."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import COLON_TEMPLATE, character_tokenizer, tiny_questions, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from caltune.errors import InputError
from caltune.prompts import Prompt, render
from caltune.scoring.continuations import encode, encode_continuations
from caltune.scoring.letters import encode_letters
from caltune.types import Question

FRANCE = Question(id="fr", text="Capital of France?", options=("Lyon", "Paris"), answer=1)


def pieces(tokenizer: Any, ids: tuple[int, ...]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


def adding(tokenizer: PreTrainedTokenizerFast, single: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with a post-processor that adds special tokens around each text."""
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, tokenizer.eos_token)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_prompt_and_option_together_spell_the_whole_text(template: Any) -> None:
    tokenizer = tiny_tokenizer()
    questions = tiny_questions()
    for question, encoded in zip(questions, encode_continuations(questions, tokenizer, template), strict=True):
        prompt = render(question, tokenizer, template=template)
        assert tokenizer.decode(encoded.prompt) == prompt.text
        for text, option in zip(prompt.continuations, encoded.options, strict=True):
            assert tokenizer.decode(option) == text
            whole = tokenizer(prompt.text + text, add_special_tokens=False).input_ids
            assert [*encoded.prompt, *option] == whole


def test_plain_options_by_hand() -> None:
    tokenizer = character_tokenizer((" ", "P"))
    (encoded,) = encode_continuations([FRANCE], tokenizer, "plain")
    assert pieces(tokenizer, encoded.prompt)[-3:] == ["e", "r", ":"]
    assert [pieces(tokenizer, option) for option in encoded.options] == [
        [" ", "L", "y", "o", "n"],
        [" P", "a", "r", "i", "s"],
    ]


def test_a_token_merged_across_the_end_of_the_prompt_belongs_to_the_option() -> None:
    tokenizer = character_tokenizer((":", " "))
    (encoded,) = encode_continuations([FRANCE], tokenizer, "plain")
    assert pieces(tokenizer, encoded.prompt)[-3:] == ["w", "e", "r"]
    assert [pieces(tokenizer, option) for option in encoded.options] == [
        [": ", "L", "y", "o", "n"],
        [": ", "P", "a", "r", "i", "s"],
    ]


def test_a_merge_with_one_option_moves_the_cut_of_all() -> None:
    tokenizer = character_tokenizer((" ", "P"), (":", " P"))
    (encoded,) = encode_continuations([FRANCE], tokenizer, "plain")
    assert pieces(tokenizer, encoded.prompt)[-3:] == ["w", "e", "r"]
    assert [pieces(tokenizer, option) for option in encoded.options] == [
        [":", " ", "L", "y", "o", "n"],
        [": P", "a", "r", "i", "s"],
    ]


def test_an_option_without_tokens_raises() -> None:
    tokenizer = character_tokenizer(template=COLON_TEMPLATE)
    unknown = Question(id="de", text="Which letter?", options=("Paris", "ß"), answer=1)
    with pytest.raises(InputError, match="question de: the option 'ß' adds no token to the prompt"):
        encode_continuations([FRANCE, unknown], tokenizer)


def test_an_option_without_tokens_raises_also_where_another_merges() -> None:
    # "Paris" takes the colon away from the prompt, so that "ß" is left with a token of the prompt, not its own.
    tokenizer = character_tokenizer((":", "P"), template=COLON_TEMPLATE)
    unknown = Question(id="de", text="Which letter?", options=("Paris", "ß"), answer=1)
    with pytest.raises(InputError, match="question de: the option 'ß' adds no token to the prompt"):
        encode_continuations([unknown], tokenizer)


def test_a_prompt_merged_away_raises() -> None:
    tokenizer = character_tokenizer((":", "P"))
    with pytest.raises(InputError, match="question fr: its prompt has no token of its own: ':'"):
        encode([FRANCE], [Prompt(":", ("Lyon", "Paris"))], tokenizer, special_tokens=False)


@pytest.mark.parametrize("encoder", [encode_continuations, encode_letters])
def test_an_open_question_raises(encoder: Any) -> None:
    open_ended = Question(id="open", text="Capital of France?", options=(), answer=None, accepted=("Paris",))
    with pytest.raises(InputError, match="question open: is open-ended"):
        encoder([FRANCE, open_ended], tiny_tokenizer(), "plain")


@pytest.mark.parametrize("encoder", [encode_continuations, encode_letters])
def test_no_questions_give_nothing(encoder: Any) -> None:
    assert encoder([], tiny_tokenizer()) == []


@pytest.mark.parametrize("encoder", [encode_continuations, encode_letters])
def test_a_plain_prompt_begins_with_the_tokenizers_own_token(encoder: Any) -> None:
    plain, tokenizer = tiny_tokenizer(), adding(tiny_tokenizer(), "<|start|> $A")
    for bare, begun in zip(
        encoder(tiny_questions(), plain, "plain"), encoder(tiny_questions(), tokenizer, "plain"), strict=True
    ):
        assert begun.prompt == (tokenizer.bos_token_id, *bare.prompt)
        assert begun.options == bare.options


@pytest.mark.parametrize("encoder", [encode_continuations, encode_letters])
def test_a_chat_prompt_gets_no_second_one(encoder: Any) -> None:
    tokenizer = adding(tiny_tokenizer(), "<|start|> $A")
    for encoded in encoder(tiny_questions(), tokenizer, "chat"):
        ids = list(encoded.prompt)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 2  # the user's turn and the assistant's, both from the template
    assert encoder(tiny_questions(), tokenizer, "chat") == encoder(tiny_questions(), tiny_tokenizer(), "chat")


@pytest.mark.parametrize("encoder", [encode_continuations, encode_letters])
def test_an_end_token_that_the_tokenizer_adds_is_not_part_of_the_option(encoder: Any) -> None:
    bare = encoder(tiny_questions(), adding(tiny_tokenizer(), "<|start|> $A"), "plain")
    assert encoder(tiny_questions(), adding(tiny_tokenizer(), "<|start|> $A <|end|>"), "plain") == bare
