"""The scores file: exact round trips, whole or not at all, and one clear error for each way a file can be wrong."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caltune.errors import InputError
from caltune.formats import ScoreFile, read_scores, write_scores
from caltune.types import OptionLogits

METADATA = {
    "model": "tiny",
    "data": "facts.jsonl",
    "split": "test",
    "answers": "letters",
    "prompt_example": "Frage: wo?\nAntwort:",
    "versions": {"caltune": "0.1.0"},
    "seed": 0,
    "note": "free keys are welcome",
}
ROWS = {
    "id": pa.array(["a", "b"]),
    "logits": pa.array([[1.0, 2.0], [0.0, 1.0, 2.0]], pa.list_(pa.float32())),
    "label": pa.array([0, 2], pa.int32()),
    "group": pa.array(["g", ""]),
}


def assert_same(found, wanted):
    assert found.ids == wanted.ids
    assert found.groups == wanted.groups
    assert found.labels.tolist() == wanted.labels.tolist()
    assert found.logits.dtype == np.float32
    assert found.logits.tobytes() == wanted.logits.tobytes()


def write_table(path, **changes):
    columns = {name: column for name, column in (ROWS | changes).items() if column is not None}
    pq.write_table(pa.table(columns), path)
    return path


def test_round_trip_is_exact(tmp_path):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 5)).astype(np.float32)
    lengths = generator.integers(1, 6, 200)
    lengths[0] = 5
    logits[np.arange(5) >= lengths[:, None]] = -np.inf
    logits[0, 1] = -np.inf  # an inner one is no padding
    labels = generator.integers(0, lengths)
    labels[3] = -1
    scores = OptionLogits(
        ids=tuple(f"q{i}é" for i in range(200)), logits=logits, labels=labels, groups=tuple(map(str, lengths))
    )
    write_scores(tmp_path / "scores.parquet", scores, METADATA)
    found = read_scores(str(tmp_path / "scores.parquet"))
    assert isinstance(found, ScoreFile)
    assert_same(found.scores, scores)
    assert found.metadata == METADATA
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_a_name_that_is_not_utf_8_is_kept(tmp_path):
    odd = {"data": os.fsdecode(b"caf\xe9.csv"), "back\\\udcff": "\\\udcffslash, é"}
    write_scores(tmp_path / "scores.parquet", OptionLogits(("a",), [[1.0, 0.0]], [0]), odd)
    assert read_scores(tmp_path / "scores.parquet").metadata == odd


def test_what_is_in_the_file(tmp_path):
    scores = OptionLogits(
        ids=("a", "b", "c"),
        logits=[[1.0, -np.inf, -np.inf], [-np.inf, 2.0, -np.inf], [3.0, -np.inf, 4.0]],
        labels=[0, 2, -1],
    )
    path = tmp_path / "scores.parquet"
    write_scores(path, scores, METADATA)
    table = pq.read_table(path)
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "string",
        "logits": "list<element: float>",
        "label": "int32",
        "group": "string",
    }
    # Row b keeps the option its label points at, although its logit is -inf.
    assert table["logits"].to_pylist() == [[1.0], [-np.inf, 2.0, -np.inf], [3.0, -np.inf, 4.0]]
    assert json.loads(table.schema.metadata[b"caltune"]) == METADATA
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).compression == "ZSTD"
    assert_same(read_scores(path).scores, scores)


def test_columns_without_any_option_are_not_kept(tmp_path):
    scores = OptionLogits(ids=("a",), logits=[[1.0, 0.0, -np.inf]], labels=[0])
    write_scores(tmp_path / "s.parquet", scores, {})
    assert read_scores(tmp_path / "s.parquet").scores.logits.tolist() == [[1.0, 0.0]]


def test_files_of_other_programs(tmp_path):
    path = write_table(
        tmp_path / "other.parquet",
        id=pa.array(["a", "b"], pa.large_string()),
        logits=pa.array([[1.0, 2.0], [0.0, 1.0, 2.0]], pa.large_list(pa.float64())),
        label=pa.array([0, 2], pa.int64()),
        more=pa.array([1, 2]),
    )
    found = read_scores(path)
    assert found.metadata == {}
    assert found.scores.logits.tolist() == [[1.0, 2.0, -np.inf], [0.0, 1.0, 2.0]]


def test_several_row_groups(tmp_path):
    pq.write_table(pa.table(ROWS), tmp_path / "s.parquet", row_group_size=1)
    assert read_scores(tmp_path / "s.parquet").scores.labels.tolist() == [0, 2]


def test_writing_replaces_a_file(tmp_path):
    for value in (1.0, 2.0):
        write_scores(tmp_path / "s.parquet", OptionLogits(("a",), [[value, 0.0]], [0]), {})
    assert read_scores(tmp_path / "s.parquet").scores.logits.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", ["pyarrow.parquet.write_table", "os.replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error, step):
    path = tmp_path / "s.parquet"
    write_scores(path, OptionLogits(("a",), [[1.0, 0.0]], [0]), {})
    before = path.read_bytes()

    def interrupted(*arguments, **options):
        if step == "pyarrow.parquet.write_table":
            arguments[1].write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(step, interrupted)
    with pytest.raises(error):
        write_scores(path, OptionLogits(("a",), [[2.0, 0.0]], [0]), {})
    assert [found.name for found in tmp_path.iterdir()] == ["s.parquet"]
    assert path.read_bytes() == before


def test_writing_refuses(tmp_path):
    one = OptionLogits(("a",), [[1.0, 0.0]], [0])
    with pytest.raises(InputError, match=r"s\.parquet: a scores file needs at least one question, got none"):
        write_scores(tmp_path / "s.parquet", OptionLogits((), np.zeros((0, 2)), []), {})
    with pytest.raises(InputError, match=r"s\.parquet: metadata must be plain JSON"):
        write_scores(tmp_path / "s.parquet", one, {"model": object()})
    with pytest.raises(InputError, match=r"s\.parquet: metadata must be plain JSON"):
        write_scores(tmp_path / "s.parquet", one, {"loss": float("nan")})
    with pytest.raises(InputError, match=r"s\.parquet: the scores file cannot be written"):
        write_scores(tmp_path / "no folder" / "s.parquet", one, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "needs the columns id, logits, label, group; 'label' is missing, got id, logits, group"),
        ({"id": pa.array([1, 2])}, "column 'id' must be string, got int64"),
        ({"logits": pa.array([1.0, 2.0])}, "column 'logits' must be list<float32>, got double"),
        ({"logits": pa.array([["1"], ["2"]])}, "column 'logits' must be list<float32>, got list"),
        ({"label": pa.array(["0", "2"])}, "column 'label' must be int32, got string"),
        ({"label": pa.array([0.0, 2.0])}, "column 'label' must be int32, got double"),
        ({"label": pa.array([0, 2**40])}, "below 3, the number of logits of its row; got 1099511627776 in row 2 of 2"),
        ({"label": pa.array([2, 2], pa.int32())}, "below 2, the number of logits of its row; got 2 in row 1 of 2"),
        ({"group": pa.array([1, 2])}, "column 'group' must be string, got int64"),
        ({"id": pa.array(["a", None])}, "column 'id' must have no empty cells, got one in row 2 of 2"),
        ({"label": pa.array([None, 1], pa.int32())}, "column 'label' must have no empty cells, got one in row 1 of 2"),
        ({"logits": pa.array([[1.0, None], [1.0, 0.0, 2.0]], pa.list_(pa.float32()))}, "got a null inside a list"),
        (
            {"logits": pa.array([[], [1.0, 0.0, 2.0]], pa.list_(pa.float32()))},
            "below 0, the number of logits of its row",
        ),
        ({"logits": pa.array([[-np.inf], [1.0, 0.0, 2.0]], pa.list_(pa.float32()))}, "each row needs a finite logit"),
        ({"id": pa.array(["a", "a"])}, "ids must be unique, got 'a' more than once"),
        ({"logits": pa.array([[np.nan], [1.0, 0.0, 2.0]], pa.list_(pa.float32()))}, "logits must be finite or -inf"),
        ({"label": pa.array([0, -2], pa.int32())}, "got -2 for id 'b'"),
        ({name: column[:0] for name, column in ROWS.items()}, "needs at least one row, got none"),
    ],
)
def test_wrong_files(tmp_path, changes, message):
    path = write_table(tmp_path / "wrong.parquet", **changes)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_scores(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_file_and_no_parquet(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: there is no such file"):
        read_scores(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="there is no such file"):
        read_scores(tmp_path)
    for content in (b"", b"id,logits\n", b"PAR1" + b"x" * 40 + b"PAR1"):
        (tmp_path / "text.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"text\.parquet: a scores file must be Parquet, got "):
            read_scores(tmp_path / "text.parquet")


def test_a_cut_file(tmp_path):
    path = write_table(tmp_path / "cut.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="must be Parquet"):
        read_scores(path)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"{", "must be JSON"),
        (b"[1]", "must be a JSON object"),
        (b"\xff", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b'{"loss": NaN}', "must be JSON"),  # what is copied from it could not be written
    ],
)
def test_wrong_metadata(tmp_path, raw, rule):
    pq.write_table(pa.table(ROWS).replace_schema_metadata({b"caltune": raw}), tmp_path / "s.parquet")
    with pytest.raises(InputError, match=f"the 'caltune' metadata {rule}"):
        read_scores(tmp_path / "s.parquet")
