"""Alignment of unseen groups: our recipe against the published one, over seeds.

Runs `simulation.py` once per recipe and seed, prints a table and writes alignment.json beside
this file. About five minutes a seed on two cores.

    python benchmarks/alignment.py --dataset path/to/global_opinions.csv
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

ROOT = Path(__file__).resolve().parents[1]
RECIPES: dict[str, list[str]] = {
    "default": [],
    "published": ["--recipe", str(ROOT / "recipes" / "published.toml")],
}
MEASURES = {
    "unseen alignment": ("summary", "unseen", "alignment"),
    "unseen, test questions": ("summary", "unseen", "test_questions", "alignment"),
    "CoV of unseen groups": ("summary", "unseen", "cov"),
    "worst unseen group": ("summary", "unseen", "min"),
    "seen alignment": ("summary", "seen", "alignment"),
    "context gain, 20 questions": ("diagnostics", "context_gain", "unseen"),
    "own minus wrong context": ("diagnostics", "wrong_context", "unseen"),
    "uniform": ("diagnostics", "references", "uniform", "unseen"),
    "mean of seen groups": ("diagnostics", "references", "seen_mean", "unseen"),
    "minutes of rounds": ("summary", "wall_seconds"),
    "MB sent by nodes": ("summary", "bytes_up"),
}
SCALE = {"minutes of rounds": 1 / 60, "MB sent by nodes": 1e-6}


def run(dataset: str, seed: int, options: list[str], folder: Path) -> dict[str, Any]:
    """Simulate one federation; return its summary and diagnostics."""
    command = [sys.executable, str(ROOT / "simulation.py"), "--dataset", dataset]
    command += ["--seed", str(seed), "--output-dir", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (found,) = folder.glob("*/summary.json")
    return {
        name: json.loads((found.parent / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("summary", "diagnostics")
    }


def measure(result: dict[str, Any], name: str) -> float:
    """Pick one figure of a run."""
    value: Any = result
    for key in MEASURES[name]:
        value = value[key]
    return float(value) * SCALE.get(name, 1.0)


def interval(values: list[float]) -> dict[str, Any]:
    """Return mean and 95% confidence interval (Student's t) over seeds; none of one value."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None, "values": values}
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def compare(results: dict[str, list[dict[str, Any]]], name: str) -> dict[str, Any]:
    """Return one measure of every recipe, and their paired difference if both ran."""
    values = {recipe: [measure(run, name) for run in runs] for recipe, runs in results.items()}
    row = {recipe: interval(of_recipe) for recipe, of_recipe in values.items()}
    if len(values) == 2:
        pairs = zip(values["default"], values["published"], strict=True)
        row["default - published"] = interval([ours - theirs for ours, theirs in pairs])
    return row


def main() -> None:
    """Run all seeds of all recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in arguments.recipes}
    for seed in range(arguments.seeds):
        for recipe in arguments.recipes:
            with tempfile.TemporaryDirectory() as folder:
                results[recipe].append(run(arguments.dataset, seed, RECIPES[recipe], Path(folder)))
            print(
                recipe, seed, f"{measure(results[recipe][-1], 'unseen alignment'):.4f}", flush=True
            )
    table = {name: compare(results, name) for name in MEASURES}
    columns = list(next(iter(table.values())))
    print("| measure | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in table.items():
        cells = [f"{c['mean']:.4f} ({c['low']:.4f} to {c['high']:.4f})" for c in row.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    record = {
        "dataset": Path(arguments.dataset).name,
        "seeds": arguments.seeds,
        "versions": {p: version(p) for p in ("torch", "flwr", "ray", "transformers")},
        "machine": {"python": platform.python_version(), "arch": platform.machine()},
        "measures": table,
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
