"""Places by NLL or answer Brier score: planted orders, equal models, few questions, other questions, infinite NLL."""

import json
import math

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.metrics import (
    answer_brier_per_question,
    compare,
    compare_answers,
    detectable_difference,
    nll_per_question,
    rank,
)
from caltune.metrics.ranking import rank_answers
from caltune.types import OptionLogits, Predictions


def truth(size=400, seed=0, prefix="q"):
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=(size, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1)[:, :3] < generator.random((size, 1))).sum(axis=1)
    return OptionLogits(tuple(f"{prefix}{i}" for i in range(size)), logits, labels)


def sharpened(scores, factor):
    return OptionLogits(scores.ids, factor * scores.logits, scores.labels)


def noisy(scores, seed, scale=1.0):
    noise = scale * np.random.default_rng(seed).normal(size=scores.logits.shape)
    return OptionLogits(scores.ids, scores.logits + noise, scores.labels)


def test_a_planted_order_is_found_whatever_the_order_of_rows_and_files():
    best = truth()
    files = {"far": sharpened(best, 4.0), "best": best, "near": sharpened(best.take(range(399, -1, -1)), 2.0)}
    found = rank(files)
    assert found.order == ("best", "near", "far")
    assert found.places == {"best": (1, 1), "near": (2, 2), "far": (3, 3)}
    assert all(pair.same_questions and pair.score.clear and not pair.accuracy.clear for pair in found.pairs)
    turned = rank(dict(reversed(files.items())))
    assert (turned.order, turned.places, turned.pairs) == (found.order, found.places, found.pairs)


def test_two_files_give_the_p_value_and_interval_of_the_paired_comparison():
    a = truth(300)
    ordered = a.take(sorted(range(300), key=a.ids.__getitem__))  # resamples go by sorted id
    b = noisy(ordered, 1)
    expected = compare(ordered, b, draws=300).metrics
    (pair,) = rank({"a": a, "b": b}, draws=300).pairs
    assert (pair.a, pair.b) == ("a", "b")
    for found, wanted in ((pair.score, expected["nll"]), (pair.accuracy, expected["accuracy"])):
        assert found.p_value == wanted.p_value
        for end in ("value", "low", "high"):
            assert getattr(found.difference, end) == pytest.approx(getattr(wanted.difference, end))
    variance = np.var(nll_per_question(b) - nll_per_question(ordered), ddof=1)
    assert pair.detectable == pytest.approx(detectable_difference(300, variance))


def test_equal_models_share_all_places_in_nearly_all_trials():
    # Five noisy copies of one truth. Holm keeps "any two told apart" at 5 %; ten pairs without it give about 25 %.
    apart = 0
    for trial in range(30):
        base = truth(150, seed=trial)
        found = rank({str(i): noisy(base, 100 * trial + i) for i in range(5)})
        assert set(found.order) == set("01234")
        apart += any(pair.score.clear for pair in found.pairs)
    assert apart <= 4


def test_a_middle_model_may_tie_with_both_neighbours_that_differ():
    base = truth(800)
    found = rank({"a": base, "b": sharpened(base, 1.15), "c": sharpened(base, 1.45)})
    clear = {(pair.a, pair.b): pair.score.clear for pair in found.pairs}
    for name, (first, last) in found.places.items():
        assert first == 1 + sum(value for (_, b), value in clear.items() if b == name)
        assert last == 3 - sum(value for (a, _), value in clear.items() if a == name)
    assert clear["a", "c"]
    assert found.places["a"][0] == 1
    assert found.places["c"][1] == 3


def test_p_values_of_many_files_can_still_be_clear():
    # Twelve files have 66 pairs: 1,000 draws could give at best 66 · 2 / 1001 = 0.13.
    base = truth(60)
    found = rank({str(i): sharpened(base, 1 if i else 30) for i in range(12)})
    assert found.order[-1] == "0"
    assert found.places["0"] == (12, 12)
    assert found.places["1"] == (1, 11)


def test_accuracy_may_differ_where_nll_does_not():
    base = truth(2000)
    # The right answer moved from first to second by a hair in 60 questions: little NLL, 3 points of accuracy.
    logits = base.logits.copy()
    rows = np.flatnonzero(logits.argmax(axis=1) == base.labels)
    rows = rows[np.argsort(np.partition(logits[rows], -2, axis=1)[:, -2] - logits[rows].max(axis=1))[-60:]]
    second = np.argsort(logits[rows], axis=1)[:, -2]
    logits[rows, second] = logits[rows].max(axis=1) + 1e-3
    (pair,) = rank({"a": base, "b": OptionLogits(base.ids, logits, base.labels)}).pairs
    sign = 1 if pair.b == "b" else -1
    assert sign * pair.accuracy.difference.value == pytest.approx(-0.03)
    assert pair.accuracy.clear


def test_other_questions_tie_where_intervals_meet():
    one, two = truth(300), truth(300, seed=1, prefix="other")
    found = rank({"one": one, "two": two, "bad": sharpened(truth(300, seed=2, prefix="third"), 6.0)})
    assert found.order[-1] == "bad"
    assert found.places == {"one": (1, 2), "two": (1, 2), "bad": (3, 3)}
    assert not any(pair.same_questions for pair in found.pairs)
    assert all(math.isnan(pair.score.p_value) and math.isnan(pair.detectable) for pair in found.pairs)


def test_other_labels_are_other_questions():
    one = truth(50)
    other = OptionLogits(one.ids, one.logits, (one.labels + 1) % 4)
    assert not rank({"one": one, "other": other}).pairs[0].same_questions


def test_infinite_nll_comes_last_and_two_of_them_are_ordered_by_brier():
    base = truth(100)
    logits = base.logits.copy()
    logits[0] = -np.inf
    logits[0, (base.labels[0] + 1) % 4] = 0.0
    ruled_out = OptionLogits(base.ids, logits, base.labels)
    found = rank({"worse": sharpened(ruled_out, 5.0), "ruled out": ruled_out, "base": base})
    assert found.order == ("base", "ruled out", "worse")
    undefined = found.pairs[2]
    assert math.isnan(undefined.score.p_value)
    assert not undefined.score.clear
    assert found.places["ruled out"][1] == found.places["worse"][1] == 3
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["base"]["against"][0]["nll"]["difference"]["value"] is None


def test_json_turns_differences_round():
    base = truth(200)
    found = rank({"a": base, "b": sharpened(base, 3.0)}).to_json()
    mine, theirs = found["a"]["against"][0], found["b"]["against"][0]
    assert (mine["file"], theirs["file"]) == ("b", "a")
    assert mine["nll"]["difference"]["value"] == -theirs["nll"]["difference"]["value"] < 0
    assert mine["nll"]["difference"]["low"] == -theirs["nll"]["difference"]["high"]
    assert mine["nll"]["difference"]["low"] < mine["nll"]["difference"]["value"] < mine["nll"]["difference"]["high"]
    assert mine["nll"]["clear"] is True


def test_one_file_and_one_question():
    assert rank({"a": truth(1)}).places == {"a": (1, 1)}
    two = rank({"a": truth(1), "b": sharpened(truth(1), 2.0)})
    # Resampling one question always gives the same difference, which says nothing of chance.
    assert set(two.places.values()) == {(1, 2)}
    assert math.isnan(two.pairs[0].detectable)
    assert math.isnan(two.pairs[0].score.p_value)
    # The same where the one question is another: two points never overlap.
    apart = rank({"a": truth(1), "b": sharpened(truth(1, prefix="other"), 2.0)})
    assert set(apart.places.values()) == {(1, 2)}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 20, 29])
def test_equal_models_are_never_told_apart_by_few_questions(size):
    # A bootstrap of one question called all of them different, of three a quarter, of eight 12 %.
    for trial in range(10):
        base = truth(size, seed=trial)
        files = {str(i): noisy(base, 100 * trial + i) for i in range(2)}
        files["other questions"] = noisy(truth(size, seed=trial, prefix="other"), trial)
        found = rank(files, draws=200)
        assert set(found.places.values()) == {(1, 3)}
        assert not any(gap.clear for pair in found.pairs for gap in (pair.score, pair.accuracy))
        compared = compare(files["0"], files["1"], draws=200).metrics
        assert {one.verdict for one in compared.values()} == {"no clear difference"}
        assert all(math.isnan(one.p_value) for one in compared.values())


def test_thirty_questions_are_enough_for_a_large_difference_and_29_are_not():
    sure, wrong = np.tile([3.0, 0.0], (30, 1)), np.tile([0.0, 3.0], (30, 1))
    a, b = (OptionLogits(tuple(map(str, range(30))), logits, [0] * 30) for logits in (sure, wrong))
    assert rank({"a": a, "b": b}).places == {"a": (1, 1), "b": (2, 2)}
    assert compare(a, b).metrics["nll"].verdict == "worse"
    other = OptionLogits(tuple(f"x{i}" for i in range(30)), wrong, [0] * 30)
    assert rank({"a": a, "other": other}).places == {"a": (1, 1), "other": (2, 2)}
    a, b, other = (one.take(range(29)) for one in (a, b, other))
    assert rank({"a": a, "b": b, "other": other}).places == dict.fromkeys(["a", "b", "other"], (1, 3))
    assert compare(a, b).metrics["nll"].verdict == "no clear difference"


def test_few_questions_that_differ_are_few_however_many_there_are():
    # Five of 400 answered better, the rest alike: five fair coins fall all one way in 2 of 32 cases, six in 2 of 64.
    base = truth(400)
    for changed, p_value in ((5, 0.0625), (6, 0.03125)):
        logits = base.logits.copy()
        rows = np.flatnonzero(base.logits.argmax(axis=1) != base.labels)[:changed]
        logits[rows, base.labels[rows]] = 9.0
        better = OptionLogits(base.ids, logits, base.labels)
        found, clear = compare(base, better).metrics, changed > 5
        (pair,) = rank({"a": base, "b": better}).pairs
        assert (pair.score.p_value, pair.accuracy.p_value) == (p_value, p_value)
        assert (pair.score.clear, pair.accuracy.clear) == (clear, clear)
        for name in ("accuracy", "brier", "nll"):
            assert found[name].p_value == p_value
            assert (found[name].verdict == "better") == clear
        mine, theirs = base.decide(), better.decide()
        assert compare_answers(mine, theirs).metrics["accuracy"].p_value == p_value


def test_what_shows_does_not_shrink_to_nothing_where_nothing_is_wrong():
    # Right at 0.96 and at 0.98: were one wrong, NLL would differ by ln 2 = 0.693 instead of −0.021.
    ids, logits = tuple(map(str, range(100))), [np.tile([math.log(c / (1 - c)), 0.0], (100, 1)) for c in (0.96, 0.98)]
    pair = rank({str(i): OptionLogits(ids, each, [0] * 100) for i, each in enumerate(logits)}, draws=50).pairs[0]
    assert pair.detectable == pytest.approx(
        2.801585 * math.sqrt(0.97 * 0.03 * (math.log(2) + math.log(0.98 / 0.96)) ** 2 / 100), rel=1e-5
    )
    ranked = rank_answers(
        {str(i): Predictions(ids, [c] * 100, [1] * 100) for i, c in enumerate((0.96, 0.98))}, draws=50
    )
    # (1 − c)² or c²: it differs by −0.0012 or 0.0388.
    assert ranked.pairs[0].detectable == pytest.approx(2.801585 * math.sqrt(0.97 * 0.03 * 0.04**2 / 100), rel=1e-5)


# Answers alone


def test_answers_are_ranked_by_brier_score_and_paired_by_id():
    generator = np.random.default_rng(0)
    chance = generator.random(300)
    right = (generator.random(300) < chance).astype(float)
    ids = tuple(map(str, range(300)))
    honest = Predictions(ids, chance, right)
    blunt = Predictions(ids[::-1], np.full(300, 0.5), right[::-1])
    sure = Predictions(ids, np.ones(300), right)  # its NLL is infinite
    found = rank_answers({"sure": sure, "blunt": blunt, "honest": honest})
    assert found.measure == "answer_brier"
    assert found.order == ("honest", "blunt", "sure")
    assert found.places == {"honest": (1, 1), "blunt": (2, 2), "sure": (3, 3)}
    assert all(pair.same_questions and not pair.accuracy.clear for pair in found.pairs)
    gap = np.mean(answer_brier_per_question(sure)) - np.mean(answer_brier_per_question(honest))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["sure"]["against"][0]["answer_brier"]["difference"]["value"] == pytest.approx(gap)
    assert "answer Brier score" in found._repr_html_()


def test_answers_of_equal_score_are_ordered_by_accuracy():
    ids = tuple(map(str, range(40)))
    # Wrong and knows it, against right and knows it: both have a Brier score of 0.
    found = rank_answers(
        {"wrong": Predictions(ids, [0.0] * 40, [0] * 40), "right": Predictions(ids, [1.0] * 40, [1] * 40)}
    )
    assert found.order == ("right", "wrong")
    assert found.places == {"right": (1, 2), "wrong": (1, 2)}
    assert found.pairs[0].accuracy.clear
    with pytest.raises(InputError, match="at least one set of scores, got none"):
        rank_answers({})


def test_a_ranking_needs_files_questions_and_labels():
    with pytest.raises(InputError, match="at least one set of scores, got none"):
        rank({})
    with pytest.raises(InputError, match="a: a ranking needs at least one question, got none"):
        rank({"a": OptionLogits((), np.empty((0, 2)), [])})
    with pytest.raises(InputError, match="no label"):
        rank({"a": OptionLogits(("q",), [[0.0, 1.0]], [-1])})
    with pytest.raises(InputError, match="draws must be at least 1"):
        rank({"a": truth(3)}, draws=0)


def test_files_of_one_width_less_are_ranked_with_the_others():
    generator = np.random.default_rng(0)
    wide = OptionLogits(tuple(map(str, range(60))), generator.normal(size=(60, 4)), generator.integers(0, 3, 60))
    narrow = OptionLogits(wide.ids, wide.logits[:, :3], wide.labels)
    [pair] = rank({"wide": wide, "narrow": narrow}, draws=50).pairs
    assert 0 < pair.detectable < 1


def test_a_mask_leaves_what_can_be_seen_as_it_is():
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(60, 4)), generator.integers(0, 3, 60)
    logits[:5, 3] = -1e4
    masked = OptionLogits(tuple(map(str, range(60))), logits, labels)
    other = OptionLogits(masked.ids, generator.normal(size=(60, 4)), labels)
    assert rank({"masked": masked, "other": other}, draws=50).pairs[0].detectable < 2


def test_five_questions_of_a_hundred_all_one_way_are_too_few_for_every_metric():
    ids, confidence = tuple(map(str, range(100))), np.linspace(0.6, 0.9, 100)
    right = (np.arange(100) % 4 > 0).astype(float)
    other = right.copy()
    other[np.flatnonzero(right == 0)[:5]] = 1.0
    found = compare_answers(Predictions(ids, confidence, right), Predictions(ids, confidence, other)).metrics
    for name in ("accuracy", "overconfidence", "ece", "ece_mass", "smooth_ece", "auroc"):
        assert found[name].p_value >= 2 ** (1 - 5), name
    assert found["confidence"].p_value == 1.0
