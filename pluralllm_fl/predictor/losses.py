"""Losses: how far a prediction is from a group's answers."""

import math

import torch
from torch import Tensor

from pluralllm_fl.predictor.episodes import QuestionBatch


def prediction_loss(
    log_probability: Tensor, log_std: Tensor | None, answers: QuestionBatch, loss: str
) -> Tensor:
    """Compare a prediction with a group's answers.

    ``cross-entropy`` (−Σ q log p) and ``alignment`` (the Jensen-Shannon distance, 1 − the
    alignment score) are means over questions, in natural log; ``normal-nll`` is the published
    loss: the negative log-likelihood of the probabilities under Normal(predicted probability,
    exp(log_std)), mean over the options offered.

    Parameters
    ----------
    log_probability : Tensor, shape (N,)
        Predicted, natural log, normalised within each question.
    log_std : Tensor, shape (N,), or None
        The published head's uncertainty: natural log of a standard deviation; None: that is 1.
    answers : QuestionBatch
        With distributions.

    Returns
    -------
    Tensor, scalar
    """
    assert answers.distribution is not None, "targets carry answers in training"
    q = answers.distribution
    if loss == "cross-entropy":
        return torch.neg((q * log_probability).sum()) / len(answers)
    p = log_probability.exp()
    if loss == "alignment":
        return js_distance(answers.pad(p), answers.pad(q)).mean()
    if log_std is None:
        log_std = torch.zeros_like(p)
    nll = ((q - p) / log_std.exp()).square() / 2 + log_std + math.log(2 * math.pi) / 2
    return (nll if answers.offered is None else nll[answers.offered]).mean()


def js_distance(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon distance (natural log), smooth at 0.

    Of shares padded to (Q, longest), one distance a question, shape (Q,):
    ``√(½ KL(p ‖ m) + ½ KL(q ‖ m) + 10⁻⁶)`` with ``m = (p + q) / 2``, and 0.001 where they agree.
    """
    log_middle = ((p + q) / 2).clamp_min(1e-9).log()
    terms = p * (p.clamp_min(1e-9).log() - log_middle) + q * (q.clamp_min(1e-9).log() - log_middle)
    return (terms.sum(dim=1).clamp_min(0) / 2 + 1e-6).sqrt()
