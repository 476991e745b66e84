"""What each part of the recipe pays, on development groups, over seeds.

Every seed draws 8 seen and 6 unseen countries from those outside the paper's 14 with at least 250
answers, trains the full recipe and each variant on them, and compares seed by seed. A variant
changes config values, starting values of the mixing, or one function; nothing of it is an option
of the package. Variants with equal prototypes share the fit. The starting values of the mixing and
the recipe's choices were made on countries outside the paper's 14, so for these the comparison is
in-sample. Prints tables and writes ablation.json beside this file.

    python benchmarks/ablation.py --dataset path/to/global_opinions.csv
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from store import Run, Store, measured, options, script, shared_facts, show
from torch import Tensor
from trained import configured, context_curve, unseen_block

from pluralllm_fl import memory, pluralistic, training
from pluralllm_fl.baselines import federated
from pluralllm_fl.datasets.globalopinionqa import SEEN, UNSEEN
from pluralllm_fl.episodes import QuestionBatch
from pluralllm_fl.pluralistic import PluralisticNetwork
from pluralllm_fl.workspace import Workspace, open_workspace, read_dataset

LEAST_ANSWERS = 250
ONE_TEXT = "{question}\n\nA. {option}"
POWER = 1.65  # of the coverage: what development groups had settled on
OFF = -40.0  # a logarithm: its exponential is nothing, and so is the gradient, so it stays there


@dataclass(frozen=True)
class Variant:
    """A change to the recipe: config values, starting values of the mixing, and a patch."""

    config: dict[str, Any] = field(default_factory=dict)
    mixing: dict[str, float] = field(default_factory=dict)
    change: Callable[[], Any] = nullcontext


def powers_of_coverage(weight: Tensor, coverage: Tensor, _: Tensor) -> Tensor:
    """Weigh by a fixed power of the coverage, however many prototypes do not know the question."""
    share = weight * coverage**POWER
    return share / share.sum(1, keepdim=True).clamp(min=1e-12)


FULL = "full recipe"
VARIANTS: dict[str, Variant] = {
    FULL: Variant(),
    "no Gaussian process": Variant(mixing={"spread": OFF, "novelty": OFF}),
    "no agreement weights": Variant(mixing={"agreement": OFF}),
    "no coverage weights": Variant(mixing={"ignorance": OFF}),
    "powers of the coverage as weights": Variant(
        change=lambda: patch.object(pluralistic, "least_variance", powers_of_coverage)
    ),
    "as sure of unknown questions": Variant(mixing={"familiarity": OFF}),
    "question and option in one text": Variant({"embedding_template": ONE_TEXT}),
    "vectors not standardised": Variant({"embedding_standardise": False}),
    "own prototype visible in training": Variant(
        change=lambda: patch.object(PluralisticNetwork, "without", lambda *_: nullcontext())
    ),
    # That is also what one round gives: the first takes no step.
    "mixing not trained": Variant({"learning_rate": 1e-30}),
    "mixing starts at zero": Variant(mixing=dict.fromkeys(pluralistic.MIXING, 0.0)),
    "cross-entropy": Variant({"loss": "cross-entropy"}),
    "one shared prototype": Variant({"prototypes": 1}),
    "ridge x 10": Variant({"memory_ridge": 10.0}),  # times the default, as the next
    "ridge / 10": Variant({"memory_ridge": 0.1}),
    "no squares": Variant(change=lambda: patch.object(pluralistic, "SQUARES", 0.0)),
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


def run(names: list[str], dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train the variants of one seed, one after the other."""
    torch.set_num_threads(1)
    seen, unseen = development_groups(dataset, changes, seed)
    config = replace(
        configured("ours", dataset, seed, changes), seen_groups=seen, unseen_groups=unseen
    )
    workspace = open_workspace(config)
    with shared_fits():
        return {name: measure(VARIANTS[name], workspace) | {"seed": seed} for name in names}


def measure(variant: Variant, workspace: Workspace) -> Run:
    """Train one variant and score it."""
    changed = dict(variant.config)
    if "memory_ridge" in changed:
        changed["memory_ridge"] *= workspace.config.memory_ridge
    with ExitStack() as stack:
        stack.enter_context(patch.dict(pluralistic.MIXING, variant.mixing))
        stack.enter_context(variant.change())
        config = replace(workspace.config, **changed)
        if changed.keys() & {"embedding_template", "embedding_standardise"}:
            workspace = open_workspace(config)
        predictor = federated(workspace, config, lambda *_: None).eval()
        unseen = unseen_block(predictor, workspace)
        none, some = context_curve(predictor, workspace, (0, 20))
    wrong = some.get("wrong")
    return {
        "measures": {
            "unseen alignment": unseen["alignment"],
            "unseen, test questions": unseen["test_questions"]["alignment"],
            "alignment, 20 answers": some["own"],
            "alignment, no answers": none["own"],
            "context gain": some["own"] - none["own"],
            "own minus wrong context": None if wrong is None else some["own"] - wrong,
        }
    }


@contextmanager
def shared_fits() -> Iterator[None]:
    """Fit a prototype once for equal answers, vectors, ridge and representation."""
    fits: dict[Any, Any] = {}
    fit = memory.remember

    def remember(
        network: PluralisticNetwork, answers: QuestionBatch, *, prototype: int, ridge: float
    ) -> None:
        assert answers.distribution is not None
        data = answers.distribution.numpy().tobytes(), answers.embedding[0].numpy().tobytes()
        key = (*data, ridge, pluralistic.SQUARES)
        owned = network.memory, network.coverage
        if key not in fits:
            fit(network, answers, prototype=prototype, ridge=ridge)
            fits[key] = [array[prototype].detach().clone() for array in owned]
        with torch.no_grad():
            for array, fitted in zip(owned, fits[key], strict=True):
                array[prototype] = fitted

    with patch.object(training, "remember", remember):
        yield


def main() -> None:
    """Run all seeds of the variants, then compare all that the file holds."""
    parser = options(__doc__, __file__, ["num-server-rounds=2"])
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    if missing := {key for v in VARIANTS.values() for key in v.mixing} - set(pluralistic.MIXING):
        raise SystemExit(f"The network has no mixing coefficient {', '.join(sorted(missing))}.")
    store = Store(arguments.output, shared_facts(arguments))
    tasks = [
        (arguments.variants, arguments.dataset, arguments.set, seed)
        for seed in range(arguments.seeds)
    ]
    store.measure(run, tasks, arguments.variants, arguments.processes)
    names = list(next(runs for runs in store.runs.values() if runs)[0]["measures"])
    table = {
        variant: {name: store.over_seeds(variant, measured(name)) for name in names}
        for variant in store.runs
    }
    differences = {
        f"{variant} − {FULL}": {
            name: store.paired((variant, measured(name)), (FULL, measured(name))) for name in names
        }
        for variant in store.runs
        if variant != FULL and FULL in store.runs
    }
    store.write(table=table, differences=differences)
    show("variant", table, names)
    show("paired difference", differences, names)


if __name__ == "__main__":
    script(main)
