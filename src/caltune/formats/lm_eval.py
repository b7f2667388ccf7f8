"""The harness's samples (`lm_eval --log_samples`): multiple choice as scores, generation by exact match as answers.

A row is a document under one filter. `resps` holds, a request, its repeats: for multiple choice [log-likelihood,
greedy?] of each option, for generation the texts; all of it as strings. `target` is the right option's index or text as
the task wrote it, also a string, and a task's own metrics stand beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.formats.foreign_table import number, read_files
from caltune.formats.predictions import Imported
from caltune.types import OptionLogits, Predictions

_FILE = re.compile(r"samples_(?P<task>.+?)(_(?P<date>\d{4}-\d{2}-\d{2}T[\d:.\-]+))?\.jsonl(\.gz)?")
_SEVERAL = re.compile(r"\[\s*\d+(\s*,\s*\d+)+\s*\]")
_EXAMPLES = 50
Row = Mapping[str, Any]
Rows = Sequence[tuple[str, Row]]


def read_lm_eval(
    paths: Sequence[Path], fields: Mapping[str, str], *, filter_name: str | None = None, extract: str | None = None
) -> Imported:
    """Samples files, one a task, as scores (multiple choice) or answers (generation); the task is the group.

    The logits are the log-likelihoods that the harness calls `acc` and `brier_score` by, not those of `acc_norm`.
    Documents whose right option is not among theirs (the harness says −100, and counts them wrong) are left out and
    told. A generated answer is right by `exact_match`, and its confidence the share of the repeats that say the same,
    which `extract` finds in a text (its last match, or that of its first group). `fields` maps id, group, confidence
    and correct to what a row holds, such as doc.subject; `filter_name` chooses where results differ by filter.

    Raises `InputError` naming the file for rows that are no samples, tasks of both kinds, several right options, a
    document twice, or a right option or confidence that cannot be told.
    """
    scores: list[tuple[str, Rows]] = []
    texts: list[tuple[str, Rows]] = []
    for path in paths:
        task, rows = _task(path), read_files([path])
        if "id" not in fields and task in {name for name, _ in scores + texts}:
            raise InputError(f"{path}: each task must stand there once, got {task!r} again; import one run at a time")
        for place, row in rows:
            if not isinstance(row.get("resps"), list) or not row["resps"] or "doc_id" not in row:
                raise InputError(
                    f"{place}: must be a sample of the harness with doc_id and resps, got {', '.join(row)}"
                )
        (scores if _pair(_first(rows[0][1]["resps"][0])) else texts).append((task, rows))
    if scores and texts:
        raise InputError(f"multiple choice and generation make different files, got {scores[0][0]} and {texts[0][0]}")
    made = _choices(scores, fields, filter_name) if scores else _generated(texts, fields, filter_name, extract)
    first = (scores or texts)[0][1][0][1]
    about = {"data": ", ".join(_task(path) for path in paths), "source": "lm-eval", **_run(paths[0])}
    prompt = _arguments(first)
    about |= {"prompt_example": prompt[0][0]} if prompt else {}
    return Imported(made.scores, {**about, **made.metadata}, made.notes)


def _task(path: Path) -> str:
    match = _FILE.fullmatch(path.name)
    return match["task"] if match else path.name.removesuffix(".gz").removesuffix(".jsonl")


def _run(path: Path) -> dict[str, Any]:
    """Model and versions, from the results file of the same run where it lies beside."""
    match = _FILE.fullmatch(path.name)
    results = path.with_name(f"results_{match['date']}.json") if match and match["date"] else None
    if results is None or not results.is_file():
        return {}
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{results}: must be the harness's results, got {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{results}: must be the harness's results, got {str(found)[:60]!r}")
    versions = {key.removesuffix("_version"): str(found[key]) for key in ("lm_eval_version",) if found.get(key)}
    return {"model": found.get("model_name"), **({"versions": versions} if versions else {})}


def _filtered(task: str, rows: Rows, wanted: str | None, *, alike: bool) -> Rows:
    """One row a document: those of the wanted filter, of the only one, or of the first where all are `alike`."""
    names = list(dict.fromkeys(str(row.get("filter", "none")) for _, row in rows))
    if wanted is not None and wanted not in names:
        raise InputError(f"{task}: has the filters {', '.join(names)}, got --filter {wanted!r}")
    if wanted is None and len(names) > 1 and not alike:
        raise InputError(f"{task}: results differ by filter, choose one with --filter: {', '.join(names)}")
    chosen = [(place, row) for place, row in rows if str(row.get("filter", "none")) == (wanted or names[0])]
    seen: set[str] = set()
    for place, row in chosen:
        if str(row["doc_id"]) in seen:
            raise InputError(f"{place}: each document must stand there once, got doc_id {row['doc_id']!r} again")
        seen.add(str(row["doc_id"]))
    return chosen


def _choices(tasks: Sequence[tuple[str, Rows]], fields: Mapping[str, str], wanted: str | None) -> Imported:
    strange = next((name for name in fields if name not in ("id", "group")), None)
    if strange:
        raise InputError(f"--field {strange}: multiple choice takes id and group only, got {fields[strange]!r}")
    ids, groups, values, labels, texts, left_out = [], [], [], [], [], 0
    for task, all_rows in tasks:
        rows = _filtered(task, all_rows, wanted, alike=True)
        options = [_log_likelihoods(place, row) for place, row in rows]
        for (place, row), found, label in zip(rows, options, _labels(task, rows, options), strict=True):
            if not 0 <= label < len(found):
                left_out += 1
                continue
            ids.append(_id(task, place, row, fields))
            groups.append(_group(task, place, row, fields))
            values.append(found)
            labels.append(label)
            texts.append(_arguments(row)[: len(found)])
    if not ids:
        raise InputError(f"{tasks[0][0]}: no document has its right option among its options, got {left_out} without")
    logits = np.full((len(ids), max(map(len, values))), -np.inf, dtype=np.float32)
    for i, found in enumerate(values):
        logits[i, : len(found)] = found
    scores = OptionLogits(tuple(ids), logits, np.array(labels), tuple(groups))
    note = f"{left_out} documents left out: their right option is not among theirs (the harness counts them wrong)"
    about = {"examples": _surely_wrong(scores, texts), **({"left_out": left_out} if left_out else {})}
    return Imported(scores, about, (note,) if left_out else ())


def _log_likelihoods(place: str, row: Row) -> list[float]:
    found = []
    for request in row["resps"]:
        pair = _pair(_first(request))
        if pair is None:
            raise InputError(f"{place}: 'resps' must hold [log-likelihood, greedy] a request, got {str(request)[:60]}")
        found.append(pair[0])
    contexts = [context for context, _ in _arguments(row)]
    if len(found) % 2 == 0 and "acc_mutual_info" in row and set(contexts[len(found) // 2 :]) == {""}:
        found = found[: len(found) // 2]  # the options once more, without the question
    if len(found) < 2:
        raise InputError(f"{place}: needs two options, got {len(found)}: a likelihood of one text is no choice")
    return found


def _labels(task: str, rows: Rows, options: Sequence[list[float]]) -> list[int]:
    """Of each document the right option's index, or −100; read as the whole task can be read, and as `acc` agrees with.

    A target may be an index or the option's text, and "1" is both of 0, 1, 2. Where contexts are compared instead of
    continuations (WinoGrande), the target is neither, and of two options `acc` tells which it was.
    """
    for reading in (_by_metric, _by_index, _by_text, _by_accuracy):
        found = [reading(row, scores) for (_, row), scores in zip(rows, options, strict=True)]
        labels = [label for label in found if label is not None]
        if len(labels) == len(found) and all(map(_agrees, (row for _, row in rows), options, labels)):
            return labels
    targets = [(place, str(row.get("target"))) for place, row in rows]
    several = [one for one in targets if _SEVERAL.fullmatch(one[1])]
    why = "has several right options" if several else "does not tell the right option as acc does"
    place, target = (several or targets)[0]
    raise InputError(f"{task}: the target {target[:60]!r} of {place} {why}; caltune needs one option")


def _by_metric(row: Row, scores: list[float]) -> int | None:
    for name in ("brier_score", "likelihood", "f1", "mcc"):  # logged as (right option, …)
        found = row.get(name)
        if isinstance(found, list) and len(found) == 2 and re.fullmatch(r"-?\d+", str(found[0])):
            return int(found[0])
    return None


def _by_index(row: Row, scores: list[float]) -> int | None:
    target = str(row.get("target")).strip()
    match = re.fullmatch(r"\[\s*(\d+)\s*\]", target) or re.fullmatch(r"(-?\d+)", target)
    return int(match[1]) if match else None


def _by_text(row: Row, scores: list[float]) -> int | None:
    requests = _arguments(row)[: len(scores)]
    shown = [continuation.strip() for _, continuation in requests]
    target = str(row.get("target")).strip()
    one_context = len({context for context, _ in requests}) == 1
    if target not in shown and row.get("acc") == 0 and one_context and not _SEVERAL.fullmatch(target):
        return -100  # what the harness takes for a text that is no option, and counts wrong
    return shown.index(target) if shown.count(target) == 1 else None


def _by_accuracy(row: Row, scores: list[float]) -> int | None:
    if len(scores) != 2 or row.get("acc") not in (0, 1) or len({context for context, _ in _arguments(row)}) < 2:
        return None
    best = int(np.argmax(scores))
    return best if row["acc"] == 1 else 1 - best


def _agrees(row: Row, scores: list[float], label: int) -> bool:
    return row.get("acc") not in (0, 1) or (int(np.argmax(scores)) == label) == bool(row["acc"])


def _generated(
    tasks: Sequence[tuple[str, Rows]], fields: Mapping[str, str], wanted: str | None, extract: str | None
) -> Imported:
    try:
        pattern = re.compile(extract) if extract is not None else None
    except re.error as error:
        raise InputError(f"--extract: must be a regular expression ({error}), got {extract!r}") from error
    ids, groups, confidences, corrects = [], [], [], []
    for task, all_rows in tasks:
        rows = _filtered(task, all_rows, wanted, alike=False)
        for place, row in rows:
            ids.append(_id(task, place, row, fields))
            groups.append(_group(task, place, row, fields))
            corrects.append(_number(place, row, fields.get("correct", "exact_match")))
            stated = "confidence" in fields
            confidences.append(_number(place, row, fields["confidence"]) if stated else _agreement(place, row, pattern))
        if "confidence" not in fields and not any(confidences[-len(rows) :]):
            raise InputError(f"{task}: no repeat says its answer, --extract must find the answer in a text")
    answers = Predictions(tuple(ids), np.array(confidences), np.array(corrects), tuple(groups))
    return Imported(answers, {"filter": wanted} if wanted else {})


def _agreement(place: str, row: Row, pattern: re.Pattern[str] | None) -> float:
    """The share of the repeats that say what the filter made the answer of."""
    repeats = row["resps"][0]
    repeats = repeats[0] if len(repeats) == 1 and isinstance(repeats[0], list) else repeats
    if not isinstance(repeats, list) or len(repeats) < 2:
        raise InputError(
            f"{place}: one generated text has no confidence; repeat it in the task (repeats: 10), or name a column "
            "with --field confidence=…"
        )
    answer = _plain(str(_first(row.get("filtered_resps"))), None)
    return sum(_plain(str(text), pattern) == answer for text in repeats) / len(repeats)


def _plain(text: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is not None:
        found = list(pattern.finditer(text))
        text = (found[-1][1] if pattern.groups else found[-1][0]) if found else ""
    return " ".join(str(text).split()).casefold()


def _first(value: Any) -> Any:
    """The first of nested lists that is no list of plain values: a request's first repeat."""
    while isinstance(value, list) and value and (isinstance(value[0], list) or _pair(value) is None):
        value = value[0]
    return value


def _pair(value: Any) -> tuple[float, bool] | None:
    """[log-likelihood, greedy?] as written by any release, or None."""
    if isinstance(value, list) and len(value) == 2 and str(value[1]) in ("True", "False"):
        try:
            return float(value[0]), str(value[1]) == "True"
        except (TypeError, ValueError):
            return None
    return None


def _arguments(row: Row) -> list[tuple[str, str]]:
    """Context and continuation of each request."""
    found = row.get("arguments")
    requests = found.values() if isinstance(found, dict) else found if isinstance(found, list) else []
    pairs = [tuple(one.values()) if isinstance(one, dict) else one for one in requests]
    return [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, tuple | list) and len(pair) > 1]


def _id(task: str, place: str, row: Row, fields: Mapping[str, str]) -> str:
    return str(_at(place, row, fields["id"])) if "id" in fields else f"{task}/{row['doc_id']}"


def _group(task: str, place: str, row: Row, fields: Mapping[str, str]) -> str:
    return str(_at(place, row, fields["group"])) if "group" in fields else task


def _at(place: str, row: Row, name: str) -> Any:
    """The value of a column, or of "doc.subject" the subject of the document."""
    found: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise InputError(
                f"{place}: needs {name!r}, got {', '.join(found) if isinstance(found, Mapping) else found!r}"
            )
        found = found[part]
    return found


def _number(place: str, row: Row, name: str) -> float:
    return number(place, _at(place, row, name), name)


def _surely_wrong(scores: OptionLogits, texts: Sequence[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """Texts of the surest wrong answers, for the report; the options are what differs, contexts or continuations."""
    decided = scores.decide()
    wrong = np.flatnonzero(decided.correct == 0)
    found = []
    for i in wrong[np.argsort(-decided.confidence[wrong], kind="stable")][:_EXAMPLES]:
        contexts, continuations = [pair[0] for pair in texts[i]], [pair[1] for pair in texts[i]]
        same = len(set(contexts)) <= 1
        question = (contexts or [""])[0] if same else "…" + (continuations or [""])[0]
        found.append({"id": scores.ids[i], "question": question, "options": continuations if same else contexts})
    return found
