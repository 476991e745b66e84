"""The preference predictor: a group's answers in, distributions over new questions out.

Both architectures are exchangeable in the context questions, treat the options of a question
as a set, and score every target of a group in one pass.
"""

import json
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pluralllm_fl import __version__
from pluralllm_fl.arrays import TOO_LARGE, sound
from pluralllm_fl.config import ARCHITECTURES, RunConfig
from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.networks import Network, PredictorConfig

NETWORKS: dict[str, type[Network]] = {
    name: resolve_name(path) for name, path in ARCHITECTURES.items()
}


FORMAT = 1  # of config.json and the weights' names


class Prediction(NamedTuple):
    """Scores of target options, flat.

    `log_probability` (N,), natural log, is normalised within each question; `log_std` (N,) is the
    published head's uncertainty of the probability, None where the network has none.
    """

    log_probability: Tensor
    log_std: Tensor | None


class PreferencePredictor(nn.Module):
    """Predict how a group distributes its preference, given a few of its answers.

    Parameters
    ----------
    config : PredictorConfig

    Examples
    --------
    Encode once per group, then score any number of targets in one pass::

        context = predictor.encode_context(answered)
        prediction = predictor.score(context, questions)
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = NETWORKS[config.architecture].from_config(config)

    def know(self, batch: QuestionBatch) -> tuple[Tensor, ...]:
        """Return what the network says of options whatever the context, shape (N, …) each.

        Hand it, or some of its rows, to `encode_context` and `score` where several contexts or
        targets share it: it is most of their work.
        """
        return self.network.know(batch)

    def encode_context(
        self, context: QuestionBatch | None, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        """Encode a group's answers (with `distribution`); None or an empty batch: no answers.

        `known`, (N, …) each, is what `know` returns of the context. What comes back may have any
        shape.
        """
        return self.network.encode_context(context, known)

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch, known: tuple[Tensor, ...] = ()
    ) -> Prediction:
        """Score the targets' options given an encoded context; answers in `targets` are unused.

        `context` is as `encode_context` returns it, any shape, and `known`, (N, …) each, as `know`
        does of the targets.
        """
        logits, log_std = self.network.score(context, targets, known)
        return Prediction(targets.log_softmax(logits), log_std)

    def forward(self, context: QuestionBatch | None, targets: QuestionBatch) -> Prediction:
        """Encode and score in one call."""
        return self.score(self.encode_context(context), targets)

    @torch.no_grad()
    def predict(self, context: QuestionBatch | None, targets: QuestionBatch) -> Tensor:
        """Return the shares of the targets' options, flat, shape (N,)."""
        return self.forward(context, targets).log_probability.exp()

    def save_pretrained(self, folder: Path, *, data: str = "") -> None:
        """Write ``config.json`` and ``model.safetensors``.

        `data` is the fingerprint of what it was trained on. The weights' header holds it, with
        format, version and architecture, under one key: safetensors writes several in random
        order, and equal models must be equal files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.config), indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        weights = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        about = {
            "format": FORMAT,
            "version": __version__,
            "architecture": self.config.architecture,
            "data": data,
        }
        save_file(weights, folder / "model.safetensors", {"pluralllm_fl": json.dumps(about)})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote; never executes code.

        Raises
        ------
        ArtefactError
            When a file is missing, damaged, or does not fit the configuration.
        """
        path = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (path / name).is_file():
                raise ArtefactError(f"No model in {path}: {name} is missing.")
        try:
            values = json.loads((path / "config.json").read_text("utf-8"))
            config = PredictorConfig.from_stored(values)
            if config.architecture not in [*NETWORKS]:
                known = ", ".join(NETWORKS)
                raise ValueError(f"architecture is {config.architecture!r}, none of {known}"[:200])
        except (ValueError, RecursionError, ConfigError) as error:
            raise ArtefactError(
                f"{path / 'config.json'} is not a predictor config: {str(error).rstrip('.')}."
            ) from None
        try:
            weights = load_file(path / "model.safetensors")
            with torch.device("meta"):  # takes no memory, whatever sizes config.json asks for
                expected = {name: x.shape for name, x in cls(config).state_dict().items()}
            if {name: x.shape for name, x in weights.items()} != expected:
                raise RuntimeError("its arrays have other names or shapes")
            if not all(sound(x.numpy()) for x in weights.values()):
                raise RuntimeError(f"it holds NaN or {TOO_LARGE}")
            predictor = cls(config)
            predictor.load_state_dict(weights)
        except (SafetensorError, RuntimeError, OSError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtefactError(
                f"{path / 'model.safetensors'} is damaged or of another model than its "
                f"config.json: {reason}. Restore both from a copy, or train again."
            ) from None
        return predictor.eval()


def initial_predictor(
    config: RunConfig, embedding_dim: int, embedding_fingerprint: str
) -> PreferencePredictor:
    """Build the predictor that a run of this config starts from; seeds torch."""
    torch.manual_seed(config.seed)
    return PreferencePredictor(
        PredictorConfig.from_run_config(config, embedding_dim, embedding_fingerprint)
    )
