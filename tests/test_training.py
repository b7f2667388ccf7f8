"""`caltune train`: from flags and YAML to a folder that can be scored, resumed and trained on."""

from __future__ import annotations

import shlex
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from files import write_jsonl
from tiny import tiny_questions

from caltune.cli import _parser
from caltune.data import find_overlap, hash_split, load_questions
from caltune.errors import InputError
from caltune.training import TrainArguments, load_splits, parse, save, score_command
from caltune.types import Question

PROG = "caltune train rcft"
NEEDED = ("data.jsonl", "--model", "m", "--output-dir", "d")


# Flags and YAML


def test_flags_may_be_written_with_dashes_or_underscores(tmp_path):
    settings, args, source, fields = parse(
        "RCFT",
        [
            *(
                "data.jsonl",
                "--model=m",
                "--output_dir",
                str(tmp_path),
                "--field",
                "question=ask",
                "--field=answer=a=b",
            ),
            *("--bin-accuracy-source", "held-out", "--bin_weights", "count", "--calibration-weight", "0.5"),
            *("--no-gradient-checkpointing", "--max_steps", "3", "--lora-r", "8", "--skip-bad", "--limit", "7"),
        ],
        prog=PROG,
    )
    assert (source, fields) == ("data.jsonl", {"question": "ask", "answer": "a=b"})
    assert settings == TrainArguments(model="m", limit=7, skip_bad=True, lora_r=8)
    assert (args.bin_accuracy_source, args.bin_weights, args.calibration_weight) == ("held-out", "count", 0.5)
    assert (args.output_dir, args.max_steps, args.gradient_checkpointing) == (str(tmp_path), 3, False)
    assert parse("RCFT", [*NEEDED, "--no_gradient_checkpointing"], prog=PROG)[1].gradient_checkpointing is False


def test_ours_are_the_defaults_where_trl_has_others():
    settings, args, _, fields = parse("RCFT", NEEDED, prog=PROG)
    assert settings == TrainArguments(model="m")
    assert fields == {}
    assert (args.learning_rate, args.per_device_train_batch_size, args.report_to) == (3e-4, 16, [])
    assert args.eval_strategy == "epoch"
    assert args.bins == 10


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_a_flag_wins_over_yaml_and_yaml_over_the_defaults(form, tmp_path):
    config = tmp_path / "f.yaml"
    config.write_text(
        f"model: m\noutput_dir: {tmp_path}\nskip_bad: true\nlora_r: 4\n"
        "learning_rate: 1e-3\nbins: 7\nbin_weights: count\n"
    )
    flags = form.format(config).split()
    settings, args, source, _ = parse("RCFT", ["data.jsonl", "--bins", "5", *flags], prog=PROG)
    assert source == "data.jsonl"
    assert settings == TrainArguments(model="m", lora_r=4, skip_bad=True)
    assert (args.output_dir, args.learning_rate, args.bins, args.bin_weights) == (str(tmp_path), 1e-3, 5, "count")


def test_mistakes_are_told_in_one_line_before_anything_is_loaded(refused, monkeypatch, questions_file, tmp_path):
    def fail(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("caltune.training.load_model", fail)
    monkeypatch.chdir(tmp_path)
    texts = {
        "unknown.yaml": "colour: red\n",
        "broken.yaml": "a: [1,\n",
        "list.yaml": "- 1\n",
        "tagged.yaml": "bins: !!python/object/apply:os.getcwd []\n",
        "wrong.yaml": "bins: [1, 2]\n",
        "empty.yaml": "",
        "plain.yaml": "model: m\n",
        "binary.yaml": "\x00",
        "a-file": "",
    }
    for name, text in texts.items():
        Path(name).write_text(text)
    data = str(questions_file)
    usual = (data, "--model", "m", "--output-dir", "d")
    unlabelled = write_jsonl(tmp_path / "unlabelled.jsonl", [Question("a", "Capital?", ("Rome", "Oslo"), None)])
    for arguments, wanted in (
        ((), "caltune: train rcft needs SOURCE, directly behind the method, got none"),
        (("--model", "m", "--output-dir", "d"), "needs SOURCE"),
        ((data, "--output-dir", "d"), "needs --model, got none"),
        ((data, "--model", "m"), "needs --output-dir, got none"),
        ((data, "--config", "plain.yaml"), "needs --output-dir, got none"),
        ((*usual, "more"), "more"),
        ((*usual, "--colour", "red"), "--colour"),
        ((*usual, "--learning_rate", "abc"), "invalid float value: 'abc'"),
        ((*usual, "--learning_rate"), "expected one argument"),
        ((*usual, "--bins", "0"), "bins must be at least 1, got 0"),
        ((*usual, "--bin-weights", "nonsense"), "bin_weights must be one of equal, count, got 'nonsense'"),
        ((*usual, "--calibration_weight", "-1"), "calibration_weight must be at least 0"),
        ((*usual, "--answers", "words"), "answers must be one of continuations, letters, got 'words'"),
        ((*usual, "--eval_strategy", "sometimes"), "sometimes"),
        ((*usual, "--limit", "0"), "--limit must be at least 1, got 0"),
        ((*usual, "--lora_r", "-1"), "--lora_r must be at least 0, got -1"),
        ((*usual, "--lora_alpha", "0"), "--lora_alpha must be at least 1, got 0"),
        ((*usual, "--lora_alpha", "-3"), "--lora_alpha must be at least 1, got -3"),
        ((*usual, "--lora_dropout", "1"), "--lora_dropout must be at least 0 and below 1, got 1.0"),
        ((*usual, "--lora_dropout", "-0.1"), "--lora_dropout must be at least 0 and below 1, got -0.1"),
        ((*usual, "--lora_dropout", "nan"), "--lora_dropout must be at least 0 and below 1, got nan"),
        ((*usual, "--num_train_epochs", "0"), "--num_train_epochs must be above 0 without --max_steps, got 0.0"),
        ((*usual, "--num_train_epochs", "-1"), "num_train_epochs must be at least 0 and finite, got -1.0"),
        ((*usual, "--max_steps", "0"), "--max_steps must be at least 1, or -1 for whole epochs, got 0"),
        ((*usual, "--gradient_accumulation_steps", "0"), "gradient_accumulation_steps must be at least 1, got 0"),
        ((*usual, "--eval_do_concat_batches", "false"), "eval_do_concat_batches must be one of True, got False"),
        ((*usual, "--field", "question"), "--field must look like question=prompt, got 'question'"),
        ((*usual, "--field"), "--field needs a value, got none"),
        ((*usual, "--config"), "--config needs a value, got none"),
        ((*usual, "--config", "missing.yaml"), "missing.yaml"),
        ((*usual, "--config", "unknown.yaml"), "colour"),
        ((*usual, "--config", "broken.yaml"), "broken.yaml"),
        ((*usual, "--config", "list.yaml"), "list.yaml must contain a YAML mapping"),
        ((*usual, "--config", "empty.yaml"), "empty.yaml must contain a YAML mapping"),
        ((*usual, "--config", "tagged.yaml"), "python/object/apply:os.getcwd"),
        ((*usual, "--config", "wrong.yaml"), "caltune: train rcft: bins must be a whole number, got [1, 2]"),
        ((*usual, "--config", "binary.yaml"), "special characters are not allowed"),
        ((data, "--model", "m", "--output-dir", "a-file"), "a-file: must be a folder, got a file"),
        ((data, "--model", "m", "--output-dir", "a-file/d"), "a-file/d: must lie in a folder, got the file"),
        ((*usual, "--resume_from_checkpoint", "d"), "must name a folder with trainer_state.json, or true, got 'd'"),
        ((*usual, "--resume_from_checkpoint", "true"), "d must hold a checkpoint, found none"),
        (("missing.jsonl", *usual[1:]), "there is no such file or name"),
        ((unlabelled, *usual[1:]), "unlabelled.jsonl (train): at least one question must be left"),
    ):
        assert wanted in refused("train", "rcft", *arguments), arguments
    usual = (data, "--model", "m", "--output-dir", "d")
    assert "penalty must be one of label-smoothing" in refused("train", "cogcalib", *usual, "--penalty", "nonsense")
    assert "[0, 1], got 2.0" in refused("train", "cogcalib", *usual, "--smoothing", "2")
    assert "--bins" in refused("train", "sft", *usual, "--bins", "5")
    assert not Path("d").exists()


def test_help_lists_every_field_of_the_method(capsys):
    from caltune.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["train", "cogcalib", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--penalty ", "--style_share", "--style-share", "--lora_r", "--learning_rate", "--output-dir"):
        assert flag in out
    assert "--bins" not in out


@pytest.mark.parametrize(
    ("method", "flags", "shared"),
    [
        ("SFT", "", ""),
        ("Mixup", "", "--answers letters"),  # its default is not that of scoring
        (
            "SFT",
            "--reduction mean --template=plain --skip_bad --field question=ask --field id= --learning_rate 1",
            "--reduction mean --template plain --field question=ask --field id= --skip-bad",
        ),
    ],
)
def test_the_next_command_scores_as_the_model_was_trained(method, flags, shared):
    settings, args, source, fields = parse(method, ["my data.jsonl", *NEEDED[1:], *flags.split()], prog=PROG)
    words = shlex.split(score_command(source, Path("my d"), settings, args, fields))
    given = ["--split", "test", "--model", "my d", *shared.split(), "-o", "scores.parquet"]
    assert words == ["caltune", "score", "my data.jsonl", *given]
    parsed = _parser().parse_args(words[1:])  # and it is one that can be typed
    assert parsed.field == [word for word in shared.split() if "=" in word]


# Questions


def test_questions_that_stand_in_a_later_split_are_left_out_and_told(capsys, tmp_path):
    first, second, third, fourth, fifth = tiny_questions(5)
    renamed = Question("renamed", fifth.text.upper(), fifth.options[::-1], len(fifth.options) - 1 - fifth.answer)
    write_jsonl(tmp_path / "train.jsonl", [first, second, third, fifth])
    write_jsonl(tmp_path / "validation.jsonl", [third, fourth])
    write_jsonl(tmp_path / "test.jsonl", [fourth, renamed])
    train, calibration = load_splits(str(tmp_path), TrainArguments(), {})
    assert [q.id for q in train] == [first.id, second.id]  # third is for calibration, fifth for the test
    assert [q.id for q in calibration] == [third.id]
    assert not find_overlap({"t": train, "c": calibration, "x": load_questions(tmp_path, "test")})
    assert capsys.readouterr().err.splitlines() == [
        "caltune: 2 training questions stand in another split too, by id or by text and options, and are left out",
        "caltune: 1 calibration questions stand in another split too, by id or by text and options, and are left out",
    ]
    assert [q.id for q in load_splits(str(tmp_path), TrainArguments(limit=1), {})[0]] == [first.id]


def test_a_source_without_a_test_split_is_enough(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", tiny_questions(3))
    write_jsonl(tmp_path / "validation.jsonl", tiny_questions(6)[3:])
    train, calibration = load_splits(str(tmp_path), TrainArguments(), {})
    assert (len(train), len(calibration)) == (3, 3)
    assert capsys.readouterr().err == ""


def test_a_test_split_that_cannot_be_read_is_told(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", tiny_questions(3))
    write_jsonl(tmp_path / "validation.jsonl", tiny_questions(6)[3:])
    (tmp_path / "test.jsonl").write_text('{"ask": "Capital of Peru?", "choices": ["Lima", "Oslo"], "key": "A"}\n')
    train, _ = load_splits(str(tmp_path), TrainArguments(), {})
    assert len(train) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"caltune: the test split cannot be read, so what stands there too is not known: {tmp_path}")
    assert "test.jsonl:1: " in line


def test_a_small_file_without_test_questions_and_with_a_bad_row_says_nothing_of_a_test_split(tmp_path, capsys):
    questions = [q for q in tiny_questions(20) if hash_split(q.id) != "test"]
    data = write_jsonl(tmp_path / "data.jsonl", questions)
    data.write_text("broken\n" + data.read_text())
    load_splits(str(data), TrainArguments(skip_bad=True), {})
    assert "the test split cannot be read" not in capsys.readouterr().err


def test_training_on_the_test_questions_only_is_refused(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", tiny_questions(3))
    write_jsonl(tmp_path / "validation.jsonl", tiny_questions(6)[3:])
    with pytest.raises(InputError, match="training: at least one question must stand in no other split, got none"):
        load_splits(str(tmp_path), TrainArguments(), {})


def test_only_the_first_of_several_processes_moves_what_is_saved(tmp_path):
    (tmp_path / "adapter_config.json").write_text("the first process's")
    for first in (False, True):
        trainer = MagicMock(**{"is_world_process_zero.return_value": first})
        trainer.save_model.side_effect = lambda folder: Path(folder, "config.json").write_text("{}")
        save(trainer, tmp_path)
        assert trainer.save_model.call_count == 1  # sharded weights are gathered from all
        assert [path.name for path in tmp_path.iterdir()] == ["config.json" if first else "adapter_config.json"]


def test_a_bad_row_is_listed_once_though_two_splits_are_read_from_the_file(capsys, refused, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", tiny_questions(20))
    data.write_text("broken\n" + data.read_text())
    train, calibration = load_splits(str(data), TrainArguments(skip_bad=True), {})
    assert len(train) + len(calibration) < 20
    err = capsys.readouterr().err
    assert err.startswith(f"caltune: skipped 1 bad row:\n  {data}:1: ")
    assert err.count("\n") == 2
    assert f"{data}:1: " in refused("train", "sft", data, "--model", "m", "--output-dir", tmp_path / "d")
