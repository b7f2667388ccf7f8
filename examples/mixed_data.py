"""Chat rows and questions in one data set: calibration terms on the questions, plain loss on the assistant's turns.

    python examples/mixed_data.py MODEL chat.jsonl questions.jsonl OUTPUT

A line of chat.jsonl is {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}.
"""

import sys

from datasets import concatenate_datasets, load_dataset

from caltune.methods import CogCalibConfig, CogCalibTrainer


def main(model: str, chat: str, questions: str, output: str) -> None:
    unseen, chats = load_dataset("json", data_files=chat, split=["train[:20%]", "train[20%:]"])
    held_out, asked = load_dataset("json", data_files=questions, split=["train[:20%]", "train[20%:]"])
    trainer = CogCalibTrainer(
        model,
        CogCalibConfig(
            output_dir=output,
            num_train_epochs=2,
            per_device_train_batch_size=16,
            learning_rate=2e-5,
            assistant_only_loss=True,
            eval_strategy="epoch",
            report_to="none",
        ),
        train_dataset=concatenate_datasets([chats, asked]),
        eval_dataset={"questions": held_out, "chat": unseen},
        calibration_dataset=held_out,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
