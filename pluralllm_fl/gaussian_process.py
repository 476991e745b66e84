"""A Gaussian process over options, conditioned on a group's answers."""

import torch
from torch import Tensor

from pluralllm_fl.episodes import QuestionBatch

NEWTON_STEPS = 7
LONGEST_STEP = 2.0  # in logits


def covariance(
    rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], mixing: dict[str, Tensor]
) -> Tensor:
    """Return the prior covariance of options.

    It joins options along the prototypes' differences, and options alike of questions alike.

    Parameters
    ----------
    rows, columns : tuple of Tensor
        Of every option the unit vectors of its question and of its deviation, (N, dim), and its
        differences between prototypes, (N, prototypes).
    mixing : dict of str to Tensor
        The network's numbers.

    Returns
    -------
    Tensor, shape (rows, columns)
    """
    (q, d, x), (other_q, other_d, other_x) = rows, columns
    apart = mixing["question_scale"].exp() * (q @ other_q.T - 1)
    apart = apart + mixing["option_scale"].exp() * (d @ other_d.T - 1)
    learned = mixing["spread"].exp() * (x @ other_x.T)
    return learned + mixing["novelty"].exp() * apart.exp()


def condition(
    context: QuestionBatch, prior: Tensor, prior_covariance: Tensor, evidence: Tensor
) -> Tensor:
    """Find the mode of the posterior by Newton's method (Rasmussen and Williams 2006, §3.5).

    Parameters
    ----------
    context : QuestionBatch
        With answers; C options.
    prior : Tensor, shape (C,)
        Logits without these answers.
    prior_covariance : Tensor, shape (C, C)
    evidence : Tensor
        Respondents that one answer counts for.

    Returns
    -------
    Tensor, shape (C,)
        What the covariance with the context is multiplied by to give any option's change in logits.
    """
    assert context.distribution is not None
    same = (context.question[:, None] == context.question[None]).to(prior.dtype)
    identity = torch.eye(len(prior), device=prior.device, dtype=prior.dtype)
    deviation = torch.zeros_like(prior)
    coefficient = torch.zeros_like(prior)
    for _ in range(NEWTON_STEPS):
        logits = context.pad(prior + deviation).masked_fill(~context.mask, -torch.inf)
        p = context.flatten(logits.softmax(dim=1))
        weight = evidence * (torch.diag(p) - same * p[:, None] * p[None])
        wanted = weight @ deviation + evidence * (context.distribution - p)
        full = torch.linalg.solve(identity + weight @ prior_covariance, wanted)
        # Far from the mode a full step overshoots.
        move = prior_covariance @ (full - coefficient)
        step = (LONGEST_STEP / move.detach().abs().max().clamp(min=1e-12)).clamp(max=1.0)
        coefficient = coefficient + step * (full - coefficient)
        deviation = deviation + step * move
    return coefficient
