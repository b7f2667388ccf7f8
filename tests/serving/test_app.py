"""The service: the numbers of `caltune score`, one clear sentence for what is refused, and a quiet end."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient
from tiny import tiny_model, tiny_questions, tiny_tokenizer

from caltune.abstain import Policy
from caltune.errors import InputError
from caltune.recalibrate import Temperature
from caltune.scoring import score
from caltune.serving.answering import Answer, Answerer, fingerprint
from caltune.serving.app import create_app
from caltune.serving.limits import Guard
from caltune.serving.schema import AnswersRequest, Limits
from caltune.types import Question


@pytest.fixture(scope="module")
def answerer():
    return Answerer(tiny_model(), tiny_tokenizer(), "tiny", version="v1")


@pytest.fixture
def client(answerer):
    with TestClient(create_app(answerer, Limits(characters=600, body=4000))) as client:
        yield client


def body(question: Question) -> dict:
    return {"question": question.text, "options": list(question.options)}


def expected(questions, **how):
    scores = score(tiny_model(), tiny_tokenizer(), questions, **how)
    return [row[: len(q.options)] for row, q in zip(scores.probabilities(), questions, strict=True)]


def test_the_numbers_are_those_of_score_alone_and_beside_others(client):
    questions = tiny_questions(12)
    wanted = expected(questions)
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda q: client.post("/v1/answers", json=body(q)), questions))
    for question, found, probabilities in zip(questions, together, wanted, strict=True):
        alone = client.post("/v1/answers", json=body(question)).json()
        for answer in (alone, found.json()):
            np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
            assert answer["index"] == int(np.argmax(probabilities))
            assert answer["answer"] == question.options[answer["index"]]
            assert answer["max_prob"] == max(answer["probabilities"])
        assert {name: alone[name] for name in ("abstain", "model", "model_version", "calibration_version")} == {
            "abstain": None,
            "model": "tiny",
            "model_version": "v1",
            "calibration_version": None,
        }


def test_white_space_around_texts_is_dropped_as_it_is_from_data(client):
    """A space before a line break is another token, and `caltune score` never sees one."""
    few = {"question": "Capital of Italy?", "options": ["Rome", "Oslo"], "answer": 0}
    neat = {**GOOD, "context": "Lima is old.", "few": [few]}
    loose = {"question": " Capital of Peru?\n", "options": ["Lima ", "\tRome"], "context": "\n Lima is old. "}
    loose["few"] = [{"question": "Capital of Italy? ", "options": [" Rome", "Oslo "], "answer": 0}]
    wanted, found = (client.post("/v1/answers", json=one).json() for one in (neat, loose))
    np.testing.assert_allclose(found["probabilities"], wanted["probabilities"], atol=1e-5)
    assert found["answer"] == loose["options"][wanted["index"]]
    twice = client.post("/v1/answers", json={**GOOD, "options": ["Lima", "Lima "]})
    assert (twice.status_code, "options must differ" in twice.json()["error"]) == (422, True)


def test_one_batch_holds_questions_behind_different_exemplars(answerer):
    questions = tiny_questions(6)
    asked = [
        {**body(questions[3]), "few": [{**body(questions[0]), "answer": 0}], "context": "Capitals are cities."},
        body(questions[4]),
        {**body(questions[5]), "options": ["x", "x"]},
        {**body(questions[5]), "question": "why " * 300},
    ]
    limits = Limits()
    good = [AnswersRequest(**one).asked(limits) for one in (asked[0], asked[1], asked[3])]
    with pytest.raises(InputError, match="must differ"):
        AnswersRequest(**asked[2]).asked(limits)
    first, second, third = answerer(good)
    behind = replace(questions[3], text=f"Capitals are cities.\n\n{questions[3].text}")
    np.testing.assert_allclose(first.probabilities, expected([behind], exemplars=questions[:1])[0], atol=1e-5)
    np.testing.assert_allclose(second.probabilities, expected([questions[4]])[0], atol=1e-5)
    assert isinstance(third, InputError)
    assert "the model's context holds 256" in str(third)


def test_a_question_that_its_chat_template_refuses_fails_alone(answerer):
    tokenizer = tiny_tokenizer()
    refuse = "{% if 'Peru' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    questions = [q for q in tiny_questions(12) if "Peru" in q.text or "Cuba" in q.text]
    good, bad = sorted(questions, key=lambda q: "Peru" in q.text)
    found = replace(answerer, tokenizer=tokenizer)([AnswersRequest(**body(q)).asked(Limits()) for q in (bad, good)])
    assert isinstance(found[0], Exception)
    np.testing.assert_allclose(found[1].probabilities, expected([good])[0], atol=1e-5)


def test_settings_recalibration_and_policy_reach_the_answer():
    questions = tiny_questions(8)
    plain = expected(questions, answers="letters", template="plain")
    cooler = [np.exp(np.log(p) / 3) / np.exp(np.log(p) / 3).sum() for p in plain]
    threshold = float(np.median([p.max() for p in cooler]))
    policy = Policy(threshold, "binomial", 0.1, 0.9, 1, 1, 0.0, 0.1, ("c",), (0.5,))
    answerer = Answerer(
        tiny_model(),
        tiny_tokenizer(),
        "tiny",
        answers="letters",
        template="plain",
        recalibrate=Temperature(3.0, ("asked before",)),
        policy=policy,
        calibration_version="c1",
    )
    with TestClient(create_app(answerer)) as client:
        found = [client.post("/v1/answers", json=body(q)).json() for q in questions]
        text = client.get("/metrics").text
    for answer, probabilities in zip(found, cooler, strict=True):
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
        assert answer["abstain"] is bool(probabilities.max() < threshold)
        assert answer["calibration_version"] == "c1"
    assert {answer["abstain"] for answer in found} == {True, False}
    assert 'caltune_requests_total{path="/v1/answers",status="200"} 8.0' in text
    assert f"caltune_abstained_total {sum(a['abstain'] for a in found)}.0" in text
    assert "caltune_max_prob_count 8.0" in text
    assert 'caltune_model_info{calibration_version="c1",model="tiny",model_version=""} 1.0' in text


GOOD = {"question": "Capital of Peru?", "options": ["Lima", "Rome"]}


@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        ({**GOOD, "options": ["a"]}, 422, "options: List should have at least 2 items"),
        ({**GOOD, "options": [f"o{i}" for i in range(27)]}, 422, "options: List should have at most 26 items"),
        ({**GOOD, "options": ["a", " "]}, 422, "options.1: String should match pattern"),
        ({**GOOD, "options": ["a", "a"]}, 422, "options must differ from each other"),
        ({**GOOD, "options": ["a", 1]}, 422, "options.1: Input should be a valid string"),
        ({**GOOD, "question": ""}, 422, "question: String should have at least 1 character"),
        ({**GOOD, "temperature": 2}, 422, "temperature: Extra inputs are not permitted"),
        ({"question": "q"}, 422, "options: Field required"),
        ({**GOOD, "few": [{**GOOD, "answer": 0}]}, 422, "must not be its own exemplar, got exemplar 'few[0]'"),
        ({**GOOD, "few": [{**GOOD, "question": "q", "answer": 2}]}, 422, "few[0]: the answer must be an option index"),
        (
            {**GOOD, "few": [{**GOOD, "question": "q", "answer": "1"}]},
            422,
            "few.0.answer: Input should be a valid integer",
        ),
        ({**GOOD, "context": "x" * 600}, 422, "the texts have 624 characters, at most 600 are allowed"),
        ({**GOOD, "context": "why " * 140}, 422, "the model's context holds 256"),
        ({**GOOD, "context": "x" * 5000}, 413, "the body must have at most 4000 bytes"),
        (b'{"question": "\\ud800", "options": ["a", "b"]}', 422, "question: Input should be a valid string"),
        (b"{", 400, "the body must be JSON"),
        (b"[" * 3000, 400, "There was an error parsing the body"),
        (b"[]", 422, "the body must be a JSON object"),
        (b"", 422, "the body must be a JSON object"),
    ],
)
def test_what_is_refused_is_told_in_one_sentence(client, content, status, error):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    reply = client.post("/v1/answers", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert error in reply.json()["error"]
    assert len(reply.json()["error"]) <= 300
    assert client.post("/v1/answers", json=GOOD).status_code == 200


def test_other_paths_methods_and_origins(client):
    assert client.post("/v1/answers", content=json.dumps(GOOD)).status_code == 422  # not said to be JSON
    assert (client.get("/v1/answers").status_code, client.get("/v1/answers").json()) == (
        405,
        {"error": "Method Not Allowed"},
    )
    assert client.post("/v1/answers/", json=GOOD, follow_redirects=False).json() == {"error": "Not Found"}
    for path in ("/docs", "/redoc", "/", "/v1/answers/../../etc/passwd"):
        assert client.get(path).status_code == 404
    reply = client.post("/v1/answers", json=GOOD, headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert client.get("/healthz").json() == {
        "status": "ok",
        "model": "tiny",
        "model_version": "v1",
        "calibration_version": None,
    }
    examples = client.get("/openapi.json").json()["components"]["schemas"]["AnswersRequest"]["examples"]
    assert [client.post("/v1/answers", json=example).status_code for example in examples] == [200, 200]


class Stuck:
    """An answerer that waits until it is let go."""

    name, version, calibration_version = "stuck", "v", None

    def __init__(self):
        self.go, self.begun = threading.Event(), threading.Event()

    def __call__(self, asked):
        self.begun.set()
        assert self.go.wait(10)
        if any("fail" in one.question.text for one in asked):
            raise RuntimeError("/secret/path")
        return [Answer((0.25, 0.75), 1, None)] * len(asked)


def test_a_full_queue_is_503_a_late_answer_504_and_a_failure_500_without_its_reason():
    stuck = Stuck()
    with TestClient(create_app(stuck, Limits(seconds=0.3, waiting=1)), raise_server_exceptions=False) as client:
        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(client.post, "/v1/answers", json=GOOD)
            assert stuck.begun.wait(10)
            waiting = pool.submit(client.post, "/v1/answers", json=GOOD)
            while "caltune_waiting 1.0" not in client.get("/metrics").text:
                time.sleep(0.005)
            refused = client.post("/v1/answers", json=GOOD)
            late = [running.result(10), waiting.result(10)]
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json() == {"error": "too many requests are waiting, try again soon"}
        assert [reply.status_code for reply in late] == [504, 504]
        assert late[0].json() == {"error": "there was no answer within 0.3 seconds"}
        stuck.go.set()
        while "caltune_waiting 0.0" not in client.get("/metrics").text:  # who was late still waits its turn
            time.sleep(0.005)
        failed = client.post("/v1/answers", json={**GOOD, "question": "fail"})
        assert (failed.status_code, failed.json()) == (500, {"error": "the service failed, its log says why"})
        assert client.post("/v1/answers", json=GOOD).status_code == 200
        assert client.get("/healthz").status_code == 200
    assert client.get("/healthz").status_code == 503  # shut down


def guarded(messages, **how):
    """What the guard sends for a request of these messages, and what it observed."""
    sent, seen = [], []
    arriving = iter(messages)

    async def receive():
        try:
            return next(arriving)
        except StopIteration:
            await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def application(scope, receive, send):
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    guard = Guard(application, observe=lambda *what: seen.append(what[:2]), **{"body": 10, "seconds": 0.05, **how})
    asyncio.run(guard({"type": "http", "path": "/p", "headers": []}, receive, send))
    return sent[0]["status"], sent[1]["body"], seen


def test_a_body_in_pieces_is_bounded_in_size_and_time():
    def piece(part: bytes, more: bool) -> dict:
        return {"type": "http.request", "body": part, "more_body": more}

    assert guarded([piece(b"12345", True), piece(b"67890", False)]) == (200, b"1234567890", [("/p", 200)])
    status, text, seen = guarded([piece(b"12345", True), piece(b"678901", True)])
    assert (status, json.loads(text), seen) == (413, {"error": "the body must have at most 10 bytes"}, [("/p", 413)])
    status, text, seen = guarded([piece(b"12345", True)])
    assert (status, json.loads(text)) == (408, {"error": "the body must arrive within 0.05 seconds"})


def test_shutting_down_finishes_what_runs():
    stuck = Stuck()
    place = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(stuck), log_level="error", timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    request = urllib.request.Request(
        f"http://127.0.0.1:{place.getsockname()[1]}/v1/answers",
        json.dumps(GOOD).encode(),
        {"Content-Type": "application/json"},
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(urllib.request.urlopen, request, timeout=10)
        assert stuck.begun.wait(10)
        server.should_exit = True
        time.sleep(0.2)
        stuck.go.set()
        with running.result(10) as reply:
            assert json.load(reply)["answer"] == "Rome"
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(request, timeout=1)


def test_the_version_tells_weights_tokenizer_and_settings_apart():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    settings = {"answers": "letters", "template": "auto"}
    versions = [
        fingerprint(model, tokenizer, settings),
        fingerprint(tiny_model(seed=1), tokenizer, settings),
        fingerprint(model, tiny_tokenizer(chat=False), settings),
        fingerprint(model, tokenizer, {**settings, "template": "plain"}),
    ]
    assert len(set(versions)) == 4
    assert fingerprint(tiny_model(), tiny_tokenizer(), dict(reversed(settings.items()))) == versions[0]
    next(model.parameters()).data.view(-1)[0] += 1e-3
    assert fingerprint(model, tokenizer, settings) not in versions


def test_limits_must_be_above_zero():
    for seconds in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=f"seconds must be above 0 and finite, got {seconds}"):
            Limits(seconds=seconds)
