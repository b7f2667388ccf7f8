"""Score questions that all begin alike, such as those behind one set of exemplars: the beginning is read once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from caltune.models import option_temperature
from caltune.scoring.engine import Reduction, evaluating, score_encoded
from caltune.scoring.packing import (
    EncodedQuestion,
    PackedBatch,
    attention_mask,
    only_at,
    option_logits,
    pack,
    token_log_probabilities,
)

ROW_TOKENS = 512  # questions share rows, so that the beginning's keys and values are copied a few times only
LEAST = 8  # tokens in common that are worth a pass of their own


def score_behind_beginning(
    model: Any,
    encoded: Sequence[EncodedQuestion],
    pad_id: int,
    *,
    reduction: Reduction = "sum",
    batch_tokens: int = 2048,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What `score_encoded` gives, (N, K), up to rounding; the faster the longer the prompts' common beginning is."""
    length = common_beginning(encoded)
    if length < LEAST or len(encoded) < 2:
        return score_encoded(model, encoded, pad_id, reduction=reduction, batch_tokens=batch_tokens)
    rest = [replace(question, prompt=question.prompt[length:]) for question in encoded]
    width = max(len(question.options) for question in rest)
    logits = np.full((len(rest), width), -np.inf, dtype=np.float32)
    order = sorted(range(len(rest)), key=lambda i: rest[i].length, reverse=True)
    beginning = torch.tensor([encoded[0].prompt[:length]], device=model.device)
    with evaluating(model), torch.inference_mode():
        with only_at(model, beginning.new_zeros(1)):
            cache = model(input_ids=beginning, use_cache=True).past_key_values
        if not _goes_on(cache, length, max(len(q.prompt) + max(map(len, q.options)) for q in encoded)):
            return score_encoded(model, encoded, pad_id, reduction=reduction, batch_tokens=batch_tokens)
        start = 0
        while start < len(order):
            stop, used = start, 0
            while stop < len(order) and (stop == start or used + rest[order[stop]].length <= batch_tokens):
                used += rest[order[stop]].length
                stop += 1
            rows = order[start:stop]
            batch = pack([rest[i] for i in rows], pad_id, options=width, row_tokens=ROW_TOKENS).to(model.device)
            tokens = token_log_probabilities(_forward_behind(model, batch, cache, length), batch)
            logits[rows] = option_logits(tokens, batch, reduction).cpu().numpy() / option_temperature(model)
            start = stop
    return logits


def common_beginning(encoded: Sequence[EncodedQuestion]) -> int:
    """How many tokens all prompts begin with; each keeps one token of its own, which predicts its options.

    >>> common_beginning([EncodedQuestion((5, 6, 7), ((1,),)), EncodedQuestion((5, 6), ((2,),))])
    1
    """
    shortest = min(len(question.prompt) for question in encoded)
    columns = zip(*(question.prompt[: shortest - 1] for question in encoded), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _goes_on(cache: Any, length: int, longest: int) -> bool:
    """Whether a pass behind the cached beginning sees what it would see in one pass over at most `longest` tokens.

    Not so where a model keeps something else than keys and values, or a sliding window forgets some of them.
    """
    if not isinstance(cache, DynamicCache) or cache.get_seq_length() != length:
        return False
    kept: list[Any] = [getattr(layer, "keys", None) for layer in cache.layers]
    windows = [getattr(layer, "sliding_window", None) or longest for layer in cache.layers]
    return min(windows) >= longest and all(keys is not None and keys.shape[-2] == length for keys in kept)


def _forward_behind(model: Any, batch: PackedBatch, cache: DynamicCache, length: int) -> Tensor:
    """Vocabulary logits (P, V), as `forward` gives them, with `length` tokens in front that every row sees."""
    own = attention_mask(batch, model.dtype)
    size = batch.input_ids.shape[1]
    if own is None:
        own = torch.full((size, size), torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device)
        own = own.triu(1).expand(len(batch.input_ids), 1, size, size)
    mask = torch.cat([own.new_zeros(*own.shape[:3], length), own], dim=-1)
    past = deepcopy(cache)  # a pass appends to it
    past.batch_repeat_interleave(len(batch.input_ids))
    with only_at(model, batch.positions):
        output = model(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=batch.position_ids + length,
            past_key_values=past,
            use_cache=True,
        )
    logits: Tensor = output.logits[0]
    return logits
