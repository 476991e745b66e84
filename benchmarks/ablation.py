"""What each part of the recipe pays, on development groups, over seeds.

Every seed draws 8 seen and 6 unseen countries from those outside the paper's 14 with at least 250
answers, trains the full recipe and each variant on them, and compares seed by seed. A variant
changes config values or patches the network; nothing of it is an option of the package. The
recipe's choices were made on countries outside the paper's 14, so for these the comparison is
in-sample. Prints tables and writes ablation.json beside this file.

    python benchmarks/ablation.py --dataset path/to/global_opinions.csv
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from store import Run, Store, measured, options, script, shared_facts, show
from torch import Tensor
from trained import HISTORY, configured, context_curve, unseen_block

from pluralllm_fl.datasets.globalopinionqa import SEEN, UNSEEN
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.predictor import transformer
from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.transformer import Described, TransformerNetwork
from pluralllm_fl.workspace import Workspace, open_workspace, read_dataset

LEAST_ANSWERS = 250
ONE_TEXT = "{question}\n\nA. {option}"
OFF = -40.0  # a logarithm: its exponential is nothing, and so is the gradient, so it stays there
Change = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Variant:
    """A change to the recipe: config values, and a patch."""

    config: dict[str, Any] = field(default_factory=dict)
    change: Change = nullcontext


def silent(part: str) -> Change:
    """Return a patch that keeps the outputs of one of the two transformers at zero."""
    build = TransformerNetwork.from_config.__func__  # type: ignore[attr-defined]

    def from_config(cls: type[TransformerNetwork], *args: Any) -> TransformerNetwork:
        network: TransformerNetwork = build(cls, *args)
        network.get_submodule(part).register_forward_hook(lambda *call: 0 * call[-1])
        return network

    return lambda: patch.object(TransformerNetwork, "from_config", classmethod(from_config))


def no_linear(_: TransformerNetwork, batch: QuestionBatch, __: Described) -> Tensor:
    """Stand for the linear part."""
    return batch.embedding.new_zeros(len(batch.question))


FULL = "full recipe"
VARIANTS: dict[str, Variant] = {
    FULL: Variant(),
    "no transformer in the mean": Variant(change=silent("mean")),
    "no linear part": Variant(
        change=lambda: patch.object(TransformerNetwork, "_linear", no_linear)
    ),
    "no factors": Variant(change=silent("factors")),
    "no Gaussian process": Variant(
        change=lambda: patch.dict(transformer.COVARIANCE, spread=OFF, novelty=OFF)
    ),
    "covariance not learned": Variant(
        change=lambda: patch.object(transformer, "COVARIANCE_SPEED", 0.0)
    ),
    # Then all questions train the mean, and the covariance stays as it starts.
    "nothing kept for the covariance": Variant(
        change=lambda: patch.object(transformer, "TRIED", 0.0)
    ),
    "question and option in one text": Variant({"embedding_template": ONE_TEXT}),
    "vectors not standardised": Variant({"embedding_standardise": False}),
    "4 factors": Variant({"factors": 4}),
    "16 factors": Variant({"factors": 16}),
    "uniform weights": Variant({"client_weight": "uniform"}),
    "alignment as loss": Variant({"loss": "alignment"}),
    "no dropout": Variant({"dropout": 0.0}),
}


def development_groups(dataset: str, changes: Sequence[str], seed: int) -> tuple[str, str]:
    """Draw 8 groups to train and 6 to test."""
    groups = read_dataset(configured("ours", dataset, seed, changes)).groups
    free = [
        name
        for name, answers in groups.items()
        if name not in SEEN + UNSEEN and len(answers) >= LEAST_ANSWERS
    ]
    drawn = [free[i] for i in np.random.default_rng(seed).permutation(len(free))[:14]]
    return ";".join(drawn[:8]), ";".join(drawn[8:])


def run(name: str, dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train one variant on one seed's groups."""
    torch.set_num_threads(1)
    seen, unseen = development_groups(dataset, changes, seed)
    config = configured("ours", dataset, seed, changes)
    config = replace(config, seen_groups=seen, unseen_groups=unseen, **VARIANTS[name].config)
    with VARIANTS[name].change():
        return {name: {"seed": seed, "measures": measures(open_workspace(config))}}


def measures(workspace: Workspace) -> dict[str, float | None]:
    """Train and score."""
    predictor = federated(workspace, workspace.config, lambda *_: None).eval()
    unseen = unseen_block(predictor, workspace)
    none, some = context_curve(predictor, workspace, (0, 20))
    wrong = some.get("wrong")
    return {
        "unseen alignment": unseen["alignment"],
        "unseen, test questions": unseen["test_questions"]["alignment"],
        "alignment, 20 answers": some["own"],
        "alignment, no answers": none["own"],
        "context gain": some["own"] - none["own"],
        "own minus wrong context": None if wrong is None else some["own"] - wrong,
    }


def main() -> None:
    """Run all seeds of the variants, then compare all that the file holds."""
    parser = options(__doc__, __file__)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    store = Store(arguments.output, shared_facts(arguments))
    tasks = [
        (variant, arguments.dataset, arguments.set, seed)
        for seed in range(arguments.seeds)
        for variant in arguments.variants
    ]
    store.measure(run, tasks, arguments.variants, arguments.processes)
    shown = [name for name in (*VARIANTS, HISTORY) if store.runs.get(name)]
    names = list(store.runs[shown[0]][0]["measures"])
    table = {
        variant: {name: store.over_seeds(variant, measured(name)) for name in names}
        for variant in shown
    }
    differences = {
        f"{variant} − {FULL}": {
            name: store.paired((variant, measured(name)), (FULL, measured(name))) for name in names
        }
        for variant in shown
        if variant != FULL and FULL in shown
    }
    store.write(table=table, differences=differences)
    show("variant", table, names)
    show("paired difference", differences, names)


if __name__ == "__main__":
    script(main)
