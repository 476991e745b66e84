"""A group's prototype, fitted in closed form on its node (network: `pluralistic`)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pluralllm_fl.episodes import QuestionBatch
from pluralllm_fl.features import centred
from pluralllm_fl.pluralistic import BIAS, PluralisticNetwork

SMALLEST_SHARE = 1e-3  # added to every share before the logarithm
COVERAGE_RIDGE = 0.1
MOST_OPTIONS = 8000  # the system to solve is dense: 256 MB a matrix at this size
OWNED = ("network.memory", "network.coverage")  # arrays with one entry for each prototype


@torch.no_grad()
def remember(
    network: PluralisticNetwork, answers: QuestionBatch, *, prototype: int, ridge: float
) -> None:
    """Set a prototype to the ridge solution on these answers, in place.

    The matrix minimises ``Σ ([b, q]ᵀ M d - log share)² + ridge ‖M‖²`` with logits and log shares
    centred in each question; the coverage vector regresses 1 on the features of the questions.

    Parameters
    ----------
    answers : QuestionBatch
        With distributions; at most `MOST_OPTIONS` options.
    ridge : float
    """
    assert answers.distribution is not None, "a memory is made of answers"
    question, option = network.represent(answers)
    biased = F.pad(question, (1, 0), value=BIAS)
    wanted = centred((answers.distribution + SMALLEST_SHARE).log(), answers)
    # The questions' part is constant for a pair of questions: centring options centres the whole.
    option = centred(option, answers)
    similar = (biased @ biased.T)[answers.question[:, None], answers.question[None]]
    dual = _ridge(similar.mul_(option @ option.T), wanted, ridge)
    directions = option.new_zeros(len(answers), option.shape[1])
    directions.index_add_(0, answers.question, dual[:, None] * option)
    features = network.cover(question)
    known = _ridge(features @ features.T, torch.ones_like(question[:, 0]), COVERAGE_RIDGE)
    network.memory[prototype] = biased.T @ directions
    network.coverage[prototype] = features.T @ known


def undiluted(
    prototypes: Sequence[int],
    weights: Sequence[float],
    owners: Mapping[int, int],
    server_round: int,
) -> list[float]:
    """Return by how much every reply's move of its own prototype is multiplied before averaging.

    A prototype is moved by its owners' replies alone, and averaging would divide that by the
    number of all replies. With these factors a weighted average moves it by the mean over its
    owners' replies; where only some owners replied, by the running mean of those seen so far.

    Parameters
    ----------
    prototypes, weights : sequence
        Which prototype each reply moves, and the reply's weight in the average.
    owners : mapping of int to int
        Number of groups that own each prototype, replying or not; of one that was empty, replying.
    server_round : int
        From 1.
    """
    replied, total = Counter(prototypes), sum(weights)
    return [
        total / (weight * replied[p]) * max(replied[p] / owners[p], 1 / server_round)
        for p, weight in zip(prototypes, weights, strict=True)
    ]


def _ridge(gram: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """Solve ``(gram + ridge) x = wanted``."""
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(wanted[:, None], torch.linalg.cholesky(gram))[:, 0]
