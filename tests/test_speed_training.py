"""The training benchmark: that sides learn by the same loss, what it counts, and when it refuses to compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_questions

from caltune.errors import InputError
from caltune.scoring.packing import EncodedQuestion

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import limits
import speed_training
import training_sides


@pytest.fixture
def run(tiny_folder: Path, questions_file: Path) -> dict[str, Any]:
    """Two timed steps of four questions on the tiny model."""
    return {
        "model": str(tiny_folder),
        "data": str(questions_file),
        "batch": 4,
        "steps": 2,
        "device": "cpu",
        "released_length": 48,
        "tolerance": 1e-3,
    }


def test_trl_and_caltune_learn_by_the_same_loss_on_the_same_rows(run: dict[str, Any], tmp_path: Path) -> None:
    sides = ("trl plain", "trl padding-free", "caltune rows")
    found = [training_sides.train({**run, "side": side}, tmp_path, lambda: 2**40) for side in sides]
    for one in found:
        assert len(one["losses"]) == 4
        assert one["losses"] == pytest.approx(found[0]["losses"], abs=1e-4)
        assert one["seconds_a_question"] == pytest.approx(one["seconds_a_step"] / 4)
        assert one["tokens_a_question"] == found[0]["tokens_a_question"]


@pytest.mark.parametrize("side", ["rcft", "released rcft"])
def test_every_side_tells_what_the_table_shows(run: dict[str, Any], tmp_path: Path, side: str) -> None:
    found = training_sides.train({**run, "side": side}, tmp_path, lambda: 2**40)
    assert found["seconds_a_step"] > 0
    assert found["peak_bytes"] > 0
    if side == "rcft":
        assert 0 <= found["padding"] < 0.5
        assert found["terms_share"] >= 0
        assert found["refresh_share"] > 0


def test_the_bound_by_hand(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shape = limits.Shape(linear={(2, 3): 4}, head=(2, 5), attention=6)
    machine = limits.Machine(linear=10.0, head=20.0, best=30.0, copy=1.0, threads=1)
    # forward: 480 in layers, 720 in attention, 40 in the head; adapters of rank 1: 2 · 4 (2 + 3) · 10 tokens = 400
    found = speed_training.backward_and_forward(limits.Work(10, 30, 2), shape, machine, 1)
    assert found == (2 * 480 + 3 * 400) / 10 + 3 * 720 / 30 + 2 * 40 / 20
    monkeypatch.setattr(limits, "copy_rate", lambda _: 1.0)  # plays no part, and takes its time
    bounds = training_sides.bounds(run, speed_training.backward_and_forward, seconds=0.001)
    assert 0 < bounds["sft tokens"] < bounds["trl plain"]  # which also learns to end
    assert bounds["trl plain"] == bounds["caltune rows"]
    assert bounds["sft"] == bounds["rcft"] >= bounds["sft tokens"]  # most of the options here are one token


def test_right_options_only() -> None:
    questions = tiny_questions(2)  # the answers are options 0 and 1
    encoded = [EncodedQuestion((7, 8), ((1,), (2, 3))), EncodedQuestion((9,), ((4,), (5, 6), (1,)))]
    assert training_sides.right_only(encoded, questions) == [
        EncodedQuestion((7, 8), ((1,),)),
        EncodedQuestion((9,), ((5, 6),)),
    ]
    assert training_sides.right_only(encoded, questions, end=2)[0].options == ((1, 2),)


def test_memory_without_all_logits_is_less() -> None:
    """Positions that predict something: 2 (1 + 4 · 2) = 18 of 2 · 203; a vocabulary of 8,192 in float32."""
    point = {"vocabulary": 8192, "length": 200, "device": "cpu"}
    from scaling import peak_bytes

    needed = {
        side: training_sides.memory_of({**point, "side": side}, lambda: peak_bytes("cpu"))["peak_bytes"]
        for side in ("caltune", "all logits")
    }
    if Path("/proc/self/clear_refs").exists():
        assert needed["all logits"] - needed["caltune"] > (2 * 203 - 18) * 8192 * 4


def test_sides_alternate_and_other_losses_are_refused(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    losses = {"trl plain": [2.0, 1.0]}

    def fake(one: dict[str, Any]) -> dict[str, Any]:
        order.append(one["side"])
        seconds = {"trl plain": 0.4}.get(one["side"], 0.2)
        return {
            "seconds_a_step": 4 * seconds,
            "seconds_a_question": seconds,
            "tokens_a_question": 10.0,
            "peak_bytes": 5,
            "losses": losses.get(one["side"], [2.0, 1.0004]),
        }

    monkeypatch.setattr(speed_training, "in_own_process", fake)
    sides = ["trl plain", *speed_training.CALTUNE]
    found = speed_training.compare(run, sides, 2)
    assert order == sides * 2
    assert found["trl plain"]["times"]["caltune rows"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["sft"]["tokens_a_second"]["median"] == pytest.approx(50)
    assert found["loss_difference"] == pytest.approx(4e-4)
    losses["trl plain"] = [2.0, 1.1]
    with pytest.raises(InputError, match=r"caltune rows must learn by TRL's loss to 0\.001, got curves 0\.09"):
        speed_training.compare(run, sides, 1)
