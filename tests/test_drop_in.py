"""`CalibrationTrainer` in the place of TRL's `SFTTrainer`: the same training on ordinary rows, and on mixed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset, concatenate_datasets
from tiny import CAPITALS, CHAT_TEMPLATE, tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import QUIET, assert_same, build, logged, weights
from transformers import EarlyStoppingCallback

from caltune import CalibrationConfig, CalibrationTrainer

# The tiny template, with marks around what the assistant says.
MARKED = CHAT_TEMPLATE.replace(
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}",
    "{{ '<|start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + '<|end|>\n' }}{% endif %}",
)
PAIRS = [(f"Question: capital of {land}?", city) for land, city in list(CAPITALS.items())[:7]]


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


ROWS: dict[str, list[dict[str, Any]]] = {
    "completion": [{"prompt": asked, "completion": " " + said} for asked, said in PAIRS],
    "chat completion": [{"prompt": chat(asked), "completion": chat("", said)[1:]} for asked, said in PAIRS],
    "messages": [{"messages": chat(asked, said, "Sure?", "Yes " + said)} for asked, said in PAIRS],
    "text": [{"text": f"{asked} {said}"} for asked, said in PAIRS],
}
QUESTIONS = [
    {"question": q.text, "choices": list(q.options), "answer": q.answer, "subject": q.group} for q in tiny_questions(6)
]


def drop_in(folder: Path, data: Any, *, trainer: str = "Calibration", tokenizer: Any = None, **settings: Any) -> Any:
    """One script, with TRL's classes or ours."""
    module = {"Calibration": CalibrationTrainer, "SFT": trl.SFTTrainer}
    config = {"Calibration": CalibrationConfig, "SFT": trl.SFTConfig}
    given = {name: settings.pop(name) for name in ("eval_dataset", "callbacks", "compute_metrics") if name in settings}
    return module[trainer](
        model=tiny_model(),
        args=config[trainer](str(folder), bf16=False, **{**QUIET, **settings}),
        train_dataset=Dataset.from_list(data) if isinstance(data, list) else data,
        processing_class=tokenizer or tiny_tokenizer(),
        **given,
    )


@pytest.mark.parametrize("form", [*ROWS, "assistant only"])
def test_ordinary_rows_train_as_with_trl(tmp_path: Path, form: str) -> None:
    """Other lengths in each micro-batch, a short last step, a cut at `max_length`."""
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "max_length": 60}
    settings["gradient_accumulation_steps"] = 2
    if form == "assistant only":
        tokenizer.chat_template = MARKED
        settings["assistant_only_loss"] = True
    rows = ROWS.get(form, ROWS["messages"])
    ours, theirs = (
        drop_in(tmp_path, rows, trainer=name, tokenizer=tokenizer, eval_dataset=Dataset.from_list(rows[:3]), **settings)
        for name in ("Calibration", "SFT")
    )
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)
    for trainer in (ours, theirs):
        trainer.train()
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), rel=1e-5)
    assert logged(ours, "mean_token_accuracy")[0] == pytest.approx(
        np.average(logged(theirs, "mean_token_accuracy")[:1]), abs=0.2
    )
    assert_same(weights(ours.model), weights(theirs.model), 1e-5)
    assert any(not torch.equal(p, weights(ours.model)[name]) for name, p in weights(tiny_model()).items())


def ordinary_loss(rows: list[dict[str, Any]]) -> tuple[float, int]:
    """Sum and number of the completions' tokens, by one plain pass a row."""
    model, tokenizer, total, count = tiny_model(), tiny_tokenizer(), 0.0, 0
    for row in rows:
        start = len(tokenizer(row["prompt"]).input_ids)
        ids = tokenizer(row["prompt"] + row["completion"] + "<|end|>", return_tensors="pt").input_ids
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0].float().log_softmax(-1)
        total -= logs[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item()
        count += ids.shape[1] - start
    return total, count


def test_the_two_means_weigh_as_the_rows_do(tmp_path: Path) -> None:
    """6 questions and 3 ordinary rows: 6/9 of the questions' mean and 3/9 of the tokens' mean, logged and evaluated."""
    from caltune.metrics import nll
    from caltune.scoring import score

    mixed = [*tiny_questions(6), *ROWS["completion"][:3]]
    mean = nll(score(tiny_model(), tiny_tokenizer(), tiny_questions(6)))
    total, count = ordinary_loss(ROWS["completion"][:3])
    for size, times in ((9, 1), (4, 3)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times, "learning_rate": 0.0}
        trainer = drop_in_list(tmp_path, mixed, num_train_epochs=1, per_device_eval_batch_size=9, **settings)
        trainer.train()
        assert logged(trainer, "loss") == [pytest.approx(6 / 9 * mean + 3 / 9 * total / count, rel=1e-5)]
        assert logged(trainer, "question_loss") == [pytest.approx(mean, rel=1e-5)]
    others = tiny_questions(6, prefix="e")
    mean = nll(score(tiny_model(), tiny_tokenizer(), others))
    found = trainer.evaluate([*others, *ROWS["completion"][:3]])
    assert found["eval_loss"] == pytest.approx(6 / 9 * mean + 3 / 9 * total / count, rel=1e-5)
    assert found["eval_nll"] == pytest.approx(mean, rel=1e-5)


def drop_in_list(folder: Path, train: list[Any], method: str = "SFT", **settings: Any) -> Any:
    return build(method, folder, train=train, **settings)


@pytest.mark.parametrize("method", ["SFT", "RCFT", "CogCalib", "Mixup", "DECE", "Tempered"])
def test_accumulation_is_exact_on_mixed_rows(tmp_path: Path, method: str) -> None:
    """Some micro-batches hold no question, some nothing else."""
    mixed = [*ROWS["completion"][:3], *tiny_questions(4), *ROWS["messages"][:1], *tiny_questions(6)[4:]]
    runs = []
    for size, times in ((5, 2), (2, 5)):
        trainer = drop_in_list(
            tmp_path,
            mixed,
            method,
            model=tiny_model().double(),
            num_train_epochs=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            **{"Mixup": {"mixup_alpha": 0.0}, "Tempered": {"option_temperature": 2.0}}.get(method, {}),
        )
        trainer.train()
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
        runs.append((logged(trainer, "loss"), logged(trainer, "calibration_penalty"), weights(trainer.model)))
    if method != "DECE":  # a micro-batch has a calibration error of its own
        assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-6)
        assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-6)
        assert_same(runs[1][2], runs[0][2])


@pytest.mark.parametrize("method", ["RCFT", "CogCalib"])
def test_a_calibration_term_is_of_the_questions_alone(tmp_path: Path, method: str) -> None:
    settings = {"learning_rate": 0.0, "num_train_epochs": 2, "per_device_train_batch_size": 16}
    mixed = [*ROWS["text"][:2], *tiny_questions(6), *ROWS["completion"][:3]]
    with_rows, alone = (drop_in_list(tmp_path, train, method, **settings) for train in (mixed, tiny_questions(6)))
    for trainer in (with_rows, alone):
        trainer.train()
    assert logged(with_rows, "calibration_penalty") == pytest.approx(logged(alone, "calibration_penalty"), rel=1e-5)
    assert logged(with_rows, "question_loss") == pytest.approx(logged(alone, "loss"), rel=1e-5)
    assert with_rows.train_questions == alone.train_questions
    assert logged(with_rows, "loss") != pytest.approx(logged(alone, "loss"), rel=1e-2)


def test_a_resumed_mixed_run_equals_one_that_went_on(tmp_path: Path) -> None:
    mixed = concatenate_datasets([Dataset.from_list(ROWS["messages"]), Dataset.from_list(QUESTIONS)])
    how = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "random",
        "optim": "adamw_torch",
        "learning_rate": 5e-3,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = drop_in(tmp_path, mixed, **how)
    whole.train()
    rest = drop_in(tmp_path, mixed, **how)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(weights(rest.model), weights(whole.model))


@pytest.mark.parametrize(
    "settings", [{"packing": True}, {"padding_free": True}, {"train_sampling_strategy": "group_by_length"}]
)
def test_settings_of_trl_about_batches_are_taken(tmp_path: Path, settings: dict[str, Any]) -> None:
    mixed = concatenate_datasets([Dataset.from_list(ROWS["text"]), Dataset.from_list(QUESTIONS)])
    trainer = drop_in(tmp_path, mixed, num_train_epochs=1, per_device_train_batch_size=4, **settings)
    trainer.train()
    assert trainer.state.global_step == 4  # 13 rows


def test_stops_early_by_eval_nll(tmp_path: Path) -> None:
    """A learning rate far too high makes it worse from the first epoch on."""
    trainer = drop_in(
        tmp_path,
        QUESTIONS,
        eval_dataset=Dataset.from_list([{**row, "question": "Now: " + row["question"]} for row in QUESTIONS]),
        callbacks=[EarlyStoppingCallback(1)],
        compute_metrics=lambda prediction: {"shape": prediction.predictions.shape[1]},
        num_train_epochs=9,
        learning_rate=1.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nll",
    )
    assert trainer.args.greater_is_better is False
    trainer.train()
    found = logged(trainer, "eval_nll")
    assert 1 < len(found) < 9
    assert logged(trainer, "eval_shape") == [5] * len(found)
    assert trainer.state.best_metric == pytest.approx(min(found))
    assert trainer.evaluate()["eval_nll"] == pytest.approx(min(found), rel=1e-5)


def test_workers_that_persist_read_the_data_that_is_asked_for(tmp_path: Path) -> None:
    """transformers keeps the loader of the first evaluation, and would give its numbers again."""
    how = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    asked = [Dataset.from_list(QUESTIONS[:count]) for count in (2, 5)]
    trainer = drop_in(tmp_path, ROWS["text"], eval_dataset=asked[0], **how)
    sizes = []
    for data in (None, asked[1], None, {"five": asked[1], "two": asked[0]}):
        trainer.evaluate(data)
        sizes.append(len(trainer.evaluated))
    assert sizes == [2, 5, 2, 2]
