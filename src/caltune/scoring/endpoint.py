"""Score questions by a server's log-probabilities: several at once, kept in a cache line by line, written to a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from caltune import __version__
from caltune.errors import InputError, require
from caltune.formats import ScoreFile, write_scores
from caltune.scoring.endpoint_client import Client
from caltune.scoring.endpoint_dialects import Asking, Found, ask, prompt_of
from caltune.scoring.record import surely_wrong
from caltune.types import OptionLogits, Question

CUT = '{"key": "'  # how every line of a cache begins


def score_endpoint(
    client: Client,
    questions: Sequence[Question],
    asking: Asking,
    *,
    cache: Path | None = None,
    parallel: int = 4,
    progress: bool = False,
) -> tuple[OptionLogits, list[Found]]:
    """What the server's model believes about each question, and of each question what was found.

    `parallel` questions are under way at once. With a `cache` file each is kept as soon as it is known, and what it
    holds already is not asked again.

    Raises `InputError` without questions, for settings that are none, and where the server does not tell.
    """
    _require(questions, asking, parallel)
    known = _read_cache(cache)
    keys = [_key(client, question, asking) for question in questions]
    found = {key: known[key] for key in keys if key in known}
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in found}
    bar = tqdm(
        total=len(questions),
        initial=len(questions) - len(missing),
        desc="asking",
        unit="question",
        disable=None if progress else True,
    )  # None: where it is a terminal
    client, pool = client.for_one_run(), ThreadPoolExecutor(parallel)
    try:
        with bar, _Cache(cache) as kept:
            waiting = {pool.submit(ask, client, question, asking): key for key, question in missing.items()}
            for future in as_completed(waiting):
                key = waiting[future]
                found[key] = future.result()
                kept.add(key, missing[key].id, found[key])
                bar.update()
    except BaseException:
        client.stop()  # the interpreter ends when the pool's threads do, and a try may wait for minutes
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    ordered = [found[key] for key in keys]
    logits = np.full((len(questions), max(len(one.logits) for one in ordered)), -np.inf)
    for row, one in zip(logits, ordered, strict=True):
        row[: len(one.logits)] = one.logits
    labels = [-1 if question.answer is None else question.answer for question in questions]
    ids, groups = (tuple(getattr(question, name) for question in questions) for name in ("id", "group"))
    return OptionLogits(ids, logits, labels, groups), ordered


def endpoint_to_file(
    path: Path,
    client: Client,
    questions: Sequence[Question],
    asking: Asking,
    *,
    data: str,
    split: str | None,
    seed: int | None = None,
    extra: dict[str, Any] | None = None,
    **how: Any,
) -> tuple[ScoreFile, list[Found]]:
    """`score_endpoint`, written to `path` with its metadata: of the address the host only."""
    scores, found = score_endpoint(client, questions, asking, **how)
    metadata = {
        "model": asking.model,
        "endpoint": client.host,
        "data": data,
        "split": split,
        "answers": asking.answers,
        "reduction": asking.reduction,
        "template": asking.template,
        **({"exemplars": [shown.id for shown in asking.exemplars]} if asking.exemplars else {}),
        "prompt_example": prompt_of(questions[0], asking).text,
        "versions": {"caltune": __version__},
        "seed": seed,
        "examples": surely_wrong(scores, questions),
        **(extra or {}),
    }
    write_scores(path, scores, metadata)
    return ScoreFile(scores, metadata), found


def bounded_line(scores: OptionLogits, found: Sequence[Found]) -> str | None:
    """How many letters were not listed, and how much probability they hold at most; None where all were listed."""
    shares = [scores.probabilities()[row, list(one.bounded)].sum() for row, one in enumerate(found) if one.bounded]
    if not shares:
        return None
    letters = sum(len(one.bounded) for one in found)
    return (
        f"{letters} letters of {len(shares)} questions were not among the tokens listed; they were given the most they "
        f"can have, together up to {max(shares):.4f} of a question's probability (mean {np.mean(shares):.4f})"
    )


def _require(questions: Sequence[Question], asking: Asking, parallel: int) -> None:
    if not questions:
        raise InputError("there are no questions to score")
    require("answers", asking.answers, ("letters", "continuations"))
    require("template", asking.template, ("plain", "chat"))
    require("reduction", asking.reduction, ("sum", "mean", "min"))
    for name, value in (("top", asking.top), ("parallel", parallel)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    for question in questions:
        prompt_of(question, asking)  # before the first request


def _key(client: Client, question: Question, asking: Asking) -> str:
    """All that decides what a server answers."""
    prompt = prompt_of(question, asking)
    what = [client.base, asdict(asking), prompt.text, prompt.continuations]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _read_cache(path: Path | None) -> dict[str, Found]:
    """What is kept; a last line that was cut short is not."""
    if path is None or not path.exists():
        return {}
    found = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a cache must be a text file, got {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                found[row["key"]] = Found(tuple(map(float, row["logits"])), tuple(map(int, row["bounded"])))
                if not all(map(math.isfinite, found[row["key"]].logits)):
                    raise ValueError("logits that are not finite")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number < len(lines) or not CUT.startswith(line[: len(CUT)]):
                raise InputError(
                    f"{path}:{number}: a line of a cache needs key, logits and bounded, got {error!r}"
                ) from error
    return found


class _Cache:
    """Adds a line a question, each in one piece; does nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> _Cache:
        if self._path is None:
            return self
        try:
            old = self._path.read_bytes() if self._path.exists() else b""
            if old and not old.endswith(b"\n"):  # a line cut short: what was begun is begun anew
                with self._path.open("r+b") as file:
                    file.truncate(old.rfind(b"\n") + 1)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written, {error.strerror or error}") from error
        return self

    def add(self, key: str, name: str, found: Found) -> None:
        """Keep what was found of a question."""
        if self._path is not None:
            row = {"key": key, "id": name, "logits": found.logits, "bounded": found.bounded}
            try:
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
            except OSError as error:
                raise InputError(f"{self._path}: cannot be written, {error.strerror or error}") from error

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            with suppress(OSError):  # what could not be written has been told
                self._file.close()
