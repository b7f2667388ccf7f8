"""Estimate what a model knows of each question: few-shot prompts, best and drawn answers, SliCK categories.

Gekhman et al. 2024 (arXiv 2405.05904, section 3) ask each question behind several random sets of exemplars, once
greedily and several times at temperature 0.5. Open questions are asked just so. Of a question with options the
probabilities are computed, so nothing is drawn: the greedy answer is the most probable option, the sampled one has
softmax(z / 0.5). With letters each set has an order of the options of its own, too; with continuations the model sees
no options, and their order changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from caltune import __version__
from caltune.errors import InputError
from caltune.formats import KnowledgeFile, write_knowledge
from caltune.knowledge import Knowledge, categorise, drawn_at_least_once
from caltune.prompts import Answers, Template, render, render_open, same_question, uses_chat
from caltune.scoring.engine import Reduction, context_length, encode_questions, require_settings, score_encoded
from caltune.scoring.samples import is_right, write_answers
from caltune.types import FloatArray, OptionLogits, Question

TEMPERATURE = 0.5
TOP_K = 40


def estimate_knowledge(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    pool: Sequence[Question] = (),
    *,
    exemplars: int = 4,
    sets: int = 8,
    samples: int = 16,
    answers: Answers = "continuations",
    reduction: Reduction = "sum",
    template: Template = "auto",
    max_new_tokens: int = 32,
    batch_tokens: int = 2048,
    seed: int = 0,
    progress: bool = False,
) -> Knowledge:
    """The category of each question, from `sets` prompts with `exemplars` answered questions of the `pool` each.

    `pool` must hold no test question; a question that stands in it is never its own exemplar. What is found for one
    with options does not depend on the other questions. For an open question `samples` answers a set are drawn; an
    option counts as drawn when it would more likely than not be among so many, in the set where it is most probable.

    It cannot tell knowledge from a lucky guess: a guess among K options is right in a K-th of the sets.

    Raises `InputError` for settings out of range, a question without an answer, a pool that is too small, and what
    rendering, encoding and writing raise.
    """
    require_settings(reduction, batch_tokens)
    require_askable(questions, pool, exemplars=exemplars, sets=sets, samples=samples, seed=seed)
    closed = [i for i, question in enumerate(questions) if question.options]
    written = [i for i, question in enumerate(questions) if not question.options]
    greedy, sampled = np.zeros((sets, len(questions))), np.zeros((sets, len(questions)))
    orders = [exemplar_order(pool, seed, number) for number in range(sets)]
    if closed:  # what is too long for the model is told before the first set is asked, not after hours
        for number, ordered in enumerate(orders):
            first = [_ask(questions[i], ordered, exemplars, answers, seed, number) for i in closed]
            _encode(first, model, tokenizer, answers, template)
    for number, ordered in enumerate(tqdm(orders, desc="exemplar sets", disable=None if progress else True)):
        asked = [_ask(question, ordered, exemplars, answers, seed, number) for question in questions]
        if closed:
            encoded = _encode([asked[i] for i in closed], model, tokenizer, answers, template)
            pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            logits = score_encoded(model, encoded, pad, reduction=reduction, batch_tokens=batch_tokens)
            labels = np.array([asked[i][0].answer for i in closed])
            greedy[number, closed], sampled[number, closed] = option_answers(logits, labels)
        if written:
            prompts = [render_open(asked[i][0], tokenizer, template=template, exemplars=asked[i][1]) for i in written]
            for temperature, count, found in ((0.0, 1, greedy), (TEMPERATURE, samples, sampled)):
                texts = write_answers(
                    model,
                    tokenizer,
                    prompts,
                    special_tokens=not uses_chat(tokenizer, template),
                    samples=count,
                    temperature=temperature,
                    top_k=TOP_K,
                    max_new_tokens=max_new_tokens,
                    batch_tokens=batch_tokens,
                    seed=seed + number,
                )
                found[number, written] = [
                    np.mean([is_right(text, questions[i].accepted) for text in row])
                    for i, row in zip(written, texts, strict=True)
                ]
    drawn = sampled.max(axis=0) > 0
    drawn[closed] = drawn_at_least_once(sampled[:, closed].max(axis=0), samples)
    share = greedy.mean(axis=0)
    return Knowledge(
        ids=tuple(question.id for question in questions),
        categories=categorise(share, drawn),
        greedy_right=share,
        sampled_right=np.minimum(sampled.mean(axis=0), 1.0),
    )


def require_askable(
    questions: Sequence[Question], pool: Sequence[Question], *, exemplars: int, sets: int, samples: int, seed: int
) -> None:
    """Raise what `estimate_knowledge` raises and no model is needed to see."""
    least = {"exemplars": (exemplars, 0), "sets": (sets, 1), "samples": (samples, 1), "seed": (seed, 0)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise InputError(f"{name} must be at least {lowest}, got {value}")
    if not questions:
        raise InputError("there are no questions to ask")
    blank = [question.id for question in questions if question.options and question.answer is None]
    if blank:
        raise InputError(f"{len(blank)} questions have no answer, the first is id {blank[0]!r}")
    for question in questions:
        exemplar_set(question, pool, exemplars)


def option_answers(logits: Any, labels: Any) -> tuple[FloatArray, FloatArray]:
    """For option logits (N, K): 1.0 where the most probable option is right, and softmax(z / 0.5) of the right one.

    >>> right, sampled = option_answers(np.log([[0.6, 0.3, 0.1]]), np.array([1]))
    >>> right, sampled.round(4)  # 0.3² / (0.6² + 0.3² + 0.1²) = 0.09 / 0.46
    (array([0.]), array([0.1957]))
    """
    scores = OptionLogits(tuple(map(str, range(len(labels)))), np.asarray(logits) / TEMPERATURE, labels)
    return scores.decide().correct, scores.probabilities()[np.arange(len(labels)), labels]


def exemplar_order(pool: Sequence[Question], seed: int, number: int) -> list[Question]:
    """The pool in the random order of set `number`."""
    return [pool[i] for i in np.random.default_rng([seed, number]).permutation(len(pool))]


def exemplar_set(question: Question, ordered: Sequence[Question], count: int) -> tuple[Question, ...]:
    """The first `count` that are not the question itself. Raises `InputError` when there are fewer."""
    found = tuple(islice((exemplar for exemplar in ordered if not same_question(exemplar, question)), count))
    if len(found) < count:
        raise InputError(
            f"question {question.id}: exemplars must be {count} other questions, found {len(found)}; ask for fewer"
        )
    return found


def reordered(question: Question, seed: int, number: int) -> Question:
    """The question with its options in the random order of set `number`, which depends on its id alone."""
    digest = int.from_bytes(hashlib.sha256(question.id.encode()).digest()[:8], "big")
    order = np.random.default_rng([seed, number, digest]).permutation(len(question.options)).tolist()
    answer = None if question.answer is None else order.index(question.answer)
    return replace(question, options=tuple(question.options[i] for i in order), answer=answer)


Asked = tuple[Question, tuple[Question, ...]]


def _ask(
    question: Question, ordered: Sequence[Question], count: int, answers: Answers, seed: int, number: int
) -> Asked:
    """The question and its exemplars as set `number` shows them."""
    shown = exemplar_set(question, ordered, count)
    if answers == "continuations" or not question.options:
        return question, shown
    return reordered(question, seed, number), tuple(reordered(exemplar, seed, number) for exemplar in shown)


def _encode(asked: Sequence[Asked], model: Any, tokenizer: Any, answers: Answers, template: Template) -> list[Any]:
    """Each question behind its own exemplars; most share theirs, and with them a beginning."""
    sharing: dict[tuple[Question, ...], list[int]] = {}
    for place, (_, shown) in enumerate(asked):
        sharing.setdefault(shown, []).append(place)
    encoded: list[Any] = [None] * len(asked)
    for shown, places in sharing.items():
        found = encode_questions(
            [asked[place][0] for place in places],
            tokenizer,
            answers=answers,
            template=template,
            context=context_length(model),
            exemplars=shown,
        )
        for place, item in zip(places, found, strict=True):
            encoded[place] = item
    return encoded


def knowledge_to_file(
    path: str | Path,
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    pool: Sequence[Question],
    *,
    model_name: str,
    data: str,
    split: str | None,
    exemplars_split: str | None = None,
    exemplars: int = 4,
    sets: int = 8,
    samples: int = 16,
    seed: int = 0,
    answers: Answers = "continuations",
    reduction: Reduction = "sum",
    template: Template = "auto",
    **how: Any,
) -> KnowledgeFile:
    """`estimate_knowledge`, written to `path` with how it was found; `how` goes to it.

    Raises `InputError` for what cannot be asked or written.
    """
    settings: dict[str, Any] = {"answers": answers, "reduction": reduction, "template": template}
    settings |= {"exemplars": exemplars, "sets": sets, "samples": samples, "seed": seed}
    knowledge = estimate_knowledge(model, tokenizer, questions, pool, **settings, **how)
    first, shown = _ask(questions[0], exemplar_order(pool, seed, 0), exemplars, answers, seed, 0)
    if first.options:
        example = render(first, tokenizer, answers=answers, template=template, exemplars=shown).text
    else:
        example = render_open(first, tokenizer, template=template, exemplars=shown)
    metadata = {
        "model": model_name,
        "data": data,
        "split": split,
        "exemplars_split": exemplars_split,
        **settings,
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "prompt_example": example,
        "versions": {"caltune": __version__, **{package: version(package) for package in ("torch", "transformers")}},
    }
    write_knowledge(path, knowledge, metadata)
    return KnowledgeFile(knowledge, metadata)
