"""Requests drawn from the OpenAPI document, right and wrong ones: every answer is as the document says."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from starlette.testclient import TestClient
from tiny import tiny_model, tiny_tokenizer

from caltune.serving.answering import Answerer
from caltune.serving.app import create_app

# The rules that a JSON schema cannot say.
UNSAID = (
    "must differ from each other|must not be empty|must be an option index|must not be its own exemplar|"
    "characters, at most|tokens|adds no token"
)


@pytest.fixture(scope="module")
def app():
    return create_app(Answerer(tiny_model(), tiny_tokenizer(), "tiny"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in what schemathesis builds on
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_as_the_document_says(app, mode):
    schemathesis = pytest.importorskip("schemathesis")  # here, since it takes a second to load
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    operation = schemathesis.openapi.from_asgi("/openapi.json", app)["/v1/answers"]["POST"]
    statuses = set()

    @seed(0)
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case):
        response = case.call()
        case.validate_response(response, excluded_checks=[positive_data_acceptance])
        statuses.add(response.status_code)
        if mode == "positive" and response.status_code == 422:
            assert re.search(UNSAID, response.json()["error"])

    ask()
    assert statuses <= ({200, 422} if mode == "positive" else {400, 405, 413, 415, 422})
    assert (200 in statuses) is (mode == "positive")


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/openapi.json"])
def test_the_other_paths_answer(app, path):
    assert TestClient(app).get(path).status_code == 200
