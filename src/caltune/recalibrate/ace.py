"""ACE: between a calibrator for easy questions and one for hard ones, as sure as the new questions look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.guards import largest_at_zero, read_ids, read_number, read_object, require_fit, require_unseen
from caltune.recalibrate.shift import fit_weighted_temperature
from caltune.recalibrate.temperature import Temperature
from caltune.types import OptionLogits


@dataclass(frozen=True, slots=True)
class AdaptiveEnsemble:
    """p = α·softmax(z / `easy`) + (1 − α)·softmax(z / `hard`), α = mean confidence here / `confidence`, cut to [0, 1].

    α is one number for all questions given at once, from the model's own confidence, without labels: the same question
    gets another confidence in other company, and questions must come as the set they belong to. Both calibrators are
    temperatures, so the answer and the order of options stay. Questions fitted on are refused.

    Raises `InputError` for a temperature that is not positive or a confidence outside (0, 1].

    Mean confidence 0.8808 here and there: α = 1 and only the easy temperature acts.

    >>> ace = AdaptiveEnsemble(easy=2.0, hard=4.0, confidence=0.8808)
    >>> ace(OptionLogits(("a",), [[2.0, 0.0]], [0])).probabilities().round(4).tolist()
    [[0.7311, 0.2689]]
    """

    easy: float
    hard: float
    confidence: float
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        Temperature(self.easy)
        Temperature(self.hard)
        if not 0 < self.confidence <= 1:
            raise InputError(f"the mean confidence must lie in (0, 1], got {self.confidence}")

    def share(self, scores: OptionLogits) -> float:
        """α, the easy calibrator's share for these questions; below 1 where the model is less sure than it was."""
        return min(1.0, _mean_confidence(scores) / self.confidence)

    def __call__(self, scores: OptionLogits, /) -> OptionLogits:
        """The same questions with the mixed probabilities.

        Raises `InputError` without questions, or when one was fitted on.
        """
        require_unseen("the ensemble", scores.ids, self.fitted_on)
        if not len(scores):
            raise InputError("the ensemble needs questions to tell how hard they are, got none")
        alpha = self.share(scores)
        easy, hard = (Temperature(t)(scores).log_probabilities() for t in (self.easy, self.hard))
        with np.errstate(divide="ignore"):
            mixed = np.logaddexp(np.log(alpha) + easy, np.log1p(-alpha) + hard)
        return largest_at_zero(scores, mixed)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> AdaptiveEnsemble(2.0, 4.0, 0.9, ("a",)).to_json()
        {'easy': 2.0, 'hard': 4.0, 'confidence': 0.9, 'fitted_on': ['a']}
        """
        numbers = {name: getattr(self, name) for name in ("easy", "hard", "confidence")}
        return {**numbers, "fitted_on": list(self.fitted_on)}

    @classmethod
    def from_json(cls, data: Any) -> AdaptiveEnsemble:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("an adaptive ensemble", data, ("easy", "hard", "confidence", "fitted_on"))
        easy, hard, confidence = (read_number(data, name) for name in ("easy", "hard", "confidence"))
        return cls(easy, hard, confidence, read_ids(data))


def fit_adaptive_ensemble(scores: OptionLogits, ratio: float | None = None) -> AdaptiveEnsemble:
    """Two temperatures: for the questions as they are, and for a set with `ratio` right answers to a wrong one.

    Zou, Deng, Zheng 2023 (Adaptive calibrator ensemble). They draw the hard set from the questions; ours
    weights wrong and right answers to the same ratio, which is the mean over all such draws. The paper's ratio for 4
    options is 0.5. `ratio=None` is 1.5·q / (1 − q), q the mean of 1/K: 0.5 for 4 options, 1.5 for 2, always a little
    better than chance, without which no temperature would be best.

    Raises `InputError` when the questions are not easier than `ratio`, and as `fit_weighted_temperature` does.

    Logits 2 and 0: 9 in 10 right gives 2 / ln 9; 1.5 right to a wrong one is 0.6 = σ(2 / T), so 2 / ln 1.5.

    >>> scores = OptionLogits(ids=tuple("abcdefghij"), logits=[[2.0, 0.0]] * 10, labels=[0] * 9 + [1])
    >>> fitted = fit_adaptive_ensemble(scores)
    >>> round(fitted.easy, 4), round(fitted.hard, 4), round(fitted.confidence, 4)
    (0.9102, 4.9326, 0.8808)
    """
    require_fit("an adaptive ensemble", scores)
    correct = scores.decide().correct
    if ratio is None:
        chance = float((1 / np.isfinite(scores.logits).sum(axis=1)).mean())
        if chance == 1:
            raise InputError("an adaptive ensemble needs questions with two options or more, got one each")
        ratio = 1.5 * chance / (1 - chance)
    right, wrong = float(correct.sum()), float((1 - correct).sum())
    if not 0 < ratio * wrong < right:
        raise InputError(
            f"the questions must have more than {ratio:g} right answers to a wrong one, and wrong ones among them, "
            f"got {right:.0f} right and {wrong:.0f} wrong"
        )
    easy = fit_weighted_temperature(scores, np.ones(len(scores)))
    hard = fit_weighted_temperature(scores, np.where(correct == 1, ratio * wrong / right, 1.0))
    return AdaptiveEnsemble(easy.temperature, hard.temperature, _mean_confidence(scores), scores.ids)


def _mean_confidence(scores: OptionLogits) -> float:
    return float(scores.probabilities().max(axis=1).mean())
