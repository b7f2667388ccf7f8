"""`caltune completion`: what a shell offers after a half-typed line."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from caltune.cli import main

# Calls the function registered for `caltune` as bash does when Tab is pressed behind the last word.
TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$(complete -p caltune | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_offers_verbs_flags_choices_training_fields_and_files(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "caltune.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "scores.parquet").touch()

    def offered(*words: str) -> list[str]:
        arguments = ["bash", "-c", TAB, "bash", str(script), "caltune", *words]
        return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    assert offered("ev") == ["evaluate"]
    assert offered("train", "te") == ["tempered"]
    assert offered("train", "rcft", "world-facts", "--calibration_w") == ["--calibration_weight"]
    assert offered("train", "sft", "world-facts", "--lora_a") == ["--lora_alpha"]
    assert offered("recalibrate", "tempe") == ["temperature"]
    assert offered("score", "world-facts", "--template", "p") == ["plain"]
    assert offered("evaluate", "sc") == ["scores.parquet"]
    assert offered("score", "world-facts", "--mod") == ["--model"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_every_verb(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in ("demo", "recalibrate", "apply-threshold", "completion"))
    assert "calibration_weight" in script


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "cmd"]) == 2
    assert "'cmd'" in capsys.readouterr().err
