"""`caltune threshold` and `caltune apply-threshold`: the files between them, and what they refuse."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files import strict_json

from caltune.abstain import fit_threshold
from caltune.errors import InputError
from caltune.formats import write_scores
from caltune.formats.policy import read_policy, require_same_source, write_policy
from caltune.types import OptionLogits

MADE = {"model": "m", "answers": "letters", "temperature": 1.5}


def sure(
    path: Path, count: int, wrong: int, *, confidence: tuple[float, float] = (1.0, 0.5), **metadata: object
) -> Path:
    """Confidences evenly from high to low, the least sure ones wrong; ids from the file's name."""
    p = np.clip(np.linspace(*confidence, count), 0.5, 1 - 1e-6)
    labels = (np.arange(count) >= count - wrong).astype(int)
    logits = np.stack([np.log(p), np.log1p(-p)], axis=1)
    ids = tuple(f"{path.stem}{i}" for i in range(count))
    write_scores(path, OptionLogits(ids, logits, labels), {**MADE, "split": path.stem, **metadata})
    return path


@pytest.fixture
def policy_file(caltune, tmp_path) -> Path:
    cal = sure(tmp_path / "cal.parquet", 400, 100)
    result = caltune("threshold", cal, "--max-error", "0.05", "-o", tmp_path / "policy.json")
    assert result.status == 0
    # 300 are right. P(X ≤ 8) = 0.027 for Binomial(308, 0.05), but P(X ≤ 9) = 0.052 for Binomial(309, 0.05).
    assert result.out.splitlines()[0].endswith(
        "the error among the answered is below 5.0\xa0% with 95.0\xa0% confidence"
    )
    assert "answers 308 of 400 questions" in result.out
    return tmp_path / "policy.json"


def test_the_policy_file_comes_back_and_decides(caltune, policy_file, tmp_path):
    document = strict_json(policy_file)
    assert (document["n"], document["answered"], document["wrong"]) == (400, 308, 8)
    assert document["source"] == MADE
    assert len(document["fitted_on"]) == len(document["confidences"]) == 400
    test = sure(tmp_path / "test.parquet", 200, 50)
    result = caltune("apply-threshold", policy_file, test, "-o", tmp_path / "out.jsonl")
    assert result.status == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answered = [row["id"] for row in rows if row["answer"] is not None]
    assert f"answers {len(answered)} of 200 questions" in result.out
    assert answered == [row["id"] for row in rows if row["confidence"] >= document["threshold"]]
    assert {row["answer"] for row in rows} == {0, None}
    assert "warning" not in result.out


def test_drift_is_told(caltune, policy_file, tmp_path):
    surer = sure(tmp_path / "later.parquet", 200, 60, confidence=(1.0, 0.9))
    out = caltune("apply-threshold", policy_file, surer).out
    assert "warning: these confidences do not look like those the policy was fitted on" in out
    assert "warning: more is wrong than a limit of 5.0\xa0% explains" in out
    assert "wrong among 200 answered with a label: 60 (30.0\xa0%)" in out


def test_what_a_policy_refuses(caltune, refused, policy_file, tmp_path):
    assert "must not meet questions it was fitted on" in refused(
        "apply-threshold", policy_file, tmp_path / "cal.parquet"
    )
    for change in ({"temperature": 2.0}, {"model": "other"}, {"answers": "continuations"}):
        other = sure(tmp_path / "other.parquet", 50, 5, **change)
        assert f"{next(iter(change))} " in refused("apply-threshold", policy_file, other)
    assert "must be a JSON file" in refused("apply-threshold", tmp_path / "cal.parquet", other)
    cal = tmp_path / "cal.parquet"
    assert "limit must lie between 0 and 1, got 2.0" in refused("threshold", cal, "--max-error", "2")
    crc = refused("threshold", cal, "--max-error", "0.1", "--method", "crc", "--confidence", "0.9")
    assert "takes no --confidence" in crc


def test_not_possible_is_a_result(caltune, tmp_path):
    few = sure(tmp_path / "few.parquet", 58, 0)
    result = caltune("threshold", few, "--max-error", "0.05", "-o", tmp_path / "none.json")
    assert result.status == 0
    assert "not possible with these data: it takes at least 59 questions without an error, got 58" in result.out
    assert strict_json(tmp_path / "none.json")["threshold"] is None
    tiny = caltune("threshold", few, "--max-error", "1e-17").out
    assert "it takes at least 299,573,227,355,39" in tiny  # ln 20 · 10¹⁷
    test = sure(tmp_path / "test.parquet", 20, 5)
    assert "answers 0 of 20 questions" in caltune("apply-threshold", tmp_path / "none.json", test).out
    bad = sure(tmp_path / "bad.parquet", 100, 100)
    out = caltune("threshold", bad, "--max-error", "0.05").out
    assert "too many are answered wrongly at every threshold tested on the 100 questions" in out
    even = sure(tmp_path / "even.parquet", 100, 100, confidence=(0.9, 0.9))
    out = caltune("threshold", even, "--max-error", "0.05", "--method", "crc").out
    assert "among the surest of the 100 questions too many are answered wrongly" in out
    for method in ("binomial", "crc"):
        out = caltune("threshold", few, "--max-error", "5e-324", "--method", method).out
        assert f"it takes at least {sys.maxsize:,} questions" in out


def test_crc_controls_all_questions(caltune, tmp_path):
    # (wrong + 1) / 401 ≤ 0.05: 19 of 400 may be answered wrongly, behind 300 that are right.
    cal = sure(tmp_path / "cal.parquet", 400, 100)
    out = caltune("threshold", cal, "--max-error", "0.05", "--method", "crc").out
    assert "at most 5.0\xa0% of all questions are answered wrongly" in out
    assert "answers 319 of 400 questions" in out
    # 19 of 319 answered; the bound is on all: (19 + 1) / 401.
    assert "wrong among the answered: 19 (6.0\xa0%); of all questions, counting one more, 5.0\xa0%" in out


def test_scores_that_say_nothing_of_their_making_are_not_checked(policy_file):
    policy = read_policy(policy_file)
    assert require_same_source(policy, {**MADE, "split": "later", "left_out": 3})
    assert not require_same_source(policy, {})
    assert not require_same_source(replace(policy, source={}), MADE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("limit", 0), ("limit", "x"), ("threshold", "x"), ("n", -1), ("method", "other"), ("fitted_on", [])),
        *(("confidences", [0.5]), ("source", []), ("answered", 1.5), ("bound", 10**400)),  # no float holds it
    ],
)
def test_broken_policy_files_are_named(policy_file, key, value):
    policy_file.write_text(json.dumps({**strict_json(policy_file), key: value}))
    with pytest.raises(InputError, match=rf"policy\.json: '{key}' must"):
        read_policy(policy_file)


def test_a_policy_survives_its_file(tmp_path):
    scores = OptionLogits(tuple(f"q{i}" for i in range(80)), [[2.0, 0.0]] * 80, [0] * 80)
    policy = replace(fit_threshold(scores.decide(), 0.1), source=MADE)
    write_policy(tmp_path / "policy.json", policy)
    assert read_policy(tmp_path / "policy.json") == policy
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(InputError, match="'threshold' is missing"):
        read_policy(tmp_path / "policy.json")
