"""The published network."""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor.episodes import EpisodeSampler, GroupTable, QuestionBatch
from pluralllm_fl.predictor.losses import prediction_loss
from pluralllm_fl.predictor.networks import Network


class PublishedNetwork(Network):
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

    def encode_context(
        self, context: QuestionBatch | None, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        """Return keys and values of the C context options in each layer, (C, 2 width) each."""
        del known
        if context is None or not len(context):
            empty = next(self.parameters()).new_zeros(0, 2 * self.width)
            return tuple(empty for _ in self.layers)
        assert context.distribution is not None, "context questions carry answers"
        tokens = self._tokens(context.embedding, context.distribution)
        layers = self._blocks
        encoded = [_keys_and_values(layers[0], tokens)]
        # Nothing reads what the last layer makes of the context.
        for layer, following in pairwise(layers):
            tokens = _post_norm(layer, tokens, encoded[-1])
            encoded.append(_keys_and_values(following, tokens))
        return tuple(encoded)

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return the head's means (as logits) and log standard deviations, shape (N,) each."""
        del known
        x = self._tokens(targets.embedding, targets.embedding.new_zeros(len(targets.question)))
        for layer, attended in zip(self._blocks, context, strict=True):
            x = _post_norm(layer, x, attended)
        mean, log_std = self.head(x).unbind(-1)
        return mean, log_std

    def objective(
        self, table: GroupTable, config: RunConfig, rng: np.random.Generator, server_round: int
    ) -> Callable[[], tuple[Tensor, ...]]:
        """Prepare episodes: context and targets drawn from the group's training questions.

        A step's loss is one term, a scalar.
        """
        del server_round
        sampler = EpisodeSampler(
            (config.context_min, config.context_max), (config.target_min, config.target_max)
        )
        pool = table.members("train")

        def step() -> tuple[Tensor, ...]:
            drawn = sampler.sample(pool, rng)
            context, targets = (table.batch(part) for part in drawn)
            logits, log_std = self.score(self.encode_context(context), targets)
            log_p = targets.log_softmax(logits)
            return (prediction_loss(log_p, log_std, targets, config.loss),)

        return step

    @property
    def _blocks(self) -> list[nn.TransformerEncoderLayer]:
        return cast("list[nn.TransformerEncoderLayer]", list(self.layers))

    def _tokens(self, embedding: Tensor, probability: Tensor) -> Tensor:
        tokens: Tensor = self.embed(torch.cat([embedding, probability[:, None]], dim=1))
        return tokens


def _keys_and_values(layer: nn.TransformerEncoderLayer, tokens: Tensor) -> Tensor:
    """Project tokens that others attend to, once for context and targets: (C, 2 width)."""
    attention, width = layer.self_attn, tokens.shape[1]
    return F.linear(tokens, attention.in_proj_weight[width:], attention.in_proj_bias[width:])


def _post_norm(layer: nn.TransformerEncoderLayer, x: Tensor, known: Tensor) -> Tensor:
    """Apply one encoder layer where the tokens `x` attend to `known` keys and values."""
    if len(known):
        attention, width = layer.self_attn, x.shape[1]
        query = F.linear(x, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
        q, k, v = (
            part.view(len(part), attention.num_heads, width // attention.num_heads).transpose(0, 1)[
                None
            ]
            for part in (query, *known.chunk(2, dim=1))
        )
        attended = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
        x = x + attention.out_proj(attended)
    x = layer.norm1(x)
    out: Tensor = layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))
    return out
