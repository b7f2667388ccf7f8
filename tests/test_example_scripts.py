"""Each script in `examples/` runs as it stands, on the tiny model."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from files import write_jsonl
from test_drop_in import MARKED, ROWS
from tiny import tiny_model, tiny_questions, tiny_tokenizer

from caltune.card import DIAGRAM, END
from caltune.models import load_model

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny model with a template that marks the assistant's turns, and files of questions and chats."""
    folder = tmp_path_factory.mktemp("scripts")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = MARKED
    tiny_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    splits = {"train": 12, "validation": 6, "test": 6}
    for split, count in splits.items():
        own = [replace(q, text=f"{q.text} ({split})") for q in tiny_questions(count)]  # no question in two splits
        write_jsonl(folder / "data" / f"{split}.jsonl", own)
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["messages"]))
    write_jsonl(folder / "questions.jsonl", tiny_questions(60))
    names = ("model", "data/train.jsonl", "data/validation.jsonl", "data/test.jsonl", "chat.jsonl", "questions.jsonl")
    return {Path(name).stem: str(folder / name) for name in names} | {"data": str(folder / "data")}


def run(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)  # nothing is written beside the script
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_every_script_is_short_and_run_here() -> None:
    assert SCRIPTS
    tests = Path(__file__).read_text(encoding="utf-8")
    for script in SCRIPTS:
        assert len(script.read_text(encoding="utf-8").splitlines()) < 60
        assert f'"{script.name}"' in tests


def test_sft_drop_in(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    files = (place["model"], place["train"], place["validation"])
    run("sft_drop_in.py", *files, str(tmp_path / "out"), monkeypatch=monkeypatch, folder=tmp_path)
    assert "'eval_nll': " in capsys.readouterr().out
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    found = [entry["eval_nll"] for entry in state["log_history"] if "eval_nll" in entry]
    assert state["best_metric"] == pytest.approx(min(found))
    load_model(tmp_path / "out", device="cpu")
    # The only change: with TRL's names the script is one for TRL.
    script = (EXAMPLES / "sft_drop_in.py").read_text()
    assert "from caltune import CalibrationConfig, CalibrationTrainer  # was: from trl import" in script


def test_lora_adapter(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = (place["model"], place["train"], place["test"])
    run("lora_adapter.py", *files, str(tmp_path / "out"), monkeypatch=monkeypatch, folder=tmp_path)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert END in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / DIAGRAM).is_file()


def test_rcft_after_dpo(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    files = (place["model"], place["questions"], str(tmp_path / "out"))
    run("rcft_after_dpo.py", *files, monkeypatch=monkeypatch, folder=tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].startswith("eval_nll ")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_mixed_data(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    files = (place["model"], place["chat"], place["questions"], str(tmp_path / "out"))
    run("mixed_data.py", *files, monkeypatch=monkeypatch, folder=tmp_path)
    out = capsys.readouterr().out
    assert "eval_questions_ece" in out
    assert "eval_chat_loss" in out
    load_model(tmp_path / "out", device="cpu")


def test_from_yaml(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    flags = ("--model_name_or_path", place["model"], "--dataset_name", place["data"], "--num_train_epochs", "1")
    config = ("--config", str(EXAMPLES / "from_yaml.yaml"))
    run("from_yaml.py", *config, *flags, monkeypatch=monkeypatch, folder=tmp_path)
    assert "'epoch': '1'" in capsys.readouterr().out  # the flag, not the file's 2
    adapter = json.loads((tmp_path / "calibrated" / "adapter_config.json").read_text())
    assert adapter["r"] == 16
    assert adapter["base_model_name_or_path"] == place["model"]
