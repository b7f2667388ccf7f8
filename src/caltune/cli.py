"""The command line: what can be typed. `caltune.verbs` does it."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from caltune import (
    __version__,
    verbs,
    verbs_abstain,
    verbs_advise,
    verbs_card,
    verbs_export,
    verbs_import,
    verbs_recalibrate,
    verbs_serve,
)
from caltune.errors import InputError
from caltune.output import one_line, quiet
from caltune.recalibration import RECALIBRATORS

# Method -> the beginning of its two classes' names in `caltune.methods`.
METHODS = {
    "sft": "SFT",
    "rcft": "RCFT",
    "cogcalib": "CogCalib",
    "label-smoothing": "LabelSmoothing",
    "margin": "Margin",
    "entropy": "Entropy",
    "focal": "Focal",
    "brier": "Brier",
    "dece": "DECE",
    "mixup": "Mixup",
    "tempered": "Tempered",
}


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
    commands = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)

    demo = commands.add_parser("demo", help="fine-tune a small model twice, plainly and with calibration, and compare")
    demo.add_argument("--output", type=Path, default=Path("caltune-demo"), metavar="DIR")
    demo.add_argument("--quick", action="store_true", help="a minute or two; too small to conclude anything from")
    demo.set_defaults(run=verbs.demo)

    data = commands.add_parser("data", help="show what is read from a source, and the first prompt")
    _add_source(data)
    data.add_argument("--model", help="show the prompt with this model's chat template")
    data.add_argument("--answers", choices=("continuations", "letters"), default="continuations")
    data.set_defaults(run=verbs.data)

    score = commands.add_parser("score", help="write what a model believes about each question")
    _add_source(score)
    score.add_argument("--model", required=True, help="hub id, folder, GGUF file, adapter folder, or smollm2")
    _add_prompting(score)
    score.add_argument("--features", action="store_true", help="also write each question's last hidden state")
    score.add_argument("--shots", type=int, default=0, metavar="N", help="answered questions before each (0)")
    score.add_argument("--shots-split", default="train", metavar="SPLIT", help="where they are drawn (train)")
    score.add_argument("--seed", type=int, default=0, help="of drawing them")
    server = score.add_argument_group("by a server's log-probabilities, instead of loading the model")
    server.add_argument("--endpoint", metavar="URL", help="of an OpenAI-compatible server; --model is its name there")
    server.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the key")
    server.add_argument("--rate", type=float, metavar="N", help="requests a second, at most")
    server.add_argument("--parallel", type=int, metavar="N", help="questions under way at once (4)")
    server.add_argument("--top", type=int, metavar="N", help="tokens to be listed for letters (20)")
    server.add_argument("--cache", type=Path, metavar="FILE", help="keep answers, so that an interrupted run goes on")
    score.add_argument("-o", "--output", type=Path, required=True, metavar="scores.parquet")
    score.set_defaults(run=verbs.score)

    knowledge = commands.add_parser("knowledge", help="write what a model knows: HighlyKnown, MaybeKnown, …")
    _add_source(knowledge)
    knowledge.add_argument("--model", required=True, help="hub id, folder, GGUF file, adapter folder, or smollm2")
    _add_prompting(knowledge)
    knowledge.add_argument("--exemplars", type=int, default=4, metavar="N", help="answered questions before each (4)")
    knowledge.add_argument("--exemplars-split", default="train", metavar="SPLIT", help="where they are drawn (train)")
    knowledge.add_argument("--sets", type=int, default=8, metavar="N", help="random sets of exemplars (8)")
    knowledge.add_argument("--samples", type=int, default=16, metavar="N", help="answers drawn in a set (16)")
    knowledge.add_argument("--seed", type=int, default=0)
    knowledge.add_argument("-o", "--output", type=Path, required=True, metavar="knowledge.parquet")
    knowledge.set_defaults(run=verbs.knowledge)

    train = commands.add_parser("train", help="fine-tune: caltune train METHOD SOURCE --model M --output-dir D")
    train.add_argument("method", choices=tuple(METHODS), help="`caltune train METHOD --help` lists every field")
    train.add_argument("source")
    train.set_defaults(run=None)

    evaluate = commands.add_parser("evaluate", help="metrics with intervals")
    evaluate.add_argument("scores", nargs="+", type=Path)
    evaluate.add_argument("--json", type=Path, metavar="metrics.json")
    evaluate.set_defaults(run=verbs.evaluate)

    advise = commands.add_parser("advise", help="which method to take, and why")
    _add_source(advise)
    advise.add_argument("--model", help="the model before training; not needed when SOURCE is a scores file")
    advise.add_argument(
        "--adapter", metavar="A", help="the fine-tuned model to compare; its scores file where SOURCE is one"
    )
    _add_prompting(advise)
    advise.set_defaults(run=verbs_advise.advise, split="calibration")

    recalibrate = commands.add_parser("recalibrate", help="fit on one scores file, apply to another")
    recalibrate.add_argument("name", choices=tuple(RECALIBRATORS))
    source = recalibrate.add_mutually_exclusive_group(required=True)
    source.add_argument("--fit", nargs="+", type=Path, metavar="cal.parquet", help="a pool takes several")
    source.add_argument("--load", type=Path, metavar="fitted.json", help="what --save wrote")
    recalibrate.add_argument("--save", type=Path, metavar="fitted.json", help="keep what was fitted")
    recalibrate.add_argument(
        "--apply", nargs="+", type=Path, required=True, metavar="test.parquet", help="in the order of --fit"
    )
    recalibrate.add_argument(
        "--target",
        nargs=1,
        type=Path,
        metavar="target.parquet",
        help="for shift and transcal: what --fit is to be weighted to look like; labels are not read (--apply)",
    )
    recalibrate.add_argument(
        "--features",
        action="store_true",
        help="let umnn and balcal use what `score --features` wrote; lore, shift and transcal always do",
    )
    recalibrate.add_argument("-o", "--output", type=Path, required=True, metavar="out.parquet")
    recalibrate.set_defaults(run=verbs_recalibrate.recalibrate)

    threshold = commands.add_parser("threshold", help="when to answer and when to abstain, with a guarantee")
    threshold.add_argument("scores", type=Path, metavar="cal.parquet")
    threshold.add_argument("--max-error", type=float, required=True, metavar="E", help="as in 0.05")
    threshold.add_argument("--confidence", type=float, metavar="C", help="of the guarantee (0.95)")
    threshold.add_argument(
        "--method",
        choices=("binomial", "crc"),
        default="binomial",
        help="error among the answered, with high probability; or wrong answers among all questions, on average",
    )
    threshold.add_argument("-o", "--output", type=Path, metavar="policy.json")
    threshold.set_defaults(run=verbs_abstain.threshold)

    apply = commands.add_parser("apply-threshold", help="answer or abstain by a policy, and check that it still fits")
    apply.add_argument("policy", type=Path, metavar="policy.json")
    apply.add_argument("scores", type=Path, metavar="test.parquet")
    apply.add_argument("-o", "--output", type=Path, metavar="decisions.jsonl")
    apply.set_defaults(run=verbs_abstain.apply_threshold)

    compare = commands.add_parser("compare", help="paired differences of two scores files on the same questions")
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    compare.add_argument("--json", type=Path, metavar="out.json")
    compare.set_defaults(run=verbs.compare)

    foreign = commands.add_parser("import", help="another program's results as a scores file")
    foreign.add_argument("format", choices=verbs_import.FORMATS)
    foreign.add_argument("files", nargs="+", type=Path, metavar="FILE")
    foreign.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="a column's name; ours: id, group, confidence, correct, probabilities, logits, label",
    )
    foreign.add_argument("--filter", metavar="NAME", help="of lm-eval, where results differ by filter")
    foreign.add_argument("--extract", metavar="REGEX", help="finds the answer in each of lm-eval's repeats")
    foreign.add_argument("--model", metavar="NAME", help="the model's name, where the files do not tell it")
    foreign.add_argument("-o", "--output", type=Path, required=True, metavar="scores.parquet")
    foreign.set_defaults(run=verbs_import.import_)

    export = commands.add_parser("export", help='write what transformers\' pipeline("decision") needs beside a model')
    export.add_argument("model_dir", type=Path, metavar="DIR", help="a model's folder; with -o any model")
    export.add_argument("--fit", type=Path, required=True, metavar="cal.parquet", help="its scores, of letters")
    export.add_argument("--temperature", type=Path, metavar="fitted.json", help="what recalibrate --save wrote")
    export.add_argument("-o", "--output", type=Path, metavar="OUT", help="a new folder for the whole model")
    export.set_defaults(run=verbs_export.export)

    card = commands.add_parser("card", help="write a model's calibration into its model card")
    card.add_argument("model_dir", type=Path, metavar="DIR", help="the model's folder, with or without a README.md")
    card.add_argument("scores", type=Path, metavar="test.parquet", help="its scores on questions it was not trained on")
    card.add_argument("--task", metavar="ID", help="also write .eval_results: the task in a benchmark's eval.yaml")
    card.add_argument("--dataset", metavar="ID", help="the benchmark's hub id, where the scores file does not tell it")
    card.set_defaults(run=verbs_card.card)

    serve = commands.add_parser("serve", help="answer questions over HTTP, with honest probabilities")
    serve.add_argument("model", metavar="DIR", help="what `score --model` takes")
    serve.add_argument("--policy", type=Path, metavar="policy.json", help="what `threshold` wrote: when to abstain")
    serve.add_argument("--calibration", type=Path, metavar="fitted.json", help="what `recalibrate --save` wrote")
    serve.add_argument("--served-as", metavar="NAME", help="the name it was scored under, where it has moved since")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    _add_prompting(serve)
    serve.add_argument("--max-tokens", type=int, default=2048, metavar="N", help="of a question with its options")
    serve.add_argument("--seconds", type=float, default=30.0, help="until a request is given up (30)")
    serve.add_argument("--waiting", type=int, default=64, metavar="N", help="requests that may wait (64)")
    serve.set_defaults(run=verbs_serve.serve)

    report = commands.add_parser("report", help="one page about one or several scores files")
    report.add_argument("scores", nargs="+", type=Path)
    report.add_argument("--policy", type=Path, metavar="policy.json", help="show where this threshold cuts")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="report.html")
    report.set_defaults(run=verbs.report)

    completion = commands.add_parser("completion", help="print a shell's completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="bash: >> ~/.bash_completion")
    completion.set_defaults(run=partial(_completion, parser))
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


def _add_prompting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answers", choices=("continuations", "letters"), default="continuations")
    parser.add_argument("--reduction", choices=("sum", "mean", "min"), default="sum")
    parser.add_argument("--template", choices=("auto", "chat", "plain"), default="auto")
    parser.add_argument("--batch-tokens", type=int, default=2048, metavar="N")
    parser.add_argument("--device", help="cpu, cuda, mps; the default is the best there is")


def _completion(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from caltune.verbs_completion import completion

    completion(parser, METHODS, arguments)


def _train(arguments: Sequence[str]) -> None:
    method, *rest = arguments or [""]
    if method not in METHODS:
        hint = "; cft is sft on in-domain questions, and goes by that name" if method == "cft" else ""
        raise InputError(f"train needs a METHOD first, one of {', '.join(METHODS)}, got {method!r}{hint}")
    quiet()
    from caltune.training import run_training

    run_training(METHODS[method], rest, prog=f"caltune train {method}")
