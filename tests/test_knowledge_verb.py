"""`caltune knowledge`: what it writes, prints and takes exemplars from; what it writes trains CogCalib."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from files import write_jsonl
from tiny import tiny_questions

from caltune.data import hash_split, load_questions
from caltune.formats import read_knowledge, write_knowledge
from caltune.types import Question

QUICK = ("--exemplars", 1, "--sets", 2)
FORMATS = Path(__file__).parents[1] / "docs" / "formats.md"


@pytest.fixture(scope="module")
def written(tmp_path_factory, questions_file, tiny_folder):
    """The knowledge file of the calibration split, and what was printed."""
    import contextlib
    import io

    from caltune.cli import main

    path = tmp_path_factory.mktemp("knowledge") / "k.parquet"
    arguments = ["knowledge", questions_file, "--split", "calibration", "--model", tiny_folder, *QUICK, "-o", path]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        assert main([str(argument) for argument in arguments]) == 0
    return path, out.getvalue()


def test_what_is_printed_is_what_is_written(written, questions_file, tiny_folder):
    path, out = written
    found = read_knowledge(path)
    questions = load_questions(questions_file, "calibration")
    assert found.knowledge.ids == tuple(question.id for question in questions)
    lines = dict(re.fullmatch(r"(.*?)  +(\d+)  +.*%", line).groups() for line in out.splitlines()[:-1])
    assert {name: int(count) for name, count in lines.items()} == {
        **found.knowledge.counts(),
        "known (the first two)": found.knowledge.known.sum(),
    }
    assert sum(found.knowledge.counts().values()) == 10
    assert out.splitlines()[-1] == str(path)
    assert found.metadata["model"] == str(tiny_folder)
    assert (found.metadata["exemplars"], found.metadata["sets"], found.metadata["samples"]) == (1, 2, 16)
    assert found.metadata["prompt_example"].count("What is the capital of") == 2


def test_the_page_names_every_column_and_key(written):
    import pyarrow.parquet as pq

    page = FORMATS.read_text(encoding="utf-8")
    (section,) = (part for part in page.split("\n## ") if part.startswith("The knowledge file"))
    named = {word for line in section.splitlines() if line.startswith("| `") for word in re.findall(r"`(\w+)`", line)}
    table = pq.read_table(written[0])
    assert named - {"caltune"} == {*table.column_names, *json.loads(table.schema.metadata[b"caltune"])}


@pytest.fixture
def pools(monkeypatch):
    """The ids that exemplars were drawn from, one set of them a question and set."""
    from caltune.scoring import known

    seen, take = [], known.exemplar_set

    def spy(question, ordered, count):
        seen.append({exemplar.id for exemplar in ordered})
        return take(question, ordered, count)

    monkeypatch.setattr(known, "exemplar_set", spy)
    return seen


def test_exemplars_come_from_train_and_never_from_test(caltune, pools, tiny_folder, tmp_path):
    questions = tiny_questions(12)
    train, test = questions[:5], questions[6:8]
    leak = Question("leak", test[0].text, test[0].options[::-1], 0)  # a test question under another id
    blank = Question("blank", "Capital?", ("x", "y"), None)
    write_jsonl(tmp_path / "train.jsonl", [*train, leak, blank])
    write_jsonl(tmp_path / "validation.jsonl", questions[9:])
    write_jsonl(tmp_path / "test.jsonl", test)
    flags = ("--model", tiny_folder, *QUICK, "-o", tmp_path / "k.parquet")
    assert caltune("knowledge", tmp_path, "--split", "test", *flags).status == 0
    assert pools == [{question.id for question in train}] * len(pools)


def test_exemplars_come_from_another_split_where_it_is_named(caltune, pools, tiny_folder, tmp_path):
    questions = tiny_questions(12)
    write_jsonl(tmp_path / "dev.jsonl", questions[:5])
    write_jsonl(tmp_path / "test.jsonl", questions[6:])
    flags = ("--split", "test", "--model", tiny_folder, *QUICK, "-o", tmp_path / "k.parquet")
    assert caltune("knowledge", tmp_path, *flags, "--exemplars-split", "dev").status == 0
    assert pools == [{question.id for question in questions[:5]}] * len(pools)
    assert pools
    assert read_knowledge(tmp_path / "k.parquet").metadata["exemplars_split"] == "dev"


def test_a_single_file_gives_exemplars_from_its_own_training_part(caltune, pools, tiny_folder, tmp_path):
    path = write_jsonl(tmp_path / "all.jsonl", tiny_questions(12))
    flags = ("--limit", 2, "--model", tiny_folder, *QUICK, "-o", tmp_path / "k.parquet")
    assert caltune("knowledge", path, *flags).status == 0
    expected = {question.id for question in tiny_questions(12) if hash_split(question.id) == "train"}
    assert pools == [expected] * len(pools)
    assert pools
    pools.clear()
    assert caltune("knowledge", path, *flags, "--exemplars", 0).status == 0
    assert pools == [set()] * len(pools)


def test_what_is_written_trains(caltune, written, questions_file, tiny_folder, tmp_path):
    flags = ("--max_steps", 3, "--save_strategy", "no", "--eval_strategy", "no", "--logging_steps", 1)
    train = ("train", "cogcalib", questions_file, "--model", tiny_folder, "--output-dir", tmp_path / "d", *flags)
    result = caltune(*train, "--calibration_knowledge", written[0])
    assert result.status == 0, result.err
    assert "was written with" not in result.err
    share = read_knowledge(written[0]).knowledge.known.mean()
    assert re.search(rf"'detector_true_share': '?{share:.4g}", result.out)
    result = caltune(*train, "--knowledge", written[0])
    assert result.status == 2
    assert re.search(r"k\.parquet: 41 of 41 questions have no category, the first is id 'q", result.err)


def test_what_was_found_of_another_model_is_told(caltune, written, questions_file, tiny_folder, tmp_path):
    other = tmp_path / "other.parquet"
    found = read_knowledge(written[0])
    renamed = {
        "model": f"elsewhere/{tiny_folder.name}-2",
        "answers": "letters",
        "data": f"../elsewhere/{questions_file.name}",
    }
    write_knowledge(other, found.knowledge, {**found.metadata, **renamed})
    flags = ("--model", tiny_folder, "--output-dir", tmp_path / "d", "--max_steps", 1, "--save_strategy", "no")
    result = caltune("train", "cogcalib", questions_file, *flags, "--calibration_knowledge", other)
    assert result.status == 0, result.err
    line = f"{other}: was written with model {renamed['model']}, and this is {tiny_folder}: it may not hold here"
    assert line in result.err
    assert f"{other}: was written with answers letters, and this is continuations" in result.err
    assert "was written with data" not in result.err


def test_usage(refused, questions_file, tiny_folder, tmp_path):
    output = ("--model", tiny_folder, "-o", tmp_path / "k.parquet")
    write_jsonl(tmp_path / "dev.jsonl", tiny_questions(3))
    (tmp_path / "folder").mkdir()
    (tmp_path / "dev.jsonl").rename(tmp_path / "folder" / "dev.jsonl")
    for arguments, wanted in (
        ((questions_file, "--model", "m"), "required: -o/--output"),
        ((questions_file, "-o", "k"), "required: --model"),
        ((questions_file, "--model", "m", "-o", tmp_path / "no" / "k.parquet"), "the folder must exist"),
        ((questions_file, "--limit", 2, "--sets", 0, *output), "sets must be at least 1, got 0"),
        ((questions_file, "--limit", 2, "--exemplars", -1, *output), "exemplars must be at least 0, got -1"),
        ((questions_file, "--limit", 2, "--exemplars", 60, *output), "exemplars must be 60 other questions, found 4"),
        (
            (tmp_path / "folder", "--split", "dev", *output),
            "exemplars are taken from the train split (--exemplars-split takes another, --exemplars 0 none)",
        ),
        (
            (questions_file, "--exemplars-split", "test", *output),
            "--exemplars-split must be a split whose answers may be shown, got 'test'",
        ),
    ):
        assert wanted in refused("knowledge", *arguments), arguments
    assert not (tmp_path / "k.parquet").exists()


def test_settings_are_refused_before_the_model_is_read(refused, questions_file, tmp_path):
    output = ("--model", tmp_path / "no-model", "-o", tmp_path / "k.parquet")
    for flags, wanted in (
        (("--seed", -1), "seed must be at least 0, got -1"),
        (("--sets", 0), "sets must be at least 1, got 0"),
        (("--samples", 0), "samples must be at least 1, got 0"),
        (("--batch-tokens", 0), "batch_tokens must be at least 1, got 0"),
        (("--exemplars", 60), "exemplars must be 60 other questions, found 4"),
    ):
        assert wanted in refused("knowledge", questions_file, *flags, *output), flags
