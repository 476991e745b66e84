"""Wall-clock and peak memory of the main job, first embedding included, and of one prediction.

Runs `simulation.py` with an empty embedding cache, watches its whole process tree, then predicts.
Prints a table and writes resources.json beside this file.

    python benchmarks/resources.py --dataset path/to/global_opinions.csv
"""

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]


def tree_bytes(pid: int) -> int:
    """Return the memory of a process tree now: proportional set size, pages shared once."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for member in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += member.memory_full_info().pss
    return total


def watch(process: "subprocess.Popen[bytes]") -> int:
    """Return the peak of the tree's memory in bytes until the process ends."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(0.5)
    return peak


def main_job(dataset: str, folder: Path) -> dict[str, Any]:
    """Simulate with an empty cache; return time, memory and result."""
    command = [sys.executable, str(ROOT / "simulation.py"), "--dataset", dataset]
    command += ["--output-dir", str(folder), "--set", f"embedding-cache={folder / 'cache'}"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = watch(process)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"simulation.py failed with exit code {process.returncode}")
    (found,) = folder.glob("*/summary.json")
    summary = json.loads(found.read_text(encoding="utf-8"))
    return {
        "wall_seconds": seconds,
        "round_seconds": summary["wall_seconds"],
        "peak_gb": peak / 1e9,
        "unseen_alignment": summary["unseen"]["alignment"],
        "unseen_uniform": summary["unseen"]["uniform"],
    }


def prediction(run: Path) -> dict[str, float]:
    """Return seconds to load predictor and language model, then to read 20 answers and answer."""
    from pluralllm_fl.inference import Pluralist

    def ask() -> float:
        new = time.monotonic_ns()  # never embedded before
        answers = {(f"Question {i} about {new}?", ("Yes", "No")): (0.3, 0.7) for i in range(20)}
        start = time.monotonic()
        pluralist.fit(answers).predict(f"Do you trust {new}?", ["Yes", "No"])
        return time.monotonic() - start

    start = time.monotonic()
    pluralist = Pluralist.from_pretrained(run)
    ask()
    return {"load_seconds": time.monotonic() - start, "answer_seconds": ask()}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = main_job(arguments.dataset, Path(folder))
        (run,) = (path.parent for path in Path(folder).glob("*/summary.json"))
        figures |= prediction(run)
    print("| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.3f} |")
    record: dict[str, Any] = {
        "cores": len(psutil.Process().cpu_affinity()),
        "arch": platform.machine(),
        "versions": {p: version(p) for p in ("torch", "flwr", "ray", "transformers")},
    }
    results = {}
    if arguments.output.is_file():
        results = json.loads(arguments.output.read_text(encoding="utf-8"))
    results[Path(arguments.dataset).name] = record | figures
    arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
