"""What a node or a tool works on: data set, group split, embedding table, group tables."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pluralllm_fl.config import RunConfig, embedding_parts
from pluralllm_fl.datasets import GENERATED, SyntheticSpec, load_dataset
from pluralllm_fl.devices import torch_device
from pluralllm_fl.embedding import Progress, TextEmbedder
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.preferences import PreferenceDataset, Role, split_groups


class SplitData(NamedTuple):
    """A data set, its groups that train and its groups that never do; each sorted."""

    dataset: PreferenceDataset
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """Seen groups, then unseen."""
        return self.seen + self.unseen


@dataclass(frozen=True)
class Workspace:
    """A data set with its split and embeddings.

    Parameters
    ----------
    config : RunConfig
    dataset : PreferenceDataset
    seen, unseen : tuple of str
        Groups that train, and groups that never do; each sorted.
    vectors : Tensor, shape (rows, embedding dim)
        One row per (question, option), on the device that the config asks for.
    first_row : dict of str to int
        Question id -> row of its first option.
    embedding_fingerprint : str
        Identity of the frozen language model and pooling.
    arithmetic : tuple of str
        Device type and number format in which the language model computes.
    """

    config: RunConfig
    dataset: PreferenceDataset
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    vectors: Tensor
    first_row: dict[str, int]
    embedding_fingerprint: str
    arithmetic: tuple[str, str] = ("cpu", "float32")
    _tables: dict[str, GroupTable] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """Seen groups, then unseen: the order of a simulation's partitions."""
        return self.seen + self.unseen

    @property
    def dimension(self) -> int:
        """Length of one vector of the language model; rows hold as many as the template has texts.

        The first of a row stands for the question, the last for the option.
        """
        return self.vectors.shape[1] // len(embedding_parts(self.config.embedding_template))

    def role(self, group: str) -> Role:
        """Return whether a group trains or is only evaluated."""
        return "train" if group in self.seen else "evaluate"

    def table(self, group: str) -> GroupTable:
        """Return a group's answers as tensors, built once.

        Raises
        ------
        ConfigError
            When the group has too few questions for the context.
        """
        if group not in self._tables:
            require_questions(self.dataset, (group,), self.config.context_questions)
            self._tables[group] = GroupTable.build(
                self.dataset.groups[group],
                self.vectors,
                self.first_row,
                seed=self.config.seed,
                validation_fraction=self.config.validation_fraction,
                test_fraction=self.config.test_fraction,
            )
        return self._tables[group]


def is_generated(config: RunConfig) -> bool:
    """Tell whether the data are made up, and so no secret of anybody."""
    return config.dataset in GENERATED


def is_elastic(config: RunConfig) -> bool:
    """Tell whether any number of simulated nodes will do: generated data fits them."""
    return is_generated(config) and not (config.synthetic_groups or config.seen or config.unseen)


def for_nodes(config: RunConfig, nodes: int) -> RunConfig:
    """Give an elastic survey a group for every node, and its usual number in any case."""
    if not is_elastic(config):
        return config
    return replace(config, synthetic_groups=max(GENERATED[config.dataset].groups, nodes))


def held_by_nodes(workspace: Workspace, nodes: int) -> tuple[str, ...]:
    """Return the groups of an elastic survey that so many nodes hold, seen ones first.

    With fewer nodes than groups both roles keep their share, but two nodes train before one is
    left to a group that does not.
    """
    unseen = min(round(workspace.config.unseen_fraction * nodes), max(nodes - 2, 0))
    seen = workspace.seen[: nodes - unseen]
    return seen + workspace.unseen[: nodes - len(seen)]


def read_dataset(config: RunConfig) -> PreferenceDataset:
    """Load the data set that a config names."""
    return load_dataset(
        config.dataset, on_bad_row=config.on_bad_row, zeros=config.zeros,
        synthetic=spec_of(config) if is_generated(config) else None,
    )  # fmt: skip


def split_data(config: RunConfig) -> SplitData:
    """Load the data set that a config names, and split its groups."""
    dataset = read_dataset(config)
    seen, unseen = split_groups(
        dataset, config.seen, config.unseen, config.unseen_fraction, config.seed
    )
    return SplitData(dataset, seen, unseen)


def spec_of(config: RunConfig) -> SyntheticSpec:
    """Return size and seed of generated data."""
    usual = GENERATED[config.dataset]
    return SyntheticSpec(
        groups=config.synthetic_groups or usual.groups,
        questions=config.synthetic_questions,
        respondents=config.synthetic_respondents or usual.respondents,
        seed=config.seed,
    )


def text_embedder(config: RunConfig) -> TextEmbedder:
    """Return the embedder that a config names."""
    return TextEmbedder(
        model=config.embedding_model,
        pooling=config.embedding_pooling,
        template=config.embedding_template,
        cache_dir=Path(config.embedding_cache) if config.embedding_cache else None,
        device=config.device,
        standardise=config.embedding_standardise,
    )


def require_questions(
    dataset: PreferenceDataset, groups: tuple[str, ...], context_questions: int
) -> None:
    """Check that every group can be shown its context and still has a target.

    Raises
    ------
    ConfigError
        Naming the group and the numbers.
    """
    for group in groups:
        if len(dataset.groups[group]) <= context_questions:
            raise ConfigError(
                f"Group '{group}' in {dataset.name} has {len(dataset.groups[group])} questions; "
                f"context-questions = {context_questions} needs at least {context_questions + 1}. "
                "Lower context-questions, leave the group out, or give it more answers."
            )


@lru_cache(maxsize=2)
def open_workspace(config: RunConfig, progress: Progress | None = None) -> Workspace:
    """Load, split and embed; one copy a process and config."""
    dataset, seen, unseen = split_data(config)
    embedder = text_embedder(config)
    table = embedder.embed(dataset.questions, progress)
    vectors = torch.from_numpy(table.vectors).to(torch_device(config.device))
    return Workspace(
        config, dataset, seen, unseen, vectors, dict(table.first_row), embedder.fingerprint,
        embedder.arithmetic,
    )  # fmt: skip
