"""Plain supervised fine-tuning, and CFT, which is the same thing on questions of one's domain.

Xiao et al. 2025, *Restoring Calibration for Aligned Large Language Models* (arXiv 2505.01997), eq. 5:

    L_SFT1 = −log π(answer | prompt)

By default the likelihood is normalised over the question's options, `answer_loss="tokens"` takes the paper's, over the
vocabulary. CFT is this loss on in-domain questions with the loss on the answer only, so it has no code of its own.
"""

from caltune.trainer import CalibrationConfig, CalibrationTrainer


class SFTConfig(CalibrationConfig):
    """Nothing to set beyond `CalibrationConfig`."""


class SFTTrainer(CalibrationTrainer):
    """`CalibrationTrainer` as it stands."""
