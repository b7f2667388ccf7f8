"""A loaded model with what was fitted for it: questions in, probabilities and the policy's word out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caltune.abstain import Policy
from caltune.errors import InputError
from caltune.models import load_model, option_temperature
from caltune.scoring import encode_questions
from caltune.scoring.engine import context_length, require_settings, score_encoded
from caltune.scoring.packing import EncodedQuestion
from caltune.serving.fitted import DIGITS, read_fitted
from caltune.types import OptionLogits, Question

ASKED = "asked"  # the id of every question that is served: none of them is one that something was fitted on


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, without an answer, and the answered questions that stand before it."""

    question: Question
    exemplars: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Calibrated probabilities of the options, the most probable one, and whether the policy would rather not say.

    `abstain` is None without a policy.
    """

    probabilities: tuple[float, ...]
    choice: int
    abstain: bool | None

    @property
    def max_prob(self) -> float:
        """The probability of the most probable option."""
        return self.probabilities[self.choice]


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers questions as `caltune score` would, then recalibrates and applies the policy. For one thread at a time.

    `version` is a hash of weights, tokenizer and settings as loaded; `calibration_version` of the fitted files, None
    without any. A question may take `max_tokens` tokens with its options.
    """

    model: Any
    tokenizer: Any
    name: str
    answers: Any = "continuations"
    reduction: Any = "sum"
    template: Any = "auto"
    batch_tokens: int = 2048
    max_tokens: int = 2048
    recalibrate: Callable[[OptionLogits], OptionLogits] | None = None
    policy: Policy | None = None
    version: str = ""
    calibration_version: str | None = None

    def __call__(self, asked: Sequence[Asked]) -> list[Answer | Exception]:
        """Of each question its answer, or the error that says why it has none."""
        encoded = [self._encode(one) for one in asked]
        good = [item for item in encoded if isinstance(item, EncodedQuestion)]
        rows = iter(self._logits(good))
        return [
            self._answer(one.question, next(rows)) if isinstance(item, EncodedQuestion) else item
            for one, item in zip(asked, encoded, strict=True)
        ]

    def _encode(self, one: Asked) -> EncodedQuestion | Exception:
        try:
            (item,) = encode_questions(
                [one.question],
                self.tokenizer,
                answers=self.answers,
                template=self.template,
                context=context_length(self.model),
                exemplars=one.exemplars,
            )
            if item.length > self.max_tokens:
                raise InputError(f"takes {item.length} tokens with its options, at most {self.max_tokens} are allowed")
        except Exception as error:  # a chat template may raise anything, and its neighbours should not fail with it
            return error
        return item

    def _logits(self, encoded: Sequence[EncodedQuestion]) -> np.ndarray[Any, np.dtype[np.float32]]:
        if not encoded:
            return np.empty((0, 0), dtype=np.float32)
        pad_id = self.tokenizer.pad_token_id or 0  # no token sees it
        return score_encoded(self.model, encoded, pad_id, reduction=self.reduction, batch_tokens=self.batch_tokens)

    def _answer(self, question: Question, logits: np.ndarray[Any, np.dtype[np.float32]]) -> Answer | InputError:
        try:  # each by itself: what one question cannot have must not touch its neighbours
            scores = OptionLogits((question.id,), logits[None, : len(question.options)], [-1])
            scores = scores if self.recalibrate is None else self.recalibrate(scores)
        except InputError as error:
            return error
        probabilities = scores.probabilities()[0]
        choice = int(probabilities.argmax())
        abstain = None if self.policy is None else not bool(self.policy.answers(probabilities[[choice]])[0])
        return Answer(tuple(probabilities.tolist()), choice, abstain)


def load_answerer(
    name: str,
    *,
    policy: Path | None = None,
    calibration: Path | None = None,
    served_as: str | None = None,
    device: str | None = None,
    answers: str = "continuations",
    reduction: str = "sum",
    template: str = "auto",
    batch_tokens: int = 2048,
    max_tokens: int = 2048,
) -> tuple[Answerer, tuple[Path, ...]]:
    """A model by name with its fitted files, and which of these do not say what they were fitted for.

    `served_as` is the name its scores were made under, where the model has moved since.

    Raises `InputError` for what cannot be loaded, and for files made for another model or other settings.
    """
    require_settings(reduction, batch_tokens)
    settings = {"answers": answers, "reduction": reduction, "template": template}
    metadata = {"model": served_as or name, **settings}
    model, tokenizer = load_model(name, device=device)
    temperature = option_temperature(model)
    if temperature != 1:
        metadata["temperature"] = temperature
    fitted = read_fitted(metadata, policy=policy, calibration=calibration)
    answerer = Answerer(
        model,
        tokenizer,
        name=served_as or (Path(name).resolve().name if Path(name).exists() else name),
        recalibrate=fitted.recalibrate,
        policy=fitted.policy,
        version=fingerprint(model, tokenizer, settings),
        calibration_version=fitted.version,
        batch_tokens=batch_tokens,
        max_tokens=max_tokens,
        **settings,
    )
    return answerer, fitted.unchecked


def fingerprint(model: Any, tokenizer: Any, settings: dict[str, str]) -> str:
    """SHA-256 of weights in memory, option temperature, tokenizer, its chat template, and settings; shortened."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    rest = {
        "template": getattr(tokenizer, "chat_template", None),
        "option temperature": option_temperature(model),
        **{f"setting {k}": v for k, v in settings.items()},
    }
    found.update((words + json.dumps(rest, sort_keys=True)).encode())
    return found.hexdigest()[:DIGITS]
