"""Tables and a picture of what `recalibration.py` found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np

METRICS = ("accuracy", "nll", "brier", "confidence_brier", "ece", "auroc")
HIGHER = ("accuracy", "auroc")
BASELINES = ("temperature", "constant")
DRAWN = (
    *("constant", "platt", "beta", "isotonic", "histogram", "vector", "umnn", "balcal", "selective", "pool"),
    *("lore", "umnn, features", "balcal, features"),
)
ROWS = 3  # of the picture


def summarise(settings: dict[str, dict[int, Any]]) -> dict[str, Any]:
    """Means over splits, and paired differences to the baselines, by setting, questions and method."""
    return {name: {str(n): _summary(raw) for n, raw in sizes.items()} for name, sizes in settings.items()}


def _summary(raw: dict[str, Any]) -> dict[str, Any]:
    values = raw["values"]
    rows = {}
    for name, splits in values.items():
        done = [split for split in splits if split is not None]
        row: dict[str, Any] = {"refused": len(splits) - len(done)}
        if done:
            row["mean"] = {metric: float(np.mean([split[metric] for split in done])) for metric in METRICS}
            row |= {f"minus {base}": _paired(splits, values[base]) for base in BASELINES if base != name}
        rows[name] = row
    return {**{key: raw[key] for key in ("kind", "questions", "test", "refused")}, "methods": rows}


def _paired(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    found = {}
    for metric in METRICS if both else ():
        difference = np.array([a[metric] - b[metric] for a, b in both])
        low, high = np.percentile(difference, [2.5, 97.5])
        better = difference > 0 if metric in HIGHER else difference < 0
        found[metric] = {
            "mean": float(difference.mean()),
            "low": float(low),
            "high": float(high),
            "better": int(better.sum()),
            "splits": len(both),
        }
    return found


def show(document: dict[str, Any], picture: Path) -> None:
    """Print the tables and draw the picture."""
    for name, sizes in document["settings"].items():
        for count, found in sizes.items():
            print(f"\n{name}: {count} calibration and {found['test']} test questions, {document['splits']} splits\n")
            print(
                "| method | accuracy | NLL | Brier | (c − a)² | ECE | (c − a)² − temperature's | better in | refused |"
            )
            print("|---|---|---|---|---|---|---|---|---|")
            for method, row in found["methods"].items():
                print(f"| {method} | {_cells(row)} | {row['refused']} |")
    for count, rows in document["digits"].items():
        print(f"\ndigits, {count} calibration images\n\n| | accuracy | ECE | AUROC | (c − a)² | NLL |")
        print("|---|---|---|---|---|---|")
        for name, row in rows.items():
            cells = [
                f"{row[key]:.3f}" if key in row else ""
                for key in ("accuracy", "ece", "auroc", "confidence_brier", "nll")
            ]
            print(f"| {name} | {' | '.join(cells)} |")
    for model, rows in document["regression"].items():
        print(f"\ndiabetes, {model}\n\n| | in 50 % | in 80 % | in 90 % | width of 90 % | CRPS |")
        print("|---|---|---|---|---|---|")
        for name, row in rows.items():
            cells = [f"{row[f'coverage_{level}']:.3f}" for level in (0.5, 0.8, 0.9)]
            print(f"| {name} | {' | '.join(cells)} | {row['width_0.9']:.1f} | {row['crps']:.2f} |")
    draw(document, picture)


def _cells(row: dict[str, Any]) -> str:
    if "mean" not in row:
        return " | ".join([""] * 7)
    cells = [f"{row['mean'][metric]:.3f}" for metric in ("accuracy", "nll", "brier", "confidence_brier", "ece")]
    paired = row.get("minus temperature", {}).get("confidence_brier")
    if not paired:
        return " | ".join([*cells, "", ""])
    difference = f"{paired['mean']:+.4f} [{paired['low']:+.4f}, {paired['high']:+.4f}]"
    return " | ".join([*cells, difference, f"{paired['better']} of {paired['splits']}"])


def draw(document: dict[str, Any], path: Path) -> None:
    """For each in-domain source the confidence's Brier score less that of temperature, by calibration questions."""
    from matplotlib.figure import Figure

    kept = {
        name: sizes for name, sizes in document["settings"].items() if next(iter(sizes.values()))["kind"] == "in-domain"
    }
    if not kept:
        return
    columns = min(ROWS, len(kept))
    lines = -(-len(kept) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).ravel()
    for axis in axes[len(kept) :]:
        axis.set_visible(False)
    for axis, (name, sizes) in zip(axes, kept.items(), strict=False):
        for i, method in enumerate(DRAWN):
            rows = {int(n): found["methods"].get(method, {}).get("minus temperature") for n, found in sizes.items()}
            points = [(n, row["confidence_brier"]["mean"]) for n, row in rows.items() if row]
            if points:
                style = "-o" if i < 10 else "--s"
                axis.plot(
                    *zip(*points, strict=True), style, color=f"C{i % 10}", markersize=3, linewidth=1, label=method
                )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xscale="log", title=name, xlabel="calibration questions", ylim=(-0.02, 0.06))
        axis.set_xticks(sorted(map(int, sizes)), [f"{int(n):,}" for n in sorted(map(int, sizes))])
        axis.minorticks_off()
    axes[0].set_ylabel("mean (c − a)² less temperature scaling's\n(below 0 is better)")
    drawn = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    shown = [method for method in DRAWN if method in drawn]
    figure.legend([drawn[method] for method in shown], shown, loc="outside right upper", fontsize=8)
    common.save_picture(figure, path)
