"""Bytes a round and alignment of unseen groups for both update-dtypes.

Runs `simulation.py` once per update-dtype and seed, prints a table and
adds the data set's figures to messages.json beside this file.

    python benchmarks/messages.py --dataset path/to/global_opinions.csv
"""

import argparse
import itertools
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment import interval, run

DTYPES = ("float32", "bfloat16")
MEASURES: dict[str, tuple[str, ...]] = {
    "MB up a round": ("bytes_up",),
    "MB down a round": ("bytes_down",),
    "unseen alignment": ("unseen", "alignment"),
    "seen alignment": ("seen", "alignment"),
}


def measure(summary: dict[str, Any], name: str) -> float:
    """Pick one figure of a run; bytes of all nodes, evaluation included."""
    value: Any = summary
    for key in MEASURES[name]:
        value = value[key]
    return float(value) / (1e6 * summary["rounds"]) if name.startswith("MB") else float(value)


def spread(values: list[float]) -> dict[str, Any]:
    """Return mean and 95% confidence interval over seeds; one seed has no interval."""
    return interval(values) if len(values) > 1 else {"mean": values[0], "values": values}


def describe(runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, Any]:
    """Return every measure of one way, and the alignment's paired difference to the first way."""
    row = {name: spread([measure(summary, name) for summary in runs]) for name in MEASURES}
    ours, theirs = ([measure(s, "unseen alignment") for s in side] for side in (runs, first))
    row["difference"] = spread([a - b for a, b in zip(ours, theirs, strict=True)])
    return row


def text(name: str, cell: dict[str, Any]) -> str:
    """Format one cell: bytes hardly vary, so they go without an interval."""
    if name.startswith("MB") or "low" not in cell:
        return f"{cell['mean']:.4f}"
    return f"{cell['mean']:.4f} ({cell['low']:.4f} to {cell['high']:.4f})"


def main() -> None:
    """Run all ways on all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="default: the recipe's")
    parser.add_argument("--update-dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    ways = arguments.update_dtype
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for seed, way in itertools.product(range(arguments.seeds), ways):
        options = ["--set", f"update-dtype={way}"]
        if arguments.rounds:
            options += ["--rounds", str(arguments.rounds)]
        with tempfile.TemporaryDirectory() as folder:
            summary = run(arguments.dataset, seed, options, Path(folder))["summary"]
        results[way].append(summary)
        print(way, seed, f"{measure(summary, 'unseen alignment'):.4f}", flush=True)
    table = {way: describe(runs, results[ways[0]]) for way, runs in results.items()}
    columns = list(next(iter(table.values())))
    print("| update-dtype | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for way, row in table.items():
        print(f"| {way} | " + " | ".join(text(name, cell) for name, cell in row.items()) + " |")
    record = {
        "seeds": arguments.seeds,
        "rounds": results[ways[0]][0]["rounds"],
        "versions": {p: version(p) for p in ("torch", "flwr", "ray", "transformers")},
        "machine": {"python": platform.python_version(), "arch": platform.machine()},
        "ways": table,
    }
    known = {}
    if arguments.output.is_file():
        known = json.loads(arguments.output.read_text(encoding="utf-8"))
    known[Path(arguments.dataset).name] = record
    arguments.output.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
