"""A two-layer model with its own tokenizer, and a few questions: built offline in a moment."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caltune.types import Question

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
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
    """Capitals with 2 to 5 options each, the right one in changing places."""
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
                text=f"What is the capital of {country}?" + ("" if i < len(countries) else f" ({i})"),
                options=tuple(options),
                answer=i % size,
                group="north" if i % 2 else "south",
            )
        )
    return questions
