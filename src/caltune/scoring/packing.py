"""Encoded questions -> one batch in which the options of a question share their prompt.

A question is laid out as `prompt | option 1 | option 2 | …`. A token sees its own prompt and option only (a block
attention mask), and its position is the one it would have if its option stood alone behind the prompt. An option's
last token is only ever predicted, never read, so it is left out: options of one token cost nothing but the prompt.
A row may hold several short questions, so that a batch of mixed lengths has little padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """Token ids of one prompt and of what follows it for each option (each at least one token)."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens it takes in a batch."""
        return len(self.prompt) + sum(len(option) - 1 for option in self.options)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B questions with up to K options as tensors in R rows. P positions predict something, T tokens are predicted.

    `input_ids`, `position_ids`, `owners`, `segments`: (R, L); owner b is a question, -1 padding; segment 0 is its
    prompt, k + 1 its option k. `positions`: (P,) indices into the flattened (R * L) of the hidden states that predict
    an option's token. `target_positions`, `target_tokens`, `target_options`: (T,) for each option token the index into
    `positions`, its id, and `b * K + k`. `option_lengths`: (B, K) tokens in an option, 0 where there is none.
    """

    input_ids: Tensor
    position_ids: Tensor
    owners: Tensor
    segments: Tensor
    positions: Tensor
    target_positions: Tensor
    target_tokens: Tensor
    target_options: Tensor
    option_lengths: Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device; to a GPU without waiting for it, by way of pinned memory."""
        pinned = torch.device(device).type == "cuda" and self.input_ids.device.type == "cpu"
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self,
            **{
                name: (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=pinned)
                for name, tensor in tensors.items()
            },
        )


def pack(
    questions: Sequence[EncodedQuestion], pad_id: int, *, options: int | None = None, row_tokens: int = 0
) -> PackedBatch:
    """Lay questions out as one right-padded batch; `options` is K, by default the most that a question has.

    With `row_tokens` questions share rows of about that many tokens; by default each has a row of its own. Attention
    costs the square of a row, so `row_tokens` should stay a few hundred.
    """
    width = options or max(len(question.options) for question in questions)
    rows = _fill_rows([question.length for question in questions], row_tokens)
    length = max(start + questions[b].length for b, (_, start) in enumerate(rows))
    shape = (1 + max(row for row, _ in rows), length)
    input_ids = np.full(shape, pad_id)  # many small writes: numpy takes them faster than torch
    # Over the padding positions run on: were they to start anew, transformers would take the row for a packed one.
    # Where a row is longer than any question they stop: they must not run past the end of a table of learned ones.
    laid_out = [_lay_out(question) for question in questions]
    furthest = max(max(places) for _, places, _ in laid_out)
    position_ids = np.tile(np.minimum(np.arange(length), furthest), (shape[0], 1))
    owners = np.full(shape, -1)
    segments = np.zeros(shape, dtype=np.int64)
    option_lengths = np.zeros((len(questions), width), dtype=np.int64)
    positions: list[int] = []
    target_positions: list[int] = []
    target_tokens: list[int] = []
    target_options: list[int] = []
    for b, (question, (row, start)) in enumerate(zip(questions, rows, strict=True)):
        ids, places, marks = laid_out[b]
        here = (row, slice(start, start + len(ids)))
        input_ids[here] = ids
        position_ids[here] = places
        owners[here] = b
        segments[here] = marks
        first = len(positions)  # the prompt's last token predicts the first token of every option
        cursor = row * length + start + len(question.prompt)
        positions.append(cursor - 1)
        option_lengths[b, : len(question.options)] = [len(option) for option in question.options]
        for k, option in enumerate(question.options):
            for j, token in enumerate(option):
                if j > 0:
                    positions.append(cursor)
                    cursor += 1
                target_positions.append(first if j == 0 else len(positions) - 1)
                target_tokens.append(token)
                target_options.append(b * width + k)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        owners=torch.from_numpy(owners),
        segments=torch.from_numpy(segments),
        positions=torch.tensor(positions),
        target_positions=torch.tensor(target_positions),
        target_tokens=torch.tensor(target_tokens),
        target_options=torch.tensor(target_options),
        option_lengths=torch.from_numpy(option_lengths),
    )


def _fill_rows(lengths: Sequence[int], row_tokens: int) -> list[tuple[int, int]]:
    """Row and start of each question: as few rows as their tokens fill, longest first into the emptiest row."""
    count = -(-sum(lengths) // row_tokens) if row_tokens else len(lengths)
    used = [0] * min(count, len(lengths))
    places = [(0, 0)] * len(lengths)
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]) if row_tokens else range(len(lengths)):
        row = used.index(min(used))
        places[b] = (row, used[row])
        used[row] += lengths[b]
    return places


def _lay_out(question: EncodedQuestion) -> tuple[list[int], list[int], list[int]]:
    start = len(question.prompt)
    ids, places, marks = list(question.prompt), list(range(start)), [0] * start
    for k, option in enumerate(question.options):
        ids += option[:-1]
        places += range(start, start + len(option) - 1)
        marks += [k + 1] * (len(option) - 1)
    return ids, places, marks


def attention_mask(batch: PackedBatch, dtype: torch.dtype) -> Tensor | None:
    """Additive mask (R, 1, L, L): a token sees earlier tokens of its own prompt and of its own option.

    None when every row is one plain prompt: with padding on the right, causal attention alone is exact, and faster.
    """
    owners, segments = batch.owners, batch.segments
    if len(owners) == len(batch.option_lengths) and not segments.any():
        return None
    length = owners.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=owners.device).tril()
    same_question = owners[:, None, :] == owners[:, :, None]
    same_option = segments[:, None, :] == segments[:, :, None]
    allowed = causal & same_question & (same_option | (segments[:, None, :] == 0))
    mask = torch.zeros(allowed.shape, dtype=dtype, device=owners.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def layer_masks(model: Any, batch: PackedBatch) -> Tensor | dict[str, Tensor] | None:
    """`attention_mask` as the model's layers take it: one with a sliding window sees no further back than that.

    A dict by the kind of layer where there are both kinds. A model makes its windows itself only where it is given no
    mask, and that of a window would differ from question to question here: it counts positions, not places in a row.
    """
    mask = attention_mask(batch, model.dtype)
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if mask is None or not window or "sliding_attention" not in kinds or int(batch.position_ids.max()) < window:
        return mask
    places = batch.position_ids
    too_far = (places[:, None, :, None] - places[:, None, None, :]) >= window
    narrow = mask.masked_fill(too_far, torch.finfo(mask.dtype).min)
    return narrow if kinds == {"sliding_attention"} else {"full_attention": mask, "sliding_attention": narrow}


@contextmanager
def only_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Inside, the output head sees only the hidden states at `positions`: logits come as (1, P, V).

    A hook on the head, rather than a call of the inner modules, keeps DDP and FSDP in charge of the forward pass.
    """

    def gather(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)[None], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _masked(layers: Any, mask: Any) -> Iterator[None]:
    def replaced(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**named, "attention_mask": mask}

    handle = layers.register_forward_pre_hook(replaced, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def forward(model: Any, batch: PackedBatch, *, head_owner: Any = None) -> Tensor:
    """Vocabulary logits (P, V) at the positions that predict an option's token, in one forward pass.

    `head_owner` is the unwrapped model when `model` is wrapped by DDP or FSDP.
    """
    owner = model if head_owner is None else head_owner
    mask = shown = layer_masks(owner, batch)
    inside: Any = nullcontext()
    if getattr(owner.config.get_text_config(), "output_router_logits", False):
        # A model that balances its experts counts tokens by a mask of padding (R, L); its layers still need ours.
        shown, inside = (batch.owners >= 0).long(), _masked(owner.get_decoder(), mask)
    with only_at(owner, batch.positions), inside:
        output = model(
            input_ids=batch.input_ids, attention_mask=shown, position_ids=batch.position_ids, use_cache=False
        )
    logits: Tensor = output.logits[0]
    return logits


def token_log_probabilities(logits: Tensor, batch: PackedBatch) -> Tensor:
    """log π(token | what stands before it), (T,), float32."""
    logits = logits.float()
    normaliser = logits.logsumexp(dim=-1)
    return logits[batch.target_positions, batch.target_tokens] - normaliser[batch.target_positions]


def option_logits(token_logs: Tensor, batch: PackedBatch, reduction: str = "sum") -> Tensor:
    """Each option's `sum`, `mean` or `min` of token log-probabilities, (B, K); -inf where there is no option."""
    shape = batch.option_lengths.shape
    if reduction == "min":
        flat = token_logs.new_full((shape.numel(),), torch.inf)
        flat = flat.scatter_reduce(0, batch.target_options, token_logs, "amin")
    else:
        flat = token_logs.new_zeros(shape.numel()).index_add(0, batch.target_options, token_logs)
        if reduction == "mean":
            flat = flat / batch.option_lengths.flatten().clamp(min=1)
    return flat.view(shape).masked_fill(batch.option_lengths == 0, -torch.inf)
