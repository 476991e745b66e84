"""Twenty random kills during one run of a deployed federation: does it end like an undisturbed one?

A SuperLink, its gateway and one SuperNode per group run the scripts of `pluralllm deploy init`,
each kept alive as by systemd. At random times a random part gets SIGKILL: a node, a ClientApp at
work, the ServerApp, the SuperLink, or everything on the server. The final model is compared with
a simulation of the same groups and seed. Prints a table and writes reliability.json.

    python benchmarks/reliability.py --rounds 30 --kills 20
"""

import argparse
import contextlib
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from pluralllm_fl.datasets import SyntheticSpec, load_dataset
from pluralllm_fl.deploy.check_data import check_embedding
from tests.e2e.federation import Deployment, write_answers

KINDS = ("node", "ClientApp", "ServerApp", "SuperLink", "server machine")
QUESTIONS = 40
STEPS = 5


def main() -> None:
    """Run, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--update-dtype", default="bfloat16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plfl-") as folder:
        result = measure(Path(folder), arguments)
    (Path(__file__).with_suffix(".json")).write_text(json.dumps(result, indent=2) + "\n")
    for kind, count in result["kills"].items():
        print(f"{kind:<16} {count:>3} kills")
    print(f"rounds completed {result['rounds']}, resumed {result['resumed']} times, "
          f"{result['dropped_replies']} replies dropped, {result['seconds']:.0f} s")  # fmt: skip
    print("final model equals the undisturbed one:", result["equal"])
    sys.exit(0 if result["equal"] else 1)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Run the federation under fire and the simulation in peace."""
    survey = load_dataset("synthetic", synthetic=SyntheticSpec(groups=3, questions=QUESTIONS))
    groups = sorted(survey.groups)
    seen, unseen = groups[:2], groups[2:]
    rows = {
        group: [
            {"group": group, "question": q.text, "options": q.options, "distribution": p.tolist()}
            for q, p in survey.groups[group].answers.items()
        ]
        for group in groups
    }
    settings = {
        "num-server-rounds": arguments.rounds, "local-steps": STEPS,
        "update-dtype": arguments.update_dtype, "strategy": "fedadam",
        "strategy-args": '{"eta": 0.003}',
    }  # fmt: skip
    began = time.monotonic()
    with Deployment(folder, seen, unseen, mark="reliability") as federation:
        for group in groups:
            write_answers(federation.node(group) / "answers.jsonl", rows[group])
            check_embedding(federation.node(group), survey)  # fills the node's cache
        federation.configure(**{key.replace("-", "_"): value for key, value in settings.items()})
        federation.start_server()
        for group in groups:
            federation.start_node(group)
        federation.start_run()
        kills = harass(federation, groups, arguments)
        federation.wait(lambda: federation.status == "completed", 3600, "completion")
        model = digest(federation.run)
        events = Counter(event["event"] for event in federation.events())
    write_answers(folder / "all.jsonl", [row for group in groups for row in rows[group]])
    subprocess.run(
        [sys.executable, "simulation.py", "--dataset", folder / "all.jsonl", "--seen",
         ";".join(seen), "--unseen", ";".join(unseen), "--output-dir", folder / "runs",
         "--set", "run-name=peace", *(f"--set={k}={v}" for k, v in settings.items())],
        check=True, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return {
        "groups": len(groups), "rounds": events["round"], "kills": dict(Counter(kills)),
        "resumed": events["run_started"] - 1, "dropped_replies": events["reply_dropped"],
        "nodes_back": events["node_back"], "messages_resent": events["message_resent"],
        "seconds": time.monotonic() - began, "strategy": "fedadam",
        "update_dtype": arguments.update_dtype, "model_sha256": model,
        "undisturbed_sha256": digest(folder / "runs" / "peace"),
        "equal": model == digest(folder / "runs" / "peace"),
    }  # fmt: skip


def harass(federation: Deployment, groups: list[str], arguments: argparse.Namespace) -> list[str]:
    """Kill random parts at random times, spread over the rounds; return their kinds."""
    chance = random.Random(arguments.seed)
    kills: list[str] = []
    while len(kills) < arguments.kills:
        # About evenly over the run: the next kill is due when its share of the rounds is done.
        due = len(kills) * (arguments.rounds - 2) / arguments.kills
        federation.wait(lambda due=due: federation.round >= due, 1200, f"round {due:.0f}")
        time.sleep(chance.uniform(0, 8))
        kind = chance.choice(KINDS)
        if strike(federation, kind, chance.choice(groups)):
            kills.append(kind)
            print(f"{len(kills)}/{arguments.kills}: {kind} in round {federation.round + 1}",
                  flush=True)  # fmt: skip
    return kills


def strike(federation: Deployment, kind: str, group: str) -> bool:
    """Kill one part; return whether it was there."""
    unit = federation.units[group]
    if kind == "node":
        unit.kill()
        return True
    if kind == "ClientApp":
        with contextlib.suppress(psutil.Error, AttributeError):
            for child in psutil.Process(unit.process.pid).children(recursive=True):  # type: ignore[union-attr]
                if "flwr-clientapp" in " ".join(child.cmdline()):
                    child.kill()
                    return True
        return False
    if kind == "ServerApp":
        process = federation.server_app()
        with contextlib.suppress(psutil.Error):
            if process is not None:
                process.kill()
                return True
        return False
    names = ["superlink"] if kind == "SuperLink" else ["run", "superlink", "gateway"]
    for name in names:
        federation.units[name].kill()
    return True


def digest(run: Path) -> str:
    """Hash a run's final model."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
