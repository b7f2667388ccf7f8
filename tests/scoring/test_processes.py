"""Questions shared out over processes, each played after the other. `test_launched.py` has real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import ragged_questions, tiny_model, tiny_questions, tiny_tokenizer

from caltune.errors import InputError
from caltune.output import first_process, launched
from caltune.scoring import engine, score
from caltune.scoring.cost import ScoringCost
from caltune.scoring.packing import EncodedQuestion
from caltune.scoring.processes import (
    is_sharded,
    join_processes,
    process_count,
    process_rank,
    share_out,
    sum_over_processes,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_question_goes_to_one_process_and_tokens_are_even(count: int) -> None:
    encoded = ragged_questions(40)
    shares = share_out(encoded, count)
    assert sorted(i for share in shares for i in share) == list(range(40))
    tokens = [sum(encoded[i].length for i in share) for share in shares]
    longest = max(item.length for item in encoded)
    assert max(tokens) - min(tokens) <= 2 * longest  # each end of a share is off by at most half a question


def test_what_begins_alike_stays_together() -> None:
    """Four passages with eight questions each, in a drawn order, over four processes: each reads one passage."""
    passages = [tuple(range(10 * i, 10 * i + 9)) for i in range(4)]
    questions = [EncodedQuestion((*passage, 100 + i), ((1,), (2,))) for i in range(8) for passage in passages]
    order = np.random.default_rng(0).permutation(32)
    shuffled = [questions[i] for i in order]
    for share in share_out(shuffled, 4):
        assert len({shuffled[i].prompt[0] for i in share}) == 1
        assert len(share) == 8


def test_more_processes_than_questions() -> None:
    shares = share_out(ragged_questions(2), 5)
    assert sorted(map(len, shares)) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("count", [2, 5, 30])
def test_the_parts_add_up_to_what_one_process_finds(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, questions = tiny_model(), tiny_tokenizer(), tiny_questions(23)
    whole: dict[int, Any] = {}
    cost = ScoringCost()
    expected = score(model, tokenizer, questions, features=whole, cost=cost)
    monkeypatch.setattr(engine, "process_count", lambda: count)
    monkeypatch.setattr(engine, "sum_over_processes", lambda values, _: values)  # so that each gets its own part only
    logits, states, parts = 0.0, 0.0, ScoringCost()
    for rank in range(count):
        monkeypatch.setattr(engine, "process_rank", lambda rank=rank: rank)
        part: dict[int, Any] = {}
        logits = logits + score(model, tokenizer, questions, features=part, cost=parts, together=True).logits
        states = states + np.stack([part[row] for row in range(23)])
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(states, [whole[row] for row in range(23)], rtol=0, atol=1e-5)
    assert (parts.questions, parts.alone) == (cost.questions, cost.alone)
    with_own = score(model, tokenizer, questions)  # not together: all of them, also among many processes
    np.testing.assert_array_equal(with_own.logits, expected.logits)


def test_alone_there_is_nobody_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster says so of its pods, which know nothing of each other
    monkeypatch.setenv("RANK", "3")
    assert launched() == 1
    assert first_process()
    join_processes("cpu")
    assert (process_count(), process_rank()) == (1, 0)
    np.testing.assert_array_equal(sum_over_processes(np.arange(3), "cpu"), [0, 1, 2])
    assert not is_sharded(torch.nn.Linear(1, 1))


def test_only_the_first_of_several_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from caltune.output import report_bad_rows

    said = []
    for rank in ("0", "1"):
        for name, value in (("LOCAL_RANK", rank), ("RANK", rank), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        assert launched() == 2
        report_bad_rows(["data.csv:7: no answer"])
        said.append(capsys.readouterr().err)
    assert said == ["caltune: skipped 1 bad row:\n  data.csv:7: no answer\n", ""]


def test_a_server_is_asked_by_one_process(monkeypatch: pytest.MonkeyPatch, questions_file: Any) -> None:
    from argparse import Namespace

    from caltune.verbs_serve import asks_server

    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = Namespace(endpoint="http://localhost:1/v1", features=False, device=None, shots=0)
    with pytest.raises(InputError, match=r"--endpoint is asked by one process \(see --parallel\), got 2"):
        asks_server(flags)
