"""What each of several processes does in `test_launched.py`; run alone, the same is done by one.

torchrun --nproc_per_node 2 tests/launched.py compute FOLDER
torchrun --nproc_per_node 2 tests/launched.py die FOLDER VERB ...   # the last process dies in the middle
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import one_pass_per_option, ragged_questions, tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import build, drawn_answers, weights

from caltune import tempering
from caltune.callbacks import EpochBegin, WeightAverage
from caltune.cli import main
from caltune.errors import InputError
from caltune.models import option_temperature
from caltune.scoring import engine
from caltune.scoring.cost import ScoringCost
from caltune.scoring.engine import score, score_encoded, score_with_features
from caltune.scoring.processes import is_sharded, join_processes, process_count, process_rank

ORDINARY = tuple({"prompt": f"{i} and {i} is", "completion": f" {2 * i}"} for i in range(4))


def scores() -> dict[str, Any]:
    """Scores, features and cost of a few questions, and of one question alone."""
    model, tokenizer, cost = tiny_model(), tiny_tokenizer(), ScoringCost()
    found, features = score_with_features(model, tokenizer, tiny_questions(23), cost=cost, together=True)
    few = tiny_questions(3)  # the beginning is shared
    shots = score(model, tokenizer, few, exemplars=tiny_questions(9, prefix="s")[5:], batch_tokens=64, together=True)
    one = score(model, tokenizer, tiny_questions(1), together=True)
    return {
        "ids": found.ids,
        "logits": listed(found.logits),
        "features": features.tolist(),
        "cost": [cost.questions, cost.alone],
        "shots": listed(shots.logits),
        "one": listed(one.logits),
    }


def listed(logits: np.ndarray) -> list[list[float | None]]:
    """Logits as JSON holds them."""
    return [[float(value) if np.isfinite(value) else None for value in row] for row in logits]


def training(method: str, folder: Path, rows: tuple[Any, ...] = (), **settings: Any) -> dict[str, Any]:
    """Two epochs of two steps with eight questions or `rows`, in all processes: what was fitted, logged, left."""
    trainer = build(
        method,
        folder / method,
        train=[*rows, *drawn_answers(tiny_questions(16 - len(rows)))],
        calibration=drawn_answers(tiny_questions(9, prefix="c")),
        evaluation=drawn_answers(tiny_questions(7, prefix="e")),
        per_device_train_batch_size=8 // process_count(),
        num_train_epochs=2,
        logging_steps=1,
        eval_strategy="epoch",
        learning_rate=0.01,
        **settings,
    )
    trainer.train()
    # transformers repeats questions where they do not fill all processes' batches, and its own eval_loss counts them.
    left_out = ("_runtime", "_per_second", "flos", "eval_loss")
    return {
        "state": trainer.method_state(),
        "temperature": option_temperature(trainer.model),
        "log": [
            {name: value for name, value in entry.items() if not name.endswith(left_out)}
            for entry in trainer.state.log_history
        ],
        "weights": {name: values.flatten().tolist() for name, values in weights(trainer.model).items()},
    }


def sharded() -> dict[str, Any]:
    """With the weights spread over the processes (FSDP): scores beside those of the whole model, then a gradient."""
    from torch.distributed.fsdp import fully_shard

    questions = ragged_questions()
    model = tiny_model()
    with torch.no_grad():
        expected = one_pass_per_option(model, questions)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert is_sharded(model)
    found = score_encoded(model, questions, 0, together=True)
    model.train()
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
    gradient = model.model.embed_tokens.weight.grad.full_tensor()
    return {"found": listed(found), "expected": listed(expected.numpy()), "gradient": float(gradient.norm())}


def diverged(folder: Path) -> str:
    """What a process is told whose own part of the weights (FSDP) is right, where that of the last one is not."""
    from torch.distributed.fsdp import fully_shard

    trainer = build("SFT", folder / "diverged", max_steps=1)
    trainer.train()
    fully_shard(trainer.model)
    if process_rank() == 1:
        trainer.model.model.embed_tokens.weight.data.to_local().fill_(torch.nan)
    try:
        EpochBegin(trainer).on_train_end(trainer.args, trainer.state)
    except InputError as error:
        return str(error)
    return ""


def compute(folder: Path) -> None:
    """Everything, into one file a process."""
    join_processes("cpu")
    tempering.LEAST_SEEN = 4
    document = {
        "scores": scores(),
        "RCFT": training("RCFT", folder, bin_accuracy_source="first-pass", bins=4),
        # Of two processes the first finds no question in its first batch, the second no ordinary row in its own.
        "mixed": training("RCFT", folder / "mixed", ORDINARY, bin_accuracy_source="first-pass", bins=4),
        "CogCalib": training("CogCalib", folder),
        "Tempered": training("Tempered", folder),
        "refit": training("Tempered", folder / "refit", ORDINARY, option_temperature_refit=True),
    }
    if process_count() > 1:
        document["sharded"] = sharded()
        document["diverged"] = diverged(folder)
    (folder / f"{process_count()}-{process_rank()}.json").write_text(json.dumps(document), encoding="utf-8")
    if process_count() > 1:
        torch.distributed.destroy_process_group()


def die(arguments: list[str]) -> int:
    """A verb in which the last process dies at its second batch or step."""
    calls = []

    def second(original: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == 2 and os.environ["RANK"] == "1":
                os._exit(7)
            return original(*given, **named)

        return call

    engine.token_log_probabilities = second(engine.token_log_probabilities)
    WeightAverage.on_step_end = second(WeightAverage.on_step_end)
    return main(arguments)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(600, exit=True)  # a process that waits for nobody must not hold up the tests
    what, *rest = sys.argv[1:]
    if what == "compute":
        compute(Path(rest[0]))
    else:
        raise SystemExit(die(rest))
