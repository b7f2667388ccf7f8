"""CogCalib: a calibration term on the questions the model already knows, plain fine-tuning on the others.

Wang et al. 2025, *Towards Objective Fine-tuning* (arXiv 2505.20903), eq. 7:

    L = L_CE + 1[NLL(answer) ≤ t]·α·L_cal

L_cal is label smoothing (CoLS), a margin (CoMbLS) or an entropy penalty (CoECP). A short warm-up without it adapts the
model to the style of the answers; then t is fitted on calibration questions, and again at each epoch's begin, since
what is known changes. Where the training questions' categories are given, there is no t. `docs/papers.md` lists where
this departs from the paper, which has no public code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback

from caltune.checkpoints import digest
from caltune.collator import AnswerOutputs
from caltune.errors import InputError, require
from caltune.formats import read_knowledge
from caltune.knowledge import Detector, detector_accuracy, fit_detector
from caltune.losses import entropy_penalty, label_smoothing_loss, margin_penalty
from caltune.trainer import CalibrationConfig, CalibrationTrainer
from caltune.types import Question


@dataclass
class CogCalibConfig(CalibrationConfig):
    """Which calibration term, how strong, on which distribution, and the detector."""

    penalty: str = field(
        default="label-smoothing", metadata={"help": "L_cal: label-smoothing (CoLS), margin (CoMbLS), entropy (CoECP)."}
    )
    penalty_weight: float = field(default=1.0, metadata={"help": "α, the weight of L_cal on known questions."})
    penalty_on: str = field(
        default="options",
        metadata={"help": "Softmax that L_cal acts on: the question's options, or the vocabulary at the answer."},
    )
    smoothing: float = field(default=0.1, metadata={"help": "s of label smoothing."})
    margin: float = field(default=2.0, metadata={"help": "m of the margin; the published 10 suits the vocabulary."})
    style_share: float = field(
        default=0.05, metadata={"help": "Share of the steps (at least one) that adapt to the answers' style first."}
    )
    refresh: str = field(
        default="epoch",
        metadata={"help": "When t is fitted: epoch (after the style steps, and at each epoch) or once."},
    )
    knowledge: str | None = field(
        default=None,
        metadata={"help": "Knowledge file with every training question: its categories take the detector's place."},
    )
    calibration_knowledge: str | None = field(
        default=None,
        metadata={
            "help": "Knowledge file with every calibration question: the detector's ground truth, in place of whether "
            "the model's best option is right before training."
        },
    )

    fits_under_temperature = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("penalty", self.penalty, ("label-smoothing", "margin", "entropy"))
        require("penalty_on", self.penalty_on, ("options", "vocabulary"))
        require("refresh", self.refresh, ("epoch", "once"))
        if self.knowledge and self.calibration_knowledge:
            raise InputError(
                "calibration_knowledge is for the detector, whose place knowledge takes: give one of them, got "
                f"{self.calibration_knowledge!r} and {self.knowledge!r}"
            )
        for name, low, high in (
            ("penalty_weight", 0, math.inf),
            ("smoothing", 0, 1),
            ("margin", 0, math.inf),
            ("style_share", 0, 1),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                raise InputError(f"{name} must be finite and in [{low}, {high}], got {value}")


class CogCalibTrainer(CalibrationTrainer):
    """Needs calibration questions, which the detector's threshold is fitted on, or the categories of what it trains on.

    Ground truth of what is known is whether the model's best option is right before the first step, or a file.
    """

    _name = "CogCalib"
    config_class = CogCalibConfig

    def __init__(self, model: Any, args: CogCalibConfig | None = None, **kwargs: Any) -> None:
        args = args or CogCalibConfig("caltune-output")
        super().__init__(model, args, **kwargs)
        self.given: Tensor | None = None  # (N,), 1 where a training question is known
        self.known = np.zeros(0, dtype=bool)  # of the calibration questions, before training
        self.detector: Detector | None = None
        if args.knowledge:
            known = _known(args.knowledge, self.train_questions)
            self.given = torch.tensor(known, dtype=torch.float32, device=self.accelerator.device)
        elif not self.calibration_questions:
            raise InputError("cogcalib fits its detector on calibration questions, got none (and no knowledge file)")
        elif args.calibration_knowledge:
            self.known = _known(args.calibration_knowledge, self.calibration_questions)
        self.fits_on_training, self.fits_on_calibration = self.given is not None, self.given is None
        # What was known before training is lost without it, unless a file tells; and so is a threshold fitted once.
        self.state_needed = self.given is None and not (args.calibration_knowledge and args.refresh == "epoch")
        self.add_callback(_AfterStyle(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Note what the model knows before it learns anything; a checkpoint brings its own note."""
        if self.given is None and not len(self.known):
            self.known = self.present_logits(self.calibration_rows).decide().correct > 0
        self.detector = None
        return super().train(*args, **kwargs)

    @property
    def style_steps(self) -> int:
        """Optimizer steps of plain fine-tuning before the calibration term sets in."""
        return max(1, math.ceil(self.args.style_share * self.state.max_steps))

    def refresh(self) -> None:
        """Fit the detector anew, once the style has been adapted, and log how well it tells what was known."""
        due = self.given is None and self.state.global_step >= self.style_steps
        if not due or (self.detector is not None and self.args.refresh == "once"):
            return
        nll = -self.present_logits(self.calibration_rows).log_probabilities()
        answer = nll[np.arange(len(nll)), self.calibration_rows["label"]]
        self.detector = fit_detector(answer, self.known)
        ids = [question.id for question in self.calibration_questions]
        is_due = self.control.should_log  # the step's own log, which the one here would cancel
        found = {
            "detector_threshold": self.detector.threshold,  # infinite where all, or none, were known
            "detector_known_share": float((answer <= self.detector.threshold).mean()),
            "detector_true_share": float(self.known.mean()),
            "detector_accuracy": detector_accuracy(ids, answer, self.known),
        }
        self.log({name: value for name, value in found.items() if math.isfinite(value)})  # JSON has no other numbers
        self.control.should_log = is_due

    def state_rests_on(self) -> dict[str, Any]:
        given = self.given is not None and self.given.tolist()
        known = bool(self.args.calibration_knowledge) and self.known.tolist()
        return {"knowledge": given and digest(given), "calibration_knowledge": known and digest(known)}

    def method_state(self) -> dict[str, Any]:
        found = asdict(self.detector) if self.detector else {}  # JSON has no inf or nan, which float() reads as text
        detector = {name: value if math.isfinite(value) else str(value) for name, value in found.items()}
        return {"known": self.known.tolist(), "detector": detector or None}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        self.known = np.array(state["known"], dtype=bool)
        found = {name: float(value) for name, value in (state["detector"] or {}).items()}
        self.detector = Detector(**found) if found else None

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """L_CE, and α·L_cal where the answer's NLL says that it is known."""
        losses = self.answer_losses(outputs)
        known = self._known_now(outputs)
        if known is None:
            return losses
        known = known.to(losses.dtype)
        penalty = known * self._penalty(outputs)
        self.record("known_share", known)
        self.record("calibration_penalty", penalty)
        return losses + self.args.penalty_weight * penalty

    def _known_now(self, outputs: AnswerOutputs) -> Tensor | None:
        """Which questions of the batch are known, (B,); None while the style is adapted."""
        if self.given is not None:
            return self.given[outputs.rows] if self.state.global_step >= self.style_steps else None
        if self.detector is None:
            return None
        answer = -outputs.option_logits.detach().log_softmax(-1).gather(-1, outputs.labels[:, None])[:, 0]
        if math.isfinite(self.detector.threshold):
            self.record("known_threshold", answer.new_tensor(self.detector.threshold))
        return answer <= self.detector.threshold

    def _penalty(self, outputs: AnswerOutputs) -> Tensor:
        if self.args.penalty_on == "options":
            return self._term(outputs.option_logits, outputs.labels)
        logits, tokens, rows = outputs.answer_token_logits()
        terms = self._term(logits, tokens)
        count = torch.bincount(rows, minlength=len(outputs.labels))
        return terms.new_zeros(len(outputs.labels)).index_add(0, rows, terms) / count

    def _term(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.args.penalty == "label-smoothing":
            return label_smoothing_loss(logits, labels, self.args.smoothing)
        if self.args.penalty == "margin":
            penalty = margin_penalty(logits, self.args.margin)
            self.record("margin_active", penalty > 0)
            return penalty
        return entropy_penalty(logits)


def _known(path: str, questions: Sequence[Question]) -> NDArray[np.bool_]:
    """Whether each question is known by a knowledge file."""
    knowledge = read_knowledge(path).knowledge
    try:
        return knowledge.known_of([question.id for question in questions])
    except InputError as error:
        raise InputError(f"{path}: {error}; ids are those of load_questions, rows of a Dataset get others") from error


class _AfterStyle(TrainerCallback):
    def __init__(self, trainer: CogCalibTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == self.trainer.style_steps:
            self.trainer.refresh()
