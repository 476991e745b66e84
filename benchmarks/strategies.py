"""Every stock strategy on the default configuration, with honest nodes and with bad ones.

Federations of the paper's 8 seen countries run in one process through the real round loop, with
its checks of replies, and the real nodes. Attacks: a quarter of the training nodes, drawn by the
seed, lie in every round (tests/integration/bad_nodes.py); "unchecked" is without our limits on
updates' lengths, so that the strategy alone stands against them. Prints tables and writes
strategies.json beside this file. Run it from the root of the source tree, or by

    pluralllm bench strategies --dataset path/to/global_opinions.csv
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from alignment import interval
from safetensors.numpy import load_file
from store import Run, Store, measured, options, script, shared_facts, show
from trained import configured

from client_app import app
from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import FederationError
from pluralllm_fl.federation.session import run_federation
from pluralllm_fl.predictor.model import initial_predictor
from pluralllm_fl.predictor.training import learning_rate_at
from pluralllm_fl.workspace import open_workspace
from tests.integration.bad_nodes import ATTACKS, with_bad_nodes
from tests.integration.inprocess import InProcessGrid, events

CLEAN = "clean"
BASE = "fedavg"
BAD_SHARE = 0.25
AVERAGING = (BASE, "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad", "qfedavg")
ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")
# So little noise is no privacy: eight nodes cannot hide a model's noise.
NOISE = {"noise_multiplier": 1e-3}
FIXED = NOISE | {"clipping_norm": 10.0}
PRIVATE: dict[str, dict[str, Any]] = {
    "differentialprivacyserversidefixedclipping": FIXED,
    "differentialprivacyclientsidefixedclipping": FIXED,
    "differentialprivacyserversideadaptiveclipping": NOISE,
    "differentialprivacyclientsideadaptiveclipping": NOISE,
}
STRATEGIES = (*AVERAGING, *ROBUST, *PRIVATE)
# With Flower's own values these two are FedAvg.
ARGUMENTS: dict[str, dict[str, Any]] = PRIVATE | {
    "fedavgm": {"server_momentum": 0.5, "server_learning_rate": 0.5},
    "fedprox": {"proximal_mu": 0.01},
}
MEASURES = ("unseen alignment", "unseen, test questions", "initial model")


def label(strategy: str, attack: str = CLEAN, checked: bool = True) -> str:
    """Return the name of a run."""
    if attack == CLEAN:
        return strategy
    return f"{strategy}, {attack}" + ("" if checked else ", unchecked")


def run(strategy: str, attack: str, dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Run a federation with our checks, and under attack once more without their limits."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    config = settings(strategy, str(Path(dataset).resolve()), changes, seed)
    found = {label(strategy, attack): federate(config, attack)}
    if attack != CLEAN:
        checked = found[label(strategy, attack)]
        unlimited = replace(config, max_update_ratio=0.0, max_update_norm=0.0)
        # Where the checks dropped nobody, they changed nothing.
        other = federate(unlimited, attack) if checked["dropped"] else checked
        found[label(strategy, attack, checked=False)] = other
    return found


def federate(config: RunConfig, attack: str) -> Run:
    """Run one federation in this process."""
    workspace = open_workspace(config)
    bad = drawn(len(workspace.seen), config.seed) if attack != CLEAN else []
    nodes = with_bad_nodes(app, bad, ATTACKS[attack]) if bad else app
    failure = {}
    with TemporaryDirectory() as folder:
        config = replace(config, output_dir=folder, run_name="run")
        grid = InProcessGrid(nodes, len(workspace.groups), config.to_run_config())
        try:
            run_federation(grid, config, partial(initial_predictor, config), learning_rate_at)
        except FederationError as error:
            failure = {"failed": str(error)}
        return {
            "seed": config.seed,
            "arguments": config.strategy_kwargs,
            "bad nodes": [workspace.seen[i] for i in bad],
            **findings(Path(folder) / "run"),
            **failure,
        }


def settings(strategy: str, dataset: str, changes: Sequence[str], seed: int) -> RunConfig:
    """Return the config of a run: nothing but the strategy differs from the default."""
    config = configured("ours", dataset, seed, changes)
    config = replace(
        config,
        strategy=strategy,
        strategy_args=json.dumps(ARGUMENTS.get(strategy, {})),
        evaluate_every=config.num_server_rounds,
    )
    if strategy in PRIVATE:  # they add noise for equal weights
        config = replace(config, client_weight="uniform")
    return config


def drawn(nodes: int, seed: int) -> list[int]:
    """Draw the bad ones of the training nodes."""
    chosen = np.random.default_rng(seed).permutation(nodes)[: round(BAD_SHARE * nodes)]
    return sorted(int(i) for i in chosen)


def findings(directory: Path) -> Run:
    """Return what a run left: scores of the unseen groups, replies dropped by group."""
    scores = [event.get("unseen") or {} for event in events(directory, "evaluation")]
    model = directory / "model" / "model.safetensors"
    last = scores[-1] if model.exists() else {}
    return {
        "measures": {
            "unseen alignment": last.get("alignment"),
            "unseen, test questions": (last.get("test_questions") or {}).get("alignment"),
            "initial model": scores[0].get("alignment"),
        },
        "finite": model.exists() and all(np.isfinite(v).all() for v in load_file(model).values()),
        "dropped": dict(Counter(e["group"] for e in events(directory, "reply_dropped"))),
    }


def tables(store: Store) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables of what the file holds; differences are to clean FedAvg, by seed."""
    loss = measured("unseen alignment")
    clean = {
        strategy: {name: store.over_seeds(strategy, measured(name)) for name in MEASURES}
        | {f"− {BASE}": store.paired((strategy, loss), (BASE, loss))}
        for strategy in STRATEGIES
        if store.runs.get(strategy)
    }
    attacked = {}
    for strategy in (BASE, *ROBUST):
        for checked in (True, False):
            names = {attack: label(strategy, attack, checked) for attack in ATTACKS}
            row = {
                attack: store.paired((name, loss), (BASE, loss)) for attack, name in names.items()
            }
            if any(row.values()):
                attacked[strategy if checked else f"{strategy}, unchecked"] = row
    dropped = {
        name: {side: share_dropped(runs, side == "bad") for side in ("bad", "honest")}
        for name, runs in store.runs.items()
        if any(run["dropped"] for run in runs)
    }
    return {"clean": clean, "attacked": attacked, "dropped": dropped}


def share_dropped(runs: Sequence[Run], bad: bool) -> dict[str, Any]:
    """Return how many replies of bad or honest nodes were dropped in a run."""
    return interval(
        [float(sum(n for g, n in r["dropped"].items() if (g in r["bad nodes"]) == bad))
         for r in runs]
    )  # fmt: skip


def main() -> None:
    """Run what is asked for, then compare all that the file holds."""
    parser = options(__doc__, __file__)
    parser.add_argument("--strategies", nargs="*", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--attacks", nargs="*", choices=(CLEAN, *ATTACKS),
                        default=[CLEAN, *ATTACKS])  # fmt: skip
    arguments = parser.parse_args()
    store = Store(arguments.output, shared_facts(arguments))
    tasks = [
        (strategy, attack, arguments.dataset, arguments.set, seed)
        for seed in range(arguments.seeds)
        for attack in arguments.attacks
        for strategy in arguments.strategies
        if attack == CLEAN or strategy in (BASE, *ROBUST)
    ]
    names = [label(*task[:2], checked) for task in tasks for checked in (True, False)]
    store.measure(run, tasks, names, arguments.processes)
    found = tables(store)
    store.write(**found)
    show("honest nodes", found["clean"], (*MEASURES, f"− {BASE}"))
    show(f"25% bad nodes: unseen alignment − clean {BASE}", found["attacked"], tuple(ATTACKS))
    show("replies dropped in a run", found["dropped"], ("bad", "honest"))
    for name, runs in store.runs.items():
        for one in runs:
            if not one["finite"]:
                print(f"{name}, seed {one['seed']}: no finite model. {one.get('failed', '')}")


if __name__ == "__main__":
    script(main)
