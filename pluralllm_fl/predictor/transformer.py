"""The default network: one shared transformer, and a Gaussian process for the group asked.

Notation of docs/recipe.md: a question is a unit vector ``q``; an option is a unit vector ``o``, and
``d`` is its deviation from the mean of the question's options, scaled to length 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pluralllm_fl.arrays import IntArray
from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor.episodes import EpisodeSampler, GroupTable, QuestionBatch
from pluralllm_fl.predictor.features import centred, directions, orthogonal_frequencies
from pluralllm_fl.predictor.gaussian_process import Place, condition, covariance, latent
from pluralllm_fl.predictor.losses import prediction_loss
from pluralllm_fl.predictor.networks import Network

BIAS = math.sqrt(0.5)  # constant beside q: options have a meaning of their own
SQUARES = math.sqrt(0.5)  # length of an option's squares
QUESTION_SCALE = math.sqrt(10.0)  # the random features draw the kernel exp(10 (q·q' - 1))
FEATURES = math.sqrt(2.0)  # length of the random features
LATENT_EVIDENCE = 3.0  # respondents that an answer counts for when a training group is located
MOST_CONTEXT_OPTIONS = 4000  # conditioning solves a dense system: 64 MB a matrix at this size

# Logarithms of the covariance's numbers, before training.
COVARIANCE = {
    "spread": 0.0,  # variance along the factors; stays
    "novelty": 0.0,  # variance between options alike
    "question_scale": 0.0,  # how fast similarity falls with the distance of questions
    "option_scale": 0.0,  # and of options
    "evidence": 3.0,  # respondents that one context answer counts for
}
MOST_QUESTIONS = 4000  # a node trains on so many in a round, others in each
TRIED = 0.125  # share of its training questions on which a node tries the Gaussian process,
TRIED_UNTIL = 1 / 3  # in so many of the rounds; then it trains on all
COVARIANCE_SPEED = 50.0  # logarithms a unit of the trained parameter


class Known(NamedTuple):
    """What the network says of N options whatever the context.

    `mean` (N,) are logits, `factors` (N, factors) how groups differ.
    """

    mean: Tensor
    factors: Tensor


class Described(NamedTuple):
    """What the network reads of N options of Q questions; the weights have no part in it.

    `tokens` (N, 4 dim) are the transformers' inputs, `option` (N, 2 dim) is [d, s], and `features`
    (Q, 1 + dim + random features) is f(q).
    """

    tokens: Tensor
    option: Tensor
    features: Tensor

    def pick(self, questions: Tensor, options: Tensor) -> "Described":
        """Return some of the questions, (questions,), and their options, (options,), by index."""
        return Described(self.tokens[options], self.option[options], self.features[questions])


class SetBlock(nn.Module):
    """Attention among the options of each question, then a feed-forward layer; both pre-norm."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, feed_forward), nn.GELU(), nn.Linear(feed_forward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, batch: QuestionBatch) -> Tensor:
        """Map (N, width) to (N, width), within each question of the batch."""
        parts = batch.pad(self.project(self.norm_attention(x))).chunk(3, dim=2)
        split = (len(batch), batch.longest, self.heads, x.shape[1] // self.heads)
        q, k, v = (part.reshape(split).transpose(1, 2) for part in parts)
        mask = batch.mask[:, None, None]  # (Q, 1, 1, longest)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.dropout(self.merge(batch.flatten(attended.transpose(1, 2).flatten(2))))
        out: Tensor = x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        return out


class OptionTransformer(nn.Module):
    """A transformer over the options of one question: (N, inputs) to (N, outputs)."""

    def __init__(
        self, inputs: int, outputs: int, width: int, layers: int, heads: int, feed_forward: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.LayerNorm(width))
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
        self.blocks = nn.ModuleList(
            [SetBlock(width, heads, feed_forward, dropout) for _ in range(layers)]
        )
        # Without biases: what is the same for all options of a question changes nothing.
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, outputs, bias=False)
        if not self.head.weight.is_meta:  # there it would load torch's compiler: two seconds
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens: Tensor, batch: QuestionBatch) -> Tensor:
        """Let the options of each question attend to one another: (N, inputs) to (N, outputs)."""
        x = self.embed(tokens)
        x = x + self.mix(x)
        for block in self.blocks:
            x = block(x, batch)
        out: Tensor = self.head(self.norm(x))
        return out


class TransformerNetwork(Network):
    """A shared mean and shared factors, and a Gaussian process around them.

    *Mean.* ``m + R``: a transformer over the options of one question, and a linear function of
    question features times option features, ``R = f(q)ᵀ M [d, s]``.

    *Factors.* A second transformer like the first says in which directions F groups differ.

    *A group.* Its logits are a Gaussian process around the mean, along the factors and in the
    space of embeddings (`covariance`); the context's answers condition it (Laplace approximation
    of the multinomial likelihood). An empty context leaves the mean, a long one overrules it,
    order cannot matter. Nothing of a group is in the weights but its share in the average.

    Parameters
    ----------
    dimension : int
        Of one vector of the language model. Rows may hold two: the first is taken for the
        question, the last for the option.
    width, layers, heads, feed_forward : int
    dropout : float
    question_features : int
        Random Fourier features of the question in the linear part; even.
    factors : int
    """

    def __init__(
        self,
        *,
        dimension: int,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        question_features: int,
        factors: int,
    ) -> None:
        super().__init__()
        self.dimension = dimension
        shape = (width, layers, heads, feed_forward, dropout)
        self.linear = nn.Parameter(torch.zeros(1 + dimension + question_features, 2 * dimension))
        self.mean = OptionTransformer(4 * dimension, 1, *shape)
        self.factors = OptionTransformer(4 * dimension, factors, *shape)
        self.dropout = nn.Dropout(dropout)
        self.covariance = nn.Parameter(torch.zeros(len(COVARIANCE)))
        # Part of the architecture, never sent.
        frequencies = orthogonal_frequencies(question_features // 2, dimension, QUESTION_SCALE)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def numbers(self) -> dict[str, Tensor]:
        """Return the natural logarithms of the covariance's numbers by name, scalar each."""
        learned = (COVARIANCE_SPEED * self.covariance).unbind()
        return {k: start + x for (k, start), x in zip(COVARIANCE.items(), learned, strict=True)}

    @torch.no_grad()
    def describe(self, batch: QuestionBatch) -> Described:
        """Return what the network reads of a batch."""
        question, deviation = directions(batch, self.dimension)
        asked = question[batch.question]
        option = F.normalize(batch.embedding[:, -self.dimension :], dim=1)
        apart = centred(option, batch)
        tokens = torch.cat([4 * asked, 4 * option, 8 * apart, 32 * asked * apart], dim=1)
        tokens = F.layer_norm(tokens, tokens.shape[1:])
        angle = question @ self.get_buffer("frequencies").T
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        features = F.pad(question, (1, 0), value=BIAS)
        features = torch.cat([features, FEATURES * F.normalize(waves, dim=1)], dim=1)
        # The squares tell options apart that lie in opposite directions alike.
        squares = F.normalize(deviation.square() - 1 / self.dimension, dim=1) * SQUARES
        return Described(tokens, torch.cat([deviation, squares], dim=1), features)

    def know(self, batch: QuestionBatch, described: Described | None = None) -> Known:
        """Return mean and factors of the options of a batch, `described` if that is at hand."""
        described = described or self.describe(batch)
        tokens = self.dropout(described.tokens)
        mean = self.mean(tokens, batch)[:, 0] + self._linear(batch, described)
        return Known(centred(mean, batch), self.factors(tokens, batch))

    def _linear(self, batch: QuestionBatch, described: Described) -> Tensor:
        """Return ``f(q)ᵀ M [d, s]``, shape (N,)."""
        return ((described.features @ self.linear)[batch.question] * described.option).sum(1)

    def encode_context(
        self, context: QuestionBatch | None, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        """Condition on a group's answers.

        Returns
        -------
        tuple of Tensor
            Of C context options q and d, (C, dim) each, their factors, (C, factors), and their
            coefficients in the posterior mean, (C,). C is at most `MOST_CONTEXT_OPTIONS`.
        """
        if context is None or not len(context):
            empty = self.linear.new_zeros(0, self.dimension)
            factors = empty.new_zeros(0, self.factors.head.out_features)
            return empty, empty, factors, empty[:, 0]
        context, known = _at_most(context, known, MOST_CONTEXT_OPTIONS)
        return self._condition(context, *self._prior(context, known))

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the targets' options, shape (N,), and no uncertainty."""
        return self._posterior(context, *self._prior(targets, known)), None

    def objective(
        self, table: GroupTable, config: RunConfig, rng: np.random.Generator, server_round: int
    ) -> Callable[[], tuple[Tensor, ...]]:
        """Prepare ``loss(m + R) + loss(x₀ + F z) + misalignment of the Gaussian process``.

        x₀ is the mean as received and z the group's place among the factors as received: it stays
        on the node and ends with the round. The Gaussian process is tried in the first rounds
        (`TRIED_UNTIL`), on a part of the questions that this node does not train the mean on until
        they are over, so that the group is there as good as unseen, and without factors, which know
        the group; only the covariance's numbers learn from it. Each term of the sum is a scalar.
        """
        pool = table.members("train")
        if len(pool) > MOST_QUESTIONS:
            pool = rng.choice(pool, MOST_QUESTIONS, replace=False)
        early = server_round <= max(2, config.num_server_rounds * TRIED_UNTIL)
        tried = np.isin(pool, table.fold(pool, TRIED) if early else [])
        if tried.all():
            tried[0] = False
        trained, held = pool[~tried], pool[tried]
        batch, trial = table.batch(trained), table.batch(held)
        described = self.describe(batch)
        with torch.no_grad():
            self.eval()
            received, known = self.know(batch, described), self.know(trial)
            z = latent(batch, received.mean, received.factors, LATENT_EVIDENCE)
            self.train()
            known = known._replace(factors=torch.zeros_like(known.factors))
            mean, unfactored = self._prior(trial, known)
        sampler = EpisodeSampler(
            (config.context_min, config.context_max), (config.target_min, config.target_max)
        )

        def step() -> tuple[Tensor, ...]:
            number = min(config.batch_questions, len(trained))
            picked = np.sort(rng.choice(len(trained), number, replace=False))
            asked, options = batch.pick(picked)
            now = self.know(asked, described.pick(torch.from_numpy(picked), options))
            terms = [prediction_loss(asked.log_softmax(now.mean), None, asked, config.loss)]
            if server_round == 1:  # mean and factors are noise
                return tuple(terms)
            logits = received.mean[options] + now.factors @ z
            terms.append(prediction_loss(asked.log_softmax(logits), None, asked, config.loss))
            if len(held) > 1:
                context, targets = sampler.sample(np.arange(len(held)), rng)
                terms.append(self._trial(trial, mean, unfactored, context, targets))
            return tuple(terms)

        return step

    def _trial(
        self, trial: QuestionBatch, mean: Tensor, place: Place, context: IntArray, targets: IntArray
    ) -> Tensor:
        """Return the misalignment of targets, given the context, under the covariance as it is."""
        (shown, first), (asked, second) = trial.pick(context), trial.pick(targets)
        encoded = self._condition(shown, mean[first], _rows(place, first))
        logits = self._posterior(encoded, mean[second], _rows(place, second))
        return prediction_loss(asked.log_softmax(logits), None, asked, "alignment")

    def _prior(self, batch: QuestionBatch, known: tuple[Tensor, ...]) -> tuple[Tensor, Place]:
        """Return the mean of a batch's options, and what their covariance is a function of."""
        if known:
            mean, factors = known
            question, deviation = directions(batch, self.dimension)
        else:
            described = self.describe(batch)
            mean, factors = self.know(batch, described)
            question = described.features[:, 1 : 1 + self.dimension]
            deviation = described.option[:, : self.dimension]
        return mean, (question[batch.question], deviation, factors)

    def _condition(self, context: QuestionBatch, mean: Tensor, place: Place) -> tuple[Tensor, ...]:
        numbers = self.numbers()
        prior = covariance(place, place, numbers)
        return *place, condition(context, mean, prior, numbers["evidence"].exp())

    def _posterior(self, context: tuple[Tensor, ...], mean: Tensor, place: Place) -> Tensor:
        """Return the logits of options, given a context."""
        question, deviation, factors, coefficient = context
        if not len(coefficient):
            return mean
        shared = covariance(place, (question, deviation, factors), self.numbers())
        return mean + shared @ coefficient


def _rows(parts: Place, options: Tensor) -> Place:
    first, second, third = parts
    return first[options], second[options], third[options]


def _at_most(
    batch: QuestionBatch, known: tuple[Tensor, ...], options: int
) -> tuple[QuestionBatch, tuple[Tensor, ...]]:
    """Leave out questions, the same ones in any order, until so many options remain."""
    if len(batch.question) <= options:
        return batch, known
    key = batch.pad(batch.embedding)[:, 0, 0]
    order = key.argsort(stable=True)
    chosen, rows = batch.pick(order[batch.size[order].cumsum(0) <= options].sort().values)
    return chosen, tuple(part[rows] for part in known)
