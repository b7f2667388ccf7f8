"""`caltune import`: rows as other programs write them, read as they mean them, and told where they cannot be."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caltune.errors import InputError
from caltune.formats import AnswersFile, read_answers, read_scores, write_answers, write_scores
from caltune.types import OptionLogits, Predictions

DATE = "2026-11-22T10-00-00.123456"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def choice(doc_id: int, scores: list[float], target: object, **more: Any) -> dict[str, Any]:
    """A multiple-choice sample as lm-eval 0.4.13 writes it: numbers and the target as strings."""
    best = int(np.argmax(scores))
    return {
        "doc_id": doc_id,
        "doc": {"subject": "maps" if doc_id % 2 else "trees"},
        "target": str(target),
        "arguments": {
            f"gen_args_{i}": {"arg_0": f"Question: {doc_id}\nAnswer:", "arg_1": f" option {i}"}
            for i in range(len(scores))
        },
        "resps": [[[str(score), str(i == best)]] for i, score in enumerate(scores)],
        "filtered_resps": [[str(score), str(i == best)] for i, score in enumerate(scores)],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(str(best) == str(target)),
        **more,
    }


def text(doc_id: int, repeats: list[str], answer: str, right: float, name: str = "none", **more: Any) -> dict[str, Any]:
    """A generation sample."""
    return {
        "doc_id": doc_id,
        "doc": {},
        "target": "7",
        "arguments": {"gen_args_0": {"arg_0": "How many?", "arg_1": {"until": ["\n"]}}},
        "resps": [repeats],
        "filtered_resps": [answer],
        "filter": name,
        "exact_match": right,
        **more,
    }


def samples(folder: Path, task: str, rows: list[dict[str, Any]]) -> Path:
    return write_lines(folder / f"samples_{task}_{DATE}.jsonl", rows)


@pytest.fixture
def imported(caltune, tmp_path):
    """`imported(format, file, ...)` is what `caltune import` printed, and the file it wrote."""

    def run(*words: object):
        out = tmp_path / "out.parquet"
        result = caltune("import", *words, "-o", out)
        assert result.status == 0, result.err
        return result, out

    return run


# lm-eval


def test_multiple_choice_becomes_scores(imported, tmp_path):
    a = samples(tmp_path, "maps", [choice(0, [-1.5, -0.5, -9.0], 1), choice(1, [-1.0, -3.0], 1)])
    b = samples(tmp_path, "trees_of_x", [choice(0, [-2.0, -1.0], 0)])
    (tmp_path / f"results_{DATE}.json").write_text(json.dumps({"model_name": "tiny", "lm_eval_version": "0.4.13"}))
    result, out = imported("lm-eval", a, b)
    assert result.out.splitlines() == ["3 questions with option probabilities", str(out)]
    file = read_scores(out)
    assert file.scores.ids == ("maps/0", "maps/1", "trees_of_x/0")
    assert file.scores.groups == ("maps", "maps", "trees_of_x")
    assert file.scores.labels.tolist() == [1, 1, 0]
    assert file.scores.logits.tolist() == [[-1.5, -0.5, -9.0], [-1.0, -3.0, -np.inf], [-2.0, -1.0, -np.inf]]
    assert file.metadata["model"] == "tiny"
    assert file.metadata["versions"] == {"lm_eval": "0.4.13"}
    assert file.metadata["prompt_example"] == "Question: 0\nAnswer:"
    # Wrong with σ(2) = 0.88 and σ(1) = 0.73: the surer one first.
    assert [one["id"] for one in file.metadata["examples"]] == ["maps/1", "trees_of_x/0"]
    assert file.metadata["examples"][0]["options"] == [" option 0", " option 1"]


def test_ids_and_groups_may_come_from_the_document(imported, tmp_path):
    path = samples(tmp_path, "maps", [choice(0, [-1, -2], 0), choice(1, [-1, -2], 0)])
    _, out = imported("lm-eval", path, "--field", "group=doc.subject", "--model", "mine")
    assert read_scores(out).scores.groups == ("trees", "maps")
    assert read_scores(out).metadata["model"] == "mine"


def test_rows_of_several_filters_are_one_document_each(imported, tmp_path):
    rows = [choice(0, [-1, -2], 0), choice(0, [-1, -2], 0, filter="other"), choice(1, [-1, -2], 1)]
    _, out = imported("lm-eval", samples(tmp_path, "maps", rows))
    assert len(read_scores(out).scores) == 2


def test_a_right_option_that_is_not_there_is_left_out_and_told(imported, tmp_path):
    """The harness makes −100 of it and counts the document wrong."""
    rows = [choice(0, [-1, -2], 0), choice(1, [-1, -2], 7), choice(2, [-1, -2], -1)]
    result, out = imported("lm-eval", samples(tmp_path, "maps", rows))
    assert read_scores(out).scores.ids == ("maps/0",)
    assert result.err.startswith("caltune: 2 documents left out")
    assert read_scores(out).metadata["left_out"] == 2


@pytest.mark.parametrize(
    ("target", "more", "label"),
    [
        ("2", {}, 2),
        ("[2]", {}, 2),
        ("option 2", {"acc": 0.0}, 2),  # by its text
        ("else", {"brier_score": [2, "[0.2 0.5 0.3]"], "acc": 0.0}, 2),  # logged with a metric
    ],
)
def test_the_right_option_is_read_as_the_task_wrote_it(imported, tmp_path, target, more, label):
    path = samples(tmp_path, "maps", [choice(0, [-2.0, -1.0, -1.5], target, **more)])
    assert read_scores(imported("lm-eval", path)[1]).scores.labels.tolist() == [label]


def test_a_text_that_is_none_of_the_options_is_left_out_as_the_harness_counts_it_wrong(imported, tmp_path):
    rows = [
        choice(0, [-2.0, -1.0, -1.5], "option 1", acc=1.0),
        choice(1, [-2.0, -1.0, -1.5], "elsewhere", acc=0.0),
        choice(2, [-2.0, -1.0, -1.5], "option 2", acc=0.0),
    ]
    result, out = imported("lm-eval", samples(tmp_path, "maps", rows))
    assert read_scores(out).scores.ids == ("maps/0", "maps/2")
    assert read_scores(out).scores.labels.tolist() == [1, 2]
    assert "1 documents left out" in result.err


def test_a_number_that_is_also_a_text_is_read_as_acc_agrees(imported, tmp_path):
    """Options "1" and "0": the target "1" is the first by its text, the second by its index; acc says which."""
    arguments = {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {word}"} for i, word in enumerate(("1", "0"))}
    rows = [
        choice(0, [-1.0, -2.0], "1", acc=1.0, arguments=arguments),
        choice(1, [-1.0, -2.0], "0", acc=0.0, arguments=arguments),
    ]
    path = samples(tmp_path, "maps", rows)
    assert read_scores(imported("lm-eval", path)[1]).scores.labels.tolist() == [0, 1]


def test_where_contexts_are_compared_acc_tells_which_of_two_it_was(imported, tmp_path):
    """WinoGrande: the target is the text that follows both contexts."""
    arguments = {f"gen_args_{i}": {"arg_0": name, "arg_1": " was late."} for i, name in enumerate(("Ann", "Bob"))}
    rows = [choice(i, [-1.0, -2.0], "was late.", acc=acc, arguments=arguments) for i, acc in enumerate((1.0, 0.0))]
    file = read_scores(imported("lm-eval", samples(tmp_path, "winogrande", rows))[1])
    assert file.scores.labels.tolist() == [0, 1]
    assert file.metadata["examples"][0]["options"] == ["Ann", "Bob"]


def test_the_second_half_of_mutual_information_is_left_alone(imported, tmp_path):
    row = choice(0, [-1.0, -2.0, -5.0, -0.1], 0, acc=1.0, acc_mutual_info=0.0)
    for i in (2, 3):
        row["arguments"][f"gen_args_{i}"]["arg_0"] = ""
    assert read_scores(imported("lm-eval", samples(tmp_path, "maps", [row]))[1]).scores.logits.tolist() == [
        [-1.0, -2.0]
    ]


@pytest.mark.parametrize("arguments", [[1, 2], ["ab", None], {"gen_args_0": 3}])
def test_requests_of_another_shape_have_no_texts(imported, tmp_path, arguments):
    path = samples(tmp_path, "maps", [choice(0, [-1.0, -2.0], 0, arguments=arguments)])
    assert read_scores(imported("lm-eval", path)[1]).scores.logits.tolist() == [[-1.0, -2.0]]


def test_repeats_of_a_generated_answer_make_its_confidence(imported, tmp_path):
    rows = [
        text(0, ["so it is 7", "it is  7", "maybe 8", "7"], "7", 1.0),
        text(1, ["3", "4", "4", "1"], "4", 0.0),
    ]
    path = samples(tmp_path, "count", rows)
    result, out = imported("lm-eval", path, "--extract", r"\d+")
    assert result.out.startswith("2 answers with a confidence; what needs option probabilities will say so")
    file = read_answers(out)
    assert file.answers.confidence.tolist() == [0.75, 0.5]  # 3 of 4 say 7, 2 of 4 say 4
    assert file.answers.correct.tolist() == [1.0, 0.0]
    assert file.answers.ids == ("count/0", "count/1")


def test_a_confidence_may_stand_in_a_column(imported, tmp_path):
    rows = [text(0, ["7"], "7", 1.0, stated=0.9), text(0, ["7"], "7", 0.0, "strict", stated=0.9)]
    path = samples(tmp_path, "count", rows)
    _, out = imported("lm-eval", path, "--filter", "strict", "--field", "confidence=stated")
    assert read_answers(out).answers.correct.tolist() == [0.0]
    assert read_answers(out).metadata["filter"] == "strict"


@pytest.mark.parametrize(
    ("rows", "words", "complaint"),
    [
        ([{"doc_id": 1}], [], "must be a sample of the harness with doc_id and resps, got doc_id"),
        ([choice(0, [-1, -2], 0)] * 2, [], "each document must stand there once, got doc_id 0 again"),
        ([choice(0, [-1, -2, -3], "[0, 2]")], [], "has several right options; caltune needs one option"),
        ([choice(0, [-1, -2], "[0, 1]", acc=1.0)], [], "has several right options; caltune needs one option"),
        ([choice(0, [-1, -2], 0), choice(1, [-1, -2], "[0, 1]", acc=1.0)], [], "the target '[0, 1]' of"),
        ([choice(0, [-1, -2, -3], 0), choice(1, [-1, -2, -3], "[1, 2]")], [], "the target '[1, 2]' of"),
        # Only where contexts are compared may acc tell: here the target contradicts it.
        ([choice(0, [-1, -2], 1, acc=1.0)], [], "does not tell the right option as acc does"),
        ([choice(0, [-1, -2, -3], "elsewhere", acc=1.0)], [], "does not tell the right option as acc does"),
        ([choice(0, [-1, -2, -3], "1", acc=1.0)], [], "does not tell the right option as acc does"),
        ([choice(0, [-1.0], 0)], [], "needs two options, got 1"),
        ([choice(0, [-1, -2], 5)], [], "no document has its right option among its options"),
        ([choice(0, [-1, -2], 0)], ["--filter", "strict"], "has the filters none, got --filter 'strict'"),
        ([choice(0, [-1, -2], 0)], ["--field", "confidence=x"], "multiple choice takes id and group only"),
        ([choice(0, [-1, float("nan")], 0)], [], "logits must be finite or -inf"),
        ([text(0, ["7"], "7", 1), text(0, ["7"], "7", 0, "b")], [], "choose one with --filter: none, b"),
        ([text(0, ["7"], "7", 1)], [], "one generated text has no confidence; repeat it in the task"),
        ([text(0, ["is 7", "so 7"], "7", 1)], [], "no repeat says its answer, --extract must find"),
        ([text(0, ["7", "7"], "7", 0.5)], [], "correct must be 0 or 1, got 0.5"),
        ([text(0, ["7", "7"], "7", 1)], ["--extract", "("], "must be a regular expression"),
        ([text(0, ["7", "7"], "7", 1)], ["--field", "correct=f1"], "needs 'f1', got 'doc_id, doc"),
    ],
)
def test_samples_that_will_not_do_are_refused(refused, tmp_path, rows, words, complaint):
    path, out = samples(tmp_path, "maps", rows), tmp_path / "out.parquet"
    assert complaint in refused("import", "lm-eval", path, *words, "-o", out)
    assert not out.exists()


def test_two_runs_of_one_task_are_refused_by_name(refused, tmp_path):
    first = samples(tmp_path, "maps", [choice(0, [-1.0, -2.0], 0)])
    second = write_lines(tmp_path / "samples_maps_2026-11-23T10-00-00.1.jsonl", [choice(0, [-1.0, -2.0], 0)])
    said = refused("import", "lm-eval", first, second, "-o", tmp_path / "out.parquet")
    assert f"{second}: each task must stand there once, got 'maps' again" in said


def test_tasks_of_both_kinds_make_different_files(refused, tmp_path):
    paths = samples(tmp_path, "a", [choice(0, [-1, -2], 0)]), samples(tmp_path, "b", [text(0, ["7", "7"], "7", 1)])
    message = refused("import", "lm-eval", *paths, "-o", tmp_path / "out.parquet")
    assert "multiple choice and generation make different files, got a and b" in message


# Tables


def test_confidences_of_anything_become_answers(imported, tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text("sure,right,id\n0.9,True,a\n0.5,no,b\n1,1,c\n")
    _, out = imported("table", path, "--field", "confidence=sure", "--field", "correct=right")
    found = read_answers(out).answers
    assert found.ids == ("a", "b", "c")
    assert found.confidence.tolist() == [0.9, 0.5, 1.0]
    assert found.correct.tolist() == [1.0, 0.0, 1.0]


def test_rows_without_an_id_are_called_by_file_and_line(imported, tmp_path):
    path = write_lines(
        tmp_path / "theirs.jsonl", [{"confidence": 0.9, "correct": 1}, {"confidence": 0.2, "correct": False}]
    )
    assert read_answers(imported("table", path)[1]).answers.ids == ("theirs.jsonl:1", "theirs.jsonl:2")


def test_option_probabilities_become_scores(imported, tmp_path):
    path = tmp_path / "theirs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["probabilities", "label", "group"], ["[0.25, 0.75]", 1, "x"], ["[0, 0.4, 0.6]", "", ""]]
        )
    scores = read_scores(imported("table", path)[1]).scores
    np.testing.assert_allclose(scores.probabilities(), [[0.25, 0.75, 0], [0, 0.4, 0.6]], atol=1e-7)
    assert scores.labels.tolist() == [1, -1]
    assert scores.groups == ("x", "")


def test_one_column_an_option_and_logits_go_too(imported, tmp_path):
    path = tmp_path / "theirs.parquet"
    pq.write_table(pa.table({"a": [0.5, 0.1], "b": [0.5, 0.4], "c": [None, 0.5], "gold": [0, 2]}), path)
    scores = read_scores(imported("table", path, "--field", "probabilities=a,b,c", "--field", "label=gold")[1]).scores
    np.testing.assert_allclose(scores.probabilities(), [[0.5, 0.5, 0], [0.1, 0.4, 0.5]], atol=1e-7)
    path = write_lines(tmp_path / "theirs.jsonl", [{"logits": [1.0, 3.0], "label": 0}])
    assert read_scores(imported("table", path)[1]).scores.logits.tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize(
    ("row", "words", "complaint"),
    [
        ({"confidence": 80, "correct": 1}, [], "a confidence must lie in [0, 1], got 80.0"),
        ({"confidence": "high", "correct": 1}, [], "'confidence' must be a number, got 'high'"),
        ({"confidence": 0.8, "correct": 0.5}, [], "'correct' must be 1 or 0, true or false, got '0.5'"),
        ({"confidence": 0.8}, [], "needs a column correct or is_correct (--field correct=…), got confidence"),
        ({"confidence": 0.8, "correct": 1}, ["--field", "id=key"], "needs a column key, got confidence, correct"),
        ({"confidence": 0.8, "correct": 1}, ["--field", "sure=key"], "--field must name one of id, group"),
        ({"confidence": 0.8, "correct": 1}, ["--filter", "x"], "--filter is for lm-eval only"),
        ({"probabilities": [0.5, 0.6], "label": 0}, [], "must not be negative and add up to 1, got [0.5, 0.6]"),
        ({"probabilities": [0.5, 0.5], "label": 2}, [], "'label' must be an index from 0 to 1"),
        ({"probabilities": [0.5, 0.5], "label": "A"}, [], "'label' must be a number, got 'A'"),
        ({"probabilities": 0.5, "label": 0}, [], "'probabilities' must be a list of numbers, got '0.5'"),
        ({"probabilities": [1.0], "label": 0}, ["--field", "probabilities=a,b"], "there is no column 'a'"),
        (
            {"probabilities": [0.5, math.nan, 0.5], "label": 0},
            [],
            "must not be negative and add up to 1, got [0.5, nan",
        ),
        ({"probabilities": [math.nan, 1.0], "label": 0}, [], "must not be negative and add up to 1, got [nan, 1.0]"),
        ({"probabilities": [0.5, 0.5], "label": math.nan}, [], "'label' must be an index from 0 to 1"),
        ({"probabilities": [0.5, 0.5], "label": math.inf}, [], "'label' must be an index from 0 to 1"),
        ({"a": "", "b": ""}, ["--field", "probabilities=a,b"], "'a' must be a list of numbers, got none"),
        ({"a": None, "b": None}, ["--field", "logits=a,b"], "'a' must be a list of numbers, got none"),
        ({"logits": [10**400, 0.5], "label": 0}, [], "'logits' must be a number, got '1000"),
        ({"id": "\ud800", "logits": [1, 0], "label": 0}, [], "other text must be Unicode, got '\\ud800'"),
        ({"group": "\ud800", "confidence": 1, "correct": 1}, [], "other text must be Unicode, got '\\ud800'"),
    ],
)
def test_tables_that_will_not_do_are_refused(refused, tmp_path, row, words, complaint):
    path = write_lines(tmp_path / "theirs.jsonl", [row])
    assert complaint in refused("import", "table", path, *words, "-o", tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == [path]


# uqlm


UQLM = {
    "data": {
        "prompts": ["Who?", "Where?"],
        "responses": ["me", "here"],
        "sampled_responses": [["me", "you"], ["here", "here"]],
        "semantic_negentropy": [0.25, 1.0],
    },
    "metadata": {"temperature": 1.0, "num_responses": 2},
}


def test_results_of_uqlm_become_answers(imported, tmp_path):
    """`to_dict()` of a black-box result, with the column that the user adds."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**UQLM, "data": {**UQLM["data"], "response_correct": [False, True]}}))
    _, out = imported("uqlm", path)
    file = read_answers(out)
    assert file.answers.confidence.tolist() == [0.25, 1.0]
    assert file.answers.correct.tolist() == [0.0, 1.0]
    assert file.metadata["confidence"] == "semantic_negentropy"
    assert file.metadata["temperature_of_sampling"] == 1.0

    # The same as the table of `to_df()`, which drops the s of names: the same ids, so that both can be compared.
    path = write_lines(
        tmp_path / "table.jsonl",
        [
            {"prompt": "Where?", "p_true": 0.5, "exact_match": 1, "ok": 1},
            {"prompt": "Who?", "p_true": 0.1, "exact_match": 0, "ok": 0},
        ],
    )
    _, out = imported("uqlm", path, "--field", "confidence=p_true", "--field", "correct=ok")
    assert read_answers(out).answers.ids == file.answers.ids[::-1]


@pytest.mark.parametrize(
    ("data", "words", "complaint"),
    [
        (UQLM["data"], [], "needs a column correct (--field correct=…)"),
        (
            {**UQLM["data"], "p_true": [1, 1]},
            [],
            "choose a scorer with --field confidence=NAME, got semantic_negentropy, p_true",
        ),
        ({"prompts": ["a"], "correct": [1]}, [], "choose a scorer"),
        ({"prompts": ["a"], "p_true": [1, 1]}, [], "must be lists of one length"),
        ({}, [], "must hold the columns of a result under 'data'"),
    ],
)
def test_results_of_uqlm_that_will_not_do_are_refused(refused, tmp_path, data, words, complaint):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"data": data}))
    assert complaint in refused("import", "uqlm", path, *words, "-o", tmp_path / "out.parquet")


# Answers files, and what they are good for


def answers_file(path: Path, count: int = 400, seed: int = 0, power: float = 1.0) -> Path:
    """Right with probability p, said with p ** power."""
    draw = np.random.default_rng(seed)
    p = draw.uniform(0.3, 0.99, count)
    ids = tuple(f"q{seed}-{i}" for i in range(count))
    write_answers(path, Predictions(ids, p**power, draw.random(count) < p), {"model": "theirs"})
    return path


def test_an_answers_file_comes_back_as_it_was(tmp_path):
    found = Predictions(("a", "b"), [0.1, 1.0], [0, 1], ("x", ""))
    write_answers(tmp_path / "a.parquet", found, {"model": "m"})
    back = read_answers(tmp_path / "a.parquet")
    assert isinstance(back, AnswersFile)
    assert (back.answers.ids, back.answers.groups, back.metadata) == (found.ids, found.groups, {"model": "m"})
    np.testing.assert_array_equal(back.answers.confidence, found.confidence)
    np.testing.assert_array_equal(back.answers.correct, found.correct)


def test_a_scores_file_is_read_as_answers_too(tmp_path):
    write_scores(tmp_path / "s.parquet", OptionLogits(("a",), [[0.0, np.log(3)]], [1]), {})
    found = read_answers(tmp_path / "s.parquet").answers
    assert found.confidence.round(6).tolist() == [0.75]
    write_scores(tmp_path / "s.parquet", OptionLogits(("a",), [[0.0, 1.0]], [-1]), {})
    with pytest.raises(InputError, match=r"s\.parquet: 1 questions have no label"):
        read_answers(tmp_path / "s.parquet")


def test_where_all_options_are_needed_the_reader_says_so(tmp_path):
    with pytest.raises(InputError, match="needs the probability of every option, got an answers file"):
        read_scores(answers_file(tmp_path / "a.parquet"))


def test_answers_are_evaluated_and_compared(caltune, tmp_path):
    a, b = answers_file(tmp_path / "a.parquet"), answers_file(tmp_path / "b.parquet", power=0.2)
    result = caltune("evaluate", a, "--json", tmp_path / "m.json")
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "m.json").read_text())[str(a)]["metrics"]
    answers = read_answers(a).answers
    assert found["answer_brier"]["value"] == pytest.approx(np.mean((answers.confidence - answers.correct) ** 2))
    assert "nll" not in found
    assert "nll, brier and classwise_ece need the probabilities of all options" in result.out
    result = caltune("compare", a, b, "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["metrics"]
    assert found["answer_nll"]["verdict"] == "worse"  # b says p ** 0.2, far too sure
    assert found["accuracy"]["verdict"] == "no clear difference"


def test_scores_and_answers_of_the_same_questions_can_be_compared(caltune, tmp_path):
    scores = OptionLogits(("p", "q", "r"), [[0.0, 1.0], [1.0, 0.0], [0.0, 3.0]], [1, 1, 1])
    write_scores(tmp_path / "s.parquet", scores, {})
    write_answers(tmp_path / "a.parquet", scores.decide(), {})
    result = caltune("compare", tmp_path / "s.parquet", tmp_path / "a.parquet", "--json", tmp_path / "c.json")
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "c.json").read_text())["metrics"]
    assert {one["difference"]["value"] for one in found.values()} == {0.0}
    assert {one["p_value"] for one in found.values()} == {None}  # three questions
    lines = result.out.splitlines()
    assert "3 questions are too few: below 30 no difference is called clear, and intervals are too narrow" in lines
    assert lines[-1].startswith("a scores file beside an answers file is taken as answers")


def test_several_answers_files_are_ranked_by_answer_brier_score(caltune, tmp_path):
    a, sure = answers_file(tmp_path / "a.parquet"), answers_file(tmp_path / "sure.parquet", power=0.2)
    result = caltune("evaluate", sure, a, "--json", tmp_path / "m.json")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    heading = lines.index("ranked by answer_brier, lowest first; a range where chance leaves the place open")
    assert [line.split()[:2] for line in lines[heading + 2 : heading + 4]] == [["1", str(a)], ["2", str(sure)]]
    found = json.loads((tmp_path / "m.json").read_text())[str(sure)]["ranking"]
    assert (found["first_place"], found["against"][0]["answer_brier"]["clear"]) == (2, True)
    assert "taken as answers" not in result.out
    assert "ranked" not in caltune("evaluate", a).out


def test_scores_beside_answers_are_ranked_as_answers_and_it_is_said(caltune, tmp_path):
    answers = answers_file(tmp_path / "a.parquet")
    write_scores(tmp_path / "s.parquet", OptionLogits(("p", "q"), [[0.0, 1.0], [1.0, 0.0]], [1, 1]), {})
    result = caltune("evaluate", answers, tmp_path / "s.parquet", "--json", tmp_path / "m.json")
    assert result.status == 0, result.err
    words = "a scores file beside an answers file is taken as answers: the most probable option of each question"
    assert words in result.out.splitlines()
    assert "2 questions are too few: below 30 no difference is called clear" in result.out
    for one in json.loads((tmp_path / "m.json").read_text()).values():
        assert (one["ranking"]["first_place"], one["ranking"]["last_place"]) == (1, 2)


def test_a_threshold_is_fitted_on_answers(caltune, tmp_path):
    result = caltune(
        "threshold", answers_file(tmp_path / "a.parquet", 2000), "--max-error", 0.2, "-o", tmp_path / "p.json"
    )
    assert result.status == 0, result.err
    policy = json.loads((tmp_path / "p.json").read_text())
    assert policy["source"] == {"model": "theirs"}
    assert 0.5 < policy["threshold"] < 0.75  # above t they err (1 − t) / 2 on average: 0.2 at about 0.6


def test_a_policy_is_applied_to_answers(caltune, tmp_path):
    policy, out = tmp_path / "p.json", tmp_path / "d.jsonl"
    caltune("threshold", answers_file(tmp_path / "a.parquet", 2000), "--max-error", 0.2, "-o", policy)
    later = answers_file(tmp_path / "b.parquet", 500, seed=1)
    result = caltune("apply-threshold", policy, later, "-o", out)
    assert result.status == 0, result.err
    threshold, answers = json.loads(policy.read_text())["threshold"], read_answers(later).answers
    said = [json.loads(line)["answer"] for line in out.read_text().splitlines()]
    assert said == [0 if one >= threshold else None for one in answers.confidence]
    answered = answers.confidence >= threshold
    wrong = int((answers.correct[answered] == 0).sum())
    assert f"{wrong}" in result.out
    assert 0 < wrong < answered.sum() / 3


@pytest.mark.parametrize("name", ["platt", "isotonic"])
def test_a_confidence_alone_is_recalibrated(caltune, tmp_path, name):
    """Right with probability p and said p ** 0.2: after the map the confidence is p again."""
    cal, test = (answers_file(tmp_path / f"{seed}.parquet", 3000, seed, power=0.2) for seed in (0, 1))
    out, saved, again = (tmp_path / place for place in ("out.parquet", "fitted.json", "again.parquet"))
    result = caltune("recalibrate", name, "--fit", cal, "--apply", test, "-o", out, "--save", saved)
    assert result.status == 0, result.err
    assert result.out.startswith(f"{name}, fitted on 3000 questions\nmean confidence 0.9")
    before, after = read_answers(test).answers, read_answers(out)
    honest = before.confidence**5
    assert np.abs(before.confidence - honest).mean() > 0.2
    assert np.abs(after.answers.confidence - honest).mean() < 0.04
    assert after.metadata["recalibrated"][0]["name"] == name
    assert caltune("recalibrate", name, "--load", saved, "--apply", test, "-o", again).status == 0
    np.testing.assert_array_equal(read_answers(again).answers.confidence, after.answers.confidence)


def test_maps_of_all_options_refuse_answers(refused, tmp_path):
    cal, out = answers_file(tmp_path / "a.parquet"), tmp_path / "out.parquet"
    message = refused("recalibrate", "temperature", "--fit", cal, "--apply", cal, "-o", out)
    assert "temperature needs the probability of every option, of answers take platt, beta, isotonic" in message
    message = refused("recalibrate", "platt", "--fit", cal, "--apply", cal, "-o", out)
    assert "must not meet questions it was fitted on" in message
    assert "got an answers file" in refused("report", cal, "-o", tmp_path / "r.html")
