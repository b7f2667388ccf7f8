"""The command line: each verb parses, calls one public function and writes. Heavy imports wait until they must."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caltune import __version__
from caltune.errors import InputError
from caltune.output import one_line, quiet, report_bad_rows, require_place, write_json

if TYPE_CHECKING:
    from caltune.types import Question

# Method -> the beginning of its two classes' names in `caltune.methods`.
METHODS = {"sft": "SFT", "rcft": "RCFT", "cogcalib": "CogCalib"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it went well, 2 after one line about bad usage or input, 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without "−" must not lose the whole result
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        if arguments[:1] == ["train"] and not set(arguments[1:2]) & {"-h", "--help"}:
            _train(arguments[1:])
        else:
            parsed = _parser().parse_args(arguments)
            parsed.run(parsed)
        sys.stdout.flush()  # a reader who left is noticed here, not after main
        return 0
    except InputError as error:
        if debug:
            traceback.print_exc()
        print(f"caltune: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("caltune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"caltune: {type(error).__name__}: {one_line(error)} (--debug tells more)", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="caltune", description="Calibration-aware fine-tuning of language models.")
    parser.add_argument("--version", action="version", version=f"caltune {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)

    demo = verbs.add_parser("demo", help="fine-tune a small model twice, plainly and with calibration, and compare")
    demo.add_argument("--output", type=Path, default=Path("caltune-demo"), metavar="DIR")
    demo.add_argument("--quick", action="store_true", help="a minute or two; too small to conclude anything from")
    demo.set_defaults(run=_demo)

    data = verbs.add_parser("data", help="show what is read from a source, and the first prompt")
    _add_source(data)
    data.add_argument("--model", help="show the prompt with this model's chat template")
    data.add_argument("--answers", choices=("continuations", "letters"), default="continuations")
    data.set_defaults(run=_data)

    score = verbs.add_parser("score", help="write what a model believes about each question")
    _add_source(score)
    score.add_argument("--model", required=True, help="hub id, folder, GGUF file, adapter folder, or smollm2")
    score.add_argument("--answers", choices=("continuations", "letters"), default="continuations")
    score.add_argument("--reduction", choices=("sum", "mean", "min"), default="sum")
    score.add_argument("--template", choices=("auto", "chat", "plain"), default="auto")
    score.add_argument("--batch-tokens", type=int, default=2048, metavar="N")
    score.add_argument("--device", help="cpu, cuda, mps; the default is the best there is")
    score.add_argument("-o", "--output", type=Path, required=True, metavar="scores.parquet")
    score.set_defaults(run=_score)

    train = verbs.add_parser("train", help="fine-tune: caltune train METHOD SOURCE --model M --output-dir D")
    train.add_argument("method", choices=tuple(METHODS), help="`caltune train METHOD --help` lists every field")
    train.add_argument("source")
    train.set_defaults(run=None)

    evaluate = verbs.add_parser("evaluate", help="metrics with intervals")
    evaluate.add_argument("scores", nargs="+", type=Path)
    evaluate.add_argument("--json", type=Path, metavar="metrics.json")
    evaluate.set_defaults(run=_evaluate)

    recalibrate = verbs.add_parser("recalibrate", help="fit on one scores file, apply to another")
    recalibrate.add_argument("name", choices=("temperature",))
    recalibrate.add_argument("--fit", type=Path, required=True, metavar="cal.parquet")
    recalibrate.add_argument("--apply", type=Path, required=True, metavar="test.parquet")
    recalibrate.add_argument("-o", "--output", type=Path, required=True, metavar="out.parquet")
    recalibrate.set_defaults(run=_recalibrate)

    compare = verbs.add_parser("compare", help="paired differences of two scores files on the same questions")
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    compare.add_argument("--json", type=Path, metavar="out.json")
    compare.set_defaults(run=_compare)

    report = verbs.add_parser("report", help="one page about one or several scores files")
    report.add_argument("scores", nargs="+", type=Path)
    report.add_argument("-o", "--output", type=Path, required=True, metavar="report.html")
    report.set_defaults(run=_report)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a file, a folder of split files, world-facts, a preset or a hub id")
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="a column's name, as in question=prompt; ours: id, question, options, answer, accepted, group, context",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and list them")


def _load(arguments: argparse.Namespace) -> list[Question]:
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


def field_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """The values of `--field`, each like question=prompt, as a mapping from our names to the source's columns."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--field must look like question=prompt, got {pair!r}")
    return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in pairs)}


def _demo(arguments: argparse.Namespace) -> None:
    quiet()
    from caltune.demo import run_demo

    run_demo(arguments.output, quick=arguments.quick)


def _data(arguments: argparse.Namespace) -> None:
    from caltune.data import find_overlap, load_questions
    from caltune.data.splits import VALIDATION_NAMES
    from caltune.prompts import render
    from caltune.report.terminal import overlap_lines, prompt_lines, source_lines

    questions = _load(arguments)
    lines = source_lines(questions, arguments.source, arguments.split)
    if arguments.split:
        others = {arguments.split: questions}
        # Calibration may be another name for the validation split, which is no overlap.
        names = {"train", "calibration", "test"} - {arguments.split}
        names -= {"calibration"} if arguments.split in VALIDATION_NAMES else set()
        for name in sorted(names):
            with suppress(InputError):  # a source need not have every split
                others[name] = load_questions(
                    arguments.source, name, fields=field_mapping(arguments.field), on_bad=lambda _: None
                )
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


def _score(arguments: argparse.Namespace) -> None:
    require_place(arguments.output)
    questions = _load(arguments)
    quiet()
    from caltune.scoring.record import require_device, score_to_file

    require_device(arguments.device)
    score_to_file(
        arguments.output,
        arguments.model,
        questions,
        data=arguments.source,
        split=arguments.split,
        answers=arguments.answers,
        reduction=arguments.reduction,
        template=arguments.template,
        batch_tokens=arguments.batch_tokens,
        device=arguments.device,
    )
    print(arguments.output)


def _train(arguments: Sequence[str]) -> None:
    method, *rest = arguments or [""]
    if method not in METHODS:
        hint = "; cft is sft on in-domain questions, and goes by that name" if method == "cft" else ""
        raise InputError(f"train needs a METHOD first, one of {', '.join(METHODS)}, got {method!r}{hint}")
    quiet()
    from caltune.training import run_training

    run_training(METHODS[method], rest, prog=f"caltune train {method}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from caltune.formats import read_scores
    from caltune.metrics import summarise
    from caltune.report.terminal import metrics_lines

    require_place(arguments.json)
    summaries = {}
    for path in arguments.scores:
        scores = read_scores(path).scores
        with _about(path):
            summaries[str(path)] = summarise(scores)
    write_json(arguments.json, {name: summary.to_json() for name, summary in summaries.items()})
    print("\n".join(metrics_lines(summaries)))


def _recalibrate(arguments: argparse.Namespace) -> None:
    from caltune.formats import read_scores, write_scores
    from caltune.recalibrate import Temperature, fit_temperature

    require_place(arguments.output)
    fit = read_scores(arguments.fit)
    apply = read_scores(arguments.apply)
    with _about(arguments.fit):
        temperature = fit_temperature(fit.scores)
    with _about(arguments.apply):
        scaled = temperature(apply.scores)
        earlier = Temperature.from_json({"temperature": apply.metadata.get("temperature", 1.0), "fitted_on": []})
    total = earlier.temperature * temperature.temperature  # of the model's own logits
    write_scores(arguments.output, scaled, {**apply.metadata, "temperature": total})
    print(f"temperature {temperature.temperature:.4f}, fitted on {len(fit.scores)} questions")
    print(arguments.output)


def _compare(arguments: argparse.Namespace) -> None:
    from caltune.formats import read_scores
    from caltune.metrics import compare
    from caltune.report.terminal import comparison_lines

    require_place(arguments.json)
    a, b = read_scores(arguments.a).scores, read_scores(arguments.b).scores
    with _about(f"{arguments.a}, {arguments.b}"):
        found = compare(a, b)
    write_json(arguments.json, found.to_json())
    print("\n".join(comparison_lines(found, str(arguments.a), str(arguments.b))))


def _report(arguments: argparse.Namespace) -> None:
    from caltune.formats import read_scores
    from caltune.report.page import Entry, write_report

    require_place(arguments.output)
    entries = [Entry(path.stem, read_scores(path)) for path in arguments.scores]
    print(write_report(arguments.output, entries).resolve().as_uri())


@contextmanager
def _about(place: object) -> Iterator[None]:
    """Name the file that an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
