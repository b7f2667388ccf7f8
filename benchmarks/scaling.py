"""Does the cost of scoring grow with the work and no faster?

    python benchmarks/scaling.py [--quick] [--device cpu] [--only questions options length model]

Made-up questions of random tokens, models of random weights built in memory (so nothing is downloaded): one of the
135M model's shape, one of a 1B model's, and a tiny one for many questions. Four series, a picture each of time and of
memory: questions 10² to 10⁵ (tiny), options 2 to 26, prompts of 50 to 4,000 tokens, and 135M beside 1B. Each point runs
in a process of its own; memory is what the process needed beyond the model. Beside each time stand the fewest
operations of that work (`limits.py`), and the exponent of time over operations: 1 is growth in step, more is too much.
About 25 minutes on two cores that are otherwise idle, 8 GB of memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import common
import numpy as np

LLAMA = {"model_type": "llama", "max_position_embeddings": 8192, "tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
POINT = {"model": "135M", "questions": 32, "options": 4, "option_tokens": 3, "prompt": 50}
SERIES: dict[str, list[dict[str, Any]]] = {
    "questions": [{"model": "tiny", "questions": n, "option_tokens": 1} for n in (100, 1000, 10_000, 100_000)],
    "options": [{"options": n} for n in (2, 4, 8, 16, 26)],
    "length": [{"prompt": n, "questions": 8} for n in (50, 100, 250, 500, 1000, 2000, 4000)],
    "model": [{"model": name, "questions": 16} for name in ("135M", "1B")],
}
QUICK = {
    "questions": [{"model": "tiny", "questions": n, "option_tokens": 1} for n in (100, 1000)],
    "options": [{"model": "tiny", "options": n} for n in (2, 26)],
    "length": [{"model": "tiny", "prompt": n, "questions": 4} for n in (50, 400)],
    "model": [{"model": "tiny", "questions": 8}],
}


def made_up(point: dict[str, Any], vocabulary: int) -> list[Any]:
    """Questions of random tokens, with prompts between half and one and a half times the length asked for."""
    from caltune.scoring.packing import EncodedQuestion

    generator = np.random.default_rng(0)
    lengths = generator.integers(point["prompt"] // 2, point["prompt"] * 3 // 2 + 1, point["questions"])
    questions = []
    for length in np.maximum(1, lengths).tolist():
        options = generator.integers(3, vocabulary, (point["options"], point["option_tokens"])).tolist()
        prompt = generator.integers(3, vocabulary, length).tolist()
        questions.append(EncodedQuestion(tuple(prompt), tuple(map(tuple, options))))
    return questions


def measure(point: dict[str, Any], device: str) -> dict[str, Any]:
    """Seconds and memory of scoring, the best of two runs, and the fewest operations; in this process."""
    import limits
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from caltune.scoring.cost import ScoringCost
    from caltune.scoring.engine import score_encoded

    settings = {**LLAMA, **MODELS[point["model"]]}
    config = AutoConfig.for_model(**settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(device).eval()
    questions = made_up(point, settings["vocab_size"])
    score_encoded(model, questions[:2], 0)
    before = forget_peak(device)
    seconds = []
    for _ in range(1 if point["questions"] > 10_000 else 2):
        cost = ScoringCost()
        start = time.perf_counter()
        score_encoded(model, questions, 0, cost=cost)
        seconds.append(time.perf_counter() - start)
    return {
        **point,
        "seconds": min(seconds),
        "bytes": peak_bytes(device) - before,
        "tera_operations": sum(limits.operations(limits.fewest(questions), limits.shape_of(model))) / 1e12,
        "padding": cost.padding,
    }


def forget_peak(device: str) -> int:
    """Bytes held now, without those kept for later; `peak_bytes` counts from here, where the system can do that."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # another system than Linux
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes(device)


def peak_bytes(device: str) -> int:
    """The most memory this process has held, since `forget_peak` or so far."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    with suppress(OSError, IndexError):  # what getrusage tells may be of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_own_process(point: dict[str, Any], device: str) -> dict[str, Any]:
    """`measure` in a process of its own, whose memory nothing else has used."""
    command = [sys.executable, __file__, "--point", json.dumps(point), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(points: list[dict[str, Any]]) -> float | None:
    """Slope of log time over log operations, None for a single point."""
    if len(points) < 2:
        return None
    work, seconds = (np.log([point[name] for point in points]) for name in ("tera_operations", "seconds"))
    return float(np.polyfit(work, seconds, 1)[0])


def picture(results: dict[str, Any], path: Path) -> None:
    """Time and memory of each series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(2, len(results), figsize=(4 * len(results), 5.6), squeeze=False)
    for column, (name, series) in enumerate(results.items()):
        varied = {"length": "prompt"}.get(name, name)
        values = [point[varied] for point in series["points"]]
        for row, (what, unit) in enumerate((("seconds", 1), ("bytes", 2**20))):
            axis, heights = axes[row][column], [point[what] / unit for point in series["points"]]
            if name == "model":
                axis.bar(values, heights, 0.5, color="#2457a6")
            else:
                axis.plot(values, heights, "o-", color="#2457a6")
                axis.set_xscale("log")
                axis.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
                axis.minorticks_off()
                axis.set_yscale("log" if row == 0 else "linear")
            axis.set_ylim(bottom=None if axis.get_yscale() == "log" else 0)
            axis.set_xlabel({"length": "prompt tokens"}.get(name, name))
            axis.set_ylabel("seconds" if row == 0 else "memory, MiB")
            axis.grid(True, alpha=0.2)
    drawing.tight_layout()
    common.save_picture(drawing, path)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--device", default="cpu")
        parser.add_argument("--only", nargs="+", choices=tuple(SERIES))
        parser.add_argument("--point", help=argparse.SUPPRESS)

    if "--point" in sys.argv:
        parser = argparse.ArgumentParser()
        add(parser)
        arguments = parser.parse_args()
        print(json.dumps(measure(json.loads(arguments.point), arguments.device)))
        return
    arguments, folder = common.parse(__doc__, "scaling", add=add, alone=True)
    results: dict[str, Any] = {}
    for name, points in (QUICK if arguments.quick else SERIES).items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"\n{name}\n\n| point | seconds | 10¹² operations | each | MiB | padding |\n|---|---|---|---|---|---|")
        found = []
        for changed in points:
            one = in_own_process({**POINT, **changed}, arguments.device)
            found.append(one)
            shown = ", ".join(f"{key} {value}" for key, value in changed.items())
            each = one["seconds"] / one["tera_operations"]
            print(
                f"| {shown} | {one['seconds']:.3g} | {one['tera_operations']:.3g} | {each:.3g} s | "
                f"{one['bytes'] / 2**20:.0f} | {one['padding']:.1%} |",
                flush=True,
            )
        results[name] = {"points": found, "exponent": exponent(found)}
        if results[name]["exponent"] is not None:
            print(f"\ntime grows as operations to the {results[name]['exponent']:.2f}")
    document = {"device": arguments.device, "series": results}
    target = common.publish("scaling", folder, quick=arguments.quick, document=document)
    picture(results, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
