"""The packaged MiniLM."""

import hashlib
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.embedding.embedder import DEFAULT_TEMPLATE
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import EmbeddingError
from pluralllm_fl.preferences import Question
from tests.unit.embedding.language_models import JOINT, QUESTIONS, naive, needs_minilm, rows


@needs_minilm
def test_default_model_equals_sentence_transformers_convention(tmp_path: Path) -> None:
    questions = [
        Question("Should taxes on the rich rise?", ("Wealthy people should pay more tax", "Yes")),
        Question("هل الديمقراطية مهمة؟ 民主主義は重要ですか 🗳️", ("نعم", "いいえ")),
        Question("Is {this} fine?", ("{0}", "%s")),
    ]
    embedder = TextEmbedder(cache_dir=tmp_path)
    table = embedder.embed(questions)
    pairs = [(q.text, o) for q in questions for o in q.options]
    folder = Path(str(importlib.util.find_spec(PACKAGED).origin)).parent / "model"  # type: ignore[union-attr]
    both = [naive(folder, list(texts), "mean") for texts in zip(*pairs, strict=True)]
    np.testing.assert_allclose(table.vectors, np.hstack(both), atol=1e-5)
    assert embedder.dimension == 2 * 384


@needs_minilm
def test_default_model_understands(tmp_path: Path) -> None:
    same, other = (
        Question("Do you trust the government?", ("Yes", "No")),
        Question("How often do you eat fish?", ("Yes", "No")),
    )
    again = Question("Do you have confidence in the government?", ("Yes", "No"))
    table = TextEmbedder(cache_dir=tmp_path).embed([same, other, again])

    def cosine(one: Question, two: Question) -> float:
        a, b = rows(table, one)[0], rows(table, two)[0]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    assert cosine(same, again) > 0.7 > 0.5 > cosine(same, other)


@needs_minilm
def test_default_model_takes_long_and_odd_texts(tmp_path: Path) -> None:
    long = "Понимаете ли вы этот вопрос? " * 180  # over 5,000 characters
    odd = Question("\u202eعكس\u202c \x00 \ufeff", ("\U0001f600" * 50, "é", "e\u0301"))
    for template in (JOINT, DEFAULT_TEMPLATE):
        embedder = TextEmbedder(template=template, cache_dir=tmp_path)
        vectors = embedder.embed([Question(long, ("Да", "Нет")), odd]).vectors
        assert np.isfinite(vectors).all()
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


@needs_minilm
def test_default_model_with_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tampered_minilm"
    shutil.copytree(Path(str(importlib.util.find_spec(PACKAGED).origin)).parent, package)  # type: ignore[union-attr]
    weights = package / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pluralllm_fl.embedding.models.PACKAGED", "tampered_minilm")
    with pytest.raises(EmbeddingError, match=hashlib.sha256(content).hexdigest()):
        TextEmbedder(cache_dir=tmp_path / "cache").embed(QUESTIONS)
