"""The model card: what it says, where it goes, and that nothing from outside can steer it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import tiny_questions
from tiny_training import build

from caltune.card import BEGIN, DIAGRAM, END, add_section, calibration_section, markdown, write_card, write_eval_results
from caltune.errors import InputError
from caltune.formats import write_scores
from caltune.metrics import summarise
from caltune.training import save
from caltune.types import OptionLogits

PNG = b"\x89PNG\r\n\x1a\n"


def four_of_five() -> OptionLogits:
    """Five questions with a confidence of 0.9, four of them right: overconfident by 0.1."""
    logits = np.log(np.tile([0.9, 0.1], (5, 1)))
    return OptionLogits(tuple("abcde"), logits, [0, 0, 0, 0, 1])


def scores_file(folder: Path, scores: OptionLogits | None = None, **metadata: object) -> Path:
    path = folder / "test.parquet"
    write_scores(path, four_of_five() if scores is None else scores, dict(metadata))
    return path


def test_the_section_holds_the_numbers_and_their_intervals() -> None:
    section, summary = calibration_section(four_of_five(), told={"data": "mine"})
    lines = section.replace("\u00a0", " ").splitlines()
    assert (lines[0], lines[-1]) == (BEGIN, END)
    assert "- data: mine" in lines
    low, high = (100 * end for end in (summary.metrics["accuracy"].low, summary.metrics["accuracy"].high))
    assert f"| Accuracy | 80.0 % | [{low:.1f}, {high:.1f}] | share right; higher is better |" in lines
    assert "| ECE, equal width | 0.100 |  | 15 bins; lower is better |" in lines
    # −(4 ln 0.9 + ln 0.1) / 5
    assert any(line.startswith("| NLL | 0.545 | [") for line in lines)
    assert any("Mean confidence 90.0 %, accuracy 80.0 %" in line and DIAGRAM in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


@given(st.text(max_size=60))
def test_no_text_steers_the_card(text: str) -> None:
    """Nothing is left that Markdown or HTML reads as more than a letter, and no second line."""
    shown = markdown(text)
    assert "\n" not in shown
    assert "<" not in shown
    for i, letter in enumerate(shown):
        if letter in "`*_[]()|!#~@$":
            backslashes = len(shown[:i]) - len(shown[:i].rstrip("\\"))
            assert backslashes % 2 == 1, shown


def test_a_section_takes_the_place_of_the_one_before() -> None:
    old, new = f"{BEGIN}\nold\n{END}", f"{BEGIN}\nnew\n{END}"
    for card in ("# A\n", "# A\n\n### Framework versions\n\n- TRL\n", ""):
        first = add_section(card, old)
        second = add_section(first, new)
        assert "old" not in second
        assert second == first.replace("old", "new")
        assert second.count(BEGIN) == second.count(END) == 1
        for line in card.splitlines():
            assert line in second
    assert add_section("a\n### Framework versions\n", new).index(END) < len("a\n" + new + "\n")


def test_a_card_begun_here_names_the_base_of_an_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "my_[model]"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    write_card(folder, four_of_five())
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.base_model, card.data.tags) == ("peft", "owner/base", ["caltune"])
    assert "# Model card of my\\_\\[model\\]" in card.content
    assert (folder / DIAGRAM).read_bytes().startswith(PNG)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/a/path: [x]"}))
    (folder / "README.md").unlink()
    write_card(folder, four_of_five())
    assert ModelCard.load(folder / "README.md").data.base_model is None


def test_files_of_the_user_stay_and_a_broken_adapter_is_told(tmp_path: Path) -> None:
    (tmp_path / "reliability_diagram.png").write_bytes(b"mine")
    (tmp_path / "README.md").write_text("# Mine\n\n![my own](reliability_diagram.png)\n")
    write_card(tmp_path, four_of_five())
    assert (tmp_path / "reliability_diagram.png").read_bytes() == b"mine"
    assert (tmp_path / "README.md").read_text().startswith("# Mine\n\n![my own](reliability_diagram.png)\n")
    (tmp_path / "README.md").unlink()
    (tmp_path / "adapter_config.json").write_text("{broken")
    with pytest.raises(InputError, match=r"adapter_config.json: must be JSON, got Expecting"):
        write_card(tmp_path, four_of_five())
    (tmp_path / "adapter_config.json").write_text("[1]")
    write_card(tmp_path, four_of_five())
    assert ModelCard.load(tmp_path / "README.md").data.base_model is None


def test_a_bare_address_is_no_link() -> None:
    assert markdown("see www.evil.example, WWW.b.c and awww.d") == "see www\\.evil.example, WWW\\.b.c and awww.d"


def test_trls_card_is_kept_and_gets_the_last_evaluation(tmp_path: Path) -> None:
    trainer = build("RCFT", tmp_path, evaluation=tiny_questions(6, prefix="e"), num_train_epochs=1)
    trainer.create_model_card()
    assert BEGIN not in (tmp_path / "README.md").read_text()
    trainer.evaluate()
    trainer.create_model_card(model_name="mine", dataset_name="owner/data")
    card = ModelCard.load(tmp_path / "README.md")
    assert {"trl", "caltune"} <= set(card.data.tags)
    assert card.data.datasets == "owner/data"
    assert "This model was trained with RCFT" in card.text
    assert "a local model" in card.text
    assert "None" not in card.text
    assert card.text.index(END) < card.text.index("### Framework versions")
    accuracy = summarise(trainer.evaluated).metrics["accuracy"].value
    assert f"| Accuracy | {100 * accuracy:.1f}\u00a0% |" in card.text
    assert "- answers: continuations" in card.text
    assert (tmp_path / DIAGRAM).read_bytes().startswith(PNG)


def test_a_card_of_the_user_is_not_written_anew_by_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"# Mine \xe9\n")  # not even UTF-8
    trainer = build("RCFT", tmp_path, evaluation=tiny_questions(6, prefix="e"), num_train_epochs=1)
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_bytes() == b"# Mine \xe9\n"
    (tmp_path / "README.md").write_text("# Mine\n")
    trainer.evaluate()
    trainer.create_model_card()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# Mine\n\n" + BEGIN)
    assert card.count(BEGIN) == 1


def test_an_adapters_blank_card_is_neither_a_users_nor_in_the_place_of_one(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build("SFT", tmp_path, peft_config=lora)
    trainer.save_model()
    trainer.create_model_card()
    assert "This model was trained with" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# Mine\n")
    save(trainer, tmp_path)  # as the command line does
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("adapter", [False, True])
def test_a_users_card_keeps_its_bytes(tmp_path: Path, adapter: bool) -> None:
    """It is no UTF-8, has a front matter and ends of lines of its own, and speaks of TRL's tag."""
    own = "---\r\ntitle: M\xfcller\r\n---\r\n# Mine\r\n\r\nNo generated_from_trainer card.".encode("latin-1")
    (tmp_path / "README.md").write_bytes(own)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    how = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 1, "learning_rate": 0.0}
    held = tiny_questions(6, prefix="e")
    trainer = build("SFT", tmp_path, evaluation=held, peft_config=lora if adapter else None, **how)
    trainer.save_model()
    assert (tmp_path / "README.md").read_bytes() == own
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "README.md").read_bytes()
    assert card.startswith(own + b"\n\n" + BEGIN.encode())
    assert card.endswith(END.encode() + b"\n")


def test_results_are_read_by_the_hub(tmp_path: Path) -> None:
    path = write_eval_results(
        tmp_path, summarise(four_of_five()), dataset="cais/mmlu", task='a "b": c', day=date(2026, 1, 2)
    )
    assert path == tmp_path / ".eval_results" / "cais_mmlu_a_b_c.yaml"
    [entry] = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value, entry.date) == ("cais/mmlu", 'a "b": c', 80.0, "2026-01-02")
    assert entry.notes == "option probabilities; ECE 0.100, NLL 0.545, n 5"
    for dataset, task in (("mmlu", "x"), ("a/b\nvalue: 1", "x"), ("a/b", " ")):
        with pytest.raises(InputError, match=r"(dataset|task) must be"):
            write_eval_results(tmp_path, summarise(four_of_five()), dataset=dataset, task=task)


def test_the_verb_writes_card_picture_and_results(caltune, tmp_path: Path) -> None:
    scores = scores_file(tmp_path, model="<img src=x>", data="arc-easy", answers="letters", temperature=1.5)
    result = caltune("card", tmp_path, scores, "--task", "ARC-Easy")
    assert result.status == 0, result.err
    assert result.out.splitlines()[0] == f"{tmp_path / 'README.md'}: calibration on 5 questions"
    card = (tmp_path / "README.md").read_text()
    assert "- model: &lt;img src=x&gt;" in card
    assert "- temperature: 1.5" in card
    [results] = (tmp_path / ".eval_results").iterdir()
    assert yaml.safe_load(results.read_text())[0]["dataset"] == {"id": "allenai/ai2_arc", "task_id": "ARC-Easy"}
    assert caltune("card", tmp_path, scores).out.count("\n") == 1
    assert (tmp_path / "README.md").read_text() == card  # the same again, once


def test_the_verb_refuses(refused, tmp_path: Path) -> None:
    scores = scores_file(tmp_path, data="my.jsonl")
    before = set(tmp_path.iterdir())
    assert "must be a model's folder" in refused("card", tmp_path / "none", scores)
    assert "is of 'my.jsonl'" in refused("card", tmp_path, scores, "--task", "x")
    assert "--dataset must be a hub id" in refused("card", tmp_path, scores, "--task", "x", "--dataset", "x")
    assert "--dataset is for the results of a --task" in refused("card", tmp_path, scores, "--dataset", "a/b")
    unknown = scores_file(tmp_path, OptionLogits(("a",), [[0.0, 1.0]], [-1]))
    assert "a" in refused("card", tmp_path, unknown)
    assert set(tmp_path.iterdir()) == before
