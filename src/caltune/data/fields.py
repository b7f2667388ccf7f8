"""One row of a data set -> `Question`: field names by convention or by mapping, and what an answer means.

Names found by convention, the first that a row has (upper or lower case):

- `id`: id, qid, doc_id, _id, idx, question_id; else a hash of text and options
- `question`: question (also ARC's raw {stem, choices}), query, sentence, prompt, stem, question_stem, text
- `options`: choices, options (a list, {text, label} or a list of {text, label}); or one column an option: opa, opb, …;
  A, B, …; option_a, …; option1, option2, …; option_1, …; choice1, …
- `answer`: answer, answerKey, label, cop
- `accepted`: answers, accepted; or `answer` when it is a list and there are no options
- `group`: subject, group, category, topic, relation, subject_name
- `context`: context, passage; put before the question with a blank line between

A mapping names the column for any of these (`options` takes several, with commas); an empty name means "do not use".

What an answer means. `answer_is` in the mapping says it: "index" (from 0), "number" (from 1), "letter" or "text".
Without it:
1. Where options have labels (ARC's list, or columns named by letter) an answer equal to a label is that option. Labels
   that are digits are never mixed with indices.
2. Otherwise it may be an exact text, an index from 0, or (without labels) a letter; for columns numbered from 1 also
   that number. A JSON or Parquet integer is never the text of an option that is a string.
3. When these point to different options, as the answer "1" of the options "1" and "2" does, the row is bad: guessing
   would make some labels wrong in silence.
4. True and false choose between yes and no. A row without options whose answer is true, false, yes or no gets the
   options ("no", "yes"), as in BoolQ.

White space around texts and options is dropped: a space at the end of a prompt changes the tokens after it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from string import ascii_lowercase
from typing import Any

from caltune.errors import InputError
from caltune.types import Question

CONVENTIONS: dict[str, tuple[str, ...]] = {
    "id": ("id", "qid", "doc_id", "_id", "idx", "question_id"),
    "question": ("question", "query", "sentence", "prompt", "stem", "question_stem", "text"),
    "options": ("choices", "options"),
    "answer": ("answer", "answerkey", "label", "cop"),
    "accepted": ("answers", "accepted"),
    "group": ("subject", "group", "category", "topic", "relation", "subject_name"),
    "context": ("context", "passage"),
}
ANSWER_KINDS = ("index", "number", "letter", "text")
LETTERED_COLUMNS = ("op{}", "{}", "option_{}")
NUMBERED_COLUMNS = ("option{}", "option_{}", "choice{}")
TRUTH = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True)
class _Columns:
    names: dict[str, str]
    options: tuple[str, ...] = ()  # one column an option
    labels: tuple[str, ...] = ()
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class _Options:
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    numbered: bool = False
    are_numbers: bool = False


def question_reader(fields: Mapping[str, str] | None = None) -> Callable[[Mapping[str, Any]], Question]:
    """Build the function that turns a row into a `Question` and raises `InputError` for a row that breaks a rule.

    >>> read = question_reader({"options": "right,wrong"})
    >>> read({"id": 7, "question": "2 + 2?", "right": "4", "wrong": "5", "answer": "A"})
    Question(id='7', text='2 + 2?', options=('4', '5'), answer=0, accepted=(), group='')
    """
    mapping = dict(fields or {})
    unknown = sorted(set(mapping) - {*CONVENTIONS, "answer_is"})
    if unknown:
        raise InputError(f"fields: names must be among {', '.join((*CONVENTIONS, 'answer_is'))}; got {unknown[0]!r}")
    kind = mapping.pop("answer_is", "")
    if kind and kind not in ANSWER_KINDS:
        raise InputError(f"fields: answer_is must be one of {', '.join(ANSWER_KINDS)}; got {kind!r}")
    known: dict[tuple[str, ...], _Columns] = {}  # rows of one file nearly always have the same columns

    def read(row: Mapping[str, Any]) -> Question:
        names = tuple(row)
        columns = known.get(names)
        if columns is None:
            columns = known[names] = _find_columns(names, mapping)
        return _read_question(row, columns, kind)

    return read


def _find_columns(names: tuple[str, ...], mapping: Mapping[str, str]) -> _Columns:
    found = {}
    by_lower = {name.lower(): name for name in reversed(names)}
    for field, candidates in CONVENTIONS.items():
        if field in mapping:
            if mapping[field]:
                found[field] = mapping[field]
        elif hit := next((by_lower[name] for name in candidates if name in by_lower), None):
            found[field] = hit
    options: tuple[str, ...] = ()
    if "," in found.get("options", "") and found["options"] not in names:
        options = tuple(name.strip() for name in found.pop("options").split(","))
    for name in (*found.values(), *options):
        if name not in names:
            raise InputError(f"there must be a column {name!r} (it was mapped), got {list(names)!r}")
    if "question" not in found:
        raise InputError(f"there must be a column {' or '.join(CONVENTIONS['question'])}, got {list(names)!r}")
    if options or "options" in found or mapping.get("options") == "":
        return _Columns(found, options)
    columns, lettered = option_columns(names)
    return _Columns(found, columns, tuple(ascii_lowercase[: len(columns)]) if lettered else (), not lettered)


def option_columns(names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """The columns that hold an option each, none without two of a family, and whether letters name them.

    >>> option_columns(["text", "B", "A", "answer"])
    (('A', 'B'), True)
    """
    by_lower = {name.lower(): name for name in reversed(tuple(names))}
    for patterns, marks in ((LETTERED_COLUMNS, ascii_lowercase), (NUMBERED_COLUMNS, tuple(map(str, range(1, 100))))):
        for pattern in patterns:
            family = tuple(takewhile(by_lower.__contains__, map(pattern.format, marks)))
            if len(family) > 1:
                return tuple(by_lower[name] for name in family), patterns is LETTERED_COLUMNS
    return (), True


def _read_question(row: Mapping[str, Any], columns: _Columns, kind: str) -> Question:
    names = columns.names
    stem = row[names["question"]]
    nested: Any = None
    if isinstance(stem, dict):  # ARC's raw form
        nested, stem = stem.get("choices"), stem.get("stem")
    text = _text(stem, "question")
    if context := _optional_text(row, names, "context"):
        text = f"{context}\n\n{text}"
    if columns.options:
        options = _options_of_columns(row, columns)
    else:
        options = _options_of_value(row[names["options"]] if "options" in names else nested)
    answer = row[names["answer"]] if "answer" in names else None
    if isinstance(answer, str) and not answer.strip():
        answer = None
    accepted = _accepted(row[names["accepted"]]) if "accepted" in names else ()
    if not options.texts and not accepted:
        if isinstance(answer, list):
            accepted = _accepted(answer)
        elif isinstance(answer, bool) or (isinstance(answer, str) and answer.strip().casefold() in TRUTH):
            options = _Options(("no", "yes"))
            answer = TRUTH[str(answer).strip().casefold()]
        elif "options" not in names and not columns.options:
            raise InputError(
                "there must be options (a column choices or options) or, for an open question, accepted answers "
                f"(a column answers, or accepted mapped to one), got {list(row)!r}"
            )
    position = None
    if answer is not None and options.texts:
        position = _read_answer(answer, options, kind)
    identity, group = _optional_text(row, names, "id"), _optional_text(row, names, "group")
    try:
        content = "\x00".join((text, *options.texts)).encode()
        "".join((identity, group, *accepted)).encode()
    except UnicodeEncodeError:
        raise InputError(f"text must be valid Unicode (UTF-8), got {_short(text)}") from None
    return Question(
        id=identity or hashlib.sha256(content).hexdigest()[:16],
        text=text,
        options=options.texts,
        answer=position,
        accepted=accepted,
        group=group,
    )


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"the {what} must be text, got {_short(value)}")


def _optional_text(row: Mapping[str, Any], names: Mapping[str, str], field: str) -> str:
    if field not in names or row[names[field]] is None:
        return ""
    return _text(row[names[field]], field)


def _options_of_columns(row: Mapping[str, Any], columns: _Columns) -> _Options:
    values = [row[name] for name in columns.options]
    # Rows of a table differ in their number of options: the last cells of the shorter ones are empty.
    while values and (values[-1] is None or (isinstance(values[-1], str) and not values[-1].strip())):
        values.pop()
    texts = tuple("" if value is None else _text(value, "option") for value in values)
    are_numbers = any(not isinstance(value, str) for value in values)
    return _Options(texts, columns.labels[: len(texts)], columns.numbered, are_numbers)


def _options_of_value(value: Any) -> _Options:
    if value is None or value == "":
        return _Options()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"the options must be a JSON list, got {_short(value)}") from None
    labels: Any = None
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value, labels = value["text"], value.get("label")
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "text" in item for item in value):
        labels = [item.get("label") for item in value]
        labels = None if all(label is None for label in labels) else labels
        value = [item["text"] for item in value]
    if not isinstance(value, list):
        raise InputError(
            f"the options must be a list, {{text, label}} or a list of {{text, label}}, got {_short(value)}"
        )
    are_texts = set(map(type, value)) == {str}
    texts = tuple([item.strip() if are_texts else _text(item, "option") for item in value])
    names: tuple[str, ...] = ()
    if labels is not None:
        names = tuple(_text(label, "option label").casefold() for label in labels) if isinstance(labels, list) else ()
        if len(names) != len(texts) or len(set(names)) != len(names):
            raise InputError(f"there must be one label an option, each different, got {_short(labels)}")
    return _Options(texts, names, are_numbers=not are_texts)


def _accepted(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"the accepted answers must be a JSON list or one text, got {_short(value)}") from None
    if isinstance(value, dict):  # SQuAD's {text, answer_start}
        value = value.get("text")
    items = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(text for item in items if (text := _text(item, "accepted answer"))))


def _read_answer(value: Any, options: _Options, kind: str) -> int:
    texts, labels = options.texts, options.labels
    if (
        type(value) is int
        and not (kind or labels or options.numbered or options.are_numbers)
        and 0 <= value < len(texts)
    ):
        return value  # the plain case, on its own because it is most of the rows ever read
    if isinstance(value, bool):
        meant = [TRUTH.get(text.casefold()) for text in texts]
        if sorted(map(str, meant)) != ["False", "True"]:
            raise InputError(f"a true or false answer needs the options yes and no, got {_short(list(texts))}")
        return meant.index(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise InputError(f"the answer must be one index, letter or text, got {_short(value)}")
    text = str(value).strip()
    number = int(text.partition(".")[0]) if re.fullmatch(r"[0-9]{1,4}(\.0+)?", text) else -1
    if labels and kind in ("", "letter") and text.casefold() in labels:
        return labels.index(text.casefold())
    readings = {}
    if text in texts and (isinstance(value, str) or options.are_numbers or kind == "text"):
        readings["text"] = texts.index(text)
    if 0 <= number < len(texts) and not (kind == "" and any(label.isdigit() for label in labels)):
        readings["index"] = number
    if 1 <= number <= len(texts) and (options.numbered or kind == "number"):
        readings["number"] = number - 1
    if not labels and len(text) == 1 and text.lower() in ascii_lowercase[: len(texts)]:
        readings["letter"] = ascii_lowercase.index(text.lower())
    if kind:
        readings = {name: position for name, position in readings.items() if name == kind}
    if len(set(readings.values())) > 1:
        meanings = ", ".join(f"as {name} option {position + 1}" for name, position in readings.items())
        raise InputError(f"the answer must mean one option (say which with answer_is), got {value!r}: {meanings}")
    if not readings:
        if kind:
            wanted = f"given as {kind}, there are {len(texts)}"
        elif labels:
            wanted = f"a label among {', '.join(labels)}, or an option's text"
        else:
            wanted = f"an index from 0 to {len(texts) - 1}, a letter or an option's text"
        raise InputError(f"the answer must be one of the options ({wanted}), got {_short(value)}")
    return next(iter(readings.values()))


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 120 else shown[:117] + "..."
