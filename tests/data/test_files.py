"""Files and folders of rows, read as a user gives them, and what is said of those that are broken."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from caltune.data import load_questions
from caltune.data.files import find_split_files, read_rows
from caltune.errors import InputError
from caltune.types import Question

ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": "Capital of Perú?", "choices": ["Lima", "Cuzco"], "answer": 0, "subject": "places"},
    {"id": "b", "question": 'A "comma", and\na line?', "choices": ["x", "y", "z"], "answer": 2, "subject": None},
    {"id": "c", "question": "Unknown?", "choices": ["x", "y"], "answer": None, "subject": ""},
]
EXPECTED = [
    Question("a", "Capital of Perú?", ("Lima", "Cuzco"), 0, group="places"),
    Question("b", 'A "comma", and\na line?', ("x", "y", "z"), 2),
    Question("c", "Unknown?", ("x", "y"), None),
]
GOOD = json.dumps(ROWS[0], ensure_ascii=False)


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".csv":
        with plain.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows([{**row, "choices": json.dumps(row["choices"])} for row in rows])
    elif plain.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    else:
        plain.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".parquet"])
def test_every_format_gives_the_same_questions(tmp_path: Path, suffix: str, zipped: str) -> None:
    path = write(tmp_path / f"data{suffix}{zipped}")
    assert load_questions(path) == EXPECTED
    assert load_questions(str(path), limit=2) == EXPECTED[:2]


def test_csv_with_a_column_an_option(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.csv"
    path.write_text("question,A,B,C,answer\r\n2 + 2?,3,4,,B\r\n3 + 3?,5,7,6,C\r\n", encoding="utf-8")
    questions = load_questions(path)
    assert [(q.options, q.answer) for q in questions] == [(("3", "4"), 1), (("5", "7", "6"), 2)]


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\n  \n")
    assert load_questions(path) == EXPECTED[:1]
    table = write(tmp_path / "data.csv")
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes() + b"\n")
    assert load_questions(table) == EXPECTED


def test_a_very_long_field(tmp_path: Path) -> None:
    row = {**ROWS[0], "question": "long " * 200_000}
    csv.field_size_limit(131_072)
    for suffix in (".csv", ".jsonl"):
        (question,) = load_questions(write(tmp_path / f"data{suffix}", [row]))
        assert len(question.text) == 999_999
    assert csv.field_size_limit() == 131_072


BAD_LINES = [
    ("{", "must be one JSON object .*, got '{'"),
    ("[1, 2]", r"must be one JSON object, got '\[1, 2\]'"),
    ("[" * 100_000, "must be one JSON object (.*)"),
    ('{"id": ' + "9" * 5_000 + "}", "must be one JSON object"),
    ('{"id": "b", "question": "?", "choices": ["x", "y"], "answer": 7}', "index from 0 to 1, .* got 7"),
    ('{"id": "b", "question": "?", "choices": ["x", "x"]}', "question b: options must differ"),
    ('{"id": "b", "choices": ["x", "y"]}', "must be a column question"),
    (GOOD, "ids must differ from each other, got 'a', which stands at .*data.jsonl:1 too"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    last = '{"id": "z", "question": "?", "choices": ["x", "y"]}'
    path.write_text(f"{GOOD}\n\n{line}\n{last}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"data.jsonl:3: .*{message}"):
        load_questions(path)
    messages: list[str] = []
    assert [q.id for q in load_questions(path, on_bad=messages.append)] == ["a", "z"]
    assert len(messages) == 1
    assert messages[0].startswith(f"{path}:3: ")
    assert len(messages[0]) < 600


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"id": "\xe9"}\n')
    with pytest.raises(InputError, match=r"data.jsonl:2: the text must be UTF-8, got byte 0xe9 at position 8"):
        load_questions(path)
    path = tmp_path / "data.csv"
    path.write_bytes(b'question,choices\nWho?,"[""x"", ""y""]"\nCaf\xe9?,"[""x"", ""y""]"\n')
    with pytest.raises(InputError, match=r"data.csv:3: the text must be UTF-8, got 'Caf.*'"):
        load_questions(path)
    assert len(load_questions(path, on_bad=lambda _: None)) == 1


def test_ragged_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('question,A,B\n"two\nlines?",x,y\nWho?,x\nWhy?,x,y,z\nHow?,x,y\n')
    with pytest.raises(InputError, match=r"data.csv:4: a row must have 3 fields like the first line, got 2"):
        load_questions(path)
    messages: list[str] = []
    assert [q.text for q in load_questions(path, on_bad=messages.append)] == ["two\nlines?", "How?"]
    assert [message.partition(": ")[0][-10:] for message in messages] == ["data.csv:4", "data.csv:5"]


def test_csv_with_a_quote_left_open(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('question,A,B\nWho?,x,y\n"Why?,x,y\nHow?,x,y\n')
    messages: list[str] = []
    assert len(load_questions(path, on_bad=messages.append)) == 1
    assert len(messages) == 1
    assert "data.csv:3: a row must be valid CSV" in messages[0]


def test_csv_header(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("question,A,A\nWho?,x,y\n")
    with pytest.raises(InputError, match=r"data.csv: the column names must differ from each other, got 'A' twice"):
        load_questions(path)


def test_bad_parquet_row(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", [*ROWS, {**ROWS[0], "id": "d", "answer": 5}])
    with pytest.raises(InputError, match=r"data.parquet:row 4: .*index from 0 to 1.* got 5"):
        load_questions(path)
    assert load_questions(path, on_bad=lambda _: None) == EXPECTED


def test_damaged_files_are_never_skipped(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": str(n), "question": f"{n * 7919 % 10007}?"} for n in range(2_000)]
    whole = write(tmp_path / "whole.jsonl.gz", rows).read_bytes()
    for name, content, message in (
        ("cut.jsonl.gz", whole[: len(whole) // 2], "gzip data must be complete"),
        ("end.jsonl.gz", whole[:-4], "gzip data must be complete"),
        ("flip.jsonl.gz", whole[:500] + bytes([whole[500] ^ 255]) + whole[501:], "gzip data"),
        ("plain.jsonl.gz", GOOD.encode(), "must be gzip data"),
        ("plain.parquet", GOOD.encode(), "must be valid Parquet"),
        ("plain.parquet.gz", gzip.compress(GOOD.encode()), "must be valid Parquet"),
        ("data.txt", GOOD.encode(), "the name must end in .jsonl"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            load_questions(path, on_bad=lambda _: None)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b""), ("a.jsonl", b"\n\n"), ("a.csv", b""), ("a.csv", b"question,A,B\n"), ("a.jsonl.gz", b"")],
)
def test_empty_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: the file must hold at least one row"):
        load_questions(path)


def test_nothing_left(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(InputError, match=r"at least one question must be left, got 0 good rows .*, 2 bad"):
        load_questions(path, on_bad=lambda _: None)
    path.write_text('{"id": "q0", "question": "?", "choices": ["x", "y"]}')  # q0 is a training question
    with pytest.raises(InputError, match=r"data.jsonl \(test\): .*, got 1 good"):
        load_questions(path, "test")


def test_limit_counts_questions_of_the_split(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": f"q{n}"} for n in range(50)]
    path = write(tmp_path / "data.jsonl", rows)
    assert load_questions(path, "test", limit=3) == load_questions(path, "test")[:3]
    assert [q.id for q in load_questions(path, "train", limit=2)] == ["q0", "q3"]  # as in the example of hash_split
    with pytest.raises(InputError, match="limit: it must be at least 1, got 0"):
        load_questions(path, limit=0)


def test_fields_reach_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("q,right,wrong,key\nWho?,me,you,text\n")
    (question,) = load_questions(path, fields={"question": "q", "options": "wrong,right", "answer": "right"})
    assert (question.text, question.options, question.answer) == ("Who?", ("you", "me"), 1)
    with pytest.raises(InputError, match="fields: names must be among"):
        load_questions(path, fields={"queston": "q"})


def test_folder_with_a_file_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:2])
    write(tmp_path / "dev.jsonl.gz", ROWS[2:])
    write(tmp_path / "test-00000-of-00002.parquet", ROWS[:1])
    write(tmp_path / "test-00001-of-00002.parquet", ROWS[1:2])
    (tmp_path / "README.md").write_text("about")
    write(tmp_path / ".hidden.jsonl")
    assert sorted(find_split_files(tmp_path)) == ["dev", "test", "train"]
    assert load_questions(tmp_path, "train") == load_questions(tmp_path, "test") == EXPECTED[:2]
    assert load_questions(tmp_path, "calibration") == EXPECTED[2:]
    with pytest.raises(InputError, match=r"--split.* dev, test, train; got none"):
        load_questions(tmp_path)
    with pytest.raises(InputError, match=r"one of: dev, test, train; got 'hold-out'"):
        load_questions(tmp_path, "hold-out")


def test_folder_with_one_split_needs_no_name(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl")
    assert load_questions(tmp_path) == EXPECTED


def test_ids_repeat_across_the_pieces_of_a_split(tmp_path: Path) -> None:
    for piece in (0, 1):
        write(tmp_path / f"test-0000{piece}-of-00002.jsonl", ROWS[:1])
    with pytest.raises(InputError, match=r"00001-of-00002.jsonl:1: ids must differ .*00000-of-00002.jsonl:1 too"):
        load_questions(tmp_path)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder must hold files named after splits"):
        load_questions(tmp_path)
    write(tmp_path / "train-00000-of-00002.jsonl")
    with pytest.raises(InputError, match="split 'train' must be one file, or all pieces of one; got train-00000"):
        load_questions(tmp_path)
    for other in ("train.csv", "train-00000-of-00002.csv", "train-00001-of-00003.jsonl"):
        path = write(tmp_path / other)
        with pytest.raises(InputError, match=r"one file, or all pieces of one; got train-00000.*, "):
            load_questions(tmp_path)
        path.unlink()


def test_places_are_lines_as_an_editor_counts_them(tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path / "data.csv")))
    assert [place.rpartition(":")[2] for place, _ in rows] == ["2", "3", "5"]  # the second row spans two lines
