"""One paper a file: equation, config, trainer."""

from caltune.methods.brier import BrierConfig, BrierTrainer
from caltune.methods.cogcalib import CogCalibConfig, CogCalibTrainer
from caltune.methods.dece import DECEConfig, DECETrainer
from caltune.methods.entropy import EntropyConfig, EntropyTrainer
from caltune.methods.focal import FocalConfig, FocalTrainer
from caltune.methods.label_smoothing import LabelSmoothingConfig, LabelSmoothingTrainer
from caltune.methods.margin import MarginConfig, MarginTrainer
from caltune.methods.mixup import MixupConfig, MixupTrainer
from caltune.methods.rcft import RCFTConfig, RCFTTrainer
from caltune.methods.sft import SFTConfig, SFTTrainer
from caltune.methods.tempered import TemperedConfig, TemperedTrainer

__all__ = [
    "BrierConfig",
    "BrierTrainer",
    "CogCalibConfig",
    "CogCalibTrainer",
    "DECEConfig",
    "DECETrainer",
    "EntropyConfig",
    "EntropyTrainer",
    "FocalConfig",
    "FocalTrainer",
    "LabelSmoothingConfig",
    "LabelSmoothingTrainer",
    "MarginConfig",
    "MarginTrainer",
    "MixupConfig",
    "MixupTrainer",
    "RCFTConfig",
    "RCFTTrainer",
    "SFTConfig",
    "SFTTrainer",
    "TemperedConfig",
    "TemperedTrainer",
]
