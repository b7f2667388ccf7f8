"""RCFT against its published formulas, written out again in numpy, and against the flaws of the released code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import build, logged, plain_probabilities
from transformers import TrainerCallback

from caltune.errors import InputError
from caltune.methods import RCFTConfig
from caltune.methods.rcft import bin_accuracy, bin_penalty, rank_preserving_target
from caltune.scoring import score
from caltune.types import Predictions

INF = math.inf


def published_target(p: np.ndarray, accuracy: float) -> np.ndarray:
    """Section 1 of the specification, one question, probabilities in descending order."""
    options = len(p)
    t = np.zeros(options)
    t[0] = accuracy
    if accuracy < 1:
        gamma = math.log(options - 1) / (p[1] * (1 - accuracy))
        share = [1 + math.tanh(gamma * p[j]) for j in range(1, options)]
        for j in range(1, options):
            t[j] = (1 - accuracy) * share[j - 1] / sum(share)
    return t


def published_penalty(p: np.ndarray, accuracy: float) -> float:
    p = np.sort(p)[::-1]
    t = published_target(p, accuracy)
    return (p[0] - accuracy) ** 2 + sum((p[j] - t[j]) ** 2 for j in range(1, len(p)))


def logits_of(*rows: list[float]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64).log()


def test_penalty_by_hand() -> None:
    # p = (0.7, 0.2, 0.06, 0.04), A = 0.5: r = p_j / (0.2 · 0.5) = 2, 0.6, 0.4; tanh(ln 3 · r) = (9^r − 1) / (9^r + 1)
    share = [1 + (9**r - 1) / (9**r + 1) for r in (2, 0.6, 0.4)]
    assert share[0] == pytest.approx(1 + 80 / 82)
    t = [0.5 * s / sum(share) for s in share]
    expected = 0.2**2 + (0.2 - t[0]) ** 2 + (0.06 - t[1]) ** 2 + (0.04 - t[2]) ** 2
    assert expected == pytest.approx(0.06023, abs=1e-5)
    order = logits_of([0.06, 0.7, 0.04, 0.2])
    assert bin_penalty(order, torch.tensor([0.5])).item() == pytest.approx(expected)
    # Two options, ln 1 = 0: the rest is what is left. (0.6 − 0.9)² + (0.4 − 0.1)²
    assert bin_penalty(logits_of([0.4, 0.6]), torch.tensor([0.9])).item() == pytest.approx(0.18)
    # A = 1: t = 0. 0.2² + 0.1² + 0.1²
    assert bin_penalty(logits_of([0.1, 0.8, 0.1]), torch.tensor([1.0])).item() == pytest.approx(0.06)
    # A = 0, p = (0.4, 0.3, 0.3, 0): r = 1, 1, 0, shares 1.8, 1.8, 1 of 4.6.
    expected = 0.4**2 + 2 * (0.3 - 1.8 / 4.6) ** 2 + (1 / 4.6) ** 2
    # A probability of 0 in floating point; a logit of -inf would be a missing option.
    assert bin_penalty(logits_of([0.4, 0.3, 1e-300, 0.3]), torch.tensor([0.0])).item() == pytest.approx(expected)


def test_penalty_is_the_published_one_for_ragged_rows() -> None:
    draw = np.random.default_rng(0)
    sizes = [2, 3, 4, 5, 4, 2, 5, 3] * 8
    rows = [draw.dirichlet(np.full(size, 0.7)) for size in sizes]
    accuracy = draw.random(len(rows))
    accuracy[:4], accuracy[4:8] = 0.0, 1.0
    ours = bin_penalty(logits_of(*map(list, rows)), torch.tensor(accuracy))
    expected = [published_penalty(p, a) for p, a in zip(rows, accuracy, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("options", [2, 3, 4, 5])
def test_target_sums_to_one_and_keeps_the_rank_of_the_others(options: int) -> None:
    draw = np.random.default_rng(options)
    ranked = torch.tensor(-np.sort(-draw.dirichlet(np.ones(options), 200)))
    accuracy = torch.tensor(draw.random(200))
    target = rank_preserving_target(ranked, accuracy, torch.full((200,), options))
    torch.testing.assert_close(target.sum(-1), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(target[:, 0], accuracy)
    assert (target[:, 1:].diff(dim=-1) <= 0).all()
    assert (target >= 0).all()


def test_target_without_a_second_probability_is_uniform() -> None:
    # p_(2) = 0: 0 / 0 in the formula; every share is 1 + tanh 0.
    target = rank_preserving_target(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([0.7]), torch.tensor([4]))
    torch.testing.assert_close(target, torch.tensor([[0.7, 0.1, 0.1, 0.1]]))


def test_no_gradient_flows_into_the_target() -> None:
    draw = np.random.default_rng(3)
    logits = torch.tensor(draw.normal(size=(6, 5)), requires_grad=True)
    missing = torch.zeros(6, 5, dtype=torch.bool)
    missing[1, 3:] = missing[4, 2:] = True
    accuracy = torch.tensor(draw.random(6))
    ranked = logits.detach().masked_fill(missing, -INF).softmax(-1).sort(-1, descending=True).values
    target = rank_preserving_target(ranked, accuracy, (~missing).sum(-1))

    def frozen(z: torch.Tensor) -> torch.Tensor:
        p = z.masked_fill(missing, -INF).softmax(-1).sort(-1, descending=True).values
        return (p - target).square().sum(-1)

    assert torch.autograd.gradcheck(frozen, logits)
    (expected,) = torch.autograd.grad(frozen(logits).sum(), logits)
    (ours,) = torch.autograd.grad(bin_penalty(logits.masked_fill(missing, -INF), accuracy).sum(), logits)
    torch.testing.assert_close(ours, expected)
    # The distance with a target that moves along has another slope, so the comparison above can fail.
    step = torch.zeros_like(logits)
    step[0, 4] = 1e-6
    moving = bin_penalty(logits + step, accuracy)[0] - bin_penalty(logits - step, accuracy)[0]
    assert abs(moving.item() / 2e-6 - ours[0, 4].item()) > 1e-3


def test_full_confidence_gets_a_loss() -> None:
    # The released code leaves the last bin out. (1 − 0.6)² + (0 − 0.4)² = 0.32; (0.95 − 0.6)² + (0.05 − 0.4)² = 0.245.
    sure = torch.tensor([[1e4, 0.0], [math.log(19), 0.0]])
    torch.testing.assert_close(bin_penalty(sure, torch.tensor([0.6, 0.6])), torch.tensor([0.32, 0.245]))
    five = Predictions(tuple("abcde"), np.array([1.0, 0.95, 0.901, 0.99, 0.9]), np.array([1.0, 0.0, 0.0, 0.0, 1.0]))
    accuracy = bin_accuracy(five, 10)
    assert accuracy[9] == 0.25  # 0.9 itself stands in the bin below
    assert accuracy[8] == 1.0


@pytest.mark.parametrize("row", [[1e4, 0.0, 0.0, -1e4], [0.0, -1e4, -INF, -INF], [-1e4, -1e4, 1e4, -1e4]])
@pytest.mark.parametrize("accuracy", [0.0, 0.4, 1.0])
def test_extreme_logits_stay_finite(row: list[float], accuracy: float) -> None:
    logits = torch.tensor([row], requires_grad=True)
    penalty = bin_penalty(logits, torch.tensor([accuracy]))
    penalty.sum().backward()
    assert torch.isfinite(penalty).all()
    assert torch.isfinite(logits.grad).all()


def test_empty_bins_borrow_the_gap_of_the_nearest() -> None:
    # Bins of 0.2. Bin 1: confidence 0.3, accuracy 0.5, gap +0.2. Bin 4: 0.95, 1/2, gap −0.45.
    four = Predictions(tuple("abcd"), np.array([0.25, 0.35, 0.92, 0.98]), np.array([1.0, 0.0, 1.0, 0.0]))
    # Bin 0: 0.1 + 0.2. Bin 2 is nearer to 1: 0.5 + 0.2. Bin 3 is nearer to 4: 0.7 − 0.45.
    np.testing.assert_allclose(bin_accuracy(four, 5), [0.3, 0.5, 0.7, 0.25, 0.5])
    # One filled bin lends to all, within [0, 1]: gap 0 − 0.9, middles below that.
    one = Predictions(("a",), np.array([0.9]), np.array([0.0]))
    np.testing.assert_allclose(bin_accuracy(one, 4), [0, 0, 0, 0])
    two = Predictions(("a", "b"), np.array([0.2, 0.9]), np.array([1.0, 0.0]))
    # The middle bin is as near to either and takes the lower one's gap: 0.5 + 0.8, cut at 1.
    np.testing.assert_allclose(bin_accuracy(two, 3), [1.0, 1.0, 0.0])
    np.testing.assert_allclose(bin_accuracy(two, 1), [0.5])


def independent_e_step(p: list[np.ndarray], labels: list[int], bins: int) -> tuple[list[int], dict[int, float]]:
    """Bin of each question and accuracy of each filled bin, by comparison with every edge."""
    where = [next(m for m in range(bins) if max(row) <= (m + 1) / bins) for row in p]
    right: dict[int, list[bool]] = {}
    for m, row, label in zip(where, p, labels, strict=True):
        right.setdefault(m, []).append(int(np.argmax(row)) == label)
    return where, {m: float(np.mean(flags)) for m, flags in right.items()}


@pytest.mark.parametrize("bin_weights", ["equal", "count"])
def test_the_logged_loss_is_cross_entropy_plus_lambda_times_the_papers_sum(tmp_path: Path, bin_weights: str) -> None:
    questions = tiny_questions(10)
    trainer = build(
        "RCFT",
        tmp_path,
        bins=5,
        calibration_weight=0.7,
        bin_weights=bin_weights,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
    )
    trainer.train()
    p = plain_probabilities(tiny_model(), tiny_tokenizer(), questions)
    where, accuracy = independent_e_step(p, [q.answer for q in questions], 5)
    assert len(accuracy) > 1
    size = {m: where.count(m) if bin_weights == "equal" else len(questions) for m in accuracy}
    # Σ_m 1/N_m Σ_i […], or 1/N Σ_i […]
    term = sum(published_penalty(row, accuracy[m]) / size[m] for row, m in zip(p, where, strict=True))
    plain = np.mean([-math.log(row[q.answer]) for row, q in zip(p, questions, strict=True)])
    assert trainer.state.global_step == 1
    assert logged(trainer, "loss") == [pytest.approx(plain + 0.7 * term, rel=1e-5)]
    assert logged(trainer, "calibration_penalty") == [pytest.approx(term, rel=1e-5)]


class EStep(TrainerCallback):
    """At each epoch's begin (our refresh comes first): what the trainer holds, and its model's beliefs."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.trainer: Any = None

    def on_epoch_begin(self, *_: Any, model: Any, **__: Any) -> None:
        tokenizer = self.trainer.processing_class
        train = score(model, tokenizer, tiny_questions(10))
        calibration = score(model, tokenizer, tiny_questions(8, prefix="c"))
        self.seen.append((self.trainer.targets.clone(), train, calibration))


@pytest.mark.parametrize("source", ["train", "held-out"])
def test_expectations_are_renewed_once_an_epoch(tmp_path: Path, source: str) -> None:
    watch = EStep()
    trainer = build(
        "RCFT",
        tmp_path,
        callbacks=[watch],
        bin_accuracy_source=source,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=0.1,
    )
    watch.trainer = trainer
    trainer.train()
    assert trainer.state.global_step == 3 * math.ceil(10 / 4)  # epochs, not epochs²
    assert len(watch.seen) == 3
    for targets, train, calibration in watch.seen:
        decided = train.decide()
        fitted = bin_accuracy(decided if source == "train" else calibration.decide(), 10)
        index = [min(9, math.ceil(c * 10) - 1) for c in decided.confidence]
        np.testing.assert_allclose(targets, fitted[index], atol=1e-6)
    assert not torch.equal(watch.seen[0][0], watch.seen[1][0])


def test_the_two_sources_differ(tmp_path: Path) -> None:
    targets = []
    for source in ("train", "held-out"):
        trainer = build("RCFT", tmp_path, bin_accuracy_source=source)
        trainer.refresh()
        targets.append(trainer.targets)
    assert not torch.equal(*targets)


def test_free_logits_move_to_the_accuracy_of_their_bin() -> None:
    accuracy = torch.tensor([0.4, 0.6, 0.85, 1.0, 0.55])
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    logits[4, 2:] = -INF
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        bin_penalty(logits, accuracy).sum().backward()
        optimizer.step()
    top = logits.detach().softmax(-1).max(-1).values
    torch.testing.assert_close(top, accuracy, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bins", 0),
        ("calibration_weight", -0.1),
        ("calibration_weight", math.nan),
        ("calibration_weight", INF),
        ("bin_accuracy_source", "test"),
        ("bin_weights", "area"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{setting} must .*got '?{value}"):
        RCFTConfig(str(tmp_path), activation_checkpointing=False, **{setting: value})


def test_held_out_needs_calibration_questions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bin_accuracy_source 'held-out' needs calibration questions, got none"):
        build("RCFT", tmp_path, calibration=[], bin_accuracy_source="held-out")
