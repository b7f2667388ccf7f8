"""What option logits are divided by: in the loss, in scores, in checkpoints and folders, and fitted before training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from test_trainer_runs import StopAt
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import Gradients, assert_same, build, drawn_answers, plain_option_logits, weights

from caltune import models
from caltune.errors import InputError
from caltune.formats import read_scores
from caltune.models import TEMPERATURE_FILE, load_model, option_temperature
from caltune.recalibrate import fit_temperature
from caltune.scoring import score
from caltune.scoring.record import score_to_file
from caltune.training import save
from caltune.types import OptionLogits


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


def test_the_loss_is_the_cross_entropy_of_divided_logits(tmp_path: Path) -> None:
    watch = Gradients()
    how = {"num_train_epochs": 1, "per_device_train_batch_size": 10, "option_temperature": 2.5}
    build("SFT", tmp_path, callbacks=[watch], **how).train()
    model, tokenizer, questions = tiny_model().train(), tiny_tokenizer(), tiny_questions(10)
    losses = [-(plain_option_logits(model, tokenizer, q) / 2.5).log_softmax(-1)[q.answer] for q in questions]
    torch.stack(losses).mean().backward()
    assert len(watch.steps) == 1
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(watch.steps[0], expected, tolerance=1e-5)


def test_a_trained_model_is_scored_and_evaluated_by_divided_logits(tmp_path: Path) -> None:
    questions = tiny_questions(8, prefix="c")
    trainer = build("SFT", tmp_path, num_train_epochs=1, option_temperature=4.0, evaluation=questions)
    trainer.train()
    own = score(trainer.model, tiny_tokenizer(), questions)
    trainer.model.config.option_temperature = 1.0
    plain = score(trainer.model, tiny_tokenizer(), questions)
    np.testing.assert_allclose(own.logits, plain.logits / 4, rtol=1e-6)
    trainer.model.config.option_temperature = 4.0
    np.testing.assert_allclose(trainer.present_logits(trainer.eval_dataset).logits, own.logits, rtol=1e-5)
    found = trainer.evaluate()
    own_nll = -np.log(own.probabilities()[np.arange(8), own.labels]).mean()
    assert found["eval_nll"] == pytest.approx(own_nll, rel=1e-5)
    assert found["eval_loss"] == pytest.approx(own_nll, rel=1e-5)


def test_zero_fits_it_to_the_answers_before_the_first_step(tmp_path: Path) -> None:
    labelled = drawn_answers(tiny_questions(60))
    expected = fit_temperature(score(tiny_model(), tiny_tokenizer(), labelled)).temperature
    trainer = build("SFT", tmp_path, train=labelled, max_steps=1, option_temperature=0.0)
    trainer.train()
    assert option_temperature(trainer.model) == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(1, abs=0.5)
    # A second start from a model that has one fits anew, on its undivided logits.
    again = build("SFT", tmp_path, model=tiny_model(), train=labelled, max_steps=1, option_temperature=0.0)
    again.model.config.option_temperature = 7.0
    again.train()
    assert option_temperature(again.model) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("adapter", [False, True])
def test_it_stays_with_a_saved_model(tmp_path: Path, adapter: bool) -> None:
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model, tokenizer = load_model(base)
    trainer = build(
        "SFT",
        tmp_path / "out",
        model=model,
        max_steps=1,
        peft_config=lora() if adapter else None,
        option_temperature=3.0,
    )
    trainer.train()
    save(trainer, tmp_path / "out")
    assert (tmp_path / "out" / TEMPERATURE_FILE).exists() == adapter
    loaded, _ = load_model(tmp_path / "out", trainable_adapter=True)
    assert option_temperature(loaded) == 3
    questions = tiny_questions(6, prefix="t")
    file = score_to_file(tmp_path / "scores.parquet", tmp_path / "out", questions, data="tiny", progress=False)
    np.testing.assert_allclose(file.scores.logits, score(trainer.model, tokenizer, questions).logits, rtol=1e-4)
    assert read_scores(tmp_path / "scores.parquet").metadata["temperature"] == 3
    # Trained on without a word it keeps its own; a later model without one leaves no trace of this.
    more = build("SFT", tmp_path / "more", model=loaded, max_steps=1)
    more.train()
    assert option_temperature(more.model) == 3
    plain = build(
        "SFT", tmp_path / "out", model=load_model(base)[0], max_steps=1, peft_config=lora() if adapter else None
    )
    plain.train()
    save(plain, tmp_path / "out")
    assert option_temperature(load_model(tmp_path / "out")[0]) == 1


def test_an_adapter_has_its_own_on_a_base_that_has_another(tmp_path: Path) -> None:
    """A T of 1 is one too; and what lies in the folder from an earlier run is not taken for the adapter's."""
    base, out = tmp_path / "base", tmp_path / "out"
    model = tiny_model()
    model.config.option_temperature = 3.0
    model.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    how = {"max_steps": 1, "peft_config": lora(), "save_strategy": "steps", "save_steps": 1}
    trainer = build("SFT", out, model=load_model(base)[0], option_temperature=1.0, **how)
    trainer.train()
    questions = tiny_questions(6, prefix="t")
    expected = score(trainer.model, tiny_tokenizer(), questions).logits
    trainer.save_model(str(out))
    for folder in (out, out / "checkpoint-1"):
        loaded, tokenizer = load_model(folder)
        assert option_temperature(loaded) == 1
        np.testing.assert_allclose(score(loaded, tokenizer, questions).logits, expected, rtol=1e-4)
    merged = tmp_path / "merged"
    build("SFT", out, model=load_model(base)[0], option_temperature=2.0, **how).train()
    loaded, tokenizer = load_model(out / "checkpoint-1")
    loaded.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    assert option_temperature(load_model(merged)[0]) == 2
    model.config = tiny_model().config  # none at all
    model.save_pretrained(base)
    build("SFT", out, model=load_model(base)[0], **how).train()
    assert option_temperature(load_model(out / "checkpoint-1")[0]) == 1


def test_an_adapter_from_the_hub_brings_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(*names: str, **_: object) -> str:
        asked.append(names)
        return str(tmp_path / TEMPERATURE_FILE)

    (tmp_path / TEMPERATURE_FILE).write_text('{"option_temperature": 3.5}', encoding="utf-8")
    monkeypatch.setattr(models, "cached_file", fetched)
    model = tiny_model()
    models._set_option_temperature("someone/adapter", model)
    assert (asked, option_temperature(model)) == ([], 1)
    model.add_adapter(lora())  # as transformers does for such a name
    models._set_option_temperature("someone/adapter", model)
    assert (asked, option_temperature(model)) == ([("someone/adapter", TEMPERATURE_FILE)], 3.5)


def test_a_checkpoint_without_its_state_is_not_gone_on_with(tmp_path: Path) -> None:
    how = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "option_temperature": 2.0}
    build("SFT", tmp_path, callbacks=[StopAt(1)], save_only_model=True, **how).train()
    with pytest.raises(InputError, match=r"checkpoint-1: has no calibration_state\.json, so option_temperature cannot"):
        build("SFT", tmp_path, **how).train(resume_from_checkpoint=True)


def test_scores_of_a_model_without_one_say_nothing_of_it(tmp_path: Path) -> None:
    how = {"data": "t", "tokenizer": tiny_tokenizer(), "model_name": "tiny", "progress": False}
    file = score_to_file(tmp_path / "s.parquet", tiny_model(), tiny_questions(4), **how)
    assert "temperature" not in file.metadata


def test_resuming_keeps_what_was_fitted(tmp_path: Path) -> None:
    how = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "option_temperature": 0.0}
    train = drawn_answers(tiny_questions(10))
    whole = build("SFT", tmp_path / "whole", train=train, **how)
    whole.train()
    build("SFT", tmp_path, train=train, callbacks=[StopAt(2)], **how).train()
    rest = build("SFT", tmp_path, train=train, **how)  # fitted anew it would be another, the weights having moved
    rest.train(resume_from_checkpoint=True)
    assert option_temperature(rest.model) == option_temperature(whole.model)
    assert_same(weights(rest.model), weights(whole.model))


def test_it_moves_the_bins_of_rcft(tmp_path: Path) -> None:
    cold = build("RCFT", tmp_path, max_steps=1, option_temperature=0.1)
    warm = build("RCFT", tmp_path, max_steps=1, option_temperature=10.0)
    confidences = []
    for trainer in (cold, warm):
        trainer.train()
        confidences.append(trainer.present_logits(trainer.train_dataset).decide().confidence.mean())
    assert confidences[0] > confidences[1]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="option_temperature must be at least 0 and finite, got -1"):
        build("SFT", tmp_path, option_temperature=-1.0)
    with pytest.raises(InputError, match="option_temperature has no part in answer_loss tokens"):
        build("SFT", tmp_path, option_temperature=2.0, answer_loss="tokens")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    z: OptionLogits = score(model, tokenizer, tiny_questions(10))

    right = [replace(q, answer=int(a)) for q, a in zip(tiny_questions(10), z.logits.argmax(1), strict=True)]
    with pytest.raises(InputError, match="option_temperature 0 fits it, which failed; give a number"):
        build("SFT", tmp_path, train=right, option_temperature=0.0).train()


@pytest.mark.parametrize("content", ["{}", "[1]", "no", '{"option_temperature": 0}', '{"option_temperature": "x"}'])
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    save(build("SFT", tmp_path / "out", model=load_model(base)[0], peft_config=lora()), tmp_path / "out")
    (tmp_path / "out" / TEMPERATURE_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="option_temperature"):
        load_model(tmp_path / "out")


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "option_temperature": -2}), encoding="utf-8")
    with pytest.raises(InputError, match="option_temperature must be above 0 and finite, got -2"):
        load_model(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "option_temperature": "hot"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: must be JSON with a number as option_temperature"):
        load_model(tmp_path)
