"""Flaws in the released code's loss: for each a case in which it matters, what it gives there, and what ours gives.

`released_rcft` restates that code. Its flaws in the course of a run are in `test_rcft_released_runs.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import released_rcft as released
import torch
from tiny import tiny_questions
from tiny_training import build
from torch import Tensor

from caltune.methods.rcft import bin_accuracy, bin_penalty, rank_preserving_target
from caltune.types import OptionLogits, Question

# Four options each: confidence c in the first, the others share the rest evenly; whether the first is right.
HAND = [(0.95, True), (0.93, False), (0.75, True), (0.65, False)]
RIGHT = [0 if right else 1 for _, right in HAND]
CROSS_ENTROPY = -(math.log(0.95) + math.log(0.07 / 3) + math.log(0.75) + math.log(0.35 / 3)) / 4
# Bin by bin. Even others have even targets, so a question's term is (c − A)² + 3·((c − A)/3)² = 4/3·(c − A)².
# The bin (0.9, 1] has A = 1/2, the others 1 and 0.
OVERCONFIDENT = 4 / 3 * (0.45**2 + 0.43**2) / 2
OTHERS = 4 / 3 * (0.25**2 + 0.65**2)


def even_logits(confidence: list[float]) -> Tensor:
    return torch.tensor([[c, *3 * [(1 - c) / 3]] for c in confidence], dtype=torch.float64).log()


def present(trainer: Any, logits: Tensor, labels: list[int]) -> None:
    """Let the trainer's model hold these beliefs on its questions."""
    ids = tuple(map(str, range(len(labels))))
    trainer.present_logits = lambda rows: OptionLogits(ids, logits.numpy(), labels)


def losses(trainer: Any, logits: Tensor, labels: list[int]) -> Tensor:
    rows = torch.arange(len(labels))
    return trainer.question_losses(SimpleNamespace(rows=rows, option_logits=logits, labels=torch.tensor(labels)))


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    four = [question for question in tiny_questions(16) if len(question.options) == 4]
    found = build("RCFT", tmp_path, train=[Question(q.id, q.text, q.options, 0) for q in four], bin_weights="equal")
    present(found, even_logits([c for c, _ in HAND]), RIGHT)
    return found


@pytest.fixture
def before() -> tuple[Tensor, Tensor]:
    """The released E-step on the four questions."""
    return released.e_step(even_logits([c for c, _ in HAND]).exp(), torch.tensor(RIGHT))


def published_term(p: list[float], accuracy: float) -> float:
    """(p_(1) − A)² + Σ_j (p_(j) − t_j)² as it stands in the paper, with K from the question itself."""
    top, *others = sorted(p, reverse=True)
    gamma = math.log(len(others)) / (others[0] * (1 - accuracy)) if accuracy < 1 else 0.0
    share = [1 + math.tanh(gamma * q) for q in others]
    return (top - accuracy) ** 2 + sum(
        (q - (1 - accuracy) * s / sum(share)) ** 2 for q, s in zip(others, share, strict=True)
    )


def test_every_bin_has_the_published_term(tmp_path: Path) -> None:
    # By bin, (0.2, 0.3] to (0.9, 1]: questions with two to five options, and whether the first, on top, is right.
    asked: dict[int, list[tuple[list[float], bool]]] = {
        2: [([0.26, 0.25, 0.2, 0.17, 0.12], True), ([0.28, 0.24, 0.24, 0.24], False)],
        3: [([0.35, 0.3, 0.2, 0.15], False)],
        4: [([0.45, 0.35, 0.1, 0.1], True), ([0.48, 0.3, 0.22], True)],
        5: [([0.55, 0.45], True), ([0.58, 0.2, 0.12, 0.05, 0.05], False)],
        6: [([0.65, 0.2, 0.1, 0.05], False), ([0.68, 0.32], False)],
        7: [([0.75, 0.15, 0.06, 0.04], True), ([0.78, 0.11, 0.11], False), ([0.72, 0.28], False)],
        8: [([0.88, 0.06, 0.05, 0.01], True), ([0.85, 0.15], False)],
        9: [([0.99, 0.01], True), ([0.95, 0.03, 0.02], False), ([0.91, 0.06, 0.02, 0.01], True), ([0.97, 0.03], True)],
    }
    rows = [(k, p, right) for k, inside in asked.items() for p, right in inside]
    logits = torch.tensor([p + (5 - len(p)) * [0.0] for _, p, _ in rows], dtype=torch.float64).log()
    labels = [0 if right else 1 for *_, right in rows]
    trainer: Any = build("RCFT", tmp_path, train=tiny_questions(len(rows)), bin_weights="equal")
    present(trainer, logits, labels)
    trainer.refresh()
    plain = -logits.log_softmax(-1)[torch.arange(len(rows)), labels]
    terms = (losses(trainer, logits, labels) - plain) / len(rows)  # the mean is over all questions
    accuracies = {2: 1 / 2, 3: 0, 4: 1, 5: 1 / 2, 6: 0, 7: 1 / 3, 8: 1 / 2, 9: 3 / 4}
    for k, inside in asked.items():
        ours = sum(term.item() for term, (bin_, *_) in zip(terms, rows, strict=True) if bin_ == k)
        expected = sum(published_term(p, accuracies[k]) for p, _ in inside) / len(inside)
        assert ours == pytest.approx(expected, rel=1e-5), k


def test_the_last_bin_is_left_out(trainer: Any, before: tuple[Tensor, Tensor]) -> None:
    logits = even_logits([c for c, _ in HAND])
    assert released.calibration_loss(logits.exp(), *before).item() == pytest.approx(OTHERS)
    sure = even_logits([0.95, 0.93]).requires_grad_()
    assert not released.calibration_loss(sure.softmax(-1), *before).requires_grad  # nothing moves these two
    trainer.refresh()
    assert losses(trainer, logits, RIGHT).mean().item() == pytest.approx(CROSS_ENTROPY + OVERCONFIDENT + OTHERS)


def test_there_is_no_second_e_step(trainer: Any, before: tuple[Tensor, Tensor]) -> None:
    trainer.refresh()
    assert trainer.targets.tolist() == [0.5, 0.5, 1, 0]
    # Training has moved all four into (0.6, 0.7], where two of four are right: calibration asks for 1/2 …
    moved = [0.66, 0.64, 0.68, 0.65]
    present(trainer, even_logits(moved), RIGHT)
    trainer.refresh()
    assert trainer.targets.tolist() == [0.5] * 4
    # … but the released code asks for the 0 that the bin's one question had before training.
    assert before[1].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 2]
    loss = released.calibration_loss(even_logits(moved).exp(), *before)
    assert loss.item() == pytest.approx(sum(4 / 3 * c**2 for c in moved))


def test_the_weight_is_a_thousandth_of_what_it_says(trainer: Any) -> None:
    # The default 1/2 looks like λ = 1, where L_ECE is 37 % of the sum. It is λ = 0.001, and 0.06 %.
    half, calibration = released.total_loss(CROSS_ENTROPY, OVERCONFIDENT + OTHERS, 0.5), OVERCONFIDENT + OTHERS
    assert calibration / (CROSS_ENTROPY + calibration) == pytest.approx(0.367, abs=1e-3)
    assert 1 - CROSS_ENTROPY / 2 / half == pytest.approx(0.00058, abs=1e-5)
    # The scripts' 1 has no answer loss: whatever the right answers are, the loss is a thousandth of L_ECE.
    assert released.total_loss(CROSS_ENTROPY, calibration, 1.0) == released.total_loss(99, calibration, 1.0)
    assert released.total_loss(CROSS_ENTROPY, calibration, 1.0) == pytest.approx(calibration / 1000)
    trainer.refresh()
    for weight in (0.0, 1.0, 3.0):
        trainer.args.calibration_weight = weight
        ours = losses(trainer, even_logits([c for c, _ in HAND]), RIGHT).mean().item()
        assert ours == pytest.approx(CROSS_ENTROPY + weight * calibration)


def test_a_bin_that_was_empty_divides_by_zero(trainer: Any, before: tuple[Tensor, Tensor]) -> None:
    trainer.refresh()
    moved = even_logits([0.85, 0.93, 0.75, 0.65])  # the first has come down into (0.8, 0.9], where nothing was
    assert released.calibration_loss(moved.exp(), *before).isinf()  # 4/3·0.85² / 0
    ours = losses(trainer, moved, RIGHT)  # until the next E-step it keeps its A of 1/2 and its weight of 4/2
    assert ours[0].item() == pytest.approx(-math.log(0.85) + 2 * 4 / 3 * (0.85 - 0.5) ** 2)
    assert torch.isfinite(ours).all()


def test_empty_bins_of_the_released_e_step_have_accuracy_0() -> None:
    """Its bins without a question get A = 0, which asks for no confidence at all; ours borrow the nearest gap."""
    logits = even_logits([0.95, 0.75])
    assert released.e_step(logits.exp(), torch.tensor([0, 0]))[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    both = OptionLogits(("a", "b"), logits.numpy(), [0, 0]).decide()
    assert bin_accuracy(both, 10)[8] == 1.0  # 0.85 + (1 − 0.75), cut at 1


def test_three_options_have_a_fourth_letter() -> None:
    # The model says (0.5, 0.25, 0.25) to A, B and C, and nothing to D, which is no option.
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0]], dtype=torch.float64)
    half = torch.tensor([0.5], dtype=torch.float64)
    # A bin right half of the time is calibrated with it. Three options: γ·p_(2) = ln 2 / 0.5 for both others, t = 1/4.
    three = p[:, :3].log()
    asked = rank_preserving_target(p[:, :3], half, torch.tensor([3]))
    assert asked[0].tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert bin_penalty(three, half).item() == pytest.approx(0, abs=1e-12)
    # Released: tanh(ln 3 / 0.5) = (3⁴ − 1)/(3⁴ + 1) = 80/82 for B and C, 0 for D; t = 1/2·(162, 162, 82)/406.
    asked = released.target(half[0], p[:, 1:])
    assert asked[0].tolist() == pytest.approx([81 / 406, 81 / 406, 41 / 406])
    # It takes from B and C and asks for a tenth on D: 2·(1/4 − 81/406)² + (41/406)².
    twice = released.calibration_loss(p.repeat(2, 1), torch.full((10,), 0.5), torch.ones(10)).item()
    assert twice / 2 == pytest.approx(2 * (0.25 - 81 / 406) ** 2 + (41 / 406) ** 2)
    # And γ itself, for p = (0.7, 0.3, 0) and A = 0. Ours: tanh ln 2 = (2² − 1)/(2² + 1) = 3/5, so (8, 5)/13.
    asked = rank_preserving_target(torch.tensor([[0.7, 0.3, 0.0]]), torch.tensor([0.0]), torch.tensor([3]))
    assert asked[0].tolist() == pytest.approx([0, 8 / 13, 5 / 13])
    # Released: tanh ln 3 = (3² − 1)/(3² + 1) = 4/5, so (9, 5, 5)/19.
    asked = released.target(torch.tensor(0.0), torch.tensor([[0.3, 0.0, 0.0]]))
    assert asked[0].tolist() == pytest.approx([9 / 19, 5 / 19, 5 / 19])


def test_a_letter_that_is_no_option_can_be_the_answer() -> None:
    # Three options and (0.3, 0.2, 0.1) on them; 0.4 on D. The released answer is D and wrong whatever the label is.
    p = torch.tensor([[0.3, 0.2, 0.1, 0.4]]).repeat(3, 1)
    accuracy, count = released.e_step(p, torch.tensor([0, 1, 2]))
    assert count[4] == 3
    assert accuracy[4] == 0
    # Ours answers A with 0.3 / 0.6, and is right once.
    ours = OptionLogits(("a", "b", "c"), p[:, :3].log().numpy(), [0, 1, 2]).decide()
    assert ours.confidence.tolist() == pytest.approx([0.5] * 3)
    assert ours.correct.tolist() == [1, 0, 0]


def test_the_fifth_option_is_not_seen() -> None:
    # The model says 1/2 to A and 1/8 to each of the others, in a bin that is right half of the time.
    five = torch.tensor([[0.5, *4 * [0.125]]], dtype=torch.float64)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert bin_penalty(five.log(), half).item() == pytest.approx(0, abs=1e-12)
    # Released: (4, 1, 1, 1)/7, so (4/7 − 1/2)² + 3·(1/7 − 1/6)² = 4/3·(1/14)².
    p = five[:, :4] / five[:, :4].sum()
    twice = released.calibration_loss(p.repeat(2, 1), torch.full((10,), 0.5), torch.ones(10)).item()
    assert twice / 2 == pytest.approx(4 / 3 / 14**2)
    # An answer E is beyond its table. Ours: the model's answer is E, and right.
    fifth = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.6]])
    with pytest.raises(IndexError, match="index 4 is out of bounds"):
        released.e_step(fifth[:, :4] / 0.4, torch.tensor([4]))
    assert OptionLogits(("a",), fifth.log().numpy(), [4]).decide().correct.tolist() == [1]


def test_gradient_flows_into_the_target() -> None:
    # The confidence is right already, only the rest is too uneven: the target gives them 0.16, 0.13 and 0.11.
    logits = torch.tensor([[0.6, 0.3, 0.07, 0.03]] * 2, dtype=torch.float64).log().requires_grad_()
    accuracy, count = torch.full((10,), 0.6, dtype=torch.float64), torch.ones(10)
    p = logits.softmax(-1)
    (theirs,) = torch.autograd.grad(released.calibration_loss(p, accuracy, count), logits)
    target = torch.cat([accuracy[:2, None], released.target(accuracy[0], p[:, 1:].detach())], dim=-1)
    assert target[0].tolist() == pytest.approx([0.6, 0.16, 0.13, 0.11], abs=0.01)
    (fixed,) = torch.autograd.grad((logits.softmax(-1) - target).square().sum(), logits)
    (ours,) = torch.autograd.grad(bin_penalty(logits, accuracy[:2]).sum(), logits)
    torch.testing.assert_close(ours, fixed, rtol=1e-6, atol=1e-7)
    assert (ours[:, 2:] < 0).all()  # descent lifts the two least …
    assert (theirs[:, 2:] / ours[:, 2:] < 0.6).all()  # … with little more than half the force if t is pulled down


def test_a_question_alone_in_its_batch_counts_its_rest_three_times() -> None:
    # c = 0.4, A = 0.7: (0.4 − 0.7)² + 3·(0.2 − 0.1)² = 0.12. A squeezed index broadcasts, and 0.03 becomes 0.09.
    logits = even_logits([0.4, 0.4])
    accuracy, count = torch.full((10,), 0.7, dtype=torch.float64), torch.ones(10)
    assert released.calibration_loss(logits.exp(), accuracy, count).item() == pytest.approx(2 * 0.12)
    assert released.calibration_loss(logits[:1].exp(), accuracy, count).item() == pytest.approx(0.18)
    np.testing.assert_allclose(bin_penalty(logits, accuracy[:2]), [0.12, 0.12])
    np.testing.assert_allclose(bin_penalty(logits[:1], accuracy[:1]), [0.12])
