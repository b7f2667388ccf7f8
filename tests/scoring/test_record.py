"""`caltune score`: what it writes, what travels with it, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from files import write_jsonl
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from caltune import __version__
from caltune.data import hash_split
from caltune.errors import InputError
from caltune.formats import read_scores
from caltune.formats.scores import METADATA_KEYS
from caltune.prompts import render
from caltune.scoring import score
from caltune.scoring.record import require_device, score_to_file, surely_wrong, training_course
from caltune.types import OptionLogits, Question


@pytest.mark.parametrize("answers", ["continuations", "letters"])
def test_the_file_holds_the_scores_and_where_they_come_from(caltune, answers, questions_file, tiny_folder, tmp_path):
    out = tmp_path / "scores.parquet"
    result = caltune(
        "score", questions_file, "--model", tiny_folder, "--split", "test", "--answers", answers, "-o", out
    )
    assert result.status == 0
    assert result.out == f"{out}\n"
    asked = [q for q in tiny_questions(60) if hash_split(q.id) == "test"]
    found = read_scores(out)
    assert found.scores.ids == tuple(q.id for q in asked)
    assert found.scores.labels.tolist() == [q.answer for q in asked]
    direct = score(tiny_model(), tiny_tokenizer(), asked, answers=answers)
    np.testing.assert_allclose(found.scores.logits, direct.logits, atol=1e-5)

    metadata = found.metadata
    assert set(METADATA_KEYS) <= set(metadata)
    assert metadata["model"] == str(tiny_folder)
    assert metadata["data"] == str(questions_file)
    assert (metadata["split"], metadata["answers"]) == ("test", answers)
    assert metadata["prompt_example"] == render(asked[0], tiny_tokenizer(), answers=answers).text
    assert metadata["prompt_example"].startswith("<|start|>user\n")
    assert metadata["versions"]["caltune"] == __version__
    assert metadata["versions"]["torch"] == torch.__version__
    assert "training" not in metadata


def test_flags_reach_the_scores(caltune, questions_file, tiny_folder, tmp_path):
    out = tmp_path / "scores.parquet"
    flags = ("--template", "plain", "--reduction", "mean", "--limit", 3, "--batch-tokens", 1, "--device", "cpu")
    assert caltune("score", questions_file, "--model", tiny_folder, *flags, "-o", out).status == 0
    found = read_scores(out)
    direct = score(tiny_model(), tiny_tokenizer(), tiny_questions(3), template="plain", reduction="mean")
    np.testing.assert_allclose(found.scores.logits, direct.logits, atol=1e-5)
    assert found.metadata["prompt_example"] == "Question: What is the capital of France?\nAnswer:"
    assert found.metadata["split"] is None


def test_questions_without_an_answer_are_scored_too(caltune, tiny_folder, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", [Question("a", "Capital?", ("Rome", "Paris"), None)])
    out = tmp_path / "scores.parquet"
    assert caltune("score", data, "--model", tiny_folder, "-o", out).status == 0
    assert read_scores(out).scores.labels.tolist() == [-1]
    assert read_scores(out).metadata["examples"] == []


def test_skipped_rows_are_listed_and_the_others_scored(caltune, tiny_folder, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", tiny_questions(2))
    data.write_text(data.read_text() + "broken\n")
    out = tmp_path / "scores.parquet"
    result = caltune("score", data, "--model", tiny_folder, "--skip-bad", "-o", out)
    assert result.status == 0
    assert result.err.startswith(f"caltune: skipped 1 bad row:\n  {data}:3: ")
    assert len(read_scores(out).scores) == 2


def test_the_most_surely_wrong_questions_go_along():
    questions = [Question(name, f"{name}?", ("x", "y"), 0 if name != "d" else None) for name in "abcd"]
    # Confidences of the wrong answers: a 0.73, c 0.95; b is right and d has no answer.
    scores = OptionLogits(tuple("abcd"), [[0.0, 1.0], [5.0, 0.0], [0.0, 3.0], [9.0, 0.0]], [0, 0, 0, -1])
    assert [found["id"] for found in surely_wrong(scores, questions)] == ["c", "a"]
    assert surely_wrong(scores, questions, 1) == [{"id": "c", "question": "c?", "options": ["x", "y"]}]


def test_the_course_of_training_is_plain_json(tmp_path):
    assert training_course(tmp_path) == {}
    history = [
        {"loss": 1.0},
        {"eval_ece": 0.2, "eval_nll": float("inf"), "epoch": 1.0},
        {"eval_ece": 0.1, "eval_nll": float("nan"), "epoch": 2.0},
        {"train_loss": 1.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert training_course(tmp_path) == {
        "training": [
            {"eval_ece": 0.2, "eval_nll": None, "epoch": 1.0},
            {"eval_ece": 0.1, "eval_nll": None, "epoch": 2.0},
        ]
    }
    for text in ("{", "[]", "{}", '{"log_history": 5}', '{"log_history": [5]}'):
        (tmp_path / "trainer_state.json").write_text(text)
        with pytest.raises(InputError, match=r"trainer_state\.json: must be what a trainer wrote"):
            training_course(tmp_path)


def test_a_damaged_course_is_told_before_scoring(tiny_folder, tmp_path):
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(InputError, match="trainer_state"):
        score_to_file(
            tmp_path / "s.parquet",
            object(),  # would fail at the first use
            tiny_questions(1),
            data="d",
            tokenizer=object(),
            model_name=str(tmp_path),
        )


def test_what_the_caller_adds_wins_over_the_usual_metadata(tmp_path):
    file = score_to_file(
        tmp_path / "s.parquet",
        tiny_model(),
        tiny_questions(2),
        data="capitals",
        tokenizer=tiny_tokenizer(),
        model_name="tiny",
        progress=False,
        seed=5,
        extra={"method": "sft", "template": "mine"},
    )
    assert read_scores(tmp_path / "s.parquet").metadata == file.metadata
    chosen = {key: file.metadata[key] for key in ("model", "data", "seed", "method", "template")}
    assert chosen == {"model": "tiny", "data": "capitals", "seed": 5, "method": "sft", "template": "mine"}


def test_devices_that_are_not_there_are_refused():
    require_device(None)
    require_device("cpu")
    for name in ("nonsense", "cuda:99", "meta", ""):
        with pytest.raises(InputError, match=f"device must be one that torch can use here, such as cpu, got '{name}'"):
            require_device(name)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that " A" is two."""
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="!", eos_token="!")


def test_what_cannot_be_scored_is_refused_in_one_line(refused, questions_file, tiny_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    letters = tmp_path / "letters"
    tiny_model(vocab_size=256).save_pretrained(letters)
    bytes_tokenizer().save_pretrained(letters)
    long = write_jsonl(tmp_path / "long.jsonl", [Question("long", "why " * 300 + "?", ("Rome", "Oslo"), 0)])
    opened = tmp_path / "open.jsonl"
    opened.write_text('{"id": "who", "question": "Who?", "answers": ["me"]}\n')
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Who?", "choices": ["a", "a"], "answer": 0}\n')
    out = tmp_path / "out.parquet"
    before = sorted(tmp_path.iterdir())
    for source, model, flags, wanted in (
        (questions_file, tmp_path / "empty", (), "needs a config.json or an adapter_config.json, found neither"),
        (questions_file, "missing.gguf", (), "model 'missing.gguf': no such file"),
        (questions_file, letters, ("--answers", "letters"), "the letter A must be one token behind the prompt"),
        (long, tiny_folder, (), "question long: has "),
        (long, tiny_folder, (), "tokens, the model's context holds 256"),
        (opened, tiny_folder, (), "question who: is open-ended"),
        (bad, tiny_folder, (), "bad.jsonl:1: "),
        (tmp_path / "missing.jsonl", tiny_folder, (), "there is no such file or name"),
        (questions_file, tiny_folder, ("--limit", "0"), "--limit must be at least 1, got 0"),
        (questions_file, tiny_folder, ("--limit", "-1"), "--limit must be at least 1, got -1"),
        (questions_file, tiny_folder, ("--split", "tset"), "got 'tset'"),
        (questions_file, tiny_folder, ("--field", "question"), "--field must look like question=prompt"),
        (questions_file, tiny_folder, ("--answers", "words"), "invalid choice: 'words'"),
        (questions_file, tiny_folder, ("--batch-tokens", "0"), "batch_tokens must be at least 1, got 0"),
        (questions_file, tiny_folder, ("--device", "gpu"), "device must be one that torch can use here"),
    ):
        assert wanted in refused("score", source, "--model", model, *flags, "-o", out)
    assert sorted(tmp_path.iterdir()) == before


def test_chat_is_refused_without_a_chat_template(refused, questions_file, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer(chat=False).save_pretrained(tmp_path)
    line = refused("score", questions_file, "--model", tmp_path, "--template", "chat", "-o", tmp_path / "out.parquet")
    assert "template 'chat' needs a tokenizer with a chat template" in line


def test_the_place_for_the_file_is_checked_before_the_model_is_loaded(refused, monkeypatch, questions_file, tmp_path):
    def fail(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("caltune.scoring.record.load_model", fail)
    for out, wanted in (
        (tmp_path / "no" / "s.parquet", "the folder must exist"),
        (tmp_path, "must be a file, got a folder"),
    ):
        assert wanted in refused("score", questions_file, "--model", "tiny", "-o", out)


@pytest.mark.parametrize("place", ["caltune.scoring.engine.token_log_probabilities", "os.replace"])
def test_interrupted_scoring_leaves_what_was_there(caltune, monkeypatch, place, questions_file, tiny_folder, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "scores.parquet"
    out.write_text("earlier")
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupt)
        result = caltune("score", questions_file, "--model", tiny_folder, "-o", out)
    assert result.status == 130
    assert result.err.endswith("caltune: interrupted\n")
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_text() == "earlier"


def test_shots_stand_before_every_question_and_are_recorded(caltune, refused, questions_file, tiny_folder, tmp_path):
    out = tmp_path / "scores.parquet"
    flags = ("--model", tiny_folder, "--split", "test", "--template", "plain", "-o", out)
    result = caltune("score", questions_file, *flags, "--shots", 2, "--seed", 5)
    assert result.status == 0
    assert re.fullmatch(r"9 questions in [\d.]+ s: .* tokens.*, [\d.]+ % padding\n", result.err)
    found = read_scores(out)
    by_id = {question.id: question for question in tiny_questions(60)}
    shots = [by_id[name] for name in found.metadata["exemplars"]]
    assert len(shots) == 2
    assert {hash_split(shot.id) for shot in shots} == {"train"}
    assert found.metadata["seed"] == 5
    asked = [by_id[name] for name in found.scores.ids]
    direct = score(tiny_model(), tiny_tokenizer(), asked, template="plain", exemplars=shots)
    np.testing.assert_allclose(found.scores.logits, direct.logits, atol=1e-5)
    assert found.metadata["prompt_example"] == render(asked[0], template="plain", exemplars=shots).text
    none = {"data": "", "model_name": "m", "tokenizer": tiny_tokenizer(), "progress": False}
    assert "exemplars" not in score_to_file(tmp_path / "none.parquet", tiny_model(), asked[:2], **none).metadata
    assert "not among those scored" in refused("score", questions_file, *flags, "--shots", 2, "--shots-split", "test")
