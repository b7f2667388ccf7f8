"""One paper a file: equation, config, trainer."""

from caltune.methods.cogcalib import CogCalibConfig, CogCalibTrainer
from caltune.methods.rcft import RCFTConfig, RCFTTrainer
from caltune.methods.sft import SFTConfig, SFTTrainer

__all__ = ["CogCalibConfig", "CogCalibTrainer", "RCFTConfig", "RCFTTrainer", "SFTConfig", "SFTTrainer"]
