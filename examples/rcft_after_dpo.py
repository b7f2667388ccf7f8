"""Repair a model that preference tuning (RLHF, DPO) made overconfident: a short RCFT on questions with options.

    python examples/rcft_after_dpo.py ALIGNED_MODEL questions.jsonl OUTPUT

Xiao et al. 2025, *Restoring Calibration for Aligned Large Language Models* (arXiv 2505.01997). The questions are cut by
their ids into those to train on, those to measure the bins' accuracy on, and those to test with.
"""

import sys

from peft import LoraConfig

from caltune.data import load_questions
from caltune.methods import RCFTConfig, RCFTTrainer


def main(model: str, source: str, output: str) -> None:
    train, calibration, test = (load_questions(source, split) for split in ("train", "calibration", "test"))
    trainer = RCFTTrainer(
        model,
        RCFTConfig(
            output_dir=output,
            bin_accuracy_source="held-out",  # the training questions' own accuracy rises as they are memorised
            num_train_epochs=1,
            per_device_train_batch_size=16,
            learning_rate=3e-4,
            report_to="none",
        ),
        train_dataset=train,
        calibration_dataset=calibration,
        peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    before = trainer.evaluate(test)
    trainer.train()
    after = trainer.evaluate(test)
    trainer.save_model()
    for name in ("eval_accuracy", "eval_confidence", "eval_ece", "eval_nll"):
        print(f"{name:16} {before[name]:.3f} -> {after[name]:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
