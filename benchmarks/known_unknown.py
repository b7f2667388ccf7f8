"""Fine-tuning on what a model knows against what it does not: accuracy, confidence and ECE, on the way and at the end.

    python benchmarks/known_unknown.py [--quick] [--output DIR] [--seeds S …] [--minutes M]

After Wang et al. 2025 (arXiv 2505.20903). The SliCK category of 1,500 training questions of `world-facts` is found for
SmolLM2-135M-Instruct (4 sets of 2 exemplars); known is HighlyKnown or MaybeKnown. Plain fine-tuning then takes 320
questions of which 5/5, 4/5, … 0/5 are known. To keep the subject out of it, a known and an unknown question of the same
relation make a pair, and a mix takes one of each pair: all mixes have as many questions of each relation. A seed picks
the pairs, the order of training and the adapter's start; 3 seeds of each mix.

Along the steps each run is scored on the same 300 calibration questions, at its end on the same 1,000 test questions.
Nothing is fitted or chosen on either. The trend is the slope of a straight line through the mixes, in the change of a
metric from 0/5 to 5/5 known.

Scores are written to DIR as they come, and what is there is not done again; several processes may share one DIR. The
tables go to standard output and, as JSON, to `benchmarks/results/known_unknown.json` with a picture beside it (with
`--quick` into DIR only). In two processes on two cores it takes about 72 minutes, 8 a run: `--minutes 45` makes parts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import pick
from transformers import TrainerCallback

from caltune.collator import evaluation_metrics
from caltune.data import load_questions
from caltune.errors import InputError
from caltune.formats import read_knowledge, read_scores
from caltune.knowledge import Knowledge
from caltune.metrics import DIRECTIONS, noise_floor
from caltune.metrics.bootstrap import bootstrap, percentile_interval
from caltune.metrics.summary import all_metrics, metric_values
from caltune.types import OptionLogits, Question

SETTINGS = {
    **common.RUN,
    "pool": 1500,
    "sets": 4,
    "exemplars": 2,
    "train": 320,
    "course": 300,
    "points": [0, 1 / 12, 1 / 6, 1 / 3, 1 / 2, 3 / 4, 1],  # of the steps, where the course is scored
    "test": 1000,
    "seeds": [0, 1, 2],
}
QUICK = {"pool": 160, "sets": 2, "train": 32, "course": 24, "points": [0, 1], "test": 60, "epochs": 1, "seeds": [0]}
PARTS = 5
MIXES = {f"{known}:{PARTS - known}": known / PARTS for known in range(PARTS, -1, -1)}  # known:unknown -> known share
COURSE = ("accuracy", "confidence", "ece")


def main() -> None:
    arguments, folder = common.parse(__doc__, "known_unknown")
    settings = common.settings_for(arguments, SETTINGS, QUICK)
    data = load(settings)
    if not common.work(partial(ready, settings, folder, data), arguments.minutes):
        return
    knowledge = read_knowledge(knowledge_path(settings, folder)).knowledge
    found = {mix: [read_scores(folder / f"{name(mix)}-{seed}.parquet") for seed in settings["seeds"]] for mix in MIXES}
    rows = {mix: [file.scores for file in files] for mix, files in found.items()}
    courses = {mix: mean_course([file.metadata["course"] for file in files]) for mix, files in found.items()}
    zero_shot = [read_scores(folder / "zero-shot.parquet").scores]
    result = common.table({**rows, "zero-shot": zero_shot}, baselines=("5:0", "zero-shot"))
    slopes = trend(list(rows.values()), list(MIXES.values()))
    pairs = len(paired(data["pool"], knowledge, 0))
    print(f"\nOf {len(knowledge)} training questions: {knowledge.counts()}; {pairs} pairs within relations.")
    print_course(courses)
    common.print_table(result, baselines=("5:0",))
    print_trend(slopes)
    told = {"rows": result, "course": courses, "trend": slopes, "knowledge": knowledge.counts(), "pairs": pairs}
    target = common.publish("known_unknown", folder, quick=arguments.quick, document={"settings": settings, **told})
    draw(target.with_suffix(".png"), settings, told)


def load(settings: dict[str, Any]) -> dict[str, list[Question]]:
    """Questions by their use."""
    return {
        "pool": pick(load_questions("world-facts", "train"), settings["pool"], 0),
        "course": pick(load_questions("world-facts", "calibration"), settings["course"], 0),
        "test": pick(load_questions("world-facts", "test"), settings["test"], 0),
    }


def name(mix: str) -> str:
    """A mix as a part of a file's name."""
    return f"known-{mix.replace(':', '-')}"


def knowledge_path(settings: dict[str, Any], folder: Path) -> Path:
    return folder / "pool-{pool}-sets-{sets}-exemplars-{exemplars}.knowledge".format(**settings)


def ready(settings: dict[str, Any], folder: Path, data: dict[str, list[Question]]) -> common.Jobs:
    """What can be done now and has not been: the file it writes, and how."""
    jobs: common.Jobs = {}
    categories = knowledge_path(settings, folder)
    if not categories.exists():
        how = {"sets": settings["sets"], "exemplars": settings["exemplars"]}
        jobs[categories] = partial(common.categories_into, categories, settings, data["pool"], **how)
    zero_shot = folder / "zero-shot.parquet"
    if not zero_shot.exists():
        jobs[zero_shot] = partial(run_zero_shot, zero_shot, settings, data)
    for seed in settings["seeds"] if categories.exists() else []:
        for mix in MIXES:
            path = folder / f"{name(mix)}-{seed}.parquet"
            if not path.exists():
                jobs[path] = partial(run_mix, path, settings, data, mix, seed)
            else:
                common.require_made_with(path, made_with(settings, mix, seed))
    return jobs


def made_with(settings: dict[str, Any], mix: str, seed: int) -> dict[str, Any]:
    """Everything that decides a run's scores, so that a file made otherwise is not taken for it."""
    return {**{key: value for key, value in settings.items() if key != "seeds"}, "mix": mix, "seed": seed}


def paired(questions: Sequence[Question], knowledge: Knowledge, seed: int) -> list[tuple[Question, Question]]:
    """A known and an unknown question of the same relation, as often as there are both; drawn with a seed.

    >>> ask = lambda name, group: Question(name, f"What is {name}?", ("yes", "no"), 0, group=group)
    >>> questions = [ask("a", "x"), ask("b", "x"), ask("c", "x"), ask("d", "y")]
    >>> knowledge = Knowledge(tuple("abcd"), ("HighlyKnown", "Unknown", "Unknown", "Unknown"), [1, 0, 0, 0], [0.5] * 4)
    >>> pairs = paired(questions, knowledge, seed=0)  # relation y has nothing known
    >>> [(known.id, unknown.id in "bc") for known, unknown in pairs]
    [('a', True)]
    """
    draw = random.Random(seed)
    kinds: dict[str, tuple[list[Question], list[Question]]] = {}
    for question, is_known in zip(questions, knowledge.known_of([q.id for q in questions]), strict=True):
        kinds.setdefault(question.group, ([], []))[0 if is_known else 1].append(question)
    pairs = []
    for _, (known, unknown) in sorted(kinds.items()):
        fewer = min(len(known), len(unknown))
        pairs += list(zip(draw.sample(known, fewer), draw.sample(unknown, fewer), strict=True))
    draw.shuffle(pairs)
    return pairs


def mixed(pairs: Sequence[tuple[Question, Question]], known_share: float) -> list[Question]:
    """The known one of the first pairs, the unknown one of the others."""
    known = round(known_share * len(pairs))
    return [pair[0] for pair in pairs[:known]] + [pair[1] for pair in pairs[known:]]


class Course(TrainerCallback):
    """Scores the trainer's calibration questions, which plain fine-tuning makes no use of, at some of its steps."""

    trainer: Any

    def __init__(self, points: Sequence[float]) -> None:
        self.points = points
        self.found: list[dict[str, float]] = []

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.take(state)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.take(state)

    def take(self, state: Any) -> None:
        if state.global_step in {round(point * state.max_steps) for point in self.points}:
            scores = self.trainer.present_logits(self.trainer.calibration_rows)
            values = evaluation_metrics(scores)
            values["noise_floor"] = noise_floor(scores.decide(), draws=200)
            self.found.append({"step": state.global_step, **values})


def run_zero_shot(path: Path, settings: dict[str, Any], data: Any) -> None:
    from caltune.models import load_model

    common.score_into(path, settings, *load_model(settings["model"]), data["test"], split="test")


def run_mix(path: Path, settings: dict[str, Any], data: Any, mix: str, seed: int) -> None:
    """Fine-tune on one mix, noting its course, and score the test questions."""
    pairs = paired(data["pool"], read_knowledge(knowledge_path(settings, path.parent)).knowledge, seed)
    if len(pairs) < settings["train"]:
        raise InputError(f"a mix needs {settings['train']} pairs of questions, found {len(pairs)}; enlarge the pool")
    train = mixed(pairs[: settings["train"]], MIXES[mix])
    course = Course(settings["points"])
    tuned = common.fine_tune(settings, "SFT", {}, seed, train, data["course"], path.parent, callbacks=[course])
    how = {"split": "test", "seed": seed, "course": course.found, "made_with": made_with(settings, mix, seed)}
    common.score_into(path, settings, *tuned, data["test"], **how)


def mean_course(courses: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """Means over seeds at each step.

    >>> mean_course([[{"step": 0, "ece": 0.25}], [{"step": 0, "ece": 0.75}]])
    [{'step': 0.0, 'ece': 0.5}]
    """
    return [
        {key: float(np.mean([one[key] for one in points])) for key in points[0]}
        for points in zip(*courses, strict=True)
    ]


def trend(rows: Sequence[Sequence[OptionLogits]], shares: Sequence[float], draws: int = 1000) -> dict[str, Any]:
    """The slope of each metric on the known share, with a 95 % interval over questions and the slope of each seed.

    slope = Σ_r (s_r − s̄) m_r / Σ_r (s_r − s̄)²: by least squares, what a metric gains as the share goes from 0 to 1.
    `rows` holds for each share one set of scores a seed, all of the same questions.

    Two mixes: nothing known, half of the answers right; all known, all right.

    >>> half = OptionLogits(("a", "b"), [[1.0, 0.0], [1.0, 0.0]], [0, 1])
    >>> full = OptionLogits(("a", "b"), [[1.0, 0.0], [0.0, 1.0]], [0, 1])
    >>> trend([[half], [full]], [0.0, 1.0], draws=10)["accuracy"]["value"]
    0.5
    """
    centred = np.asarray(shares) - np.mean(shares)
    weights = centred / (centred @ centred)
    statistics = [[all_metrics(scores) for scores in seeds] for seeds in rows]
    count = len(rows[0][0])

    def slopes(counts: Any) -> Any:
        return np.tensordot(weights, [np.mean([one(counts) for one in seeds], axis=0) for seeds in statistics], 1)

    values, replicates = metric_values(slopes, count), bootstrap(slopes, count, draws=draws)
    per_seed = np.tensordot(weights, [[metric_values(one, count) for one in seeds] for seeds in statistics], 1)
    return {
        metric: {
            **percentile_interval(float(values[i]), replicates[:, i]).to_json(),
            "per_seed": per_seed[:, i].tolist(),
        }
        for i, metric in enumerate(DIRECTIONS)
    }


def print_course(courses: dict[str, list[dict[str, float]]]) -> None:
    steps = [f"step {point['step']:.0f}" for point in next(iter(courses.values()))]
    print(f"\n| known:unknown, accuracy / confidence / ECE | {' | '.join(steps)} |\n|---{'|---' * len(steps)}|")
    for mix, course in courses.items():
        print(f"| {mix} | {' | '.join(' / '.join(f'{point[key]:.3f}' for key in COURSE) for point in course)} |")


def print_trend(slopes: dict[str, Any]) -> None:
    print("\n| metric | from 0:5 to 5:0 known, by a straight line | each seed |\n|---|---|---|")
    for metric in ("accuracy", "confidence", "ece", "nll", "brier"):
        slope = slopes[metric]
        seeds = ", ".join(f"{value:+.3f}" for value in slope["per_seed"])
        print(f"| {metric} | {slope['value']:+.3f} [{slope['low']:+.3f}, {slope['high']:+.3f}] | {seeds} |")


def draw(path: Path, settings: dict[str, Any], told: dict[str, Any]) -> None:
    """Above, the course of training; below, the end, against the known share."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 7.6), layout="constrained")
    axes = drawing.subplots(2, 3)
    colours = colormaps["viridis"](np.linspace(0, 0.88, len(MIXES)))
    for (mix, course), colour in zip(told["course"].items(), colours, strict=True):
        steps = [point["step"] for point in course]
        for panel, metric in zip(axes[0], COURSE, strict=True):
            panel.plot(steps, [point[metric] for point in course], "o-", color=colour, markersize=4, label=mix)
    for panel, title in zip(axes[0], ("Accuracy", "Mean confidence", "ECE (15 bins)"), strict=True):
        panel.set(title=f"{title}, {settings['course']} calibration questions", xlabel="optimizer steps")
    axes[0, 0].sharey(axes[0, 1])
    axes[0, 0].legend(title="known:unknown", fontsize=8, title_fontsize=8)
    result, shares = told["rows"], np.array(list(MIXES.values()))
    _ends(axes[1, 0], result, shares, "accuracy", "#222222", "accuracy")
    _ends(axes[1, 0], result, shares, "confidence", "#d55e00", "mean confidence")
    _ends(axes[1, 1], result, shares, "ece", "#0072b2", "mean over seeds, 95 % interval; a dash a seed")
    _ends(axes[1, 2], result, shares, "nll", "#0072b2", "mean over seeds, 95 % interval; a dash a seed")
    axes[1, 1].plot(shares, [result[mix]["noise_floor"] for mix in MIXES], ":", color="#777777", label="chance alone")
    titles = {"accuracy": "Accuracy and confidence", "ece": "ECE (15 bins)", "nll": "NLL, nats"}
    for panel, (metric, title) in zip(axes[1], titles.items(), strict=True):
        slope = "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**told["trend"][metric])
        label = f"known:unknown\n{metric}, slope from 0:5 to 5:0: {slope}"
        panel.set(title=f"{title}, {settings['test']} test questions", xlabel=label, xticks=shares, xticklabels=MIXES)
        panel.legend(fontsize=8)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e5e5e5", linewidth=0.6)
    drawing.suptitle("Fine-tuning on known and unknown questions: SmolLM2-135M-Instruct, world-facts")
    common.save_picture(drawing, path)


def _ends(panel: Any, result: dict[str, Any], shares: Any, metric: str, colour: str, label: str) -> None:
    """Means with intervals, and each seed as a faint mark."""
    mean = [result[mix]["mean"][metric] for mix in MIXES]
    value, low, high = (np.array([item[key] for item in mean]) for key in ("value", "low", "high"))
    panel.errorbar(shares, value, (value - low, high - value), fmt="o-", color=colour, capsize=3, label=label)
    for share, mix in zip(shares, MIXES, strict=True):
        seeds = result[mix]["per_seed"][metric]
        panel.plot([share] * len(seeds), seeds, "_", color=colour, alpha=0.5, markersize=9)


if __name__ == "__main__":
    main()
