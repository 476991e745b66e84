"""What stays with a group: its place among the factors, and a Gaussian process over options."""

import torch
from torch import Tensor

from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.features import question_mean

NEWTON_STEPS = 7  # of conditioning
LATENT_STEPS = 12  # of `latent`, which costs little
LONGEST_STEP = 2.0  # in logits

# Of every option the unit vectors of its question and of its deviation, (N, dim), and its factors,
# (N, factors): what the covariance is a function of.
Place = tuple[Tensor, Tensor, Tensor]


def covariance(rows: Place, columns: Place, numbers: dict[str, Tensor]) -> Tensor:
    """Return the prior covariance of options' logits.

    ``spread F Fᵀ + novelty exp(a (q·q' − 1) + b (d·d' − 1))``: along the learned factors, and
    between options alike of questions alike.

    Parameters
    ----------
    rows, columns : Place
        Of options: q and d, unit vectors (options, dim), and factors f, (options, factors).
    numbers : dict of str to Tensor, scalar each
        Natural logarithms of ``spread``, ``novelty``, ``question_scale`` (a) and ``option_scale``
        (b).

    Returns
    -------
    Tensor, shape (rows, columns)
    """
    (q, d, f), (other_q, other_d, other_f) = rows, columns
    apart = numbers["question_scale"].exp() * (q @ other_q.T - 1)
    apart = apart + numbers["option_scale"].exp() * (d @ other_d.T - 1)
    learned = numbers["spread"].exp() * (f @ other_f.T)
    return learned + numbers["novelty"].exp() * apart.exp()


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
    evidence : Tensor, scalar
        Respondents that one answer counts for.

    Returns
    -------
    Tensor, shape (C,)
        What the covariance with the context is multiplied by to give any option's change in logits.
    """
    assert context.distribution is not None
    if not len(prior):
        return prior
    same = (context.question[:, None] == context.question[None]).to(prior.dtype)
    identity = torch.eye(len(prior), device=prior.device, dtype=prior.dtype)
    deviation = torch.zeros_like(prior)
    coefficient = torch.zeros_like(prior)
    for _ in range(NEWTON_STEPS):
        p = context.log_softmax(prior + deviation).exp()
        weight = evidence * (torch.diag(p) - same * p[:, None] * p[None])
        wanted = weight @ deviation + evidence * (context.distribution - p)
        full = torch.linalg.solve(identity + weight @ prior_covariance, wanted)
        # Far from the mode a full step overshoots.
        move = prior_covariance @ (full - coefficient)
        step = (LONGEST_STEP / move.detach().abs().max().clamp(min=1e-12)).clamp(max=1.0)
        coefficient = coefficient + step * (full - coefficient)
        deviation = deviation + step * move
    return coefficient


@torch.no_grad()
def latent(answers: QuestionBatch, mean: Tensor, factors: Tensor, evidence: float) -> Tensor:
    """Locate a group among the factors: the mode of z ~ N(0, I) in ``logits = mean + factors z``.

    Parameters
    ----------
    answers : QuestionBatch
        With distributions; N options.
    mean : Tensor, shape (N,)
        Logits.
    factors : Tensor, shape (N, factors)
    evidence : float
        Respondents that one answer counts for.

    Returns
    -------
    Tensor, shape (factors,)
        The place z.
    """
    assert answers.distribution is not None
    z = factors.new_zeros(factors.shape[1])
    identity = torch.eye(len(z), device=z.device, dtype=z.dtype)
    for _ in range(LATENT_STEPS):
        p = answers.log_softmax(mean + factors @ z).exp()
        expected = question_mean(factors * p[:, None], answers) * answers.size[:, None]
        away = factors - expected[answers.question]
        curvature = identity + evidence * (away * p[:, None]).T @ away
        slope = evidence * factors.T @ (answers.distribution - p) - z
        step = torch.linalg.solve(curvature, slope)
        move = (factors @ step).abs().max()
        z = z + (LONGEST_STEP / move.clamp(min=1e-12)).clamp(max=1.0) * step
    return z
