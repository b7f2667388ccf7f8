"""Prompts that begin alike: the beginning is read once, and its keys and values are shown to every row behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from caltune.scoring.packing import EncodedQuestion, PackedBatch, attention_mask, only_at

PASS_TOKENS = 128  # a pass of its own costs about as much as reading so many tokens more in a full batch
# Where the beginning is long, questions share rows: its keys and values are copied a row, so rows should be few; but
# attention costs the square of a row.
LONGEST_ROW = 256


@dataclass(frozen=True, slots=True)
class Beginning:
    """`length` tokens that have been read, and what a pass behind them sees of them."""

    length: int
    cache: DynamicCache

    @property
    def row_tokens(self) -> int:
        """Tokens a row should have behind it."""
        return min(self.length, LONGEST_ROW)


class _ShownToAll(DynamicLayer):
    """A layer's keys and values (1, heads, length, width): every row sees them, and nothing is added to them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        shown = self.keys, self.values
        keys, values = (kept.expand(len(key_states), -1, -1, -1) for kept in shown)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def score_groups(
    model: Any, encoded: Sequence[EncodedQuestion], batch_tokens: int
) -> Iterator[tuple[Beginning | None, list[int]]]:
    """Every question once: with the others of its group behind what they share, or with those that stand alone (None).

    A beginning is read when its group is asked for. A model that cannot go on behind one gets all questions alone.
    """
    alone = set(range(len(encoded)))
    for length, members in group_by_beginning(encoded, max(PASS_TOKENS, batch_tokens // 16)):
        longest = max(len(encoded[i].prompt) + max(map(len, encoded[i].options)) for i in members)
        beginning = read_beginning(model, encoded[members[0]].prompt[:length], longest)
        if beginning is None:
            break
        alone.difference_update(members)
        yield beginning, members
    if alone:
        yield None, sorted(alone)


def group_by_beginning(encoded: Sequence[EncodedQuestion], least: int) -> list[tuple[int, list[int]]]:
    """Groups of questions that share a beginning, as (its length, the questions), so that few tokens are read.

    A group of m questions that begin with the same n tokens saves (m − 1) n of them, less `least` for the passes it
    costs. A group holds all questions behind its beginning, and is taken where it saves more than those of longer
    beginnings within it; questions in no group share too little. Each keeps one token of its own, which predicts its
    options.

    >>> few = [EncodedQuestion((5, 6, 7, i), ((1,),)) for i in range(3)] + [EncodedQuestion((5, 8), ((1,),))]
    >>> group_by_beginning(few, 2)  # (5, 6, 7) is worth 2 · 3 − 2 = 4, and (5,) but 3 · 1 − 2 = 1
    [(3, [0, 1, 2])]
    """
    order = sorted(range(len(encoded)), key=lambda i: encoded[i].prompt)
    shared = [_common(encoded[a].prompt, encoded[b].prompt) for a, b in pairwise(order)]
    # Beginnings form a tree, in which a node's questions are neighbours in the order. Nodes that may yet grow lie on
    # the stack, each with a longer beginning than the one below it.
    stack: list[_Node] = []
    for place in range(len(order)):
        closed = _Node(0, place, 0, [])
        following = shared[place] if place < len(shared) else -1
        while stack and stack[-1].length > following:
            node = stack.pop()
            node.take(closed)
            own = (place - node.first) * node.length - least
            if own > node.saved:
                node.saved, node.groups = own, [(node.length, order[node.first : place + 1])]
            closed = node
        if not stack or stack[-1].length < following:
            stack.append(_Node(following, closed.first, 0, []))
        if stack and following >= 0:
            stack[-1].take(closed)
        else:
            return [(length, sorted(members)) for length, members in closed.groups]
    return []


@dataclass(slots=True)
class _Node:
    length: int
    first: int
    saved: int
    groups: list[tuple[int, list[int]]]

    def take(self, branch: _Node) -> None:
        self.saved += branch.saved
        self.groups += branch.groups


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens both begin with, all but the last of each at most; by halving, since slices compare fast."""
    low, high = 0, min(len(a), len(b)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def read_beginning(model: Any, tokens: Sequence[int], longest: int) -> Beginning | None:
    """Read what prompts begin with; None where a pass behind it would not see what it sees in one pass.

    So where a model keeps something else than keys and values, or where a sliding window forgets some of `longest`
    tokens, the most that a pass is to reach.
    """
    read = torch.tensor([list(tokens)], device=model.device)
    with only_at(model, read.new_zeros(1)):
        cache = model(input_ids=read, use_cache=True).past_key_values
    if not isinstance(cache, DynamicCache) or cache.get_seq_length() != len(tokens):
        return None
    shown = []
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.keys is None:
            return None
        window = getattr(layer, "sliding_window", None) or longest
        if window < longest or layer.keys.shape[-2] != len(tokens):
            return None
        shown.append(_ShownToAll(layer.keys, layer.values))
    cache = copy(cache)
    cache.layers = shown
    return Beginning(len(tokens), cache)


def without_beginning(question: EncodedQuestion, beginning: Beginning | None) -> EncodedQuestion:
    """What is left of a question to be read behind `beginning`."""
    return question if beginning is None else replace(question, prompt=question.prompt[beginning.length :])


def forward_behind(model: Any, batch: PackedBatch, beginning: Beginning) -> Tensor:
    """Vocabulary logits (P, V), as `forward` gives them, of a batch whose rows all stand behind `beginning`."""
    own = attention_mask(batch, model.dtype)
    size = batch.input_ids.shape[1]
    if own is None:
        own = torch.full((size, size), torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device)
        own = own.triu(1).expand(len(batch.input_ids), 1, size, size)
    mask = torch.cat([own.new_zeros(*own.shape[:3], beginning.length), own], dim=-1)
    with only_at(model, batch.positions):
        output = model(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=batch.position_ids + beginning.length,
            past_key_values=beginning.cache,
            use_cache=True,
        )
    logits: Tensor = output.logits[0]
    return logits
