"""What a training script passes as its data: questions with options, and the ordinary rows of any SFT data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from caltune.data import find_overlap
from caltune.data.fields import CONVENTIONS, option_columns, question_reader
from caltune.errors import InputError
from caltune.types import Question

PLACE = "caltune_place"  # column: where a row stood in the data that was given
# Forms of ordinary rows, as TRL names their columns; a row has the first form whose columns it fills.
FORMS = {
    "tokens": ("input_ids", "labels"),
    "conversation": ("messages", "conversations"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
_OPTIONAL = ("chat_template_kwargs", "tools")  # TRL takes no null for the first
_PICTURES = ("image", "images")
# With none of these columns a data set holds no question; `text` and `prompt` may be either.
_TELLING = {name for field in ("question", "options", "answer") for name in CONVENTIONS[field]} - {"text", "prompt"}


@dataclass(frozen=True, slots=True)
class Examples:
    """`questions` with their `places` in what was given, and the `ordinary` rows: one data set for each form.

    An ordinary data set has the column `PLACE` beside its own.
    """

    questions: tuple[Question, ...] = ()
    places: tuple[int, ...] = ()
    ordinary: tuple[Dataset, ...] = ()


def read_examples(data: Any, name: str, *, text_field: str = "text", formatted: bool = False) -> Examples:
    """Tell questions from ordinary rows, in a `Dataset` or in a list of `Question` and dict.

    A row with `messages`, `conversations`, `completion`, `input_ids`, or with `text_field` and no options is ordinary;
    with `formatted` (the script has a `formatting_func`) so is every row without options. Any other row is a question
    in the columns that `caltune.data` knows. Its id is a hash of its text and options: those of two splits often
    count from 0 in each.

    Raises `InputError` naming `name` and the row, for a question that breaks a rule, a row that is both, a row of
    neither kind, or data that is streamed or of another type.

    >>> found = read_examples([Question("q", "2 + 2?", ("3", "4"), 1), {"text": "Hello."}], "train_dataset")
    >>> found.places, found.ordinary[0][0]
    ((0,), {'text': 'Hello.', 'caltune_place': 1})
    """
    if data is None:
        return Examples()
    if isinstance(data, IterableDataset):
        raise InputError(f"{name}: must not be streamed, since its questions are read several times; got {type(data)}")
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise InputError(f"{name}: must be a Dataset or a list of questions and rows, got {type(data).__name__}")
    if isinstance(data, Dataset) and data.format["type"] != "custom":
        data = data.with_format(None)  # lists and numbers, not arrays or tensors
    read = question_reader({"id": ""})
    questions: list[Question] = []
    places: list[int] = []
    forms: dict[tuple[str, bool], list[int]] = {}
    rows: dict[int, Mapping[str, Any]] = {}
    only = _only_form(data, text_field, formatted)
    for place, row in enumerate(data) if only is None else ():
        if isinstance(row, Question):
            questions.append(row)
            places.append(place)
            continue
        try:
            form = _form(row, text_field, formatted)
            if form is None:
                questions.append(read({column: value for column, value in row.items() if value is not None}))
                places.append(place)
                continue
        except InputError as error:
            raise InputError(f"{name} row {place + 1}: {error}") from error
        forms.setdefault(form, []).append(place)
        if not isinstance(data, Dataset):
            rows[place] = row
    if only is not None:
        forms[only] = list(range(len(data)))
    ordinary = [_of_one_form(data, form, rows, chosen, text_field) for (form, _), chosen in forms.items()]
    return Examples(tuple(questions), tuple(places), tuple(ordinary))


def require_usable(train: Examples, held_out: Mapping[str, Examples], calibration: Examples, *, metrics: bool) -> None:
    """Raise `InputError` for data that cannot be trained on, evaluated (with own `metrics`) or fitted on as it should:
    none, ordinary rows where only questions serve, or a training question that is held out too, by id or by content.
    """
    if not train.questions and not train.ordinary:
        raise InputError("train_dataset must hold at least one question or row, got none")
    if calibration.ordinary:
        raise InputError("calibration_dataset must hold questions with options only, got ordinary rows too")
    for data in held_out.values():
        if data.ordinary and not data.questions and metrics:
            raise InputError("compute_metrics gets the questions' option logits, and eval_dataset holds no question")
    kept_out = [question for data in (*held_out.values(), calibration) for question in data.questions]
    shared = find_overlap({"held out": kept_out, "train": train.questions}, exact=True)
    if shared:
        raise InputError(
            f"{len(shared)} training questions are also held out, by id or by text and options; the first is id "
            f"{shared[0].second_id!r}, there {shared[0].first_id!r}"
        )


def _only_form(data: Any, text_field: str, formatted: bool) -> tuple[str, bool] | None:
    """The form of all rows, where a data set's columns tell it: then they need not be read one by one."""
    if not isinstance(data, Dataset) or not len(data):
        return None
    columns = {column.lower() for column in data.column_names}
    found = [form for form in FORMS if columns & {*_filled(form, text_field)}]
    if columns & {*_TELLING, *_PICTURES} or len(found) != 1:
        return None
    with suppress(InputError):  # told of its row, when they are read
        return _form(data[0], text_field, formatted)
    return None


def _filled(form: str, text_field: str) -> tuple[str, ...]:
    """The columns that mark a form."""
    return {"tokens": ("input_ids",), "completion": ("completion",), "text": (text_field,)}.get(form, FORMS[form])


def _form(row: Any, text_field: str, formatted: bool) -> tuple[str, bool] | None:
    """The form of an ordinary row, and whether it is a conversation; None of a question."""
    if not isinstance(row, Mapping):
        raise InputError(f"must be a question or a dict, got {type(row).__name__}")
    if any(row.get(column) not in (None, []) for column in _PICTURES):
        raise InputError("must be text only, got a picture")
    has_options = any(row.get(column) is not None for column in row if column.lower() in CONVENTIONS["options"])
    if formatted and not has_options:
        return "formatted", False
    for form in FORMS:
        value = next((row[column] for column in _filled(form, text_field) if row.get(column) is not None), None)
        if value is None or (form == "text" and (has_options or not isinstance(value, str))):
            continue
        if form == "text" and sum(row[column] is not None for column in option_columns(row)[0]) > 1:
            continue  # a question whose options have a column each
        if isinstance(value, list) and any(_shows(part) for turn in value for part in _parts(turn)):
            raise InputError("must be text only, got a picture or sound in a message")
        if has_options:
            raise InputError(
                f"must be a question with options or an ordinary row ({', '.join(FORMS[form])}), got both in "
                f"{[column for column in row if row[column] is not None]}"
            )
        if form == "completion" and row.get("prompt") is None:
            raise InputError("a row with a completion needs a prompt, got none")
        return form, isinstance(value, list)
    return None


def _parts(turn: Any) -> list[Any]:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return content if isinstance(content, list) else []


def _shows(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") != "text"


def _of_one_form(
    data: Any, form: str, rows: Mapping[int, Mapping[str, Any]], chosen: list[int], text_field: str
) -> Dataset:
    """The chosen rows with the columns of their form; null columns of other forms would mislead TRL."""
    if isinstance(data, Dataset):
        # First the column, then the rows: a column cannot be added to a part of concatenated data sets.
        data = data.remove_columns([PLACE] if PLACE in data.column_names else [])
        data = data.add_column(PLACE, list(range(len(data))))
        part = data if len(chosen) == len(data) else data.select(chosen)
    else:
        part = Dataset.from_list([{**rows[place], PLACE: place} for place in chosen])
    own = set(FORMS.get(form, ())) | ({text_field} if form == "text" else set())
    others = {column for columns in FORMS.values() for column in columns} - own
    unused = {column for column in (*_OPTIONAL, *own) if column in part.column_names and _is_null(part, column)}
    if form == "formatted":
        if "prompt" in part.column_names:
            got = part.column_names[:-1]
            raise InputError(f"formatting_func makes a text, but TRL reads a column prompt in its place; got {got}")
        others = set()
    return part.remove_columns([column for column in part.column_names if column in others | unused])


def _is_null(part: Dataset, column: str) -> bool:
    return part.select_columns([column]).with_format("arrow")[:].column(column).null_count == len(part)
