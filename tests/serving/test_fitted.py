"""What is fitted must be fitted for what is served; and the verb itself, which a signal ends."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from files import write_jsonl
from tiny import tiny_model, tiny_questions, tiny_tokenizer

from caltune import verbs_serve
from caltune.abstain import Policy
from caltune.errors import InputError
from caltune.formats import read_scores, write_scores
from caltune.formats.policy import source_of, write_policy
from caltune.output import write_json
from caltune.recalibrate import AdaptiveEnsemble, Matrix, Temperature, Vector, fit_pool
from caltune.serving.answering import fingerprint
from caltune.serving.fitted import read_fitted
from caltune.types import OptionLogits

MADE = {"model": "m", "answers": "letters", "reduction": "sum", "template": "plain"}
POLICY = Policy(0.6, "binomial", 0.1, 0.9, 1, 1, 0.0, 0.1, ("c",), (0.5,))


def fitted_file(path, name, fitted, source=None):
    """As `caltune recalibrate --save` writes it."""
    write_json(path, {"recalibrator": name, "source": source or {}, **fitted.to_json()})
    return path


@pytest.fixture
def temperature(tmp_path):
    return fitted_file(tmp_path / "fitted.json", "temperature", Temperature(2.0, ("c",)))


def policy_file(path, source):
    write_policy(path, replace(POLICY, source=source))
    return path


def test_nothing_fitted_is_nothing():
    fitted = read_fitted(MADE)
    assert (fitted.recalibrate, fitted.policy, fitted.version, fitted.unchecked) == (None, None, None, ())


def test_a_policy_must_be_for_this_model_and_its_settings(tmp_path):
    path = policy_file(tmp_path / "p.json", MADE)
    assert read_fitted(MADE, policy=path).policy == replace(POLICY, source=MADE)
    for key, value in (("model", "other"), ("template", "chat"), ("answers", "continuations"), ("temperature", 2.0)):
        with pytest.raises(InputError, match=rf"p\.json: was fitted on scores with {key} .*, got '?{value}"):
            read_fitted({**MADE, key: value}, policy=path)
    unknown = policy_file(tmp_path / "q.json", {})
    assert read_fitted(MADE, policy=unknown).unchecked == (unknown,)


def test_one_folder_has_many_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    path = policy_file(tmp_path / "p.json", MADE)
    for name in ("./m", "m/", str(tmp_path / "m")):
        assert read_fitted({**MADE, "model": name}, policy=path).policy is not None
    with pytest.raises(InputError, match=r"with model 'm', got '\.\./m'"):
        read_fitted({**MADE, "model": "../m"}, policy=path)


def test_a_policy_for_recalibrated_scores_needs_that_recalibration(tmp_path, temperature):
    source = source_of(_after(tmp_path, temperature))
    assert source["temperature"] == 2.0
    path = policy_file(tmp_path / "p.json", source)
    fitted = read_fitted(MADE, policy=path, calibration=temperature)
    assert fitted.recalibrate == Temperature(2.0, ("c",))
    with pytest.raises(InputError, match="was fitted on scores with recalibrated"):
        read_fitted(MADE, policy=path)
    hotter = fitted_file(tmp_path / "hotter.json", "temperature", Temperature(3.0, ("c",)))
    with pytest.raises(InputError, match=r"was fitted on scores with (temperature|recalibrated) .*2\.0.*, got .*3\.0"):
        read_fitted(MADE, policy=path, calibration=hotter)
    versions = {fitted.version, read_fitted(MADE, calibration=temperature).version}
    assert len(versions | {read_fitted(MADE, calibration=hotter).version}) == 3


def _after(tmp_path, fitted):
    """Metadata of scores that `caltune recalibrate` has written."""
    from caltune.cli import main

    before, after = tmp_path / "before.parquet", tmp_path / "after.parquet"
    write_scores(before, OptionLogits(("new",), [[1.0, 0.0]], [0]), MADE)
    words = ["recalibrate", "temperature", "--load", fitted, "--apply", before, "-o", after]
    assert main([str(word) for word in words]) == 0
    return read_scores(after).metadata


def test_maps_for_few_options_and_broken_files(tmp_path):
    path = tmp_path / "f.json"
    fitted_file(path, "matrix", Matrix(tuple(map(tuple, np.eye(3).tolist())), (0.0, 0.0, 0.0), ("c",)), MADE)
    assert read_fitted(MADE, calibration=path).recalibrate is not None
    fitted_file(path, "vector", Vector((1.0, 1.0), (0.0, 0.0), ("c",)))
    assert read_fitted(MADE, calibration=path).recalibrate is not None
    for text, wanted in (
        ("{", "a fitted recalibrator must be JSON"),
        ("[]", "'recalibrator' must be one of temperature, .* got None"),
        ('{"recalibrator": "magic"}', "'recalibrator' must be one of .* got 'magic'"),
        ('{"recalibrator": "temperature"}', "a temperature needs the keys 'temperature'"),
        (
            '{"recalibrator": "temperature", "temperature": 1, "fitted_on": [], "source": {"model": "other"}}',
            "was fitted on scores with answers None, got 'letters'",
        ),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"f\.json: {wanted}"):
            read_fitted(MADE, calibration=path)
    pool = fit_pool([OptionLogits(("a", "b", "c"), [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 0, 0])] * 2)
    fitted_file(path, "pool", pool)
    more = r"f\.json: a served recalibrator must need one question's logits of one model only, (pool|ace) needs more"
    with pytest.raises(InputError, match=more):
        read_fitted(MADE, calibration=path)
    fitted_file(path, "ace", AdaptiveEnsemble(1.0, 2.0, 0.8, ("c",)))  # its share comes from all questions at once
    with pytest.raises(InputError, match=more):
        read_fitted(MADE, calibration=path)
    with pytest.raises(InputError, match="cannot be read"):
        read_fitted(MADE, calibration=tmp_path / "none.json")


def answers_to(questions, bound, ended):
    """What the server that is about to listen at `bound[0]` answers; interrupts this process at the end."""
    found = []
    try:
        while not bound:
            time.sleep(0.01)
            assert not ended.is_set()
        url = f"http://127.0.0.1:{bound[0].getsockname()[1]}/v1/answers"
        for question in questions:
            content = json.dumps({"question": question.text, "options": list(question.options)}).encode()
            request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
            while True:
                try:
                    with urllib.request.urlopen(request, timeout=300) as reply:
                        found.append(json.load(reply))
                    break
                except urllib.error.URLError as error:
                    if not isinstance(error.reason, ConnectionRefusedError):  # as long as it does not listen
                        raise
                    time.sleep(0.01)
                    assert not ended.is_set()
    finally:
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)
    return found


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_the_verb_serves_what_score_writes_until_it_is_interrupted(
    caltune, monkeypatch, tiny_folder, temperature, tmp_path
):
    questions = tiny_questions(3)
    data, scores, after = write_jsonl(tmp_path / "q.jsonl", questions), tmp_path / "s.parquet", tmp_path / "t.parquet"
    assert caltune("score", data, "--model", tiny_folder, "-o", scores).status == 0
    words = ("--load", temperature, "--apply", scores, "-o", after)
    assert caltune("recalibrate", "temperature", *words).status == 0
    file = read_scores(after)
    policy = policy_file(tmp_path / "policy.json", source_of(file.metadata))

    bound, answers, ended = [], [], threading.Event()
    bind = verbs_serve._bind
    monkeypatch.setattr(verbs_serve, "_bind", lambda host, port: bound.append(bind(host, port)) or bound[0])
    client = threading.Thread(target=lambda: answers.extend(answers_to(questions, bound, ended)), daemon=True)
    client.start()
    words = ("--port", 0, "--device", "cpu", "--policy", policy, "--calibration", temperature)
    result = caltune("serve", tiny_folder, *words)
    ended.set()
    client.join()
    line = rf"{tiny_folder.name} [0-9a-f]{{16}} at http://127\.0\.0\.1:\d+/v1/answers\nstopped\n"
    assert re.fullmatch(line, result.out), result
    warning = f"caltune: warning: {temperature} does not say what it was fitted for\n"
    assert (result.status, result.err) == (0, warning)
    for question, answer, probabilities in zip(questions, answers, file.scores.probabilities(), strict=True):
        np.testing.assert_allclose(answer["probabilities"], probabilities[: len(question.options)], atol=1e-5)
        assert answer["abstain"] is bool(answer["max_prob"] < 0.6)
        assert answer["model"] == tiny_folder.name
        assert len(answer["calibration_version"]) == 16


def test_what_cannot_be_served_is_refused_in_one_line(refused, tiny_folder, tmp_path):
    policy = policy_file(tmp_path / "policy.json", {**MADE, "model": "other"})
    for flags, wanted in (
        (("--port", "70000"), "--port must be from 0 to 65535, got 70000"),
        (("--host", "203.0.113.7", "--port", "0"), "must be an address to listen at, got 203.0.113.7:0"),
        (("--port", "0", "--seconds", "0"), "seconds must be above 0 and finite, got 0.0"),
        (("--port", "0", "--policy", policy), "policy.json: was fitted on scores with answers 'letters'"),
        (("--port", "0", "--policy", tmp_path / "none.json"), "a policy must be a JSON file"),
        (("--port", "0", "--device", "gpu"), "device must be one that torch can use here"),
    ):
        assert wanted in refused("serve", tiny_folder, *flags)
    assert "no such folder" in refused("serve", "./missing", "--port", "0")


def test_the_version_tells_option_temperatures_apart():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = fingerprint(model, tokenizer, {})
    model.config.option_temperature = 2.0
    assert fingerprint(model, tokenizer, {}) != plain
