"""Maps fitted on some questions that make the probabilities on others better calibrated. numpy only."""

from caltune.recalibrate.temperature import Temperature, fit_temperature

__all__ = ["Temperature", "fit_temperature"]
