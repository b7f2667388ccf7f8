"""One function a verb: load what it was given, call one public function, write. Heavy imports wait until they must."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caltune import verbs_answers, verbs_serve
from caltune.errors import InputError
from caltune.output import first_process, one_line, quiet, report_bad_rows, require_place, tell, write_json

if TYPE_CHECKING:
    import argparse

    from caltune.types import Question


def load(arguments: argparse.Namespace) -> list[Question]:
    """The questions that the flags of `_add_source` ask for; bad rows that were skipped are listed on stderr."""
    from caltune.data import load_questions

    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"--limit must be at least 1, got {arguments.limit}")
    bad: list[str] = []
    questions = load_questions(
        arguments.source,
        arguments.split,
        fields=field_mapping(arguments.field),
        on_bad=bad.append if arguments.skip_bad else None,
        limit=arguments.limit,
    )
    report_bad_rows(bad)
    return questions


def _read_by(arguments: argparse.Namespace) -> list[Path]:
    """The files that hold the questions, and the model where it is one file: no output may be written over them."""
    source, model = Path(arguments.source), Path(arguments.model)
    if not source.is_dir():
        return [source, model]
    from caltune.data.files import SPLIT_FILE
    from caltune.formats.table import is_result

    return [model, *(path for path in source.iterdir() if SPLIT_FILE.fullmatch(path.name) and not is_result(path))]


def field_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """The values of `--field`, each like question=prompt, as a mapping from our names to the source's columns."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--field must look like question=prompt, got {pair!r}")
    return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in pairs)}


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the questions were read, which a scores file tells, so that a `caltune train` to copy reads them alike."""
    return {name: found for name in ("field", "skip_bad") if (found := getattr(arguments, name))}


def demo(arguments: argparse.Namespace) -> None:
    """Fine-tune a small model twice and write the page."""
    quiet()
    from caltune.demo import run_demo

    run_demo(arguments.output, quick=arguments.quick)


def data(arguments: argparse.Namespace) -> None:
    """What was read from a source, its overlap with other splits, and the first prompt."""
    from caltune.data import find_overlap, load_other_split
    from caltune.data.splits import VALIDATION_NAMES
    from caltune.prompts import render
    from caltune.report.terminal import overlap_lines, prompt_lines, source_lines

    questions = load(arguments)
    lines = source_lines(questions, arguments.source, arguments.split)
    if arguments.split:
        others = {arguments.split: questions}
        # Calibration may be another name for the validation split, which is no overlap.
        names = {"train", "calibration", "test"} - {arguments.split}
        names -= {"calibration"} if arguments.split in VALIDATION_NAMES else set()
        for name in sorted(names):
            others[name] = load_other_split(arguments.source, name, field_mapping(arguments.field), tell)
        lines += overlap_lines([item for item in find_overlap(others) if item.first_split == arguments.split])
    first = next((question for question in questions if question.options), None)
    if first is None:
        lines.append(f"first question (open-ended): {one_line(questions[0].text)}")
    else:
        tokenizer = None
        if arguments.model:
            quiet()
            from caltune.models import load_tokenizer

            tokenizer = load_tokenizer(arguments.model)
        lines += prompt_lines(render(first, tokenizer, answers=arguments.answers), first.answer)
    print("\n".join(lines))


def score(arguments: argparse.Namespace) -> None:
    """What a model believes about each question, to a file."""
    require_place(arguments.output, *_read_by(arguments))
    elsewhere = verbs_serve.asks_server(arguments)
    questions = load(arguments)
    quiet()
    from caltune.data.shots import load_shots
    from caltune.scoring.cost import ScoringCost
    from caltune.scoring.processes import join_processes
    from caltune.scoring.record import require_device, score_to_file

    fields, cost, seed = field_mapping(arguments.field), ScoringCost(), arguments.seed
    drawn = arguments.source, arguments.shots_split, questions, arguments.shots, seed
    shots = load_shots(*drawn, fields=fields, skip_bad=arguments.skip_bad)
    if elsewhere:
        verbs_serve.score_endpoint(arguments, questions, shots, reading(arguments))
        return
    require_device(arguments.device)
    join_processes(arguments.device)
    score_to_file(
        arguments.output,
        arguments.model,
        questions,
        data=arguments.source,
        **{name: getattr(arguments, name) for name in ("split", "answers", "reduction", "template", "batch_tokens")},
        device=arguments.device,
        features=arguments.features,
        exemplars=shots,
        seed=seed if shots else None,
        cost=cost,
        together=True,
        extra=reading(arguments),
    )
    if first_process():
        print(cost, file=sys.stderr)
        print(arguments.output)


def knowledge(arguments: argparse.Namespace) -> None:
    """What a model knows of each question, to a file; how many questions each category has."""
    require_place(arguments.output, *_read_by(arguments))
    questions = load(arguments)
    pool = _exemplar_pool(arguments) if arguments.exemplars > 0 else []
    quiet()
    from caltune.models import load_model
    from caltune.scoring.engine import require_settings
    from caltune.scoring.known import knowledge_to_file, require_askable
    from caltune.scoring.record import require_device

    require_settings(arguments.reduction, arguments.batch_tokens)
    asking = {name: getattr(arguments, name) for name in ("exemplars", "sets", "samples", "seed")}
    require_askable(questions, pool, **asking)
    require_device(arguments.device)
    model, tokenizer = load_model(arguments.model, device=arguments.device)
    found = knowledge_to_file(
        arguments.output,
        model,
        tokenizer,
        questions,
        pool,
        model_name=arguments.model,
        data=arguments.source,
        split=arguments.split,
        exemplars_split=arguments.exemplars_split if pool else None,
        progress=True,
        **asking,
        **{name: getattr(arguments, name) for name in ("answers", "reduction", "template", "batch_tokens")},
    ).knowledge
    counts = {**found.counts(), "known (the first two)": int(found.known.sum())}
    for name, count in counts.items():
        print(f"{name:<21}  {count:>6}  {count / len(found):>6.1%}")
    print(arguments.output)


def _exemplar_pool(arguments: argparse.Namespace) -> list[Question]:
    """Answered questions of a split that do not stand in the test split, by id or by content."""
    from caltune.data import find_overlap, load_other_split, load_questions

    fields, split = field_mapping(arguments.field), arguments.exemplars_split
    if split.casefold() == "test":
        raise InputError(f"--exemplars-split must be a split whose answers may be shown, got {split!r}")
    try:
        on_bad = (lambda _: None) if arguments.skip_bad else None
        pool = load_questions(arguments.source, split, fields=fields, on_bad=on_bad)
    except InputError as error:
        others = "--exemplars-split takes another, --exemplars 0 none"
        raise InputError(f"exemplars are taken from the {split} split ({others}): {error}") from error
    test = load_other_split(arguments.source, "test", fields, tell)
    twice = {item.second_id for item in find_overlap({"test": test, split: pool})}
    return [q for q in pool if q.id not in twice and (q.answer is not None or q.accepted)]


def evaluate(arguments: argparse.Namespace) -> None:
    """Metrics of scores files, with intervals; several are ranked by NLL."""
    from caltune.formats import read_scores
    from caltune.metrics import rank, summarise
    from caltune.report.terminal import metrics_lines, ranking_lines

    require_place(arguments.json, *arguments.scores)
    if verbs_answers.any_answers(arguments.scores):
        verbs_answers.evaluate(arguments)
        return
    scores, summaries = {}, {}
    for path in arguments.scores:
        scores[str(path)] = read_scores(path).scores
        with about(path):
            summaries[str(path)] = summarise(scores[str(path)])
    document = {name: summary.to_json() for name, summary in summaries.items()}
    lines = metrics_lines(summaries)
    if len(scores) > 1:
        ranking = rank(scores)
        for name, found in ranking.to_json().items():
            document[name]["ranking"] = found
        lines += ["", *ranking_lines(ranking, summaries)]
    write_json(arguments.json, document)
    print("\n".join(lines))


def compare(arguments: argparse.Namespace) -> None:
    """Paired differences of two scores files."""
    from caltune.formats import read_scores
    from caltune.metrics import compare
    from caltune.report.terminal import comparison_lines

    require_place(arguments.json, arguments.a, arguments.b)
    if verbs_answers.any_answers([arguments.a, arguments.b]):
        verbs_answers.compare(arguments)
        return
    a, b = read_scores(arguments.a).scores, read_scores(arguments.b).scores
    with about(f"{arguments.a}, {arguments.b}"):
        found = compare(a, b)
    write_json(arguments.json, found.to_json())
    print("\n".join(comparison_lines(found, str(arguments.a), str(arguments.b))))


def report(arguments: argparse.Namespace) -> None:
    """One page about scores files; prints its address."""
    from caltune.formats import read_scores
    from caltune.formats.policy import read_policy
    from caltune.report.page import Entry, write_report

    require_place(arguments.output, *arguments.scores, *filter(None, [arguments.policy]))
    policy = read_policy(arguments.policy) if arguments.policy else None
    entries = [Entry(path.stem, read_scores(path)) for path in arguments.scores]
    print(write_report(arguments.output, entries, policy=policy).resolve().as_uri())


@contextmanager
def about(place: object) -> Iterator[None]:
    """Name the file that an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
