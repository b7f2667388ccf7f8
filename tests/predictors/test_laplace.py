"""Last-layer Laplace against autograd and dense linear algebra on the tiny model; its limits; what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import plain_option_logits
from torch import Tensor

from caltune.errors import InputError
from caltune.metrics import mean_confidence, nll
from caltune.predictors.laplace import Laplace, curvature, fit_laplace, laplace_scores, linearise, log_mean_softmax
from caltune.scoring import score
from caltune.types import Question

TOKENIZER = tiny_tokenizer()
TRAIN, CALIBRATION, TEST = tiny_questions(10), tiny_questions(6, prefix="c"), tiny_questions(5, prefix="t")
SETTINGS = [("continuations", "sum"), ("continuations", "mean"), ("letters", "sum")]


def autograd_jacobian(question: Question, answers: str, reduction: str) -> tuple[np.ndarray, np.ndarray]:
    """Option logits (K,) and their derivative (K, H, H) in M, with h + M h before the head, by plain passes."""
    model = tiny_model()
    matrix = torch.zeros(32, 32, requires_grad=True)
    model.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0] + inputs[0] @ matrix.T,))
    logits: Tensor = plain_option_logits(model, TOKENIZER, question, answers, reduction)
    rows = [torch.autograd.grad(value, matrix, retain_graph=True)[0] for value in logits]
    return logits.detach().double().numpy(), torch.stack(rows).double().numpy()


@cache
def fitted(precision: float = 1.0) -> Laplace:
    return fit_laplace(tiny_model(), TOKENIZER, TRAIN, CALIBRATION, precisions=(precision,))


@pytest.mark.parametrize(("answers", "reduction"), SETTINGS)
def test_derivatives_are_those_of_autograd(answers: Any, reduction: Any) -> None:
    asked = TRAIN[:3]
    ours = list(linearise(tiny_model(), TOKENIZER, asked, answers=answers, reduction=reduction))
    for question, linear in zip(asked, ours, strict=True):
        logits, jacobians = autograd_jacobian(question, answers, reduction)
        np.testing.assert_allclose(linear.logits, logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(linear.jacobians(), jacobians, rtol=1e-3, atol=1e-4)
        assert np.abs(jacobians).max() > 0.1


def dense_ggn(asked: list[Question]) -> np.ndarray:
    """The whole Gauss–Newton matrix over the entries of M, (H · H, H · H), with M's rows first."""
    total = np.zeros((1024, 1024))
    for question in linearise(tiny_model(), TOKENIZER, asked):
        p = np.exp(question.logits) / np.exp(question.logits).sum()
        flat = question.jacobians().reshape(len(p), -1)
        total += flat.T @ (np.diag(p) - np.outer(p, p)) @ flat
    return total


def test_an_option_temperature_divides_logits_and_derivatives() -> None:
    warm = tiny_model()
    warm.config.option_temperature = 2.0
    for plain, divided in zip(linearise(tiny_model(), TOKENIZER, TEST), linearise(warm, TOKENIZER, TEST), strict=True):
        np.testing.assert_allclose(divided.logits, plain.logits / 2, rtol=1e-6)
        np.testing.assert_allclose(divided.jacobians(), plain.jacobians() / 2, rtol=1e-6)


def test_curvature_is_the_partial_traces_of_the_whole_matrix() -> None:
    ggn = dense_ggn(TRAIN).reshape(32, 32, 32, 32)
    hidden, gradient = curvature(linearise(tiny_model(), TOKENIZER, TRAIN))
    np.testing.assert_allclose(hidden, np.einsum("iaib->ab", ggn), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(gradient, np.einsum("iaja->ij", ggn), rtol=1e-6, atol=1e-8)
    assert np.trace(hidden) == pytest.approx(np.trace(gradient))
    assert np.trace(hidden) > 1


def test_covariance_is_that_of_the_dense_inverse() -> None:
    laplace = fitted(0.7)
    hidden, gradient = curvature(linearise(tiny_model(), TOKENIZER, TRAIN))
    dense = np.kron(gradient, hidden) / np.trace(hidden) + 0.7 * np.eye(1024)
    for question in linearise(tiny_model(), TOKENIZER, TEST[1:2]):
        flat = question.jacobians().reshape(len(question.logits), -1)
        expected = flat @ np.linalg.solve(dense, flat.T)
        np.testing.assert_allclose(laplace.covariance(question), expected, rtol=1e-5, atol=1e-8)
        assert np.diag(expected).min() > 0


def test_for_one_position_and_two_options_the_product_is_exact() -> None:
    """Letters: J_A − J_B is one outer product, so that a single question's matrix is a Kronecker product itself."""
    ((question),) = linearise(tiny_model(), TOKENIZER, TRAIN[:1], answers="letters")
    assert len(question.logits) == 2
    hidden, gradient = curvature(iter([question]))
    p = np.exp(question.logits) / np.exp(question.logits).sum()
    difference = question.jacobians()[0] - question.jacobians()[1]
    exact = p[0] * p[1] * np.outer(difference, difference)
    np.testing.assert_allclose(np.kron(gradient, hidden) / np.trace(hidden), exact, rtol=1e-6, atol=1e-10)


def test_log_mean_softmax() -> None:
    # Of two options with covariance [[s², 0], [0, 0]] it is log E σ(μ + s·x), here by quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    for mu, s in ((2.0, 3.0), (-1.0, 0.5)):
        expected = (weights / (1 + np.exp(-(mu + s * nodes)))).sum() / weights.sum()
        found = np.exp(log_mean_softmax(np.array([mu, 0.0]), np.diag([s * s, 0.0]), draws=20_000))
        assert found[0] == pytest.approx(expected, abs=0.005)
        assert found.sum() == pytest.approx(1)
    # Without variance it is the softmax, however unlikely an option.
    logits = np.array([3.0, 1.0, -2000.0])
    plain = log_mean_softmax(logits, np.zeros((3, 3)))
    rest = math.log(math.exp(3) + math.exp(1))
    np.testing.assert_allclose(plain, logits - rest, rtol=1e-12)
    # What all options share changes nothing.
    np.testing.assert_allclose(log_mean_softmax(logits, np.full((3, 3), 9.0)), plain, atol=1e-6)


def test_a_firm_prior_leaves_the_scores_and_a_loose_one_makes_them_hesitate() -> None:
    model = tiny_model()
    plain = score(model, TOKENIZER, TEST)
    firm = laplace_scores(model, TOKENIZER, TEST, replace(fitted(), precision=1e9))
    np.testing.assert_allclose(firm.probabilities(), plain.probabilities(), atol=1e-3)
    assert (firm.ids, firm.labels.tolist()) == (plain.ids, plain.labels.tolist())
    assert np.array_equal(np.isinf(firm.logits), np.isinf(plain.logits))
    confidences = [
        mean_confidence(laplace_scores(model, TOKENIZER, TEST, replace(fitted(), precision=tau)).decide())
        for tau in (1e9, 100.0, 10.0, 0.1)
    ]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[-1] < confidences[0] - 0.1


def test_more_training_questions_leave_less_to_be_unsure_of() -> None:
    (question,) = linearise(tiny_model(), TOKENIZER, TEST[:1])
    few, more = (
        fit_laplace(tiny_model(), TOKENIZER, TRAIN[:count], CALIBRATION[:1], precisions=(0.01,)) for count in (2, 10)
    )
    smaller, larger = np.linalg.eigvalsh(more.covariance(question)), np.linalg.eigvalsh(few.covariance(question))
    assert smaller.sum() < 0.8 * larger.sum()


def test_the_precision_has_the_least_nll_on_calibration_questions() -> None:
    model = tiny_model()
    chosen = fit_laplace(model, TOKENIZER, TRAIN, CALIBRATION)
    assert chosen.fitted_on == tuple(q.id for q in (*TRAIN, *CALIBRATION))
    hidden, _ = curvature(linearise(model, TOKENIZER, TRAIN))
    grid = np.geomspace(np.trace(hidden) / 1024, 10 * np.trace(hidden), 10)
    losses = [
        nll(laplace_scores(model, TOKENIZER, CALIBRATION, replace(chosen, precision=tau, fitted_on=()))) for tau in grid
    ]
    assert chosen.precision == pytest.approx(grid[int(np.argmin(losses))])
    assert min(losses) < nll(score(model, TOKENIZER, CALIBRATION)) - 0.1


def test_precisions_may_be_an_array() -> None:
    found = fit_laplace(tiny_model(), TOKENIZER, TRAIN, CALIBRATION[:1], precisions=np.geomspace(1e8, 1e9, 2))
    assert found.precision in (1e8, 1e9)


def test_settings_travel_and_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    how = {"answers": "letters", "template": "plain", "precisions": (1e9,)}
    laplace = fit_laplace(model, TOKENIZER, TRAIN, CALIBRATION, **how)
    found = laplace_scores(model, TOKENIZER, TEST, laplace)
    expected = score(model, TOKENIZER, TEST, answers="letters", template="plain")
    np.testing.assert_allclose(found.probabilities(), expected.probabilities(), atol=1e-3)
    assert model.training
    assert not model.lm_head._forward_hooks
    assert not torch.is_inference_mode_enabled()


def test_what_is_refused() -> None:
    model = tiny_model()

    def refused(
        match: str, *, model: Any = model, train: Any = TRAIN, calibration: Any = CALIBRATION, **how: Any
    ) -> None:
        with pytest.raises(InputError, match=match):
            fit_laplace(model, TOKENIZER, train, calibration, **how)

    refused("reduction must be sum or mean for Laplace, got 'min'", reduction="min")
    refused("needs train questions with answers, got 0", train=[])
    refused("needs calibration questions with answers, got 1", calibration=[replace(CALIBRATION[0], answer=None)])
    refused("2 training questions are also calibration questions, one is 'q0'", calibration=TRAIN[:2])
    refused("precisions must be positive and finite, got", precisions=(1.0, 0.0))
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["lm_head"]))
    refused("plain linear output head", model=adapted)
    laplace = fitted()
    for asked, match in (([], "no questions to score"), (TRAIN[:1], "fitted on, got 1, first id 'q0'")):
        with pytest.raises(InputError, match=match):
            laplace_scores(model, TOKENIZER, asked, laplace)
    with pytest.raises(InputError, match="draws must be at least 2, got 1"):
        laplace_scores(model, TOKENIZER, TEST, laplace, draws=1)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    model = tiny_model()
    plain = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    model.forward = capped
    with pytest.raises(InputError, match="got a model that changes them"):
        fit_laplace(model, TOKENIZER, TRAIN, CALIBRATION)
