"""A two-layer model with its own tokenizer, and a few questions: built offline in a moment."""

from __future__ import annotations

import random
import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caltune.scoring.packing import EncodedQuestion
from caltune.types import Question

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
CHARACTERS = [*string.ascii_letters, *string.digits, " ", "\n", ":", ".", "?", "_"]
COLON_TEMPLATE = "{{ messages[0]['content'] }}:"  # a chat in which the answer begins behind a colon
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Cuba": "Havana",
    "Chile": "Santiago de Chile",
    "Nepal": "Kathmandu",
    "Ghana": "Accra",
    "Iran": "Tehran",
}


def tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 420 tokens; letters are one token with and without a space before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [f"Question: What is the capital of {country}?\nAnswer: {city}" for country, city in CAPITALS.items()]
    text += [f"Answer: {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"] * 9
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<|pad|>", "<|start|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|start|>", eos_token="<|end|>"
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def character_tokenizer(*merges: tuple[str, str], template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a character, but for the merges; a character it does not know adds no token."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *CHARACTERS, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(*, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """Two layers, 32 wide, grouped-query attention, random weights large enough to have opinions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(tiny_tokenizer()),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **settings,
        }
    )
    return LlamaForCausalLM(config).eval()


def tiny_questions(count: int = 12, *, prefix: str = "q") -> list[Question]:
    """Capitals with 2 to 5 options each, the right one in changing places; other questions for another prefix."""
    again = "" if prefix == "q" else f" {prefix}"
    countries, cities = list(CAPITALS), list(CAPITALS.values())
    questions = []
    for i in range(count):
        country = countries[i % len(countries)]
        size = 2 + i % 4
        others = [city for city in cities[i % 5 :] + cities if city != CAPITALS[country]]
        options = list(dict.fromkeys(others))[: size - 1]
        options.insert(i % size, CAPITALS[country])
        questions.append(
            Question(
                id=f"{prefix}{i}",
                text=f"What is the capital of {country}?" + again + ("" if i < len(countries) else f" ({i})"),
                options=tuple(options),
                answer=i % size,
                group="north" if i % 2 else "south",
            )
        )
    return questions


def ragged_questions(count: int = 7, seed: int = 0, vocabulary: int = 300) -> list[EncodedQuestion]:
    """2 to 5 options of 1 to 6 tokens behind prompts of 1 to 20; some options begin alike, some questions are plain."""
    draw = random.Random(seed)
    questions = []
    for i in range(count):
        options = [
            tuple(draw.randrange(3, vocabulary) for _ in range(1 if i % 3 == 2 else draw.choice([1, 2, 3, 6])))
            for _ in range(2 + i % 4)
        ]
        options[1] = (options[0][0], 5 + i, 7)  # begins as option 0 does
        prompt = tuple(draw.randrange(3, vocabulary) for _ in range(1 if i == 0 else draw.randrange(2, 21)))
        questions.append(EncodedQuestion(prompt=prompt, options=tuple(options)))
    return questions


def one_pass_per_option(model: Any, questions: list[EncodedQuestion], reduction: str = "sum") -> torch.Tensor:
    """Option logits (N, K) the slow way: for each option a plain pass, 2D, without mask, padding or position ids."""
    reduce = {"sum": torch.sum, "mean": torch.mean, "min": torch.min}[reduction]
    width = max(len(question.options) for question in questions)
    rows = []
    for question in questions:
        row = [torch.tensor(-torch.inf)] * width
        for k, option in enumerate(question.options):
            logits = model(input_ids=torch.tensor([question.prompt + option])).logits[0].float()
            start = len(question.prompt) - 1
            row[k] = reduce(torch.stack([logits[start + j].log_softmax(-1)[i] for j, i in enumerate(option)]))
        rows.append(torch.stack(row))
    return torch.stack(rows)
