"""The networks behind the predictor: ours and the published one."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pluralllm_fl.episodes import QuestionBatch


class OptionSetBlock(nn.Module):
    """Pre-norm transformer block whose attention stays among the options of one question."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, feed_forward),
            nn.GELU(),
            nn.Linear(feed_forward, width),
        )

    def forward(self, x: Tensor, batch: QuestionBatch) -> Tensor:
        """Map (N, width) to (N, width); only the attention itself is padded."""
        qkv = batch.pad(self.query_key_value(self.attention_norm(x)))
        heads = qkv.view(*qkv.shape[:2], 3, self.heads, self.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (Q, heads, O, head_dim) each
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask[:, None, None])
        x = x + self.attention_out(batch.flatten(mixed.transpose(1, 2).flatten(-2)))
        out: Tensor = x + self.feed_forward(x)
        return out


class PluralisticNetwork(nn.Module):
    """A shared prior over the options plus a group latent, inferred from the context.

    A set transformer reads each question's options and gives every option a prior logit ``f``
    and factors ``u``. A group is a latent ``z ~ N(0, I)`` with ``logits = f + u·z``; the context
    answers fix ``z`` by Newton steps on its posterior (multinomial logistic likelihood), through
    which training differentiates. So the context *is* used, its order cannot matter, an empty
    context falls back to the prior, and 100 answers cost as little as one.
    """

    newton_steps = 2

    def __init__(
        self,
        *,
        embedding_dim: int,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        latent: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.LayerNorm(embedding_dim, elementwise_affine=False), nn.Linear(embedding_dim, width)
        )
        self.blocks = nn.ModuleList(
            [OptionSetBlock(width, heads, feed_forward) for _ in range(layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.prior = nn.Linear(width, 1)
        self.factors = nn.Linear(width, latent)
        # Weight of one answered question in the posterior, in respondents; learned.
        self.log_evidence = nn.Parameter(torch.zeros(()))

    def encode_context(self, context: QuestionBatch | None) -> tuple[Tensor, ...]:
        """Return the posterior mode of the group latent, shape (latent,)."""
        z = self.log_evidence.new_zeros(self.factors.out_features)
        if context is None or not len(context):
            return (z,)
        assert context.distribution is not None, "context questions carry answers"
        prior, factors = self._options(context)
        f, u = context.pad(prior), context.pad(factors)  # (Q, O), (Q, O, K)
        answer = context.pad(context.distribution)
        evidence = self.log_evidence.exp()
        for _ in range(self.newton_steps):
            logits = (f + u @ z).masked_fill(~context.mask, -torch.inf)
            p = logits.softmax(dim=1)
            gradient = evidence * torch.einsum("qok,qo->k", u, answer - p) - z
            mean = torch.einsum("qok,qo->qk", u, p)
            curvature = (u * p[..., None]).flatten(0, 1).T @ u.flatten(0, 1) - mean.T @ mean
            hessian = evidence * curvature + torch.eye(len(z), device=z.device)
            z = z + torch.linalg.solve(hessian, gradient)
        return (z,)

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the targets' options, shape (N,), and no uncertainty."""
        prior, factors = self._options(targets)
        return prior + factors @ context[0], None

    def _options(self, batch: QuestionBatch) -> tuple[Tensor, Tensor]:
        x = self.embed(batch.embedding)
        for block in self.blocks:
            x = block(x, batch)
        x = self.norm(x)
        factors = self.factors(x)
        # A shift common to all options of a question changes no probability: remove it.
        mean = batch.pad(factors).sum(dim=1) / batch.size[:, None]
        return self.prior(x).squeeze(-1), factors - mean[batch.question]


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
        latent: int,  # noqa: ARG002 - one signature for all networks
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
