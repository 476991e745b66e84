"""Models in one GGUF file."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import EmbeddingError
from pluralllm_fl.preferences import Question
from tests.unit.embedding.language_models import JOINT, QUESTIONS, naive, text


def build_gguf(path: Path) -> Path:
    """Write a tiny random Llama with a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "Ġy", "es"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ y", "e s"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(tokens), 32), "output": (len(tokens), 32), "output_norm": (32,)}
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.normal(0.0, 0.3, shape).astype(np.float32)
        quantised = name.endswith(("gate", "up"))
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_gguf(tmp_path: Path, pooling: Any) -> None:
    pytest.importorskip("accelerate", reason="the extra 'gguf' is not installed")
    path = build_gguf(tmp_path / "tiny.gguf")
    question = Question("Trust the government?", ("yes", "no"))
    embedder = TextEmbedder(str(path), pooling, JOINT, tmp_path)
    table = embedder.embed([question])
    texts = [text(question.text, option) for option in question.options]
    expected = naive(tmp_path, texts, pooling, gguf_file=path.name)
    assert embedder.dimension == 32
    np.testing.assert_allclose(table.vectors, expected, atol=1e-5)
    assert np.abs(table.vectors[0] - table.vectors[1]).max() > 1e-3


def test_gguf_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    with pytest.raises(EmbeddingError, match=r"pluralllm-fl\[gguf\]"):
        TextEmbedder(str(tmp_path / "model.gguf"), cache_dir=tmp_path).embed(QUESTIONS)
