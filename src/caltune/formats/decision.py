"""`decision.json` and `decision_template.jinja`: what transformers' `pipeline("decision")` reads beside a model.

The pipeline renders one prompt a question, reads the next-token logits of the labels, divides them by the temperature
of the question's type and takes the softmax. That is what caltune measures with `--answers letters`, given the same
prompt. The template writes it from a request: its `state` (a passage, or empty) and `instructions` (the question) with
a blank line between, then the options under A, B, C, …
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caltune.errors import InputError
from caltune.prompts import LETTERS
from caltune.types import Question

CONFIG, TEMPLATE = "decision.json", "decision_template.jinja"
TYPES = ("choice", "score", "noul")  # one of several, a level of a scale, yes or no

# As `caltune.prompts` writes a question; `noul` has the options no and yes, as true and false have in `caltune.data`.
_BODY = """\
{%- macro written(x) -%}{{ "" if x is none else x if x is string else x|tojson }}{%- endmacro -%}
{%- set shown = namespace(lines=[]) -%}
{%- for option in question.options -%}
    {%- set description = written(question.descriptions[loop.index0]) -%}
    {%- if question.type == "score" -%}
        {%- set text = description -%}
    {%- elif question.type == "noul" -%}
        {%- set text = description or ("yes" if option == "true" else "no") -%}
    {%- else -%}
        {%- set text = option ~ ": " ~ description if description else option -%}
    {%- endif -%}
    {%- set shown.lines = shown.lines + ["LETTERS"[loop.index0] ~ ". " ~ text] -%}
{%- endfor -%}
{%- set passages = [written(state), written(question.instructions)]|select|join("\\n\\n") -%}
{%- set body = passages ~ "\\n" ~ shown.lines|join("\\n") -%}
""".replace("LETTERS", LETTERS)
# The pipeline hands the chat template `enable_thinking`, which caltune leaves to the template.
_CHAT = """\
{%- set messages = [{"role": "user", "content": body ~ "\\nAnswer with the letter of the right option."}] -%}
{%- set enable_thinking = not_given -%}
{{ "" }}"""
_PLAIN = '{{- "Question: " ~ body ~ "\\nAnswer:" -}}'


def decision_template(chat_template: str | None, *, begins: bool = False) -> str:
    """The Jinja text that writes a question as caltune does: in the chat template, or plainly where that is None.

    `begins` puts the beginning-of-text token in front, which a chat template brings itself.
    """
    if chat_template is not None:
        return _BODY + _CHAT + chat_template
    return _BODY + ("{{- bos_token -}}\n" if begins else "") + _PLAIN


def decision_config(labels: Sequence[str], temperature: float) -> dict[str, Any]:
    """What `decision.json` holds: the labels and the temperature of each question type.

    >>> decision_config(["A", "B"], 1.5)["temperature"]
    {'choice': 1.5, 'score': 1.5, 'noul': 1.5}
    """
    return {
        "labels": {kind: list(labels) for kind in TYPES},
        "temperature": dict.fromkeys(TYPES, temperature),
        "noul_options": ["false", "true"],
        "sanitize_control_tokens": True,
    }


def decision_request(question: Question) -> dict[str, Any]:
    """The pipeline's request for a question with options: a choice, its options without descriptions.

    >>> asked = decision_request(Question("q", "Capital of France?", ("Lyon", "Paris"), 1))
    >>> asked["questions"]["q"]["criteria"]
    {'Lyon': None, 'Paris': None}
    """
    criteria = dict.fromkeys(question.options)
    asked = {"type": "choice", "instructions": question.text, "criteria": criteria}
    return {"state": "", "questions": {question.id: asked}}


def write_decision(folder: Path, config: dict[str, Any], template: str) -> None:
    """Write both files into a folder, each under a temporary name first, so that neither is ever half written.

    The template comes first: with it alone the pipeline asks as caltune does, only without the temperature.

    Raises `InputError` when the folder cannot be written to.
    """
    texts = {TEMPLATE: template, CONFIG: json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"}
    temporary: dict[str, Path] = {}
    try:
        for name, text in texts.items():
            handle, place = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
            temporary[name] = Path(place)
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            os.chmod(place, 0o644)  # mkstemp gives 0600
        for name, path in temporary.items():
            os.replace(path, folder / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to, {error.strerror or error}") from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
