"""What scoring has cost: questions, tokens and seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ScoringCost:
    """Filled by `score`: `tokens` were read in `places` of batches, in `seconds`; what several calls add is summed.

    `alone` are the tokens there would have been with each question's prompt read whole.

    >>> cost = ScoringCost(questions=30, tokens=900, alone=1500, places=1000, seconds=2.0)
    >>> cost.padding, cost.shared
    (0.1, 0.4)
    >>> print(cost)
    30 questions in 2.0 s: 15.0 a second, 900 tokens (beginnings in common saved 40 %), 10.0 % padding
    """

    questions: int = 0
    tokens: int = 0
    alone: int = 0
    places: int = 0
    seconds: float = 0.0

    @property
    def padding(self) -> float:
        """Share of the places that held no token; lower is better, 0 where nothing was read."""
        return (self.places - self.tokens) / self.places if self.places else 0.0

    @property
    def shared(self) -> float:
        """Share of the tokens that were not read because another question had the same beginning; 0 to 1."""
        return (self.alone - self.tokens) / self.alone if self.alone else 0.0

    def __str__(self) -> str:
        speed = self.questions / self.seconds if self.seconds else 0.0
        saved = f" (beginnings in common saved {100 * self.shared:.0f} %)" if self.shared else ""
        return (
            f"{self.questions:,} questions in {self.seconds:.1f} s: {speed:.1f} a second, "
            f"{self.tokens:,} tokens{saved}, {100 * self.padding:.1f} % padding"
        )
