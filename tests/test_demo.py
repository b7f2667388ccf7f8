"""`caltune demo`, on the tiny model; with `-m model` on the real one."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from caltune import demo, tempering
from caltune.cli import main
from caltune.errors import InputError
from caltune.formats import read_scores

ENTRIES = ["sft", "tempered", "sft + temperature", "before"]


def page_of(out: str) -> Path:
    """The file that the last printed line is the address of."""
    address = urlparse(out.splitlines()[-1])
    assert address.scheme == "file"
    return Path(unquote(address.path))


def entries_of(page: Path) -> list[str]:
    """The models' names in the order in which the page's legend of coverage curves or its sections show them."""
    text = page.read_text(encoding="utf-8")
    headings = [re.sub("<[^>]*>", "", heading).strip() for heading in re.findall(r"<h\d[^>]*>(.*?)</h\d>", text, re.S)]
    return list(dict.fromkeys(name for name in headings if name in ENTRIES))


@pytest.fixture
def tiny_demo(monkeypatch, tiny_folder, questions_file):
    monkeypatch.setattr(demo, "MODEL", str(tiny_folder))
    monkeypatch.setattr(demo, "SOURCE", str(questions_file))
    monkeypatch.setattr(demo, "QUICK_SIZES", {"train": 32, "calibration": 10, "test": 9})


def test_the_last_line_is_the_address_of_a_page_with_all_four(caltune, tiny_demo, monkeypatch, tmp_path):
    fitted = []
    fit = demo.fit_temperature

    def sharpened(scores):
        # A tiny model of random weights is no better than chance, and then there is no best temperature.
        right = scores.labels[:, None] == range(scores.logits.shape[1])
        fitted.append(set(scores.ids))
        every_other = np.arange(len(scores))[:, None] % 2 == 0
        return fit(type(scores)(scores.ids, scores.logits + 9 * (right & every_other), scores.labels))

    for where in (demo, tempering):
        monkeypatch.setattr(where, "fit_temperature", sharpened)
    output = tmp_path / "a folder" / "demo"
    (output / "sft").mkdir(parents=True)
    # Of an earlier run: all of it is overwritten.
    for name in ("report.html", "before-test.parquet", "sft/adapter_model.safetensors", "sft/trainer_state.json"):
        (output / name).write_text("earlier")
    result = caltune("demo", "--quick", "--output", output)
    assert result.status == 0, result.err
    page = page_of(result.out)
    assert page == output / "report.html"
    assert entries_of(page) == ENTRIES

    files = {path.stem: read_scores(path) for path in output.glob("*.parquet")}
    assert sorted(files) == ["before-test", "sft-calibration", "sft-test", "tempered-test"]
    assert {path.name for path in output.iterdir()} == {
        *("report.html", "sft", "tempered"),
        *(f"{name}.parquet" for name in files),
    }
    asked = {name: set(file.scores.ids) for name, file in files.items()}
    assert asked["before-test"] == asked["sft-test"] == asked["tempered-test"]
    assert len(fitted) == 2  # after plain training, and before the tempered one, on its training questions by number
    assert fitted[0] == asked["sft-calibration"]
    assert fitted[1] == {str(number) for number in range(32)}
    assert files["tempered-test"].metadata["temperature"] > 0
    assert not asked["sft-calibration"] & asked["sft-test"]
    assert [len(asked[name]) for name in ("sft-test", "sft-calibration")] == [9, 10]
    assert (files["before-test"].scores.logits != files["sft-test"].scores.logits).any()
    assert files["tempered-test"].metadata["training"]
    assert files["sft-test"].metadata["seed"] == demo.SEED
    # The shares that are printed are those in the files.
    decided = files["sft-test"].scores.decide()
    told = f"sft: on 9 test questions it is right {decided.correct.mean():.1%} of the time"
    assert told in result.out

    # The adapter that is left gives the scores that were reported.
    again = tmp_path / "again.parquet"
    flags = ("--split", "test", "--template", "plain", "--model", output / "sft", "-o", again)
    assert caltune("score", demo.SOURCE, *flags).status == 0
    scores = read_scores(again).scores
    order = [scores.ids.index(name) for name in files["sft-test"].scores.ids]
    assert scores.logits[order] == pytest.approx(files["sft-test"].scores.logits, abs=1e-4)


def test_output_that_is_a_file_is_refused_before_anything_else(monkeypatch, refused, tmp_path):
    def fail(*_, **__):
        raise AssertionError("questions were read")

    monkeypatch.setattr(demo, "load_questions", fail)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="must be a folder, got a file"):
        demo.run_demo(tmp_path / "file")
    assert "must lie in a folder, got the file" in refused("demo", "--output", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.model
@pytest.mark.filterwarnings("default")
def test_the_real_demo(capsys, tmp_path):
    assert main(["demo", "--quick", "--output", str(tmp_path)]) == 0
    page = page_of(capsys.readouterr().out)
    assert entries_of(page) == ENTRIES
    before, after = (read_scores(tmp_path / f"{name}-test.parquet").scores for name in ("before", "sft"))
    assert before.ids == after.ids
    assert len(before) == demo.QUICK_SIZES["test"]
    # Guessing among the options is right 25 % of the time; the model knows some of the answers.
    assert before.decide().correct.mean() > 0.35
