"""Is caltune's training step faster than TRL's and than the released RCFT step, and how near is it to the bound?

    python benchmarks/speed_training.py [--data world-facts] [--rounds 3] [--steps 12] [--device cpu] [--quick]

All train the same questions in the same order and batches with the same LoRA and optimizer:

- `trl as it comes`: TRL's `SFTTrainer` on rows of prompt and completion with its defaults: activation checkpointing,
  and bf16 on a CPU too;
- `trl` at its best, as all of caltune's without checkpointing, in float32 on a CPU, and with freed memory kept, which
  caltune sees to (`caltune.allocator`): plain, padding-free or batched by length, whichever trains most questions a
  second in a trial. Packing is padding-free with other batches;
- `caltune rows`: `CalibrationTrainer` on those very rows, so the very same loss: the two curves are compared;
- `sft tokens`, `sft`, `rcft`, `cogcalib`: caltune on questions, by the answer's tokens or over the options;
- `released rcft`: the cost of the step in the authors' code: each row padded to 2,048 tokens, two forward passes,
  logits for every position, two rows at a time (one on a CPU, where two want more than 24 GB). A yardstick of time;
  what it learns is in `docs/papers.md`.

Every run is a process of its own, in turn, so that its peak memory (beyond what it held before the first step) is its
own. Tokens are those of prompts and right answers, padding and wrong options not counted. The bound is the fewest
operations of these batches (`limits.py`), forward and back to the adapters, at the rates measured for the model's
shapes. Then memory against vocabulary x length, for made-up models. About 40 minutes on two cores with nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import limits
import numpy as np
import training_sides
from scaling import peak_bytes

from caltune.errors import InputError

TRL_SETTINGS = ("plain", "padding-free", "by length")
CALTUNE = ("caltune rows", "sft tokens", "sft", "rcft", "cogcalib")
SERIES = [(vocabulary, length) for vocabulary in (8192, 32768, 131072) for length in (64, 256, 1024)]


def backward_and_forward(work: limits.Work, shape: limits.Shape, machine: limits.Machine, rank: int) -> float:
    """The least seconds of a training step of LoRA: forward, and back to the inputs of every layer.

    Frozen weights need no gradient, so a linear layer or the head takes twice its forward, attention three times. An
    adapter of rank r at a layer (k, n) has r (k + n) weights, whose gradients are needed too: three times its forward.

    >>> shape = limits.Shape(linear={(2, 3): 4}, head=(2, 5), attention=6)
    >>> machine = limits.Machine(linear=10.0, head=20.0, best=30.0, copy=1.0, threads=1)
    >>> # forward: 480 in layers, 720 in attention, 40 in the head; adapters of rank 1: 2 · 4 (2 + 3) · 10 tokens = 400
    >>> backward_and_forward(limits.Work(10, 30, 2), shape, machine, 1)  # (2·480 + 3·400)/10 + 3·720/30 + 2·40/20
    292.0
    """
    linear, attention, head = limits.operations(work, shape)
    adapters = 2 * rank * sum(count * (k + n) for (k, n), count in shape.linear.items()) * work.tokens
    return (2 * linear + 3 * adapters) / machine.linear + 3 * attention / machine.best + 2 * head / machine.head


def in_own_process(run: dict[str, Any]) -> dict[str, Any]:
    """One run in a process whose memory nothing else has used."""
    done = subprocess.run(
        [sys.executable, __file__, "--run", json.dumps(run)], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    if done.returncode:
        killed = f"killed by signal {-done.returncode}; had it memory enough?" if done.returncode < 0 else ""
        raise SystemExit(f"{run}\n{done.stderr}\n{killed}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(run: dict[str, Any]) -> dict[str, Any]:
    """What `in_own_process` gives; in this process."""
    if "vocabulary" in run:
        return training_sides.memory_of(run, lambda: peak_bytes(run["device"]))
    with tempfile.TemporaryDirectory() as folder:
        return training_sides.train(run, Path(folder), lambda: peak_bytes(run["device"]))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def compare(run: dict[str, Any], sides: Sequence[str], rounds: int) -> dict[str, Any]:
    """All sides in turn, `rounds` times: speeds, memory, losses, and how many times as long as ours each takes.

    Raises `InputError` when TRL and caltune, on the same rows, do not learn by the same loss.
    """
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides:
            found[side].append(in_own_process({**run, "side": side}))
            print(f"  round {number + 1}, {side}: {found[side][-1]['seconds_a_step']:.2f} s a step", file=sys.stderr)
    result: dict[str, Any] = {}
    for side, runs in found.items():
        seconds = [one["seconds_a_question"] for one in runs]
        result[side] = {
            "questions_a_second": spread([1 / value for value in seconds]),
            "tokens_a_second": spread([one["tokens_a_question"] / one["seconds_a_question"] for one in runs]),
            "peak_bytes": spread([one["peak_bytes"] for one in runs]),
            "losses": runs[0]["losses"],
            **{name: runs[0][name] for name in ("padding", "terms_share", "refresh_share") if name in runs[0]},
            "times": {
                ours: spread([a / b["seconds_a_question"] for a, b in zip(seconds, found[ours], strict=True)])
                for ours in CALTUNE
            },
        }
    theirs, ours = (np.array(result[side]["losses"]) for side in (f"trl {TRL_SETTINGS[0]}", "caltune rows"))
    result["loss_difference"] = float(np.abs(theirs - ours).max())
    if result["loss_difference"] > run["tolerance"]:
        raise InputError(
            f"caltune rows must learn by TRL's loss to {run['tolerance']}, got curves {result['loss_difference']} apart"
        )
    return result


def best_setting(run: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The side of TRL that trains most questions a second in one run each, and what each did."""
    speeds = {
        side: 1 / in_own_process({**run, "side": side})["seconds_a_question"]
        for side in (f"trl {name}" for name in TRL_SETTINGS)
    }
    return max(speeds, key=lambda side: speeds[side]), speeds


def print_table(found: dict[str, Any], sides: Sequence[str], bounds: dict[str, float]) -> None:
    """One row a side."""
    print("\n| | questions/s | useful tokens/s | times as long as sft | peak memory, MiB | share of bound | terms |")
    print("|---|---|---|---|---|---|---|")
    for side in sides:
        row = found[side]
        speed, tokens, times = row["questions_a_second"], row["tokens_a_second"]["median"], row["times"]["sft"]
        share = f"{bounds[side] * speed['median']:.0%}" if side in bounds else ""
        terms = f"{row['terms_share']:.1%}" if "terms_share" in row else ""
        print(
            f"| {side} | {speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f}) | {tokens:.0f} | "
            f"{times['median']:.2f} ({times['low']:.2f} to {times['high']:.2f}) | "
            f"{row['peak_bytes']['median'] / 2**20:.0f} | {share} | {terms} |"
        )
    print(f"\nthe loss curves of TRL and caltune on the same rows differ by at most {found['loss_difference']:.1e}")


def memory_series(device: str, series: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Peak memory of a step on a made-up model, ours and with logits for every position."""
    print("\n| vocabulary | prompt tokens | caltune, MiB | with all logits, MiB |\n|---|---|---|---|")
    points = []
    for vocabulary, length in series:
        point: dict[str, Any] = {"vocabulary": vocabulary, "length": length, "device": device}
        for side in ("caltune", "all logits"):
            point[side] = in_own_process({**point, "side": side})["peak_bytes"]
        points.append(point)
        shown = " | ".join(f"{point[side] / 2**20:.0f}" for side in ("caltune", "all logits"))
        print(f"| {vocabulary:,} | {length:,} | {shown} |", flush=True)
    return points


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", default="smollm2")
        parser.add_argument("--data", default="world-facts")
        parser.add_argument("--batch", type=int, default=16)
        parser.add_argument("--steps", type=int, default=12, help="timed, after two to warm up")
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--device", default="cpu")
        parser.add_argument("--released-length", type=int, default=2048, help="what the released code pads to")
        parser.add_argument("--tolerance", type=float, default=1e-3, help="of the two loss curves")
        parser.add_argument("--only", nargs="+", choices=("sides", "memory"), default=["sides", "memory"])

    if "--run" in sys.argv:
        print(json.dumps(measured(json.loads(sys.argv[sys.argv.index("--run") + 1]))))
        return
    arguments, folder = common.parse(__doc__, "speed_training", add=add, alone=True)
    if arguments.quick:
        arguments.steps, arguments.rounds, arguments.released_length = 2, 1, 128
    run = {name: getattr(arguments, name) for name in ("model", "data", "batch", "steps", "device", "tolerance")}
    run["released_length"] = arguments.released_length
    document: dict[str, Any] = {**run, "rounds": arguments.rounds, "lora_r": training_sides.RANK}
    if "sides" in arguments.only:
        best, speeds = best_setting(run)
        print(f"TRL's best: {best}; in questions/s {', '.join(f'{k} {v:.2f}' for k, v in speeds.items())}")
        sides = list(dict.fromkeys(["trl as it comes", "trl plain", best, *CALTUNE, "released rcft"]))
        found = compare(run, sides, arguments.rounds)
        start = time.perf_counter()
        bounds = training_sides.bounds(run, backward_and_forward, seconds=0.02 if arguments.quick else 0.2)
        print(f"bounds measured in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        print_table(found, sides, bounds)
        document |= {"trl_best": best, "trl_trial": speeds, "bound_seconds_a_question": bounds, "sides": found}
    if "memory" in arguments.only:
        document["memory"] = memory_series(arguments.device, SERIES[::4] if arguments.quick else SERIES)
    from importlib.metadata import version

    document["versions"] = {name: version(name) for name in ("trl", "torch", "transformers", "peft")}
    common.publish("speed_training", folder, quick=arguments.quick, document=document)


if __name__ == "__main__":
    main()
