"""The knowledge file: exact round trips, whole or not at all, one clear error for each way a file can be wrong."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caltune.errors import InputError
from caltune.formats import KnowledgeFile, read_knowledge, write_knowledge
from caltune.knowledge import CATEGORIES, Knowledge

FOUND = Knowledge(("a", "bé", "c", "d"), CATEGORIES, [1.0, 1 / 3, 0.0, 0.0], [0.7, 0.1, 1e-3, 0.0])
METADATA = {"model": "tiny", "sets": 8, "prompt_example": "Frage: wo?\nAntwort:"}
ROWS = {
    "id": pa.array(["a", "b"]),
    "category": pa.array(["HighlyKnown", "Unknown"]),
    "greedy_right": pa.array([1.0, 0.0]),
    "sampled_right": pa.array([0.9, 0.0]),
}


def write_table(path, **changes):
    columns = {name: column for name, column in (ROWS | changes).items() if column is not None}
    pq.write_table(pa.table(columns), path)
    return path


def test_round_trip_is_exact(tmp_path):
    write_knowledge(tmp_path / "k.parquet", FOUND, METADATA)
    found = read_knowledge(str(tmp_path / "k.parquet"))
    assert isinstance(found, KnowledgeFile)
    assert (found.knowledge.ids, found.knowledge.categories) == (FOUND.ids, FOUND.categories)
    np.testing.assert_array_equal(found.knowledge.greedy_right, FOUND.greedy_right)
    np.testing.assert_array_equal(found.knowledge.sampled_right, FOUND.sampled_right)
    assert found.metadata == METADATA
    assert [path.name for path in tmp_path.iterdir()] == ["k.parquet"]


def test_a_name_that_is_not_utf_8_is_kept(tmp_path):
    odd = {"data": os.fsdecode(b"caf\xe9.csv"), "back\\\udcff": "\\\udcffslash, é"}
    write_knowledge(tmp_path / "k.parquet", FOUND, odd)
    assert read_knowledge(tmp_path / "k.parquet").metadata == odd


def test_what_is_in_the_file(tmp_path):
    write_knowledge(tmp_path / "k.parquet", FOUND, METADATA)
    table = pq.read_table(tmp_path / "k.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "string",
        "category": "string",
        "greedy_right": "double",
        "sampled_right": "double",
    }
    assert json.loads(table.schema.metadata[b"caltune"]) == METADATA
    assert table["greedy_right"].to_pylist() == [1.0, 1 / 3, 0.0, 0.0]


def test_files_of_other_programs(tmp_path):
    path = write_table(
        tmp_path / "k.parquet",
        id=pa.array(["a", "b"], pa.large_string()),
        greedy_right=pa.array([1.0, 0.0], pa.float32()),
        more=pa.array([1, 2]),
    )
    assert read_knowledge(path).metadata == {}
    assert read_knowledge(path).knowledge.known.tolist() == [True, False]


@pytest.mark.parametrize("step", ["pyarrow.parquet.write_table", "os.replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "k.parquet"
    write_knowledge(path, FOUND, {})
    before = path.read_bytes()

    def interrupted(*arguments, **_):
        if step == "pyarrow.parquet.write_table":
            arguments[1].write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_knowledge(path, FOUND, METADATA)
    assert os.listdir(tmp_path) == ["k.parquet"]
    assert path.read_bytes() == before


def test_writing_refuses(tmp_path):
    with pytest.raises(InputError, match=r"k\.parquet: a knowledge file needs at least one question, got none"):
        write_knowledge(tmp_path / "k.parquet", Knowledge((), (), [], []), {})
    for metadata in ({"model": object()}, {"loss": float("nan")}):
        with pytest.raises(InputError, match=r"k\.parquet: metadata must be plain JSON"):
            write_knowledge(tmp_path / "k.parquet", FOUND, metadata)
    with pytest.raises(InputError, match=r"k\.parquet: the knowledge file cannot be written"):
        write_knowledge(tmp_path / "no folder" / "k.parquet", FOUND, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"category": None},
            "needs the columns id, category, greedy_right, sampled_right; 'category' is missing, got id, greedy_right",
        ),
        ({"id": pa.array([1, 2])}, "column 'id' must be string, got int64"),
        ({"category": pa.array([1, 2])}, "column 'category' must be string, got int64"),
        ({"sampled_right": pa.array([1, 0])}, "column 'sampled_right' must be double, got int64"),
        ({"id": pa.array(["a", None])}, "column 'id' must have no empty cells, got one in row 2 of 2"),
        ({"greedy_right": pa.array([None, 0.0])}, "column 'greedy_right' must have no empty cells, got one in row 1"),
        ({"id": pa.array(["a", "a"])}, "ids must be unique, got 'a' more than once"),
        ({"category": pa.array(["HighlyKnown", "unknown"])}, "a category must be one of"),
        ({"greedy_right": pa.array([1.0, 0.5])}, "0.5 must go with its category, got Unknown for id 'b'"),
        ({name: column[:0] for name, column in ROWS.items()}, "needs at least one row, got none"),
    ],
)
def test_wrong_files(tmp_path, changes, message):
    path = write_table(tmp_path / "wrong.parquet", **changes)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_knowledge(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_column_that_stands_twice_is_told(tmp_path):
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.table([*ROWS.values(), ROWS["id"]], names=[*ROWS, "id"]), path)
    with pytest.raises(InputError, match="a knowledge file must have each column once, got 'id' more than once"):
        read_knowledge(path)


def test_no_file_no_parquet_and_wrong_metadata(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: there is no such file"):
        read_knowledge(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_bytes(b"id,category\n")
    with pytest.raises(InputError, match=r"text\.parquet: a knowledge file must be Parquet, got "):
        read_knowledge(tmp_path / "text.parquet")
    for raw, rule in ((b"{", "must be JSON"), (b"[1]", "must be a JSON object"), (b"[" * 100_000, "must be JSON")):
        pq.write_table(pa.table(ROWS).replace_schema_metadata({b"caltune": raw}), tmp_path / "k.parquet")
        with pytest.raises(InputError, match=f"the 'caltune' metadata {rule}") as caught:
            read_knowledge(tmp_path / "k.parquet")
        assert len(str(caught.value)) < 300 + len(str(tmp_path))
