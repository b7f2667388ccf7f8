"""What a checkpoint of ours holds beside that of `Trainer`, and what cannot be saved as it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from caltune.card import CARD, write_card
from caltune.errors import InputError
from caltune.models import TEMPERATURE_FILE, option_temperature, save_option_temperature

BY_TRL = "generated_from_trainer"  # a tag of every card that TRL writes
STATE_FILE = "calibration_state.json"  # beside the optimizer's state in a checkpoint


class Checkpoints(Trainer):
    """The part of `CalibrationTrainer` that saves and resumes: option temperature, method and average of weights."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        save_option_temperature(output_dir or self.args.output_dir, self.accelerator.unwrap_model(self.model))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card in the output folder, with the calibration of the last evaluation, if any, and its diagram.

        A card that TRL did not write, as a user's own, stays as it is but for the calibration.
        """
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir, CARD)
        if not path.exists() or BY_TRL in path.read_text(encoding="utf-8", errors="replace"):
            super().create_model_card(*args, **kwargs)
            card = path.read_text(encoding="utf-8").replace("[None](https://huggingface.co/None)", "a local model")
            path.write_text(card.replace('model="None"', f"model={json.dumps(path.parent.name)}"), encoding="utf-8")
        if self.evaluated is not None:
            how = {name: getattr(self.args, name) for name in ("answers", "reduction", "template")}
            write_card(path.parent, self.evaluated, told={"step": self.state.global_step, **how})

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # What is pushed lies in the output folder, and only files that transformers knows are copied there.
        temperature = Path(checkpoint_folder, TEMPERATURE_FILE)
        if temperature.is_file():
            shutil.copy(temperature, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            temperature = option_temperature(self.accelerator.unwrap_model(self.model))
            state = {"option_temperature": temperature, "method": self.method_state()}
            Path(output_dir, STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            for average in self.averages:
                average.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and Path(checkpoint, STATE_FILE).is_file():
            state = json.loads(Path(checkpoint, STATE_FILE).read_text(encoding="utf-8"))
            self.accelerator.unwrap_model(self.model).config.option_temperature = state["option_temperature"]
            self.restore_method_state(state["method"])
            self.state_restored = True
            for average in self.averages:
                average.load(checkpoint)
        elif checkpoint is not None and (self._config.option_temperature is not None or self.averages):
            what = "so option_temperature and average_weights cannot be taken up; save_only_model leaves it out"
            raise InputError(f"{checkpoint}: has no {STATE_FILE}, {what}")


def require_whole_weights(trainer: Any) -> None:
    """Raise `InputError` for what cannot be done, or would not be saved: with virtual tokens, or spread-out weights."""
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        if adapter.is_prompt_learning:  # virtual tokens have no place in the rows that questions share
            raise InputError(f"peft_config must adapt weights, as LoRA does, got {type(adapter).__name__}")
    for name in ("question_loss_weight", "average_weights"):
        if getattr(trainer.args, name) and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise InputError(f"{name} above 0 needs one process or DDP, got FSDP or DeepSpeed")
    if trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled():
        raise InputError("zero_stage must be 1 or 2, got 3; FSDP spreads weights out, too")
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is not None and (plugin.fsdp_version != 2 or "FULL" not in str(plugin.state_dict_type)):
        got = f"{plugin.fsdp_version} and {plugin.state_dict_type}"
        raise InputError(f"FSDP needs fsdp_version 2 and fsdp_state_dict_type FULL_STATE_DICT, got {got}")
