"""Probes of the frozen embeddings: how far does one opinion for all groups, without context, go?

Both are fitted once on the pooled training questions of the seen groups and read nothing else. A
probe depends on the question alone, so the groups' answers enter as their mean and their number.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pluralllm_fl.arrays import FloatArray, IntArray, option_rows
from pluralllm_fl.evaluation.references import Reference, question_rows, seen_answers
from pluralllm_fl.predictor.episodes import GroupTable, QuestionBatch
from pluralllm_fl.predictor.features import centred, directions, question_mean
from pluralllm_fl.predictor.optimizer import FlatAdamW
from pluralllm_fl.predictor.transformer import BIAS
from pluralllm_fl.workspace import Workspace

RIDGE = 0.03
SMALLEST_SHARE = 1e-3  # added to every share before the logarithm
MOST_OPTIONS = 8000  # the system to solve is dense: 256 MB a matrix at this size
MLP_WIDTH = 128
MLP_STEPS = 400
MLP_QUESTIONS = 128  # in a step
MLP_LEARNING_RATE = 2e-3
MLP_WEIGHT_DECAY = 0.1


class Pooled(NamedTuple):
    """Q training questions of the seen groups: `shares` (N, groups), NaN where one gave none."""

    questions: QuestionBatch
    shares: Tensor


def pooled(workspace: Workspace) -> Pooled:
    """Gather the training questions of the seen groups."""
    answers = seen_answers(workspace, "train")
    first, size = question_rows(workspace)
    asked = ~np.isnan(answers[:, first]).all(axis=0)
    first, size = first[asked], size[asked]
    questions = QuestionBatch.build(workspace.vectors, first, size, None)
    shares = torch.from_numpy(answers[:, option_rows(first, size)].T.copy())
    return Pooled(questions, shares.to(workspace.vectors))


def ridge_probe(workspace: Workspace) -> Reference:
    """Fit log shares, centred in each question, by ridge regression on ``[√½, q] ⊗ d``.

    Of more than 8,000 options a random part is used: the system to solve is dense.
    """
    questions, shares = _at_most(pooled(workspace), MOST_OPTIONS)
    known = ~shares.isnan()
    logarithm = (shares.nan_to_num() + SMALLEST_SHARE).log()
    wanted = centred((logarithm * known).sum(1) / known.sum(1), questions)
    dim = workspace.dimension
    biased, option = features(questions, dim)
    rows = biased[questions.question]
    gram = (rows @ rows.T).mul_(option @ option.T)
    gram.diagonal().add_(RIDGE / known.sum(1))
    dual = torch.cholesky_solve(wanted[:, None], torch.linalg.cholesky(gram))
    matrix = rows.T @ (dual * option)

    def predict(table: GroupTable, context: IntArray, targets: IntArray) -> FloatArray:  # noqa: ARG001
        batch = table.batch(targets).without_answers()
        biased, option = features(batch, dim)
        scores = ((biased @ matrix)[batch.question] * option).sum(1)
        return _as_array(batch.log_softmax(scores).exp())

    return predict


def mlp_probe(workspace: Workspace) -> Reference:
    """Train one hidden layer on ``[√½, q, d]`` by the cross-entropy within questions."""
    questions, shares = pooled(workspace)
    answered = (~shares.isnan()).sum(1).to(shares)
    weight = question_mean(answered, questions)  # groups that answered each question
    questions = replace(questions, distribution=shares.nansum(1) / answered)
    torch.manual_seed(workspace.config.seed)
    dim = workspace.dimension
    layers = nn.Sequential(nn.Linear(2 * dim + 1, MLP_WIDTH), nn.ReLU(), nn.Linear(MLP_WIDTH, 1))
    layers.to(workspace.vectors.device)

    def log_probability(batch: QuestionBatch) -> Tensor:
        biased, option = features(batch, dim)
        scores = layers(torch.cat([biased[batch.question], option], dim=1))[:, 0]
        return batch.log_softmax(scores)

    optimizer = FlatAdamW(list(layers.parameters()), MLP_LEARNING_RATE, MLP_WEIGHT_DECAY)
    for _ in range(MLP_STEPS):
        picked = torch.randperm(len(questions))[:MLP_QUESTIONS].sort().values.to(weight.device)
        batch = questions.select(picked)
        assert batch.distribution is not None
        share = batch.distribution * weight[picked][batch.question] / weight[picked].sum()
        loss = torch.neg((share * log_probability(batch)).sum())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    @torch.no_grad()
    def predict(table: GroupTable, context: IntArray, targets: IntArray) -> FloatArray:  # noqa: ARG001
        asked = table.batch(targets).without_answers()
        return _as_array(log_probability(asked).exp())

    return predict


def features(batch: QuestionBatch, dim: int) -> tuple[Tensor, Tensor]:
    """Return ``[√½, q]``, shape (Q, 1 + dim), and ``d``, shape (N, dim), as the network has them.

    ``q`` and ``d`` are unit vectors (`directions`).
    """
    question, deviation = directions(batch, dim)
    return F.pad(question, (1, 0), value=BIAS), deviation


def _at_most(data: Pooled, options: int) -> Pooled:
    """Keep the first questions, a random part as they are sorted by a hash."""
    number = int((data.questions.size.cumsum(0) <= options).sum())
    kept = torch.arange(number, device=data.shares.device)
    rows = data.questions.question < number
    return Pooled(data.questions.select(kept), data.shares[rows])


def _as_array(probability: Tensor) -> FloatArray:
    array: FloatArray = probability.double().cpu().numpy()
    return array
