"""What all verbs share: errors of one line, interruption, pipes, the terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from files import scores_file, strict_json, write_jsonl

import caltune as package
from caltune.formats import write_scores
from caltune.types import OptionLogits, Question

LYON = Question("lyon", "Capital of France?", ("Lyon", "Paris"), 1, group="geography")
ROME = Question("rome", "Capital of Italy?", ("Rome", "Milan", "Turin"), 0, group="geography")


def test_control_characters_never_reach_the_terminal(caltune, tmp_path):
    bad = "\x1b[2J\x07\x9b31m\u202e\r"
    evil = Question(f"i{bad}d", f"Who{bad}?", (f"x{bad}x", "y"), 0, group=f"g{bad}g")
    write_jsonl(tmp_path / "train.jsonl", [evil])
    write_jsonl(tmp_path / "test.jsonl", [evil])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"id": bad, "question": f"?{bad}", "choices": [f"x{bad}"] * 2, "answer": 0}) + "\n")
    good = write_jsonl(tmp_path / "good.jsonl", [LYON])
    good.write_text(good.read_text() + broken.read_text())
    named = scores_file(tmp_path / f"{bad}.parquet", 20)
    for arguments in (
        ("data", tmp_path, "--split", "test"),
        ("data", tmp_path / "test.jsonl", "--answers", "letters"),
        ("data", broken),
        ("data", good, "--skip-bad"),
        ("data", f"no{bad}such"),
        ("evaluate", named),
        ("compare", named, named),
        ("evaluate", tmp_path / f"{bad}.json"),
        ("train", bad),
        (f"--{bad}",),
    ):
        result = caltune(*arguments)
        text = result.out + result.err
        assert text
        assert not [character for character in text if not character.isprintable() and character != "\n"], arguments


def test_an_interrupted_verb_leaves_what_was_there(caltune, monkeypatch, tmp_path):
    a = scores_file(tmp_path / "a.parquet", 40)
    b = scores_file(tmp_path / "b.parquet", 40, first=40)
    kept = tmp_path / "kept"
    kept.write_text("earlier")
    before = sorted(tmp_path.iterdir())

    def interrupt(*_):
        raise KeyboardInterrupt

    for arguments in (
        ("evaluate", a, "--json", kept),
        ("compare", a, a, "--json", kept),
        ("recalibrate", "temperature", "--fit", a, "--apply", b, "-o", kept),
        ("report", a, "-o", kept),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupt)
            result = caltune(*arguments)
        assert result == (130, "", "caltune: interrupted\n") or arguments[0] == "recalibrate"
        assert result.status == 130
        assert sorted(tmp_path.iterdir()) == before
        assert kept.read_text() == "earlier"


# Usage and errors


def test_usage_errors_are_one_line(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = scores_file(tmp_path / "a.parquet", 40)
    other = scores_file(tmp_path / "other.parquet", 40, first=20)
    unlabelled = tmp_path / "unlabelled.parquet"
    write_scores(unlabelled, OptionLogits(("p",), [[2.0, 0.0]], [-1]), {})
    data = write_jsonl(tmp_path / "data.jsonl", [LYON, ROME])
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.txt").write_text("x")
    for arguments, wanted in (
        ((), "required: VERB"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("data",), "required: source"),
        (("data", "missing.jsonl"), "there is no such file or name"),
        (("data", "arc-easi"), "did you mean 'arc-easy'"),
        (("data", "data.txt"), "data.txt: the name must end in"),
        (("data", data, "--split", "tset"), "got 'tset'"),
        (("data", data, "--limit", "0"), "--limit must be at least 1, got 0"),
        (("data", data, "--limit", "x"), "invalid int value: 'x'"),
        (("data", data, "--field", "question"), "--field must look like question=prompt, got 'question'"),
        (("data", data, "--field", "colour=red"), "got 'colour'"),
        (("data", data, "--model", "folder"), "model 'folder': a model folder needs a config.json"),
        (("evaluate",), "required: scores"),
        (("evaluate", "missing.parquet"), "missing.parquet: there is no such file"),
        (("evaluate", data), f"{data}: a scores file must be Parquet"),
        (("evaluate", a, unlabelled), f"{unlabelled}: 1 questions have no label"),
        (("evaluate", a, "--json", "no/m.json"), "no/m.json: the folder must exist, got 'no'"),
        (("evaluate", a, "--json", "folder"), "folder: must be a file, got a folder"),
        (("compare", a), "required: b"),
        (("compare", a, other), f"{a}, {other}: a comparison needs the same questions on both sides"),
        (("compare", a, a, "--json", "no/m.json"), "the folder must exist"),
        (("recalibrate", "nonsense", "--fit", a, "--apply", a, "-o", "o"), "invalid choice: 'nonsense'"),
        (("recalibrate", "temperature", "--fit", a, "-o", "o"), "required: --apply"),
        (("recalibrate", "platt", "--apply", a, "-o", "o"), "one of the arguments --fit --load is required"),
        (("recalibrate", "temperature", "--fit", a, "--apply", a, "-o", "o"), "must not meet questions it was fitted"),
        (("recalibrate", "temperature", "--fit", a, "--apply", other, "-o", "o"), "got 20 of them, first id 'q20'"),
        (("recalibrate", "temperature", "--fit", "no", "--apply", a, "-o", "o"), "no: there is no such file"),
        (("recalibrate", "temperature", "--fit", unlabelled, "--apply", a, "-o", "o"), f"{unlabelled}: 1 questions"),
        (("recalibrate", "temperature", "--fit", a, "--apply", other, "-o", "folder"), "must be a file, got a folder"),
        (("report", a, "-o", "folder"), "folder: must be a file, got a folder"),
        (("report", a, "-o", "no/r.html"), "the folder must exist"),
        (("report", "-o", "r.html"), "required: scores"),
        (("report", unlabelled, "-o", "r.html"), "unlabelled: 1 questions have no label"),
        (("score", data, "--model", "m"), "required: -o/--output"),
        (("score", data, "-o", "o"), "required: --model"),
        (("demo", "--slow"), "unrecognized arguments: --slow"),
        (("train",), "train needs a METHOD first"),
        (
            ("train", "ppo", data),
            "label-smoothing, margin, entropy, focal, brier, dece, mixup, tempered, got 'ppo'",
        ),
        (("train", "cft", data), "cft is sft on in-domain questions"),
    ):
        assert wanted in refused(*arguments), arguments
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "r.html").exists()


def test_an_unwritable_folder_is_told_before_anything_is_read(refused, monkeypatch, tmp_path):
    def fail(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    out = tmp_path / "out"
    for arguments in (
        ("evaluate", "missing", "--json", out),
        ("compare", "missing", "missing", "--json", out),
        ("recalibrate", "temperature", "--fit", "missing", "--apply", "missing", "-o", out),
        ("report", "missing", "-o", out),
        ("score", "missing", "--model", "missing", "-o", out),
    ):
        assert f"{out}: the folder must be writable, got Read-only file system" in refused(*arguments)


def test_debug_shows_the_traceback_above_the_line(caltune):
    result = caltune("--debug", "evaluate", "missing.parquet")
    assert result.status == 2
    assert result.err.startswith("Traceback")
    assert result.err.splitlines()[-1] == "caltune: missing.parquet: there is no such file"


def test_an_unforeseen_error_is_one_line_unless_debugging(caltune, monkeypatch, tmp_path):
    def fail(_):
        raise RuntimeError("a\nb")

    monkeypatch.setattr("caltune.formats.read_scores", fail)
    result = caltune("evaluate", "a.parquet")
    assert result == (1, "", "caltune: RuntimeError: a b (--debug tells more)\n")
    with pytest.raises(RuntimeError):
        caltune("evaluate", "a.parquet", "--debug")


def test_help_and_version(capsys):
    from caltune.cli import main

    for arguments, wanted in ((["--version"], f"caltune {package.__version__}"), (["train", "--help"], "METHOD")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert wanted in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for verb in ("demo", "data", "score", "knowledge", "train", "evaluate", "recalibrate", "compare", "report"):
        assert re.search(rf"^    {verb}\s", out, re.MULTILINE), verb


# The real process


def python(*arguments: object, **kwargs):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **kwargs)


def test_python_m_caltune_exits_with_the_status(tmp_path):
    done = python("-m", "caltune", "evaluate", tmp_path / "missing.parquet", stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"caltune: {tmp_path}/missing.parquet: there is no such file\n"


def test_a_reader_who_leaves_is_no_error_and_json_is_written(tmp_path):
    a = scores_file(tmp_path / "a.parquet", 40)
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # so that what is printed is written at the end
    done = python("-m", "caltune", "evaluate", a, "--json", tmp_path / "m.json", stdout=writing, env=environment)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0
    assert strict_json(tmp_path / "m.json")


def test_a_terminal_without_minus_sign_still_gets_the_result(tmp_path):
    a = scores_file(tmp_path / "a.parquet", 40)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    done = python("-m", "caltune", "compare", a, a, stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0
    assert "b \\u2212 a" in done.stdout
