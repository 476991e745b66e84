"""Models in one GGUF file."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import EmbeddingError
from pluralllm_fl.preferences import Question
from tests.tiny_gguf import build_gguf
from tests.unit.embedding.language_models import JOINT, QUESTIONS, naive, text


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
