"""What one more node costs a deployment's server, and what a node costs its machine.

The real programs, measured from outside: a server as `pluralllm deploy init` writes it (SuperLink
with TLS, node keys and database behind nginx) with light nodes; one real node. Writes
node_costs.json beside this file; docs/scaling.md reads it. About five minutes on two cores that
nothing else uses; needs nginx. Simulations: scale.py.

    python benchmarks/node_costs.py
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from light_fleet import (
    DIMENSION,
    QUIET,
    Keys,
    Server,
    cpu_seconds,
    light_nodes,
    moved,
    named,
    rounds,
)
from scale import training_seconds

from pluralllm_fl.config import RunConfig
from pluralllm_fl.datasets import SyntheticSpec, load_dataset
from pluralllm_fl.embedding.cache import default_cache_dir
from pluralllm_fl.wire import rounding
from pluralllm_fl.wire.packing import packed
from pluralllm_fl.wire.records import to_arrays, to_record

ROOT = Path(__file__).resolve().parents[1]
IDLE = (0, 50, 600)  # light nodes that wait; the last are more than one SuperLink can serve
IDLE_SECONDS = 15.0
EXCHANGE = ((5, "float32"), (25, "float32"), (25, "bfloat16"))  # light nodes in a run, updates
PUSHED = (25, 200)  # messages that the ServerApp hands over at once
PUSH = """
import json, os, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    found = {{}}
    for count in {counts}:
        while len(nodes := list(grid.get_node_ids())) < count:
            time.sleep(0.5)
        arrays = ArrayRecord({{"model": Array(np.random.rand(160_000))}})
        content = RecordDict({{"arrays": arrays}})
        messages = [Message(content, dst_node_id=n, message_type="query") for n in nodes[:count]]
        start = time.monotonic()
        grid.push_messages(messages)
        found[f"{{count}}_messages_seconds"] = time.monotonic() - start
    with open(context.run_config["times"] + ".new", "w") as file:
        json.dump(found, file)
    os.rename(file.name, context.run_config["times"])
"""


def idle(server: Server, keys: list[Keys]) -> dict[str, Any]:
    """Return what waiting nodes cost the server."""
    with light_nodes(server, keys) as traffic:
        time.sleep(5)
        traffic.polls.clear()
        start, before = time.monotonic(), server.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        seconds, after = time.monotonic() - start, server.cpu_seconds()
        waits = sorted(traffic.polls) or [0.0]
        return {
            "nodes": len(keys),
            "polls_a_second": len(traffic.polls) / seconds,
            "poll_ms_median": 1e3 * statistics.median(waits),
            "poll_ms_95_percent": 1e3 * waits[int(0.95 * (len(waits) - 1))],
            **{f"{name}_cpu_ms_a_second": 1e3 * (after[name] - before[name]) / seconds
               for name in ("superlink", "gateway")},
            **server.memory_mb(),
        }  # fmt: skip


def exchange(server: Server, keys: list[Keys], dtype: str) -> dict[str, Any]:
    """Run two rounds with all of the nodes; return what the second cost the server."""
    count = len(keys)
    used = server.database_used_mb
    peaks: dict[str, float] = {}
    marks: list[dict[str, float]] = []
    with light_nodes(server, keys) as traffic:
        run = server.federate(
            f"{dtype}-{count}",
            expected_nodes=count, min_nodes=count, num_server_rounds=2, update_dtype=dtype,
        )  # fmt: skip
        while not (run / "summary.json").is_file():
            now = {**server.memory_mb(), "database_mb": server.database_mb}
            peaks = {name: max(value, peaks.get(name, 0.0)) for name, value in now.items()}
            if len(rounds(run)) > len(marks):
                marks.append(server.cpu_seconds())
            time.sleep(0.1)
    last = rounds(run)[-1]
    return {
        "nodes": count,
        "update_dtype": dtype,
        "round_seconds": last["seconds"],
        "lost_connections": traffic.lost,
        "mb_down_a_message": last["bytes_down"] / count / 1e6,
        "mb_up_a_message": last["bytes_up"] / count / 1e6,
        **{f"{name}_cpu_seconds": marks[1][name] - marks[0][name] for name in marks[0]},
        **{f"{name}_at_most": value for name, value in peaks.items()},
        "database_mb_kept": server.database_used_mb - used,
    }


def push(server: Server, keys: list[Keys], folder: Path) -> dict[str, float]:
    """Return how long the ServerApp waits for the SuperLink to take messages for many nodes."""
    app, times = folder / "push", folder / "pushed"
    app.mkdir()
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.flwr.app.config]")
    (app / "pyproject.toml").write_text(f'{settings[0]}[tool.flwr.app.config]\ntimes = ""\n')
    shutil.copy(ROOT / "LICENSE", app)
    (app / "client_app.py").write_text("from flwr.clientapp import ClientApp\napp = ClientApp()\n")
    (app / "server_app.py").write_text(PUSH.format(counts=PUSHED))
    with light_nodes(server, keys[: max(PUSHED)], polling=False):
        server.run(app, {"times": str(times)})
        while not times.is_file():
            time.sleep(0.2)
    return dict(json.loads(times.read_text(encoding="utf-8")))


def one_more(found: dict[str, Any]) -> dict[str, float]:
    """Return the costs of one more node and of one more message a round, by difference."""
    none, some, most = found["idle"]
    few, many = found["exchange"][:2]

    def each(key: str, low: dict[str, Any], high: dict[str, Any]) -> float:
        return float(high[key] - low[key]) / float(high["nodes"] - low["nodes"])

    waiting = each("superlink_cpu_ms_a_second", none, some)
    for run in (few, many):
        run["superlink_cpu_seconds_beyond_waiting"] = (
            run["superlink_cpu_seconds"] - 1e-3 * waiting * run["nodes"] * run["round_seconds"]
        )
    return {
        "superlink_cpu_ms_a_node_second": waiting,
        "gateway_cpu_ms_a_node_second": each("gateway_cpu_ms_a_second", none, some),
        "superlink_mb_a_node": each("superlink_mb", none, most),
        "gateway_mb_a_node": each("gateway_mb", none, most),
        "superlink_cpu_seconds_a_message": each("superlink_cpu_seconds_beyond_waiting", few, many),
        "gateway_cpu_seconds_a_message": each("gateway_cpu_seconds", few, many),
        "serverapp_cpu_seconds_a_message": each("serverapp_cpu_seconds", few, many),
        "superlink_mb_a_message": each("superlink_mb_at_most", few, many),
        "serverapp_mb_a_message": each("serverapp_mb_at_most", few, many),
        "database_mb_a_message": each("database_mb_at_most", few, many),
    }


def node(server: Server, group: str, folder: Path) -> dict[str, Any]:
    """Run three rounds with one real node; return what the last cost on its machine."""
    home = server.folder / "nodes" / group.lower()
    survey = load_dataset("synthetic", synthetic=SyntheticSpec(groups=8, questions=120))
    with (home / "answers.jsonl").open("w", encoding="utf-8") as file:
        for question, shares in survey.groups[group].answers.items():
            row = {"group": group, "question": question.text, "options": question.options}
            file.write(json.dumps(row | {"distribution": shares.tolist()}) + "\n")
    cache = home / "state" / "embeddings"
    cache.mkdir(exist_ok=True)
    for path in default_cache_dir().glob("embeddings-*"):
        shutil.copy(path, cache)
    register = [server.folder / "server" / "register.sh"]
    subprocess.run(register, check=True, env=server.environment, stdout=subprocess.DEVNULL)
    supernode = server.start(home / "supernode.sh")
    times = folder / "times"
    run = server.federate(
        "real", expected_nodes=1, min_nodes=1, num_server_rounds=3, strategy="scale:Timed",
        strategy_args=json.dumps({"times": str(times)}),
    )  # fmt: skip
    marks: list[float] = []
    memory = dict.fromkeys(("supernode", "superexec", "clientapp"), 0.0)
    while not (run / "summary.json").is_file():
        tree = [supernode, *supernode.children(recursive=True)]
        for name in memory:
            for process in named(tree, name):
                try:
                    memory[name] = max(memory[name], process.memory_full_info().pss / 1e6)
                except psutil.Error:
                    continue
        if len(rounds(run)) > len(marks):
            marks.append(cpu_seconds(*tree))
        time.sleep(0.1)
    time.sleep(3)  # the last ClientApp ends
    tree = [supernode, *supernode.children(recursive=True)]
    start, before = time.monotonic(), cpu_seconds(*tree)
    time.sleep(IDLE_SECONDS / 2)
    idle_cpu = (cpu_seconds(*tree) - before) / (time.monotonic() - start)
    return {
        "round_seconds": rounds(run)[-1]["seconds"],
        "cpu_seconds": marks[-1] - marks[-2],
        "of_it_training_seconds": training_seconds(times)[-1],
        "idle_cpu_ms_a_second": 1e3 * idle_cpu,
        **{f"{name}_mb": value for name, value in memory.items()},
    }


def objects_a_message() -> dict[str, int]:
    """Return how many objects a training reply consists of: each is a request of its own."""
    from pluralllm_fl.predictor.model import PredictorConfig, PreferencePredictor

    config = RunConfig.default()
    model = PreferencePredictor(PredictorConfig.from_run_config(config, DIMENSION))
    arrays = to_arrays(ArrayRecord(model.state_dict()))
    found = {}
    for dtype in ("float32", "bfloat16"):
        sent = arrays
        if dtype != "float32":
            sent = rounding.encode(moved(arrays, 1e-3), arrays)
        content = packed(RecordDict({"arrays": to_record(sent), "config": ConfigRecord()}))
        found[dtype] = len(get_all_nested_objects(content)) + 1  # the message itself
    return found


def deployment(folder: Path) -> dict[str, Any]:
    """Measure the server with light nodes, then one real node."""
    group = "Northland"
    keys = [generate_key_pairs() for _ in range(max(IDLE))]
    with Server(folder, group) as server:
        server.register(keys)
        found: dict[str, Any] = {
            "idle": [idle(server, keys[:count]) for count in IDLE],
            "exchange": [exchange(server, keys[:count], dtype) for count, dtype in EXCHANGE],
        }
        found["push"] = push(server, keys, folder)
        return found | {"one_more": one_more(found), "node": node(server, group, folder)}


def busy_seconds() -> float:
    """Return the CPU time that this machine spent on anything but this process and its children."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait) - cpu_seconds(psutil.Process())


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    os.environ.update(QUIET)
    start, before, load = time.monotonic(), busy_seconds(), psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="plfl-") as name:
        folder = Path(name)
        result = {
            "cores": len(psutil.Process().cpu_affinity() or [0]),
            "arch": platform.machine(),
            "versions": {p: version(p) for p in ("torch", "flwr", "ray")},
            "load_before": load,
            "objects_a_message": objects_a_message(),
            "deployment": deployment(folder),
        }
    seconds = time.monotonic() - start
    others = busy_seconds() - before
    result |= {"minutes": seconds / 60, "cores_used_by_others": others / seconds}
    text = json.dumps(result, indent=2)
    print(text)
    arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
