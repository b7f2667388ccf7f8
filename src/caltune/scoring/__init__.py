"""Model and prompts to `OptionLogits`."""

from caltune.scoring.engine import encode_questions, score

__all__ = ["encode_questions", "score"]
