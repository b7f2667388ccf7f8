"""One row -> `Question`: where each field is found and what an answer means."""

import hashlib
import json
from random import Random
from typing import Any

import pytest

from caltune.data.fields import question_reader
from caltune.errors import InputError
from caltune.types import Question

BASE = {"id": "q", "question": "Which?"}
COLOURS = ["red", "green", "blue"]


def read(fields: dict[str, str] | None = None, /, **row: Any) -> Question:
    return question_reader(fields)({**BASE, **row})


def answer_of(answer: Any, choices: Any, fields: dict[str, str] | None = None) -> int | None:
    return read(fields, choices=choices, answer=answer).answer


@pytest.mark.parametrize(
    "name", ["question", "query", "sentence", "prompt", "stem", "question_stem", "text", "Question"]
)
def test_question_column(name: str) -> None:
    row = {name: " Which? ", "choices": COLOURS, "id": "q"}
    assert question_reader()(row) == Question("q", "Which?", tuple(COLOURS), None)
    assert question_reader()({**row, name.swapcase(): "The second spelling?"}).text == "Which?"


@pytest.mark.parametrize("name", ["id", "qid", "doc_id", "_id", "idx", "question_id", "qID"])
def test_id_column(name: str) -> None:
    assert question_reader()({name: 12, "question": "Which?", "choices": COLOURS}).id == "12"


def test_id_is_a_hash_of_text_and_options_where_there_is_none() -> None:
    row = {"question": "Which?", "choices": ["a", "b"]}
    expected = hashlib.sha256(b"Which?\0a\0b").hexdigest()[:16]
    assert question_reader()(row).id == expected
    assert question_reader()({**row, "id": None, "answer": 1}).id == expected  # the answer plays no part
    assert question_reader()({**row, "choices": ["b", "a"]}).id != expected


@pytest.mark.parametrize("name", ["subject", "group", "category", "topic", "relation", "subject_name"])
def test_group_column(name: str) -> None:
    assert read(choices=COLOURS, **{name: "physics"}).group == "physics"
    assert read(choices=COLOURS, **{name: None}).group == ""


@pytest.mark.parametrize(
    "row",
    [
        {"choices": COLOURS},
        {"options": COLOURS},
        {"choices": json.dumps(COLOURS)},  # as in a CSV cell
        {"choices": {"text": COLOURS, "label": ["A", "B", "C"]}},
        {"choices": [{"text": text, "label": label} for text, label in zip(COLOURS, "ABC", strict=True)]},
        {"choices": [{"text": text} for text in COLOURS]},
        {
            "question": {
                "stem": "Which?",
                "choices": [{"text": t, "label": m} for t, m in zip(COLOURS, "ABC", strict=True)],
            }
        },
        {"opa": "red", "opb": "green", "opc": "blue", "opd": ""},
        {"A": "red", "B": "green", "C": "blue"},
        {"option_a": "red", "option_b": "green", "option_c": "blue"},
        {"option1": "red", "option2": "green", "option3": "blue"},
        {"option_1": "red", "option_2": "green", "option_3": "blue"},
        {"choice1": "red", "choice2": "green", "choice3": " blue", "choice4": None},
    ],
)
def test_forms_of_options(row: dict[str, Any]) -> None:
    assert read(**row, answer="green") == Question("q", "Which?", tuple(COLOURS), 1)
    if not any(name.endswith("1") for name in row):
        assert read(**row, answer="b").answer == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(0, 0), (2, 2), (1.0, 1), ("1", 1), ("2.0", 2), ("B", 1), ("c", 2), (" blue ", 2), (None, None), ("", None)],
)
def test_answer_of_a_plain_list(answer: Any, expected: int | None) -> None:
    assert answer_of(answer, COLOURS) == expected


@pytest.mark.parametrize("name", ["answer", "answerKey", "label", "cop"])
def test_answer_column(name: str) -> None:
    assert read(choices=COLOURS, **{name: "C"}).answer == 2
    assert read(choices=COLOURS).answer is None


@pytest.mark.parametrize("answer", [3, -1, "3", "D", "yellow", "Red", 0.5, [1], True])
def test_answer_outside_the_options(answer: Any) -> None:
    with pytest.raises(InputError, match=r"answer .*got"):
        answer_of(answer, COLOURS)


def test_labels_that_are_digits() -> None:
    """ARC: '2' is the second option, and '4' of four is the last; 0 is no label and must not become an index."""
    choices = {"text": ["p", "q", "r", "s"], "label": ["1", "2", "3", "4"]}
    assert [answer_of(label, choices) for label in ("1", "2", "4", 3)] == [0, 1, 3, 2]
    for answer in (0, "B"):
        with pytest.raises(InputError, match=f"a label among 1, 2, 3, 4, .*, got {answer!r}"):
            answer_of(answer, choices)


def test_labels_win_over_text_and_letter() -> None:
    swapped = {"text": ["x", "y"], "label": ["B", "A"]}
    assert answer_of("A", swapped) == 1
    assert answer_of("A", {"text": ["B", "A"], "label": ["A", "B"]}) == 0
    assert answer_of(1, swapped) == 1  # a number is no label here: an index
    with pytest.raises(InputError, match=r"a label among b, a, .*, got 'C'"):
        answer_of("C", swapped)


def test_a_number_is_an_index_and_a_string_may_be_a_text() -> None:
    digits = ["2", "3", "1"]
    assert [answer_of(index, digits) for index in (0, 1, 2)] == [0, 1, 2]
    assert answer_of("3", digits) == 1  # 3 is no index of three options
    assert answer_of("0", digits) == 0
    assert answer_of("2", ["0", "1", "2"]) == 2  # both readings agree
    for answer, choices in (("1", digits), ("2", digits), (1, [2, 3, 1]), ("A", ["B", "A"])):
        with pytest.raises(InputError, match=f"must mean one option .*answer_is.*got {answer!r}: as text .*, as "):
            answer_of(answer, choices)


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [("text", "1", 2), ("index", "1", 1), ("number", "1", 0), ("text", 1, 2), ("letter", "B", 1)],
)
def test_answer_is_decides(kind: str, answer: Any, expected: int) -> None:
    assert answer_of(answer, ["2", "3", "1"], {"answer_is": kind}) == expected


@pytest.mark.parametrize(
    ("kind", "answer"), [("text", "7"), ("index", 3), ("number", 0), ("letter", 1), ("index", "A")]
)
def test_answer_is_admits_nothing_else(kind: str, answer: Any) -> None:
    with pytest.raises(InputError, match=f"as {kind}"):
        answer_of(answer, ["2", "3", "1"], {"answer_is": kind})


def test_columns_numbered_from_one() -> None:
    columns = {"option1": "Ann", "option2": "Bea"}
    assert read(**columns, answer="2").answer == 1  # no index of two options
    assert read(**columns, answer=0).answer == 0
    with pytest.raises(InputError, match="as index option 2, as number option 1"):
        read(**columns, answer="1")
    assert [read({"answer_is": "number"}, **columns, answer=answer).answer for answer in ("1", "2")] == [0, 1]
    assert [read({"answer_is": "index"}, **columns, answer=answer).answer for answer in (0, 1)] == [0, 1]


def test_boolq() -> None:
    row = {"passage": "Cats purr.", "question": "do cats purr"}
    expected = Question("q", "Cats purr.\n\ndo cats purr", ("no", "yes"), 1)
    for answer in (True, "True", "yes", " YES "):
        assert read(**row, answer=answer) == expected
    assert [read(**row, answer=answer).answer for answer in (False, "false", "no")] == [0, 0, 0]
    assert read(question="do cats purr", context="Cats purr.", choices=["no", "yes"], answer=1) == expected
    assert read(choices=["Yes", "No"], answer=False).answer == 1
    with pytest.raises(InputError, match="needs the options yes and no"):
        read(choices=["yes", "no", "no idea"], answer=False)
    with pytest.raises(InputError, match="must be options"):
        read(**row, answer=1)


def test_empty_context_leaves_the_text_alone() -> None:
    assert read(choices=COLOURS, context="").text == read(choices=COLOURS, context=None).text == "Which?"
    with pytest.raises(InputError, match="the context must be text"):
        read(choices=COLOURS, context=["a"])
    assert read({"context": ""}, choices=COLOURS, context=["a"]).text == "Which?"


@pytest.mark.parametrize(
    "row",
    [
        {"answers": ["1972", "in 1972", "1972"]},
        {"answers": '["1972", "in 1972"]'},
        {"answers": {"text": ["1972", " in 1972"], "answer_start": [3, 0]}},
        {"answer": ["1972", "in 1972"]},
        {"answer": None, "answers": [1972, "in 1972", ""]},
    ],
)
def test_open_questions(row: dict[str, Any]) -> None:
    assert read(**row) == Question("q", "Which?", (), None, accepted=("1972", "in 1972"))


def test_open_question_with_one_answer_needs_a_mapping() -> None:
    """A yes among names (HotpotQA) must not become a question with two options."""
    assert read({"accepted": "answer"}, answer="yes") == Question("q", "Which?", (), None, accepted=("yes",))
    with pytest.raises(InputError, match="accepted mapped to one"):
        read(answer="Paris")


def test_mapping() -> None:
    row = {
        "nr": 5,
        "frage": "Wie?",
        "gut": "so",
        "schlecht": "nie",
        "loesung": "so",
        "fach": "Deutsch",
        "text": "Lies.",
    }
    fields = {"id": "nr", "question": "frage", "options": "schlecht, gut", "answer": "loesung", "group": "fach"}
    assert question_reader({**fields, "context": "text"})(row) == Question(
        "5", "Lies.\n\nWie?", ("nie", "so"), 1, (), "Deutsch"
    )
    assert question_reader({**fields, "answer": ""})(row).answer is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": "x"}, "names must be among id, question, .*; got 'choices'"),
        ({"answer_is": "roman"}, "answer_is must be one of index, number, letter, text; got 'roman'"),
    ],
)
def test_wrong_mapping(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        question_reader(fields)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, r"must be options .*\['id', 'question'\]"),
        ({"question": None, "choices": COLOURS}, "the question must be text, got None"),
        ({"question": " ", "choices": COLOURS}, "question text must not be empty"),
        ({"choices": []}, "needs 2 to 26 options.*got 0"),
        ({"choices": ["a"]}, "needs 2 to 26 options.*got 1"),
        ({"choices": [str(n) for n in range(27)]}, "needs 2 to 26 options.*got 27"),
        ({f"option{n}": f"x{n}" for n in range(1, 28)}, "needs 2 to 26 options.*got 27"),
        ({"choices": ["a", "a "]}, r"options must differ from each other, got \['a', 'a'\]"),
        ({"choices": ["a", " "]}, "an option must not be empty"),
        ({"A": "x", "B": "", "C": "z"}, "an option must not be empty"),
        ({"choices": ["a", None]}, "the option must be text, got None"),
        ({"choices": ["a", True]}, "the option must be text, got True"),
        ({"choices": "a, b"}, "the options must be a JSON list, got 'a, b'"),
        ({"choices": "[" * 100_000}, r"the options must be a JSON list, got '\[\[.*\.\.\.$"),
        ({"choices": {"a": "b"}}, "the options must be a list, {text, label}"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, r"one label an option, each different, got \['A'\]"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "a"]}}, "one label an option"),
        ({"id": {"n": 1}, "choices": COLOURS}, "the id must be text, got {'n': 1}"),
        ({"choices": ["a", "\ud800"]}, "text must be valid Unicode"),
        ({"choices": COLOURS, "subject": "\ud800"}, "text must be valid Unicode"),
        ({"answers": [["x"]]}, r"the accepted answer must be text, got \['x'\]"),
        ({"answers": "[1"}, r"accepted answers must be a JSON list or one text, got '\[1'"),
        ({"answers": []}, "must be options"),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**row)


def test_missing_columns() -> None:
    with pytest.raises(InputError, match=r"there must be a column question or .*, got \['frage'\]"):
        question_reader()({"frage": "x"})
    with pytest.raises(InputError, match=r"there must be a column 'lable' \(it was mapped\)"):
        read({"answer": "lable"}, choices=COLOURS, label=1)


def test_26_options() -> None:
    options = [f"option {n}" for n in range(26)]
    assert read(choices=options, answer="Z").answer == 25
    assert read(choices=options, answer=25).answer == 25


def test_any_row_is_a_question_or_one_clear_error() -> None:
    """Rows of random values under the known names: nothing but `InputError` comes out, and a message stays short."""
    random = Random(0)
    columns = ("id", "choices", "options", "answer", "answers", "A", "B", "option1", "option2", "subject", "context")
    values = json.loads(
        '["", "x", "A", "1", "[", 0, 1, -1, 1.5, NaN, Infinity, null, true, [], {}, ["a", "b"], [1, 2], [null, "a"],'
        '[{"text": "a"}, {"text": "b", "label": "B"}], {"text": ["a", "b"]}, {"text": ["a", "b"], "label": ["1", "2"]},'
        '{"stem": "s", "choices": ["a", "b"]}, {"text": ["a"], "label": 3}]'
    )
    questions, errors = [], []
    for _ in range(5_000):
        row = {name: random.choice(values) for name in random.sample(columns, random.randint(0, 6))}
        row["question"] = "Which?" if random.random() < 0.9 else random.choice(values)
        try:
            questions.append(question_reader()(row))
        except InputError as error:
            errors.append(str(error))
    assert len(questions) > 250
    assert max(map(len, errors)) < 500


def test_rows_of_different_shape_in_one_reader() -> None:
    reader = question_reader()
    first = reader({"id": "1", "question": "Which?", "choices": ["a", "b"], "answer": "b"})
    second = reader({"id": "2", "query": "Who?", "A": "x", "B": "y", "C": "z", "answer": "C", "subject": "s"})
    assert (first.answer, second.answer, second.group, len(second.options)) == (1, 2, "s", 3)
