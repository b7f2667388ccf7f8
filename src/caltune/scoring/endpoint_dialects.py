"""What is asked of an OpenAI-compatible server for one question, and how its log-probabilities are read.

Letters: one token is generated, and the server lists the most probable first tokens. OpenAI's and llama.cpp's form is
`logprobs.content[0].top_logprobs`, vLLM's for completions `logprobs.top_logprobs[0]`. Texts: the server gives
the log-probabilities of the prompt's own tokens (`echo` for completions, vLLM's `prompt_logprobs` for chats); a
question is sent once without an answer, which tells where the prompt ends, and once with each option behind it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from caltune.errors import InputError
from caltune.prompts import LETTERS, Prompt, render
from caltune.scoring.endpoint_client import Client
from caltune.types import Question

# With it the distribution is the model's own, whether a server lists it before or after sampling settings.
AS_IT_IS = {"max_tokens": 1, "temperature": 1, "top_p": 1}
Tokens = list[tuple[Hashable, float | None]]


@dataclass(frozen=True, slots=True)
class Asking:
    """How a server is asked: by which name of the model, answers, template, reduction, and the `top` tokens listed.

    Every question stands behind the answered `exemplars`.
    """

    model: str
    answers: str
    template: str
    reduction: str = "sum"
    top: int = 20
    exemplars: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """One logit an option. Those of `bounded` were not listed, and hold the highest value they can have had."""

    logits: tuple[float, ...]
    bounded: tuple[int, ...] = ()


class _Messages:
    """Stands where a tokenizer stands and writes the chat as JSON: the server has the template."""

    chat_template = "the server's"

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        return json.dumps(turns)


def prompt_of(question: Question, asking: Asking) -> Prompt:
    """The prompt as it is sent: the text, or for a chat the messages as JSON."""
    tokenizer = _Messages() if asking.template == "chat" else None
    how = {"answers": asking.answers, "template": asking.template, "exemplars": asking.exemplars}
    return render(question, tokenizer, **how)  # type: ignore[arg-type]


def ask(client: Client, question: Question, asking: Asking) -> Found:
    """What the model believes about one question. Raises `InputError` where the server does not tell."""
    prompt = prompt_of(question, asking)
    try:
        if asking.answers == "letters":
            return _letters(client, prompt, asking)
        tokens = _chat_tokens if asking.template == "chat" else _echoed_tokens
        return Found(tuple(_reduce(tokens(client, prompt, asking), asking.reduction)))
    except InputError as error:
        raise InputError(f"question {question.id}: {error}") from error


def _letters(client: Client, prompt: Prompt, asking: Asking) -> Found:
    if asking.template == "chat":
        body = {"messages": json.loads(prompt.text), "logprobs": True, "top_logprobs": asking.top}
        (choice,) = _choices(client.post("chat/completions", {"model": asking.model, **body, **AS_IT_IS}), 1)
    else:
        body = {"prompt": prompt.text, "logprobs": asking.top}
        (choice,) = _choices(client.post("completions", {"model": asking.model, **body, **AS_IT_IS}), 1)
    listed, drawn = _first_tokens(choice)
    # The token as it follows this prompt; else as some servers write it, without the space or with its mark.
    letters = LETTERS[: len(prompt.continuations)]
    forms = [prompt.continuations, letters, tuple(f"▁{letter}" for letter in letters), tuple(f" {x}" for x in letters)]
    form = next((form for form in forms if any(token in listed for token in form)), None)
    if form is None:
        raise InputError(
            f"the first {len(listed)} tokens hold no letter of an option, only {_short(list(listed))}; "
            "ask for more with --top, or for the options' text (continuations)"
        )
    bound = _bound(listed, drawn, asking.top)
    bounded = tuple(k for k, token in enumerate(form) if token not in listed)
    return Found(tuple(listed.get(token, bound) for token in form), bounded)


def _bound(listed: dict[str, float], drawn: object, top: int) -> float:
    """The most that a token can have which is not listed: the last of the `top`, or what all listed leave of 1.

    The token that was drawn may be listed below the top, of which a server may list fewer than it was asked for.
    """
    last = sorted([v for token, v in listed.items() if token != drawn] or listed.values(), reverse=True)[:top][-1]
    left = 1 - sum(map(math.exp, listed.values()))
    if left < -1e-3:  # more than digits cut off can make: these are not all of one distribution
        return last
    return min(last, math.log(max(left, 1e-6)))


def _first_tokens(choice: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """The likeliest first tokens with their log-probabilities, of equal texts the likelier one; and the one drawn."""
    given = choice.get("logprobs")
    pairs: list[tuple[Any, Any]] = []
    drawn = None
    if isinstance(given, dict):
        content, top = given.get("content"), given.get("top_logprobs")
        if isinstance(content, list) and content and isinstance(content[0], dict):
            entries = [*_list(content[0].get("top_logprobs")), content[0]]
            pairs = [(one.get("token"), one.get("logprob")) for one in entries if isinstance(one, dict)]
            drawn = content[0].get("token")
        elif isinstance(top, list) and top and isinstance(top[0], dict):
            pairs = list(top[0].items())
            drawn = next(iter(_list(given.get("tokens"))), None)
    if not pairs:
        raise InputError(
            "the server gives no log-probabilities, and without them there is nothing to score "
            "(vLLM and llama.cpp give them, `transformers serve` gives none)"
        )
    listed: dict[str, float] = {}
    for token, value in pairs:
        if not isinstance(token, str):
            raise InputError(f"a listed token must be a text, got {_short(token)}")
        listed[token] = max(_log_probability(value), listed.get(token, -math.inf))
    return listed, drawn


def _echoed_tokens(client: Client, prompt: Prompt, asking: Asking) -> Iterator[Tokens]:
    """The tokens of the prompt alone and of the prompt with each option, each with its log-probability."""
    texts = [prompt.text, *(prompt.text + option for option in prompt.continuations)]
    body = {"model": asking.model, "prompt": texts, "echo": True, "logprobs": 1, **AS_IT_IS}
    answer = client.post("completions", body)
    rows = [choice.get("logprobs") for choice in _choices(answer, len(texts))]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"the server gives no log-probabilities of the prompt, {_WITHOUT}")
    found = [(_list(row.get("tokens")), _list(row.get("token_logprobs"))) for row in rows]
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    expected = usage.get("prompt_tokens")
    # The last token of each is the generated one.
    count = sum(len(tokens) - 1 for tokens, _ in found)
    if count <= 0 or (isinstance(expected, int) and count != expected):
        raise InputError(
            f"the server gives log-probabilities of {max(count, 0)} tokens of the prompt, which has "
            f"{expected if isinstance(expected, int) else 'more'}: it does not know `echo`, {_WITHOUT}"
        )
    for tokens, values in found:
        if len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"the server gives {len(values)} log-probabilities for {len(tokens)} tokens")
        yield list(zip(tokens, values, strict=True))[:-1]


def _chat_tokens(client: Client, prompt: Prompt, asking: Asking) -> Iterator[Tokens]:
    """The same for a chat, whose template only the server has; each option is the beginning of the assistant's turn."""
    turns = json.loads(prompt.text)
    for option in (None, *prompt.continuations):
        body = {"model": asking.model, "messages": turns, "prompt_logprobs": 0, **AS_IT_IS}
        if option is not None:
            body["messages"] = [*turns, {"role": "assistant", "content": option}]
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        rows = client.post("chat/completions", body).get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) < 2:
            raise InputError(f"the server gives no log-probabilities of the prompt (`prompt_logprobs`), {_WITHOUT}")
        tokens: Tokens = [("the first", None)]
        for row in rows[1:]:
            if not isinstance(row, dict) or len(row) != 1:
                raise InputError(f"prompt_logprobs must hold one entry a token, got {_short(row)}")
            ((token, entry),) = row.items()
            tokens.append((token, entry.get("logprob") if isinstance(entry, dict) else entry))
        yield tokens


_WITHOUT = "as vLLM does; score letters instead (--answers letters)"


def _reduce(rows: Iterator[Tokens], reduction: str) -> Iterator[float]:
    """One logit an option: the sum, mean or min over the tokens behind what all have in common with the prompt alone.

    A token that holds the prompt's end and the option's beginning belongs to the option, as in `encode`.
    """
    alone, *together = rows
    shared = min(_common(alone, whole) for whole in together)
    for whole in together:
        values = [_log_probability(value) for _, value in whole[shared:]]
        if shared == 0 or not values:
            raise InputError("an option must add a token to the prompt, and the prompt must have one of its own")
        yield {"sum": sum(values), "mean": sum(values) / len(values), "min": min(values)}[reduction]


def _common(one: Tokens, other: Tokens) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0][0] == pair[1][0], zip(one, other, strict=False)))


def _choices(answer: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The choices in the order of their prompts."""
    choices = _list(answer.get("choices"))
    if len(choices) != count or not all(isinstance(choice, dict) for choice in choices):
        raise InputError(f"the server must give {count} choices for {count} prompts, got {len(choices)}")
    order: list[Any] = [choice.get("index", i) for i, choice in enumerate(choices)]
    if sorted(map(str, order)) != sorted(map(str, range(count))):
        raise InputError(f"the server's choices must be numbered from 0 to {count - 1}, got {_short(order)}")
    return [choices[order.index(i)] for i in range(count)]


def _log_probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= 1e-3:
        raise InputError(f"a log-probability must be a number up to 0, got {_short(value)}")
    return float(value)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
