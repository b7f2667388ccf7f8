"""Question -> Prompt: the text before the answer, and what would follow it for each option.

Two ways to answer. `continuations`: the options are not shown, and each option's text is what may follow. `letters`:
the options are shown under A, B, C, …, and a letter follows. Two templates: `chat` puts the question into the model's
own chat template, `plain` writes it as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from caltune.errors import InputError
from caltune.types import Question

Answers = Literal["continuations", "letters"]
Template = Literal["auto", "chat", "plain"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text` is all the model sees before the answer; `continuations` holds what follows it, one string an option."""

    text: str
    continuations: tuple[str, ...]


def uses_chat(tokenizer: Any, template: Template = "auto") -> bool:
    """Whether prompts are written with the tokenizer's chat template: `auto` takes it where there is one.

    Raises `InputError` when `chat` is asked for and the tokenizer has no chat template.
    """
    if template not in ("auto", "chat", "plain"):
        raise InputError(f"template must be auto, chat or plain, got {template!r}")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if template == "chat" and not has_template:
        raise InputError("template 'chat' needs a tokenizer with a chat template; this one has none, use 'plain'")
    return has_template and template != "plain"


def render(
    question: Question, tokenizer: Any = None, *, answers: Answers = "continuations", template: Template = "auto"
) -> Prompt:
    r"""Write one question as the model sees it.

    `tokenizer` is asked for its chat template only. Raises `InputError` for an open-ended question: it has no options
    to put a probability on.

    >>> lyon = Question(id="q", text="What is the capital of France?", options=("Lyon", "Paris"), answer=1)
    >>> render(lyon, template="plain")
    Prompt(text='Question: What is the capital of France?\nAnswer:', continuations=(' Lyon', ' Paris'))
    >>> print(render(lyon, answers="letters", template="plain").text)
    Question: What is the capital of France?
    A. Lyon
    B. Paris
    Answer:
    """
    if answers not in ("continuations", "letters"):
        raise InputError(f"answers must be continuations or letters, got {answers!r}")
    if not question.options:
        raise InputError(f"question {question.id}: is open-ended, and only questions with options can be scored")
    chat = uses_chat(tokenizer, template)
    if answers == "letters":
        letters = LETTERS[: len(question.options)]
        shown = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, question.options, strict=True))
        body = f"{question.text}\n{shown}"
        request = "Answer with the letter of the right option."
    else:
        letters = ""
        body = question.text
        request = ""
    if chat:
        content = f"{body}\n{request}" if request else body
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        # The template ends where the assistant's turn begins, so the answer starts without a space.
        space = ""
    else:
        # No space after the colon: tokenizers join a space with the word behind it, so it belongs to the answer.
        text = f"Question: {body}\nAnswer:"
        space = " "
    return Prompt(text=text, continuations=tuple(space + option for option in (letters or question.options)))
