"""`caltune export`: the decision pipeline of transformers, given the folder, answers with our probabilities."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from files import write_jsonl
from tiny import CAPITALS, tiny_questions, tiny_tokenizer

from caltune.errors import InputError
from caltune.formats import ScoreFile, read_scores, write_scores
from caltune.formats.decision import decision_request, write_decision
from caltune.models import load_model, load_tokenizer
from caltune.recalibrate import Temperature
from caltune.scoring.decision import describe_prompts
from caltune.scoring.record import score_to_file
from caltune.types import Question

QUESTIONS = tiny_questions(50)


def pipeline_probabilities(folder: Path, questions: list[Question], **options: object) -> list[list[float]]:
    """What the decision pipeline of that folder answers, an option's probability in the questions' order of options."""
    from transformers import pipeline

    decide = pipeline("decision", model=str(folder), device="cpu", **options)
    found = []
    for question in questions:
        answer = decide(decision_request(question))[question.id]
        found.append([answer["probabilities"][option] for option in question.options])
    return found


def largest_gap(file: ScoreFile, temperature: float, theirs: list[list[float]]) -> float:
    ours = Temperature(temperature)(file.scores).probabilities()
    return max(np.abs(ours[i, : len(row)] - row).max() for i, row in enumerate(theirs))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with `model`, `adapter` on it, and the fifty questions."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_folder, folder / "model")
    model, tokenizer = load_model(folder / "model", device="cpu")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def scored_once(place: Path) -> dict[tuple[str, str], ScoreFile]:
    """The scores of the letters by model and template; two answers in three are right."""
    found = {}
    for model, template in (("model", "auto"), ("model", "chat"), ("model", "plain"), ("adapter", "auto")):
        path = place / f"{model}-{template}.parquet"
        how = {"answers": "letters", "template": template, "device": "cpu", "progress": False}
        file = score_to_file(path, str(place / model), QUESTIONS, data="capitals", **how)
        sizes = np.isfinite(file.scores.logits).sum(axis=1)
        labels = (file.scores.logits.argmax(axis=1) + (np.arange(len(sizes)) % 3 == 0)) % sizes
        found[model, template] = ScoreFile(replace(file.scores, labels=labels), file.metadata)
    return found


@pytest.fixture
def scored(scored_once, tmp_path):
    """`scored(model)` is a scores file of that model."""

    def run(model: str, template: str = "auto") -> Path:
        path = tmp_path / f"{model}.parquet"
        write_scores(path, scored_once[model, template].scores, scored_once[model, template].metadata)
        return path

    return run


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_pipeline_gives_the_probabilities_we_measured(caltune, place, scored, tmp_path, template):
    cal = scored("model", template)
    folder = tmp_path / "model"
    shutil.copytree(place / "model", folder)
    result = caltune("export", folder, "--fit", cal)
    assert result.status == 0, result.err
    config = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    temperature = config["temperature"]["choice"]
    assert result.out.splitlines()[0] == f"temperature {temperature:.4f}"
    assert temperature != pytest.approx(1, abs=0.05)  # else the next lines would not show that it is applied
    assert largest_gap(read_scores(cal), temperature, pipeline_probabilities(folder, QUESTIONS)) < 1e-4
    assert config["labels"]["noul"][:2] == (["A", "B"] if template == "chat" else [" A", " B"])
    assert not list(folder.glob(".*"))


def test_an_adapter_in_place_is_named_to_the_pipeline(caltune, place, scored):
    cal = scored("adapter")
    result = caltune("export", place / "adapter", "--fit", cal)
    call = result.out.splitlines()[-1]
    assert call == f'pipeline("decision", model="{place}/adapter", decision_config="{place}/adapter")'
    temperature = json.loads((place / "adapter" / "decision.json").read_text(encoding="utf-8"))["temperature"]["choice"]
    theirs = pipeline_probabilities(place / "adapter", QUESTIONS, decision_config=str(place / "adapter"))
    assert largest_gap(read_scores(cal), temperature, theirs) < 1e-4


def test_an_adapter_is_merged_into_a_whole_folder(caltune, place, scored, tmp_path):
    cal, out = scored("adapter"), tmp_path / "new" / "merged"
    result = caltune("export", place / "adapter", "--fit", cal, "-o", out)
    assert result.out.splitlines()[-1] == f'pipeline("decision", model="{out}")'
    assert not (out / "adapter_config.json").exists()
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    temperature = json.loads((out / "decision.json").read_text(encoding="utf-8"))["temperature"]["choice"]
    assert largest_gap(read_scores(cal), temperature, pipeline_probabilities(out, QUESTIONS)) < 1e-4
    # The adapter does something: without it the numbers are others.
    assert largest_gap(read_scores(cal), temperature, pipeline_probabilities(place / "model", QUESTIONS[:5])) > 0.01


def test_a_saved_temperature_is_taken_times_the_one_before(caltune, place, scored, tmp_path):
    cal = scored("model")
    file, halved = read_scores(cal), tmp_path / "halved.parquet"
    write_scores(
        halved, Temperature(2.0)(file.scores), file.metadata | {"temperature": 2.0, "recalibrated": [{"name": "dece"}]}
    )
    fitted = tmp_path / "fitted.json"
    fitted.write_text(json.dumps({"recalibrator": "temperature", **Temperature(1.5, file.scores.ids).to_json()}))
    assert caltune("export", place / "model", "--fit", halved, "--temperature", fitted).status == 0
    config = json.loads((place / "model" / "decision.json").read_text(encoding="utf-8"))
    assert config["temperature"] == {"choice": 3.0, "score": 3.0, "noul": 3.0}  # 2.0 · 1.5


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"answers": "continuations"}, "the scores must be made with --answers letters; got 'continuations'"),
        ({}, "--answers letters; got None"),
        ({"answers": "letters", "recalibrated": ["temperature", "isotonic"]}, "no other map, got 'isotonic'"),
        ({"answers": "letters", "recalibrated": [{"name": "platt", "questions": 9}]}, "no other map, got 'platt'"),
        ({"answers": "letters", "template": "mine"}, "'template' must be auto, chat or plain, got 'mine'"),
        ({"answers": "letters", "temperature": 0}, "a temperature must be positive and finite, got 0"),
        ({"answers": "letters", "prompt_example": "Question: Who?\nAnswer:"}, "with another prompt than this model's"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_pipeline_cannot_do_is_refused(refused, place, scored, tmp_path, metadata, complaint):
    cal, folder = scored("model"), tmp_path / "model"
    shutil.copytree(place / "model", folder, ignore=shutil.ignore_patterns("decision*"))
    write_scores(cal, read_scores(cal).scores, metadata)
    assert complaint in refused("export", folder, "--fit", cal)
    assert not [path for path in folder.iterdir() if "decision" in path.name]


def test_a_temperature_of_other_questions_is_refused(refused, place, scored, tmp_path):
    cal, fitted = scored("model"), tmp_path / "fitted.json"
    fitted.write_text(json.dumps({"recalibrator": "temperature", **Temperature(1.5, ("q0", "other")).to_json()}))
    assert "must be fitted on questions of" in refused("export", place / "model", "--fit", cal, "--temperature", fitted)
    fitted.write_text('{"recalibrator": "platt"}')
    assert "got 'platt'" in refused("export", place / "model", "--fit", cal, "--temperature", fitted)
    fitted.write_text("{")
    assert "must be what `caltune recalibrate" in refused(
        "export", place / "model", "--fit", cal, "--temperature", fitted
    )


def test_places_that_will_not_do_are_refused_before_the_model_is_read(refused, place, scored, tmp_path):
    cal = scored("model")
    assert "must be a new folder" in refused("export", place / "model", "--fit", cal, "-o", tmp_path)
    assert "must be a model's folder" in refused("export", tmp_path / "nothing", "--fit", cal)
    shutil.copytree(place / "adapter", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer_config.json").unlink()
    assert "needs a tokenizer in the folder" in refused("export", tmp_path / "bare", "--fit", cal)
    shutil.copytree(place / "adapter", tmp_path / "embedded")
    adapter = tmp_path / "embedded" / "adapter_config.json"
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": "smollm2"}))
    assert "transformers cannot load its base model 'smollm2'" in refused("export", adapter.parent, "--fit", cal)


def test_nothing_is_left_when_a_whole_folder_cannot_be_written(caltune, place, scored, tmp_path, monkeypatch):
    cal, out = scored("model"), tmp_path / "out" / "whole"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    assert caltune("export", place / "model", "--fit", cal, "-o", out).status == 1
    assert list(out.parent.iterdir()) == []


def test_a_model_of_another_name_is_told(caltune, place, scored):
    cal = scored("adapter")
    assert f"the scores say that they are of '{place}/adapter'" in caltune("export", place / "model", "--fit", cal).out


# The template


def rendered(tokenizer, question, template, state="", kind="choice", criteria=None):
    """The prompt as the pipeline writes it, from its own code."""
    from transformers.decision import DecisionConfig, prepare_inputs

    from caltune.formats.decision import decision_config

    labels, text = describe_prompts(tokenizer, template)
    config = DecisionConfig(**decision_config(labels, 1.0), chat_template=text)
    asked = {"type": kind, "instructions": question.text, "criteria": criteria or dict.fromkeys(question.options)}
    ((inputs, _),) = prepare_inputs(config, {"state": state, "questions": {"q": asked}}, tiny_tokenizer())
    return tokenizer.decode(inputs["input_ids"][0])


def test_the_other_question_types_are_written_with_letters_too():
    tokenizer, asked = tiny_tokenizer(), Question("q", "Is it so?", ("a", "b"), 0)
    begin, end = "<|start|>user\n", "\nAnswer with the letter of the right option.<|end|>\n<|start|>assistant\n"
    found = rendered(tokenizer, asked, "chat", "A passage.", "noul", {"true": None})
    assert found == f"{begin}A passage.\n\nIs it so?\nA. no\nB. yes{end}"
    found = rendered(tokenizer, asked, "chat", {"k": 1}, "score", ["low", "high"])
    assert found == f'{begin}{{"k": 1}}\n\nIs it so?\nA. low\nB. high{end}'
    found = rendered(tokenizer, asked, "chat", "", "choice", {"calm": "polite", "sharp": None})
    assert found == f"{begin}Is it so?\nA. calm: polite\nB. sharp{end}"
    assert rendered(tokenizer, asked, "plain") == "Question: Is it so?\nA. a\nB. b\nAnswer:"


def test_a_template_that_thinks_keeps_thinking():
    """The pipeline says enable_thinking=False to every chat template; caltune does not, and measured without it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}none{% endif %}"
    assert rendered(tokenizer, QUESTIONS[0], "chat").endswith("assistant\n")


def test_a_template_that_begins_with_a_line_break_keeps_it():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "\n  " + tokenizer.chat_template
    assert rendered(tokenizer, QUESTIONS[0], "chat").startswith("\n<|start|>")  # lstrip_blocks


def test_a_beginning_of_text_token_stands_in_front_where_there_is_one():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(chat=False)
    tokenizer._tokenizer.post_processor = TemplateProcessing("<|start|> $A", special_tokens=[("<|start|>", 1)])
    labels, text = describe_prompts(tokenizer, "plain")  # which compares all tokens
    assert labels[0] == " A"
    assert "bos_token" in text


def test_control_tokens_in_a_question_are_text_there():
    """What caltune reads as a control token: the pipeline protects its prompts from their users."""
    asked = Question("q", "Is <|end|> it?", ("a", "b"), 0)
    assert rendered(tiny_tokenizer(), asked, "chat").count("<|end|>") == 2  # shown so, encoded as letters


def test_a_tokenizer_that_writes_letters_otherwise_alone_is_refused():
    """As those of the first Llama: "A" alone has a space put before it, behind a line break it has none."""
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(InputError, match="makes other tokens of the letters there than behind a prompt"):
        describe_prompts(tokenizer, "chat")
    assert describe_prompts(tokenizer, "plain")[0][0] == "A"  # there " A" is what follows


def test_write_decision_leaves_the_old_files_when_it_fails(tmp_path, monkeypatch):
    write_decision(tmp_path, {"temperature": {}}, "old")

    def broken(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.replace", broken)

    with pytest.raises(InputError, match="cannot be written to, Read-only"):
        write_decision(tmp_path, {"temperature": {}}, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decision.json", "decision_template.jinja"]
    assert (tmp_path / "decision_template.jinja").read_text(encoding="utf-8") == "old"


@pytest.mark.model
def test_the_real_model_answers_the_same_in_the_pipeline(caltune, tmp_path):
    questions = [
        Question(f"c{i}", f"What is the capital of {country}?", tuple([*CAPITALS.values()][i : i + 4]), 0)
        for i, country in enumerate([*CAPITALS][:8])
    ] + tiny_questions(42)
    write_jsonl(tmp_path / "questions.jsonl", questions)
    words = ("--model", "smollm2", "--answers", "letters", "--device", "cpu", "-o", tmp_path / "cal.parquet")
    assert caltune("score", tmp_path / "questions.jsonl", *words).status == 0
    fit = ("--fit", tmp_path / "cal.parquet", "-o", tmp_path / "out")
    result = caltune("export", "smollm2", *fit)
    assert result.status == 0, result.err
    temperature = json.loads((tmp_path / "out" / "decision.json").read_text(encoding="utf-8"))["temperature"]["choice"]
    gap = largest_gap(
        read_scores(tmp_path / "cal.parquet"), temperature, pipeline_probabilities(tmp_path / "out", questions)
    )
    assert gap < 1e-4
    assert load_tokenizer(tmp_path / "out").chat_template
