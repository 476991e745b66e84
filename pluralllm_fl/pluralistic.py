"""Our network: what the seen groups said, recalled from a memory and adapted to the group asked.

Notation of docs/recipe.md: a question is a unit vector ``q``, an option is a vector ``d``: how it
deviates from the mean of the question's options, of length 1, and the squares of that.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pluralllm_fl.episodes import QuestionBatch
from pluralllm_fl.features import centred, directions, orthogonal_frequencies
from pluralllm_fl.gaussian_process import condition, covariance

# Mixing starts from values of training groups outside the paper's 14 countries; logarithms.
MIXING = {
    "agreement": 3.4,  # weight of a prototype's agreement with the context
    "doubt": 1.9,  # questions that count as much as this prior: all prototypes agree alike
    "evidence": 4.4,  # respondents that one context answer counts for
    "spread": -2.9,  # variance along the differences between prototypes
    "novelty": 1.9,  # variance of what no prototype says
    "question_scale": 0.4,  # how fast similarity falls with the distance of questions
    "option_scale": 0.4,  # and of options
    "temperature": 0.0,  # sharpness of the recalled answers
    "ignorance": 0.0,  # variance that prototypes share where they do not know the question
    "familiarity": -1.2,  # power of the best coverage in the sharpness
}
BIAS = math.sqrt(0.5)  # constant beside q: options have a meaning of their own
MOST_CONTEXT_OPTIONS = 4000  # conditioning solves a dense system: 64 MB a matrix at this size
SQUARES = math.sqrt(0.5)  # weight of an option's squares
COVERAGE_SCALE = math.sqrt(10.0)
LEAST_COVERAGE = 0.02
LEAST_SHARE = 1e-6  # of a prototype's weight, whatever it does not know


class Recall(NamedTuple):
    """What the memory holds on a batch of questions.

    `question` (Q, dim) and `option` (N, 2 dim) represent them, `logits` (N, prototypes) what each
    prototype answers, `coverage` (Q, prototypes) how well it knows the question, in 0..1.
    """

    question: Tensor
    option: Tensor
    logits: Tensor
    coverage: Tensor


class PluralisticNetwork(nn.Module):
    """A federated memory of the seen groups and a Gaussian process around it.

    *Memory.* Each training group owns a prototype ``k`` (several share one if there are more groups
    than prototypes): a matrix ``M_k`` that says how the group answers, ``logit = [b, q]ᵀ M_k d``,
    fitted in closed form on the group's node, and a vector that says which questions it covers.

    *Prior.* The prototypes' logits are averaged (a product of experts, as in distributed Gaussian
    processes, Deisenroth and Ng 2015, arXiv 1502.02843) with the weights of least variance, given
    how well each agrees with the context and knows the question (`least_variance`); flatter where
    none knows it.

    *Posterior.* The group asked differs from that by a Gaussian process over options, along the
    prototypes' differences and in the space of embeddings; the context answers condition it
    (Laplace approximation of the multinomial likelihood). An empty context leaves the prior, a long
    one overrules it, order cannot matter.

    The ten mixing coefficients are all that gradients train, on groups whose own prototype is
    hidden, which makes every training group an unseen one.

    Parameters
    ----------
    embedding_dim : int
        Of one vector of the language model. Rows may hold two: the first is taken for the
        question, the last for the option.
    prototypes, coverage_features : int
    """

    def __init__(self, *, embedding_dim: int, prototypes: int, coverage_features: int) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.zeros(prototypes, embedding_dim + 1, 2 * embedding_dim))
        self.coverage = nn.Parameter(torch.zeros(prototypes, coverage_features))
        self.mixing = nn.Parameter(torch.tensor(list(MIXING.values())))
        # Part of the architecture, never sent.
        frequencies = COVERAGE_SCALE * orthogonal_frequencies(coverage_features // 2, embedding_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.hidden: int | None = None

    @contextmanager
    def without(self, prototype: int | None) -> Iterator[None]:
        """Hide one prototype (None: none): its group is asked as an unseen one."""
        self.hidden = prototype
        try:
            yield
        finally:
            self.hidden = None

    def active(self) -> Tensor:
        """Return which prototypes hold something and are not hidden, (prototypes,)."""
        filled = self.coverage.detach().abs().amax(dim=1) > 0
        if self.hidden is not None:
            filled[self.hidden] = False
        return filled

    def represent(self, batch: QuestionBatch) -> tuple[Tensor, Tensor]:
        """Return question vectors (Q, dim) and option vectors (N, 2 dim).

        The squares let a prototype tell options apart that lie in opposite directions alike.
        """
        dim = self.memory.shape[1] - 1
        question, deviation = directions(batch, dim)
        squares = F.normalize(deviation.square() - 1 / dim, dim=1) * SQUARES
        return question, torch.cat([deviation, squares], dim=1)

    def cover(self, question: Tensor) -> Tensor:
        """Return random Fourier features of question vectors, (Q, coverage features)."""
        angle = question @ self.get_buffer("frequencies").T
        return torch.cat([angle.cos(), angle.sin()], dim=1) / math.sqrt(angle.shape[1])

    @torch.no_grad()
    def recall(self, batch: QuestionBatch) -> Recall:
        """Ask every prototype about these questions; no gradient reaches the memory."""
        question, option = self.represent(batch)
        if not self.active().any():  # before the first aggregate
            silent = option.new_zeros(len(option), len(self.memory))
            ignorant = question.new_full((len(question), len(self.memory)), LEAST_COVERAGE)
            return Recall(question, option, silent, ignorant)
        biased = F.pad(question, (1, 0), value=BIAS)
        columns = [((biased @ m)[batch.question] * option).sum(1) for m in self.memory]
        logits = centred(torch.stack(columns, dim=1), batch)
        coverage = (self.cover(question) @ self.coverage.T).clamp(LEAST_COVERAGE, 1.0)
        return Recall(question, option, logits, coverage)

    def encode_context(self, context: QuestionBatch | None) -> tuple[Tensor, ...]:
        """Condition on a group's answers.

        Returns
        -------
        tuple of Tensor
            Weights of the prototypes (prototypes,), then of every context option the vectors of
            its question and of itself (C, dim), its differences between prototypes
            (C, prototypes) and its coefficient in the posterior mean (C,).
        """
        mixing = self._mixing()
        active = self.active()
        if context is None or not len(context):
            none = self.mixing.new_zeros(0, self.memory.shape[2] // 2)
            difference = self.mixing.new_zeros(0, len(active))
            return active / active.sum().clamp(min=1), none, none, difference, none[:, 0]
        assert context.distribution is not None, "context questions carry answers"
        context = _at_most(context, MOST_CONTEXT_OPTIONS)
        recall = self.recall(context)
        weight = self._agreement(context, recall, active, mixing)
        prior, difference = self._prior(context, recall, weight, mixing)
        rows = _rows(recall, context)
        known = (*rows, difference)
        prior_covariance = covariance(known, known, mixing)
        coefficient = condition(context, prior, prior_covariance, mixing["evidence"].exp())
        return weight, *rows, difference, coefficient

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the targets' options, shape (N,), and no uncertainty."""
        mixing = self._mixing()
        weight, *known, coefficient = context
        recall = self.recall(targets)
        prior, difference = self._prior(targets, recall, weight, mixing)
        if len(coefficient):
            asked = (*_rows(recall, targets), difference)
            prior = prior + covariance(asked, tuple(known), mixing) @ coefficient
        return prior, None

    def _mixing(self) -> dict[str, Tensor]:
        return dict(zip(MIXING, self.mixing.unbind(), strict=True))

    def _agreement(
        self, context: QuestionBatch, recall: Recall, active: Tensor, mixing: dict[str, Tensor]
    ) -> Tensor:
        """Weigh the prototypes by how much closer to the context they are than the others."""
        answers = context.pad(recall.logits).masked_fill(~context.mask[..., None], -torch.inf)
        true = context.pad(context.distribution)[..., None]  # type: ignore[arg-type]
        closeness = 1 - js_distance(answers.softmax(dim=1), true)  # (Q, prototypes)
        known = recall.coverage * active
        average = (known * closeness).sum(1) / known.sum(1).clamp(min=1e-12)
        gain = (known * (closeness - average[:, None])).sum(0)
        score = mixing["agreement"].exp() * gain / (known.sum(0) + mixing["doubt"].exp())
        weight = (score - score.detach().max()).exp() * active
        return weight / weight.sum().clamp(min=1e-12)

    def _prior(
        self, batch: QuestionBatch, recall: Recall, weight: Tensor, mixing: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted logits (N,) and the prototypes' differences from them."""
        share = least_variance(weight, recall.coverage, mixing["ignorance"].exp())[batch.question]
        mean = (recall.logits * share).sum(1)
        difference = (recall.logits - mean[:, None]) * (share + 1e-12).sqrt()
        known = (recall.coverage * (weight > 0)).amax(1).clamp(min=LEAST_COVERAGE)
        sharpness = mixing["temperature"].exp() * known ** mixing["familiarity"].exp()
        return mean * sharpness[batch.question], difference


def least_variance(weight: Tensor, coverage: Tensor, ignorance: Tensor) -> Tensor:
    """Weigh experts who err apart by nature and together by ignorance.

    Expert k errs by its own deviation, of variance 1 / weight_k (weights scaled to mean 1), and by
    ``sqrt(1 - coverage_k)`` times an error that all share, of variance `ignorance`: prototypes
    that do not know a question guess it from the same similar ones. The average of least variance
    has weights ``Σ⁻¹ 1`` (generalised least squares, Aitken 1936), here by Sherman and Morrison;
    negative ones are cut. Few who know outweigh many who do not, however many those are; where all
    know a question equally well coverage plays no part. The more experts take part, the more a
    difference in coverage counts.

    Parameters
    ----------
    weight : Tensor, shape (experts,)
        Zero: takes no part.
    coverage : Tensor, shape (Q, experts)
        In 0..1.
    ignorance : Tensor
        A number.

    Returns
    -------
    Tensor, shape (Q, experts)
        Sums to 1 over the experts, if one takes part.
    """
    precision = weight * (weight > 0).sum()
    lack = (1 - coverage).sqrt()
    together = precision * lack
    pull = ignorance * together.sum(1) / (1 + ignorance * (together * lack).sum(1))
    share = precision * (1 - lack * pull[:, None]).clamp(min=LEAST_SHARE)
    return share / share.sum(1, keepdim=True).clamp(min=1e-12)


def js_distance(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon distance along dimension 1 (natural log), smooth at 0."""
    log_middle = ((p + q) / 2).clamp_min(1e-9).log()
    terms = p * (p.clamp_min(1e-9).log() - log_middle) + q * (q.clamp_min(1e-9).log() - log_middle)
    return (terms.sum(dim=1).clamp_min(0) / 2 + 1e-6).sqrt()


def _at_most(batch: QuestionBatch, options: int) -> QuestionBatch:
    """Leave out questions, the same ones in any order, until so many options remain."""
    if len(batch.question) <= options:
        return batch
    key = batch.pad(batch.embedding)[:, 0, 0]
    order = key.argsort(stable=True)
    return batch.select(order[batch.size[order].cumsum(0) <= options].sort().values)


def _rows(recall: Recall, batch: QuestionBatch) -> tuple[Tensor, Tensor]:
    """Return the unit vectors of every option's question and of its own deviation, (N, dim)."""
    dim = recall.question.shape[1]
    return recall.question[batch.question], recall.option[:, :dim]
