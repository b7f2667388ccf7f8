"""What the speed benchmarks count and check: the fewest operations, agreement before timing, growth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ragged_questions, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from caltune.errors import InputError
from caltune.scoring.engine import score_encoded
from caltune.scoring.packing import EncodedQuestion

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import limits
import scaling
import several_gpus
import speed_metrics


def work_by_sets(encoded: list[EncodedQuestion]) -> limits.Work:
    """A token is known by all that stands before it and itself."""
    read, predicting = set(), set()
    for item in encoded:
        for option in item.options:
            path = item.prompt + option[:-1]
            read |= {path[: i + 1] for i in range(len(path))}
            predicting |= {path[: i + 1] for i in range(len(item.prompt) - 1, len(path))}
    return limits.Work(len(read), sum(map(len, read)), len(predicting))


def test_each_distinct_token_counts_once() -> None:
    # 5 6 7 | 1 2 | 3 and 5 6 8 | 1 | 2: read are 5, 6, 7, 1 (behind 7) and 8; 7, 1 and 8 predict.
    two = [EncodedQuestion((5, 6, 7), ((1, 2), (3,))), EncodedQuestion((5, 6, 8), ((1,), (2,)))]
    assert limits.fewest(two) == limits.Work(tokens=5, pairs=1 + 2 + 3 + 4 + 3, heads=3)
    for seed in range(5):
        few_tokens = ragged_questions(9, seed=seed, vocabulary=5)  # so that much is shared
        assert limits.fewest(few_tokens) == work_by_sets(few_tokens)
        assert limits.fewest(few_tokens * 2) == work_by_sets(few_tokens)


def test_operations_are_those_torch_counts() -> None:
    """Where nothing is shared and all have one length, eager attention does the linear layers' fewest, to one."""
    model = tiny_model(attn_implementation="eager")
    generator = np.random.default_rng(0)
    encoded = [EncodedQuestion((i, *generator.integers(3, 300, 11).tolist()), ((1,), (2,))) for i in range(3, 8)]
    with FlopCounterMode(display=False) as counter:
        score_encoded(model, encoded, 0)
    counted = counter.get_flop_counts()["Global"]
    shape = limits.shape_of(model)
    linear, attention, head = limits.operations(limits.fewest(encoded), shape)
    assert counted[torch.ops.aten.mm] == linear + head
    # It multiplies all of 12 x 12 where 12 · 13 / 2 pairs count; a little goes into the rotation's angles.
    assert counted[torch.ops.aten.bmm] == pytest.approx(attention * 144 / 78, rel=0.05)
    assert shape.parameters == sum(
        p.numel() for n, p in model.named_parameters() if "norm" not in n and "embed" not in n
    )


def test_shortest_time_by_hand() -> None:
    shape = limits.Shape(linear={(2, 3): 4}, head=(2, 5), attention=6)
    machine = limits.Machine(linear=10.0, head=20.0, best=30.0, copy=1.0, threads=1)
    # 2·2·3·4 = 48 a token, 4·6 = 24 a pair, 2·2·5 = 20 a head: 480/10 + 720/30 + 40/20.
    assert limits.shortest_seconds(limits.Work(10, 30, 2), shape, machine) == 48 + 24 + 2


def test_bound_is_measured() -> None:
    found = limits.bound(tiny_model(), ragged_questions(), rows=(4,), seconds=0.001)
    assert 0 < found["seconds"] < 1
    assert found["tokens"] == work_by_sets(ragged_questions()).tokens


def test_values_are_compared_before_times() -> None:
    calls: dict[str, Any] = {"caltune": lambda: 0.25, "reading": lambda: 7.0, "other": lambda: 0.25 + 1e-9}
    speed_metrics.require_agreement("ece", calls, resampled=False)
    calls["other"] = lambda: 0.26
    with pytest.raises(InputError, match=r"ece: other must give what caltune gives, 0\.25, got 0\.26"):
        speed_metrics.require_agreement("ece", calls, resampled=False)
    draw = np.random.default_rng(0)
    mine, same, moved = draw.normal(0, 1, 500), draw.normal(0, 1, 500), draw.normal(0.5, 1, 500)
    speed_metrics.require_agreement("mean", {"caltune": lambda: mine, "other": lambda: same}, resampled=True)
    for other in (moved, 2 * same):
        with pytest.raises(InputError, match="mean: other must give"):
            speed_metrics.require_agreement(
                "mean", {"caltune": lambda: mine, "other": lambda o=other: o}, resampled=True
            )


def test_times_alternate_and_ratios_are_to_ours() -> None:
    order: list[str] = []
    found = speed_metrics.alternate({"caltune": lambda: order.append("a"), "other": lambda: order.append("b")}, 3)
    runs = [who for i, who in enumerate(order) if i == 0 or order[i - 1] != who]
    assert runs == ["a", "b"] * 4  # once to see how long it takes, then three rounds
    assert found["caltune"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert found["other"]["ratio"]["low"] <= found["other"]["ratio"]["median"] <= found["other"]["ratio"]["high"]


def test_made_up_questions_have_the_lengths_asked_for() -> None:
    point = {"questions": 200, "options": 26, "option_tokens": 3, "prompt": 50}
    questions = scaling.made_up(point, 300)
    lengths = [len(question.prompt) for question in questions]
    assert (min(lengths), max(lengths)) == (25, 75)
    assert np.mean(lengths) == pytest.approx(50, abs=4)
    assert {tuple(map(len, question.options)) for question in questions} == {(3,) * 26}


def test_exponent_of_growth() -> None:
    square = [{"tera_operations": work, "seconds": 3 * work**2} for work in (1.0, 2.0, 5.0)]
    assert scaling.exponent(square) == pytest.approx(2)
    assert scaling.exponent(square[:1]) is None


def test_the_guide_has_what_several_gpus_would_gain():
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text(encoding="utf-8")
    assert [row for row in several_gpus.training_rows() if row not in guide] == []


def test_one_gpu_waits_for_nobody():
    assert abs(several_gpus.largest_of(1)) < 1e-12
    assert several_gpus.efficiency(1, 16) == pytest.approx(1.0)
