"""Our recipe against the published one: rounds, bytes and seconds to the published alignment, and
what both reach, over seeds.

Trains in this process with the project's own training code (`pluralllm_fl.baselines`), so that the
seconds are those of training alone; the paper's split of groups. Prints a table and writes
convergence.json beside this file. A run of ours takes a minute or two on one core, of the published
recipe several.

    python benchmarks/convergence.py --dataset path/to/global_opinions.csv
"""

import argparse
import json
import platform
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from alignment import interval

from pluralllm_fl.baselines import centralised, federated
from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.diagnostics import diagnose
from pluralllm_fl.evaluation import evaluate_group, split_blocks
from pluralllm_fl.predictor import PreferencePredictor
from pluralllm_fl.workspace import Workspace, open_workspace

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = tomllib.loads((ROOT / "recipes" / "published.toml").read_text(encoding="utf-8"))
RECIPES: dict[str, tuple[Callable[..., PreferencePredictor], dict[str, Any]]] = {
    "ours": (federated, {}),
    "published": (federated, PUBLISHED),
    "published, centralised": (centralised, PUBLISHED),
}


def run(name: str, dataset: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train one recipe; return the curve of unseen alignment and the final measures."""
    torch.set_num_threads(1)
    train, recipe = RECIPES[name]
    values = default_run_config() | recipe | {"dataset": dataset, "seed": seed}
    values |= tomllib.loads("\n".join(overrides))
    config = RunConfig.from_run_config(values)
    workspace = open_workspace(config)
    curve: list[dict[str, float]] = []
    evaluating = 0.0
    start = time.perf_counter()

    def note(server_round: int, predictor: PreferencePredictor) -> None:
        nonlocal evaluating
        if server_round % config.evaluate_every and server_round != config.num_server_rounds:
            return
        begin = time.perf_counter()
        unseen = _unseen(predictor, workspace)
        evaluating += time.perf_counter() - begin
        seconds = time.perf_counter() - start - evaluating
        curve.append({"round": server_round, "unseen": unseen["alignment"], "seconds": seconds})

    predictor = train(workspace, config, note).eval()
    parameters = sum(value.numel() for value in predictor.state_dict().values())
    return {
        "curve": curve,
        "megabytes_a_round": 4e-6 * parameters * len(workspace.seen),
        "unseen": _unseen(predictor, workspace),
        "diagnostics": diagnose(predictor, workspace),
    }


def _unseen(predictor: PreferencePredictor, workspace: Workspace) -> dict[str, Any]:
    scores = {
        group: evaluate_group(
            predictor, workspace.table(group), context_questions=20, seed=workspace.config.seed
        )
        for group in workspace.unseen
    }
    block = split_blocks(scores)
    assert block is not None, "the paper's split has unseen groups"
    return block


def to_reach(result: dict[str, Any], target: float) -> dict[str, float] | None:
    """Return the first evaluated round at the target, with its seconds and megabytes up."""
    for point in result["curve"]:
        if point["unseen"] >= target:
            rounds = point["round"]
            megabytes = rounds * result["megabytes_a_round"]
            return {"rounds": rounds, "seconds": point["seconds"], "megabytes": megabytes}
    return None


def measures(result: dict[str, Any]) -> dict[str, float]:
    """Pick the figures of the table."""
    unseen, diagnostics = result["unseen"], result["diagnostics"]
    sizes, curve = diagnostics["context_sizes"], diagnostics["context_curve"]["unseen"]
    return {
        "unseen alignment": unseen["alignment"],
        "unseen, test questions": unseen["test_questions"]["alignment"],
        "CoV of unseen groups": unseen["cov"],
        "worst unseen group": unseen["min"],
        "context gain, 20 questions": diagnostics["context_gain"]["unseen"],
        "own minus wrong context": diagnostics["wrong_context"]["unseen"],
        "seen mean (raw answers)": diagnostics["references"]["seen_mean"]["unseen"],
        "uniform": diagnostics["references"]["uniform"]["unseen"],
        "seconds of training": result["curve"][-1]["seconds"],
    } | {f"alignment, {size} context questions": a for size, a in zip(sizes, curve, strict=True)}


def ratios(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Compare what each seed needs to reach the published recipe's final unseen alignment."""
    rows: dict[str, list[float]] = {"rounds": [], "seconds": [], "megabytes": []}
    for ours, published in zip(results["ours"], results["published"], strict=True):
        target = published["curve"][-1]["unseen"]
        first, last = to_reach(ours, target), to_reach(published, target)
        if first is None or last is None:
            return {}
        for name, values in rows.items():
            values.append(last[name] / first[name])
    return {f"{name}, published / ours": interval(values) for name, values in rows.items()}


def main() -> None:
    """Run all seeds of all recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--set", nargs="*", default=[], help="config changes, as TOML")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.recipes}
    # Longest first, so that every process is busy to the end and each run has the same company.
    tasks = [(name, seed) for name in results for seed in range(arguments.seeds)]
    tasks.sort(key=lambda task: task[0] == "ours")
    names, seeds = zip(*tasks, strict=True)
    count = len(tasks)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        done = pool.map(run, names, [arguments.dataset] * count, seeds, [arguments.set] * count)
        for (name, seed), result in zip(tasks, done, strict=True):
            results[name].append(result)
            print(name, seed, f"{result['unseen']['alignment']:.4f}", flush=True)
    table = {
        measure: {
            name: interval([measures(result)[measure] for result in runs])
            for name, runs in results.items()
        }
        for measure in measures(results[arguments.recipes[0]][0])
    }
    print("| measure | " + " | ".join(results) + " |\n|---|" + "---|" * len(results))
    for measure, row in table.items():
        cells = [f"{c['mean']:.4f} ({c['low']:.4f} to {c['high']:.4f})" for c in row.values()]
        print(f"| {measure} | " + " | ".join(cells) + " |")
    compared = ratios(results) if {"ours", "published"} <= set(results) else {}
    for name, cell in compared.items():
        print(f"{name}: {cell['mean']:.1f} ({cell['low']:.1f} to {cell['high']:.1f})")
    record = {
        "dataset": Path(arguments.dataset).name,
        "seeds": arguments.seeds,
        "versions": {p: version(p) for p in ("torch", "transformers")},
        "machine": {"python": platform.python_version(), "arch": platform.machine()},
        "measures": table,
        "to_the_published_alignment": compared,
        "curves": {name: [result["curve"] for result in runs] for name, runs in results.items()},
        "megabytes_a_round": {n: runs[0]["megabytes_a_round"] for n, runs in results.items()},
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
