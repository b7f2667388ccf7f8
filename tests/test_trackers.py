"""What TensorBoard and Weights & Biases are shown while a model is trained."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tiny import tiny_questions
from tiny_training import build, logged

from caltune.report.diagram import save_diagram


def trained(folder: Path, tracker: str, **settings: Any) -> Any:
    trainer = build(
        "SFT",
        folder,
        evaluation=settings.pop("evaluation", tiny_questions(6, prefix="e")),
        report_to=tracker,
        num_train_epochs=2,
        per_device_train_batch_size=5,
        eval_strategy="epoch",
        **settings,
    )
    trainer.train()
    return trainer


def test_tensorboard_shows_ece_and_a_diagram_at_each_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from matplotlib.image import imread
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    trainer = trained(tmp_path, "tensorboard", learning_rate=0.5)
    events = EventAccumulator(str(tmp_path / "runs"), size_guidance={"images": 0})
    events.Reload()
    shown = events.Scalars("eval/ece")
    assert [event.step for event in shown] == [2, 4]
    assert [event.value for event in shown] == pytest.approx(logged(trainer, "eval_ece"), rel=1e-5)
    assert events.Tags()["images"] == ["eval/reliability_diagram"]
    pictures = events.Images("eval/reliability_diagram")
    assert [picture.step for picture in pictures] == [2, 4]
    # The last one is the diagram of the model as it is now, pixel by pixel.
    trainer.evaluate()
    expected = save_diagram(tmp_path / "now.png", trainer.evaluated.decide(), title="step 4, 6 questions")
    found = imread(io.BytesIO(pictures[1].encoded_image_string))
    np.testing.assert_allclose(found[..., :3], imread(expected)[..., :3], atol=1 / 255)
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_each_of_several_data_sets_has_its_diagram_but_chat_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    chat = Dataset.from_list([{"text": "What is the capital of Peru? Lima"}])
    trainer = trained(tmp_path, "tensorboard", evaluation={"facts": tiny_questions(4, prefix="e"), "chat": chat})
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert events.Tags()["images"] == ["eval/facts_reliability_diagram"]
    assert len(logged(trainer, "eval_facts_ece")) == len(logged(trainer, "eval_chat_loss")) == 2
    assert not logged(trainer, "eval_chat_ece")
    assert math.isfinite(logged(trainer, "eval_chat_loss")[0])


def test_nothing_is_drawn_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a diagram was drawn")

    monkeypatch.setattr("caltune.trackers.save_diagram", refuse)
    assert len(logged(trained(tmp_path, "none"), "eval_ece")) == 2


@pytest.mark.filterwarnings("ignore")  # what other people's trackers warn of is not ours
def test_wandb_keeps_them_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(tmp_path, "wandb")
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert "eval/ece" in summary
    assert summary["eval/reliability_diagram"]["format"] == "png"
    pictures = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/eval/reliability_diagram_*.png"))
    assert len(pictures) == 2
