"""What `pipeline("decision")` must read to ask as caltune does, checked token by token against what caltune asks."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from caltune.errors import InputError
from caltune.formats.decision import decision_config, decision_request, decision_template
from caltune.prompts import LETTERS, Template, render, uses_chat
from caltune.scoring.letters import encode_letters
from caltune.types import MAX_OPTIONS, Question

# Any strings would do; these have what templates and tokenizers trip over.
_PROBES = (
    Question("two", "What is the capital of France?", ("Lyon", "Paris"), 1),
    Question(
        "odd", 'Was "ça" {{ said }} — twice?\n\nBelow: <b>5 > 3</b>\t\\n', ("no; 不", "it's: «yes»", "😀 & 'A'"), 1
    ),
    Question("all", "Which?", tuple(f"option {number}" for number in range(MAX_OPTIONS)), 0),
)


def describe_prompts(tokenizer: Any, template: Template = "auto", example: object = None) -> tuple[list[str], str]:
    """The labels and the template that make the pipeline read the same tokens as `score(answers="letters")` does.

    `example` is a prompt that scores were made with; it must begin and end as this tokenizer's prompts do.

    Raises `InputError` when a letter is not one token, or no label or template gives the same tokens.
    """
    chat = uses_chat(tokenizer, template)
    if isinstance(example, str):
        _require_same_kind(tokenizer, template, example)
    encoded = encode_letters(_PROBES, tokenizer, template)
    ids = [option[0] for option in encoded[-1].options]
    labels = next(
        (found for found in (list(LETTERS), [f" {a}" for a in LETTERS]) if _ids(tokenizer, found) == ids), None
    )
    if labels is None:
        raise InputError(
            "the decision pipeline reads labels as they are tokenised alone, and this tokenizer makes other tokens of "
            f"the letters there than behind a prompt: A is {ids[0]} behind it, {_ids(tokenizer, ['A', ' A'])} alone"
        )
    begins = not chat and encoded[0].prompt[0] == tokenizer.bos_token_id
    text = decision_template(tokenizer.get_chat_template() if chat else None, begins=begins)
    for question, item in zip(_PROBES, encoded, strict=True):
        asked = _pipeline_ids(tokenizer, labels, text, question)
        if asked != list(item.prompt):
            raise InputError(
                f"this tokenizer's prompts cannot be written for the decision pipeline: question {question.id!r} has "
                f"the tokens {_around(list(item.prompt), asked)} here and {_around(asked, list(item.prompt))} there"
            )
    return labels, text


def _require_same_kind(tokenizer: Any, template: Template, example: str) -> None:
    """Raise `InputError` when a prompt begins or ends otherwise, as one with exemplars or of another model does."""
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    shown = render(Question("mark", mark, ("1", "2"), 0), tokenizer, answers="letters", template=template).text
    before, _, rest = shown.partition(mark)
    after = rest.partition("B. 2")[2]
    if not (example.startswith(before) and example.endswith(after) and example.count(after) == 1):
        raise InputError(
            f"the scores were made with another prompt than this model's: it begins {before!r} and ends {after!r}, "
            f"got {example[: len(before)]!r} and {example[-len(after) :]!r}"
        )


def _ids(tokenizer: Any, labels: list[str]) -> list[Any]:
    """The token of each label by itself; a list where it is not one."""
    rows = tokenizer(labels, add_special_tokens=False).input_ids
    return [row[0] if len(row) == 1 else row for row in rows]


def _pipeline_ids(tokenizer: Any, labels: list[str], text: str, question: Question) -> list[int]:
    """The prompt's tokens as the pipeline makes them."""
    from transformers.decision import DecisionConfig, prepare_inputs

    config = DecisionConfig(**decision_config(labels, 1.0), chat_template=text)
    # A copy: the pipeline adds its marks to the tokenizer.
    ((inputs, _),) = prepare_inputs(config, decision_request(question), deepcopy(tokenizer))
    found: list[int] = inputs["input_ids"][0].tolist()
    return found


def _around(ids: list[int], other: list[int]) -> list[int]:
    """A few tokens from the first that differs."""
    first = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    return ids[first : first + 5]
