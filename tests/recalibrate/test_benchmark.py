"""The benchmark of recalibrators: tests drawn with known weights, and what such weights are worth."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from synthetic import random_scores

from caltune.data import load_questions
from caltune.formats import write_scores
from caltune.metrics import nll
from caltune.types import OptionLogits, Question

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import recalibration
import recalibration_scores


def by_length(size: int, seed: int = 0) -> recalibration.Part:
    """Questions 1 to `size` characters long; of the longer half the model is four times too sure, of others right."""
    short, long = (random_scores(size // 2, seed=seed + i, sharpness=sharp) for i, sharp in enumerate((1.0, 4.0)))
    scores = OptionLogits(
        tuple(f"q{i}" for i in range(2 * (size // 2))),
        np.concatenate([short.logits, long.logits]),
        np.concatenate([short.labels, long.labels]),
    )
    return recalibration.Part(scores, lengths=np.arange(1.0, len(scores) + 1))


def test_a_test_of_longer_questions_has_them_as_often_as_its_weights_say():
    source = by_length(4000)
    draw = partial(recalibration.reweighted, recalibration_scores.length_weights)
    fit, test = draw(source, 500, np.random.default_rng(0))
    assert not set(fit.scores.ids) & set(test.scores.ids)
    assert set(fit.weights[fit.lengths > 2000]) == {6.0}
    assert set(fit.weights[fit.lengths <= 2000]) == {1.0}
    # 6 to 1 among the test's, half and half among the others.
    assert (test.lengths > 2000).mean() == pytest.approx(6 / 7, abs=0.03)
    assert (fit.lengths > 2000).mean() == pytest.approx(1 / 2, abs=0.07)


def test_known_weights_come_nearer_to_the_oracle():
    draw = partial(recalibration.reweighted, recalibration_scores.length_weights)
    fit, test = draw(by_length(6000, seed=5), 1000, np.random.default_rng(1))
    methods = recalibration.methods_for("reweighted", by_length(100))
    found = {name: nll(methods[name](fit, test)) for name in ("temperature", "shift, known weights", "oracle")}
    assert found["oracle"] <= found["shift, known weights"] < found["temperature"] - 0.005
    assert found["shift, known weights"] == pytest.approx(found["oracle"], abs=0.003)


def test_lengths_make_a_setting_where_they_are_known():
    known, unknown = by_length(2000), recalibration.Part(random_scores(2000))
    found = recalibration.settings_of({"known": [known], "unknown": [unknown]})
    assert list(found) == ["known", "known, longer", "unknown"]
    assert (found["known"][3], found["known, longer"][3]) == (1600, 1200)
    path = recalibration.result_path(Path("x"), "known, longer", 50, [known], quick=True)
    assert path.name == "known-longer-50-of-2000-quick.json"


def test_lengths_are_kept_with_the_scores_or_found_in_world_facts(tmp_path):
    assert recalibration_scores.length(Question("q", "Why?", ("ab", "c"), 0)) == 7
    for number in range(2):
        path = recalibration_scores.piece(tmp_path, "stem", number)
        path.parent.mkdir(exist_ok=True)
        scores = random_scores(3, seed=number, first=3 * number)
        write_scores(path, scores, {"lengths": [7, 8, 9]}, features=np.ones((3, 2)))
    read = recalibration_scores.read_source(tmp_path, "stem")
    assert read is not None
    assert read[2].tolist() == [7, 8, 9] * 2
    write_scores(path, scores, {}, features=np.ones((3, 2)))  # scored before lengths were kept
    assert recalibration_scores.read_source(tmp_path, "stem")[2] is None
    some = load_questions("world-facts", "test")[:3]
    wanted = [recalibration_scores.length(one) for one in some]
    assert recalibration_scores.world_lengths([one.id for one in some]).tolist() == wanted
