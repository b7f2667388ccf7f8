"""Processes that `accelerate launch` or `torchrun` start together: how they meet, who scores what, sums over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from caltune.models import default_device
from caltune.output import launched
from caltune.scoring.packing import EncodedQuestion

# One process may have to wait so long for another that got the longer questions; one that died is noticed at once.
PATIENCE = timedelta(hours=6)


def join_processes(device: str | torch.device | None = None) -> None:
    """Meet the other processes of this run; afterwards "cuda" is this process's own GPU. Alone, nothing happens.

    On GPUs they talk by NCCL, on CPUs by gloo; `device` is what the model will be put on.
    """
    if launched() > 1:
        from accelerate import PartialState

        on_cpu = torch.device(device or default_device()).type == "cpu"
        PartialState(cpu=on_cpu, timeout=PATIENCE)


def process_count() -> int:
    """Processes that have met; 1 where there is but this one."""
    return torch.distributed.get_world_size() if _have_met() else 1


def process_rank() -> int:
    """Number of this process, from 0; only number 0 writes."""
    return torch.distributed.get_rank() if _have_met() else 0


def _have_met() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def share_out(encoded: Sequence[EncodedQuestion], count: int) -> list[list[int]]:
    """Which questions each of `count` processes scores: about as many tokens each, and what begins alike together.

    >>> few = [EncodedQuestion((5, i), ((1,),)) for i in (9, 6, 8, 7)]
    >>> share_out(few, 2)
    [[1, 3], [0, 2]]
    """
    order = sorted(range(len(encoded)), key=lambda i: encoded[i].prompt)
    lengths = np.array([encoded[i].length for i in order])
    middles = np.cumsum(lengths) - lengths / 2
    owners = (middles * count / lengths.sum()).astype(int)
    return [sorted(order[place] for place in np.flatnonzero(owners == rank)) for rank in range(count)]


def sum_over_processes(values: np.ndarray[Any, Any], device: torch.device | str) -> np.ndarray[Any, Any]:
    """The sum of all processes' arrays of one shape, in each of them; every process has to call it."""
    if process_count() == 1:
        return values
    total = torch.from_numpy(values).to(device)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()


def means_of(terms: Mapping[str, tuple[Any, int]], accelerator: Any) -> dict[str, float]:
    """Each total (a tensor) over its count, both summed over all processes; what was counted nowhere is left out."""
    if not terms:
        return {}
    totals = torch.stack([torch.as_tensor(total, device=accelerator.device) for total, _ in terms.values()])
    counts = totals.new_tensor([count for _, count in terms.values()])
    both = accelerator.reduce(torch.stack([totals, counts])).T.tolist()
    return {name: total / count for name, (total, count) in zip(terms, both, strict=True) if count}


def is_sharded(model: Any) -> bool:
    """Whether each process holds but a part of the weights (FSDP), so that all must call the model together."""
    return hasattr(next(model.parameters()), "full_tensor")  # as torch's DTensor has, and no other
