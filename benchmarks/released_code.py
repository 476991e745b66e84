"""The published predictor as its released code computes it (arXiv 2503.09925, after GPO's).

Context and target tokens are one sequence; a square mask lets every token attend to the context
tokens; a Python loop takes the softmax over the options of one question after the other. Written
apart from `pluralllm_fl.predictor.published`, for comparison with it.
"""

import torch
from torch import Tensor, nn

from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.published import PublishedNetwork


class ReleasedNetwork(nn.Module):
    """Embedder, `nn.TransformerEncoder` and head, with the weights of our network."""

    def __init__(self, ours: PublishedNetwork, heads: int) -> None:
        super().__init__()
        inputs, width, feed_forward = (
            ours.embed[0].in_features, ours.width, ours.head[0].out_features,
        )  # fmt: skip
        linears = [nn.Linear(inputs, width)] + [nn.Linear(width, width) for _ in range(3)]
        activations = [nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Identity()]
        self.embed = nn.Sequential(
            *(m for pair in zip(linears, activations, strict=True) for m in pair)
        )
        layer = nn.TransformerEncoderLayer(
            width, heads, feed_forward, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, len(ours.layers), enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.Linear(width, feed_forward), nn.ReLU(), nn.Linear(feed_forward, 2)
        )
        with torch.no_grad():  # both list their parameters in the order of computation
            for own, given in zip(self.parameters(), ours.parameters(), strict=True):
                own.copy_(given)

    def forward(self, context: QuestionBatch, targets: QuestionBatch) -> tuple[Tensor, Tensor]:
        """Return the targets' probabilities and log standard deviations, flat."""
        assert context.distribution is not None
        shown, asked = len(context.question), len(targets.question)
        values = torch.cat([context.distribution, torch.zeros(asked)])
        tokens = torch.cat([context.embedding, targets.embedding])
        tokens = torch.cat([tokens, values[:, None]], dim=1)[None]
        mask = torch.full((shown + asked, shown + asked), -torch.inf)
        mask[:, :shown] = 0.0
        encoded = self.encoder(self.embed(tokens), mask=mask)
        mean, log_std = self.head(encoded[0, shown:]).unbind(-1)
        probabilities, start = [], 0
        for size in targets.size.tolist():
            probabilities.append(mean[start : start + size].softmax(dim=0))
            start += size
        return torch.cat(probabilities), log_std

    def loss(self, context: QuestionBatch, targets: QuestionBatch) -> Tensor:
        """Return the negative log-likelihood of the answers, mean over options."""
        mean, log_std = self(context, targets)
        return (
            -torch.distributions.Normal(mean, log_std.exp()).log_prob(targets.distribution).mean()
        )
