"""What a card says of the weights that are saved, and what a checkpoint may be gone on with."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import strict_json
from test_trainer_runs import StopAt
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import build, drawn_answers, logged, plain_probabilities
from transformers import TrainerCallback

from caltune import methods
from caltune.card import BEGIN, DIAGRAM
from caltune.checkpoints import STATE_FILE
from caltune.errors import InputError
from caltune.metrics import nll, summarise
from caltune.report.text import number
from caltune.scoring import score
from caltune.trainer import CalibrationTrainer
from caltune.types import OptionLogits, Question

HELD = drawn_answers(tiny_questions(9, prefix="e"))
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "nll"}
RUN: dict[str, Any] = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 0.05}


def saved_scores(trainer: CalibrationTrainer, questions: list[Question] = HELD) -> OptionLogits:
    """The model as `caltune score` would score it: an independent pass, divided by its option temperature."""
    trainer.save_model()
    return score(trainer.model.eval(), trainer.processing_class, questions)


def card_of(trainer: CalibrationTrainer) -> str:
    trainer.create_model_card()
    return Path(trainer.args.output_dir, "README.md").read_text().replace("\u00a0", " ")


def shows(card: str, scores: OptionLogits) -> bool:
    found = summarise(scores).metrics
    lines = f"| NLL | {number(found['nll'].value)} |", f"| Accuracy | {100 * found['accuracy'].value:.1f} % |"
    return all(line in card for line in lines)


def test_the_card_is_of_the_averaged_weights_and_so_is_the_end_of_the_course(tmp_path: Path) -> None:
    how = {**RUN, "option_temperature": 1.5, "learning_rate": 0.5}
    trainer = build("Tempered", tmp_path, evaluation=HELD, eval_strategy="epoch", **how)
    trainer.train()
    found, card = saved_scores(trainer), card_of(trainer)
    assert shows(card, found)
    assert "- step: 9, weights averaged over the last 9 steps\n" in card
    rows = [row for row in trainer.state.log_history if "eval_nll" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 9]
    assert rows[-1]["eval_nll"] == pytest.approx(nll(found), rel=1e-4)
    assert abs(rows[-2]["eval_nll"] - rows[-1]["eval_nll"]) > 0.01  # of the last weights


def test_the_card_is_of_the_best_weights(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": "eval_b_nll"}
    trainer = build(
        "SFT", tmp_path, evaluation={"a": HELD[:4], "b": HELD}, eval_strategy="epoch",
        **{**RUN, **best, "learning_rate": 0.1},
    )  # fmt: skip
    trainer.train()
    course = logged(trainer, "eval_b_nll")
    step = 3 * (1 + int(np.argmin(course)))
    assert (len(course), step) == (3, trainer.state.best_global_step)  # nothing was added to the log
    assert step < 9
    card = card_of(trainer)
    assert f"- step: {step}\n" in card
    assert "- set: b, of a, b\n" in card
    assert shows(card, saved_scores(trainer))


@pytest.mark.parametrize("left", ["averaged", "best"])
def test_the_card_beside_saved_weights_is_theirs_without_being_asked_for(tmp_path: Path, left: str) -> None:
    """The last checkpoint has left a card of step 9."""
    how = {**RUN, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.1}
    how |= {"averaged": {"average_weights": 1.0, "learning_rate": 0.5}, "best": BEST}[left]
    trainer = build("SFT", tmp_path, evaluation=HELD, **how)
    trainer.train()
    found = saved_scores(trainer)
    card = (tmp_path / "README.md").read_text().replace("\u00a0", " ")
    assert shows(card, found)
    assert f"- step: {trainer._weights}\n" in card
    assert trainer._weights != "9"
    later = build("SFT", tmp_path)
    later.save_model()  # of weights that were never evaluated
    assert BEGIN not in (tmp_path / "README.md").read_text()


def test_where_the_best_checkpoint_is_gone_the_card_is_of_the_last_weights(tmp_path: Path) -> None:
    class Remove(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 9:
                shutil.rmtree(state.best_model_checkpoint)

    how = {**RUN, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.1, **BEST}
    trainer = build("SFT", tmp_path, evaluation=HELD, callbacks=[Remove()], **how)
    trainer.train()
    assert trainer.state.best_global_step < 9
    card = card_of(trainer)
    assert "- step: 9\n" in card
    assert shows(card, saved_scores(trainer))


@pytest.mark.parametrize("share", [0.0, 0.01])  # the last of one step is itself
def test_weights_are_not_evaluated_twice(tmp_path: Path, share: float) -> None:
    trainer = build("SFT", tmp_path, evaluation=HELD, eval_strategy="epoch", average_weights=share, **RUN)
    trainer.train()
    assert len(logged(trainer, "eval_nll")) == 3
    assert shows(card_of(trainer), saved_scores(trainer))
    assert "- step: 9\n" in card_of(trainer)


def test_the_last_step_is_evaluated_where_the_schedule_leaves_it_out(tmp_path: Path) -> None:
    how = {"eval_strategy": "steps", "eval_steps": 4}
    trainer = build("SFT", tmp_path, evaluation={"a": HELD, "b": HELD[:4]}, **how, **RUN)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "eval_a_nll" in row] == [4, 8, 9]
    assert "- set: b, of a, b\n" in card_of(trainer)
    trainer.evaluate(HELD[2:], metric_key_prefix="test")
    assert "- set: test\n" in card_of(trainer)
    assert shows(card_of(trainer), saved_scores(trainer, HELD[2:]))
    never = build("SFT", tmp_path, evaluation=HELD, **RUN)
    never.evaluate()
    never.train()
    assert len(logged(never, "eval_nll")) == 0  # a training begins a new log; no evaluation was asked for
    assert BEGIN not in card_of(never)


def test_a_card_in_mid_training_does_not_show_other_weights(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    how = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "per_device_train_batch_size": 4}
    trainer = build("SFT", tmp_path, evaluation=HELD, **how)
    cards: dict[int, str] = {}
    whole = trainer._save_checkpoint

    def keep(*args: Any) -> None:
        whole(*args)
        cards[trainer.state.global_step] = (tmp_path / "README.md").read_text()
        assert (tmp_path / DIAGRAM).exists() == (BEGIN in cards[trainer.state.global_step])

    trainer._save_checkpoint = keep
    trainer.args.save_strategy, trainer.state.save_steps, trainer.args.save_steps = "steps", 1, 1
    trainer.train()
    assert {step: BEGIN in card for step, card in cards.items()} == {1: False, 2: True, 3: False, 4: True}
    assert cards[3] == "# Mine\n\n"


def test_from_the_command_line_the_card_tells_data_and_split(caltune, questions_file, tiny_folder, tmp_path) -> None:
    for method, told in (("sft", "not trained on"), ("cogcalib", "also what the method is fitted on")):
        folder = tmp_path / method
        how = ("--model", tiny_folder, "--output-dir", folder, "--max_steps", 2, "--save_strategy", "no")
        assert caltune("train", method, questions_file, *how).status == 0
        card = (folder / "README.md").read_text()
        assert f"- data: {questions_file.name.replace('_', chr(92) + '_')}\n- split: calibration, {told}\n" in card


# Resuming


def checkpoint(folder: Path, method: str, **settings: Any) -> str:
    build(method, folder, callbacks=[StopAt(2)], **{**RUN, "num_train_epochs": 1, **settings}).train()
    return str(folder / "checkpoint-2")


def resume(found: str, method: str, folder: Path, **settings: Any) -> CalibrationTrainer:
    trainer = build(method, folder, **{**RUN, "num_train_epochs": 1, **settings})
    trainer.train(resume_from_checkpoint=found)
    return trainer


OTHER = [replace(q, answer=(q.answer or 0) - 1 if q.answer else 1) for q in tiny_questions(8, prefix="c")]
DRAWN = drawn_answers(tiny_questions(10))
HELD_OUT = {"bin_accuracy_source": "held-out"}
FOLDS = {"bin_accuracy_source": "cross-fitted"}
FITS = {"option_temperature": 0, "train": DRAWN}
REFUSED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str]] = {
    "calibration": ("CogCalib", {}, "CogCalib", {"calibration": OTHER}, r"calibration questions must be .* got '8, "),
    "reversed": ("RCFT", {}, "RCFT", {"train": tiny_questions(10)[::-1]}, "training questions must be as before, '10"),
    "more": ("RCFT", {}, "RCFT", {"train": tiny_questions(12)}, r"training questions must be .*'10, .*, got '12, "),
    "method": ("RCFT", {}, "CogCalib", {}, "method must be as before, 'RCFT', got 'CogCalib'"),
    "plain": ("SFT", {}, "RCFT", {}, "method must be as before, 'Calibration-aware fine-tuning', got 'RCFT'"),
    "curve": (
        "RCFT", {"bin_targets": "smooth"}, "RCFT", {"refresh_momentum": 0.5}, "bin_targets .* 'smooth', got 'binned'",
    ),
    "bins": ("RCFT", {}, "RCFT", {"bins": 5, "refresh_momentum": 0.5}, "bins must be as before, 10, got 5"),
    "source": ("RCFT", {}, "RCFT", {"bin_accuracy_source": "first-pass"}, "bin_accuracy_source .* 'train', got 'first"),
    "rendering": ("CogCalib", {}, "CogCalib", {"answers": "letters"}, "answers must .*'continuations', got 'letters'"),
    "folds": ("RCFT", FOLDS, "RCFT", {**FOLDS, "folds": 3}, "folds must be as before, 2, got 3"),
    "epochs": ("RCFT", FOLDS, "RCFT", {**FOLDS, "num_train_epochs": 2}, "num_train_epochs must be as before, 1, got 2"),
    "held out": ("RCFT", HELD_OUT, "RCFT", {**HELD_OUT, "calibration": OTHER}, "calibration questions must be .*'8, "),
    "temperature": ("SFT", FITS, "SFT", {**FITS, "train": HELD}, r"training questions must be .*'10, .*, got '9, "),
    "number": ("SFT", {}, "SFT", {"option_temperature": 2.0}, "option_temperature must be as before, None, got 2.0"),
    "its rendering": ("SFT", FITS, "SFT", {**FITS, "answers": "letters"}, "answers must .*'continuations', got 'let"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_method_other_settings_and_other_questions_are_told(tmp_path: Path, case: str) -> None:
    method, settings, other, changed, message = REFUSED[case]
    found = checkpoint(tmp_path, method, **settings)
    with pytest.raises(InputError, match=f"^{re.escape(found)}: {message}"):
        resume(found, other, tmp_path, **changed)


def test_a_renamed_question_and_another_weight_of_the_term_are_gone_on_with(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, "RCFT")
    renamed = [replace(q, id=f"new {q.id}") for q in tiny_questions(10)]
    assert resume(found, "RCFT", tmp_path, train=renamed, calibration_weight=0.5).state.global_step == 3
    plain = checkpoint(tmp_path / "sft", "SFT")  # nothing of ours depends on its questions, as with TRL
    assert resume(plain, "SFT", tmp_path / "sft", train=tiny_questions(12)).state.global_step == 3


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("RCFT", {"calibration": []}),  # its bins are measured on training questions
        ("CogCalib", {"train": tiny_questions(10)[::-1]}),  # its detector is fitted on the others
        ("CogCalib", {"train": tiny_questions(12)}),
        ("SFT", {"answers": "letters", "calibration": []}),
    ],
    ids=["calibration", "reversed", "more", "plain"],
)
def test_what_the_state_does_not_rest_on_may_change(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    found = checkpoint(tmp_path, method)
    assert resume(found, method, tmp_path, **settings).state.global_step == 3


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("RCFT", {"bin_accuracy_source": "first-pass"}),
        ("RCFT", {"bin_accuracy_source": "cross-fitted"}),
        ("RCFT", {"refresh": "once"}),
        ("CogCalib", {}),
    ],
    ids=["first pass", "folds", "once", "known"],
)
def test_a_checkpoint_of_the_model_alone_is_refused(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    found = checkpoint(tmp_path, "SFT", save_only_model=True)
    with pytest.raises(InputError, match=rf"^{re.escape(found)}: has no {STATE_FILE}, so what {method} fits cannot be"):
        resume(found, method, tmp_path, **settings)


def test_an_earlier_or_broken_state_is_told(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, "RCFT")
    path = Path(found, STATE_FILE)
    state = json.loads(path.read_text())
    for text, message in (
        (json.dumps({**state, "of": {"method": "RCFT"}, "method": {}}), "must hold what RCFT has fitted, got nothing"),
        (json.dumps({name: state[name] for name in ("option_temperature", "method")}), "must tell its method"),
        ("{broken", "must be JSON, got Expecting"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: {message}"):
            resume(found, "RCFT", tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_what_a_threshold_without_end_leaves_is_json(tmp_path: Path, known: bool) -> None:
    """All calibration questions known, or none: t is infinite and a rate has nothing to count."""
    calibration = tiny_questions(8, prefix="c")
    untrained = plain_probabilities(tiny_model(), tiny_tokenizer(), calibration)
    answers = [int(p.argmax() if known else p.argmin()) for p in untrained]
    calibration = [replace(q, answer=answer) for q, answer in zip(calibration, answers, strict=True)]
    found = checkpoint(tmp_path, "CogCalib", calibration=calibration)
    strict_json(Path(found, STATE_FILE))
    log = strict_json(Path(found, "trainer_state.json"))["log_history"]
    assert [row["detector_true_share"] for row in log if "detector_true_share" in row] == [float(known)]
    assert not [row for row in log if "detector_threshold" in row or "known_threshold" in row]
    rest = resume(found, "CogCalib", tmp_path, calibration=calibration)
    assert rest.detector.threshold == (math.inf if known else -math.inf)
    rates = rest.detector.true_positive_rate, rest.detector.true_negative_rate
    np.testing.assert_array_equal(rates, (1.0, math.nan) if known else (math.nan, 1.0))
    assert rest.known.tolist() == [known] * 8


def test_other_knowledge_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = np.arange(10) % 2 == 0
    monkeypatch.setattr(methods.cogcalib, "_known", lambda path, questions: known[: len(questions)])
    found = checkpoint(tmp_path, "CogCalib", knowledge="train.parquet")
    assert resume(found, "CogCalib", tmp_path, knowledge="moved.parquet").state.global_step == 3
    with pytest.raises(InputError, match=r"knowledge must be as before, '[0-9a-f]{12}', got False"):
        resume(found, "CogCalib", tmp_path)
    with pytest.raises(InputError, match="training questions must be as before"):
        resume(found, "CogCalib", tmp_path, knowledge="train.parquet", train=tiny_questions(10)[::-1])
    known[0] = False
    with pytest.raises(InputError, match=r"knowledge must be as before, '[0-9a-f]{12}', got '[0-9a-f]{12}'"):
        resume(found, "CogCalib", tmp_path, knowledge="train.parquet")
