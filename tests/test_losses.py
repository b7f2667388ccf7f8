"""Loss terms: hand values, missing options, gradients, invariances, other implementations, where each is least."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from caltune.losses import cross_entropy_loss, entropy_penalty, label_smoothing_loss, margin_penalty

INFINITY = math.inf
Term = Callable[[Tensor, Tensor], Tensor]
TERMS: dict[str, Term] = {
    "cross entropy": cross_entropy_loss,
    "label smoothing": label_smoothing_loss,
    "label smoothing 0.6": lambda logits, labels: label_smoothing_loss(logits, labels, smoothing=0.6),
    "margin 1": lambda logits, _: margin_penalty(logits, margin=1.0),
    "margin 10": lambda logits, _: margin_penalty(logits),
    "entropy": lambda logits, _: entropy_penalty(logits),
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())


def some(rows: int = 6, options: int = 4, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(rows, options, generator=generator, dtype=torch.float64)
    return logits, torch.arange(rows) % options


def in_numpy(name: str, row: np.ndarray, label: int) -> float:
    """The equations of docs/methods.md for one row without missing options."""
    p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    if name == "cross entropy":
        return -math.log(p[label])
    if name.startswith("label smoothing"):
        s = 0.6 if name.endswith("0.6") else 0.1
        return (1 - s) * -math.log(p[label]) + s * sum(-math.log(q) for q in p) / len(p)
    if name.startswith("margin"):
        return sum(max(0.0, row.max() - z - float(name.split()[1])) for z in row) / len(row)
    return sum(q * math.log(q) for q in p)


@pytest.mark.parametrize("name", TERMS)
def test_against_numpy(name: str) -> None:
    logits, labels = some(scale=8.0)
    found = TERMS[name](logits, labels)
    assert found.shape == (6,)
    expected = [in_numpy(name, row.numpy(), int(label)) for row, label in zip(logits, labels, strict=True)]
    assert max(map(abs, expected)) > 0.1
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_against_torch() -> None:
    logits, labels = some()
    for s in (0.0, 0.1, 0.5, 1.0):
        expected = functional.cross_entropy(logits, labels, label_smoothing=s, reduction="none")
        torch.testing.assert_close(label_smoothing_loss(logits, labels, s), expected)
    torch.testing.assert_close(
        cross_entropy_loss(logits, labels), functional.cross_entropy(logits, labels, reduction="none")
    )
    torch.testing.assert_close(entropy_penalty(logits), -torch.distributions.Categorical(logits=logits).entropy())


# With z = (ln 3, 0), p = (3/4, 1/4).
QUARTERS = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)


def test_by_hand() -> None:
    labels = torch.tensor([0])
    assert cross_entropy_loss(QUARTERS, labels).item() == pytest.approx(math.log(4 / 3))
    # 0.8 ln(4/3) + 0.2 · (ln(4/3) + ln 4)/2
    smooth = 0.8 * math.log(4 / 3) + 0.1 * (math.log(4 / 3) + math.log(4))
    assert label_smoothing_loss(QUARTERS, labels, 0.2).item() == pytest.approx(smooth)
    assert entropy_penalty(QUARTERS).item() == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    # Leads 0, 5, 1, 8 less a margin of 2: (0 + 3 + 0 + 6) / 4
    assert margin_penalty(torch.tensor([[5.0, 0.0, 4.0, -3.0]]), 2.0).item() == pytest.approx(9 / 4)


def test_special_cases() -> None:
    logits, labels = some()
    assert torch.equal(label_smoothing_loss(logits, labels, 0.0), cross_entropy_loss(logits, labels))
    assert torch.equal(margin_penalty(logits, 1e6), torch.zeros(6, dtype=torch.float64))
    for options in (2, 5, 26):
        uniform = torch.full((1, options), 7.0, dtype=torch.float64)
        assert entropy_penalty(uniform).item() == pytest.approx(-math.log(options))
        assert cross_entropy_loss(uniform, torch.tensor([1])).item() == pytest.approx(math.log(options))
        assert margin_penalty(uniform, 0.0).item() == 0
    certain = torch.tensor([[200.0, 0.0]])
    assert entropy_penalty(certain).item() == 0
    assert label_smoothing_loss(certain, torch.tensor([0])).item() == pytest.approx(0.1 * 200 / 2)  # without bound
    # Margin 0: mean of all leads, (0 + 1 + 2) / 3
    assert margin_penalty(torch.tensor([[2.0, 1.0, 0.0]]), 0.0).item() == pytest.approx(1.0)


def test_published_defaults() -> None:
    logits, labels = some(scale=9.0)
    assert torch.equal(label_smoothing_loss(logits, labels), label_smoothing_loss(logits, labels, 0.1))
    assert torch.equal(margin_penalty(logits), margin_penalty(logits, 10.0))
    assert margin_penalty(logits).max() > 0


@every_term
def test_a_missing_option_changes_nothing(term: Term) -> None:
    logits, labels = some()
    padded = torch.cat([logits, torch.full((6, 2), -INFINITY, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(term(padded, labels), term(logits, labels), rtol=1e-14, atol=1e-14)
    bare, wide = logits.clone().requires_grad_(), padded.clone().requires_grad_()
    term(bare, labels).sum().backward()
    term(wide, labels).sum().backward()
    torch.testing.assert_close(wide.grad[:, :4], bare.grad)
    assert torch.equal(wide.grad[:, 4:], torch.zeros(6, 2, dtype=torch.float64))


@every_term
def test_rows_of_different_width_in_one_batch(term: Term) -> None:
    logits, labels = some()
    logits[0, 3], logits[1, 2:] = -INFINITY, -INFINITY
    logits.requires_grad_()
    together = term(logits, labels)
    together.sum().backward()
    assert torch.isfinite(logits.grad).all()
    for row, width in enumerate((3, 2, 4, 4, 4, 4)):
        alone = term(logits[row : row + 1, :width], labels[row : row + 1])
        torch.testing.assert_close(together[row], alone[0])


@every_term
def test_gradients_by_finite_differences(term: Term) -> None:
    logits, labels = some(scale=8.0)
    assert torch.autograd.gradcheck(lambda z: term(z, labels), logits.clone().requires_grad_())
    minus = torch.full((6, 1), -INFINITY, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: term(torch.cat([z, minus], dim=1), labels), logits.clone().requires_grad_()
    )


@every_term
def test_a_constant_added_to_a_row_changes_nothing(term: Term) -> None:
    logits, labels = some()
    shift = torch.linspace(-50, 50, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(term(logits + shift, labels), term(logits, labels), rtol=1e-10, atol=1e-10)


@every_term
def test_the_order_of_the_options_does_not_matter(term: Term) -> None:
    logits, labels = some()
    order = torch.tensor([2, 0, 3, 1])
    moved = order.argsort()[labels]
    torch.testing.assert_close(term(logits[:, order], moved), term(logits, labels))


def minimiser(term: Term, start: Tensor, labels: Tensor) -> Tensor:
    """Probabilities after descent on the logits."""
    logits = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = term(logits, labels).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().softmax(-1)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
@pytest.mark.parametrize("options", [2, 4])
def test_label_smoothing_is_least_where_it_says(options: int, smoothing: float) -> None:
    logits, labels = some(3, options)
    found = minimiser(lambda z, y: label_smoothing_loss(z, y, smoothing), logits, labels)
    expected = torch.full_like(found, smoothing / options)
    expected[torch.arange(3), labels] = 1 - smoothing + smoothing / options
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_entropy_penalty_is_least_for_the_uniform() -> None:
    logits, labels = some(3, scale=1.0)
    found = minimiser(lambda z, _: entropy_penalty(z), logits, labels)
    torch.testing.assert_close(found, torch.full_like(found, 0.25), atol=1e-4, rtol=0)
    # With cross-entropy on one of two: ∂/∂p (−ln p + b Σ p ln p) = −1/p + b (ln p − ln(1 − p)) = 0
    b = 0.5
    found = minimiser(lambda z, y: cross_entropy_loss(z, y) + b * entropy_penalty(z), logits[:1, :2], labels[:1])
    p = found[0, 0].item()
    assert 0.5 < p < 0.99
    assert -1 / p + b * (math.log(p) - math.log(1 - p)) == pytest.approx(0, abs=1e-3)


def test_the_margin_penalty_pulls_down_the_lead_only_beyond_the_margin() -> None:
    logits = torch.tensor([[6.0, 5.0, 1.0, 0.0]], requires_grad=True)
    margin_penalty(logits, 4.0).sum().backward()
    # Leads 0 1 5 6: the last two exceed 4, each with weight 1/4; the top one pays for both.
    assert logits.grad.tolist() == [[0.5, 0.0, -0.25, -0.25]]


@pytest.mark.parametrize("loss", [cross_entropy_loss, label_smoothing_loss])
def test_an_unknown_label_is_refused(loss: Term) -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        loss(torch.zeros(1, 3), torch.tensor([-1]))
