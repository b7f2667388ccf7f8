"""What a checkpoint of ours holds beside that of `Trainer`, and what cannot be saved as it should."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from caltune.card import BEGIN, CARD, remove_section, write_card
from caltune.errors import InputError
from caltune.models import TEMPERATURE_FILE, option_temperature, save_option_temperature
from caltune.types import OptionLogits, Question

BY_TRL = b"generated_from_trainer"  # a tag in the front matter of every card that TRL writes
STATE_FILE = "calibration_state.json"  # beside the optimizer's state in a checkpoint
RENDERING = ("answers", "reduction", "template")  # settings that say how a question becomes option logits


@dataclass(frozen=True, slots=True)
class Measured:
    """The questions of an evaluation, the prefix of its metrics and the weights it was of, as the card tells them."""

    scores: OptionLogits
    prefix: str
    weights: str


class Checkpoints(Trainer):
    """The part of `CalibrationTrainer` that saves and resumes: option temperature, method and average of weights.

    It also measures what is saved, for the model card.
    """

    told: dict[str, object] | None = None  # what the card tells of the questions that are evaluated
    fits_on_training = True  # whether what a method has fitted rests on the training questions
    fits_on_calibration = False  # whether it rests on the calibration questions
    state_needed = False  # whether going on without the method's state would be wrong, and not only a new fit
    state_restored = False
    evaluated: OptionLogits | None = None  # the questions of the last evaluation
    _measured: Measured | None = None
    _left: str | None = None  # the weights that a training has left, where they are not those of its last step

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        # PEFT's blank card would be taken for a user's, or take the place of one, and PEFT adds to a user's.
        model.create_or_update_model_card = lambda *_: None
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.create_or_update_model_card
        if self.args.should_save:
            save_option_temperature(folder, model)
            card = _bytes_of(folder / CARD)
            if BEGIN.encode() in card or _is_by_trl(card):  # of a checkpoint, or of an earlier run
                self._tell(folder)

    # What a method may override.

    def state_rests_on(self) -> dict[str, Any]:
        """Settings, as JSON holds them, that must be the same for `method_state` to be taken over."""
        return {}

    # The weights that are saved, measured.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and where an evaluation was asked for see to it that the last one is of the weights that are left."""
        self._measured = self._left = None
        result = super().train(*args, **kwargs)
        for average in self.averages:
            if average.count > 1 and self.state.global_step >= average.first(self.state):
                self._left = f"{self.state.global_step}, weights averaged over the last {average.count} steps"
        if self.args.eval_strategy != "no":
            self._measure_left()
        return result

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(str(self.state.best_model_checkpoint))
        # Without weights there transformers has warned, and kept the last ones.
        if [*best.glob("*model*.safetensors"), *best.glob("*model*.bin")]:
            self._left = best.name.rpartition("-")[2]
            found = [path for name in (TEMPERATURE_FILE, "config.json") if (path := best / name).is_file()]
            for path in found[:1] if self._config.option_temperature_refit else []:  # it may have been another one then
                kept = json.loads(path.read_text(encoding="utf-8"))["option_temperature"]
                self.accelerator.unwrap_model(self.model).config.option_temperature = kept

    @property
    def _weights(self) -> str:
        return self._left or str(self.state.global_step)

    def _measure_left(self) -> None:
        several = isinstance(self.eval_dataset, dict)
        parts = self.eval_dataset if several else {"": self.eval_dataset}
        asked = {name: data for name, data in parts.items() if data is not None and "option_ids" in data.column_names}
        if not asked or (self._measured is not None and self._measured.weights == self._weights):
            return
        if self.args.load_best_model_at_end and self._left:  # its evaluation is in the log already, at its own step
            name, data = list(asked.items())[-1]
            prefix = f"eval_{name}" if several else "eval"
            self.predict(data, metric_key_prefix=prefix)
            self._note(prefix)
        else:
            self.evaluate()

    def evaluate(self, eval_dataset: Any = None, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer` does, and keep the questions for the card."""
        metrics: dict[str, float] = super().evaluate(eval_dataset, **kwargs)
        if not isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):  # its parts came by here
            self._note(kwargs.get("metric_key_prefix", "eval"))
        return metrics

    def _note(self, prefix: str) -> None:
        if self.evaluated is not None:
            self._measured = Measured(self.evaluated, prefix, self._weights)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card in the output folder, with calibration and diagram where the present weights have been evaluated.

        A card that TRL did not write, as a user's own, stays as it is but for the calibration.
        """
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir, CARD)
        if not path.exists() or _is_by_trl(_bytes_of(path)):
            super().create_model_card(*args, **kwargs)
            card = path.read_text(encoding="utf-8").replace("[None](https://huggingface.co/None)", "a local model")
            path.write_text(card.replace('model="None"', f"model={json.dumps(path.parent.name)}"), encoding="utf-8")
        self._tell(path.parent)

    def _tell(self, folder: Path) -> None:
        """Put the calibration of the present weights into a folder's card; where it is not known, take it out."""
        measured = self._measured
        if measured is None or measured.weights != self._weights:
            remove_section(folder)
            return
        told = {**(self.told or {}), "step": measured.weights}
        if measured.prefix != "eval":
            name = measured.prefix.removeprefix("eval_")
            several = isinstance(self.eval_dataset, dict) and name in self.eval_dataset
            told["set"] = f"{name}, of {', '.join(self.eval_dataset)}" if several else name
        how = {name: getattr(self.args, name) for name in RENDERING}
        write_card(folder, measured.scores, told={**told, **how})

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
            state = {"of": self._state_of(), "option_temperature": temperature, "method": self.method_state()}
            state["first_pass"] = self.tempering.state()
            Path(output_dir, STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            for average in self.averages:
                average.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        state = None if checkpoint is None else self._read_state(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)
        if state is not None:
            self.accelerator.unwrap_model(self.model).config.option_temperature = state["option_temperature"]
            self.tempering.restore(state.get("first_pass", {}))
            self.restore_method_state(state["method"])
            self.state_restored = True
            for average in self.averages:
                average.load(checkpoint)

    def _read_state(self, checkpoint: str) -> dict[str, Any] | None:
        """A checkpoint's `STATE_FILE`, None where there is none and none is needed.

        Raises `InputError` for one that is missed, broken, or of another method, other settings or other questions.
        """
        path = Path(checkpoint, STATE_FILE)
        if not path.is_file():
            fitted = {
                "option_temperature": self._config.option_temperature is not None,
                "average_weights": bool(self.averages),
                f"what {self._name} fits": self.state_needed,
            }
            lost = " and ".join(name for name, is_lost in fitted.items() if is_lost)
            if lost:
                why = f"so {lost} cannot be taken up; save_only_model leaves it out"
                raise InputError(f"{checkpoint}: has no {STATE_FILE}, {why}")
            return None
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: must be JSON, got {error}") from error
        if "of" not in state:
            raise InputError(f"{path}: must tell its method under 'of', got none; it is an earlier caltune's")
        present = self._state_of(whole=True)
        for name, saved in {"option_temperature_refit": False, **state["of"]}.items():  # older ones do not tell
            if present.get(name) != saved:
                raise InputError(f"{checkpoint}: {name} must be as before, {saved!r}, got {present.get(name)!r}")
        if self.method_state() and not state["method"]:
            raise InputError(f"{path}: must hold what {self._name} has fitted, got nothing")
        return state

    def _state_of(self, *, whole: bool = False) -> dict[str, Any]:
        """What a checkpoint's state goes with: the method, and what that which is fitted comes from."""
        names = ("option_temperature", "option_temperature_refit")
        found: dict[str, Any] = {"method": self._name, **{name: getattr(self._config, name) for name in names}}
        fits_temperature = whole or self._config.option_temperature == 0 or self._config.option_temperature_refit
        fits = whole or bool(self.method_state())
        if fits or fits_temperature:
            found |= {name: getattr(self.args, name) for name in RENDERING}
        if fits:
            found |= self.state_rests_on()
        if fits_temperature or (fits and self.fits_on_training):
            found["training questions"] = question_digest(self.train_questions)
        if whole or (fits and self.fits_on_calibration):
            found["calibration questions"] = question_digest(self.calibration_questions)
        return found


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""  # a user's own need not be text


def _is_by_trl(card: bytes) -> bool:
    """Whether a card's front matter says so; what its text says is a user's."""
    return card.startswith(b"---") and BY_TRL in card.split(b"---", 2)[1]


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that differ where the value, as JSON, does."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def question_digest(questions: Sequence[Question]) -> str:
    """How many questions, and a digest of their texts, options and answers in order; not of ids, which may be places.

    >>> one, two = Question("a", "1 + 1?", ("2", "3"), 0), Question("b", "1 + 2?", ("2", "3"), 1)
    >>> question_digest([one, two]), question_digest([two, one])
    ('2, digest 458c6b6f46a0', '2, digest 73ea217a3519')
    """
    return f"{len(questions)}, digest {digest([[q.text, q.options, q.answer] for q in questions])}"


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
