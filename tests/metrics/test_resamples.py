"""Resamples are draws with replacement, whichever way they are drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chisquare, ks_2samp, kstest, poisson

from caltune.metrics import resamples as module
from caltune.metrics.resamples import _by_count, _by_question, _poisson, resamples

WAYS = (_by_question, _by_count)


@pytest.mark.parametrize("size", [1, 2, 4_999, 5_000, 60_000, 100_001])
def test_every_row_holds_as_many_questions_as_there_are(size: int) -> None:
    counts = np.concatenate(list(resamples(size, 5, seed=1)))
    assert counts.shape == (5, size)
    assert counts.sum(axis=1).tolist() == [size] * 5
    assert counts.min() >= 0
    assert np.array_equal(counts, np.round(counts))


@pytest.mark.parametrize("size", [30, 6_000])
def test_seeds_decide(size: int) -> None:
    first, again, other = (np.concatenate(list(resamples(size, 40, seed))) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first, axis=0)) == 40  # no two chunks alike


@pytest.mark.parametrize("draw", WAYS)
def test_a_question_occurs_binomially_often(draw: Any) -> None:
    """How often one of 100 questions occurs is binomial (100, 1/100): also with only 100, where the rate is 0.75."""
    counts = draw(100, 20_000, np.random.default_rng(0))
    for question in (0, 57, 99):
        found = np.bincount(np.minimum(counts[:, question].astype(int), 5), minlength=6)
        expected = np.append(binom.pmf(range(5), 100, 0.01), binom.sf(4, 100, 0.01)) * 20_000
        assert chisquare(found, expected).pvalue > 0.001


@pytest.mark.parametrize("draw", WAYS)
def test_questions_are_drawn_together_as_they_must(draw: Any) -> None:
    """Of 6,000 the first 2,000 occur binomially (6,000, 1/3) often in all: that needs their right covariance."""
    together = np.concatenate([draw(6_000, 16, np.random.default_rng(k))[:, :2_000].sum(axis=1) for k in range(60)])
    exact = binom(6_000, 1 / 3)
    shares = np.random.default_rng(0).random(len(together))  # of a count's own probability
    assert kstest(exact.cdf(together - 1) + shares * exact.pmf(together), "uniform").pvalue > 0.001
    assert abs(together.std() / exact.std() - 1) < 0.1


def test_both_ways_give_a_mean_the_same_spread() -> None:
    values = np.random.default_rng(5).exponential(size=6_000)
    means = [np.concatenate([draw(6_000, 16, np.random.default_rng(k)) @ values for k in range(60)]) for draw in WAYS]
    assert ks_2samp(*means).pvalue > 0.001
    standard_error = values.std() * math.sqrt(6_000)
    assert all(abs(found.std() / standard_error - 1) < 0.1 for found in means)


def test_poisson_numbers_to_the_last_of_the_tail() -> None:
    found = np.bincount(_poisson(0.97, 4_000_000, np.random.default_rng(2)).astype(int), minlength=10)
    assert found[9:].sum() > 0  # far beyond the numbers that have cells of their own: 3 expected
    expected = np.append(poisson.pmf(range(7), 0.97), poisson.sf(6, 0.97)) * 4_000_000
    assert chisquare(np.append(found[:7], found[7:].sum()), expected).pvalue > 0.001


def test_a_row_with_too_many_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def too_many_at_first(rate: float, count: int, generator: np.random.Generator) -> np.ndarray:
        calls.append(count)
        return np.ones(count) * (2 if len(calls) < 3 else 1)

    monkeypatch.setattr(module, "_poisson", too_many_at_first)
    assert _by_count(100, 2, np.random.default_rng(0)).tolist() == [[1.0] * 100] * 2
    assert calls == [200, 100, 100, 100]
