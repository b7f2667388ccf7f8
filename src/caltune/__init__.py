"""caltune: fine-tune language models so that the probability on an answer is the probability that it is right."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["CalibrationConfig", "CalibrationTrainer", "OptionLogits", "Predictions", "Question", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: TRL and torch take seconds, and most of caltune needs neither.
    if name in ("CalibrationConfig", "CalibrationTrainer"):
        from caltune import trainer

        return getattr(trainer, name)
    if name in ("OptionLogits", "Predictions", "Question"):
        from caltune import types

        return getattr(types, name)
    raise AttributeError(f"module 'caltune' has no attribute {name!r}")
