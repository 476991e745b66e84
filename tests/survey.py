"""A small survey of several groups with random embeddings, as a workspace."""

import dataclasses
from itertools import islice

import numpy as np
import torch

from pluralllm_fl.config import RunConfig
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question
from pluralllm_fl.workspace import Workspace

DIMENSION = 6
SEEN, UNSEEN = ("Eastland", "Midland", "Northland", "Westland"), ("Southland", "Southmark")
CONFIG = dataclasses.replace(
    RunConfig.default(), validation_fraction=0.2, test_fraction=0.2,
    context_questions=8, question_features=32, factors=2, batch_questions=8, context_max=10,
    target_min=5, target_max=15, num_server_rounds=2, local_steps=2, width=16, feed_forward=16,
)  # fmt: skip


def survey(config: RunConfig = CONFIG, questions: int = 40) -> Workspace:
    """Return two camps of groups; each group leaves some questions out, some nobody answered."""
    rng = np.random.default_rng(3)
    asked = [
        Question(f"Question {i}?", tuple(f"option {j}" for j in range(2 + i % 4)))
        for i in range(questions)
    ]
    opinions = [[rng.dirichlet(np.full(len(q.options), 0.7)) for q in asked] for _ in range(2)]
    groups = {}
    for place, name in enumerate(SEEN + UNSEEN):
        answers = {}
        for i, question in enumerate(asked):
            share = 0.9 * opinions[place % 2][i] + 0.1 * rng.dirichlet(np.ones(2 + i % 4))
            missing = i % 9 == 0 if name in SEEN else False
            if not missing and rng.random() < 0.8:
                answers[question] = share
        groups[name] = GroupPreferences(name, answers)
    dataset = PreferenceDataset("survey", groups)
    sizes = [len(q.options) for q in dataset.questions]
    first = np.cumsum(sizes) - sizes
    vectors = torch.randn(sum(sizes), DIMENSION, generator=torch.Generator().manual_seed(7))
    rows = {q.id: int(row) for q, row in zip(dataset.questions, first, strict=True)}
    return Workspace(config, dataset, SEEN, UNSEEN, vectors, rows, "random")


def spoiled(workspace: Workspace, groups: tuple[str, ...] = SEEN) -> Workspace:
    """Replace the held-out answers of these groups by nonsense."""
    other = dataclasses.replace(workspace, _tables={})
    for group in workspace.groups:
        table = workspace.table(group)
        distribution = table.distribution.copy()
        if group in groups:
            distribution[np.repeat(table.split != "train", table.size)] = 0.123
        other._tables[group] = dataclasses.replace(table, distribution=distribution)
    return other


def first_answers(own: GroupPreferences, number: int) -> GroupPreferences:
    """Return the answers that rewards build on: the first by question id."""
    return dataclasses.replace(own, answers=dict(islice(own.answers.items(), number)))
