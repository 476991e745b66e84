"""What the terminal says before a federation trains: its data, its groups, a uniform guess."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from pluralllm_fl import __version__
from pluralllm_fl.cli.console import labelled
from pluralllm_fl.config import RunConfig

if TYPE_CHECKING:
    from pluralllm_fl.workspace import SplitData

Groups = tuple[str, ...]


def show_data(console: Console, config: RunConfig, data: "SplitData") -> None:
    """Print the version, the data, who trains, and what the scores will stand beside."""
    from pluralllm_fl.datasets import synthetic_summaries
    from pluralllm_fl.evaluation.scores import uniform_alignment
    from pluralllm_fl.workspace import spec_of

    dataset, seen, unseen = data
    questions = {q for g in data.groups for q in dataset.groups[g].answers}
    console.print(f"PluralLLM-FL {__version__}", style="bold", highlight=False)
    labelled(console, "data", f"{dataset.name}: {len(questions)} questions")
    if not config.test_fraction + config.validation_fraction:
        labelled(console, "", "every question trains: none is left to measure new ones by")
    if dataset.skipped:
        counts = ", ".join(f"{count} {reason}" for reason, count in dataset.skipped.items())
        labelled(console, "", f"rows left out: {counts}")
    labelled(console, "seen", f"{len(seen)} groups: {'; '.join(seen)}")
    labelled(console, "unseen", f"{len(unseen)} groups: {'; '.join(unseen)}".rstrip(": "))
    if not unseen:
        labelled(console, "", "without one, nothing shows how new groups are served: --unseen")
    sides = {side: groups for side, groups in (("seen", seen), ("unseen", unseen)) if groups}
    uniform = {g: uniform_alignment([*dataset.groups[g].answers.values()]) for g in data.groups}
    labelled(console, "uniform", f"alignment {_means(uniform, sides)}")
    if config.dataset == synthetic_summaries.NAME:
        known = synthetic_summaries.ceiling(spec_of(config))
        told = f"pairs in the order of the true tastes: {_means(known, sides)}"
        labelled(console, "ceiling", told)


def _means(values: Mapping[str, float], sides: Mapping[str, Groups]) -> str:
    means = {side: sum(values[g] for g in groups) / len(groups) for side, groups in sides.items()}
    return ", ".join(f"{side} {mean:.4f}" for side, mean in means.items())
