"""`caltune demo`: one small model fine-tuned twice on the same questions, and a page that shows both."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from caltune import methods
from caltune.data import load_questions
from caltune.formats import ScoreFile
from caltune.models import load_model
from caltune.output import require_folder
from caltune.recalibrate import fit_temperature
from caltune.report.page import Entry, write_report
from caltune.scoring.record import score_to_file, training_course
from caltune.training import TrainArguments, build_trainer, save

SOURCE, MODEL, SEED = "world-facts", "smollm2", 0
SIZES = {"train": 320, "calibration": 320, "test": 1000}
QUICK_SIZES = {"train": 96, "calibration": 96, "test": 160}
# The page compares with its first entry, and plain fine-tuning is what one would do otherwise.
PAGE = ("sft", "tempered", "sft + temperature", "before")
CONTEXT = (
    "SmolLM2-135M-Instruct, an aligned model, answered questions about the world, was fine-tuned twice on the same "
    "questions, plainly (sft) and with calibration (tempered), and answered again. All numbers are from questions that "
    "neither training nor any fit has seen, but for the course of training, which is told on calibration questions."
)


class _Course(TrainerCallback):
    """Says after each epoch what the model has become on calibration questions."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_evaluate(self, _: Any, state: Any, *__: Any, metrics: dict[str, float], **___: Any) -> None:
        right, sure = metrics["eval_accuracy"], metrics["eval_confidence"]
        self.say(f"  epoch {state.epoch:.0f}: on calibration questions right {right:.1%}, says {sure:.1%}")


def run_demo(output: Path, *, quick: bool = False) -> Path:
    """Score, fine-tune plainly, fine-tune with calibration, score again, report; the page's address is printed last.

    Everything is left in `output`: adapters, scores and `report.html`. A later call overwrites it.
    Raises `InputError` where no folder can be made.
    """
    start = time.perf_counter()
    require_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    sizes = QUICK_SIZES if quick else SIZES
    data = {split: random.Random(SEED).sample(load_questions(SOURCE, split), size) for split, size in sizes.items()}

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    def measure(name: str, split: str, model: Any, tokenizer: Any) -> ScoreFile:
        file = score_to_file(
            output / f"{name}-{split}.parquet",
            model,
            data[split],
            data=SOURCE,
            split=split,
            tokenizer=tokenizer,
            model_name=MODEL if name == "before" else f"{MODEL} + {name}",
            template="plain",
            seed=SEED,
            extra={"method": name, **training_course(output / name)},
        )
        decided = file.scores.decide()
        right, sure = decided.correct.mean(), decided.confidence.mean()
        say(f"{name}: on {len(decided)} {split} questions it is right {right:.1%} of the time, and says {sure:.1%}")
        return file

    say(f"{MODEL}, before fine-tuning")
    model, tokenizer = load_model(MODEL)
    files = {"before": measure("before", "test", model, tokenizer)}
    for name, method in (("sft", "SFT"), ("tempered", "Tempered")):
        say(f"{name}: fine-tuning on {sizes['train']} questions, {1 if quick else 3} epochs")
        model, tokenizer = load_model(MODEL)
        args = getattr(methods, f"{method}Config")(
            output_dir=str(output / name),
            num_train_epochs=1 if quick else 3,
            per_device_train_batch_size=16,
            learning_rate=3e-4,
            template="plain",
            seed=SEED,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            activation_checkpointing=False,
            disable_tqdm=True,
        )
        trainer = build_trainer(method, args, TrainArguments(), model, tokenizer, data["train"], data["calibration"])
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Course(say))
        trainer.train()
        save(trainer, output / name)
        model = trainer.model.merge_and_unload().eval()
        test = files[name] = measure(name, "test", model, tokenizer)
        if name == "sft":
            temperature = fit_temperature(measure(name, "calibration", model, tokenizer).scores)
            metadata = {key: value for key, value in test.metadata.items() if key != "training"}
            metadata["temperature"] = temperature.temperature
            files["sft + temperature"] = ScoreFile(temperature(test.scores), metadata)
    entries = [Entry(name, files[name]) for name in PAGE]
    page = write_report(output / "report.html", entries, title="What fine-tuning does to confidence", context=CONTEXT)
    say("done")
    print(page.resolve().as_uri())
    return page
