"""A deployed federation's set-up time, seconds and bytes a round, for both update-dtypes.

SuperLink, gateway and one SuperNode per group run the scripts of `pluralllm deploy init` on this
machine, over TLS with node keys. Prints a table and writes deployment.json beside this file.

    python benchmarks/deployment.py
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pluralllm_fl.datasets import SyntheticSpec, load_dataset
from tests.e2e.federation import Deployment, write_answers

DTYPES = ("float32", "bfloat16")
STEPS = 10


def main() -> None:
    """Run every way; print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--groups", type=int, default=4)
    arguments = parser.parse_args()
    rows = []
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory(prefix="plfl-") as folder:
            rows.append(measure(Path(folder), arguments.rounds, arguments.groups, dtype))
        row = rows[-1]
        print(f"{dtype:<9} {row['seconds_a_round']:6.1f} s  "
              f"{row['mb_up_a_round']:6.2f} MB up  {row['mb_down_a_round']:6.2f} MB down a round; "
              f"first round {row['init_to_first_round_seconds']:.0f} s after deploy init",
              flush=True)  # fmt: skip
    result = {
        "groups": arguments.groups, "rounds": arguments.rounds, "local_steps": STEPS,
        "cores": os.cpu_count(), "python": platform.python_version(), "flwr": version("flwr"),
        "torch": version("torch"), "ways": rows,
    }  # fmt: skip
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, rounds: int, groups: int, dtype: str) -> dict[str, Any]:
    """Set a federation up and run it to its end."""
    survey = load_dataset("synthetic", synthetic=SyntheticSpec(groups=groups, questions=60))
    names = sorted(survey.groups)
    began = time.time()
    with Deployment(folder, names[:-1], names[-1:], mark="deployment") as federation:
        for group in names:
            write_answers(federation.node(group) / "answers.jsonl", [
                {"group": group, "question": q.text, "options": q.options,
                 "distribution": p.tolist()}
                for q, p in survey.groups[group].answers.items()
            ])  # fmt: skip
        federation.configure(
            num_server_rounds=rounds,
            local_steps=STEPS,
            update_dtype=dtype,
        )
        federation.start_server()
        for group in names:
            federation.start_node(group)
        federation.start_run()
        federation.wait(lambda: federation.status == "completed", 900, "completion")
        events = federation.events()
    done = [e["time"] for e in events if e["event"] == "checkpoint"]
    # The first round also warms up; the last one is followed by a whole evaluation in any case.
    gaps = [b - a for a, b in itertools.pairwise(done[1:-1])]
    sent = {side: sum(e.get(f"bytes_{side}", 0) for e in events) for side in ("up", "down")}
    return {
        "update_dtype": dtype,
        "init_to_first_round_seconds": done[1] - began,
        "seconds_a_round": statistics.median(gaps),
        "mb_up_a_round": sent["up"] / rounds / 1e6,
        "mb_down_a_round": sent["down"] / rounds / 1e6,
    }


if __name__ == "__main__":
    main()
