"""Running a frozen language model over texts. Importing this module loads torch."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from pluralllm_fl.devices import available_cpus, torch_threads
from pluralllm_fl.embedding.models import ModelFiles, require_gguf
from pluralllm_fl.errors import EmbeddingError

logger = logging.getLogger(__name__)

_TOKENS_PER_BATCH = {"cpu": 256, "cuda": 8192}
_MOST_THREADS = 8  # a language model gains little from more
_SMALL_BYTES = 2**28  # of weights: a batch takes milliseconds, too short to share among threads


class Encoder:
    """A loaded language model.

    Parameters
    ----------
    files : ModelFiles
        Which model.
    pooling : "mean" or "last"
        Mean over all tokens of the last hidden layer, or the vector of the last token.
    max_tokens : int
        Longer texts are cut.
    cut : "left" or "right"
        The side on which they lose tokens.
    device : torch.device
    dtype : str
        PyTorch's name of the number format in which the model computes.

    Raises
    ------
    EmbeddingError
        If the model cannot be used.
    """

    def __init__(
        self,
        files: ModelFiles,
        pooling: Literal["mean", "last"],
        max_tokens: int,
        cut: Literal["left", "right"],
        device: torch.device,
        dtype: str,
    ) -> None:
        self._name = files.name
        self._pooling = pooling
        self._max_tokens = max_tokens
        self._device = device
        self._tokenizer, model = _load(files)
        self._tokenizer.truncation_side = cut
        with _explained(self._name):
            self._model = model.to(device=device, dtype=getattr(torch, dtype)).eval()
        self._small = device.type == "cpu" and files.weights_bytes < _SMALL_BYTES

    def encode(
        self, texts: Sequence[str], known: Callable[[int], bool]
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield indices into `texts` and their vectors, (indices, dimension), batch by batch.

        Texts whose index is `known` when their batch's turn comes are left out.

        A batch holds texts of one token count, so nothing is masked, and as many rows as that
        count always has: a matrix product of other shape may sum in another order, and a text
        must have the same vector on a node, beside few others, and in a simulation of all.

        The number of torch's threads decides that order too, so it is not the caller's. A small
        model has one for a batch, and several batches at once: threads that share a batch of
        milliseconds mostly wait for each other, and on a busy machine use up seconds by that.
        """
        with _explained(self._name, quoting=False):
            tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)
        ids: list[list[int]] = tokens["input_ids"]
        self._check(ids, texts)
        budget = _TOKENS_PER_BATCH.get(self._device.type, _TOKENS_PER_BATCH["cpu"])
        # Longest first: if memory is too small, it shows at once.
        order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
        batches: list[list[int]] = []
        for length, group in groupby(order, key=lambda i: len(ids[i])):
            members, size = list(group), max(1, budget // length)
            batches += [members[start : start + size] for start in range(0, len(members), size)]
        threads, at_once = (1, _most_threads()) if self._small else (_most_threads(), 1)
        for start in range(0, len(batches), at_once):
            turn = [
                [i for i in batch if not known(i)] for batch in batches[start : start + at_once]
            ]
            turn = [batch for batch in turn if batch]
            filled = [self._filled([ids[i] for i in batch], budget) for batch in turn]
            with torch_threads(threads), ThreadPoolExecutor(at_once) as pool:
                found = list(pool.map(self._vectors, filled))
            for batch, vectors in zip(turn, found, strict=True):
                yield batch, vectors[: len(batch)]

    @staticmethod
    def _filled(rows: list[list[int]], budget: int) -> list[list[int]]:
        """Repeat the first row until there are as many as a batch of that length has."""
        return rows + rows[:1] * (max(1, budget // len(rows[0])) - len(rows))

    def _vectors(self, ids: list[list[int]]) -> NDArray[np.float32]:
        with _explained(self._name), torch.inference_mode():
            tokens = torch.tensor(ids, device=self._device)  # (texts, tokens)
            output = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            hidden = output.last_hidden_state.float()  # (texts, tokens, dimension)
            pooled = hidden.mean(dim=1) if self._pooling == "mean" else hidden[:, -1]
            vectors: NDArray[np.float32] = pooled.cpu().numpy()
        if not np.isfinite(vectors).all():
            raise EmbeddingError(
                f"The language model '{self._name}' computed values that are not finite. Its "
                "weights may be damaged or need full precision: use device = 'cpu' or another "
                "embedding-model."
            )
        return vectors

    def _check(self, ids: list[list[int]], texts: Sequence[str]) -> None:
        if empty := [len(text) for text, tokens in zip(texts, ids, strict=True) if not tokens]:
            # Never the text itself: a node's errors travel to the server.
            raise EmbeddingError(
                f"The tokenizer of '{self._name}' makes no token of {len(empty)} of {len(texts)} "
                f"texts (the first has {empty[0]} characters; it may be blank). Mend the question "
                "and its options, or use another embedding-model."
            )
        if long := sum(len(tokens) >= self._max_tokens for tokens in ids):
            logger.warning(
                "%d of %d texts reach the %d tokens that '%s' can read; longer ones lose their %s: "
                "take an embedding-model that reads more if that matters.",
                long, len(ids), self._max_tokens, self._name,
                "beginning" if self._tokenizer.truncation_side == "left" else "end",
            )  # fmt: skip


def _most_threads() -> int:
    return min(available_cpus(), _MOST_THREADS)


@contextmanager
def _explained(name: str, *, quoting: bool = True) -> Iterator[None]:
    """Turn whatever torch and transformers raise into an EmbeddingError.

    Without `quoting`, only the kind of error is told: its text may hold what is being embedded.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EmbeddingError(
            f"Not enough accelerator memory for the language model '{name}'. Use "
            "device = 'cpu' or a smaller embedding-model."
        ) from error
    except Exception as error:  # other people's code: it raises whatever comes
        kind = type(error).__name__
        reason = (str(error).strip() or kind).splitlines()[0] if quoting else kind
        raise EmbeddingError(
            f"The language model '{name}' cannot be used ({reason}). Check its files, or set "
            "embedding-model to a text model that transformers' AutoModel can load."
        ) from (error if quoting else None)


def _load(files: ModelFiles) -> tuple[Any, torch.nn.Module]:
    options: dict[str, Any] = {"local_files_only": True}
    if files.gguf:
        require_gguf(files.name)
        options["gguf_file"] = files.weights[0]
    else:  # never what `find_model` did not find
        options["use_safetensors"] = files.weights[0].endswith(".safetensors")
    with _explained(files.name), _quiet(files.gguf):
        tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, **options)
        model, report = transformers.AutoModel.from_pretrained(
            files.folder, output_loading_info=True, **options
        )
    # A pooler sits behind the last hidden layer, which is all that is read here.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise EmbeddingError(
            f"The weights of '{files.name}' lack {len(missing)} tensors (first: {missing[0]}), "
            "which would be random. Download the model again or use another embedding-model."
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return tokenizer, model


@contextmanager
def _quiet(no_stderr: bool) -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the user's terminal."""
    log: Any = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        # The GGUF reader's bar heeds no setting.
        with redirect_stderr(StringIO()) if no_stderr else nullcontext():
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
