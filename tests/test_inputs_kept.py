"""A verb never writes over a file that it reads, other than scores over scores."""

from __future__ import annotations

import pytest
from files import scores_file


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
