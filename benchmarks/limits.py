"""How fast can this machine do it at all?

    python benchmarks/limits.py [--model smollm2] [--data ARC_EASY_OR_OTHER] [--device cpu] [--quick]

Measured: the rate of matrix products at the shapes of the model's own linear layers, for several batch sizes, with one
thread and with all, and the bandwidth of copying. Counted: the fewest operations a workload of questions needs, so the
shortest time. `bound` gives that time for any workload; the other benchmarks print their time as a share of it.

The fewest operations: each distinct token once (what prompts begin with in common once over the whole workload),
attention to what stands before it, vocabulary logits only where an option's token is predicted. Norms, rotations,
softmax, activations and Python are counted as free, so no program reaches the bound.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import common
import torch
from torch.nn import functional

from caltune.allocator import keep_freed_memory
from caltune.models import default_device, default_dtype, load_model
from caltune.scoring.packing import EncodedQuestion

BATCH_TOKENS = (128, 512, 2048)


@dataclass(frozen=True, slots=True)
class Work:
    """The fewest of a workload: distinct `tokens`, (token, earlier token) `pairs`, `heads` where a token is predicted.

    >>> two = [EncodedQuestion((5, 6, 7), ((1, 2), (3,))), EncodedQuestion((5, 6, 8), ((1,), (2,)))]
    >>> fewest(two)  # 5 6 | 7 1 | 8: five tokens that see 1, 2, 3, 4 and 3; all but 5 and 6 predict something
    Work(tokens=5, pairs=13, heads=3)
    """

    tokens: int
    pairs: int
    heads: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model counts: linear layers (inputs, outputs) -> how many, the output head, the width of attention."""

    linear: dict[tuple[int, int], int]
    head: tuple[int, int]
    attention: int  # heads x width of a head, summed over layers

    @property
    def parameters(self) -> int:
        """Weights of the linear layers and the head."""
        return sum(count * k * n for (k, n), count in self.linear.items()) + math.prod(self.head)


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured rates of a machine at a model's shapes, in operations a second; copying in bytes a second."""

    linear: float
    head: float
    best: float
    copy: float
    threads: int


def fewest(encoded: Sequence[EncodedQuestion]) -> Work:
    """The work in a tree of all that is read: what begins alike is one path. Sorted, neighbours share the most."""
    paths = sorted({((*item.prompt, *option[:-1]), len(item.prompt)) for item in encoded for option in item.options})
    tokens = pairs = heads = 0
    predicting: list[bool] = []  # of the tokens of the present path
    for (before, _), (path, prompt) in pairwise(chain([((), 0)], paths)):
        kept = _common(before, path)
        tokens += len(path) - kept
        pairs += len(path) * (len(path) + 1) // 2 - kept * (kept + 1) // 2
        predicting[kept:] = [False] * (len(path) - kept)
        heads += predicting[prompt - 1 :].count(False)
        predicting[prompt - 1 :] = [True] * (len(path) - prompt + 1)
    return Work(tokens, pairs, heads)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def shape_of(model: Any) -> Shape:
    """The linear layers of a model's blocks, its head and its attention."""
    head = model.get_output_embeddings()
    linear: dict[tuple[int, int], int] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            key = (module.in_features, module.out_features)
            linear[key] = linear.get(key, 0) + 1
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linear, (head.in_features, head.out_features), config.num_hidden_layers * config.num_attention_heads * width
    )


def operations(work: Work, shape: Shape) -> tuple[float, float, float]:
    """Multiplications and additions of a forward pass: in linear layers, in attention (QKᵀ and AV), in the head."""
    per_token = sum(2 * count * k * n for (k, n), count in shape.linear.items())
    return per_token * work.tokens, 4 * shape.attention * work.pairs, 2 * math.prod(shape.head) * work.heads


def shortest_seconds(work: Work, shape: Shape, machine: Machine) -> float:
    """The least time a forward pass over the workload can take.

    Linear layers and head at the rates measured for their shapes, attention at the best rate of all.
    """
    linear, attention, head = operations(work, shape)
    return linear / machine.linear + attention / machine.best + head / machine.head


def measure(
    shape: Shape,
    rows: Sequence[int] = BATCH_TOKENS,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 0.2,
) -> Machine:
    """The best rates over batches of so many `rows`: of all linear layers together, of the head, and of any shape."""
    keep_freed_memory()
    rates = {m: product_rates(shape, m, device=device, dtype=dtype, seconds=seconds) for m in rows}
    linear = {
        m: sum(count * k * n for (k, n), count in shape.linear.items())
        / sum(count * k * n / found[k, n] for (k, n), count in shape.linear.items())
        for m, found in rates.items()
    }
    return Machine(
        linear=max(linear.values()),
        head=max(found[shape.head] for found in rates.values()),
        best=max(max(found.values()) for found in rates.values()),
        copy=copy_rate(device),
        threads=torch.get_num_threads(),
    )


def product_rates(
    shape: Shape, rows: int, *, device: str | torch.device, dtype: torch.dtype, seconds: float = 0.2
) -> dict[tuple[int, int], float]:
    """For each layer (K, N): operations a second of (rows, K) · (K, N), the best of many."""
    found = {}
    for k, n in [*shape.linear, shape.head]:
        values = torch.randn(rows, k, device=device, dtype=dtype)
        weight = torch.randn(n, k, device=device, dtype=dtype)
        found[k, n] = (
            2 * rows * k * n / best_seconds(lambda v=values, w=weight: functional.linear(v, w), device, seconds)
        )
    return found


def copy_rate(device: str | torch.device, size: int = 2**28) -> float:
    """Bytes read and written a second while copying `size` bytes, the best of several."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device, 1.0)


@torch.inference_mode()
def best_seconds(call: Callable[[], Any], device: str | torch.device, seconds: float) -> float:
    """The shortest of at least three calls, repeated for so many seconds."""
    wait: Callable[[], Any] = torch.cuda.synchronize if torch.device(device).type == "cuda" else (lambda: None)
    call()
    wait()
    best, count, end = math.inf, 0, time.perf_counter() + seconds
    while count < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        wait()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bound(model: Any, encoded: Sequence[EncodedQuestion], **how: Any) -> dict[str, Any]:
    """The bound of a workload, as JSON holds it: work, operations, rates and the shortest seconds."""
    shape = shape_of(model)
    machine = measure(shape, device=model.device, dtype=model.dtype, **how)
    work = fewest(encoded)
    return {
        "tokens": work.tokens,
        "heads": work.heads,
        "tera_operations": sum(operations(work, shape)) / 1e12,
        "giga_operations_a_second": machine.linear / 1e9,
        "threads": machine.threads,
        "seconds": shortest_seconds(work, shape, machine),
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", default="smollm2")
        parser.add_argument("--data", default="world-facts", help="questions whose bound is shown")
        parser.add_argument("--device")

    arguments, folder = common.parse(__doc__, "limits", add=add, alone=True)
    keep_freed_memory()
    device = torch.device(arguments.device or default_device())
    model, tokenizer = load_model(arguments.model, device=device, dtype=default_dtype(device))
    shape = shape_of(model)
    seconds = 0.02 if arguments.quick else 0.5
    every = torch.get_num_threads()
    layers = [*shape.linear, shape.head]
    print(f"| threads | tokens | {' | '.join(f'{k} to {n}' for k, n in layers)} |\n|{'---|' * (len(layers) + 2)}")
    table = []
    for count in sorted({1, every}) if device.type == "cpu" else [every]:
        for rows in BATCH_TOKENS:
            with threads(count):
                found = product_rates(shape, rows, device=device, dtype=model.dtype, seconds=seconds)
            table.append(
                {"threads": count, "rows": rows, "giga_operations": {f"{k}x{n}": found[k, n] / 1e9 for k, n in layers}}
            )
            print(f"| {count} | {rows} | {' | '.join(f'{found[layer] / 1e9:.1f}' for layer in layers)} |")
    copied = copy_rate(device)
    print(f"\ncopying: {copied / 1e9:.1f} GB/s read and written; the table is in billions of operations a second")

    from caltune.data import load_questions
    from caltune.scoring import encode_questions

    questions = common.pick(load_questions(arguments.data, "test"), 20 if arguments.quick else 150, 0)
    bounds = {}
    for answers in ("continuations", "letters"):
        encoded = encode_questions(questions, tokenizer, answers=answers, template="plain")
        bounds[answers] = bound(model, encoded, seconds=seconds)
        print(f"{answers}: {len(questions)} questions of {arguments.data}, at best {bounds[answers]['seconds']:.2f} s")
    document = {"model": arguments.model, "device": str(device), "dtype": str(model.dtype), "products": table}
    document |= {"copied_bytes_a_second": copied, "data": arguments.data, "questions": len(questions), "bounds": bounds}
    common.publish("limits", folder, quick=arguments.quick, document=document)


if __name__ == "__main__":
    main()
