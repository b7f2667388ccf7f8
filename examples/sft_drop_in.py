"""A TRL script for supervised fine-tuning in which only the import has changed.

    python examples/sft_drop_in.py MODEL train.jsonl validation.jsonl OUTPUT

A line of the files is a question with its options, {"question": …, "choices": […], "answer": 0}. Rows with `prompt` and
`completion`, with `messages` or with `text` are trained on as TRL would. Evaluation logs accuracy, ECE, Brier and NLL,
and training stops when the NLL of held-out questions rises.
"""

import sys

from datasets import load_dataset
from transformers import EarlyStoppingCallback

from caltune import CalibrationConfig, CalibrationTrainer  # was: from trl import SFTConfig, SFTTrainer


def main(model: str, train: str, validation: str, output: str) -> None:
    data = load_dataset("json", data_files={"train": train, "validation": validation})
    args = CalibrationConfig(
        output_dir=output,
        num_train_epochs=3,
        per_device_train_batch_size=16,
        learning_rate=2e-5,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nll",
        report_to="none",
    )
    trainer = CalibrationTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )
    trainer.train()
    trainer.save_model()
    print({name: round(value, 3) for name, value in trainer.evaluate().items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
