"""A random language model of two layers with a tokenizer made here: nothing from a hub."""

from string import ascii_uppercase
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pluralllm_fl.alignment.policy import Policy

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def byte_tokenizer(chat: bool = False) -> Any:
    """Return a byte-level BPE in which a letter after a space is one token, as in GPT-2's."""
    words = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("Ġ", letter) for letter in ascii_uppercase]
    words += [first + second for first, second in merges]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    if chat:
        fast.chat_template = CHAT
    return fast


def tiny_policy(chat: bool = False) -> Policy:
    """Return a policy of 40,000 weights, large enough ones that LoRA can move its answers."""
    tokenizer = byte_tokenizer(chat)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return Policy(LlamaForCausalLM(config).eval(), tokenizer, "tiny")
