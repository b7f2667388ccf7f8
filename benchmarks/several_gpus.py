"""What several GPUs would gain, on paper: the tables of docs/guide.md, section "Several GPUs". Nothing is measured.

    python benchmarks/several_gpus.py

A step of training takes the longest GPU's computing and then the exchange; scoring takes its share of the computing
after the model is loaded. The guide says what each number stands for and what is assumed.
"""

from __future__ import annotations

import math

import numpy as np

WEIGHTS = 8e9
TRAINED = 84e6  # weights of LoRA with r = 32
TOKENS = 110  # of a question
SPREAD = 0.5  # standard deviation of lengths, of their mean
OPERATIONS = 4e14  # a second, 40 % of an H200's peak
BUCKETS, HOP = 14, 20e-6  # of gradients; seconds
LOADING = 8.0  # seconds on each machine
GPUS = (8, 64, 256, 1024)
QUESTIONS = {"MMLU": 14_042, "a million": 1_000_000}


def bandwidth(gpus: int) -> float:
    """Bytes a second between GPUs, within eight and beyond."""
    return 200e9 if gpus <= 8 else 40e9


def largest_of(gpus: int) -> float:
    """The expected largest of so many normal draws: ∫ (1 − Φⁿ) − Φ(−z)ⁿ.

    >>> round(largest_of(2), 4), round(1 / math.sqrt(math.pi), 4)
    (0.5642, 0.5642)
    """
    z = np.linspace(0.0, 9.0, 20_001)
    below = np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in z])
    values = 1 - below**gpus - (1 - below) ** gpus
    return float(np.sum((values[1:] + values[:-1]) / 2) * (z[1] - z[0]))


def exchange(gpus: int) -> float:
    """Seconds in which all gradients are summed over GPUs, with two trees of hops for each bucket."""
    sent = 2 * (gpus - 1) / gpus * 4 * TRAINED
    return sent / bandwidth(gpus) + BUCKETS * 2 * math.log2(gpus) * HOP


def efficiency(gpus: int, questions: int, *, sharded: bool = False) -> float:
    """Share of the GPUs' time that computes, where each has so many questions between two exchanges."""
    alone = 4 * WEIGHTS * TOKENS * questions / OPERATIONS
    longest = alone * (1 + largest_of(gpus) * SPREAD / math.sqrt(questions))
    if sharded:  # all weights twice, at two bytes, and half of the gradients, while it computes
        moved = (gpus - 1) / gpus * (2 * 2 * WEIGHTS + 4 * TRAINED)
        return alone / max(longest, moved / bandwidth(gpus))
    return alone / (longest + exchange(gpus))


def training_rows() -> list[str]:
    """A line of the guide's table for each number of GPUs."""
    rows = []
    for gpus in GPUS:
        shares = [efficiency(gpus, b, sharded=sharded) for sharded in (False, True) for b in (16, 128)]
        longest = largest_of(gpus) * SPREAD / math.sqrt(16)
        cells = [f"{gpus:,}", f"{1e3 * exchange(gpus):.0f} ms", f"+{longest:.0%}".replace("%", " %")]
        cells += [f"{share:.0%}".replace("%", " %") for share in shares]
        rows.append(f"| {' | '.join([*cells, f'{16 * gpus:,}'])} |")
    return rows


def scoring(questions: int, gpus: int) -> tuple[float, float]:
    """Seconds with loading, and the share of them that computes."""
    computing = 2 * WEIGHTS * TOKENS * questions / OPERATIONS / gpus
    return computing + LOADING, computing / (computing + LOADING)


def main() -> None:
    print("| GPUs | exchange | longest batch, b = 16 | efficiency, b = 16 | b = 128 | FSDP, b = 16 | FSDP, b = 128 |")
    print("\n".join(training_rows()))
    for name, questions in QUESTIONS.items():
        for gpus in GPUS:
            seconds, share = scoring(questions, gpus)
            print(f"scoring {name} on {gpus:,}: {seconds:.0f} s, {share:.0%}")


if __name__ == "__main__":
    main()
