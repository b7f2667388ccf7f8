"""What a script says about the model it starts from, the data it gives, and the hub it pushes to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.trainer.sft_trainer
from datasets import Dataset, IterableDataset, concatenate_datasets
from peft import LoraConfig, PromptTuningConfig
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import QUIET, build
from transformers import BitsAndBytesConfig, Trainer
from trl import SFTConfig

from caltune import CalibrationConfig, CalibrationTrainer, Question, methods
from caltune.errors import InputError
from caltune.examples import PLACE, read_examples
from caltune.models import TEMPERATURE_FILE

ROW = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
CHAT = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}

PICTURE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


def start(model: Any, folder: Path, settings: dict[str, Any] | None = None, **given: Any) -> CalibrationTrainer:
    args = CalibrationConfig(str(folder), **{**QUIET, **(settings or {})})
    return CalibrationTrainer(model, args, train_dataset=tiny_questions(3), **given)


# The model


@pytest.mark.parametrize("where", ["argument", "model_init_kwargs"])
def test_what_qlora_needs_reaches_the_loading(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Quantization itself needs a GPU: what is handed on is noted, and the model loaded without it."""
    seen: dict[str, Any] = {}
    load = trl.trainer.sft_trainer.create_model_from_path

    def note(name: str, **kwargs: Any) -> Any:
        seen.update(kwargs, name=name)
        return load(name, dtype=kwargs.get("dtype", "float32"))

    monkeypatch.setattr(trl.trainer.sft_trainer, "create_model_from_path", note)
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    how: dict[str, Any] = {"attn_implementation": "eager", "dtype": "bfloat16", "revision": "main"}
    if where == "model_init_kwargs":
        how["quantization_config"] = four_bit
    trainer = start(
        str(tiny_folder),
        tmp_path,
        {"model_init_kwargs": how},
        quantization_config=four_bit if where == "argument" else None,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    assert seen["name"] == str(tiny_folder)
    assert seen["quantization_config"] is four_bit
    assert (seen["attn_implementation"], seen["revision"]) == ("eager", "main")
    assert trainer.processing_class.chat_template == tiny_tokenizer().chat_template
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    trainer.train()


def test_flash_attention_gives_way(tmp_path: Path, tiny_folder: Path) -> None:
    """Neither a name nor a loaded model may keep what cannot read shared rows."""
    trainer = start(str(tiny_folder), tmp_path, {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}})
    assert trainer.model.config._attn_implementation == "sdpa"
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    trainer = start(model, tmp_path, processing_class=tiny_tokenizer())
    assert trainer.model.config._attn_implementation == "sdpa"


def test_a_loaded_model_with_a_name_brings_its_tokenizer(tmp_path: Path, tiny_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    trainer = start(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path)
    assert len(trainer.processing_class) == len(tiny_tokenizer())


def test_names_of_ours_take_a_dtype_and_refuse_the_rest(tmp_path: Path, tiny_folder: Path) -> None:
    base = start(str(tiny_folder), tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear"))
    base.save_model(str(tmp_path / "adapter"))
    usual = {"revision": "main", "attn_implementation": None, "trust_remote_code": False, "dtype": "bfloat16"}
    trainer = start(str(tmp_path / "adapter"), tmp_path, {"model_init_kwargs": usual})
    assert trainer.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match="cannot be loaded with revision; give the loaded model"):
        start(str(tmp_path / "adapter"), tmp_path, {"model_init_kwargs": {"revision": "v2"}})
    with pytest.raises(InputError, match="cannot be loaded with quantization_config"):
        start(str(tmp_path / "adapter"), tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def test_what_would_be_ignored_is_refused(tmp_path: Path) -> None:
    given = {"train_dataset": tiny_questions(3), "processing_class": tiny_tokenizer()}
    for name in ("data_collator", "compute_loss_func", "preprocess_logits_for_metrics"):
        with pytest.raises(InputError, match="must be left out"):
            CalibrationTrainer(tiny_model(), CalibrationConfig(str(tmp_path), **QUIET), **given, **{name: len})
    with pytest.raises(InputError, match="peft_config must adapt weights, as LoRA does, got PromptTuningConfig"):
        start(
            tiny_model(),
            tmp_path,
            peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            processing_class=tiny_tokenizer(),
        )
    with pytest.raises(InputError, match="batch_eval_metrics must be one of False"):
        CalibrationConfig(str(tmp_path), batch_eval_metrics=True, **QUIET)
    with pytest.raises(InputError, match="args must be a CalibrationConfig of caltune, got SFTConfig of trl"):
        CalibrationTrainer(tiny_model(), SFTConfig(str(tmp_path), bf16=False, **QUIET), **given)


# The data


def test_questions_are_told_from_ordinary_rows_and_keep_their_places() -> None:
    mixed = [Question("q", "Capital?", ("Rome", "Oslo"), 0), CHAT, ROW, {"text": "Hi."}, CHAT]
    found = read_examples(mixed, "train_dataset")
    assert [q.text for q in found.questions] == ["Capital?", "2 + 2?"]
    assert found.places == (0, 2)
    assert [(part.column_names, part[PLACE][:]) for part in found.ordinary] == [
        (["messages", PLACE], [1, 4]),
        (["text", PLACE], [3]),
    ]
    rows = concatenate_datasets([Dataset.from_list([CHAT, CHAT]), Dataset.from_list([ROW])]).select([2, 0, 1])
    found = read_examples(rows, "train_dataset")
    assert found.places == (0,)
    assert found.questions[0] == read_examples([ROW], "x").questions[0]
    assert found.ordinary[0][PLACE][:] == [1, 2]
    assert found.ordinary[0]["messages"][0] == CHAT["messages"]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (ROW, "question"),
        ({"question": "Is it so?", "answer": True}, "question"),
        ({"text": "2 + 2?", "choices": ["3", "4"], "label": 1}, "question"),
        ({"prompt": "2 + 2?", "choices": ["3", "4"], "answer": 1}, "question"),
        ({"question": "2 + 2?", "prompt": "2 + 2 =", "completion": " 4", "answer": "4"}, "ordinary"),
        ({"prompt": "2 + 2 =", "completion": " 4", "label": 3}, "ordinary"),
        ({"conversations": CHAT["messages"], "source": "x"}, "ordinary"),
        ({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, "ordinary"),
        ({"text": "Hi.", "question": None}, "ordinary"),
        ({"text": "2 + 2?", "A": "3", "B": "4", "answer": "B"}, "question"),
        ({"text": "2 + 2 = 4", "A": None, "B": None, "answer": None}, "ordinary"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]}, "ordinary"),
    ],
)
def test_kinds_of_rows(row: dict[str, Any], form: str) -> None:
    for data in ([row], Dataset.from_list([row])):
        found = read_examples(data, "train_dataset")
        assert (len(found.questions), len(found.ordinary)) == ((1, 0) if form == "question" else (0, 1))


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas"])
def test_rows_in_another_format_are_the_same(form: str) -> None:
    tokens = {"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}
    for row in (ROW, CHAT, tokens):
        data = Dataset.from_list([row, row])
        plain, formatted = (read_examples(given, "train_dataset") for given in (data, data.with_format(form)))
        assert formatted.questions == plain.questions
        assert [part.to_list() for part in formatted.ordinary] == [part.to_list() for part in plain.ordinary]
        assert [part[0] for part in formatted.ordinary] == [part[0] for part in plain.ordinary]


def test_a_script_with_a_formatting_function(tmp_path: Path) -> None:
    rows = [{"instruction": "Greet.", "output": "Hello."}, ROW]
    trainer = CalibrationTrainer(
        tiny_model(),
        CalibrationConfig(str(tmp_path), **QUIET),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        formatting_func=lambda row: f"{row['instruction']} {row['output']}",
    )
    expected = tiny_tokenizer()("Greet. Hello.<|end|>").input_ids
    assert [row["input_ids"] for row in trainer.train_dataset] == [expected, None]
    with pytest.raises(InputError, match=r"TRL reads a column prompt in its place; got .'prompt', 'completion'"):
        read_examples([{"prompt": "2 + 2?", "completion": "4"}], "train_dataset", formatted=True)


def test_rows_that_teach_nothing_are_not_all_there_is(tmp_path: Path) -> None:
    rows = [{"prompt": "A prompt that fills all of it.", "completion": "4"}, {"prompt": "2?", "completion": " 2"}]
    assert len(build("SFT", tmp_path, train=rows, max_length=4).train_dataset) == 1
    with pytest.raises(InputError, match="must have a token to learn within max_length, got none"):
        build("SFT", tmp_path, train=[*rows[:1], *tiny_questions(2)], max_length=4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{**ROW, **CHAT}], r"train_dataset row 1: must be a question with options or an ordinary row \(messages"),
        ([ROW, {"completion": "4"}], "row 2: a row with a completion needs a prompt"),
        ([ROW, {"question": "Why?"}], "row 2: there must be options"),
        ([ROW, "text"], "row 2: must be a question or a dict, got str"),
        ([{**ROW, "answer": "5"}], "row 1: the answer must be one of the options"),
        ([{**CHAT, "images": ["cat.png"]}], "row 1: must be text only, got a picture"),
        (Dataset.from_list([{**CHAT, "images": []}, {**CHAT, "images": ["cat.png"]}]), "row 2: must be text only"),
        ([{"prompt": PICTURE, "completion": PICTURE}], "row 1: must be text only, got a picture or sound in a message"),
        (Dataset.from_list([{"messages": PICTURE}]), "row 1: must be text only, got a picture or sound in a message"),
        ("data.jsonl", "must be a Dataset or a list of questions and rows, got str"),
        ({"train": [ROW]}, "must be a Dataset or a list of questions and rows, got dict"),
        (IterableDataset.from_generator(lambda: iter([ROW])), "must not be streamed"),
    ],
)
def test_rows_of_no_kind_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_examples(data, "train_dataset")


def test_data_that_does_not_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="RCFT needs questions with options to train on, got ordinary rows only"):
        build("RCFT", tmp_path, train=[CHAT])
    with pytest.raises(InputError, match="'cross-fitted' needs questions only to train on"):
        build("RCFT", tmp_path, train=[*tiny_questions(4), CHAT], bin_accuracy_source="cross-fitted")
    with pytest.raises(InputError, match="calibration_dataset must hold questions with options only"):
        build("SFT", tmp_path, calibration=[*tiny_questions(2, prefix="c"), CHAT])
    with pytest.raises(InputError, match="1 training questions are also held out"):  # by what they ask, not by row
        build("SFT", tmp_path, train=[ROW, CHAT], evaluation=[{**ROW, "id": 7}], calibration=[])
    turned = replace(tiny_questions(1)[0], id="other", options=tiny_questions(1)[0].options[::-1])
    with pytest.raises(InputError, match=r"by text and options; the first is id 'q0', there 'other'"):
        build("SFT", tmp_path, train=tiny_questions(3), calibration=[turned])
    with pytest.raises(InputError, match="eval_dataset holds no question"):
        CalibrationTrainer(
            tiny_model(),
            CalibrationConfig(str(tmp_path), **QUIET),
            train_dataset=[CHAT],
            eval_dataset=[CHAT],
            processing_class=tiny_tokenizer(),
            compute_metrics=lambda _: {},
        )
    with pytest.raises(InputError, match="assistant_only_loss needs rows with messages"):
        build("SFT", tmp_path, train=[ROW, {"text": "Hi there."}], assistant_only_loss=True, tokenizer=_marked())
    fitted = build("SFT", tmp_path, train=[CHAT], option_temperature=0.0)
    with pytest.raises(InputError, match="option_temperature 0 fits it, which failed"):
        fitted.train()


def _marked() -> Any:
    from test_drop_in import MARKED

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = MARKED
    return tokenizer


# The hub


def test_a_push_in_mid_training_holds_the_option_temperature(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[set[str]] = []

    def upload(**how: Any) -> Any:
        folder = Path(how["folder_path"])
        pushed.append({path.name for path in folder.iterdir() if not path.name.startswith("checkpoint-")})
        assert json.loads((folder / TEMPERATURE_FILE).read_text()) == {"option_temperature": 2.0}
        return SimpleNamespace(is_done=lambda: True, done=lambda: True, result=lambda: None)

    hub = SimpleNamespace(upload_folder=upload)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)

    def open_repository(trainer: Trainer, token: str | None = None) -> None:
        trainer.hub_model_id, trainer.push_in_progress = "me/mine", None

    monkeypatch.setattr(Trainer, "init_hf_repo", open_repository)
    trainer = build(
        "SFT",
        tmp_path / "mine",
        model=str(tiny_folder),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        evaluation=tiny_questions(4, prefix="e"),
        option_temperature=2.0,
        push_to_hub=True,
        hub_model_id="me/mine",
        hub_strategy="every_save",
        save_strategy="epoch",
        eval_strategy="epoch",
        num_train_epochs=2,
    )
    trainer.train()
    assert len(pushed) >= 2
    assert {"adapter_model.safetensors", "adapter_config.json", TEMPERATURE_FILE, "README.md"} <= pushed[0]
    assert "caltune_reliability_diagram.png" in pushed[0]
    assert 'model="me/mine"' in (tmp_path / "mine" / "README.md").read_text()


def test_the_better_way_of_a_metric_is_known(tmp_path: Path) -> None:
    for metric, greater in (("eval_nll", False), ("ece", False), ("eval_arc_brier", False), ("accuracy", True)):
        args = CalibrationConfig(str(tmp_path), metric_for_best_model=metric, **QUIET)
        assert args.greater_is_better is greater
    assert CalibrationConfig(str(tmp_path), metric_for_best_model="nll", greater_is_better=True, **QUIET)
    assert methods.RCFTConfig(str(tmp_path), metric_for_best_model="nll", **QUIET).greater_is_better is False
