"""Run a model over questions: batches by token budget, sorted by length, results in the order of the input."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from caltune.allocator import keep_freed_memory
from caltune.errors import InputError
from caltune.models import option_temperature
from caltune.prompts import Answers, Template
from caltune.scoring.continuations import encode_continuations
from caltune.scoring.cost import ScoringCost
from caltune.scoring.features import prompt_states
from caltune.scoring.letters import encode_letters
from caltune.scoring.packing import EncodedQuestion, forward, option_logits, pack, token_log_probabilities
from caltune.scoring.processes import is_sharded, process_count, process_rank, share_out, sum_over_processes
from caltune.scoring.shared import Beginning, forward_behind, score_groups, without_beginning
from caltune.types import OptionLogits, Question

Reduction = Literal["sum", "mean", "min"]
Features = dict[int, np.ndarray[Any, np.dtype[np.float32]]]


def encode_questions(
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    answers: Answers = "continuations",
    template: Template = "auto",
    context: int | None = None,
    exemplars: Sequence[Question] = (),
) -> list[EncodedQuestion]:
    """Tokenise questions, each behind the `exemplars`, and check that they fit a model's `context` (in tokens).

    Raises `InputError` for unknown `answers` or a question that does not fit, and what the encoders raise.
    """
    if answers not in ("continuations", "letters"):
        raise InputError(f"answers must be continuations or letters, got {answers!r}")
    encoder = encode_letters if answers == "letters" else encode_continuations
    encoded = encoder(questions, tokenizer, template, exemplars)
    for question, item in zip(questions, encoded, strict=True):
        reach = len(item.prompt) + max(len(option) for option in item.options) - 1
        if context is not None and reach > context:
            raise InputError(f"question {question.id}: has {reach} tokens, the model's context holds {context}")
    return encoded


def context_length(model: Any) -> int | None:
    """Tokens a model can read at once, None where it does not say."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


def score(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    answers: Answers = "continuations",
    reduction: Reduction = "sum",
    template: Template = "auto",
    batch_tokens: int = 2048,
    progress: bool = False,
    exemplars: Sequence[Question] = (),
    features: Features | None = None,
    cost: ScoringCost | None = None,
    together: bool = False,
) -> OptionLogits:
    """What the model believes about each question: one logit an option, in one pass a question.

    With `answers="letters"` the options are shown and a logit is the log-probability of the option's letter as the
    next token; with `"continuations"` it is the `sum`, `mean` or `min` of the log-probabilities of the tokens of the
    option's own text, given the question. A batch holds at most `batch_tokens` tokens, padding included. Every question
    stands behind the answered `exemplars`. What prompts begin with in common (a system message, exemplars) is read once
    where that pays. A `features` dict is filled as `score_with_features` says, a row a question; `cost` is added to.
    With `together` several processes that all call this with the same share the questions, and all get all results.

    Raises `InputError` without questions, for an unknown `reduction`, or for a question that cannot be encoded.
    """
    require_settings(reduction, batch_tokens)
    start = time.perf_counter()
    if not questions:
        raise InputError("there are no questions to score")
    encoded = encode_questions(
        questions, tokenizer, answers=answers, template=template, context=context_length(model), exemplars=exemplars
    )
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # no token sees it, so any will do
    logits = score_encoded(
        model,
        encoded,
        pad_id,
        reduction=reduction,
        batch_tokens=batch_tokens,
        progress=progress,
        features=features,
        cost=cost,
        together=together,
    )
    if cost is not None:
        cost.seconds += time.perf_counter() - start
    return OptionLogits(
        ids=tuple(question.id for question in questions),
        logits=logits,
        labels=np.array([-1 if q.answer is None else q.answer for q in questions], dtype=np.int32),
        groups=tuple(question.group for question in questions),
    )


def require_settings(reduction: str, batch_tokens: int) -> None:
    """Raise `InputError` for an unknown `reduction` or a batch without room for a token."""
    if reduction not in ("sum", "mean", "min"):
        raise InputError(f"reduction must be sum, mean or min, got {reduction!r}")
    if batch_tokens < 1:
        raise InputError(f"batch_tokens must be at least 1, got {batch_tokens}")


def score_with_features(
    model: Any, tokenizer: Any, questions: Sequence[Question], **how: Any
) -> tuple[OptionLogits, np.ndarray[Any, np.dtype[np.float32]]]:
    """`score`, and of each question its features (N, H), float32, from the same pass.

    They are what the output head reads at the prompt's last token: the state from which the letter, or the first token
    of an option, is predicted. With `answers="letters"` it has read the options, else the question only.

    Raises `InputError` as `score` does.
    """
    found: Features = {}
    scores = score(model, tokenizer, questions, features=found, **how)
    return scores, np.stack([found[row] for row in range(len(questions))])


def score_encoded(
    model: Any,
    encoded: Sequence[EncodedQuestion],
    pad_id: int,
    *,
    reduction: Reduction = "sum",
    batch_tokens: int = 2048,
    progress: bool = False,
    features: Features | None = None,
    cost: ScoringCost | None = None,
    together: bool = False,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Option logits (N, K), float32, in the order of `encoded`, divided by the model's option temperature.

    The model's training mode is left as it was.
    A `features` dict is filled with each row's hidden state (H,) at the end of its prompt; `cost` with all but seconds.
    With `together` processes share the questions; where they share the model's weights, too, each scores all of them.
    """
    if model.device.type == "cpu":
        keep_freed_memory()
    cost = ScoringCost() if cost is None else cost
    if together and process_count() > 1 and not is_sharded(model):
        how: dict[str, Any] = {"reduction": reduction, "batch_tokens": batch_tokens}
        how["progress"] = progress and process_rank() == 0
        return _score_together(model, encoded, pad_id, features, cost, how)
    width = max(len(item.options) for item in encoded)
    logits = np.full((len(encoded), width), -np.inf, dtype=np.float32)
    cost.questions += len(encoded)
    cost.alone += sum(item.length for item in encoded)
    waiting: tuple[list[int], Tensor] | None = None
    bar = tqdm(
        total=len(encoded), desc="scoring", unit="question", disable=None if progress else True
    )  # None: where it is a terminal
    # Weights that FSDP brings together in inference mode could not be trained afterwards.
    with evaluating(model), torch.no_grad() if is_sharded(model) else torch.inference_mode(), bar:
        for beginning, rows in _batches(model, encoded, batch_tokens, cost):
            questions = [without_beginning(encoded[i], beginning) for i in rows]
            row_tokens = 0 if beginning is None else beginning.row_tokens
            batch = pack(questions, pad_id, options=width, row_tokens=row_tokens).to(model.device)
            cost.places += batch.input_ids.numel()
            with nullcontext() if features is None else prompt_states(model, batch) as states:
                found = forward(model, batch) if beginning is None else forward_behind(model, batch, beginning)
            if features is not None:
                features.update(zip(rows, states[0].cpu().numpy(), strict=True))
            found = option_logits(token_log_probabilities(found, batch), batch, reduction)
            if waiting is not None:  # a batch late: a GPU has the next one already while this one is fetched
                logits[waiting[0]] = waiting[1].cpu().numpy()
            waiting = rows, found
            bar.update(len(rows))
        if waiting is not None:
            logits[waiting[0]] = waiting[1].cpu().numpy()
    return logits / np.float32(option_temperature(model))


def _score_together(
    model: Any,
    encoded: Sequence[EncodedQuestion],
    pad_id: int,
    features: Features | None,
    cost: ScoringCost,
    how: dict[str, Any],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`score_encoded` with the questions shared out: each process fills its own rows, and all are added up."""
    mine = share_out(encoded, process_count())[process_rank()]
    logits = np.zeros((len(encoded), max(len(item.options) for item in encoded)), dtype=np.float32)
    own = ScoringCost()
    read: Features | None = None if features is None else {}
    if mine:
        found = score_encoded(model, [encoded[i] for i in mine], pad_id, features=read, cost=own, **how)
        logits[mine] = -np.inf
        logits[mine, : found.shape[1]] = found
    if features is not None and read is not None:
        states = np.zeros((len(encoded), model.get_output_embeddings().in_features), dtype=np.float32)
        for place, state in read.items():
            states[mine[place]] = state
        features.update(enumerate(sum_over_processes(states, model.device)))
    counts = np.array([own.questions, own.tokens, own.alone, own.places], dtype=np.int64)
    questions, tokens, alone, places = sum_over_processes(counts, model.device).tolist()
    cost.questions, cost.tokens = cost.questions + questions, cost.tokens + tokens
    cost.alone, cost.places = cost.alone + alone, cost.places + places
    return sum_over_processes(logits, model.device)


def _batches(
    model: Any, encoded: Sequence[EncodedQuestion], budget: int, cost: ScoringCost
) -> Iterator[tuple[Beginning | None, list[int]]]:
    """Cut questions into batches, longest first, each behind what its questions share.

    The length of a batch's first question times their number fits the budget.
    """
    for beginning, members in score_groups(model, encoded, budget):
        read = 0 if beginning is None else beginning.length
        cost.tokens += read + sum(encoded[i].length - read for i in members)
        cost.places += read
        order = sorted(members, key=lambda i: encoded[i].length, reverse=True)
        start = 0
        while start < len(order):
            size = max(1, budget // (encoded[order[start]].length - read))
            yield beginning, order[start : start + size]
            start += size


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, the model is in evaluation mode, and counts no tokens of its experts; afterwards as it was."""
    was_training, config = model.training, model.config.get_text_config()
    counted = getattr(config, "output_router_logits", False)
    model.eval()
    try:
        if counted:  # a loss that nobody reads, by a mask that is not ours
            config.output_router_logits = False
        yield
    finally:
        if counted:
            config.output_router_logits = counted
        model.train(was_training)
