"""What is asked and answered over HTTP, as the OpenAPI document shows it, and the limits on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from caltune.errors import InputError
from caltune.serving.answering import ASKED, Answer, Answerer, Asked
from caltune.types import MAX_OPTIONS, Question

MAX_EXEMPLARS = 32
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Options = Annotated[list[Text], Field(min_length=2, max_length=MAX_OPTIONS, json_schema_extra={"uniqueItems": True})]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take: characters of all texts, bytes of its body, seconds; and how many may wait."""

    characters: int = 20_000
    body: int = 256 * 1024
    seconds: float = 30.0
    waiting: int = 64

    def __post_init__(self) -> None:
        for name in ("characters", "body", "seconds", "waiting"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite, got {getattr(self, name)}")


def _whole(value: Any) -> Any:
    """2.0 is a whole number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Exemplar(BaseModel):
    """An answered question to stand before the one that is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question: Text
    options: Options
    answer: Annotated[
        int, Field(ge=0, lt=MAX_OPTIONS, description="index of the right option"), BeforeValidator(_whole)
    ]


class AnswersRequest(BaseModel):
    """A question with its options."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"question": "What is the capital of France?", "options": ["Lyon", "Paris"]},
                {
                    "question": "Who lost the key?",
                    "options": ["Ann", "Ben", "nobody"],
                    "context": "Ann gave her key to Ben, who lost it.",
                    "few": [{"question": "What is 1 + 1?", "options": ["2", "3"], "answer": 0}],
                },
            ]
        },
    )
    question: Text
    options: Options
    context: Annotated[str, Field(description="put before the question with a blank line between")] = ""
    few: Annotated[
        list[Exemplar], Field(max_length=MAX_EXEMPLARS, description="answered questions to stand before it")
    ] = []

    def asked(self, limits: Limits) -> Asked:
        """As the model is asked it, without white space around texts, as `load_questions` reads them.

        Raises `InputError` for too many characters or what no `Question` may be.
        """
        texts = [self.question, *self.options, self.context]
        texts += [text for one in self.few for text in (one.question, *one.options)]
        characters = sum(map(len, texts))
        if characters > limits.characters:
            raise InputError(f"the texts have {characters} characters, at most {limits.characters} are allowed")
        text = f"{self.context.strip()}\n\n{self.question.strip()}" if self.context.strip() else self.question.strip()
        exemplars = tuple(
            Question(f"few[{i}]", one.question.strip(), tuple(map(str.strip, one.options)), one.answer)
            for i, one in enumerate(self.few)
        )
        return Asked(Question(ASKED, text, tuple(map(str.strip, self.options)), None), exemplars)


class AnswersResponse(BaseModel):
    """How probable each option is, in the order of the request, and what follows from it."""

    answer: Annotated[str, Field(description="the most probable option, the first among equals")]
    index: Annotated[int, Field(ge=0, lt=MAX_OPTIONS, description="its place among the options")]
    probabilities: Annotated[list[float], Field(description="one for each option; they sum to 1")]
    max_prob: Annotated[float, Field(ge=0, le=1, description="probability of the answer")]
    abstain: Annotated[
        bool | None, Field(description="whether the policy would rather not answer; null without a policy")
    ]
    model: Annotated[str, Field(description="name of the model")]
    model_version: Annotated[str, Field(description="hash of weights, tokenizer and settings")]
    calibration_version: Annotated[
        str | None, Field(description="hash of what was fitted for it; null where nothing was")
    ]

    @classmethod
    def of(cls, request: AnswersRequest, answer: Answer, answerer: Answerer) -> AnswersResponse:
        """The answer to a request in full."""
        return cls(
            answer=request.options[answer.choice],
            index=answer.choice,
            probabilities=list(answer.probabilities),
            max_prob=min(answer.max_prob, 1.0),
            abstain=answer.abstain,
            model=answerer.name,
            model_version=answerer.version,
            calibration_version=answerer.calibration_version,
        )


class Health(BaseModel):
    """That the service answers, and with what."""

    status: str
    model: str
    model_version: str
    calibration_version: str | None


class Problem(BaseModel):
    """Why there is no answer, in one sentence."""

    error: str
