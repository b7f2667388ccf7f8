"""What `speed_training.py` compares: each side trains some steps in this process and tells time, memory and losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import limits
import numpy as np
import torch
from scaling import forget_peak
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from caltune.allocator import keep_freed_memory
from caltune.collator import ROW_TOKENS
from caltune.data import load_questions
from caltune.losses import cross_entropy_loss
from caltune.models import default_dtype, load_model, load_tokenizer
from caltune.prompts import render
from caltune.scoring.engine import encode_questions
from caltune.scoring.packing import EncodedQuestion, forward, option_logits, pack, token_log_probabilities
from caltune.types import Question

RANK, ALPHA = 32, 64
WARM_UP = 2  # steps that are not timed
TEMPLATE = "plain"
RELEASED_ROWS = {"cuda": 2, "cpu": 1}  # two in the authors' code, which want more than 24 GB here
AS_THEY_COME = ("trl as it comes", "released rcft")
METHODS = {"sft tokens": "SFT", "sft": "SFT", "rcft": "RCFT", "cogcalib": "CogCalib"}
REPEATS = 200


def questions_of(run: dict[str, Any], split: str = "train") -> list[Question]:
    """As many as the steps take, drawn with a seed."""
    return common.pick(load_questions(run["data"], split), run["batch"] * (run["steps"] + WARM_UP), 0)


def rows_of(questions: Sequence[Question], tokenizer: Any) -> Any:
    """The same questions as rows of prompt and completion, as one gives them to TRL."""
    from datasets import Dataset

    prompts = [render(question, tokenizer, template=TEMPLATE) for question in questions]
    answers = [prompt.continuations[q.answer or 0] for prompt, q in zip(prompts, questions, strict=True)]
    return Dataset.from_list(
        [{"prompt": p.text, "completion": answer} for p, answer in zip(prompts, answers, strict=True)]
    )


def right_only(encoded: Sequence[EncodedQuestion], questions: Sequence[Question], end: int | None = None) -> list[Any]:
    """Only the right option of each, with the token that ends a row behind it if there is one."""
    ends = () if end is None else (end,)
    return [
        replace(item, options=((*item.options[q.answer or 0], *ends),))
        for item, q in zip(encoded, questions, strict=True)
    ]


class Clock(TrainerCallback):
    """When each optimizer step was done, and what the process held before the first."""

    def __init__(self, device: str) -> None:
        self.device, self.before = device, 0
        self.ends: list[float] = []
        self.cpu: list[float] = []  # of this process: tells something on a busy machine too

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.ends and not self.before:
            self.before = forget_peak(self.device)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def seconds(self) -> float:
        """Of all steps after the warm-up, with what lies between them."""
        return self.ends[-1] - self.ends[WARM_UP - 1]


def same_adapters(model: Any) -> None:
    """Set the adapters to the same random start on every side."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in sorted(model.named_parameters()):
            if "lora_A" in name:
                weights.copy_(torch.randn(weights.shape, generator=generator) / math.sqrt(weights.shape[1]))


def train(run: dict[str, Any], folder: Path, peak: Callable[[], int]) -> dict[str, Any]:
    """Seconds, memory and losses of one side."""
    device = torch.device(run["device"])
    if run["side"] not in AS_THEY_COME:
        keep_freed_memory()
    # As `caltune train` has it: a frozen base rests in half precision where a GPU computes in it.
    model, tokenizer = load_model(run["model"], device=device, dtype=default_dtype(device))
    questions = questions_of(run)
    encoded = encode_questions(questions, tokenizer, template=TEMPLATE)
    useful = np.mean([len(item.prompt) + len(item.options[0]) for item in right_only(encoded, questions)])
    if run["side"] == "released rcft":
        found = released(run, model, tokenizer, questions)
    else:
        clock = Clock(run["device"])
        trainer = build(run, folder, model, tokenizer, questions, clock)
        same_adapters(trainer.model)
        trainer.train()
        seconds = clock.seconds()
        found = {
            "seconds_a_step": seconds / run["steps"],
            "seconds_a_question": seconds / run["steps"] / run["batch"],
            "cpu_seconds_a_step": (clock.cpu[-1] - clock.cpu[WARM_UP - 1]) / run["steps"],
            "before": clock.before,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        }
        if run["side"] in METHODS:
            found |= looked_into(trainer, run, found["seconds_a_step"])
    return {**found, "tokens_a_question": float(useful), "peak_bytes": peak() - found["before"]}


def build(run: dict[str, Any], folder: Path, model: Any, tokenizer: Any, questions: Any, clock: Clock) -> Any:
    """The trainer of a side."""
    import trl
    from peft import LoraConfig

    from caltune import methods

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": run["batch"],
        "max_steps": run["steps"] + WARM_UP,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",  # so that all see the same batches
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": run["device"] == "cpu",
        "dataloader_pin_memory": run["device"] != "cpu",
    }
    given = {"model": model, "processing_class": tokenizer, "callbacks": [clock]}
    given["peft_config"] = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
    )
    side = run["side"]
    if side.startswith("trl"):
        if side != "trl as it comes":
            settings |= {"activation_checkpointing": False, "bf16": run["device"] != "cpu"}
        if side == "trl padding-free":
            settings |= {"padding_free": True, "max_length": None}
        if side == "trl by length":
            settings["train_sampling_strategy"] = "group_by_length"
        return trl.SFTTrainer(args=trl.SFTConfig(**settings), train_dataset=rows_of(questions, tokenizer), **given)
    settings |= {"activation_checkpointing": False, "template": TEMPLATE}
    if side == "caltune rows":
        data = rows_of(questions, tokenizer)
        return methods.SFTTrainer(args=methods.SFTConfig(**settings), train_dataset=data, **given)
    if side == "sft tokens":
        settings["answer_loss"] = "tokens"
    if side == "cogcalib":
        given["calibration_dataset"] = common.pick(load_questions(run["data"], "calibration"), 64, 0)
    kind = METHODS[side]
    args = getattr(methods, f"{kind}Config")(**settings)
    return getattr(methods, f"{kind}Trainer")(args=args, train_dataset=questions, **given)


def looked_into(trainer: Any, run: dict[str, Any], seconds_a_step: float) -> dict[str, float]:
    """Padding of the batches; the share of a step that the method's own term takes, forward and backward; and of an
    epoch's steps that fitting anew at its begin does.
    """
    rows = trainer.train_dataset
    size = run["batch"]
    batches = [
        trainer.data_collator([rows[i] for i in range(first, min(first + size, len(rows)))])
        for first in range(0, len(rows), size)
    ]
    places = sum(batch["input_ids"].numel() for batch in batches)
    read = sum(int((batch["owners"] >= 0).sum()) for batch in batches)
    inputs = trainer._prepare_inputs(batches[-1])
    trainer.model.train()
    _, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)

    def repeated(losses: Callable[[Any], Tensor]) -> float:
        start = time.perf_counter()
        for _ in range(REPEATS):
            leaves = {
                name: getattr(outputs, name).detach().requires_grad_() for name in ("option_logits", "answer_nll")
            }
            losses(replace(outputs, **leaves)).sum().backward()
        return (time.perf_counter() - start) / REPEATS

    repeated(trainer.question_losses)
    own = repeated(trainer.question_losses) - repeated(trainer.answer_losses)
    start = time.perf_counter()
    trainer.refresh()  # an epoch's begin
    refresh = (time.perf_counter() - start) / (len(rows) / size * seconds_a_step)
    return {"padding": 1 - read / places, "terms_share": max(0.0, own) / seconds_a_step, "refresh_share": refresh}


def released(run: dict[str, Any], model: Any, tokenizer: Any, questions: Sequence[Question]) -> dict[str, Any]:
    """The step of the released code, by what it costs: padded rows, two passes, all logits. The best of two counts."""
    from peft import LoraConfig, get_peft_model

    from caltune.methods.rcft import bin_penalty

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    length, end = run["released_length"], tokenizer.eos_token_id
    before, losses, seconds = 0, [], []
    rows = RELEASED_ROWS.get(model.device.type, 1)
    for number in range(3):
        some = questions[number * rows : (number + 1) * rows]
        asked = encode_questions(some, tokenizer, answers="letters", template=TEMPLATE)
        ids = torch.full((len(some), length), tokenizer.pad_token_id, device=model.device)
        seen = torch.zeros_like(ids)
        for row, (item, question) in enumerate(zip(asked, some, strict=True)):
            text = [*item.prompt, *item.options[question.answer or 0], end][-length:]
            ids[row, -len(text) :] = torch.tensor(text, device=model.device)
            seen[row, -len(text) :] = 1
        letters = torch.tensor([option[0] for option in asked[0].options], device=model.device)
        before = before or forget_peak(run["device"])
        start = time.perf_counter()
        first = model(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, -100)).loss
        options = model(input_ids=ids, attention_mask=seen).logits[:, -3, letters]  # what predicts the answer
        loss = first + bin_penalty(options.float(), torch.full((len(some),), 0.5, device=model.device)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    each = min(seconds[1:]) / rows
    return {
        "seconds_a_step": each * run["batch"],
        "seconds_a_question": each,
        "before": before,
        "losses": losses,
    }


def bounds(run: dict[str, Any], least: Callable[..., float], seconds: float) -> dict[str, float]:
    """The least seconds a question of each side: every batch by itself, since weights change in between."""
    device = torch.device(run["device"])
    model, tokenizer = load_model(run["model"], device=device, dtype=default_dtype(device))
    shape = limits.shape_of(model)
    machine = limits.measure(shape, device=device, dtype=model.dtype, seconds=seconds)
    questions = questions_of(run)[: run["batch"] * run["steps"]]
    encoded = encode_questions(questions, tokenizer, template=TEMPLATE)
    workloads = {
        "sft": encoded,
        "sft tokens": right_only(encoded, questions),
        "trl plain": right_only(encoded, questions, load_tokenizer(run["model"]).eos_token_id),
    }
    found = {}
    for name, items in workloads.items():
        parts = [items[first : first + run["batch"]] for first in range(0, len(items), run["batch"])]
        found[name] = sum(least(limits.fewest(part), shape, machine, RANK) for part in parts) / len(items)
    rows = dict.fromkeys(("trl as it comes", "trl padding-free", "trl by length", "caltune rows"), found["trl plain"])
    return {**found, **rows, **dict.fromkeys(("rcft", "cogcalib"), found["sft"])}


def memory_of(run: dict[str, Any], peak: Callable[[], int]) -> dict[str, Any]:
    """Bytes that a step of a made-up two-layer model needs, for two questions with four options of three tokens."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "llama", vocab_size=run["vocabulary"], max_position_embeddings=4096, tie_word_embeddings=True, **size
    )
    model = AutoModelForCausalLM.from_config(config).to(run["device"]).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    draw = np.random.default_rng(0)
    prompts = draw.integers(3, run["vocabulary"], (2, run["length"])).tolist()
    options = draw.integers(3, run["vocabulary"], (2, 4, 3)).tolist()
    before = forget_peak(run["device"])
    if run["side"] == "caltune":
        asked = [EncodedQuestion(tuple(p), tuple(map(tuple, o))) for p, o in zip(prompts, options, strict=True)]
        batch = pack(asked, 0, row_tokens=ROW_TOKENS).to(run["device"])
        found = option_logits(token_log_probabilities(forward(model, batch), batch), batch)
        cross_entropy_loss(found, torch.zeros(2, dtype=torch.long, device=run["device"])).mean().backward()
    else:
        ids = torch.tensor([p + o[0] for p, o in zip(prompts, options, strict=True)], device=run["device"])
        labels = ids.clone()
        labels[:, : run["length"]] = -100
        model(input_ids=ids, labels=labels).loss.backward()
    return {"peak_bytes": peak() - before}
