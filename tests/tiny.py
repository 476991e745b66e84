"""A tiny survey with random embeddings: everything below the language model, in milliseconds."""

import numpy as np
import torch

from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.preferences import GroupPreferences, Question

DIMENSION = 24


def tiny_table(
    questions: int = 60,
    seed: int = 0,
) -> GroupTable:
    """Return one group's table with 2 to 9 options a question."""
    rng = np.random.default_rng(seed)
    sizes = 2 + np.arange(questions) % 8
    asked = [
        Question(f"Question {i}?", tuple(f"option {j}" for j in range(n)))
        for i, n in enumerate(sizes)
    ]
    first = {q.id: int(s) for q, s in zip(asked, np.cumsum(sizes) - sizes, strict=True)}
    generator = torch.Generator().manual_seed(7)
    vectors = torch.randn(int(sizes.sum()), DIMENSION, generator=generator)
    answers = {q: rng.dirichlet(np.full(len(q.options), 0.5)) for q in asked}
    return GroupTable.build(
        GroupPreferences("Northland", answers), vectors, first,
        seed=seed, validation_fraction=0.2, test_fraction=0.2,
    )  # fmt: skip
