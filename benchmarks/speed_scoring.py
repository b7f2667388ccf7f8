"""Is caltune's scoring faster than lm-evaluation-harness, and how near is it to the bound?

    CALTUNE_DATA_DIR=DIR python benchmarks/speed_scoring.py [--questions 150] [--rounds 3] [--device cpu] [--quick]

DIR holds the folders mmlu (test and dev or validation) and arc_easy (test and train); without it they are downloaded.
Both sides get the same model object, the same prompts to the letter and the same threads, in one process:

- letters of MMLU questions, without and behind five exemplars of their subject, and option texts of ARC-Easy questions,
  without and behind five exemplars;
- caltune: rendering, tokenising and scoring, `batch_tokens` 2048, or the best of `--batch-tokens`;
- lm-evaluation-harness (`pip install caltune[bench]`): its `hf` backend on a local file (`dataset_path: json`); only
  its `loglikelihood` is timed, with the best of several batch sizes, found on 32 questions of the same kind. On a CPU
  it is faster here than by itself, since caltune has the process keep freed memory (`caltune.allocator`).

Log-probabilities are compared first (at most 1e-3 apart in float32); then the two alternate, and medians with their
spread are given beside the share of the bound of `limits.py`. About 25 minutes on two cores that are otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import limits
import numpy as np
import torch

from caltune.data import load_questions
from caltune.errors import InputError
from caltune.models import default_device, default_dtype, load_model
from caltune.prompts import Answers, render
from caltune.scoring.cost import ScoringCost
from caltune.scoring.engine import encode_questions, score_encoded
from caltune.scoring.packing import EncodedQuestion
from caltune.types import Question

SHOTS = 5
SUBJECTS = 6  # of MMLU, whose subjects have 246 questions on average: few subjects, so that each has many here, too
BATCH_SIZES = (1, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Task:
    """Questions in groups, each behind exemplars of its own."""

    name: str
    answers: Answers
    groups: tuple[tuple[tuple[Question, ...], tuple[Question, ...]], ...]  # (exemplars, questions)

    @property
    def count(self) -> int:
        """Questions in all."""
        return sum(len(questions) for _, questions in self.groups)

    def part(self, count: int) -> Task:
        """About so many of its questions, from all groups alike."""
        each = -(-count // len(self.groups))
        return Task(self.name, self.answers, tuple((shown, questions[:each]) for shown, questions in self.groups))


def tasks(count: int) -> list[Task]:
    """MMLU by letters and ARC-Easy by option texts, each without and with exemplars."""
    test, shown = (load_questions("mmlu", split, on_bad=lambda _: None) for split in ("test", "validation"))
    held = {name: [question for question in test if question.group == name] for name in {q.group for q in test}}
    each = -(-count // SUBJECTS)
    subjects = common.pick([name for name in sorted(held) if len(held[name]) >= each], SUBJECTS, 0)
    mmlu = []
    for name in subjects:
        exemplars = common.pick([question for question in shown if question.group == name], SHOTS, 0)
        texts = {exemplar.text for exemplar in exemplars}
        asked = common.pick([question for question in held[name] if question.text not in texts], each, 0)
        mmlu.append((tuple(exemplars), tuple(asked)))
    arc = tuple(common.pick(load_questions("arc-easy", "test"), count, 0))
    texts = {question.text for question in arc}
    exemplars = common.pick([q for q in load_questions("arc-easy", "train") if q.text not in texts], SHOTS, 0)
    return [
        Task("MMLU letters", "letters", tuple(((), asked) for _, asked in mmlu)),
        Task(f"MMLU letters, {SHOTS} shots", "letters", tuple(mmlu)),
        Task("ARC-Easy texts", "continuations", (((), arc),)),
        Task(f"ARC-Easy texts, {SHOTS} shots", "continuations", ((tuple(exemplars), arc),)),
    ]


def encode(task: Task, tokenizer: Any) -> list[EncodedQuestion]:
    """All questions of a task, in the order of its groups."""
    how: dict[str, Any] = {"answers": task.answers, "template": "plain"}
    return [item for shown, asked in task.groups for item in encode_questions(asked, tokenizer, exemplars=shown, **how)]


def ours(task: Task, model: Any, tokenizer: Any, batch_tokens: int, cost: ScoringCost | None = None) -> list[float]:
    """caltune's log-probability of every option, question by question."""
    encoded = encode(task, tokenizer)
    logits = score_encoded(model, encoded, tokenizer.pad_token_id, batch_tokens=batch_tokens, cost=cost)
    return [float(value) for row, item in zip(logits, encoded, strict=True) for value in row[: len(item.options)]]


def requests(task: Task, tokenizer: Any, folder: Path) -> list[Any]:
    """lm-eval's requests for the same prompts and options, built by its own task from a local file."""
    from lm_eval.api.task import ConfigurableTask

    file = folder / f"{task.name.replace(' ', '_').replace(',', '')}-{task.count}.jsonl"
    wanted = []
    with open(file, "w", encoding="utf-8") as handle:
        for shown, asked in task.groups:
            for question in asked:
                prompt = render(question, tokenizer, answers=task.answers, template="plain", exemplars=shown)
                row = {"prompt": prompt.text, "continuations": list(prompt.continuations), "answer": question.answer}
                handle.write(json.dumps(row) + "\n")
                wanted += [(prompt.text, continuation) for continuation in prompt.continuations]
    theirs = ConfigurableTask(
        config={
            "task": file.stem,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "continuations",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc"}],
        }
    )
    theirs.build_all_requests(limit=None, rank=0, world_size=1)
    found = [instance.args[:2] for instance in theirs.instances]
    if found != wanted:
        raise InputError(f"{task.name}: lm-eval must ask what caltune asks, got other prompts or options")
    return list(theirs.instances)


def theirs(model: Any, tokenizer: Any, batch_size: int) -> Callable[[list[Any]], list[float]]:
    """lm-eval's `hf` backend around the model object, as a function from requests to log-probabilities."""
    from lm_eval.models.huggingface import HFLM

    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    return lambda asked: [float(value) for value, _ in backend.loglikelihood(asked, disable_tqdm=True)]


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def best_of(settings: Sequence[int], run: Callable[[int], Any], device: torch.device) -> int:
    """The setting with the shortest run; the first run of all is not counted, it warms up."""
    run(settings[0])
    return min(settings, key=lambda setting: timed(lambda: run(setting), device)[0])


def compare(task: Task, model: Any, tokenizer: Any, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Agreement, alternating times, and the share of the bound for one task."""
    device = model.device
    few = task.part(min(32, task.count))
    few_requests = requests(few, tokenizer, folder)
    size = best_of(arguments.batch_sizes, lambda size: theirs(model, tokenizer, size)(few_requests), device)
    budget = best_of(arguments.batch_tokens, lambda budget: ours(few, model, tokenizer, budget), device)
    asked, backend = requests(task, tokenizer, folder), theirs(model, tokenizer, size)
    apart = float(np.max(np.abs(np.subtract(ours(few, model, tokenizer, budget), backend(few_requests)))))
    if apart > arguments.tolerance:
        raise InputError(f"{task.name}: log-probabilities must agree to {arguments.tolerance}, got {apart:.2g} apart")
    bound = limits.bound(model, encode(task, tokenizer))
    found: dict[str, list[float]] = {"caltune": [], "lm_eval": []}
    cost = ScoringCost()  # over all rounds
    for _ in range(arguments.rounds):
        found["caltune"].append(timed(lambda: ours(task, model, tokenizer, budget, cost), device)[0])
        found["lm_eval"].append(timed(lambda: backend(asked), device)[0])
    again = limits.bound(model, encode(task, tokenizer))  # the machine may have changed its speed meanwhile
    bound = min(bound, again, key=lambda one: one["seconds"])
    ratios = [slow / fast for slow, fast in zip(found["lm_eval"], found["caltune"], strict=True)]
    return {
        "questions": task.count,
        "apart": apart,
        "batch_size": size,
        "batch_tokens": budget,
        "seconds": found,
        "questions_a_second": {name: task.count / statistics.median(each) for name, each in found.items()},
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "bound": bound,
        "share_of_bound": {name: bound["seconds"] / statistics.median(each) for name, each in found.items()},
        "padding": cost.padding,
        "tokens": cost.tokens // arguments.rounds,
        "tokens_alone": cost.alone // arguments.rounds,
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", default="smollm2")
        parser.add_argument("--questions", type=int, default=150)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--device")
        parser.add_argument("--batch-tokens", type=int, nargs="+", default=[512, 1024, 2048])
        parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES), help="tried for lm-eval")
        parser.add_argument("--tolerance", type=float, default=1e-3, help="0.1 or so with --device cuda, in bf16")
        parser.add_argument("--only", nargs="+", help="tasks whose names hold one of these")

    arguments, folder = common.parse(__doc__, "speed_scoring", add=add, alone=True)
    if arguments.quick:
        arguments.questions, arguments.rounds, arguments.batch_sizes = 12, 1, arguments.batch_sizes[1:2]
    device = torch.device(arguments.device or default_device())
    model, tokenizer = load_model(arguments.model, device=device, dtype=default_dtype(device))
    results = {}
    print("| task | caltune q/s | lm-eval q/s | ratio (spread) | share of bound | padding |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for task in tasks(arguments.questions):
            if arguments.only and not any(part in task.name for part in arguments.only):
                continue
            found = results[task.name] = compare(task, model, tokenizer, arguments, Path(temporary))
            speed, ratio, share = found["questions_a_second"], found["ratio"], found["share_of_bound"]
            print(
                f"| {task.name} | {speed['caltune']:.1f} | {speed['lm_eval']:.1f} | {ratio['median']:.2f} "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}) | {share['caltune']:.0%} "
                f"(lm-eval {share['lm_eval']:.0%}) | {found['padding']:.1%} |",
                flush=True,
            )
    from importlib.metadata import version

    versions = {name: version(name) for name in ("lm_eval", "torch", "transformers")}
    document = {"model": arguments.model, "device": str(device), "dtype": str(model.dtype), "versions": versions}
    document |= {"threads": torch.get_num_threads(), "tasks": results}
    common.publish("speed_scoring", folder, quick=arguments.quick, document=document)


if __name__ == "__main__":
    main()
