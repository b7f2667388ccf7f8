"""A verb never writes over a file that it reads, other than scores over scores."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from files import scores_file, write_jsonl
from tiny import tiny_questions


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "a.parquet", "b.parquet", "--json", "b.parquet"),
        ("compare", "a.parquet", "b.parquet", "--json", "x/../a.parquet"),
        ("report", "a.parquet", "b.parquet", "-o", "a.parquet"),
        ("report", "a.parquet", "--policy", "policy.json", "-o", "policy.json"),
        ("threshold", "a.parquet", "--max-error", "0.5", "-o", "a.parquet"),
        ("apply-threshold", "policy.json", "c.parquet", "-o", "c.parquet"),
        ("apply-threshold", "policy.json", "c.parquet", "-o", "policy.json"),
        ("recalibrate", "platt", "--load", "fitted.json", "--apply", "c.parquet", "-o", "fitted.json"),
        ("recalibrate", "platt", "--fit", "a.parquet", "--apply", "c.parquet", "-o", "a.parquet"),
        (
            "recalibrate",
            "platt",
            "--fit",
            "a.parquet",
            "--apply",
            "c.parquet",
            "-o",
            "o.parquet",
            "--save",
            "a.parquet",
        ),
    ],
)
def test_what_is_read_is_kept(caltune, refused, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    for name, first in (("a", 0), ("b", 0), ("c", 900)):
        scores_file(tmp_path / f"{name}.parquet", 80, first=first)
    assert caltune("threshold", "a.parquet", "--max-error", "0.5", "-o", "policy.json").status == 0
    fit = ("--fit", "a.parquet", "--apply", "c.parquet", "-o", "r.parquet", "--save", "fitted.json")
    assert caltune("recalibrate", "platt", *fit).status == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert "must not be a file that is read" in refused(*words)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def write_scores_like(path):
    """A scores file to which questions have been joined; Arrow keeps its metadata."""
    path.parent.mkdir()
    table = pq.read_table(scores_file(path, 12))
    columns = {
        "question": [q.text for q in tiny_questions(12)],
        "options": [list(q.options) for q in tiny_questions(12)],
    }
    for name, column in {**columns, "answer": [q.answer for q in tiny_questions(12)]}.items():
        table = table.append_column(name, [column])
    pq.write_table(table, path)
    return path


def test_questions_and_models_are_kept(caltune, refused, tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exam").mkdir()
    for name in ("exam.jsonl", "exam/train.jsonl", "exam/test.jsonl", "m.gguf"):
        write_jsonl(tmp_path / name, tiny_questions(12))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for verb, *rest in (("score",), ("knowledge", "--exemplars", 0)):
        for source, output in (("exam.jsonl", "exam/../exam.jsonl"), ("exam", "exam/train.jsonl"), ("exam", "m.gguf")):
            line = refused(verb, source, "--model", "m.gguf", *rest, "-o", output)
            assert "must not be a file that is read" in line
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    table = pq.read_table(write_scores_like(tmp_path / "joined" / "test.parquet"))
    assert table.column_names[-1] == "answer"
    line = refused("score", "joined", "--split", "test", "--model", tiny_folder, "-o", "joined/test.parquet")
    assert "must not be a file that is read" in line
    for _ in range(2):  # scores may be written over scores, also beside the questions
        flags = ("--split", "test", "--model", tiny_folder, "-o", "exam/scores.parquet")
        assert caltune("score", "exam", *flags).status == 0
