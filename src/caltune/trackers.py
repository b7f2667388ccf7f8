"""A reliability diagram in TensorBoard and Weights & Biases at each evaluation, beside the numbers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from caltune.report.diagram import save_diagram

if TYPE_CHECKING:
    from caltune.trainer import CalibrationTrainer


class ReliabilityDiagrams(TrainerCallback):
    """Draws the questions that were just evaluated, where a tracker of `report_to` takes pictures.

    An evaluation on `eval_dataset={"arc": …}` gives `eval/arc_reliability_diagram`, a plain one
    `eval/reliability_diagram`, next to `eval/ece`.
    """

    def __init__(self, trainer: CalibrationTrainer) -> None:
        self.trainer = trainer

    def on_evaluate(self, _: Any, state: Any, __: Any, metrics: Any = None, **___: Any) -> None:
        scores = self.trainer.evaluated
        name = next((name.removesuffix("ece") for name in metrics or {} if name.endswith("_ece")), "")
        trackers = [
            tracker
            for tracker in self.trainer.callback_handler.callbacks
            if isinstance(tracker, TensorBoardCallback | WandbCallback)
        ]
        if scores is None or not name or not trackers or not state.is_world_process_zero:
            return
        tag = f"{name}reliability_diagram".replace("_", "/", 1)  # as transformers writes eval_ece
        with tempfile.TemporaryDirectory() as folder:
            title = f"step {state.global_step}, {len(scores)} questions"
            picture = save_diagram(Path(folder, "diagram.png"), scores.decide(), title=title)
            for tracker in trackers:
                _show(tracker, tag, picture, state.global_step)


def _show(tracker: Any, tag: str, picture: Path, step: int) -> None:
    if isinstance(tracker, WandbCallback):
        if tracker._wandb is not None and tracker._wandb.run is not None:
            tracker._wandb.log({tag: tracker._wandb.Image(str(picture)), "train/global_step": step})
    elif tracker.tb_writer is not None:
        from matplotlib.image import imread

        pixels = (imread(picture)[..., :3] * 255).round().astype("uint8")
        tracker.tb_writer.add_image(tag, pixels, step, dataformats="HWC")
