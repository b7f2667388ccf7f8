"""What a model knows, estimated: against plain passes, over sets and orders, with a planted truth, without leaks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer

from caltune.errors import InputError
from caltune.formats import read_knowledge
from caltune.prompts import render
from caltune.scoring import known, score
from caltune.scoring.known import (
    estimate_knowledge,
    exemplar_order,
    exemplar_set,
    knowledge_to_file,
    option_answers,
    reordered,
)
from caltune.types import Question

QUESTIONS = tiny_questions(6)
POOL = tiny_questions(12)  # holds the questions themselves
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def test_options_equal_one_scoring_a_set(model: Any) -> None:
    found = estimate_knowledge(model, TOKENIZER, QUESTIONS, POOL, exemplars=2, sets=3, samples=2, seed=4)
    for row, question in enumerate(QUESTIONS):
        right, probability = [], []
        for number in range(3):
            shown = [e for e in exemplar_order(POOL, 4, number) if e.id != question.id][:2]
            scores = score(model, TOKENIZER, [question], exemplars=shown)
            right.append(scores.decide().correct[0])
            probability.append(torch.tensor(2 * scores.logits[0]).softmax(-1)[question.answer].item())  # T = 1/2
        assert found.greedy_right[row] == pytest.approx(np.mean(right))
        assert found.sampled_right[row] == pytest.approx(np.mean(probability), abs=1e-5)
        drawn = 1 - (1 - max(probability)) ** 2 >= 0.5
        name = "HighlyKnown" if all(right) else "MaybeKnown" if any(right) else ["Unknown", "WeaklyKnown"][drawn]
        assert found.categories[row] == name
    assert len(set(found.categories)) > 2


def test_letters_come_in_another_order_in_each_set(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(questions: Any, *arguments: Any, exemplars: Any, **how: Any) -> Any:
        asked.extend((question, exemplars) for question in questions)
        return encode(questions, *arguments, exemplars=exemplars, **how)

    encode = known.encode_questions
    monkeypatch.setattr(known, "encode_questions", spy)
    for answers, orders in (("letters", 6), ("continuations", 1)):
        asked.clear()
        estimate_knowledge(model, TOKENIZER, QUESTIONS[2:3], POOL, exemplars=2, sets=12, answers=answers)
        (original,) = QUESTIONS[2:3]
        assert len(original.options) == 4
        assert len({question.options for question, _ in asked}) >= orders
        assert (orders > 1) or {question.options for question, _ in asked} == {original.options}
        for question, exemplars in asked:
            assert question.options[question.answer] == original.options[original.answer]
            for shown in exemplars:
                (source,) = (e for e in POOL if e.id == shown.id)
                assert set(shown.options) == set(source.options)
                assert shown.options[shown.answer] == source.options[source.answer]


def test_orders_are_even_and_depend_on_the_id_alone() -> None:
    question = replace(QUESTIONS[2], answer=1)
    places = [reordered(question, 0, number).answer for number in range(400)]
    assert min(places.count(place) for place in range(4)) > 70
    assert reordered(question, 3, 1) == reordered(question, 3, 1)
    assert reordered(replace(question, id="other"), 3, 1).options != reordered(question, 3, 1).options


def test_a_question_does_not_depend_on_the_others(model: Any) -> None:
    settings = {"exemplars": 2, "sets": 2, "answers": "letters"}
    together = estimate_knowledge(model, TOKENIZER, QUESTIONS, POOL, **settings)
    alone = estimate_knowledge(model, TOKENIZER, [QUESTIONS[3]], POOL, **settings)
    assert alone.categories == together.categories[3:4]
    np.testing.assert_allclose(alone.sampled_right, together.sampled_right[3:4], atol=1e-5)


def test_exemplars_are_other_questions_and_mostly_shared() -> None:
    ordered = exemplar_order(POOL, 0, 1)
    assert sorted(e.id for e in ordered) == sorted(e.id for e in POOL)
    assert [e.id for e in exemplar_order(POOL, 0, 2)] != [e.id for e in ordered]
    first = tuple(ordered[:3])
    for question in POOL:
        shown = exemplar_set(question, ordered, 3)
        expected = first if question not in first else tuple(e for e in ordered[:4] if e != question)
        assert shown == expected
    copy = Question("copy", ordered[0].text, ordered[0].options[::-1], None)
    assert exemplar_set(copy, ordered, 3) == tuple(ordered[1:4])  # the same question under another id
    with pytest.raises(InputError, match="question q0: exemplars must be 12 other questions, found 11"):
        exemplar_set(POOL[0], ordered, 12)


def test_open_answers_are_counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # (greedy, right among 4 samples) in each of two sets: SliCK's four categories.
    planted = {"hk": [(1, 4), (1, 2)], "mk": [(0, 1), (1, 4)], "wk": [(0, 0), (0, 1)], "un": [(0, 0), (0, 0)]}
    questions = [Question(name, f"Who is {name}?", (), None, accepted=("Yes", "Sure")) for name in planted]
    pool = [Question(f"p{i}", f"Who is {i}?", (), None, accepted=(str(i),)) for i in range(5)]
    calls = []

    def write(_: Any, __: Any, prompts: list[str], **how: Any) -> Any:
        calls.append((how["temperature"], how["samples"], how["top_k"], how["seed"]))
        assert all(prompt.count("Question:") == 3 for prompt in prompts)
        number = (len(calls) - 1) // 2
        if how["temperature"] == 0:
            return [("yes." if counts[number][0] else "no",) for counts in planted.values()]
        return [tuple(["sure"] * c[number][1] + ["no"] * (4 - c[number][1])) for c in planted.values()]

    monkeypatch.setattr(known, "write_answers", write)
    both = [questions[0], QUESTIONS[1], *questions[1:]]  # one with options among them
    found = estimate_knowledge(
        model, TOKENIZER, both, [*pool, *POOL], exemplars=2, sets=2, samples=4, template="plain", seed=7
    )
    kept = [0, 2, 3, 4]
    assert [found.categories[i] for i in kept] == ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
    assert found.greedy_right[kept].tolist() == [1, 0.5, 0, 0]
    assert found.sampled_right[kept].tolist() == [6 / 8, 5 / 8, 1 / 8, 0]
    assert calls == [(0.0, 1, 40, 7), (0.5, 4, 40, 7), (0.0, 1, 40, 8), (0.5, 4, 40, 8)]
    alone = estimate_knowledge(
        model, TOKENIZER, [QUESTIONS[1]], [*pool, *POOL], exemplars=2, sets=2, samples=4, template="plain", seed=7
    )
    assert found.categories[1] == alone.categories[0]


def test_open_questions_for_real(model: Any) -> None:
    asked = Question("o", "What is the capital of France?", (), None, accepted=("Paris",))
    found = estimate_knowledge(
        model, TOKENIZER, [asked], exemplars=0, sets=1, samples=2, template="plain", max_new_tokens=2
    )
    assert found.categories == ("Unknown",)
    texts = known.write_answers(
        model, TOKENIZER, ["Question: What is the capital of France?\nAnswer:"], special_tokens=True, max_new_tokens=2
    )
    right = replace(asked, accepted=("Lyon", texts[0][0]))
    found = estimate_knowledge(
        model, TOKENIZER, [right], exemplars=0, sets=1, samples=2, template="plain", max_new_tokens=2
    )
    assert found.categories == ("HighlyKnown",)


def test_sampling_at_half_the_temperature_squares_the_odds() -> None:
    logits = np.array([[1.0, 0.0, -np.inf], [0.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
    right, sampled = option_answers(logits, np.array([0, 2, 1]))
    assert right.tolist() == [1, 0, 0]  # of two equal options the first is taken
    e = np.exp(1.0)
    np.testing.assert_allclose(sampled, [e**2 / (e**2 + 1), e**2 / (1 + e**4 + e**2), e**6 / (2 * e**6 + 1)], rtol=1e-6)


def test_guesses_pass_for_knowledge_as_the_page_says() -> None:
    # Four options, eight sets, no knowledge: right in none of eight sets with probability (3/4)⁸ = 0.100.
    draw = np.random.default_rng(0)
    right = np.stack([option_answers(draw.normal(size=(4000, 4)), np.zeros(4000, dtype=int))[0] for _ in range(8)])
    assert (right.mean(0) > 0).mean() == pytest.approx(1 - 0.75**8, abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"exemplars": -1}, "exemplars must be at least 0, got -1"),
        ({"sets": 0}, "sets must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"reduction": "max"}, "reduction must be sum, mean or min, got 'max'"),
        ({"batch_tokens": -5}, "batch_tokens must be at least 1, got -5"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"questions": []}, "there are no questions to ask"),
        ({"pool": POOL[:4], "exemplars": 5}, "question q0: exemplars must be 5 other questions, found 3"),
        ({"questions": [replace(QUESTIONS[0], answer=None)]}, "1 questions have no answer, the first is id 'q0'"),
        ({"answers": "words"}, "answers must be continuations or letters"),
        ({"exemplars": 11}, "question q.: has .* tokens, the model's context holds 256"),
    ],
)
def test_wrong_settings(model: Any, wrong: dict[str, Any], message: str) -> None:
    given = {"questions": QUESTIONS, "pool": POOL, **wrong}
    with pytest.raises(InputError, match=message):
        estimate_knowledge(model, TOKENIZER, **given)


def test_an_exemplar_that_is_too_long_is_told_before_the_first_set(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    long = replace(POOL[0], id="long", text="Which city is it? " * 200)
    shows = [exemplar_order([*POOL, long], 0, number)[0].id == "long" for number in range(40)]
    assert shows.index(True) > 0
    asked = []
    monkeypatch.setattr(known, "score_encoded", lambda *_, **__: asked.append(1))
    with pytest.raises(InputError, match="the model's context holds 256"):
        estimate_knowledge(model, TOKENIZER, QUESTIONS, [*POOL, long], exemplars=1, sets=40)
    assert not asked


def test_the_file_tells_how_it_was_found(model: Any, tmp_path: Path) -> None:
    for answers in ("letters", "continuations"):
        settings = {"exemplars": 1, "sets": 2, "samples": 3, "seed": 5, "answers": answers, "template": "plain"}
        written = knowledge_to_file(
            tmp_path / "k.parquet",
            model,
            TOKENIZER,
            QUESTIONS[:2],
            POOL,
            model_name="tiny",
            data="facts",
            split=None,
            **settings,
        )
        found = read_knowledge(tmp_path / "k.parquet")
        assert found.knowledge.ids == ("q0", "q1")
        assert found.knowledge.categories == written.knowledge.categories
        assert settings.items() <= found.metadata.items()
        first, shown = QUESTIONS[0], exemplar_set(QUESTIONS[0], exemplar_order(POOL, 5, 0), 1)
        if answers == "letters":
            first, shown = reordered(first, 5, 0), (reordered(shown[0], 5, 0),)
        example = render(first, answers=answers, template="plain", exemplars=shown).text
        assert found.metadata["prompt_example"] == example
    assert os.listdir(tmp_path) == ["k.parquet"]
