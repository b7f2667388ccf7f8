"""What several test files share: the command line in this process, a tiny model's folder, questions in a file."""

from __future__ import annotations

import gc
import importlib.metadata
import os

# Training a tokenizer on several threads has been seen to hang; the tiny ones need no threads.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from files import write_jsonl

from caltune.cli import main

# Asked at each step of a training for what is installed, which it reads and parses anew.
importlib.metadata.metadata = cache(importlib.metadata.metadata)


def pytest_collection() -> None:
    """What is loaded while tests are collected stays; to look through it again and again would take seconds."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_runtest_setup() -> None:
    """Transformers collects garbage often, and most of that time goes into modules that were loaded once."""
    gc.freeze()


class Result(NamedTuple):
    """Exit status, standard output and standard error of one command."""

    status: int
    out: str
    err: str


@pytest.fixture
def caltune(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`caltune(verb, argument, ...)` runs the command line and returns what it gave."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def refused(caltune: Callable[..., Result]) -> Callable[..., str]:
    """Like `caltune` for a command that must fail with status 2, no output and one line on stderr: that line."""

    def run(*arguments: object) -> str:
        result = caltune(*arguments)
        assert result.status == 2, result
        assert result.out == ""
        assert result.err.startswith("caltune: ")
        assert result.err.count("\n") == 1
        assert result.err.endswith("\n")
        return result.err

    return run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model and its tokenizer, as `save_pretrained` writes them."""
    from tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty questions in one file; by their ids 41 are for training, 10 for calibration, 9 for the test."""
    from tiny import tiny_questions

    return write_jsonl(tmp_path_factory.mktemp("questions") / "capitals.jsonl", tiny_questions(60))
