"""What the Python API costs: scoring of cached candidates, and new options on a busy machine.

Times are CPU seconds of the process. Scoring: all questions of a survey for one group with 20
answers, embedded before, by `predict_proba` and as rewards. New options: predictions of eight texts
never seen, in a fresh process beside busy ones, with torch's threads as they come. Prints a table
and writes api.json beside this file. About two minutes.

    python benchmarks/api.py --dataset path/to/global_opinions.csv
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from store import script

from pluralllm_fl import Pluralist
from pluralllm_fl.config import RunConfig
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.inference import ConditionedGroup
from pluralllm_fl.predictor.model import initial_predictor
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset
from pluralllm_fl.reward import PluralisticReward
from pluralllm_fl.workspace import text_embedder

CONTEXT, NEW_OPTIONS, BUSY = 20, 8, 2


def untrained(data: PreferenceDataset, cache: str = "") -> ConditionedGroup:
    """Fit a predictor of the default size, whose speed does not depend on training."""
    config = RunConfig.default({"embedding-cache": cache})
    embedder = text_embedder(config)
    embedder.load()
    predictor = initial_predictor(config, embedder.dimension, embedder.fingerprint).eval()
    group = next(iter(data.groups.values()))
    shown = dict(list(group.answers.items())[:CONTEXT])
    return Pluralist(predictor, embedder).fit(GroupPreferences(group.group, shown))


def rate(work: Callable[[], Any], candidates: int, repeats: int) -> dict[str, float]:
    """Return candidates a CPU second: median and best."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return {
        "median": candidates / statistics.median(seconds),
        "best": candidates / min(seconds),
    }


def scoring(data: PreferenceDataset, repeats: int) -> dict[str, Any]:
    """Measure how many cached candidates are scored in a CPU second."""
    group = untrained(data)
    asked = [(q.text, q.options) for q in data.questions]
    rows = [(text, option, options) for text, options in asked for option in options]
    prompts, said, options = zip(*rows, strict=True)
    reward = PluralisticReward({"one": group})
    found = {
        "predict_proba": rate(lambda: group.predict_proba(asked), len(rows), repeats),
        "reward": rate(lambda: reward(prompts, said, options=options), len(rows), repeats),
    }
    return {"questions": len(asked), "candidates": len(rows), "a_cpu_second": found}


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep so many other processes computing."""
    others = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(number)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()


def _spin() -> None:
    while True:
        pass


def first_prediction(data: PreferenceDataset, cache: str, number: int, results: Any) -> None:
    """Put the CPU seconds of three predictions of new options; in a process of its own."""
    group, seconds = untrained(data, cache), []
    for i in range(3):
        options = [f"On day {j} of week {i}, number {number}" for j in range(NEW_OPTIONS)]
        start = time.process_time()
        group.predict(f"When did you last think of {i}?", options)
        seconds.append(time.process_time() - start)
    results.put({"cpu_seconds": seconds, "torch_threads": torch.get_num_threads()})


def beside(data: PreferenceDataset, cache: str, number: int) -> dict[str, Any]:
    """Measure first predictions beside so many busy processes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with busy(number):
        process = context.Process(target=first_prediction, args=(data, cache, number, results))
        process.start()
        found: dict[str, Any] = results.get()
        process.join()
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    data, before = load_dataset(arguments.dataset), os.getloadavg()[0]
    record: dict[str, Any] = {"scoring": scoring(data, arguments.repeats)}
    with tempfile.TemporaryDirectory() as cache:  # in which the new options are new
        record["new_options"] = {str(n): beside(data, cache, n) for n in (0, BUSY)}
    print("| cached candidates a CPU second, one group | median | best |\n|---|---|---|")
    for name, found in record["scoring"]["a_cpu_second"].items():
        print(f"| {name} | {found['median']:,.0f} | {found['best']:,.0f} |")
    print(f"\n| CPU s of {NEW_OPTIONS} new options | first | second | third |\n|---|---|---|---|")
    for number, found in record["new_options"].items():
        cells = " | ".join(f"{s:.2f}" for s in found["cpu_seconds"])
        print(f"| beside {number} busy processes | {cells} |")
    record |= {
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "versions": {"torch": version("torch")},
        "cores": os.cpu_count(),
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
