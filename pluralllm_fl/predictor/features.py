"""Vectors of questions and options, as the network and the probes see them."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pluralllm_fl.predictor.episodes import QuestionBatch


def directions(batch: QuestionBatch, dim: int) -> tuple[Tensor, Tensor]:
    """Return unit vectors of questions, (Q, dim), and of options' deviations, (N, dim).

    A row holds one vector of length `dim`, which stands for question and option, or two.
    """
    question, option = batch.embedding[:, :dim], batch.embedding[:, -dim:]
    mean = question_mean(question, batch)
    return F.normalize(mean, dim=1), F.normalize(centred(option, batch), dim=1)


def question_mean(flat: Tensor, batch: QuestionBatch) -> Tensor:
    """Average (N, …) over the options of each question: (Q, …)."""
    total = flat.new_zeros(len(batch), *flat.shape[1:]).index_add(0, batch.question, flat)
    return total / batch.size.view(-1, *[1] * (flat.dim() - 1))


def centred(flat: Tensor, batch: QuestionBatch) -> Tensor:
    """Subtract from each option, (N, …), the mean over the options of its question."""
    return flat - question_mean(flat, batch)[batch.question]


def orthogonal_frequencies(number: int, dimension: int, scale: float) -> Tensor:
    """Draw frequencies of a Gaussian kernel, orthogonal in blocks (arXiv 1610.09072).

    Returns
    -------
    Tensor, shape (number, dimension)
        Always the same; rows have the lengths of normal vectors of this scale.
    """
    if torch.get_default_device().type == "meta":  # only the shape is asked for
        return torch.empty(number, dimension)
    return scale * _drawn(number, dimension)


@lru_cache(maxsize=2)
def _drawn(number: int, dimension: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    blocks = []
    for _ in range(math.ceil(number / dimension)):
        normal, lengths = torch.randn(2, dimension, dimension, generator=generator)
        blocks.append(torch.linalg.qr(normal).Q * lengths.norm(dim=1, keepdim=True))
    return torch.cat(blocks)[:number]
