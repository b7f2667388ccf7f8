"""LoRA, or QLoRA where there is a GPU: 4-bit weights below, an adapter above, and a model card at the end.

python examples/lora_adapter.py MODEL train.jsonl test.jsonl OUTPUT
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from caltune import CalibrationConfig, CalibrationTrainer


def main(model: str, train: str, test: str, output: str) -> None:
    data = load_dataset("json", data_files={"train": train, "test": test})
    loading = {}
    if torch.cuda.is_available():  # bitsandbytes has no 4-bit kernels for training elsewhere
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    trainer = CalibrationTrainer(
        model=model,
        args=CalibrationConfig(
            output_dir=output,
            model_init_kwargs=loading or None,
            answers="letters",  # show the options under letters, and score the letters
            learning_rate=2e-4,
            num_train_epochs=1,
            per_device_train_batch_size=16,
            report_to="none",
        ),
        train_dataset=data["train"],
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    found = trainer.evaluate(data["test"])
    trainer.create_model_card(dataset_name="my questions")  # with these numbers, and a reliability diagram
    print({name: round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
