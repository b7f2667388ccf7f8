"""The picture of a table of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import save_picture

MARKS = "Mean over seeds with 95 % interval over questions; a dash a seed; dotted"


def describe(settings: dict[str, Any]) -> str:
    """What was trained and asked, for a title."""
    return (
        f"SmolLM2-135M-Instruct, world-facts, {settings['train']} training and {settings['test']} test questions, "
        f"{len(settings['seeds'])} seed(s)"
    )


def draw_rows(
    path: Path,
    result: dict[str, Any],
    labels: dict[str, str],
    marked: tuple[str, str],
    title: str,
    plain: Sequence[str] = (),
) -> None:
    """A line a row of `table`'s result, and a panel a metric; what is plain fine-tuning (`plain`, or sft) is grey.

    The two `marked` rows are drawn through as dotted lines, grey and blue.
    """
    from matplotlib.figure import Figure

    names = list(result)[::-1]
    drawing = Figure(figsize=(13, 0.42 * len(names) + 1.9), layout="constrained")
    titles = {"accuracy": "Accuracy", "nll": "NLL, nats", "brier": "Brier score", "ece": "ECE (15 bins)"}
    for panel, (metric, above) in zip(drawing.subplots(1, 4, sharey=True), titles.items(), strict=True):
        for baseline, colour in zip(marked, ("#777777", "#0072b2"), strict=True):
            panel.axvline(result[baseline]["mean"][metric]["value"], color=colour, linewidth=0.9, linestyle=":")
        for height, name in enumerate(names):
            mean, seeds = result[name]["mean"][metric], result[name]["per_seed"][metric]
            colour = "#777777" if name.startswith("sft") or name in plain else "#0072b2"
            panel.plot((mean["low"], mean["high"]), (height, height), color=colour, linewidth=1.4)
            panel.plot(mean["value"], height, "o", color=colour, markersize=5)
            panel.plot(seeds, [height] * len(seeds), "|", color=colour, alpha=0.6, markersize=9)
        panel.set(title=above, yticks=range(len(names)), yticklabels=[labels[name] for name in names])
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    drawing.suptitle(title, fontsize=10)
    save_picture(drawing, path)
