"""Questions in, one vector per option out."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pluralllm_fl.config import embedding_parts
from pluralllm_fl.devices import model_dtype, torch_device
from pluralllm_fl.embedding.cache import VectorCache, default_cache_dir
from pluralllm_fl.embedding.fixed_texts import REFERENCE_TEXTS
from pluralllm_fl.embedding.models import ModelFiles, find_model
from pluralllm_fl.errors import EmbeddingError
from pluralllm_fl.preferences import Question

if TYPE_CHECKING:
    from pluralllm_fl.embedding.encoder import Encoder

DEFAULT_TEMPLATE = "{question}||{option}"
TURN_SECONDS = 1.0  # of embedding; then the processes that wait get theirs
_LEAST_SPREAD = 1e-3  # of a coordinate, against their median: a dead one stays quiet
_PLACEHOLDER = re.compile(r"\{question\}|\{option\}")

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class EmbeddingTable:
    """Vectors of many questions.

    Parameters
    ----------
    vectors : ndarray of float32, shape (rows, dimension)
        One row per (question, option); the options of a question are consecutive rows.
    first_row : mapping of str to int
        Question id -> row of its first option.
    """

    vectors: NDArray[np.float32]
    first_row: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Facts:
    files: ModelFiles
    fingerprint: str
    dimension: int
    max_tokens: int


class TextEmbedder:
    """Embeds (question, option) pairs with a frozen language model.

    Every vector is kept on disk under a hash of model, pooling, device type and text: a text is
    embedded once a machine, by whichever process comes first. The model is loaded with the first
    new text, or by `load`, and kept.

    Parameters
    ----------
    model : str, default "auto"
        Folder of a transformers model, ``.gguf`` file, or hub id (the stored revision, if there is
        one, else the newest). "auto" is all-MiniLM-L6-v2: packaged, or from the
        hub where the package was left out.
    pooling : "mean" or "last", default "mean"
        Mean of the last hidden layer over all tokens, or its last token.
    template : str
        Text that the model reads; must hold ``{question}`` and ``{option}``. With ``||`` in it, the
        text before and the text after are embedded apart, and a row is both vectors side by side.
    cache_dir : Path or None
        None: ``$PLURALLM_CACHE``, else ``~/.cache/pluralllm-fl``.
    device : str, default "auto"
        "auto" is CUDA if present, else CPU.
    standardise : bool, default False
        Shift and scale every coordinate so that the vectors of `REFERENCE_TEXTS` have mean 0 and
        variance 1, else a few coordinates of a causal model's hidden states outweigh all others.
        Every node does this alike and alone.

    Raises
    ------
    EmbeddingError
        At once for a wrong pooling; on first use if the model or cache cannot be had.
    ConfigError
        At once for a wrong template; when the model is loaded, if the device cannot be used.

    Notes
    -----
    A text longer than the model can read loses tokens on the side away from the option. Embedded
    apart, each loses its beginning: a long question its first words, whatever its options are.
    """

    def __init__(
        self,
        model: str = "auto",
        pooling: Literal["mean", "last"] = "mean",
        template: str = DEFAULT_TEMPLATE,
        cache_dir: str | Path | None = None,
        device: str = "auto",
        *,
        standardise: bool = False,
    ) -> None:
        if pooling not in ("mean", "last"):
            raise EmbeddingError(f"embedding-pooling = {pooling!r}: must be 'mean' or 'last'.")
        self.parts = embedding_parts(template)
        self.model = model
        self.pooling: Literal["mean", "last"] = pooling
        self.template = template
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.device = device
        self.standardise = standardise
        self._moments: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a text's vector: model, pooling, truncation, standardising."""
        raw = self._facts.fingerprint
        return _digest([raw, _LEAST_SPREAD, *REFERENCE_TEXTS]) if self.standardise else raw

    @property
    def dimension(self) -> int:
        """Length of a row; known without loading the model."""
        return self._facts.dimension * len(self.parts)

    @cached_property
    def arithmetic(self) -> tuple[str, str]:
        """Device type and number format in which the language model computes.

        Vectors are float32 always, and no cache mixes those that were computed differently: CPU
        and GPU agree to about 1e-6 in float32, to about 1e-2 in half precision.

        Raises
        ------
        ConfigError
            If the device cannot be used.
        """
        if self.device == "cpu":  # says all, without loading torch
            return "cpu", "float32"
        device = torch_device(self.device)
        return device.type, model_dtype(device, self._facts.files.weights_bytes)

    def load(self) -> None:
        """Load the language model now and standardise; otherwise the first new text does.

        Raises
        ------
        EmbeddingError, ConfigError
            If the model or the device cannot be used.
        """
        _ = self._encoder
        self.embed([])

    def embed(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> EmbeddingTable:
        """Embed every option of every question; repeated questions get their rows once.

        Parameters
        ----------
        questions : sequence of Question
        progress : callable, optional
            Called with (texts done, all texts), at least once, and after each batch.

        Raises
        ------
        EmbeddingError, ConfigError
            If the model, the cache or the device cannot be used.
        """
        first_row: dict[str, int] = {}
        place: dict[str, int] = {}  # of every text among the distinct ones
        texts: list[int] = []
        for question in questions:
            if (name := question.id) not in first_row:
                first_row[name] = len(texts) // len(self.parts)
                for option in question.options:
                    for text in self.render(question.text, option):
                        texts.append(place.setdefault(text, len(place)))
        if self.standardise and self._moments is None:
            self._moments = _moments(self._flat(REFERENCE_TEXTS, progress))
        vectors = self._flat(list(place), progress)
        if self._moments is not None:
            vectors -= self._moments[0]
            vectors /= self._moments[1]
        rows = vectors[np.array(texts, dtype=np.int64)]
        return EmbeddingTable(rows.reshape(-1, self.dimension), first_row)

    def _flat(self, texts: Sequence[str], progress: Progress | None) -> NDArray[np.float32]:
        """Return the vectors of texts, as the language model has them, (texts, its dimension)."""
        facts = self._facts
        # Entries by CPU have always had this key alone.
        where = "" if self.arithmetic == ("cpu", "float32") else " ".join(self.arithmetic)
        prefix = hashlib.sha256((facts.fingerprint + where).encode())
        keys = []
        for text in texts:
            digest = prefix.copy()
            digest.update(text.encode())
            keys.append(digest.digest())
        text_of = dict(zip(keys, texts, strict=True))
        with VectorCache(self.cache_dir) as cache:
            found = cache.read(list(text_of))
            if len(found) < len(text_of):
                self._complete(text_of, found, cache, progress)
            if any(len(vector) != 4 * facts.dimension for vector in found.values()):
                raise cache.damaged("a vector of the wrong length")
        if progress is not None:
            progress(len(text_of), len(text_of))
        rows = b"".join([found[key] for key in keys])
        vectors = np.frombuffer(bytearray(rows), dtype="<f4").reshape(-1, facts.dimension)
        return vectors.astype(np.float32, copy=False)

    def render(self, question: str, option: str) -> list[str]:
        """Fill the template's parts; braces in the texts themselves mean nothing."""
        values = {"{question}": question, "{option}": option}
        return [
            values[part]
            if part in values
            else _PLACEHOLDER.sub(lambda match: values[match[0]], part)
            for part in self.parts
        ]

    def _complete(
        self,
        text_of: Mapping[bytes, str],
        found: dict[bytes, bytes],
        cache: VectorCache,
        progress: Progress | None,
    ) -> None:
        """Add the vectors that `found` lacks, in turns with other processes."""
        batches = self._batches(text_of, found)
        while missing := [key for key in text_of if key not in found]:
            with cache.exclusive(self._facts.fingerprint):
                others = cache.read(missing)
                found |= others
                # Who is at these texts goes on with them: a second model need not be loaded.
                if not others:
                    if progress is not None:
                        progress(len(found), len(text_of))
                    self._take_turn(batches, found, len(text_of), cache, progress)
            if others and progress is not None and len(found) < len(text_of):
                progress(len(found), len(text_of))

    def _take_turn(
        self,
        batches: Iterator[list[tuple[bytes, bytes]]],
        found: dict[bytes, bytes],
        total: int,
        cache: VectorCache,
        progress: Progress | None,
    ) -> None:
        """Embed for a while, storing each batch as soon as it is there."""
        _ = self._encoder  # loading it is not counted
        end = time.monotonic() + TURN_SECONDS
        for batch in batches:
            cache.write(batch)
            found.update(batch)
            if progress is not None:
                progress(len(found), total)
            if time.monotonic() > end:
                break

    def _batches(
        self, text_of: Mapping[bytes, str], found: Mapping[bytes, bytes]
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield the vectors that `found` lacks when their turn comes."""
        # Sorted, so that the order depends on nothing but the set of missing texts.
        missing = sorted((text, key) for key, text in text_of.items() if key not in found)
        keys = [key for _, key in missing]
        texts = [text for text, _ in missing]
        for indices, vectors in self._encoder.encode(texts, lambda i: keys[i] in found):
            rows = vectors.astype("<f4", copy=False)
            yield [(keys[i], row.tobytes()) for i, row in zip(indices, rows, strict=True)]

    @property
    def _cut(self) -> Literal["left", "right"]:
        option_last = self.template.rfind("{option}") > self.template.find("{question}")
        return "left" if option_last else "right"

    @cached_property
    def _encoder(self) -> "Encoder":
        from pluralllm_fl.embedding.encoder import Encoder  # loads torch and transformers

        facts, device = self._facts, torch_device(self.device)
        return Encoder(
            facts.files, self.pooling, facts.max_tokens, self._cut, device, self.arithmetic[1]
        )

    @cached_property
    def _facts(self) -> _Facts:
        files = find_model(self.model)
        with VectorCache(self.cache_dir) as cache:
            content = files.content_hash(cache)
            dimension, max_tokens = files.limits(cache)
        parts = [content, self.pooling, max_tokens, self._cut, "one batch size a length"]
        return _Facts(files, _digest(parts), dimension, max_tokens)


def _moments(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return every coordinate's mean and spread."""
    exact = vectors.astype(np.float64)
    spread = exact.std(axis=0)
    spread = spread.clip(min=_LEAST_SPREAD * np.median(spread))
    return exact.mean(axis=0).astype(np.float32), spread.astype(np.float32)


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
