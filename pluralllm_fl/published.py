"""The published network."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pluralllm_fl.episodes import QuestionBatch


class PublishedNetwork(nn.Module):
    """The published predictor (arXiv 2503.09925, after GPO, arXiv 2310.11523).

    Token = option embedding and scalar probability (0 for targets); a 4-layer ReLU MLP; post-norm
    encoder layers where every token attends to the context tokens only; a head for mean and log
    standard deviation. Without context the attention adds nothing.
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
    ) -> None:
        super().__init__()
        sizes = (embedding_dim + 1, width, width, width)
        hidden = [m for n in sizes for m in (nn.Linear(n, width), nn.ReLU())]
        self.embed = nn.Sequential(*hidden[:-1])
        self.layers = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(
                    width, heads, feed_forward, dropout=0.0, batch_first=True
                )
                for _ in range(layers)
            ]
        )
        self.width = width
        self.head = nn.Sequential(
            nn.Linear(width, feed_forward), nn.ReLU(), nn.Linear(feed_forward, 2)
        )

    def encode_context(self, context: QuestionBatch | None) -> tuple[Tensor, ...]:
        """Return the context tokens that enter each layer, (C, width) each."""
        if context is None or not len(context):
            empty = next(self.parameters()).new_zeros(0, self.width)
            return tuple(empty for _ in self.layers)
        assert context.distribution is not None, "context questions carry answers"
        tokens = self._tokens(context.embedding, context.distribution)
        encoded = []
        for layer in self.layers:
            encoded.append(tokens)
            tokens = _post_norm(layer, tokens, tokens)
        return tuple(encoded)

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch
    ) -> tuple[Tensor, Tensor | None]:
        """Return the head's means (as logits) and log standard deviations, shape (N,) each."""
        x = self._tokens(targets.embedding, targets.embedding.new_zeros(len(targets.question)))
        for layer, keys in zip(self.layers, context, strict=True):
            x = _post_norm(layer, x, keys)
        mean, log_std = self.head(x).unbind(-1)
        return mean, log_std

    def _tokens(self, embedding: Tensor, probability: Tensor) -> Tensor:
        tokens: Tensor = self.embed(torch.cat([embedding, probability[:, None]], dim=1))
        return tokens


def _post_norm(layer: nn.Module, x: Tensor, keys: Tensor) -> Tensor:
    """Apply one encoder layer whose queries are `x` and whose keys and values are `keys`."""
    assert isinstance(layer, nn.TransformerEncoderLayer)
    if len(keys):
        attended, _ = layer.self_attn(x[None], keys[None], keys[None], need_weights=False)
        x = x + attended[0]
    x = layer.norm1(x)
    out: Tensor = layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))
    return out
