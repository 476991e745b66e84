"""Federations of 14, 1,000 and 10,000 groups on one machine: time, memory and Flower's own floor.

Runs `simulation.py` on generated surveys and stops it after some rounds. For the floor, Flower
runs the same rounds with clients that do nothing: the whole model goes down to each, and an array
of its size comes back. Prints a table and writes scale.json beside this file, where federations
that are not measured now keep their rows; docs/results.md tells them.

    python benchmarks/scale.py
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from flwr.serverapp.strategy import FedAvg
from light_fleet import DIMENSION, rounds
from resources import tree_bytes

from pluralllm_fl.config import RunConfig
from pluralllm_fl.devices import available_cpus
from pluralllm_fl.predictor.model import initial_predictor
from pluralllm_fl.processes.launcher import PrivateSuperLink

ROOT = Path(__file__).resolve().parents[1]
NO_OP_CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    values = np.zeros(context.run_config["values"], np.float32)
    arrays = ArrayRecord({"model": Array(values)})
    metrics = MetricRecord({"num-examples": 1.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
"""
NO_OP_SERVER = """
import json, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    while len(list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.2)
    strategy = FedAvg(fraction_train=config["sampled"] / config["nodes"])
    arrays = ArrayRecord({"model": Array(np.zeros(config["values"], np.float32))})
    seconds = []
    for number in range(1, config["rounds"] + 1):
        start = time.monotonic()
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        pending, replies = set(grid.push_messages(messages)), []
        while pending:  # Flower's own loop looks every 3 s only
            replies += (found := list(grid.pull_messages(pending)))
            pending -= {reply.metadata.reply_to_message_id for reply in found}
            time.sleep(0.02)
        strategy.aggregate_train(number, replies)  # the next round sends the whole model again
        seconds.append(time.monotonic() - start)
    Path(config["times"]).write_text(json.dumps(seconds))
"""


class Timed(FedAvg):
    """FedAvg that notes how long the nodes trained: one line a round, seconds of every node."""

    def __init__(self, times: str, fraction_train: float = 1.0, **kwargs: Any) -> None:
        super().__init__(fraction_train=fraction_train, **kwargs)
        self.times = Path(times)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Note the times, then average."""
        replies = list(replies)
        seconds = [float(reply.content["metrics"]["seconds"]) for reply in replies]
        with self.times.open("a", encoding="utf-8") as file:
            file.write(json.dumps(seconds) + "\n")
        return super().aggregate_train(server_round, replies)


def training_seconds(times: Path) -> list[float]:
    """Return the seconds of training of every round, summed over its nodes."""
    return [sum(json.loads(line)) for line in times.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Federation:
    """How many groups there are, how many of them train, and how many of those in a round."""

    groups: int
    training: int
    sampled: int
    questions: int

    def settings(self, folder: Path, times: Path, rounds: int) -> dict[str, Any]:
        """Return the run config's changes."""
        strategy = {
            "fraction_train": self.sampled / self.training, "fraction_evaluate": 0.0,
            "min_evaluate_nodes": 0, "times": str(times),
        }  # fmt: skip
        return {
            "synthetic-groups": self.groups, "unseen-fraction": 1 - self.training / self.groups,
            "synthetic-questions": self.questions, "num-server-rounds": rounds,
            "evaluate-every": 10_000, "join-timeout": 3600,
            "strategy": "scale:Timed", "strategy-args": json.dumps(strategy),
            "output-dir": folder, "run-name": "run",
        }  # fmt: skip


FEDERATIONS = {
    "14": Federation(14, 8, 8, 120),
    "1000": Federation(1000, 998, 100, 120),
    "10000": Federation(10_000, 9998, 20, 40),
}


def simulate(federation: Federation, number: int, folder: Path) -> dict[str, Any]:
    """Simulate so many rounds, then stop; return times and memory by round."""
    times = folder / "times"
    # One more round than wanted: the last is followed by the evaluation of every group.
    settings = federation.settings(folder, times, number + 1)
    command = [sys.executable, str(ROOT / "simulation.py")]
    command += [f"--set={key}={value}" for key, value in settings.items()]
    began, memory = time.time(), []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parent, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None and len(rounds(folder / "run")) < number:
            memory.append((time.time(), tree_bytes(process.pid)))
            time.sleep(0.5)
        process.terminate()  # a shell's background jobs ignore interrupts, and so would this
        process.wait()
    events = rounds(folder / "run")[:number]
    if len(events) < number:
        raise SystemExit(f"simulation.py ended early: {(folder / 'log').read_text()[-2000:]}")
    ends = [event["time"] for event in events]
    return {
        "round_seconds": [event["seconds"] for event in events],
        "training_seconds": [s / available_cpus() for s in training_seconds(times)[:number]],
        "peak_gb": max(size for _, size in memory) / 1e9,
        "peak_gb_by_round": [
            max((size for moment, size in memory if begin < moment <= end), default=0) / 1e9
            for begin, end in itertools.pairwise(ends)
        ],
        "seconds_to_the_first_round": ends[0] - events[0]["seconds"] - began,
    }


def floor(federation: Federation, number: int, folder: Path) -> list[float]:
    """Return the seconds of rounds with clients that do nothing."""
    app = folder / "app"
    app.mkdir()
    config = RunConfig.default()
    model = initial_predictor(config, DIMENSION, "").state_dict()
    values: dict[str, Any] = {
        "nodes": federation.groups, "sampled": federation.sampled, "rounds": number,
        "values": sum(value.numel() for value in model.values()), "times": str(folder / "floor"),
    }  # fmt: skip
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.flwr.app.config]")
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    (app / "pyproject.toml").write_text(f"{settings[0]}[tool.flwr.app.config]\n{lines}\n")
    (app / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
    (app / "client_app.py").write_text(NO_OP_CLIENT)
    (app / "server_app.py").write_text(NO_OP_SERVER)
    log = folder / "floor.log"
    with PrivateSuperLink(threads=1) as superlink:
        superlink.run(
            app, values, supernodes=federation.groups, gpus=0.0, log=log, tick=lambda: False
        )
    if not (folder / "floor").is_file():
        raise SystemExit(f"the clients that do nothing failed: {log.read_text()[-2000:]}")
    return list(json.loads((folder / "floor").read_text()))


def measure(federation: Federation, number: int) -> dict[str, Any]:
    """Measure one federation and its floor."""
    with tempfile.TemporaryDirectory(prefix="plfl-") as name:
        folder = Path(name)
        found = simulate(federation, number, folder)
        nothing = floor(federation, number, folder)
    # The first round opens the data in every worker.
    wall, own, least = (
        statistics.median(seconds[1:])
        for seconds in (found["round_seconds"], found["training_seconds"], nothing)
    )
    return vars(federation) | found | {
        "floor_seconds": nothing,
        "ratio": wall / (own + least),
        "ms_a_client_beyond_training": 1e3 * (wall - own) / federation.sampled,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--federations", nargs="+", choices=FEDERATIONS, default=list(FEDERATIONS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.output.is_file():
        found = json.loads(arguments.output.read_text(encoding="utf-8"))["federations"]
    print("| groups | sampled | s a round | training | no-op | ratio | peak GB |\n|" + 7 * "---|")
    for name in arguments.federations:
        load = psutil.getloadavg()[0]
        row = found[name] = measure(FEDERATIONS[name], arguments.rounds)
        row |= {
            "load_before": load,
            "cores": available_cpus(),
            "machine": {"arch": platform.machine(), "of_cores": os.cpu_count()},
            "versions": {p: version(p) for p in ("torch", "flwr", "ray")},
        }
        wall, own, least = (
            statistics.median(row[key][1:])
            for key in ("round_seconds", "training_seconds", "floor_seconds")
        )
        print(f"| {row['groups']} | {row['sampled']} | {wall:.2f} | {own:.2f} | {least:.2f} | "
              f"{row['ratio']:.2f} | {row['peak_gb']:.2f} |", flush=True)  # fmt: skip
        text = json.dumps({"federations": found}, indent=2)
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    # Not above: the measured ServerApp imports this file, and would import that with it.
    from store import script

    script(main)
